"""The study `supervised_autoencoder`: does reconstruction help a pretext task? After Gosch 2020, section 5.2."""

from collections.abc import Callable, Sequence

from mirigor_jax import tables
from mirigor_jax.drawing import (
    ENTROPY,
    IN_TRAINING,
    LOWER_BOUND,
    NO_BOUND,
    Figure,
    floats,
    line_of_means,
    panels,
    shared_legend,
    whiskers,
)
from mirigor_jax.files import AnyPath
from mirigor_jax.runs.schema import ImageReport
from mirigor_jax.studies import auxiliary_labels, supervised_autoencoder_fits
from mirigor_jax.studies.auxiliary_labels import RANDOM, ROTATION
from mirigor_jax.studies.rows import Row, groups, mean
from mirigor_jax.studies.table import STUDIES, Fits, Section, Study

LINEAR, NON_LINEAR = "linear", "non-linear"  # decoders, in tables
NO_DECODER, BOTH = "–", "either"  # of λ = 0; labels of λ = ∞
WEIGHTS = (0.0, 0.25, 1.0, None)  # λ; None: ∞
TAGS = ("net", "labeling", "decoder", "weight")
# (encoder, labels, decoder, λ) → the paper's linear accuracy (%), non-linear accuracy (%), reconstruction loss,
# accuracy on the pretext task (%) and NMI; None: not in its tables. Gosch 2020, Tables 3 and 4, CIFAR-10.
PAPER: dict[tuple[str, str, str, float | None], tuple[float | None, ...]] = {
    ("resnet18", ROTATION, NO_DECODER, 0.0): (71.25, 79.86, None, 75.94, None),
    ("resnet18", ROTATION, LINEAR, 0.25): (73.32, 79.24, 0.32, 76.26, None),
    ("resnet18", ROTATION, NON_LINEAR, 0.25): (72.42, 80.35, 0.44, 76.11, None),
    ("plainnet18", ROTATION, NO_DECODER, 0.0): (45.12, 66.6, None, 75.55, None),
    ("plainnet18", ROTATION, LINEAR, 0.25): (59.96, 68.48, 0.34, 75.80, None),
    ("plainnet18", ROTATION, NON_LINEAR, 0.25): (52.68, 68.62, 0.46, 75.65, None),
    ("resnet18", RANDOM, NO_DECODER, 0.0): (27.38, 32.14, None, None, 0.18),
    ("resnet18", RANDOM, LINEAR, 0.25): (36.72, 43.46, None, None, 0.33),
    ("resnet18", RANDOM, LINEAR, 1.0): (45.74, 53.54, None, None, 0.45),
    ("resnet18", BOTH, LINEAR, None): (46.96, 60.70, None, None, 0.49),
    ("plainnet18", RANDOM, NO_DECODER, 0.0): (15.26, 19.82, None, None, 0.04),
    ("plainnet18", RANDOM, LINEAR, 0.25): (32.58, 35.44, None, None, 0.25),
    ("plainnet18", RANDOM, LINEAR, 1.0): (44.56, 50.16, None, None, 0.42),
    ("plainnet18", BOTH, LINEAR, None): (47.80, 61.44, None, None, 0.50),
}
SERIES = {
    (ROTATION, LINEAR): (LOWER_BOUND, "o"),
    (ROTATION, NON_LINEAR): (IN_TRAINING, "^"),
    (RANDOM, LINEAR): (NO_BOUND, "s"),
}
CAPTIONS = {
    "supervised_autoencoder": "Linear and non-linear accuracy, and usable information with the outermost certified "
    "ends over the seeds, against the weight λ of the reconstruction. A line is a mean over the seeds, and a small "
    "mark a seed."
}


def row(done: ImageReport, folder: AnyPath) -> Row:
    """A training's seed and steps, and the linear accuracy of its last stage."""
    return auxiliary_labels.row(done, folder)


def table(rows: Sequence[Row]) -> str:
    """A line for each training: its steps, and what a linear probe finds of both labels."""
    lines = [
        (
            net,
            labeling,
            decoder,
            shown(weight),
            str(len(same)),
            f"{same[0]['steps']:,}",
            mean([100 * one["accuracy"]["class"] for one in same], ".2f"),
        )
        for (net, labeling, decoder, weight), same in groups(rows, *TAGS).items()
    ]
    return tables.grid(("encoder", "labels", "decoder", "λ", "seeds", "steps", "linear accuracy, %"), lines)


def shown(weight: float | None) -> str:
    """λ as text."""
    return "∞" if weight is None else f"{weight:g}"


def draw(rows: Sequence[Row]) -> dict[str, Figure]:
    """No picture: it is drawn from the fits."""
    return {}


def section(rows: Sequence[Row]) -> Section:
    """Tables of all trainings for each encoder, beside the paper's numbers, and the picture."""
    texts = []
    for (net,), of_net in groups(rows, "net").items():
        for title, cells in TABLES.items():
            texts += [f"### {net}: {title}", _beside_the_paper(net, of_net, cells)]
    texts.append(_legend(rows))
    return Section("What the last stage holds", "\n\n".join(texts), {"supervised_autoencoder": picture(rows)})


def _values(key: str, form: str = ".3f", factor: float = 1.0) -> Callable[[Sequence[Row]], str]:
    """Rows of one training → the mean of a field that the seeds have; a dash if none has it."""

    def cell(rows: Sequence[Row]) -> str:
        values = [factor * one[key] for one in rows if one[key] is not None]
        return mean(values, form) if values else "–"

    return cell


def _nmi(key: str) -> Callable[[Sequence[Row]], str]:
    return lambda rows: _values("nmi", ".2f")(
        [{"nmi": None if one[key] is None else one[key] / one["entropy_bits"]} for one in rows]
    )


def _ends(rows: Sequence[Row]) -> str:
    """The outermost certified ends of usable information over the seeds."""
    lower, upper = (floats([one[f"usable_{end}_bits"] for one in rows]) for end in ("lower", "upper"))
    return tables.ends(tables.round_down(lower.min()), tables.round_up(upper.max()))


def _epoch(rows: Sequence[Row]) -> str:
    return f"{_values('chosen_epoch', '.1f')(rows)} of {rows[0]['last_epoch']:.0f}"


# The columns of a table: (heading, the rows of a training → its cell, the place of the paper's number in PAPER).
Cells = Sequence[tuple[str, Callable[[Sequence[Row]], str], int | None]]
TABLES: dict[str, Cells] = {
    "probes of the class, and the reconstruction": (
        ("linear, %", _values("linear_accuracy", ".2f", 100.0), 0),
        ("MLP, %", _values("mlp_accuracy", ".2f", 100.0), 1),
        ("error of a pixel", _values("reconstruction"), 2),
    ),
    "information about the class": (
        ("usable, bits", _values("usable_bits"), None),
        ("certified ends", _ends, None),
        ("NMI", _nmi("js_largest_bits"), 4),
        ("NMI, test", _nmi("js_bits"), None),
    ),
    "the pretext task": (
        ("training accuracy, %", _values("fit_accuracy", ".2f", 100.0), None),
        ("test accuracy, %", _values("held_out_accuracy", ".2f", 100.0), 3),
        ("chosen epoch", _epoch, None),
    ),
}


def _beside_the_paper(net: str, rows: Sequence[Row], cells: Cells) -> str:
    """A line for each training, and below it the paper's numbers if it has some."""
    lines = []
    for (labeling, decoder, weight), same in groups(rows, "labeling", "decoder", "weight").items():
        of = labeling.removesuffix(" labels"), decoder, shown(weight)
        lines.append((*of, *(cell(same) for _, cell, _ in cells)))
        paper = PAPER.get((net, labeling, decoder, weight), (None,) * 5)
        numbers = [None if place is None else paper[place] for *_, place in cells]
        if any(number is not None for number in numbers):
            lines.append(("the paper's", *of[1:], *("–" if x is None else f"{x:.2f}" for x in numbers)))
    return tables.grid(("labels", "decoder", "λ", *(heading for heading, *_ in cells)), lines)


def _legend(rows: Sequence[Row]) -> str:
    """How to read the tables."""
    unseen = {one["unseen_rows"] for one in rows}
    counts = " to ".join(f"{n:,}" for n in sorted({min(unseen), max(unseen)}))
    return (
        "± is the standard deviation over seeds. Accuracies are those of probes of the class, on test images. The "
        "error is the squared error of a test image's pixel, in units in which each channel of the training images has "
        "variance 1. λ = 0 has no decoder, and λ = ∞ no pretext task: one training stands for both labels. NMI is "
        "I(h;Y) / H(Y) of the class Y by a Jensen–Shannon critic: its largest value on validation, the paper's "
        "estimate, which is biased up, and its value read once on test images. Usable information is that of linear "
        "probes (mi.usable_information): the mean over the seeds, and the outermost ends, certified on "
        f"{counts} images that the encoder has not seen. The chosen epoch has the least training loss, both of its "
        "terms, over the 50 steps before it; no held-out image chooses. The paper chooses the epoch of the best "
        "accuracy on the pretext task, and for λ = ∞ of the least reconstruction loss. Its images are CIFAR-10."
    )


def _series(rows: Sequence[Row], labeling: str, decoder: str) -> list[Row]:
    """The rows of these labels and this decoder at every λ. λ = 0 has no decoder, and λ = ∞ no labels."""
    return [one for one in rows if one["labeling"] in (labeling, BOTH) and one["decoder"] in (decoder, NO_DECODER)]


def picture(rows: Sequence[Row]) -> Figure:
    """Draw both accuracies and the usable information against λ, three panels for each encoder."""
    by_net = groups(rows, "net")
    titles: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("linear accuracy, %", lambda one: 100 * one["linear_accuracy"]),
        ("non-linear accuracy, %", lambda one: 100 * one["mlp_accuracy"]),
        ("usable information, bits", lambda one: one["usable_bits"]),
    )
    figure, axes = panels(*(f"{net}: {title}" for (net,) in by_net for title, _ in titles))
    for number, of_net in enumerate(by_net.values()):
        own = axes[len(titles) * number : len(titles) * (number + 1)]
        for place, ((labeling, decoder), (color, marker)) in enumerate(SERIES.items()):
            if not (same := _series(of_net, labeling, decoder)):
                continue
            x = floats([WEIGHTS.index(one["weight"]) for one in same])
            shift = 0.08 * (place - 1)  # so that whiskers don't cover each other
            for ax, (_, value) in zip(own, titles, strict=True):
                values = floats([value(one) for one in same])
                line_of_means(ax, x + shift, values, color, marker, label=f"{labeling}, {decoder} decoder")
            ends = groups(same, "weight")
            lower = floats([min(one["usable_lower_bits"] for one in of) for of in ends.values()])
            upper = floats([max(one["usable_upper_bits"] for one in of) for of in ends.values()])
            at = floats([WEIGHTS.index(weight) for (weight,) in ends])
            whiskers(own[-1], at + shift, lower, upper, color)
        own[-1].axhline(of_net[0]["entropy_bits"], color=ENTROPY, label="H(Y)", zorder=1.5)
        for ax in own:
            ax.set_xticks(range(len(WEIGHTS)), [shown(weight) for weight in WEIGHTS])
            ax.set_xlabel("λ")
    shared_legend(figure, axes)
    return figure


STUDIES["supervised_autoencoder"] = Study(
    row, table, draw, CAPTIONS, TAGS, fits=Fits(supervised_autoencoder_fits.make, section)
)
