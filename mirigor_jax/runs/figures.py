"""Pictures of a run: plain data in, a matplotlib Figure out. Nothing is read, saved or shown here."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure

from mirigor_jax.drawing import (
    CEILING,
    CERTIFIED,
    ENTROPY,
    IN_TRAINING,
    INK,
    LINEAR,
    PAPER,
    STRICT,
    floats,
    legends,
    panels,
    references,
    t_interval,
    write,
)
from mirigor_jax.tables import round_down


def pair_sheet(
    x: UInt8[np.ndarray, "n h w 3"],
    y: UInt8[np.ndarray, "n h w 3"],
    captions_x: Sequence[str],
    captions_y: Sequence[str],
    *,
    shared: Sequence[str],
) -> Figure:
    """n positive pairs, three a row: the two views side by side, each over its attributes."""
    columns, rows = 3, math.ceil(len(x) / 3)
    height = 0.7 + 1.8 * rows
    figure = Figure(figsize=(9.6, height), dpi=150)
    figure.suptitle(f"Positive pairs; the two views share: {', '.join(shared) or 'nothing'}", color=INK)
    # A pair takes three columns of the grid; the third is the gap before the next pair.
    grid = figure.add_gridspec(rows, 3 * columns, width_ratios=[1, 1, 0.15] * columns, wspace=0.08, hspace=0.2)
    grid.update(left=0.02, right=1, bottom=0.3 / height, top=1 - 0.5 / height)
    for view, (images, captions) in enumerate(((x, captions_x), (y, captions_y))):
        for pair, (image, caption) in enumerate(zip(images, captions, strict=True)):
            ax = figure.add_subplot(grid[pair // columns, 3 * (pair % columns) + view])
            ax.imshow(image, interpolation="nearest")
            ax.set_axis_off()
            words = textwrap.fill(caption, 22)
            ax.text(0.5, -0.03, words, transform=ax.transAxes, ha="center", va="top", fontsize=8, color=INK)
    return figure


def training(
    steps: Int[np.ndarray, " n"],
    loss_nats: Float[np.ndarray, " n"],
    mi_bits: Float[np.ndarray, " n"],
    *,
    ceiling_bits: float,
    entropy_bits: float | None,
    true_bits: float | None,
) -> Figure:
    """Training loss in nats and in-training MI in bits: the values (faint) and a running mean of 5 % of them.

    ceiling_bits: log2(2K-1) of the training batch (Lee et al. 2023, Prop. II.2). true_bits is drawn where it differs
    from H(C).
    """
    figure, (loss, mi) = panels("training loss, nats", "in-training MI, bits")
    window = np.full(max(1, len(steps) // 20), 1.0)
    window /= len(window)
    for ax, values in ((loss, loss_nats), (mi, mi_bits)):
        ax.plot(steps, values, color=IN_TRAINING, alpha=0.3, linewidth=0.8, label="each value")
        centres, means = np.convolve(steps, window, "valid"), np.convolve(values, window, "valid")
        ax.plot(centres, means, color=IN_TRAINING, linewidth=2, label=f"running mean of {len(window)}")
        ax.set_xlabel("training step")
    mi.axhline(ceiling_bits, color=CEILING, linestyle="--", label=f"ceiling log₂(2K−1) = {ceiling_bits:.3f} bits")
    references(mi, entropy_bits, true_bits)
    legends(loss, mi)
    return figure


def bars(report: dict[str, Any]) -> Figure:
    """H(C), in-training MI and post-training MI of one run in bits, as in Lee et al. 2023, Fig. 4.

    Left: bars from zero. Right: the post-training part close up. The strict estimate carries its t-interval; the last
    bar is filled up to the certified lower end (MI is at least 0) and hatched from there to the upper end.
    """
    truth, estimate, in_training = report["truth"], report["estimate"], report.get("in_training") or {}
    entropy, true = truth.get("entropy_bits"), truth.get("mutual_information_bits")
    columns = [
        ("H(C)", entropy, ENTROPY),
        (f"in-training\nK = {in_training.get('k')}", in_training.get("mi_bits"), IN_TRAINING),
        (f"paper's form\nK = {estimate['paper_k']}", estimate["paper_bits"], PAPER),
        (f"strict InfoNCE\nK = {estimate['k']}", estimate["strict_bits"], STRICT),
    ]
    labels, heights, colours = zip(*[column for column in columns if column[1] is not None], strict=True)
    strict, last = len(labels) - 1, len(labels)
    t_lower, t_upper = floats([estimate["t_lower_bits"]]), floats([estimate["t_upper_bits"]])
    lower, upper = estimate["lower_bits"], estimate["upper_bits"]
    floor = 0.0 if lower is None else lower
    certificate = "no certificate" if lower is None else f"at {100 * estimate['confidence']:g} %"

    figure, (whole, close) = panels("in-training and post-training MI, bits", "post-training, close up", ratios=(5, 3))
    whole.bar(range(last), heights, color=colours, width=0.6)
    close.scatter(range(last), heights, color=colours, s=60, zorder=3)
    for ax in (whole, close):
        ax.bar(last, floor, color=CERTIFIED, width=0.6, label="certified")
        if upper is not None:
            hollow = ax.bar(last, upper - floor, bottom=floor, color="white", width=0.6, label="possible")
            hollow[0].set(edgecolor=CERTIFIED, hatch="////")
        t_interval(ax, floats([strict]), t_lower, t_upper, INK)
        references(ax, entropy, true)
        ax.set_xticks(range(last + 1), [*labels, f"{estimate['verdict']}\n{certificate}"])
    if in_training:
        ceiling, bar = in_training["ceiling_bits"], strict - 2
        label = f"ceiling log₂(2K−1) = {ceiling:.3f} bits"
        whole.hlines(ceiling, bar - 0.4, bar + 0.4, color=CEILING, linestyle="--", label=label)
    for position, height in enumerate(heights):
        above = height if position < strict else np.fmax(height, t_upper[0])
        write(whole, position, above, f"{height:z.3f}")
    if upper is not None:
        write(whole, last, upper, f"{round_down(floor):.3f} – {upper:z.3f}")
    elif lower is not None:
        write(whole, last, lower, f"≥ {round_down(lower):.3f}")
    whole.margins(y=0.1)

    near = floats([*heights[-2:], *t_lower, *t_upper, lower, upper])
    low, high = np.nanmin(near), np.nanmax(near)
    margin = max(0.01, 0.1 * (high - low))
    close.set(xlim=(last - 2.5, last + 0.5), ylim=(low - margin, high + margin))
    legends(whole)
    return figure


def linear(accuracies: dict[str, float], chance: dict[str, float]) -> Figure:
    """Accuracy of the linear evaluation of each task in percent, its chance level as a dashed line across the bar."""
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


def critic(estimate: dict[str, Any]) -> Figure:
    """The critic's fit with the step chosen on validation; the estimates, reach(K) and the ceilings against K."""
    fit, upper = estimate["fit"], estimate["upper_bits"]
    figure, (left, right) = panels(f"fit of the critic at K = {fit['k']}, bits", "estimates on test images, bits")
    step, fitted, validation = (floats(fit["history"][name]) for name in ("step", "fit_bits", "validation_bits"))
    left.plot(step, validation, color=STRICT, linewidth=2.5, label="validation part")
    left.plot(step, fitted, color=INK, linewidth=1, linestyle="--", label="fit part")
    left.axvline(fit["best_step"], color=INK, linestyle=":", label=f"chosen: step {fit['best_step']:,}")
    left.set_xlabel("critic step")

    k, strict, t_lower, t_upper, paper, reach = (
        floats([point[name] for point in estimate["curve"]])
        for name in ("k", "strict_bits", "t_lower_bits", "t_upper_bits", "paper_bits", "reach_bits")
    )
    right.plot(k, paper, color=PAPER, marker="s", label="paper's form (not a bound)")
    right.plot(k, strict, color=STRICT, marker="o", label="strict InfoNCE, t-interval")
    t_interval(right, k, t_lower, t_upper, STRICT)
    if np.isfinite(reach).any():
        right.plot(k, reach, color=INK, linestyle=":", label="reach(K)")
    if upper is not None:
        right.axhline(upper, color=CERTIFIED, linewidth=2, alpha=0.7, label=f"upper end = {upper:.3f}")
    # The frame is set first: ceilings far above the estimates would flatten everything else.
    right.set_ylim(right.get_ylim())
    for name, ceiling, style in (("log₂ K", np.log2(k), "-."), ("log₂(2K−1)", np.log2(2 * k - 1), "--")):
        outside = " (above)" if ceiling[0] > right.get_ylim()[1] else ""
        label = f"ceiling {name}: {ceiling[0]:.1f} to {ceiling[-1]:.1f}{outside}"
        right.plot(k, ceiling, color=CEILING, linestyle=style, label=label)
    right.set_xscale("log", base=2)
    right.set_xticks(k, [f"{value:.0f}" for value in k])
    right.set_xlabel("K, pairs a batch")
    legends(left, right)
    return figure
