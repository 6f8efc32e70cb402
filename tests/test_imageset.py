"""A finite set of images: pairs of its rows, streamed as images or resident on the devices."""

import json

import jax
import numpy as np
import pytest
from scipy import stats

from mirigor_jax import config_files, memory, parallel, training
from mirigor_jax.data import cdp
from mirigor_jax.data.attributes import uniform
from mirigor_jax.data.image_set import ImageSet
from mirigor_jax.data.pairing import SameImage, parse
from mirigor_jax.data.training_data import TrainingData
from mirigor_jax.errors import InputError
from mirigor_jax.runs import job
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.train import job_training_data, train


def blank(*columns):
    """Black images with these columns of attributes, named `a`, `b`, ..., with the values a0, a1, ..."""
    names = "abc"[: len(columns)]
    values = tuple(
        tuple(f"{name}{v}" for v in range(max(column) + 1)) for name, column in zip(names, columns, strict=True)
    )
    attributes = np.stack(columns, axis=1).astype(np.int32)
    return ImageSet(
        "blank set", tuple(names), values, attributes, lambda rows: np.zeros((len(rows), 2, 2, 3), np.uint8)
    )


def image_pairs(images, *arguments):
    """The function (start, stop) → the images of the rows that `row_pairs` returns."""
    rows = images.row_pairs(*arguments)
    return lambda start, stop: {view: images.read(chosen) for view, chosen in rows(start, stop).items()}


@pytest.mark.parametrize("mi", [None, 1.5, 0.0])
def test_pairs_of_rows_follow_the_joint_distribution_of_their_classes(mi):
    labels = np.repeat(np.arange(3), [200, 30, 170])[np.random.default_rng(0).permutation(400)]
    pairing = parse("a", uniform("a", (3,)), mi_bits=mi)
    images = blank(labels)
    pairs = images.row_pairs(pairing, 0, 0)(0, 60_000)
    assert {rows.dtype for rows in pairs.values()} == {np.dtype(np.int32)}
    counts = np.zeros((3, 3))
    np.add.at(counts, (labels[pairs["x"]], labels[pairs["y"]]), 1)
    joint = np.ones((3, 3)) / 9 if mi == 0.0 else pairing.joint()
    share = np.bincount(labels) / len(labels)
    within = joint if mi != 0.0 else np.tile(share, (3, 1))  # nothing is shared: y is any image
    expected = share[:, None] * within / within.sum(axis=1, keepdims=True) * counts.sum()
    assert counts[expected == 0].sum() == 0
    assert stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3
    for view in pairs.values():  # every row as likely as another of its class
        assert stats.chisquare(np.bincount(view[labels[view] == 0], minlength=400)[labels == 0]).pvalue > 1e-3


def test_same_class_sampling_has_the_sets_own_frequencies():
    """x is uniform over the images, y over those of x's class: P(c, c) is c's share, H(C) the shares' entropy."""
    a, b = np.repeat([0, 1, 2, 2], [500, 200, 90, 10]), np.repeat([0, 1, 0, 1], [500, 200, 90, 10])
    images = blank(a, b)
    for text, frequencies, shared in (
        ("a", [5 / 8, 2 / 8, 1 / 8], ("a",)),
        ("b", [5 / 8 + 9 / 80, 2 / 8 + 1 / 80], ("b",)),
        ("none", [1.0], ()),
    ):
        pairing = images.same_class(text)
        np.testing.assert_allclose(pairing.frequencies, frequencies, rtol=1e-12)
        np.testing.assert_array_equal(pairing.joint(), np.diag(pairing.frequencies))
        assert pairing.shared == shared
        np.testing.assert_array_equal(pairing.common_frequencies, pairing.frequencies)
        assert pairing.num_classes == len(frequencies)
        bits = stats.entropy(frequencies, base=2)
        assert (pairing.entropy_bits, pairing.upper_bits) == (pytest.approx(bits), pytest.approx(bits))
    pairs = images.row_pairs(images.same_class("a"), 0, 0)(0, 80_000)
    x, y = a[pairs["x"]], a[pairs["y"]]
    assert (x == y).all()
    assert stats.chisquare(np.bincount(x), 80_000 * np.array([5, 2, 1]) / 8).pvalue > 1e-3
    assert stats.chisquare(np.bincount(pairs["y"], minlength=800)).pvalue > 1e-3


def test_a_class_is_named_by_its_values_where_it_lacks_images():
    images = blank([0, 0, 1, 2], [0, 1, 1, 0])
    with pytest.raises(InputError, match=r"2 of 6 classes have no image in the blank set \('a1', 'b0', "):
        images.same_class("all")
    with pytest.raises(InputError, match=r"unknown attribute 'c' in the pairing: use class, all, .* or some of a"):
        images.same_class("a+c")


def test_fresh_rows_are_independent_pairs_that_share_no_image():
    """Over seeds, the classes are multinomial, and all images of a class are drawn equally often."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [300, 200, 100]))
    images, frequencies = blank(labels), np.array([3, 2, 1]) / 6
    pairing = images.same_class("a")
    drawn = [images.fresh_rows(pairing, seed, 0, risk=0.01, least=100) for seed in range(300)]
    for rows in drawn:
        assert len(np.unique(rows)) == rows.size
        assert (labels[rows[:, 0]] == labels[rows[:, 1]]).all()
    counts = np.array([np.bincount(labels[rows[:, 0]], minlength=3) for rows in drawn])
    n = int(np.median(counts.sum(axis=1)))
    assert n > 200  # of 300
    assert np.mean(counts.sum(axis=1) < n) < 0.02  # seldom does a class run out
    z = (counts.mean(axis=0) - n * frequencies) / np.sqrt(n * frequencies * (1 - frequencies) / 300)
    assert np.abs(z).max() < 3.5
    np.testing.assert_allclose(
        counts.var(axis=0) / (n * frequencies * (1 - frequencies)), 1, atol=0.3
    )  # standard error 0.08
    uses = np.bincount(np.concatenate(drawn).ravel(), minlength=600)
    assert stats.chisquare(uses[labels == 0]).pvalue > 1e-3
    pairs = images.pairs(drawn[0], 5, 9)
    assert pairs["x"].shape == (4, 2, 2, 3)
    np.testing.assert_array_equal(pairs["attributes_y"][:, 0], labels[drawn[0][5:9, 1]])


def test_a_class_of_one_image_trains_and_is_named_where_pairs_must_differ():
    images = blank(np.repeat([0, 1], [999, 1]))
    pairing = images.same_class("a")
    pairs = images.row_pairs(pairing, 0, 0)(0, 20_000)
    assert ((pairs["x"] == 999) == (pairs["y"] == 999)).all()
    assert (pairs["x"] == 999).any()
    with pytest.raises(InputError, match=r"blank set gives \d pairs .* expected 64; the rarest, 'a1', has 1:"):
        images.fresh_rows(pairing, 0, 0, risk=0.005, least=64)


def test_rows_and_images_are_those_of_one_stream_however_it_is_cut():
    data = cdp.make(size=32)
    images, pairing = data.finite(3, 0, 300), parse("color", data.space)
    every = data.images(0, 300, seed=3, stream=0)
    rows, pairs = images.row_pairs(pairing, 3, 5), image_pairs(images, pairing, 3, 5)
    whole = rows(0, 40)
    for view in ("x", "y"):
        np.testing.assert_array_equal(np.concatenate([rows(0, 7)[view], rows(7, 40)[view]]), whole[view])
        np.testing.assert_array_equal(pairs(7, 40)[view], every["image"][whole[view][7:]])
    np.testing.assert_array_equal(*(every["attributes"][whole[view], 0] for view in ("x", "y")))
    some = np.array([8, 250, 8])
    np.testing.assert_array_equal(images.take(some).images(1, 3)["image"], every["image"][[250, 8]])
    np.testing.assert_array_equal(images.take(some).images(1, 3)["attributes"], every["attributes"][[250, 8]])


def test_views_of_the_same_image_are_one_row_twice_and_every_row_as_likely():
    data = cdp.make(size=32)
    rows = data.finite(0, 0, 50).row_pairs(SameImage(), 0, 5)(0, 20_000)
    np.testing.assert_array_equal(rows["x"], rows["y"])
    assert stats.chisquare(np.bincount(rows["x"], minlength=50)).pvalue > 1e-3
    pairs = SameImage().draw(data, 0, 1, 3, 9)
    for view in ("x", "y"):
        np.testing.assert_array_equal(pairs[view], data.images(3, 9, seed=0, stream=1)["image"])


def test_a_set_that_lacks_a_class_is_refused():
    data = cdp.make(size=32)
    with pytest.raises(InputError, match=r"of 64 classes have none of the 20 rows .* give more images"):
        data.finite(0, 0, 20).row_pairs(parse("all", data.space), 0, 0)


@pytest.mark.parametrize(
    ("resident", "memory_bytes", "holds"),
    [
        ("auto", 4 * 3 * 100 * 32**2, True),
        ("auto", 4 * 3 * 100 * 32**2 - 4, False),
        ("always", 0, True),
        ("never", 2**40, False),
    ],
)
def test_a_set_is_held_where_a_quarter_of_the_memory_has_room(monkeypatch, capsys, resident, memory_bytes, holds):
    overrides = ("--config.data.size=32", "--config.data.images=100", f"--config.data.resident={resident}")
    config, *_ = config_files.parse(["--config=configs/cdp.py:pairing=color", *overrides])
    monkeypatch.setattr(memory, "memory_bytes", lambda: memory_bytes)
    data = job_training_data(job.parse(config))
    assert (data.resident_images is not None) == holds
    assert data.read(0, 4)["x"].shape == ((4,) if holds else (4, 32, 32, 3))
    assert ("held by each device" if holds else "streamed") in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_held_images_train_as_streamed_ones_in_one_trace(tmp_path, monkeypatch):
    shrunk = ["encoder.width=4", "data.size=32", "train.k=16", "train.steps=7", "train.checkpoint_every=3"]
    config, *_ = config_files.parse(["--config=configs/cdp.py", *(f"--config.{one}" for one in shrunk)])
    data, mesh, traces = cdp.make(size=32), parallel.make_mesh(16, jax.devices()[:1]), []
    images = data.finite(0, 0, 100)
    arguments = parse("color", data.space), 0, 5
    run_config = job.without_images(config, arguments[0])
    step = training.train_step
    monkeypatch.setattr(training, "train_step", lambda *args, **kw: (traces.append(1), step(*args, **kw))[1])
    losses = {}
    for name, read, resident_images in (
        ("streamed", image_pairs(images, *arguments), None),
        ("held", images.row_pairs(*arguments), images.read(np.arange(100))),
    ):
        train(run_config, RunFolder(tmp_path / name), TrainingData(read, resident_images, ""), mesh)
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(row)["loss_nats"] for row in rows]
    assert len(losses["held"]) == 7
    np.testing.assert_allclose(losses["held"], losses["streamed"], rtol=1e-5)
    assert len(traces) == 2
