"""Helpers of several test files: shrunk commands of the shipped configs, a user's environment, this machine's speed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax

from mirigor_jax.mi.certify import Certified
from mirigor_jax.mi.confidence import BATCHES, ERRORS, Interval
from mirigor_jax.mi.results import Curve, Reading
from mirigor_jax.runs.schema import EstimateEntry, Fit, History, ImageReport, InTraining, Run, Truth

# The older code generator of XLA:CPU compiles in half the time, if this jaxlib still has it: 0.12 does not.
QUICK_FLAGS = "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""

# Settings of every shrunk run on images, by their keys in the run's config.
IMAGES = {
    "features.batch_size": "64",
    "estimate.nt_xent_k": "32",
    "estimate.k_curve": "(16,)",
    "estimate.batch_size": "32",
    "estimate.steps": "20",
    "estimate.eval_every": "10",
    "evaluate.l2": "(1e-3,)",
}
# Options for the encoder: a narrow ResNet has BatchNorms that span the devices; LeNet compiles in a fifth of the time.
RESNET, LENET = "--config.encoder.width=4", "--config.encoder.name=lenet5"


def options(values: dict[str, object], prefix: str = "") -> list[str]:
    """The command-line overrides `--config.KEY=VALUE` of these settings. prefix: stands before each key."""
    return [f"--config.{prefix}{key}={value}" for key, value in values.items()]


def cdp(*arguments: str, encoder: str = LENET) -> list[str]:
    """Arguments of a CDP run that takes seconds. It has two classes, few enough for 128 test pairs to certify."""
    small = {
        "data.size": 32,
        "data.pairing": "color",
        "data.cdp.colors": 2,
        "train.k": 8,
        "train.steps": 6,
        "train.checkpoint_every": 1,
        "features.fit": 512,
        "features.validation": 64,
        "features.test": 128,
        "estimate.k": 64,
    }
    return ["--config=configs/cdp.py", *options(IMAGES | small), encoder, *arguments]


def image_set(source: str, folder: Path, *arguments: str, pairing: str = "class") -> list[str]:
    """Arguments of a run that trains an MLP on a set of small images in seconds, without the metrics."""
    config = f"--config=configs/images.py:data={source},encoder=mlp,k=8,steps=6,pairing={pairing}"
    small = {"train.checkpoint_every": 3, "estimate.k": 32, "evaluate.metrics": False}
    return [config, f"--workdir={folder}", *options(IMAGES | small), *arguments]


def encoder(source: str, folder: Path, *arguments: str) -> list[str]:
    """Arguments of a run that measures a given encoder, or features, in seconds, without the metrics."""
    small = options(IMAGES | {"estimate.k": 32, "evaluate.metrics": False})
    return ["--config=configs/encoder.py", f"--config.data.source={source}", f"--workdir={folder}", *small, *arguments]


def study(config: str, folder: Path, *arguments: str) -> list[str]:
    """Arguments of a study whose runs on CDP take seconds."""
    small = {
        "data.size": 32,
        "data.cdp.colors": 2,
        "data.cdp.digits": "(2,3)",
        "encoder.width": 4,
        "features.fit": 256,
        "features.validation": 64,
        "features.test": 128,
        "estimate.k": 64,
    }
    return [f"--config={config}", *options(IMAGES | small, "run."), f"--workdir={folder}", *arguments]


def batch_size(folder: Path, *arguments: str, k: str = "2+4") -> list[str]:
    """Arguments of the study batch_size, with a run for each K_Tr in k, on pairs that share their color as in `cdp`."""
    config = f"configs/studies/batch_size.py:encoders=resnet18,k={k},pairs=12,seeds=1"
    return study(config, folder, "--config.run.data.pairing=color", *arguments)


def report(folder: Any) -> dict[str, Any]:
    """A run's report.json without the fields that differ from run to run."""
    contents = json.loads((folder / "report.json").read_text())
    del contents["run"], contents["workdir"], contents["name"]
    return contents


def interval(lower_bits: float, upper_bits: float, kind: str = BATCHES) -> Interval:
    """A two-sided interval, by default a t-interval over batches."""
    return Interval(lower_bits, upper_bits, kind)


def reading(bits: float, batches: int = 32, **more: Any) -> Reading:
    """An estimator's reading at one K, with an interval if there are several batches. more: further fields."""
    ends = interval(bits - 0.004, bits + 0.004) if batches > 1 else None
    return Reading(
        **{"bits": bits, "batches": batches, "interval": ends, "ceiling_bits": None, "max_bits": None} | more
    )


def estimate_entry(**changes: Any) -> EstimateEntry:
    """An estimate of all three attributes of CDP, as in report.json, with the given fields changed.

    Unless `curve` is given, the curves agree with the quoted values. All numbers differ from one another.
    """
    history = History((0, 700, 1400), (0.0, 5.0, 5.9), (0.0, 5.1, 5.9))
    entry = EstimateEntry(
        name="all",
        shared=("color", "digit", "position"),
        value_bits=5.9871,
        statistic="classifier",
        interval=interval(5.9559, 5.9962, ERRORS),
        k=2048,
        info_nce_bits=5.9712,
        ceiling_bits=11.0,
        max_info_nce_bits=5.978,
        nt_xent_bits=6.0008,
        lower_bits=5.9623,
        upper_bits=6.0,
        confidence=0.95,
        certificate="classifier",
        certificates={
            "classifier": Certified(5.9871, 5.9623, interval(5.9559, 5.9962, ERRORS), {"errors": 0, "images": 4096}),
            "infonce": Certified(5.8012, 5.7, interval(5.7902, 5.8122), {"k": 512, "batches": 16}),
        },
        verdict="certified",
        entropy_bits=6.0,
        curve={},
        fit=Fit(steps=1500, best_step=1400, k=512, history=history),
        conclusions=("I(h_X;h_Y) is at least 5.962 bits.", "More test images narrow it.", "A larger K does not."),
    )
    entry = replace(entry, **changes)
    if entry.curve:
        return entry
    last = reading(entry.info_nce_bits, 4, ceiling_bits=entry.ceiling_bits, max_bits=entry.max_info_nce_bits)
    first = reading(5.8051, ceiling_bits=8.0, max_bits=5.8109)
    whole = reading(5.9807, 1, ceiling_bits=13.0)
    curve = {"info_nce_symmetric": Curve("InfoNCE", "lower bound", entry.k, {256: first, entry.k: last, 8192: whole})}
    if entry.nt_xent_bits is not None:
        at = {256: reading(entry.nt_xent_bits, ceiling_bits=8.9972), entry.k: reading(6.0006, 4, ceiling_bits=11.9996),
              8192: reading(6.0004, 1, ceiling_bits=13.9999)}  # fmt: skip
        curve["nt_xent"] = Curve("NT-Xent estimate", "not a bound", 256, at)
    return replace(entry, curve=curve)


def image_report(
    config: dict[str, Any] | None = None,
    estimates: dict[str, EstimateEntry] | None = None,
    **changes: Any,
) -> ImageReport:
    """A run's report with these estimates and with the given parts changed.

    config: the settings of the run's config that the test needs.
    estimates: name → estimate; the first is the run's own.
    """
    estimates = estimates or {"all": estimate_entry()}
    report = ImageReport(
        name="cdp",
        workdir="runs/cdp",
        truth=Truth(6.0, 3.3004, ("color", "digit", "position")),
        in_training=InTraining("simclr", None, k=64, steps=300, loss_nats=0.83, mi_bits=5.7897, ceiling_bits=6.9887),
        estimate=next(iter(estimates.values())),
        estimates=estimates,
        linear={"color": 1.0, "digit": 0.99949, "all": 0.5},
        measured={"class": None, "augmentation": None},
        metrics={},
        run=Run(
            seconds={"train": 72.04, "encode": 20.1, "total": 92.2},
            peak_memory_gib=1.256,
            devices="1 × cpu",
            cores=2,
            versions={"jax": "0.10.2"},
            revision="abc123",
            stages={},
            config=config or {},
            seed=7,
        ),
    )
    return replace(report, **changes)


def user_environment() -> dict[str, str]:
    """The environment of a command that a user types: one device, and no XLA flags of the tests."""
    return os.environ | {"XLA_FLAGS": ""}


def quick_environment() -> dict[str, str]:
    """That of a user, but programs compile faster and run slower, also because LLVM optimizes nothing."""
    return os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": QUICK_FLAGS}


@cache
def calibration_seconds() -> float:
    """Seconds that this machine takes to compile and run 50 training steps of a network that is not ours.

    Tests state their time limits as multiples of it, because machines differ five-fold in speed. It runs in a process
    that keeps no compiled programs: a cache that an earlier test filled would make it take half as long.
    """
    environment = user_environment() | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, Path(__file__).with_name("calibration.py")]
    return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)
