"""Backgrounds of generated images: procedural ones, or crops of photographs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy.lib.stride_tricks import as_strided
from PIL import Image

from mirigor_jax.data.sources.decode import open_rgb
from mirigor_jax.data.sources.folders import PHOTOGRAPHS, photographs
from mirigor_jax.data.sources.tfds import open_part, open_set
from mirigor_jax.errors import InputError
from mirigor_jax.files import local_path

BANK_BYTES = 2**24  # size of the backgrounds: many, yet they fit a CPU's last-level cache


def backgrounds(kind: str, *, count: int, size: int, seed: int) -> UInt8[np.ndarray, "count rows size 3"]:
    """Make strips that are `size` wide and taller: any `size` consecutive rows of a strip are a background.

    kind: "spectrum": procedural images with the 1/f amplitude spectrum of natural scenes (Field 1987); "folder:PATH":
        random crops of the photographs under PATH; "tfds:NAME": random crops of the train split of a TFDS image set.
    count: number of strips.
    Raises InputError for another kind, for a folder that is missing, empty or holds a broken image, and for an unknown
    TFDS set.
    """
    rng = np.random.default_rng(seed)
    name, _, argument = kind.partition(":")
    if name == "spectrum" and not argument:
        return _spectrum(count, size, rng)
    if name == "folder" and argument:
        return _folder(local_path(argument), count, size, rng)
    if name == "tfds" and argument:
        return _tfds(argument, count, size, rng)
    raise InputError(f"unknown background {kind!r}: use spectrum, folder:PATH or tfds:NAME")


def windows(strips: UInt8[np.ndarray, "b rows s 3"], size: int) -> UInt8[np.ndarray, "w p"]:
    """A view of the backgrounds: any `size` consecutive rows of a strip are one row of the result, b·rows + first row.

    So gathering backgrounds is a contiguous copy of each.
    """
    count, rows, row = *strips.shape[:2], 3 * size
    return as_strided(strips, (count * rows - size + 1, size * row), (row, 1))


def _spectrum(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Luminance and two weaker opponent colors, each white noise / f^a, 0.8 <= a <= 1.5 (Tolhurst et al. 1992)."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)).astype(np.float32)
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(rng.standard_normal((count, 3, size, size), np.float32))
    fields = np.fft.irfft2(noise / frequency ** rng.uniform(0.8, 1.5, (count, 1, 1, 1)).astype(np.float32))
    fields /= fields.std(axis=(2, 3), keepdims=True)
    fields += rng.normal(0, 0.5, (count, 3, 1, 1))  # each image's brightness and tint
    fields *= rng.uniform(25, 60, (count, 1, 1, 1))  # each image's contrast
    opponents = np.array([[1, 1, 1], [0.4, -0.4, 0], [0.2, 0.2, -0.4]], np.float32)
    images = np.clip(127.5 + np.moveaxis(fields, 1, 3) @ opponents, 0, 255).astype(np.uint8)
    # The images are periodic, so repeating an image below itself makes no seam.
    return np.concatenate([images, images[:, :-1]], axis=1)


def _crops(
    photographs: Iterator[Image.Image], number: int, count: int, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Random crops as strips 1.5 times as tall as wide, at 1/2 to full scale; each is mirrored with probability 1/2."""
    rows = size * 3 // 2
    strips = np.empty((count, rows, size, 3), np.uint8)
    for share, photograph in zip(np.array_split(strips, number), photographs, strict=True):
        for strip in share:
            scale = rng.uniform(0.5, 1) * min(photograph.width / size, photograph.height / rows)
            width, height = scale * size, scale * rows
            left, top = rng.uniform(0, (photograph.width - width, photograph.height - height))
            crop = photograph.resize((size, rows), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
            strip[:] = np.asarray(crop)[:, :: rng.choice([-1, 1])]
    return strips


def _folder(root: Path, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    paths = sorted(map(Path, photographs(root)))
    if not paths:
        problem = "holds no photograph" if root.is_dir() else "is not a folder"
        raise InputError(f"background folder {root} {problem}: give one with {', '.join(sorted(PHOTOGRAPHS))} files")

    def open_image(path: Path) -> Image.Image:
        try:
            return open_rgb(path, 3 * size // 2)
        except InputError as error:
            raise InputError(f"background {path} is a broken image ({error}): repair or remove it") from None

    chosen = [paths[i] for i in rng.permutation(len(paths))[:count]]
    return _crops(map(open_image, chosen), len(chosen), count, size, rng)


def _tfds(name: str, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    builder, image, _ = open_set(name, None, prepare=True)
    examples = open_part(name, builder, "train")
    chosen = rng.permutation(len(examples))[:count].tolist()
    images = (Image.fromarray(examples[i][image].squeeze()).convert("RGB") for i in chosen)
    return _crops(images, len(chosen), count, size, rng)
