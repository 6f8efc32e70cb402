"""A finite set of images, sets made out of it, and positive pairs: as images, or as rows of what a device holds."""

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
    """n images by their rows.

    title: what messages call it. attributes: of all images, (n, 0) where they have no labels; names, value_names: what
    the attributes and their values are called. read: rows (k,) → fresh images uint8 (k, s, s, 3).
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
        """Rows [start, stop): `image` uint8 (k, s, s, 3), `attributes` int32 (k, a)."""
        return {"image": self.read(np.arange(start, stop)), "attributes": self.attributes[start:stop]}

    @property
    def space(self) -> AttributeSpace:
        """What pairings of these images are made of."""
        return AttributeSpace(self.title, self.names, self.value_names, self.attributes)

    def same_class(self, text: str) -> ByClass:
        """Same-class sampling by what a pairing's text names, its classes as frequent as in this set.

        Raises InputError as `pairing.parse` does.
        """
        return classes_of(text, self.space)

    def row_pairs(self, pairing: Pairing, seed: int, stream: int) -> Callable[[int, int], dict[str, np.ndarray]]:
        """(start, stop) → `x`, `y`, the rows int32 of positive pairs [start, stop) of an endless stream.

        x is any row, and y the row that the pairing draws for it: sampling from a finite set (Lee et al. 2023, §III-A).
        Pair i of (seed, stream) is a function of these three numbers. Raises InputError if a class has no image.
        """
        rows = pairing.rows(self.space)

        def read(start: int, stop: int) -> dict[str, np.ndarray]:
            x, y = rows(random_words(seed, stream, start, stop))
            return {"x": x, "y": y}

        return read

    def fresh_rows(
        self, pairing: Pairing, seed: int, stream: int, *, risk: float, least: int
    ) -> Int[np.ndarray, "p 2"]:
        """Rows of independent pairs, each image in one of them at most: see `Pairing.fresh_rows`.

        Give every part a stream of its own: its pairs' classes are drawn by it.
        """
        return pairing.fresh_rows(self.space, risk, np.random.default_rng([seed, stream]), least=least)

    def pairs(self, rows: Int[np.ndarray, "p 2"], start: int, stop: int) -> dict[str, np.ndarray]:
        """Pairs [start, stop) of these: `x`, `y` uint8 (k, s, s, 3), `attributes_x`, `attributes_y` int32 (k, a)."""
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
        """The set with this share of each image's pixels black or white, as likely: salt-and-pepper noise.

        An image's noise is a function of its row, seed and stream. Source: Gosch 2020, appendix D.1.
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
        """The set four times as large: row 4i + t is image i turned by t·90°, which is a new attribute, `rotation`.

        Source: Gosch 2020, section 4 (the enlarged CIFAR-10).
        """
        n = len(self)
        return self._rotated_by(np.repeat(np.arange(n), 4), np.tile(np.arange(4), n))

    def rotated_once(self, seed: int) -> "ImageSet":
        """The set with each image at one turn drawn at random, as many of a class at each: `turned`'s distribution.

        Unlike the turns of one image these are independent, so that they can serve as test images.
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
        """The set with a new attribute, `corrupted`: its first one, redrawn from all values with probability `share`.

        Source: Zhang et al. 2017, section 2.1; at share 1 the random labels of Gosch 2020, section 4.
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
