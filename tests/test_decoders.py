"""Objectives with a decoder: their losses against loops, the hidden patches, the decoder, and a run through `main`."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import cdp

from mirigor_jax import config_files, models, objectives, training
from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.plan import work
from mirigor_jax.runs.job import parse

K, SIDE, PATCH = 6, 8, 2
OPTIONS = {"temperature": 0.1, "num_classes": 4, "axis_name": None}
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(2, K, 4))
DECODED, IMAGES = RNG.normal(size=(2, 2, K, SIDE, SIDE, 3))
CLASSES = RNG.integers(0, 4, (2, K))


def keys_of(count: int, seed: int = 0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weight", [0.25, 3.0])
def test_the_supervised_autoencoder_adds_the_weighted_error_of_a_pixel_to_the_cross_entropy(weight):
    loss = objectives.make("supervised_autoencoder", reconstruction=weight, **OPTIONS).loss
    arrays = {"decoded": jnp.asarray(DECODED), "images": jnp.asarray(IMAGES)}
    value = loss(*map(jnp.asarray, (*Z, *CLASSES)), **arrays)
    entropies, errors = [], []
    for view in range(2):
        for i in range(K):
            p = np.exp(Z[view, i]) / np.exp(Z[view, i]).sum()
            entropies.append(-np.log(p[CLASSES[view, i]]))
            pixels = [
                (DECODED[view, i, row, column, channel] - IMAGES[view, i, row, column, channel]) ** 2
                for row in range(SIDE)
                for column in range(SIDE)
                for channel in range(3)
            ]
            errors.append(sum(pixels) / len(pixels))
    np.testing.assert_allclose(value, np.mean(entropies) + weight * np.mean(errors), rtol=1e-12)
    alone = objectives.make("supervised_autoencoder", reconstruction=None, **OPTIONS | {"num_classes": None})
    assert (alone.needs_classes, alone.needs_decoder) == (False, True)
    np.testing.assert_allclose(alone.loss(*map(jnp.asarray, Z), **arrays), np.mean(errors), rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("share", "hidden"), [(0.75, 12), (0.01, 1), (0.99, 15)])
def test_masked_counts_the_pixels_of_hidden_patches_alone(share, hidden):
    made = objectives.make("masked", masked=share, patch=PATCH, **OPTIONS)
    keys = keys_of(2 * K)
    shown = np.asarray(made.transform(jnp.asarray(IMAGES.reshape(-1, SIDE, SIDE, 3)), keys))
    errors = []
    for before, after, decoded in zip(IMAGES.reshape(shown.shape), shown, DECODED.reshape(shown.shape), strict=True):
        patches = 0
        for row in range(0, SIDE, PATCH):
            for column in range(0, SIDE, PATCH):
                here = np.s_[row : row + PATCH, column : column + PATCH]
                if np.array_equal(before[here], after[here]):
                    continue
                np.testing.assert_array_equal(after[here], 0.0)
                errors += ((decoded - before)[here] ** 2).ravel().tolist()
                patches += 1
        assert patches == hidden
    views = (*map(jnp.asarray, Z), keys[:K], keys[K:])
    value, slopes = jax.value_and_grad(lambda of: made.loss(*views, decoded=of, images=jnp.asarray(IMAGES)))(
        jnp.asarray(DECODED)
    )
    np.testing.assert_allclose(value, np.mean(errors), rtol=1e-12)
    assert np.count_nonzero(slopes) == 2 * K * hidden * PATCH**2 * 3


def test_every_patch_of_every_image_is_hidden_equally_often():
    n, share = 4000, 0.25
    hidden = np.asarray(objectives.hidden_pixels(keys_of(n), side=SIDE, share=share, patch=PATCH))
    assert not np.array_equal(hidden[0], hidden[1])
    often = hidden.mean(axis=0)
    assert np.abs(often - share).max() < 4 * np.sqrt(share * (1 - share) / n)
    # Of two patches of an image, both are hidden with probability (4 · 3) / (16 · 15).
    both = np.mean(hidden[:, 0, 0] & hidden[:, 0, PATCH])
    assert abs(both - 0.05) < 4 * np.sqrt(0.05 * 0.95 / n)
    assert not np.array_equal(hidden, objectives.hidden_pixels(keys_of(n, 1), side=SIDE, share=share, patch=PATCH))


def test_without_weight_on_the_reconstruction_the_objective_is_cross_entropy():
    encoder = models.build("mlp")
    images = RNG.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), np.arange(40) % 4
    train = partial(training.train, encoder, images, pairing="class", k=8, steps=3, devices=jax.devices()[:1])
    plain, history = train(objective="cross_entropy")
    weightless, same = train(objective="supervised_autoencoder", reconstruction=0.0)
    assert history.loss_nats.tolist() == same.loss_nats.tolist()
    jax.tree.map(np.testing.assert_array_equal, plain, weightless)
    weighted, other = train(objective="supervised_autoencoder", reconstruction=10.0)
    assert weighted.params["decoder"]["Dense_0"]["kernel"].shape[1] == 8 * 8 * 3
    assert other.loss_nats[0] > same.loss_nats[0] + 1.0  # 10 times the error of a decoder that is not trained


def test_a_linear_decoder_learns_to_repeat_what_the_features_show():
    """Images of one gray level each: their error falls to nothing, below the variance of the levels."""
    levels = RNG.integers(0, 256, 64).astype(np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (64, 8, 8, 3))
    options = {"reconstruction": None, "k": 32, "steps": 150, "learning_rate": 3e-3, "warmup_steps": 0}
    train = partial(training.train, models.build("mlp"), np.array(images), pairing="none", **options)
    _, history = train(objective="supervised_autoencoder", devices=jax.devices()[:1])
    variance = np.var(levels / 127.5 - 1)
    assert history.loss_nats[0] > 0.5 * variance
    assert history.ending()["loss_nats"] < 0.05 * variance


def test_the_encoder_sees_the_transformed_images_and_the_loss_those_before(monkeypatch):
    """White images are black for this encoder, whose outputs are then 0, and white, 1, for the loss."""

    def blind(options):
        loss = lambda z_x, z_y, *keys, decoded, images: jnp.mean(images**2) + jnp.sum(z_x**2 + z_y**2)  # noqa: E731
        keys = objectives.masked_objective(options).prepare
        return objectives.Objective(loss, prepare=keys, transform=lambda x, keys: 0 * x, needs_decoder=True)

    monkeypatch.setitem(objectives.OBJECTIVES, "blind", blind)
    images = np.full((8, 8, 8, 3), 255, np.uint8)
    options = {"pairing": "none", "k": 4, "steps": 1, "devices": jax.devices()[:1]}
    _, history = training.train(models.build("mlp"), images, objective="blind", **options)
    assert history.loss_nats[0] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("name", "layers"), [("linear", ["Dense_0"]), ("mlp", [f"Dense_{i}" for i in range(4)])])
def test_the_decoder_maps_features_to_pixels_in_the_encoder_s_dtype(name, layers):
    encoder = models.build("mlp", dtype="bfloat16")
    made = objectives.make("masked", **OPTIONS)
    decoder = training.make_decoder(encoder, made, SIDE, name=name, width=16)
    out, variables = decoder.init_with_output(jax.random.key(0), jnp.zeros((2, 5)))
    assert (out.shape, out.dtype) == ((2, SIDE * SIDE * 3), jnp.bfloat16)
    assert sorted(variables["params"]) == layers
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    assert training.make_decoder(encoder, objectives.make("simclr", **OPTIONS), SIDE) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 3}, r"^patch=3: images of 8 pixels are not cut .*; choose one of 1, 2, 4$"),
        ({"patch": 8}, r"^patch=8: .*choose one of 1, 2, 4$"),
        ({"masked": 1.0}, r"^masked=1.0: expected .*below 1"),
        ({"reconstruction": 2.0}, r"^reconstruction=2.0 has no effect on objective='masked'"),
        ({"decoder_width": 9}, r"^decoder_width=9 has no effect"),
        ({"decoder": "deep"}, r"^decoder='deep': expected linear or mlp"),
        ({"objective": "simclr", "decoder": "mlp"}, r"^decoder=mlp has no effect on objective='simclr'"),
        ({"objective": "supervised_autoencoder"}, r"needs images of two classes"),
        ({"objective": "supervised_autoencoder", "reconstruction": -1.0}, r"^reconstruction=-1.0: expected at least 0"),
    ],
)
def test_options_that_cannot_be_are_told(options, message):
    images = np.zeros((8, 8, 8, 3), np.uint8)
    with pytest.raises(InputError, match=message):
        training.train(models.build("mlp"), images, **{"objective": "masked", "pairing": "none", "k": 2} | options)


def test_a_run_is_told_of_patches_before_a_file_is_written(tmp_path, capsys):
    command = cdp("--config.train.objective=masked", "--config.train.patch=5", f"--workdir={tmp_path}")
    assert main(command) == 2
    assert "train.patch=5: images of 32 pixels are not cut" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_plan_counts_the_decoder():
    job = parse(config_files.parse(cdp("--config.train.objective=masked", "--config.train.k=8"))[0])
    state, *_ = work.train_work(job, jax.devices()[:1]).arguments
    assert state.params["decoder"]["Dense_0"]["kernel"].shape == (120, 32 * 32 * 3)


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("arguments", [("objective=masked",), ("objective=supervised_autoencoder", "decoder=mlp")])
def test_a_run_with_a_decoder_measures_its_encoder_and_its_loss_falls(arguments, tmp_path):
    more = [f"--config.train.{argument}" for argument in (*arguments, "steps=12", "learning_rate=0.002")]
    assert main(cdp(*more, f"--workdir={tmp_path}")) == 0
    rows = [json.loads(line) for line in (tmp_path / "train/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss_nats"] < rows[0]["loss_nats"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["in_training"] is None or "mi_bits" not in rows[0]
    assert 0 <= report["estimate"]["lower_bits"] <= report["estimate"]["upper_bits"] == 1.0
