"""Color-Digit-Position images (Lee et al. 2023, §III-B), rendered in batches; each is a function of its index."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int, Int16, UInt8
from numpy.lib.stride_tricks import as_strided
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mirigor_jax import fields, settings
from mirigor_jax.data import law as laws
from mirigor_jax.data.generated import GeneratedImages
from mirigor_jax.data.law import Law
from mirigor_jax.data.sources.backgrounds import BANK_BYTES, backgrounds, windows
from mirigor_jax.data.sources.idx import read_labeled_idx
from mirigor_jax.errors import InputError
from mirigor_jax.files import local_path
from mirigor_jax.settings import Cdp, Data

# The first four are the paper's. Any two colors differ by at least 127 in one channel.
COLORS = {
    "Red": (255, 0, 0),
    "Green": (0, 255, 0),
    "Blue": (0, 0, 255),
    "White": (255, 255, 255),
    "Yellow": (255, 255, 0),
    "Magenta": (255, 0, 255),
    "Cyan": (0, 255, 255),
    "Orange": (255, 128, 0),
    "Purple": (128, 0, 255),
    "Gray": (128, 128, 128),
    "Black": (0, 0, 0),
    "Azure": (0, 128, 255),
    "Rose": (255, 0, 128),
    "Chartreuse": (128, 255, 0),
    "Spring": (0, 255, 128),
    "Brown": (128, 64, 0),
}
LARGEST = 1024  # pixels of a side; at this size, making the backgrounds takes 3 GiB
SMALLEST_CELL = 10  # pixels; 9×7 is the smallest legible digit
FONT_VARIANTS, HANDWRITTEN_VARIANTS = 16, 1024  # of each digit
OPAQUE = 128  # full coverage; so color difference × coverage + rounding just fits int16
BLENDED_AT_ONCE = 128  # images; the boxes of this many glyphs stay in cache


@dataclass(frozen=True, eq=False)
class CDP(GeneratedImages):
    """A population of images with three attributes, by default independent and uniform; `make` builds it.

    An image is a colored digit, alpha-blended into its cell over a dimmed background:
    pixel = a·color + (1 - a)·mixing·background. The nuisances are the background and its offset, the glyph's variant,
    and the glyph's place in the cell; they are uniform and independent of everything else.

    size: pixels. The side of the images.
    grid: rows and columns of positions.
    jitter: pixels by which a glyph's place in its cell varies, down and to the right, as far as the cell has room.
    value_names: names of the colors, digits and positions.
    backgrounds: strips; any `size` consecutive rows of one are a background, already multiplied by mixing.
    coverage: a, for each digit and variant, in units of 1/128, repeated for the three channels.
    palette: the colors.
    law: the joint distribution of the attributes. None: they are independent and uniform.
    names: names of the attributes.
    """

    title: ClassVar[str] = "CDP set"
    size: int
    grid: tuple[int, int]
    jitter: int
    value_names: tuple[tuple[str, ...], ...]
    backgrounds: UInt8[np.ndarray, "b rows s 3"]
    coverage: Int16[np.ndarray, "d v h w3"]
    palette: UInt8[np.ndarray, "c 3"]
    law: Law | None = None
    names: tuple[str, ...] = ("color", "digit", "position")

    def render(
        self, attributes: Int[np.ndarray, "n 3"], nuisances: Int[np.ndarray, "n 5"]
    ) -> UInt8[np.ndarray, "n s s 3"]:
        """Render the images with these attributes and nuisances.

        nuisances: strip, first row in the strip, variant, and the glyph's place in its cell in pixels down and right.
        """
        n, size, row = len(attributes), self.size, 3 * self.size
        height, width3 = self.coverage.shape[2:]
        color, digit, position = attributes.T
        strip, offset, variant, down, right = nuisances.T

        images = windows(self.backgrounds, size)[strip * self.backgrounds.shape[1] + offset]

        # View the images by the corner of a box, so one indexing operation gathers all boxes and another scatters them.
        corners = (n, size - height + 1, size - width3 // 3 + 1, height, width3)
        boxes = as_strided(images, corners, (size * row, row, 3, row, 1))
        top = position // self.grid[1] * (size // self.grid[0]) + down
        left = position % self.grid[1] * (size // self.grid[1]) + right
        inks = np.tile(self.palette.astype(np.int16), width3 // 3)[:, None]
        for first in range(0, n, BLENDED_AT_ONCE):
            part = np.arange(first, min(first + BLENDED_AT_ONCE, n))
            box = boxes[part, top[part], left[part]]
            change = inks[color[part]] - box
            change *= self.coverage[digit[part], variant[part]]
            change += OPAQUE // 2  # rounds the division to nearest
            change //= OPAQUE
            change += box
            boxes[part, top[part], left[part]] = change
        return images.reshape(n, size, size, 3)

    def draw(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turn random words, eight an image, into uniform attributes int32 (n, 3) and nuisances int64 (n, 5)."""
        strips, rows = self.backgrounds.shape[:2]
        _, variants, height, width3 = self.coverage.shape
        rooms = np.array([self.size // self.grid[0] - height, self.size // self.grid[1] - width3 // 3])
        steps = np.minimum(rooms, self.jitter)
        ranges = (*self.sizes, strips, rows - self.size + 1, variants, *(steps + 1))
        values = (words * np.array(ranges, np.uint64)) >> np.uint64(32)
        attributes, nuisances = values[:, :3].astype(np.int32), values[:, 3:].astype(np.int64)
        nuisances[:, 3:] += (rooms - steps)[None, :] // 2  # centered in the cell
        return attributes, nuisances


def make(
    *,
    size: int = settings.CDP_SIDE,
    colors: int = Cdp.colors,
    digits: Sequence[int] = Cdp.digits,
    grid: tuple[int, int] = Cdp.grid,
    mixing: float = Cdp.mixing,
    jitter: int = Cdp.jitter,
    background: str = Cdp.background,
    glyphs: str = Cdp.glyphs,
    law: str | Float[np.ndarray, "c d p"] = Cdp.law,
    seed: int = Data.seed,
) -> CDP:
    """CDP images of size×size pixels. By default, each attribute has the paper's four values, 2 bits.

    size: pixels. The side of the images, an even number from 32 to 1,024.
    colors: number of colors, the first ones of COLORS.
    digits: the digits, from 0 to 9.
    grid: rows and columns of positions.
    mixing: weight of the background.
    jitter: pixels by which a digit's place in its cell varies, down and to the right, besides its variant's own shift.
    background: see `backgrounds`.
    glyphs: "font", or "idx:PATH" for handwritten digits (see `read_labeled_idx`).
    law: the joint distribution of the attributes. "independent"; "color+digit=0.5", which links two attributes at a
        strength in [0, 1] (see `law.linked`); "npy:PATH"; or a table of probabilities (colors, digits, positions).
    seed: of the backgrounds and the glyphs' variants.
    Raises InputError for a value out of range, for cells that are too small for a digit, and for unreadable files.
    """
    if size < 32 or size % 2:
        raise InputError(f"image size {size}: expected an even number of at least 32")
    if size > LARGEST:
        raise InputError(f"image size {size:,}: expected at most {LARGEST:,} pixels, for the backgrounds' memory")
    fields.check(Cdp, {"colors": colors, "mixing": mixing, "jitter": jitter})
    if not digits or len(set(digits)) < len(digits) or not set(digits) <= set(range(10)):
        raise InputError(f"digits {tuple(digits)}: expected one or more of 0 to 9, each once")
    if min(grid) < 1 or (cell := size // max(grid)) < SMALLEST_CELL:
        raise InputError(
            f"grid {tuple(grid)} on {size} pixels: expected at least one row and column, and cells of at least "
            f"{SMALLEST_CELL} pixels, for a legible digit: use fewer positions or larger images"
        )

    value_names = (
        tuple(list(COLORS)[:colors]),
        tuple(str(digit) for digit in digits),
        _position_names(*grid),
    )
    sizes = tuple(map(len, value_names))
    the_law = laws.parse(law, CDP.names, sizes) if isinstance(law, str) else laws.of_table(law, sizes)
    height, width = -(-cell * 7 // 8), -(-cell * 11 // 16)  # 28×22 in a cell of 32×32: digits 24 to 27 pixels tall
    coverage = _coverage(glyphs, digits, height, width, np.random.default_rng(seed))
    strips = backgrounds(background, count=max(64, BANK_BYTES // (2 * size * size * 3)), size=size, seed=seed)
    return CDP(
        size=size,
        grid=(grid[0], grid[1]),
        jitter=jitter,
        value_names=value_names,
        backgrounds=np.rint(mixing * np.arange(256)).astype(np.uint8)[strips],
        coverage=coverage,
        palette=np.array([COLORS[name] for name in value_names[0]], np.uint8),
        law=the_law,
    )


def _position_names(rows: int, columns: int) -> tuple[str, ...]:
    if (rows, columns) == (2, 2):
        return "upper left", "upper right", "lower left", "lower right"
    return tuple(f"row {row} column {column}" for row in range(1, rows + 1) for column in range(1, columns + 1))


def _coverage(glyphs: str, digits: Sequence[int], height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """The coverage, int16 (digits, variants, height, 3·width), 0 to OPAQUE. Variants differ in size and place."""
    if glyphs == "font":
        inks = [[*_font_digits(digit, height, rng)] for digit in digits]
    elif glyphs.startswith("idx:"):
        inks = _handwritten_digits(local_path(glyphs[4:]), digits)
    else:
        raise InputError(f"unknown glyphs {glyphs!r}: use font or idx:PATH")
    masks = np.array([[_fitted(ink, height, width, rng) for ink in variants] for variants in inks])
    return np.repeat(np.rint(masks * (OPAQUE / 255)).astype(np.int16), 3, axis=3)


def _font_digits(digit: int, height: int, rng: np.random.Generator) -> Iterator[Image.Image]:
    """Bold digits, each turned a little, about three times too large; shrinking them later softens the edges."""
    center = 2 * height
    upright = Image.new("L", (2 * center, 2 * center))
    font = ImageFont.load_default(size=2 * center)
    draw = ImageDraw.Draw(upright)
    draw.text((center, center), str(digit), fill=255, font=font, anchor="mm", stroke_width=center // 24)
    for _ in range(FONT_VARIANTS):
        yield upright.rotate(rng.uniform(-3, 3), Image.Resampling.BICUBIC)


def _handwritten_digits(path: Path, digits: Sequence[int]) -> list[list[Image.Image]]:
    """Equally many images of each digit, in the order of the file."""
    images, labels = read_labeled_idx(path)
    chosen = [images[labels == digit] for digit in digits]
    variants = min(HANDWRITTEN_VARIANTS, *(len(c) for c in chosen))
    if not variants:
        raise InputError(f"{path} lacks a digit of {tuple(digits)}: choose from {np.unique(labels).tolist()}")
    return [[Image.fromarray(image) for image in c[:variants]] for c in chosen]


def _fitted(ink: Image.Image, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """The glyph at 93 to 97 % of the largest size that fits the box, at a random place, in fractions of a pixel."""
    left, top, right, bottom = ink.getbbox() or (0, 0, *ink.size)
    zoom = max((bottom - top) / height, (right - left) / width) / rng.uniform(0.93, 0.97)
    margin = int(zoom * height) + 1
    page = ImageOps.expand(ink.crop((left, top, right, bottom)), margin)
    x = margin - rng.uniform(0, zoom * width - (right - left))
    y = margin - rng.uniform(0, zoom * height - (bottom - top))
    box = (x, y, x + zoom * width, y + zoom * height)
    return np.asarray(page.resize((width, height), Image.Resampling.BILINEAR, box))
