"""The study `infomin_tasks`: which tasks does an encoder learn from each pairing? After Lee et al. 2023, Figs. 6, 7."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mirigor_jax import tables
from mirigor_jax.drawing import INK, Figure, empty_figure
from mirigor_jax.files import AnyPath
from mirigor_jax.runs.schema import ImageReport
from mirigor_jax.studies.rows import TASKS, Row, groups, mean, run_row
from mirigor_jax.studies.table import STUDIES, Study

CAPTIONS = {
    "infomin_tasks": "Accuracy and I_class of each task for each training pairing, after Lee et al. 2023, Figs. 6, 7.",
}


def row(done: ImageReport, folder: AnyPath) -> Row:
    """The columns that every study reads from a run, and its estimate for every task."""
    names = ("value_bits", "lower_bits", "upper_bits", "entropy_bits", "nt_xent_bits")
    tasks = {task: {name: getattr(done.estimates[task], name) for name in names} for task in TASKS}
    return {**run_row(done), "estimates": tasks}


def table(rows: Sequence[Row]) -> str:
    """Each encoder's two heat maps in numbers: a line for each evaluated task, a column for each training pairing."""
    sections = []
    for (encoder,), runs in groups(rows, "encoder").items():
        columns = groups(runs, "pairing")

        def matrix(corner: str, cell: Callable[[Sequence[Row], str], str], columns=columns) -> str:
            header = (corner, *(f"trained on {pairing}" for (pairing,) in columns))
            return tables.grid(header, [(task, *(cell(same, task) for same in columns.values())) for task in TASKS])

        def accuracy(same: Sequence[Row], task: str) -> str:
            return mean([100 * row["accuracy"][task] for row in same], ".2f")

        def information(same: Sequence[Row], task: str) -> str:
            of = [row["estimates"][task] for row in same]
            lower = tables.round_down(min(row["lower_bits"] for row in of))
            return f"{mean([row['value_bits'] for row in of])} in [{lower:.3f}, {of[0]['upper_bits']:.3f}]"

        sections += [f"## {encoder}", matrix("accuracy, %", accuracy), matrix("I_class, bits", information)]
    legend = (
        "I_class: each cell has the point estimate of the certificate's lower bound, and the interval certified for "
        "I_class. The paper's heat maps (Lee et al. 2023, Figs. 6 and 7) have no numbers. In its words (§IV-C), the "
        "diagonal is high, all four tasks are high if training shares all attributes, and position is high after any "
        "training."
    )
    return "\n\n".join([*sections, legend])


def picture(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw two heat maps for each encoder: the accuracy, and I_class as a share of H(C).

    rows: the study's rows, one for each run.
    The training pairings go across and the evaluated tasks go up. A cell is the mean over seeds; below the estimate of
    I_class it has the certified lower end. The layout is that of Lee et al. 2023, Figs. 6 and 7.
    """
    encoders, tasks = (list(dict.fromkeys(row["encoder"] for row in rows))), list(rows[0]["estimates"])
    figure = empty_figure(9.6, 4.1 * len(encoders))
    grid = figure.subplots(len(encoders), 2, squeeze=False)
    for encoder, (left, right) in zip(encoders, grid, strict=True):
        accuracy, estimate, lower = (np.full((len(tasks), len(tasks)), np.nan) for _ in range(3))
        for column, pairing in enumerate(tasks):
            runs = [row for row in rows if (row["encoder"], row["pairing"]) == (encoder, pairing)]
            for line, task in enumerate(tasks if runs else []):
                of = [row["estimates"][task] for row in runs]
                accuracy[line, column] = 100 * np.mean([row["accuracy"][task] for row in runs])
                estimate[line, column] = 100 * np.mean([row["value_bits"] / row["entropy_bits"] for row in of])
                lower[line, column] = min(row["lower_bits"] for row in of)
        for ax, title, values, note in (
            (left, "linear accuracy, %", accuracy, None),
            (right, "I_class in % of H(C); below, certified bits", estimate, lower),
        ):
            image = ax.imshow(values, vmin=0, vmax=100, cmap="Blues", origin="lower")
            figure.colorbar(image, ax=ax, shrink=0.8).ax.tick_params(labelsize=8, labelcolor=INK)
            for line, column in np.argwhere(np.isfinite(values)):
                text = f"{values[line, column]:z.1f}"
                text += "" if note is None else f"\n≥ {tables.round_down(note[line, column]):.3f}"
                color = "white" if values[line, column] > 50 else INK
                ax.text(column, line, text, ha="center", va="center", fontsize=9, color=color)
            ax.set_title(f"{encoder}: {title}", loc="left", fontsize=10, color=INK)
            ax.set_xticks(range(len(tasks)), tasks)
            ax.set_yticks(range(len(tasks)), tasks)
            ax.set_xlabel("shared in training", fontsize=9, color=INK)
            ax.set_ylabel("evaluated task", fontsize=9, color=INK)
            ax.tick_params(length=0, labelsize=8, labelcolor=INK)
            ax.spines[:].set_visible(False)
    return figure


def draw(rows: Sequence[Row]) -> dict[str, Figure]:
    """The study's only picture."""
    return {"infomin_tasks": picture(rows)}


STUDIES["infomin_tasks"] = Study(row, table, draw, CAPTIONS)
