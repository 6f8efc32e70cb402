"""Checks of arguments before any work begins: numbers of the right type and range, arrays of finite values."""

import numbers
import operator
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from jaxtyping import Shaped

from mirigor_jax.errors import InputError

LARGEST = float(np.finfo(np.float32).max)  # computations are in float32, so values must be finite there
EXTENDED = ("bfloat16", "float8_e4m3fn", "float8_e5m2")  # dtypes of JAX that NumPy alone does not know
LARGEST_SEED = 2**63 - 1
LABELS = "(n,) integers, strings or bools"  # what `labels` gives
# Strings that mean a missing value, as in pandas; "none" and "na" are not among them, because they may name a class.
MISSING = {"", "NA", "<NA>", "N/A", "n/a", "nan", "NaN", "NAN", "NaT", "NULL", "Null", "null", "None"}


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

    values: an array of any framework, on the host or on a device, or nested lists of equal lengths. Objects must be
        numbers.
    name: the array's name in messages.
    Raises InputError for masked or missing values, sparse matrices, ragged lists, and values that are not numbers.
    """
    if np.ma.is_masked(values):
        rows = int(np.any(np.ma.getmaskarray(values).reshape(len(values), -1), axis=1).sum())
        raise InputError(f"{name} has masked values in {rows:,} of {len(values):,} rows; drop those rows, or fill them")
    if hasattr(values, "toarray"):
        raise InputError(f"{name} is sparse ({type(values).__name__}): expected a dense array; give {name}.toarray()")
    try:
        array = np.asarray(_on_host(values, name))
    except (ValueError, TypeError):
        raise InputError(f"{name} is no array: expected rows of numbers, all of one length; encode or pad it") from None
    if array.dtype.kind == "O":
        array = _numbers_of(array, values, name)
    if array.dtype.kind == "f" or array.dtype.name in EXTENDED:
        return array.astype(np.float64)
    if array.dtype.kind not in "biu":
        fix = "save it as float32" if array.dtype.kind == "V" else "encode it first"
        if array.dtype.names:
            fix = f"give numpy.lib.recfunctions.structured_to_unstructured({name})"
        raise InputError(f"{name} is of dtype {array.dtype}: expected numbers (float, int or bool); {fix}")
    return array


def labels(values: Any, name: str = "labels") -> Shaped[np.ndarray, " n"]:
    """A class for each row, as integers, strings or bools.

    values: (n,) or (n, 1), of any framework. Floats must be whole; objects must be all strings, bools or whole numbers.
        Whole numbers beyond 64 bits become strings.
    name: the labels' name in messages.
    Raises InputError for missing labels, fractions, one-hot rows, other shapes, and other dtypes.
    """
    if np.ma.is_masked(values):
        raise InputError(f"{name} has {int(np.ma.getmaskarray(values).sum()):,} masked values; drop those rows")
    given = _on_host(values, name)
    try:
        array = np.asarray(given)
    except (ValueError, TypeError):
        raise InputError(f"{name} are lists of several lengths: expected {LABELS}") from None
    if isinstance(given, list | tuple) and array.ndim == 1:
        # If some are strings, NumPy makes strings of all, even of None and NaN.
        array = np.fromiter(given, object, len(given))
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise _misshapen(array, values, name)
    if array.dtype.kind in "OT":
        array = _of_one_kind(array.tolist(), name)
    elif array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "backslashreplace")
    if array.dtype.kind == "U":
        return _named(array, name)
    if array.dtype.kind in "biu":
        return array
    if array.dtype.kind != "f" and array.dtype.name not in EXTENDED:
        fix = f"give {name}.astype(str)" if array.dtype.kind in "mM" else "number the classes"
        raise InputError(f"{name} are of dtype {array.dtype}: expected {LABELS}; {fix}")
    return _whole_floats(array.astype(np.float64), name)


def columns_of_labels(values: Any) -> Shaped[np.ndarray, "n a"] | None:
    """Labels (n, a), a column for each of several attributes; None for labels of one column, and for one-hot rows.

    The columns are as given, for `labels`. None also for what is no array, whose fault `labels` names.
    """
    if np.ma.is_masked(values):
        return None
    try:
        array = np.asarray(_on_host(values, "labels"))
    except (ValueError, TypeError):
        return None
    if array.ndim != 2 or min(array.shape) < 2 or _is_one_hot(array):
        return None
    if isinstance(values, list | tuple) and array.dtype.kind == "U":
        return np.array([list(row) for row in values], object)  # NumPy makes strings of None and NaN
    return array


def whole_labels(numbers: Sequence[int]) -> Shaped[np.ndarray, " n"]:
    """Whole numbers as integers, or as strings of their digits if 64 bits do not hold all of them."""
    for dtype in (np.int64, np.uint64):
        limits = np.iinfo(dtype)
        if not numbers or limits.min <= min(numbers) <= max(numbers) <= limits.max:
            return np.array(numbers, dtype)
    return np.array([str(number) for number in numbers])


def joined_labels(several: Sequence[Shaped[np.ndarray, " _"]], name: str = "labels") -> Shaped[np.ndarray, " n"]:
    """Labels of several parts, each as `labels` gives them, one after the other.

    Raises InputError if they are of several kinds, such as strings and numbers.
    """
    if len({labels.dtype for labels in several}) == 1:
        return np.concatenate(several)
    return _of_one_kind([label for labels in several for label in labels.tolist()], name)


def _on_host(values: Any, name: str) -> Any:
    """An array of any framework, or a list of such, as NumPy takes it: without gradients, on the host, no bfloat16."""
    if isinstance(values, list | tuple) and len(values) and hasattr(values[0], "detach"):
        return [_on_host(row, name) for row in values]
    if hasattr(values, "detach"):  # a torch tensor
        if (layout := str(getattr(values, "layout", "torch.strided"))) != "torch.strided":
            raise InputError(f"{name} is sparse ({layout}): expected a dense array; give {name}.to_dense()")
        values = values.detach().cpu()
        return values.double() if values.is_floating_point() else values
    if hasattr(values, "__dlpack__") and not hasattr(values, "__array__"):
        return np.from_dlpack(values)
    return values


def _numbers_of(array: np.ndarray, values: Any, name: str) -> np.ndarray:
    """An array of objects as one of numbers. Raises InputError if one of them is missing, or is no number."""
    if array.ndim == 0:
        raise InputError(f"{name} is of type {type(values).__name__}: expected an array of numbers, a row for a sample")
    flat = array.ravel().tolist()
    if missing := [i for i, value in enumerate(flat) if _is_missing(value)]:
        at = ", ".join(str(int(i)) for i in np.unravel_index(missing[0], array.shape))
        some = f"{len(missing):,} missing value{'s' * (len(missing) > 1)}"
        raise InputError(f"{name} has {some}, the first at [{at}]; drop those rows, or fill them")
    for i, value in enumerate(flat):
        if not isinstance(value, numbers.Real | np.bool_ | Decimal):
            at = ", ".join(str(int(i)) for i in np.unravel_index(i, array.shape))
            what = f"{_shown(value)} ({type(value).__name__})"
            raise InputError(f"{name}[{at}] is {what}: expected numbers; encode it, or drop that column")
    if all(isinstance(value, numbers.Integral) for value in flat):
        whole = whole_labels([int(value) for value in flat])
        if whole.dtype.kind in "iu":
            return whole.reshape(array.shape)
    return array.astype(np.float64)


def _misshapen(array: np.ndarray, values: Any, name: str) -> InputError:
    """The error for labels that are not (n,)."""
    if array.ndim == 0:
        return InputError(f"{name} are of type {type(values).__name__}: expected {LABELS}; give an array or a list")
    fix = "give one column"
    if _is_one_hot(array):
        fix = f"one-hot? give {name}.argmax(axis=1)" if name.isidentifier() else "one-hot? give their argmax(axis=1)"
    elif len(array) == 1:
        fix = "give its one row"
    return InputError(f"{name} are of shape {array.shape}: expected {LABELS}; {fix}")


def _is_one_hot(array: np.ndarray) -> bool:
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        return False
    return bool(np.all((array == 0) | (array == 1)) and np.all(array.sum(axis=1) == 1))


def _is_missing(label: Any) -> bool:
    """Whether it is None, NaN or pandas' NA. NaN differs from itself, and NA has no truth value."""
    try:
        return label is None or bool(label != label)
    except (TypeError, ValueError):
        return True


def _missing(name: str, rows: Sequence[int] | np.ndarray) -> InputError:
    return InputError(f"{name} has {len(rows):,} missing values, the first at row {rows[0]}; drop those rows")


def _named(names: Shaped[np.ndarray, " n"], name: str) -> Shaped[np.ndarray, " n"]:
    """The labels, which are strings. Raises InputError for strings that mean a missing value."""
    missing = np.flatnonzero(np.isin(names, list(MISSING)))
    if len(missing):
        raise InputError(
            f"{name} has {len(missing):,} missing values, the first, {_shown(str(names[missing[0]]))}, at row "
            f"{missing[0]}; drop those rows, or rename the class"
        )
    return names


def _whole_floats(floats: np.ndarray, name: str) -> np.ndarray:
    """Labels that are floats, as integers. Raises InputError for NaN, fractions, and values beyond 2^53."""
    if np.isnan(floats).any():
        raise _missing(name, np.flatnonzero(np.isnan(floats)))
    fractions = np.flatnonzero((floats != np.floor(floats)) | np.isinf(floats))
    if len(fractions):
        raise InputError(
            f"{name} has {len(fractions):,} values that are no whole numbers, the first, {floats[fractions[0]]:g}, at "
            f"row {fractions[0]}; a regression target? estimate its information as y by mi.estimate, or number the "
            "classes"
        )
    large = np.flatnonzero(np.abs(floats) > 2.0**53)
    if len(large):
        raise InputError(
            f"{name} has {len(large):,} floats beyond 2^53, the first, {floats[large[0]]:g}, at row {large[0]}: floats "
            "do not tell such numbers apart; give integers or strings"
        )
    return floats.astype(np.int64)


def _of_one_kind(objects: list[Any], name: str) -> np.ndarray:
    """Objects as an array of strings, bools, whole numbers or floats. Raises InputError if they are of several kinds.

    An object may also be an array without axes, such as a row of torch's labels.
    """
    scalars = [label.item() if _is_scalar_array(label) else label for label in objects]
    if missing := [row for row, label in enumerate(scalars) if _is_missing(label)]:
        raise _missing(name, missing)
    kinds = {"string": str, "bool": bool | np.bool_, "number": numbers.Real | Decimal}
    first: dict[str, int] = {}  # kind → the first row of it
    for row, label in enumerate(scalars):
        kind = next((kind for kind, types in kinds.items() if isinstance(label, types)), type(label).__name__)
        first.setdefault(kind, row)
        if kind not in kinds:
            what = f"{_shown(label)} ({kind})"
            raise InputError(f"{name}: row {row} is {what}; expected {LABELS}; number the classes")
    if len(first) > 1:
        (a, row_a), (b, row_b), *_ = first.items()
        words = f"row {row_a} is a {a}, {_shown(scalars[row_a])}, and row {row_b} a {b}, {_shown(scalars[row_b])}"
        raise InputError(f"{name} are of several kinds: {words}; give all as strings")
    if not scalars or "string" in first:
        return np.array(scalars, str)
    if "bool" in first:
        return np.array(scalars, bool)
    if all(isinstance(label, numbers.Integral) for label in scalars):
        return whole_labels([int(label) for label in scalars])
    return np.array(scalars, np.float64)


def _is_scalar_array(label: Any) -> bool:
    return not isinstance(label, np.generic) and getattr(label, "shape", None) == () and hasattr(label, "item")


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
