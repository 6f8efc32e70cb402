"""The picture of an evaluation, made from its values alone."""

import re
import textwrap
from collections.abc import Mapping

import numpy as np

from mirigor_jax.drawing import CERTIFIED, INK, LINEAR, LOWER_BOUND, NO_BOUND, Axes, Figure, floats, legends, panels
from mirigor_jax.metrics.table import Group, grouped, row_name, shown

# Title of a panel → the groups of its metrics.
PANELS: dict[str, tuple[Group, ...]] = {
    "probes of the frozen encoder": ("probes",),
    "geometry of the unit representations": ("class", "augmentation"),
    "spectrum and closed-form scores": ("images",),
}
COLORS: dict[Group, str] = {"class": CERTIFIED, "augmentation": NO_BOUND, "images": LOWER_BOUND, "probes": LINEAR}


def evaluation(values: Mapping[str, float | None]) -> Figure:
    """Draw a panel of the probes' metrics, one of the pairs' with a bar for each pairing, and one of the others.

    values: of the metrics, by their names in METRICS; None for one that is not defined. A panel without values is left
        out.
    """
    drawn = {metric.group for metric, _ in shown(values)}
    titles = [title for title, groups in PANELS.items() if drawn & set(groups)]
    # A column with two bars takes half as much width again.
    contents = [grouped(values, *PANELS[title]) for title in titles]
    figure, axes = panels(*titles, ratios=[len(columns) * (1 + len(rows)) for columns, rows in contents])
    for ax, title in zip(axes, titles, strict=True):
        _bars(ax, values, *PANELS[title])
        if len(PANELS[title]) > 1:
            legends(ax)
    return figure


def _bars(ax: Axes, values: Mapping[str, float | None], *groups: Group) -> None:
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
    # A no-break space keeps an arrow beside its words.
    headings = [
        textwrap.fill(re.sub(r" (?=[↑↓→])|(?<=→) ", "\u00a0", metric.column), 9, break_long_words=False)
        for metric in columns
    ]
    ax.set_xticks(range(len(columns)), headings, fontsize=7)
    ax.margins(y=0.15)
