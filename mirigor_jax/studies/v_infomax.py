"""The study `v_infomax`: must an autoencoder's decoder be of the family that reads its code? After Gosch 2020, 5.1."""

from collections.abc import Sequence
from typing import Any

from mirigor_jax import tables
from mirigor_jax.drawing import (
    CERTIFIED,
    ENTROPY,
    INK,
    LOWER_BOUND,
    NO_BOUND,
    Axes,
    Figure,
    empty_figure,
    floats,
    shared_legend,
    style,
)
from mirigor_jax.studies import v_infomax_fits
from mirigor_jax.studies.rows import Row, groups, mean
from mirigor_jax.studies.table import STUDIES, Fits, Section, Study

# Columns of the table of encoders: heading → (key of a point, factor, format).
COLUMNS: dict[str, tuple[str, float, str]] = {
    "linear, %": ("linear_accuracy", 100, ".2f"),
    "non-linear, %": ("mlp_accuracy", 100, ".2f"),
    "linear, bits": ("linear_bits", 1, ".3f"),
    "non-linear, bits": ("mlp_bits", 1, ".3f"),
    "error of a pixel": ("error", 1, ".3f"),
    "V-information, own decoder": ("own_bits", 1, ".0f"),
    "linear family": ("gaussian_linear_bits", 1, ".0f"),
    "MLP family": ("gaussian_mlp_bits", 1, ".0f"),
}
PROBES = {"linear": "linear_accuracy", "non-linear": "mlp_accuracy"}
DECODER_COLORS = dict(zip(v_infomax_fits.DECODERS, (LOWER_BOUND, NO_BOUND), strict=True))
CAPTIONS = {
    "v_infomax": "Accuracy of linear and of non-linear probes, and the squared error of a test pixel, over the epochs, "
    "after Gosch 2020, Figs. 5 and 14. Thin lines are seeds.",
    "v_infomax_usable": "Usable information about the class at the end of training, with both certified ends, and "
    "Gaussian V-information about the image. A mark a seed.",
}


def section(rows: Sequence[Row]) -> Section:
    """The trainings: a table of the encoders after a quarter and at the end, and both pictures."""
    header = ["encoder", "trained", "decoder", "seeds", "epoch", "encoder steps", *COLUMNS]
    header += ["usable bits", "certified ends"]
    lines = []
    for (encoder,), same in groups(rows, "encoder").items():
        untrained = [one for one in same if not one["losses"]]
        if untrained:
            lines.append([encoder, "–", "–", *_cells(untrained, -1)])
        trained = groups([one for one in same if one["losses"]], "scheme", "decoder")
        for (scheme, decoder), own in trained.items():
            lines += [[encoder, scheme, decoder, *_cells(own, at)] for at in range(len(own[0]["points"]))]
    legend = (
        "An encoder that is not trained has random weights, and “pixels” are the images themselves. Others are read "
        "after a quarter and after all of their epochs; “encoder steps” are those of the encoder's optimizer. Probes "
        "are fitted on the training images, chosen on validation images and read on test images: accuracy, and H(C) "
        "minus log-loss, which is V-information about the class. The error is the squared error of a test pixel by the "
        "decoder that the encoder was trained with; pixels have standard deviation 1. Gaussian V-information is about "
        "the image, in bits: by this decoder, and by fresh maps of a linear and of an MLP family "
        "(mi.gaussian_v_information). Usable information about the class is that of linear probes on test images "
        "(mi.usable_information); its ends are the outermost over the seeds. ± is the standard deviation over seeds."
    )
    figures = {"v_infomax": picture(rows), "v_infomax_usable": picture_of_information(rows)}
    return Section(
        "Encoders by the decoder that they were trained with", f"{tables.grid(header, lines)}\n\n{legend}", figures
    )


def _cells(rows: Sequence[Row], at: int) -> list[str]:
    """The cells of some trainings that differ in their seeds, at their point of this number."""
    points = [_point(one, at) for one in rows]
    cells = [str(len(rows)), f"{points[0]['epoch']:,}", f"{points[0].get('encoder_steps', 0):,}"]
    for key, factor, form in COLUMNS.values():
        known = [factor * point[key] for point in points if tables.known(point.get(key))]
        cells.append(mean(known, form) if known else "–")
    usable = [point["usable_bits"] for point in points]
    ends = [[point[f"usable_{end}_bits"] for point in points] for end in ("lower", "upper")]
    shown = "–"
    if all(tables.known(value) for values in ends for value in values):
        shown = tables.ends(tables.round_down(min(ends[0])), tables.round_up(max(ends[1])))
    return [*cells, mean(usable), shown]


def _point(one: Row, at: int) -> dict[str, Any]:
    """The point of this number, with the squared error of a pixel."""
    point = dict(one["points"][at])
    return point | ({"error": one["losses"][point["epoch"]]} if one["losses"] else {})


def picture(rows: Sequence[Row]) -> Figure:
    """Draw accuracies and squared errors over the epochs: a row of panels for each encoder and scheme.

    rows: of the trainings, as `v_infomax_fits.make` returns them. Random weights stand at epoch 0.
    """
    trained = groups([one for one in rows if one["losses"]], "encoder", "scheme")
    untrained = {(one["encoder"], one["seed"]): one for one in rows if not one["losses"]}
    figure = empty_figure(11.0, 1 + 3.6 * max(1, len(trained)))
    places = figure.subplots(max(1, len(trained)), 3, squeeze=False)
    for axes, ((encoder, scheme), same) in zip(places, trained.items(), strict=False):
        for ax, (words, key) in zip(axes, PROBES.items(), strict=False):
            style(ax, f"{encoder}, {scheme}: {words} probes, %")
            for (decoder,), own in groups(same, "decoder").items():
                curves = [_curve(one, untrained.get((encoder, one["seed"])), key) for one in own]
                _draw(ax, curves, DECODER_COLORS[decoder], f"{decoder} decoder")
            percent = [
                100 * one["points"][0][key]
                for one in untrained.values()
                if one["encoder"] not in v_infomax_fits.SETUPS and one["pixels"] == same[0]["pixels"]
            ]
            if percent:
                ax.axhline(sum(percent) / len(percent), color=ENTROPY, linestyle=":", label="probes of the pixels")
        style(axes[2], f"{encoder}, {scheme}: squared error")
        for (decoder,), own in groups(same, "decoder").items():
            curves = [(list(range(len(one["losses"]))), one["losses"]) for one in own]
            _draw(axes[2], curves, DECODER_COLORS[decoder], f"{decoder} decoder")
        for ax in axes:
            ax.set_xlabel("epoch")
    shared_legend(figure, places.ravel())
    return figure


Curve = tuple[list[int], list[float]]  # epochs, values


def _curve(one: Row, untrained: Row | None, key: str) -> Curve:
    """The percentages of a training after those of random weights, if they are known."""
    points = [*(untrained["points"] if untrained else []), *one["points"]]
    return [point["epoch"] for point in points], [100 * point[key] for point in points]


def _draw(ax: Axes, curves: Sequence[Curve], color: str, label: str) -> None:
    """Draw the curve of each seed, thin, and their mean at the epochs that all have."""
    epochs = sorted(set.intersection(*(set(at) for at, _ in curves)))
    values = [dict(zip(*curve, strict=True)) for curve in curves]
    for of_seed in values:
        ax.plot([*of_seed], floats([*of_seed.values()]), color=color, linewidth=0.7, alpha=0.4)
    means = floats([sum(of_seed[at] for of_seed in values) / len(values) for at in epochs])
    ax.plot(epochs, means, "o-" if len(epochs) < 10 else "-", color=color, markersize=4, label=label)


def picture_of_information(rows: Sequence[Row]) -> Figure:
    """Draw usable information with its ends, and Gaussian V-information, at the end of each training."""
    kinds = groups([one for one in rows if one["losses"]], "encoder", "scheme", "decoder")
    figure = empty_figure(11.0, 2.2 + 0.5 * max(1, len(kinds)))
    class_axes, image_axes = figure.subplots(1, 2, sharey=True)
    style(class_axes, "usable information about the class, bits")
    style(image_axes, "Gaussian V-information about the image, % of tr Cov(x)")
    for place, ((_, _, decoder), same) in enumerate(kinds.items()):
        color = DECODER_COLORS[decoder]
        for at, one in enumerate(same):
            point, y = one["points"][-1], place + 0.15 * (at - (len(same) - 1) / 2)
            if tables.known(point["usable_lower_bits"]) and tables.known(point["usable_upper_bits"]):
                ends = floats([point["usable_lower_bits"]]), floats([point["usable_upper_bits"]])
                class_axes.hlines([y], *ends, color=CERTIFIED, label="certified ends")
            class_axes.plot([point["usable_bits"]], [y], "o", color=color, markersize=4, label=f"{decoder} decoder")
            marks = {"own_bits": ("o", "own decoder"), "gaussian_linear_bits": ("|", "linear family")}
            marks |= {"gaussian_mlp_bits": ("x", "MLP family")}
            for key, (mark, words) in marks.items():
                if tables.known(point.get(key)):
                    percent = [100 * point[key] / point["total_bits"]]
                    image_axes.plot(percent, [y], mark, color=INK, markersize=5, label=f"image: {words}")
    class_axes.set_yticks(range(len(kinds)), [", ".join(kind) for kind in kinds])
    class_axes.set_ylim(max(1, len(kinds)) - 0.5, -0.5)
    shared_legend(figure, [class_axes, image_axes])
    return figure


STUDIES["v_infomax"] = Study(captions=CAPTIONS, fits=Fits(v_infomax_fits.make, section))
