"""SimCLR's random augmentations, batched and on the device: crop, flip, color jitter, gray, blur, in this order.

Each is torchvision's definition on images in [0, 1]; what is drawn for an image depends on its key alone.
Source: Chen et al. 2020, appendix A.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from mirigor_jax.data.augmentation import Augmentation

LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue, as torchvision weighs them
ASPECT = (3 / 4, 4 / 3)
TRIES = 10  # to find a crop that fits, before the whole image is taken
JITTERED = 0.8  # the share of images whose colors change at all
SIGMA = (0.1, 2.0)  # of the blur, in pixels


def augment(
    images: UInt8[Array, "n s s 3"], keys: Key[Array, " n"], augmentation: Augmentation
) -> Float[Array, "n s s 3"]:
    """Each image by its own key, in [0, 1]."""
    size, strengths = images.shape[1], augmentation
    draws = iter(
        jnp.split(jax.vmap(partial(jax.random.uniform, shape=(2 * TRIES + 15,)))(keys), 2 * TRIES + 15, axis=1)
    )

    def draw(count: int = 1) -> Float[Array, "n count"]:
        return jnp.concatenate([next(draws) for _ in range(count)], axis=1)

    def happens(probability: float) -> Bool[Array, "n 1 1 1"]:
        return (draw() < probability)[:, :, None, None]

    x = images.astype(jnp.float32) / 255
    if strengths.crop:
        x = resized_crop(x, *choose_crop(draw(2 * TRIES), draw(2), size, 1 - strengths.crop))
    if strengths.flip:
        x = jnp.where(happens(strengths.flip), x[:, :, ::-1], x)
    if strengths.jitter:
        span = strengths.jitter * jnp.array([0.8, 0.8, 0.8, 0.2])
        low = jnp.maximum(jnp.array([1.0, 1, 1, 0]) - span, jnp.array([0.0, 0, 0, -0.5]))
        factors = low[None, :] + draw(4) * (jnp.array([1.0, 1, 1, 0]) + span - low)[None, :]
        x = jnp.where(happens(JITTERED), jitter(x, factors, jnp.argsort(draw(4), axis=1)), x)
    if strengths.gray:
        x = jnp.where(happens(strengths.gray), _luma(x), x)
    if strengths.blur:
        sigma = SIGMA[0] + draw()[:, 0] * (SIGMA[1] - SIGMA[0])
        x = jnp.where(happens(strengths.blur), blur(x, sigma), x)
    return x


def choose_crop(
    tries: Float[Array, "n t"], place: Float[Array, "n 2"], size: int, least_area: float
) -> tuple[Int[Array, " n"], Int[Array, " n"], Int[Array, " n"], Int[Array, " n"]]:
    """(top, left, height, width) in pixels from numbers in [0, 1): the first of the tried shapes that fits.

    The area is uniform in [least_area, 1] of the image's, the aspect ratio's logarithm uniform; torchvision's
    RandomResizedCrop, where none fits: the whole image.
    """
    area_tries, aspect_tries = jnp.split(tries, 2, axis=1)
    area = size**2 * (least_area + area_tries * (1 - least_area))
    aspect = jnp.exp(np.log(ASPECT[0]) + aspect_tries * np.log(ASPECT[1] / ASPECT[0]))
    height, width = (jnp.round(jnp.sqrt(side)).astype(int) for side in (area / aspect, area * aspect))
    fits = (jnp.minimum(height, width) > 0) & (jnp.maximum(height, width) <= size)
    first = jnp.argmax(fits, axis=1, keepdims=True)

    def chosen(sides: Int[Array, "n t"]) -> Int[Array, " n"]:
        return jnp.where(fits.any(axis=1), jnp.take_along_axis(sides, first, axis=1)[:, 0], size)

    height, width = chosen(height), chosen(width)
    top, left = (jnp.floor(u * (size - side + 1)).astype(int) for u, side in zip(place.T, (height, width), strict=True))
    return top, left, height, width


def resized_crop(
    x: Float[Array, "n s s 3"],
    top: Int[Array, " n"],
    left: Int[Array, " n"],
    height: Int[Array, " n"],
    width: Int[Array, " n"],
) -> Float[Array, "n s s 3"]:
    """Each image's crop, stretched to the image's size bilinearly (pixel centers at half integers)."""
    return _along_both(x, _interpolation(top, height, x.shape[1]), _interpolation(left, width, x.shape[2]))


def jitter(
    x: Float[Array, "n s s 3"], factors: Float[Array, "n 4"], order: Int[Array, "n 4"]
) -> Float[Array, "n s s 3"]:
    """Brightness (0), contrast (1), saturation (2) and hue (3) changed by their factors, in each image's order.

    Factors of 1, 1, 1, 0 change nothing; torchvision's ColorJitter.
    """

    def blend(x, turn, before_hue):
        """One turn of the three that blend the image with black, its mean gray, or its gray."""
        which = order[:, turn]
        position_of_hue = jnp.argmax(order == 3, axis=1)
        acts = (which != 3) & ((turn < position_of_hue) == before_hue)
        factor = jnp.where(acts, jnp.take_along_axis(factors, which[:, None], axis=1)[:, 0], 1.0)[:, None, None, None]
        gray, which = _luma(x), which[:, None, None, None]
        target = jnp.where(which == 0, 0.0, jnp.where(which == 1, jnp.mean(gray, axis=(1, 2), keepdims=True), gray))
        return jnp.clip(factor * x + (1 - factor) * target, 0, 1)

    # Hue costs more than all else, so it is turned once, between the turns before it and those behind.
    for turn in range(3):
        x = blend(x, turn, before_hue=True)
    x = _turn_hue(x, factors[:, 3])
    for turn in range(1, 4):
        x = blend(x, turn, before_hue=False)
    return x


def blur(x: Float[Array, "n s s 3"], sigma: Float[Array, " n"]) -> Float[Array, "n s s 3"]:
    """Gaussian blur by each image's sigma in pixels, a tenth of the image wide, edges reflected."""
    size = x.shape[1]
    radius = max(1, size // 20)
    offsets = np.arange(-radius, radius + 1)
    weights = jax.nn.softmax(-0.5 * (offsets[None, :] / sigma[:, None]) ** 2, axis=1)
    at = np.abs(np.arange(size)[:, None] + offsets[None, :])
    at = np.where(at < size, at, 2 * (size - 1) - at)
    taps = (at[:, :, None] == np.arange(size)[None, None, :]).astype(np.float32)
    band = jnp.einsum("no,ipo->nip", weights, taps.transpose(0, 2, 1))
    return _along_both(x, band, band)


def _interpolation(start: Int[Array, " n"], length: Int[Array, " n"], size: int) -> Float[Array, "n s s"]:
    """Row i of an image's matrix weighs the pixels for output i, of `size` that cover [start, start + length)."""
    at = (jnp.arange(size)[None, :] + 0.5) * length[:, None] / size - 0.5
    at = jnp.clip(at, 0, length[:, None] - 1) + start[:, None]
    return jnp.maximum(0, 1 - jnp.abs(at[:, :, None] - jnp.arange(size)[None, None, :]))


def _along_both(x, rows, columns):
    """Matrix products, which accelerators do faster than they gather."""
    x = jnp.einsum("nip,npqc->niqc", rows, x)
    return jnp.einsum("njq,niqc->nijc", columns, x)


def _luma(x: Float[Array, "n s s 3"]) -> Float[Array, "n s s 1"]:
    return jnp.sum(x * jnp.array(LUMA)[None, None, None, :], axis=3, keepdims=True)


def _turn_hue(x: Float[Array, "n s s 3"], turn: Float[Array, " n"]) -> Float[Array, "n s s 3"]:
    """The hue of HSV turned by this share of the circle."""
    red, green, blue = jnp.moveaxis(x, 3, 0)
    value, chroma = jnp.max(x, axis=3), jnp.max(x, axis=3) - jnp.min(x, axis=3)
    by = jnp.where(chroma > 0, chroma, 1)
    hue = jnp.where(
        value == red,
        (green - blue) / by,
        jnp.where(value == green, 2 + (blue - red) / by, 4 + (red - green) / by),
    )
    hue = hue + 6 * turn[:, None, None]
    # How far each of red, green and blue stays below the value depends on its place on the circle from the hue.
    place = (hue[..., None] + jnp.array([5.0, 3, 1])[None, None, None, :]) % 6
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
