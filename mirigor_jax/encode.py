"""The frozen encoder f_e over a split's images → features on disk: the seam to everything that estimates."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from mirigor_jax import parallel
from mirigor_jax.data.pipeline import batches
from mirigor_jax.files import replace_arrays
from mirigor_jax.models.resnet import make_encoder
from mirigor_jax.progress import Progress
from mirigor_jax.train import init_state, normalize

SHARD_BATCHES = 16  # batches a shard: what a kill can cost
IMAGES = {"image": "h", "x": "h_x", "y": "h_y"}


def encode_step(frozen: Any, images: UInt8[Array, "n s s 3"], *, encoder: nn.Module) -> Float[Array, "n d"]:
    """Representations of this device's images by the frozen tree {"params", "batch_stats"}, in at least float32."""
    h: Any = encoder.apply(frozen, normalize(images, encoder.dtype), train=False)
    return h.astype(jnp.promote_types(h.dtype, jnp.float32))


def encode_pairs(
    frozen: Any, batch: dict[str, UInt8[Array, "k s s 3"]], key: Array, *, encoder: nn.Module
) -> tuple[Float[Array, "k d"], Float[Array, "k d"]]:
    """Standardised representations of streamed pairs {"x", "y"}: what `estimate_step` sees where none are cached.

    frozen: {"encoder": the frozen tree, "mean" (d,), "scale" (d,)}.
    """
    del key  # the pairs come drawn; an augmentation would use it
    h = encode_step(frozen["encoder"], jnp.concatenate([batch["x"], batch["y"]]), encoder=encoder)
    h_x, h_y = jnp.split((h - frozen["mean"][None, :]) / frozen["scale"][None, :], 2)
    return h_x, h_y


def make_step(config: ConfigDict, mesh: Mesh) -> tuple[Callable[..., Any], tuple[Any, Any]]:
    """The mapped encode step, and the abstract (frozen, images) it takes."""
    step = partial(encode_step, encoder=make_encoder(**config.encoder))
    mapped = parallel.map_step(step, mesh, (parallel.REPLICATED, parallel.SHARDED), parallel.SHARDED)
    state = jax.eval_shape(partial(init_state, config), jax.random.key(0))
    frozen = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    size = config.data.size
    images = jax.ShapeDtypeStruct((config.features.batch_size, size, size, 3), jnp.uint8)
    return mapped, (parallel.abstract(frozen, mesh), parallel.abstract(images, mesh, parallel.SHARDED))


def encode_split(
    encode: Callable[[UInt8[np.ndarray, "n s s 3"]], Float[np.ndarray, "n d"]],
    read: Callable[[int, int], dict[str, np.ndarray]],
    path: Path,
    *,
    num_examples: int,
    batch_size: int,
    threads: int,
    workers: int,
) -> None:
    """Write `path` (.npz): what `read` gives for rows 0…num_examples, its images replaced by their representations.

    encode: full batches of images → h. Images `image` become `h`; `x`, `y` become `h_x`, `h_y`; the rest is kept.
    Shards beside the file survive a kill, and the next call goes on behind the last.
    """
    if path.exists():
        return
    shards = path.with_suffix(".shards")
    per_shard = SHARD_BATCHES * batch_size
    progress = Progress(f"encode {path.stem}", num_examples, "rows")
    files = {first: shards / f"{first:012d}.npz" for first in range(0, num_examples, per_shard)}
    if kept := [first for first, shard in files.items() if shard.exists()]:
        print(f"  encode {path.stem} continues: {len(kept)} of {len(files)} shards are there", flush=True)
    for first, shard in files.items():
        if first in kept:
            continue
        rows = min(per_shard, num_examples - first)
        parts: list[dict[str, np.ndarray]] = []
        offset = partial(lambda first, a, b: read(first + a, first + b), first)
        for batch in batches(offset, batch_size=batch_size, num_examples=rows, threads=threads, workers=workers):
            parts.append({IMAGES.get(name, name): _encode(encode, name, x, batch_size) for name, x in batch.items()})
            progress.update(first + sum(len(next(iter(part.values()))) for part in parts))
        replace_arrays(shard, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    loaded = [np.load(shard) for shard in files.values()]
    replace_arrays(path, {name: np.concatenate([part[name] for part in loaded]) for name in loaded[0].files})
    shutil.rmtree(shards)


def _encode(encode, name: str, x: np.ndarray, batch_size: int) -> np.ndarray:
    if name not in IMAGES:
        return x
    padded = np.zeros((batch_size, *x.shape[1:]), x.dtype)  # one shape, so one compilation
    padded[: len(x)] = x
    return encode(padded)[: len(x)]


def encode(
    config: ConfigDict,
    frozen: Any,
    splits: dict[str, tuple[Callable[[int, int], dict[str, np.ndarray]], int]],
    folder: Path,
    mesh: Mesh,
) -> None:
    """Features of every split that `folder` lacks. splits: name → (read, number of rows)."""
    step, _ = make_step(config, mesh)

    def to_host(images: np.ndarray) -> np.ndarray:
        return np.asarray(step(frozen, parallel.shard(images, mesh)))

    for name, (read, rows) in splits.items():
        encode_split(
            to_host,
            read,
            folder / f"{name}.npz",
            num_examples=rows,
            batch_size=config.features.batch_size,
            threads=config.data.threads,
            workers=config.data.workers,
        )


def load(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The three splits of a features folder: fit {h, labels}, validation and test {h_x, h_y, labels_x, labels_y}."""
    return {split: dict(np.load(folder / f"{split}.npz")) for split in ("fit", "validation", "test")}
