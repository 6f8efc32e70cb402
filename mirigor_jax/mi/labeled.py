"""Representations and their classes as a user gives them, checked and in the package's own form."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mirigor_jax import checks
from mirigor_jax.errors import InputError
from mirigor_jax.mi import api

LEAST_ROWS = 10  # fewest rows of a class: two of them are then test rows
SHOWN = 30  # largest number of classes that a message names


def classes_of(labels: Any) -> tuple[Int[np.ndarray, " n"], str]:
    """Each row's class in 0..c-1, and a phrase about the class with the fewest rows, for messages.

    labels: (n,), as `checks.labels` takes them.
    Raises InputError for other labels, for one class, and for classes of fewer than LEAST_ROWS rows.
    """
    names, classes, counts = np.unique(checks.labels(labels), return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise InputError(f"labels hold {len(names)} class: H(C) is 0, and so is I_class; give two classes or more")
    least = int(counts.argmin())
    rare = f"class {names[least].item()!r} has {counts[least]} rows"
    few = np.flatnonzero(counts < LEAST_ROWS)
    if len(few) > 1:
        each = ", ".join(f"{names[c].item()!r} ({counts[c]})" for c in few[:SHOWN]) + ", ..." * (len(few) > SHOWN)
        rare = f"{len(few)} of {len(names)} classes have fewer rows than {LEAST_ROWS}: {each}"
    if len(few):
        raise InputError(f"{rare}, expected {LEAST_ROWS} or more of every class; drop or merge rare classes")
    return classes, rare


def classes_of_attributes(labels: Any) -> tuple[Any, Int[np.ndarray, "c a"] | None]:
    """(a class for each row, the attributes of each class); (labels, None) if each row has one label.

    labels: (n, a). A column for each attribute, or (n,). A class is a combination of values that occurs; its name joins
        them. Classes are in ascending order of their names, as in `classes_of`, and values are numbered in each column.
    Raises InputError as `checks.labels` does for a column. One-hot rows and lists of several lengths are left to it.
    """
    if isinstance(labels, list | tuple) and len({np.size(row) for row in labels}) > 1:
        return labels, None
    if np.ndim(labels) != 2 or np.shape(labels)[1] == 1:
        return labels, None
    given = checks.to_numpy(labels, "labels")
    if given.dtype.kind in "biuf" and np.all((given == 0) | (given == 1)) and np.all(given.sum(axis=1) == 1):
        return labels, None
    columns = [np.unique(checks.labels(column, "a column of labels"), return_inverse=True) for column in given.T]
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
