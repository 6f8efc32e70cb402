"""A part of a source: the classes of its rows, and a reader of them. Parts are also made from arrays in memory."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped
from PIL import Image

from mirigor_jax import checks
from mirigor_jax.data.draws import row_keys
from mirigor_jax.data.sources.decode import Read, choose_side, cut
from mirigor_jax.errors import InputError, shown


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


def classes_of_parts(
    title: str, arrays: Mapping[str, tuple[np.ndarray, Any]]
) -> tuple[dict[str, Int[np.ndarray, " _"]], tuple[str, ...]]:
    """The classes of each part's rows, and their names.

    title: the source, for messages.
    arrays: part → (rows, labels). Labels may be of any kind that `checks.labels` takes, or None in all parts; all
        classes are then 0, and have no name.
    Raises InputError as `checks.labels` does, if lengths differ, and if labels of the parts are of several kinds.
    """
    lacking = [part for part, (_, labels) in arrays.items() if labels is None]
    if len(lacking) == len(arrays):
        return {part: np.zeros(len(rows), np.int32) for part, (rows, _) in arrays.items()}, ()
    if lacking:
        raise InputError(f"{title} has labels for some of its parts only, none for {lacking[0]}: give all or none")
    given = {part: checks.labels(labels, f"{title}: {part} labels") for part, (_, labels) in arrays.items()}
    for part, (rows, _) in arrays.items():
        if len(given[part]) != len(rows):
            raise InputError(f"{title} has {len(rows):,} {part} rows, {len(given[part]):,} labels: expected as many")
    values, classes = np.unique(checks.joined_labels([*given.values()], f"{title}: labels"), return_inverse=True)
    ends = np.cumsum([len(labels) for labels in given.values()])[:-1]
    of_parts = dict(zip(given, np.split(classes.astype(np.int32), ends), strict=True))
    return of_parts, tuple(shown(str(value)) for value in values.tolist())


def parts_from_arrays(title: str, arrays: dict[str, Any], size: int | None) -> tuple[dict[str, Part], Sequence[str]]:
    """Make parts of images in memory, and name their classes. Labels are as in `classes_of_parts`."""
    classes, names = classes_of_parts(title, arrays)
    parts = {}
    for part, (images, _) in arrays.items():
        side = choose_side(title, images.shape[1], images.shape[2], size)
        parts[part] = numbered(classes[part], partial(_look_up, images, side))
    return parts, names


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
