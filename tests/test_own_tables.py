"""A user's config file adds one entry to every table, and the command runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small import IMAGES, options, quick_environment

# None of these is the package's.
OWN = '''
import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import common
from mirigor_jax import metrics, mi, models, objectives
from mirigor_jax.config_files import load_config
from mirigor_jax.data.pairing import PAIRINGS, same_class
from mirigor_jax.data.sources.parts import numbered
from mirigor_jax.data.sources.table import SOURCES, FiniteSource
from mirigor_jax.studies.table import STUDIES, Study


class Mean(nn.Module):
    """A linear map of the image's mean color."""

    dtype: str = "float32"
    features: int = 4

    @nn.compact
    def __call__(self, images, train, stages=False):
        del train
        h = nn.Dense(self.features)(jnp.mean(images, axis=(1, 2)))
        return {"h": h} if stages else h


def squared(options):
    """The mean squared distance of a pair's outputs."""
    del options
    return objectives.Objective(lambda z_x, z_y: jnp.mean(jnp.sum((z_x - z_y) ** 2, axis=1)))


def stripes(argument, size):
    """Four classes of images, each a gray level."""
    classes = (np.arange(1200) % int(argument)).astype(np.int32)
    images = np.broadcast_to(60 * classes.astype(np.uint8)[:, None, None, None], (1200, size, size, 3))
    return {"train": numbered(classes, lambda rows: images[rows])}, tuple("abcd")


def multiple(name, times):
    """InfoNCE so many times over, which no table but this one has."""
    usual = mi.estimators.info_nce_symmetric()
    told = {"name": name, "heading": f"{times} × InfoNCE", "kind": "not a bound", "note": "for a test"}
    return dataclasses.replace(usual, **told, value=lambda p, n: times * usual.value(p, n))


def widest(inputs):
    """The largest norm of a representation."""
    return float(np.linalg.norm(inputs.h, axis=1).max())


models.ENCODERS["mean"] = Mean
objectives.OBJECTIVES["squared"] = squared
SOURCES["stripes"] = FiniteSource(stripes, argument="CLASSES")
PAIRINGS["halves"] = lambda space: same_class(space, lambda a: a[:, 0] // 2, 2, shared=("half of the values",))
mi.ESTIMATORS["once"] = lambda: multiple("once", 1)
mi.ESTIMATORS["doubled"] = lambda: multiple("doubled", 2)
metrics.METRICS["widest"] = metrics.Metric("largest norm", "lower", "", ("labels",), widest)


def row(report, folder):
    return {"bits": report.estimate.info_nce_bits}


STUDIES["halved"] = Study(row, lambda rows: f"rows: {len(rows)}", lambda rows: {"mine": Figure()})


def settings(config):
    config.data.source, config.data.pairing, config.data.size = "stripes:4", "halves", 8
    config.encoder.name, config.train.objective = "mean", "squared"
    config.encoder.width = None
    config.estimate.estimators = ("info_nce_symmetric", "once", "doubled")
    config.evaluate.metrics, config.evaluate.mlp_steps = True, 200
    return config


def get_config(arg):
    if arg == "run":
        return settings(load_config("configs/cdp.py")[0].unlock())
    config = common.study("halved", "laptop").unlock()
    config.run = settings(config.run)
    config.study.cells = tuple({"name": f"k={k}", "run": {"train.k": k}} for k in (2, 4))
    return config
'''
SMALL = {**IMAGES, "train.steps": 4, "estimate.k": 32}


def run_own(folder: Path, what: str, *arguments: str, prefix: str = "") -> Path:
    """Run the user's own config file. Returns the run's folder."""
    config = folder / "own.py"
    config.write_text(OWN)
    command = [sys.executable, "-W", "error", "-m", "mirigor_jax.main", f"--config={config}:{what}"]
    command += [*options(SMALL, prefix), *arguments, f"--workdir={folder / 'run'}"]
    done = subprocess.run(command, env=quick_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.slow
def test_one_entry_adds_an_estimator_encoder_metric_source_pairing_and_objective(tmp_path):
    folder = run_own(tmp_path, "run", "--config.train.k=8")
    report = json.loads((folder / "report.json").read_text())
    assert list(report["estimates"]) == ["halves"]
    # Both are read off the same critic, with the head's architecture; the package's own InfoNCE reads another.
    usual, once, doubled = (curve["at"] for curve in report["estimate"]["curve"].values())
    assert usual.keys() == once.keys() == doubled.keys() == {"16", "32"}
    for k, reading in doubled.items():
        assert reading["bits"] == pytest.approx(2 * once[k]["bits"], rel=1e-5)
        assert reading["bits"] != 0
    assert report["truth"]["shared"] == ["half of the values"]
    assert json.loads((folder / "train" / "summary.json").read_text())["objective"] == "squared"
    assert report["metrics"]["widest"] > 0
    text = (folder / "report.md").read_text()
    for words in ("1 × InfoNCE", "2 × InfoNCE", "largest norm ↓"):
        assert words in text


@pytest.mark.slow
def test_one_entry_adds_a_study(tmp_path):
    folder = run_own(tmp_path, "study", prefix="run.")
    assert "rows: 2" in (folder / "study.md").read_text()
    rows = json.loads((folder / "study.json").read_text())["rows"]
    assert [row["cell"] for row in rows] == ["k=2", "k=4"]
