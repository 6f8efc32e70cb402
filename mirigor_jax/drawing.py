"""The house style of pictures: colors, panels, legends and marks. Nothing is read, saved or shown here."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = Any  # matplotlib takes half a second to import, and a run draws at its end

# Okabe & Ito's colors, which color-blind readers can tell apart; a quantity has one color in every picture.
INK, GRID, ENTROPY = "#333333", "#E5E5E5", "#999999"
IN_TRAINING, NO_BOUND, LOWER_BOUND, CERTIFIED, CEILING = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"
LINEAR, ESTIMATE = "#56B4E9", "#F0E442"


def empty_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """A figure of so many inches, to be filled. constrained: whether matplotlib places what is in it, or the caller."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained" if constrained else None)


def panels(*titles: str, ratios: Sequence[int] | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with a styled panel for each title, side by side."""
    figure = empty_figure(4.8 * max(len(titles), 1.25), 4.2)
    axes = list(figure.subplots(1, len(titles), squeeze=False, width_ratios=ratios)[0])
    for ax, title in zip(axes, titles, strict=True):
        style(ax, title)
    return figure, axes


def style(ax: Axes, title: str) -> None:
    """How every panel looks."""
    ax.set_title(title, loc="left", fontsize=10, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color=GRID)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8, labelcolor=INK)
    ax.xaxis.label.set(fontsize=9, color=INK)


def legends(*axes: Axes) -> None:
    """One legend under each panel, where it can cover no data."""
    for ax in axes:
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)


def shared_legend(figure: Figure, axes: Sequence[Axes] | np.ndarray) -> None:
    """One legend under all panels, each label once."""
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def line_of_means(ax: Axes, k: np.ndarray, values: np.ndarray, color: str, marker: str, *, label: str) -> None:
    """Every run's value, faint, and the line through the means of those of one k."""
    sizes = np.unique(k)
    ax.plot(k, values, marker, color=color, markersize=3, alpha=0.5)
    ax.plot(sizes, [values[k == size].mean() for size in sizes], color=color, marker=marker, markersize=5, label=label)


def references(ax: Axes, entropy_bits: float | None, true_bits: float | None) -> None:
    """Lines at H(C), and at the true MI where it differs."""
    if entropy_bits is not None:
        ax.axhline(entropy_bits, color=ENTROPY, label=f"H(C) = {entropy_bits:.3f} bits", zorder=1.5)
    if true_bits is not None and (entropy_bits is None or not math.isclose(true_bits, entropy_bits, abs_tol=1e-6)):
        ax.axhline(true_bits, color=INK, linestyle="--", label=f"true MI = {true_bits:.3f} bits", zorder=1.5)


def whiskers(ax: Axes, x: np.ndarray, lower: np.ndarray, upper: np.ndarray, color: str) -> None:
    """A whisker from lower to upper at each x."""
    ax.errorbar(x, (lower + upper) / 2, (upper - lower) / 2, fmt="none", ecolor=color, capsize=4, zorder=4)


def write(ax: Axes, x: int, y: float, text: str) -> None:
    """A text above a point."""
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
    """(lower, upper ends) in bits of intervals with these two; NaN for None."""
    known = [(None, None) if one is None else (one.lower_bits, one.upper_bits) for one in intervals]
    return floats([lower for lower, _ in known]), floats([upper for _, upper in known])


def floats(values: Sequence[float | int | None] | np.ndarray) -> Float[np.ndarray, " n"]:
    """NaN, which is not drawn, for what is not a finite number: an interval of one batch, or a null of report.json."""
    array = np.asarray(values, dtype=float)
    return np.where(np.isfinite(array), array, np.nan)
