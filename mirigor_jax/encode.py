"""The frozen encoder f_e over a split's images → features on disk: the seam to everything that estimates."""

import contextlib
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, UInt8
from ml_collections import ConfigDict

from mirigor_jax import parallel
from mirigor_jax.data.augment import Augmentation
from mirigor_jax.data.pipeline import batches
from mirigor_jax.data.preprocess import image_keys, views
from mirigor_jax.errors import InputError
from mirigor_jax.files import AnyPath, read_arrays, remove_tree, replace_arrays
from mirigor_jax.models import pretrained
from mirigor_jax.models.dtypes import compute_dtype
from mirigor_jax.models.frozen import OURS, FrozenEncoder
from mirigor_jax.models.resnet import ResNet
from mirigor_jax.progress import Progress
from mirigor_jax.train import frozen_variables, init_state, make_encoder
from mirigor_jax.watch import UNWATCHED_STAGE, Stage

SHARD_BATCHES = 16  # batches a shard: what a kill can cost
IMAGES = {"image": "h", "x": "h_x", "y": "h_y"}


def freeze(config: ConfigDict, folder: AnyPath, mesh: Mesh, num_classes: int | None) -> FrozenEncoder:
    """The encoder of the checkpoint that the config names, else the one that was trained in `folder`.

    num_classes: that the training knew of. Raises InputError as `pretrained.load` does, and where nothing was trained.
    """
    if config.encoder.path:
        return _load(config)
    which = config.features.checkpoint
    variables = frozen_variables(config, folder, mesh, which=which, num_classes=num_classes)
    return FrozenEncoder(make_encoder(config), variables, stage=config.encoder.stage)


def _load(config: ConfigDict) -> FrozenEncoder:
    """The encoder of the checkpoint that the config names."""
    found = pretrained.load(Path(config.encoder.path).expanduser(), layout=config.encoder.layout)
    if found.size != config.data.size and not isinstance(found.encoder, ResNet):
        raise InputError(
            f"'{config.encoder.path}' takes images of {found.size} pixels, not {config.data.size}; give that size"
        )
    encoder = found.encoder.clone(dtype=compute_dtype(config.encoder.dtype))
    return replace(found, encoder=encoder, stage=config.encoder.stage)


def check(config: ConfigDict) -> None:
    """Raises InputError where there is no such encoder, stage, or checkpoint, or it can't take the images."""
    images, stage = jax.ShapeDtypeStruct((1, config.data.size, config.data.size, 3), jnp.float32), config.encoder.stage
    encoder = _load(config).encoder if config.encoder.path else make_encoder(config)
    if isinstance(encoder, ResNet) and not stage:
        return  # which takes images of any size
    stages: Any = jax.eval_shape(
        lambda x: encoder.init_with_output(jax.random.key(0), x, train=False, stages=True)[0], images
    )
    if stage and stage not in stages:
        raise InputError(f"encoder.stage='{stage}' is unknown; choose one of {', '.join(stages)}")


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


def make_step(
    config: ConfigDict, mesh: Mesh, frozen: FrozenEncoder | None = None, augmentation: Augmentation | None = None
) -> tuple[Callable[..., Any], tuple[Any, Any, Any]]:
    """The mapped encode step, and the abstract (frozen tree, images, keys) it takes.

    frozen: None for the encoder that the config trains.
    """
    if frozen is None:
        state = jax.eval_shape(partial(init_state, config), jax.random.key(0))
        tree = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
        frozen = FrozenEncoder(make_encoder(config), tree)
    step = partial(encode_step, **frozen.options, augmentation=augmentation)
    specs = (parallel.REPLICATED, parallel.SHARDED, parallel.SHARDED)
    mapped = parallel.map_step(step, mesh, specs, parallel.SHARDED)
    size = config.data.size
    n = config.features.batch_size
    images = jax.ShapeDtypeStruct((n, size, size, 3), jnp.uint8)
    keys = None if augmentation is None else jax.eval_shape(partial(image_keys, n=n), jax.random.key(0), 0)
    batch = parallel.abstract((images, keys), mesh, parallel.SHARDED)
    return mapped, (parallel.abstract(frozen.variables, mesh), *batch)


def encode_split(
    encode: Callable[[UInt8[np.ndarray, "n s s 3"], str, int], Float[np.ndarray, "n d"]],
    read: Callable[[int, int], dict[str, np.ndarray]],
    path: AnyPath,
    *,
    num_examples: int,
    batch_size: int,
    threads: int,
    workers: int,
) -> None:
    """Write `path` (.npz): what `read` gives for rows 0…num_examples, its images replaced by their representations.

    encode: (this process's images of a full batch, their name, the first one's row) → h. Images `image` become `h`;
    `x`, `y` become `h_x`, `h_y`; the rest is kept.
    Shards beside the file survive a kill, and the next call goes on behind the last.
    """
    if parallel.from_main(path.exists):
        return
    shards = path.with_suffix(".shards")
    per_shard = SHARD_BATCHES * batch_size
    processes, process = jax.process_count(), jax.process_index()
    progress = Progress(f"encode {path.stem}", num_examples, "rows")
    files = {first: shards / f"{first:012d}.npz" for first in range(0, num_examples, per_shard)}
    if kept := parallel.from_main(lambda: [first for first, shard in files.items() if shard.exists()]):
        print(f"  encode {path.stem} continues: {len(kept)} of {len(files)} shards are there", flush=True)
    for first, shard in files.items():
        if first in kept:
            continue
        rows = min(per_shard, num_examples - first)
        parts: list[dict[str, np.ndarray]] = []
        offset = partial(lambda first, a, b: read(first + a, first + b), first)
        done = first
        for batch in batches(
            offset,
            batch_size=batch_size,
            num_examples=rows,
            process_index=process,
            process_count=processes,
            threads=threads,
            workers=workers,
        ):
            total = min(batch_size, first + rows - done)
            own = done + total * process // processes
            parts.append(
                {
                    IMAGES.get(name, name): parallel.gather_rows(
                        _encode(encode, name, x, own, batch_size // processes), total
                    )
                    for name, x in batch.items()
                }
            )
            done += total
            progress.update(done)
            if parallel.stop_asked():
                raise parallel.Stopped
        replace_arrays(shard, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    if parallel.is_main():
        loaded = [read_arrays(shard) for shard in files.values()]
        replace_arrays(path, {name: np.concatenate([part[name] for part in loaded]) for name in loaded[0].files})
        remove_tree(shards)


def _encode(encode, name: str, x: np.ndarray, row: int, batch_size: int) -> np.ndarray:
    if name not in IMAGES:
        return x
    padded = np.zeros((batch_size, *x.shape[1:]), x.dtype)  # one shape, so one compilation
    padded[: len(x)] = x
    return encode(padded, name, row)[: len(x)]


def encode(
    config: ConfigDict,
    frozen: FrozenEncoder | None,
    splits: dict[str, tuple[Callable[[int, int], dict[str, np.ndarray]], int]],
    folder: AnyPath,
    mesh: Mesh,
    augmentation: Augmentation | None = None,
    watch: Stage = UNWATCHED_STAGE,
) -> None:
    """Features of every split that `folder` lacks. splits: name → (read, number of rows).

    frozen: None where what is read are representations already.
    augmentation: of every image, drawn by the config's seed, the split, the view and the row.
    watch: of some steps.
    """
    mapped, variables = None, None
    if frozen is not None:
        mapped, _ = make_step(config, mesh, frozen, augmentation)
        variables = parallel.place(frozen.variables, mesh)
    draw_keys = jax.jit(partial(image_keys, n=config.features.batch_size // jax.process_count()))
    with watch.traced(mapped) if mapped else contextlib.nullcontext() as step:

        def to_host(split: str, images: np.ndarray, view: str, row: int) -> np.ndarray:
            if step is None:
                return images
            keys = None
            if augmentation is not None:
                key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(f"{split} {view}".encode()))
                keys = draw_keys(key, row)
            return parallel.local_rows(step(variables, *parallel.shard((images, keys), mesh)))

        for name, (read, rows) in splits.items():
            encode_split(
                partial(to_host, name),
                read,
                folder / f"{name}.npz",
                num_examples=rows,
                batch_size=config.features.batch_size,
                threads=config.data.threads,
                workers=config.data.workers,
            )


def load(folder: AnyPath) -> dict[str, dict[str, np.ndarray]]:
    """The three splits of a features folder: fit {h, labels}, validation and test {h_x, h_y, labels_x, labels_y}."""
    splits = ("fit", "validation", "test")
    return parallel.from_main(lambda: {split: dict(read_arrays(folder / f"{split}.npz")) for split in splits})
