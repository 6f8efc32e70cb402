"""The study `width`: do width and depth of the encoder change how its information goes with accuracy?

Lee et al. 2023 use encoders of the published widths alone, and leave this open.
"""

from collections.abc import Sequence

import numpy as np

from mirigor_jax import tables
from mirigor_jax.drawing import (
    CERTIFIED,
    ENTROPY,
    IN_TRAINING,
    LOWER_BOUND,
    NO_BOUND,
    Figure,
    floats,
    line_of_means,
    panels,
    shared_legend,
    whiskers,
)
from mirigor_jax.files import AnyPath
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.schema import ImageReport
from mirigor_jax.studies.rank import RESAMPLES, correlation
from mirigor_jax.studies.rows import Row, groups, mean, outermost, usable_ends
from mirigor_jax.studies.table import STUDIES, Study

# Color and marker of each line of the picture, in the order of the table.
MARKS = (
    (LOWER_BOUND, "o"),
    (NO_BOUND, "s"),
    (CERTIFIED, "^"),
    (IN_TRAINING, "v"),
)
# Column of a row → its words in the table of correlations.
MEASURES = {
    "value_bits": "I_class, estimate",
    "lower_bits": "I_class, certified end",
    "usable_bits": "usable information",
    "usable_lower_bits": "usable information, lower end",
}
CAPTIONS = {
    "width": "I_class with its certified lower end, usable information with its certified ends, and linear accuracy "
    "against the width of the encoder. A line is a mean over the seeds, and a small mark a seed. The whiskers of "
    "I_class reach down to the least certified end of the seeds, and those of usable information from the least lower "
    "end to the largest upper end.",
}


def row(done: ImageReport, folder: AnyPath) -> Row:
    """A run's encoder, its I_class and usable information with their ends, and its linear accuracy, 0..1."""
    config, estimate = done.run.config, done.estimate
    return {
        "encoder": config["encoder"]["name"],
        "width": config["encoder"]["width"],
        "features": RunFolder(folder).arrays("features/test.npz")["h"].shape[1],
        "steps": config["train"]["steps"],
        "seed": config["seed"],
        "entropy_bits": estimate.entropy_bits,
        **{name: getattr(estimate, name) for name in ("value_bits", "lower_bits", "upper_bits")},
        **usable_ends(done),
        "accuracy": done.linear["class"],
    }


def table(rows: Sequence[Row]) -> str:
    """A line for each encoder, number of steps and width, and the correlations of each measure with accuracy."""
    header = (
        "encoder",
        "width",
        "features",
        "steps",
        "seeds",
        "accuracy, %",
        "I_class",
        "certified",
        "usable information",
        "its certified ends",
    )
    lines = [
        (
            encoder,
            str(width),
            str(same[0]["features"]),
            f"{steps:,}",
            str(len(same)),
            mean([100 * one["accuracy"] for one in same], ".2f"),
            mean([one["value_bits"] for one in same]),
            _certified(same),
            *_usable(same),
        )
        for (encoder, steps, width), same in groups(rows, "encoder", "steps", "width").items()
    ]
    legend = (
        "MI is in bits; ± is the standard deviation over seeds. Width is the number of channels of the first stage, "
        "and features the number of outputs. I_class is the point estimate of the lower bound whose confidence limit "
        "is certified. The ends are the outermost ones over the seeds. At each seed they hold at 95 % confidence: the "
        "lower end of I_class, and both ends of usable information together. The encoder has not seen the images of "
        "the ends."
    )
    return f"{tables.grid(header, lines)}\n\n{legend}\n\n{_correlations(rows)}"


def _certified(rows: Sequence[Row]) -> str:
    """The certified interval of the seed with the least lower end; a dash if a seed's certificate is withheld."""
    if len(with_ends(rows, "lower_bits")) < len(rows):
        return "–"
    return tables.ends(tables.round_down(min(one["lower_bits"] for one in rows)), rows[0]["upper_bits"])


def _usable(rows: Sequence[Row]) -> tuple[str, str]:
    """The mean usable information of the rows, and its outermost ends; dashes if a seed has none."""
    if any(one["usable_bits"] is None for one in rows):
        return "–", "–"
    known = with_ends(rows, "usable_lower_bits")
    return mean([one["usable_bits"] for one in rows]), outermost(rows, "usable") if len(known) == len(rows) else "–"


def with_ends(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows that have this end. A narrow encoder may give many images the same features: then none is certified."""
    return [one for one in rows if one[name] is not None]


def _correlations(rows: Sequence[Row]) -> str:
    """The correlation of each measure with linear accuracy, over all runs of an encoder and over all runs."""
    of = {encoder: same for (encoder,), same in groups(rows, "encoder").items()}
    kinds = of if len(of) == 1 else {**of, "all": list(rows)}
    lines = []
    for name, title in MEASURES.items():
        for encoder, same in kinds.items():
            known = [one for one in same if one[name] is not None]
            accuracy = floats([one["accuracy"] for one in known])
            if (found := correlation(floats([one[name] for one in known]), accuracy)) is not None:
                ends = tables.ends(*found.pearson_interval), tables.ends(*found.kendall_interval)
                numbers = f"{found.pearson:z.3f} {ends[0]}", f"{found.kendall:z.3f} {ends[1]}"
                lines.append((title, encoder, str(found.n), *numbers))
    if not lines:
        return "Fewer than three runs, or runs of one accuracy, have no correlation with it."
    legend = (
        f"Correlation with linear accuracy over runs, with 95 % percentile bootstrap intervals ({RESAMPLES:,} "
        "resamples, seed 0). They treat runs as a sample of all encoders, and seeds of one encoder as independent, so "
        "they are too narrow."
    )
    return f"{tables.grid(('measure', 'encoder', 'runs', 'Pearson', 'Kendall'), lines)}\n\n{legend}"


def draw(rows: Sequence[Row]) -> dict[str, Figure]:
    """The study's only picture."""
    return {"width": picture(rows)}


def picture(rows: Sequence[Row]) -> Figure:
    """Draw I_class, usable information and linear accuracy against the width, a line for each encoder and budget.

    rows: the study's rows, one for each run.
    """
    figure, axes = panels("I_class, bits", "usable information, bits", "linear accuracy, %")
    mi, usable, accuracy = axes
    budgets = groups(rows, "encoder", "steps")
    for place, ((encoder, steps), runs) in enumerate(budgets.items()):
        color, marker = MARKS[place % len(MARKS)]
        label = f"{encoder}, {steps:,} steps"
        shift = 2 ** (0.08 * (place - (len(budgets) - 1) / 2))  # so that whiskers don't cover each other
        width = floats([one["width"] for one in runs])
        line_of_means(mi, shift * width, floats([one["value_bits"] for one in runs]), color, marker, label=label)
        if certified := groups(with_ends(runs, "lower_bits"), "width"):
            lower = floats([min(one["lower_bits"] for one in same) for same in certified.values()])
            mean_bits = floats([np.mean([one["value_bits"] for one in same]) for same in certified.values()])
            whiskers(mi, shift * floats([size for (size,) in certified]), lower, mean_bits, color)
        if known := with_ends(runs, "usable_lower_bits"):
            x, values = shift * floats([one["width"] for one in known]), floats([one["usable_bits"] for one in known])
            line_of_means(usable, x, values, color, marker, label=label)
            ends = groups(known, "width")
            low = floats([min(one["usable_lower_bits"] for one in same) for same in ends.values()])
            high = floats([max(one["usable_upper_bits"] for one in same) for same in ends.values()])
            whiskers(usable, shift * floats([size for (size,) in ends]), low, high, color)
        percent = floats([100 * one["accuracy"] for one in runs])
        line_of_means(accuracy, shift * width, percent, color, marker, label=label)
    for ax in (mi, usable):
        ax.axhline(rows[0]["entropy_bits"], color=ENTROPY, label="H(C)", zorder=1.5)
    sizes = sorted({one["width"] for one in rows})
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.minorticks_off()
        ax.set_xlabel("width, channels of the first stage")
    shared_legend(figure, axes)
    return figure


STUDIES["width"] = Study(row, table, draw, CAPTIONS)
