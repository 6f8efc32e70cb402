"""Critics that are trained on fresh pairs of Gaussians: all seeds and all levels of information in one program.

After Gosch 2020, section 3 and appendix C.1: every batch is drawn anew, so there is no validation, and the value of a
batch before its step is one of a critic that has not seen it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from mirigor_jax.fitting import CriticState, OnProgress
from mirigor_jax.mi.distributions import Gaussian, correlated_normals
from mirigor_jax.studies import critic_steps
from mirigor_jax.studies.critic_steps import CriticTraining

NEIGHBORS = 10  # epochs on each side that a smoothed value averages over (appendix C.1)
FULL = 512  # pairs a batch; with fewer, an epoch has more batches, so that its number of pairs stays the same


@dataclass(frozen=True)
class Training(CriticTraining):
    """How critics are trained. Those of one seed share their start and their normal draws.

    batches: batches an epoch, if k is at least FULL; if not, as many as give FULL times `batches` pairs.
    dimension: of x and of y.
    """

    batches: int
    dimension: int

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return max(self.batches, self.batches * FULL // self.k)


def train_step(
    state: CriticState, key: Array, level: tuple[Array, Array], training: Training
) -> tuple[CriticState, Float[Array, " r"]]:
    """Draw a batch, read it, and update the critic on it.

    level: correlation and noise of the pairs, as `Gaussian.correlation_and_noise`.
    Returns the next state and the value of each reader, in nats; dropout is off when they read.
    """
    pair_key, *keys = jax.random.split(key, 3)
    x, y = correlated_normals(pair_key, (training.k, training.dimension), *level)
    return critic_steps.step(state, x, y, (keys[0], keys[1]), training)


@partial(jax.jit, static_argnames="training")
def start_all(seeds: Array, levels: tuple[Array, Array], training: Training) -> CriticState:
    """The states of all critics, by seed and level. Critics of one seed start alike."""
    widths = (training.dimension, training.dimension)
    each = jax.vmap(lambda seed, level: critic_steps.start(seed, widths, training), in_axes=(None, 0))
    return jax.vmap(each, in_axes=(0, None))(seeds, levels)


@partial(jax.jit, static_argnames="training")
def train_epoch(
    states: CriticState, seeds: Array, epoch: Array, levels: tuple[Array, Array], training: Training
) -> tuple[CriticState, Float[Array, "s l r"]]:
    """Train all critics for an epoch. Returns their states and each reader's mean value over the epoch's batches.

    The critics of one seed see the same normal draws, which each level correlates in its own way.
    """

    def of_seed(states: CriticState, seed: Array) -> tuple[CriticState, Array]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), epoch + 1), training.steps)
        step = jax.vmap(partial(train_step, training=training), in_axes=(0, None, 0))
        states, values = lax.scan(lambda states, key: step(states, key, levels), states, keys)
        return states, jnp.mean(values, axis=0)

    return jax.vmap(of_seed)(states, seeds)


def train(
    training: Training,
    levels: Sequence[float],
    seeds: Sequence[int],
    *,
    epochs: int,
    doublings: int,
    settled_nats: float,
    on_progress: OnProgress,
) -> Float[np.ndarray, "r s l e"]:
    """Train critics for each seed and level, and read every epoch.

    levels: nats.
    epochs: of the training; they are doubled, at most `doublings` times, until it `has_settled`.
    on_progress: called as on_progress(epoch, epochs, note) after every epoch.
    Returns the mean value of each reader over each epoch's batches, in nats.
    """
    mixing = zip(*(Gaussian(training.dimension, nats).correlation_and_noise for nats in levels), strict=True)
    arrays = tuple(jnp.asarray(column, jnp.float32) for column in mixing)
    roots, at = jnp.asarray(seeds, jnp.int32), (arrays[0], arrays[1])
    states, doubled = start_all(roots, at, training), 0
    curves: list[np.ndarray] = []
    while len(curves) < epochs:
        states, values = train_epoch(states, roots, jnp.int32(len(curves)), at, training)
        curves.append(np.asarray(values))
        on_progress(len(curves), epochs, f"{curves[-1][:, -1, 0].mean():z.2f} of {levels[-1]:g} nats")
        is_over = len(curves) == epochs and doubled < doublings
        if is_over and not has_settled(np.stack(curves, axis=-1)[:, :, 0], settled_nats):
            epochs, doubled = 2 * epochs, doubled + 1
    return np.moveaxis(np.stack(curves, axis=-1), 2, 0)


def smoothed(curve: Float[np.ndarray, "*n e"]) -> Float[np.ndarray, "*n e"]:
    """Averages over the epochs at a distance d of 10 at most, with weights (11 − d)/11. Source: Gosch 2020, C.1."""
    distance = np.abs(np.subtract.outer(np.arange(curve.shape[-1]), np.arange(curve.shape[-1])))
    weights = np.maximum(0, NEIGHBORS + 1 - distance) / (NEIGHBORS + 1)
    return curve @ (weights / weights.sum(axis=0))


def last_fifth(epochs: int) -> slice:
    """The epochs of the last fifth of a training."""
    return slice(epochs - max(1, epochs // 5), epochs)


def rise(curve: Float[np.ndarray, "s l e"]) -> Float[np.ndarray, " l"]:
    """How far the smoothed values rise over the last fifth of the epochs: the mean over seeds, in nats."""
    smooth = smoothed(curve)
    return np.mean(smooth[..., -1] - smooth[..., last_fifth(curve.shape[-1]).start - 1], axis=0)


def has_settled(curve: Float[np.ndarray, "s l e"], settled_nats: float) -> bool:
    """Whether the values rise by less than settled_nats at every level; not if one of them is not finite."""
    return bool(np.all(rise(curve) < settled_nats))


def most_of_permutations(nats: float, dimension: int, k: int) -> float:
    """The best critic's value by NWJ, DV or the JS plug-in if a random permutation draws the negatives, in nats.

    It has one fixed point on average, so negatives follow Q' = (1 − 1/k) Q + P/k, and the best critic's value is
    KL(P ‖ Q') = E_P log r / (1 − 1/k + r/k) < log k, with r = dP/dQ. The mean is over 20,000 pairs. No critic's NWJ has
    a larger expectation; DV's mean over batches, and another critic's plug-in, may.
    """
    gaussian = Gaussian(dimension, nats)
    log_ratio = np.asarray(gaussian.log_ratio(*gaussian.sample(jax.random.key(0), 20_000)), np.float64)
    return float(np.mean(log_ratio - np.logaddexp(np.log1p(-1 / k), log_ratio - np.log(k))))
