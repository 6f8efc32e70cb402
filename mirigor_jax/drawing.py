"""The common style of all pictures: colors, panels, legends and marks. This module reads, saves and shows nothing."""

import io
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = Any  # importing matplotlib takes half a second, and a run draws only at its end

# Okabe & Ito's colors, which color-blind readers can tell apart; a quantity has one color in every picture.
INK, GRID, ENTROPY = "#333333", "#E5E5E5", "#999999"
IN_TRAINING, NO_BOUND, LOWER_BOUND, CERTIFIED, CEILING = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"
LINEAR, ESTIMATE = "#56B4E9", "#F0E442"


def empty_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """An empty figure, which a notebook shows. width, height: inches.

    constrained: whether matplotlib arranges its contents, or the caller.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained" if constrained else None)
    # IPython shows a Figure only after `%matplotlib inline`, and any object that has this method. A subclass would have
    # to import matplotlib together with this module.
    vars(figure)["_repr_png_"] = partial(_png, figure)
    return figure


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def panels(*titles: str, ratios: Sequence[int] | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with a styled panel for each title, side by side."""
    figure = empty_figure(4.8 * max(len(titles), 1.25), 4.2)
    axes = list(figure.subplots(1, len(titles), squeeze=False, width_ratios=ratios)[0])
    for ax, title in zip(axes, titles, strict=True):
        style(ax, title)
    return figure, axes


def style(ax: Axes, title: str) -> None:
    """Give a panel the common style and a title."""
    ax.set_title(title, loc="left", fontsize=10, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color=GRID)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8, labelcolor=INK)
    ax.xaxis.label.set(fontsize=9, color=INK)


def legends(*axes: Axes) -> None:
    """Draw a legend under each panel, so that it covers no data."""
    for ax in axes:
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)


def shared_legend(figure: Figure, axes: Sequence[Axes] | np.ndarray) -> None:
    """Draw one legend under all panels, with each label once."""
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def line_of_means(ax: Axes, k: np.ndarray, values: np.ndarray, color: str, marker: str, *, label: str) -> None:
    """Draw the value of each run, faint, and a line through the mean value at each k."""
    sizes = np.unique(k)
    ax.plot(k, values, marker, color=color, markersize=3, alpha=0.5)
    ax.plot(sizes, [values[k == size].mean() for size in sizes], color=color, marker=marker, markersize=5, label=label)


def references(ax: Axes, entropy_bits: float | None, true_bits: float | None) -> None:
    """Draw a line at H(C), and one at the true MI if it differs."""
    if entropy_bits is not None:
        ax.axhline(entropy_bits, color=ENTROPY, label=f"H(C) = {entropy_bits:.3f} bits", zorder=1.5)
    if true_bits is not None and (entropy_bits is None or not math.isclose(true_bits, entropy_bits, abs_tol=1e-6)):
        ax.axhline(true_bits, color=INK, linestyle="--", label=f"true MI = {true_bits:.3f} bits", zorder=1.5)


def whiskers(ax: Axes, x: np.ndarray, lower: np.ndarray, upper: np.ndarray, color: str) -> None:
    """Draw a whisker from lower to upper at each x."""
    ax.errorbar(x, (lower + upper) / 2, (upper - lower) / 2, fmt="none", ecolor=color, capsize=4, zorder=4)


def write(ax: Axes, x: int, y: float, text: str) -> None:
    """Write a text above a point."""
    ax.annotate(
        text,
        (x, y),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8,
        color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        zorder=5,
    )


def interval_ends(intervals: Sequence[Any]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """(lower ends, upper ends) of the intervals, in bits; NaN for None.

    intervals: objects with lower_bits and upper_bits, or None.
    """
    known = [(None, None) if one is None else (one.lower_bits, one.upper_bits) for one in intervals]
    return floats([lower for lower, _ in known]), floats([upper for _, upper in known])


def floats(values: Sequence[float | int | None] | np.ndarray) -> Float[np.ndarray, " n"]:
    """The values as floats, with NaN, which is not drawn, for None and infinities.

    The interval of a single batch and a null in report.json are such values.
    """
    array = np.asarray(values, dtype=float)
    return np.where(np.isfinite(array), array, np.nan)
