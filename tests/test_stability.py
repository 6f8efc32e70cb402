"""The study `stability`: its shares of rows are nested, and its tables show what it measured at each step."""

import ast
import json

import numpy as np
import pytest
from small import IMAGES

from mirigor_jax import config_files
from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.studies import stability, stability_fits
from mirigor_jax.studies.stability_fits import FIT, PAIRS, STEP, USABLE

CONFIG = "--config=configs/studies/stability.py"


def test_shares_are_nested_and_have_as_many_rows_of_each_class():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [160, 80, 16]))
    smaller, before = set(), 0
    for share in (1 / 16, 1 / 4, 1.0):
        rows = stability_fits.nested(labels, share, seed=3)
        assert np.bincount(labels[rows]).tolist() == [160 * share, 80 * share, 16 * share]
        assert (np.diff(rows) > 0).all()  # in the order of the set
        assert smaller <= set(rows.tolist())
        smaller, before = set(rows.tolist()), len(rows)
    assert before == len(labels)
    other = stability_fits.nested(labels, 1 / 4, seed=4)
    assert set(other.tolist()) != set(stability_fits.nested(labels, 1 / 4, seed=3).tolist())


def test_a_share_of_the_pairs_leaves_no_other_row_to_any_certificate():
    rng = np.random.default_rng(0)
    pairs = {f"{name}_{view}": rng.normal(size=(40, 2)) for name in ("h", "labels") for view in "xy"}
    features = {"fit": {}, "validation": {"h": 1}, "test": {"h": rng.normal(size=(99, 2)), "labels": 1, **pairs}}
    cut = stability_fits.with_pairs(features, 1 / 4)
    assert cut["test"].keys() == pairs.keys()
    for name, x in cut["test"].items():
        np.testing.assert_array_equal(x, pairs[name][:10])
    assert cut["validation"] == {"h": 1}
    assert features["test"].keys() > pairs.keys()


def fit_rows(power: float = -0.5) -> list[dict]:
    """Rows of fits of two seeds, whose distances between ends follow a power of the rows."""
    rows = []
    for seed in (0, 1):
        own = {"run": f"r{seed}", "seed": seed, "steps": 64, "warnings": [], "usable_warnings": []}
        for by, sizes in ((STEP, (4, 16, 64)), (FIT, (100, 400)), (PAIRS, (50, 200)), (USABLE, (80, 320))):
            for place, at in enumerate(sizes):
                share = (place + 1) / len(sizes)
                size, value, usable = float(at) ** power, 2.0 + 0.1 * seed + share / 2, 1.5 + 0.2 * seed
                one = own | {"by": by, "at": at, "share": None if by == STEP else share, "fit_rows": at, "pairs": at}
                if by != USABLE:
                    one |= {"value_bits": value, "lower_bits": value - size, "entropy_bits": 3.0}
                    one |= {"certificate": "posterior", "accuracy": 0.8}
                if by in (STEP, USABLE):
                    one |= {"usable_bits": usable}
                    one |= {"usable_lower_bits": usable - size, "usable_upper_bits": usable + size}
                rows.append(one)
    return rows


@pytest.mark.parametrize("power", [-0.5, -0.8])
def test_the_exponent_is_that_of_the_power_law(power):
    rows = [row for row in fit_rows(power) if row["by"] == PAIRS]
    assert stability.exponents(rows, stability.gap) == pytest.approx([power, power])
    assert stability.exponents(rows[:1], stability.gap) == []
    flat = [{**row, "lower_bits": row["value_bits"]} for row in rows]
    assert stability.exponents(flat, stability.gap) == []  # no logarithm


def test_the_section_splits_what_is_missing_and_compares_seeds_with_ends():
    made = stability.section(fit_rows())
    lines = [line.strip("| ").split(" | ") for line in made.text.splitlines() if line.startswith("| ")]
    # I_class rises by 1/6 to 2.5 and 2.6, and its certified end is at^-0.5 below. Its standard deviation is 0.0707.
    assert ["4 of 64", "2", "2.217 ± 0.071", "–", "[1.666, 3.000]", "0.14", "1.600 ± 0.141", "–", "[1.000, 2.200]",
            "0.14", "80.00 ± 0.00"] in lines  # fmt: skip
    assert ["64 of 64", "2.550 ± 0.071", "+0.167", "0.57", "+0.000"] in [
        [x[0], x[2], x[3], x[5], x[7]] for x in lines if len(x) == 11
    ]
    assert ["64", "200", "2", "2.550 ± 0.071", "0.450 ± 0.071", "0.071 ± 0.000", "[2.429, 3.000]", "1.00",
            "posterior"] in lines  # fmt: skip
    assert ["64", "320", "2", "1.600 ± 0.141", "0.056 ± 0.000", "0.056 ± 0.000", "[1.444, 1.756]", "1.26"] in lines
    assert "Exponent of I_class − certified end: -0.50 ± 0.00." in made.text
    assert "Exponent of upper end − lower end: -0.50 ± 0.00." in made.text
    by_step, _, by_pairs, by_usable = made.figures["stability"].axes
    lines_of = {line.get_label(): line for line in by_pairs.lines}
    assert lines_of["I_class, certified end"].get_xydata().tolist() == [
        [50, pytest.approx(2.3 - 50**-0.5)], [200, pytest.approx(2.55 - 200**-0.5)]
    ]  # fmt: skip
    assert "usable information" in {line.get_label() for line in by_step.lines}
    assert "I_class, estimate" not in {line.get_label() for line in by_usable.lines}


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_the_shipped_study_measures_only_steps_whose_checkpoints_are_kept(scale):
    config, *_ = config_files.parse([f"{CONFIG}:scale={scale},seeds=2"])
    t = config.run.train
    assert [cell["name"] for cell in config.study.cells] == [fit["run"] for fit in config.study.fits]
    assert len(config.study.cells) == 2
    for fit in config.study.fits:
        assert fit["steps"][-1] == t.steps
        assert fit["shares"][-1] == 1
        assert all(step % t.keep_every == 0 for step in fit["steps"])
    with pytest.raises(InputError, match="steps=100: expected a multiple of 16"):
        config_files.parse([f"{CONFIG}:steps=100"])


@pytest.fixture
def garments(tmp_path):
    """A file of 1,400 small images of four classes, with 400 test images. The class is the place of a bright row."""
    rng = np.random.default_rng(0)
    arrays = {}
    for ending, n in (("", 1400), ("_test", 400)):
        labels = np.arange(n) % 4
        images = rng.integers(0, 180, (n, 8, 8), dtype=np.uint8)
        images[np.arange(n), 2 * labels] += 75
        arrays |= {f"images{ending}": images, f"labels{ending}": labels}
    np.savez(tmp_path / "set.npz", **arrays)
    return f"npz:{tmp_path / 'set.npz'}"


SHRUNK = """
from mirigor_jax.config_files import load_config
def get_config(arg):
    config, _ = load_config("configs/studies/stability.py:seeds=1,steps=32")
    config.run.update_from_flattened_dict(SMALL)
    config.study.fits[0].update({"steps": (2, 32), "shares": (0.5, 1.0)})
    return config
"""


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.usefixtures("undrawn")
def test_the_shrunk_study_measures_each_step_and_each_share(garments, tmp_path):
    small = {key: ast.literal_eval(value) for key, value in IMAGES.items()} | {
        "data.source": garments, "data.size": 8, "data.images": 400, "encoder.name": "lenet5", "encoder.width": None,
        "train.k": 16, "train.learning_rate": 5e-3, "train.warmup_steps": 0, "features.fit": None,
        "features.validation": None, "features.test": None,
        "features.unseen": 600, "estimate.k": 32,
    }  # fmt: skip
    (tmp_path / "shrunk.py").write_text(SHRUNK.replace("SMALL", repr(small)))
    command = [f"--config={tmp_path / 'shrunk.py'}", f"--workdir={tmp_path / 'study'}"]
    assert main(command) == 0
    run, fit = tmp_path / "study" / "steps=32-seed=0", tmp_path / "study" / "fits" / "steps=32-seed=0"
    report = json.loads((tmp_path / "study" / "study.json").read_text())
    rows = report["fits"]["rows"]
    assert [row["by"] for row in rows] == [STEP] * 2 + [FIT] * 2 + [PAIRS] * 2 + [USABLE] * 2
    # The checkpoints of all sixteen parts are kept; the features of the last one are the run's own, others differ.
    assert {int(one.name) for one in (run / "train").glob("[0-9]*")} == set(range(2, 33, 2))
    own = np.load(run / "features" / "test.npz")["h"]
    np.testing.assert_array_equal(np.load(fit / "features-32" / "test.npz")["h"], own)
    assert np.abs(np.load(fit / "features-2" / "test.npz")["h"] - own).max() > 1e-3
    first, last = rows[:2]
    assert (first["at"], last["at"]) == (2, 32)
    pairs = {row["at"]: row for row in rows if row["by"] == PAIRS}
    assert sorted(pairs) == [last["pairs"] // 2, last["pairs"]]
    of_fit = {row["at"]: row for row in rows if row["by"] == FIT}
    assert of_fit.keys() == {300, 600}
    assert of_fit[600]["value_bits"] == last["value_bits"]
    usable = {row["at"]: row for row in rows if row["by"] == USABLE}
    assert usable[max(usable)]["usable_lower_bits"] == last["usable_lower_bits"]
    for row in rows:
        assert row.get("lower_bits", 0) <= row.get("value_bits", 2) <= 2.3
        assert row.get("usable_lower_bits", 0) <= row.get("usable_bits", 1) <= row.get("usable_upper_bits", 2)
    text = (tmp_path / "study" / "study.md").read_text()
    assert "### Pairs that I_class is certified on" in text
    # Measuring a kept checkpoint by configs/estimate.py reads the same features.
    again = ["--config=configs/estimate.py", f"--config.restore={run}", "--config.checkpoint=2"]
    assert main(again) == 0
    features = run / "estimates" / "class-checkpoint=2" / "features" / "test.npz"
    np.testing.assert_array_equal(np.load(features)["h"], np.load(fit / "features-2" / "test.npz")["h"])
    with pytest.MonkeyPatch.context() as patch:  # a second start measures nothing again
        patch.setattr(stability_fits, "_measure", None)
        assert main(command) == 0
