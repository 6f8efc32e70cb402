"""Encodes the images of each part with the frozen encoder, and stores the features that every estimate reads."""

import contextlib
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from mirigor_jax import parallel, stopping
from mirigor_jax.checkpoint import Checkpoints
from mirigor_jax.data.augmentation import Augmentation
from mirigor_jax.data.pipeline import batches
from mirigor_jax.data.population import Features, Read
from mirigor_jax.data.preprocess import image_keys
from mirigor_jax.encoding import check_features, padded
from mirigor_jax.errors import InputError
from mirigor_jax.files import remove_tree
from mirigor_jax.manifest import DamagedError
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.monitoring import NO_MONITORING, NO_STAGE_MONITOR, Monitoring, StageMonitor
from mirigor_jax.progress import Progress
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import PARTS, UNSEEN, Job
from mirigor_jax.runs.steps import make_encode_step, make_train_step
from mirigor_jax.settings import WHICH
from mirigor_jax.training import TrainState

SHARD_BATCHES = 16  # batches per shard; a kill loses at most one shard
IMAGES = {"image": "h", "x": "h_x", "y": "h_y"}


def encode_stage(
    job: Job,
    folder: RunFolder,
    features: RunFolder,
    timing_folder: RunFolder,
    *,
    augmentation: Augmentation | None,
    monitoring: Monitoring = NO_MONITORING,
    done: bool,
    unseen: bool = False,
) -> None:
    """Write the three parts of a features folder, unless they exist or are not needed any more.

    folder: the run's folder. features: the folder to write to.
    timing_folder: the folder whose stages.json counts the time.
    augmentation: the augmentation of every image; None: encode the images as they are.
    done: whether the stage that needs the features is finished.
    unseen: whether to write the images that training leaves out too, if there are any.
    """
    parts = parts_to_encode(job, unseen=unseen)
    mesh = parallel.make_mesh(job.config.features.batch_size)
    with timing_folder.stage("encode", done or all(features.exists(f"{part}.npz") for part in parts)) as work:
        if work:
            frozen = None if job.holds_features else freeze(job, folder, mesh)
            monitor = monitoring.of(folder.path, features.path)
            encode(job, frozen, parts, features, mesh, augmentation=augmentation, monitor=monitor)


def parts_to_encode(job: Job, *, unseen: bool) -> dict[str, tuple[Read, int]]:
    """For each part of a features folder, a reader of its examples with their labels, and their number.

    unseen: whether to include the images that training leaves out, if there are any.
    """
    images = job.images.parts(job.pairing)
    if unseen and (left_out := job.images.unseen()) is not None:
        images[UNSEEN] = left_out
    return {name: (_labeled(read), n) for name, (read, n) in images.items()}


def _labeled(read: Read) -> Read:
    """Rename a population's attributes to labels, as features folders call them."""
    return lambda start, stop: {k.replace("attributes", "labels"): v for k, v in read(start, stop).items()}


def freeze(job: Job, folder: RunFolder, mesh: Mesh) -> FrozenEncoder:
    """The encoder of the checkpoint that the config names, or else the one that the run in `folder` trained.

    Raises InputError as `pretrained.load` does, and if the training is not finished.
    """
    if job.config.encoder.path:
        return job.public_encoder()
    # The head is restored, too. Its width depends on the number of classes in training.
    summary = folder.read("train/summary.json")
    if summary is None:
        raise InputError(f"the training in '{folder}' is not finished; give the run's own command again")
    trained = replace(job, num_classes=summary["num_classes"])
    variables = frozen_variables(trained, folder / "train", mesh, which=job.config.features.checkpoint)
    return FrozenEncoder(job.encoder(), variables, stage=job.config.encoder.stage)


def frozen_variables(job: Job, folder: RunFolder, mesh: Mesh, *, which: str = "last") -> dict:
    """The trained encoder as a frozen tree {"params", "batch_stats"}. Arguments and errors: see `trained_state`."""
    return trained_state(job, folder, mesh, which=which).encoder_variables


def trained_state(job: Job, folder: RunFolder, mesh: Mesh, *, which: str = "last") -> TrainState:
    """The state of a training, encoder and head, from a checkpoint in `folder`.

    which: "last", "best", or a step whose checkpoint is kept.
    Raises InputError if there is no such checkpoint or the best one may be lost, DamagedError if the checkpoint is not
    as it was saved, and as `make_train_step` does.
    """
    _, (abstract_state, *_) = make_train_step(job, mesh)
    with Checkpoints(folder.path) as checkpoints:
        steps = checkpoints.steps
        if not steps:
            raise InputError(f"no checkpoint in '{folder}'; run the training to its end first")
        step = {"last": checkpoints.last, "best": checkpoints.best}[which] if which in WHICH else int(which)
        if step not in steps:
            kept = ", ".join(map(str, steps))
            raise InputError(f"checkpoint='{which}': the training in '{folder}' kept {kept}; give one of these steps")
        path = folder.path / str(step)
        if (file := parallel.from_main(folder.manifest.damaged_in, path)) is not None:
            raise DamagedError(str(path), file)
        if which == "best" and parallel.from_main(_has_lost_one, folder):
            raise InputError(
                f"a checkpoint in '{folder}' was damaged, and may have been the best; remove the folder to train again"
            )
        return checkpoints.restore(step, abstract_state)


def _has_lost_one(folder: RunFolder) -> bool:
    """Whether a damaged checkpoint was set aside and not made again: one of an earlier step than the last."""
    return any(folder.path.glob(".damaged-[0-9]*"))


def encode_split(
    encode: Callable[[UInt8[np.ndarray, "n s s 3"], str, int], Float[np.ndarray, "n d"]],
    read: Callable[[int, int], dict[str, np.ndarray]],
    folder: RunFolder,
    name: str,
    *,
    num_examples: int,
    batch_size: int,
    threads: int,
    workers: int,
) -> None:
    """Write `name`.npz in the folder: the arrays of `read`, with representations in place of images.

    encode: (this process's images of a full batch, the images' name, the row of the first) → h.
    read: (start, stop) → arrays of these rows by name. Images `image` become `h`; `x`, `y` become `h_x`, `h_y`; other
        arrays are kept.
    num_examples: number of rows. batch_size: rows encoded at once by all processes.
    threads, workers: threads and processes that read ahead.
    After a kill, the next call continues after the last finished shard.
    Raises InputError if representations are not finite.
    """
    if folder.exists(f"{name}.npz"):
        return
    shards = folder / f"{name}.shards"
    per_shard = SHARD_BATCHES * batch_size
    processes, process = jax.process_count(), jax.process_index()
    files = {first: f"{first:012d}.npz" for first in range(0, num_examples, per_shard)}
    if done_shards := parallel.from_main(_present, shards, files):
        print(f"  encode {name} continues: {len(done_shards)} of {len(files)} shards are there", flush=True)
    with Progress(f"encode {name}", num_examples, "rows") as progress:
        for first, shard in files.items():
            if first in done_shards:
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
                own_first = done + total * process // processes
                parts.append(
                    {
                        IMAGES.get(key, key): parallel.gather_rows(
                            _encode(encode, key, x, own_first, batch_size // processes), total
                        )
                        for key, x in batch.items()
                    }
                )
                for key in IMAGES.values():
                    if key in parts[-1]:  # every process has all rows now, so all of them raise together
                        check_features(parts[-1][key], done, name)
                done += total
                progress.update(done)
                if parallel.stop_asked():
                    stopping.stop()
            shards.write_arrays(shard, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
        parallel.from_main(_merge, folder, name, shards, list(files.values()))


def _merge(folder: RunFolder, name: str, shards: RunFolder, files: list[str]) -> None:
    loaded = [shards.arrays(shard) for shard in files]
    folder.write_arrays(f"{name}.npz", {key: np.concatenate([part[key] for part in loaded]) for key in loaded[0]})
    remove_tree(shards.path)
    shards.manifest.forget(shards.path)


def _present(shards: RunFolder, files: dict[int, str]) -> list[int]:
    return [first for first, shard in files.items() if (shards.path / shard).exists()]


def _encode(encode, name: str, x: np.ndarray, row: int, batch_size: int) -> np.ndarray:
    if name not in IMAGES:
        return x
    return encode(padded(x, batch_size), name, row)[: len(x)]


def encode(
    job: Job,
    frozen: FrozenEncoder | None,
    splits: dict[str, tuple[Callable[[int, int], dict[str, np.ndarray]], int]],
    folder: RunFolder,
    mesh: Mesh,
    *,
    augmentation: Augmentation | None = None,
    every_stage: bool = False,
    monitor: StageMonitor = NO_STAGE_MONITOR,
) -> None:
    """Write the features of every split that `folder` lacks.

    frozen: the encoder; None if the splits hold representations already.
    splits: name → (read, number of rows).
    augmentation: the augmentation of every image. Its draws depend on the config's seed, the split, the view and the
        row.
    every_stage: whether to write the features of all stages side by side; see `encoding.stage_columns`.
    monitor: traces a few steps.
    """
    config = job.config
    mapped, variables = None, None
    if frozen is not None:
        mapped, _ = make_encode_step(job, mesh, frozen, augmentation, every_stage=every_stage)
        variables = parallel.place(frozen.variables, mesh)
    draw_keys = jax.jit(partial(image_keys, n=config.features.batch_size // jax.process_count()))
    with monitor.traced(mapped) if mapped else contextlib.nullcontext() as step:

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
                folder,
                name,
                num_examples=rows,
                batch_size=config.features.batch_size,
                threads=config.data.threads,
                workers=config.data.workers,
            )


def load(folder: RunFolder) -> Features:
    """Load the three parts of a features folder.

    fit holds {h, labels}; validation and test hold pairs {h_x, h_y, labels_x, labels_y}, or single images like fit.
    """
    return {part: folder.arrays(f"{part}.npz") for part in PARTS}


def own_features(job: Job, folder: RunFolder) -> RunFolder:
    """The features folder of a run's own estimate.

    Features of augmented views have a folder of their own, as the evaluation cannot use them.
    """
    return folder / "features" if job.augmentation is None else folder / f"estimates/{job.name}/features"
