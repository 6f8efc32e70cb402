"""Reading of samples from .npy, .npz and .csv files."""

import csv
import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
from jaxtyping import Shaped

from mirigor_jax import checks
from mirigor_jax.errors import InputError, shown
from mirigor_jax.files import AnyPath, describe, io_errors, read_arrays, to_path
from mirigor_jax.outside import read_bytes

SUFFIXES = (".npy", ".npz", ".csv")
# Unlike int() and float(), these take no underscores and no leading zeros: cells such as 01 and 1_0 are names.
WHOLE, FLOAT = re.compile(r"[+-]?(0|[1-9]\d*)"), re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
UNNAMED = ("", "Unnamed: 0")  # titles that pandas gives an index
LEAST_INDEX = 4  # rows that a first column has to count, to be told from a measurement
Lines: TypeAlias = list[tuple[int, list[str]]]  # of a .csv: (line number, cells)


def read(source: str, name: str) -> Shaped[np.ndarray, "n d"]:
    """Read an array (n, d) of n samples from a file; a one-dimensional array becomes a column.

    source: PATH of a .npy, .npz or .csv file, or PATH:NAME for one array of an .npz. A .csv has numbers between commas;
        a first line that isn't numbers is taken for a header. A first column without a title that counts the rows is
        left out. A UserWarning says so, and names other guesses.
    name: the setting, for messages. If an .npz has several arrays and NAME is missing, the array of this name is read.
    Raises InputError if the file is missing, of another format, damaged or pickled, if a cell of a .csv is not a
    number, and if the array is empty or has more than two dimensions.
    """
    return _read(source, name, _numbers)


def _read(source: str, name: str, of_csv: Callable[[Lines], np.ndarray]) -> Shaped[np.ndarray, "n d"]:
    text, _, member = source.rpartition(":") if ".npz:" in source else (source, "", "")
    path = to_path(text)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{name}='{source}' is of an unknown format; save it as one of {', '.join(SUFFIXES)}")
    try:
        with _told(f"{name}='{source}'"):
            array = of_csv(_cells(path)) if path.suffix.lower() == ".csv" else _read_numpy(path, member, name)
    except (ValueError, csv.Error) as error:
        raise InputError(f"{name}='{source}' cannot be read: {error}") from None
    except io_errors(path) as error:
        raise InputError(f"{name}='{source}' cannot be read ({describe(error)}); give the path of a file") from None
    if array.ndim not in (1, 2) or array.size == 0:
        fix = "flatten each sample by a.reshape(len(a), -1)" if array.ndim > 2 else "give a row for each sample"
        raise InputError(f"{name}='{source}' has shape {array.shape}, expected (samples, columns); {fix}")
    return array.reshape(len(array), -1)


@contextmanager
def _told(title: str) -> Iterator[None]:
    """Warnings of guesses about a file begin with the title."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        warnings.warn(f"{title}: {one.message}", stacklevel=5)


def read_labels(source: str) -> Shaped[np.ndarray, " n"]:
    """Read class labels, one for each sample, from a file as in `read`. In a .csv they may be names.

    Raises InputError as `read` and `checks.labels` do.
    """
    return checks.labels(_read(source, "labels", _names), f"labels='{source}'")


def _read_numpy(path: AnyPath, member: str, name: str) -> np.ndarray:
    loaded = read_arrays(path)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        member = member or (loaded.files[0] if len(loaded.files) == 1 else name)
        if member not in loaded.files:
            there = shown(", ".join(loaded.files), 500) or "none"
            raise InputError(f"no array '{member}' among its {there}; pick one by {path}:NAME")
        return loaded[member]


def _cells(path: AnyPath) -> Lines:
    """(line number, cells without spaces around them) of each line of a .csv.

    Empty lines are left out, but not between the lines of a single column, where they are missing values.
    """
    data = read_bytes(path, times=16)  # a cell of two characters becomes a float of 32 bytes
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is no text of UTF-8; save it as such") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    while lines and not any(lines[-1][1]):
        lines.pop()
    if any(len(cells) > 1 for _, cells in lines):
        return [(line, cells) for line, cells in lines if cells]
    return [(line, cells or [""]) for line, cells in lines]


def _numbers(lines: Lines) -> np.ndarray:
    """Rows of numbers. A first line that isn't numbers is taken for a header."""
    first = lines[0][1] if lines else []
    header = not all(_is_number(cell) or cell in checks.MISSING for cell in first) or _is_index_title(first)
    if not header and _counts(first) and len(lines) > 1:
        # Only a header has no decimals if every later line has some.
        header = not any(WHOLE.fullmatch(cell) for _, cells in lines[1:] for cell in cells)
        if header or len(first) > 1:
            said = "is taken for a header" if header else "is taken for a sample; delete it if it is a header"
            _tell(f"its first line, {_shown(first)}, {said}")
    elif header and any(map(_is_number, first[1:])) and not _counts(first[1:]):
        _tell(f"its first line, {_shown(first)}, is taken for a header")
    rows = _rows(lines, header)
    for line, cells in rows:
        for cell in cells:
            if not _is_number(cell):
                fix = "write thousands without commas" if "," in cell else "give numbers between commas"
                raise ValueError(f"line {line}, {shown(repr(cell))} is no number; {fix}")
    return np.array([[float(cell) for cell in cells] for _, cells in rows])


def _names(lines: Lines) -> np.ndarray:
    """Rows of names, or of numbers if all cells are numbers.

    The first line is taken for a header if it is not all numbers and no later line equals it.
    """
    first, later = (lines[0][1], [cells for _, cells in lines[1:]]) if lines else ([], [])
    named = not all(map(FLOAT.fullmatch, first)) and not any(cell in checks.MISSING for cell in first)
    rows = _rows(lines, bool(later) and first not in later and (named or _is_index_title(first)), "labels")
    columns = [list(column) for column in zip(*(cells for _, cells in rows), strict=True)]
    cells = [cell for column in columns for cell in column]
    if all(map(WHOLE.fullmatch, cells)):
        return checks.whole_labels(list(map(int, cells))).reshape(len(columns), -1).T
    if all(map(FLOAT.fullmatch, cells)):
        return np.array(columns, float).T
    return np.array(columns).T


def _rows(lines: Lines, header: bool, what: str = "values") -> Lines:
    """The samples of a table, without the header and a column of row numbers.

    what: the word for cells. Raises ValueError for another separator, uneven lines, and missing values.
    """
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        counts = {",".join(cells).count(separator) for _, cells in lines}
        if lines and len(counts) == 1 and 0 not in counts:
            raise ValueError(f"its cells are separated by {name}; give commas between cells, and points in numbers")
    if (
        what == "values"
        and len(lines) > header
        and all(len(cells) == 1 and _are_spaced(cells[0]) for _, cells in lines[header:])
    ):
        raise ValueError("its cells are separated by spaces; give commas between cells")
    rows = lines[header:]
    for line, cells in rows:
        if len(cells) != len(rows[0][1]):
            raise ValueError(
                f"line {line} has {len(cells)} cells, but line {rows[0][0]} has {len(rows[0][1])}; give as many"
            )
    if header and rows and len(rows[0][1]) != (titles := len(lines[0][1])):
        width = len(rows[0][1])
        fix = "; a decimal comma? write decimal points" if width == 2 * titles else ""
        fix += "; row names? give their column a title" if width == titles + 1 else ""
        raise ValueError(f"line {rows[0][0]} has {width} cells, but the header has {titles}{fix or '; give as many'}")
    rows = _without_index(lines[0][1] if header else [], rows)
    missing = [(line, i) for line, cells in rows for i, cell in enumerate(cells) if cell in checks.MISSING]
    if missing:
        (line, column), *_ = missing
        place = f"line {line}, column {column + 1}" if len(rows[0][1]) > 1 else f"line {line}"
        are = f"{what.removesuffix('s')} is" if len(missing) == 1 else f"{what} are"
        raise ValueError(f"{len(missing):,} {are} missing, the first in {place}; drop those rows")
    return rows


def _without_index(header: list[str], rows: Lines) -> Lines:
    """The rows without a first column that has no title and counts the rows, as pandas writes it; a warning says so.

    A first column that counts the rows under a title, or without a header, is kept, and a warning says so.
    """
    if not rows or len(rows[0][1]) < 2 or not all(WHOLE.fullmatch(cells[0]) for _, cells in rows):
        return rows
    numbers = [int(cells[0]) for _, cells in rows]
    if len(rows) < LEAST_INDEX or any(b - a != 1 for a, b in itertools.pairwise(numbers)):
        return rows
    if header and header[0] in UNNAMED:
        _tell("its first column has no title and counts the rows; it is left out")
        return [(line, cells[1:]) for line, cells in rows]
    _tell("its first column counts the rows; leave it out if it is an index")
    return rows


def _is_index_title(cells: list[str]) -> bool:
    """Whether the cells are a header of pandas: no title above the index, and titles or numbers above the columns."""
    return len(cells) > 1 and cells[0] in UNNAMED and not any(cell in checks.MISSING for cell in cells[1:])


def _counts(cells: list[str]) -> bool:
    """Whether the cells are 0, 1, 2 and so on, as pandas and others number columns."""
    return cells == [str(i) for i in range(len(cells))]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell and cell not in checks.MISSING


def _are_spaced(cell: str) -> bool:
    return len(cell.split()) > 1 and all(map(_is_number, cell.split()))


def _shown(cells: list[str]) -> str:
    return shown(repr(",".join(cells)), 60)


def _tell(what: str) -> None:
    """Warn about a guess; `_told` adds the file."""
    warnings.warn(what, stacklevel=2)
