"""The study v_infomax: its steps against numpy, its training against PCA, its table and pictures, and the whole."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirigor_jax import config_files
from mirigor_jax.data.image_set import ImageSet
from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.mlp import Network
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.studies import v_infomax, v_infomax_fits
from mirigor_jax.studies.table import STUDIES, Fits, Study
from mirigor_jax.studies.v_infomax_fits import Job

CONFIG = "configs/studies/v_infomax.py"


class Affine(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.features)(x.reshape(len(x), -1))


def job(features: int = 3, rate: float = 1e-2, decay: float = 0.0, pixels: int = 16) -> Job:
    return Job(Affine(features), Network(pixels, (), (), "elu"), (rate, decay), (rate, decay), augmented=False)


def images(n: int, seed: int = 0, side: int = 4) -> np.ndarray:
    """Gaussian images with a spectrum that falls from direction to direction."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(side**2, side**2)))[0]
    x = rng.normal(size=(n, side**2)) * 0.7 ** np.arange(side**2) @ directions
    return (x + 0.5).reshape(n, side, side, 1).astype(np.float32)


def kernels(state) -> tuple[np.ndarray, ...]:
    networks = (state.encoder.params, state.decoder.params)
    return tuple(np.asarray(p["Dense_0"][name], np.float64) for p in networks for name in ("kernel", "bias"))


@pytest.mark.parametrize("scheme", ["decoder", "joint"])
def test_a_step_is_adam_s_on_the_squared_error_with_weight_decay(scheme):
    own, x = job(decay=0.3), jnp.asarray(images(v_infomax_fits.BATCH))
    state = v_infomax_fits.start(own, jax.random.key(0), x)
    after = v_infomax_fits.train_epoch(own, scheme, state, x, jax.random.key(1))
    rows = np.asarray(x, np.float64).reshape(len(x), -1)
    a, c, b, d = kernels(state)
    h = rows @ a + c
    error = 2 * (h @ b + d - rows) / rows.size  # the gradient of the mean over rows and pixels
    gradients = rows.T @ error @ b.T, (error @ b.T).sum(axis=0), h.T @ error, error.sum(axis=0)
    for at, (old, gradient, new) in enumerate(zip((a, c, b, d), gradients, kernels(after), strict=True)):
        moved = np.zeros_like(old) if scheme == "decoder" and at < 2 else -1e-2 * np.sign(gradient + 0.3 * old)
        np.testing.assert_allclose(new - old, moved, atol=2e-5)
    h, errors = v_infomax_fits.encode(own, state, np.asarray(x))
    np.testing.assert_allclose(errors, ((rows - (rows @ a + c) @ b - d) ** 2).sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(h, rows @ a + c, rtol=1e-4, atol=1e-5)


def test_in_turn_the_decoder_has_ten_steps_and_the_encoder_one():
    own, x = job(), jnp.asarray(images(v_infomax_fits.BATCH))
    state, trained = v_infomax_fits.start(own, jax.random.key(0), x), []
    for epoch in range(24):
        before = kernels(state)
        state = v_infomax_fits.train_epoch(own, "alternating", state, x, jax.random.key(epoch))
        changed = [not np.array_equal(old, new) for old, new in zip(before, kernels(state), strict=True)]
        assert changed in ([True, True, False, False], [False, False, True, True])
        trained.append(changed[0])
    assert [epoch for epoch, of_encoder in enumerate(trained) if of_encoder] == [10, 21]
    assert int(state.step) == 24


@pytest.mark.parametrize("scheme", ["alternating", "joint"])
def test_a_linear_autoencoder_learns_the_principal_components(scheme):
    """No linear map to three numbers and back loses less than the trailing eigenvalues."""
    own, x = job(rate=1e-2), jnp.asarray(images(1024))
    state = v_infomax_fits.start(own, jax.random.key(0), x)
    for epoch in range(400 if scheme == "alternating" else 60):
        state = v_infomax_fits.train_epoch(own, scheme, state, x, jax.random.key(epoch))
    _, errors = v_infomax_fits.encode(own, state, np.asarray(x))
    rows = np.asarray(x, np.float64).reshape(len(x), -1)
    least = np.linalg.eigvalsh(np.cov(rows, rowvar=False, ddof=0))[:-3].sum()
    assert least * (1 - 1e-5) < errors.mean() < 1.05 * least


def test_augmented_images_are_flips_and_shifts_by_at_most_four_pixels():
    image = np.zeros((1, 12, 12, 1), np.float32)
    image[0, 5, 4] = 1
    made = np.asarray(v_infomax_fits._augmented(jnp.asarray(np.repeat(image, 400, axis=0)), jax.random.key(0)))
    places = np.argwhere(made[..., 0] == 1)
    assert len(places) == 400
    down, right = places[:, 1] - 5, places[:, 2]
    assert set(down) == set(range(-4, 5))
    assert set(right) == {*range(9), *range(3, 12)}  # 4 ± 4, and 7 ± 4 if flipped


def sets(side: int = 8) -> dict[str, ImageSet]:
    """Gray images of three classes, each with a pattern and noise."""
    parts = {}
    for number, (name, n) in enumerate({"train": 600, "validation": 120, "test": 500}.items()):
        rng = np.random.default_rng(number)
        labels = rng.integers(3, size=n)
        patterns = np.random.default_rng(9).normal(size=(3, side, side))
        pixels = np.clip(128 + 30 * (patterns[labels] + rng.normal(size=(n, side, side))), 0, 255).astype(np.uint8)
        rgb = np.repeat(pixels[..., None], 3, axis=3)
        parts[name] = ImageSet(
            "toy", ("class",), (("a", "b", "c"),), labels[:, None].astype(np.int32), lambda rows, rgb=rgb: rgb[rows]
        )
    return parts


SIZES = {"source": "toy", "size": 8, "images": 512, "validation": 120, "test": 500, "seed": 1, "probe_steps": 100}


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(v_infomax_fits, "labeled", lambda source, *, size: sets(size))


def test_images_have_one_channel_if_they_are_gray_and_the_training_images_units(toy):
    parts = v_infomax_fits.read_images(SIZES)
    assert {name: part.x.shape for name, part in parts.items()} == {
        "train": (512, 8, 8, 1), "validation": (120, 8, 8, 1), "test": (500, 8, 8, 1)
    }  # fmt: skip
    assert np.mean(parts["train"].x) == pytest.approx(0, abs=1e-5)
    assert np.std(parts["train"].x) == pytest.approx(1, abs=1e-5)
    again, other = v_infomax_fits.read_images(SIZES), v_infomax_fits.read_images(SIZES | {"seed": 2})
    np.testing.assert_array_equal(parts["train"].x, again["train"].x)
    assert not np.array_equal(parts["train"].labels, other["train"].labels)
    with pytest.raises(InputError, match="toy has 120 validation images: expected 121; ask for less"):
        v_infomax_fits.read_images(SIZES | {"validation": 121})


def test_the_shipped_study_has_every_decoder_beside_random_weights():
    for scale, seeds in (("laptop", 3), ("paper", 3)):
        config, _ = config_files.load_config(f"{CONFIG}:scale={scale},encoders=MLP+ResNet-18")
        fits = config.study.fits
        assert len({fit["name"] for fit in fits}) == len(fits)
        for fit in fits:
            if "decoder" in fit:
                assert fit["measured"] == (fit["epochs"] // 4, fit["epochs"])
                v_infomax_fits.job_of(fit, 784)
                twin = [other for other in fits if other["encoder"] == fit["encoder"] and "decoder" not in other]
                assert len(twin) == seeds
        if scale == "paper":
            assert {fit["pretraining"] for fit in fits if fit["encoder"] == "MLP" and "decoder" in fit} == {150}
            wide = [fit for fit in fits if "width" in fit and "decoder" in fit]
            assert {(fit["pretraining"], fit["epochs"], fit["width"]) for fit in wide} == {(200, 50, 64)}
    linear, deep = (v_infomax_fits.job_of({"encoder": "MLP", "decoder": name}, 784) for name in v_infomax_fits.DECODERS)
    assert (linear.decoder.hidden, deep.decoder.hidden, deep.decoder.activation) == ((), (300, 300), "relu")
    assert (v_infomax_fits.BATCH, linear.encoder_rates, linear.decoder_rates) == (128, (2.5e-4, 1e-5), (2.5e-4, 1e-5))


def point(**changes) -> dict:
    return {
        "epoch": 0, "encoder_steps": 0, "linear_accuracy": 0.5, "mlp_accuracy": 0.6, "linear_bits": 1.0,
        "mlp_bits": 1.5, "usable_bits": 1.2, "usable_lower_bits": 1.1, "usable_upper_bits": 1.3, "total_bits": 100.0,
    } | changes  # fmt: skip


def training(decoder: str, seed: int, **changes) -> dict:
    points = [
        point(epoch=1, encoder_steps=7, own_bits=40.0, linear_accuracy=0.6 + seed / 100),
        point(epoch=4, encoder_steps=28, own_bits=60.0, gaussian_linear_bits=50.0, **changes),
    ]
    return {
        "encoder": "MLP", "scheme": "joint", "decoder": decoder, "seed": seed, "pixels": 16, "measured": (1, 4),
        "losses": [1.0, 0.8, 0.7, 0.6, 0.5 + seed / 10], "points": points,
    }  # fmt: skip


def test_the_table_has_means_over_seeds_and_the_outermost_ends():
    rows = [
        {"encoder": "pixels", "seed": 0, "pixels": 16, "losses": [], "points": [point(linear_accuracy=0.7)]},
        {"encoder": "MLP", "seed": 0, "pixels": 16, "losses": [], "points": [point()]},
        training("linear", 0), training("linear", 1, usable_lower_bits=0.9991, usable_upper_bits=1.4001),
        training("non-linear", 0, usable_lower_bits=None, usable_upper_bits=None),
    ]  # fmt: skip
    section = v_infomax.section(rows)
    lines = [line.strip("| ").split(" | ") for line in section.text.splitlines() if line.startswith("| ")]
    assert [line[:6] for line in lines[2:]] == [
        ["pixels", "–", "–", "1", "0", "0"], ["MLP", "–", "–", "1", "0", "0"],
        ["MLP", "joint", "linear", "2", "1", "7"], ["MLP", "joint", "linear", "2", "4", "28"],
        ["MLP", "joint", "non-linear", "1", "1", "7"], ["MLP", "joint", "non-linear", "1", "4", "28"],
    ]  # fmt: skip
    assert lines[4][6:] == [
        "60.50 ± 0.71", "60.00 ± 0.00", "1.000 ± 0.000", "1.500 ± 0.000", "0.800 ± 0.000", "40 ± 0", "–", "–",
        "1.200 ± 0.000", "[1.100, 1.300]",
    ]  # fmt: skip
    assert (lines[5][10], lines[5][-1]) == ("0.550 ± 0.071", "[0.999, 1.401]")
    assert lines[7][-1] == "–"
    accuracy = section.figures["v_infomax"].axes[0]
    drawn = {line.get_label(): line for line in accuracy.lines}
    assert drawn["probes of the pixels"].get_ydata()[0] == pytest.approx(70)
    # The mean over the seeds that have random weights too starts at epoch 0; here the second seed has none.
    np.testing.assert_allclose(drawn["non-linear decoder"].get_xdata(), [0, 1, 4])
    np.testing.assert_allclose(drawn["non-linear decoder"].get_ydata(), [50, 60, 50])
    np.testing.assert_allclose(drawn["linear decoder"].get_xdata(), [1, 4])
    assert set(section.figures) == set(v_infomax.CAPTIONS)


def test_pixels_and_random_weights_are_measured_without_training(toy, monkeypatch):
    seen = []
    monkeypatch.setattr(
        v_infomax_fits, "measure", lambda features, parts, spec, families: seen.append((features, families)) or {"a": 1}
    )
    spec = {**SIZES, "name": "n", "encoder": "pixels", "families": ()}
    [row] = v_infomax_fits.make(spec, {}, RunFolder.at("unused"))
    assert (row["losses"], row["pixels"]) == ([], 64)
    assert row["points"] == [{"epoch": 0, "encoder_steps": 0, "a": 1}]
    np.testing.assert_array_equal(seen[0][0]["test"], v_infomax_fits.read_images(SIZES)["test"].rows)
    v_infomax_fits.make({**spec, "encoder": "MLP", "families": ("linear",)}, {}, RunFolder.at("unused"))
    assert {name: h.shape for name, h in seen[1][0].items()} == {
        "train": (512, 100), "validation": (120, 100), "test": (500, 100)
    }  # fmt: skip
    assert seen[1][1] == ("linear",)


def test_a_resnet_of_gray_images_keeps_its_statistics():
    spec = {"encoder": "ResNet-18", "decoder": "non-linear", "width": 2, "stem": "cifar"}
    own, x = v_infomax_fits.job_of(spec, 64), jnp.zeros((4, 8, 8, 1))
    assert (own.decoder.hidden, own.decoder.activation, own.augmented) == ((512, 512, 512), "elu", True)
    assert (own.encoder_rates, own.decoder_rates) == ((1e-4, 1e-4), (1e-4, 1e-5))
    state = jax.eval_shape(lambda key: v_infomax_fits.start(own, key, x), jax.random.key(0))
    after = jax.eval_shape(
        lambda s, key: v_infomax_fits.SCHEMES["joint"][0](own, s, (x, key)), state, jax.random.key(0)
    )
    assert state.statistics["batch_stats"]
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, state)


@pytest.mark.slow
@pytest.mark.compiles
def test_the_shrunk_study_end_to_end(toy, tmp_path, monkeypatch):
    """Three fits, killed in the second; then a second start makes nothing again."""
    config, _ = config_files.load_config(f"{CONFIG}:seeds=1,epochs=4")
    chosen = ("MLP-random-seed=0", "MLP-alternating-linear-seed=0", "MLP-joint-non-linear-seed=0")
    specs = {fit["name"]: dict(fit) for fit in config.study.fits}
    small = {**SIZES, "pretraining": 1}
    fits = [specs[name] | {key: value for key, value in small.items() if key in specs[name]} for name in chosen]
    program = tmp_path / "shrunk.py"
    program.write_text(
        "import common\ndef get_config(arg):\n    config = common.study('v_infomax', 'laptop')\n"
        f"    config.study.fits = tuple({fits!r})\n    return config\n"
    )
    command, real, calls = [f"--config={program}", f"--workdir={tmp_path / 'study'}"], v_infomax_fits.make, []

    def make(spec, runs, folder):
        calls.append(spec["name"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(spec, runs, folder)

    monkeypatch.setitem(
        STUDIES, "v_infomax", Study(**vars(STUDIES["v_infomax"]) | {"fits": Fits(make, v_infomax.section)})
    )
    assert main(command) == 130
    assert main(command) == 0
    assert calls == [chosen[0], chosen[1], *chosen[1:]]
    assert main(command) == 0
    assert len(calls) == 4
    rows = {row["name"]: row for row in json.loads((tmp_path / "study" / "study.json").read_text())["fits"]["rows"]}
    for row in rows.values():
        for found in row["points"]:
            known = {key: value for key, value in found.items() if value is not None}
            assert all(math.isfinite(value) for value in known.values())
            assert known["linear_accuracy"] > 0.6
        if "decoder" in row:
            assert len(row["losses"]) == 5
            assert [found["epoch"] for found in row["points"]] == [1, 4]
            assert row["losses"][-1] < row["losses"][0]
            last = row["points"][-1]
            assert last["own_bits"] == pytest.approx(last["total_bits"] - 64 * row["losses"][-1] / math.log(2))
    assert rows[chosen[1]]["points"][-1]["encoder_steps"] == sum(step % 11 == 10 for step in range(4 * 4))
    assert rows[chosen[2]]["points"][-1]["encoder_steps"] == 16
    figures = {path.stem for path in (tmp_path / "study" / "figures").glob("*.png")}
    assert figures == set(v_infomax.CAPTIONS)
    assert "0 of 0 runs" not in (tmp_path / "study" / "study.md").read_text()
