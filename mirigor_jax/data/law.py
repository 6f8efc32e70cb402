"""Joint distributions of an image's attributes: independent, linked by a dial between two of them, or from a table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt32

from mirigor_jax.errors import InputError
from mirigor_jax.files import describe, io_errors, read_arrays, to_path

INDEPENDENT, NPY = "independent", "npy:"
FORMS = f"{INDEPENDENT}, NAME+NAME=STRENGTH (such as color+digit=0.5), or {NPY}PATH"


@dataclass(frozen=True)
class Law:
    """The joint distribution of an image's attributes.

    sizes: number of values of each attribute.
    probabilities: p(a), one for each combination of values; the last attribute varies fastest.
    """

    sizes: tuple[int, ...]
    probabilities: tuple[float, ...]

    @cached_property
    def table(self) -> Float[np.ndarray, "..."]:
        """p(a), an axis for each attribute."""
        return np.array(self.probabilities).reshape(self.sizes)

    def marginal(self, columns: Sequence[int]) -> Float[np.ndarray, " c"]:
        """p of the combinations of values in these columns, in ascending order; the last column varies fastest."""
        return self.table.sum(axis=tuple(set(range(len(self.sizes))) - {*columns})).ravel()

    def possible(self, columns: Sequence[int]) -> Int[np.ndarray, " c"]:
        """The combinations in these columns that have a probability above 0, as indices into `marginal`."""
        return np.flatnonzero(self.marginal(columns))

    def draw(self, words: UInt32[np.ndarray, " n"]) -> Int[np.ndarray, "n a"]:
        """Attributes int32 (n, a), each row by one random word. Probabilities are exact to 2^-32."""
        return self._rows[np.searchsorted(self._ends, words, side="right")]

    def given(self, columns: Sequence[int]) -> Float[np.ndarray, "c r"]:
        """Cumulative sums of p(the other columns' combination | the combination in these columns).

        A combination of probability 0 has the other columns' marginal distribution.
        """
        others = [a for a in range(len(self.sizes)) if a not in columns]
        joint = np.moveaxis(self.table, others, range(-len(others), 0)) if others else self.table
        joint = joint.reshape(math.prod(self.sizes[a] for a in columns), -1)
        total = joint.sum(axis=1, keepdims=True)
        cumulative = np.cumsum(np.where(total > 0, joint, joint.sum(axis=0)), axis=1)
        cumulative /= cumulative[:, -1:]
        cumulative[cumulative > 1 - 1e-12] = 1.0  # so that rounding draws nothing of probability 0
        return cumulative

    @cached_property
    def _possible(self) -> Int[np.ndarray, " p"]:
        return np.flatnonzero(self.probabilities)

    @cached_property
    def _rows(self) -> Int[np.ndarray, "p a"]:
        return np.stack(np.unravel_index(self._possible, self.sizes), axis=1).astype(np.int32)

    @cached_property
    def _ends(self) -> Float[np.ndarray, " p"]:
        """The first word that is too large for each possible row but the last."""
        return np.rint(np.cumsum(np.array(self.probabilities)[self._possible])[:-1] * 2.0**32)


def of_table(table: Shaped[np.ndarray, "..."], sizes: Sequence[int]) -> Law:
    """The law with these probabilities.

    table: an axis for each attribute, in their order. Nonnegative; it is divided by its sum.
    sizes: number of values of each attribute.
    Raises InputError if the shape is not `sizes`, if the table has no real numbers, or if an entry is negative, NaN or
    infinite, or all are 0.
    """
    if np.asarray(table).dtype.kind not in "biuf":
        raise InputError(f"law: a table of {np.asarray(table).dtype}, expected real numbers")
    table = np.asarray(table, np.float64)
    if table.shape != tuple(sizes):
        raise InputError(f"law: a table of shape {table.shape}, expected {tuple(sizes)}, an axis for each attribute")
    total = float(table.sum())
    if not (np.isfinite(total) and total > 0 and table.min() >= 0):
        raise InputError(
            f"law: a table with least entry {table.min():g} and sum {total:g}; expected probabilities, at least 0"
        )
    return Law(tuple(sizes), tuple((table / total).ravel().tolist()))


def linked(sizes: Sequence[int], a: int, b: int, strength: float) -> Law:
    """Uniform attributes of which two are correlated, and the others are independent.

    sizes: number of values of each attribute. a, b: the columns of the two.
    strength: in [0, 1]. With this probability both values come from one uniform number u, as floor(u·m) of their m
        values; else they are independent. At 1, attributes of equal size are equal. Every attribute is uniform.
    Raises InputError if the columns are equal or the strength is outside [0, 1].
    """
    if a == b:
        raise InputError("law: an attribute is linked with itself; name two different ones")
    if not 0 <= strength <= 1:
        raise InputError(f"law: strength {strength:g}, expected 0 (independent) to 1")
    cuts = np.unique(np.concatenate([np.arange(m + 1) / m for m in (sizes[a], sizes[b])]))
    common = np.zeros((sizes[a], sizes[b]))
    for low, high in pairwise(cuts):
        middle = (low + high) / 2
        common[int(middle * sizes[a]), int(middle * sizes[b])] += high - low
    pair = strength * common + (1 - strength) / common.size
    rest = math.prod(sizes) // common.size
    axes = [a, b, *(i for i in range(len(sizes)) if i not in (a, b))]
    table = np.multiply.outer(pair, np.full([sizes[i] for i in axes[2:]], 1 / rest))
    return of_table(np.moveaxis(table, range(len(sizes)), axes), sizes)


def file_of(text: str) -> str:
    """The file whose contents the law is; "" if it is none."""
    return text.removeprefix(NPY) if text.startswith(NPY) else ""


def parse(text: str, names: Sequence[str], sizes: Sequence[int]) -> Law | None:
    """The law that a text names: FORMS. None: the attributes are independent and uniform.

    names, sizes: each attribute's name and number of values.
    Raises InputError for any other text, an unknown attribute, an unreadable file, and as `linked` and `of_table` do.
    """
    if text == INDEPENDENT:
        return None
    if file := file_of(text):
        path = to_path(file)
        try:
            table = read_arrays(path)
        except ValueError as error:
            raise InputError(f"law: {path} cannot be read: {error}") from None
        except io_errors(path) as error:
            raise InputError(f"law: {path} cannot be read ({describe(error)}); give the path of a file") from None
        if not isinstance(table, np.ndarray):
            raise InputError(f"law: {path} is an archive; save the table alone, by numpy.save")
        return of_table(table, sizes)
    pair, _, strength = text.partition("=")
    chosen = pair.split("+")
    try:
        value = float(strength)
    except ValueError:
        raise InputError(f"law {text!r}: expected {FORMS}") from None
    for name in chosen:
        if name not in names:
            raise InputError(f"law {text!r}: unknown attribute {name!r}; name two of {', '.join(names)}")
    if len(chosen) != 2:
        raise InputError(f"law {text!r}: {len(chosen)} attributes are named; the dial links two, a table links more")
    return linked(sizes, names.index(chosen[0]), names.index(chosen[1]), value)
