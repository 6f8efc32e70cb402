"""Checks of arguments before any work begins: numbers of the right type and range, arrays of finite values."""

import numbers
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from mirigor_jax.errors import InputError

LARGEST = float(np.finfo(np.float32).max)  # computations are in float32, so values must be finite there
EXTENDED = ("bfloat16", "float8_e4m3fn", "float8_e5m2")  # dtypes of JAX that NumPy alone does not know
LARGEST_SEED = 2**63 - 1


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The value as an int. Raises InputError if it is not a whole number (a bool is not), or is out of range."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        fix = f"; give {int(value)}" if isinstance(value, float) and value.is_integer() else ""
        raise InputError(f"{name} = {_shown(value)}: expected a whole number{fix}")
    if number < least or (most is not None and number > most):
        span = f"{least} or more" if most is None else f"from {least} to {most:,}"
        raise InputError(f"{name} = {number}: expected {span}")
    return number


def seed(value: Any, name: str = "seed") -> int:
    """The value as a seed that every generator takes. Raises InputError as `whole` does."""
    return whole(name, value, 0, LARGEST_SEED)


def number(name: str, value: Any) -> float:
    """The value as a float. Raises InputError unless it is one finite number; a bool or a string is not a number."""
    none = isinstance(value, bool | np.bool_ | str | bytes)
    try:
        result = float("nan") if none or np.size(value) != 1 else float(np.reshape(value, ()))
    except (TypeError, ValueError, OverflowError):
        result = float("nan")
    if not np.isfinite(result):
        raise InputError(f"{name} = {_shown(value)}: expected a finite number")
    return result


def above_zero(name: str, value: Any, usual: str = "") -> None:
    """Raises InputError unless the value is a finite number above 0. A JAX tracer has no value yet, and passes."""
    if not isinstance(value, int | float | str | np.ndarray | np.generic):
        import jax  # here, because modules that only read data do not need it

        if isinstance(value, jax.core.Tracer):
            return
    if number(name, value) <= 0:
        raise InputError(f"{name} = {_shown(value)}: expected above 0{usual and f'; {usual} is usual'}")


def not_negative(name: str, value: Any, usual: str = "") -> None:
    """Raises InputError unless the value is a finite number of at least 0."""
    if number(name, value) < 0:
        raise InputError(f"{name} = {_shown(value)}: expected 0 or more{usual and f'; {usual} is usual'}")


def confidence(value: Any, name: str = "confidence") -> None:
    """Raises InputError unless the value is a number in [0.5, 1)."""
    if not 0.5 <= number(name, value) < 1:
        raise InputError(f"{name} = {_shown(value)}: expected in [0.5, 1); 0.95 is usual")


def temperature(value: Any) -> None:
    """Raises InputError unless the temperature is above 0, as `above_zero` does."""
    above_zero("temperature", value, "0.1")


def views(z_x: Any, z_y: Any) -> None:
    """Raises InputError if two views differ in shape, or have no row."""
    if z_x.shape != z_y.shape or len(z_x) == 0:
        raise InputError(f"views of shapes {z_x.shape} and {z_y.shape}: expected one shape, row i of each a pair")


def to_numpy(values: Any, name: str) -> np.ndarray:
    """The numbers as a NumPy array: booleans and integers as they are, floats in float64.

    values: an array of any framework, on the host or on a device, or nested lists of equal lengths.
    name: the array's name in messages.
    Raises InputError for masked values, sparse matrices, ragged lists, and values that are not numbers.
    """
    if np.ma.is_masked(values):
        rows = int(np.any(np.ma.getmaskarray(values).reshape(len(values), -1), axis=1).sum())
        raise InputError(f"{name} has masked values in {rows:,} of {len(values):,} rows; drop those rows, or fill them")
    if hasattr(values, "toarray"):
        raise InputError(f"{name} is sparse ({type(values).__name__}): expected a dense array; give {name}.toarray()")
    if hasattr(values, "detach"):  # a torch tensor; NumPy takes none with gradients, on a device, or of bfloat16
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    if hasattr(values, "__dlpack__") and not hasattr(values, "__array__"):
        values = np.from_dlpack(values)
    try:
        array = np.asarray(values)
    except (ValueError, TypeError):
        raise InputError(f"{name} is no array: expected rows of numbers, all of one length; encode or pad it") from None
    if array.dtype.kind == "f" or array.dtype.name in EXTENDED:
        return array.astype(np.float64)
    if array.dtype.kind not in "biu":
        fixes = {"O": f"give {name}.astype(float) where all are numbers", "V": "save it as float32"}
        fix = fixes.get(array.dtype.kind, "encode it first")
        raise InputError(f"{name} is of dtype {array.dtype}: expected numbers (float, int or bool); {fix}")
    return array


def labels(values: Any, name: str = "labels") -> Shaped[np.ndarray, " n"]:
    """A class for each row, as integers, strings or bools.

    values: (n,) or (n, 1), of any framework. Floats must be whole; objects must be all strings, bools or whole numbers.
    name: the labels' name in messages.
    Raises InputError for missing labels, fractions, one-hot rows, other shapes, and other dtypes.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    if hasattr(values, "__dlpack__") and not hasattr(values, "__array__"):
        values = np.from_dlpack(values)
    if np.ma.is_masked(values):
        raise InputError(f"{name} has {int(np.ma.getmaskarray(values).sum()):,} masked values; drop those rows")
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(f"{name} are lists of several lengths: expected (n,) integers, strings or bools") from None
    if isinstance(values, list | tuple) and array.ndim == 1:
        array = np.asarray(values, object)  # if some are strings, NumPy makes strings of all, even of None and NaN
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and array.dtype.kind in "biuf" and np.all((array == 0) | (array == 1)):
        fix = f"; one-hot? give {name}.argmax(axis=1)" if np.all(array.sum(axis=1) == 1) else ""
        raise InputError(f"{name} are of shape {array.shape}: expected (n,) integers, strings or bools{fix}")
    if array.dtype.kind == "O" and array.ndim == 1:
        missing = [row for row, label in enumerate(array) if _is_missing(label)]
        if missing:
            raise _missing(name, missing)
        array = _plain(array)
    if array.dtype.kind == "T":
        array = array.astype(str)
    if array.ndim != 1 or array.dtype.kind not in "biufUS":
        raise InputError(
            f"{name} are of dtype {array.dtype}, shape {array.shape}: expected (n,) integers, strings or bools"
        )
    if array.dtype.kind != "f":
        return array
    if np.isnan(array).any():
        raise _missing(name, np.flatnonzero(np.isnan(array)))
    fractions = np.flatnonzero((array != np.floor(array)) | (np.abs(array) > 2.0**53))
    if len(fractions):
        raise InputError(
            f"{name} has {len(fractions):,} values that are no whole numbers, the first, {array[fractions[0]]:g}, at "
            f"row {fractions[0]}; a regression target? estimate its information as y, or number the classes"
        )
    return array.astype(np.int64)


def _is_missing(label: Any) -> bool:
    """Whether it is None, NaN or pandas' NA. NaN differs from itself, and NA has no truth value."""
    try:
        return label is None or bool(label != label)
    except (TypeError, ValueError):
        return True


def _missing(name: str, rows: Sequence[int] | np.ndarray) -> InputError:
    return InputError(f"{name} has {len(rows):,} missing values, the first at row {rows[0]}; drop those rows")


def _plain(array: np.ndarray) -> np.ndarray:
    """An array of objects as an array of strings, bools or numbers if all are such; otherwise as it is."""
    kinds = {
        kind
        for kind in (str, bool | np.bool_, numbers.Integral, numbers.Real)
        if all(isinstance(label, kind) for label in array)
    }
    if str in kinds:
        return array.astype(str)
    if bool | np.bool_ in kinds:
        return array.astype(bool)
    mixed = any(isinstance(label, bool | np.bool_) for label in array)
    if numbers.Integral in kinds and not mixed:
        return np.array([int(label) for label in array])
    return array.astype(np.float64) if numbers.Real in kinds and not mixed else array


def finite(rows: np.ndarray, name: str) -> None:
    """Raises InputError for values that are NaN, infinite, or infinite in float32, which computations use.

    rows: (n, d) numbers. name: their name in messages.
    """
    if rows.size == 0:
        return
    with np.errstate(invalid="ignore"):  # NaN spreads to both, so it is found without a copy of the rows
        low, high = float(rows.min()), float(rows.max())
    if low >= -LARGEST and high <= LARGEST:
        return
    kind, fix, bad = "NaN or infinite value", "drop those rows", ~np.isfinite(rows)
    if not bad.any():
        kind, bad = f"value beyond {LARGEST:.2g}", np.abs(rows.astype(np.float64)) > LARGEST
        fix = "computations are in float32, where it is infinite; drop those rows, or rescale"
    (row, column), count = np.argwhere(bad)[0], int(bad.sum())
    raise InputError(f"{name} has {count:,} {kind}{'s' * (count > 1)}, the first at [{row}, {column}]; {fix}")


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
