"""Invertible encoders on the halves of images: each part against its definition, and the whole job through `main`."""

import dataclasses
import json
import math
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import image_report

from mirigor_jax.checkpoint import Checkpoints
from mirigor_jax.data.image_set import ImageSet
from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.models.realnvp import RealNVP
from mirigor_jax.runs import report
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.studies import invertible, invertible_encoders

CONFIG = "--config=configs/invertible.py"
SETTINGS = invertible_encoders.Settings(
    encoder=RealNVP(layers=2, hidden=(8,)),
    num_classes=3,
    k=16,
    learning_rate=1e-2,
    adversarial_weight=20.0,
    ridge=0.5,
    seed=0,
)


def images(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """4×4 pictures of three classes, each with its own shade, and noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    gray = 60 + 60 * labels[:, None, None] + rng.integers(-50, 50, (n, 4, 4))
    return np.repeat(gray[..., None], 3, axis=3).astype(np.uint8), labels


def parts_of() -> dict[str, dict[str, np.ndarray]]:
    return {name: part(n, seed) for seed, (name, n) in enumerate({"train": 90, "validation": 60, "test": 70}.items())}


def part(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    pictures, labels = images(n, seed)
    return invertible_encoders.halves(pictures) | {"labels": labels}


def test_halves_are_the_top_and_the_bottom():
    pictures, _ = images(5)
    result = invertible_encoders.halves(pictures)
    np.testing.assert_array_equal(result["x"].reshape(5, 2, 4), pictures[:, :2, :, 0])
    np.testing.assert_array_equal(result["y"].reshape(5, 2, 4), pictures[:, 2:, :, 0])
    assert invertible_encoders.halves(np.zeros((2, 5, 5, 3), np.uint8))["y"].shape == (2, 15)


def test_a_sorted_set_s_halves_come_in_random_order_with_their_classes():
    labels = np.repeat(np.arange(3), 30)
    pictures = np.broadcast_to((80 * labels)[:, None, None, None], (90, 4, 4, 3)).astype(np.uint8)
    classes = labels[:, None].astype(np.int32)
    result = invertible_encoders.halves_of(
        ImageSet("set", ("class",), (("a", "b", "c"),), classes, lambda rows: pictures[rows])
    )
    assert set(result["labels"][:20].tolist()) == {0, 1, 2}
    for half in ("x", "y"):
        np.testing.assert_array_equal(result[half], np.broadcast_to(80 * result["labels"][:, None], (90, 8)))


def test_dequantized_pixels_are_continuous_and_lose_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8)).astype(np.uint8)
    x = np.asarray(invertible_encoders.dequantize(jax.random.key(0), jnp.asarray(pixels)))
    assert -1 <= x.min() < x.max() < 1
    np.testing.assert_array_equal(np.floor((x + 1) * 128), pixels)
    assert 0.45 < np.mean((x + 1) * 128 % 1) < 0.55


def test_what_a_classifier_tells_is_that_of_one_fitted_without_the_image():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 12)
    z = rng.normal(size=(12, 5)) + labels[:, None]
    classes = np.eye(3)[labels]
    result = invertible_encoders.leave_one_out_r2(jnp.asarray(z, jnp.float32), jnp.asarray(classes, jnp.float32), 0.5)
    z = (z - z.mean(axis=0)) / (z.std(axis=0) + 1e-3)
    centered = classes - classes.mean(axis=0)
    lost = 0.0
    for i in range(12):
        others = np.arange(12) != i
        kernel = np.linalg.solve(z[others].T @ z[others] + 0.5 * 12 * np.eye(5), z[others].T @ centered[others])
        lost += np.sum((centered[i] - z[i] @ kernel) ** 2)
    assert float(result) == pytest.approx(1 - lost / np.sum(centered**2), abs=1e-5)
    assert 0.05 < float(result) < 1


@pytest.mark.slow
def test_an_objective_trains_what_it_names():
    """`critic` leaves the encoders unchanged. `adversarial`, and no other objective, hides the class."""
    features = {name: jnp.asarray(value) for name, value in part(200).items()}
    fresh = part(200, seed=1)
    classes = jax.nn.one_hot(fresh["labels"], 3)
    values, nats, params = {}, {}, {}
    for name, objective in invertible_encoders.OBJECTIVES.items():
        step = jax.jit(partial(invertible_encoders.train_step, settings=SETTINGS, objective=objective))
        state = start = invertible_encoders.init_state(SETTINGS, (8, 8))
        for _ in range(150):
            state, nats[name] = step(state, features)
        params[name] = state.params
        z, *_ = invertible_encoders.encode(
            state.params["x"],
            invertible_encoders.dequantize(jax.random.key(1), jnp.asarray(fresh["x"])),
            encoder=SETTINGS.encoder,
        )
        values[name] = float(invertible_encoders.leave_one_out_r2(z, classes, 0.5))
        assert int(state.step) == 150
        assert np.abs(state.params["critic"]).max() > 0.01
    jax.tree.map(np.testing.assert_array_equal, params["critic"]["x"], start.params["x"])
    assert np.abs(params["infonce"]["x"]["couplings_0"]["Dense_1"]["kernel"]).max() > 0.01
    assert values["adversarial"] < 0.25 < 0.4 < values["critic"]
    assert values["infonce"] > 0.4
    assert 0.2 < float(nats["adversarial"]) < math.log(16)


@pytest.mark.slow
def test_measures_are_those_of_numpy():
    parts = parts_of()
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), jnp.float32),
        invertible_encoders.init_state(SETTINGS, (8, 8)).params,
    )
    values = invertible_encoders.measure(params, parts, SETTINGS, (1e-3,))
    z, log_det = {}, 0.0
    for i, view in ((2, "x"), (3, "y")):
        key = jax.random.fold_in(jax.random.key(0), invertible_encoders.NOISE + i)
        half = invertible_encoders.dequantize(key, jnp.asarray(parts["test"][view]))
        z[view], of = SETTINGS.encoder.apply({"params": params[view]}, half)
        log_det += float(np.mean(of))
    bits = []
    for start in (0, 16, 32, 48):  # four whole batches of 70 images
        scores = np.asarray(z["x"][start : start + 16] @ params["critic"] @ z["y"][start : start + 16].T, np.float64)
        bits += [np.log2(16 * np.exp(scores[i, i]) / np.exp(scores[i]).sum()) for i in range(16)]
    assert values["held_out_bits"] == pytest.approx(np.mean(bits), abs=1e-4)
    assert values["log_det_nats"] == pytest.approx(log_det, abs=1e-4)
    assert abs(log_det) > 0.1
    assert 0 < values["log_det_error_nats"] < 1e-4
    assert 0 < values["inverse_error"] < 1e-4
    assert 0.6 < values["accuracy"] <= 1


def test_usable_information_is_read_on_images_that_training_does_not_see(monkeypatch):
    """The identity's top halves: validation's and the test part's, each with its class."""
    parts, given = parts_of(), []

    def usable_information(h, labels, *, on_progress):
        given.append((h, labels))
        return SimpleNamespace(value_bits=1.0, lower_bits=0.5, upper_bits=None)

    monkeypatch.setattr(invertible_encoders.mi, "usable_information", usable_information)
    start = invertible_encoders.init_state(SETTINGS, (8, 8)).params
    assert invertible_encoders.measure_usable(start, parts, SETTINGS) == {"usable_bits": 1.0, "usable_lower_bits": 0.5}
    [(h, labels)] = given
    held_out = [parts[name] for name in ("validation", "test")]
    np.testing.assert_array_equal(np.floor((h + 1) * 128), np.concatenate([each["x"] for each in held_out]))
    np.testing.assert_array_equal(labels, np.concatenate([each["labels"] for each in held_out]))


@pytest.mark.slow
def test_an_encoder_that_loses_the_class_is_proven_to():
    """An invertible map on which a linear probe reads less: each pixel is scaled by a steep function of another."""
    parts = {name: part(n, seed) for seed, (name, n) in enumerate({"validation": 900, "test": 1600}.items())}
    rng = np.random.default_rng(0)
    start = invertible_encoders.init_state(SETTINGS, (8, 8)).params
    tangled = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(scale=3, size=leaf.shape), jnp.float32), start)
    result = invertible_encoders.order(start, tangled, parts, SETTINGS, 1200)
    assert (result["larger"], result["a"], result["b"]) == ("step 0", "step 0", "step 1,200")
    assert (result["confidence"], result["rows"]) == (0.95, 1500)


@pytest.mark.slow
def test_a_wrong_log_determinant_or_inverse_is_seen(monkeypatch):
    def wrong(params, x, *, encoder):
        z, log_det, _ = right(params, x, encoder=encoder)
        return z, log_det + 0.01, jnp.asarray(0.02)

    right = invertible_encoders.encode
    monkeypatch.setattr(invertible_encoders, "encode", wrong)
    values = invertible_encoders.measure(
        invertible_encoders.init_state(SETTINGS, (8, 8)).params, parts_of(), SETTINGS, (1e-3,)
    )
    assert values["log_det_error_nats"] == pytest.approx(0.01, abs=1e-5)
    assert values["inverse_error"] == pytest.approx(0.02)


def row(step: int, **changes: float) -> dict[str, float]:
    return {
        "step": step, "train_bits": 5.25, "held_out_bits": 5.125, "accuracy": 0.7711, "log_det_nats": -12.34,
        "log_det_error_nats": 2e-5, "inverse_error": 3e-6, "usable_bits": 2.0625, "usable_lower_bits": 1.93751,
        "usable_upper_bits": 2.12501,
    } | changes  # fmt: skip


def test_the_correlation_leaves_the_untrained_critic_out():
    rows = [
        row(0, held_out_bits=0.0, accuracy=0.1),
        *(row(i, held_out_bits=i, accuracy=0.9 - i / 10) for i in (1, 2, 3)),
    ]
    assert invertible_encoders.correlation(rows) == pytest.approx(-1)
    assert invertible_encoders.correlation([row(0), row(1, held_out_bits=1), row(2, held_out_bits=2)]) is None


PAIR = {
    "a": "step 0", "b": "step 200", "difference_bits": 0.25, "larger": "step 0", "at_twice_the_norm": True,
    "rows_needed": None, "rows": 600, "confidence": 0.95,
}  # fmt: skip
UNTOLD = {"larger": None, "at_twice_the_norm": False, "rows_needed": 5000}


@pytest.mark.parametrize(
    ("error", "message"), [(3e-6, "the maps are invertible"), (3e-4, "does not show that the maps")]
)
def test_the_report_says_whether_the_maps_are_invertible(error, message):
    result = invertible.InvertibleReport(
        name="invertible", workdir="runs/invertible", ceiling_bits=8.0,
        over_training={"infonce": [row(0, held_out_bits=0.0), row(100, inverse_error=error), row(200)]},
        correlation={"infonce": 0.987}, run=image_report().run,
        order={"infonce": PAIR, "adversarial": PAIR | UNTOLD, "weak": PAIR | {"at_twice_the_norm": False}},
    )  # fmt: skip
    for form in (report.markdown, report.table):
        text = " ".join(form(result, invertible.INVERTIBLE_FORM).replace("|", " ").split())
        assert message in text
        assert "infonce 200 5.125 5.250 77.11 % 2.062 [1.937, 2.126] -12.3 2.0e-05 3.0e-06" in text
        told = "at step 200 holds less usable information than at step 0 (by about 0.250 bits)"
        assert (f"{told}, though the mutual information is the same." in text) == (error < 1e-4)
        assert told in text
        untold = "not proven to differ between step 0 and step 200, though its estimate is 0.250 bits less at step 200"
        assert f"{untold}; about 5,000 rows would tell them apart." in text
        assert text.count("This is not certified if the probes at step 200 may have twice the norm.") == 1
        assert f"{error:.1e}" in text
        assert "infonce +0.99" in text


def test_the_figure_shows_the_records():
    rows = [row(0, held_out_bits=0.0), row(100), row(200, held_out_bits=6.5, accuracy=0.8)]
    for name in ("usable_bits", "usable_lower_bits", "usable_upper_bits"):
        del rows[1][name]  # not every record has them
    figure = invertible.picture({"infonce": rows, "adversarial": rows}, ceiling_bits=8.0)
    estimate, accuracy, usable, error = figure.axes
    lines = {line.get_label(): line for line in estimate.lines}
    np.testing.assert_allclose(lines["infonce, test images"].get_xydata(), [(0, 0), (100, 5.125), (200, 6.5)])
    np.testing.assert_allclose(lines["adversarial, in training"].get_xydata(), [(100, 5.25), (200, 5.25)])
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [77.11, 77.11, 80])
    line = next(line for line in usable.lines if line.get_label() == "infonce, with its certified ends")
    np.testing.assert_allclose(line.get_xydata(), [(0, 2.0625), (200, 2.0625)])
    band = usable.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1.93751, 2.12501)
    np.testing.assert_allclose(error.lines[0].get_ydata(), 3e-6)
    np.testing.assert_allclose(error.lines[1].get_ydata(), 2e-5)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """(A source of few small pictures, the arguments that shrink the shipped config)."""
    pictures, labels = images(300)
    np.savez(tmp_path / "a.npz", images=pictures, labels=labels)
    keys = {"source": f"npz:{tmp_path}/a.npz", "layers": 2, "hidden": "(8,)", "k": 16, "steps": 20, "record_every": 10}
    keys["objectives"] = ("critic", "infonce")
    monkeypatch.chdir(tmp_path)
    return [CONFIG, *(f"--config.{key}={value}" for key, value in keys.items()), "--workdir=run"]


@pytest.mark.slow
def test_a_killed_job_goes_on_to_the_same_report(folder, tmp_path, monkeypatch, capsys):
    assert main([*folder[:-1], "--workdir=whole"]) == 0
    output = capsys.readouterr().out
    whole = json.loads((tmp_path / "whole/report.json").read_text())
    for name in ("critic", "infonce"):
        rows = whole["over_training"][name]
        assert [row["step"] for row in rows] == [0, 10, 20]
        assert [row["step"] for row in rows if "usable_bits" in row] == [0, 20]
        assert f"{whole['over_training'][name][-1]['held_out_bits']:.3f}" in output
        assert rows[0]["usable_lower_bits"] <= rows[0]["usable_bits"] <= rows[0]["usable_upper_bits"]
    assert whole["order"].keys() == {"infonce"}  # the critic's encoders stay as they are
    pair, values = whole["order"]["infonce"], [row["usable_bits"] for row in rows if "usable_bits" in row]
    assert pair["difference_bits"] == pytest.approx(values[0] - values[1], abs=1e-9)
    assert "at step 20" in " ".join(output.split()) or "between step 0 and step 20" in " ".join(output.split())
    assert whole["ceiling_bits"] == 4
    assert whole["over_training"]["critic"][0]["held_out_bits"] == 0
    assert (tmp_path / "whole/figures/invertible.png").stat().st_size > 10_000
    assert "20 of 20 steps" in output

    save, calls = Checkpoints.save, []

    def killed(*arguments, **named):
        calls.append(None)
        if len(calls) == 5:  # of infonce at step 10, whose row is written
            raise KeyboardInterrupt
        save(*arguments, **named)

    monkeypatch.setattr(Checkpoints, "save", killed)
    assert main(folder) == 130
    assert main(folder) == 0
    output = capsys.readouterr().out
    assert "critic: finished before, skipped" in output
    assert "infonce continues from step 0 of 20" in output
    again = json.loads((tmp_path / "run/report.json").read_text())
    assert (again["over_training"], again["order"]) == (whole["over_training"], whole["order"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("objectives=('nce',)", "unknown objective 'nce'; choose from critic, infonce, adversarial"),
        ("k=1", "k=1: expected at least 2"),
        ("k=5000", "k=5000: expected at most 60, the test images that there are"),
        ("record_every=0", "record_every=0: expected at least 1"),
        ("usable_every=15", "usable_every=15: expected a multiple of record_every=10"),
    ],
)
def test_a_bad_config_is_one_line_and_exit_code_2(folder, argument, message, capsys, tmp_path):
    assert main([*folder, f"--config.{argument}"]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_loss_that_diverges_is_named(tmp_path, monkeypatch):
    parts = dict.fromkeys(("train", "validation", "test"), part(40))
    settings = dataclasses.replace(SETTINGS, learning_rate=1e38)
    monkeypatch.setattr(invertible_encoders, "measure", lambda *_: {"held_out_bits": 0.0, "accuracy": 0.0})
    monkeypatch.setattr(invertible_encoders, "measure_usable", lambda *_: {"usable_bits": 0.0})
    with pytest.raises(InputError, match=r"learning_rate=1e\+38: 'critic' diverged by its last update, of step 5"):
        invertible_encoders.train(
            parts, RunFolder(tmp_path), "critic", settings,
            steps=5, record_every=5, usable_every=5, probed=40, l2=(1e-3,),
        )  # fmt: skip
