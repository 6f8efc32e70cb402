"""The steps of a run's stages with abstract arguments, to be compiled for devices that are not here."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mirigor_jax import parallel, training
from mirigor_jax.data.attributes import uniform
from mirigor_jax.data.augmentation import Augmentation
from mirigor_jax.data.pairing import Pairing, SameImage, sharing, split
from mirigor_jax.data.sources import table
from mirigor_jax.errors import InputError
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.runs.job import Job, batch_sizes, critic_mesh, parse, precision, under, without_images
from mirigor_jax.runs.steps import make_critic_step, make_encode_step, make_train_step


class Work(NamedTuple):
    """A stage's mapped step, its abstract arguments, and its batch in one call, on all chips together.

    batch: the setting of the batch, such as train.k=64.
    images: number of images that the encoder sees.
    pairs: number of pairs.
    """

    step: Any
    arguments: tuple[Any, ...]
    batch: str
    images: int
    pairs: int


def train_work(job: Job, devices: Sequence[Any]) -> Work:
    """The work of one training step."""
    config, k = job.config, job.config.train.k
    mesh = _all_of(parallel.make_mesh(k, devices), devices, f"train.k={k}")
    with under("train."):
        training.check_parts(k // mesh.size, config.train.accumulate)
    step, arguments = make_train_step(job, mesh)
    return Work(step, arguments, f"train.k={k}", len(job.objective.views) * k, k)


def encode_work(job: Job, devices: Sequence[Any]) -> Work:
    """The work of encoding one batch with the frozen encoder."""
    n = job.config.features.batch_size
    mesh = _all_of(parallel.make_mesh(n, devices), devices, f"features.batch_size={n}")
    step, arguments = make_encode_step(job, mesh, None, job.augmentation)
    return Work(step, arguments, f"features.batch_size={n}", n, 0)


def estimate_work(job: Job, devices: Sequence[Any]) -> Work:
    """The work of the critic's steps from one evaluation on validation to the next, with that evaluation."""
    config, e, f = job.config, job.config.estimate, job.config.features
    if None in (f.fit, f.validation):
        raise InputError("the plan reads no images; give --config.features.fit=N and --config.features.validation=N")
    encoder, (tree, *_) = make_encode_step(job, parallel.make_mesh(1, devices))
    images = jax.ShapeDtypeStruct((1, config.data.size, config.data.size, 3), jnp.uint8)
    (d,) = jax.eval_shape(encoder, tree, images, None).shape[1:]
    tested = f.test or max(e.k, e.nt_xent_k, *e.k_curve)
    rows = {("fit", "h"): f.fit, ("validation", "h_x"): f.validation, ("test", "h_x"): tested}
    features = {part: {name: jax.ShapeDtypeStruct((n, d), jnp.float32)} for (part, name), n in rows.items()}
    sizes = f"batches of {', '.join(map(str, sorted({*batch_sizes(config, tested), e.batch_size})))} pairs"
    mesh = _all_of(critic_mesh(config, tested, f.validation, devices), devices, sizes)
    frozen = FrozenEncoder(job.encoder(), tree) if job.streams else None
    step, arguments = make_critic_step(job, mesh, features, frozen)
    pairs = e.batch_size * min(e.eval_every, e.steps)
    return Work(step, arguments, f"estimate.batch_size={e.batch_size}", 2 * pairs if frozen else 0, pairs)


STAGES = {"train": train_work, "encode": encode_work, "estimate": estimate_work}


def _all_of(mesh: Mesh, devices: Sequence[Any], batch: str) -> Mesh:
    if mesh.size < len(devices):
        raise InputError(f"{batch} do not divide over {len(devices)} chips; use multiples of {len(devices)}")
    return mesh


def prepare(config: ConfigDict, classes: int | None) -> Job:
    """The job as it would run on a TPU. It reads no images unless their source renders them.

    classes: number of classes of the images.
    Raises InputError if the config is wrong, trains nothing, or needs a size or the number of classes.
    """
    if "train" not in config or config.encoder.path or table.holds_features(config.data.source):
        raise InputError("the plan is for runs that train an encoder of images, as configs/cdp.py does")
    if config.data.size is None:
        raise InputError("data.size=None takes the images' own, and the plan reads none; give --config.data.size=N")
    config = copy.deepcopy(config)
    if config.encoder.dtype == "auto":
        config.encoder.dtype = "bfloat16"
    if table.find(config.data.source).is_generated:
        with precision(config):
            pairing = parse(config).pairing
        return without_images(config, pairing, pairing.num_classes)
    return without_images(config, _pairing(config, classes), classes)


def _pairing(config: ConfigDict, classes: int | None) -> Pairing:
    """The pairing of images that are not read. It assumes that the classes are equally frequent."""
    shared, augmented = split(config.data.pairing)
    pairing: Pairing = SameImage()
    if shared and classes is None:
        raise InputError(f"data.pairing={config.data.pairing} is of classes: say how many there are by --classes=N")
    if shared and classes is not None:
        pairing = sharing(uniform(("class",), (classes,), is_generated=False), ("class",))
    with under("data.augment."):
        return pairing.augmented(Augmentation(**config.data.augment)) if augmented else pairing


def at_batch(job: Job, k: int) -> Job:
    """The job with k pairs a training batch."""
    config = copy.deepcopy(job.config)
    config.train.k = k
    return replace(job, config=config)
