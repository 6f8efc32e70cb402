"""Images of binary patches: each of d independent bits lights one patch. Rendered in batches, by their index."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int, UInt8

from mirigor_jax import fields, settings
from mirigor_jax.data.generated import GeneratedImages
from mirigor_jax.data.sources.backgrounds import BANK_BYTES, backgrounds, windows
from mirigor_jax.errors import InputError
from mirigor_jax.settings import Data, Patches

LARGEST, SMALLEST = 1024, 16  # pixels of a side
SMALLEST_CELL = 4  # pixels; a patch then has three
FILLED = 0.75  # side of a patch, as a share of its cell's


@dataclass(frozen=True, eq=False)
class PatchImages(GeneratedImages):
    """A population of images with d independent, uniform bits; `make` builds it.

    Bit j is 1 if patch j is lit. The patches fill the cells of a grid row by row; with three channels, each cell has
    three patches, one for each of red, green and blue. A pixel of a lit patch is brighter than any pixel that is not
    lit, so an image determines its bits. The nuisances are the background and its offset, and the common shift of all
    patches; they are uniform and independent of everything else.

    size: pixels. The side of the images.
    names: names of the bits: b1, b2, … value_names: "0" and "1" for each.
    grid: rows and columns of cells.
    channels: 1, for gray patches, or 3.
    jitter: pixels by which the patches' place in their cells varies, down and to the right, as far as there is room.
    backgrounds: strips; any `size` consecutive rows of one are a background, already multiplied by its weight.
    light: the value that a lit patch adds to its pixels.
    """

    title: ClassVar[str] = "set of patches"
    size: int
    names: tuple[str, ...]
    value_names: tuple[tuple[str, ...], ...]
    grid: tuple[int, int]
    channels: int
    jitter: int
    backgrounds: UInt8[np.ndarray, "b rows s 3"]
    light: int

    @property
    def bits(self) -> int:
        """d, the number of bits."""
        return len(self.names)

    @property
    def words(self) -> int:
        """Number of random words of an image: one for each bit, and four for the nuisances."""
        return -(-(self.bits + 4) // 8) * 8

    def draw(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turn random words into uniform attributes int32 (n, d) and nuisances int64 (n, 4)."""
        strips, rows = self.backgrounds.shape[:2]
        steps = np.minimum(self._rooms, self.jitter)
        ranges = np.array([strips, rows - self.size + 1, *(steps + 1)], np.uint64)
        nuisances = ((words[:, self.bits : self.bits + 4] * ranges) >> np.uint64(32)).astype(np.int64)
        nuisances[:, 2:] += (self._rooms - steps)[None, :] // 2  # centered in the cell
        return (words[:, : self.bits] >> np.uint32(31)).astype(np.int32), nuisances

    def render(
        self, attributes: Int[np.ndarray, "n d"], nuisances: Int[np.ndarray, "n 4"]
    ) -> UInt8[np.ndarray, "n s s 3"]:
        """Render the images with these attributes and nuisances.

        nuisances: strip, first row in the strip, and the patches' place in their cells in pixels down and right.
        """
        n, size = len(attributes), self.size
        rows, columns = self.grid
        cell, patch = size // rows, self._patch[0]
        strip, offset, down, right = nuisances.T
        images = windows(self.backgrounds, size)[strip * self.backgrounds.shape[1] + offset]

        # All pixel rows that cut one row of patches get the same light, so it is looked up by that row's bits.
        slots = np.zeros((n, rows * columns * self.channels), np.int32)
        slots[:, : self.bits] = attributes
        code = slots.reshape(n, rows, -1) @ (1 << np.arange(columns * self.channels))
        for shift in np.unique(right):
            lights = self._lights(int(shift))
            for top in np.unique(down[right == shift]):
                chosen = np.flatnonzero((right == shift) & (down == top))
                of = slice(None) if len(chosen) == n else chosen  # a slice changes the images in place
                lit = images[of]
                cells = lit[:, : rows * cell * 3 * size].reshape(len(lit), rows, cell, 3 * size)
                cells[:, :, top : top + patch] += lights[code[of]][:, :, None]
                images[of] = lit
        return images.reshape(n, size, size, 3)

    @property
    def _patch(self) -> tuple[int, int]:
        """Height and width of a patch."""
        rows, columns = self.grid
        return round(FILLED * (self.size // rows)), round(FILLED * (self.size // columns))

    @property
    def _rooms(self) -> Int[np.ndarray, "2"]:
        """Pixels that a cell has around its patch, vertically and horizontally."""
        return np.array([self.size // cells - side for cells, side in zip(self.grid, self._patch, strict=True)])

    def _lights(self, right: int) -> UInt8[np.ndarray, "p s3"]:
        """The light on a row of pixels, for each pattern of the bits in a row of patches."""
        columns, width, cell = self.grid[1], self._patch[1], self.size // self.grid[1]
        slots = min(columns * self.channels, self.bits)  # the others are never lit
        lit = np.arange(1 << slots)[:, None] >> np.arange(columns * self.channels)[None, :] & 1
        light = np.zeros((1 << slots, self.size, 3), np.uint8)
        for column in range(columns):
            left = column * cell + right
            of = lit[:, column * self.channels : (column + 1) * self.channels]
            light[:, left : left + width] = self.light * of[:, None]  # one gray channel is broadcast to three
        return light.reshape(len(light), -1)


def make(
    *,
    size: int = settings.CDP_SIDE,
    bits: int = Patches.bits,
    grid: tuple[int, int] = Patches.grid,
    channels: int = Patches.channels,
    mixing: float = Patches.mixing,
    jitter: int = Patches.jitter,
    background: str = Patches.background,
    seed: int = Data.seed,
) -> PatchImages:
    """Images of binary patches, of size×size pixels. Two views that share all bits have an MI of `bits` bits.

    size: pixels. The side of the images, an even number from 16 to 1,024.
    bits: number of independent bits, at most 16.
    grid: rows and columns of cells. There must be a patch for each bit: rows × columns × channels in all.
    channels: 1: a patch is gray. 3: a cell has three patches, one in each color channel.
    mixing: weight of the background. A lit patch adds the rest of the brightness.
    jitter: pixels by which the patches' place varies, down and to the right; all patches of an image move together.
    background: see `backgrounds`.
    seed: of the backgrounds.
    Raises InputError for a value out of range, for more bits than patches, and for cells that are too small.
    """
    if size < SMALLEST or size % 2 or size > LARGEST:
        raise InputError(f"image size {size:,}: expected an even number from {SMALLEST} to {LARGEST:,}")
    fields.check(Patches, {"bits": bits, "channels": channels, "mixing": mixing, "jitter": jitter})
    if channels not in (1, 3):
        raise InputError(f"channels={channels}: expected 1 (gray patches) or 3 (red, green and blue ones)")
    if min(grid) < 1 or size // max(grid) < SMALLEST_CELL:
        raise InputError(
            f"grid {tuple(grid)} on {size} pixels: expected at least one row and column, and cells of at least "
            f"{SMALLEST_CELL} pixels: use fewer cells or larger images"
        )
    if bits > (patches := grid[0] * grid[1] * channels):
        raise InputError(
            f"bits={bits}: a grid of {grid[0]}×{grid[1]} cells with {channels} channels has {patches} patches; "
            "give a larger grid, or channels=3"
        )
    strips = backgrounds(background, count=max(64, BANK_BYTES // (2 * size * size * 3)), size=size, seed=seed)
    dimmed = np.rint(mixing * np.arange(256)).astype(np.uint8)
    return PatchImages(
        size=size,
        names=tuple(f"b{j}" for j in range(1, bits + 1)),
        value_names=(("0", "1"),) * bits,
        grid=(grid[0], grid[1]),
        channels=channels,
        jitter=jitter,
        backgrounds=dimmed[strips],
        light=255 - int(dimmed[-1]),
    )
