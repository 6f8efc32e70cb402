"""The study `patches`: its table and picture, and one shrunk run of it."""

import json

import pytest

from mirigor_jax.main import main
from mirigor_jax.studies import patches


def made(bits, lower):
    return {
        "bits": bits,
        "seed": 0,
        "seconds": 12.3,
        "lower_bits": lower,
        "confidence": 0.95,
        "at_k": {64: bits - 0.5, 256: bits - 0.25},
        "most_at_k": {64: bits - 0.4, 256: bits - 0.2},
        "nt_xent_bits": bits + 0.3,
        "nt_xent_k": 256,
        "usable_lower_bits": None if bits == 4 else lower,
        "usable_upper_bits": bits,
    }


def test_the_table_has_a_line_a_run_in_order_of_the_truth():
    text = patches.table([made(4, 3.9996), made(2, 1.5)]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text[:4]]
    assert cells[0] == ["truth", "K = 64", "K = 256", "NT-Xent", "certified", "usable", "time, s"]
    assert cells[2] == ["2", "1.50 (1.60)", "1.75 (1.80)", "2.300", "[1.500, 2.000]", "[1.500, 2.000]", "12"]
    assert cells[3][4:6] == ["[3.999, 4.000]", "–"]


def test_the_picture_shows_every_run():
    [left, right] = patches.draw([made(4, 3.9), made(2, 1.5)])["patches"].axes
    certified = next(line for line in left.lines if line.get_label() == "certified: at least")
    assert certified.get_ydata().tolist() == [1.5, 3.9]
    assert len(right.lines) == 4


@pytest.mark.slow
def test_a_shrunk_study(tmp_path):
    changes = {
        "encoder.name": "mlp",
        "encoder.width": None,
        "encoder.stem": None,
        "data.size": 16,
        "train.steps": 30,
        "train.k": 32,
        "estimate.steps": 50,
        "estimate.batch_size": 64,
        "features.fit": 512,
        "features.validation": 512,
    }
    arguments = ["--config=configs/studies/binary_patches.py:bits=1+2,k=64+1024", f"--workdir={tmp_path}"]
    assert main([*arguments, *(f"--config.run.{key}={value}" for key, value in changes.items())]) == 0
    rows = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert [one["bits"] for one in rows] == [1, 2]
    for one in rows:
        assert one["lower_bits"] <= one["bits"]
        assert one["at_k"].keys() == {"64", "256", "1024"}  # NT-Xent is read at 256
