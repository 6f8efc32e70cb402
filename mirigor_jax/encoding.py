"""The frozen encoder f_e over images: the step for one device, and that for streamed pairs."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key, UInt8

from mirigor_jax import parallel
from mirigor_jax.data.augment import Augmentation
from mirigor_jax.data.preprocess import image_keys, views
from mirigor_jax.models.frozen import OURS


def encode_step(
    frozen: Any,
    images: UInt8[Array, "n s s 3"],
    keys: Key[Array, " n"] | None = None,
    *,
    encoder: nn.Module,
    mean: tuple[float, ...] = OURS,
    std: tuple[float, ...] = OURS,
    stage: str = "",
    augmentation: Augmentation | None = None,
) -> Float[Array, "n d"]:
    """Representations of this device's images by the frozen tree {"params", "batch_stats"}, in at least float32.

    keys: of the images' augmentations; None where there are none. mean, std, stage: see `FrozenEncoder`.
    """
    if (mean, std) == (OURS, OURS):
        x = views(images, keys, encoder.dtype, augmentation)
    else:
        of_mean, of_std = (jnp.asarray(values)[None, None, None, :] for values in (mean, std))
        x = ((views(images, keys, "float32", augmentation) + 1) / 2 - of_mean) / of_std
    found: Any = encoder.apply(frozen, x, train=False, stages=bool(stage))
    h = found[stage] if stage else found
    return h.astype(jnp.promote_types(h.dtype, jnp.float32))


def encode_pairs(
    frozen: Any,
    batch: dict[str, UInt8[Array, "k s s 3"]],
    key: Key[Array, ""],
    *,
    encoder: nn.Module,
    mean: tuple[float, ...] = OURS,
    std: tuple[float, ...] = OURS,
    stage: str = "",
    augmentation: Augmentation | None = None,
) -> tuple[Float[Array, "k d"], Float[Array, "k d"]]:
    """Standardised representations of streamed pairs {"x", "y"}: what `estimate_step` sees where none are cached.

    frozen: {"encoder": the frozen tree, "mean" (d,), "scale" (d,)}. Both views are augmented, where they shall be.
    """
    keys = None
    if augmentation is not None:
        k = len(batch["x"])
        first = k * lax.axis_index(parallel.AXIS)
        keys = jnp.concatenate([image_keys(jax.random.fold_in(key, view), first, k) for view in (0, 1)])
    images = jnp.concatenate([batch["x"], batch["y"]])
    options: Any = {"encoder": encoder, "mean": mean, "std": std, "stage": stage, "augmentation": augmentation}
    h = encode_step(frozen["encoder"], images, keys, **options)
    h_x, h_y = jnp.split((h - frozen["mean"][None, :]) / frozen["scale"][None, :], 2)
    return h_x, h_y
