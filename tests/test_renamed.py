"""A run folder made at 53dad59, when settings had other names, is re-estimated as 53dad59 itself re-estimated it."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mirigor_jax.main import main

MADE = Path(__file__).parent / "data" / "run_of_53dad59.tar.xz"


@pytest.fixture
def old_run(tmp_path) -> Path:
    """A CDP run of a ResNet-18 of width 2, six steps long, with its last checkpoint and without figures."""
    with tarfile.open(MADE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run_of_53dad59"


def batch_bits(folder: Path, k: int) -> np.ndarray:
    """InfoNCE of every batch of k test pairs."""
    return np.load(folder / "batches.npz")[str(k)]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_run_of_older_names_is_restored_and_re_estimated_to_the_same_numbers(old_run):
    config = "--config=configs/estimate.py:pairing=all,k_est=32,seed=3"
    assert main([config, f"--config.restore={old_run}"]) == 0
    target = old_run / "estimates" / "all-seed=3-k=32"
    # The encoder is the one that was trained: representations of the 64 test pairs' first views, by column.
    h_x = np.load(target / "features" / "test.npz")["h_x"]
    np.testing.assert_allclose(h_x.mean(axis=0)[:4], [0.2648317, 0.0048475, 0.0793761, 0.0015981], atol=1e-5)
    np.testing.assert_allclose(h_x[1, :3], [0.1217774, 0.0, 0.0655376], atol=1e-5)
    # So are its critic and what is read of it: the mean over the batches of K pairs is the estimate.
    np.testing.assert_allclose(batch_bits(target, k=32).mean(), -2.7720332, atol=1e-4)
    np.testing.assert_allclose(batch_bits(target, k=16).mean(), -2.6797298, atol=1e-4)
    estimate = json.loads((target / "estimate.json").read_text())
    expected = {"t_lower_bits": -3.2485438, "t_upper_bits": -2.2955227, "lower_bits": 0.0, "upper_bits": 4.0}
    assert {name: estimate[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert (estimate["k"], estimate["certificate"], estimate["fit"]["best_step"]) == (32, "posterior", 20)
    # The run's own estimate stands beside it: as it was, or read again from the critic of that time.
    np.testing.assert_allclose(batch_bits(old_run / "estimates" / "color", k=64).mean(), -4.2404228, atol=1e-4)
    report = json.loads((old_run / "report.json").read_text())
    assert set(report["estimates"]) == {"color", "all-seed=3-k=32"}
    assert report["linear"]["color"] == pytest.approx(0.6171875)
