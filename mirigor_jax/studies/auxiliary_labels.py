"""The study `auxiliary_labels`: does MI with the class explain a pretext task? After Gosch 2020, section 4."""

from collections.abc import Callable, Sequence

from mirigor_jax import tables
from mirigor_jax.drawing import (
    CERTIFIED,
    ENTROPY,
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
from mirigor_jax.studies import auxiliary_stages
from mirigor_jax.studies.rows import Row, groups, mean, outermost
from mirigor_jax.studies.table import STUDIES, Fits, Section, Study

# Name of a labeling, as in its cells' names → its words in tables.
ROTATION, RANDOM, UNTRAINED = "rotation labels", "random labels", "random initialization"
LABELINGS = {"rotation": ROTATION, "random": RANDOM, "untrained": UNTRAINED}
TAGS = ("net", "labeling")
LEAST_MEMORIZED = 0.95  # training accuracy above which random labels count as memorized
STAGES = ("B0", "B1", "B2", "B3", "B4", "prelogits")
# (encoder, labeling) → the paper's NMI and linear accuracy (%) of each stage: Gosch 2020, Tables 1 and 8, CIFAR-10.
PAPER: dict[tuple[str, str], tuple[tuple[float, ...], tuple[float, ...]]] = {
    ("resnet18", ROTATION): ((0.50, 0.61, 0.65, 0.67, 0.62, 0.62), (41.65, 52.51, 55.96, 57.48, 56.80, 51.04)),
    ("resnet18", RANDOM): ((0.52, 0.53, 0.44, 0.28, 0.06, 0.11), (44.10, 45.91, 39.60, 31.51, 19.98, 20.83)),
    ("resnet18", UNTRAINED): ((0.50, 0.47, 0.39, 0.32, 0.27, 0.29), (42.12, 42.06, 39.47, 34.91, 33.00, 32.95)),
    ("plainnet18", ROTATION): ((0.53, 0.59, 0.69, 0.69, 0.45, 0.46), (43.83, 51.78, 57.45, 59.94, 35.12, 32.53)),
    ("plainnet18", RANDOM): ((0.43, 0.42, 0.37, 0.21, 0.01, 0.04), (36.34, 38.10, 35.64, 27.60, 17.12, 17.28)),
    ("plainnet18", UNTRAINED): ((0.49, 0.40, 0.30, 0.24, 0.20, 0.16), (40.72, 38.35, 32.39, 26.76, 23.07, 19.03)),
}
COLORS = {ROTATION: (LOWER_BOUND, "o"), RANDOM: (NO_BOUND, "s"), UNTRAINED: (CERTIFIED, "^")}
CAPTIONS = {
    "auxiliary_labels": "Linear accuracy, and usable information with the outermost certified ends over the seeds, of "
    "each stage. A line is a mean over the seeds, and a small mark a seed."
}


def row(done: ImageReport, folder: AnyPath) -> Row:
    """A training's seed, and the linear accuracy of its last stage."""
    return {"seed": done.run.config["seed"], "steps": done.run.config["train"]["steps"], "accuracy": done.linear}


def table(rows: Sequence[Row]) -> str:
    """A line for each encoder and labeling: what a linear probe of the last stage finds."""
    lines = [
        (
            net,
            labeling,
            str(len(same)),
            f"{same[0]['steps']:,}",
            *(mean([100 * one["accuracy"][task] for one in same], ".2f") for task in ("class", "rotation")),
        )
        for (net, labeling), same in groups(rows, *TAGS).items()
    ]
    header = ("encoder", "trained on", "seeds", "steps", "linear accuracy: class, %", "rotation, %")
    return tables.grid(header, lines)


def draw(rows: Sequence[Row]) -> dict[str, Figure]:
    """No picture: that of the stages is drawn from the fits."""
    return {}


def counted(rows: Sequence[Row]) -> list[Row]:
    """The rows of fits without those of random labels that were not memorized."""
    return [one for one in rows if one["labeling"] != RANDOM or one["fit_accuracy"] >= LEAST_MEMORIZED]


def section(rows: Sequence[Row]) -> Section:
    """The stages: the pretext tasks, a table for each encoder and measure, and the picture."""
    texts = ["### The pretext labels", _pretext(rows)]
    shown = counted(rows)
    if left_out := {one["run"] for one in rows} - {one["run"] for one in shown}:
        texts.append(
            f"Left out below, because less than {LEAST_MEMORIZED:.0%} of the random labels are memorized: "
            f"{', '.join(sorted(left_out))}."
        )
    for (net,), of_net in groups(shown, "net").items():
        for title, cell, paper in MEASURES:
            texts += [f"### {net}: {title}", _by_stage(net, of_net, cell, paper)]
    texts.append(_legend(rows))
    return Section("What each stage holds", "\n\n".join(texts), {"auxiliary_labels": picture(shown)} if shown else {})


def _pretext(rows: Sequence[Row]) -> str:
    """A line for each encoder and labeling: how well the pretext labels are learned, and I(Y';Y)."""
    lines = []
    for (net, labeling), same in groups(rows, *TAGS).items():
        seeds = [stages[0] for stages in groups(same, "run").values()]
        lines.append(
            (
                net,
                labeling,
                str(len(seeds)),
                mean([100 * one["fit_accuracy"] for one in seeds], ".2f"),
                mean([100 * one["held_out_accuracy"] for one in seeds], ".2f"),
                mean([one["table_bits"] for one in seeds], ".4f"),
                mean([one["mi_bits"] for one in seeds], ".4f"),
                outermost(seeds, "mi"),
                f"{seeds[0]['mi_rows']:,}",
            )
        )
    header = ("encoder", "trained on", "seeds", "training accuracy, %", "test accuracy, %", "I(Y';Y) of the table")
    return tables.grid((*header, "I(Y';Y)", "its certified ends", "rows"), lines)


def _by_stage(net: str, rows: Sequence[Row], cell: Callable[[Sequence[Row]], str], paper: int | None) -> str:
    """A line for each labeling, a column for each stage, and the paper's numbers below ours."""
    lines = []
    for (labeling,), same in groups(rows, "labeling").items():
        of_stage = groups(same, "stage")
        lines.append((labeling, *(cell(of_stage[stage,]) if (stage,) in of_stage else "–" for stage in STAGES)))
        if paper is not None:
            form = ".2f"
            lines.append((f"{labeling}, the paper's", *(f"{x:{form}}" for x in PAPER[net, labeling][paper])))
    return tables.grid(("trained on", *STAGES), lines)


def _usable(rows: Sequence[Row]) -> str:
    """The mean usable information of a stage, and its outermost ends over the seeds."""
    known = _measured(rows)
    if not known:
        return "–"
    return f"{mean([one['usable_bits'] for one in known])} {outermost(known, 'usable')}"


def _measured(rows: Sequence[Row]) -> list[Row]:
    """The rows whose run had enough images for usable information and its ends."""
    return [one for one in rows if one["usable_lower_bits"] is not None]


# (title, the rows of a stage → its cell, the place of the paper's numbers in PAPER or None)
MEASURES = (
    (
        "NMI by a Jensen–Shannon critic, largest value on validation",
        lambda rows: mean([one["js_largest_bits"] / one["entropy_bits"] for one in rows], ".2f"),
        0,
    ),
    (
        "NMI by the same critic, read once on test images",
        lambda rows: mean([one["js_bits"] / one["entropy_bits"] for one in rows], ".2f"),
        None,
    ),
    ("linear accuracy, %", lambda rows: mean([100 * one["accuracy"] for one in rows], ".2f"), 1),
    ("usable information, bits", _usable, None),
)


def _legend(rows: Sequence[Row]) -> str:
    """How to read the tables."""
    unseen = {one["unseen_rows"] for one in rows}
    counts = " to ".join(f"{n:,}" for n in sorted({min(unseen), max(unseen)}))
    return (
        "MI is in bits; ± is the standard deviation over seeds. Y is the class, and Y' the pretext label. The table "
        "of I(Y';Y) has the joint frequencies of all training images at all turns. The column I(Y';Y) is an estimate "
        "from one random turn of each image of the set's training part, because the turns of one image are no "
        "independent rows; the ends are certified for these rows. Training accuracy is that of the trained network in "
        "evaluation mode. Probes and critics are fitted on the training images at all turns, as in the paper. NMI is "
        "I(h;Y) / H(Y). The critic's plug-in is not a bound, and its largest value over the epochs on validation, the "
        "paper's estimate in appendix D.1, is biased up. Usable information is that of linear probes "
        "(mi.usable_information): the mean over the seeds, then the outermost ends, certified on "
        f"{counts} images that the encoder has not seen. The paper's images are CIFAR-10."
    )


def picture(rows: Sequence[Row]) -> Figure:
    """Draw the linear accuracy and the usable information of each stage, two panels for each encoder.

    rows: of the fits, as `auxiliary_stages.make` returns them.
    """
    by_net = groups(rows, "net")
    titles = ("linear accuracy, %", "usable information, bits")
    figure, axes = panels(*(f"{net}: {title}" for (net,) in by_net for title in titles))
    for number, of_net in enumerate(by_net.values()):
        left, right = axes[2 * number : 2 * number + 2]
        for place, ((labeling,), same) in enumerate(groups(of_net, "labeling").items()):
            color, marker = COLORS[labeling]
            x = floats([STAGES.index(one["stage"]) for one in same])
            line_of_means(left, x, floats([100 * one["accuracy"] for one in same]), color, marker, label=labeling)
            if not (known := _measured(same)):
                continue
            shift = 0.08 * (place - 1)  # so that whiskers don't cover each other
            x = shift + floats([STAGES.index(one["stage"]) for one in known])
            line_of_means(right, x, floats([one["usable_bits"] for one in known]), color, marker, label=labeling)
            ends = groups(known, "stage").values()
            lower = floats([min(one["usable_lower_bits"] for one in of) for of in ends])
            upper = floats([max(one["usable_upper_bits"] for one in of) for of in ends])
            at = floats([STAGES.index(of[0]["stage"]) for of in ends])
            whiskers(right, shift + at, lower, upper, color)
        right.axhline(of_net[0]["entropy_bits"], color=ENTROPY, label="H(Y)", zorder=1.5)
        for ax in (left, right):
            ax.set_xticks(range(len(STAGES)), STAGES)
    shared_legend(figure, axes)
    return figure


STUDIES["auxiliary_labels"] = Study(row, table, draw, CAPTIONS, TAGS, fits=Fits(auxiliary_stages.make, section))
