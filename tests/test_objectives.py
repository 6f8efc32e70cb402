"""The objectives against loops over anchors and each other; tests/test_train.py has them on several devices."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirigor_jax import objectives
from mirigor_jax.errors import InputError
from mirigor_jax.mi.contrastive import nt_xent

K, TEMPERATURE = 16, 0.3
OPTIONS = {"temperature": TEMPERATURE, "embedding_noise": 0.1, "num_classes": 5, "axis_name": None}
RNG = np.random.default_rng(0)
Z_X, Z_Y = RNG.normal(size=(2, K, 5))
# Three classes; where the views of a pair differ too, and one view of a class that nobody else has.
C_X, C_Y = RNG.integers(0, 3, (2, K))
C_X[3] = 3


def loss(name):
    return objectives.make(name, **OPTIONS).loss


def targets_of(name):
    """The arguments that the objective takes from a batch with classes, beside the views."""
    made = objectives.make(name, **OPTIONS)
    return made.prepare({"c_x": jnp.array(C_X), "c_y": jnp.array(C_Y)}, tuple)


def cosines(z_x, z_y):
    z = np.concatenate([z_x, z_y])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    return z @ z.T / TEMPERATURE


def supcon_by_loop(z_x, z_y, c_x, c_y):
    scores, classes, losses = cosines(z_x, z_y), [*c_x, *c_y], []
    for i in range(2 * K):
        others = [a for a in range(2 * K) if a != i]
        denominator = sum(math.exp(scores[i, a]) for a in others)
        terms = [-math.log(math.exp(scores[i, p]) / denominator) for p in others if classes[p] == classes[i]]
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return np.mean(losses)


def decoupled_by_loop(z_x, z_y, c_x, c_y):
    scores, losses = cosines(z_x, z_y), []
    for i in range(2 * K):
        negatives = [a for a in range(2 * K) if a % K != i % K]
        losses.append(-scores[i, (i + K) % (2 * K)] + math.log(sum(math.exp(scores[i, a]) for a in negatives)))
    return np.mean(losses)


def anchor_by_loop(z_x, z_y, c_x, c_y):
    ratios, losses, m = np.exp(cosines(z_x, z_y)), [], 2 * K - 2
    for i in range(2 * K):
        others = [a for a in range(2 * K) if a % K != i % K]
        left_out = K + (i - 1) % K
        positive = ratios[i, (i + K) % (2 * K)]
        one_is = positive / (1 + positive + sum(ratios[i, a] for a in others if a != left_out))
        none_is = 1 / (1 + sum(ratios[i, a] for a in others))
        losses.append(-(m * math.log(one_is) + math.log(none_is)) / (m + 1))
    return np.mean(losses)


def cross_entropy_by_loop(z_x, z_y, c_x, c_y):
    probabilities = [np.exp(z) / np.exp(z).sum() for z in (*z_x, *z_y)]
    return np.mean([-math.log(p[c]) for p, c in zip(probabilities, (*c_x, *c_y), strict=True)])


def nce_by_loop(z_x, z_y, n_x, n_y):
    positives, losses = np.diag(cosines(z_x, z_y)[:K, K:]), []
    z, n = (np.concatenate(of) / np.linalg.norm(np.concatenate(of), axis=1)[:, None] for of in ((z_x, z_y), (n_x, n_y)))
    for i in range(2 * K):
        negatives = [math.exp(z[i] @ n[j] / TEMPERATURE) for j in range(2 * K) if j % K != i % K]
        assert len(negatives) == 2 * K - 2
        losses.append(-positives[i % K] + math.log(math.exp(positives[i % K]) + sum(negatives)))
    return np.mean(losses)


BY_LOOP = {
    "supcon": supcon_by_loop,
    "decoupled": decoupled_by_loop,
    "anchor": anchor_by_loop,
    "cross_entropy": cross_entropy_by_loop,
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", BY_LOOP)
def test_values_and_slopes_are_the_loop_s(name):
    z, by_loop = np.stack([2 * Z_X, 2 * Z_Y]), BY_LOOP[name]
    targets = targets_of(name)
    value, gradient = jax.jit(jax.value_and_grad(lambda z: loss(name)(*z, *targets)))(jnp.array(z))
    np.testing.assert_allclose(value, by_loop(*z, C_X, C_Y), rtol=1e-12)
    for seed in (1, 2, 3):
        direction = np.random.default_rng(seed).normal(size=z.shape)
        rise = by_loop(*(z + 1e-5 * direction), C_X, C_Y) - by_loop(*(z - 1e-5 * direction), C_X, C_Y)
        np.testing.assert_allclose(np.vdot(gradient, direction), rise / 2e-5, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_negatives_of_their_own_are_each_anchor_s_2k_minus_2_and_nt_xent_s_where_they_are_the_pairs():
    made = objectives.make("simclr", **OPTIONS, negatives=True)
    assert (made.views, made.bounds_mi) == (("x", "y", "n_x", "n_y"), False)
    z = np.stack([Z_X, Z_Y, *np.random.default_rng(1).normal(size=(2, K, 5))])
    value, gradient = jax.jit(jax.value_and_grad(lambda z: made.loss(*z)))(jnp.array(z))
    np.testing.assert_allclose(value, nce_by_loop(*z), rtol=1e-12)
    direction = np.random.default_rng(2).normal(size=z.shape)
    rise = nce_by_loop(*(z + 1e-5 * direction)) - nce_by_loop(*(z - 1e-5 * direction))
    np.testing.assert_allclose(np.vdot(gradient, direction), rise / 2e-5, rtol=1e-6)
    x, y = jnp.array(Z_X), jnp.array(Z_Y)
    np.testing.assert_allclose(made.loss(x, y, x, y), nt_xent(x, y, TEMPERATURE), rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_supcon_is_nt_xent_where_only_partners_are_alike_and_nothing_where_no_views_are():
    z, pairs = (jnp.array(Z_X), jnp.array(Z_Y)), jnp.arange(K)
    np.testing.assert_allclose(jax.jit(loss("supcon"))(*z, pairs, pairs), jax.jit(nt_xent)(*z, TEMPERATURE), rtol=1e-12)
    value, slopes = jax.jit(jax.value_and_grad(loss("supcon"), argnums=(0, 1)))(*z, pairs, pairs + K)
    np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_array_equal(slopes, 0.0)


def test_simclr_is_nt_xent_of_the_temperature_and_alone_in_standing_for_mi():
    z = jnp.array(Z_X, jnp.float32), jnp.array(Z_Y, jnp.float32)
    np.testing.assert_allclose(jax.jit(loss("simclr"))(*z), jax.jit(nt_xent)(*z, TEMPERATURE), rtol=1e-6)
    assert objectives.make("simclr", **OPTIONS).bounds_mi
    assert not any(objectives.make(name, **OPTIONS).bounds_mi for name in (*BY_LOOP, "rotation"))


@pytest.mark.parametrize("name", BY_LOOP)
def test_losses_are_finite_where_exponentials_overflow_and_sum_in_float32(name):
    half = [jnp.asarray(z, jnp.bfloat16) for z in (Z_X, Z_Y)]
    rounded = [np.asarray(z, np.float64) for z in half]
    classes = targets_of(name)
    value = jax.jit(loss(name))(*half, *classes)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, BY_LOOP[name](*rounded, C_X, C_Y), rtol=1e-5)
    cold = objectives.make(name, **OPTIONS | {"temperature": 1e-4}).loss
    large = [jnp.asarray(1e3 * z, jnp.float32) for z in (Z_X, Z_Y)]
    value, slopes = jax.jit(jax.value_and_grad(cold, argnums=(0, 1)))(*large, *classes)
    assert np.isfinite(value)
    assert np.isfinite(slopes).all()


def test_unknown_objectives_and_missing_labels_or_negatives_are_named():
    make = partial(objectives.make, temperature=0.1, embedding_noise=0.1, axis_name=None)
    with pytest.raises(InputError, match=r"'simsiam' is unknown; choose one of simclr, .*rotation"):
        make("simsiam", num_classes=None)
    for name in ("supcon", "cross_entropy"):
        with pytest.raises(InputError, match=rf"='{name}' .* no labels; .* simclr, decoupled, anchor, mige, rotation"):
            make(name, num_classes=None)
        with pytest.raises(InputError, match=rf"='{name}' .* have 1; "):
            make(name, num_classes=1)
    for name in ("decoupled", "anchor"):
        with pytest.raises(InputError, match=rf"objective='{name}' has no negatives at k = 1"):
            make(name, num_classes=None).loss(jnp.ones((1, 2)), jnp.ones((1, 2)))
    with pytest.raises(
        InputError,
        match=r"objective='supcon' takes no separate set of negatives; leave it out, or choose one of simclr",
    ):
        make("supcon", num_classes=3, negatives=True)
