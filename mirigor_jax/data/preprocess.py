"""This turns images of bytes into what an encoder is given, on the device: normalized, augmented, or turned."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from mirigor_jax.data import augment
from mirigor_jax.data.augmentation import Augmentation


def normalize(images: UInt8[Array, "n s s 3"], dtype: str) -> Float[Array, "n s s 3"]:
    """uint8 → [-1, 1], on the device; rounded to the dtype once, at the end."""
    return (images.astype(jnp.promote_types(dtype, jnp.float32)) / 127.5 - 1.0).astype(dtype)


def views(
    images: UInt8[Array, "n s s 3"], keys: Key[Array, " n"] | None, dtype: str, augmentation: Augmentation | None
) -> Float[Array, "n s s 3"]:
    """What the encoder is given of the images: normalized, and augmented before, each by its own key, where asked."""
    if augmentation is None or keys is None:
        return normalize(images, dtype)
    return (2 * augment.augment(images, keys, augmentation) - 1).astype(dtype)


def image_keys(key: Key[Array, ""], first: Int[Array, ""] | int, n: int) -> Key[Array, " n"]:
    """A key an image, of n that begin with number `first`: which device has an image changes nothing for it."""
    return jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(n))


def rotate(images: Float[Array, "n s s 3"], rotations: Int[Array, " n"]) -> Float[Array, "n s s 3"]:
    """Each image turned counterclockwise by its 0 to 3 times 90°."""
    odd, half = ((rotations // quarters % 2 == 1)[:, None, None, None] for quarters in (1, 2))
    images = jnp.where(odd, jnp.rot90(images, 1, (1, 2)), images)
    return jnp.where(half, jnp.rot90(images, 2, (1, 2)), images)
