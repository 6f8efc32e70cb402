"""Generated images, each a function of its index: endless streams of images or pairs, or finite sets."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from mirigor_jax.data.attributes import AttributeSpace, Batch
from mirigor_jax.data.draws import random_words
from mirigor_jax.data.image_set import ImageSet
from mirigor_jax.data.law import Law

LIBRARY_STREAM = 7  # no other stream in `population.STREAMS` has this number


class GeneratedImages(ABC):
    """Images with attributes of a known law. A subclass implements `draw` and `render`.

    names: names of the attributes.
    title: the name of a set of these images in messages.
    value_names: names of each attribute's values.
    size: pixels. The side of the square images.
    law: the joint distribution of the attributes. None: they are independent and uniform, as `draw` makes them.
    """

    law: Law | None = None
    names: tuple[str, ...]
    title: ClassVar[str]
    value_names: tuple[tuple[str, ...], ...]
    size: int

    @abstractmethod
    def draw(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turn random words uint32 (n, w) into attributes int32 (n, a) and nuisances (n, …). w: see `words`.

        Attribute j must be uniform, and a function of word j alone. Nuisances are functions of the other words.
        """

    @abstractmethod
    def render(self, attributes: np.ndarray, nuisances: np.ndarray) -> np.ndarray:
        """Render the images uint8 (n, s, s, 3) with these attributes and nuisances."""

    @property
    def words(self) -> int:
        """Number of random words that an image is drawn by, a multiple of 8; more than there are attributes."""
        return 8

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each attribute."""
        return tuple(len(values) for values in self.value_names)

    @property
    def shows_attributes(self) -> bool:
        """Whether every image shows its attributes, so that the MI of two views is known: that of their attributes."""
        return True

    @property
    def space(self) -> AttributeSpace:
        """The attributes from which pairings are made; all of them together are an image's class."""
        return AttributeSpace(
            self.title,
            self.names,
            self.value_names,
            law=self.law,
            main=self.names,
            is_generated=True,
            shows_attributes=self.shows_attributes,
        )

    def images(self, start: int, stop: int, *, seed: int = 0, stream: int = LIBRARY_STREAM) -> Batch:
        """Images [start, stop) of an endless i.i.d. stream: `image` uint8 (n, s, s, 3), `attributes` int32 (n, a).

        stream: the number of the stream. The default stream is used by no training and no part of a run.
        Image i depends on i, seed and stream only. Streams are independent of each other.
        """
        attributes, nuisances = self._drawn(self._words(seed, stream, start, stop))
        return {"image": self.render(attributes, nuisances), "attributes": attributes}

    def pairs(
        self, partner: Callable[[np.ndarray, np.ndarray], np.ndarray], seed: int, stream: int, start: int, stop: int
    ) -> Batch:
        """Pairs [start, stop): `x`, `y` uint8 (n, s, s, 3), `attributes_x`, `attributes_y` int32 (n, a).

        In pair i, x is image 2i of the stream; y has the nuisances of image 2i + 1 and the attributes
        partner(attributes_x, uniforms). So the views' nuisances are independent. Use a stream for images or for pairs,
        not for both.
        """
        words = self._words(seed, stream, 2 * start, 2 * stop)
        attributes_x, nuisances_x = self._drawn(words[0::2])
        _, nuisances_y = self.draw(words[1::2])
        attributes_y = partner(attributes_x, words[1::2, : len(self.names)] / 2.0**32)
        return {
            "x": self.render(attributes_x, nuisances_x),
            "y": self.render(attributes_y, nuisances_y),
            "attributes_x": attributes_x,
            "attributes_y": attributes_y,
        }

    def finite(self, seed: int, stream: int, n: int) -> ImageSet:
        """The set of the stream's first n images, which are rendered each time they are read."""
        attributes, nuisances = self._drawn(self._words(seed, stream, 0, n))
        return ImageSet(
            title=self.title,
            names=self.names,
            value_names=self.value_names,
            attributes=attributes,
            read=lambda rows: self.render(attributes[rows], nuisances[rows]),
        )

    def _words(self, seed: int, stream: int, start: int, stop: int) -> np.ndarray:
        """The random words uint32 (n, w) of images [start, stop)."""
        eights = self.words // 8
        return random_words(seed, stream, eights * start, eights * stop).reshape(stop - start, self.words)

    def _drawn(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `draw`, but with attributes that follow the law. They depend on word 0 alone."""
        attributes, nuisances = self.draw(words)
        return attributes if self.law is None else self.law.draw(words[:, 0]), nuisances
