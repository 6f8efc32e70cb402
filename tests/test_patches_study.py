"""The study `patches`: its table and picture, and one shrunk run of it."""

import json

import jax
import numpy as np
import pytest

from mirigor_jax.main import main
from mirigor_jax.studies import patches, patches_fits


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


def critic_row(bits, critic, info_nce, seed=0):
    values = {"info_nce_symmetric_bits": info_nce, "nwj_bits": 7.0, "anchor_bits": bits + 0.25}
    known = {"k": 64, "pairs": 320, "confidence": 0.95, "lower_bits": info_nce - 0.2}
    return {"bits": bits, "critic": critic, "seed": seed, **known, **values}


def test_the_table_of_critics_has_a_line_for_each_truth_and_critic():
    rows = [critic_row(4, "inner", 3.0), critic_row(2, "inner", 1.0), critic_row(2, "inner", 2.0, seed=1)]
    lines = patches_fits.table(rows).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[0] == ["truth", "critic", "InfoNCE", "NWJ", "anchor", "certified: at least"]
    assert cells[2] == ["2", "inner", "1.500 ± 0.707", "7.000 ± 0.000", "2.250 ± 0.000", "0.800"]
    assert cells[3] == ["4", "inner", "3.000", "7.000", "4.250", "2.800"]
    gone = patches_fits.table([{**critic_row(4, "inner", 3.0), "nwj_bits": -5.4844e13}])
    assert "| 4 | inner | 3.000 | -5.5e+13 | 4.250 | 2.800 |" in gone


def test_the_figure_of_critics_has_a_line_for_each_critic_of_each_estimator():
    rows = [critic_row(bits, critic, bits - 0.5) for bits in (2, 4) for critic in ("inner", "joint, 16", "joint, 64")]
    axes = patches_fits.draw(rows).axes
    assert [ax.get_title(loc="left") for ax in axes] == ["InfoNCE, bits", "NWJ, bits", "anchor, bits"]
    lines = {line.get_label(): line for line in axes[0].lines}
    assert lines["joint, 64"].get_ydata().tolist() == [1.5, 3.5]
    assert lines["joint, 16"].get_color() == lines["joint, 64"].get_color()
    assert lines["joint, 16"].get_marker() != lines["joint, 64"].get_marker()


def test_the_inner_critic_scores_given_pairs_as_all_pairs():
    x, y = jax.numpy.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), "float32")
    critic = patches_fits.InnerCritic()
    params = critic.init(jax.random.key(0), x, y, method="scores")
    products = np.asarray(x) @ np.asarray(y).T / 3
    every = critic.apply(params, x, y, method="scores")
    assert np.asarray(every) == pytest.approx(products, rel=1e-5, abs=1e-6)
    partners = jax.numpy.array([[1, 4], [0, 2], [3, 3], [1, 0], [2, 4]])
    some = critic.apply(params, x, y, partners, method="scores")
    assert np.asarray(some) == pytest.approx(
        np.take_along_axis(products, np.asarray(partners), axis=1), rel=1e-5, abs=1e-6
    )


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
    arguments = [
        "--config=configs/studies/binary_patches.py:bits=2,k=64+1024,widths=4,steps=100",
        f"--workdir={tmp_path}",
    ]
    assert main([*arguments, *(f"--config.run.{key}={value}" for key, value in changes.items())]) == 0
    rows = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert [one["bits"] for one in rows] == [2]
    for one in rows:
        assert one["lower_bits"] <= one["bits"]
        assert one["at_k"].keys() == {"64", "256", "1024"}  # NT-Xent is read at 256
    text = (tmp_path / "study.md").read_text()
    assert text.count("| joint, 4 ") == text.count("| inner ") == 1
    assert (tmp_path / "figures" / "patches_critics.png").exists()
