"""Coverage of usable information's ends and orders, in finite populations whose usable information is known exactly.

Every slow test here takes seconds with REPEATS = 40. `USABLE_REPEATS=400 pytest -m slow tests/test_usable_coverage.py`
takes minutes. The first part of the rows, so the family and the probe, stays the same in all repeats: coverage is
promised for each. Confidence is 50 % where a failure must show in few repeats.
"""

import os
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mirigor_jax import mi
from mirigor_jax.mi.families import BoundedLinear
from mirigor_jax.mi.order import Bet
from mirigor_jax.mi.usable import Bets, Division, fit_on, mean_loss, read_unseen
from mirigor_jax.mi.usable_fit import LinearFamily, minimize

pytestmark = pytest.mark.slow
REPEATS = int(os.environ.get("USABLE_REPEATS", "40"))
N = 6000  # rows of a population


class Population:
    """Rows of a finite population, sorted by class, and samples of them with replacement."""

    def __init__(self, h, classes):
        order = np.argsort(classes, kind="stable")
        self.h, self.classes = h[order], classes[order]
        self.sizes = np.bincount(classes)
        self.frequencies = self.sizes / len(classes)

    def drawn(self, counts, rng):
        """Numbers of rows: of each class as many as its count."""
        starts = np.cumsum(self.sizes) - self.sizes
        each = zip(starts, self.sizes, counts, strict=True)
        return np.concatenate([start + rng.integers(0, size, count) for start, size, count in each])

    def division(self, first, rng):
        """A division of the population's rows, of which `first` draws are the first part."""
        each = [np.maximum(2, np.rint(self.frequencies * share * first).astype(int)) for share in (0.75, 0.25)]
        fit, validation = (self.drawn(counts, rng) for counts in each)
        names = list(range(len(self.sizes)))
        return Division(names, self.classes, self.frequencies, fit, validation, np.arange(0), all_seen=False)

    def counts(self, n):
        return np.maximum(1, np.rint(self.frequencies * n).astype(int))

    def least_nats(self, family):
        """(the least, the most) that the family's least expected loss can be."""
        found = minimize(mean_loss(family, self.h, self.classes, np.ones(len(self.sizes))), tolerance=1e-5)
        assert found.gap <= 1e-5
        return found.lowest, found.value


def clusters(frequencies, d, apart, *, tails=np.inf):
    """Classes around means of their own, with Student-t noise."""
    frequencies = np.array(frequencies) / np.sum(frequencies)
    classes = np.repeat(np.arange(len(frequencies)), np.rint(frequencies * N).astype(int))
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(len(classes), d)) if np.isinf(tails) else rng.standard_t(tails, (len(classes), d))
    return Population(apart * rng.normal(size=(len(frequencies), d))[classes] + noise, classes)


def with_flips(population, share):
    flipped = np.random.default_rng(6).random(len(population.classes)) < share
    return Population(population.h, (population.classes + flipped) % len(population.sizes))


POPULATIONS = {
    "two balanced classes": (lambda: clusters([1, 1], 8, 0.5), 400),
    "ten unbalanced classes": (lambda: clusters(0.7 ** np.arange(10), 8, 1.0), 600),
    "fifty classes": (lambda: clusters(np.ones(50), 8, 1.0), 600),
    "heavy tails": (lambda: clusters([1, 1, 1, 1], 8, 1.0, tails=1.5), 400),
    "separable but for a few wrong labels": (lambda: with_flips(clusters([5, 3, 2], 4, 8.0), 0.003), 400),
}


def few(misses, risk):
    """Whether so many misses in so many repeats may be chance if each has at most this risk."""
    return stats.binom.sf(np.sum(misses) - 1, len(misses), risk) > 0.001


@pytest.mark.parametrize("name", POPULATIONS)
def test_both_ends_hold(name):
    make, n = POPULATIONS[name]
    population, rng, missed = make(), np.random.default_rng(1), []
    division = population.division(n, rng)
    probe = fit_on(population.h, division, "linear")
    lowest, highest = population.least_nats(probe.family)
    entropy = stats.entropy(population.frequencies)
    for repeat in range(REPEATS):
        counts = population.counts(n)
        if repeat % 2:  # classes of other shares than in the population
            moved = rng.integers(0, counts // 3 + 1)
            counts = counts - moved + np.roll(moved, 1)
        rows = population.drawn(counts, rng)
        result = read_unseen(population.h, division, rows, probe, 0.5).result
        lower, upper, kl = (np.log(2) * end for end in (result.lower_bits, result.upper_bits, result.kl_upper_bits))
        missed.append((lower > entropy - lowest, upper < entropy - highest, kl < entropy - highest))
        assert lower <= np.log(2) * result.value_bits <= upper
    for end in np.transpose(missed):
        assert few(end, 0.25)


# wrong variants


def failing(misses, risk):
    """Whether there are too many misses to be chance."""
    return stats.binom.sf(np.sum(misses) - 1, len(misses), risk) < 1e-3


def test_the_word_of_a_stopped_solver_is_no_end():
    population, rng, missed = clusters([8, 2], 8, 0.7), np.random.default_rng(1), []
    division = population.division(400, rng)
    probe = fit_on(population.h, division, "linear")
    _, highest = population.least_nats(probe.family)
    validation, classes = division.validation, population.classes
    losses = probe.losses(population.h[validation], classes[validation])
    for _ in range(40):
        rows = population.drawn(population.counts(1000), rng)
        bets = Bets.of(probe, losses, classes[validation], np.ones(2), n=len(rows), risk=0.025)
        problem = mean_loss(probe.family, population.h[rows], classes[rows], np.ones(2))
        stopped = minimize(bets.against_the_best(problem), tolerance=np.inf)
        missed.append((bets.end_of_gain(stopped.value) > highest, bets.end_of_gain(stopped.lowest) > highest))
    word, certified = np.transpose(missed)
    assert failing(word, 0.025)
    assert not certified.any()


def flat_family(p, d, norm):
    return LinearFamily(np.log(p), np.zeros(d), np.ones(d), np.eye(d), 1.0, 1.0, norm)


def test_a_feature_that_is_chosen_on_the_upper_rows_gives_no_end():
    """Of 200 features of one bit each that hold hardly anything, the worst on the rows seems to hold less."""
    rng, missed, n = np.random.default_rng(0), [], 400
    classes = np.arange(n) % 2
    flip = 0.42
    holds = np.log(2) - stats.entropy([flip, 1 - flip])  # of each feature, by Bayes' probe
    family = flat_family([0.5, 0.5], 1, 0.3)
    probe = BoundedLinear(family, np.zeros((2, 2)))
    bets = Bets.of(probe, np.full(50, np.log(2)), np.arange(50) % 2, np.ones(2), n=n, risk=0.25)
    for _ in range(40):
        bits = 2.0 * ((classes[:, None] ^ (rng.random((n, 200)) < flip)) - 0.5)
        chosen = int(np.abs(bits.T @ (2 * classes - 1)).argmin())
        ends = []
        for feature in (0, chosen):
            problem = mean_loss(family, bits[:, [feature]], classes, np.ones(2))
            ends.append(np.log(2) - bets.least_by_betting(problem, minimize(problem, tolerance=1e-4)) < holds)
        missed.append(ends)
    fixed, chosen = np.transpose(missed)
    assert few(fixed, 0.25)
    assert failing(chosen, 0.25)


def test_a_map_that_has_seen_the_rows_breaks_the_upper_end():
    """It maps the rows that the end is read on to zero, so no probe can use them; fresh rows it leaves as they are."""
    population, rng = clusters([1, 1], 4, 1.5), np.random.default_rng(2)
    for _ in range(5):
        rows = population.drawn([120, 120], rng)

        class Blind(LinearFamily):
            def map(self, h):
                return np.where(np.isin(h[:, :1], population.h[rows, :1]), 0.0, super().map(h))  # noqa: B023

        covers = []
        for kind in (LinearFamily, Blind):
            family = kind(**vars(flat_family([0.5, 0.5], 4, 1.0)))
            probe = BoundedLinear(family, np.zeros((5, 2)))
            bets = Bets.of(probe, np.full(50, np.log(2)), np.arange(50) % 2, np.ones(2), n=240, risk=0.025)
            problem = mean_loss(family, population.h[rows], population.classes[rows], np.ones(2))
            least = bets.least_by_betting(problem, minimize(problem, tolerance=1e-4))
            covers.append(least <= population.least_nats(family)[1])
        assert covers == [True, False]


def test_the_lower_end_does_not_hold_on_the_probe_s_own_rows():
    population, rng, missed = clusters(np.ones(4), 24, 0.2), np.random.default_rng(3), []
    entropy = stats.entropy(population.frequencies)
    for _ in range(20):
        fitted, fresh = (population.drawn(population.counts(n), rng) for n in (160, 160))
        division = replace(population.division(160, rng), fit=fitted)
        probe = fit_on(population.h, division, "linear")
        lowest, _ = population.least_nats(probe.family)
        # The best probe on the fitted rows stands for one that is not stopped.
        problem = mean_loss(probe.family, population.h[fitted], population.classes[fitted], np.ones(4))
        own = BoundedLinear(probe.family, minimize(problem, tolerance=1e-4).weights)
        ends = (read_unseen(population.h, division, rows, own, 0.5).result.lower_bits for rows in (fitted, fresh))
        missed.append([end * np.log(2) > entropy - lowest for end in ends])
    on_own, on_fresh = np.transpose(missed)
    assert failing(on_own, 0.25)
    assert few(on_fresh, 0.25)


# orders


def pair_of(reads, classes, division, population, risk):
    """Whether each direction is proven."""
    validation = population.classes[division.validation]
    directions = (reads, reads[::-1])
    return [
        Bet.of(one, other, validation, classes, risk).proof(one, other, classes).proven for one, other in directions
    ]


def test_an_order_of_equal_encoders_is_proven_with_the_risk_at_most():
    """Column 0 and column 1 have one law, also together, and each probe is the best of its family: nothing is slack."""
    rng, proven = np.random.default_rng(0), []
    classes = np.arange(N) % 2
    h = np.random.default_rng(5).normal(size=(N, 2)) + classes[:, None]
    population = Population(np.concatenate([h, h[:, ::-1]]), np.concatenate([classes] * 2))
    views = [np.ascontiguousarray(population.h[:, [column]]) for column in (0, 1)]
    family = replace(flat_family([0.5, 0.5], 1, 2.0), clip=3.0)
    best = minimize(mean_loss(family, views[0], population.classes, np.ones(2)), tolerance=1e-6).weights
    division = population.division(1000, rng)
    for _ in range(REPEATS):
        rows = population.drawn(population.counts(500), rng)
        reads = [read_unseen(view, division, rows, BoundedLinear(family, best), 0.95) for view in views]
        proven.append(pair_of(reads, population.classes[rows], division, population, 0.25))
    for direction in np.transpose(proven):
        assert few(direction, 0.25)
    assert np.any(proven) or REPEATS < 200  # otherwise the test shows little


def test_a_gap_of_a_fifth_of_a_bit_is_proven_and_the_number_of_rows_is_foretold():
    rng, proven, needed = np.random.default_rng(0), [], []
    population = clusters([1, 1, 1], 4, 1.0)
    noisy = population.h + 0.8 * np.random.default_rng(9).normal(size=population.h.shape)
    division = population.division(1200, rng)
    probes = [fit_on(view, division, "linear") for view in (population.h, noisy)]
    least = [
        minimize(mean_loss(probe.family, view, population.classes, np.ones(3)), tolerance=1e-5).value
        for probe, view in zip(probes, (population.h, noisy), strict=True)
    ]
    assert 0.15 < (least[1] - least[0]) / np.log(2) < 0.35
    for n in (150, 1500):
        for _ in range(20):
            rows = population.drawn(population.counts(n), rng)
            reads = [
                read_unseen(view, division, rows, probe, 0.95)
                for probe, view in zip(probes, (population.h, noisy), strict=True)
            ]
            classes = population.classes[rows]
            validation = population.classes[division.validation]
            proof = Bet.of(*reads, validation, classes, 0.025).proof(*reads, classes)
            proven.append(proof.proven)
            needed.append(proof.rows_needed)
            back = Bet.of(*reads[::-1], validation, classes, 0.025).proof(*reads[::-1], classes)
            assert not back.proven
    assert np.mean(proven[20:]) >= 0.9
    assert np.mean(proven[:20]) <= 0.5
    assert 150 < np.median(needed[20:]) < 1500


# what it is for


def test_random_labels_have_no_usable_information():
    lower = []
    for seed in range(min(REPEATS, 200) // 10):
        rng = np.random.default_rng(seed)
        result = mi.usable_information(rng.normal(size=(10_000, 16)), rng.integers(0, 10, 10_000), rows="independent")
        lower.append(result.lower_bits > 0)
        assert result.upper_bits <= 0.15
    assert few(lower, 0.025)


def test_planted_wrong_labels_have_the_lowest_pointwise_information():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 10, 10_000)
    h = 1.2 * np.random.default_rng(99).normal(size=(10, 16))[truth] + rng.normal(size=(10_000, 16))
    planted = np.zeros(10_000, bool)
    planted[rng.choice(10_000, 200, replace=False)] = True
    given = np.where(planted, (truth + rng.integers(1, 10, 10_000)) % 10, truth)
    result = mi.usable_information(h, given)
    of_rows = planted[result.rows]
    lowest = np.argsort(result.pointwise_bits)[: of_rows.sum()]
    assert of_rows.sum() > 100
    assert of_rows[lowest].mean() >= 0.6
