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
    empty_figure,
    floats,
    interval_ends,
    legends,
    panels,
    shared_legend,
    style,
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


def gaussian_v_information(result: Any) -> Figure:
    """Draw Gaussian V-information with its interval, and the distribution of the rows' pointwise information. Bits.

    result: a `GaussianVInformation`, or has its fields.
    """
    figure, (ax, rows) = panels("Gaussian V-information, bits", "rows by pointwise information, bits", ratios=(2, 3))
    ax.grid(False)
    ax.set(xlim=(-1, 1), xticks=[])
    if result.interval is not None:
        ends, label = interval_ends([result.interval]), f"{100 * result.confidence:g} % interval of its expectation"
        ax.bar([0], ends[1] - ends[0], 0.6, ends[0], color=LOWER_BOUND, alpha=0.25, label=label)
    ax.plot([0], [result.value_bits], "o", color=LOWER_BOUND, label="estimate, by a map fitted on other rows")
    if result.in_sample_bits is not None:
        ax.plot([0], [result.in_sample_bits], "v", color=NO_BOUND, label="fitted and read on all rows")
    total = f"tr Cov(y) of the test rows = {result.total_bits:.3f}"
    ax.axhline(result.total_bits, color=CEILING, linestyle="--", label=total)
    ax.axhline(0, color=INK, linewidth=0.8)
    rows.hist(result.pointwise_bits, bins=60, color=LOWER_BOUND)
    rows.axvline(0, color=INK, linestyle="--", label="no information: as far from φ(x) as from the mean of y")
    rows.set(yscale="log", ylabel="test rows")
    shared_legend(figure, [ax, rows])
    return figure


def usable_order(result: Any) -> Figure:
    """Draw each encoder's usable information with its ends, and the verdict of each pair in a triangle beside it. Bits.

    result: a `UsableOrder`. The encoder of the largest value is on top, and every mark stands in the row of one encoder
    and the column of another that has a smaller value.
    """
    names, m = result.ranking, len(result.encoders)
    side = 0.28 * m + 1.0  # inches
    figure = empty_figure(7.5 + side, 2.4 + side)
    ax, triangle = figure.subplots(1, 2, width_ratios=(4.5, max(2.2, side)), sharey=True)
    style(ax, "usable information, bits")
    style(triangle, "row > column?")
    found = [vars(result.encoders[name]) for name in names]
    value, lower, upper, entropy = (
        floats([one[name] for one in found]) for name in ("value_bits", "lower_bits", "upper_bits", "entropy_bits")
    )
    y = np.arange(m)
    label = f"usable information is in here, certified at {100 * result.confidence:g} % for each encoder alone"
    ax.barh(y, upper - lower, 0.6, lower, color=CERTIFIED, alpha=0.25, label=label)
    ax.plot(value, y, "o", color=LOWER_BOUND, markersize=5, label="estimate")
    ax.axvline(entropy[0], color=CEILING, linestyle="--", label=f"H(C) = {entropy[0]:.3f}")
    ax.set_yticks(y, names)
    near = floats([*value, *lower, *upper, *entropy])
    margin = 0.04 * (np.nanmax(near) - np.nanmin(near))
    ax.set_xlim(np.nanmin(near) - margin, np.nanmax(near) + margin)
    ax.grid(False, axis="y")
    ax.grid(axis="x", color=GRID)
    place = {name: at for at, name in enumerate(names)}
    for words, color, filled, belongs in (
        (
            "certified, even if the column's probes\nmay have twice the norm",
            CERTIFIED,
            True,
            lambda pair: pair.at_twice_the_norm,
        ),
        ("certified", CERTIFIED, False, lambda pair: pair.larger is not None and not pair.at_twice_the_norm),
        ("not told apart", GRID, True, lambda pair: pair.larger is None),
    ):
        marked = [sorted((place[pair.a], place[pair.b])) for pair in result.pairs if belongs(pair)]
        if marked:
            rows, columns = np.transpose(marked)
            face = color if filled else "white"
            triangle.plot(columns, rows, "s", color=color, markerfacecolor=face, markersize=11, label=words)
    triangle.set_xticks(y[1:], names[1:], rotation=90)
    triangle.set(xlim=(0, m), ylim=(m - 0.5, -0.5))
    triangle.tick_params(axis="y", left=False, labelleft=False)
    triangle.grid(False)
    triangle.spines[["left", "bottom"]].set_visible(False)
    shared_legend(figure, [ax, triangle])
    return figure


def discrete_information(result: Any) -> Figure:
    """Draw a row for each measure of discrete variables, in bits: its value, its certified ends and its plug-in value.

    result: a `DiscreteInformation`, or has its fields. Of an exact table there are only values.
    """
    measures = [vars(one) for one in result.measures.values()]
    names = ("value_bits", "plug_in_bits", "lower_bits", "upper_bits")
    value, plug_in, lower, upper = (floats([one[name] for one in measures]) for name in names)
    y = np.arange(len(measures))
    figure, (ax,) = panels("information of discrete variables, bits")
    figure.set_size_inches(7, 1.5 + 0.3 * len(measures))
    ax.grid(False, axis="y")
    ax.grid(axis="x", color=GRID)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.use_sticky_edges = False  # so that no end is on the panel's edge
    if result.rows is None:
        ax.plot(value, y, "o", color=LOWER_BOUND, label="exact")
    else:
        label = f"certified at {100 * result.confidence:g} % for each measure alone"
        ax.barh(y, upper - lower, 0.6, lower, color=CERTIFIED, alpha=0.25, label=label)
        for end in (lower, upper):
            ax.vlines(end, y - 0.3, y + 0.3, color=CERTIFIED, linewidth=2)
        ax.plot(value, y, "o", color=NO_BOUND, label="estimate, corrected for bias")
        ax.plot(plug_in, y, "x", color=INK, label="plug-in value")
    ax.set_yticks(y, [one["name"] for one in measures])
    ax.set_ylim(len(measures) - 0.5, -0.5)
    shared_legend(figure, [ax])
    return figure
