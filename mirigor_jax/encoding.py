"""Features of images by a frozen encoder f_e: `encode`, its step for one device, and a step for streamed pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt8

from mirigor_jax import parallel, settings
from mirigor_jax.data.augmentation import Augmentation
from mirigor_jax.data.preprocess import image_keys, views
from mirigor_jax.errors import InputError
from mirigor_jax.models.frozen import OURS, FrozenEncoder
from mirigor_jax.training import TrainState

Progress = Callable[[int, int, str], None]  # (images encoded, number of images, note)
Devices = Sequence[jax.Device] | None
Features = Float[np.ndarray, "n d"]
Labels = Int[np.ndarray, " n"]


State = TrainState | FrozenEncoder | Mapping[str, Any]
Batch = Mapping[str, np.ndarray]


@overload
def encode(
    encoder: nn.Module, state: State, images: Batch, *, batch_size: int = ..., devices: Devices = ...,
    on_progress: Progress | None = ...,
) -> tuple[Features, Labels]: ...  # fmt: skip
@overload
def encode(
    encoder: nn.Module, state: State, images: UInt8[Any, "n s s 3"], *, batch_size: int = ..., devices: Devices = ...,
    on_progress: Progress | None = ...,
) -> Features: ...  # fmt: skip
def encode(
    encoder: nn.Module,
    state: State,
    images: Any,
    *,
    batch_size: int = settings.Features.batch_size,
    devices: Devices = None,
    on_progress: Progress | None = None,
) -> Any:
    """Compute representations h of images by a frozen encoder, in memory, on all available devices.

    encoder: a module from `models.build`, or the field `encoder` of a FrozenEncoder.
    state: the encoder's weights. The state that `train` returns; the FrozenEncoder that `load_encoder` returns, which
        also normalizes the images as its source did; or a dict {"params", "batch_stats"}.
    images: uint8 (n, s, s, 3), or a dict {"image", "attributes"} such as `cdp.images(...)` returns.
    batch_size: images in one step, on all devices together; a step has fewer if there are fewer images.
    devices: the devices to use. None: all of `jax.devices()`.
    on_progress: called as on_progress(images encoded, number of images, "") after every step.
    Returns h (n, d), at least float32. For a dict it returns (h, labels): labels (n,) number the combinations of
    attribute values that occur, in ascending order, from 0.
    Raises InputError for images of another type or shape, for a size that the encoder doesn't take, and if h is not
    finite.

        h, labels = mj.encode(encoder, state, cdp.images(0, 10_000))
    """
    pixels = images["image"] if isinstance(images, Mapping) else images
    if getattr(pixels, "dtype", None) != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or not len(pixels):
        result = f"{pixels.dtype} {pixels.shape}" if hasattr(pixels, "dtype") else type(pixels).__name__
        raise InputError(f"images are {result}; expected bytes, uint8 (n, s, s, 3), in an array or under 'image'")
    mesh = parallel.make_mesh(batch_size, devices)
    # A few large images must not cost as much as a whole batch of them.
    batch_size = min(batch_size, -(-len(pixels) // mesh.size) * mesh.size)
    h = _encoded(_frozen(encoder, state), np.asarray(pixels), batch_size, mesh, on_progress)
    if not isinstance(images, Mapping):
        return h
    return h, np.unique(images["attributes"], axis=0, return_inverse=True)[1].reshape(-1)


def _frozen(encoder: nn.Module, state: State) -> FrozenEncoder:
    if isinstance(state, FrozenEncoder):
        return replace(state, encoder=encoder)
    return FrozenEncoder(encoder, state.encoder_variables if isinstance(state, TrainState) else state)


def _encoded(
    frozen: FrozenEncoder, images: np.ndarray, batch_size: int, mesh: Mesh, on_progress: Progress | None
) -> Features:
    """h of all images; a batch's h is copied to the host while the next batch is computed."""
    step, _ = make_step(frozen, mesh, batch_size=batch_size, size=images.shape[1])
    variables = parallel.place(frozen.variables, mesh)
    n, parts, pending = len(images), [], None
    for first in range(0, n, batch_size):
        batch = padded(images[first : first + batch_size], batch_size)
        following = step(variables, parallel.shard(batch, mesh), None)
        if pending is not None:
            parts.append(np.asarray(pending))
            check_features(parts[-1], first - batch_size)
        pending = following
        if on_progress is not None:
            on_progress(min(first + batch_size, n), n, "")
    parts.append(np.asarray(pending)[: n - len(parts) * batch_size])
    check_features(parts[-1], n - len(parts[-1]))
    return np.concatenate(parts)


def check_features(h: Features, first: int, part: str = "") -> None:
    """Raises InputError if an encoder's features are not finite.

    h: (n, d). Features of consecutive images.
    first: the number of the first image.
    part: the part of the data that the images are from, for the message; "" leaves it out.
    """
    if np.isfinite(h).all():
        return
    row = first + int(np.argmin(np.isfinite(h).all(axis=1)))
    raise InputError(
        f"stage encode: the encoder's features are not finite, first those of {part and f'{part} '}image {row:,}: its "
        "weights have diverged, or overflow in its precision; train at a lower rate, or encode in float32"
    )


def padded(rows: np.ndarray, n: int) -> np.ndarray:
    """The rows, padded to n with zeros, so that every batch has one shape and the step is compiled once."""
    whole = np.zeros((n, *rows.shape[1:]), rows.dtype)
    whole[: len(rows)] = rows
    return whole


def make_step(
    frozen: FrozenEncoder,
    mesh: Mesh,
    *,
    batch_size: int,
    size: int,
    augmentation: Augmentation | None = None,
    every_stage: bool = False,
) -> tuple[Callable[..., Any], tuple[Any, Any, Any]]:
    """`encode_step` mapped over the mesh, and its abstract arguments (variables, images, keys).

    batch_size: images in the global batch.
    size: pixels. The images' side.
    augmentation: applied to every image. None: none; keys are then None too.
    every_stage: see `encode_step`.
    """
    step = partial(encode_step, **frozen.options, augmentation=augmentation, every_stage=every_stage)
    specs = (parallel.REPLICATED, parallel.SHARDED, parallel.SHARDED)
    mapped = parallel.map_step(step, mesh, specs, parallel.SHARDED)
    images = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)
    keys = None if augmentation is None else jax.eval_shape(partial(image_keys, n=batch_size), jax.random.key(0), 0)
    batch = parallel.abstract((images, keys), mesh, parallel.SHARDED)
    return mapped, (parallel.abstract(frozen.variables, mesh), *batch)


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
    every_stage: bool = False,
) -> Float[Array, "n d"]:
    """Representations of this device's images, at least float32.

    frozen: the encoder's variables {"params", "batch_stats"}.
    keys: a key for each image's augmentations. None: the images are not augmented.
    mean, std, stage: see `FrozenEncoder`.
    every_stage: whether to return the features of all stages side by side, in the columns of `stage_columns`.
    """
    if (mean, std) == (OURS, OURS):
        x = views(images, keys, encoder.dtype, augmentation)
    else:
        channel_mean, channel_std = (jnp.asarray(values)[None, None, None, :] for values in (mean, std))
        x = ((views(images, keys, "float32", augmentation) + 1) / 2 - channel_mean) / channel_std
    outputs: Any = encoder.apply(frozen, x, train=False, stages=every_stage or bool(stage))
    if every_stage:
        outputs = jnp.concatenate([*outputs.values()], axis=1)
    h = outputs[stage] if stage and not every_stage else outputs
    return h.astype(jnp.promote_types(h.dtype, jnp.float32))


def stage_columns(frozen: FrozenEncoder, size: int) -> dict[str, slice]:
    """The columns that each stage has in the result of `encode_step(..., every_stage=True)`, in the order of depth.

    size: pixels. The images' side.
    Returns an empty dict if the encoder has no stages.
    """
    widths: dict[str, int] = {}

    def record(variables: Any, images: Float[Array, "1 s s 3"]) -> None:
        outputs: Any = frozen.encoder.apply(variables, images, train=False, stages=True)
        # The dict is read here, because JAX sorts the keys of a dict that a traced function returns.
        if isinstance(outputs, Mapping):
            widths.update({stage: h.shape[1] for stage, h in outputs.items()})

    jax.eval_shape(record, frozen.variables, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    ends = np.cumsum([0, *widths.values()]).tolist()
    return {stage: slice(*ends[i : i + 2]) for i, stage in enumerate(widths)}


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
    """Standardized representations of streamed pairs {"x", "y"}, for a critic that is fitted without cached features.

    frozen: {"encoder": the encoder's variables, "mean" (d,), "scale" (d,)}.
    key: of the step's augmentations.
    mean, std, stage: see `FrozenEncoder`.
    augmentation: applied to both views. None: none.
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
