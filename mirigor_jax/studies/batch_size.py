"""The study `batch_size`: does an encoder hold more information if its training batch is larger?

After Lee et al. 2023, Fig. 4.
"""

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
    LINEAR,
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
from mirigor_jax.studies.rows import Row, groups, mean, run_row
from mirigor_jax.studies.table import STUDIES, Study

CAPTIONS = {
    "batch_size": "MI in and after training, and linear accuracy, against K_Tr, after Lee et al. 2023, Fig. 4.",
}


def row(done: ImageReport, folder: AnyPath) -> Row:
    """The columns that every study reads from a run."""
    return run_row(done)


def table(rows: Sequence[Row]) -> str:
    """A line for each encoder and K_Tr, with the paper's values beside ours."""
    header = (
        "encoder",
        "K_Tr",
        "seeds",
        "H(C)",
        "in-training",
        "log₂(2K_Tr−1)",
        f"NT-Xent estimate, K = {rows[0]['nt_xent_k']}",
        "the paper's value",
        "InfoNCE",
        "estimate",
        "certified",
        "accuracy, %",
        "the paper's",
    )
    lines = []
    for (encoder, k), same in groups(rows, "encoder", "k").items():
        names = ("in_training_bits", "nt_xent_bits", "info_nce_bits", "value_bits")
        of = {name: [row[name] for row in same] for name in names}
        lines.append(
            (
                encoder,
                str(k),
                str(len(same)),
                f"{same[0]['entropy_bits']:.3f}",
                mean(of["in_training_bits"]),
                f"{same[0]['ceiling_bits']:.3f}",
                mean(of["nt_xent_bits"]),
                "≈ 6",
                mean(of["info_nce_bits"]),
                mean(of["value_bits"]),
                f"[{tables.round_down(min(row['lower_bits'] for row in same)):.3f}, {same[0]['upper_bits']:.3f}]",
                mean([100 * row["accuracy"]["all"] for row in same], ".2f"),
                "96.0–99.8",
            )
        )
    legend = (
        "MI is in bits. ± is the standard deviation over seeds. The certified interval is that of the seed with the "
        "least lower end. The estimate is the point estimate of the certificate's lower bound. The NT-Xent "
        "estimate (Lee et al. 2023, Eq. 4) is not a bound. The paper's values (§IV-A): post-training MI “almost "
        "constant at 6 bits” at every K_Tr, accuracy between 96.0 % and 99.8 %."
    )
    return f"{tables.grid(header, lines)}\n\n{legend}"


def picture(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw linear accuracy, MI in and after training, and MI after training close up, against K_Tr.

    rows: the study's rows, one for each run.
    Each encoder has a column. Lines are means over seeds and dots are runs; gray shows the values that Lee et al. 2023,
    Sec. IV-A, state in words for their runs.
    """
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    entropy, nt_xent_k = rows[0]["entropy_bits"], rows[0]["nt_xent_k"]
    figure = empty_figure(4.8 * max(len(encoders), 1.25), 8.4)
    grid = figure.subplots(3, len(encoders), squeeze=False, sharex=True, sharey="row", height_ratios=(2, 4, 3))
    titles = ("linear accuracy, %", "MI in and after training, bits", "after training, close up, bits")
    for encoder, column in zip(encoders, grid.T, strict=True):
        runs = sorted((row for row in rows if row["encoder"] == encoder), key=lambda row: row["k"])
        k = floats([row["k"] for row in runs])
        for ax, title in zip(column, titles, strict=True):
            style(ax, f"{encoder}: {title}")
        accuracy, whole, close = column
        accuracy.axhspan(96.0, 99.8, color=ENTROPY, alpha=0.3, linewidth=0, label="the paper: 96.0 to 99.8 %")
        line_of_means(
            accuracy, k, floats([100 * row["accuracy"]["all"] for row in runs]), LINEAR, "s", label="all classes"
        )
        ceiling = floats([row["ceiling_bits"] for row in runs])
        whole.plot(k, ceiling, color=CEILING, linestyle="--", label="ceiling log₂(2K−1), K = K_Tr")
        in_training = floats([row["in_training_bits"] for row in runs])
        line_of_means(whole, k, in_training, IN_TRAINING, "v", label="in-training MI")
        for ax in (whole, close):
            ax.axhline(6.0, color=ENTROPY, linewidth=4, alpha=0.6, label="the paper: “almost constant at 6 bits”")
            ax.axhline(entropy, color=INK, linewidth=0.8, label=f"H(C) = {entropy:.3f} bits")
            nt_xent, info_nce = (floats([row[name] for row in runs]) for name in ("nt_xent_bits", "info_nce_bits"))
            line_of_means(ax, k, nt_xent, NO_BOUND, "s", label=f"NT-Xent estimate, K = {nt_xent_k}, not a bound")
            line_of_means(ax, k, info_nce, LOWER_BOUND, "o", label="InfoNCE")
        sizes = np.unique(k)
        lower = [min(row["lower_bits"] for row in runs if row["k"] == size) for size in sizes]
        upper = runs[0]["upper_bits"]
        close.vlines(sizes, lower, upper, color=CERTIFIED, linewidth=10, alpha=0.4, label="certified at every seed")
        close.set_xscale("log", base=2)
        close.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
        close.minorticks_off()
        close.set_xlabel("K_Tr, pairs a training batch")
    shared_legend(figure, grid[:, 0])
    return figure


def draw(rows: Sequence[Row]) -> dict[str, Figure]:
    """The study's only picture."""
    return {"batch_size": picture(rows)}


STUDIES["batch_size"] = Study(row, table, draw, CAPTIONS)
