"""The study `patches`: what do estimators, critics and the certificate show of 2 to 10 known bits?"""

from collections.abc import Sequence
from typing import Any

from mirigor_jax import tables
from mirigor_jax.drawing import (
    CERTIFIED,
    ENTROPY,
    INK,
    LOWER_BOUND,
    NO_BOUND,
    Figure,
    floats,
    panels,
    shared_legend,
)
from mirigor_jax.files import AnyPath
from mirigor_jax.runs.schema import ImageReport
from mirigor_jax.studies import patches_fits
from mirigor_jax.studies.rows import Row, nt_xent, usable_ends
from mirigor_jax.studies.table import STUDIES, Fits, Study

CAPTIONS = {
    "patches": "Left: what each estimate shows of the true MI. Right: InfoNCE against the batch size K for each true "
    "MI, and the most that any critic reaches in expectation.",
    patches_fits.FIGURE: patches_fits.CAPTION,
}


def row(done: ImageReport, folder: AnyPath) -> Row:
    """A run's estimates of its own pairing, each next to the truth."""
    estimate, training = done.estimate, done.in_training
    reading = nt_xent(done, estimate)
    return {
        "bits": done.truth.mutual_information_bits,
        "seed": done.run.config["seed"],
        "in_training_bits": None if training is None else training.mi_bits,
        "value_bits": estimate.value_bits,
        "lower_bits": estimate.lower_bits,
        "certificate": estimate.certificate,
        "confidence": estimate.confidence,
        "at_k": {k: one.bits for k, one in estimate.info_nce.at.items()},
        "most_at_k": {k: one.max_bits for k, one in estimate.info_nce.at.items()},
        "nt_xent_bits": reading.quoted.bits,
        "nt_xent_k": reading.k,
        "accuracy": done.linear["all"],
        **usable_ends(done),
    }


def table(rows: Sequence[Row]) -> str:
    """A line for each run: the truth, InfoNCE at every K, and what is proven."""
    sizes = sorted({k for one in rows for k in one["at_k"]})
    header = ("truth", *(f"K = {k:,}" for k in sizes), "NT-Xent", "certified", "usable", "time, s")
    lines = []
    for one in sorted(rows, key=lambda one: (one["bits"], one["seed"])):
        usable = [one[f"usable_{end}_bits"] for end in ("lower", "upper")]
        lines.append(
            (
                f"{one['bits']:g}",
                *(_of_most(one, k) for k in sizes),
                tables.bits(one["nt_xent_bits"]),
                tables.ends(tables.round_down(one["lower_bits"] or 0.0), one["bits"]),
                "–" if None in usable else tables.ends(tables.round_down(usable[0]), tables.round_up(usable[1])),
                f"{one['seconds']:.0f}",
            )
        )
    legend = (
        f"Values are in bits. K columns have InfoNCE of K pairs a batch by the critic of the class posterior, and in "
        "brackets the most that any critic reaches at this K in expectation. The NT-Xent estimate, at "
        f"K = {rows[0]['nt_xent_k']:,}, is not a bound. The certified interval and that of usable information hold at "
        f"{100 * rows[0]['confidence']:g} %, each on its own."
    )
    return f"{tables.grid(header, lines)}\n\n{legend}"


def _of_most(one: Row, k: int) -> str:
    if k not in one["at_k"]:
        return "–"
    return f"{one['at_k'][k]:z.2f} ({one['most_at_k'][k]:.2f})"


def draw(rows: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """The estimates against the truth, and InfoNCE against K."""
    figure, (left, right) = panels("estimate, bits", "InfoNCE, bits")
    rows = sorted(rows, key=lambda one: one["bits"])
    bits, largest = floats([one["bits"] for one in rows]), max(k for one in rows for k in one["at_k"])
    left.plot(bits, bits, color=ENTROPY, linewidth=4, alpha=0.6, label="the truth")
    shown = {
        "certified: at least": ([one["lower_bits"] for one in rows], CERTIFIED, "D"),
        "NT-Xent estimate": ([one["nt_xent_bits"] for one in rows], NO_BOUND, "s"),
        f"InfoNCE, K = {largest:,}": ([one["at_k"].get(largest) for one in rows], LOWER_BOUND, "o"),
    }
    for label, (values, color, marker) in shown.items():
        left.plot(bits, floats(values), marker, color=color, label=label)
    left.set_xlabel("true MI, bits")
    for one in rows:
        sizes = sorted(one["at_k"])
        right.plot(sizes, [one["most_at_k"][k] for k in sizes], color=INK, linewidth=0.9, label="best critic")
        right.plot(sizes, [one["at_k"][k] for k in sizes], "o", color=LOWER_BOUND, label="InfoNCE")
    right.set_xscale("log", base=2)
    right.set_xlabel("K, pairs a batch")
    shared_legend(figure, [left, right])
    return {"patches": figure}


STUDIES["patches"] = Study(row, table, draw, CAPTIONS, fits=Fits(patches_fits.make, patches_fits.section))
