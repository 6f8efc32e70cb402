"""The study `stability`: does an estimate settle as the training goes on, and with the number of rows?

Lee et al. 2023 estimate MI after training, with a frozen encoder; how stable this is, they leave open.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mirigor_jax import tables
from mirigor_jax.drawing import (
    CERTIFIED,
    ENTROPY,
    LOWER_BOUND,
    NO_BOUND,
    Axes,
    Figure,
    floats,
    line_of_means,
    panels,
    shared_legend,
)
from mirigor_jax.files import AnyPath
from mirigor_jax.runs.schema import ImageReport
from mirigor_jax.studies import stability_fits
from mirigor_jax.studies.rows import Row, groups, mean, outermost
from mirigor_jax.studies.stability_fits import FIT, PAIRS, STEP, USABLE
from mirigor_jax.studies.table import STUDIES, Fits, Section, Study

CAPTIONS = {
    "stability": "I_class and usable information with their certified ends: at steps of the training, and of the last "
    "encoder against the rows that the critic is fitted on, the pairs that the lower end is certified on, and the rows "
    "of usable information. A line is a mean over the seeds, a small mark a seed.",
}


def row(done: ImageReport, folder: AnyPath) -> Row:
    """A training's accuracy, and its own I_class, whose critic is fitted on images that the encoder has seen."""
    return {
        "seed": done.run.config["seed"],
        "steps": done.run.config["train"]["steps"],
        "value_bits": done.estimate.value_bits,
        "lower_bits": done.estimate.lower_bits,
        "upper_bits": done.estimate.upper_bits,
        "accuracy": done.linear["class"],
    }


def table(rows: Sequence[Row]) -> str:
    """A line for each number of steps: what the runs themselves measured."""
    lines = [
        (
            f"{steps:,}",
            str(len(same)),
            mean([one["value_bits"] for one in same]),
            tables.ends(tables.round_down(min(one["lower_bits"] for one in same)), same[0]["upper_bits"]),
            mean([100 * one["accuracy"] for one in same], ".2f"),
        )
        for (steps,), same in groups(rows, "steps").items()
    ]
    header = ("steps", "seeds", "I_class", "certified", "accuracy, %")
    legend = (
        "MI is in bits; ± is the standard deviation over seeds, and the certified interval is that of the seed with "
        "the least lower end. These are the runs' own estimates: their critics are fitted on images that the encoder "
        "was trained on."
    )
    return f"{tables.grid(header, lines)}\n\n{legend}"


def section(rows: Sequence[Row]) -> Section:
    """A table for each thing that is varied, and the picture."""
    by = {kind: same for (kind,), same in groups(rows, "by").items()}
    texts = []
    if STEP in by:
        texts += ["### Steps of the training", _by_step(by[STEP])]
    for kind, title in ((FIT, "Rows that the critic is fitted on"), (PAIRS, "Pairs that I_class is certified on")):
        if kind in by:
            texts += [f"### {title}", _by_size(by[kind], kind)]
    if USABLE in by:
        texts += ["### Rows of usable information", _by_usable_rows(by[USABLE])]
    texts.append(
        "MI is in bits; ± is the standard deviation over seeds, and ends in brackets are the outermost ones over the "
        "seeds. I_class is the point estimate of the lower bound whose confidence limit is the certified end; each end "
        "holds at 95 % confidence, both of usable information together. All rows here are images that the encoder has "
        "not seen. A spread of 1 means that the standard deviation over seeds is as large as the mean distance of the "
        "ends. The exponent is the slope of log distance against log rows, by least squares for each seed: −0.5 means "
        "that four times as many rows halve the distance."
    )
    if warnings := sorted(
        {text for one in rows for key in ("warnings", "usable_warnings") for text in one.get(key, ())}
    ):
        texts += [f"- {text}" for text in warnings]
    return Section("What settles, and with how many rows", "\n\n".join(texts), {"stability": picture(rows)})


def _by_step(rows: Sequence[Row]) -> str:
    """A line for each step. The change is that since the step before, a mean over seeds."""
    before: dict[tuple, Row] = {}
    lines = []
    for (steps, at), same in groups(rows, "steps", "at").items():
        changes = [
            [one[name] - before[steps, one["seed"]][name] for one in same if (steps, one["seed"]) in before]
            for name in ("value_bits", "usable_bits")
        ]
        before |= {(steps, one["seed"]): one for one in same}
        lines.append(
            (
                f"{at:,} of {steps:,}",
                str(len(same)),
                mean([one["value_bits"] for one in same]),
                _signed(changes[0]),
                tables.ends(tables.round_down(min(one["lower_bits"] for one in same)), same[0]["entropy_bits"]),
                _spread(same, "value_bits", gap),
                mean([one["usable_bits"] for one in same]),
                _signed(changes[1]),
                outermost(same, "usable"),
                _spread(same, "usable_bits", usable_width),
                mean([100 * one["accuracy"] for one in same], ".2f"),
            )
        )
    header = ("step", "seeds", "I_class", "change", "certified", "spread", "usable information", "change")
    return tables.grid((*header, "its certified ends", "spread", "accuracy, %"), lines)


def _by_size(rows: Sequence[Row], kind: str) -> str:
    """A line for each number of rows or pairs, with the two parts of H(C) minus the certified end."""
    lines = [
        (
            f"{steps:,}",
            _sizes(same),
            str(len(same)),
            mean([one["value_bits"] for one in same]),
            mean([one["entropy_bits"] - one["value_bits"] for one in same]),
            mean([gap(one) for one in same]),
            tables.ends(tables.round_down(min(one["lower_bits"] for one in same)), same[0]["entropy_bits"]),
            _spread(same, "value_bits", gap),
            ", ".join(sorted({str(one["certificate"]) for one in same})),
        )
        for (steps, _), same in groups(rows, "steps", "share").items()
    ]
    header = ("steps", kind, "seeds", "I_class", "H(C) − I_class", "I_class − certified end", "certified", "spread")
    return f"{tables.grid((*header, 'certificate'), lines)}\n\n{_exponent(rows, gap, 'I_class − certified end')}"


def _by_usable_rows(rows: Sequence[Row]) -> str:
    lines = [
        (
            f"{steps:,}",
            _sizes(same),
            str(len(same)),
            mean([one["usable_bits"] for one in same]),
            mean([one["usable_bits"] - one["usable_lower_bits"] for one in same]),
            mean([one["usable_upper_bits"] - one["usable_bits"] for one in same]),
            outermost(same, "usable"),
            _spread(same, "usable_bits", usable_width),
        )
        for (steps, _), same in groups(rows, "steps", "share").items()
    ]
    header = ("steps", "rows", "seeds", "usable information", "value − lower end", "upper end − value")
    text = tables.grid((*header, "its certified ends", "spread"), lines)
    return f"{text}\n\n{_exponent(rows, usable_width, 'upper end − lower end')}"


def gap(one: Row) -> float:
    """Bits between the estimate of I_class and its certified end: what the certified rows cost."""
    return one["value_bits"] - one["lower_bits"]


def usable_width(one: Row) -> float:
    """Bits between both certified ends of usable information."""
    return one["usable_upper_bits"] - one["usable_lower_bits"]


def exponents(rows: Sequence[Row], distance: Callable[[Row], float]) -> list[float]:
    """The exponent of each training: the slope of log distance against log rows, by least squares.

    A training with fewer than two sizes, or with a distance that is not positive, has none.
    """
    found = []
    for same in groups(rows, "run").values():
        at, bits = floats([one["at"] for one in same]), floats([distance(one) for one in same])
        if len(np.unique(at)) > 1 and bits.min() > 0:
            found.append(float(np.polyfit(np.log(at), np.log(bits), 1)[0]))
    return found


def _exponent(rows: Sequence[Row], distance: Callable[[Row], float], words: str) -> str:
    found = exponents(rows, distance)
    return f"Exponent of {words}: {mean(found, '.2f')}." if found else f"{words} has no exponent at these sizes."


def _sizes(rows: Sequence[Row]) -> str:
    """The number of rows; the least and the largest one if the seeds differ."""
    return " to ".join(f"{size:,}" for size in sorted({min(one["at"] for one in rows), max(one["at"] for one in rows)}))


def _signed(changes: Sequence[float]) -> str:
    return f"{np.mean(changes):+.3f}" if changes else "–"


def _spread(rows: Sequence[Row], name: str, distance: Callable[[Row], float]) -> str:
    """The standard deviation over seeds as a multiple of the mean distance of the ends."""
    if len(rows) < 2:
        return "–"
    return f"{np.std([one[name] for one in rows], ddof=1) / np.mean([distance(one) for one in rows]):.2f}"


def picture(rows: Sequence[Row]) -> Figure:
    """Draw I_class and usable information with their ends: against the step, and against the numbers of rows.

    rows: of the fits, as `stability_fits.make` returns them.
    """
    words = {
        STEP: "by step of the training",
        FIT: "by rows of the critic's fit",
        PAIRS: "by pairs that certify",
        USABLE: "by rows of usable information",
    }
    by = {kind: same for (kind,), same in groups(rows, "by").items()}
    figure, axes = panels(*(f"{words[kind]}, bits" for kind in by))
    for ax, (kind, same) in zip(axes, by.items(), strict=True):
        if kind != USABLE:
            _line(ax, same, "value_bits", LOWER_BOUND, "o", label="I_class, estimate")
            _line(ax, same, "lower_bits", CERTIFIED, "^", label="I_class, certified end")
        if kind in (STEP, USABLE):
            _line(ax, same, "usable_bits", NO_BOUND, "s", label="usable information")
            for end in ("usable_lower_bits", "usable_upper_bits"):
                _line(ax, same, end, NO_BOUND, "_", label="usable information, certified ends")
        ax.axhline(_entropy(rows), color=ENTROPY, label="H(C)", zorder=1.5)
        ax.set_xscale("log", base=2)
        sizes = sorted({round(np.mean([one["at"] for one in of])) for of in _places(same).values()})
        ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
        ax.minorticks_off()
        ax.set_xlabel({STEP: "step", PAIRS: "pairs"}.get(kind, "rows"))
    shared_legend(figure, axes)
    return figure


def _line(ax: Axes, rows: Sequence[Row], name: str, color: str, marker: str, *, label: str) -> None:
    """A line through the means of one size. Seeds whose sizes differ by a few rows stand at their mean."""
    for same in groups(rows, "steps").values():
        points = [(np.mean([one["at"] for one in of]), one[name]) for of in _places(same).values() for one in of]
        x, y = floats([at for at, _ in points]), floats([value for _, value in points])
        line_of_means(ax, x, y, color, marker, label=label)


def _places(rows: Sequence[Row]) -> dict[tuple, list[Row]]:
    """The rows of each place on the x axis: a step, or a share of the rows."""
    return groups(rows, "at" if rows[0]["by"] == STEP else "share")


def _entropy(rows: Sequence[Row]) -> float:
    return next(one["entropy_bits"] for one in rows if "entropy_bits" in one)


STUDIES["stability"] = Study(row, table, lambda rows: {}, CAPTIONS, fits=Fits(stability_fits.make, section))
