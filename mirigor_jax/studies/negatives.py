"""The study `negatives`: must negatives come from the data? After Lee et al. 2023, appendix C and Table X."""

from collections.abc import Sequence

from mirigor_jax.drawing import Figure
from mirigor_jax.studies import cases
from mirigor_jax.studies.rows import Row
from mirigor_jax.studies.table import STUDIES, Study

# Name of a case, as in its cells' names → (data.negatives, its words in the table).
NEGATIVES = {
    "in-batch": ("", "D, of the same batch"),
    "own": ("own", "D, drawn apart"),
    "other-half": ("classes:second-half", "the other half of the classes"),
    "cdp": ("cdp", "CDP images"),
    "uniform": ("uniform", "uniform noise"),
    "gaussian": ("gaussian", "Gaussian noise"),
}


def table(rows: Sequence[Row]) -> str:
    """A line for each source of negatives."""
    legend = (
        "SimCLR trains each encoder on D, half of the classes, with negatives from D⁻. The linear accuracy is on D; MI "
        "is in bits; ± is the standard deviation over seeds. In the paper (Lee et al. 2023, appendix C and Table X), "
        "D⁻ = the other half is better than D⁻ = D: by 1.92 points for CIFAR-10's first five classes, and by 0.77 for "
        "CIFAR-100's first fifty. PACS's cartoons, art, photographs and sketches, and uniform noise, are worse."
    )
    return f"{cases.table('negatives D⁻', rows, {})}\n\n{legend}"


def draw(rows: Sequence[Row]) -> dict[str, Figure]:
    """The study's only picture."""
    return {"negatives": cases.picture(rows, {})}


STUDIES["negatives"] = Study(cases.row, table, draw, tags=cases.TAGS)
