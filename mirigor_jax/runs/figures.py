"""Pictures of a run: plain data in, a matplotlib Figure out. This module reads, saves and shows nothing."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from jaxtyping import UInt8

from mirigor_jax.drawing import (
    CEILING,
    CERTIFIED,
    ENTROPY,
    ESTIMATE,
    IN_TRAINING,
    INK,
    LINEAR,
    LOWER_BOUND,
    NO_BOUND,
    Figure,
    empty_figure,
    floats,
    interval_ends,
    legends,
    panels,
    references,
    whiskers,
    write,
)
from mirigor_jax.mi.results import Curve
from mirigor_jax.runs.schema import EstimateEntry, InTraining, LayerEntry, Truth, UsableEntry
from mirigor_jax.tables import round_down

# Numbers of a stage that are drawn.
NUMBERS = (
    "i_class_bits",
    "i_class_lower_bits",
    "usable_bits",
    "usable_lower_bits",
    "usable_upper_bits",
    "nmi",
    "accuracy",
)
OTHERS = (NO_BOUND, IN_TRAINING, LINEAR, ENTROPY)  # colors of the estimators other than InfoNCE, in their order


def pair_sheet(
    x: UInt8[np.ndarray, "n h w 3"],
    y: UInt8[np.ndarray, "n h w 3"],
    captions_x: Sequence[str],
    captions_y: Sequence[str],
    *,
    shared: Sequence[str],
) -> Figure:
    """Draw n positive pairs, three in a row: the two views side by side, each above its caption.

    captions_x, captions_y: the captions, one per pair. shared: names of the attributes that the views share.
    """
    columns, rows = 3, math.ceil(len(x) / 3)
    height = 0.7 + 1.8 * rows
    figure = empty_figure(9.6, height, constrained=False)
    figure.suptitle(f"Positive pairs; the two views share: {', '.join(shared) or 'nothing'}", color=INK)
    # A pair takes three columns of the grid; the third is the gap before the next pair.
    grid = figure.add_gridspec(rows, 3 * columns, width_ratios=[1, 1, 0.15] * columns, wspace=0.08, hspace=0.2)
    grid.update(left=0.02, right=1, bottom=0.3 / height, top=1 - 0.5 / height)
    for view, (images, captions) in enumerate(((x, captions_x), (y, captions_y))):
        for pair, (image, caption) in enumerate(zip(images, captions, strict=True)):
            ax = figure.add_subplot(grid[pair // columns, 3 * (pair % columns) + view])
            ax.imshow(image, interpolation="nearest")
            ax.set_axis_off()
            text = textwrap.fill(caption, 22)
            ax.text(0.5, -0.03, text, transform=ax.transAxes, ha="center", va="top", fontsize=8, color=INK)
    return figure


def hardest(groups: Mapping[str, Sequence[tuple[UInt8[np.ndarray, "h w 3"], str]]]) -> Figure:
    """Draw images with captions below them, six in a row. Groups follow one below the other.

    groups: title → images with their captions.
    """
    columns, gap, caption, title = 6, 0.12, 0.46, 0.34  # all lengths are in units of an image's side
    heights = [title + math.ceil(len(images) / columns) * (1 + caption) for images in groups.values()]
    width = columns + (columns - 1) * gap
    inches = 9.6 / (width + 2 * gap)
    figure = empty_figure(9.6, inches * (sum(heights) + gap), constrained=False)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    for (words, images), top in zip(groups.items(), np.cumsum([gap / 2, *heights]), strict=False):
        ax.text(0, top + title / 2, words, fontsize=10, color=INK, va="center", parse_math=False)
        for number, (image, text) in enumerate(images):
            left, y = (number % columns) * (1 + gap), top + title + (number // columns) * (1 + caption)
            ax.imshow(image, extent=(left, left + 1, y + 1, y), interpolation="nearest")
            ax.text(left + 0.5, y + 1.03, text, ha="center", va="top", fontsize=7.5, color=INK, parse_math=False)
    ax.set(xlim=(-gap, width + gap), ylim=(sum(heights) + gap, 0), aspect="equal")
    return figure


def bars(
    truth: Truth, in_training: InTraining | None, estimate: EstimateEntry, usable: UsableEntry | None = None
) -> Figure:
    """Draw H(C), in-training MI and post-training MI of one run in bits, as in Lee et al. 2023, Fig. 4.

    Left: bars from zero. Right: the post-training values, enlarged. The estimate and InfoNCE have their intervals. The
    bar after them is filled up to the certified lower end (0 if there is none) and hatched from there to the upper end.
    The last bar is usable information, with its two ends as whiskers; it is enlarged only if it is about the class that
    the views share.
    """
    entropy, true = truth.entropy_bits, truth.mutual_information_bits
    columns = [] if entropy is None else [("H(C)", entropy, ENTROPY)]
    if in_training is not None:
        columns += [(f"in-training\nK = {in_training.k}", in_training.mi_bits, IN_TRAINING)]
    first = len(columns)  # index of the first post-training column
    read = [*zip(estimate.others, cycle(OTHERS), strict=False), (estimate.info_nce, LOWER_BOUND)]
    columns += [(f"{curve.heading}\nK = {curve.k}", curve.quoted.bits, color) for curve, color in read]
    intervals = [estimate.info_nce.quoted.interval]
    if estimate.certificate is not None:
        columns += [(f"estimate,\n{estimate.certificate}", estimate.value_bits, ESTIMATE)]
        intervals += [estimate.interval]
    labels, heights, colors = zip(*columns, strict=True)
    last = len(labels)
    measured, (t_lower, t_upper) = floats(range(last - len(intervals), last)), interval_ends(intervals)
    lower, upper = estimate.lower_bits, estimate.upper_bits
    floor = 0.0 if lower is None else lower
    certificate = "no certificate" if lower is None else f"at {100 * estimate.confidence:g} %"

    probed = [] if usable is None or usable.value_bits is None else [(usable.value_bits, usable)]
    is_close = bool(probed) and probed[0][1].shared == truth.shared
    ratios = last + 1 + len(probed), last + 1 - first + is_close  # numbers of columns
    figure, (whole, close) = panels("in-training and post-training MI, bits", "post-training, close up", ratios=ratios)
    if sum(ratios) > 10:  # keeps the labels from overlapping
        figure.set_figwidth(1.2 * sum(ratios))
    whole.bar(range(last), heights, color=colors, width=0.6)
    close.scatter(range(last), heights, color=colors, s=60, edgecolors=INK, linewidths=0.5, zorder=3)
    for ax in (whole, close):
        ax.bar(last, floor, color=CERTIFIED, width=0.6, label="certified")
        if upper is not None:
            hollow = ax.bar(last, upper - floor, bottom=floor, color="white", width=0.6, label="possible")
            hollow[0].set(edgecolor=CERTIFIED, hatch="////")
        whiskers(ax, measured, t_lower, t_upper, INK)
        references(ax, entropy, true)
        ticks = [*labels, f"{estimate.verdict}\n{certificate}", *("usable info.,\nlinear probes" for _ in probed)]
        ax.set_xticks(range(len(ticks)), ticks)
    for value, entry in probed:
        x, (low_end, high_end) = last + 1, interval_ends([entry])
        whole.bar(x, value, color=LINEAR, width=0.6)
        close.scatter(x, value, color=LINEAR, s=60, edgecolors=INK, linewidths=0.5, zorder=3)
        for ax in (whole, close):
            whiskers(ax, floats([x]), low_end, high_end, INK)
        write(whole, x, float(np.fmax(value, high_end[0])), f"{value:z.3f}")
    if in_training is not None:
        ceiling, bar = in_training.ceiling_bits, first - 1
        label = f"ceiling log₂(2K−1) = {ceiling:.3f} bits"
        whole.hlines(ceiling, bar - 0.4, bar + 0.4, color=CEILING, linestyle="--", label=label)
    for position, height in enumerate(heights):
        above = np.fmax(height, t_upper[int(position - measured[0])]) if position in measured else height
        write(whole, position, above, f"{height:z.3f}")
    if upper is not None:
        write(whole, last, upper, f"{round_down(floor):.3f} – {upper:z.3f}")
    elif lower is not None:
        write(whole, last, lower, f"≥ {round_down(lower):.3f}")
    whole.margins(y=0.1)

    probed_bits = [x for value, one in probed for x in (value, one.lower_bits, one.upper_bits) if is_close]
    near = floats([*heights[first:], *t_lower, *t_upper, lower, upper, *probed_bits])
    low, high = np.nanmin(near), np.nanmax(near)
    margin = max(0.01, 0.1 * (high - low))
    close.set(xlim=(first - 0.5, last + is_close + 0.5), ylim=(low - margin, high + margin))
    legends(whole)
    return figure


def linear(accuracies: dict[str, float], chance: dict[str, float]) -> Figure:
    """Draw the linear probe's accuracy for each task in percent, with the chance level as a dashed line.

    accuracies, chance: shares of 1, by task.
    """
    figure, (ax,) = panels("linear evaluation of the frozen encoder, accuracy in %")
    percent = [100 * accuracy for accuracy in accuracies.values()]
    bars = ax.bar(list(accuracies), percent, color=LINEAR, width=0.6)
    ax.bar_label(bars, fmt="%.2f %%", padding=3, fontsize=8, color=INK)
    levels = [100 * chance[task] for task in accuracies]
    positions = np.arange(len(levels))
    ax.hlines(levels, positions - 0.4, positions + 0.4, color=INK, linestyle="--", label="chance")
    ax.set(ylim=(0, 108), yticks=range(0, 101, 20), xlabel="task")
    legends(ax)
    return figure


def critic(estimate: EstimateEntry) -> Figure:
    """Draw the critic's fit with the step that validation chose, and each estimator against K.

    Each estimator is drawn with its interval, its ceiling and its value for an optimal critic.
    """
    fit, upper = estimate.fit, estimate.upper_bits
    figure, (left, right) = panels(f"fit of the critic at K = {fit.k}, bits", "estimates on test images, bits")
    left.plot(
        fit.history.step, floats(fit.history.validation_bits), color=LOWER_BOUND, linewidth=2.5, label="validation part"
    )
    left.plot(fit.history.step, floats(fit.history.fit_bits), color=INK, linewidth=1, linestyle="--", label="fit part")
    left.axvline(fit.best_step, color=INK, linestyle=":", label=f"chosen: step {fit.best_step:,}")
    left.set_xlabel("critic step")

    drawn = [*zip(estimate.others, cycle(OTHERS), cycle("s^vD"), strict=False), (estimate.info_nce, LOWER_BOUND, "o")]
    for curve, color, marker in drawn:
        k, bits, t_lower, t_upper, most = _points(curve)
        bound = "lower bound" if curve.is_bound else "not a bound"
        right.plot(k, bits, color=color, marker=marker, label=f"{curve.heading}, {bound}, interval")
        whiskers(right, k, t_lower, t_upper, color)
        if np.isfinite(most).any():
            right.plot(k, most, color=color, linestyle=":", label=f"{curve.heading} of an optimal critic")
    if upper is not None:
        right.axhline(upper, color=CERTIFIED, linewidth=2, alpha=0.7, label=f"upper end = {upper:.3f}")
    # The limits are fixed before the ceilings are drawn: ceilings far above the estimates would flatten the rest.
    right.set_ylim(right.get_ylim())
    for (curve, _, _), style in zip(reversed(drawn), cycle(("-.", "--", ":")), strict=False):
        ceiling = floats([reading.ceiling_bits for reading in curve.at.values()])
        if np.isfinite(ceiling).any():
            outside = " (above)" if ceiling[0] > right.get_ylim()[1] else ""
            label = f"ceiling of {curve.heading}: {ceiling[0]:.1f} to {ceiling[-1]:.1f}{outside}"
            right.plot(k, ceiling, color=CEILING, linestyle=style, label=label)
    right.set_xscale("log", base=2)
    right.set_xticks(k, [f"{value:.0f}" for value in k])
    right.set_xlabel("K, pairs a batch")
    legends(left, right)
    return figure


def _points(curve: Curve) -> tuple[np.ndarray, ...]:
    """(K, values, lower ends, upper ends, values of an optimal critic) of a curve; NaN if a number is not known."""
    k, bits, most = (
        floats(column) for column in zip(*((k, x.bits, x.max_bits) for k, x in curve.at.items()), strict=True)
    )
    return k, bits, *interval_ends([reading.interval for reading in curve.at.values()]), most


def layers(rows: Sequence[LayerEntry], entropy_bits: float, confidence: float) -> Figure:
    """Draw every stage of an encoder against depth: information about the class, and a linear probe's results.

    rows: the stages in the order of depth. entropy_bits: H(C). confidence: of each stage's ends.
    """
    figure, (information, probed) = panels("information about the class, bits", "linear probe on test images, %")
    figure.set_figwidth(max(9.6, 1.1 * len(rows)))
    at = np.arange(len(rows))
    columns = {name: floats([getattr(row, name) for row in rows]) for name in NUMBERS}
    information.fill_between(
        at,
        columns["usable_lower_bits"],
        columns["usable_upper_bits"],
        color=CERTIFIED,
        alpha=0.25,
        linewidth=0,
        label=f"usable information is in here, at {100 * confidence:g} %",
    )
    information.plot(at, columns["usable_bits"], color=CERTIFIED, marker="o", markersize=4, label="usable information")
    information.plot(at, columns["i_class_bits"], color=LOWER_BOUND, marker="s", markersize=4, label="I_class")
    information.plot(
        at,
        columns["i_class_lower_bits"],
        color=LOWER_BOUND,
        linestyle=":",
        label=f"I_class, certified at {100 * confidence:g} %",
    )
    references(information, entropy_bits, None)
    probed.plot(at, 100 * columns["accuracy"], color=LINEAR, marker="o", markersize=4, label="accuracy")
    probed.plot(at, 100 * columns["nmi"], color=IN_TRAINING, marker="s", markersize=4, label="NMI")
    for ax in (information, probed):
        ax.set_xticks(at, [row.stage for row in rows], rotation=45 if len(rows) > 8 else 0)
        ax.set_xlabel("stage, in the order of depth")
    legends(information, probed)
    return figure
