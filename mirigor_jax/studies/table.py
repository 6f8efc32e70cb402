"""Every study by its name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from mirigor_jax.files import AnyPath
from mirigor_jax.runs.report import Report
from mirigor_jax.studies import batch_size, cases, certified, infomin_strength, infomin_tasks, quality
from mirigor_jax.studies.rows import Row


@dataclass(frozen=True)
class Study:
    """What a study makes of its finished runs.

    row: a run's report and folder → its numbers, plain values. table: the rows → Markdown. draw: the rows → figures.
    captions: of the figures, by their names and in their order.
    """

    row: Callable[[Report, AnyPath], Row]
    table: Callable[[Sequence[Row]], str]
    draw: Callable[[Sequence[Row]], dict[str, Figure]]
    captions: Mapping[str, str]


STUDIES = {
    "batch_size": Study(batch_size.row, batch_size.table, batch_size.draw, batch_size.CAPTIONS),
    "infomin_tasks": Study(infomin_tasks.row, infomin_tasks.table, infomin_tasks.draw, infomin_tasks.CAPTIONS),
    "infomin_strength": Study(
        infomin_strength.row, infomin_strength.table, infomin_strength.draw, infomin_strength.CAPTIONS
    ),
    "quality": Study(quality.row, quality.table, quality.draw, quality.CAPTIONS),
    "objectives": Study(cases.objectives_row, cases.objectives_table, cases.draw_objectives, cases.OBJECTIVES_CAPTIONS),
    "negatives": Study(cases.negatives_row, cases.negatives_table, cases.draw_negatives, {}),
    "certified": Study(certified.row, certified.table, certified.draw, certified.CAPTIONS),
}
