"""Preprocessing on the device: it normalizes, augments and rotates uint8 images before the encoder."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from mirigor_jax.data import augment
from mirigor_jax.data.augmentation import Augmentation


def normalize(images: UInt8[Array, "n s s 3"], dtype: str) -> Float[Array, "n s s 3"]:
    """Map uint8 to [-1, 1] on the device, and round to the dtype once, at the end."""
    return (images.astype(jnp.promote_types(dtype, jnp.float32)) / 127.5 - 1.0).astype(dtype)


def views(
    images: UInt8[Array, "n s s 3"], keys: Key[Array, " n"] | None, dtype: str, augmentation: Augmentation | None
) -> Float[Array, "n s s 3"]:
    """The encoder's inputs: images augmented by their keys, if `augmentation` and `keys` are given, and normalized."""
    if augmentation is None or keys is None:
        return normalize(images, dtype)
    return (2 * augment.augment(images, keys, augmentation) - 1).astype(dtype)


def image_keys(key: Key[Array, ""], first: Int[Array, ""] | int, n: int) -> Key[Array, " n"]:
    """Keys for the n images from number `first` on. A key depends on the image's number only, not on its device."""
    return jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(n))


def rotate(images: Float[Array, "n s s 3"], rotations: Int[Array, " n"]) -> Float[Array, "n s s 3"]:
    """Turn each image counterclockwise by its number of quarter turns, 0 to 3."""
    odd, half = ((rotations // quarters % 2 == 1)[:, None, None, None] for quarters in (1, 2))
    images = jnp.where(odd, jnp.rot90(images, 1, (1, 2)), images)
    return jnp.where(half, jnp.rot90(images, 2, (1, 2)), images)
