"""mi.labels: I_class against closed forms and integrals, the promises of its design, and its sentences."""

import math
from dataclasses import replace
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from mirigor_jax import probes
from mirigor_jax.data import array_files
from mirigor_jax.data.draws import parts_of, row_keys
from mirigor_jax.data.sources.table import labeled
from mirigor_jax.errors import InputError
from mirigor_jax.fitting import in_batches
from mirigor_jax.mi import api, certify, labels, measure
from mirigor_jax.mi.certificates import (
    classifier_lower_bits,
    fano_bits,
    info_nce_lower_bits,
    posterior_lower_bits,
    stratified_trials,
)
from mirigor_jax.mi.certify import Certified
from mirigor_jax.mi.confidence import BATCHES, ERRORS, PAIRS, Interval, clopper_pearson_upper, t_interval
from mirigor_jax.mi.critics import BilinearCritic, Scorer
from mirigor_jax.mi.distributions import Discrete
from mirigor_jax.mi.estimators import max_info_nce_bits
from mirigor_jax.mi.labels import compare, estimate_labels, monitor
from mirigor_jax.mi.read import independent_values, pair_values

# One size, so that what one test compiles serves the next.
N, D, CLASSES = 4000, 4, 4
C = np.arange(N) % CLASSES
FAST = {"steps": 150}


def clusters(means, seed, labels_=C):
    """Rows with one column of unit normals around the class's mean, and further columns of noise."""
    h = np.random.default_rng(seed).normal(size=(len(labels_), D))
    h[:, 0] += np.asarray(means)[labels_]
    return h


def exact_bits(means, distribution):
    """I_class of unit normals around the means, by a two-dimensional sum over a fine grid."""
    x = np.linspace(min(means) - 8, max(means) + 8, 2001)
    density = stats.norm.pdf(x[:, None], np.asarray(means)[None, :])
    p, joint = density @ distribution, (density * distribution) @ density.T
    independent = np.outer(p, p)
    terms = np.where(joint > 0, joint * np.log2(joint / np.where(joint > 0, independent, 1)), 0)
    return float(terms.sum() * (x[1] - x[0]) ** 2)


def best_info_nce_bits(means, k):
    """Expected InfoNCE of the density ratio at k, for equally likely classes; standard error 0.003."""
    rng, means = np.random.default_rng(0), np.asarray(means)
    c = rng.integers(len(means), size=(40_000, k))
    densities = [stats.norm.pdf(rng.normal(means[c])[:, :, None], means) for _ in "xy"]
    x, y = (d / d.mean(axis=2, keepdims=True) for d in densities)
    ratio = np.einsum("bic,bjc->bij", x, y)
    terms = [np.log2(k * np.diagonal(ratio, axis1=1, axis2=2) / ratio.sum(axis=axis)) for axis in (1, 2)]
    return float(np.mean(terms))


def info_nce_loop(scores):
    """InfoNCE, both directions averaged, in nats, term by term."""
    k, total = len(scores), 0.0
    for i in range(k):
        total += math.log(k) + scores[i, i] - math.log(sum(math.exp(s) for s in scores[i]))
        total += math.log(k) + scores[i, i] - math.log(sum(math.exp(s) for s in scores[:, i]))
    return total / (2 * k)


def gaussian_scores(rng, batches, k, rho, gain=1.0):
    """Fresh batches of pairs of correlation rho under a critic that is `gain` times the log density ratio."""
    x, noise = rng.normal(size=(2, batches, k))
    y = rho * x + math.sqrt(1 - rho**2) * noise
    q = rho / (1 - rho**2)
    return gain * q * (x[:, :, None] * y[:, None, :] - rho / 2 * (x[:, :, None] ** 2 + y[:, None, :] ** 2))


@pytest.mark.parametrize("k", [2, 7, 40])
def test_pairs_average_to_strict_info_nce(k):
    scores = np.random.default_rng(k).normal(size=(k, k)) * 3
    assert pair_values(scores).mean() == pytest.approx(info_nce_loop(scores), abs=1e-12)


def test_pairs_deviate_by_their_influence():
    """It is the derivative of weighted InfoNCE, sum_i w_i (s_ii - log sum_j w_j e^s_ij), towards that pair alone."""
    scores = np.random.default_rng(3).normal(size=(12, 12)) * 2 + np.arange(12)[None, :] / 4

    def info_nce(w):
        forward, backward = (np.log(np.exp(s) @ w) for s in (scores, scores.T))
        return float(w @ (scores.diagonal() - 0.5 * (forward + backward)))

    start, step = np.full(12, 1 / 12), 1e-6
    ahead, behind = ([info_nce((1 - e) * start + e * one) for one in np.eye(12)] for e in (step, -step))
    derivative = (np.array(ahead) - np.array(behind)) / (2 * step)
    result = pair_values(scores)
    np.testing.assert_allclose(result - result.mean(), derivative, atol=1e-6)


def test_values_are_of_batches_from_eight_on_and_of_pairs_before():
    drawn = gaussian_scores(np.random.default_rng(0), 8, 5, 0.9)
    assert len(independent_values(drawn)) == 8
    assert len(independent_values(drawn[:7])) == 35


@pytest.mark.parametrize(
    ("test", "validation", "size"),
    [
        (32768, 32768, 1024),
        (4096, 32768, 256),
        (4096, 100, 100),
        (20, 400, 2),
        (320, 16, 16),
        (320, 15, 2),
        (50, 24, 3),
    ],
)
def test_score_matrices_are_sixteen_and_leave_validation_eight_batches(test, validation, size):
    assert certify.batch_rows(test, validation) == size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batches", "k", "rho"), [(1, 32, 0.8), (1, 200, 0.5), (1, 200, 0.95), (3, 40, 0.9), (20, 4, 0.9)]
)
def test_the_interval_covers_the_bound_at_its_own_k(batches, k, rho):
    drawn = gaussian_scores(np.random.default_rng(0), 600 * batches, k, rho).reshape(600, batches, k, k)
    values = [independent_values(scores) for scores in drawn]
    expected = np.mean(values)  # standard error: 1/24 of an interval's half width
    intervals = np.array([t_interval(v, 0.95) for v in values])
    covered = np.mean((intervals[:, 0] <= expected) & (expected <= intervals[:, 1]))
    assert 0.92 <= covered <= 0.98


@pytest.mark.slow
def test_the_paired_interval_covers_and_is_narrower_than_two():
    """Two critics score the same pairs. One is the log density ratio at 0.7 of its scale."""
    good, worse = (gaussian_scores(np.random.default_rng(1), 600, 128, 0.9, gain) for gain in (1.0, 0.7))
    values = [np.array([pair_values(scores) for scores in batches]) for batches in (good, worse)]
    differences = values[0] - values[1]
    intervals = np.array([t_interval(d, 0.95) for d in differences])
    covered = np.mean((intervals[:, 0] <= differences.mean()) & (differences.mean() <= intervals[:, 1]))
    assert 0.92 <= covered <= 0.98
    paired, alone = (np.var(v, axis=1).mean() for v in (differences, values[0]))
    assert paired < alone / 4


@pytest.mark.parametrize("rates", [(0.02, 0.02, 0.02), (0.0, 0.0, 0.6), (0.1, 0.02, 0.3), (0.9, 0.0, 0.001)])
@pytest.mark.parametrize("counts", [(40, 40, 20), (41, 39, 21), (60, 25, 15)])
def test_stratified_trials_limit_the_error_rate_in_95_percent(rates, counts):
    """Exactly: the number of errors is a sum of binomials, one a class."""
    frequencies, pmf = np.array([0.4, 0.4, 0.2]), np.ones(1)
    for rate, n in zip(rates, counts, strict=True):
        pmf = np.convolve(pmf, stats.binom.pmf(np.arange(n + 1), n, rate))
    rate, missed = float(frequencies @ rates), 0.0
    for errors, probability in enumerate(pmf):
        trials = stratified_trials(errors, np.array(counts), frequencies, 0.95)
        assert trials <= sum(counts)
        missed += probability * (clopper_pearson_upper(errors, trials, 0.95) < rate)
    assert missed <= 0.05


def test_stratified_trials_are_the_rows_where_proportions_are_exact():
    assert stratified_trials(3, np.array([40, 40, 20]), np.array([0.4, 0.4, 0.2]), 0.95) == 100


@pytest.mark.parametrize("shares", [{}, {"validation": 0.1, "test": 0.0}, {"validation": 0.0, "test": 0.0}])
def test_parts_are_shares_of_every_class_by_the_rows_keys(shares):
    """Against a loop: the rows of a class with the smallest keys are for testing, the next ones for validation."""
    validation, test = shares.get("validation", 0.2), shares.get("test", 0.2)
    classes = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 4], [500, 30, 10, 7]))
    keys, expected = row_keys(len(classes)), {"fit": [], "validation": [], "test": []}
    for c in (0, 1, 2, 4):
        rows = sorted(np.flatnonzero(classes == c), key=keys.__getitem__)
        tested, kept = (math.floor(share * len(rows) + 0.5) for share in (test, test + validation))
        for name, part in zip(
            ("test", "validation", "fit"), (rows[:tested], rows[tested:kept], rows[kept:]), strict=True
        ):
            expected[name] += part
    for part, rows in zip(parts_of(classes, keys, **shares), expected.values(), strict=True):
        np.testing.assert_array_equal(part, sorted(rows))


def test_a_rows_part_depends_on_its_number_and_the_rows_of_its_class_alone():
    """New names, other rows of other classes, and more rows after it leave a row in its part."""
    assert np.array_equal(row_keys(100), row_keys(1000)[:100])
    assert len(np.unique(row_keys(10_000))) == 10_000
    classes = np.random.default_rng(0).integers(0, 4, 1000)
    parts = parts_of(classes, row_keys(1000))
    assert [len(part) for part in parts] == pytest.approx([600, 200, 200], abs=4)
    others = np.where(classes == 3, 3, np.random.default_rng(1).integers(0, 3, 1000))
    more = np.concatenate([7 - others, np.random.default_rng(2).integers(5, 9, 500)])
    for part, moved in zip(parts, parts_of(more, row_keys(1500)), strict=True):
        np.testing.assert_array_equal(part[classes[part] == 3], moved[more[moved] == 4])


def test_pairs_are_of_one_class_of_disjoint_rows_and_parts():
    classes = np.random.default_rng(0).choice(3, 3000, p=[0.6, 0.3, 0.1])
    design = labels.Design.of(classes, 5, 0.95)
    parts = [design.fit, design.validation, design.test]
    assert sorted(np.concatenate(parts)) == list(range(3000))
    assert [len(part) for part in parts] == pytest.approx([1800, 600, 600], abs=3)
    for part in parts:
        np.testing.assert_allclose(np.bincount(classes[part]) / len(part), design.frequencies, atol=0.005)
    np.testing.assert_allclose(design.frequencies, np.bincount(classes) / 3000)
    for pairs, part in zip(design.pairs, parts[1:], strict=True):
        assert np.all(classes[pairs[:, 0]] == classes[pairs[:, 1]])
        assert len(np.unique(pairs)) == pairs.size
        assert np.isin(pairs, part).all()
    other = labels.Design.of(classes, 6, 0.95)
    for part, again in zip(parts, (other.fit, other.validation, other.test), strict=True):
        np.testing.assert_array_equal(part, again)
    assert not np.array_equal(design.pairs[1][:100], other.pairs[1][:100])


def test_pairs_have_independent_classes_of_the_labels_law():
    """Over seeds, class counts have a multinomial's mean and variance; fixed shares would have no variance."""
    classes = np.repeat([0, 1, 2], [500, 300, 200])
    designs = [labels.Design.of(classes, seed, 0.95) for seed in range(400)]
    drawn = np.array([np.bincount(classes[d.pairs[1][:, 0]], minlength=3) for d in designs])
    n = drawn.sum(axis=1)
    assert np.mean(n < n.max()) <= 0.02  # a class runs out of rows in at most 0.005 of all designs
    drawn, n = drawn[n == n.max()], n[n == n.max()]
    p = np.array([0.5, 0.3, 0.2])
    z = (drawn.mean(axis=0) - n[0] * p) / np.sqrt(n[0] * p * (1 - p) / 400)
    assert np.abs(z).max() < 3.5
    np.testing.assert_allclose(drawn.var(axis=0) / (n[0] * p * (1 - p)), 1, atol=0.25)  # standard error 0.07
    rows = np.array([50, 30, 20])  # pairs that the test rows of each class make
    assert stats.binom.sf(rows, n[0], p).sum() <= 0.1 * 0.05 < stats.binom.sf(rows, n[0] + 1, p).sum()


def held_out(seed, *, right=1.0, scale=8.0, exact=True, n=512):
    """Held-out pairs of 4 classes, scored by agreement. A one-hot representation is wrong with probability 1 - right.

    The posterior is the softmax of `scale` times a representation. The classifier picks its largest column.
    """
    rng = np.random.default_rng(seed)
    c_x = rng.integers(0, 4, n)
    c_y = c_x if exact else np.where(rng.random(n) < 0.3, rng.integers(0, 4, n), c_x)
    h_x, h_y = (
        np.eye(4)[np.where(rng.random(n) < right, c, rng.integers(0, 4, n))].astype(np.float32) for c in (c_x, c_y)
    )
    q_x, q_y = (special.softmax(scale * h.astype(np.float64), axis=1) for h in (h_x, h_y))
    scores = scale * in_batches(h_x, 32) @ in_batches(h_y, 32).swapaxes(1, 2)
    return certify.HeldOut(scores, certify.Classified(q_x, q_y, c_x, c_y, h_x.argmax(axis=1), c_x))


def seen(part, **changes):
    """The part with these changes to its `classified`, the models' output for its classes."""
    return replace(part, classified=replace(part.classified, **changes))


def ignorant(part):
    """The part with the output of a model that ignores representations and always finds one class likeliest."""
    frequencies = np.tile(special.softmax([1.0, 0.0, 0.0, 0.0]), (len(part.classified.c), 1))
    return seen(part, q_x=frequencies, q_y=frequencies, predicted=np.zeros_like(part.classified.c))


def test_the_certificate_is_validations_choice_and_every_one_is_below_the_truth():
    joint = np.eye(4) / 4
    certificate, result = certify.certify(held_out(0), held_out(1), joint, 0.95)
    assert set(result) == {"classifier", "posterior", "infonce"}
    assert all(0 < one.lower_bits < one.value_bits <= 2 for one in result.values())
    assert certificate != "infonce"
    # A model that knows nothing leaves the critic's scores, whatever the test part would have preferred.
    certificate, result = certify.certify(ignorant(held_out(0)), ignorant(held_out(1)), joint, 0.95)
    assert certificate == "infonce"
    certificate, result = certify.certify(ignorant(held_out(0)), held_out(1), joint, 0.95)
    assert certificate == "infonce"
    # A model that fails on the test part only is still the choice, though scores would serve better there.
    failing = replace(held_out(1, right=0.3), scores=held_out(1).scores)
    certificate, result = certify.certify(held_out(0), failing, joint, 0.95)
    assert certificate != "infonce"
    assert result["infonce"].lower_bits > result[certificate].lower_bits


def clopper_pearson(errors, n):
    """The two-sided interval of the error rate, by scipy."""
    interval = stats.binomtest(errors, n).proportion_ci(0.95, method="exact")
    return interval.low, interval.high


def test_certificates_rest_on_the_posteriors_and_predictions_that_are_given():
    """The classifier's certificate depends on its predictions alone, the posterior's on the posteriors alone."""
    joint, frequencies, part = np.eye(4) / 4, np.full(4, 0.25), held_out(1, right=0.9)
    result = certify.shown(part, held_out(0), joint, 0.95)
    itself = part.classified
    errors = int(np.sum(itself.predicted != itself.c))
    assert 0 < errors < 60
    low, high = clopper_pearson(errors, 512)
    classifier = result["classifier"]
    assert classifier.counts == {"errors": errors, "images": 512}
    assert classifier.lower_bits == classifier_lower_bits(errors, 512, frequencies, 0.95)
    assert classifier.value_bits == fano_bits(errors / 512, frequencies)
    assert classifier.interval.kind == ERRORS
    assert classifier.interval.lower_bits == pytest.approx(fano_bits(high, frequencies))
    assert classifier.interval.upper_bits == pytest.approx(fano_bits(low, frequencies))
    lower = posterior_lower_bits(itself.q_x, itself.q_y, itself.c_x, itself.c_y, joint, confidence=0.95)
    assert (result["posterior"].lower_bits, result["posterior"].counts) == (lower, {"pairs": 512})
    assert result["posterior"].interval.kind == PAIRS
    by_scores = info_nce_lower_bits(held_out(0).scores, part.scores, 0.95)
    infonce = result["infonce"]
    assert (infonce.lower_bits, infonce.value_bits) == (by_scores.lower_bits, by_scores.value_bits)
    assert infonce.counts == {"k": by_scores.k, "batches": by_scores.batches}
    assert infonce.interval.kind == BATCHES
    width = infonce.interval.upper_bits - infonce.interval.lower_bits
    assert width == pytest.approx(by_scores.t_upper_bits - by_scores.t_lower_bits)
    for one in result.values():
        assert one.lower_bits < one.value_bits
        assert one.interval.lower_bits < one.value_bits < one.interval.upper_bits
    right = certify.shown(seen(part, predicted=itself.c), held_out(0), joint, 0.95)
    assert (right["classifier"].counts["errors"], right["classifier"].value_bits) == (0, 2.0)
    assert (right["posterior"], right["infonce"]) == (result["posterior"], result["infonce"])
    blurred = certify.shown(seen(ignorant(part), predicted=itself.predicted), held_out(0), joint, 0.95)
    assert blurred["posterior"].lower_bits == blurred["posterior"].value_bits == 0 < lower
    assert blurred["classifier"] == result["classifier"]
    # Of rows that are a fixed number of each class, so many errors are as telling as in fewer draws.
    apart = certify.shown(seen(part, stratified=True), held_out(0), joint, 0.95)["classifier"]
    assert apart.counts["images"] == stratified_trials(errors, np.bincount(itself.c), frequencies, 0.95) < 512


def by_errors(counts, errors, frequencies, stratified=True):
    """The classifier's certificate for so many rows, and so many errors, of each class."""
    c = np.repeat(np.arange(len(counts)), counts)
    wrong = np.concatenate([np.arange(n) < e for n, e in zip(counts, errors, strict=True)])
    predicted = np.where(wrong, (c + 1) % len(counts), c)
    q = np.full((2, len(counts)), 1 / len(counts))
    pairs = np.zeros(2, int)
    part = certify.HeldOut(np.zeros((1, 2, 2)), certify.Classified(q, q, pairs, pairs, predicted, c, stratified))
    return certify.CERTIFICATES["classifier"].show(part, part, np.diag(frequencies), 0.95)


def test_the_classifiers_value_is_of_the_error_rate_in_the_population():
    """If the number of rows of each class is fixed, each class's own rate counts by the class's frequency."""
    frequencies, counts, errors = np.array([0.4, 0.4, 0.2]), (60, 25, 15), (3, 0, 2)
    rate = 0.4 * 3 / 60 + 0.4 * 0 / 25 + 0.2 * 2 / 15
    apart = by_errors(counts, errors, frequencies)
    assert apart.value_bits == pytest.approx(fano_bits(rate, frequencies))
    assert apart.value_bits != pytest.approx(fano_bits(5 / 100, frequencies), abs=1e-3)
    # Classes weigh from 0.4 / 0.6 to 0.4 / 0.25 times what they weigh among the rows.
    low, high = clopper_pearson(5, 100)
    ends = fano_bits(high * 0.4 / 0.25, frequencies), fano_bits(low * 0.4 / 0.6, frequencies)
    assert (apart.interval.lower_bits, apart.interval.upper_bits) == pytest.approx(ends)
    drawn = by_errors(counts, errors, frequencies, stratified=False)
    assert drawn.value_bits == fano_bits(5 / 100, frequencies)


@pytest.mark.parametrize("rates", [(0.02, 0.02, 0.02), (0.0, 0.0, 0.1), (0.05, 0.02, 0.1)])
@pytest.mark.parametrize("counts", [(40, 40, 20), (60, 25, 15)])
def test_the_classifiers_interval_covers_in_95_percent(rates, counts):
    """Exactly: the number of errors is a sum of binomials, one a class."""
    frequencies, pmf = np.array([0.4, 0.4, 0.2]), np.ones(1)
    for rate, n in zip(rates, counts, strict=True):
        pmf = np.convolve(pmf, stats.binom.pmf(np.arange(n + 1), n, rate))
    expected, missed = fano_bits(float(frequencies @ rates), frequencies), 1 - pmf[:40].sum()
    assert expected > 0.1
    for errors, probability in enumerate(pmf[:40]):
        interval = by_errors(counts, (errors, 0, 0), frequencies).interval  # whichever class they are of
        missed += probability * (not interval.lower_bits <= expected <= interval.upper_bits)
    assert missed <= 0.05


def test_classes_that_differ_between_views_have_no_classifiers_certificate():
    joint = 0.7 * np.eye(4) / 4 + 0.3 / 16
    certificate, result = certify.certify(
        held_out(0, exact=False, n=4096), held_out(1, exact=False, n=4096), joint, 0.95
    )
    assert set(result) == {"posterior", "infonce"}
    truth = float(np.sum(joint * np.log2(joint * 16)))
    assert 0 < result[certificate].lower_bits < result[certificate].value_bits
    assert result[certificate].lower_bits <= truth


def test_pairs_without_classes_have_the_certificates_of_their_scores(monkeypatch):
    validation, test = (replace(held_out(seed), classified=None) for seed in (0, 1))
    certificate, result = certify.certify(validation, test, None, 0.95)
    assert certificate == "infonce"
    assert result == {"infonce": certify.shown(held_out(1), held_out(0), np.eye(4) / 4, 0.95)["infonce"]}

    # One more is one entry: chosen by validation's scores, told in its own words.
    def half(part, validation, joint, confidence):
        return Certified(2.0, 1.99 if part is validation else 0.5, None, {"halves": 2})

    mine = certify.Certificate("half", "by halves", half, evidence=lambda counts: f"{counts['halves']} halves")
    monkeypatch.setitem(certify.CERTIFICATES, "half", mine)
    certificate, result = certify.certify(validation, test, None, 0.95)
    assert (certificate, result["half"]) == ("half", Certified(2.0, 0.5, None, {"halves": 2}))
    assert certify.most_bits(("half", "infonce"), 16, None) == math.inf > certify.most_bits(("infonce",), 16, None) == 4
    # Of two classes no critic tells more than one bit, and at 16 pairs a little less is to be expected.
    assert 0.9 < certify.most_bits(("infonce",), 16, np.full(2, 0.5)) < 1.0


@pytest.mark.parametrize(
    ("pairs", "names", "word"),
    [
        (2048, ("infonce",), "k-limited"),
        pytest.param(16384, ("infonce",), "bounded", marks=pytest.mark.slow),
        (2048, ("posterior", "infonce"), "bounded"),
    ],
)
def test_k_limits_what_is_certified_where_so_many_pairs_allow_no_larger_one(pairs, names, word, monkeypatch):
    """InfoNCE's certificate takes the K that its pairs allow, 128 and 1,024, at every K of the InfoNCE value."""
    for name in certify.CERTIFICATES.keys() - names:
        monkeypatch.delitem(certify.CERTIFICATES, name)
    rng = np.random.default_rng(0)
    classes = 64

    def part(n: int) -> measure.HeldOutPairs:
        c = rng.integers(classes, size=n)
        x, y = (np.eye(classes, dtype=np.float32)[np.where(rng.random(n) < 0.5, c, 0)] for _ in range(2))
        return measure.HeldOutPairs(x, y, c, c, x, c, stratified=False)

    fit_part = part(2048)
    joint = np.eye(classes) / classes
    parts = measure.Parts(fit_part.x, fit_part.c_x, part(pairs), part(pairs), joint, upper_bits=6.0)
    estimate = measure.measure(parts, measure.Options(k=64, steps=1, batch_size=16)).estimate
    assert estimate.lower_bits < 5.0
    assert estimate.verdict == word


@pytest.mark.slow
@pytest.mark.compiles
def test_perfect_representations_hold_all_of_the_class():
    x, _ = Discrete.same_class(CLASSES).sample(jax.random.key(0), 20 * N)
    c = np.asarray(x).argmax(axis=1)
    rows = np.concatenate([np.flatnonzero(c == i)[: N // CLASSES] for i in range(CLASSES)])
    estimate = estimate_labels(x[rows], c[rows], tolerance_bits=0.15, **FAST)
    assert estimate.entropy_bits == estimate.upper_bits == 2.0
    most = max_info_nce_bits(estimate.k, np.full(4, 0.25))
    assert estimate.info_nce_bits == pytest.approx(most, abs=0.04)
    assert estimate.info_nce.max_bits == most
    assert 1.99 < estimate.value_bits <= 2
    assert 1.85 < estimate.lower_bits < 2
    chosen = estimate.certificates[estimate.certificate]
    assert (estimate.value_bits, estimate.lower_bits, estimate.interval) == (
        chosen.value_bits, chosen.lower_bits, chosen.interval,
    )  # fmt: skip
    assert estimate.verdict == "certified"
    assert estimate.certificates["classifier"].counts == {"errors": 0, "images": N // 5}
    assert estimate.nmi == pytest.approx(estimate.value_bits / 2)
    assert f"at least {math.floor(500 * estimate.lower_bits) / 1000:.3f} is certified." in str(estimate)
    assert not estimate.warnings  # there are but four representations


@pytest.mark.parametrize("means", [(0, 0, 3, 3), (0, 2, 4, 6), (0, 4, 8, 12)])
def test_clusters_hold_what_integration_says(means):
    truth = exact_bits(means, np.full(4, 0.25))
    estimate = estimate_labels(clusters(means, 0), C, **FAST)
    k = estimate.certificates[estimate.certificate].counts.get("k")
    assert estimate.ceiling_bits == (math.inf if k is None else math.log2(k))
    for value, interval, expected in (
        (estimate.value_bits, estimate.interval, truth if k is None else best_info_nce_bits(means, k)),
        (estimate.info_nce_bits, estimate.info_nce.interval, truth),  # K is far above e^I
    ):
        assert value == pytest.approx(expected, abs=0.12)  # its standard error is 0.04
        assert interval.lower_bits < expected < interval.upper_bits + 0.05
    assert max(one.lower_bits for one in estimate.certificates.values()) < truth
    assert estimate.lower_bits < estimate.value_bits
    assert estimate.lower_bits > truth - 0.35
    assert estimate.upper_bits == pytest.approx(2.0)
    assert estimate.verdict == "bounded"
    assert not estimate.warnings


@pytest.mark.slow
@pytest.mark.compiles
def test_what_the_critics_alone_see_is_read_off_their_scores():
    """Each of two classes lies on opposite corners of a square, so no linear probe can separate them."""
    rng, c = np.random.default_rng(0), np.arange(N) % 2
    h, right = rng.normal(size=(N, D)), rng.choice([-1, 1], N)
    h[:, 0] += 3 * right
    h[:, 1] += 3 * right * (2 * c - 1)
    estimate = estimate_labels(h, c, num_critics=2, **FAST)
    assert (estimate.certificate, estimate.name) == ("infonce", "InfoNCE on disjoint batches")
    assert all(estimate.certificates[name].value_bits < 0.05 for name in ("posterior", "classifier"))
    assert 0.3 < estimate.lower_bits < estimate.value_bits < 1
    assert estimate.ceiling_bits == math.log2(estimate.certificates["infonce"].counts["k"])
    assert estimate.info_nce_bits == pytest.approx(1, abs=0.1)  # H(C), but for one row in a hundred on a wrong corner
    assert len(set(estimate.seed_bits)) == 2
    assert estimate.value_bits not in estimate.seed_bits
    assert estimate.value_bits == pytest.approx(estimate.mean_bits, abs=0.1)


@pytest.mark.parametrize("whole", [4096, 10])
@pytest.mark.parametrize(("k", "batches"), [(4, 10), (13, 3), (40, 1)])
def test_info_nce_is_read_at_any_k(monkeypatch, k, batches, whole):
    """InfoNCE of the mean of two critics' scores, against a loop. If K exceeds `whole`, no matrix of scores is made."""
    monkeypatch.setattr(measure, "WHOLE", whole)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40, 3)).astype(np.float32)
    kernels = rng.normal(size=(2, 3, 3)).astype(np.float32)
    reader = measure._Reader(Scorer(BilinearCritic()), {"w": {"kernel": kernels}}, (x, y), np.array([0.5, 0.5]), 0.9)
    scores = (x @ kernels.mean(axis=0) @ y.T).astype(np.float64)
    starts = range(0, batches * k, k)
    expected = np.array([info_nce_loop(scores[i : i + k, i : i + k]) for i in starts]) / math.log(2)
    reading, bits = reader(k)
    np.testing.assert_allclose(bits, expected, rtol=1e-5)
    assert reading.bits == pytest.approx(expected.mean(), rel=1e-5)
    assert (reading.batches, reading.ceiling_bits) == (batches, math.log2(k))
    assert reading.max_bits == max_info_nce_bits(k, np.array([0.5, 0.5]))
    assert replace(reader, common_frequencies=None)(k)[0].max_bits is None
    if batches == 1 and k > whole:
        assert reading.interval is None
    elif batches == 10 or k > whole:
        ends = reading.interval.lower_bits, reading.interval.upper_bits
        np.testing.assert_allclose(ends, t_interval(expected, 0.9), rtol=1e-4)
        assert reading.interval.kind == BATCHES
    else:
        pairs = np.concatenate([pair_values(scores[i : i + k, i : i + k]) for i in starts]) / math.log(2)
        ends = reading.interval.lower_bits, reading.interval.upper_bits
        np.testing.assert_allclose(ends, t_interval(pairs, 0.9), rtol=1e-4)
        assert reading.interval.kind == PAIRS


def channel_bits(joint, separation):
    """I of unit normals around 0 and `separation`, whose classes follow the joint, by a sum over a fine grid."""
    x = np.linspace(-8, separation + 8, 1501)
    density = stats.norm.pdf(x[:, None], np.array([0.0, separation]))
    pairs = density @ joint @ density.T
    independent = np.outer(density @ joint.sum(axis=1), density @ joint.sum(axis=0))
    return float(np.sum(special.xlogy(pairs, pairs / independent)) / math.log(2) * (x[1] - x[0]) ** 2)


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize("separation", [pytest.param(8.0, marks=pytest.mark.slow), 2.5])
@pytest.mark.parametrize("joint", [[[0.42, 0.08], [0.08, 0.42]], [[0.45, 0.02], [0.25, 0.28]]], ids=["even", "uneven"])
def test_classes_that_pass_through_a_channel_are_measured(joint, separation):
    joint, rng = np.array(joint), np.random.default_rng(0)
    truth, independent = channel_bits(joint, separation), np.outer(joint.sum(axis=1), joint.sum(axis=0))
    of_classes = float(np.sum(special.rel_entr(joint, independent)) / math.log(2))
    assert truth <= of_classes + 1e-9

    def represented(c):
        return rng.normal(size=(len(c), 3)) + np.array([0.0, separation])[c][:, None] * (np.arange(3) == 1)

    def pairs(n):
        c_x, c_y = np.divmod(rng.choice(4, size=n, p=joint.ravel()), 2)
        x, y = represented(c_x), represented(c_y)
        return measure.HeldOutPairs(x, y, c_x, c_y, x, c_x, stratified=False)

    fitted_on = rng.choice(2, size=2000, p=joint.sum(axis=1))
    parts = measure.Parts(represented(fitted_on), fitted_on, pairs(1000), pairs(3000), joint, of_classes)
    estimate = measure.measure(parts, measure.Options(k=1000, steps=100)).estimate
    assert estimate.certificates.keys() == {"posterior", "infonce"}
    posterior = estimate.certificates["posterior"]
    for value, interval in (
        (posterior.value_bits, posterior.interval),
        (estimate.info_nce_bits, estimate.info_nce.interval),
    ):
        assert value == pytest.approx(truth, abs=0.05)  # its standard error is 0.015
        assert interval.lower_bits < truth < interval.upper_bits + 0.01
    assert truth - 0.15 < posterior.lower_bits < truth
    assert truth - 0.15 < estimate.lower_bits < min(truth, estimate.value_bits)
    assert (estimate.upper_bits, estimate.info_nce.max_bits, estimate.pairs) == (of_classes, None, 3000)
    assert estimate.entropy_bits == pytest.approx(stats.entropy(joint.sum(axis=1), base=2))


@pytest.mark.slow
@pytest.mark.compiles
def test_an_offset_leaves_the_estimate_where_it_is():
    """The column that shows the class has an offset; in float32 the offset would take all digits."""
    h = clusters((0, 4, 8, 12), 0)
    far = h + np.array([1e9, 0, 0, 0])
    plain, other = (estimate_labels(rows, C, **FAST) for rows in (h, far))
    assert other.value_bits == pytest.approx(plain.value_bits, abs=1e-3)
    assert other.lower_bits == pytest.approx(plain.lower_bits, abs=1e-3)


def test_distinct_rows_that_know_nothing_certify_nothing():
    """If rows were redrawn, each row's identity would reveal its class: I = H(C) for the bank, 0 for fresh rows."""
    h = np.random.default_rng(0).normal(size=(N, D))
    assert len(np.unique(h, axis=0)) == N
    estimate = estimate_labels(h, C, **FAST)
    assert all(one.lower_bits == 0 for one in estimate.certificates.values())
    assert estimate.nmi_lower == 0
    assert 0 <= estimate.value_bits < 0.03
    assert abs(estimate.info_nce_bits) < 0.03
    assert estimate.interval.lower_bits < 0.01


def test_value_and_certificate_are_of_the_test_rows_alone():
    h, design = clusters((0, 4, 8, 12), 0), labels.Design.of(C, 0, 0.95)
    h[design.test] = clusters((6, 6, 6, 6), 1)[design.test]
    estimate = estimate_labels(h, C, seed=0, **FAST)
    # The statistics and InfoNCE are far below 0 here, and I is not. Only the prequential certificate reads other rows.
    alone = [one for name, one in estimate.certificates.items() if name != "prequential"]
    assert [(one.lower_bits, one.value_bits) for one in alone] == [(0, 0)] * 3
    posterior = estimate.certificates["posterior"].interval
    assert (posterior.lower_bits, posterior.upper_bits) == (0, 0)
    assert estimate.info_nce.interval.upper_bits < -0.1


@pytest.mark.slow
def test_unbalanced_classes_have_their_own_entropy():
    c = np.repeat([0, 1, 2], [2400, 1200, 400])
    estimate = estimate_labels(clusters((0, 6, 12), 0, c), c, **FAST)
    entropy = stats.entropy([0.6, 0.3, 0.1], base=2)
    assert estimate.entropy_bits == estimate.upper_bits == pytest.approx(entropy)
    assert estimate.value_bits == pytest.approx(exact_bits((0, 6, 12), np.array([0.6, 0.3, 0.1])), abs=0.15)
    assert entropy - 0.35 < estimate.lower_bits < entropy


@pytest.mark.slow
@pytest.mark.compiles
def test_labels_come_in_many_forms():
    strings = np.array(list("abcd"))[C]
    plain = labels.Design.of(C, 0, 0.95)
    for partners in (
        C.astype(np.uint8),
        jnp.asarray(C) - 2,
        strings,
        list(strings),
        strings.astype(object),
        C.tolist(),
    ):
        result = labels.Design.of(partners, 0, 0.95)
        np.testing.assert_array_equal(result.classes, C)
        np.testing.assert_array_equal(result.pairs[1], plain.pairs[1])
    np.testing.assert_array_equal(labels.Design.of(C < 2, 0, 0.95).frequencies, [0.5, 0.5])
    h = clusters((0, 2, 4, 6), 0)
    values = [estimate_labels(x, c, **FAST).value_bits for x, c in ((h, C), (jnp.asarray(h), list(strings)))]
    assert values[0] == pytest.approx(values[1], abs=1e-3)


@pytest.mark.slow
@pytest.mark.compiles
def test_an_encoder_against_itself_makes_no_claim():
    h = clusters((0, 2, 4, 6), 0)
    result = compare(h, h, C, **FAST)
    assert (result.difference_bits, result.interval, result.larger) == (0, Interval(0, 0, PAIRS), None)
    assert "the data cannot tell which is larger" in str(result)


@pytest.mark.slow
def test_noise_is_told_from_its_signal_on_the_same_pairs():
    h = clusters((0, 4, 8, 12), 0)
    worse = h + np.random.default_rng(9).normal(size=h.shape)
    result = compare(worse, h, C, **FAST)
    truth = exact_bits((0, 4, 8, 12), np.full(4, 0.25)), exact_bits(np.array([0, 4, 8, 12]) / 2**0.5, np.full(4, 0.25))
    assert result.larger == "B"
    assert "B's is larger" in str(result)
    assert result.difference_bits == pytest.approx(truth[1] - truth[0], abs=0.15)
    assert result.difference_bits == pytest.approx(result.a.info_nce_bits - result.b.info_nce_bits)
    paired, *alone = (
        one.upper_bits - one.lower_bits
        for one in (result.interval, result.a.info_nce.interval, result.b.info_nce.interval)
    )
    assert paired < math.hypot(*alone)
    assert not result.saturated


@pytest.mark.slow
def test_two_encoders_that_know_the_class_are_said_to_be_at_the_end():
    h = clusters((0, 30, 60, 90), 0)
    result = compare(h, clusters((90, 30, 60, 0), 1), C, **FAST)
    assert result.saturated
    assert "H(C) = 2.000" in str(result)


FORMS = {
    "whole floats": lambda c: c.astype(float),
    "objects": lambda c: c.astype(object),
    "whole floats as objects": lambda c: c.astype(float).astype(object),
    "one column": lambda c: c[:, None],
    "strings": lambda c: np.array(["a", "b", "c"])[c],
    "strings as objects": lambda c: np.array(["a", "b", "c"], object)[c],
    "bytes": lambda c: np.array([b"a", b"b", b"c"])[c],
    "far integers": lambda c: c + 2**60,
    "a list": lambda c: c.tolist(),
    "an array of JAX": jnp.asarray,
    "half floats": lambda c: c.astype(np.float16),
    "names of variable width": lambda c: np.array(["a", "b", "c"])[c].astype(np.dtypes.StringDType()),
    "decimals": lambda c: [Decimal(int(x)) for x in c],
    "arrays without axes": lambda c: [np.asarray(x) for x in c],
    "integers beyond 64 bits": lambda c: [10**30 + int(x) for x in c],
    "integers of both ends of 64 bits": lambda c: np.array([-5, 2**63, 2**63 + 1], object)[c],
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_any_form_are_the_same_classes_by_every_door(tmp_path, form):
    classes = np.random.default_rng(0).integers(0, 3, 60)
    given = FORMS[form](classes)
    h = 4 * np.eye(3, dtype=np.float32)[classes]
    np.testing.assert_array_equal(labels.classes_of(given).classes, classes)
    array = np.asarray(given)
    for fit in (probes.fit_knn, probes.fit_linear):
        if form in ("whole floats", "objects", "one column", "half floats", "a list"):
            more = {} if fit is probes.fit_knn else {"l2": [1.0], "validation_features": h, "validation_labels": given}
            probe = fit(h, given, 3, **more)
            assert probes.accuracy(probe, h, given) == 1
    if array.dtype.kind in "OT":
        return  # of which files hold pickles, which are not read
    np.save(tmp_path / "labels.npy", array)
    of_file = array_files.read_labels(f"{tmp_path}/labels.npy")
    np.testing.assert_array_equal(np.unique(of_file, return_inverse=True)[1], classes)
    np.savez(tmp_path / "f.npz", h=np.stack([classes, classes], axis=1).astype(np.float32), labels=array)
    images = (classes[:, None, None] * np.ones((1, 4, 4))).astype(np.uint8)
    np.savez(tmp_path / "i.npz", images=images, labels=array)
    for door, shown in (("features:{}/f.npz", lambda x: x[:, 0]), ("npz:{}/i.npz", lambda x: x[:, 0, 0, 0])):
        for part in labeled(door.format(tmp_path)).values():
            seen = part.read(np.arange(len(part)))
            np.testing.assert_array_equal(part.attributes[:, 0], shown(seen))


@pytest.mark.parametrize(
    ("lines", "classes"),
    [
        ("cat,dog,cat,bird", [1, 2, 1, 0]),
        ("species,cat,dog,cat,dog", [0, 1, 0, 1]),
        ("class,9007199254740993,9007199254740992,9007199254740993,9007199254740992", [1, 0, 1, 0]),
        ("1.0,2.0,1.0,2.0", [0, 1, 0, 1]),
        ("1.0e+00,2.000e+00,1.0e+00", [0, 1, 0]),
        ("1_0,01,1,10,1_0", [3, 0, 1, 2, 3]),
        ("3,1,2,1,2", [2, 0, 1, 0, 1]),
    ],
)
def test_labels_of_a_csv_are_names_or_whole_numbers_of_any_size(tmp_path, lines, classes):
    (tmp_path / "labels.csv").write_text("\n".join(lines.split(",")))
    read = array_files.read_labels(f"{tmp_path}/labels.csv")
    np.testing.assert_array_equal(np.unique(read, return_inverse=True)[1], classes)


def test_missing_labels_of_a_csv_are_counted(tmp_path):
    (tmp_path / "labels.csv").write_text("class\n0\nNA\n1\nnan\n")
    with pytest.raises(InputError, match="2 labels are missing, the first in line 3; drop those rows"):
        array_files.read_labels(f"{tmp_path}/labels.csv")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, None, 2, None], "labels has 2 missing values, the first at row 1; drop those rows"),
        (["cat", "dog", float("nan"), "cat"], "labels has 1 missing values, the first at row 2"),
        (
            [1, "1", 2],
            "labels are of several kinds: row 0 is a number, 1, and row 1 a string, '1'; give all as strings",
        ),
        (np.array([0, 1, np.nan, 1]), "labels has 1 missing values, the first at row 2"),
        (np.eye(3)[[0, 1, 2, 0]], r"shape \(4, 3\): .*; one-hot\? give labels.argmax\(axis=1\)"),
        ([[1, 2], [3]], "labels are lists of several lengths"),
        (np.array(["a", 1.5, True], object), "labels are of several kinds: row 0 is a string, 'a', and row 1 a number"),
        ([1, {2}, 1], r"labels: row 1 is \{2\} \(set\)"),
        (np.array(["a", "nan", ""]), "labels has 2 missing values, the first, 'nan', at row 1; .* or rename the class"),
        (np.float64(2) ** 53 + np.array([0, 2, 4]), r"labels has 2 floats beyond 2\^53, .* give integers or strings"),
        (np.array([0, 1, np.inf]), "labels has 1 values that are no whole numbers, the first, inf, at row 2"),
        (np.arange(3).astype("M8[D]"), r"labels are of dtype datetime64\[D\].*; give labels.astype\(str\)"),
        ({"a": 1}, "labels are of type dict: expected .*; give an array or a list"),
        (np.arange(4)[None], r"labels are of shape \(1, 4\): .*; give its one row"),
        (np.ma.masked_equal([0, 1, 1], 0), "labels has 1 masked values"),
        (np.repeat(np.arange(12), [9] * 11 + [99]), r"11 of 12 classes have fewer than 10 rows: 0 \(9\), 1 \(9\), .*"),
    ],
)
def test_labels_that_are_none_are_refused_by_name(given, message):
    with pytest.raises(InputError, match=message) as error:
        labels.classes_of(given)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_monitor_reads_the_same_images_at_every_call():
    images = clusters((0, 4, 8, 12), 0)
    stream = iter([(images[i : i + 800], C[i : i + 800]) for i in range(0, N, 800)])
    monitored = monitor(lambda scale, x: scale * x, stream, **FAST)
    assert next(stream, None) is None  # read once, here
    first, again = monitored(1.0), monitored(1.0)
    assert first == again
    assert first.value_bits > monitored(0.0).value_bits + 1
    assert first.value_bits == pytest.approx(estimate_labels(images, C, **FAST).value_bits, abs=1e-3)


def test_a_monitor_of_two_views_estimates_their_information(monkeypatch):
    """The monitor encodes the views in order and passes its options on."""
    x, y = np.random.default_rng(0).normal(size=(2, 600, 2)).astype(np.float32)
    monkeypatch.setattr(api, "estimate", lambda *views, **options: (views, options))
    monitored = monitor(
        lambda shift, images: images + shift, [(x[:400], y[:400]), (x[400:], y[400:])], num_batches=2, k=64
    )
    (h_x, h_y), options = monitored(1.0)
    np.testing.assert_array_equal(h_x, x + 1)
    np.testing.assert_array_equal(h_y, y + 1)
    assert options == {"k": 64}


def test_a_monitor_refuses_an_option_that_its_estimate_does_not_have():
    images = np.zeros((100, 2))
    with pytest.raises(TypeError, match="unexpected keyword argument 'batch_size'"):
        monitor(lambda p, x: x, [(images, np.arange(100) % 2)], batch_size=4)
    monitor(lambda p, x: x, [(images, images)], batch_size=4)


def test_a_monitor_refuses_what_it_cannot_read():
    images = np.zeros((100, 4, 4, 3), np.float32)
    with pytest.raises(InputError, match=r"gave 0 batches, expected some"):
        monitor(lambda p, x: x, iter([]))
    with pytest.raises(InputError, match=r"gave 1 batches, expected 3"):
        monitor(lambda p, x: x, [(images, np.zeros(100, int))], num_batches=3)
    with pytest.raises(InputError, match=r"shape \(100, 4, 4, 3\) for 100 images: expected \(n, d\); pool or flatten"):
        monitor(lambda p, x: x, [(images, np.arange(100) % 2)])(None)
    with pytest.raises(InputError, match=r"shape \(4, 3\) for 100 images"):
        monitor(lambda p, x: x.mean(axis=(0, 1)), [(images, np.arange(100) % 2)])(None)


def poisoned():
    h = np.zeros((N, D))
    h[7, 2], h[9, 0] = np.nan, np.inf
    return h


H = np.zeros((N, D))
BAD = {
    "lengths": ((H[:-1], C), {}, "h has 3,999 rows and labels 4,000"),
    "not finite": ((poisoned(), C), {}, r"2 NaN or infinite values, the first at \[7, 2\]"),
    "complex": ((H * 1j, C), {}, "h is of dtype complex128"),
    "objects": ((np.where(np.arange(N)[:, None] == 5, "a", H.astype(object)), C), {}, r"h\[5, 0\] is 'a' \(str\)"),
    "missing numbers": ((np.where(np.arange(N)[:, None] == 5, None, H), C), {}, r"missing values, .* at \[5, 0\]"),
    "images": ((H.reshape(N, 2, 2), C), {}, r"h has shape \(4000, 2, 2\)"),
    "one class": ((H, np.zeros(N, int)), {}, r"labels hold 1 class: H\(C\) is 0"),
    "no labels": ((H[:0], C[:0]), {}, "labels hold 0 class"),
    "rare class": ((H, np.where(np.arange(N) < 9, 9, C)), {}, "class 9 has 9 rows, expected 10 or more"),
    "rare name": ((H, np.where(np.arange(N) < 9, "cat", "dog")), {}, "class 'cat' has 9 rows, expected 10 or more"),
    "few pairs": ((H[:200], np.arange(200) % 20), {}, "only 1 test pairs can be drawn before a class runs out"),
    "fractions": ((H, C + 0.5), {}, r"labels has 4,000 values that are no whole numbers, .* a regression target\?"),
    "one-hot labels": ((H, np.eye(4, dtype=int)[C]), {}, r"shape \(4000, 4\): expected \(n,\) integers"),
    "K beyond the test part": ((H, C), {"k": 401}, "k = 401: expected from 2 to the 3.. pairs of the test part"),
    "K of one": ((H, C), {"k": 1}, "k = 1: "),
    "confidence": ((H, C), {"confidence": 95.0}, r"confidence = 95.0: expected in \[0.5, 1\)"),
    "num_critics": ((H, C), {"num_critics": 0}, "num_critics = 0: expected 1 or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    (h, c), options, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        estimate_labels(h, c, **options)
    assert "\n" not in str(error.value)


def test_comparisons_need_as_many_rows_of_both():
    with pytest.raises(InputError, match="h has 3,999 rows"):
        compare(H, H[:-1], C)


@pytest.mark.slow
def test_the_certificate_holds_over_fresh_samples():
    """100 data sets of the same distribution, from 1,000 rows each: lower end <= I in 95 % of them or more."""
    means, frequencies = (0, 2.5, 5, 7.5), np.full(4, 0.25)
    truth, c = exact_bits(means, frequencies), np.arange(1000) % 4
    estimate = [estimate_labels(clusters(means, seed, c), c, seed=seed, steps=100) for seed in range(100)]
    assert np.mean([one.lower_bits <= truth for one in estimate]) >= 0.95
    assert np.median([one.lower_bits for one in estimate]) > 0.1


def test_a_monitor_takes_labels_of_every_form_and_of_several_attributes(monkeypatch):
    """Rows of labels are told from views by their shape and dtype; batches are joined as they are."""
    monkeypatch.setattr(labels, "estimate_labels", lambda h, given, **options: labels.classes_of(given))
    monkeypatch.setattr(api, "estimate", lambda *views, **options: views)
    x, c = np.random.default_rng(0).normal(size=(60, 4, 4, 3)), np.arange(60) % 3
    pooled = lambda params, images: images.mean(axis=(1, 2)) if images.ndim == 4 else images  # noqa: E731
    names = np.array(["a", "b", "c"])
    far = [2**63 + int(i) for i in c]
    for form in (c, c[:, None], c.astype(float)[:, None], list(names[c]), c.astype(object), far):
        measured = monitor(pooled, [(x[:40], form[:40]), (x[40:], form[40:])])(None)
        np.testing.assert_array_equal(measured.classes, c)
    both = np.stack([names[c], (c > 0).astype(str)], axis=1)
    measured = monitor(pooled, [(x[:40], both[:40]), (x[40:], both[40:])])(None)
    assert measured.names.tolist() == ["a, False", "b, True", "c, True"]
    assert measured.attributes.tolist() == [[0, 0], [1, 1], [2, 1]]
    assert len(monitor(pooled, [(x[:, 0, 0], x[:, 0, :2, 0])])(None)) == 2  # floats are a view
    with pytest.raises(InputError, match=r"one-hot\? give"):
        monitor(pooled, [(x, np.eye(3)[c])])(None)
    with pytest.raises(InputError, match="labels of batch 0 has 1 missing values, the first at row 2"):
        monitor(pooled, [(x, [0, 1, None, *c[3:]])])


@pytest.mark.slow
def test_encoders_are_compared_by_classes_of_several_attributes():
    attributes = np.stack([C // 2, C % 2], axis=1)
    h = clusters((0, 4, 8, 12), 0)
    by_attributes, by_class = (compare(h, h / 2, given, **FAST) for given in (attributes, C))
    assert by_attributes.difference_bits == by_class.difference_bits
    assert by_attributes.usable.pairs[0].difference_bits == by_class.usable.pairs[0].difference_bits
