"""A job's mapped steps, each with the abstract arguments that it is compiled for. Runs, the plan and tests use them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Key

from mirigor_jax import encoding, fitting, parallel, training
from mirigor_jax.data.augmentation import Augmentation
from mirigor_jax.mi import fit, read
from mirigor_jax.mi.critics import CosineCritic
from mirigor_jax.mi.estimators import MAIN, Estimator
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.models.heads import MLP
from mirigor_jax.objectives import Objective
from mirigor_jax.runs.job import Job, make_objective, optimizer_of, validation_k
from mirigor_jax.training import TrainState

WITHIN_BATCH = P(None, parallel.AXIS)  # (batches, pairs, …), with the pairs of every batch spread over the devices


Modules = tuple[nn.Module, nn.Module, optax.GradientTransformation]  # encoder, head and optimizer


def _modules(job: Job, objective: Objective) -> Modules:
    config, encoder = job.config, job.encoder()
    head = training.default_head(encoder, objective, tuple(config.head.hidden), config.head.features)
    return encoder, head, optimizer_of(config)


def decoder_of(job: Job, objective: Objective) -> MLP | None:
    """The decoder that the job trains for this objective; None if it needs none."""
    t = job.config.train
    options: Any = {"name": t.decoder, "width": t.decoder_width}
    return training.make_decoder(job.encoder(), objective, job.config.data.size, **options)


def init_state(job: Job, key: Key[Array, ""]) -> TrainState:
    """The state before the first step. Its encoder is the untrained encoder, whatever the number of classes is."""
    objective = make_objective(job.config, job.num_classes or 2)
    modules, decoder = _modules(job, objective), decoder_of(job, objective)
    return training.init_state(*modules, job.config.data.size, key, objective=objective, decoder=decoder)


def first_state(job: Job, like: Any) -> TrainState:
    """The state that a training begins with, on the devices. like: its abstract arrays, from `make_train_step`."""
    modules, decoder = _modules(job, job.objective), decoder_of(job, job.objective)
    more: Any = {"seed": job.config.seed, "like": like, "objective": job.objective}
    return training.first_state(*modules, job.config.data.size, decoder=decoder, **more)


def make_train_step(job: Job, mesh: Mesh, resident_images: int = 0) -> tuple[Any, training.Abstract]:
    """The job's train step and its abstract arguments; see `training.make_step`.

    resident_images: number of images that the devices hold; batches are then row numbers. 0: batches hold images.
    Raises InputError if there is no such objective, or if it needs labels and there are none.
    """
    config, objective = job.config, job.objective
    return training.make_step(
        *_modules(job, objective),
        objective,
        mesh=mesh,
        k=config.train.k,
        size=config.data.size,
        decoder=decoder_of(job, objective),
        accumulate=config.train.accumulate,
        augmentation=job.augmentation,
        seed=config.seed,
        resident_images=resident_images,
        global_batch_norm=config.train.global_batch_norm,
    )


def make_encode_step(
    job: Job,
    mesh: Mesh,
    frozen: FrozenEncoder | None = None,
    augmentation: Augmentation | None = None,
    *,
    every_stage: bool = False,
) -> tuple[Callable[..., Any], tuple[Any, Any, Any]]:
    """The mapped encode step, and its abstract arguments (frozen tree, images, keys).

    frozen: the encoder; None: the one that the job trains.
    every_stage: see `encoding.encode_step`.
    """
    config = job.config
    if frozen is None:
        state = jax.eval_shape(partial(init_state, job), jax.random.key(0))
        frozen = FrozenEncoder(job.encoder(), state.encoder_variables, stage=config.encoder.stage)
    options: Any = {"augmentation": augmentation, "every_stage": every_stage}
    return encoding.make_step(frozen, mesh, batch_size=config.features.batch_size, size=config.data.size, **options)


def starts_from_posterior(job: Job) -> bool:
    """Whether InfoNCE reads a critic that starts from a class posterior. That takes pairs by class, not streamed."""
    return job.pairing.by_class is not None and bool(job.pairing.certificates) and not job.streams


def read_off_head(job: Job) -> dict[str, Estimator]:
    """The estimators that read the critic with the head's architecture, by name."""
    others = {name: estimator for name, estimator in job.estimators.items() if name != MAIN}
    return others if starts_from_posterior(job) else job.estimators


def critic_of(job: Job) -> tuple[CosineCritic, optax.GradientTransformation]:
    """The critic with the projection head's architecture, and its optimizer: Lee et al. 2023, §III-C."""
    config = job.config
    critic = CosineCritic(tuple(config.head.hidden), config.head.features)
    return critic, optax.adam(optax.cosine_decay_schedule(config.estimate.learning_rate, config.estimate.steps))


def init_critic(job: Job, h: Any, key: Key[Array, ""]) -> fitting.CriticState:
    """The critic before its first step, for representations like h (k, d)."""
    return fit.init_critic(*critic_of(job), h, key)


def critic_key(job: Job) -> Key[Array, ""]:
    """The root key of the critic's fit."""
    return jax.random.fold_in(jax.random.key(job.config.seed), 1)


def critic_keys(job: Job, steps: Array) -> Key[Array, " n"]:
    """A key for each of these steps of the critic's fit."""
    return jax.vmap(partial(jax.random.fold_in, critic_key(job)))(steps)


def make_critic_step(
    job: Job, mesh: Mesh, features: Any, frozen: FrozenEncoder | None = None
) -> tuple[Any, tuple[Any, Any, Any, Any, Any]]:
    """The mapped chunk of critic steps, and its abstract arguments (state, frozen tree, batch, validation, keys).

    The chunk donates the state and returns (state, metrics).
    features: the standardized parts, or their shapes.
    frozen: the encoder, if the batch holds streamed images {"x", "y"} for each step; None: the batch is a Bank of
        cached features.
    """
    config, (critic, optimizer) = job.config, critic_of(job)
    e, streamed = config.estimate, frozen is not None
    h, h_x = (
        jax.ShapeDtypeStruct(features[part][name].shape, jax.dtypes.canonicalize_dtype(features[part][name].dtype))
        for part, name in (("fit", "h"), ("validation", "h_x"))
    )
    tree: Any = {}
    if frozen is not None:
        views: Any = partial(encoding.encode_pairs, **frozen.options, augmentation=job.augmentation)
        column = jax.ShapeDtypeStruct(h.shape[1:], h.dtype)
        tree = {"encoder": frozen.variables, "mean": column, "scale": column}
    else:
        views = partial(fit.draw_pairs, k=e.batch_size, axis_name=parallel.AXIS)
    step = partial(fit.estimate_step, views=views, critic=critic, optimizer=optimizer, axis_name=parallel.AXIS)
    chunk = partial(fitting.fit_chunk, step=step, validate=_reading(job, (job.estimators[MAIN],)), streamed=streamed)
    replicated, layout = parallel.REPLICATED, WITHIN_BATCH if streamed else parallel.REPLICATED
    specs = (replicated, replicated, layout, WITHIN_BATCH, replicated)
    mapped = parallel.map_step(chunk, mesh, specs, (replicated, replicated), donate=(0,))

    steps, held_k = min(e.eval_every, e.steps), validation_k(config, h_x.shape[0], mesh.size)
    like = jax.ShapeDtypeStruct((2, h.shape[1]), h.dtype)
    state = jax.eval_shape(partial(init_critic, job), like, critic_key(job))
    batch = _abstract_bank(h, job.pairing.num_classes or 1)
    if streamed:
        images = jax.ShapeDtypeStruct((steps, e.batch_size, config.data.size, config.data.size, 3), jnp.uint8)
        batch = {"x": images, "y": images}
    held_out = jax.ShapeDtypeStruct((h_x.shape[0] // held_k, held_k, h_x.shape[1]), h_x.dtype)
    keys = jax.eval_shape(partial(critic_keys, job), jnp.arange(steps))
    validation = parallel.abstract((held_out, held_out), mesh, WITHIN_BATCH)
    state, tree, keys = parallel.abstract((state, tree, keys), mesh)
    return mapped, (state, tree, parallel.abstract(batch, mesh, layout), validation, keys)


def _abstract_bank(h: Any, classes: int) -> Any:
    def of(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    index = of((classes,), jnp.int32)
    return fit.Bank(h, of(h.shape[:1], jnp.int32), index, index, of((classes, classes), h.dtype))


def make_read_step(job: Job, mesh: Mesh) -> Any:
    """The mapped step (params, h_x, h_y) → for each estimator of the head's critic, its value of each batch in nats."""
    estimators, replicated = tuple(read_off_head(job).values()), parallel.REPLICATED
    specs = (replicated, WITHIN_BATCH, WITHIN_BATCH)
    return parallel.map_step(_reading(job, estimators), mesh, specs, (replicated,) * len(estimators))


def _reading(job: Job, estimators: tuple[Estimator, ...]) -> Any:
    critic, _ = critic_of(job)
    return partial(read.read_embeddings, critic=critic, estimators=estimators, axis_name=parallel.AXIS)
