"""The table of all studies, by name.

To add a study, write a module in this package that enters it here, and a config in configs/studies/. A config file
alone can enter one too:

    STUDIES["mine"] = Study(row, table, draw, captions={"mine": "Caption of the picture."})
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mirigor_jax.drawing import Figure
from mirigor_jax.files import AnyPath
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.schema import ImageReport
from mirigor_jax.studies.rows import Row


@dataclass(frozen=True)
class Section:
    """A section of a study's report: its title, its Markdown, and its figures by name.

    files: name → text of further files, which go into the study's folder.
    """

    title: str
    text: str
    figures: Mapping[str, Figure]
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fits:
    """The fits, such as of critics, that a study makes besides its runs: one for each entry of its `study.fits`.

    make: (the entry, a cell's name → its run folder, the fit's own folder) → its rows, of plain values.
    section: the rows of all finished fits → a section of the report.
    """

    make: Callable[[Mapping[str, Any], Mapping[str, RunFolder], RunFolder], list[Row]]
    section: Callable[[Sequence[Row]], Section]


@dataclass(frozen=True)
class Study:
    """How a study turns its finished runs into rows, a table and figures.

    row: (a run's report, its folder) → its row, of plain values. The grid adds the cell's name, seconds, devices and
        tags. `row`, `table` and `draw` are None in a study that trains no runs and only makes fits.
    table: rows → Markdown.
    draw: rows → (name → figure).
    captions: name of a figure → its caption, in the order of the report.
    tags: names of the tags that every cell of the study's config must have.
    together: (rows, a cell's name → its run folder, the study's folder) → a section that reads several runs at once;
        None if there is nothing to say. It may take minutes, so it keeps what it computes in the study's folder.
    fits: how it makes the fits of its config; None: it makes none.
    joined: (rows, a cell's name → its run folder, the study's folder) → the rows, with columns that need several runs.
        It comes before `table` and `draw`.
    """

    row: Callable[[ImageReport, AnyPath], Row] | None = None
    table: Callable[[Sequence[Row]], str] | None = None
    draw: Callable[[Sequence[Row]], dict[str, Figure]] | None = None
    captions: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    together: Callable[[Sequence[Row], Mapping[str, RunFolder], RunFolder], Section | None] | None = None
    fits: Fits | None = None
    joined: Callable[[Sequence[Row], Mapping[str, RunFolder], RunFolder], list[Row]] | None = None


STUDIES: dict[str, Study] = {}
