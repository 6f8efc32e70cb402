"""Restore a run folder made at 53dad59, when settings had other names: its encoder and critic give the same numbers."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mirigor_jax.main import main
from mirigor_jax.runs import renamed

MADE = Path(__file__).parent / "data" / "run_of_53dad59.tar.xz"


@pytest.fixture
def old_run(tmp_path) -> Path:
    """A CDP run of six steps with a ResNet-18 of width 2; it has the last checkpoint and no figures."""
    with tarfile.open(MADE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run_of_53dad59"


def read(folder: Path) -> dict:
    """An estimate of the run."""
    return json.loads((folder / "estimate.json").read_text())


def nt_xent(estimate: dict) -> dict[str, float]:
    """K → the NT-Xent estimate from the critic with the head's architecture, in bits."""
    return {k: reading["bits"] for k, reading in estimate["curve"]["nt_xent"]["at"].items()}


@pytest.mark.parametrize(("size", "share"), [(64, 0.3), (None, 0.0)])
def test_a_jitter_in_pixels_becomes_a_share_which_other_images_do_not_have(old_run, size, share):
    config = json.loads((old_run / "config.json").read_text())
    config["data"]["jitter"] = 3
    config["data"]["size"] = size  # None: that of a set of images
    assert renamed.current(config)["data"]["cdp"]["jitter"] == pytest.approx(share)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_run_of_older_names_is_restored_and_re_estimated_to_the_same_numbers(old_run):
    """The numbers are those of versions up to 317bf53, from the head's critic on the old settings' draws."""
    config = "--config=configs/estimate.py:pairing=all,k_est=32,seed=3"
    assert main([config, f"--config.restore={old_run}"]) == 0
    target = old_run / "estimates" / "all-seed=3-k=32"
    # The encoder is the one that was trained: representations of the 64 test pairs' first views, by column.
    h_x = np.load(target / "features" / "test.npz")["h_x"]
    np.testing.assert_allclose(h_x.mean(axis=0)[:4], [0.2648317, 0.0048475, 0.0793761, 0.0015981], atol=1e-5)
    np.testing.assert_allclose(h_x[1, :3], [0.1217774, 0.0, 0.0655376], atol=1e-5)
    # So is the head's critic, fitted by the same steps, and what the NT-Xent estimate reads off it.
    estimate, rows = read(target), [json.loads(row) for row in (target / "fit.jsonl").read_text().splitlines()]
    assert nt_xent(estimate) == pytest.approx({"16": -2.8175391, "32": -2.8837289}, abs=1e-4)
    assert [row["validation_bits"] for row in rows] == pytest.approx([-2.1490364, -2.0151694], abs=1e-4)
    # InfoNCE and the certificates are of a critic that starts from a class posterior, which is not that bad.
    assert (estimate["k"], estimate["certificate"], estimate["shared"]) == (
        32,
        "posterior",
        ["color", "digit", "position"],
    )
    assert estimate["lower_bits"] == 0.0 <= estimate["value_bits"] < estimate["upper_bits"] == 4.0
    assert -0.3 < estimate["info_nce_bits"] < estimate["max_info_nce_bits"] < 4.0
    counts = {name: certified["counts"] for name, certified in estimate["certificates"].items()}
    assert counts["posterior"] == {"pairs": 64}
    assert counts["classifier"] == {"errors": pytest.approx(54, abs=3), "images": 64}  # processors round otherwise
    with np.load(target / "batches.npz") as batches:
        assert set(batches) == {"16", "32"}
        assert batches["32"].mean() == pytest.approx(estimate["info_nce_bits"])
    # The run's own estimate stands beside it, read again from the head's critic of that time.
    own = read(old_run / "estimates" / "color")
    assert nt_xent(own) == pytest.approx({"16": -4.0650784, "32": -4.2734251, "64": -4.2469974}, abs=1e-4)
    assert own["nt_xent_bits"] == nt_xent(own)["32"]
    assert own["certificates"]["classifier"]["counts"] == {"errors": pytest.approx(26, abs=4), "images": 64}
    report = json.loads((old_run / "report.json").read_text())
    assert set(report["estimates"]) == {"color", "all-seed=3-k=32"}
    accuracies = {"color": 0.6171875, "digit": 0.4609375, "position": 0.3203125, "all": 0.1484375}
    assert report["linear"] == pytest.approx(accuracies)
