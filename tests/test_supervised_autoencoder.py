"""The study `supervised_autoencoder`: its trainings, what its fits measure, and its tables beside the paper's."""

import ast
import json

import numpy as np
import pytest
from small import IMAGES

from mirigor_jax import config_files
from mirigor_jax.data.sources import table as sources
from mirigor_jax.data.sources.table import labeled
from mirigor_jax.main import main
from mirigor_jax.studies import grid, supervised_autoencoder, supervised_autoencoder_fits
from mirigor_jax.studies.auxiliary_labels import RANDOM, ROTATION
from mirigor_jax.studies.supervised_autoencoder import BOTH, LINEAR, NO_DECODER, NON_LINEAR, PAPER, WEIGHTS

CONFIG = "--config=configs/studies/supervised_autoencoder.py"


def test_the_error_counts_each_channel_in_its_own_variance():
    rng = np.random.default_rng(0)
    training = rng.integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
    training[..., 1] //= 4  # a channel with a sixteenth of the variance
    test = rng.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    decoded = rng.normal(size=test.shape).astype(np.float32)
    total = 0.0
    for channel in range(3):
        scale = np.std(training[..., channel].astype(float) / 127.5 - 1)
        total += np.mean(((decoded[..., channel] - (test[..., channel] / 127.5 - 1)) / scale) ** 2) / 3
    assert supervised_autoencoder_fits.standardized_error(decoded, test, training) == pytest.approx(total, rel=1e-5)
    # The training images' mean has error 1 on themselves.
    mean = np.broadcast_to((training / 127.5 - 1).mean(axis=(0, 1, 2)), training.shape).astype(np.float32)
    assert supervised_autoencoder_fits.standardized_error(mean, training, training) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_the_shipped_study_weighs_every_reconstruction(scale):
    config, *_ = config_files.parse([f"{CONFIG}:scale={scale},seeds=2"])
    cells = config.study.cells
    nets = {cell["tags"]["net"] for cell in cells}
    assert len(cells) == 2 * len(nets) * 10
    assert [cell["name"] for cell in cells] == [fit["run"] for fit in config.study.fits]
    assert len({cell["name"] for cell in cells}) == len(cells)
    found = set()
    variance = {"laptop": 0.397, "paper": 0.252}[scale]
    for cell, each in zip(cells, grid.configs_of(config.run, cells), strict=True):
        t, tags = each.train, cell["tags"]
        weight = tags["weight"]
        found.add((tags["labeling"], tags["decoder"], weight))
        assert t.reconstruction == (weight if not weight else pytest.approx(weight / variance))
        assert t.decoder == ("mlp" if tags["decoder"] == NON_LINEAR else "linear")
        assert each.data.pairing == ("corrupted" if tags["labeling"] == RANDOM else "rotation")
        assert t.steps % t.checkpoint_every == 0  # a checkpoint for every epoch
        assert each.features.checkpoint == "best"
        if scale == "paper":  # Gosch 2020, C.2: 182 epochs of 45,000 images at four turns, batches of 512 and 128
            assert t.steps / t.checkpoint_every == 182
            assert t.checkpoint_every == pytest.approx(180_000 / (128 if tags["labeling"] == RANDOM else 512), abs=1)
    assert found == {
        (ROTATION, NO_DECODER, 0.0), (RANDOM, NO_DECODER, 0.0),
        *((ROTATION, decoder, weight) for decoder in (LINEAR, NON_LINEAR) for weight in (0.25, 1.0)),
        *((RANDOM, LINEAR, weight) for weight in (0.25, 1.0)), (BOTH, LINEAR, None), (BOTH, NON_LINEAR, None),
    }  # fmt: skip


@pytest.mark.skipif(not sources.FASHION_MNIST.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_laptop_s_lambda_is_on_the_scale_of_its_images():
    """λ is divided by the variance of the set's pixels, as far as a small sample of them shows it."""
    config, *_ = config_files.parse([f"{CONFIG}:seeds=1"])
    images = labeled("fashion_mnist", size=config.run.data.size)["train"].read(np.arange(1000)) / 127.5 - 1
    quarter = next(cell["run"] for cell in config.study.cells if cell["tags"]["weight"] == 0.25)
    assert 0.25 / quarter["train.reconstruction"] == pytest.approx(images.var(), rel=0.05)


def row_of(labeling: str, decoder: str, weight: float | None, seed: int, value: float) -> dict:
    """A fit's row; its measures follow from the value."""
    trained = labeling != BOTH
    return {
        "run": f"{labeling}-{decoder}-{weight}-{seed}", "net": "resnet18", "labeling": labeling, "decoder": decoder,
        "weight": weight, "seed": seed, "chosen_epoch": 14.0 + seed, "last_epoch": 16.0, "linear_accuracy": value,
        "mlp_accuracy": value + 0.1, "usable_bits": 3 * value, "usable_lower_bits": 3 * value - 0.1001,
        "usable_upper_bits": 3 * value + 0.2001, "entropy_bits": 3.0, "unseen_rows": 4500,
        "fit_accuracy": 1.0 if trained else None, "held_out_accuracy": 0.5 if trained else None,
        "reconstruction": None if weight == 0.0 else 0.4, "js_largest_bits": None if labeling == ROTATION else 1.5,
        "js_bits": None if labeling == ROTATION else 1.2,
    }  # fmt: skip


def test_the_section_shows_the_fits_beside_the_paper():
    cases = [(ROTATION, NO_DECODER, 0.0), (ROTATION, LINEAR, 0.25), (RANDOM, LINEAR, 1.0), (BOTH, LINEAR, None)]
    rows = [row_of(*case, seed, 0.5 + 0.1 * seed) for case in cases for seed in (0, 1)]
    made = supervised_autoencoder.section(rows)
    lines = [line.strip("| ").split(" | ") for line in made.text.splitlines() if line.startswith("| ")]
    both = "55.00 ± 7.07", "65.00 ± 7.07"
    assert ["rotation", NO_DECODER, "0", *both, "–"] in lines
    assert ["rotation", LINEAR, "0.25", *both, "0.400 ± 0.000"] in lines
    assert ["the paper's", LINEAR, "0.25", "73.32", "79.24", "0.32"] in lines
    assert ["rotation", LINEAR, "0.25", "100.00 ± 0.00", "50.00 ± 0.00", "14.5 ± 0.7 of 16"] in lines
    assert ["the paper's", LINEAR, "0.25", "–", "76.26", "–"] in lines
    assert ["random", LINEAR, "1", "1.650 ± 0.212", "[1.399, 2.001]", "0.50 ± 0.00", "0.40 ± 0.00"] in lines
    assert ["the paper's", LINEAR, "∞", "–", "–", "0.49", "–"] in lines
    assert [BOTH, LINEAR, "∞", "–", "–", "14.5 ± 0.7 of 16"] in lines
    linear, _, usable = made.figures["supervised_autoencoder"].axes
    of_rotation = next(line for line in linear.lines if line.get_label() == f"{ROTATION}, linear decoder")
    # λ = 0, 0.25 and ∞; the training at ∞ has no labels and stands for both.
    assert of_rotation.get_ydata().tolist() == pytest.approx([55, 55, 55])
    assert np.round(of_rotation.get_xdata()).tolist() == [0, 1, 3]
    assert [tick.get_text() for tick in usable.get_xticklabels()] == ["0", "0.25", "1", "∞"]
    assert max(len(line) for line in made.text.splitlines() if line.startswith("|")) <= 100


def test_the_paper_s_numbers_are_of_cases_that_the_study_has():
    assert {weight for *_, weight in PAPER} == {*WEIGHTS}
    assert len(PAPER) == 14
    assert all(len(of) == 5 for of in PAPER.values())


SHRUNK = """
from mirigor_jax.config_files import load_config
def get_config(arg):
    config, _ = load_config("configs/studies/supervised_autoencoder.py:seeds=1,images=32,times=0.25")
    chosen = [place for place, cell in enumerate(config.study.cells) if cell["tags"]["weight"] in WEIGHTS][-2:]
    config.study.cells = tuple(config.study.cells[place] for place in chosen)
    config.study.fits = tuple(config.study.fits[place] for place in chosen)
    for cell, fit in zip(config.study.cells, config.study.fits):
        cell["run"].update(SMALL)
        fit.update({"epoch": 2} | ({"width": 16, "k": 32, "epochs": 2} if "epochs" in fit else {}))
    return config
"""


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.usefixtures("shallow", "undrawn")
def test_the_shrunk_study_measures_with_and_without_a_pretext_task(garments, tmp_path):
    small = {key: ast.literal_eval(value) for key, value in IMAGES.items()} | {
        "data.source": garments, "data.size": 8, "encoder.width": 4, "train.k": 16,
        "train.steps": 8, "train.checkpoint_every": 2, "features.validation": None, "features.test": None,
        "features.unseen": 300, "estimate.k": 32, "evaluate.mlp_steps": 100, "train.learning_rate": 0.01,
    }  # fmt: skip
    text = SHRUNK.replace("SMALL", repr(small)).replace("WEIGHTS", "(None, 0.25)")
    (tmp_path / "shrunk.py").write_text(text)
    command = [f"--config={tmp_path / 'shrunk.py'}", f"--workdir={tmp_path / 'study'}"]
    assert main(command) == 0
    rows = json.loads((tmp_path / "study" / "study.json").read_text())["fits"]["rows"]
    assert [row["weight"] for row in rows] == [None, 0.25]
    for row in rows:
        assert row["usable_lower_bits"] <= row["usable_bits"] <= row["usable_upper_bits"] <= 2.001
        assert 0 < row["reconstruction"] < 20
        assert row["chosen_epoch"] in (1.0, 2.0, 3.0, 4.0)
    alone, labeled = rows
    assert (alone["fit_accuracy"], alone["js_bits"]) == (None, None)  # by the MLP decoder
    assert 0 <= labeled["held_out_accuracy"] <= 1
    assert labeled["js_bits"] < 3
    assert "## What the last stage holds" in (tmp_path / "study" / "study.md").read_text()
