"""A finite set of images: pairs by its rows, streamed as images or held by the devices."""

import json

import jax
import numpy as np
import pytest
from scipy import stats

from mirigor_jax import configuration, experiment, parallel, train
from mirigor_jax.data import cdp
from mirigor_jax.data.imageset import ImageSet
from mirigor_jax.data.pairing import SameImage, parse
from mirigor_jax.errors import InputError


@pytest.mark.parametrize("mi", [None, 1.5, 0.0])
def test_pairs_of_rows_follow_the_joint_law_of_their_classes(mi):
    labels = np.repeat(np.arange(3), [200, 30, 170])[np.random.default_rng(0).permutation(400)]
    law = parse("a", ("a",), (3,), mi_bits=mi)
    images = ImageSet(labels[:, None].astype(np.int32), lambda rows: np.zeros((len(rows), 2, 2, 3), np.uint8))
    pairs = images.row_pairs(law, 0, 0)(0, 60_000)
    assert {rows.dtype for rows in pairs.values()} == {np.dtype(np.int32)}
    counts = np.zeros((3, 3))
    np.add.at(counts, (labels[pairs["x"]], labels[pairs["y"]]), 1)
    joint = np.ones((3, 3)) / 9 if mi == 0.0 else law.joint()
    share = np.bincount(labels) / len(labels)
    within = joint if mi != 0.0 else np.tile(share, (3, 1))  # nothing is shared: y is any image
    expected = share[:, None] * within / within.sum(axis=1, keepdims=True) * counts.sum()
    assert counts[expected == 0].sum() == 0
    assert stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3
    for view in pairs.values():  # every row as likely as another of its class
        assert stats.chisquare(np.bincount(view[labels[view] == 0], minlength=400)[labels == 0]).pvalue > 1e-3


def test_rows_and_images_are_those_of_one_stream_however_it_is_cut():
    data = cdp.make(size=32)
    images, law = data.finite(3, 0, 300), parse("color", data.names, data.sizes)
    every = data.images(3, 0, 0, 300)
    rows, pairs = images.row_pairs(law, 3, 5), images.image_pairs(law, 3, 5)
    whole = rows(0, 40)
    for view in ("x", "y"):
        np.testing.assert_array_equal(np.concatenate([rows(0, 7)[view], rows(7, 40)[view]]), whole[view])
        np.testing.assert_array_equal(pairs(7, 40)[view], every["image"][whole[view][7:]])
    np.testing.assert_array_equal(*(every["attributes"][whole[view], 0] for view in ("x", "y")))


def test_views_of_the_same_image_are_one_row_twice_and_every_row_as_likely():
    data = cdp.make(size=32)
    rows = data.finite(0, 0, 50).row_pairs(SameImage(), 0, 5)(0, 20_000)
    np.testing.assert_array_equal(rows["x"], rows["y"])
    assert stats.chisquare(np.bincount(rows["x"], minlength=50)).pvalue > 1e-3
    pairs = data.pairs(SameImage(), 0, 1, 3, 9)
    for view in ("x", "y"):
        np.testing.assert_array_equal(pairs[view], data.images(0, 1, 3, 9)["image"])


def test_a_set_that_lacks_a_class_is_refused():
    data = cdp.make(size=32)
    with pytest.raises(InputError, match=r"of 64 classes have no image among 20 .* raise data.images"):
        data.finite(0, 0, 20).row_pairs(parse("all", data.names, data.sizes), 0, 0)


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
    config, *_ = configuration.parse(["--config=configs/cdp.py:pairing=color", *overrides])
    monkeypatch.setattr(parallel, "memory_bytes", lambda: memory_bytes)
    data = cdp.make(size=32)
    read, held = experiment._training_pairs(config, data, parse("color", data.names, data.sizes))
    assert (held is not None) == holds
    assert read(0, 4)["x"].shape == ((4,) if holds else (4, 32, 32, 3))
    assert ("held by each device" if holds else "streamed") in capsys.readouterr().out


@pytest.mark.usefixtures("shallow")
def test_held_images_train_as_streamed_ones_in_one_trace(tmp_path, monkeypatch):
    shrunk = ["encoder.width=4", "data.size=32", "train.k=16", "train.steps=7", "train.checkpoint_every=3"]
    config, *_ = configuration.parse(["--config=configs/cdp.py", *(f"--config.{one}" for one in shrunk)])
    data, mesh, traces = cdp.make(size=32), parallel.make_mesh(16, jax.devices()[:1]), []
    images = data.finite(0, 0, 100)
    arguments = parse("color", data.names, data.sizes), 0, 5
    step = train.train_step
    monkeypatch.setattr(train, "train_step", lambda *args, **kw: (traces.append(1), step(*args, **kw))[1])
    losses = {}
    for name, read, held in (
        ("streamed", images.image_pairs(*arguments), None),
        ("held", images.row_pairs(*arguments), images.read(np.arange(100))),
    ):
        train.train(config, tmp_path / name, read, mesh, held=held)
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(row)["loss_nats"] for row in rows]
    assert len(losses["held"]) == 7
    np.testing.assert_allclose(losses["held"], losses["streamed"], rtol=1e-5)
    assert len(traces) == 2
