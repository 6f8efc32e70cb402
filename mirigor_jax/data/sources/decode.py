"""Image files as square RGB images of one size, and a count of those that are broken."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mirigor_jax.errors import InputError

BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises of an image
Read = Callable[[np.ndarray], np.ndarray]


def choose_side(title: str, height: int | None, width: int | None, size: int | None) -> int:
    """Pixels of a side: `size`, or the images' own."""
    if size is not None:
        return size
    if height is None or height != width:
        raise InputError(f"the images of {title} are not square or not of one size: give the size to make them")
    return height


def cut(image: Image.Image, side: int) -> np.ndarray:
    """The middle square of the image, resized to this side."""
    return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR))


def _decode(file: Any, side: int) -> np.ndarray:
    with Image.open(file) as image:
        image.draft(None, (2 * side, 2 * side))  # a large JPEG is decoded no larger than resizing needs
        if image.mode[0] in "IF":  # Pillow would cut its values off at 255
            raise ValueError(f"its pixels are {image.mode}, not 8 bits")
        return cut(image.convert("RGB"), side)


def decoded(fetch: Callable[[np.ndarray], Iterator[tuple[str, Any]]], n: int, side: int) -> Read:
    """A reader of rows, decoded when they are read. fetch: rows → (name, file) of each; n: of how many rows."""

    def count_broken(rows: np.ndarray) -> int:
        return sum(_broken(file) for _, file in fetch(rows))

    def read(rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), side, side, 3), np.uint8)
        for image, (name, file) in zip(images, fetch(rows), strict=True):
            try:
                image[:] = _decode(file, side)
            except BROKEN as error:
                with ThreadPoolExecutor(os.cpu_count()) as threads:
                    broken = sum(threads.map(count_broken, np.array_split(np.arange(n), -(-n // 64))))
                raise InputError(
                    f"{name} is a broken image ({error}), one of {broken:,} among the {n:,} of its part: repair or "
                    "remove them"
                ) from None
        return images

    return read


def _broken(file: Any) -> bool:
    try:
        _decode(file, 1)
    except BROKEN:
        return True
    return False
