"""Pictures of a run: plain data in, a matplotlib Figure out. Nothing is read, saved or shown here."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mirigor_jax.mi.estimate import Estimate, round_down

# Okabe & Ito's colours, which colour-blind readers can tell apart; a quantity has one colour in every picture.
INK, GRID, ENTROPY = "#333333", "#E5E5E5", "#999999"
IN_TRAINING, PAPER, STRICT, CERTIFIED, CEILING = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"
LINEAR = "#56B4E9"


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
    figure, (loss, mi) = _panels("training loss, nats", "in-training MI, bits")
    window = np.full(max(1, len(steps) // 20), 1.0)
    window /= len(window)
    for ax, values in ((loss, loss_nats), (mi, mi_bits)):
        ax.plot(steps, values, color=IN_TRAINING, alpha=0.3, linewidth=0.8, label="each value")
        centres, means = np.convolve(steps, window, "valid"), np.convolve(values, window, "valid")
        ax.plot(centres, means, color=IN_TRAINING, linewidth=2, label=f"running mean of {len(window)}")
        ax.set_xlabel("training step")
    mi.axhline(ceiling_bits, color=CEILING, linestyle="--", label=f"ceiling log₂(2K−1) = {ceiling_bits:.3f} bits")
    _references(mi, entropy_bits, true_bits)
    _legends(loss, mi)
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
    t_lower, t_upper = _floats([estimate["t_lower_bits"]]), _floats([estimate["t_upper_bits"]])
    lower, upper = estimate["lower_bits"], estimate["upper_bits"]
    floor = 0.0 if lower is None else lower
    certificate = "no certificate" if lower is None else f"at {100 * estimate['confidence']:g} %"

    figure, (whole, close) = _panels("in-training and post-training MI, bits", "post-training, close up", ratios=(5, 3))
    whole.bar(range(last), heights, color=colours, width=0.6)
    close.scatter(range(last), heights, color=colours, s=60, zorder=3)
    for ax in (whole, close):
        ax.bar(last, floor, color=CERTIFIED, width=0.6, label="certified")
        if upper is not None:
            hollow = ax.bar(last, upper - floor, bottom=floor, color="white", width=0.6, label="possible")
            hollow[0].set(edgecolor=CERTIFIED, hatch="////")
        _t_interval(ax, _floats([strict]), t_lower, t_upper, INK)
        _references(ax, entropy, true)
        ax.set_xticks(range(last + 1), [*labels, f"{estimate['verdict']}\n{certificate}"])
    if in_training:
        ceiling, bar = in_training["ceiling_bits"], strict - 2
        label = f"ceiling log₂(2K−1) = {ceiling:.3f} bits"
        whole.hlines(ceiling, bar - 0.4, bar + 0.4, color=CEILING, linestyle="--", label=label)
    for position, height in enumerate(heights):
        above = height if position < strict else np.fmax(height, t_upper[0])
        _write(whole, position, above, f"{height:z.3f}")
    if upper is not None:
        _write(whole, last, upper, f"{round_down(floor):.3f} – {upper:z.3f}")
    elif lower is not None:
        _write(whole, last, lower, f"≥ {round_down(lower):.3f}")
    whole.margins(y=0.1)

    near = _floats([*heights[-2:], *t_lower, *t_upper, lower, upper])
    low, high = np.nanmin(near), np.nanmax(near)
    margin = max(0.01, 0.1 * (high - low))
    close.set(xlim=(last - 2.5, last + 0.5), ylim=(low - margin, high + margin))
    _legends(whole)
    return figure


def linear(accuracies: dict[str, float], chance: dict[str, float]) -> Figure:
    """Accuracy of the linear evaluation of each task in percent, its chance level as a dashed line across the bar."""
    figure, (ax,) = _panels("linear evaluation of the frozen encoder, accuracy in %")
    percent = [100 * accuracy for accuracy in accuracies.values()]
    bars = ax.bar(list(accuracies), percent, color=LINEAR, width=0.6)
    ax.bar_label(bars, fmt="%.2f %%", padding=3, fontsize=8, color=INK)
    levels = [100 * chance[task] for task in accuracies]
    positions = np.arange(len(levels))
    ax.hlines(levels, positions - 0.4, positions + 0.4, color=INK, linestyle="--", label="chance")
    ax.set(ylim=(0, 108), yticks=range(0, 101, 20), xlabel="task")
    _legends(ax)
    return figure


def metrics(found: dict[str, float]) -> Figure:
    """Left: what the probes get right, in %. Right: alignment, uniformity and tolerance under each pairing.

    found: as `metrics.evaluate` gives it; what is not in it is not drawn.
    """
    figure, (left, right) = _panels("probes of the frozen encoder, %", "geometry of the unit representations")
    probes = {
        "linear": ("linear_accuracy", LINEAR),
        "kNN": ("knn_accuracy", LINEAR),
        "MLP": ("mlp_accuracy", LINEAR),
        "NMI,\nlinear": ("linear_nmi", STRICT),
        "NMI,\nMLP": ("mlp_nmi", STRICT),
    }
    shown = {name: (100 * found[key], colour) for name, (key, colour) in probes.items() if key in found}
    if shown:
        heights, colours = zip(*shown.values(), strict=True)
        bars = left.bar(list(shown), heights, color=colours, width=0.6)
        left.bar_label(bars, fmt="%.2f", padding=3, fontsize=8, color=INK)
        left.set(ylim=(min(0, *heights), 108))
    words = {"alignment": "alignment ↓", "uniformity": "uniformity ↓", "tolerance": "tolerance ↑"}
    pairings = [
        (f"{key}_", label, colour)
        for key, label, colour in (("class", "T_class", CERTIFIED), ("augmentation", "T_SimCLR", PAPER))
        if f"{key}_alignment" in found
    ]
    for i, (prefix, label, colour) in enumerate(pairings):
        x = np.arange(len(words)) + 0.4 * (i - (len(pairings) - 1) / 2)
        bars = right.bar(x, [found[prefix + name] for name in words], color=colour, width=0.36, label=label)
        right.bar_label(bars, fmt="%.3f", padding=3, fontsize=8, color=INK)
    right.axhline(0, color=INK, linewidth=0.8)
    right.set_xticks(range(len(words)), list(words.values()))
    right.margins(y=0.15)
    _legends(right)
    return figure


def critic(estimate: dict[str, Any]) -> Figure:
    """The critic's fit with the step chosen on validation; the estimates, reach(K) and the ceilings against K."""
    fit, upper = estimate["fit"], estimate["upper_bits"]
    figure, (left, right) = _panels(f"fit of the critic at K = {fit['k']}, bits", "estimates on test images, bits")
    step, fitted, validation = (_floats(fit["history"][name]) for name in ("step", "fit_bits", "validation_bits"))
    left.plot(step, validation, color=STRICT, linewidth=2.5, label="validation part")
    left.plot(step, fitted, color=INK, linewidth=1, linestyle="--", label="fit part")
    left.axvline(fit["best_step"], color=INK, linestyle=":", label=f"chosen: step {fit['best_step']:,}")
    left.set_xlabel("critic step")

    k, strict, t_lower, t_upper, paper, reach = (
        _floats([point[name] for point in estimate["curve"]])
        for name in ("k", "strict_bits", "t_lower_bits", "t_upper_bits", "paper_bits", "reach_bits")
    )
    right.plot(k, paper, color=PAPER, marker="s", label="paper's form (not a bound)")
    right.plot(k, strict, color=STRICT, marker="o", label="strict InfoNCE, t-interval")
    _t_interval(right, k, t_lower, t_upper, STRICT)
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
    _legends(left, right)
    return figure


def estimators(estimates: Sequence[Estimate | dict[str, Any]], *, true_bits: float | None = None) -> Figure:
    """One row an estimator, in bits: its value with its t-interval, its seeds, and a band where MI is certified to lie.

    Lower bounds and others differ in colour and in the word under the name; beside others is the InfoNCE of the same
    critic. At the right: the value, the certified lower end, the ceiling.
    estimates: `Estimate`s, or their entries in report.json.
    """
    rows = [one if isinstance(one, dict) else vars(one) for one in estimates]
    names = ("value_bits", "t_lower_bits", "t_upper_bits", "lower_bits", "upper_bits", "bound_bits", "ceiling_bits")
    value, t_lower, t_upper, lower, upper, bound, ceiling = (_floats([row[name] for row in rows]) for name in names)
    y = np.arange(len(rows))
    is_bound = np.array([row["kind"] == "lower bound" for row in rows])
    seeds = [(bits, i + 0.25) for i, row in enumerate(rows) if len(row["seed_bits"]) > 1 for bits in row["seed_bits"]]

    figure, (ax,) = _panels("estimates of mutual information, bits")
    figure.set_size_inches(8, 1.4 + 0.55 * len(rows))
    ax.grid(False, axis="y")
    ax.grid(axis="x", color=GRID)
    # The frame is set first, by the values: a ceiling, or the interval of a wild estimate, would flatten all else.
    near = _floats([0.0, *value, *lower, *upper, *bound, *(bits for bits, _ in seeds), true_bits])
    low, high = np.nanmin(near), np.nanmax(near)
    margin = max(0.05, 0.25 * (high - low))
    low, high = max(np.nanmin([low, *t_lower]), low - margin), min(np.nanmax([high, *t_upper]), high + margin)
    ax.set(xlim=(low - 0.2 * margin, high + 0.4 * margin), ylim=(len(rows) - 0.5, -0.5))

    if (known := np.isfinite(lower)).any():
        ends = np.where(np.isfinite(upper), upper, ax.get_xlim()[1])
        label = f"certified at {100 * rows[0]['confidence']:g} %: MI is in here"
        ax.barh(y[known], (ends - lower)[known], 0.62, lower[known], color=CERTIFIED, alpha=0.25, label=label)
        ax.vlines(lower, y - 0.31, y + 0.31, color=CERTIFIED, linewidth=2.5)
    for these, colour, word in ((is_bound, STRICT, "lower bound"), (~is_bound, PAPER, "not a bound")):
        if these.any():
            error = np.stack([value - t_lower, t_upper - value])[:, these]
            label = f"{word}, t-interval"
            ax.errorbar(value[these], y[these], xerr=error, fmt="o", capsize=4, color=colour, label=label)
    if seeds:
        ax.plot(*np.transpose(seeds), ".", color=INK, markersize=4, label="each seed")
    if np.isfinite(bound).any():
        ax.plot(
            bound,
            y - 0.25,
            "D",
            color=STRICT,
            markersize=5,
            markerfacecolor="white",
            label="InfoNCE of the same critic",
        )
    if (ceiling <= ax.get_xlim()[1]).any():
        ax.vlines(ceiling, y - 0.4, y + 0.4, color=CEILING, linestyle="--", label="ceiling")
    if true_bits is not None:
        ax.axvline(true_bits, color=INK, linestyle="--", label=f"true MI = {true_bits:.3f} bits", zorder=1.5)

    ax.set_yticks(y, [f"{row['name']}\n{row['kind']}" for row in rows])
    words = [f"{bits:z.3f}" for bits in value]
    for i in range(len(rows)):
        words[i] += f"\n≥ {round_down(lower[i]):.3f}" if np.isfinite(lower[i]) else ""
        words[i] += f"\nceiling {ceiling[i]:.1f}" if np.isfinite(ceiling[i]) else ""
    right = ax.secondary_yaxis("right")
    right.set_yticks(y, words)
    right.tick_params(length=0, labelsize=8, labelcolor=INK)
    right.spines["right"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def invertible(runs: Mapping[str, Sequence[dict[str, Any]]], *, ceiling_bits: float) -> Figure:
    """Over training, a line an objective: InfoNCE, linear accuracy, and how exactly the encoders are inverted.

    runs: the rows of `invertible.train`, by objective. Dashed: InfoNCE of the training batches. ceiling_bits: log2 K.
    """
    figure, (estimate, accuracy, error) = _panels(
        "InfoNCE, bits; the true MI can't change", "linear accuracy of the top half, %", "invertibility, largest error"
    )
    for (name, rows), colour in zip(runs.items(), (INK, STRICT, CERTIFIED), strict=False):
        step, held_out, train, percent, inverse, log_det = (
            _floats([row[key] for row in rows])
            for key in ("step", "held_out_bits", "train_bits", "accuracy", "inverse_error", "log_det_error_nats")
        )
        estimate.plot(step, held_out, color=colour, marker="o", markersize=3, label=f"{name}, test images")
        estimate.plot(step[1:], train[1:], color=colour, linestyle="--", linewidth=1, label=f"{name}, in training")
        accuracy.plot(step, 100 * percent, color=colour, marker="o", markersize=3, label=name)
        error.plot(step, inverse, color=colour, marker="o", markersize=3, label=f"{name}: inverse")
        error.plot(step, log_det, color=colour, linestyle=":", label=f"{name}: log |det J|, nats")
    estimate.axhline(ceiling_bits, color=CEILING, linestyle="--", label=f"ceiling log₂ K = {ceiling_bits:.3g} bits")
    error.axhline(1e-4, color=CEILING, linestyle="--", label="1e-4")
    error.set_yscale("symlog", linthresh=1e-7)
    for ax in (estimate, accuracy, error):
        ax.set_xlabel("training step")
    _legends(estimate, accuracy, error)
    return figure


def batch_size(rows: Sequence[dict[str, Any]]) -> Figure:
    """A column an encoder, against K_Tr: linear accuracy, MI in and after training in bits, and the latter close up.

    rows: of the study batch_size, one a run; lines are means over seeds, dots the runs. Grey: what Lee et al. 2023,
    Sec. IV-A, say of their own in words.
    """
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    entropy, paper_k = rows[0]["entropy_bits"], rows[0]["paper_k"]
    figure = Figure(figsize=(4.8 * max(len(encoders), 1.25), 8.4), dpi=150, layout="constrained")
    grid = figure.subplots(3, len(encoders), squeeze=False, sharex=True, sharey="row", height_ratios=(2, 4, 3))
    titles = ("linear accuracy, %", "MI in and after training, bits", "after training, close up, bits")
    for encoder, column in zip(encoders, grid.T, strict=True):
        runs = sorted((row for row in rows if row["encoder"] == encoder), key=lambda row: row["k"])
        k = _floats([row["k"] for row in runs])
        for ax, title in zip(column, titles, strict=True):
            _style(ax, f"{encoder}: {title}")
        accuracy, whole, close = column
        accuracy.axhspan(96.0, 99.8, color=ENTROPY, alpha=0.3, linewidth=0, label="the paper: 96.0 to 99.8 %")
        _line_of_means(accuracy, k, _floats([100 * row["accuracy"]["all"] for row in runs]), LINEAR, "s", "all classes")
        ceiling = _floats([row["ceiling_bits"] for row in runs])
        whole.plot(k, ceiling, color=CEILING, linestyle="--", label="ceiling log₂(2K−1), K = K_Tr")
        in_training = _floats([row["in_training_bits"] for row in runs])
        _line_of_means(whole, k, in_training, IN_TRAINING, "v", "in-training MI")
        for ax in (whole, close):
            ax.axhline(6.0, color=ENTROPY, linewidth=4, alpha=0.6, label="the paper: “almost constant at 6 bits”")
            ax.axhline(entropy, color=INK, linewidth=0.8, label=f"H(C) = {entropy:.3f} bits")
            paper, strict = (_floats([row[name] for row in runs]) for name in ("paper_bits", "strict_bits"))
            _line_of_means(ax, k, paper, PAPER, "s", f"paper's form, K = {paper_k}, not a bound")
            _line_of_means(ax, k, strict, STRICT, "o", "strict InfoNCE")
        sizes = np.unique(k)
        lower = [min(row["lower_bits"] for row in runs if row["k"] == size) for size in sizes]
        upper = runs[0]["upper_bits"]
        close.vlines(sizes, lower, upper, color=CERTIFIED, linewidth=10, alpha=0.4, label="certified at every seed")
        close.set_xscale("log", base=2)
        close.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
        close.minorticks_off()
        close.set_xlabel("K_Tr, pairs a training batch")
    _shared_legend(figure, grid[:, 0])
    return figure


def infomin_tasks(rows: Sequence[dict[str, Any]]) -> Figure:
    """Two heat maps an encoder, training pairing across, evaluated task up: accuracy, and I_class as a share of H(C).

    rows: of the study infomin_tasks, one a run; a cell is the mean over seeds. I_class is strict InfoNCE; below it
    stands the certified lower end. As Lee et al. 2023, Figs. 6 and 7, lay them out.
    """
    encoders, tasks = (list(dict.fromkeys(row["encoder"] for row in rows))), list(rows[0]["estimates"])
    figure = Figure(figsize=(9.6, 4.1 * len(encoders)), dpi=150, layout="constrained")
    grid = figure.subplots(len(encoders), 2, squeeze=False)
    for encoder, (left, right) in zip(encoders, grid, strict=True):
        accuracy, strict, lower = (np.full((len(tasks), len(tasks)), np.nan) for _ in range(3))
        for column, pairing in enumerate(tasks):
            runs = [row for row in rows if (row["encoder"], row["pairing"]) == (encoder, pairing)]
            for line, task in enumerate(tasks if runs else []):
                of = [row["estimates"][task] for row in runs]
                accuracy[line, column] = 100 * np.mean([row["accuracy"][task] for row in runs])
                strict[line, column] = 100 * np.mean([one["strict_bits"] / one["entropy_bits"] for one in of])
                lower[line, column] = min(one["lower_bits"] for one in of)
        for ax, title, values, note in (
            (left, "linear accuracy, %", accuracy, None),
            (right, "I_class in % of H(C); below, certified bits", strict, lower),
        ):
            image = ax.imshow(values, vmin=0, vmax=100, cmap="Blues", origin="lower")
            figure.colorbar(image, ax=ax, shrink=0.8).ax.tick_params(labelsize=8, labelcolor=INK)
            for line, column in np.argwhere(np.isfinite(values)):
                words = f"{values[line, column]:z.1f}"
                words += "" if note is None else f"\n≥ {round_down(note[line, column]):.3f}"
                colour = "white" if values[line, column] > 50 else INK
                ax.text(column, line, words, ha="center", va="center", fontsize=9, color=colour)
            ax.set_title(f"{encoder}: {title}", loc="left", fontsize=10, color=INK)
            ax.set_xticks(range(len(tasks)), tasks)
            ax.set_yticks(range(len(tasks)), tasks)
            ax.set_xlabel("shared in training", fontsize=9, color=INK)
            ax.set_ylabel("evaluated task", fontsize=9, color=INK)
            ax.tick_params(length=0, labelsize=8, labelcolor=INK)
            ax.spines[:].set_visible(False)
    return figure


def infomin_strength(rows: Sequence[dict[str, Any]]) -> Figure:
    """Above: accuracy of every task against MI in bits, a panel an augmentation. Below: MI against the strength.

    rows: of the study infomin_strength, one a run, dots; lines join the strengths in their order, through the means
    over seeds, and a ring marks each task's best. As Lee et al. 2023, Fig. 5, lays the upper row out.
    """
    figure = Figure(figsize=(14.4, 8.4), dpi=150, layout="constrained")
    grid = figure.subplots(2, 3)
    titles = {
        "jitter": "colour jitter alone",
        "crop": "random resized crops alone",
        "class and all": "T_class + SimCLR's",
    }
    colours = dict(zip(rows[0]["accuracy"], (IN_TRAINING, PAPER, STRICT, INK), strict=True))
    for (family, title), (above, below) in zip(titles.items(), grid.T, strict=True):
        _style(above, f"{title}: accuracy in % against MI in bits")
        _style(below, f"{title}: MI in bits against strength")
        above.set_xlabel("strict InfoNCE under the training's own augmentation, bits")
        below.set_xlabel("strength")
        runs = [row for row in rows if row["family"] == family]
        if not runs:
            continue
        strength, strict, paper = (_floats([row[n] for row in runs]) for n in ("strength", "strict_bits", "paper_bits"))
        levels = np.unique(strength)
        at = [strict[strength == level].mean() for level in levels]
        for task, colour in colours.items():
            accuracy = _floats([100 * row["accuracy"][task] for row in runs])
            mean = _floats([accuracy[strength == level].mean() for level in levels])
            above.plot(strict, accuracy, "o", color=colour, markersize=3, alpha=0.5)
            above.plot(at, mean, color=colour, marker="o", markersize=5, label=task)
            ring = {"markersize": 13, "markerfacecolor": "none"}
            above.plot(at[mean.argmax()], mean.max(), "o", color=colour, **ring)
        _line_of_means(below, strength, paper, PAPER, "s", f"paper's form, K = {runs[0]['paper_k']}, not a bound")
        _line_of_means(below, strength, strict, STRICT, "o", "strict InfoNCE")
        lower = [min(row["lower_bits"] for row in runs if row["strength"] == level) for level in levels]
        below.plot(levels, lower, "_", color=CERTIFIED, markersize=14, markeredgewidth=3, label="certified: at least")
        below.axhline(
            runs[0]["ceiling_k_bits"], color=CEILING, linestyle="--", label="log₂ K, the most strict InfoNCE shows"
        )
        if runs[0]["entropy_bits"] is not None:
            below.axhline(runs[0]["entropy_bits"], color=ENTROPY, label="H(C)", zorder=1.5)
    above, below = grid.T[0]
    for row in [row for row in rows if row["family"] == "all"]:
        for task, colour in colours.items():
            above.plot(row["strict_bits"], 100 * row["accuracy"][task], "*", color=colour, markersize=11)
    above.plot([], [], "*", color=INK, label="all of SimCLR's, strength 1")
    above.plot([], [], "o", color=INK, markersize=13, markerfacecolor="none", label="a task's best")
    _shared_legend(figure, [above, *grid[1]])
    return figure


def quality(panels: Mapping[str, Sequence[float | None]], accuracies: Sequence[float]) -> Figure:
    """A panel a metric, four in a row: the encoders' linear accuracy in % against it.

    panels: title → its value of each encoder, in the order of accuracies; None where it has none.
    """
    rows = math.ceil(len(panels) / 4)
    figure = Figure(figsize=(14.4, 3 * rows), dpi=150, layout="constrained")
    grid = figure.subplots(rows, 4, squeeze=False, sharey=True)
    for ax, (title, values) in zip(grid.flat, panels.items(), strict=False):
        _style(ax, title)
        ax.set_title(title, loc="left", fontsize=8)
        ax.plot(_floats(values), [100 * accuracy for accuracy in accuracies], "o", color=STRICT, markersize=5)
    for ax in grid.flat[len(panels) :]:
        ax.set_axis_off()
    for ax in grid[:, 0]:
        ax.set_ylabel("linear accuracy, %", fontsize=9, color=INK)
    return figure


def cases(rows: Sequence[dict[str, Any]], paper: Mapping[str, float]) -> Figure:
    """By case: linear accuracy in %, with the paper's, and strict I_class in bits below H(C).

    rows: of the studies objectives (a loss is a case) and negatives (a D⁻ is), one a run. paper: accuracy in % by case.
    """
    names = list(dict.fromkeys([*(row["case"] for row in rows), *paper]))
    figure, (left, right) = _panels("linear accuracy, %", "I_class of the encoder, bits")
    place = [names.index(row["case"]) for row in rows]
    left.plot(place, [100 * row["accuracy"] for row in rows], "o", color=LINEAR, label="ours, a dot a run")
    bar: dict[str, Any] = {"markersize": 14, "markeredgewidth": 3}
    if paper:
        left.plot(
            [names.index(case) for case in paper], list(paper.values()), "_", color=INK, label="the paper's", **bar
        )
    strict, lower = ([row[name] for row in rows] for name in ("strict_bits", "lower_bits"))
    right.plot(place, strict, "o", color=STRICT, label="strict InfoNCE")
    right.plot(place, lower, "_", color=CERTIFIED, label="certified: at least", **bar)
    right.axhline(rows[0]["entropy_bits"], color=ENTROPY, label="H(C)", zorder=1.5)
    for ax in (left, right):
        ax.set_xticks(range(len(names)), names, rotation=25, ha="right")
        ax.set_xlim(-0.5, len(names) - 0.5)
    _shared_legend(figure, [left, right])
    return figure


def certified(rows: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Of the study certified, rows one a run: `certified`, `reach`, and `trap` where a row has one."""
    drawn = {"certified": _intervals(rows), "reach": _reach(rows)}
    trapped = [row for row in rows if row["trap"]]
    return drawn | ({"trap": _trap(trapped[0])} if trapped else {})


def _intervals(rows: Sequence[dict[str, Any]]) -> Figure:
    """A row a run, by how much less than H(C): what the routes prove, and where the paper's form lies."""
    figure, (ax,) = _panels("bits short of H(C), on a logarithmic scale; right of 0 no MI can be")
    figure.set_size_inches(9.6, 1.8 + 0.24 * len(rows))
    ax.grid(False, axis="y")
    ax.grid(axis="x", color=GRID)
    y, entropy = np.arange(len(rows)), _floats([row["entropy_bits"] for row in rows])
    lower, upper, paper, strict = (
        entropy - _floats([row[name] for row in rows])
        for name in ("lower_bits", "upper_bits", "paper_bits", "strict_bits")
    )
    label = f"certified at {100 * rows[0]['confidence']:g} %: MI is in here"
    ax.barh(y, lower - upper, 0.7, upper, color=CERTIFIED, alpha=0.3, label=label)
    for route, marker, words in (
        ("classifier", "<", "route (a), classifier"),
        ("posterior", "D", "route (b), class posterior"),
        ("infonce", ">", "route (c), InfoNCE on disjoint batches"),
    ):
        ends = entropy - _floats([row["routes"].get(route) for row in rows])
        ax.plot(ends, y, marker, color=INK, markersize=4, label=words)
    ax.plot(strict, y, "o", color=STRICT, markersize=5, label="strict InfoNCE at the largest K")
    ax.plot(paper, y, "s", color=PAPER, markersize=5, label=f"paper's form, K = {rows[0]['paper_k']}")
    outside = np.array([bool(row["outside"]) for row in rows])
    ring: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "color": CEILING}
    ax.plot(paper[outside], y[outside], "o", label="outside of its bar by over 0.0005 bit", **ring)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set_xscale("symlog", linthresh=1e-3)
    ticks = (1, 0.1, 0.01, 0.001, 0, -0.001, -0.01)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(xlim=(1.5 * entropy.max(), -0.03), ylim=(len(rows) - 0.5, -0.5), xlabel="H(C) − bits")
    ax.set_yticks(y, [f"{row['cell']}: {row['entropy_bits']:g} bits" for row in rows])
    _shared_legend(figure, [ax])
    return figure


def _reach(rows: Sequence[dict[str, Any]]) -> Figure:
    """A panel an H(C): every encoder's strict InfoNCE against K below reach(K), and the paper's form."""
    entropies = sorted({row["entropy_bits"] for row in rows}, reverse=True)
    figure, axes = _panels(*(f"H(C) = {entropy:.3f} bits: estimates, bits" for entropy in entropies))
    for ax, entropy in zip(axes, entropies, strict=True):
        group = [row for row in rows if row["entropy_bits"] == entropy]
        for first, row in enumerate(group):
            k, strict, paper = (_floats([p[name] for p in row["curve"]]) for name in ("k", "strict_bits", "paper_bits"))
            trained = row["steps"] > 0
            style: dict[str, Any] = {
                "linewidth": 1,
                "markersize": 3,
                "alpha": 0.7,
                "linestyle": "-" if trained else ":",
            }
            ax.plot(k, paper, color=PAPER, marker="s", label=None if first else "paper's form (not a bound)", **style)
            ax.plot(k, strict, color=STRICT, marker="o", label=None if first else "strict InfoNCE", **style)
            if not trained:
                ax.annotate(row["cell"], (k[1], strict[1]), (6, -6), textcoords="offset points", fontsize=8, color=INK)
        curve = max((row["curve"] for row in group), key=len)
        k, reach = (_floats([point[name] for point in curve]) for name in ("k", "reach_bits"))
        ax.plot(k, reach, color=INK, linewidth=2, label="reach(K): the most any critic shows")
        ax.axhline(entropy, color=ENTROPY, label="H(C)", zorder=1.5)
        ax.set_xscale("log", base=2)
        ax.set_xticks(k, [f"{size:,.0f}" for size in k], rotation=30)
        ax.minorticks_off()
        ax.set_xlabel("K, pairs a batch")
    _shared_legend(figure, axes)
    return figure


def _trap(row: dict[str, Any]) -> Figure:
    """Lower ends in bits against the size of the bank: redrawn from it and fresh, true classes and shuffled ones."""
    figure, (ax,) = _panels("untrained encoder: “certified” lower end of I(h_X;h_Y), bits")
    for shuffled, words, line, size in (
        (False, "true classes", "-", 5),
        (True, "shuffled: the true MI is 0", "--", 10),
    ):
        points = [point for point in row["trap"] if point["shuffled"] == shuffled]
        bank = _floats([point["bank"] for point in points])
        style: dict[str, Any] = {"linestyle": line, "marker": "o", "markersize": size}
        for name, what, colour in (("redrawn_bits", "redrawn", CEILING), ("fresh_bits", "fresh", STRICT)):
            fill = "none" if shuffled else colour
            bits = _floats([point[name] for point in points])
            ax.plot(bank, bits, color=colour, markerfacecolor=fill, label=f"{what}, {words}", **style)
    lower = row["lower_bits"]
    ax.axhspan(lower, row["upper_bits"], color=CERTIFIED, alpha=0.3, label="certified, fresh images")
    ax.axhline(row["entropy_bits"], color=ENTROPY, label=f"H(C) = {row['entropy_bits']:.3f} bits", zorder=1.5)
    ax.set_xscale("log", base=2)
    ax.set_xticks(bank, [f"{size:,.0f}" for size in bank])
    ax.minorticks_off()
    ax.set_xlabel("images in the bank of the nearest-neighbour classifier")
    ax.set_ylim(-0.3, None)
    _shared_legend(figure, [ax])
    return figure


def scaling(rows: Sequence[Mapping[str, Any]], kind: str) -> Figure:
    """What mirigor_jax.plan expects of slices of more and more chips: efficiency of training and of estimation in %.

    rows: plan.json's `scaling`, of which those that do not fit are left out.
    """
    stages = {"train": "training, as many pairs a chip", "estimate": "estimation, the same K on all chips"}
    figure, axes = _panels(*(f"{words}: efficiency in %" for words in stages.values()))
    for ax, stage in zip(axes, stages, strict=True):
        points = [row for row in rows if row["stage"] == stage and row["fits"]]
        chips = [row["chips"] for row in points]
        for how, line, words in (
            ("at_best", "-", "arithmetic, memory and network overlap in full"),
            ("without_overlap", "--", "they do not overlap"),
        ):
            percent = [100 * row[f"efficiency_{how}"] for row in points]
            ax.plot(chips, percent, line, marker="o", markersize=4, color=STRICT, label=words)
        ax.axhline(100, color=ENTROPY, zorder=1.5)
        ax.set_xscale("log", base=2)
        ax.set_xticks(chips, [f"{n}" for n in chips])
        ax.minorticks_off()
        ax.set(xlabel=f"{kind} chips; the compiler's numbers, not a measurement", ylim=(0, 109))
    _shared_legend(figure, axes)
    return figure


def _line_of_means(ax: Axes, k: np.ndarray, values: np.ndarray, colour: str, marker: str, label: str) -> None:
    """Every run's value, faint, and the line through the means of those of one k."""
    sizes = np.unique(k)
    ax.plot(k, values, marker, color=colour, markersize=3, alpha=0.5)
    ax.plot(sizes, [values[k == size].mean() for size in sizes], color=colour, marker=marker, markersize=5, label=label)


def _panels(*titles: str, ratios: Sequence[int] | None = None) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.8 * max(len(titles), 1.25), 4.2), dpi=150, layout="constrained")
    axes = list(figure.subplots(1, len(titles), squeeze=False, width_ratios=ratios)[0])
    for ax, title in zip(axes, titles, strict=True):
        _style(ax, title)
    return figure, axes


def _style(ax: Axes, title: str) -> None:
    ax.set_title(title, loc="left", fontsize=10, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color=GRID)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8, labelcolor=INK)
    ax.xaxis.label.set(fontsize=9, color=INK)


def _shared_legend(figure: Figure, axes: Sequence[Axes] | np.ndarray) -> None:
    """One legend under all panels, each label once."""
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def _legends(*axes: Axes) -> None:
    """One legend under each panel, where it can cover no data."""
    for ax in axes:
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)


def _references(ax: Axes, entropy_bits: float | None, true_bits: float | None) -> None:
    if entropy_bits is not None:
        ax.axhline(entropy_bits, color=ENTROPY, label=f"H(C) = {entropy_bits:.3f} bits", zorder=1.5)
    if true_bits is not None and (entropy_bits is None or not math.isclose(true_bits, entropy_bits, abs_tol=1e-6)):
        ax.axhline(true_bits, color=INK, linestyle="--", label=f"true MI = {true_bits:.3f} bits", zorder=1.5)


def _t_interval(ax: Axes, x: np.ndarray, lower: np.ndarray, upper: np.ndarray, colour: str) -> None:
    ax.errorbar(x, (lower + upper) / 2, (upper - lower) / 2, fmt="none", ecolor=colour, capsize=4, zorder=4)


def _write(ax: Axes, x: int, y: float, text: str) -> None:
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


def _floats(values: Sequence[float | int | None] | np.ndarray) -> Float[np.ndarray, " n"]:
    """NaN, which is not drawn, for what is not a finite number: an interval of one batch, or a null of report.json."""
    array = np.asarray(values, dtype=float)
    return np.where(np.isfinite(array), array, np.nan)
