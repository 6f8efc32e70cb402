"""mi.estimate on arrays: right where the truth is known, honest where it cannot be, and clear about bad input."""

import re
from dataclasses import replace
from inspect import Parameter, signature

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.spatial import cKDTree
from scipy.special import digamma, ndtri

from mirigor_jax import mi
from mirigor_jax.data.draws import row_keys
from mirigor_jax.errors import InputError
from mirigor_jax.mi import api, fit, read
from mirigor_jax.mi.certify import Certified
from mirigor_jax.mi.confidence import BATCHES, FOLDS, t_interval
from mirigor_jax.mi.distributions import Gaussian, MultivariateNormal
from mirigor_jax.mi.estimators import ESTIMATORS, resolve
from mirigor_jax.mi.gaussian import center_and_spread, gaussian_copula_embeddings, squash
from mirigor_jax.mi.values import anchored

QUICK = {"steps": 200, "batch_size": 32}


def draw(distribution, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, y = distribution.sample(jax.random.key(seed), n)
    return np.asarray(x), np.asarray(y)


@pytest.fixture(scope="module")
def gaussian():
    return draw(Gaussian(3, 1.0), 2000)


@pytest.fixture(scope="module")
def gaussian_estimate(gaussian):
    return mi.estimate(*gaussian, **QUICK)


def test_a_gaussian_is_measured_bounded_and_said(gaussian_estimate):
    assert gaussian_estimate.value_nats == pytest.approx(1.0, abs=0.1)
    interval = gaussian_estimate.interval
    assert interval.kind == FOLDS
    assert interval.lower_bits < gaussian_estimate.value_bits < interval.upper_bits
    assert 0.5 / np.log(2) < gaussian_estimate.lower_bits < 1.0 / np.log(2)
    assert (gaussian_estimate.certificate, gaussian_estimate.verdict, gaussian_estimate.kind) == (
        "infonce",
        "bounded",
        "lower bound",
    )
    assert gaussian_estimate.certificates.keys() == {"infonce"}
    assert gaussian_estimate.lower_bits == gaussian_estimate.certificates["infonce"].lower_bits
    assert gaussian_estimate.info_nce is None  # the value itself is InfoNCE
    assert (gaussian_estimate.k, gaussian_estimate.pairs) == (400, 400)
    assert gaussian_estimate.ceiling_bits == pytest.approx(np.log2(400))
    assert re.search(r"reads 1\.\d{3} bits \(lower bound\); .* at least", str(gaussian_estimate))


def test_the_same_call_gives_the_same_numbers(gaussian, gaussian_estimate):
    assert mi.estimate(*gaussian, **QUICK) == gaussian_estimate
    # From the base, which is right here, no step gains: without it the seed shows.
    first, second = (mi.estimate(*gaussian, seed=seed, base=False, **QUICK) for seed in (0, 1))
    assert first.value_bits != second.value_bits


@pytest.mark.slow
def test_independence_is_nothing():
    x, y = draw(Gaussian(4, 0.0), 1000)
    estimate = mi.estimate(x.astype(np.float64) + 1e6, y, **QUICK)
    assert abs(estimate.value_bits) < 0.05
    assert estimate.lower_bits == 0


@pytest.mark.slow
def test_one_pair_of_columns_is_found_among_sixty():
    """The base is shrunk because directions fitted to noise would hide it; an unshrunk base finds nothing here."""
    results = []
    for seed in range(3):
        x, y = np.random.default_rng(seed).normal(size=(2, 1000, 60))
        y[:, 0] = 0.75 * x[:, 0] + np.sqrt(1 - 0.75**2) * y[:, 0]
        results.append(mi.estimate(x, y, seed=seed, **QUICK).value_nats)
    truth = -np.log(1 - 0.75**2) / 2
    assert 0.5 * truth < np.mean(results) < truth + 0.05


def ksg(x: np.ndarray, y: np.ndarray, neighbors: int = 3) -> float:
    """I in nats by nearest neighbors: Kraskov et al. 2004, eq. 8."""
    distances, _ = cKDTree(np.hstack([x, y])).query(np.hstack([x, y]), neighbors + 1, p=np.inf)
    radius = np.nextafter(distances[:, -1], 0)
    within = [cKDTree(v).query_ball_point(v, radius, p=np.inf, return_length=True) for v in (x, y)]
    return float(digamma(neighbors) + digamma(len(x)) - np.mean([digamma(n) for n in within], axis=1).sum())


@pytest.mark.slow
def test_nearest_neighbors_agree_where_no_formula_does():
    """A ring and a wave, which no Gaussian copula fits. It takes means of three samples: 600 test pairs err by 0.04."""
    x, y = draw(Gaussian(1, 0.7), 3000)
    assert ksg(x, y) == pytest.approx(0.7, abs=0.05)
    rings, waves = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        angle, noise = rng.uniform(0, 2 * np.pi, (3000, 1)), rng.normal(size=(2, 3000, 1))
        rings.append((np.cos(angle) + 0.1 * noise[0], np.sin(angle) + 0.1 * noise[1]))
        waves.append((angle, np.sin(2 * angle) + 0.3 * noise[0]))
    for pairs in (rings, waves):
        values = [row[0].value_nats for row in mi.estimate_all(pairs)]
        assert np.mean(values) == pytest.approx(np.mean([ksg(*pair) for pair in pairs]), abs=0.06)


@pytest.mark.slow
def test_clusters_whose_gaussian_copula_is_wrong_are_found():
    """Six bits as 64 tight clusters: all columns are correlated, so the base's scores are far too large for them."""
    rng = np.random.default_rng(0)
    signs, directions = rng.choice([-1.0, 1.0], (4000, 6)), rng.normal(size=(6, 24))
    x, y = (signs @ directions + 0.02 * rng.normal(size=(4000, 24)) for _ in range(2))
    info_nce, nwj = mi.estimate_all([(x, y)], estimators=("info_nce_symmetric", "nwj"), steps=300)[0]
    assert 5.5 < info_nce.value_bits < 6.05
    assert 4 < nwj.value_bits < 6.1


def test_monotonic_maps_of_the_columns_change_little(gaussian, gaussian_estimate):
    x, y = gaussian
    mapped = mi.estimate(x**3, np.sinh(2 * y), **QUICK)
    assert mapped.value_bits == pytest.approx(gaussian_estimate.value_bits, abs=0.05)


class OnlyDLPack:
    """An array of another framework that NumPy can't convert, but that has DLPack's methods."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("wrap", [jnp.asarray, OnlyDLPack, lambda a: a.astype(np.float64), np.asfortranarray])
def test_arrays_of_any_framework_are_the_same(gaussian, gaussian_estimate, wrap):
    assert mi.estimate(wrap(gaussian[0]), wrap(gaussian[1]), **QUICK) == gaussian_estimate


@pytest.mark.slow
def test_integers_bools_and_bfloat16_are_numbers():
    classes = np.random.default_rng(0).integers(0, 4, 1000)
    for x in (classes, classes.astype(bool), jnp.asarray(classes, jnp.bfloat16)):
        estimate = mi.estimate(x, classes, **QUICK)
        truth = 2.0 if np.asarray(x).dtype != bool else 2 - 0.75 * np.log2(3)
        assert estimate.value_bits == pytest.approx(truth, abs=0.2)
        assert not estimate.warnings  # rows repeat, as those of discrete distributions do


@pytest.mark.slow
def test_fits_together_are_the_fits_alone():
    """Data sets, estimators and seeds share only a program and eight devices. The 15 fits do not divide by 8."""
    pairs = [draw(Gaussian(2, nats), 600) for nats in (0.2, 0.8, 1.5, 2.0, 2.5)]
    names = ["mine", "js", "nwj"]  # they read the base apart, where a critic has not left it
    together = mi.estimate_all(pairs, estimators=names, **QUICK)
    for pair, row in zip(pairs, together, strict=True):
        for name, one in zip(names, row, strict=True):
            alone = mi.estimate(*pair, estimator=name, **QUICK)
            np.testing.assert_allclose(one.seed_bits, alone.seed_bits, atol=5e-3)
            assert one.name == name
    assert len({result.seed_bits for row in together for result in row}) == 15


@pytest.mark.slow
def test_seeds_give_a_mean_a_spread_and_a_better_bound(gaussian):
    estimate = mi.estimate(*gaussian, num_critics=3, base=False, **QUICK)
    assert len(estimate.seed_bits) == 3
    assert estimate.mean_bits == pytest.approx(np.mean(estimate.seed_bits))
    assert estimate.spread_bits == pytest.approx(np.std(estimate.seed_bits, ddof=1))
    assert estimate.spread_bits > 0
    assert estimate.value_bits > estimate.mean_bits  # InfoNCE is concave in the scores
    assert " ± " in str(estimate)


@pytest.fixture(scope="module")
def everything(gaussian):
    """Estimates by every estimator except NT-Xent, which needs another critic."""
    names = [name for name in ESTIMATORS if name != "nt_xent"]
    return dict(zip(names, mi.estimate_all([gaussian], estimators=names, **QUICK)[0], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["js", "anchor", "smile", "dv", "mine"])
def test_a_plug_in_is_refused_a_certificate_and_stands_beside_a_bound(everything, name):
    estimate = everything[name]
    assert estimate.kind == ESTIMATORS[name]().kind != "lower bound"
    assert (estimate.lower_bits, estimate.certificate, estimate.verdict) == (None, None, "not-a-bound")
    reading = estimate.info_nce
    assert 0.4 / np.log(2) < reading.bits < 1.1 / np.log(2)
    assert (reading.batches, reading.interval, reading.ceiling_bits) == (1, None, np.log2(400))
    assert f"InfoNCE at K = 400 {reading.bits:.3f} bits" in str(estimate)
    assert "nothing is certified" in str(estimate)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nwj", "js_nwj", "flo", "info_nce", "info_nce_symmetric"])
def test_other_bounds_are_certified_by_their_critic(everything, name):
    estimate = everything[name]
    assert estimate.value_nats == pytest.approx(1.0, abs=0.12)
    assert 0.4 / np.log(2) < estimate.lower_bits < 1.0 / np.log(2)
    if name.startswith("info_nce"):
        assert estimate.info_nce is None
    else:
        assert estimate.lower_bits < estimate.info_nce.bits < 1.1 / np.log(2)


@pytest.mark.slow
@pytest.mark.parametrize("negatives", ["derange", "shuffle"])
def test_one_negative_a_row_is_enough(gaussian, negatives):
    options = {"estimator": "js_nwj", "negatives": negatives, "batch_size": 256, "steps": 300}
    assert mi.estimate(*gaussian, **options).value_nats == pytest.approx(1.0, abs=0.12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("critic", "base"),
    [
        ("separable", True),
        ("bilinear", True),
        ("cosine", False),
        (mi.JointCritic((16,), "elu", dropout=0.2), False),
    ],
)
def test_every_critic_learns(gaussian, critic, base):
    estimate = mi.estimate(*gaussian, critic=critic, base=base, **QUICK)
    assert (0.9 if base else 0.4) < estimate.value_nats < 1.1


@pytest.mark.slow
def test_nt_xent_is_estimated_by_a_critic_of_both_views(gaussian):
    estimate = mi.estimate(*gaussian, estimator="nt_xent", critic="cosine", **QUICK)
    assert estimate.verdict == "not-a-bound"
    assert estimate.ceiling_bits == pytest.approx(np.log2(799))
    assert 0.4 < estimate.value_nats < 1.2


@pytest.mark.slow
def test_nt_xent_reads_as_optax_does():
    z = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    loss = optax.losses.ntxent(jnp.asarray(z), jnp.tile(jnp.arange(6), 2), temperature=0.3)
    read = ESTIMATORS["nt_xent"]().value(*anchored(jnp.asarray(z @ z.T / 0.3), "all"))
    assert float(read) == pytest.approx(np.log(11) - float(loss), abs=1e-5)


def test_anchors_are_what_a_loop_says():
    scores = np.random.default_rng(0).normal(size=(6, 6))
    from_x, from_y = (sorted((s[i, i], sorted(np.delete(s[i], i))) for i in range(6)) for s in (scores, scores.T))
    from_all = sorted((scores[i, (i + 3) % 6], sorted(np.delete(scores[i], [i, (i + 3) % 6]))) for i in range(6))
    for anchors, expected in (("x", from_x), ("both", sorted(from_x + from_y)), ("all", from_all)):
        positives, negatives = map(np.asarray, anchored(jnp.asarray(scores, jnp.float32), anchors))
        read = sorted((p, sorted(n)) for p, n in zip(positives, negatives, strict=True))
        for (p, n), (q, m) in zip(read, expected, strict=True):
            np.testing.assert_allclose([p, *n], [q, *m], rtol=1e-6)


@pytest.mark.slow
def test_the_base_is_the_gaussian_density_ratio():
    """Canonical directions found in 40,000 rows of an unequal, correlated normal pair."""
    covariance = np.eye(5)
    covariance[0, 3] = covariance[3, 0] = 0.8
    covariance[1, 4] = covariance[4, 1] = covariance[0, 1] = covariance[1, 0] = 0.3
    distribution = MultivariateNormal(covariance, 3)
    x, y = draw(distribution, 40_000)
    parts_x, parts_y = ([v[:20_000], v[20_000:30_000], v[30_000:]] for v in (x, y))
    u, v = gaussian_copula_embeddings(parts_x, parts_y)
    error = np.sum(u[2] * v[2], axis=1) - np.asarray(
        distribution.log_ratio(jnp.asarray(parts_x[2]), jnp.asarray(parts_y[2]))
    )
    assert np.sqrt(np.mean(error**2)) < 0.05


def test_values_are_scaled_by_their_quartiles_and_rare_ones_by_their_deviation():
    """A normal column by its quartiles, a column of 0 and a few 1 by its deviation, a constant one not at all."""
    by = np.stack([ndtri(np.linspace(0.001, 0.999, 999)), np.arange(999) % 10 == 0, np.full(999, 3.0)], axis=1)
    wide, rare = by[:, 1].std(), np.array([[1.0, 1.0, 5.0]])
    np.testing.assert_allclose(
        squash(rare, *center_and_spread(by)), 2 * np.arcsinh([[1 / 2, 1 / wide / 2, 2 / 2]]), rtol=1e-2
    )


@pytest.mark.slow
@pytest.mark.compiles
def test_the_base_claims_nothing_of_noise():
    """200 columns fitted to 600 rows correlate almost perfectly there; on validation they do not."""
    x, y = np.random.default_rng(0).normal(size=(2, 1000, 200))
    [split] = api.split([(x, y)])
    assert np.all(split.base_x[2] @ split.base_y[2].T == 0)


@pytest.mark.slow
def test_a_large_k_is_read_in_blocks(gaussian):
    rates = {"batch_size": 64, "steps": 1, "learning_rate": 6e-3, "weight_decay": 1e-2}
    fit_config = fit.FitConfig(mi.SeparableCritic((8,), 4), (ESTIMATORS["info_nce"](),), **rates)
    x, y = (jnp.asarray(v[:768])[None] for v in gaussian)
    params = [fit_config.critic.init(jax.random.key(s), x[0], y[0], method="scores")["params"] for s in range(2)]
    stacked = jax.tree.map(lambda *p: jnp.stack(p), *params)
    scores = sum(fit_config.scores(p, x[0], y[0]) for p in params) / 2
    for name, expected in (("info_nce", mi.info_nce(scores)), ("info_nce_symmetric", mi.info_nce_symmetric(scores))):
        result = read.read_by_sums(fit_config, ESTIMATORS[name]().from_sums, stacked, x, y)
        np.testing.assert_allclose(result, [expected], atol=1e-5)


@pytest.mark.slow
def test_the_interval_covers_what_it_is_about():
    """InfoNCE of the exact density ratio at K = 200, jackknifed in one batch: 300 fresh samples, nominal 95 %."""
    distribution, estimator = Gaussian(2, 0.8), resolve("info_nce_symmetric")

    @jax.jit
    def sample(key):
        x, y = distribution.sample(key, 200)
        rows = jax.vmap(lambda one: distribution.log_ratio(jnp.broadcast_to(one, x.shape), y))(x)
        _, value, without = read.read(estimator, rows[None, None], None, 10)
        return value, without

    values, without = map(np.asarray, jax.lax.map(sample, jax.random.split(jax.random.key(0), 300)))
    intervals = [read.jackknife_interval(float(v), w, 0.95) for v, w in zip(values, without, strict=True)]
    low, high = np.transpose([(one.lower_bits, one.upper_bits) for one in intervals])
    bits = values.mean() / np.log(2)
    assert 0.9 < np.mean((low < bits) & (bits < high)) < 0.99


@pytest.mark.slow
def test_an_anchor_is_refused_a_certificate_and_nwj_is_not(gaussian):
    anchor, nwj = mi.estimate_all([gaussian], estimators=["anchor", "nwj"], **QUICK)[0]
    assert (anchor.lower_bits, anchor.verdict) == (None, "not-a-bound")
    assert (nwj.certificate, nwj.verdict) == ("infonce", "bounded")
    for estimate in (anchor, nwj):
        assert estimate.info_nce.bits == pytest.approx(1 / np.log(2), abs=0.2)


@pytest.mark.slow
def test_constant_columns_are_kept_and_told(gaussian, gaussian_estimate):
    x, y = gaussian
    constant = mi.estimate(np.hstack([x, np.ones((len(x), 1))]), y, **QUICK)
    assert constant.warnings == ("1 of 4 columns of x are constant",)
    assert constant.value_bits == pytest.approx(gaussian_estimate.value_bits, abs=0.1)


@pytest.mark.slow
def test_duplicates_across_the_split_withhold_the_certificate_and_a_few_are_left_out(gaussian, gaussian_estimate):
    assert gaussian_estimate.warnings == ()
    x, y = (np.concatenate([v[:500], v[:500]]) for v in gaussian)
    order = np.argsort(row_keys(1000))  # the rows with the smallest keys are test rows
    again = sum((i % 500) in {j % 500 for j in order[200:]} for i in order[:200])
    assert 0 < again < 200
    estimate = mi.estimate(x, y, **QUICK)
    assert (estimate.lower_bits, estimate.interval, estimate.certificate) == (None, None, None)
    assert (estimate.certificates, estimate.verdict) == ({}, "not-independent")
    assert f"withheld, as {again} of 200 test rows are copies" in str(estimate)
    stated = mi.estimate(x, y, rows="independent", **QUICK)
    assert (stated.verdict, stated.value_bits, stated.warnings) == ("bounded", estimate.value_bits, ())
    x, y = (v[:1000].copy() for v in gaussian)
    for view in (x, y):
        view[order[:4]] = view[order[-4:]]
    few = mi.estimate(x, y, **QUICK)
    assert few.warnings == ("4 of 200 test rows are copies of other rows and were left out",)
    assert (few.pairs, few.verdict) == (196, "bounded")


X, Y = np.random.default_rng(0).normal(size=(2, 200, 2))


def test_pairs_are_split_60_20_20_by_their_numbers_and_stand_in_the_keys_order():
    """The second column that critics read, a squashed value, identifies a row by its rank."""
    numbers = np.arange(250.0)[:, None]
    [split] = api.split([(numbers, numbers + 0.5)])
    by_key = np.argsort(row_keys(250))
    for view in (split.x, split.y):
        ranks = np.argsort(np.argsort(np.concatenate(view)[:, 1]))
        for part, expected in zip(
            np.split(ranks, [150, 200]), (by_key[100:], by_key[50:100], by_key[:50]), strict=True
        ):
            np.testing.assert_array_equal(part, expected)


def test_a_value_read_by_sums_is_that_of_the_scores_with_an_interval_over_batches(monkeypatch):
    """40 test pairs: three batches of 13, or one of 40, which has no interval."""
    near = X + 0.5 * Y
    whole = mi.estimate(X, near, k=13, steps=100)
    monkeypatch.setattr(api, "WHOLE", 10)
    by_sums = mi.estimate(X, near, k=13, steps=100)
    assert by_sums.value_bits == pytest.approx(whole.value_bits, rel=1e-5)
    assert (whole.interval.kind, by_sums.interval.kind) == (FOLDS, BATCHES)
    assert by_sums.interval.lower_bits < by_sums.value_bits < by_sums.interval.upper_bits
    assert mi.estimate(X, near, k=40, steps=100).interval is None


@pytest.mark.parametrize(("of_k", "lower_bits"), [(400, "value"), (401, 8.0)])
def test_a_lower_end_above_infonce_at_a_larger_k_is_brought_down_to_it(gaussian, monkeypatch, of_k, lower_bits):
    lucky = {"infonce": Certified(9.0, 8.0, None, {"k": of_k, "batches": 8})}
    monkeypatch.setattr(api, "certify", lambda *held_out: ("infonce", lucky))
    estimate = mi.estimate(*gaussian, **QUICK)
    assert estimate.k == 400
    assert estimate.lower_bits == (estimate.value_bits if lower_bits == "value" else lower_bits)
    assert estimate.certificates == lucky


def test_the_jackknife_of_a_mean_is_its_t_interval():
    """Folds of one value each leave the mean's own standard error; one fold leaves none."""
    values = np.random.default_rng(0).normal(size=12)
    without = (values.sum() - values) / 11
    interval = read.jackknife_interval(float(values.mean()), without, 0.9)
    np.testing.assert_allclose(
        (interval.lower_bits, interval.upper_bits), np.array(t_interval(values, 0.9)) / np.log(2), rtol=1e-12
    )
    assert interval.kind == FOLDS
    assert read.jackknife_interval(1.0, without[:1], 0.9) is None
    two = read.jackknife_interval(1.0, np.array([0.9, 1.1]), 0.9)  # error sqrt(1/2 of 0.02), of one degree of freedom
    np.testing.assert_allclose(two.upper_bits * np.log(2), 1 + 0.1 * np.tan(0.45 * np.pi), rtol=1e-9)


HOLED = np.where(np.arange(400).reshape(200, 2) % 191 == 7, np.nan, X)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X, Y[:100], {}, "x has 200 rows and y has 100: expected equal numbers"),
        (HOLED, Y, {}, r"x has 3 NaN or infinite values, the first at \[3, 1\]; drop"),
        (X, np.full_like(Y, np.inf), {}, "y has 400 NaN or infinite values"),
        (X[:20], Y[:20], {}, "20 pairs are too few to split"),
        (np.full((200, 2), "1", object), Y, {}, r"x\[0, 0\] is '1' \(str\): expected numbers; encode it, or drop that"),
        (np.where(X > 2, None, X), Y, {}, r"x has \d+ missing values?, the first at \[\d+, \d\]; drop those rows, or"),
        (X.ravel().view([("a", "f8"), ("b", "f8")]), Y, {}, "structured_to_unstructured"),
        ({"a": 1}, Y, {}, "x is of type dict: expected an array of numbers"),
        (X.astype(str), Y, {}, "x is of dtype <U32: expected numbers"),
        (X.astype(complex), Y, {}, "x is of dtype complex128: expected numbers"),
        (X.reshape(10, 20, 2), Y, {}, r"x has shape \(10, 20, 2\): expected \(n, d\)"),
        (X[:, :0], Y, {}, r"x has shape \(200, 0\)"),
        (X, Y, {"k": 41}, "k = 41: expected from 2 to the 40 pairs of the test part"),
        (X, Y, {"k": 1}, "k = 1: expected 2 or more"),
        (X, Y, {"estimator": "nce"}, "unknown estimator 'nce'; choose one of info_nce, info_nce_symmetric, nt_xent"),
        (X, Y, {"critic": "mlp"}, "unknown critic 'mlp'; choose one of joint, separable, bilinear, cosine"),
        (X, Y, {"negatives": "all"}, "unknown negatives 'all'; choose one of in-batch, derange, shuffle"),
        (X, Y, {"estimator": "nt_xent"}, "it needs critic='cosine'"),
        (X, Y, {"batch_size": 121}, "batch_size = 121 exceeds the 120 pairs of the fit part"),
        (X, Y, {"num_critics": 0}, "num_critics = 0: expected 1 or more"),
        (X, Y, {"weight_decay": -1.0}, "weight_decay = -1.0: expected 0 or more"),
        (X, Y, {"confidence": 95.0}, r"confidence = 95.0: expected in \[0.5, 1\)"),
    ],
)
def test_bad_input_is_one_clear_line(x, y, options, message):
    with pytest.raises(InputError, match=message) as error:
        mi.estimate(x, y, **options)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_fewest_pairs_that_are_taken_suffice():
    x, y = np.random.default_rng(0).normal(size=(2, api.LEAST, 2))
    assert mi.estimate(x, y, steps=100).lower_bits == 0


def test_data_sets_of_one_call_have_one_shape():
    with pytest.raises(InputError, match=r"data sets have shapes .*\(200, 1\).*: expected one shape"):
        mi.estimate_all([(X, Y), (X[:, :1], Y)])


def test_only_what_needs_no_score_matrix_is_read_at_a_large_k(monkeypatch):
    monkeypatch.setattr(api, "WHOLE", 30)
    with pytest.raises(InputError, match="k = 35: beyond 30 only info_nce and info_nce_symmetric are read, not dv"):
        mi.estimate_all([(X, Y)], estimators=["info_nce", "dv"], k=35)


def test_both_calls_show_the_same_options_and_say_what_each_is():
    """`help` and editors show every option by its name, with a type and a line in the docstring."""
    estimate, all_ = (dict(signature(call).parameters) for call in (mi.estimate, mi.estimate_all))
    shared = estimate.keys() - {"x", "y", "estimator"}
    assert shared == all_.keys() - {"pairs", "estimators"}
    for name in shared:
        assert (estimate[name].default, estimate[name].annotation) == (all_[name].default, all_[name].annotation)
        assert estimate[name].kind is all_[name].kind is Parameter.KEYWORD_ONLY
        assert re.search(rf"^ +{name}: ", mi.estimate.__doc__, re.MULTILINE)
        assert re.search(rf"\b{name}\b", mi.estimate_all.__doc__)


class Asked(Exception):
    """Raised instead of a fit, with the fit's arguments."""


def own_estimator() -> mi.Estimator:
    plain = mi.estimators.js()
    return mi.Estimator("own", "not a bound", "a copy", plain.value, plain.loss)


def test_an_estimator_of_ones_own_is_one_entry(monkeypatch):
    def fit_members(fit_config, *others):
        raise Asked(fit_config.estimators)

    monkeypatch.setattr(fit, "fit_critics", fit_members)
    monkeypatch.setitem(mi.ESTIMATORS, "own", own_estimator)
    other = mi.estimators.smile(tau=1.0)
    with pytest.raises(Asked) as asked:
        mi.estimate_all([(X, Y)], estimators=["own", other])
    (itself, second), *_ = asked.value.args
    assert (itself.name, second) == ("own", other)
    with pytest.raises(Asked) as again:
        mi.estimate(X, Y, estimator="own")
    assert again.value.args == ((itself,),)  # the same object, so that no program is compiled twice


@pytest.mark.slow
def test_an_estimator_of_ones_own_is_estimated_as_the_shipped_one(monkeypatch, gaussian):
    monkeypatch.setitem(mi.ESTIMATORS, "own", own_estimator)
    itself, shipped = (mi.estimate(*gaussian, estimator=name, **QUICK) for name in ("own", "js"))
    assert itself == replace(shipped, name="own", kind="not a bound", note="a copy")
