"""The picture of an evaluation, made from its values alone."""

import textwrap
from collections.abc import Mapping

import numpy as np

from mirigor_jax.drawing import CERTIFIED, INK, LINEAR, LOWER_BOUND, NO_BOUND, Axes, Figure, floats, legends, panels
from mirigor_jax.metrics.table import Group, grouped, row_name

COLORS: dict[Group, str] = {"class": CERTIFIED, "augmentation": NO_BOUND, "images": LOWER_BOUND, "probes": LINEAR}


def evaluation(values: Mapping[str, float]) -> Figure:
    """Draw the probes' metrics at the left, and the other metrics at the right with one bar for each pairing.

    values: of the metrics, by their names in METRICS.
    """
    figure, (left, right) = panels("probes of the frozen encoder", "geometry of the unit representations")
    _bars(left, values, "probes")
    _bars(right, values, "class", "augmentation", "images")
    legends(right)
    return figure


def _bars(ax: Axes, values: Mapping[str, float], *groups: Group) -> None:
    """Draw the bars of each metric around its tick, one for each group that has the metric."""
    columns, rows = grouped(values, *groups)
    heights = np.array([floats(row) for row in rows.values()]).reshape(len(rows), len(columns))
    drawn = np.isfinite(heights)
    step = 0.8 / max(1, drawn.sum(axis=0).max(initial=1))
    beside = step * (np.cumsum(drawn, axis=0) - 1 - (drawn.sum(axis=0, keepdims=True) - 1) / 2)
    for group, row, shift in zip(rows, heights, beside, strict=True):
        x, width = np.arange(len(columns)) + shift, min(0.6, 0.9 * step)
        bars = ax.bar(x, row, color=COLORS[group], width=width, label=row_name(group))
        texts = [metric.text(value) if np.isfinite(value) else "" for metric, value in zip(columns, row, strict=True)]
        ax.bar_label(bars, texts, padding=3, fontsize=7, color=INK)
    ax.axhline(0, color=INK, linewidth=0.8)
    # A no-break space keeps an arrow beside its word.
    headings = [
        textwrap.fill(metric.column.replace(" ↑", "\u00a0↑").replace(" ↓", "\u00a0↓"), 12) for metric in columns
    ]
    ax.set_xticks(range(len(columns)), headings)
    ax.margins(y=0.15)
