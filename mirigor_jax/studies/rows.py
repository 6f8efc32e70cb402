"""Code that the studies share: a run's row, and means over the rows of several seeds."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mirigor_jax import tables
from mirigor_jax.drawing import floats
from mirigor_jax.errors import InputError
from mirigor_jax.mi.estimators import NT_XENT
from mirigor_jax.mi.results import Curve
from mirigor_jax.runs.schema import EstimateEntry, ImageReport

Row = dict[str, Any]
TASKS = ("color", "digit", "position", "all")


def run_row(done: ImageReport) -> Row:
    """The columns that every study reads from a run, from the estimate of its own pairing. Accuracies are in 0..1.

    Raises InputError if the run left out the NT-Xent estimate.
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
    """The NT-Xent estimate (Lee et al. 2023, Eq. 4) at every K. Raises InputError if the run left it out."""
    if NT_XENT not in estimate.curve:
        raise InputError(f"'{done.name}' was not read by {NT_XENT}; add it to estimate.estimators")
    return estimate.curve[NT_XENT]


def usable_ends(done: ImageReport) -> Row:
    """A run's usable information and both of its certified ends; None if they were not measured."""
    names = {"usable_bits": "value_bits", "usable_lower_bits": "lower_bits", "usable_upper_bits": "upper_bits"}
    return {column: getattr(done.usable, name, None) for column, name in names.items()}


def outermost(rows: Sequence[Row], name: str) -> str:
    """The outermost certified ends over the rows, as text: of their columns `name`_lower_bits and `name`_upper_bits."""
    lower, upper = (floats([row[f"{name}_{end}_bits"] for row in rows]) for end in ("lower", "upper"))
    return tables.ends(tables.round_down(float(lower.min())), tables.round_up(float(upper.max())))


def groups(rows: Sequence[Row], *keys: str) -> dict[tuple, list[Row]]:
    """Group the rows by the values of `keys`, in order of appearance: rows of one group may differ in their seeds."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def mean(values: Sequence[float], form: str = ".3f") -> str:
    """The mean as text, with the standard deviation if there are several values. form: format of both numbers."""
    spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{np.mean(values):z{form}}{spread}"
