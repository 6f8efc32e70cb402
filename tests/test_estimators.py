"""The estimators on a small discrete distribution, where expectations are exact sums, and at scores of any size."""

import itertools
import math
import re
from dataclasses import replace
from functools import partial
from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from scipy.special import logsumexp

from mirigor_jax.errors import InputError
from mirigor_jax.mi import estimators, values
from mirigor_jax.mi.estimators import ESTIMATORS

COUNTS = np.array([[6, 1, 1], [1, 4, 2], [2, 1, 6]])
P = COUNTS / COUNTS.sum()
Q = P.sum(1, keepdims=True) * P.sum(0, keepdims=True)
LOG_R = np.log(P / Q)
I = np.sum(P * LOG_R)  # noqa: E741
X, Y = (np.repeat(index, COUNTS.ravel()) for index in np.indices(COUNTS.shape).reshape(2, -1))
SHIFT_OF_X = np.array([[0.3], [-1.2], [0.7]])


def population(f):
    """Scores of all pairs, and of every x with every y, so their means are the exact expectations."""
    f = jnp.asarray(f)
    return f[X, Y], f[X[:, None], Y[None, :]]


def sample(seed=0, n=5, m=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=n), rng.normal(size=(n, m)), rng.normal(size=n)


def scores_for(estimator, f, u):
    return (*population(f), jnp.asarray(u)[X, Y]) if estimator.needs_u else population(f)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("dv", LOG_R + 3),
        ("mine", LOG_R - 3),
        ("nwj", LOG_R + 1),
        ("js", LOG_R),
        ("js_nwj", LOG_R),
        ("f_divergence", LOG_R),
        ("smile", LOG_R),
        ("flo", LOG_R + SHIFT_OF_X),
    ],
)
def test_the_best_critic_has_the_least_loss_and_reads_the_mutual_information(name, f):
    estimator = ESTIMATORS[name]()

    @jax.jit
    def evaluate(f, u):
        def loss(f, u):
            return estimator.loss(estimator.carry, *scores_for(estimator, f, u))[0]

        return estimator.value(*scores_for(estimator, f, u)), *jax.value_and_grad(loss, argnums=(0, 1))(f, u)

    value, best, slopes = evaluate(f, -LOG_R)
    np.testing.assert_allclose(value, I, rtol=1e-12)
    np.testing.assert_allclose(slopes, 0, atol=1e-12)
    rng = np.random.default_rng(0)
    assert all(evaluate(f + rng.normal(size=f.shape), -LOG_R + rng.normal(size=f.shape))[1] > best for _ in range(20))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_nwj_of_the_log_ratio_itself_is_short():
    np.testing.assert_allclose(values.nwj(*population(LOG_R)), I - 1 / math.e, rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "name", sorted(ESTIMATORS.keys() - {"nt_xent"})
)  # what is wrong there is whose scores it reads
def test_only_what_is_called_a_lower_bound_is_one(name):
    estimator = ESTIMATORS[name]()

    @jax.jit
    def excess(f, u):
        positives, negatives, *u = scores_for(estimator, f, u)
        # The mean over one positive and one negative at a time is an exact expectation too, at n = m = 1.
        one_by_one = [jnp.repeat(s, len(X))[:, None] for s in (positives, *u)]
        one_by_one.insert(1, negatives.reshape(-1, 1, 1))
        values = estimator.value(positives, negatives, *u), jnp.mean(jax.vmap(estimator.value)(*one_by_one))
        return jnp.array(values) - I

    rng = np.random.default_rng(1)
    scales = np.repeat([0.3, 1.0, 3.0], 10)[:, None, None, None]
    critics = np.stack([LOG_R + 1, -LOG_R]) + scales * rng.normal(size=(30, 2, 3, 3))
    above = max(float(jnp.max(excess(f, u))) for f, u in critics)
    assert (above <= 1e-9) == (estimator.kind == "lower bound")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "anchors"), [("nt_xent", "all"), ("info_nce_symmetric", "both")])
def test_negatives_of_the_own_view_pass_the_truth(name, anchors):
    """Two classes, 6 pairs and the class's perfect critic: I = 1 bit. It sums over all 64 combinations of classes."""
    estimator = ESTIMATORS[name]()
    classes = jnp.array(list(itertools.product((0, 1), repeat=6)))
    views = jnp.concatenate([classes, classes], axis=1) if anchors == "all" else classes
    scores = jnp.where(views[:, :, None] == views[:, None, :], 0.0, -1e4)
    bits = jnp.mean(jax.vmap(lambda s: estimator.value(*values.anchored(s, anchors)))(scores)) / math.log(2)
    np.testing.assert_allclose(bits, 1.0055 if anchors == "all" else 0.8648, atol=5e-5)


@pytest.mark.usefixtures("float64")
def test_info_nce_of_the_perfect_critic():
    # N equally likely classes, K candidates: log K − E log(1 + B), B ~ Bin(K−1, 1/N) of them of the same class.
    n, k = 4, 3
    classes = np.array(list(itertools.product(range(n), repeat=k)))
    same = jnp.array(np.where(classes[:, 1:] == classes[:, :1], 40.0, 0.0))
    same_class = stats.binom(k - 1, 1 / n).pmf(np.arange(k))
    expected = math.log(k) - same_class @ np.log1p(np.arange(k))
    np.testing.assert_allclose(ESTIMATORS["info_nce"]().value(jnp.full(len(same), 40.0), same), expected, rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_values_and_losses_by_their_formulas():
    positives, negatives, u = sample()
    log_z = logsumexp(negatives) - np.log(negatives.size)
    js = np.mean(np.log1p(np.exp(-positives))) + np.mean(np.log1p(np.exp(negatives)))
    clipped = np.clip(np.exp(negatives), math.exp(-0.5), math.exp(0.5))
    terms = [1 - u[i] - np.mean(np.exp(negatives[i] - positives[i] - u[i])) for i in range(5)]
    softmax = [np.exp(positives[i]) / (np.exp(positives[i]) + np.exp(negatives[i]).sum()) for i in range(5)]
    values = {
        "info_nce": np.mean(np.log(5 * np.array(softmax))),
        "dv": positives.mean() - log_z,
        "mine": positives.mean() - log_z,
        "nwj": 1 + np.mean(positives - 1) - np.mean(np.exp(negatives - 1)),
        "js": positives.mean(),
        "js_nwj": 1 + np.mean(positives) - np.mean(np.exp(negatives)),
        "smile": positives.mean() - np.log(clipped.mean()),
        "flo": np.mean(terms),
        "f_divergence": positives.mean(),
        "anchor": positives.mean(),
    }
    losses = {name: -value for name, value in values.items() if name not in ("anchor", "f_divergence")}
    losses |= dict.fromkeys(("js", "js_nwj", "smile"), js)
    for name, value in values.items():
        estimator = ESTIMATORS["smile"](tau=0.5) if name == "smile" else ESTIMATORS[name]()
        scores = [jnp.array(s) for s in (positives, negatives, u)][: 3 if estimator.needs_u else 2]
        assert estimator.name == name
        np.testing.assert_allclose(estimator.value(*scores), value, rtol=1e-12, err_msg=name)
        if name in losses:
            np.testing.assert_allclose(estimator.loss(estimator.carry, *scores)[0], losses[name], rtol=1e-12)


# The generator φ(r), and its slope.
GENERATORS = {
    "kl": (lambda r: r * math.log(r), lambda r: math.log(r) + 1),
    "reverse_kl": (lambda r: -math.log(r), lambda r: -1 / r),
    "hellinger": (lambda r: (math.sqrt(r) - 1) ** 2, lambda r: 1 - 1 / math.sqrt(r)),
    "pearson": (lambda r: (r - 1) ** 2, lambda r: 2 * (r - 1)),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", GENERATORS)
def test_an_f_divergence_by_its_generator_and_least_at_the_density_ratio(name):
    generator, slope = GENERATORS[name]
    estimator = estimators.f_divergence(name)
    positives, negatives, _ = sample()
    of_joint = [slope(math.exp(f)) for f in positives]
    conjugate = [math.exp(f) * slope(math.exp(f)) - generator(math.exp(f)) for f in negatives.ravel()]
    loss = jax.jit(lambda f, g: estimator.loss((), f, g)[0])
    np.testing.assert_allclose(loss(positives, negatives), np.mean(conjugate) - np.mean(of_joint), rtol=1e-12)
    divergence = np.sum(Q * np.vectorize(generator)(P / Q))
    best, slopes = jax.value_and_grad(lambda f: loss(*population(f)))(jnp.asarray(LOG_R))
    np.testing.assert_allclose(best, -divergence, rtol=1e-12)
    np.testing.assert_allclose(slopes, 0, atol=1e-12)
    for seed in range(5):
        assert loss(*population(LOG_R + np.random.default_rng(seed).normal(size=LOG_R.shape))) > best


def test_an_unknown_divergence_is_named():
    with pytest.raises(InputError, match="unknown divergence 'tv'; choose one of kl, reverse_kl, hellinger, pearson"):
        estimators.f_divergence("tv")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("candidates", [None, 9])
def test_infonce_of_sums_is_anchor_by_anchor_what_the_candidates_sums_say(candidates):
    scores, k = np.random.default_rng(3).normal(size=(5, 5)), candidates or 5
    rows, columns = ([math.log(sum(math.exp(s) for s in axis)) for axis in matrix] for matrix in (scores, scores.T))
    of_rows = [math.log(k) + scores[i, i] - rows[i] for i in range(5)]
    of_both = [math.log(k) + scores[i, i] - 0.5 * (rows[i] + columns[i]) for i in range(5)]
    positives, rows, columns = map(np.array, (scores.diagonal(), rows, columns))
    for sums, expected in (((rows,), of_rows), ((rows, columns), of_both)):
        terms = values.info_nce_terms(positives, *sums, candidates=candidates)
        np.testing.assert_allclose(terms, expected, rtol=1e-12)
        value = values.info_nce_of_sums(jnp.array(positives), *map(jnp.array, sums), candidates=candidates)
        np.testing.assert_allclose(value, np.mean(expected), rtol=1e-12)
    if candidates is None:
        sums = (jnp.array(positives), jnp.array(rows), jnp.array(columns))
        for name, of_scores, expected in (
            ("info_nce", values.info_nce, of_rows),
            ("info_nce_symmetric", values.info_nce_symmetric, of_both),
        ):
            np.testing.assert_allclose(ESTIMATORS[name]().from_sums(*sums), np.mean(expected), rtol=1e-12)
            np.testing.assert_allclose(of_scores(jnp.array(scores)), np.mean(expected), rtol=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_ceiling_is_reached_and_not_passed(name):
    estimator = ESTIMATORS[name]()
    positives, negatives = jnp.full(6, 60.0), jnp.full((6, 7), -60.0)
    value = jax.jit(estimator.value)(positives, negatives, *[jnp.full(6, -60.0)] * estimator.needs_u)
    if name in ("info_nce", "info_nce_symmetric", "nt_xent"):
        assert estimator.candidates(8) == (15 if name == "nt_xent" else 8)
        np.testing.assert_allclose(value, math.log(8), rtol=1e-6)
    else:
        assert estimator.candidates is None
        assert value > 50


def test_mine_divides_by_the_running_mean_of_all_steps():
    rate, steps = 0.1, [sample(seed)[:2] for seed in range(6)]
    estimator = ESTIMATORS["mine"](rate=rate)

    def step(carry, scores):
        def loss(*scores):
            return estimator.loss(carry, *scores)

        slopes, carry = jax.grad(loss, argnums=(0, 1), has_aux=True)(*scores)
        return carry, slopes

    stacked = tuple(jnp.array(np.stack(s)) for s in zip(*steps, strict=True))
    _, (grad_positives, grad_negatives) = jax.lax.scan(step, estimator.carry, stacked)
    means = [np.mean(np.exp(negatives)) for _, negatives in steps]
    for t, (_, negatives) in enumerate(steps):
        weights = rate * (1 - rate) ** np.arange(t, -1, -1)
        running = weights @ means[: t + 1] / weights.sum()
        np.testing.assert_allclose(grad_positives[t], -1 / 5, rtol=1e-5)
        np.testing.assert_allclose(grad_negatives[t], np.exp(negatives) / running / negatives.size, rtol=1e-4)


def test_off_diagonal_is_cyclic():
    scores = np.arange(36.0).reshape(6, 6)
    positives, negatives = values.off_diagonal(jnp.array(scores))
    np.testing.assert_array_equal(positives, np.diagonal(scores))
    expected = [[scores[i, (i + 1 + j) % 6] for j in range(5)] for i in range(6)]
    np.testing.assert_array_equal(negatives, expected)


@pytest.mark.slow
def test_derange_gives_every_other_row_alike():
    keys = jax.random.split(jax.random.key(0), 4000)
    partners = np.asarray(jax.vmap(partial(values.derange, n=5))(keys))[:, :, 0]
    assert np.all(np.sort(partners, axis=1) == np.arange(5))
    counts = np.stack([np.bincount(partners[:, i], minlength=5) for i in range(5)])
    assert np.all(np.diagonal(counts) == 0)
    assert all(stats.chisquare(np.delete(row, i)).pvalue > 1e-3 for i, row in enumerate(counts))


@pytest.mark.slow
def test_shuffle_draws_every_permutation_alike():
    keys = jax.random.split(jax.random.key(0), 6000)
    partners = np.asarray(jax.vmap(partial(values.shuffle, n=3))(keys))[:, :, 0]
    assert stats.chisquare(np.unique(partners @ [9, 3, 1], return_counts=True)[1]).pvalue > 1e-3
    assert len(np.unique(partners, axis=0)) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("permutations", ["all", "cycles"])
def test_shuffled_negatives_cannot_pass_log_n(permutations):
    # y = x, one of 8 symbols: I = log 8. Every batch of n = 3 and every permutation of it, equally likely.
    symbols, n = 8, 3
    moves = [p for p in itertools.permutations(range(n)) if permutations == "all" or p in ((1, 2, 0), (2, 0, 1))]
    batches = np.array(list(itertools.product(range(symbols), repeat=n)))
    x = np.concatenate([batches] * len(moves)).ravel()
    y = np.concatenate([batches[:, p] for p in map(list, moves)]).ravel()

    def nwj(same, other):
        scores = jnp.where(jnp.array(x == y), same, other)[:, None]
        return values.nwj(jnp.full(len(x), same), scores)

    # NWJ is concave: it is largest where its slope is 0.
    share = 1 / symbols if permutations == "cycles" else (1 - 1 / n) / symbols + 1 / n
    best, slopes = jax.value_and_grad(nwj, argnums=(0, 1))(1 - math.log(share), -40.0)
    np.testing.assert_allclose(slopes, 0, atol=1e-12)
    np.testing.assert_allclose(best, -math.log(share), rtol=1e-12)
    assert (best < math.log(n)) == (permutations == "all")


EXTREMES = list(itertools.product((1e4, -1e4, "both"), repeat=2))


@pytest.mark.parametrize("name", [*ESTIMATORS, *GENERATORS])
def test_scores_of_ten_thousand(name):
    estimator = estimators.f_divergence(name) if name in GENERATORS else ESTIMATORS[name]()

    @jax.jit
    def evaluate(*scores):
        loss = partial(estimator.loss, estimator.carry)
        (loss_nats, carry), slopes = jax.value_and_grad(loss, argnums=tuple(range(len(scores))), has_aux=True)(*scores)
        slope_of_value = jax.grad(estimator.value, argnums=tuple(range(len(scores))))(*scores)
        return estimator.value(*scores), loss_nats, carry, slopes, slope_of_value

    def fill(shape, kind):
        signs = np.random.default_rng(0).choice([-1e4, 1e4], size=shape)
        return jnp.array(signs if kind == "both" else np.full(shape, kind), jnp.bfloat16)

    for positive, negative in EXTREMES:
        scores = [fill(6, positive), fill((6, 5), negative)]
        for u in (1e4, -1e4, "both") if estimator.needs_u else (None,):
            seen = evaluate(*scores, *([] if u is None else [fill(6, u)]))
            assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(seen))
            assert seen[0].dtype == seen[1].dtype == jnp.float32
            if estimator.kind == "lower bound" and positive == negative:
                assert seen[0] <= 1e-6


@pytest.mark.parametrize("name", ["nwj", "flo"])
def test_adam_brings_runaway_scores_back(name):
    estimator, optimizer = ESTIMATORS[name](), optax.adam(1.0)

    def loss(offset):
        offsets = (jnp.zeros(4), jnp.full((4, 3), offset), jnp.zeros(4))
        return estimator.loss((), *offsets[: 3 if estimator.needs_u else 2])[0]

    @jax.jit
    def step(offset, state):
        updates, state = optimizer.update(jax.grad(loss)(offset), state)
        return optax.apply_updates(offset, updates), state

    offset = jnp.array(1e4)
    state = optimizer.init(offset)
    for _ in range(5):
        offset, state = step(offset, state)
    assert 9994 < offset < 9996


@pytest.mark.parametrize("name", ESTIMATORS)
def test_bfloat16_scores_are_summed_in_float32(name):
    estimator = ESTIMATORS[name]()
    coarse = [jnp.array(s, jnp.bfloat16) for s in sample(n=3000)][: 3 if estimator.needs_u else 2]
    fine = [s.astype(jnp.float32) for s in coarse]
    np.testing.assert_allclose(estimator.value(*coarse), estimator.value(*fine), rtol=1e-6)
    for ours, theirs in zip(estimator.loss((0.0, 0.0), *coarse), estimator.loss((0.0, 0.0), *fine), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_bfloat16_matrix_is_summed_in_float32():
    matrix = jnp.array(np.random.default_rng(2).normal(size=(300, 300)), jnp.bfloat16)
    wide = np.asarray(matrix, np.float64)
    expected = math.log(300) + np.mean(np.diagonal(wide) - logsumexp(wide, axis=1))
    np.testing.assert_allclose(values.info_nce(matrix), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smile", {"tau": 0.0}, "tau = 0.0"),
        ("mine", {"rate": 1.0}, "rate = 1.0"),
        ("mine", {"rate": 0.0}, "rate = 0.0"),
        ("anchor", {"nu": 0.0}, "nu = 0.0: without an anchor"),
    ],
)
def test_options_that_make_no_sense(name, options, message):
    with pytest.raises(InputError, match=message):
        ESTIMATORS[name](**options)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_constructor_is_public_and_says_what_it_is(name):
    """Each parameter has a default, a type and a line. A constructor names its source; equal calls give one object."""
    constructor = getattr(estimators, name)
    assert constructor is ESTIMATORS[name]
    assert constructor().name == name
    assert constructor() is constructor()
    assert "Source: " in constructor.__doc__
    for parameter in signature(constructor).parameters.values():
        assert parameter.default is not parameter.empty
        assert parameter.annotation is not parameter.empty
        assert re.search(rf"^ *{parameter.name}: ", constructor.__doc__, re.MULTILINE)


def test_a_constructors_argument_reaches_the_value():
    scores = jnp.zeros(3), jnp.full((3, 2), 9.0)
    for tau in (1.0, 2.0):
        np.testing.assert_allclose(estimators.smile(tau=tau).value(*scores), -tau, rtol=1e-6)
    assert estimators.smile(tau=1.0) is estimators.smile(tau=1.0) != estimators.smile(tau=2.0)


def test_a_name_is_what_the_table_says_now(monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "own", partial(estimators.smile, tau=2.0))
    assert estimators.resolve("own") is estimators.smile(tau=2.0)
    monkeypatch.setitem(ESTIMATORS, "own", estimators.js)
    assert estimators.resolve("own") is estimators.js()


def test_a_copy_with_another_value_does_not_keep_the_ways_to_the_old_one():
    usual = ESTIMATORS["info_nce_symmetric"]()
    assert replace(usual, heading="Mine").from_sums is usual.from_sums is not None
    assert replace(usual, heading="Mine").from_embeddings is usual.from_embeddings is not None
    doubled = replace(usual, value=lambda p, n: 2 * usual.value(p, n))
    for other in (doubled, replace(doubled, heading="Mine"), replace(usual, anchors="x")):
        assert other.from_sums is other.from_embeddings is None
    assert replace(usual, value=doubled.value, from_sums=min).from_sums is min

    z = jnp.eye(4)
    options = {"temperature": 1.0, "axis_name": "a"}
    read = [jax.vmap(partial(one.read_embeddings, **options), axis_name="a") for one in (usual, doubled)]
    once, twice = (float(by(z[None], z[None])[0]) for by in read)
    assert once == pytest.approx(float(usual.read(z)))
    assert twice == pytest.approx(2 * once)
