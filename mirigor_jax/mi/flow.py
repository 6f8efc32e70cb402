"""`flow_matching`: I(X;Y) from a flow that carries p(x) p(y) to p(x,y). It needs no negatives, no K and no critic.

X moves from x_0 ~ p(x) on a straight line to x_1, the partner of y: x_t = (1−t) x_0 + t x_1. The mean velocity
v(x,t,y) = E[x_1 − x_0 | x_t = x, y] carries p(x) to p(x|y), and the entropy of X_t given Y grows at the rate E div v.
So I(X;Y) = h(X) − h(X|Y) = −E div v(x_t,t,y) over t uniform on [0, 1].
Here v is the velocity of a Gaussian copula, which is known in closed form, plus a network that learns the rest.

Source: Butakov et al. 2025 (arXiv:2511.08552), FMMI in its conditional form.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from mirigor_jax import checks, fitting
from mirigor_jax.errors import InputError
from mirigor_jax.fitting import OnProgress
from mirigor_jax.mi.api import Split, as_rows, split
from mirigor_jax.mi.gaussian import RANK, gaussian_copula
from mirigor_jax.mi.results import FlowEstimate
from mirigor_jax.mi.rows import Rows
from mirigor_jax.settings import Arrays

EVAL_EVERY = 100  # steps between evaluations on validation
LOOKS = 4  # times, and starts x_0, that each row of validation is evaluated at
DRAWS = 32  # times, starts x_0 and random directions that each test row's divergence is averaged over
DISTINCT = 0.5  # least share of different values in a column that counts as continuous
DEPENDENT = 1e-6  # columns depend linearly if their correlation matrix has an eigenvalue below this
NOTE = "its error can have either sign"


class Ends(NamedTuple):
    """Pairs.

    x: (n, d) x_1. b: (n, d) the canonical partners of its coordinates, 0 for those without. y: (n, q) all of y.
    """

    x: Any
    b: Any
    y: Any


class Rest(nn.Module):
    """What the velocity has beyond the Gaussian copula's: (x_t, t, y) → (n, d). At the start of the fit it is 0."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "n d"], t: Float[Array, "n 1"], y: Float[Array, "n q"]) -> Float[Array, "n d"]:
        h = jnp.concatenate([x, y, t, jnp.cos(jnp.pi * t), jnp.sin(jnp.pi * t)], axis=1)
        for _ in range(2):
            h = nn.gelu(nn.Dense(self.width)(h))
        return nn.Dense(x.shape[1], kernel_init=nn.initializers.zeros)(h)


def flow_matching(
    x: Any,
    y: Any,
    *,
    width: int = 128,
    batch_size: int = 256,
    steps: int = 3000,
    learning_rate: float = 3e-3,
    seed: int = Arrays.seed,
    rows: Rows = Arrays.rows,
    on_progress: OnProgress | None = None,
) -> FlowEstimate:
    """Estimate I(X;Y) of n independent pairs of rows by flow matching (FMMI). The value is not a bound of I.

    One view needs a density and at most 256 columns: the columns are continuous, and none is a function of the others.
    That view moves; if both can, the one with fewer columns does. The other view may be anything, for example labels.
    The pairs are split as in `estimate`: a network is fitted on the first part, the second (validation) chooses its
    step, and the third (test) is read once.

        print(mi.flow_matching(x, y))

    Args:
        x: (n, dx) or (n,) numbers, an array of any framework. n is 110 at least.
        y: (n, dy) or (n,) numbers. Row i is the partner of x's row i.
        width: units of each of the network's two hidden layers.
        batch_size: pairs a step of the fit.
        steps: largest number of steps of the fit.
        learning_rate: AdamW's rate at the first step, above 0. It decays by a cosine over `steps`.
        seed: seeds the network's parameters, the batches, the times and the starts.
        rows: "checked": if rows look dependent, the result says so; a few copies are left out. "independent": you state
            that rows are independent draws.
        on_progress: called as on_progress(step, steps, note) at every evaluation on validation.

    Returns:
        The `FlowEstimate`, in bits. It has no interval: most of its error is the fitted velocity's, which the test
        part does not show.

    Raises:
        InputError: no view has a density and at most 256 columns, the arrays do not allow an estimate, or an option is
            out of its limits.

    Source: Butakov et al. 2025 (arXiv:2511.08552).
    """
    for name, value in {"width": width, "batch_size": batch_size, "steps": steps}.items():
        checks.whole(name, value, 1)
    checks.above_zero("learning_rate", learning_rate)
    checks.seed(seed)
    whole = split([(x, y)], rows)[0]
    (fitted, validation, test), rho = _ends(whole, as_rows(x, "x").shape[1], as_rows(y, "y").shape[1])
    job = FlowFit(Rest(width), batch_size, steps, learning_rate)
    params = _fit(job, fitted, validation, rho, seed=seed, on_progress=on_progress)
    nats = np.asarray(_read(job, params, test, rho, jax.random.fold_in(jax.random.key(seed), 2)), np.float64)
    result = FlowEstimate(
        name="flow matching",
        value_bits=float(nats.mean()) / math.log(2),
        kind="not a bound",
        k=len(nats),
        ceiling_bits=math.inf,
        interval=None,
        lower_bits=None,
        upper_bits=None,
        confidence=Arrays.confidence,
        certificate=None,
        verdict="not-a-bound",
        pairs=len(nats),
        note=NOTE,
    )
    return whole.findings.applied_to(result)


@dataclass(frozen=True)
class FlowFit:
    """How a flow is fitted: by AdamW, with a rate that decays by a cosine over `steps`.

    rest: the network. batch_size: pairs a step. steps: number of steps. learning_rate: at the first step.
    """

    rest: Rest
    batch_size: int
    steps: int
    learning_rate: float

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.adamw(optax.cosine_decay_schedule(self.learning_rate, self.steps))


def _ends(whole: Split, columns_x: int, columns_y: int) -> tuple[list[Ends], Float[np.ndarray, " d"]]:
    """(fit, validation and test pairs, correlation of every coordinate of x with its partner). x is the moving view.

    columns_x, columns_y: number of columns of each view. Each view of `whole` starts with their normal scores.
    """
    scores_x = [part[:, :columns_x].astype(np.float64) for part in whole.x]
    scores_y = [part[:, :columns_y].astype(np.float64) for part in whole.y]
    moving = {"x": (scores_x, scores_y, whole.y), "y": (scores_y, scores_x, whole.x)}
    lacks = {name: _lacks_density(name, parts[0][0]) for name, parts in moving.items()}
    able = sorted((parts[0][0].shape[1], name) for name, parts in moving.items() if not lacks[name])
    if not able:
        needs = f"flow matching needs one view with a density and at most {RANK} columns; use mi.estimate"
        raise InputError(f"{lacks['x']}; {lacks['y']}: {needs}")
    moves, partners, read = moving[able[0][1]]
    varies = np.ptp(moves[0], axis=0) > 0
    copula = gaussian_copula([part[:, varies] for part in moves], partners)
    d, r = copula.a[0].shape[1], len(copula.rho)
    ends = [
        Ends(a.astype(np.float32), np.pad(b[:, :r], ((0, 0), (0, d - r))).astype(np.float32), y)
        for a, b, y in zip(copula.a, copula.b, read, strict=True)
    ]
    return ends, np.pad(copula.rho, (0, d - r)).astype(np.float32)


def _lacks_density(name: str, scores: Float[np.ndarray, "n d"]) -> str:
    """Why a view has no density, in words; empty if nothing shows that. Constant columns do not count."""
    varying = scores[:, np.ptp(scores, axis=0) > 0]
    if not varying.shape[1]:
        return f"all columns of {name} are constant"
    if varying.shape[1] > RANK:
        return f"{name} has {varying.shape[1]} columns, more than {RANK}"
    distinct = min(len(np.unique(column)) for column in varying.T)
    if distinct < DISTINCT * len(varying):
        return f"a column of {name} has only {distinct:,} different values in {len(varying):,} rows"
    if np.linalg.eigvalsh(np.atleast_2d(np.corrcoef(varying, rowvar=False)))[0] < DEPENDENT:
        return f"a column of {name} is a function of its other columns"
    return ""


def _fit(
    job: FlowFit,
    fitted: Ends,
    validation: Ends,
    rho: Float[np.ndarray, " d"],
    *,
    seed: int,
    on_progress: OnProgress | None,
) -> Any:
    """The network's parameters with the least error of the velocity on validation. The start counts too."""
    key = jax.random.key(seed)
    first = jax.tree.map(lambda rows: jnp.asarray(rows[:1]), fitted)
    params = job.rest.init(jax.random.fold_in(key, 0), first.x, first.x[:, :1], first.y)["params"]
    fitted, validation = jax.device_put((fitted, validation))
    state = fitting.fresh(params, job.optimizer, np.float32)
    state = state._replace(best_nats=-_error(job, params, validation, rho))
    while state.step < job.steps:
        state, looked = _chunk(job, state, fitted, validation, jax.random.fold_in(key, 1), rho=rho)
        fitting.check_finite(looked, ["the flow"], int(state.step), job.learning_rate, int(state.best_step))
        if on_progress is not None:
            error = -float(looked["validation_nats"])
            on_progress(min(int(state.step), job.steps), job.steps, f"squared error {error:.4g} on validation")
    return state.best_params


@partial(jax.jit, static_argnums=0)
def _chunk(
    job: FlowFit, state: fitting.CriticState, fitted: Ends, validation: Ends, key: Array, *, rho: Float[Array, " d"]
) -> tuple[fitting.CriticState, dict[str, Array]]:
    """Take EVAL_EVERY steps on batches of the fit part, each pair with another pair's x as its start, then evaluate."""

    def step(state, frozen, part, key):
        row_key, start_key, time_key = jax.random.split(key, 3)
        pick, start = (jax.random.randint(k, (job.batch_size,), 0, len(part.x)) for k in (row_key, start_key))
        t = jax.random.uniform(time_key, (job.batch_size, 1))
        ends = jax.tree.map(lambda rows: rows[pick], part)
        loss, gradients = jax.value_and_grad(_squared_error, argnums=1)(
            job, state.params, ends, part.x[start], t, rho=rho
        )
        return fitting.update(state, job.optimizer, gradients), -loss

    def validate(params, part, rho):
        return (-_error(job, params, part, rho),)

    keys = jax.random.split(jax.random.fold_in(key, state.step), EVAL_EVERY)
    return fitting.fit_chunk(state, {}, fitted, (validation, rho), keys, step=step, validate=validate, streamed=False)


def _squared_error(
    job: FlowFit,
    params: Any,
    ends: Ends,
    start: Float[Array, "n d"],
    t: Float[Array, "n 1"],
    *,
    rho: Float[Array | np.ndarray, " d"],
) -> Float[Array, ""]:
    """Mean squared distance of the velocity from x_1 − x_0. The mean velocity of the flow minimizes it."""
    x = (1 - t) * start + t * ends.x
    rest: Any = job.rest.apply({"params": params}, x, t, ends.y)
    missed = ends.x - start - _gaussian_velocity(x, t, ends.b, rho) - rest
    return jnp.mean(jnp.sum(missed**2, axis=1))


@partial(jax.jit, static_argnums=0)
def _error(job: FlowFit, params: Any, part: Ends, rho: Float[Array, " d"]) -> Float[Array, ""]:
    """`_squared_error` on validation, always at the same times and starts, so that steps compare."""

    def look(start, t):
        return _squared_error(job, params, part, start, t, rho=rho)

    return jnp.mean(jax.lax.map(lambda draw: look(*draw), _starts_and_times(part, jax.random.key(0), LOOKS)))


def _starts_and_times(part: Ends, key: Array, count: int) -> tuple[Float[Array, "c n d"], Float[Array, "c n 1"]]:
    """For every pair `count` starts (x of other pairs) and as many times, one in each of equal stretches of [0, 1]."""
    start_key, time_key = jax.random.split(key)
    n = len(part.x)
    starts = part.x[jax.vmap(lambda k: jax.random.permutation(k, n))(jax.random.split(start_key, count))]
    t = (jnp.arange(count)[:, None, None] + jax.random.uniform(time_key, (count, n, 1))) / count
    return starts, t


def _gaussian_velocity(
    x: Float[Array, "n d"], t: Float[Array, "n 1"], b: Float[Array, "n d"], rho: Any
) -> Float[Array, "n d"]:
    """The mean velocity if x_0 ~ N(0, 1) and x_1 | b ~ N(ρ b, 1 − ρ²), in each coordinate by itself; rho: (d,) ρ.

    x_t | b has mean t ρ b and variance (1−t)² + t² (1−ρ²). The velocity's divergence integrates to ½ log(1−ρ²).
    """
    rest = 1 - rho[None, :] ** 2
    slope = (t * rest - (1 - t)) / ((1 - t) ** 2 + t**2 * rest)
    return rho[None, :] * b + slope * (x - t * rho[None, :] * b)


@partial(jax.jit, static_argnums=0)
def _read(job: FlowFit, params: Any, test: Ends, rho: Float[Array, " d"], key: Array) -> Float[Array, " n"]:
    """Each test row's −∫ div v dt in nats. Their mean estimates I(X;Y).

    The divergence of the network is averaged over random directions e of ±1, as div = E eᵀ J e.
    Source: Hutchinson 1990.
    """
    draw_key, sign_key = jax.random.split(key)

    def divergence(draw):
        start, t, e = draw
        x = (1 - t) * start + t * test.x
        _, along = jax.jvp(lambda x: job.rest.apply({"params": params}, x, t, test.y), (x,), (e,))
        return jnp.sum(e * along, axis=1)

    starts, t = _starts_and_times(test, draw_key, DRAWS)
    signs = jax.random.rademacher(sign_key, starts.shape, test.x.dtype)
    rest = jnp.mean(jax.lax.map(divergence, (starts, t, signs)), axis=0)
    return -0.5 * jnp.sum(jnp.log1p(-(rho**2))) - rest
