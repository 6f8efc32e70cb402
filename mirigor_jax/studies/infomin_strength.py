"""The study `infomin_strength`: how strong should an augmentation be? After Lee et al. 2023, Fig. 5."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mirigor_jax import tables
from mirigor_jax.drawing import (
    CEILING,
    CERTIFIED,
    ENTROPY,
    IN_TRAINING,
    INK,
    LOWER_BOUND,
    NO_BOUND,
    Figure,
    empty_figure,
    floats,
    line_of_means,
    shared_legend,
    style,
)
from mirigor_jax.files import AnyPath
from mirigor_jax.runs.schema import ImageReport
from mirigor_jax.studies.rows import TASKS, Row, groups, mean, run_row
from mirigor_jax.studies.table import STUDIES, Study

CAPTIONS = {
    "infomin_strength": "Accuracy against MI as the augmentation's strength rises, after Lee et al. 2023, Fig. 5.",
}


def row(done: ImageReport, folder: AnyPath) -> Row:
    """The columns that every study reads from a run, and log2 K of its estimate.

    Its tags are the augmentation that the run had (`family`) and the `strength` of that.
    """
    return {**run_row(done), "ceiling_k_bits": done.estimate.ceiling_bits}


def table(rows: Sequence[Row]) -> str:
    """A line for each augmentation and strength.

    In each of the two families of Fig. 5, jitter and crop, the best accuracy of each task is bold.
    """
    header = (
        "augmentation",
        "strength",
        "InfoNCE, bits",
        f"NT-Xent estimate, K = {rows[0]['nt_xent_k']}",
        "certified",
        *TASKS,
    )
    means = {
        key: {task: np.mean([100 * row["accuracy"][task] for row in same]) for task in TASKS}
        for key, same in groups(rows, "family", "strength").items()
    }
    lines = []
    for (family, strength), same in groups(rows, "family", "strength").items():
        best = {t: max(of[t] for (other, _), of in means.items() if other == family) for t in TASKS}
        alone = family in ("jitter", "crop")
        accuracies = [
            f"**{text}**" if alone and means[family, strength][t] == best[t] else text
            for t in TASKS
            for text in [mean([100 * row["accuracy"][t] for row in same], ".2f")]
        ]
        lower, upper = tables.round_down(min(row["lower_bits"] for row in same)), same[0]["upper_bits"]
        lines.append(
            (
                family,
                f"{strength:g}",
                mean([row["info_nce_bits"] for row in same]),
                mean([row["nt_xent_bits"] for row in same]),
                f"≥ {lower:.3f}" if upper is None else f"[{lower:.3f}, {upper:.3f}]",
                *accuracies,
            )
        )
    legend = (
        "MI is that of two views under the augmentation of the training, in bits. Accuracies are on images without "
        "augmentation, in percent; each task's best for jitter and for crop is bold. The MI of two views of one image "
        f"has no known upper end, and InfoNCE can't exceed log₂ K = {same[0]['ceiling_k_bits']:.3f} bits. In the "
        "paper's words (Lee et al. 2023, §IV-C and Fig. 5), all four accuracies follow a reverse U and peak at the "
        "same MI, both by color jitter and by crops."
    )
    return f"{tables.grid(header, lines)}\n\n{legend}"


def picture(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw the accuracy of every task against MI in bits (above), and MI against the strength (below).

    rows: the study's rows, one for each run.
    Each family of augmentations has a column. Dots are runs, lines join the means over seeds in the order of strength,
    and a ring marks each task's best strength. The upper row has the layout of Lee et al. 2023, Fig. 5.
    """
    figure = empty_figure(14.4, 8.4)
    grid = figure.subplots(2, 3)
    titles = {
        "jitter": "color jitter alone",
        "crop": "random resized crops alone",
        "class and all": "T_class + SimCLR's",
    }
    colors = dict(zip(rows[0]["accuracy"], (IN_TRAINING, NO_BOUND, LOWER_BOUND, INK), strict=True))
    for (family, title), (above, below) in zip(titles.items(), grid.T, strict=True):
        style(above, f"{title}: accuracy in % against MI in bits")
        style(below, f"{title}: MI in bits against strength")
        above.set_xlabel("InfoNCE under the training's own augmentation, bits")
        below.set_xlabel("strength")
        runs = [row for row in rows if row["family"] == family]
        if not runs:
            continue
        strength, info_nce, nt_xent = (
            floats([row[n] for row in runs]) for n in ("strength", "info_nce_bits", "nt_xent_bits")
        )
        levels = np.unique(strength)
        at = [info_nce[strength == level].mean() for level in levels]
        for task, color in colors.items():
            accuracy = floats([100 * row["accuracy"][task] for row in runs])
            mean = floats([accuracy[strength == level].mean() for level in levels])
            above.plot(info_nce, accuracy, "o", color=color, markersize=3, alpha=0.5)
            above.plot(at, mean, color=color, marker="o", markersize=5, label=task)
            ring = {"markersize": 13, "markerfacecolor": "none"}
            above.plot(at[mean.argmax()], mean.max(), "o", color=color, **ring)
        line_of_means(
            below, strength, nt_xent, NO_BOUND, "s", label=f"NT-Xent estimate, K = {runs[0]['nt_xent_k']}, not a bound"
        )
        line_of_means(below, strength, info_nce, LOWER_BOUND, "o", label="InfoNCE")
        lower = [min(row["lower_bits"] for row in runs if row["strength"] == level) for level in levels]
        below.plot(levels, lower, "_", color=CERTIFIED, markersize=14, markeredgewidth=3, label="certified: at least")
        below.axhline(runs[0]["ceiling_k_bits"], color=CEILING, linestyle="--", label="log₂ K, the most InfoNCE shows")
        if runs[0]["entropy_bits"] is not None:
            below.axhline(runs[0]["entropy_bits"], color=ENTROPY, label="H(C)", zorder=1.5)
    above, below = grid.T[0]
    for row in [row for row in rows if row["family"] == "all"]:
        for task, color in colors.items():
            above.plot(row["info_nce_bits"], 100 * row["accuracy"][task], "*", color=color, markersize=11)
    above.plot([], [], "*", color=INK, label="all of SimCLR's, strength 1")
    above.plot([], [], "o", color=INK, markersize=13, markerfacecolor="none", label="a task's best")
    shared_legend(figure, [above, *grid[1]])
    return figure


def draw(rows: Sequence[Row]) -> dict[str, Figure]:
    """The study's only picture."""
    return {"infomin_strength": picture(rows)}


STUDIES["infomin_strength"] = Study(row, table, draw, CAPTIONS, tags=("family", "strength"))
