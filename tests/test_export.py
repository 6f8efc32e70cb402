"""Exports of CDP: what is read back is what was drawn, the MI is a run's, and no half export looks whole."""

import csv
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mirigor_jax import __version__, config_files, settings
from mirigor_jax.data import cdp, export
from mirigor_jax.data.draws import EXPORT
from mirigor_jax.data.pairing import parse
from mirigor_jax.data.population import STREAMS
from mirigor_jax.data.sources.table import labeled
from mirigor_jax.errors import InputError
from mirigor_jax.fields import settings_of
from mirigor_jax.runs.job import parse as job_of

ROOT = Path(__file__).parents[1]
NOISY = {"pairing": "color+digit", "epsilon": {"color": 0.3}, "law": "color+digit=0.5", "size": 32, "seed": 3}
N, TESTED = 180, 70


@pytest.fixture(scope="module")
def expected():
    """The pairs of the parts, rendered at once: views, attributes and classes."""
    images = cdp.make(size=32, law=NOISY["law"])
    pairing = parse(NOISY["pairing"], images.space, epsilon=NOISY["epsilon"])
    drawn = pairing.draw(images, NOISY["seed"], EXPORT, 0, N + TESTED)
    for view in "xy":
        drawn[f"labels_{view}"] = 4 * drawn[f"attributes_{view}"][:, 0] + drawn[f"attributes_{view}"][:, 1]
    return {
        part: {name: array[rows] for name, array in drawn.items()}
        for part, rows in (("train", slice(0, N)), ("test", slice(N, None)))
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An export in each format, in several blocks."""
    root = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "BLOCK_BYTES", 64 * 2 * 3 * 32**2)  # 64 pairs
        for name in export.FORMATS:
            cdp.export(root / name, pairs=N, test=TESTED, format=name, **NOISY)
    return root


def read_npz(folder, part):
    ending = {"train": "", "test": "_test"}[part]
    with np.load(folder / "pairs.npz") as arrays:
        for view, end in (("x", ""), ("y", "_y")):
            yield view, *(arrays[f"{name}{end}{ending}"] for name in ("images", "labels", "attributes"))


def read_folder(folder, part):
    with (folder / "pairs.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == part]
    assert [int(row["row"]) for row in rows] == [*range(len(rows))]
    for view in "xy":
        images = np.stack([np.asarray(Image.open(folder / row[view])) for row in rows])
        labels = np.array([int(row[f"class_{view}"]) for row in rows])
        assert [int(Path(row[view]).parent.name.split()[0]) for row in rows] == labels.tolist()
        yield view, images, labels, np.array([[int(row[f"{name}_{view}"]) for name in cdp.CDP.names] for row in rows])


def read_array_record(folder, part):
    source = tfds.data_source("cdp", data_dir=str(folder), split=part)
    rows = [source[i] for i in range(len(source))]
    return of_rows(rows, lambda image: image)


def read_parquet(folder, part):
    rows = pq.read_table(folder / f"{part}.parquet").to_pylist()
    return of_rows(rows, lambda image: np.asarray(Image.open(io.BytesIO(image))))


def of_rows(rows, decode):
    for view, end in (("x", ""), ("y", "_y")):
        images = np.stack([decode(row[f"image{end}"]) for row in rows])
        attributes = [[row[f"{name}{end}"] for name in cdp.CDP.names] for row in rows]
        yield view, images, np.array([row[f"label{end}"] for row in rows]), np.array(attributes)


READERS = {"npz": read_npz, "folder": read_folder, "array_record": read_array_record, "parquet": read_parquet}


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("name", READERS)
def test_every_format_holds_the_pairs_that_were_drawn(name, part, folders, expected):
    views = [*READERS[name](folders / name, part)]
    assert [view for view, *_ in views] == ["x", "y"]
    for view, images, labels, attributes in views:
        np.testing.assert_array_equal(images, expected[part][view])
        np.testing.assert_array_equal(labels, expected[part][f"labels_{view}"])
        np.testing.assert_array_equal(attributes, expected[part][f"attributes_{view}"])


@pytest.mark.parametrize("name", [name for name, one in export.FORMATS.items() if one.source])
def test_our_sources_read_the_view_x(name, folders, expected, monkeypatch):
    monkeypatch.chdir(folders / name)
    options = {"tfds_dir": "."} if name == "array_record" else {}
    sets = labeled(json.loads(Path("card.json").read_text())["source"], size=32, **options)
    found = sets["test"].images(0, TESTED)
    order = np.argsort(expected["test"]["labels_x"], kind="stable") if name == "folder" else slice(None)
    np.testing.assert_array_equal(found["image"], expected["test"]["x"][order])
    np.testing.assert_array_equal(found["attributes"][:, 0], expected["test"]["labels_x"][order])
    assert len(sets["train"]) + len(sets["validation"]) == N


def test_the_card_says_what_it_is_and_how_it_was_made(folders, expected):
    for name in export.FORMATS:
        card = json.loads((folders / name / "card.json").read_text())
        assert (card["format"], card["parts"]) == (name, {"train": N, "test": TESTED})
        assert card["made_by"]["version"] == __version__
        assert card["made_by"]["settings"].items() >= NOISY.items()
        values = card["attributes"]
        for label, (color, digit, _) in zip(
            expected["train"]["labels_x"], expected["train"]["attributes_x"], strict=True
        ):
            assert card["class_names"][label] == f"{values['color'][color]}, {values['digit'][digit]}"
        table = np.array(card["law"])
        np.testing.assert_allclose(table.sum(axis=(0, 2)), 0.25)
        assert table[0, 0, 0] == pytest.approx((0.5 / 4 + 0.5 / 16) / 4)
        text = (folders / name / "README.md").read_text()
        assert f"I(X;Y) = {card['mi_bits']!r} bits" in text
        assert card["made_by"]["command"] in text
        assert {*(folders / name).glob(".*")} == set()


@pytest.mark.parametrize("name", export.FORMATS)
def test_the_card_s_own_example_reads_the_files(name, folders, monkeypatch, expected):
    monkeypatch.chdir(folders / name)
    code = Path("README.md").read_text().partition("```python\n")[2].partition("```")[0]
    found: dict = {}
    exec(code, found)
    first = {
        "npz": lambda: found["x"][0],
        "folder": lambda: np.asarray(Image.open(found["pairs"][0]["x"])),
        "array_record": lambda: found["source"][0]["image"],
        "parquet": lambda: found["x"],
    }
    np.testing.assert_array_equal(first[name](), expected["train"]["x"][0])
    if name == "array_record":
        batch = found["batches"][0]
        assert batch["image"].shape == (64, 32, 32, 3)
        np.testing.assert_array_equal(batch["image_y"][0], views_of(batch, expected))


def views_of(batch, expected):
    """The view y of the pair whose view x is the batch's first image."""
    (at,) = np.flatnonzero((expected["train"]["x"] == batch["image"][0]).all(axis=(1, 2, 3)))
    return expected["train"]["y"][at]


RUNS = {
    "independent": {"pairing": "none"},
    "noisy": {"pairing": "color+position", "epsilon": {"color": 0.1}},
    "linked": {"law": "color+digit=1.0"},
    "noisy law": {"law": "digit+position=0.3", "mi": 2.5},
    "larger": {"colors": 8, "digits": (1, 7), "grid": (1, 2)},
}


@pytest.mark.parametrize("case", RUNS)
def test_the_mi_is_that_of_a_run_with_these_settings(case, tmp_path):
    asked = {"size": 32, **RUNS[case]}
    card = cdp.export(tmp_path / "out", pairs=8, test=0, **asked)
    config = config_files.defaults("images")
    for name, value in asked.items():
        section = config.data.cdp if name in settings_of(settings.Cdp) else config.data
        section.update({name: value})
    pairing = job_of(config).pairing
    assert (card["mi_bits"], card["entropy_bits"]) == (pairing.truth_bits, pairing.entropy_bits)
    assert card["num_classes"] == len(card["class_names"]) == pairing.num_classes
    assert json.loads((tmp_path / "out" / "card.json").read_text())["mi_bits"] == card["mi_bits"]


def test_the_attributes_have_the_mi_of_the_card(tmp_path):
    """By the plug-in estimate of 20,000 pairs of numbers, less its bias (c - 1)²/2n (Miller 1955)."""
    n = 20_000
    card = cdp.export(tmp_path / "out", pairs=n, test=0, size=32, pairing="color", mi=1.2, background="spectrum")
    (_, _, x, _), (_, _, y, _) = read_npz(tmp_path / "out", "train")
    joint = np.zeros((4, 4))
    np.add.at(joint, (x, y), 1 / n)
    independent = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    plug_in = float((joint * np.log2(joint / independent)).sum()) - 9 / (2 * n * math.log(2))
    assert plug_in == pytest.approx(card["mi_bits"], abs=0.03)  # four standard errors


def test_no_run_draws_from_the_stream_of_exports():
    assert EXPORT not in STREAMS.values()


def test_blocks_neither_change_the_files_nor_fill_the_memory(tmp_path, monkeypatch):
    options = {"pairs": 3000, "test": 100, "size": 32}
    cdp.export(tmp_path / "whole", **options)
    monkeypatch.setattr(export, "BLOCK_BYTES", 2**20)
    images = cdp.make(size=32)
    tracemalloc.start()
    export.write(
        tmp_path / "blocks",
        images,
        parse("all", images.space),
        seed=0,
        pairs=3000,
        test=100,
        made_by={"command": "", "settings": {}},
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole, blocks = ((tmp_path / name / "pairs.npz").read_bytes() for name in ("whole", "blocks"))
    assert whole == blocks
    assert peak < 6 * 2**20 < len(blocks) / 3


@pytest.mark.parametrize(("name", "passes"), [("npz", 2), ("parquet", 1)])  # an .npz draws each view in its own pass
def test_progress_counts_all_pairs(name, passes, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "BLOCK_BYTES", 2 * 3 * 32**2)
    seen = []
    cdp.export(tmp_path / "out", format=name, pairs=3, test=2, size=32, on_progress=lambda *told: seen.append(told))
    assert [(done, of) for done, of, _ in seen] == [
        (done, 5) for part in ([1, 2, 3], [4, 5]) for _ in range(passes) for done in part
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairing": "color+simclr"}, "augmented views has no known MI: export a pairing without simclr"),
        ({"pairing": "simclr"}, "shares the image with augmented views has no known MI"),
        ({"format": "tfrecord"}, "format='tfrecord': expected npz, folder, array_record or parquet"),
        ({"pairs": 0}, "pairs=0: expected at least 1"),
        ({"test": -1}, "test=-1: expected at least 0"),
        ({"seed": -1}, "seed"),
        ({"pairing": "shape"}, "unknown attribute 'shape'"),
        ({"law": "color+digit=1.0", "mi": 2.0}, "impossible by the law"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        cdp.export(tmp_path / "out", **{"size": 32, "pairs": 8, **options})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    options = {"pairs": 8, "test": 0, "size": 32}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(InputError, match="exists and is not an empty folder"):
            cdp.export(tmp_path / name, **options)
    assert [*(tmp_path / "full").iterdir()] == [tmp_path / "full" / "mine.txt"]
    (tmp_path / "empty").mkdir()
    cdp.export(tmp_path / "empty", **options)
    assert (tmp_path / "empty" / "card.json").exists()
    with pytest.raises(InputError, match="give the folder to write"):
        cdp.export("", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full"]


@pytest.mark.parametrize("name", export.FORMATS)
def test_a_stopped_export_leaves_nothing(name, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "BLOCK_BYTES", 2 * 3 * 32**2)

    def stop(done, of, note):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cdp.export(tmp_path / "out", format=name, pairs=4, test=0, size=32, on_progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code", "left"), [(signal.SIGTERM, 143, 0), (signal.SIGKILL, -9, 1)])
def test_a_killed_export_is_no_folder_of_that_name(number, code, left, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mirigor_jax.data.cdp", f"--out={out}", "--pairs=2000000", "--data.size=32"]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.partial/*")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == code
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == left
    shutil.rmtree(tmp_path)


def test_the_command_does_what_the_function_does(tmp_path, capsys):
    flags = "--pairs=20 --test=5 --data.size=32 --data.mi=1.5 --data.cdp.colors=3 --data.cdp.digits=0+1 --seed=4"
    assert export.main(cdp.export, [f"--out={tmp_path / 'a'}", *flags.split(), "--data.seed=1"]) == 0
    assert "I(X;Y) = 1.5 bits, H(C) = 4.58496 bits" in capsys.readouterr().out
    options = {"size": 32, "mi": 1.5, "colors": 3, "digits": (0, 1), "seed": 4, "data_seed": 1}
    cdp.export(tmp_path / "b", pairs=20, test=5, **options)
    one, other = ((tmp_path / name / "pairs.npz").read_bytes() for name in "ab")
    assert one == other
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert card["made_by"]["command"] == f"{export.PROGRAM} --out={tmp_path / 'a'} {flags} --data.seed=1"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--data.cdp.colors=17", "data.cdp.colors=17: expected 1 to 16"),
        ("--format=hdf5", "format='hdf5': expected npz, folder, array_record or parquet"),
        ("--data.epsilon.color=2", "data.epsilon.color=2.0: expected 0 to 1"),
        ("--pairs=many", "--pairs=many is not of type int"),
        ("--train.k=2", "unexpected argument '--train.k=2': use --FLAG=VALUE, with a flag of out, format,"),
        ("pairs=3", "unexpected argument 'pairs=3'"),
    ],
)
def test_a_wrong_flag_is_one_line(flag, message, tmp_path, capsys):
    assert export.main(cdp.export, [f"--out={tmp_path / 'out'}", flag]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_flags_are_settings(capsys):
    of_runs = settings_of(settings.Images)
    for flag, one in export.known().items():
        assert one == (settings_of(settings.Export)[flag] if flag in settings_of(settings.Export) else of_runs[flag])
    assert export.FORMATS.keys() == {*settings_of(settings.Export)["format"].choices}
    assert {key for key in of_runs if key.startswith(("data.cdp.", "data.epsilon."))} < export.known().keys()
    assert export.main(cdp.export, ["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"--{flag}=" in page for flag in export.known())
    assert max(map(len, page.splitlines())) <= 80
