"""The study `label_noise`: do estimators of I(e(X);Y) follow the noise of images? After Gosch 2020, appendix D.1."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from mirigor_jax import tables
from mirigor_jax.drawing import (
    CERTIFIED,
    ENTROPY,
    LINEAR,
    LOWER_BOUND,
    Axes,
    Figure,
    empty_figure,
    floats,
    shared_legend,
    style,
    whiskers,
)
from mirigor_jax.settings import Arrays
from mirigor_jax.studies import label_noise_fits
from mirigor_jax.studies.label_noise_fits import LAYERS
from mirigor_jax.studies.rows import Row, groups, mean
from mirigor_jax.studies.table import STUDIES, Fits, Section, Study

Floats = Float[np.ndarray, " n"]

# Reader of a critic → its name in tables.
NAMES = {"mine": "MINE", "nwj": "NWJ", "js_nwj": "JS → NWJ", "js": "JS plug-in"}
COLORS = {"mine": "#0072B2", "nwj": LOWER_BOUND, "js_nwj": "#E69F00", "js": "#D55E00"}
PAPER_ACCURACY = (99.15, 98.51, 97.92, 96.59, 94.25, 89.09, 81.51, 67.74, 46.13, 23.77, 11.37)  # Table 6: MNIST, %
# Table 7: MNIST without noise, nats; the largest value on validation.
PAPER_NATS = {"mine": {"L0": 2.212, "L1": 2.227, "L2": 2.212}, "nwj": {"L0": 2.207, "L1": 2.213, "L2": 2.206}}
PROBES = {"linear": "usable, linear probes", "mlp": "usable, MLP"}  # family → its name in tables
LOWEST = -0.6  # bits; curves below are not drawn
SHIFT = 0.02  # of an estimator's marks to the right of those before, so that whiskers don't cover each other
CAPTIONS = {
    "label_noise": "The information about the class in each layer against the share of noisy pixels. Marks are values "
    "on test rows, a mark a seed, with 95 % intervals; lines are means over seeds. The band lies between the certified "
    "ends of usable information for linear probes.",
    "label_noise_curves": "Values on validation over the epochs, as means over seeds; a line a share of noisy pixels. "
    f"After Gosch 2020, Figs. 8 and 9. The dotted line is H(Y); values below {LOWEST:g} are not drawn.",
}


def section(rows: Sequence[Row]) -> Section:
    """The tables of accuracy and of information, their legend, and both pictures.

    rows: one for each share, seed and layer, as `label_noise_fits.make` returns them.
    """
    first = rows[0]
    counts = first["rows"]
    legend = (
        f"MI is in bits, and H(Y) = {first['entropy_bits']:.3f}. ± is the standard deviation over seeds. “largest on "
        "validation” is the paper's estimate: the largest value over the epochs, with shuffled labels as negatives, on "
        "the rows that choose the epoch. “on test rows” is the value on other rows, with all classes as negatives, of "
        "the critic of the epoch at which its own objective is best; in brackets are the outermost ends over the seeds "
        f"of its {100 * Arrays.confidence:g} % interval, by t over batches. Critics of width {first['width']} are "
        f"trained on {counts['fit']:,} rows for {first['epochs']} epochs; {counts['validation']:,} rows choose the "
        f"epoch, and {counts['test']:,} are test rows. “usable” is what linear probes, or an MLP, can use: 40 % of the "
        f"same {first['images']:,} rows fit the probe, the others read it. Its ends are certified at 95 %, and are "
        "the outermost over the seeds. The encoder has seen none of these rows."
    )
    texts = [_accuracies(rows), _information(rows), legend]
    figures = {"label_noise": picture(rows), "label_noise_curves": picture_of_curves(rows)}
    return Section("Information about the class in noisy images", "\n\n".join(texts), figures)


def _accuracies(rows: Sequence[Row]) -> str:
    """A line for each share of noise: the encoder's accuracy beside the paper's."""
    header = ("noisy pixels", "seeds", "accuracy of LeNet-5, %", "the paper's, on MNIST")
    lines = []
    for (share,), same in groups(_sorted(rows), "share").items():
        by_seed = [100 * of_seed[0]["accuracy"] for of_seed in groups(same, "seed").values()]
        tenths = 10 * share
        known = math.isclose(tenths, round(tenths), abs_tol=1e-9)
        lines.append(
            (
                f"{share:g}",
                str(len(by_seed)),
                mean(by_seed, ".2f"),
                f"{PAPER_ACCURACY[round(tenths)]:.2f}" if known else "–",
            )
        )
    return tables.grid(header, lines)


def _information(rows: Sequence[Row]) -> str:
    """A line for each share, layer and estimator, and one for each family of probes."""
    header = (
        "noisy pixels",
        "layer",
        "estimate",
        "largest on validation",
        "on test rows",
        "interval or ends",
        "the paper's",
    )
    lines = []
    for (share, layer), same in groups(_sorted(rows), "share", "layer").items():
        for name, words in NAMES.items():
            found = [one["estimates"][name] for one in same]
            nats = PAPER_NATS.get(name, {}).get(layer) if share == 0 else None
            lines.append(
                (
                    f"{share:g}",
                    layer,
                    words,
                    mean([one["largest"] for one in found]),
                    mean([one["value"] for one in found]),
                    _outermost(found),
                    "–" if nats is None else f"{nats / math.log(2):.3f}",
                )
            )
        for family, words in PROBES.items():
            if found := [one["usable"][family] for one in same if family in one["usable"]]:
                lines.append(
                    (f"{share:g}", layer, words, "", mean([one["value"] for one in found]), _outermost(found), "–")
                )
    return tables.grid(header, lines)


def _outermost(found: Sequence[Row]) -> str:
    """The least lower and the largest upper end; a dash for an end that is not known."""
    lower, upper = ([one[end] for one in found if one[end] is not None] for end in ("lower", "upper"))
    return tables.ends(tables.down(min(lower, default=None)), tables.up(max(upper, default=None)))


def _sorted(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row["share"], [*LAYERS].index(row["layer"]), row["seed"]))


def _means(rows: Sequence[Row], value: Callable[[Row], float | None]) -> tuple[Floats, Floats]:
    """(shares, mean value over the seeds at each share). Rows without the value are left out."""
    by_share: dict[float, list[float]] = {}
    for row in rows:
        if (number := value(row)) is not None:
            by_share.setdefault(row["share"], []).append(number)
    return floats([*by_share]), floats([float(np.mean(values)) for values in by_share.values()])


def _value(row: Row, reader: str) -> float:
    """A reader's value on test rows."""
    value: float = row["estimates"][reader]["value"]
    return value


def _usable(row: Row, family: str, end: str) -> float | None:
    """An end of a family's usable information; None if it was not measured."""
    number: float | None = row["usable"].get(family, {}).get(end)
    return number


def picture(rows: Sequence[Row]) -> Figure:
    """Draw what each estimator reads on test rows, and usable information, against the share of noisy pixels."""
    figure = empty_figure(14.4, 5.4)
    axes = figure.subplots(1, len(LAYERS), sharey=True)
    for ax, layer in zip(axes, LAYERS, strict=True):
        style(ax, f"{layer}: information about the class, bits")
        same = [row for row in _sorted(rows) if row["layer"] == layer]
        if not same:
            continue
        _draw_usable(ax, same)
        for number, (name, words) in enumerate(NAMES.items()):
            found = [row["estimates"][name] for row in same]
            place = floats([row["share"] for row in same]) + SHIFT * (number - 1.5)
            value, lower, upper = (floats([one[key] for one in found]) for key in ("value", "lower", "upper"))
            ax.plot(place, value, "o", color=COLORS[name], markersize=3)
            whiskers(ax, place, lower, upper, COLORS[name])
            shares, means = _means(same, partial(_value, reader=name))
            ax.plot(
                shares + SHIFT * (number - 1.5), means, color=COLORS[name], linewidth=1.2, label=f"{words}, test rows"
            )
        ax.axhline(same[0]["entropy_bits"], color=ENTROPY, linestyle=":", label="H(Y)")
        ax.set_xlabel("share of noisy pixels")
    shared_legend(figure, axes)
    return figure


def _draw_usable(ax: Axes, rows: Sequence[Row]) -> None:
    """Draw the band between both ends for linear probes, and the lower end of the MLP. Ends are means over seeds."""
    ends = [_means(rows, partial(_usable, family="linear", end=end)) for end in ("lower", "upper")]
    if np.array_equal(ends[0][0], ends[1][0]):
        ax.fill_between(
            ends[0][0], ends[0][1], ends[1][1], color=LINEAR, alpha=0.3, label="usable by linear probes, certified"
        )
    shares, lower = _means(rows, partial(_usable, family="mlp", end="lower"))
    if len(shares):
        ax.plot(
            shares,
            lower,
            "_",
            color=CERTIFIED,
            markersize=16,
            markeredgewidth=2,
            label="usable by an MLP, certified: at least",
        )


def picture_of_curves(rows: Sequence[Row]) -> Figure:
    """Draw the values on validation over the epochs: a row of panels for each estimator, a panel for each layer."""
    from matplotlib import colormaps  # here, because importing matplotlib takes half a second

    figure = empty_figure(12.6, 2.7 * len(NAMES))
    panels = figure.subplots(len(NAMES), len(LAYERS), sharey="row", squeeze=False)
    shares = sorted({row["share"] for row in rows})
    colors = dict(zip(shares, colormaps["viridis"](np.linspace(0, 0.9, len(shares))), strict=True))
    for axes, (name, words) in zip(panels, NAMES.items(), strict=True):
        for ax, layer in zip(axes, LAYERS, strict=True):
            style(ax, f"{words}, {layer}: bits on validation")
            for (share,), same in groups([row for row in rows if row["layer"] == layer], "share").items():
                curve = np.mean([row["estimates"][name]["curve"] for row in same], axis=0)
                look = {"color": colors[share], "linewidth": 1.2, "label": f"share of noisy pixels {share:g}"}
                ax.plot(np.arange(1, len(curve) + 1), floats(curve), **look)
            ax.axhline(rows[0]["entropy_bits"], color=ENTROPY, linestyle=":")
            ax.set_ylim(LOWEST, rows[0]["entropy_bits"] + 0.4)
    for ax in panels[-1]:
        ax.set_xlabel("epoch")
    shared_legend(figure, panels.ravel())
    return figure


STUDIES["label_noise"] = Study(captions=CAPTIONS, fits=Fits(label_noise_fits.make, section))
