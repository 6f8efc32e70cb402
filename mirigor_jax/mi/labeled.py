"""Representations and their classes as a user gives them, checked and in the package's own form."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from mirigor_jax import checks
from mirigor_jax.errors import InputError, listed
from mirigor_jax.mi import api

LEAST_ROWS = 10  # fewest rows of a class: two of them are then test rows


@dataclass(frozen=True)
class Labeled:
    """The class of each row.

    names: (c,). Those of the classes, in ascending order.
    classes: (n,). Each row's class in 0..c-1.
    attributes: the attributes of each class, numbered in each column; None if each row has one label.
    rare: a phrase about the class with the fewest rows, for messages.
    """

    names: Shaped[np.ndarray, " c"]
    classes: Int[np.ndarray, " n"]
    attributes: Int[np.ndarray, "c a"] | None
    rare: str


def classes_of(labels: Any) -> Labeled:
    """The classes of labels of any kind.

    labels: (n,), as `checks.labels` takes them. Or (n, a): a column for each attribute. A class is then a combination
        of values that occurs; its name joins them.
    Raises InputError for other labels, for one class, and for classes of fewer than LEAST_ROWS rows.
    """
    named, values = _joined(labels)
    names, classes, counts = np.unique(named, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise InputError(f"labels hold {len(names)} class: H(C) is 0, and so is I_class; give two classes or more")
    check_rows(names, counts)
    least = int(counts.argmin())
    rare = f"class {names[least].item()!r} has {counts[least]} rows"
    return Labeled(names, classes, values, rare)


def check_rows(names: Shaped[np.ndarray, " c"], counts: Int[np.ndarray, " c"], which: str = "", least: int = 0) -> None:
    """Raises InputError if classes have too few rows. It names them all, up to 30.

    counts: number of rows of each class. which: words for these rows, such as "that the encoder has not seen".
    least: fewest rows of a class. 0: LEAST_ROWS.
    """
    least = least or LEAST_ROWS
    few = np.flatnonzero(counts < least)
    rows = f"rows {which}".rstrip()
    if len(few) == 1:
        said = f"class {names[few[0]].item()!r} has {counts[few[0]]} {rows}"
    else:
        each = listed([f"{names[c].item()!r} ({counts[c]})" for c in few])
        said = f"{len(few)} of {len(names)} classes have fewer than {least} {rows}: {each}"
    if len(few):
        raise InputError(f"{said}, expected {least} or more of every class; give more, or drop or merge rare classes")


def _joined(labels: Any) -> tuple[Shaped[np.ndarray, " n"], Int[np.ndarray, "c a"] | None]:
    """(a name of the class of each row, the attributes of each class); None if each row has one label."""
    array = checks.columns_of_labels(labels)
    if array is None:
        return checks.labels(labels), None
    columns = [
        np.unique(checks.labels(column, f"column {i} of labels"), return_inverse=True)
        for i, column in enumerate(array.T)
    ]
    rows = np.stack([index for _, index in columns], axis=1)
    values, classes = np.unique(rows, axis=0, return_inverse=True)
    joined = [", ".join(str(names[v]) for (names, _), v in zip(columns, row, strict=True)) for row in values]
    order = np.argsort(joined)
    return np.array(joined)[classes.ravel()], values[order]


def representations_of(several: list[Any], labels: Any) -> list[Float[np.ndarray, "n _"]]:
    """Each encoder's representations as float64 rows. Raises InputError if there is not one label a row."""
    arrays = [api.as_rows(h, "h") for h in several]
    for h in arrays:
        if len(h) != len(labels):
            raise InputError(f"h has {len(h):,} rows and labels {len(labels):,}: expected one label a row")
    return arrays
