"""Fitting in scans of many steps a dispatch, each followed by an evaluation on validation, whose best is kept."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float

from mirigor_jax.errors import InputError

OnProgress = Callable[[int, int, str], None]  # (step, of how many, what validation says)


class CriticState(NamedTuple):
    """The critic in training, and the best of validation so far (in nats)."""

    step: Array
    params: Any
    opt_state: Any
    best_params: Any
    best_nats: Array
    best_step: Array
    carry: Any = ()  # of the objective, where it has one (MINE)


class Evaluation(NamedTuple):
    """A step of a fit that was evaluated: InfoNCE (or the estimator's objective) of the fit part and of validation."""

    step: int
    fit_nats: float
    validation_nats: float


def in_batches(rows: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, "b k d"]:
    """Disjoint batches of k rows; the rows left over are not used."""
    return rows[: len(rows) // k * k].reshape(-1, k, rows.shape[1])


def fresh(params: Any, optimizer: optax.GradientTransformation, dtype: Any) -> CriticState:
    """The state before any step and any evaluation on validation."""
    zero = jnp.zeros((), jnp.int32)
    return CriticState(zero, params, optimizer.init(params), params, jnp.full((), -jnp.inf, dtype), zero)


def update(state: CriticState, optimizer: optax.GradientTransformation, gradients: Any) -> CriticState:
    """The state after one step along the gradients."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state)


def fit_chunk(
    state: CriticState,
    frozen: Any,
    batch: Any,
    validation: tuple[Any, Any],
    keys: Array,
    *,
    step: Callable[..., tuple[CriticState, Array]],
    validate: Callable[..., tuple[Array, ...]],
    streamed: bool,
) -> tuple[CriticState, dict[str, Array]]:
    """As many steps as keys in one scan, then one evaluation on validation; the best critic so far is kept.

    validate: (params, *validation) → the value that decides, in nats, first.
    streamed: `batch` has a leading axis of one batch a step; else every step draws from the same one.
    """
    if streamed:
        state, fitted = lax.scan(lambda s, x: step(s, frozen, x[0], x[1]), state, (batch, keys))
    else:
        state, fitted = lax.scan(lambda s, key: step(s, frozen, batch, key), state, keys)
    value = jnp.mean(validate(state.params, *validation)[0])
    better = value > state.best_nats
    best = jax.tree.map(partial(jnp.where, better), state.params, state.best_params)
    state = state._replace(
        best_params=best,
        best_nats=jnp.where(better, value, state.best_nats),
        best_step=jnp.where(better, state.step, state.best_step),
    )
    return state, {"fit_nats": jnp.mean(fitted), "validation_nats": value}


def check_finite(
    seen: Mapping[str, Array], fitted: Sequence[str], step: int, learning_rate: float, best_step: int | None = None
) -> None:
    """Raises InputError if what an evaluation saw is not finite: the loss of a step, or validation after the last one.

    seen: what `fit_chunk` saw, a value of each fit. fitted: what the message calls each.
    step, best_step: the steps taken, and those at which validation was best; None: the message does without.
    """
    fit_nats, validation_nats = (np.asarray(seen[f"{part}_nats"]).reshape(-1) for part in ("fit", "validation"))
    bad = np.flatnonzero(~np.isfinite(fit_nats) | ~np.isfinite(validation_nats))
    if not len(bad):
        return
    # The fit part's values are of the parameters before each update, validation's of those after the last.
    at = "at its last update, by " if np.isfinite(fit_nats[bad[0]]) else "by "
    kept = "" if best_step is None else f" (validation was best at step {best_step:,})"
    raise InputError(
        f"learning_rate={learning_rate:g}: {fitted[bad[0]]} diverged {at}step {step:,} (fit {fit_nats[bad[0]]:g}, "
        f"validation {validation_nats[bad[0]]:g} nats), as updates grew too large; lower it{kept}"
    )


@jax.jit
def _all_finite(leaves: list[Array]) -> Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


def is_finite(tree: Any) -> bool:
    """Whether all floating numbers of the tree are finite: one answer from the devices that hold it."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if jax.default_backend() == "cpu" and jax.process_count() == 1:  # NumPy reads them in place, without compiling
        return all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves)
    return not leaves or bool(_all_finite(leaves))


def run(
    state: CriticState,
    advance: Callable[[CriticState, int], tuple[CriticState, dict[str, Array]]],
    *,
    steps: int,
    stride: int,
    patience: int,
    learning_rate: float,
    fitted: Sequence[str],
    on_progress: OnProgress | None = None,
) -> tuple[CriticState, tuple[Evaluation, ...]]:
    """Advance by `stride` steps to `steps`, or until no critic of the state has gained on validation in `patience`.

    advance: (state, steps done) → the next state and what its evaluation saw, a value of each critic.
    learning_rate, fitted: at the first step, and what each critic is called, for the message.
    Returns the last state, and every evaluation: the critics' mean.
    Raises InputError at the first evaluation at which a critic has diverged.
    """
    history: list[Evaluation] = []
    done = best_step = 0
    while done < steps and done - best_step < patience:
        state, seen = advance(state, done)
        done, best_step = done + stride, int(np.max(np.asarray(state.best_step)))
        check_finite(seen, fitted, done, learning_rate, best_step)
        history.append(Evaluation(done, *(float(np.mean(seen[f"{part}_nats"])) for part in ("fit", "validation"))))
        if on_progress is not None:
            note = f"{history[-1].validation_nats / math.log(2):z.3f} bits on validation"
            on_progress(min(done, steps), steps, note)
    if on_progress is not None and done < steps:
        on_progress(done, done, f"stopped: nothing gained in {patience:,} steps")
    return state, tuple(history)
