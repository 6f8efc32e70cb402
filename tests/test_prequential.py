"""The prequential certificate: its coverage over fresh samples, wrong variants that fail, and its place in an estimate.

The offline table: REPEATS=400 pytest -m slow -s -n 0 tests/test_prequential.py.
"""

import importlib
import math
import os
from dataclasses import replace

import numpy as np
import pytest
from scipy import special, stats

from mirigor_jax.mi import labels
from mirigor_jax.mi.certify import CERTIFICATES, HeldOut, certify
from mirigor_jax.mi.confidence import mean_lower_bound, vector_mean_radius
from mirigor_jax.mi.gaussian import center_and_spread
from mirigor_jax.mi.prequential import Block, prequential_certificate
from mirigor_jax.refits import doublings, refits

measuring = importlib.import_module("mirigor_jax.mi.measure")  # `mi.measure` is its function

MIXING = 1e-2  # of the tests that compare with loops
REPEATS = int(os.environ.get("REPEATS", "40"))


class Population:
    """Rows with Student-t noise (df 3) around the means of classes, and a cheap classifier that can be refitted."""

    def __init__(self, frequencies, scale, d, df=3.0, seed=0):
        p = np.asarray(frequencies, float)
        self.p, self.df = p / p.sum(), df
        self.means = scale * np.random.default_rng(seed).normal(size=(len(p), d))

    def rows(self, rng, c):
        return self.means[c] + rng.standard_t(self.df, size=(len(c), self.means.shape[1]))

    def pairs(self, rng, n):
        c = rng.choice(len(self.p), n, p=self.p)
        return self.rows(rng, c), self.rows(rng, c), c

    def posterior(self, x, centers):
        """The Bayes posterior if the centers were the classes' means."""
        nats = -(self.df + 1) / 2 * np.log1p((x[:, None] - centers[None]) ** 2 / self.df).sum(axis=2)
        return special.softmax(nats + np.log(self.p), axis=1)

    def centers(self, x, c):
        """A fit: each class's trimmed mean, or that of all rows for a class without rows."""
        return np.stack([stats.trim_mean(x[c == k] if np.any(c == k) else x, 0.2) for k in range(len(self.p))])

    def bits(self, n=200_000):
        """I(h_X;h_Y) by Monte Carlo from the true posterior."""
        x, y, _ = self.pairs(np.random.default_rng(1), n)
        ratio = np.sum(self.posterior(x, self.means) * self.posterior(y, self.means) / self.p, axis=1)
        return float(np.mean(np.log2(ratio)))


POPULATIONS = {
    # 8 unbalanced classes; the Bayes classifier is right about 79 % of rows, and I is about 1.4 bits
    "eight": Population(np.arange(1, 9) ** -0.8, 1.345, 8),
    "two": Population(np.ones(2), 8.0, 2),
    "twenty": Population(np.ones(20), 1.5, 6),
    # I is 0, which no lower end can be above unless it is wrong
    "nothing": Population(np.arange(1, 5), 0.0, 4),
    # I is H(C), but for 1e-3 bit
    "apart": Population(np.ones(4), 20.0, 4, df=30.0),
}


def blocks_of(population, rng, first, n, *, seen=False):
    """(blocks, reference) of n pairs after `first` rows, with refits at doublings.

    seen: the wrong variant whose models have also seen their block's rows, by a table of them.
    """
    x, y, c = population.pairs(rng, n)
    h, labels_ = np.empty((first + 2 * n, x.shape[1])), np.empty(first + 2 * n, int)
    start_x, _, start_c = population.pairs(rng, first)
    h[:first], labels_[:first] = start_x, start_c
    h[first::2], h[first + 1 :: 2], labels_[first::2], labels_[first + 1 :: 2] = x, y, c, c
    validation = population.pairs(rng, 200)
    starts = [start + (start - first) % 2 for start in doublings(first, len(h))]
    blocks, reference = [], []
    for start, end in zip(starts, [*starts[1:], len(h)], strict=True):
        centers = population.centers(h[:start], labels_[:start])
        at, own = (start - first) // 2, (end - start) // 2
        q_x, q_y = (population.posterior(view[at:], centers) for view in (x, y))
        if seen:
            q_x, q_y = (np.eye(len(population.p))[c[at:]] * 0.5 + 0.5 * q for q in (q_x, q_y))
        blocks.append(Block(q_x, q_y, c[at:], own))
        reference.append(Block(*(population.posterior(view, centers) for view in validation[:2]), validation[2], 0))
    return blocks, reference


def fixed(population, rng, n):
    """(blocks, reference) of n pairs for the true posterior, which needs no fit. Its bound is I, but for the mixing."""
    x, y, c = population.pairs(rng, n)
    u, v, d = population.pairs(rng, 200)
    q_x, q_y, r_x, r_y = (population.posterior(view, population.means) for view in (x, y, u, v))
    return [Block(q_x, q_y, c, n)], [Block(r_x, r_y, d, 0)]


def bits_of_best_bet(blocks, reference, p, confidence):
    """The wrong variant: every twenty values are bet on by the one bet that these very values make best."""
    x = prequential_certificate(blocks, reference, p, confidence=confidence).influence_nats.reshape(-1, 20, 1)
    below, above = x.min(), float(x.mean())
    for _ in range(30):
        m = (below + above) / 2
        bets = np.linspace(0, 0.9, 20) / (m - x.min())
        capital = np.log1p(bets * (x - m)).sum(axis=1).max(axis=1).sum()
        below, above = (m, above) if capital >= -math.log1p(-confidence) else (below, m)
    return below / math.log(2)


def bits_of_best_order(rng, blocks, reference, p, confidence, orders=50):
    """The wrong variant: the best end of several orders of the same pairs."""
    (block,), ends = blocks, []
    for _ in range(orders):
        at = rng.permutation(len(block.c))
        shuffled = Block(block.q_x[at], block.q_y[at], block.c[at], block.own)
        ends.append(prequential_certificate([shuffled], reference, p, confidence=confidence).lower_bits)
    return max(ends)


def is_allowed(misses, repeats, risk):
    """Whether so many misses are not significantly more than the risk allows, at a level of 1 %."""
    return stats.binom.sf(misses - 1, repeats, risk) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("confidence", [0.95, 0.5])
@pytest.mark.parametrize("name", POPULATIONS)
def test_the_end_covers_the_information_over_fresh_samples(name, confidence):
    population, rng = POPULATIONS[name], np.random.default_rng(3)
    truth = population.bits()
    ends, values = [], []
    for _ in range(REPEATS):
        shown = prequential_certificate(*blocks_of(population, rng, 100, 400), population.p, confidence=confidence)
        ends.append(shown.lower_bits)
        values.append(shown.value_bits)
    misses = int(np.sum(np.array(ends) > truth + 1e-9))
    print(
        f"\n{name:8} {confidence} I {truth:.3f} median end {np.median(ends):.3f} value {np.median(values):.3f}", misses
    )
    assert np.all(np.array(ends) <= values)
    assert is_allowed(misses, REPEATS, 1 - confidence)
    assert np.median(ends) >= 0.35 * truth - 1e-9


@pytest.mark.slow
def test_the_end_of_the_true_posterior_is_tight_and_covers():
    population, rng, repeats = POPULATIONS["two"], np.random.default_rng(4), 5 * REPEATS
    truth = population.bits(1_000_000)
    for confidence in (0.5, 0.9):
        ends = [
            prequential_certificate(*fixed(population, rng, 400), population.p, confidence=confidence).lower_bits
            for _ in range(repeats)
        ]
        misses = int(np.sum(np.array(ends) > truth))
        print(f"\ntrue posterior {confidence} I {truth:.3f} median {np.median(ends):.3f} misses {misses} of {repeats}")
        assert is_allowed(misses, repeats, 1 - confidence)
        assert np.median(ends) > truth - 0.15


@pytest.mark.slow
def test_models_that_have_seen_their_block_fail_the_same_check():
    population, rng = POPULATIONS["nothing"], np.random.default_rng(3)
    for seen in (True, False):
        ends = [
            prequential_certificate(*blocks_of(population, rng, 100, 400, seen=seen), population.p, confidence=0.95)
            for _ in range(REPEATS)
        ]
        misses = sum(one.lower_bits > 0 for one in ends)
        assert is_allowed(misses, REPEATS, 0.05) != seen


@pytest.mark.slow
def test_the_best_of_several_orders_fails_the_same_check():
    population, rng = POPULATIONS["two"], np.random.default_rng(5)
    truth = population.bits(1_000_000)
    parts = [fixed(population, rng, 800) for _ in range(REPEATS)]
    misses = sum(bits_of_best_order(rng, *part, population.p, 0.95) > truth for part in parts)
    print(f"\nbest of 50 orders: {misses} of {REPEATS}")
    assert not is_allowed(misses, REPEATS, 0.05)
    honest = sum(prequential_certificate(*part, population.p, confidence=0.95).lower_bits > truth for part in parts)
    assert is_allowed(honest, REPEATS, 0.05)


@pytest.mark.slow
def test_a_bet_that_the_values_themselves_choose_fails_the_same_check():
    population, rng = POPULATIONS["two"], np.random.default_rng(6)
    truth = population.bits(1_000_000)
    parts = [fixed(population, rng, 400) for _ in range(REPEATS)]
    misses = sum(bits_of_best_bet(*part, population.p, 0.95) > truth for part in parts)
    print(f"\nbest bet: {misses} of {REPEATS}")
    assert not is_allowed(misses, REPEATS, 0.05)


@pytest.fixture
def one_mixing(monkeypatch):
    monkeypatch.setattr("mirigor_jax.mi.prequential.MIXINGS", (MIXING,))


def test_the_partition_function_is_that_of_the_sample(one_mixing):
    """Against a double loop over rows of different pairs, if the classes' shares are those of the population."""
    rng, p, n = np.random.default_rng(0), np.array([0.5, 0.3, 0.2]), 40
    c = np.repeat([0, 1, 2], [20, 12, 8])
    q_x, q_y = rng.dirichlet(np.ones(3), size=(2, n))
    reference = Block(*rng.dirichlet(np.ones(3), size=(2, n)), c, 0)
    shown = prequential_certificate([Block(q_x, q_y, c, n)], [reference], p, confidence=0.95)
    q = (1 - MIXING) * np.concatenate([q_x, q_y]) + MIXING / 3
    partition = np.mean([[np.sum(a * b / p) for a in q] for b in q])
    f = [math.log(sum(a * b / r for a, b, r in zip(q[i], q[n + i], p, strict=True))) for i in range(n)]
    assert shown.influence_nats.mean() == pytest.approx(np.mean(f) - math.log(partition), abs=1e-9)


def test_the_lower_end_is_the_betting_limit_less_the_largest_partition(one_mixing):
    """By a loop over blocks: values of each, then one betting limit, then one radius for each block."""
    population, rng = POPULATIONS["eight"], np.random.default_rng(1)
    p = population.p
    blocks, reference = blocks_of(population, rng, 50, 400)
    assert len(blocks) == 4
    mixed = [[(1 - MIXING) * q + MIXING / 8 for q in (one.q_x, one.q_y)] for one in (*blocks, *reference)]
    ratio = [np.log(np.sum(x * y / p, axis=1)) for x, y in mixed]
    gains, values, highest = np.zeros(8), [], 0.0
    for k in range(8):
        own = ratio[len(blocks)][reference[0].c == k]
        gains[k] = (own.sum() - math.log(p[k])) / (len(own) + 1)
    for t, block in enumerate(blocks):
        values += [ratio[t][i] - gains[block.c[i]] + p @ gains for i in range(block.own)]
        centers = np.eye(8)
        for k in range(8):
            of_k = reference[t].c == k
            halves = sum(mixed[len(blocks) + t])[of_k] / 2
            centers[k] = (halves.sum(axis=0) + centers[k]) / (of_k.sum() + 1)
        s = (sum(mixed[t]) / 2 - centers[block.c]) / np.sqrt(p)
        d = s.mean(axis=0) + (p @ centers - p) / np.sqrt(p)
        corners = (1 - MIXING) * np.eye(8) + MIXING / 8
        longest = max(np.sum((a - b) ** 2 / p) for a in corners for b in centers)
        radius = vector_mean_radius(np.sum(s**2, axis=1), longest, 1 - 0.1 * 0.05 / len(blocks))
        highest = max(highest, math.log(1 + (np.linalg.norm(d) + radius) ** 2))
    f = np.log(corners / p @ corners.T)
    window = f.min() - gains.max() + p @ gains, f.max() - gains.min() + p @ gains
    expected = mean_lower_bound(np.array(values), *window, 1 - 0.9 * 0.05) - highest
    shown = prequential_certificate(blocks, reference, p, confidence=0.95)
    assert shown.lower_bits == pytest.approx(expected / math.log(2), abs=1e-9)
    assert shown.lower_bits > 0


def test_vectors_means_are_within_their_radius():
    rng, p = np.random.default_rng(0), np.array([0.5, 0.25, 0.25])
    missed, radii = 0, []
    for _ in range(300):
        s = (rng.dirichlet(np.ones(3), size=200) - 1 / 3) / np.sqrt(p)
        radii.append(vector_mean_radius(np.sum(s**2, axis=1), 5.0, 0.8))
        missed += np.linalg.norm(s.mean(axis=0)) > radii[-1]
    assert missed <= 60
    assert np.median(radii) < 0.25


@pytest.mark.parametrize(
    ("first", "n", "starts"), [(10, 100, [10, 20, 40]), (10, 80, [10, 20, 40]), (10, 79, [10, 20]), (60, 100, [60])]
)
def test_blocks_double_as_long_as_as_many_rows_follow(first, n, starts):
    assert doublings(first, n) == starts


def clusters(n, distance=3.0, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    c = rng.permutation(np.arange(n) % classes)
    return distance * np.eye(4)[c] + rng.normal(size=(n, 4)), c


class Reached(Exception):
    """Raised in place of a measurement."""


def parts_of_estimate(h, c, monkeypatch):
    """The parts that `estimate_labels` would measure."""
    made = []

    def watched(parts, options):
        made.append(parts)
        raise Reached

    with monkeypatch.context() as patch:
        patch.setattr(labels, "measure", watched)
        with pytest.raises(Reached):
            labels.estimate_labels(h, c)
    return made[0]


@pytest.mark.slow
@pytest.mark.compiles
def test_an_estimate_of_few_rows_is_certified_by_most_of_them():
    estimate = labels.estimate_labels(*clusters(1200), steps=10)
    shown = estimate.certificates["prequential"]
    assert estimate.certificate == "prequential"
    assert (estimate.value_bits, estimate.lower_bits) == (shown.value_bits, shown.lower_bits)
    assert shown.counts["pairs"] > 2.5 * estimate.certificates["posterior"].counts["pairs"]
    assert estimate.certificates["posterior"].lower_bits + 0.1 < estimate.lower_bits < estimate.value_bits
    assert "by the prequential certificate" in str(estimate)
    assert CERTIFICATES["prequential"].evidence(shown.counts).startswith(f"{shown.counts['pairs']} fresh pairs")


def test_every_row_is_read_once_by_a_probe_of_earlier_rows(monkeypatch):
    """Rows carry their number. The probes' fits are watched; no row of validation is certified."""
    h, c = clusters(6000, classes=2)
    h[:, 3] = np.arange(6000)
    parts = parts_of_estimate(h, c, monkeypatch)
    fits, by = [], center_and_spread(parts.validation.rows.astype(np.float64))

    def watched(features, labels_, classes, starts, **validation):
        assert set(validation["validation_features"][:, 3]).isdisjoint(features[:, 3])
        for start, probe in zip(starts, refits(features, labels_, classes, starts, **validation), strict=True):
            fits.append((start, features, labels_))
            yield probe

    monkeypatch.setattr(measuring, "refits", watched)
    _, blocks = measuring._blocks(parts, measuring.Options(k=16))
    (first, order, classes), *_ = fits
    assert len(blocks) == len(fits) == 2
    assert len(np.unique(order[:, 3])) == len(order) < len(parts.fit) + len(parts.test.c)
    assert np.all(classes[first::2] == classes[first + 1 :: 2])
    ends = [*(start for start, *_ in fits[1:]), len(order)]
    for block, (start, *_), end in zip(blocks, fits, ends, strict=True):
        assert (2 * block.own, 2 * len(block.c)) == (end - start, len(order) - start)
    # Other rows in the last block change nothing that the first block's probe says of its own pairs.
    moved = np.array([5, -5, 2, 0])
    last = np.isin(measuring._tamed(parts.fit, by)[:, 3], order[fits[1][0] :, 3])
    other = replace(parts, fit=np.where(last[:, None], parts.fit + moved, parts.fit).astype(np.float32))
    _, again = measuring._blocks(other, measuring.Options(k=16))
    own = blocks[0].own
    np.testing.assert_allclose(again[0].q_x[:own], blocks[0].q_x[:own], atol=1e-5)  # threads add up in any order
    assert np.abs(again[1].q_x - blocks[1].q_x).max() > 1e-2


def test_the_first_probe_cannot_count_the_classes_of_the_pairs(monkeypatch):
    """As many rows of each class are before the first block, whichever pairs are drawn from the others."""
    parts = parts_of_estimate(*clusters(600), monkeypatch)
    counts, pairs = set(), set()

    def watched(features, labels_, classes, starts, **validation):
        counts.add(tuple(np.bincount(labels_[: starts[0]])))
        pairs.add(tuple(np.bincount(labels_[starts[0] :])))
        return refits(features, labels_, classes, starts, **validation)

    monkeypatch.setattr(measuring, "refits", watched)
    for seed in range(3):
        measuring._blocks(parts, measuring.Options(k=16, seed=seed))
    assert (len(counts), len(pairs)) == (1, 3)


def test_rows_that_may_not_be_pooled_have_no_prequential_certificate(monkeypatch):
    h, c = clusters(600)
    parts = parts_of_estimate(h, c, monkeypatch)
    options = measuring.Options(k=16)
    assert len(measuring._blocks(parts, options)[1]) > 0
    channel = 0.9 * parts.joint + 0.1 / 9
    for refused in (replace(parts, one_sample=False), replace(parts, joint=channel)):
        assert measuring._blocks(refused, options) == ((), ())
    monkeypatch.setattr(measuring, "MOST_ROWS", 599)
    assert measuring._blocks(parts, options) == ((), ())
    # A copy of a test row may mean that rows of the fit part have copies too.
    design = labels.Design.of(c, 0, 0.95)
    h[design.test[0]] = h[design.fit[c[design.fit] == c[design.test[0]]][0]]
    copied = parts_of_estimate(h, c, monkeypatch)
    assert not copied.one_sample


def test_the_certificate_is_chosen_without_the_certified_rows():
    """The choice stays as it is if the certified blocks know nothing, and falls if validation's know nothing.

    The choice knows the blocks' probes, so each lower end is computed for half of 1 - confidence.
    """
    population, rng = POPULATIONS["two"], np.random.default_rng(0)
    blocks, reference = (tuple(side) for side in blocks_of(population, rng, 200, 800))
    rehearsed = tuple(one.resized(block) for one, block in zip(reference, blocks, strict=True))
    half = np.full((1000, 2), 0.5)

    def ignorant(side):
        return tuple(Block(half[: len(one.c)], half[: len(one.c)], one.c, one.own) for one in side)

    scores = np.zeros((16, 16, 16))
    validation, test = HeldOut(scores, blocks=rehearsed), HeldOut(scores, blocks=blocks)
    joint = np.eye(2) / 2
    assert certify(validation, test, joint, 0.95)[0] == "prequential"
    for confidence, name in ((0.95, "prequential"), (0.9, "infonce")):
        halved = CERTIFICATES[name].show(test, validation, joint, (1 + confidence) / 2)
        assert certify(validation, test, joint, confidence)[1][name].lower_bits == halved.lower_bits
    chosen, shown = certify(validation, replace(test, blocks=ignorant(blocks)), joint, 0.95)
    assert (chosen, shown["prequential"].lower_bits) == ("prequential", 0.0)
    better = HeldOut(scores + 8 * np.eye(16), blocks=ignorant(rehearsed))
    assert certify(better, test, joint, 0.95)[0] == "infonce"
