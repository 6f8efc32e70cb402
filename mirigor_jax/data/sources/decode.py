"""Decoding of image files to square RGB images of one size; an error counts all broken files of the part."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from mirigor_jax.errors import InputError

# Only these formats are read. Pillow would call an external program for PostScript, for example.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
MOST_PIXELS = 89_478_485  # of an image in a file; Pillow holds this many in 1/4 GiB
MOST_SIDE = 4096  # pixels. The largest side of an image after resizing
Read = Callable[[np.ndarray], np.ndarray]


def choose_side(title: str, height: int | None, width: int | None, size: int | None) -> int:
    """The side of the images in pixels: `size`, or their own side.

    height, width: of all images. None: unknown, or different.
    Raises InputError for a side above MOST_SIDE, and if size is None and the images are not square or differ in size.
    """
    if (side := height if size is None else size) is not None and side > MOST_SIDE:
        raise InputError(f"the images of {title} have {side:,} pixels a side: give a size of at most {MOST_SIDE:,}")
    if size is not None:
        return size
    if height is None or height != width:
        raise InputError(f"the images of {title} are not square or not of one size: give the size to make them")
    return height


def cut(image: Image.Image, side: int) -> np.ndarray:
    """The central square of the image, resized to this side."""
    return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR))


def scaled(values: np.ndarray) -> UInt8[np.ndarray, "..."] | None:
    """Pixels of 1 or 16 bits, scaled to 8 bits: 0 stays 0, and the largest value becomes 255; None for other dtypes."""
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.newbyteorder("=") != np.uint16:
        return values if values.dtype == np.uint8 else None
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def open_rgb(file: Any, side: int) -> Image.Image:
    """The image in a file as RGB. Raises InputError if it can't be read as RGB.

    Gray values of 16 bits are scaled to 8. Transparent pixels are laid over white.
    file: a path, or a binary file. The format is recognized by the content.
    side: pixels. The side to which the image will be resized; a large JPEG is decoded at a reduced size.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            image.draft("RGB", (2 * side, 2 * side))  # decodes a large JPEG at a reduced size
            if image.width * image.height > MOST_PIXELS:
                raise InputError(f"it has {image.width:,} × {image.height:,} pixels, over {MOST_PIXELS:,}")
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
                gray = scaled(np.asarray(image).astype(np.uint16))
                assert gray is not None
                return Image.fromarray(gray).convert("RGB")
            if image.mode[0] in "IF":  # Pillow would clip its values at 255
                raise InputError(f"its pixels are {image.mode}, of unknown range: convert it to 8 bits")
            if image.has_transparency_data:
                shown = image.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise InputError(f"it is none of {', '.join(FORMATS)}") from None
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise many types for a damaged file
        raise InputError(f"{type(error).__name__}: {error}") from None


def decoded(fetch: Callable[[np.ndarray], Iterator[tuple[str, Any]]], n: int, side: int) -> Read:
    """A reader of rows that decodes each image when it is read.

    fetch: rows → an iterator of (name, file), one for each row.
    n: number of rows in the part.
    side: pixels. The side of the decoded images.
    """

    def count_broken(rows: np.ndarray) -> int:
        return sum(_broken(file) for _, file in fetch(rows))

    def read(rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), side, side, 3), np.uint8)
        for image, (name, file) in zip(images, fetch(rows), strict=True):
            try:
                image[:] = cut(open_rgb(file, side), side)
            except InputError as error:
                with ThreadPoolExecutor(os.cpu_count()) as threads:
                    broken = sum(threads.map(count_broken, np.array_split(np.arange(n), -(-n // 64))))
                raise InputError(
                    f"{name} is a broken image ({error}), one of {broken:,} among the {n:,} of its part: repair, "
                    "convert or remove them"
                ) from None
        return images

    return read


def _broken(file: Any) -> bool:
    try:
        open_rgb(file, 1)
    except InputError:
        return True
    return False
