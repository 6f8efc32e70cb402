"""Fitting critics: pairs drawn on the device, many steps a dispatch, the best of validation kept.

Two ways to use the devices: one critic whose batch they share (`estimate_step`, on frozen representations of classes),
and many critics that each fit on one (`fit_critics`, on paired arrays). Steps are written for one device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from mirigor_jax import parallel
from mirigor_jax.data.draws import class_index
from mirigor_jax.fitting import CriticState, OnProgress, fit_chunk, fresh, update
from mirigor_jax.mi.contrastive import info_nce_from_embeddings
from mirigor_jax.mi.estimators import Estimator
from mirigor_jax.mi.values import anchored, derange, shuffle

Views = Callable[[Any, Any, Array], tuple[Array, Array]]
Negatives = Literal["in-batch", "derange", "shuffle"]


class Bank(NamedTuple):
    """Representations sorted by class, from which same-class pairs are drawn.

    Class c has `sizes[c]` rows from `starts[c]` on; `cumulative[c]` is the running sum of p(·|c).
    """

    h: Float[Array | np.ndarray, "n d"]
    labels: Int[Array | np.ndarray, " n"]
    starts: Int[Array | np.ndarray, " c"]
    sizes: Int[Array | np.ndarray, " c"]
    cumulative: Float[Array | np.ndarray, "c c"]


def make_bank(h: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], joint: Float[np.ndarray, "c c"]) -> Bank:
    """Sort rows by class for drawing pairs whose classes follow p(c'|c) = joint[c, c'] / Σ joint[c].

    Raises InputError where a class has no row.
    """
    index = class_index(labels, joint)
    starts, sizes = (part.astype(np.int32) for part in (index.starts, index.sizes))
    return Bank(h[index.order], labels[index.order].astype(np.int32), starts, sizes, index.cumulative)


def draw_pairs(frozen: Any, bank: Bank, key: Array, *, k: int, axis_name: str) -> tuple[Array, Array]:
    """This device's share of k fresh draws: x any row, y any row of the class that p(c'|c) gives (or x's own).

    The draw depends on the key alone, not on how many devices share it.
    Source: same-class sampling, Lee et al. 2023, §III-A.
    """
    del frozen  # cached features need no encoder
    share = k // lax.axis_size(axis_name)
    mine = partial(lax.dynamic_slice_in_dim, start_index=lax.axis_index(axis_name) * share, slice_size=share)
    x_key, class_key, y_key = jax.random.split(key, 3)
    rows_x = mine(jax.random.randint(x_key, (k,), 0, bank.h.shape[0]))
    u = mine(jax.random.uniform(class_key, (k, 1), bank.cumulative.dtype))
    classes = jnp.sum(u >= bank.cumulative[bank.labels[rows_x]], axis=1)
    within = mine(jax.random.uniform(y_key, (k,), jnp.float32)) * bank.sizes[classes]
    rows_y = bank.starts[classes] + jnp.minimum(within.astype(jnp.int32), bank.sizes[classes] - 1)
    return bank.h[rows_x], bank.h[rows_y]


def init_critic(
    critic: nn.Module, optimizer: optax.GradientTransformation, h: Float[Array, "k d"], key: Array
) -> CriticState:
    """A fresh critic for representations like h."""
    return fresh(critic.init(key, h, h)["params"], optimizer, h.dtype)


def estimate_step(
    state: CriticState,
    frozen: Any,
    batch: Any,
    key: Array,
    *,
    views: Views,
    critic: nn.Module,
    optimizer: optax.GradientTransformation,
    axis_name: str,
) -> tuple[CriticState, Array]:
    """One update of the critic on this device's pairs: maximize InfoNCE with the encoder frozen.

    views: (frozen, batch, key) → (h_x, h_y). Streamed images: `batch` the images, `frozen` the encoder's parameter
    tree; cached features: `batch` a Bank, `frozen` empty. No gradient reaches either.
    Returns the new state and the batch's bound in nats.
    Source: Lee et al. 2023, §III-C and Fig. 3 (bottom).
    """
    h_x, h_y = lax.stop_gradient(views(frozen, batch, key))

    def loss_fn(params):
        z_x, z_y, temperature = critic.apply({"params": params}, h_x, h_y)
        return -info_nce_from_embeddings(z_x / temperature, z_y, axis_name=axis_name)

    loss, gradients = lax.pmean(jax.value_and_grad(loss_fn)(state.params), axis_name)
    return update(state, optimizer, gradients), -loss


class Pairs(NamedTuple):
    """n paired rows of each of several data sets, as critics read them."""

    x: Float[Array | np.ndarray, "s n p"]
    y: Float[Array | np.ndarray, "s n q"]


class CriticJob(NamedTuple):
    """One critic among many: which data set it fits, by which of the configured estimators, from which seed."""

    data: Int[Array | np.ndarray, "*m"]
    estimator: Int[Array | np.ndarray, "*m"]
    seed: Int[Array | np.ndarray, "*m"]


@dataclass(frozen=True)
class FitConfig:
    """How the critics of a group are fitted, each on its own.

    Estimators of a group read the same scores: they agree in needs_u and within_views.
    The rate falls by a cosine over `steps`. Every `eval_every` steps the critic is evaluated on validation,
    `eval_batches` of `eval_batch_size` pairs at most; the fits end when none of them has found its best in the last
    `patience` steps.
    """

    critic: nn.Module
    estimators: tuple[Estimator, ...]
    negatives: Negatives = "in-batch"
    batch_size: int = 64
    steps: int = 3000
    learning_rate: float = 6e-3
    weight_decay: float = 1e-2
    eval_every: int = 100
    eval_batch_size: int = 128
    eval_batches: int = 32
    patience: int = 600

    @property
    def optimizer(self) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(self.learning_rate, self.steps)
        return optax.adamw(schedule, weight_decay=self.weight_decay)

    def scores(
        self,
        params: Any,
        x: Float[Array, "k p"],
        y: Float[Array, "l q"],
        partners: Int[Array, "k m"] | None = None,
        dropout: Array | None = None,
    ) -> Float[Array, "k _"]:
        """The critic's scores; dropout: its key, None to leave it out."""
        rngs = {} if dropout is None else {"dropout": dropout}
        apply: Any = partial(self.critic.apply, rngs=rngs, method="scores")  # what a method returns, flax can't type
        return apply({"params": params}, x, y, partners, deterministic=dropout is None)


def critic_step(
    state: CriticState, frozen: tuple[Pairs, CriticJob], rows: Int[Array, " k"], key: Array, *, fit_config: FitConfig
) -> tuple[CriticState, Array]:
    """One update of one critic on the pairs of `rows`, by its estimator's objective; and the objective, in nats."""
    data, critic_job = frozen
    x, y = data.x[critic_job.data, rows], data.y[critic_job.data, rows]

    def loss_fn(params):
        partner_key, dropout = jax.random.split(key)
        return _objective(params, state.carry, critic_job, (x, y), partner_key, dropout=dropout, fit_config=fit_config)

    (loss, carry), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return update(state, fit_config.optimizer, gradients)._replace(carry=carry), -loss


def _objective(
    params: Any,
    carries: tuple[Any, ...],
    critic_job: CriticJob,
    pairs: tuple[Array, Array],
    partner_key: Array,
    *,
    dropout: Array | None,
    fit_config: FitConfig,
) -> tuple[Array, tuple[Any, ...]]:
    """(loss in nats, every estimator's next carry) by the member's estimator on a batch; the others' stay."""
    shared, positives = fit_config.estimators[0], jnp.arange(len(pairs[0]))[:, None]
    x, y = shared.views(*pairs)
    partners = None
    if fit_config.negatives != "in-batch":
        draw = {"derange": derange, "shuffle": shuffle}[fit_config.negatives]
        partners = jnp.concatenate([positives, draw(partner_key, len(positives))], axis=1)
    scores = fit_config.scores(params["f"], x, y, partners, dropout)
    # u is best at -log dP/dQ, so that of a critic that starts near log dP/dQ is its negative.
    u = (-fit_config.scores(params["u"], x, y, positives, dropout)[:, 0],) if shared.needs_u else ()

    def loss(at: int, carries: tuple[Any, ...]) -> tuple[Array, tuple[Any, ...]]:
        estimator = fit_config.estimators[at]
        read = anchored(scores, estimator.anchors) if partners is None else (scores[:, 0], scores[:, 1:])
        value, after = estimator.loss(carries[at], *read, *u)
        return value, (*carries[:at], after, *carries[at + 1 :])

    return lax.switch(critic_job.estimator, [partial(loss, at) for at in range(len(fit_config.estimators))], carries)


def _validate(params, data: Pairs, critic_job: CriticJob, *, fit_config: FitConfig) -> tuple[Array]:
    """The objective in nats over all batches of the validation part, with the same negatives at every evaluation."""
    x, y = data.x[critic_job.data], data.y[critic_job.data]
    size = min(fit_config.eval_batch_size, x.shape[0])
    batches = min(x.shape[0] // size, fit_config.eval_batches)
    x, y = (v[: batches * size].reshape(batches, size, v.shape[1]) for v in (x, y))
    keys = jax.random.split(jax.random.key(0), batches)
    carries = _first_carries(fit_config)
    losses, _ = lax.map(
        lambda b: _objective(params, carries, critic_job, b[:2], b[2], dropout=None, fit_config=fit_config),
        (x, y, keys),
    )
    return (-jnp.mean(losses),)


def _first_carries(fit_config: FitConfig) -> tuple[Any, ...]:
    """Each estimator's carry before the first step; a member's own is all that it changes."""
    return tuple(jax.tree.map(jnp.float32, estimator.carry) for estimator in fit_config.estimators)


def start_critic(critic_job: CriticJob, data: Pairs, validation: Pairs, *, fit_config: FitConfig) -> CriticState:
    """A fresh critic, its best of validation what it shows before any step."""
    names = ("f", "u") if fit_config.estimators[0].needs_u else ("f",)
    keys = jax.random.split(jax.random.key(critic_job.seed), len(names))
    x, y = data.x[0, :2], data.y[0, :2]
    params = {
        name: fit_config.critic.init(key, x, y, method="scores")["params"]
        for name, key in zip(names, keys, strict=True)
    }
    (best,) = _validate(params, validation, critic_job, fit_config=fit_config)
    return fresh(params, fit_config.optimizer, best.dtype)._replace(best_nats=best, carry=_first_carries(fit_config))


def _epochs(n: int, seed: int, done: int, steps: int, size: int) -> Int[np.ndarray, "steps size"]:
    """Batches of rows: no row twice in a batch, all once (but for a rest) before any comes again."""
    generator, each = np.random.default_rng((seed, done)), n // size
    epochs = [generator.permutation(n)[: each * size].reshape(each, size) for _ in range(-(-steps // each))]
    return np.concatenate(epochs)[:steps].astype(np.int32)


def _critic_chunk(
    state: CriticState,
    rows: Int[Array, "steps k"],
    critic_job: CriticJob,
    data: Pairs,
    validation: Pairs,
    *,
    fit_config: FitConfig,
) -> tuple[CriticState, dict[str, Array]]:
    """One step of one critic for each batch of rows, then an evaluation; nothing once it is out of patience."""

    def go_on(state: CriticState) -> tuple[CriticState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(critic_job.seed), state.step + 1)
        return fit_chunk(
            state,
            (data, critic_job),
            rows,
            (validation, critic_job),
            jax.random.split(key, len(rows)),
            step=partial(critic_step, fit_config=fit_config),
            validate=partial(_validate, fit_config=fit_config),
            streamed=True,
        )

    def stopped(state: CriticState) -> tuple[CriticState, dict[str, Array]]:
        return state, {"fit_nats": state.best_nats, "validation_nats": state.best_nats}

    return lax.cond(state.step - state.best_step < fit_config.patience, go_on, stopped, state)


@lru_cache(maxsize=32)
def _programs(fit_config: FitConfig, mesh: Mesh) -> tuple[Any, Any]:
    """(start, chunk) of all members at once, compiled for the mesh; kept, so that a second call need not compile."""
    shared, per_critic = parallel.REPLICATED, parallel.SHARDED

    def each(function: Callable[..., Any]) -> Callable[..., Any]:
        def members(*args: Any) -> Any:
            per_critic, everyones = args[:-2], args[-2:]

            def fit_one(critic_arguments):
                return function(*critic_arguments, *everyones, fit_config=fit_config)

            # One after another where a core's cache holds one critic's step and those that stopped cost nothing; side
            # by side where it takes many to fill the accelerator.
            if mesh.devices.flat[0].platform == "cpu":
                return lax.map(fit_one, per_critic)
            return jax.vmap(fit_one)(per_critic)

        return members

    start = parallel.map_step(each(start_critic), mesh, (per_critic, shared, shared), per_critic)
    chunk = parallel.map_step(
        each(_critic_chunk), mesh, (per_critic, per_critic, per_critic, shared, shared), per_critic, donate=(0,)
    )
    return start, chunk


def fit_critics(
    fit_config: FitConfig, data: Pairs, validation: Pairs, critic_jobs: CriticJob, on_progress: OnProgress | None = None
) -> tuple[Any, Int[np.ndarray, " m"]]:
    """Fit m critics at once, one program split over the devices; each keeps its best step of validation.

    Returns their parameters, stacked, and their best steps (0: the critic it started from). A member's are the same
    whatever stands beside it.
    """
    m = len(critic_jobs.seed)
    devices = -(-m // -(-m // len(jax.devices())))  # as few as take no more turns than all of them
    # The last turn is filled up with members that are fitted twice.
    critic_jobs = CriticJob(*(np.resize(column, -(-m // devices) * devices) for column in critic_jobs))
    mesh = parallel.make_mesh(len(critic_jobs.seed), jax.devices()[:devices])
    start, chunk = _programs(fit_config, mesh)
    n, seeds = data.x.shape[1], critic_jobs.seed
    data, validation = parallel.place((data, validation), mesh)
    critic_jobs = parallel.shard(critic_jobs, mesh)
    state, done, best_step = start(critic_jobs, data, validation), 0, np.zeros(len(seeds), np.int32)
    while done < fit_config.steps and done - best_step.max() < fit_config.patience:
        rows = np.stack([_epochs(n, int(seed), done, fit_config.eval_every, fit_config.batch_size) for seed in seeds])
        state, looked = chunk(state, parallel.shard(rows, mesh), critic_jobs, data, validation)
        done, best_step = done + fit_config.eval_every, np.asarray(state.best_step)
        if on_progress is not None:
            bits = float(jnp.mean(looked["validation_nats"])) / math.log(2)
            on_progress(min(done, fit_config.steps), fit_config.steps, f"{bits:z.3f} bits on validation")
    if on_progress is not None and done < fit_config.steps:
        on_progress(done, done, f"stopped: nothing gained in {fit_config.patience:,} steps")
    return jax.tree.map(lambda leaf: leaf[:m], jax.device_get(state.best_params)), best_step[:m]
