"""The studies `objectives` and `negatives`: one run a case. After Lee et al. 2023, Tables III and X."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mirigor_jax import tables
from mirigor_jax.drawing import CERTIFIED, ENTROPY, INK, LINEAR, STRICT, panels, shared_legend
from mirigor_jax.files import AnyPath
from mirigor_jax.runs.report import Report
from mirigor_jax.studies.rows import Row, groups, mean

BEST_KNOWN = "best known, unsupervised"
LOSSES = {  # by pairing and objective
    ("simclr", "simclr"): "SimCLR",
    ("simclr", "decoupled"): "decoupled",
    ("class", "simclr"): "class",
    ("simclr", "supcon"): "SupCon",
    ("class", "cross_entropy"): "cross-entropy",
}
NEGATIVES = {  # by data.negatives; a folder has its name
    "": "D, of the same batch",
    "own": "D, drawn apart",
    "classes:second-half": "the other half of the classes",
    "cdp": "CDP images",
    "uniform": "uniform noise",
    "gaussian": "Gaussian noise",
}
# Linear accuracy in percent; L_class of the paper is the contrastive loss of same-class pairs.
# Source: Lee et al. 2023, Table III, and what it cites.
PAPER_OBJECTIVES = {
    "cifar10": {"SimCLR": 93.0, BEST_KNOWN: 94.1, "class": 93.1, "SupCon": 96.0},
    "imagenet100": {"SimCLR": 77.8, BEST_KNOWN: 84.5, "class": 87.4, "SupCon": 87.6},
    "imagenet1k": {"SimCLR": 69.1, BEST_KNOWN: 76.4, "class": 75.2, "SupCon": 78.7},
}
OBJECTIVES_CAPTIONS = {
    "objectives": "Linear accuracy and I_class by the objective of training, after Lee et al. 2023, Table III.",
}


def objectives_row(done: Report, folder: AnyPath) -> Row:
    """The case is what trained the encoder."""
    config = done["run"]["config"]
    return _case_row(LOSSES[config["data"]["pairing"], config["train"]["objective"]], done, folder)


def objectives_table(rows: Sequence[Row]) -> str:
    """A line a case, with the paper's accuracy where it has one."""
    legend = (
        "Linear accuracy of the encoder that each loss trains; MI in bits; ± is the standard deviation over seeds. "
        "SimCLR's, decoupled and SupCon see two augmentations of an image, class two images of a class as they are, "
        "cross-entropy images as they are. The paper's: Lee et al. 2023, Table III, which has CIFAR-10, ImageNet-100 "
        "and ImageNet-1k. It cites SupCon of CIFAR-10 and ImageNet-1k (Khosla et al. 2020), SimCLR of ImageNet-1k "
        "(Chen et al. 2020) and the best known unsupervised results: 94.1 % (SWD) of CIFAR-10, 84.5 % (MoCo-v2 + "
        "MoCHi) of ImageNet-100, 76.4 % (HCA) of ImageNet-1k."
    )
    return f"{_case_table('loss', rows, PAPER_OBJECTIVES.get(rows[0]['set'], {}))}\n\n{legend}"


def draw_objectives(rows: Sequence[Row]) -> dict[str, Figure]:
    """The study's one picture."""
    return {"objectives": picture(rows, PAPER_OBJECTIVES.get(rows[0]["set"], {}))}


def negatives_row(done: Report, folder: AnyPath) -> Row:
    """The case is where its negatives came from."""
    named = done["run"]["config"]["data"]["negatives"]
    return _case_row(NEGATIVES.get(named, Path(named.partition(":")[2]).name), done, folder)


def negatives_table(rows: Sequence[Row]) -> str:
    """A line a case."""
    legend = (
        "Linear accuracy on D, half of the classes, of the encoder that SimCLR trains on D with negatives of D⁻; MI in "
        "bits; ± is the standard deviation over seeds. In the paper (Lee et al. 2023, appendix C and Table X) D⁻ = the "
        "other half is better than D⁻ = D, by 1.92 points of CIFAR-10's first five classes and 0.77 of CIFAR-100's "
        "first fifty, and PACS's cartoons, art, photographs and sketches, and uniform noise, are worse."
    )
    return f"{_case_table('negatives D⁻', rows, {})}\n\n{legend}"


def draw_negatives(rows: Sequence[Row]) -> dict[str, Figure]:
    """The study's one picture."""
    return {"negatives": picture(rows, {})}


def _case_row(case: str, done: Report, folder: AnyPath) -> Row:
    """A run by its case and set of images: its accuracy, and what the encoder knows of the class and of the image."""
    of_class = done["estimates"]["class"]
    return {
        "set": folder.name.partition("-")[0],
        "case": case,
        "seed": done["run"]["config"]["seed"],
        "accuracy": done["linear"]["class"],
        **{name: of_class[name] for name in ("strict_bits", "lower_bits", "entropy_bits")},
        "simclr_bits": done["estimates"]["simclr"]["strict_bits"],
    }


def _case_table(heading: str, rows: Sequence[Row], paper: Mapping[str, float]) -> str:
    header = (heading, "seeds", "accuracy, %", "the paper's", "I_class, strict", "certified", "I_SimCLR, strict")
    lines = [
        (
            case,
            str(len(same)),
            mean([100 * row["accuracy"] for row in same], ".2f"),
            f"{paper[case]:.1f}" if case in paper else "–",
            mean([row["strict_bits"] for row in same]),
            f"[{tables.round_down(min(row['lower_bits'] for row in same)):.3f}, {same[0]['entropy_bits']:.3f}]",
            mean([row["simclr_bits"] for row in same]),
        )
        for (case,), same in groups(rows, "case").items()
    ]
    if BEST_KNOWN in paper:
        lines.append((BEST_KNOWN, "", "", f"{paper[BEST_KNOWN]:.1f}", "", "", ""))
    return tables.grid(header, lines)


def picture(rows: Sequence[dict[str, Any]], paper: Mapping[str, float]) -> Figure:
    """By case: linear accuracy in %, with the paper's, and strict I_class in bits below H(C).

    rows: of the studies objectives (a loss is a case) and negatives (a D⁻ is), one a run. paper: accuracy in % by case.
    """
    names = list(dict.fromkeys([*(row["case"] for row in rows), *paper]))
    figure, (left, right) = panels("linear accuracy, %", "I_class of the encoder, bits")
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
    shared_legend(figure, [left, right])
    return figure
