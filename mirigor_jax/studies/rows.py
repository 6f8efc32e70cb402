"""What the studies share: a run's row, and the rows of several seeds taken together."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mirigor_jax.errors import InputError
from mirigor_jax.mi.estimators import NT_XENT
from mirigor_jax.mi.results import Curve
from mirigor_jax.runs.schema import EstimateEntry, ImageReport

Row = dict[str, Any]
TASKS = ("color", "digit", "position", "all")


def run_row(done: ImageReport) -> Row:
    """What every study reads of a run, off its own estimate; bits, accuracies in 0..1.

    Raises InputError for a run whose critic was not read by the NT-Xent estimate.
    """
    estimate, config, in_training = done.estimate, done.run.config, done.in_training
    names = ("nt_xent_bits", "info_nce_bits", "value_bits", "lower_bits", "upper_bits")
    return {
        "encoder": config["encoder"]["name"],
        "pairing": config["data"]["pairing"],
        "k": config["train"]["k"],
        "seed": config["seed"],
        "steps": config["train"]["steps"],
        "entropy_bits": done.truth.entropy_bits,
        "in_training_bits": None if in_training is None else in_training.mi_bits,
        "ceiling_bits": math.log2(2 * config["train"]["k"] - 1),
        "nt_xent_k": nt_xent(done, estimate).k,
        **{name: getattr(estimate, name) for name in names},
        "accuracy": done.linear,
    }


def nt_xent(done: ImageReport, estimate: EstimateEntry) -> Curve:
    """The readings of Lee et al.'s estimate. Raises InputError if the run left it out."""
    if NT_XENT not in estimate.curve:
        raise InputError(f"'{done.name}' was not read by {NT_XENT}; add it to estimate.estimators")
    return estimate.curve[NT_XENT]


def groups(rows: Sequence[Row], *keys: str) -> dict[tuple, list[Row]]:
    """Rows that differ in other things alone, as seeds are, together; in order."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def mean(values: Sequence[float], form: str = ".3f") -> str:
    """The mean; of several also their standard deviation."""
    spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{np.mean(values):z{form}}{spread}"
