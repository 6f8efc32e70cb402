"""The study `nuisance`: its grid, its table and picture, and a shrunk run through main."""

import json
from pathlib import Path

import numpy as np
import pytest
from small import estimate_entry, image_report, study

from mirigor_jax import config_files
from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.mi.certificates import classifier_lower_bits
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import parse
from mirigor_jax.studies import grid, nuisance

CONFIG = "configs/studies/nuisance.py"
STRENGTHS = ("mixing", "clutter", "blur", "noise", "jitter")


def test_each_run_has_one_nuisance_at_one_strength():
    config, *_ = config_files.parse([f"--config={CONFIG}:seeds=2"])
    cells = grid.cells_of(config, RunFolder(Path("x")))
    assert len(cells) == 2 * (1 + 5 + 4 * 4)
    fits = {fit["run"]: fit for fit in config.study.fits}
    assert len(fits) == len(cells)
    usual = parse(cells[0].config).config.data.cdp
    assert cells[0].name == "none-seed=0"
    for cell in cells:
        fit, changed = fits[cell.name], {n: cell.config.data.cdp[n] for n in STRENGTHS}
        assert cell.config.seed == fit["seed"]
        if fit["nuisance"] != nuisance.NONE:
            assert changed.pop(fit["nuisance"]) == fit["strength"]
        assert changed == {name: usual[name] for name in changed}
        assert cell.config.data.pairing == "all"
    assert {fit["strength"] for fit in fits.values() if fit["nuisance"] == "mixing"} == {0.0, 0.25, 0.5, 0.75, 1.0}


@pytest.mark.parametrize("wrong", ["strengths=0", "strengths=0.5+1.5"])
def test_a_strength_out_of_its_limits_is_an_error(wrong):
    with pytest.raises(InputError, match="strengths="):
        config_files.parse([f"--config={CONFIG}:{wrong}"])


def fit_row(kind: str, strength: float, seed: int, lower_bits: float) -> dict:
    config = {"encoder": {"name": "resnet18"}, "data": {"pairing": "all"}, "train": {"k": 64, "steps": 9}, "seed": seed}
    entry = estimate_entry(value_bits=5.5, lower_bits=lower_bits, upper_bits=6.0)
    done = image_report(config, {"all": entry}, linear={"color": 1.0, "digit": 0.5, "position": 1.0, "all": 0.75})
    known = {"nuisance": kind, "strength": strength, "seed": seed, "nwj_bits": 4.0 + seed, "anchor_bits": 7.25}
    oracle = {"oracle_errors": 0, "oracle_images": 2048, "oracle_bits": 5.9759, "confidence": 0.95}
    return {**known, **nuisance.row(done, Path()), **oracle, "usable_lower_bits": 3.25}


def test_the_table_has_the_least_ends_and_the_mean_estimates():
    rows = [
        fit_row("noise", 1.0, 0, 4.1239),
        fit_row("noise", 1.0, 1, 4.5),
        fit_row("blur", 0.5, 0, 5.0),
        fit_row("none", 0.0, 0, 5.9),
    ]
    lines = [line.split(" | ") for line in nuisance.table(rows).splitlines() if line.startswith("| ")][1:]
    lines = [line for line in lines if not line[0].startswith("| --")]
    assert [line[0] for line in lines] == ["| none", "| blur", "| noise"]
    noise = lines[-1]
    assert noise[1:5] == ["1", "2", "6.000", "≥ 5.975"]
    assert noise[6] == "[4.123, 6.000]"
    assert noise[9:11] == ["4.500 ± 0.707", "7.250 ± 0.000"]
    assert noise[11] == "≥ 3.250"


def test_the_picture_starts_each_nuisance_at_the_images_without_it():
    rows = [fit_row("none", 0.0, 0, 5.9), fit_row("noise", 1.0, 0, 4.0), fit_row("mixing", 0.0, 0, 5.0)]
    noise, mixing = nuisance.picture(rows).axes

    def drawn(ax) -> list:
        return {line.get_label(): line.get_xydata().tolist() for line in ax.lines}["NWJ"]

    assert drawn(noise) == [[0.0, 4.0], [1.0, 4.0]]
    assert drawn(mixing) == [[0.0, 4.0]]
    assert len(nuisance.picture(rows[:1]).axes) == 1


@pytest.mark.slow
def test_a_shrunk_study_runs_and_continues(tmp_path, capsys):
    config = f"{CONFIG}:nuisances=noise,strengths=1.0,pairs=384"
    command = study(config, tmp_path, "--config.run.data.pairing=color")
    assert main(command) == 0
    rows = json.loads((tmp_path / "study.json").read_text())["fits"]["rows"]
    assert [(row["nuisance"], row["strength"]) for row in rows] == [("none", 0.0), ("noise", 1.0)]
    for row in rows:
        assert row["entropy_bits"] == 1.0  # the pairs share one of two colors
        assert row["lower_bits"] <= row["upper_bits"] == 1.0
        expected = classifier_lower_bits(row["oracle_errors"], 2048, np.full(2, 0.5), 0.95)
        assert row["oracle_bits"] == pytest.approx(expected)
        assert row["oracle_bits"] > 0.9
    assert (tmp_path / "figures" / "nuisance.png").is_file()
    assert "| noise | 1 | 1 | 1.000 |" in (tmp_path / "study.md").read_text()
    capsys.readouterr()
    assert main(command) == 0
    assert "2 of these finished before" in capsys.readouterr().out
