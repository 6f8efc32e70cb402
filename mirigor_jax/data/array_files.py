"""Samples from files: NumPy's .npy and .npz, and .csv."""

import csv
import io
import re
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Shaped

from mirigor_jax import checks
from mirigor_jax.errors import InputError, shown
from mirigor_jax.files import AnyPath, describe, io_errors, read_arrays, to_path
from mirigor_jax.outside import read_bytes

SUFFIXES = (".npy", ".npz", ".csv")
# Python's own numbers have underscores and no leading zeros, which tell names such as 01 and 1_0 apart.
WHOLE, FLOAT = re.compile(r"[+-]?(0|[1-9]\d*)"), re.compile(r"[+-]?(0|[1-9]\d*)(\.\d*)?([eE][+-]?\d+)?")
MISSING = {"", "na", "n/a", "nan", "null", "none"}  # as tables write what is missing, in any case of letters
Lines: TypeAlias = list[tuple[int, list[str]]]  # of a .csv: their numbers, and their cells


def read(source: str, name: str) -> Shaped[np.ndarray, "n d"]:
    """The array in a file, a row a sample; a one-dimensional one becomes a column.

    source: PATH of a .npy, an .npz or a .csv (numbers between commas; a first line that is none is taken for a header),
        or PATH:NAME for one array of an .npz. Without NAME it is the only array there, or the one called `name`.
    Raises InputError where there is no such file, it is of another format, damaged or pickled, a cell of a .csv is no
    number, or the array is empty or has more than two dimensions.
    """
    return _read(source, name, _numbers)


def _read(source: str, name: str, of_csv: Callable[[Lines], np.ndarray]) -> Shaped[np.ndarray, "n d"]:
    text, _, member = source.rpartition(":") if ".npz:" in source else (source, "", "")
    path = to_path(text)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{name}='{source}' is of an unknown format; save it as one of {', '.join(SUFFIXES)}")
    try:
        array = of_csv(_cells(path)) if path.suffix.lower() == ".csv" else _read_numpy(path, member, name)
    except (ValueError, csv.Error) as error:
        raise InputError(f"{name}='{source}' cannot be read: {error}") from None
    except io_errors(path) as error:
        raise InputError(f"{name}='{source}' cannot be read ({describe(error)}); give the path of a file") from None
    if array.ndim not in (1, 2) or array.size == 0:
        fix = "flatten each sample by a.reshape(len(a), -1)" if array.ndim > 2 else "give a row for each sample"
        raise InputError(f"{name}='{source}' has shape {array.shape}, expected (samples, columns); {fix}")
    return array.reshape(len(array), -1)


def read_labels(source: str) -> Shaped[np.ndarray, " n"]:
    """Class labels of one column, read as `read` does and taken as `checks.labels` does; in a .csv names, too.

    Raises InputError as these do, and for other columns.
    """
    labels = _read(source, "labels", _names)
    if labels.shape[1] != 1:
        raise InputError(f"labels='{source}' has shape {labels.shape}; expected one column, the class of each sample")
    return checks.labels(labels[:, 0], f"labels='{source}'")


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
    """The lines of a .csv that are not empty: their numbers and their cells."""
    data = read_bytes(path, times=16)  # a cell of two characters becomes a float of 32 bytes
    lines = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    return [(lines.line_num, cells) for cells in lines if cells]


def _numbers(lines: Lines) -> np.ndarray:
    """Rows of numbers; a first line that is none is taken for a header."""
    rows: list[list[float]] = []
    for at, (line, cells) in enumerate(lines):
        try:
            rows.append([float(cell) for cell in cells])
        except ValueError as error:
            if at > 0:
                raise ValueError(f"line {line}, {error}; give numbers between commas") from None
    _check_even(lines[len(lines) - len(rows) :])
    return np.array(rows)


def _names(lines: Lines) -> np.ndarray:
    """Rows of names, or of numbers where all are; a first line that is no number is taken for a header if it stands
    nowhere else.
    """
    rows = [[cell.strip() for cell in cells] for _, cells in lines]
    header = len(rows) > 1 and rows[0] not in rows[1:] and not all(map(FLOAT.fullmatch, rows[0]))
    _check_even(lines[header:])
    missing = [line for (line, _), row in zip(lines, rows, strict=True) if any(cell.lower() in MISSING for cell in row)]
    if missing:
        raise ValueError(f"{len(missing):,} labels are missing, the first in line {missing[0]}; drop those rows")
    cells = [cell for row in rows[header:] for cell in row]
    for form, kind in ((WHOLE, int), (FLOAT, float)):
        if all(map(form.fullmatch, cells)):
            return np.array([[kind(cell) for cell in row] for row in rows[header:]])
    return np.array(rows[header:])


def _check_even(lines: Lines) -> None:
    for line, cells in lines:
        if len(cells) != len(lines[0][1]):
            raise ValueError(f"line {line} has {len(cells)} cells, the first {len(lines[0][1])}; fill it")
