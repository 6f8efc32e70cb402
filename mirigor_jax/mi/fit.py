"""Fitting a critic on frozen representations: same-class pairs drawn on the device, many steps a dispatch.

Every function here is written for one device of the mapped axis; `estimate.py` maps and drives them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from mirigor_jax.errors import InputError
from mirigor_jax.mi.contrastive import info_nce_embeddings, nt_xent, nt_xent_mi

Views = Callable[[Any, Any, Array], tuple[Array, Array]]


class Bank(NamedTuple):
    """Representations sorted by class, from which same-class pairs are drawn.

    Class c has `sizes[c]` rows from `starts[c]` on; `law[c]` is the running sum of p(·|c).
    """

    h: Float[Array | np.ndarray, "n d"]
    labels: Int[Array | np.ndarray, " n"]
    starts: Int[Array | np.ndarray, " c"]
    sizes: Int[Array | np.ndarray, " c"]
    law: Float[Array | np.ndarray, "c c"]


def make_bank(h: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], joint: Float[np.ndarray, "c c"]) -> Bank:
    """Sort rows by class for drawing pairs whose classes follow p(c'|c) = joint[c, c'] / Σ joint[c].

    Raises InputError where a class has no row.
    """
    sizes = np.bincount(labels, minlength=len(joint))
    if (empty := np.flatnonzero(sizes == 0)).size:
        raise InputError(
            f"{empty.size} of {len(joint)} classes have no image among the {len(labels):,} of the fit part "
            f"(the first: class {empty[0]}); raise features.fit"
        )
    order = np.argsort(labels, kind="stable")
    law = np.cumsum(joint, axis=1) / joint.sum(axis=1, keepdims=True)
    law[:, -1] = 1.0
    starts = np.cumsum(sizes) - sizes
    return Bank(h[order], labels[order].astype(np.int32), starts.astype(np.int32), sizes.astype(np.int32), law)


def draw_pairs(frozen: Any, bank: Bank, key: Array, *, k: int, axis_name: str) -> tuple[Array, Array]:
    """This device's share of k fresh draws: x any row, y any row of the class that p(c'|c) gives (or x's own).

    The draw depends on the key alone, not on how many devices share it.
    Source: same-class sampling, Lee et al. 2023, §III-A.
    """
    del frozen  # cached features need no encoder
    x_key, class_key, y_key = jax.random.split(key, 3)
    rows_x = jax.random.randint(x_key, (k,), 0, bank.h.shape[0])
    u = jax.random.uniform(class_key, (k, 1), bank.law.dtype)
    classes = jnp.sum(u >= bank.law[bank.labels[rows_x]], axis=1)
    within = jax.random.uniform(y_key, (k,), jnp.float32) * bank.sizes[classes]
    rows_y = bank.starts[classes] + jnp.minimum(within.astype(jnp.int32), bank.sizes[classes] - 1)
    share = k // lax.axis_size(axis_name)
    first = lax.axis_index(axis_name) * share
    mine = partial(lax.dynamic_slice_in_dim, start_index=first, slice_size=share)
    return bank.h[mine(rows_x)], bank.h[mine(rows_y)]


class CriticState(NamedTuple):
    """The critic in training, and the best of validation so far (in nats)."""

    step: Array
    params: Any
    opt_state: Any
    best_params: Any
    best_nats: Array
    best_step: Array


def init_critic(
    critic: nn.Module, optimizer: optax.GradientTransformation, h: Float[Array, "k d"], key: Array
) -> CriticState:
    """A fresh critic for representations like h."""
    params = critic.init(key, h, h)["params"]
    zero = jnp.zeros((), jnp.int32)
    return CriticState(zero, params, optimizer.init(params), params, jnp.full((), -jnp.inf, h.dtype), zero)


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
    """One update of the critic on this device's pairs: maximise strict InfoNCE with the encoder frozen.

    views: (frozen, batch, key) → (h_x, h_y). Streamed images: `batch` the images, `frozen` the encoder's parameter
    tree; cached features: `batch` a Bank, `frozen` empty. No gradient reaches either.
    Returns the new state and the batch's bound in nats.
    Source: Lee et al. 2023, §III-C and Fig. 3 (bottom).
    """
    h_x, h_y = lax.stop_gradient(views(frozen, batch, key))

    def loss_fn(params):
        z_x, z_y, temperature = critic.apply({"params": params}, h_x, h_y)
        return -info_nce_embeddings(z_x / temperature, z_y, axis_name=axis_name)

    loss, gradients = lax.pmean(jax.value_and_grad(loss_fn)(state.params), axis_name)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), -loss


def bounds(
    params: Any,
    h_x: Float[Array, "m k d"],
    h_y: Float[Array, "m k d"],
    *,
    critic: nn.Module,
    axis_name: str,
    block: int | None = None,
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Strict InfoNCE and the paper's form on each of m batches, in nats; this device holds k pairs of each.

    Source: Poole et al. 2019, eq. 10; Lee et al. 2023, Eq. 4.
    """

    def one(pair):
        z_x, z_y, temperature = critic.apply({"params": params}, *pair)
        strict = info_nce_embeddings(z_x / temperature, z_y, block=block, axis_name=axis_name)
        paper = nt_xent(z_x, z_y, temperature, block=block, axis_name=axis_name)
        k = z_x.shape[0] * lax.axis_size(axis_name)
        return lax.pmean((strict, nt_xent_mi(paper, k)), axis_name)

    return lax.map(one, (h_x, h_y))


def fit_chunk(
    state: CriticState,
    frozen: Any,
    batch: Any,
    validation: tuple[Float[Array, "m k d"], Float[Array, "m k d"]],
    keys: Array,
    *,
    step: Callable[..., tuple[CriticState, Array]],
    validate: Callable[..., tuple[Array, Array]],
    streamed: bool,
) -> tuple[CriticState, dict[str, Array]]:
    """As many steps as keys in one scan, then one look at validation; the best critic so far is kept.

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
