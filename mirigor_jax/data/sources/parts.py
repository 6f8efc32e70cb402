"""A part of a source: the classes of its rows, and a reader of them. Parts are also made from arrays in memory."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped
from PIL import Image

from mirigor_jax.data.draws import row_keys
from mirigor_jax.data.sources.decode import Read, choose_side, cut
from mirigor_jax.errors import shown


class Part(NamedTuple):
    """A part of a source.

    classes: the images' classes; all 0 without labels.
    read: rows → images.
    keys: numbers to split the part by. They don't depend on any setting, so no setting moves an image to another part.
    """

    classes: Int[np.ndarray, " n"]
    read: Read
    keys: Shaped[np.ndarray, " n"]


def numbered(classes: np.ndarray, read: Read) -> Part:
    """A part whose keys depend on the rows' numbers only."""
    return Part(classes, read, row_keys(len(classes)))


def parts_from_arrays(title: str, arrays: dict[str, Any], size: int | None) -> tuple[dict[str, Part], Sequence[str]]:
    """Make parts of images in memory, and name their classes. Labels may be of any kind, or None."""
    known = [labels.ravel() for _, labels in arrays.values() if labels is not None]
    values = np.unique(np.concatenate(known)) if known else np.empty(0)
    parts = {}
    for part, (images, labels) in arrays.items():
        classes = np.zeros(len(images), int) if labels is None else np.searchsorted(values, labels.ravel())
        side = choose_side(title, images.shape[1], images.shape[2], size)
        parts[part] = numbered(classes.astype(np.int32), partial(_look_up, images, side))
    return parts, tuple(shown(str(value)) for value in values.tolist())


def _look_up(images: np.ndarray, side: int, rows: np.ndarray) -> np.ndarray:
    chosen = images[rows].reshape(len(rows), *images.shape[1:3], -1)
    if chosen.shape[3] == 1:
        chosen = np.repeat(chosen, 3, axis=3)
    if chosen.shape[1:3] == (side, side):
        return chosen
    resized = np.empty((len(rows), side, side, 3), np.uint8)
    for image, original in zip(resized, chosen, strict=True):
        image[:] = cut(Image.fromarray(original), side)
    return resized
