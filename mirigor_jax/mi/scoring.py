"""Proper scoring rules over K + 1 classes, and the density-ratio loss that they give: InfoNCE with an anchor class.

A rule takes log-probabilities log η and a class z, and returns the score λ_z(η), which is minimized. Its expectation is
least if η holds the true class probabilities.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mirigor_jax.errors import InputError

Rule = Callable[[Float[Array, "n c"], int], Float[Array, " n"]]


def log_score(log_probs: Float[Array, "n c"], z: int) -> Float[Array, " n"]:
    """λ_z = −log η_z."""
    return -log_probs[:, z]


def pseudospherical(beta: float) -> Rule:
    """λ_z = −(η_z / ‖η‖_β)^{β−1}; raises InputError unless β > 1.

    Source: Good 1971; Gneiting & Raftery 2007, §4.1 (negated).
    """
    _above_one("beta", beta)

    def score(log_probs: Float[Array, "n c"], z: int) -> Float[Array, " n"]:
        log_norm = jax.nn.logsumexp(beta * log_probs, axis=1) / beta
        return -jnp.exp((beta - 1) * (log_probs[:, z] - log_norm))

    return score


def tsallis(alpha: float) -> Rule:
    """λ_z = (α−1) Σ_j η_j^α − α η_z^{α−1}; raises InputError unless α > 1.

    Source: Dawid & Musio 2014 (Tsallis score).
    """
    _above_one("alpha", alpha)

    def score(log_probs: Float[Array, "n c"], z: int) -> Float[Array, " n"]:
        spread = jnp.sum(jnp.exp(alpha * log_probs), axis=1)
        return (alpha - 1) * spread - alpha * jnp.exp((alpha - 1) * log_probs[:, z])

    return score


def _above_one(name: str, power: float) -> None:
    if not power > 1:
        raise InputError(f"{name} = {power}: this scoring rule is proper for {name} > 1; use 2")


brier = tsallis(2.0)
spherical = pseudospherical(2.0)


def anchor_loss(
    positives: Float[Array, " n"], negatives: Float[Array, "n m"], nu: float, rule: Rule = log_score
) -> Float[Array, ""]:
    """InfoNCE-anchor with K = m candidates. It is least at f = log dP/dQ itself, so no factor is left free.

    Class 0, the anchor, says that none of the K candidates is the partner; class z says that candidate z is. Their
    prior odds are ν : 1 : … : 1. In the term with the positive, the last column of `negatives` is left out, so that
    both terms have K candidates. `off_diagonal` orders the columns so that this choice does not depend on scores.
    With the log score and one negative, ν = 1 gives half of the Jensen–Shannon (NCE) loss.
    positives, negatives: scores f(x_i, y_i), and f of x_i with m other y.
    nu: ν, above 0. rule: the scoring rule.
    Raises InputError unless ν > 0.
    Source: Ryu et al. 2025 (InfoNCE-anchor; proper scoring rules).
    """
    if not nu > 0:
        raise InputError(f"nu = {nu}: without an anchor (nu = 0, InfoNCE) dP/dQ is known up to a factor; use nu = 1")
    wide = jnp.promote_types(positives.dtype, jnp.float32)
    positive, negatives = positives[:, None].astype(wide), negatives.astype(wide)
    anchor = jnp.full_like(positive, math.log(nu))
    k = negatives.shape[1]
    one_is = rule(jax.nn.log_softmax(jnp.hstack([anchor, positive, negatives[:, :-1]])), 1)
    none_is = rule(jax.nn.log_softmax(jnp.hstack([anchor, negatives])), 0)
    return (k * jnp.mean(one_is) + nu * jnp.mean(none_is)) / (k + nu)
