"""The study label_noise: critics against numpy and known truths, its images, its tables, and the whole by `main`."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mirigor_jax import config_files
from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.studies import critic_steps, label_critics, label_noise, label_noise_fits
from mirigor_jax.studies.label_critics import Part, Parts

CONFIG = "--config=configs/studies/label_noise.py"


def test_critics_have_the_papers_layers_dropout_and_weight_decay():
    mine, nwj, js = (label_critics.training_of(name, 512, k=64, learning_rate=1e-4) for name in ("mine", "nwj", "js"))
    assert [each.critic.hidden for each in (mine, nwj, js)] == [(512, 512), (512, 512), (512, 512, 512)]
    assert (js.critic.dropout, js.weight_decay) == ((0.5, 0.3, 0.2), 2.5e-5)
    assert (mine.critic.dropout, mine.weight_decay, nwj.weight_decay) == (0.0, 0.0, 0.0)
    assert [reader.name for each in (mine, nwj, js) for reader in each.readers] == ["mine", "nwj", "js", "js_nwj"]
    assert {each.negatives for each in (mine, nwj, js)} == {"shuffle"}


def test_test_rows_are_read_with_all_classes_as_negatives_by_their_frequencies():
    """The oracle: loops over rows and classes, by the paper's formulas, for classes that are not equally frequent."""
    rng = np.random.default_rng(0)
    x, classes, p = (
        rng.normal(size=(2, 5, 3)).astype(np.float32),
        rng.integers(3, size=(2, 5)),
        np.array([0.5, 0.3, 0.2]),
    )
    training = label_critics.training_of("js", 4, k=5, learning_rate=1e-3)
    params = critic_steps.start(1, (3, 3), training).params
    scores = np.array([training.critic.apply({"params": params}, b, 3**0.5 * jnp.eye(3), method="scores") for b in x])
    own = np.array([[scores[b, i, classes[b, i]] for i in range(5)] for b in range(2)]).mean(axis=1)

    def negatives(function):
        return np.array(
            [np.mean([sum(p[c] * function(scores[b, i, c]) for c in range(3)) for i in range(5)]) for b in (0, 1)]
        )

    expected = {
        "mine": own - np.log(negatives(np.exp)),
        "nwj": own - negatives(lambda f: np.exp(f - 1)),
        "js": own,
        "js_nwj": own + 1 - negatives(np.exp),
    }
    for name, values in expected.items():
        reader = label_critics.resolve(name)
        found = label_critics._read(
            params,
            jnp.asarray(x),
            jnp.asarray(classes),
            jnp.asarray(p, jnp.float32),
            critic=training.critic,
            reader=reader,
        )
        np.testing.assert_allclose(found, values, atol=1e-5)


def test_no_row_is_longer_than_the_longest_that_trains():
    """A feature that is nearly constant in training made one row of 2,304 cost NWJ 15 bits."""
    rng = np.random.default_rng(0)
    h = rng.normal(size=(60, 3))
    h[:, 2] = 1e-3 * rng.normal(size=60)
    h[45, 2] = 1.0
    parts = Parts(*(Part(rows, np.zeros(20, int)) for rows in np.split(h, 3)))
    fitted, validation, test = label_critics._feature_rows(parts)
    plain = (h - h[:20].mean(axis=0)) / h[:20].std(axis=0)
    longest = np.linalg.norm(plain[:20], axis=1).max()
    np.testing.assert_allclose(fitted, plain[:20], rtol=1e-5)
    lengths = np.linalg.norm(plain[20:], axis=1)
    assert lengths.max() > 100
    expected = plain[20:] * np.minimum(1, longest / lengths)[:, None]
    np.testing.assert_allclose(np.concatenate([validation, test]), expected, rtol=1e-5)


def channel(rows: int, accuracy: float, seed: int) -> tuple[Part, float]:
    """Four classes, whose number is seen right with this probability; the information of such a row, in bits."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(4, size=rows)
    seen = np.where(rng.random(rows) < accuracy, classes, (classes + rng.integers(1, 4, size=rows)) % 4)
    wrong = (1 - accuracy) / 3
    bits = 2 + (accuracy * math.log2(accuracy) + 3 * wrong * math.log2(wrong) if accuracy > 0.25 else -2)
    return Part(5.0 + 3.0 * np.eye(4)[seen], classes), bits


@pytest.mark.slow
@pytest.mark.parametrize("accuracy", [0.9, 0.25])
def test_an_honest_reading_finds_the_information_of_a_channel(accuracy):
    [fitted, validation, test], [bits, *_] = zip(*(channel(n, accuracy, n) for n in (3000, 1000, 4000)), strict=True)
    shown = []
    for name in ("mine", "nwj", "js"):
        training = label_critics.training_of(name, 32, k=100, learning_rate=3e-3)
        how = {"epochs": 8, "seed": 0, "on_progress": lambda *said: shown.append(said)}
        found = label_critics.fit(Parts(fitted, validation, test), np.full(4, 0.25), training, **how)
        for reading in found.values():
            assert len(reading.curve) == 8
            assert reading.largest == max(reading.curve)
            assert reading.lower < reading.value < reading.upper
        if name != "js":  # a lower bound is its own objective
            assert found[name].curve[found[name].epoch - 1] == found[name].largest
        # Dropout leaves the JS critic flat, so that its plug-in is too low, and NWJ at f + 1 less so.
        assert found["js_nwj" if name == "js" else name].value == pytest.approx(
            bits, abs=0.15 if name == "js" else 0.05
        )
        assert all(reading.value < bits + 0.05 for reading in found.values())
    assert [done for done, total, _ in shown if total == 8] == 3 * [*range(1, 9)]


def test_too_few_test_rows_are_an_error():
    part, _ = channel(100, 0.9, 0)
    training = label_critics.training_of("nwj", 4, k=64, learning_rate=1e-3)
    with pytest.raises(InputError, match="100 test rows: expected 512 or more, 8 batches of 64; give more"):
        label_critics.fit(
            Parts(part, part, part), np.full(4, 0.25), training, epochs=1, seed=0, on_progress=lambda *_: None
        )


SPEC = {
    "name": "a", "source": "", "size": 8, "share": 0.0, "seed": 0, "train_images": 60, "train_k": 8, "train_steps": 4,
    "train_rate": 1e-3, "images": 400, "families": ("linear",), "mlp_steps": 1, "width": 8, "k": 12, "rate": 1e-3,
    "epochs": 2,
}  # fmt: skip


@pytest.fixture
def spec(tmp_path: Path) -> dict:
    """A fit on a set of 480 small images of two classes, dark and light. Two pixels tell an image's number."""
    rng = np.random.default_rng(0)
    labels = np.arange(480) % 2
    images = np.clip(rng.normal(90 + 60 * labels[:, None, None], 40, size=(480, 8, 8)), 1, 254).astype(np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(480) % 250 + 1, np.arange(480) // 250 + 1
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    return SPEC | {"source": f"npz:{tmp_path}/set.npz"}


def test_no_image_trains_the_encoder_and_is_measured_too(spec):
    def numbers(images: np.ndarray) -> set[tuple[int, int]]:
        return {(int(image[0, 0, 0]), int(image[0, 1, 0])) for image in images}

    images = label_noise_fits.images_of(spec)
    trained, others = numbers(images.trained.read(np.arange(60))), numbers(images.others)
    assert (len(trained), len(others)) == (60, 400)
    assert not trained & others
    np.testing.assert_array_equal(images.classes, images.others[:, 2:].mean(axis=(1, 2, 3)) > 120)
    noisy = label_noise_fits.images_of(spec | {"share": 0.5})
    pixels = noisy.others[..., 0]
    assert np.mean((pixels == 0) | (pixels == 255)) == pytest.approx(0.5, abs=0.02)
    with pytest.raises(
        InputError, match=r"train_images=60 and images=421: .* has 288 training images, and 420 others are"
    ):
        label_noise_fits.images_of(spec | {"images": 421})


@pytest.mark.slow
@pytest.mark.compiles
def test_the_shrunk_study_goes_on_after_a_kill_with_the_next_layer(spec, tmp_path, monkeypatch, capsys):
    config = tmp_path / "shrunk.py"
    program = (
        "from mirigor_jax.config_files import load_config\n"
        "def get_config(arg):\n"
        "    config, _ = load_config('configs/studies/label_noise.py:shares=0,seeds=1')\n"
        f"    config.study.fits = ({spec!r},)\n"
        "    return config\n"
    )
    config.write_text(program)
    real, calls = label_noise_fits._row, []

    def row(spec, layer, *given):
        calls.append(layer)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(spec, layer, *given)

    monkeypatch.setattr(label_noise_fits, "_row", row)
    command = [f"--config={config}", f"--workdir={tmp_path / 'study'}"]
    assert main(command) == 130
    assert main(command) == 0
    assert calls == ["L0", "L1", "L1", "L2"]
    report = json.loads((tmp_path / "study/study.json").read_text())
    rows = report["fits"]["rows"]
    assert [(one["layer"], one["features"]) for one in rows] == [("L0", 96), ("L1", 64), ("L2", 120)]
    assert rows[0]["rows"] == {"fit": 240, "validation": 36, "test": 120}  # whole batches of 12
    assert all(math.isfinite(reading["value"]) for one in rows for reading in one["estimates"].values())
    assert all(one["usable"]["linear"]["lower"] <= one["usable"]["linear"]["upper"] for one in rows)
    text = (tmp_path / "study/study.md").read_text()
    assert "runs finished" not in text
    assert "1 of 1 fits finished." in text
    for name in ("label_noise", "label_noise_curves"):
        assert (tmp_path / f"study/figures/{name}.png").stat().st_size > 10_000


def row(share: float, layer: str, seed: int, **changes: float) -> dict:
    reading = {"largest": 3.2, "epoch": 2, "value": 3.1, "lower": 3.0, "upper": 3.2, "curve": [3.0, 3.2]} | changes
    return {
        "share": share, "seed": seed, "epochs": 2, "width": 8, "images": 10_000, "layer": layer, "features": 4,
        "accuracy": 0.9 + seed / 100,
        "rows": {"fit": 3000, "validation": 1000, "test": 6000}, "entropy_bits": math.log2(10),
        "estimates": dict.fromkeys(label_noise.NAMES, reading),
        "usable": {"linear": {"value": 3.0, "lower": 2.9 + seed / 100, "upper": 3.15, "warnings": []}}
        | ({"mlp": {"value": 3.12, "lower": 3.05, "upper": None, "warnings": []}} if share == 0 else {}),
    }  # fmt: skip


ROWS = [row(share, layer, seed) for share in (1.0, 0.0, 0.25) for layer in ("L1", "L0", "L2") for seed in (0, 1)]


def test_the_tables_show_the_rows_beside_the_paper_s_numbers():
    text = label_noise.section(ROWS).text
    lines = [" ".join(line.replace("|", " ").split()) for line in text.splitlines()]
    assert "0 2 90.50 ± 0.71 99.15" in lines
    assert "0.25 2 90.50 ± 0.71 –" in lines
    assert "1 2 90.50 ± 0.71 11.37" in lines
    assert "0 L0 MINE 3.200 ± 0.000 3.100 ± 0.000 [3.000, 3.200] 3.191" in lines  # 2.212 nats
    assert "0 L1 JS plug-in 3.200 ± 0.000 3.100 ± 0.000 [3.000, 3.200] –" in lines
    assert "0 L2 usable, MLP 3.120 ± 0.000 [3.050, –] –" in lines
    assert "1 L2 usable, linear probes 3.000 ± 0.000 [2.900, 3.150] –" in lines
    assert not any(line.startswith("1 L2 usable, MLP") for line in lines)


def test_the_pictures_show_the_rows():
    figures = label_noise.section(ROWS).figures
    first = figures["label_noise"].axes[0]
    lines = {line.get_label(): line for line in first.lines}
    np.testing.assert_allclose(lines["NWJ, test rows"].get_ydata(), [3.1, 3.1, 3.1])
    np.testing.assert_allclose(lines["usable by an MLP, certified: at least"].get_xydata(), [(0, 3.05)])
    assert lines["H(Y)"].get_ydata()[0] == pytest.approx(math.log2(10))
    curves = figures["label_noise_curves"].axes
    assert len(curves) == 12
    np.testing.assert_allclose(curves[0].lines[0].get_ydata(), [3.0, 3.2])


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_the_shipped_fits_have_every_key_and_measure_the_mlp_without_noise(scale):
    config, _ = config_files.load_config(f"configs/studies/label_noise.py:scale={scale}")
    fits = config.study.fits
    assert {tuple(sorted(fit)) for fit in fits} == {tuple(sorted(SPEC))}
    assert len({fit["name"] for fit in fits}) == len(fits)
    assert {fit["seed"] for fit in fits} == {0, 1, 2}
    assert {0.0, 1.0} < {fit["share"] for fit in fits}
    assert all("mlp" in fit["families"] for fit in fits if fit["share"] == 0)
    if scale == "paper":
        assert {fit["share"] for fit in fits} == {i / 10 for i in range(11)}
        assert {(fit["width"], fit["rate"], fit["train_rate"]) for fit in fits} == {(512, 1e-4, 5e-4)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (f"{CONFIG}:shares=1.5", "error: shares=(1.5,): expected 0 to 1"),
        (f"{CONFIG} --config.run.train.k=9", "run.train.k=9 only affects a study's own runs, and this study has none"),
        (f"{CONFIG} --config.study.sources=x", "study.sources='x': the study label_noise makes fits and has no runs"),
        (f"{CONFIG} --config.study.only=1/3", "study.only='1/3': the study label_noise makes fits and has no runs"),
    ],
)
def test_a_bad_command_is_one_line_and_exit_code_2(given, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*given.split(), "--workdir=run"]) == 2
    assert message in capsys.readouterr().err
