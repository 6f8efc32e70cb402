"""Every study in one table, by its name.

A new study is a module of this package, which enters it here, and a config in configs/studies/; or a config file alone:

    STUDIES["mine"] = Study(row, table, draw, captions={"mine": "What the picture shows."})
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mirigor_jax.drawing import Figure
from mirigor_jax.files import AnyPath
from mirigor_jax.runs.schema import ImageReport
from mirigor_jax.studies.rows import Row


@dataclass(frozen=True)
class Study:
    """What a study makes of its finished runs.

    row: a run's report and folder -> its numbers, plain values. The grid adds the cell's name, time, devices and tags.
    table: the rows -> Markdown.
    draw: the rows -> figures by their names.
    captions: of the figures, by their names and in their order.
    tags: what every cell of its config says of itself, by name.
    """

    row: Callable[[ImageReport, AnyPath], Row]
    table: Callable[[Sequence[Row]], str]
    draw: Callable[[Sequence[Row]], dict[str, Figure]]
    captions: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


STUDIES: dict[str, Study] = {}
