"""SimCLR's random augmentations, batched and on the device: crop, flip, color jitter, gray, blur, in this order.

Each augmentation follows torchvision's definition, on images in [0, 1]. An image's draws depend on its key only.
Source: Chen et al. 2020, appendix A.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from mirigor_jax.data.augmentation import Augmentation

LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue
ASPECT = (3 / 4, 4 / 3)  # range of a crop's aspect ratio
TRIES = 10  # shapes that are tried for a crop; if none fits, the crop is the whole image
JITTERED = 0.8  # probability that an image's colors are jittered
SIGMA = (0.1, 2.0)  # range of the blur's standard deviation, in pixels


def augment(
    images: UInt8[Array, "n s s 3"], keys: Key[Array, " n"], augmentation: Augmentation
) -> Float[Array, "n s s 3"]:
    """Augment each image by its own key. The result is in [0, 1]."""
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
    """Choose each image's crop, (top, left, height, width) in pixels, as torchvision's RandomResizedCrop does.

    The crop is the first of the tried shapes that fits, or the whole image if none does. A shape's area is uniform in
    [least_area, 1] of the image's area, and the logarithm of its aspect ratio is uniform.
    tries: random numbers in [0, 1): the areas of all shapes, then their aspect ratios.
    place: random numbers in [0, 1) for the place of the crop.
    size: pixels. The images' side.
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
    """Resize each image's crop to the image's size, bilinearly, with pixel centers at half integers."""
    return _along_both(x, _interpolation(top, height, x.shape[1]), _interpolation(left, width, x.shape[2]))


def jitter(
    x: Float[Array, "n s s 3"], factors: Float[Array, "n 4"], order: Int[Array, "n 4"]
) -> Float[Array, "n s s 3"]:
    """Change brightness (0), contrast (1), saturation (2) and hue (3) as torchvision's ColorJitter does.

    factors: of brightness, contrast, saturation and hue. 1, 1, 1, 0 change nothing.
    order: the order of the four changes, a permutation of 0 to 3 for each image.
    """

    def blend(x, turn, before_hue):
        """Make change number `turn` of each image's order, if it is before hue (`before_hue`), or else after hue.

        The change blends the image with black (brightness), its mean gray (contrast) or its gray image (saturation).
        """
        which = order[:, turn]
        position_of_hue = jnp.argmax(order == 3, axis=1)
        acts = (which != 3) & ((turn < position_of_hue) == before_hue)
        factor = jnp.where(acts, jnp.take_along_axis(factors, which[:, None], axis=1)[:, 0], 1.0)[:, None, None, None]
        gray, which = _luma(x), which[:, None, None, None]
        target = jnp.where(which == 0, 0.0, jnp.where(which == 1, jnp.mean(gray, axis=(1, 2), keepdims=True), gray))
        return jnp.clip(factor * x + (1 - factor) * target, 0, 1)

    # Hue costs the most, so it is changed once for all images: after the changes before it, and before the rest.
    for turn in range(3):
        x = blend(x, turn, before_hue=True)
    x = _turn_hue(x, factors[:, 3])
    for turn in range(1, 4):
        x = blend(x, turn, before_hue=False)
    return x


def blur(x: Float[Array, "n s s 3"], sigma: Float[Array, " n"]) -> Float[Array, "n s s 3"]:
    """Gaussian blur by each image's sigma, in pixels. The kernel is 1/10 of the image wide; edges are reflected."""
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
    """For each image, a matrix for bilinear resizing of [start, start + length): row i has output i's weights."""
    at = (jnp.arange(size)[None, :] + 0.5) * length[:, None] / size - 0.5
    at = jnp.clip(at, 0, length[:, None] - 1) + start[:, None]
    return jnp.maximum(0, 1 - jnp.abs(at[:, :, None] - jnp.arange(size)[None, None, :]))


def _along_both(x, rows, columns):
    """Apply the matrices along both axes; on accelerators, matrix products are faster than gathers."""
    x = jnp.einsum("nip,npqc->niqc", rows, x)
    return jnp.einsum("njq,niqc->nijc", columns, x)


def _luma(x: Float[Array, "n s s 3"]) -> Float[Array, "n s s 1"]:
    return jnp.sum(x * jnp.array(LUMA)[None, None, None, :], axis=3, keepdims=True)


def _turn_hue(x: Float[Array, "n s s 3"], turn: Float[Array, " n"]) -> Float[Array, "n s s 3"]:
    """Shift the hue (of HSV) by this part of the color circle."""
    red, green, blue = jnp.moveaxis(x, 3, 0)
    value, chroma = jnp.max(x, axis=3), jnp.max(x, axis=3) - jnp.min(x, axis=3)
    by = jnp.where(chroma > 0, chroma, 1)
    # `value == red` would not do: a compiler may compute red twice, with different roundings. With >=, these can only
    # exchange two channels that are almost equal, where both formulas give almost the same hue.
    hue = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / by,
        jnp.where(green >= blue, 2 + (blue - red) / by, 4 + (red - green) / by),
    )
    hue = hue + 6 * turn[:, None, None]
    # Each channel is below the value by an amount that depends on its distance from the hue on the color circle.
    place = (hue[..., None] + jnp.array([5.0, 3, 1])[None, None, None, :]) % 6
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
