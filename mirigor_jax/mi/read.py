"""Reading fitted critics: scores of held-out pairs, the estimators' values of these scores, and their intervals."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from scipy import special

from mirigor_jax.mi.confidence import FOLDS, Interval
from mirigor_jax.mi.critics import CosineCritic, Scorer
from mirigor_jax.mi.estimators import Estimator
from mirigor_jax.mi.fit import FitConfig
from mirigor_jax.mi.values import info_nce_symmetric, info_nce_terms

LEAST_BATCHES = 8  # fewest batches for a t-interval over batches; otherwise it is over the pairs' influence values


def read_embeddings(
    params: Any,
    h_x: Float[Array, "m k d"],
    h_y: Float[Array, "m k d"],
    *,
    critic: CosineCritic,
    estimators: tuple[Estimator, ...],
    axis_name: str,
) -> tuple[Float[Array, " m"], ...]:
    """Each estimator's value of each of m batches, in nats. This device holds k pairs of each batch.

    critic: has embeddings and a temperature, and serves all estimators.
    """

    def one(pair):
        embedded = critic.apply({"params": params}, *pair)
        return lax.pmean(tuple(estimator.read_embeddings(*embedded, axis_name) for estimator in estimators), axis_name)

    return lax.map(one, (h_x, h_y))


@partial(jax.jit, static_argnames="fit_config")
def read_scores(
    fit_config: FitConfig, params: Any, x: Float[Array | np.ndarray, "b k p"], y: Float[Array | np.ndarray, "b k q"]
) -> tuple[Float[Array, "s b n n"], Float[Array, "s b k"] | None]:
    """The score matrix of each batch by each of s critics, and u of the positives if the estimators need it.

    The matrices have n = k rows, or n = 2k if all representations are anchors.
    """

    def score_batch(p, x, y):
        x, y = fit_config.estimators[0].views(x, y)
        # Some rows at a time: a joint critic's layers have a row for each pair, too many for a whole matrix.
        rows = lax.map(lambda row: fit_config.scores(p["f"], row[None], y)[0], x, batch_size=128)
        positives = jnp.arange(x.shape[0])[:, None]
        return rows, -fit_config.scores(p["u"], x, y, positives)[:, 0] if "u" in p else None

    return lax.map(lambda p: lax.map(lambda pair: score_batch(p, *pair), (x, y)), params)


@partial(jax.jit, static_argnames=("estimator", "folds"))
def read(
    estimator: Estimator, scores: Float[Array, "s b n n"], u: Float[Array, "s b k"] | None, folds: int
) -> tuple[Float[Array, " s"], Float[Array, ""], Float[Array, " folds"]]:
    """The estimator's mean over batches, in nats, for each critic, for their average, and for it without each fold.

    folds: number of folds that a batch's pairs are cut into.
    InfoNCE, DV, NWJ and FLO are concave in the scores, so the averaged critic's value is at least the critics' mean.
    """

    def over_batches(scores, u):
        return jnp.mean(lax.map(lambda batch: estimator.read(*batch), (scores, u)))

    k = estimator.pairs(scores.shape[-1])
    averaged = jax.tree.map(lambda v: jnp.mean(v, axis=0), (scores, u))

    def without(keep):
        rows = estimator.rows(keep, k)
        scores, u = averaged
        return over_batches(scores[:, rows][:, :, rows], None if u is None else u[:, keep])

    fold = k // folds
    remaining = np.stack([np.delete(np.arange(k), np.s_[f * fold : (f + 1) * fold]) for f in range(folds)])
    each = lax.map(lambda batch: over_batches(*batch), (scores, u))
    return each, over_batches(*averaged), lax.map(without, jnp.asarray(remaining))


@jax.jit
def symmetric_info_nce(scores: Float[Array | np.ndarray, "b k k"]) -> Float[Array, " b"]:
    """InfoNCE of each batch's scores, averaged over both directions, in nats."""
    return lax.map(info_nce_symmetric, scores)


@partial(jax.jit, static_argnames=("scorer", "from_sums"))
def read_by_sums(
    scorer: Scorer | FitConfig,
    from_sums: Callable[..., Array],
    params: Any,
    x: Float[Array | np.ndarray, "b k p"],
    y: Float[Array | np.ndarray, "b k q"],
) -> Float[Array, " b"]:
    """An estimator's value of each batch by the averaged critic, in nats, without holding the score matrix.

    from_sums: the estimator's function of the positives and of each row's and each column's sum.
    params: of the critics, stacked.
    """

    def batch(pair):
        x, y = pair
        k = x.shape[0]
        size = math.gcd(k, 256)  # rows at a time

        def rows(column_sums, row):
            first, x_rows = row
            scores = jnp.mean(lax.map(lambda p: scorer.scores(p, x_rows, y), params), axis=0)
            positives = jnp.diagonal(lax.dynamic_slice_in_dim(scores, first, size, axis=1))
            return jnp.logaddexp(column_sums, logsumexp(scores, axis=0)), (positives, logsumexp(scores, axis=1))

        blocks = jnp.arange(0, k, size), x.reshape(-1, size, x.shape[1])
        column_logsumexp, (positives, row_logsumexp) = lax.scan(rows, jnp.full(k, -jnp.inf, x.dtype), blocks)
        return from_sums(positives.ravel(), row_logsumexp.ravel(), column_logsumexp)

    return lax.map(batch, (x, y))


@partial(jax.jit, static_argnames="scorer")
def mean_scores(
    scorer: Scorer, params: Any, x: Float[Array | np.ndarray, "b k d"], y: Float[Array | np.ndarray, "b k d"]
) -> Float[Array, "b k k"]:
    """Scores of all pairs of each batch, averaged over stacked critics. The average is a critic too."""

    def batch(pair):
        return jnp.mean(jax.vmap(lambda p: scorer.scores(p, *pair))(params), axis=0)

    return lax.map(batch, (x, y))


def pair_values(scores: Float[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """Each pair's contribution to InfoNCE, as an anchor and as the others' candidate; nats. Their mean is InfoNCE.

    Both directions are averaged. A contribution's deviation from the mean is the pair's influence on InfoNCE, to first
    order in 1/k.
    Source: Poole et al. 2019, eq. 10; Jaeckel 1972 (infinitesimal jackknife).
    """
    scores = scores.astype(np.float64)
    row_logsumexp, column_logsumexp = special.logsumexp(scores, axis=1), special.logsumexp(scores, axis=0)
    anchor = info_nce_terms(scores.diagonal(), row_logsumexp, column_logsumexp)
    chosen_y = np.exp(scores - row_logsumexp[:, None]).sum(axis=0)  # expected number of x that choose y_i
    chosen_x = np.exp(scores - column_logsumexp[None, :]).sum(axis=1)
    return anchor + 1 - 0.5 * (chosen_x + chosen_y)


def independent_values(batches: Iterable[Float[np.ndarray, "k k"]]) -> Float[np.ndarray, " v"]:
    """Values with InfoNCE at k as their mean, for its t-interval: one a batch if eight or more, else one a pair.

    batches: the score matrix of each batch. Values of pairs need no second batch, so k can be as large as the sample.
    """
    values = np.stack([pair_values(scores) for scores in batches])
    return values.mean(axis=1) if len(values) >= LEAST_BATCHES else values.ravel()


def jackknife_interval(value: float, without: Float[np.ndarray, " folds"], confidence: float) -> Interval | None:
    """t-interval, in bits, of a value in nats, from its values without each fold of the sample; None for one fold.

    Source: Quenouille 1956; Tukey 1958 (the jackknife).
    """
    if (folds := len(without)) < 2:
        return None
    error = math.sqrt((folds - 1) / folds * np.sum((without - without.mean()) ** 2))
    half = float(special.stdtrit(folds - 1, (1 + confidence) / 2)) * error
    return Interval((value - half) / math.log(2), (value + half) / math.log(2), FOLDS)
