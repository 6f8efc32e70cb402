"""The study `objectives`: which loss trains the best encoder? After Lee et al. 2023, Table III."""

from collections.abc import Sequence

from mirigor_jax.drawing import Figure
from mirigor_jax.studies import cases
from mirigor_jax.studies.cases import BEST_KNOWN
from mirigor_jax.studies.rows import Row
from mirigor_jax.studies.table import STUDIES, Study

# Name of a loss, as in its cells' names → (pairing, objective, its words in the table).
LOSSES = {
    "simclr": ("simclr", "simclr", "SimCLR"),
    "decoupled": ("simclr", "decoupled", "decoupled"),
    "class": ("class", "simclr", "class"),
    "supcon": ("simclr", "supcon", "SupCon"),
    "cross_entropy": ("class", "cross_entropy", "cross-entropy"),
}
# Set → loss → linear accuracy, %. Our `class` is the paper's L_class, the contrastive loss of same-class pairs.
# Source: Lee et al. 2023, Table III, and the papers that it cites.
PAPER = {
    "cifar10": {"SimCLR": 93.0, BEST_KNOWN: 94.1, "class": 93.1, "SupCon": 96.0},
    "imagenet100": {"SimCLR": 77.8, BEST_KNOWN: 84.5, "class": 87.4, "SupCon": 87.6},
    "imagenet1k": {"SimCLR": 69.1, BEST_KNOWN: 76.4, "class": 75.2, "SupCon": 78.7},
}
CAPTIONS = {
    "objectives": "Linear accuracy and I_class by the objective of training, after Lee et al. 2023, Table III.",
}


def table(rows: Sequence[Row]) -> str:
    """A line for each loss, with the paper's accuracy if the paper has one."""
    legend = (
        "Linear accuracy is that of the encoder that each loss trains; MI is in bits; ± is the standard deviation over "
        "seeds. The losses SimCLR, decoupled and SupCon see two augmentations of an image; class sees two unaugmented "
        "images of a class; cross-entropy sees unaugmented images. The paper's values are those of Lee et al. 2023, "
        "Table III, for CIFAR-10, ImageNet-100 and ImageNet-1k. That table cites SupCon on CIFAR-10 and ImageNet-1k "
        "(Khosla et al. 2020), SimCLR on ImageNet-1k (Chen et al. 2020), and the best known unsupervised results: "
        "94.1 % (SWD) on CIFAR-10, 84.5 % (MoCo-v2 + MoCHi) on ImageNet-100, 76.4 % (HCA) on ImageNet-1k."
    )
    return f"{cases.table('loss', rows, PAPER.get(rows[0]['set'], {}))}\n\n{legend}"


def draw(rows: Sequence[Row]) -> dict[str, Figure]:
    """The study's only picture."""
    return {"objectives": cases.picture(rows, PAPER.get(rows[0]["set"], {}))}


STUDIES["objectives"] = Study(cases.row, table, draw, CAPTIONS, cases.TAGS)
