"""Reading of samples from .npy, .npz and .csv files."""

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
# Unlike int() and float(), these take no underscores and no leading zeros: cells such as 01 and 1_0 are names.
WHOLE, FLOAT = re.compile(r"[+-]?(0|[1-9]\d*)"), re.compile(r"[+-]?(0|[1-9]\d*)(\.\d*)?([eE][+-]?\d+)?")
MISSING = {"", "na", "n/a", "nan", "null", "none"}  # cells that mean a missing value, in upper or lower case
Lines: TypeAlias = list[tuple[int, list[str]]]  # of a .csv: (line number, cells)


def read(source: str, name: str) -> Shaped[np.ndarray, "n d"]:
    """Read an array (n, d) of n samples from a file; a one-dimensional array becomes a column.

    source: PATH of a .npy, .npz or .csv file, or PATH:NAME for one array of an .npz. A .csv has numbers between commas;
        a first line that isn't numbers is taken for a header.
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
    """Read class labels, one for each sample, from a file as in `read`. In a .csv they may be names.

    Raises InputError as `read` and `checks.labels` do, and if the file has more than one column.
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
    """(line number, cells) of each line of a .csv that is not empty."""
    data = read_bytes(path, times=16)  # a cell of two characters becomes a float of 32 bytes
    lines = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    return [(lines.line_num, cells) for cells in lines if cells]


def _numbers(lines: Lines) -> np.ndarray:
    """Rows of numbers. A first line that isn't numbers is taken for a header."""
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
    """Rows of names, or of numbers if all cells are numbers.

    The first line is taken for a header if it is not all numbers and no later line equals it.
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
            raise ValueError(
                f"line {line} has {len(cells)} cells, but line {lines[0][0]} has {len(lines[0][1])}; give as many"
            )
