"""The picture of estimates: each value with its interval, its seeds and its certified interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mirigor_jax.drawing import (
    CEILING,
    CERTIFIED,
    GRID,
    INK,
    LOWER_BOUND,
    NO_BOUND,
    Figure,
    floats,
    interval_ends,
    legends,
    panels,
)
from mirigor_jax.tables import round_down


def estimators(estimates: Sequence[Any], *, true_bits: float | None = None) -> Figure:
    """Draw one row for each estimate, in bits: its value, interval and seeds, and a band for the certified interval.

    Color and the word under the name tell lower bounds from other estimates, which are drawn with the InfoNCE of the
    same critic. At the right stand the value, the certified lower end and the ceiling.
    estimates: each is an `Estimate`, or has its fields.
    true_bits: the true MI, drawn as a line; None: not known.
    """
    rows = [vars(estimate) for estimate in estimates]
    names = ("value_bits", "lower_bits", "upper_bits", "ceiling_bits")
    value, lower, upper, ceiling = (floats([row[name] for row in rows]) for name in names)
    t_lower, t_upper = interval_ends([row["interval"] for row in rows])
    readings = [row["info_nce"] for row in rows]
    bound = floats([None if reading is None else reading.bits for reading in readings])
    y = np.arange(len(rows))
    is_bound = np.array([row["kind"] == "lower bound" for row in rows])
    seeds = [(bits, i + 0.25) for i, row in enumerate(rows) if len(row["seed_bits"]) > 1 for bits in row["seed_bits"]]

    figure, (ax,) = panels("estimates of mutual information, bits")
    figure.set_size_inches(8, 1.4 + 0.55 * len(rows))
    ax.grid(False, axis="y")
    ax.grid(axis="x", color=GRID)
    # The values set the limits of the axis first: a far ceiling or a very wide interval would squeeze everything else.
    near = floats([0.0, *value, *lower, *upper, *bound, *(bits for bits, _ in seeds), true_bits])
    low, high = np.nanmin(near), np.nanmax(near)
    margin = max(0.05, 0.25 * (high - low))
    low, high = max(np.nanmin([low, *t_lower]), low - margin), min(np.nanmax([high, *t_upper]), high + margin)
    ax.set(xlim=(low - 0.2 * margin, high + 0.4 * margin), ylim=(len(rows) - 0.5, -0.5))

    if (known := np.isfinite(lower)).any():
        ends = np.where(np.isfinite(upper), upper, ax.get_xlim()[1])
        label = f"certified at {100 * rows[0]['confidence']:g} %: MI is in here"
        ax.barh(y[known], (ends - lower)[known], 0.62, lower[known], color=CERTIFIED, alpha=0.25, label=label)
        ax.vlines(lower, y - 0.31, y + 0.31, color=CERTIFIED, linewidth=2.5)
    for shown, color, kind in ((is_bound, LOWER_BOUND, "lower bound"), (~is_bound, NO_BOUND, "not a bound")):
        if shown.any():
            error = np.stack([value - t_lower, t_upper - value])[:, shown]
            label = f"{kind}, interval"
            ax.errorbar(value[shown], y[shown], xerr=error, fmt="o", capsize=4, color=color, label=label)
    if seeds:
        ax.plot(*np.transpose(seeds), ".", color=INK, markersize=4, label="each seed")
    if np.isfinite(bound).any():
        ax.plot(
            bound,
            y - 0.25,
            "D",
            color=LOWER_BOUND,
            markersize=5,
            markerfacecolor="white",
            label="InfoNCE of the same critic",
        )
    if (ceiling <= ax.get_xlim()[1]).any():
        ax.vlines(ceiling, y - 0.4, y + 0.4, color=CEILING, linestyle="--", label="ceiling")
    if true_bits is not None:
        ax.axvline(true_bits, color=INK, linestyle="--", label=f"true MI = {true_bits:.3f} bits", zorder=1.5)

    ax.set_yticks(y, [f"{row['name']}\n{row['kind']}" for row in rows])
    labels = [f"{bits:z.3f}" for bits in value]
    for i in range(len(rows)):
        labels[i] += f"\n≥ {round_down(lower[i]):.3f}" if np.isfinite(lower[i]) else ""
        labels[i] += f"\nceiling {ceiling[i]:.1f}" if np.isfinite(ceiling[i]) else ""
    right = ax.secondary_yaxis("right")
    right.set_yticks(y, labels)
    right.tick_params(length=0, labelsize=8, labelcolor=INK)
    right.spines["right"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def usable_information(result: Any) -> Figure:
    """Draw usable information with its ends, and the distribution of the rows' pointwise information. Bits.

    result: a `UsableInformation`, or has its fields.
    """
    figure, (ax, rows) = panels("usable information, bits", "rows by pointwise information, bits", ratios=(2, 3))
    ax.grid(False)
    ax.set(xlim=(-1, 1), xticks=[])
    ax.use_sticky_edges = False  # so that the lower end is not on the panel's edge
    if result.lower_bits is not None:
        top = result.entropy_bits if result.upper_bits is None else result.upper_bits
        label = f"at {100 * result.confidence:g} %: usable information is in here"
        ax.bar([0], [top - result.lower_bits], 0.6, [result.lower_bits], color=CERTIFIED, alpha=0.25, label=label)
        ax.hlines(result.lower_bits, -0.3, 0.3, color=CERTIFIED, linewidth=2.5)
        if result.upper_bits is not None:
            ax.hlines(result.upper_bits, -0.3, 0.3, color=CERTIFIED, linewidth=2.5)
            ax.hlines(result.kl_upper_bits, -0.3, 0.3, color=CERTIFIED, linestyle=":", label="simpler upper end, KL")
    ax.plot([0], [result.value_bits], "o", color=LOWER_BOUND, label="estimate")
    ax.axhline(result.entropy_bits, color=CEILING, linestyle="--", label=f"H(C) = {result.entropy_bits:.3f}")
    rows.hist(result.pointwise_bits, bins=60, color=LOWER_BOUND)
    rows.axvline(0, color=INK, linestyle="--", label="no information: q(c|h) = p(c)")
    rows.set(yscale="log", ylabel="unseen rows")
    legends(ax, rows)
    return figure


def usable_order(result: Any) -> Figure:
    """Draw each encoder's usable information with its ends, and each pair's difference with its verdict. Bits.

    result: a `UsableOrder`. The encoder of the largest value is on top.
    """
    figure, (ax, differences) = panels("usable information, bits", "difference, bits")
    figure.set_size_inches(11, 1.8 + 0.35 * max(len(result.encoders), len(result.pairs)))
    names = sorted(result.encoders, key=lambda name: result.encoders[name].value_bits)
    found = [vars(result.encoders[name]) for name in names]
    value, lower, upper, entropy = (
        floats([one[name] for one in found]) for name in ("value_bits", "lower_bits", "upper_bits", "entropy_bits")
    )
    y = np.arange(len(names))
    label = f"at {100 * result.confidence:g} %: usable information is in here"
    ax.barh(y, upper - lower, 0.6, lower, color=CERTIFIED, alpha=0.25, label=label)
    ax.plot(value, y, "o", color=LOWER_BOUND, label="estimate")
    ax.axvline(entropy[0], color=CEILING, linestyle="--", label=f"H(C) = {entropy[0]:.3f}")
    ax.set_yticks(y, names)
    t_lower, t_upper = interval_ends([pair.interval for pair in result.pairs])
    for at, pair in enumerate(result.pairs):
        color = NO_BOUND if pair.larger is None else CERTIFIED
        differences.plot([t_lower[at], t_upper[at]], [at, at], color=color)
        differences.plot([pair.difference_bits], [at], "o", color=color)
    differences.axvline(0, color=INK, linestyle="--")
    differences.set_yticks(range(len(result.pairs)), [pair.verdict for pair in result.pairs])
    differences.yaxis.tick_right()
    for one in (ax, differences):
        one.grid(False, axis="y")
        one.grid(axis="x", color=GRID)
    legends(ax)
    return figure
