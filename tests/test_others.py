"""The study others: its cells, its table and picture from made rows, and the whole by `main` on a small set."""

import json

import numpy as np
import pytest
from small import IMAGES, options

from mirigor_jax import config_files
from mirigor_jax.main import main
from mirigor_jax.objectives import OBJECTIVES
from mirigor_jax.studies import others
from mirigor_jax.studies.grid import configs_of

CONFIG = "configs/studies/others.py"


def made_row(case: str, seed: int, accuracy: float, lower: float, steps: int = 400) -> dict:
    """A run's row whose estimates lie 0.1 bits above their certified lower ends."""
    ends = {"usable_bits": lower - 0.1, "usable_lower_bits": lower - 0.2, "usable_upper_bits": lower}
    bits = {"value_bits": lower + 0.1, "lower_bits": lower, "entropy_bits": 3.322}
    return (
        {"cell": f"{case}-{seed}", "case": case, "set": "s", "seed": seed, "steps": steps, "accuracy": accuracy}
        | ends
        | bits
    )


ROWS = [
    made_row("untrained", 0, 0.60, 1.0, steps=0),
    made_row("untrained", 1, 0.62, 1.1, steps=0),
    made_row("SimCLR", 0, 0.80, 2.0),
    made_row("SimCLR", 1, 0.81, 2.1),
    made_row("BYOL", 0, 0.70, 1.8),
    made_row("BYOL", 1, 0.66, 1.9),
]


def test_gains_are_over_the_untrained_net_of_the_same_seed():
    np.testing.assert_allclose(others.gains(ROWS), [0, 0, 20, 19, 10, 4])
    assert others.gains(ROWS[2:]) == [None] * 4


def test_ranks_are_of_trained_runs():
    # Of six pairs of runs, only the two of BYOL are ordered otherwise.
    assert others.kendall(ROWS, "lower_bits") == pytest.approx(4 / 6)
    assert others.kendall(ROWS[:4], "lower_bits") is None
    assert others.kendall([{**row, "usable_lower_bits": None} for row in ROWS], "usable_lower_bits") is None


def test_the_table_says_who_gained_too_little():
    text = others.table(ROWS)
    assert "| SimCLR | 2 | 80.5 ± 0.7 | 19.5 ± 0.7 | 2.15 ± 0.07 | ≥ 2.000 | 1.95 ± 0.07 | [1.800, 2.100] |" in text
    assert "| untrained | 2 | 61.0 ± 1.4 | – |" in text
    assert "Below a gain of 5 points at some seed: BYOL." in text
    assert "I_class: τ = 0.67; usable: τ = 0.67." in text
    alone = others.table(ROWS[2:4])
    assert "Below a gain" not in alone
    assert "τ =" not in alone
    assert max(map(len, text.split("\n\n")[0].splitlines())) <= 100


def test_the_picture_has_a_mark_for_each_run_and_h_of_c():
    for ax, column in zip(others.draw(ROWS)["others"].axes, ("lower_bits", "usable_lower_bits"), strict=True):
        marks, entropy = ax.lines[:-1], ax.lines[-1]
        assert [line.get_label() for line in marks] == ["untrained", "SimCLR", "BYOL"]
        np.testing.assert_allclose(marks[2].get_xydata(), [[100 * row["accuracy"], row[column]] for row in ROWS[4:]])
        assert entropy.get_ydata()[0] == 3.322


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_each_objective_trains_an_encoder_and_none_begins_otherwise(scale):
    config, *_ = config_files.load_config(f"{CONFIG}:scale={scale},seeds=2")
    runs = configs_of(config.run, config.study.cells)
    assert len(runs) == 2 * len(others.CASES) == 14
    for cell, run in zip(config.study.cells, runs, strict=True):
        assert run.train.objective in OBJECTIVES
        assert (run.train.steps == 0) == (cell["tags"]["case"] == "untrained")
        assert (run.data.pairing, tuple(run.estimate.extra_pairings)) == ("simclr", ("class",))
    assert len({run.train.objective for run in runs}) == 6
    assert len({(run.encoder.name, run.encoder.width, run.train.k) for run in runs}) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_study_trains_and_measures_every_objective(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(1500) % 3
    images = (60 * labels[:, None, None] + rng.integers(0, 60, (1500, 8, 8))).astype(np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    small = {
        "data.source": f"npz:{tmp_path / 'set.npz'}",
        "data.size": 8,
        "data.images": 300,
        "encoder.name": "mlp",
        "encoder.width": None,
        "features.fit": 200,
        "features.validation": None,
        "features.unseen": 100,
        "train.k": 16,
        "train.patch": 4,
        "train.warmup_steps": 0,
        "estimate.k": 32,
    }
    folder = tmp_path / "study"
    command = [f"--config={CONFIG}:pairs=512,seeds=1", f"--workdir={folder}", *options(IMAGES | small, "run.")]
    assert main(command) == 0
    study = json.loads((folder / "study.json").read_text())
    assert (study["finished"], study["failures"]) == (7, {})
    by_case = {row["case"]: row for row in study["rows"]}
    assert set(by_case) == {title for _, title in others.CASES.values()}
    for name, (_, title) in others.CASES.items():
        train = folder / f"{name}-seed=0" / "train"
        summary = json.loads((train / "summary.json").read_text())
        assert ("mi_bits" in summary) == (title == "SimCLR"), title  # no other loss stands for MI
        assert by_case[title]["lower_bits"] <= by_case[title]["value_bits"] <= 1.585
    # The same command finishes at once, from the folders that are there.
    assert main(command) == 0
