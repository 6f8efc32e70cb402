"""A finite set of images, sets derived from it, and its positive pairs, as images or as rows."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int, UInt8

from mirigor_jax.data.attributes import AttributeSpace
from mirigor_jax.data.draws import by_class, random_words, rank_in_class
from mirigor_jax.data.pairing import ByClass, Pairing, classes_of
from mirigor_jax.errors import InputError

ROTATIONS = ("0°", "90°", "180°", "270°")  # counterclockwise


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A set of n images, numbered by rows.

    title: the set's name in messages.
    names: names of the attributes.
    value_names: names of each attribute's values.
    attributes: (n, a). The images' attributes; (n, 0) if they have no labels.
    read: rows (k,) → a new array of images uint8 (k, s, s, 3).
    """

    title: str
    names: tuple[str, ...]
    value_names: tuple[tuple[str, ...], ...]
    attributes: Int[np.ndarray, "n a"]
    read: Callable[[Int[np.ndarray, " k"]], UInt8[np.ndarray, "k s s 3"]]

    def __len__(self) -> int:
        return len(self.attributes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each attribute."""
        return tuple(len(values) for values in self.value_names)

    def images(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The images of rows [start, stop): `image` uint8 (k, s, s, 3), `attributes` int32 (k, a)."""
        return {"image": self.read(np.arange(start, stop)), "attributes": self.attributes[start:stop]}

    @property
    def space(self) -> AttributeSpace:
        """The attributes from which pairings of these images are made."""
        return AttributeSpace(self.title, self.names, self.value_names, self.attributes)

    def same_class(self, text: str) -> ByClass:
        """Same-class sampling by the classes of a pairing's text, with this set's class frequencies.

        Raises InputError as `pairing.parse` does.
        """
        return classes_of(text, self.space)

    def row_pairs(self, pairing: Pairing, seed: int, stream: int) -> Callable[[int, int], dict[str, np.ndarray]]:
        """A reader (start, stop) → `x`, `y`: int32 rows of the positive pairs [start, stop) of an endless stream.

        x is a random row, and y is the row that the pairing draws for it (Lee et al. 2023, §III-A, for a finite set).
        Pair i depends on i, seed and stream only. Raises InputError if a class has no image.
        """
        rows = pairing.rows(self.space)

        def read(start: int, stop: int) -> dict[str, np.ndarray]:
            x, y = rows(random_words(seed, stream, start, stop))
            return {"x": x, "y": y}

        return read

    def fresh_rows(
        self, pairing: Pairing, seed: int, stream: int, *, risk: float, least: int
    ) -> Int[np.ndarray, "p 2"]:
        """Rows of independent pairs, with each image in at most one pair: see `Pairing.fresh_rows`.

        stream: the number of the random stream. Use a different one for each part.
        """
        return pairing.fresh_rows(self.space, risk, np.random.default_rng([seed, stream]), least=least)

    def pairs(self, rows: Int[np.ndarray, "p 2"], start: int, stop: int) -> dict[str, np.ndarray]:
        """Read pairs [start, stop): `x`, `y` uint8 (k, s, s, 3), `attributes_x`, `attributes_y` int32 (k, a)."""
        x, y = rows[start:stop].T
        return {
            "x": self.read(x),
            "y": self.read(y),
            "attributes_x": self.attributes[x],
            "attributes_y": self.attributes[y],
        }

    def take(self, rows: Int[np.ndarray, " k"]) -> "ImageSet":
        """The set of these rows."""
        return replace(self, attributes=self.attributes[rows], read=lambda chosen: self.read(rows[chosen]))

    def with_salt_and_pepper(self, share: float, seed: int, stream: int) -> "ImageSet":
        """The set with salt-and-pepper noise: each pixel becomes black or white with probability share / 2 each.

        An image's noise depends on its row, seed and stream only. Source: Gosch 2020, appendix D.1.
        """

        def read(rows: np.ndarray) -> np.ndarray:
            images = self.read(rows)
            for image, row in zip(images, rows.tolist(), strict=True):
                philox = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=[0, 0, row, 0])
                uniform = np.random.Generator(philox).random(image.shape[:2], np.float32)
                image[uniform < share] = 255
                image[uniform < share / 2] = 0
            return images

        return replace(self, read=read)

    def rotated(self) -> "ImageSet":
        """The set with every image at four turns: row 4i + t is image i turned by t·90°. `rotation` is a new attribute.

        Source: Gosch 2020, section 4 (the enlarged CIFAR-10).
        """
        n = len(self)
        return self._rotated_by(np.repeat(np.arange(n), 4), np.tile(np.arange(4), n))

    def rotated_once(self, seed: int) -> "ImageSet":
        """The set with each image at one random turn. Each class is spread evenly over the four turns.

        The distribution is that of `rotated`. But these images are independent, unlike several turns of one image, so
        they can be test images.
        """
        classes = self.attributes[:, 0] if self.names else np.zeros(len(self), int)
        order = by_class(np.arange(len(self)), classes, np.random.default_rng(seed))
        rotations = np.empty(len(self), int)
        rotations[order] = rank_in_class(classes[order]) % 4
        return self._rotated_by(np.arange(len(self)), rotations)

    def _rotated_by(self, sources: np.ndarray, rotations: np.ndarray) -> "ImageSet":
        def read(rows: np.ndarray) -> np.ndarray:
            images, image_rotations = self.read(sources[rows]), rotations[rows]
            for turn in (1, 2, 3):
                images[image_rotations == turn] = np.rot90(images[image_rotations == turn], turn, axes=(1, 2))
            return images

        return self._with("rotation", ROTATIONS, self.attributes[sources], rotations, read)

    def with_random_labels(self, share: float, seed: int, stream: int) -> "ImageSet":
        """The set with a new attribute, `corrupted`: the first attribute, redrawn uniformly with probability `share`.

        Source: Zhang et al. 2017, section 2.1; share 1 gives the random labels of Gosch 2020, section 4.
        Raises InputError if the set has no attribute.
        """
        if not self.names:
            raise InputError(f"the {self.title} has no labels to corrupt: give a labeled set")
        share_words, value_words, *_ = random_words(seed, stream, 0, len(self)).T.astype(np.uint64)
        redrawn = (value_words * np.uint64(self.sizes[0])) >> np.uint64(32)
        values = np.where(share_words < share * 2.0**32, redrawn.astype(np.int32), self.attributes[:, 0])
        return self._with("corrupted", self.value_names[0], self.attributes, values, self.read)

    def _with(self, name: str, values: tuple[str, ...], attributes, column, read) -> "ImageSet":
        attributes = np.hstack([attributes, column[:, None].astype(np.int32)])
        return ImageSet(self.title, (*self.names, name), (*self.value_names, values), attributes, read)
