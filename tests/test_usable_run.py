"""Usable information of a run: which images its ends read, its files, and how the report shows it."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from small import cdp, encoder, image_report, image_set

from mirigor_jax.config_files import parse as parse_command
from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.runs import figures, report, usable
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import PARTS, Job, parse
from mirigor_jax.runs.schema import UsableEntry

COUNTS = {"": (500, 300, 200), "_test": (100, 60, 40)}  # images of three classes
ENTRY = UsableEntry(
    shared=("color", "digit", "position"),
    family="linear probes",
    value_bits=5.91234,
    lower_bits=5.87654,
    upper_bits=5.95432,
    kl_upper_bits=5.97654,
    confidence=0.95,
    entropy_bits=6.0,
    frequencies={f"class {c}": 1 / 64 for c in range(64)},
    norm=3.21,
    reach=4.32,
    largest_loss_nats=31.9,
    rows={"fit": 4000, "test": 2758},
    sentence="Usable information reads 5.912 bits.",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Gray images, each as bright as its class, with names as labels."""
    path, rng, arrays = tmp_path_factory.mktemp("sets") / "gray.npz", np.random.default_rng(0), {}
    for part, counts in COUNTS.items():
        classes = rng.permutation(np.repeat(np.arange(3), counts))
        noise = rng.normal(0, 20, (len(classes), 6, 6))
        arrays[f"images{part}"] = np.clip(60 * (1 + classes[:, None, None]) + noise, 0, 255).astype(np.uint8)
        arrays[f"labels{part}"] = np.array(["dark", "gray", "bright"])[classes]
    np.savez(path, **arrays)
    return path


def job_of(command: list[str]) -> Job:
    return parse(parse_command(command)[0])


def encoded(job: Job, folder: Path) -> RunFolder:
    """A run folder whose features are the images' means over two columns, as if an encoder gave them."""
    parts, features = job.images.parts(job.pairing), RunFolder(folder) / "features"
    if (left_out := job.images.unseen()) is not None:
        parts["unseen"] = left_out
    for name, (read, n) in parts.items():
        batch = read(0, n)
        arrays = {key.replace("attributes", "labels"): x for key, x in batch.items() if key.startswith("attributes")}
        for view, h in (("image", "h"), ("x", "h_x"), ("y", "h_y")):
            if view in batch:
                pixels = batch[view].astype(np.float32)
                arrays[h] = np.stack([pixels.mean(axis=(1, 2, 3)), pixels[:, :, :3].mean(axis=(1, 2, 3))], axis=1)
        features.write_arrays(f"{name}.npz", arrays)
    return RunFolder(folder)


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "evaluate" / "pvi.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# rows


def test_rows_of_generated_images_are_unseen_and_single(tmp_path):
    job = job_of(cdp())
    rows = usable.rows_of(job, encoded(job, tmp_path))
    assert rows.parts.tolist() == ["fit"] * 512 + ["validation"] * 64 + ["test"] * 128
    assert rows.index.tolist() == [*range(512), *range(64), *range(128)]
    assert not rows.seen.any()
    test = np.load(tmp_path / "features" / "test.npz")
    np.testing.assert_array_equal(rows.h[-128:], test["h_x"])  # the second views share more than the class
    np.testing.assert_array_equal(rows.labels[-128:], test["labels_x"][:, 0])
    assert rows.names == job.images.value_names[0]


@pytest.mark.parametrize(
    ("limit", "unseen", "expected"), [(250, None, 650), (250, 99, 99), (250, 0, 0), (None, None, 0)]
)
def test_a_trained_encoder_has_seen_the_fit_part_alone(images, tmp_path, limit, unseen, expected):
    """Of 1,000 training images 900 are left after validation's tenth of each class; data.images leaves out more."""
    settings = [f"--config.data.images={limit}"] + [f"--config.features.unseen={unseen}"] * (unseen is not None)
    job = job_of(image_set(f"npz:{images}", tmp_path, *settings))
    rows = usable.rows_of(job, encoded(job, tmp_path))
    sizes = {part: int((rows.parts == part).sum()) for part in np.unique(rows.parts)}
    whole = {"fit": limit or 900, "validation": 100, "test": 200, "unseen": expected}
    assert sizes == {part: n for part, n in whole.items() if n}
    np.testing.assert_array_equal(rows.seen, rows.parts == "fit")
    assert rows.names == ("bright", "dark", "gray")
    if expected == 650:  # each image is in exactly one part
        everything = np.concatenate([np.load(images)[f"images{part}"] for part in COUNTS]).reshape(-1, 36)
        parts = [job.images.sets[name] for name in (*PARTS, "unseen")]
        read = np.concatenate([part.read(np.arange(len(part)))[..., 0] for part in parts]).reshape(-1, 36)
        assert sorted(map(bytes, read)) == sorted(map(bytes, everything))


def test_images_that_training_may_see_as_negatives_are_not_called_unseen(images, tmp_path):
    more = ["--config.data.images=250", "--config.data.negatives=classes:dark"]
    assert job_of(image_set(f"npz:{images}", tmp_path, *more)).images.unseen() is None


def test_training_sees_every_turn_of_its_images_and_none_of_those_that_it_leaves_out(images, tmp_path):
    """Images are told apart by their pixels, in any order: turns do not change these."""
    job = job_of(image_set(f"npz:{images}", tmp_path, "--config.data.images=250", "--config.data.rotations=True"))
    sets = {name: job.images.sets[name] for name in ("train", "unseen")}
    pixels = {
        name: [bytes(np.sort(image, axis=None)) for image in part.read(np.arange(len(part)))]
        for name, part in sets.items()
    }
    assert len(sets["train"]) == 1000
    assert all(pixels["train"].count(image) == 4 for image in set(pixels["train"]))
    turn = sets["train"].names.index("rotation")
    assert sets["train"].attributes[:, turn].tolist() == 250 * [0, 1, 2, 3]
    assert len(pixels["unseen"]) == len(set(pixels["unseen"])) == 650
    assert not set(pixels["train"]) & set(pixels["unseen"])
    counts = np.bincount(sets["unseen"].attributes[:, turn], minlength=4)
    assert np.abs(counts - 650 / 4).max() < 5 * np.sqrt(650 * 3 / 16)


@pytest.mark.parametrize(
    ("seen", "of_parts"),
    [(None, {"fit": True, "validation": True, "test": False}),
     ("train", {"fit": True, "validation": True, "test": False}),
     ("all", {"fit": True, "validation": True, "test": True}),
     ("none", {"fit": False, "validation": False, "test": False, "unseen": False})],
)  # fmt: skip
def test_a_given_encoder_has_seen_what_the_setting_says(features, tmp_path, seen, of_parts):
    """Validation is split off from the file's training part, so an encoder that was trained on that has seen it."""
    stated = [] if seen is None else [f"--config.evaluate.seen={seen}"]
    job = job_of(encoder(f"features:{features}", tmp_path, "--config.data.images=250", *stated))
    folder = RunFolder(tmp_path)
    for part, (read, n) in (job.images.parts(job.pairing) | unseen_of(job)).items():
        batch = read(0, n)
        (folder / "features").write_arrays(f"{part}.npz", {"h": batch["image"], "labels": batch["attributes"]})
    rows = usable.rows_of(job, folder)
    assert {part: bool(rows.seen[rows.parts == part].all()) for part in np.unique(rows.parts)} == of_parts
    assert rows.seen.any() == any(of_parts.values())


def test_a_set_without_parts_has_no_training_part_that_an_encoder_has_seen(tmp_path):
    """Its parts are split off at random, so an encoder has seen all of them or none. Turned images are dependent."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "h.npz", h=rng.normal(size=(600, 4)), labels=np.arange(600) % 3)
    images = rng.integers(0, 255, (600, 6, 6), np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(600) % 3)
    source = f"features:{tmp_path / 'h.npz'}"
    assert job_of(encoder(source, tmp_path)).seen_parts == ()
    assert set(job_of(encoder(source, tmp_path, "--config.evaluate.seen=all")).seen_parts) >= set(PARTS)
    with pytest.raises(InputError, match=r"seen='train'.* has no training part of its own; give all, or none"):
        job_of(encoder(source, tmp_path, "--config.evaluate.seen=train"))
    turned = job_of(image_set(f"npz:{tmp_path / 'images.npz'}", tmp_path, "--config.data.rotations=True"))
    given = turned.of(turned.config)
    given.config.encoder.path = "x.pth"
    assert given.seen_parts == ("fit",)


@pytest.mark.slow
@pytest.mark.compiles
def test_an_encoder_that_has_seen_the_test_images_is_not_certified(tmp_path, capsys):
    """Memorized random labels, as arrays and as features: I_class is 0 on other images."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    h = (np.eye(2)[labels] * 3 + rng.normal(size=(600, 2))).astype(np.float32)
    np.save(tmp_path / "x.npy", h)
    np.save(tmp_path / "c.npy", labels)
    np.savez(tmp_path / "h.npz", h=h, labels=labels)
    arrays = [f"--config.x={tmp_path / 'x.npy'}", f"--config.labels={tmp_path / 'c.npy'}", "--config.seen=True"]
    features = ["--config.evaluate.seen=all", "--config.evaluate.metrics=False", "--config.estimate.k=32"]
    quick = ["--config.estimate.steps=10"]
    for name, config, more, seen in (
        ("a", "arrays", [*arrays, "--config.steps=10"], "all rows"),
        ("f", "encoder", [f"--config.data.source=features:{tmp_path / 'h.npz'}", *features, *quick], "the test images"),
    ):
        assert main([f"--config=configs/{config}.py", f"--workdir={tmp_path / name}", *more]) == 0
        document = json.loads((tmp_path / name / "report.json").read_text())
        assert document["estimate"]["lower_bits"] is document["usable"]["lower_bits"] is None
        assert document["estimate"]["verdict"] == "seen"
        assert f"the certificate is withheld, as the encoder has seen {seen}; " in capsys.readouterr().out


def unseen_of(job: Job) -> dict:
    left_out = job.images.unseen()
    return {} if left_out is None else {"unseen": left_out}


@pytest.fixture(scope="module")
def features(images, tmp_path_factory) -> Path:
    """Features of the images: their means and some noise."""
    path, rng, arrays = tmp_path_factory.mktemp("features") / "h.npz", np.random.default_rng(1), dict(np.load(images))
    for part in COUNTS:
        means = arrays.pop(f"images{part}").mean(axis=(1, 2))[:, None]
        arrays[f"h{part}"] = np.hstack([means, rng.normal(size=(len(means), 2))]).astype(np.float32)
    np.savez(path, **arrays)
    return path


# files


def test_the_table_has_every_image_that_the_ends_read(images, tmp_path, monkeypatch):
    """By numpy, from the set's own labels and the stored probabilities."""
    job = job_of(image_set(f"npz:{images}", tmp_path, "--config.data.images=250", "--config.estimate.confidence=0.9"))
    folder = encoded(job, tmp_path)
    calls, real = [], figures.hardest
    monkeypatch.setattr(figures, "hardest", lambda groups: calls.append(groups) or real(groups))
    usable.measure(job, folder)
    entry, rows = usable.finished(folder), table_of(tmp_path)
    assert (entry.shared, entry.confidence, entry.note) == (("class",), 0.9, "")
    assert entry.lower_bits <= entry.value_bits <= entry.upper_bits
    # Six tenths of each class's unseen images: of 650 + 100 + 200.
    assert sum(entry.rows.values()) == len(rows) == pytest.approx(570, abs=3)
    assert list(entry.rows) == ["validation", "test", "unseen"]
    order = {part: number for number, part in enumerate(entry.rows)}
    keys = [(order[row["part"]], int(row["index"])) for row in rows]
    assert keys == sorted(set(keys))
    unseen = [job.images.sets[part] for part in order]
    names = np.array(["bright", "dark", "gray"])
    labels = [names[job.images.sets[row["part"]].attributes[int(row["index"]), 0]] for row in rows]
    assert [row["label"] for row in rows] == labels
    classes = np.concatenate([part.attributes[:, 0] for part in unseen])
    p = dict(zip(names.tolist(), np.bincount(classes) / len(classes), strict=True))
    assert entry.frequencies == pytest.approx(p)
    assert entry.entropy_bits == pytest.approx(-sum(x * math.log2(x) for x in p.values()))
    q, bits = (np.array([float(row[key]) for row in rows]) for key in ("label_probability", "pvi_bits"))
    np.testing.assert_allclose(bits, np.log2(q / np.array([p[label] for label in labels])), atol=1e-4)
    value = sum(p[name] * bits[np.array(labels) == name].mean() for name in names)
    assert entry.value_bits == pytest.approx(value, abs=1e-4)
    found = np.array([row["prediction"] for row in rows])
    np.testing.assert_array_equal(found[q > 0.5], np.array(labels)[q > 0.5])
    assert np.all(q[found != labels] <= 0.5)
    # The sheet shows the images of the lowest values, each with its own label.
    surprising, unsure = calls[0].values()
    for (image, caption), i in zip(surprising, np.argsort(bits, kind="stable")[:12], strict=True):
        part, index = rows[i]["part"], int(rows[i]["index"])
        np.testing.assert_array_equal(image, job.images.sets[part].read(np.array([index]))[0])
        assert caption == f"{labels[i]} → {found[i]}\n{bits[i]:.2f} bits"
    entropies = np.array([float(row["prediction_entropy_bits"]) for row in rows])
    assert 0 <= entropies.min() <= entropies.max() <= math.log2(3)
    assert [caption.split("\n")[0] for _, caption in unsure] == [
        f"{labels[i]} → {found[i]}" for i in np.argsort(-entropies, kind="stable")[:12]
    ]
    assert (tmp_path / "figures" / "hardest.png").exists()


def test_too_few_unseen_images_of_a_class_are_said_and_the_run_goes_on(tmp_path):
    command = cdp("--config.data.pairing=all", "--config.features.fit=64")
    job = job_of([*command, "--config.evaluate.classes=all", "--config.data.pairing=color"])
    folder = encoded(job, tmp_path)
    usable.measure(job, folder)
    entry = usable.finished(folder)
    assert entry.value_bits is None
    assert "expected 10 or more of every class" in entry.note
    assert not (tmp_path / "evaluate" / "pvi.csv").exists()
    shown = image_report(usable=entry)
    assert f"not measured: {entry.note}" in report.markdown(shown, report.IMAGE_FORM)
    assert "usable information, linear probes" in report.table(shown, report.IMAGE_FORM)


def test_a_set_without_classes_has_none(images, tmp_path):
    arrays = {name: x for name, x in np.load(images).items() if name.startswith("images")}
    np.savez(tmp_path / "unlabeled.npz", **arrays)
    job = job_of(image_set(f"npz:{tmp_path / 'unlabeled.npz'}", tmp_path, pairing="simclr"))
    assert not usable.is_measured(job)
    job = job_of(image_set(f"npz:{images}", tmp_path, pairing="simclr"))
    assert usable.is_measured(job)


# report


def test_the_report_shows_value_ends_rows_and_probes():
    shown = image_report(usable=ENTRY)
    text = report.markdown(shown, report.IMAGE_FORM)
    for line in (
        "| usable information, linear probes | 5.912 bits | out of H(C) = 6.000 bits (color, digit, posi",
        "|   lies in | [5.876, 5.955] bits | certified at 95 %, 6,758 unseen images |",  # ends rounded outwards
        "## Usable information",
        ENTRY.sentence,
        "64 classes, from 0.0156 to 0.0156",
        "‖w_k‖ ≤ 3.21, ‖z‖ ≤ 4.32; the largest loss is 31.9 nats",
        "fit 4,000, test 2,758",
        "form) is 5.977 bits",
        "evaluate/pvi.csv",
    ):
        assert line in text
    table = report.table(shown, report.IMAGE_FORM)
    assert "[5.876, 5.955] bits  certified at 95 %, 6,758 unseen images" in table
    assert max(map(len, table.splitlines())) <= 100
    assert "usable" not in report.markdown(image_report(), report.IMAGE_FORM).lower()
    reason = "the ends are withheld, as the encoder has seen all rows"
    withheld = replace(ENTRY, lower_bits=None, upper_bits=None, kl_upper_bits=None, warnings=(reason,))
    text = report.markdown(image_report(usable=withheld), report.IMAGE_FORM)
    assert f"|   lies in | – | {reason} |" in text
    assert f"**Warning: {reason}.**" in text


def test_bars_have_a_bar_with_both_ends():
    shown = image_report(usable=ENTRY)
    figure = figures.bars(shown.truth, shown.in_training, shown.estimate, shown.usable)
    whole, close = figure.axes
    plain = figures.bars(shown.truth, shown.in_training, shown.estimate)
    assert [len(one.axes[0].get_xticks()) for one in (figure, plain)] == [7, 6]
    assert "5.912" in [text.get_text() for text in whole.findobj(Text)]
    for ax in (whole, close):
        segments = [s for bars in ax.containers if hasattr(bars, "has_yerr") for s in bars.lines[2][0].get_segments()]
        assert any(np.allclose(s, [[6, 5.87654], [6, 5.95432]]) for s in segments)
    assert close.get_xlim()[1] == 6.5
    other = replace(shown, usable=replace(ENTRY, shared=("color",)))  # of another class: not enlarged
    assert figures.bars(other.truth, None, other.estimate, other.usable).axes[1].get_xlim()[1] == 4.5


def test_a_sheet_with_few_images_and_words_that_look_like_formulas():
    image = np.zeros((6, 6, 3), np.uint8)
    figure = figures.hardest({"few": [(image, "$x_{ → $y\n-1.00 bits")] * 2, "many": [(image, "a → b")] * 12})
    assert len(figure.axes[0].images) == 14
    figure.canvas.draw()


@pytest.mark.slow
def test_a_run_leaves_images_out_reads_them_and_makes_them_again(images, tmp_path):
    command = image_set(f"npz:{images}", tmp_path / "run", "--config.data.images=250", pairing="class+simclr")
    assert main(command) == 0
    assert len(np.load(tmp_path / "run" / "features" / "unseen.npz")["h"]) == 650
    assert not list((tmp_path / "run").glob("estimates/*/features/unseen.npz"))  # it is not of augmented images
    before = json.loads((tmp_path / "run" / "report.json").read_text())
    assert before["usable"]["rows"]["unseen"] > 300
    assert {"usable.png", "hardest.png"} <= {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    for name in ("features/unseen.npz", "evaluate/linear.json", "evaluate/usable.json", "report.json"):
        (tmp_path / "run" / name).unlink()
    assert main(command) == 0
    after = json.loads((tmp_path / "run" / "report.json").read_text())
    assert after["usable"] == before["usable"]
