"""Samples from files: NumPy's .npy and .npz, and .csv."""

import csv
import io

import numpy as np
from jaxtyping import Shaped

from mirigor_jax.errors import InputError, shown
from mirigor_jax.files import AnyPath, describe, io_errors, read_arrays, to_path
from mirigor_jax.outside import read_bytes

SUFFIXES = (".npy", ".npz", ".csv")


def read(source: str, name: str) -> Shaped[np.ndarray, "n d"]:
    """The array in a file, a row a sample; a one-dimensional one becomes a column.

    source: PATH of a .npy, an .npz or a .csv (numbers between commas; a first line that is none is taken for a header),
        or PATH:NAME for one array of an .npz. Without NAME it is the only array there, or the one called `name`.
    Raises InputError where there is no such file, it is of another format, damaged or pickled, a cell of a .csv is no
    number, or the array is empty or has more than two dimensions.
    """
    text, _, member = source.rpartition(":") if ".npz:" in source else (source, "", "")
    path = to_path(text)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{name}='{source}' is of an unknown format; save it as one of {', '.join(SUFFIXES)}")
    try:
        array = _read_csv(path) if path.suffix.lower() == ".csv" else _read_numpy(path, member, name)
    except (ValueError, csv.Error) as error:
        raise InputError(f"{name}='{source}' cannot be read: {error}") from None
    except io_errors(path) as error:
        raise InputError(f"{name}='{source}' cannot be read ({describe(error)}); give the path of a file") from None
    if array.ndim not in (1, 2) or array.size == 0:
        fix = "flatten each sample by a.reshape(len(a), -1)" if array.ndim > 2 else "give a row for each sample"
        raise InputError(f"{name}='{source}' has shape {array.shape}, expected (samples, columns); {fix}")
    return array.reshape(len(array), -1)


def read_labels(source: str) -> Shaped[np.ndarray, " n"]:
    """Class labels, read as `read` does: one column, of which floats must be whole numbers and become integers.

    Raises InputError as `read` does, and for other columns.
    """
    labels = read(source, "labels")
    if labels.shape[1] != 1:
        raise InputError(f"labels='{source}' has shape {labels.shape}; expected one column, the class of each sample")
    if labels.dtype.kind != "f":
        return labels[:, 0]
    if fractions := np.count_nonzero(~(np.isfinite(labels) & (labels == np.floor(labels)))):
        raise InputError(f"labels='{source}' has {fractions:,} values that are no whole numbers; number the classes")
    return labels[:, 0].astype(np.int64)


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


def _read_csv(path: AnyPath) -> np.ndarray:
    data = read_bytes(path, times=16)  # a cell of two characters becomes a float of 32 bytes
    rows: list[list[float]] = []
    header = None
    lines = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    for cells in filter(None, lines):
        try:
            rows.append([float(cell) for cell in cells])
        except ValueError as error:
            if rows or header:
                raise ValueError(f"line {lines.line_num}, {error}; give numbers between commas") from None
            header = cells
        if rows and len(rows[-1]) != len(rows[0]):
            raise ValueError(f"line {lines.line_num} has {len(rows[-1])} cells, the first {len(rows[0])}; fill it")
    return np.array(rows)
