"""Images made to measure: any number of them, each by its index, in pairs of any pairing, or a finite set of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from mirigor_jax.data.attributes import AttributeSpace, Batch
from mirigor_jax.data.draws import random_words
from mirigor_jax.data.image_set import ImageSet

LIBRARY_STREAM = 7  # apart from the STREAMS of populations


class GeneratedImages(ABC):
    """A population of images with independent, uniform attributes: a subclass says how an image is drawn.

    names, value_names: of the attributes, eight at most, and of their values. size: of the square images, pixels.
    title: what messages call a set of them.
    """

    names: ClassVar[tuple[str, ...]]
    title: ClassVar[str]
    value_names: tuple[tuple[str, ...], ...]
    size: int

    @abstractmethod
    def draw(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Attributes int32 (n, a) and nuisances (n, …) from eight random words uint32 an image, (n, 8).

        Attribute j is a function of word j alone, and uniform.
        """

    @abstractmethod
    def render(self, attributes: np.ndarray, nuisances: np.ndarray) -> np.ndarray:
        """The images uint8 (n, s, s, 3) with these attributes and nuisances."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each attribute."""
        return tuple(len(values) for values in self.value_names)

    @property
    def space(self) -> AttributeSpace:
        """What pairings are made of; the attributes together are an image's class."""
        return AttributeSpace(
            self.title, self.names, self.value_names, main=self.names, is_generated=True, shows_attributes=True
        )

    def images(self, start: int, stop: int, *, seed: int = 0, stream: int = LIBRARY_STREAM) -> Batch:
        """Images [start, stop) of an endless i.i.d. stream: `image` uint8 (n, s, s, 3), `attributes` int32 (n, a).

        stream: the default is one that no training, and no part of a run, ever draws from.
        Image i of (seed, stream) is a function of these three numbers alone; streams are independent of each other.
        """
        attributes, nuisances = self.draw(random_words(seed, stream, start, stop))
        return {"image": self.render(attributes, nuisances), "attributes": attributes}

    def pairs(
        self, partner: Callable[[np.ndarray, np.ndarray], np.ndarray], seed: int, stream: int, start: int, stop: int
    ) -> Batch:
        """Pairs [start, stop): `x`, `y` uint8 (n, s, s, 3), `attributes_x`, `attributes_y` int32 (n, a).

        x is image 2i of the stream, and y is image 2i + 1 with the attributes partner(attributes_x, uniforms): the
        views' nuisances are independent. Use a stream for images or for pairs, not both.
        """
        words = random_words(seed, stream, 2 * start, 2 * stop)
        attributes_x, nuisances_x = self.draw(words[0::2])
        _, nuisances_y = self.draw(words[1::2])
        attributes_y = partner(attributes_x, words[1::2, : len(self.names)] / 2.0**32)
        return {
            "x": self.render(attributes_x, nuisances_x),
            "y": self.render(attributes_y, nuisances_y),
            "attributes_x": attributes_x,
            "attributes_y": attributes_y,
        }

    def finite(self, seed: int, stream: int, n: int) -> ImageSet:
        """The first n images of the stream, rendered when they are read."""
        attributes, nuisances = self.draw(random_words(seed, stream, 0, n))
        return ImageSet(
            title=self.title,
            names=self.names,
            value_names=self.value_names,
            attributes=attributes,
            read=lambda rows: self.render(attributes[rows], nuisances[rows]),
        )
