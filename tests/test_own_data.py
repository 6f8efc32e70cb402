"""Pairings and sources that a user's own config file adds by one entry each, and settings that have no effect."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.stats import chisquare
from small import IMAGES, cdp, image_set, options, quick_environment

from mirigor_jax import config_files
from mirigor_jax.data.pairing import PAIRINGS
from mirigor_jax.data.sources.table import SOURCES
from mirigor_jax.errors import InputError
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import parse
from mirigor_jax.runs.renamed import ADDED, CONFIG_KEYS, current

OWN = '''
import numpy as np
from ml_collections import ConfigDict

from mirigor_jax.config_files import load_config
from mirigor_jax.data.generated import GeneratedImages
from mirigor_jax.data.pairing import PAIRINGS, same_class
from mirigor_jax.data.sources.parts import numbered
from mirigor_jax.data.sources.table import SOURCES, FiniteSource, GeneratedSource

PAIRINGS["halves"] = lambda space: same_class(space, lambda a: a[:, 0] // 2, 2, shared=("half of the values",))


class Gray(GeneratedImages):
    """One gray level an image, a little noisy."""

    names, title = ("level",), "gray set"

    def __init__(self, size, noise):
        self.size, self.noise, self.value_names = size, noise, (tuple("abcd"),)

    def draw(self, words):
        return (words[:, :1] >> 30).astype(np.int32), words[:, 1:2] % np.uint32(self.noise)

    def render(self, attributes, nuisances):
        level = (60 * attributes + nuisances).astype(np.uint8)[:, :, None, None]
        return np.broadcast_to(level, (len(level), self.size, self.size, 3)).copy()


def gray(*, size, seed, noise=9):
    return Gray(size, noise)


def stripes(argument, size):
    """Four classes of images, each a gray level."""
    classes = (np.arange(1200) % int(argument)).astype(np.int32)
    images = np.broadcast_to(60 * classes.astype(np.uint8)[:, None, None, None], (1200, size, size, 3))
    return {"train": numbered(classes, lambda rows: images[rows])}, tuple(map(str, range(int(argument))))


SOURCES["gray"] = GeneratedSource(gray)
SOURCES["stripes"] = FiniteSource(stripes, argument="CLASSES")


def get_config(arg):
    config = load_config("configs/cdp.py")[0].unlock()
    config.data.source, config.data.pairing, config.data.size = arg, "halves", 8
    config.data.gray = ConfigDict({"noise": 9})
    config.encoder.name = "mlp"
    return config
'''
SMALL = {
    **IMAGES,
    "train.k": 8,
    "train.steps": 4,
    "features.fit": 256,
    "features.validation": 96,
    "features.test": 128,
    "estimate.k": 32,
}


@pytest.fixture
def own_config(tmp_path, monkeypatch) -> Path:
    """A config file of the user's own. Its entries are removed after the test."""
    for table, name in ((PAIRINGS, "halves"), (SOURCES, "gray"), (SOURCES, "stripes")):
        monkeypatch.setitem(table, name, None)
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize("source", ["gray", "stripes:4"])
def test_pairs_of_one_s_own_source_and_pairing(own_config, source):
    """Gray levels show the values: each half has two, and the views are independent given the half."""
    config = config_files.parse([f"--config={own_config}:{source}", *options(SMALL)])[0]
    job = parse(config)
    assert (job.pairing.shared, job.pairing.num_classes) == (("half of the values",), 2)
    assert job.pairing.truth_bits == (1.0 if source == "gray" else None)
    pairs = job.images.pairs(job.pairing, "train")(0, 4000)
    x, y = (pairs[view][:, 0, 0, 0].astype(int) // 60 for view in ("x", "y"))
    np.testing.assert_array_equal(x, pairs["attributes_x"][:, 0])
    assert (x // 2 == y // 2).all()
    table = np.histogram2d(x, y, bins=4)[0]
    assert chisquare(table[table > 0]).pvalue > 1e-3
    assert np.count_nonzero(table) == 8


@pytest.mark.slow
@pytest.mark.parametrize("source", ["gray", "stripes:4", "cdp"])
def test_the_command_runs_what_one_s_own_config_adds(own_config, source):
    """Color is CDP's first attribute, so `halves` can pair it too."""
    command = [sys.executable, "-m", "mirigor_jax.main", f"--config={own_config}:{source}", *options(SMALL)]
    size = ["--config.data.size=32"] if source == "cdp" else []
    done = subprocess.run(
        [*command, *size, f"--workdir={own_config.parent / 'run'}"],
        env=quick_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((own_config.parent / "run" / "report.json").read_text())
    assert set(report["estimates"]) == {"halves"}
    assert report["truth"]["shared"] == ["half of the values"]
    assert report["estimate"]["upper_bits"] == pytest.approx(1.0, abs=0.01)
    assert report["truth"]["mutual_information_bits"] == (None if ":" in source else 1.0)
    assert 0 <= report["estimate"]["lower_bits"] <= 1.01


USELESS = {
    "colors of a set": (
        image_set,
        "data.cdp.colors=3",
        "colors=3 only affects data.source='cdp', and data.source='npz",
    ),
    "TFDS's folder": (image_set, "data.tfds_dir=X", "data.tfds_dir='X' only affects the sources tfds and fashion"),
    "mi of a set": (image_set, "data.mi=0.5", "mi_bits and epsilon are for CDP"),
    "classes of CDP": (cdp, "data.classes=first-half", "data.classes='first-half' only affects sets of images"),
    "noise of CDP": (cdp, "data.noise=0.5", "data.noise=0.5 only affects sets of images"),
    "negatives of CDP": (cdp, "data.negatives=own", "data.negatives='own' only affects sets of images"),
}


@pytest.mark.parametrize("case", USELESS)
def test_a_setting_without_effect_is_an_error_that_says_whose_it_is(tmp_path, case):
    make, setting, message = USELESS[case]
    np.savez(tmp_path / "set.npz", images=np.zeros((1500, 12, 12), np.uint8), labels=np.arange(1500) % 3)
    arguments = [f"npz:{tmp_path / 'set.npz'}", tmp_path] if make is image_set else []
    config = config_files.parse(make(*arguments, f"--config.{setting}"))[0]
    with pytest.raises(InputError) as error:
        parse(config)
    assert message in str(error.value)


def test_a_stored_config_has_the_useless_settings_of_its_source_at_their_defaults(tmp_path):
    """A config that is read from its file has lists instead of tuples."""
    np.savez(tmp_path / "set.npz", images=np.zeros((1500, 12, 12), np.uint8), labels=np.arange(1500) % 3)
    config = config_files.parse(image_set(f"npz:{tmp_path / 'set.npz'}", tmp_path))[0]
    stored = ConfigDict(json.loads(config.to_json()))
    assert isinstance(stored.data.cdp.digits, list)
    assert parse(stored).pairing.num_classes == 3


@pytest.mark.parametrize("channel", ["data.mi=0.5", "data.epsilon.color=0.1"])
def test_views_of_one_image_have_no_use_for_a_channel(channel):
    config = config_files.parse(cdp("--config.data.pairing=simclr", f"--config.{channel}"))[0]
    with pytest.raises(InputError, match="views of one image share the image itself"):
        parse(config)


def test_the_shipped_defaults_are_the_source_s_own():
    config = config_files.parse(["--config=configs/cdp.py"])[0]
    assert config.data.cdp.to_dict() == SOURCES["cdp"].knobs


def test_a_stored_config_is_read_under_today_s_keys(tmp_path):
    # Images of 32 pixels have cells of 16, and boxes of 14×11: a digit can move by 5 pixels at most.
    new = json.loads(config_files.parse(cdp("--config.data.cdp.jitter=0.6"))[0].to_json())
    old = json.loads(json.dumps(new))
    knobs = old["data"].pop("cdp") | {"jitter": 3}
    # Older versions had no other law, and none of these nuisances.
    assert [knobs.pop(name) for name in ("law", "clutter", "blur", "noise")] == ["independent", 0, 0, 0]
    old["data"] |= knobs
    assert current(old) == new == current(new)
    study = {"run": old, "study": {"cells": [{"name": "a", "run": {"data.mixing": 0.2, "seed": 1}}]}}
    cells = [{"name": "a", "run": {"data.cdp.mixing": 0.2, "seed": 1}}]
    assert current(study) == {"run": new, "study": {"cells": cells, "fits": []}}  # studies had no fits
    assert old["data"]["colors"] == 2  # the stored one is left as it is
    (tmp_path / "config.json").write_text(json.dumps(old))
    folder = RunFolder(tmp_path)
    assert folder.config() == new
    folder.claim(config_files.parse(cdp("--config.data.cdp.jitter=0.6"))[0])
    with pytest.raises(InputError, match=r"data\.cdp\.jitter differ"):
        folder.claim(config_files.parse(cdp())[0])
    old["data"]["jitter"] = 9  # beyond what the cell has room for
    assert current(old)["data"]["cdp"]["jitter"] == 1.0
    assert {*CONFIG_KEYS.values(), *ADDED} >= {f"data.cdp.{knob}" for knob in SOURCES["cdp"].knobs}
