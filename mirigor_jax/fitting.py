"""Fitting in scans of many steps a dispatch, each followed by an evaluation on validation, whose best is kept."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

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
