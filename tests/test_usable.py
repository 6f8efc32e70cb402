"""mi.usable_information: its minorant, its certified minima, its two ends against finite populations, and its words."""

import json

import numpy as np
import pytest
from scipy import optimize, special, stats

from mirigor_jax import mi
from mirigor_jax.data.draws import parts_of, row_keys
from mirigor_jax.errors import InputError
from mirigor_jax.mi import usable
from mirigor_jax.mi.confidence import fixed_bet_lower_bound, kl_lower_bound
from mirigor_jax.mi.usable_fit import LinearFamily, Problem, bends_of, clipped, minimize, minorant

D = 4


def clusters(classes, seed, *, apart=1.5, d=D):
    """Unit normals around the classes' means."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(size=(int(classes.max()) + 1, d)) * apart
    return means[classes] + rng.normal(size=(len(classes), d))


# the minorant


def drawn_bets(n=100_000):
    rng = np.random.default_rng(0)
    bets, largest = np.exp(rng.uniform(-8, 2, n)), rng.uniform(0.1, 120, n)
    return bets, largest, bends_of(bets, largest), rng


def test_the_minorant_is_below_what_it_stands_for_and_meets_it():
    bets, largest, bends, rng = drawn_bets()
    losses = largest * rng.uniform(size=len(bets))
    assert np.all(minorant(losses, bets, bends)[0] <= np.log1p(bets * losses) + 1e-12)
    assert np.all(minorant(largest, bets, bends)[0] <= np.log1p(bets * largest) + 1e-12)
    below = np.minimum(losses, bends)
    np.testing.assert_allclose(minorant(below, bets, bends)[0], np.log1p(bets * below), rtol=1e-12)
    assert np.median(bends[bets < 0.1]) > 1  # it follows the logarithm beyond the losses that are frequent


def is_convex(values_and_slopes, losses, further):
    """Whether psi'' / psi' >= -1 / (e^loss - 1) between pairs of losses: psi' (1 - e^-loss) does not fall."""
    lower, upper = (
        slope(x)[1] * -np.expm1(-x) for slope, x in ((values_and_slopes, losses), (values_and_slopes, further))
    )
    return upper >= lower * (1 - 1e-12)


def test_the_minorant_is_convex_in_the_logits():
    bets, largest, bends, rng = drawn_bets()
    losses = largest * rng.uniform(size=len(bets))
    further = losses + (largest - losses) * rng.uniform(size=len(bets)) ** 4
    assert is_convex(lambda x: minorant(x, bets, bends), losses, further).all()
    # By differences: the slope is the derivative.
    rise = (minorant(losses + 1e-6, bets, bends)[0] - minorant(losses - 1e-6, bets, bends)[0]) / 2e-6
    np.testing.assert_allclose(minorant(losses, bets, bends)[1], rise, rtol=2e-3, atol=1e-8)


def test_a_weight_outside_the_minorant_would_break_convexity():
    bets, largest, bends, rng = drawn_bets(1000)
    losses = largest * rng.uniform(size=len(bets))
    assert not is_convex(lambda x: minorant(0.5 * x, bets, bends), losses, largest).all()


# minima


def small_problem(seed):
    """60 rows of 3 classes with weights, and a norm that binds in half of the problems."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(3, 60, p=[0.5, 0.3, 0.2])
    z = np.hstack([clipped(clusters(classes, seed, d=3), 3.0), np.ones((60, 1))])
    weights = rng.uniform(0.7, 1.4, 3)
    problem = Problem(z, classes, np.log([0.5, 0.3, 0.2]), weights, [0.3, 3.0][seed % 2])
    if seed % 4 < 2:
        return problem
    largest = 2 * problem.norm * np.hypot(3, 1) - problem.log_p
    return problem._replace(bet=0.2, bends=bends_of(0.2 * weights, largest))


def value_and_gradient(problem, w):
    """The objective, row by row, and its gradient."""
    total, gradient = 0.0, np.zeros_like(w)
    scores = problem.log_p + problem.z @ w
    q = special.softmax(scores, axis=1)
    for z, c, p in zip(problem.z, problem.classes, q, strict=True):
        weight, loss = problem.weights[c], -np.log(p[c])
        value, slope = weight * loss, weight
        if problem.bet is not None:
            value, slope = (x / problem.bet for x in minorant(loss, problem.bet * weight, problem.bends[c]))
        total += value / len(q)
        gradient += np.outer(z, p - np.eye(len(p))[c]) * slope / len(q)
    return total, gradient


def long_solve(problem):
    """The least value that scipy's SLSQP finds under the norms' constraints."""
    shape = problem.z.shape[1], len(problem.log_p)

    def objective(flat):
        value, gradient = value_and_gradient(problem, flat.reshape(shape))
        return value, gradient.ravel()

    room = {
        "type": "ineq",
        "fun": lambda flat: problem.norm**2 - np.sum(flat.reshape(shape) ** 2, axis=0),
        "jac": lambda flat: (
            -2 * np.stack([(np.eye(shape[1])[k] * flat.reshape(shape)).ravel() for k in range(shape[1])])
        ),
    }
    found = optimize.minimize(
        objective, np.zeros(shape).ravel(), jac=True, constraints=[room], method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-13},
    )  # fmt: skip
    w = found.x.reshape(shape)
    return value_and_gradient(problem, w / np.maximum(1, np.linalg.norm(w, axis=0) / problem.norm))[0]


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 50), marks=pytest.mark.slow)])
def test_the_certified_minimum_is_never_above_a_long_solve(seeds):
    for seed in seeds:
        problem = small_problem(seed)
        best, found = long_solve(problem), minimize(problem, tolerance=1e-6)
        assert found.lowest <= best + 1e-9
        assert 0 <= found.gap <= 1e-6
        assert found.value <= best + 2e-6
        assert found.value == pytest.approx(value_and_gradient(problem, found.weights)[0], abs=1e-12)
        assert np.linalg.norm(found.weights, axis=0).max() <= problem.norm * (1 + 1e-12)
        # A descent that did not move states a bound all the same.
        stopped = minimize(problem, tolerance=np.inf)
        assert stopped.lowest <= best < stopped.value


# limits of means


def test_the_limit_with_a_fixed_bet_is_the_root_of_its_capital():
    values = np.random.default_rng(0).uniform(size=200) ** 2 * 3 - 1

    def log_capital(m, bet):
        return np.log1p(min(bet, 0.9 / (m + 1)) * (values - m)).sum()

    for bet in (0.02, 0.2, 5.0):
        at = fixed_bet_lower_bound(values, -1.0, 2.0, 0.9, bet)
        assert -1 <= at < values.mean()
        assert at == pytest.approx(-1) or log_capital(at, bet) == pytest.approx(np.log(10), abs=1e-6)
    with pytest.raises(InputError, match="expected at least one, all inside it"):
        fixed_bet_lower_bound(values, 0.0, 2.0, 0.9, 0.1)


def test_the_kl_limit_is_the_root_of_chernoffs_bound():
    at = kl_lower_bound(0.6, 50, 3.0, 0.9)
    assert special.rel_entr([0.2, 0.8], [at / 3, 1 - at / 3]).sum() == pytest.approx(np.log(10) / 50)
    assert kl_lower_bound(0.0, 50, 3.0, 0.9) == 0
    # Exactly: of n binary values with any mean, at most a share of 0.1 has a limit above it.
    for mean in (0.02, 0.3, 0.9):
        hits = np.arange(51)
        above = np.array([kl_lower_bound(hit / 50, 50, 1.0, 0.9) > mean for hit in hits])
        assert stats.binom.pmf(hits, 50, mean)[above].sum() <= 0.1


@pytest.mark.parametrize("bet", [0.1, 0.4])
def test_the_fixed_bet_holds_for_rows_of_a_fixed_number_a_class(bet):
    """Two classes of 20 rows each whose means differ: the limit of the mean of both."""
    rng, missed = np.random.default_rng(0), 0
    for _ in range(400):
        values = np.concatenate([rng.random(20) < 0.9, rng.random(20) < 0.1]).astype(float)
        missed += fixed_bet_lower_bound(values, 0.0, 1.0, 0.9, bet) > 0.5
    assert missed <= 40


# the ends


CLASSES = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [400, 240, 160]))


@pytest.fixture(scope="module")
def result():
    return mi.usable_information(clusters(CLASSES, 1), np.array(["a", "b", "c"])[CLASSES])


def test_the_ends_enclose_the_value(result):
    assert 0 < result.lower_bits < result.value_bits < result.upper_bits < result.kl_upper_bits
    assert result.upper_bits <= result.entropy_bits == pytest.approx(stats.entropy([0.5, 0.3, 0.2], base=2))
    assert result.frequencies == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.2})
    np.testing.assert_array_equal(result.rows, parts_of(CLASSES, row_keys(800), test=0.6)[2])
    assert len(result.rows) == 480
    assert result.value_bits == pytest.approx(result.pointwise_bits.mean(), abs=1e-12)  # the shares are p(c) exactly


def test_its_words_are_those_of_its_fields(result):
    sentence = str(result)
    for words in (
        f"reads {result.value_bits:.3f} of H(C) = {result.entropy_bits:.3f} bits",
        f"at least {np.floor(1000 * result.lower_bits) / 1000:.3f}",
        f"at most {np.ceil(1000 * result.upper_bits) / 1000:.3f} bits",
        "at 95 % confidence",
        "480 unseen rows",
        f"‖w_k‖ ≤ {result.norm:.3g}",
    ):
        assert words in sentence
    known = json.loads(json.dumps(result.to_dict()))
    assert known["sentence"] == sentence
    assert len(known["pointwise_bits"]) == len(known["rows"]) == 480
    assert f"{result.value_bits:.3f}" in result._repr_html_()
    labels = result.figure().axes[0].get_legend_handles_labels()[1]
    assert "at 95 %: usable information is in here" in labels


def test_wrong_labels_have_the_lowest_pointwise_information():
    wrong = np.random.default_rng(5).choice(800, 16, replace=False)
    given = CLASSES.copy()
    given[wrong] = (given[wrong] + 1) % 3
    result = mi.usable_information(clusters(CLASSES, 1, apart=4.0), given)
    planted = np.isin(result.rows, wrong)
    assert planted.sum() >= 4
    lowest = np.argsort(result.pointwise_bits)[: planted.sum()]
    assert planted[lowest].mean() >= 0.8  # a wrong label between two classes may seem right
    assert result.pointwise_bits[planted].max() < np.median(result.pointwise_bits)


def test_dependent_rows_have_no_ends():
    walk = np.cumsum(np.random.default_rng(0).normal(size=(800, D)), axis=0)
    result = mi.usable_information(walk, np.sort(CLASSES))
    assert result.lower_bits is result.upper_bits is result.kl_upper_bits is None
    assert "the ends are withheld" in str(result)
    assert "no end is certified" in result.sentence
    assert "–" in result._repr_html_()
    assert result.figure().axes
    assert mi.usable_information(walk, np.sort(CLASSES), rows="independent").lower_bits is not None


def test_constant_rows_have_no_information():
    result = mi.usable_information(np.ones((800, D)), CLASSES, rows="independent")
    assert result.value_bits == pytest.approx(0, abs=1e-6)
    assert result.lower_bits == 0 <= result.upper_bits < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h": np.zeros((799, D))}, "h has 799 rows and labels 800: expected one label a row"),
        ({"labels": np.zeros(800, int)}, "labels hold 1 class: H(C) is 0"),
        ({"labels": np.arange(800) // 9}, "expected 10 or more of every class; drop or merge rare classes"),
        ({"confidence": 1.0}, "confidence = 1.0: expected in [0.5, 1); 0.95 is usual"),
        ({"rows": "fine"}, "rows = 'fine': expected 'checked', or 'independent'"),
        ({"h": np.full((800, D), np.nan)}, "h has 3,200 NaN or infinite values, the first at [0, 0]; drop those rows"),
    ],
)
def test_a_bad_argument_is_one_line(change, message):
    given = {"h": clusters(CLASSES, 1), "labels": CLASSES} | change
    with pytest.raises(InputError) as error:
        mi.usable_information(**given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# coverage


def least_bits(family, h, classes):
    """The family's information in a finite population, exact to the gap of 1e-6 nats."""
    found = minimize(
        Problem(family.map(h), classes, family.log_p, np.ones(len(family.log_p)), family.norm), tolerance=1e-6
    )
    assert found.gap <= 1e-6
    return (stats.entropy(np.exp(family.log_p)) - found.lowest) / np.log(2)


def drawn(classes, counts, rng):
    """Rows of a population with replacement: of each class as many as its count."""
    return np.concatenate([rng.choice(np.flatnonzero(classes == c), count) for c, count in enumerate(counts)])


@pytest.mark.slow
@pytest.mark.parametrize("counts", [[1600, 400], [400, 300, 250, 200, 200, 150, 150, 150, 100, 100]])
def test_both_ends_hold_in_a_finite_population(counts, monkeypatch):
    """At 50 % confidence, where each end may fail in a quarter of the repeats."""
    classes = np.repeat(np.arange(len(counts)), 2 * np.array(counts))
    h, rng, missed, families = clusters(classes, 7, apart=0.7, d=8), np.random.default_rng(1), [], []
    fit_family = usable.fit_family

    def kept(*given):
        families.append(fit_family(*given))
        return families[-1]

    monkeypatch.setattr(usable, "fit_family", kept)
    for _ in range(40):
        rows = drawn(classes, counts, rng)
        result = mi.usable_information(h[rows], classes[rows], confidence=0.5, rows="independent")
        exact = least_bits(families[-1][0], h, classes)
        missed.append((result.lower_bits > exact, result.upper_bits < exact, result.kl_upper_bits < exact))
        # The same end with the word of a solver that was stopped at its start.
        ends = usable.Ends.of(*families[-1], h[rows], classes[rows], classes[rows[result.rows]], confidence=0.5)
        word = minimize(
            ends.against_the_best(
                Problem(
                    families[-1][0].map(h[rows[result.rows]]),
                    classes[rows[result.rows]],
                    families[-1][0].log_p,
                    ends.weights,
                    families[-1][0].norm,
                )
            ),
            tolerance=np.inf,
        )
        entropy = result.entropy_bits
        missed[-1] += (entropy - ends.end_of_bets(word.value, len(result.rows)) / np.log(2) < exact,)
    lower, upper, kl_upper, of_the_word = np.sum(missed, axis=0)
    for end in (lower, upper, kl_upper):
        assert stats.binom.sf(end - 1, 40, 0.25) > 0.01
    assert stats.binom.sf(of_the_word - 1, 40, 0.25) < 1e-6


@pytest.mark.slow
def test_a_map_that_has_seen_the_rows_breaks_the_upper_end():
    """It maps the rows that the end is read on to zero, so no probe can use them; fresh rows it leaves as they are."""
    population_classes = np.arange(4000) % 2
    h, rng = clusters(population_classes, 3), np.random.default_rng(2)
    for _ in range(5):
        rows = drawn(population_classes, [120, 120], rng)

        class Blind(LinearFamily):
            def map(self, given):
                z = super().map(given)
                return np.where(np.isin(given[:, :1], h[rows, :1]), 0.0, z)  # noqa: B023

        upper = []
        for family_class in (LinearFamily, Blind):
            family = family_class(np.log([0.5, 0.5]), np.zeros(D), np.ones(D), np.eye(D), 3.0, 1.0, 1.0)
            ends = usable.Ends.of(
                family,
                np.zeros((D + 1, 2)),
                h[rows],
                population_classes[rows],
                population_classes[rows],
                confidence=0.95,
            )
            least = ends.least(h[rows], population_classes[rows])[0]
            upper.append((np.log(2) - least) / np.log(2) >= least_bits(family, h, population_classes))
        assert upper == [True, False]


@pytest.mark.slow
def test_random_labels_have_no_usable_information():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        result = mi.usable_information(rng.normal(size=(10_000, 16)), rng.integers(0, 10, 10_000))
        assert result.lower_bits == 0
        assert result.upper_bits <= 0.15
