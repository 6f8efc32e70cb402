"""The study `anchor`: is InfoNCE an estimator of MI, and what does an anchor class change? After Ryu et al. 2025."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mirigor_jax import tables
from mirigor_jax.drawing import (
    CEILING,
    CERTIFIED,
    ENTROPY,
    GRID,
    INK,
    LINEAR,
    LOWER_BOUND,
    NO_BOUND,
    Figure,
    empty_figure,
    floats,
    line_of_means,
    panels,
    shared_legend,
    style,
    whiskers,
)
from mirigor_jax.files import AnyPath
from mirigor_jax.runs.schema import ImageReport
from mirigor_jax.studies import anchor_fits, cases
from mirigor_jax.studies.anchor_fits import ANCHOR, INFO_NCE, PERFECT
from mirigor_jax.studies.rows import Row, groups, mean, usable_ends
from mirigor_jax.studies.table import STUDIES, Fits, Section, Study

# Name of a training, as in its cells' names → (train.objective, its words in the table).
TRAININGS = {"simclr": ("simclr", "SimCLR"), "anchor": ("anchor", "SimCLR with an anchor")}
SHIFT = 0.03  # of a seed's marks to the right of those of the seed before, so that whiskers don't cover each other
CAPTIONS = {
    "anchor_training": "Linear accuracy and usable information of encoders trained with and without an anchor class. A "
    "line joins the two encoders of a seed, and whiskers are the certified ends.",
    "anchor": "InfoNCE and the anchor's plug-in against the true MI. InfoNCE of the true density ratio leaves the "
    "diagonal too, so no better critic and no more data would mend it.",
    "anchor_estimators": "Mean |error| of each estimator over the true MI and the seeds.",
}


def row(done: ImageReport, folder: AnyPath) -> Row:
    """A training's measurements. Of the run that gives the features, the estimate alone."""
    if done.estimates.get("class"):
        return cases.row(done, folder) | usable_ends(done)
    return {"seed": done.run.config["seed"], "accuracy": None, "value_bits": done.estimate.value_bits}


def table(rows: Sequence[Row]) -> str:
    """A line for each training, and the difference that the anchor makes."""
    if not (trained := _trained(rows)):
        return "No training is finished."
    points, usable = [100 * gain for gain in _gains(trained, "accuracy")], _gains(trained, "usable_bits")
    changes = [f"the accuracy by {mean(points, '.2f')} points"] if points else []
    changes += [f"usable information by {mean(usable)} bits"] if usable else []
    legend = (
        "Both trainings see the same augmentations, and differ in the loss alone. The linear accuracy is that of the "
        "encoder; MI is in bits; ± is the standard deviation over seeds. Usable information is the information about "
        "the class that linear probes can use (mi.usable_information); its ends are the outermost over the seeds. "
        + (f"The anchor changes {' and '.join(changes)}, seed by seed. " if changes else "")
        + "In the paper's words (Ryu et al. 2025, abstract), “the anchor does not improve the downstream task "
        "performance”."
    )
    more = {"usable information": _usable, "its certified ends": _usable_ends}
    return f"{cases.table('training', trained, {}, more)}\n\n{legend}"


def draw(rows: Sequence[Row]) -> dict[str, Figure]:
    """The picture of the trainings, if one is finished."""
    return {"anchor_training": picture_of_trainings(trained)} if (trained := _trained(rows)) else {}


def _trained(rows: Sequence[Row]) -> list[Row]:
    return [one for one in rows if one["accuracy"] is not None]


def _measured(rows: Sequence[Row]) -> list[Row]:
    """The rows whose run had enough images for usable information."""
    return [one for one in rows if one["usable_bits"] is not None]


def _usable(rows: Sequence[Row]) -> str:
    return mean([one["usable_bits"] for one in found]) if (found := _measured(rows)) else "–"


def _usable_ends(rows: Sequence[Row]) -> str:
    if not (found := _measured(rows)):
        return "–"
    lower, upper = (floats([one[f"usable_{end}_bits"] for one in found]) for end in ("lower", "upper"))
    return tables.ends(tables.round_down(lower.min()), tables.round_up(upper.max()))


def _gains(trained: Sequence[Row], column: str) -> list[float]:
    """What the anchor adds to a column, for each seed that both trainings have."""
    (_, plain), (_, anchored) = TRAININGS.values()
    known = {(one["case"], one["seed"]): one[column] for one in trained if one[column] is not None}
    seeds = [seed for case, seed in known if case == plain and (anchored, seed) in known]
    return [known[anchored, seed] - known[plain, seed] for seed in seeds]


def picture_of_trainings(trained: Sequence[Row]) -> Figure:
    """Draw the accuracy and the usable information of the trainings. A line joins the two trainings of a seed."""
    figure, axes = panels("linear accuracy, %", "usable information about the class, bits")
    cases_in_order = [words for _, words in TRAININGS.values()]
    for (seed,), same in groups(trained, "seed").items():
        place = floats([cases_in_order.index(one["case"]) for one in same]) + SHIFT * seed
        percent = floats([100 * one["accuracy"] for one in same])
        axes[0].plot(place, percent, "o-", color=LINEAR, label="linear accuracy, a line a seed")
        value, lower, upper = (floats([one[f"usable_{end}bits"] for one in same]) for end in ("", "lower_", "upper_"))
        axes[1].plot(place, value, "o-", color=LOWER_BOUND, label="usable information, a line a seed")
        whiskers(axes[1], place, lower, upper, CERTIFIED)
    for ax in axes:
        ax.set_xticks(range(len(cases_in_order)), cases_in_order)
        ax.set_xlim(-0.5, len(cases_in_order) - 0.5)
    shared_legend(figure, axes)
    return figure


@dataclass(frozen=True)
class Errors:
    """Errors of an estimator over all true MI and all seeds, in bits.

    bias: mean of estimate − truth. spread: root mean variance over seeds; None for one seed. error: mean |error|.
    """

    bias: float
    spread: float | None
    error: float


def errors(rows: Sequence[Row]) -> Errors:
    """The errors of one estimator on one kind of data at one K. rows: one for each true MI and seed."""
    off = [floats([one["value_bits"] - one["bits"] for one in same]) for same in groups(rows, "bits").values()]
    several = [x for x in off if len(x) > 1]
    spread = math.sqrt(np.mean([x.var(ddof=1) for x in several])) if several else None
    return Errors(float(np.mean(np.concatenate(off))), spread, float(np.mean(np.abs(np.concatenate(off)))))


def section(rows: Sequence[Row]) -> Section:
    """The fits: a table for each kind of data, and both pictures."""
    texts = []
    for (data,), of_data in groups(rows, "data").items():
        bits = sorted({one["bits"] for one in of_data})
        header = (
            "K",
            "estimator",
            "kind",
            "seeds",
            *(f"{b:g}" for b in bits),
            "bias",
            "SD",
            "mean abs. error",
            "error / InfoNCE's",
        )
        lines = []
        for (k,), at_k in groups(of_data, "k").items():
            every = groups(at_k, "estimator")
            usual = errors(every[INFO_NCE,]).error if (INFO_NCE,) in every else None
            for (name,), same in every.items():
                off, by_bits = errors(same), groups(same, "bits")
                lines.append(
                    (
                        str(k),
                        name,
                        same[0]["kind"],
                        str(len({one["seed"] for one in same})),
                        *(tables.bits(_mean_value(by_bits.get((b,), []))) for b in bits),
                        f"{off.bias:+z.3f}",
                        tables.bits(off.spread),
                        f"{off.error:.3f}",
                        "–" if not usual else f"{off.error / usual:.2f}",
                    )
                )
        texts += [f"### {data}", tables.grid(header, lines)]
    batches = {one["k"]: one["batch_size"] for one in rows}
    smaller = [f"at K = {k:,} in batches of {size:,}" for k, size in sorted(batches.items()) if size < k]
    legend = (
        "MI is in bits; columns 1, 2, … have the mean estimate over the seeds at that true MI. Bias and mean absolute "
        "error are means over all true MI and seeds; SD is the root mean over the true MI of the variance over seeds, "
        "each with pairs and critics of its own. The last column is the mean absolute error divided by that of InfoNCE "
        "at the same K. A critic starts from random weights and is fitted by the estimator's own loss on batches of K "
        "pairs"
        f"{''.join(f', {words}' for words in smaller)}; ν of the anchor is 1 and its score log if not said otherwise. "
        f"“{PERFECT}” needs no fit, so only K biases it. It can't exceed log₂ K, and is too low well below log₂ K."
    )
    figures = {"anchor": picture(rows), "anchor_estimators": picture_of_errors(rows)}
    return Section("Estimates of known mutual information", "\n\n".join([*texts, legend]), figures)


def _mean_value(rows: Sequence[Row]) -> float | None:
    return float(np.mean([one["value_bits"] for one in rows])) if rows else None


def picture(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw InfoNCE, that of the true density ratio, and the anchor's plug-in at each K, against the true MI.

    rows: of the fits, as `anchor_fits.make` returns them. Each kind of data has a panel. Lines are means over seeds.
    """
    of_data = groups(rows, "data")
    figure, axes = panels(*(f"{data}: estimate, bits" for (data,) in of_data))
    for ax, same in zip(axes, of_data.values(), strict=True):
        bits = floats(sorted({one["bits"] for one in same}))
        sizes = sorted({one["k"] for one in same})
        ax.plot(bits, bits, color=ENTROPY, linewidth=4, alpha=0.6, label="the truth")
        for k, marker, dashes in zip(sizes, "os^v", ("--", "-.", ":", "--"), strict=False):
            at_k = groups([one for one in same if one["k"] == k], "estimator")
            if (PERFECT,) in at_k:
                by_bits = groups(at_k[PERFECT,], "bits")
                exact = floats([_mean_value(by_bits[b,]) for b in bits])
                ax.plot(bits, exact, color=INK, linewidth=0.9, linestyle=dashes, label=f"{PERFECT}, K = {k:,}")
            drawn = [(INFO_NCE, LOWER_BOUND, "InfoNCE, fitted critic"), (ANCHOR, NO_BOUND, "anchor, plug-in")]
            for name, color, words in drawn:
                if found := at_k.get((name,)):
                    truths, estimates = (floats([one[key] for one in found]) for key in ("bits", "value_bits"))
                    line_of_means(ax, truths, estimates, color, marker, label=f"{words}, K = {k:,}")
            if math.log2(k) <= bits.max() + 0.5:
                ax.axhline(math.log2(k), color=CEILING, linestyle=":", label=f"log₂ K, K = {k:,}")
        ax.set_xlabel("true MI, bits")
    shared_legend(figure, axes)
    return figure


def picture_of_errors(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw the mean |error| of each estimator: a marker for each K, a color for each kind. rows: as for `picture`."""
    names, of_data = list(dict.fromkeys(one["estimator"] for one in rows)), groups(rows, "data")
    figure = empty_figure(5.4 * max(len(of_data), 1.25), 1.6 + 0.3 * len(names))
    axes = figure.subplots(1, len(of_data), squeeze=False, sharey=True)[0]
    sizes = sorted({one["k"] for one in rows})
    for ax, ((data,), same) in zip(axes, of_data.items(), strict=True):
        style(ax, f"{data}: mean |error|, bits")
        for k, marker in zip(sizes, "os^v", strict=False):
            for (kind,), of_kind in groups([one for one in same if one["k"] == k], "kind").items():
                of = groups(of_kind, "estimator")
                places = [names.index(name) for (name,) in of]
                values = [errors(found).error for found in of.values()]
                color = LOWER_BOUND if kind == "lower bound" else NO_BOUND
                ax.plot(values, places, marker, color=color, label=f"{kind}, K = {k:,}")
        ax.set_xscale("log")
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(axis="both", color=GRID)
        ax.set_xlabel("mean |error| over the true MI and the seeds, bits")
    shared_legend(figure, axes)
    return figure


STUDIES["anchor"] = Study(row, table, draw, CAPTIONS, cases.TAGS, fits=Fits(anchor_fits.make, section))
