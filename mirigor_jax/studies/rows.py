"""What the studies share: a run's row, and the rows of several seeds taken together."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mirigor_jax.runs.report import Report

Row = dict[str, Any]
TASKS = ("color", "digit", "position", "all")


def run_row(done: Report) -> Row:
    """What every study reads of a run, off its own estimate; bits, accuracies in 0..1."""
    own, config, in_training = done["estimate"], done["run"]["config"], done["in_training"] or {}
    names = ("paper_bits", "paper_k", "strict_bits", "t_lower_bits", "t_upper_bits", "lower_bits", "upper_bits")
    return {
        "encoder": config["encoder"]["name"],
        "pairing": config["data"]["pairing"],
        "k": config["train"]["k"],
        "seed": config["seed"],
        "steps": config["train"]["steps"],
        "entropy_bits": done["truth"]["entropy_bits"],
        "in_training_bits": in_training.get("mi_bits"),
        "ceiling_bits": math.log2(2 * config["train"]["k"] - 1),
        **{name: own[name] for name in names},
        "accuracy": done["linear"],
    }


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
