"""Variational estimates of mutual information as functions of a critic's scores f(x, y). Nats.

`positives` holds f(x_i, y_i) of n pairs; `negatives[i]` holds f of x_i with m other y. E_P is the mean over positives,
E_Q the mean over negatives. Scores of any size give finite values and gradients; sums run in float32 or wider.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

Positives = Float[Array, " n"]
Negatives = Float[Array, "n m"]
Nats = Float[Array, ""]
LogSums = Float[Array | np.ndarray, "..."]
Carry = tuple[Array | float, Array | float]
Anchors = Literal["x", "both", "all"]
Divergence = Literal["kl", "reverse_kl", "hellinger", "pearson"]


def info_nce(scores: Float[Array, "k k"]) -> Nats:
    """InfoNCE lower bound of I(X;Y), in nats; at most log k.

    scores: row i scores x_i against every y_j; the diagonal holds the positives. All negatives come from the other
        view, so it is a bound for every critic.
    Source: Poole et al. 2019, eq. 10.
    """
    (scores,) = _wide(scores)
    # Relative to the positive, whose score then is 0: scores of any size keep their digits.
    sums = logsumexp(scores - jnp.diagonal(scores)[:, None], axis=1)
    return info_nce_of_sums(jnp.zeros_like(sums), sums)


def info_nce_symmetric(scores: Float[Array, "k k"]) -> Nats:
    """The mean of InfoNCE over rows and over columns, in nats: each direction is a bound, so their mean is one."""
    return 0.5 * (info_nce(scores) + info_nce(scores.T))


def info_nce_terms(
    positives: LogSums, row_sums: LogSums, column_sums: LogSums | None = None, *, candidates: int | None = None
) -> LogSums:
    """Each anchor's term of InfoNCE, in nats: log K + f(x, y) − log Σ e^f. All other definitions call this one.

    positives: f(x_i, y_i), of any shape.
    row_sums: log Σ_j e^{f(x_i, y_j)} for each x_i, with the positive in the sum.
    column_sums: log Σ_i e^{f(x_i, y_j)} for each y_j; both directions are then averaged. None: rows only.
    candidates: K of each anchor. None: the number of positives.
    """
    sums = row_sums if column_sums is None else 0.5 * (row_sums + column_sums)
    return math.log(candidates or positives.size) + positives - sums


def info_nce_of_sums(
    positives: LogSums, row_sums: LogSums, column_sums: LogSums | None = None, *, candidates: int | None = None
) -> Nats:
    """The mean of `info_nce_terms`, in nats: InfoNCE of K pairs without their score matrix."""
    return jnp.mean(info_nce_terms(positives, row_sums, column_sums, candidates=candidates))


def anchored(scores: Float[Array, "k k"], anchors: Anchors) -> tuple[Positives, Negatives]:
    """Positives and negatives of a batch's score matrix, one row for each anchor.

    anchors: "x": every x against all y. "both": these, then every y against all x. "all": the matrix scores the 2n
        representations [x; y] of n = k/2 pairs against each other. Each of them is an anchor; its negatives are all
        others except its partner.
    """
    if anchors == "x":
        return off_diagonal(scores)
    if anchors == "both":
        from_x, from_y = off_diagonal(scores), off_diagonal(scores.T)
        return jnp.concatenate([from_x[0], from_y[0]]), jnp.concatenate([from_x[1], from_y[1]])
    _, others = off_diagonal(scores)
    partner = scores.shape[0] // 2 - 1  # each row of `others` starts after its anchor, so partners share a column
    return others[:, partner], jnp.delete(others, partner, axis=1, assume_unique_indices=True)


def off_diagonal(scores: Float[Array, "k k"]) -> tuple[Float[Array, " k"], Float[Array, "k k-1"]]:
    """In-batch positives and negatives of a score matrix: the diagonal, and negatives[i, j] = scores[i, (i+1+j) % k].

    The order is cyclic, so that a column of negatives can be left out without looking at scores.
    """
    k = scores.shape[0]
    # [scores | scores] is flattened and read again in rows one longer. Row i then starts at its diagonal: no gather.
    skewed = jnp.pad(jnp.tile(scores, 2).reshape(-1), (0, k)).reshape(k, 2 * k + 1)
    return skewed[:, 0], skewed[:, 1:k]


def derange(key: Array, n: int) -> Int[Array, "n 1"]:
    """A partner other than itself for each of n ≥ 2 rows: a random cycle through all rows (Sattolo 1986).

    All other rows are equally likely, so negatives are draws from p(x)p(y).
    """
    rows = jax.random.permutation(key, n)
    return jnp.zeros((n, 1), rows.dtype).at[rows, 0].set(jnp.roll(rows, 1))


def shuffle(key: Array, n: int) -> Int[Array, "n 1"]:
    """A partner for each of n rows by a random permutation, which leaves one row with itself on average.

    Negatives then follow (1−1/n) p(x)p(y) + p(x,y)/n, and NWJ on them has an expectation below log n.
    Source: Belghazi et al. 2018, Algorithm 1; Gosch 2020.
    """
    return jax.random.permutation(key, n)[:, None]


def dv(positives: Positives, negatives: Negatives) -> Nats:
    """E_P f − log E_Q e^f, best at f = log dP/dQ + any constant. Source: Donsker & Varadhan 1975; Gosch 2020, Eq. 4."""
    positives, negatives = _wide(positives, negatives)
    return jnp.mean(positives) - _log_mean_exp(negatives)


def nwj(positives: Positives, negatives: Negatives) -> Nats:
    """E_P f − E_Q e^{f−1}, best at f = 1 + log dP/dQ. Source: Nguyen et al. 2010; Gosch 2020, Eq. 5."""
    positives, negatives = _wide(positives, negatives)
    return jnp.mean(positives) - _exp(_log_mean_exp(negatives) - 1)


def js_loss(positives: Positives, negatives: Negatives) -> Nats:
    """E_P log(1 + e^{−f}) + E_Q log(1 + e^f), least at f = log dP/dQ.

    Source: Nowozin et al. 2016; Gosch 2020, Eq. 7 (negated).
    """
    positives, negatives = _wide(positives, negatives)
    return jnp.mean(jax.nn.softplus(-positives)) + jnp.mean(jax.nn.softplus(negatives))


def f_divergence_loss(positives: Positives, negatives: Negatives, *, divergence: Divergence) -> Nats:
    """E_Q[r φ'(r) − φ(r)] − E_P φ'(r) at r = e^f, least at f = log dP/dQ, where it is −D_φ(P‖Q).

    divergence: φ(r) is r log r for "kl", −log r for "reverse_kl", (√r − 1)² for "hellinger", (r − 1)² for "pearson".
    Source: Nguyen et al. 2010, Lemma 1; Nowozin et al. 2016, Table 6 (the generators).
    """
    positives, negatives = _wide(positives, negatives)
    means = {
        "kl": lambda: _mean_exp(negatives) - jnp.mean(positives) - 1,
        "reverse_kl": lambda: _mean_exp(-positives) + jnp.mean(negatives) - 1,
        "hellinger": lambda: _mean_exp(-positives / 2) + _mean_exp(negatives / 2) - 2,
        "pearson": lambda: _mean_exp(2 * negatives) - 2 * _mean_exp(positives) + 1,
    }
    return means[divergence]()


def flo(positives: Positives, negatives: Negatives, u: Positives) -> Nats:
    """E_P[1 − u(x,y) − e^{−u(x,y)} · mean_j e^{f(x,y_j) − f(x,y)}] over the m negatives y_j; best at u = −log dP/dQ.

    u: a second critic's scores of the positive pairs. Source: Guo et al. 2022 (Fenchel–Legendre optimization).
    """
    positives, negatives, u = _wide(positives, negatives, u)
    return jnp.mean(1 - u - _exp(_log_mean_exp(negatives, axis=1) - positives - u))


def plug_in(positives: Positives, negatives: Negatives) -> Nats:
    """E_P f: I(X;Y) if f = log dP/dQ, and no bound of it otherwise."""
    del negatives
    (positives,) = _wide(positives)
    return jnp.mean(positives)


def classified(positives: Positives, negatives: Negatives) -> Nats:
    """log(m+1) minus the cross-entropy of picking the positive from its row's m+1 candidates."""
    positives, negatives = _wide(positives, negatives)
    # Relative to the positive, whose score then is 0: scores of any size keep their digits.
    sums = jax.nn.softplus(logsumexp(negatives - positives[:, None], axis=1))
    return info_nce_of_sums(jnp.zeros_like(sums), sums, candidates=negatives.shape[1] + 1)


def mine_loss(carry: Carry, positives: Positives, negatives: Negatives, *, rate: float) -> tuple[Nats, Carry]:
    """An upper bound of −DV with MINE's gradient −∇E_P f + ∇E_Q e^f / a; a is the running mean of E_Q e^f over steps.

    carry: (log of the weighted sum of the steps' E_Q e^f, log of the sum of the weights); (−inf, −inf) before the first
        step. a is the quotient of the two sums, which corrects the bias of the start as Adam does.
    rate: in (0, 1). Weight of the newest step.
    Returns the loss and the carry of the next step.
    Source: Belghazi et al. 2018, §3.2.
    """

    def average(log_average: Array | float, log_new: Array | float) -> Array:
        return jnp.logaddexp(math.log1p(-rate) + log_average, math.log(rate) + log_new)

    positives, negatives = _wide(positives, negatives)
    log_mean = _log_mean_exp(negatives)
    log_sum, log_weight = average(carry[0], lax.stop_gradient(log_mean)), average(carry[1], 0.0)
    log_a = log_sum - log_weight
    # log E ≤ E/a − 1 + log a, with equality at E = a. The gradient of the right side is MINE's.
    return jnp.exp(log_mean - log_a) - 1 + log_a - jnp.mean(positives), (log_sum, log_weight)


def js_nwj(positives: Positives, negatives: Negatives) -> Nats:
    """`nwj` of f + 1. `js_loss` finds f = log dP/dQ, and NWJ's best critic is 1 above it. Source: Poole et al. 2019."""
    positives, negatives = _wide(positives, negatives)
    return nwj(positives + 1, negatives + 1)


def smile(positives: Positives, negatives: Negatives, *, tau: float) -> Nats:
    """E_P f − log E_Q clip(e^f, e^{−τ}, e^τ). Source: Song & Ermon 2020."""
    return dv(positives, jnp.clip(negatives, -tau, tau))


def _wide(*scores: Array) -> list[Array]:
    return [s.astype(jnp.promote_types(s.dtype, jnp.float32)) for s in scores]


def _log_mean_exp(a: Array, axis: int | None = None) -> Array:
    return logsumexp(a, axis=axis) - math.log(a.size if axis is None else a.shape[axis])


def _mean_exp(a: Array) -> Array:
    return _exp(_log_mean_exp(a))


def _exp(a: Array) -> Array:
    """e^a up to a = 40, and the tangent there beyond it, where Adam's squared gradients would overflow float32.

    A lower bound that subtracts it stays one: beyond a = 40 it subtracts 10^17 or more, and is far below any I.
    """
    return jnp.exp(jnp.minimum(a, 40.0)) * (1 + jnp.maximum(a - 40.0, 0.0))
