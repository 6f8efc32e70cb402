"""The attributes of a population's images, from which pairings are made, and the interface of generated images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt32

from mirigor_jax.data.law import Law
from mirigor_jax.errors import InputError

Batch = dict[str, np.ndarray]
Attributes = Int[np.ndarray, "n a"]
# Eight random words for each of k pairs → the pairs' rows x and y in a finite set.
Rows = Callable[[UInt32[np.ndarray, "k 8"]], tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]]


@runtime_checkable
class Generator(Protocol):
    """Generated images, as a pairing needs them. `generated.GeneratedImages` implements both methods."""

    def images(self, start: int, stop: int, *, seed: int, stream: int) -> Batch:
        """Images [start, stop) of an endless stream: `image`, `attributes`."""

    def pairs(
        self, partner: Callable[[np.ndarray, np.ndarray], np.ndarray], seed: int, stream: int, start: int, stop: int
    ) -> Batch:
        """Pairs [start, stop): `x`, `y`, `attributes_x` and `attributes_y` = partner(attributes_x, uniforms)."""


@dataclass(frozen=True, eq=False)
class AttributeSpace:
    """The attributes of a population's images and their distribution, from which pairings are made.

    title: the images' name in messages.
    names: names of the attributes.
    value_names: names of each attribute's values.
    rows: (n, a). Rows of attributes with the population's frequencies. None: all combinations are equally frequent, or
        as `law` says.
    law: the joint distribution of a generated image's attributes. None: they are independent and uniform.
    main: names of the attributes that make up an image's class.
    is_generated: whether the images are generated; a channel can then be put between two views.
    shows_attributes: whether every image shows its attributes; the MI of two views is then that of their attributes.
    """

    title: str
    names: tuple[str, ...]
    value_names: tuple[tuple[str, ...], ...]
    rows: Attributes | None = None
    law: Law | None = None
    main: tuple[str, ...] = ("class",)
    is_generated: bool = False
    shows_attributes: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each attribute."""
        return tuple(len(values) for values in self.value_names)

    @cached_property
    def values(self) -> Attributes:
        """Rows of attributes, int32 (n, a), with the population's frequencies.

        Raises InputError if there is a law, because no list of rows has its frequencies.
        """
        if self.rows is not None:
            return self.rows
        if self.law is not None:
            raise InputError(f"the {self.title} has a law of its attributes: pair its images by attributes")
        return np.indices(self.sizes, np.int32).reshape(len(self.sizes), -1).T


def uniform(names: Sequence[str], sizes: Sequence[int], *, is_generated: bool = True) -> AttributeSpace:
    """The space of independent, uniform attributes. sizes: number of values of each. Generated images show them."""
    values = tuple(tuple(map(str, range(m))) for m in sizes)
    main = tuple(names)
    return AttributeSpace("images", main, values, main=main, is_generated=is_generated, shows_attributes=is_generated)
