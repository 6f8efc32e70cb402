"""Color-Digit-Position images (Lee et al. 2023, §III-B), rendered in batches; each is a function of its index."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Float32, Int, Int16, UInt8, UInt32
from numpy.lib.stride_tricks import as_strided
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.special import ndtri

from mirigor_jax import fields, settings
from mirigor_jax.data import export as exports
from mirigor_jax.data import law as laws
from mirigor_jax.data.draws import keyed_words
from mirigor_jax.data.generated import GeneratedImages
from mirigor_jax.data.law import Law
from mirigor_jax.data.pairing import parse
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
AT_ONCE = 128  # images that are rendered at once; the boxes of this many glyphs stay in cache
PIECES, PIECES_PER_CELL = 256, 4  # pieces of digits: in the bank, and in each cell of an image at clutter 1
BLURS = 16  # widths of the blur
WIDEST_BLUR = 1 / 8  # of a cell's side. The standard deviation of the widest blur at strength 1
LOUDEST = 128  # standard deviation of the noise at strength 1, in the units of a pixel
KERNEL = 2**12  # the sum of a blur's integer weights; float32 then holds every sum of both passes exactly


@dataclass(frozen=True, eq=False)
class CDP(GeneratedImages):
    """A population of images with three attributes, by default independent and uniform; `make` builds it.

    An image is a colored digit, alpha-blended into its cell over a dimmed background:
    pixel = a·color + (1 - a)·mixing·background. Pieces of digits may lie between the background and the digit; then the
    image may be blurred, and then noise may be added. The nuisances are the background and its offset, the glyph's
    variant and its place in the cell, the pieces, the width of the blur, and the noise. They are independent of
    everything else.

    size: pixels. The side of the images.
    grid: rows and columns of positions.
    jitter: pixels by which a glyph's place in its cell varies, down and to the right, as far as the cell has room.
    value_names: names of the colors, digits and positions.
    backgrounds: strips; any `size` consecutive rows of one are a background, already multiplied by mixing.
    coverage: a, for each digit and variant, in units of 1/128, repeated for the three channels.
    palette: the colors.
    clutter: probability with which each of an image's PIECES_PER_CELL·cells pieces is there.
    pieces: the pieces' a, in the same units.
    blurs: for each width of the blur, the matrix by which it multiplies each column, and each row, of an image. Its
        rows sum to KERNEL. No matrices: no blur.
    noise: the equally likely values of the noise. No values: no noise.
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
    clutter: float
    pieces: Int16[np.ndarray, "p i j3"]
    blurs: Float32[np.ndarray, "w s s"]
    noise: Int16[np.ndarray, " l"]
    law: Law | None = None
    names: tuple[str, ...] = ("color", "digit", "position")

    def render(
        self, attributes: Int[np.ndarray, "n 3"], nuisances: Int[np.ndarray, "n 7"]
    ) -> UInt8[np.ndarray, "n s s 3"]:
        """Render the images with these attributes and nuisances.

        nuisances: strip, first row in the strip, variant, the glyph's place in its cell in pixels down and right, and
            the two words of a Philox key, from which the pieces, the blur's width and the noise are drawn.
        """
        n, size, row = len(attributes), self.size, 3 * self.size
        color, digit, position = attributes.T
        strip, offset, variant, down, right = nuisances[:, :5].T

        images = windows(self.backgrounds, size)[strip * self.backgrounds.shape[1] + offset]

        top = position // self.grid[1] * (size // self.grid[0]) + down
        left = position % self.grid[1] * (size // self.grid[1]) + right
        boxes, inks = _boxes(images, self.coverage.shape[2:]), self._inks(self.coverage)
        of_pieces, piece_inks = _boxes(images, self.pieces.shape[1:]), self._inks(self.pieces)
        for first in range(0, n, AT_ONCE):
            part = np.arange(first, min(first + AT_ONCE, n))
            words = self._nuisance_words(nuisances[part, 5:])
            if self.clutter:
                for which, top_left, piece, ink in self._pieces_of(words[:, 2 : 2 + self._piece_words]):
                    _blend(of_pieces, (part[which], *top_left), self.pieces[piece], piece_inks[ink])
            _blend(boxes, (part, top[part], left[part]), self.coverage[digit[part], variant[part]], inks[color[part]])
            if len(self.blurs):
                level = (words[:, 0].astype(np.uint64) * np.uint64(len(self.blurs))) >> np.uint64(32)
                images[part] = _blurred(images[part].reshape(-1, size, size, 3), self.blurs[level])
            if len(self.noise):
                values = self.noise[words[:, 2 + self._piece_words :].view(np.uint8)[:, : size * row]]
                images[part] = np.clip(images[part] + values, 0, 255)
        return images.reshape(n, size, size, 3)

    @property
    def shows_attributes(self) -> bool:
        """No if there is clutter, blur or noise, or if a color is that of an even background.

        The MI of the attributes is then an upper end of the images' MI.
        """
        return not (self.clutter or len(self.blurs) or len(self.noise) or self._hides_a_color)

    @cached_property
    def _hides_a_color(self) -> bool:
        """Whether all backgrounds are of one gray, black at mixing 0, that is also one of the colors."""
        gray = self.backgrounds.reshape(-1)[0]
        return bool(np.all(self.palette == gray, axis=1).any() and np.all(self.backgrounds == gray))

    @property
    def _piece_words(self) -> int:
        """Random words an image for its pieces: whether each is there, which it is, and its place down and right."""
        return 4 * PIECES_PER_CELL * self.grid[0] * self.grid[1]

    def _nuisance_words(self, keys: Int[np.ndarray, "n 2"]) -> UInt32[np.ndarray, "n w"]:
        """Random words of each image: two for the blur's width, then those of the pieces, then those of the noise."""
        if not (self.clutter or len(self.blurs) or len(self.noise)):
            return np.empty((len(keys), 0), np.uint32)
        noise_words = -(-3 * self.size**2 // 8) * 2 if len(self.noise) else 0  # a byte a value, in words of 64 bits
        return keyed_words(keys, 2 + self._piece_words + noise_words)

    def _inks(self, coverage: Int16[np.ndarray, "... w3"]) -> Int16[np.ndarray, "c 1 w3"]:
        """For each color, a row of pixels of that color, as long as those of the coverage."""
        return np.tile(self.palette.astype(np.int16), coverage.shape[-1] // 3)[:, None]

    def _pieces_of(self, words: UInt32[np.ndarray, "n w"]) -> Iterator[tuple[np.ndarray, Any, np.ndarray, np.ndarray]]:
        """(The images that have it, its tops and lefts, its kinds, its colors) for each of the pieces of n images."""
        _, height, width3 = self.pieces.shape
        ranges = (2**32, len(self.pieces) * len(self.palette), self.size - height + 1, self.size - width3 // 3 + 1)
        drawn = (words.reshape(len(words), -1, 4) * np.array(ranges, np.uint64)) >> np.uint64(32)
        for there, kind, top, left in drawn.transpose(1, 2, 0).astype(np.int64):
            which = np.flatnonzero(there < self.clutter * 2.0**32)
            yield which, (top[which], left[which]), *np.divmod(kind[which], len(self.palette))

    def draw(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turn random words, eight an image, into uniform attributes int32 (n, 3) and nuisances int64 (n, 7)."""
        strips, rows = self.backgrounds.shape[:2]
        _, variants, height, width3 = self.coverage.shape
        rooms = np.array([self.size // self.grid[0] - height, self.size // self.grid[1] - width3 // 3])
        steps = np.minimum(rooms, self.jitter)
        ranges = (*self.sizes, strips, rows - self.size + 1, variants, *(steps + 1))
        values = (words * np.array(ranges, np.uint64)) >> np.uint64(32)
        attributes, nuisances = values[:, :3].astype(np.int32), values[:, 3:].astype(np.int64)
        nuisances[:, 3:] += (rooms - steps)[None, :] // 2  # centered in the cell
        # The key holds none of the words that attributes are made of, so what it draws is independent of them.
        key = np.ascontiguousarray(words[:, 3:7]).view(np.int64)
        return attributes, np.concatenate([nuisances, key], axis=1)


def room(size: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Pixels by which a digit can move in its cell, down and to the right. size: pixels. The side of the images."""
    height, width = _box(size, grid)
    return size // grid[0] - height, size // grid[1] - width


def _box(size: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of pixels of a digit's box: 28×22 in a cell of 32×32, for digits 24 to 27 pixels tall."""
    cell = size // max(grid)
    return -(-cell * 7 // 8), -(-cell * 11 // 16)


def make(
    *,
    size: int = settings.CDP_SIDE,
    colors: int = Cdp.colors,
    digits: Sequence[int] = Cdp.digits,
    grid: tuple[int, int] = Cdp.grid,
    mixing: float = Cdp.mixing,
    jitter: float = Cdp.jitter,
    clutter: float = Cdp.clutter,
    blur: float = Cdp.blur,
    noise: float = Cdp.noise,
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
    mixing, jitter, clutter, blur, noise: strengths of nuisances, in [0, 1]; 0 is none. mixing is the weight of the
        background; at 0 it is black, and hides black digits. jitter is the digit's random shift, in shares of the
        longer way that it can move in its cell; it comes on top of its variant's own shift. clutter is the probability
        of each of four pieces of digits a cell, which lie behind the digit anywhere in the image. blur is the largest
        standard deviation of an image's Gaussian blur, in eighths of a cell's side; each image has its own, uniform
        from 0. noise is the standard deviation of Gaussian noise of each value, in units of 128; sums are clipped to 0
        to 255.
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
    strengths = {"mixing": mixing, "jitter": jitter, "clutter": clutter, "blur": blur, "noise": noise}
    fields.check(Cdp, {"colors": colors, **strengths})
    if not digits or len(set(digits)) < len(digits) or not set(digits) <= set(range(10)):
        raise InputError(f"digits {tuple(digits)}: expected one or more of 0 to 9, each once")
    if min(grid) < 1 or size // max(grid) < SMALLEST_CELL:
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
    coverage = _coverage(glyphs, digits, *_box(size, grid), np.random.default_rng(seed))
    strips = backgrounds(background, count=max(64, BANK_BYTES // (2 * size * size * 3)), size=size, seed=seed)
    return CDP(
        size=size,
        grid=(grid[0], grid[1]),
        jitter=round(jitter * max(room(size, grid))),
        value_names=value_names,
        backgrounds=np.rint(mixing * np.arange(256)).astype(np.uint8)[strips],
        coverage=coverage,
        palette=np.array([COLORS[name] for name in value_names[0]], np.uint8),
        clutter=clutter,
        pieces=_pieces(coverage, np.random.default_rng([seed, 1])),
        blurs=_blurs(size, blur * WIDEST_BLUR * (size // max(grid))),
        noise=_noise_values(noise * LOUDEST),
        law=the_law,
    )


def export(
    folder: str | Path,
    *,
    pairs: int = settings.Export.pairs,
    test: int = settings.Export.test,
    format: str = settings.Export.format,
    pairing: str = Data.pairing,
    mi: float | None = Data.mi,
    epsilon: Mapping[str, float] | None = None,
    seed: int = 0,
    data_seed: int = Data.seed,
    command: str | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write CDP pairs to a new folder for any framework: both views, attributes, classes, and a card with the exact MI.

        mj.cdp.export("pairs", pairs=100_000, format="folder", mi=3.3, size=32)

    The pairs are those of no run of this package, so what is trained on them can be tested on a run's images.
    If it is stopped, it leaves no folder of that name; a kill that can't be caught leaves .FOLDER.PROCESS.partial.

    folder: the folder to make; it may exist if it is empty.
    pairs, test: number of pairs of the parts `train` and `test`. If test is 0, there is no test part.
    format: "npz", "folder" (of PNG files), "array_record" (a set of TFDS) or "parquet".
    pairing, mi, epsilon: the joint distribution of the views' attributes, as `config.data` has it.
    seed: of the pairs. data_seed: of the backgrounds and the glyphs' variants.
    command: how the card says that the set was made. None: as a call of this function.
    on_progress: called as on_progress(done, all, note) after each block of pairs.
    options: further arguments of `make`, such as size, law, colors.
    Returns the contents of card.json. `mi_bits` and `entropy_bits` are I(X;Y) and H(C), exact, in bits.
    Raises InputError as `make`, `pairing.parse` and `export.write` do.
    """
    images = make(seed=data_seed, **options)
    asked: dict[str, Any] = {"pairs": pairs, "test": test, "format": format, "pairing": pairing, "mi": mi}
    asked |= {"epsilon": epsilon and dict(epsilon), "seed": seed, "data_seed": data_seed, **options}
    texts = {name: "TABLE" if isinstance(value, np.ndarray) else repr(value) for name, value in asked.items()}
    said = command or f"mirigor_jax.cdp.export(FOLDER, {', '.join(f'{name}={text}' for name, text in texts.items())})"
    return exports.write(
        folder,
        images,
        parse(pairing, images.space, mi_bits=mi, epsilon=epsilon),
        seed=seed,
        pairs=pairs,
        test=test,
        format=format,
        made_by={"command": said, "settings": asked},
        on_progress=on_progress,
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


def _boxes(images: UInt8[np.ndarray, "n p"], shape: tuple[int, ...]) -> UInt8[np.ndarray, "n t l h w3"]:
    """A view of flat square images by the corner of a box, so that one indexing gathers, or scatters, all boxes."""
    height, width3 = shape
    size = math.isqrt(images.shape[1] // 3)
    corners = (len(images), size - height + 1, size - width3 // 3 + 1, height, width3)
    return as_strided(images, corners, (3 * size * size, 3 * size, 3, 3 * size, 1))


def _blend(
    boxes: UInt8[np.ndarray, "n t l h w3"],
    where: tuple[np.ndarray, np.ndarray, np.ndarray],
    coverage: Int16[np.ndarray, "k h w3"],
    inks: Int16[np.ndarray, "k 1 w3"],
) -> None:
    """Blend k shapes of these inks into boxes of different images, in place. where: the images, tops and lefts."""
    box = boxes[where]
    change = inks - box
    change *= coverage
    change += OPAQUE // 2  # rounds the division to nearest
    change //= OPAQUE
    change += box
    boxes[where] = change


def _pieces(coverage: Int16[np.ndarray, "d v h w3"], rng: np.random.Generator) -> Int16[np.ndarray, "p i j3"]:
    """Random pieces of the glyphs, half as tall and half as wide as their boxes."""
    digits, variants, height, width3 = coverage.shape
    rows, columns = height // 2, width3 // 6
    chosen = rng.integers((digits, variants, height - rows + 1, width3 // 3 - columns + 1), size=(PIECES, 4)).tolist()
    return np.array([coverage[d, v, i : i + rows, 3 * j : 3 * (j + columns)] for d, v, i, j in chosen])


def _blurs(size: int, widest: float) -> Float32[np.ndarray, "w s s"]:
    """Matrices that blur the columns of an image: Gaussian kernels of equally spaced widths, rounded to integers.

    widest: pixels. The largest standard deviation; 0 gives no matrices. Outside the image, its edge continues.
    """
    rows = np.arange(size)[:, None]
    blurs = []
    for width in widest * (np.arange(BLURS) + 0.5) / BLURS if widest else ():
        reach = int(4 * width) + 1
        taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
        weights = np.rint(KERNEL * taps / taps.sum())
        weights[reach] += KERNEL - weights.sum()
        matrix = np.zeros((size, size), np.float32)
        inside = np.clip(rows + np.arange(-reach, reach + 1)[None, :], 0, size - 1)
        np.add.at(matrix, (rows, inside), weights.astype(np.float32)[None, :])
        blurs.append(matrix)
    return np.array(blurs, np.float32).reshape(-1, size, size)


def _blurred(images: UInt8[np.ndarray, "n s s 3"], blurs: Float32[np.ndarray, "n s s"]) -> UInt8[np.ndarray, "n p"]:
    """Each image blurred by its own matrix. Sums are integers that float32 holds, so their order changes nothing."""
    matrices = blurs[:, None]  # one for the three channels
    down = np.rint(np.matmul(matrices, np.moveaxis(images, 3, 1).astype(np.float32)) / (KERNEL / 16))  # 16·255 at most
    across = np.rint(np.matmul(down, matrices.swapaxes(2, 3)) / (KERNEL * 16))
    return np.moveaxis(across.astype(np.uint8), 1, 3).reshape(len(images), -1)


def _noise_values(deviation: float) -> Int16[np.ndarray, " l"]:
    """256 equally likely values, with this standard deviation, at quantiles of a Gaussian; none if it is 0."""
    if not deviation:
        return np.empty(0, np.int16)
    quantiles = ndtri((np.arange(256) + 0.5) / 256)
    return np.rint(deviation * quantiles / quantiles.std()).astype(np.int16)


if __name__ == "__main__":
    sys.exit(exports.main(export))
