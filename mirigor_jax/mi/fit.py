"""Fitting critics. The device draws the pairs, one dispatch runs many steps, and the best critic on validation is kept.

`fit_by_class` draws pairs by class from frozen representations. `estimate_step` does so too, or takes streamed images;
devices share its batch. `fit_critics` takes paired arrays as they are, with each critic on one device. Steps are
written for one device, `fitting.fit_chunk` runs a chunk of them, and `fitting.run` runs chunk after chunk.
"""

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
from mirigor_jax.fitting import CriticState, Evaluation, OnProgress, fit_chunk, fresh, in_batches, run, update
from mirigor_jax.mi.contrastive import info_nce_from_embeddings
from mirigor_jax.mi.critics import Scorer
from mirigor_jax.mi.estimators import Estimator
from mirigor_jax.mi.values import anchored, derange, info_nce_symmetric, shuffle

Views = Callable[[Any, Any, Array], tuple[Array, Array]]
Negatives = Literal["in-batch", "derange", "shuffle"]


class Bank(NamedTuple):
    """Representations sorted by class, for drawing pairs by their classes.

    Class c has the `sizes[c]` rows from `starts[c]` on; `cumulative[c]` is the running sum of p(·|c).
    """

    h: Float[Array | np.ndarray, "n d"]
    labels: Int[Array | np.ndarray, " n"]
    starts: Int[Array | np.ndarray, " c"]
    sizes: Int[Array | np.ndarray, " c"]
    cumulative: Float[Array | np.ndarray, "c c"]


def make_bank(h: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], joint: Float[np.ndarray, "c c"]) -> Bank:
    """Sort rows by class for drawing pairs whose classes follow p(c'|c) = joint[c, c'] / Σ joint[c].

    Raises InputError if a class has no row.
    """
    index = class_index(labels, joint)
    starts, sizes = (part.astype(np.int32) for part in (index.starts, index.sizes))
    return Bank(h[index.order], labels[index.order].astype(np.int32), starts, sizes, index.cumulative)


def draw_pairs(frozen: Any, bank: Bank, key: Array, *, k: int, axis_name: str) -> tuple[Array, Array]:
    """Draw k pairs and return this device's share. x is any row; y is any row (perhaps x's) of a class from p(c'|c).

    The draw depends on the key alone, not on the number of devices that share it.
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
    """The state of a fresh critic for representations like h."""
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
    """Update the critic once on this device's pairs, to maximize InfoNCE with the encoder frozen.

    views: (frozen, batch, key) → (h_x, h_y).
    frozen, batch: for streamed images, the encoder's parameter tree and the images; for cached features, nothing and a
        Bank. No gradient reaches either.
    Returns the new state and the batch's bound in nats.
    Source: Lee et al. 2023, §III-C and Fig. 3 (bottom).
    """
    h_x, h_y = lax.stop_gradient(views(frozen, batch, key))

    def loss_fn(params):
        z_x, z_y, temperature = critic.apply({"params": params}, h_x, h_y)
        return -info_nce_from_embeddings(z_x / temperature, z_y, axis_name=axis_name)

    loss, gradients = lax.pmean(jax.value_and_grad(loss_fn)(state.params), axis_name)
    return update(state, optimizer, gradients), -loss


@dataclass(frozen=True)
class ClassFit:
    """How critics are fitted to pairs that are drawn by class: by Adam, with a rate that decays by a cosine.

    critic: a module with `scores`.
    batch_size: pairs a step.
    steps: largest number of steps; the rate decays to 0 over them.
    eval_every: steps from one evaluation on validation to the next.
    learning_rate: at the first step.
    patience: the fit ends after this many steps in which no critic has improved on validation.
    """

    critic: nn.Module
    batch_size: int
    steps: int
    eval_every: int
    learning_rate: float = 3e-3
    patience: int = 300

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(self.learning_rate, self.steps))

    def bound(self, params: Any, x: Float[Array, "k d"], y: Float[Array, "k d"]) -> Float[Array, ""]:
        """InfoNCE of a batch, both directions averaged, in nats."""
        return info_nce_symmetric(Scorer(self.critic).scores(params, x, y))


class Fitted(NamedTuple):
    """Critics at their best steps on validation.

    params: stacked over critics. best_step: the largest of their best steps. history: every evaluation.
    """

    params: Any
    best_step: int
    history: tuple[Evaluation, ...]


def fit_by_class(
    class_fit: ClassFit,
    bank: Bank,
    validation: tuple[Float[np.ndarray, "n d"], ...],
    *,
    seed: int,
    num_critics: int = 1,
    on_progress: OnProgress | None = None,
) -> Fitted:
    """Fit critics at once, each to its own pairs, which are redrawn from the bank at every step.

    Each critic is kept as it was at its best on validation, which may be its start.
    validation: (x, y), both views of fresh pairs.
    seed: seeds the critics and their pairs.
    """
    size = min(len(validation[0]), 2 * class_fit.batch_size)
    held_out = tuple(in_batches(view, size) for view in validation)
    roots = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(num_critics))
    start, chunk = _class_programs(class_fit)
    state, history = run(
        start(held_out, roots),
        lambda state, done: chunk(state, bank, held_out, roots),
        steps=class_fit.steps,
        stride=class_fit.eval_every,
        patience=class_fit.patience,
        learning_rate=class_fit.learning_rate,
        fitted=["the critic of the classes"] * num_critics,
        on_progress=on_progress,
    )
    return Fitted(jax.device_get(state.best_params), int(np.max(state.best_step)), history)


@lru_cache(maxsize=8)
def _class_programs(class_fit: ClassFit) -> tuple[Any, Any]:
    """(start, chunk) of all critics at once. They are cached, so a second call need not compile."""
    optimizer = class_fit.optimizer

    def step(state, frozen, bank, key):
        x, y = draw_pairs(frozen, bank, key, k=class_fit.batch_size, axis_name=parallel.AXIS)
        value, gradients = jax.value_and_grad(class_fit.bound)(state.params, x, y)
        return update(state, optimizer, jax.tree.map(jnp.negative, gradients)), value

    def validate(params, x, y):
        return (lax.map(lambda pair: class_fit.bound(params, *pair), (x, y)),)

    def start(validation, root):
        x, y = validation[0][0, :2], validation[1][0, :2]
        params = class_fit.critic.init(root, x, y, method="scores")["params"]
        best = jnp.mean(validate(params, *validation)[0])
        return fresh(params, optimizer, best.dtype)._replace(best_nats=best)

    def chunk(state, bank, validation, root):
        keys = jax.random.split(jax.random.fold_in(root, state.step + 1), class_fit.eval_every)
        return fit_chunk(state, {}, bank, validation, keys, step=step, validate=validate, streamed=False)

    # One device: a step is too small to share, and the draws are then the same on any machine.
    mesh, shared = parallel.make_mesh(1, jax.local_devices()[:1]), parallel.REPLICATED
    every_start, every_chunk = jax.vmap(start, in_axes=(None, 0)), jax.vmap(chunk, in_axes=(0, None, None, 0))
    return (
        parallel.map_step(every_start, mesh, (shared, shared), shared, compiler_options=parallel.quick_compilation()),
        parallel.map_step(every_chunk, mesh, (shared,) * 4, (shared, shared), donate=(0,)),
    )


class Pairs(NamedTuple):
    """n paired rows of each of s data sets, as critics read them."""

    x: Float[Array | np.ndarray, "s n p"]
    y: Float[Array | np.ndarray, "s n q"]


class CriticJob(NamedTuple):
    """One critic among many: the number of its data set, the number of its estimator in `FitConfig`, and its seed."""

    data: Int[Array | np.ndarray, "*m"]
    estimator: Int[Array | np.ndarray, "*m"]
    seed: Int[Array | np.ndarray, "*m"]


@dataclass(frozen=True)
class FitConfig:
    """How the critics of a group are fitted, each on its own.

    The estimators of a group read the same scores, so they have the same needs_u and within_views.
    The learning rate decays by a cosine over `steps`. Every `eval_every` steps the critic is evaluated on at most
    `eval_batches` validation batches of `eval_batch_size` pairs. The fits end once no critic has improved on validation
    in the last `patience` steps.
    trusts: where the `trust` of a ResidualCritic may start. The one that is best on validation is taken, because scores
        of a wrong density ratio are so large that estimators which take their exponential never recover from 1.
    """

    critic: nn.Module
    estimators: tuple[Estimator, ...]
    batch_size: int
    steps: int
    learning_rate: float
    weight_decay: float
    negatives: Negatives = "in-batch"
    eval_every: int = 100
    eval_batch_size: int = 128
    eval_batches: int = 32
    patience: int = 600
    trusts: tuple[float, ...] = ()

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
        """The critic's scores. dropout: the key of its dropout; None: no dropout."""
        rngs = {} if dropout is None else {"dropout": dropout}
        apply: Any = partial(self.critic.apply, rngs=rngs, method="scores")  # flax cannot type the result of a method
        return apply({"params": params}, x, y, partners, deterministic=dropout is None)


def draw_partners(negatives: Negatives, key: Array, n: int) -> Int[Array, "n 2"] | None:
    """For each x of a batch, the rows of the y to score it with: its own, then a negative. None: all of the batch."""
    if negatives == "in-batch":
        return None
    draw = {"derange": derange, "shuffle": shuffle}[negatives]
    return jnp.concatenate([jnp.arange(n)[:, None], draw(key, n)], axis=1)


def read_batch(
    scores: Float[Array, "k _"], partners: Int[Array, "k 2"] | None, estimator: Estimator
) -> tuple[Float[Array, " _"], Float[Array, "_ _"]]:
    """Positives and negatives of a batch's scores, as the estimator takes them. partners: of `draw_partners`."""
    return anchored(scores, estimator.anchors) if partners is None else (scores[:, 0], scores[:, 1:])


def critic_step(
    state: CriticState, frozen: tuple[Pairs, CriticJob], rows: Int[Array, " k"], key: Array, *, fit_config: FitConfig
) -> tuple[CriticState, Array]:
    """Update one critic once on the pairs of `rows`. Returns the state and its estimator's objective in nats."""
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
    """(loss in nats, every estimator's carry) of one critic on a batch; only its own estimator's carry changes."""
    shared = fit_config.estimators[0]
    x, y = shared.views(*pairs)
    partners = draw_partners(fit_config.negatives, partner_key, len(pairs[0]))
    scores = fit_config.scores(params["f"], x, y, partners, dropout)
    # The best u is -log dP/dQ, and a critic starts near log dP/dQ, so u is the negative of a critic's scores.
    own = jnp.arange(len(pairs[0]))[:, None]
    u = (-fit_config.scores(params["u"], x, y, own, dropout)[:, 0],) if shared.needs_u else ()

    def loss(at: int, carries: tuple[Any, ...]) -> tuple[Array, tuple[Any, ...]]:
        estimator = fit_config.estimators[at]
        value, after = estimator.loss(carries[at], *read_batch(scores, partners, estimator), *u)
        return value, (*carries[:at], after, *carries[at + 1 :])

    return lax.switch(critic_job.estimator, [partial(loss, at) for at in range(len(fit_config.estimators))], carries)


def _validate(params, data: Pairs, critic_job: CriticJob, *, fit_config: FitConfig) -> tuple[Array]:
    """The objective in nats on batches of the validation part, with the same negatives at every evaluation."""
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
    """Every estimator's carry before the first step."""
    return tuple(jax.tree.map(jnp.float32, estimator.carry) for estimator in fit_config.estimators)


def start_critic(critic_job: CriticJob, data: Pairs, validation: Pairs, *, fit_config: FitConfig) -> CriticState:
    """A fresh critic, evaluated on validation before any step."""
    names = ("f", "u") if fit_config.estimators[0].needs_u else ("f",)
    keys = jax.random.split(jax.random.key(critic_job.seed), len(names))
    x, y = data.x[0, :2], data.y[0, :2]
    params = {
        name: fit_config.critic.init(key, x, y, method="scores")["params"]
        for name, key in zip(names, keys, strict=True)
    }

    def started(changes: dict[str, Array]) -> tuple[Any, Array]:
        tried = {name: {**each, **changes} for name, each in params.items()}
        return tried, _validate(tried, validation, critic_job, fit_config=fit_config)[0]

    if fit_config.trusts:
        tried, values = lax.map(started, {"trust": jnp.asarray(fit_config.trusts)})
        at = jnp.argmax(jnp.where(jnp.isfinite(values), values, -jnp.inf))
        params, best = jax.tree.map(lambda leaf: leaf[at], (tried, values))
    else:
        params, best = started({})
    return fresh(params, fit_config.optimizer, best.dtype)._replace(best_nats=best, carry=_first_carries(fit_config))


def _epochs(n: int, seed: int, done: int, steps: int, size: int) -> Int[np.ndarray, "steps size"]:
    """Batches of rows by epochs. No row is twice in an epoch; rows that fill no batch are left out of it."""
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
    """Take one step of one critic for each batch of rows, then evaluate it. Do nothing once its patience is over."""

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
    """(start, chunk) of all critics at once, for the mesh. They are cached, so a second call need not compile."""
    shared, per_critic = parallel.REPLICATED, parallel.SHARDED

    def each(function: Callable[..., Any]) -> Callable[..., Any]:
        def members(*args: Any) -> Any:
            per_critic, everyones = args[:-2], args[-2:]

            def fit_one(critic_arguments):
                return function(*critic_arguments, *everyones, fit_config=fit_config)

            # On a CPU critics run one after another: one critic's step fits a core's cache, and critics that have
            # stopped cost nothing. On an accelerator they run side by side, because only many of them fill it.
            if mesh.devices.flat[0].platform == "cpu":
                return lax.map(fit_one, per_critic)
            return jax.vmap(fit_one)(per_critic)

        return members

    quick = parallel.quick_compilation()
    start = parallel.map_step(
        each(start_critic), mesh, (per_critic, shared, shared), per_critic, compiler_options=quick
    )
    chunk = parallel.map_step(
        each(_critic_chunk), mesh, (per_critic, per_critic, per_critic, shared, shared), per_critic, donate=(0,)
    )
    return start, chunk


def fit_critics(
    fit_config: FitConfig, data: Pairs, validation: Pairs, critic_jobs: CriticJob, on_progress: OnProgress | None = None
) -> tuple[Any, Int[np.ndarray, " m"]]:
    """Fit m critics at once, in one program that is split over the devices. Each keeps its best step on validation.

    Returns the critics' parameters, stacked, and their best steps (0: the start). A critic's results do not depend on
    the other critics.
    """
    m = len(critic_jobs.seed)
    devices = -(-m // -(-m // len(jax.devices())))  # the fewest devices that need no more turns than all devices would
    # Critics that are fitted twice fill up the last turn.
    critic_jobs = CriticJob(*(np.resize(column, -(-m // devices) * devices) for column in critic_jobs))
    mesh = parallel.make_mesh(len(critic_jobs.seed), jax.devices()[:devices])
    start, chunk = _programs(fit_config, mesh)
    n, seeds, estimators = data.x.shape[1], critic_jobs.seed, critic_jobs.estimator
    data, validation = parallel.place((data, validation), mesh)
    critic_jobs = parallel.shard(critic_jobs, mesh)

    def advance(state: CriticState, done: int) -> tuple[CriticState, dict[str, Array]]:
        rows = np.stack([_epochs(n, int(seed), done, fit_config.eval_every, fit_config.batch_size) for seed in seeds])
        return chunk(state, parallel.shard(rows, mesh), critic_jobs, data, validation)

    state, _ = run(
        start(critic_jobs, data, validation),
        advance,
        steps=fit_config.steps,
        stride=fit_config.eval_every,
        patience=fit_config.patience,
        learning_rate=fit_config.learning_rate,
        fitted=[f"the critic of {fit_config.estimators[at].name}" for at in estimators],
        on_progress=on_progress,
    )
    return jax.tree.map(lambda leaf: leaf[:m], jax.device_get(state.best_params)), np.asarray(state.best_step)[:m]
