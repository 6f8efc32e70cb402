"""Scoring rules by their formulas, and the anchor loss's minimizer on discrete values, by exact expectations."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import log_softmax
from scipy import optimize

from mirigor_jax.errors import InputError
from mirigor_jax.mi import scoring
from mirigor_jax.mi.estimators import ESTIMATORS
from mirigor_jax.mi.scoring import anchor_loss
from mirigor_jax.mi.values import off_diagonal

RULES = {
    "log": scoring.log_score,
    "brier": scoring.brier,
    "spherical": scoring.spherical,
    "pseudospherical": scoring.pseudospherical(1.5),
    "tsallis": scoring.tsallis(3.0),
}
FORMULAS = {
    "log": lambda p, z: -np.log(p[z]),
    "brier": lambda p, z: np.sum(p**2) - 2 * p[z],
    "spherical": lambda p, z: -p[z] / np.sqrt(np.sum(p**2)),
    "pseudospherical": lambda p, z: -((p[z] / np.sum(p**1.5) ** (1 / 1.5)) ** 0.5),
    "tsallis": lambda p, z: 2 * np.sum(p**3) - 3 * p[z] ** 2,
}
# p(x|y) and p(x) on 4 points, in tenths: an expectation is a mean over ten equally likely atoms.
GIVEN_Y, MARGINAL = np.array([5, 1, 3, 1]), np.array([2, 4, 1, 3])
RATIO = GIVEN_Y / MARGINAL


def candidates(f, k):
    """Scores of every (x_1 ~ p(x|y), k others ~ p(x)), each repeated in proportion to its probability."""
    conditional, marginal = (np.repeat(np.arange(4), counts) for counts in (GIVEN_Y, MARGINAL))
    rows = np.array(list(itertools.product(conditional, *[marginal] * k)))
    return f[rows[:, 0]], f[rows[:, 1:]]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", RULES)
def test_rules_by_their_formulas(name):
    probs = np.random.default_rng(0).dirichlet(np.ones(4), size=5)
    for z in range(4):
        expected = [FORMULAS[name](p, z) for p in probs]
        np.testing.assert_allclose(RULES[name](jnp.log(probs), z), expected, rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("k", "nu"), [(1, 1.0), (3, 1.0), (3, 0.1)])
@pytest.mark.parametrize("name", RULES)
def test_the_anchor_loss_is_least_at_the_density_ratio(name, k, nu):
    loss = jax.jit(jax.value_and_grad(lambda f: anchor_loss(*candidates(f, k), nu, RULES[name])))
    result = optimize.minimize(loss, np.zeros(4), jac=True, method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(np.exp(result.x), RATIO, atol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", RULES)
def test_without_an_anchor_a_factor_is_lost(name):
    positives, negatives = candidates(jnp.log(RATIO), 2)

    def without(shift):
        return jnp.mean(RULES[name](log_softmax(jnp.hstack([positives[:, None], negatives]) + shift), 0))

    np.testing.assert_allclose(without(1.0), without(0.0), rtol=1e-12)
    anchored = [anchor_loss(positives + shift, negatives + shift, 1.0, RULES[name]) for shift in (-1, 0, 1)]
    assert min(anchored[0], anchored[2]) > anchored[1] + 1e-3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("nu", [1.0, 0.1])
def test_in_batch_candidates_are_as_many_in_both_terms(nu):
    b = 6
    scores = np.random.default_rng(1).normal(size=(b, b))
    r, k, total = np.exp(scores), b - 1, 0.0
    for i in range(b):
        others = [(i + 1 + j) % b for j in range(b - 1)]
        positive = r[i, i] / (nu + r[i, i] + sum(r[i, j] for j in others[:-1]))
        anchor = nu / (nu + sum(r[i, j] for j in others))
        total -= (k * np.log(positive) + nu * np.log(anchor)) / (k + nu)
    np.testing.assert_allclose(anchor_loss(*off_diagonal(jnp.array(scores)), nu), total / b, rtol=1e-12)
    loss, carry = ESTIMATORS["anchor"](nu=nu).loss((), *off_diagonal(jnp.array(scores)))
    np.testing.assert_allclose(loss, total / b, rtol=1e-12)
    assert carry == ()


@pytest.mark.usefixtures("float64")
def test_one_negative_and_even_odds_are_half_jensen_shannon():
    positives, negatives = np.random.default_rng(2).normal(size=(2, 7, 1))
    jensen_shannon = np.mean(np.log1p(np.exp(-positives))) + np.mean(np.log1p(np.exp(negatives)))
    loss = anchor_loss(jnp.array(positives[:, 0]), jnp.array(negatives), 1.0)
    np.testing.assert_allclose(loss, jensen_shannon / 2, rtol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_bfloat16_scores_of_ten_thousand(name):
    evaluate = jax.jit(jax.value_and_grad(lambda *scores: anchor_loss(*scores, 0.1, RULES[name]), argnums=(0, 1)))
    mixed = np.random.default_rng(0).choice([-1e4, 1e4], size=(5, 4))
    for positive, negative in itertools.product((1e4, -1e4), (1e4, -1e4, mixed)):
        scores = np.full(5, positive), np.broadcast_to(negative, (5, 4))
        loss, slopes = evaluate(*(jnp.array(s, jnp.bfloat16) for s in scores))
        assert loss.dtype == jnp.float32
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in (loss, *slopes))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: anchor_loss(jnp.zeros(2), jnp.zeros((2, 1)), 0.0), "nu = 0.0"),
        (lambda: anchor_loss(jnp.zeros(2), jnp.zeros((2, 1)), math.nan), "nu = nan"),
        (lambda: scoring.pseudospherical(1.0), "beta = 1.0"),
        (lambda: scoring.tsallis(0.5), "alpha = 0.5"),
    ],
)
def test_what_is_not_proper_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()
