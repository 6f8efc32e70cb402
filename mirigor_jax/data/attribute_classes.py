"""Classes that are combinations of attributes, for posteriors that are products over the attributes."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

MOST_JOINT = 64  # largest number of classes for which one probe tells all combinations of attributes apart


@dataclass(frozen=True, eq=False)
class AttributeClasses:
    """The classes of pairs as combinations of attributes, and the distribution of both views' classes.

    values: the attributes of each class, from 0.
    frequencies: p(c) of one view.
    joints: p(a, a') of each attribute and the same attribute of the other view.
    exact: whether the two views always share their class.
    independent: whether the attributes, with the channels between the views, are independent of each other. p(c, c') is
        then the product of `joints`.
    """

    values: Int[np.ndarray, "c a"]
    frequencies: Float[np.ndarray, " c"]
    joints: tuple[Float[np.ndarray, "m m"], ...]
    exact: bool
    independent: bool

    @property
    def common_frequencies(self) -> Float[np.ndarray, " c"] | None:
        """p(c) of the class that both views always share; None if their classes may differ."""
        return self.frequencies if self.exact else None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each attribute."""
        return tuple(map(len, self.joints))

    def index(self, attributes: Int[np.ndarray, "n a"]) -> Int[np.ndarray, " n"]:
        """The class of each row of attributes; -1 for a combination that is no class."""
        codes = np.ravel_multi_index(attributes.T, self.sizes)
        return self._numbers[codes]

    @cached_property
    def _numbers(self) -> Int[np.ndarray, " _"]:
        """The class of every combination; -1 if it is none."""
        numbers = np.full(math.prod(self.sizes), -1)
        numbers[np.ravel_multi_index(self.values.T, self.sizes)] = np.arange(len(self.values))
        return numbers


def are_many(num_classes: int, num_attributes: int) -> bool:
    """Whether the classes are told apart by one probe for each attribute, instead of one for all combinations."""
    return num_attributes > 1 and num_classes > MOST_JOINT


def of_table(values: Int[np.ndarray, "c a"], frequencies: Float[np.ndarray, " c"]) -> AttributeClasses:
    """Classes that both views share, with any distribution p(c).

    values: the attributes of each class, from 0.
    """
    joints = tuple(np.diag(np.bincount(column, weights=frequencies)) for column in values.T)
    return AttributeClasses(values, frequencies, joints, exact=True, independent=False)
