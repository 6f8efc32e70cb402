"""One engine for one number: runs, `mi.estimate_labels`, `mi.monitor` and `mi.measure` agree field by field."""

import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from mirigor_jax import config_files, mi
from mirigor_jax.files import plain
from mirigor_jax.main import main
from mirigor_jax.mi import measure
from mirigor_jax.mi.results import LabelEstimate
from mirigor_jax.runs.estimate import class_parts
from mirigor_jax.runs.features import load
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import parse

STEPS = 100
# Rows of each class, how far its own column is from 0 where the noise is 1, K and the seed.
CASES = {
    "unbalanced": ((1203, 697, 461), 3.0, 64, 3),
    "balanced": ((500, 500, 500, 500), 8.0, 100, 0),
}


def features(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Float32 rows in random order and their classes, whose names are not numbers from 0."""
    counts, distance, *_ = CASES[case]
    rng = np.random.default_rng(0)
    classes = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    h = rng.normal(size=(len(classes), 5))
    h[np.arange(len(h)), classes] += distance
    return h.astype(np.float32), 10 * classes + 7


@pytest.fixture(scope="module", params=[pytest.param("balanced", marks=pytest.mark.slow), "unbalanced"])
def measured(request) -> tuple[str, LabelEstimate]:
    *_, k, seed = CASES[request.param]
    return request.param, mi.estimate_labels(*features(request.param), k=k, seed=seed, steps=STEPS)


def run_on_features(folder: Path, case: str) -> dict:
    """Run `configs/encoder.py` on a file of these features with the library's defaults. Returns its estimate."""
    h, labels = features(case)
    *_, k, seed = CASES[case]
    np.savez(folder / "h.npz", h=h, labels=labels)
    settings = {
        "data.source": f"features:{folder / 'h.npz'}",
        "estimate.steps": STEPS,
        "estimate.nt_xent_k": 8,
        "estimate.k_curve": "(16,)",
        "evaluate.metrics": False,
    }
    command = [f"--config=configs/encoder.py:k_est={k},seed={seed}", f"--workdir={folder / 'run'}"]
    assert main([*command, *(f"--config.{key}={value}" for key, value in settings.items())]) == 0
    return json.loads((folder / "run" / "estimates" / "class" / "estimate.json").read_text())


def told(result: LabelEstimate) -> dict:
    """The estimate's fields under their names in estimate.json. `reading` is its whole InfoNCE reading."""
    names = ("value_bits", "lower_bits", "upper_bits", "interval", "certificate", "certificates", "verdict")
    names += ("entropy_bits", "info_nce_bits", "confidence", "k")
    fields = {name: getattr(result, name) for name in names}
    return flat(plain(fields | {"statistic": result.name, "reading": result.info_nce}))


def written(entry: dict) -> dict:
    """The same fields from an estimate.json."""
    reading = entry["curve"]["info_nce_symmetric"]["at"][str(entry["k"])]
    return flat(entry | {"reading": reading})


def flat(value: dict, name: str = "") -> dict:
    """Dotted path → number or word, for all leaves of a nested dictionary."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: one for inner, x in value.items() for key, one in flat(x, f"{name}.{inner}").items()}


def assert_same(ours: dict, theirs: dict, tolerance: float) -> None:
    """Check that theirs has every field of ours, with the same value."""
    assert ours.keys() <= theirs.keys()
    assert len(ours) > 30
    for name, value in ours.items():
        expected = pytest.approx(value, rel=0, abs=tolerance) if isinstance(value, float) else value
        assert theirs[name] == expected, name


@pytest.mark.slow
@pytest.mark.compiles
def test_a_run_on_features_is_estimate_labels(measured, tmp_path):
    """All fields agree, except for the last digit of H(C), which the two sum in different orders."""
    case, result = measured
    assert_same(told(result), written(run_on_features(tmp_path, case)), tolerance=1e-12)
    assert result.value_bits > result.lower_bits > 0.8


def test_a_monitor_with_labels_is_estimate_labels(measured):
    case, result = measured
    h, labels = features(case)
    *_, k, seed = CASES[case]
    batches = [(h[rows], labels[rows]) for rows in np.split(np.arange(len(h)), [1000, 1500])]
    monitored = mi.monitor(lambda scale, x: scale * x, batches, k=k, seed=seed, steps=STEPS)
    assert monitored(np.float32(1)) == result


def test_measure_of_a_run_s_own_features_is_its_estimate(cdp_run):
    """The pairs of the run were drawn as pairs, in another process."""
    config = ConfigDict(json.loads((cdp_run / "config.json").read_text()))
    e = config.estimate
    options = measure.Options(k=e.k, seed=config.seed, steps=e.steps, batch_size=e.batch_size)
    result = measure.measure(class_parts(parse(config), load(RunFolder(cdp_run / "features"))), options).estimate
    run = json.loads((cdp_run / "estimates" / "color" / "estimate.json").read_text())
    assert_same(told(result), written(run), tolerance=1e-6)


@pytest.mark.parametrize("name", ["encoder", "images"])
def test_a_config_for_labeled_sets_measures_as_the_library_does_by_default(name):
    config = config_files.load_config(f"configs/{name}.py")[0]
    ours, e = measure.Options(k=2), config.estimate
    fields = ("steps", "batch_size", "confidence", "tolerance_bits")
    values = {field: getattr(ours, field) for field in fields if name == "encoder" or field != "steps"}
    assert {field: e[field] for field in values} == values
    assert config.seed == ours.seed
