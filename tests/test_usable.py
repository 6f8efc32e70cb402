"""mi.usable_information: its minorant, its certified minima, its two ends against finite populations, and its words."""

import json

import numpy as np
import pytest
from scipy import optimize, special, stats

from mirigor_jax import mi, settings
from mirigor_jax.data.draws import parts_of, row_keys
from mirigor_jax.errors import InputError
from mirigor_jax.mi import families
from mirigor_jax.mi.confidence import fixed_bet_lower_bound, kl_lower_bound
from mirigor_jax.mi.families import BoundedLinear
from mirigor_jax.mi.usable import Division, fit_on
from mirigor_jax.mi.usable_fit import LinearFamily, Problem, bends_of, clipped, minimize, minorant
from mirigor_jax.mlp import fit_mlp

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
    """60 rows of 3 classes, each row with a weight, and a norm that binds in half of the problems."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(3, 60, p=[0.5, 0.3, 0.2])
    z = np.hstack([clipped(clusters(classes, seed, d=3), 3.0), np.ones((60, 1))])
    weights = rng.uniform(0.7, 1.4, 60)
    problem = Problem.of_mean_loss(z, classes, np.log([0.5, 0.3, 0.2]), weights, [0.3, 3.0][seed % 2])
    if seed % 4 < 2:
        return problem
    largest = 2 * problem.norm * np.hypot(3, 1) - problem.log_p
    return problem._replace(bet=0.2, bends=bends_of(0.2 * weights, largest[classes]))


def value_and_gradient(problem, w):
    """The objective, row by row, and its gradient."""
    total, gradient = 0.0, np.zeros_like(w)
    scores = problem.log_p + problem.z @ w
    q = special.softmax(scores, axis=1)
    for row, (z, c, p) in enumerate(zip(problem.z, problem.classes, q, strict=True)):
        weight, loss = problem.weights[row], -np.log(p[c])
        value, slope = weight * loss, weight
        if problem.bet > 0:
            value, slope = (x / problem.bet for x in minorant(loss, problem.bet * weight, problem.bends[row]))
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
def told():
    return []


@pytest.fixture(scope="module")
def result(told):
    names = np.array(["a", "b", "c"])
    return mi.usable_information(clusters(CLASSES, 1), names[CLASSES], on_progress=lambda *now: told.append(now))


def test_progress_is_told(result, told):
    assert told == [(1, 3, "rows checked"), (2, 3, "probe fitted"), (3, 3, f"{result.value_bits:.3f} bits")]


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
        "at 95 % confidence it is",
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


def test_the_steps_of_an_mlp_s_fit_are_its_option_alone(monkeypatch):
    seen = []

    def fit(*given, max_steps, **how):
        seen.append(max_steps)
        raise InputError("fitted")

    monkeypatch.setattr(families, "fit_mlp", fit)
    h, labels = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2
    for given, expected in (({"mlp_steps": 7}, 7), ({}, settings.Evaluate.mlp_steps)):
        with pytest.raises(InputError, match="fitted"):
            mi.usable_information(h, labels, family="mlp", **given)
        assert seen.pop() == expected
    with pytest.raises(InputError, match="mlp_steps = 0: expected 1 or more"):
        mi.usable_information(h, labels, family="mlp", mlp_steps=0)
    with pytest.raises(InputError, match="mlp_steps=7 is no option of family='linear'; leave it out"):
        mi.usable_information(h, labels, mlp_steps=7)


@pytest.mark.slow
@pytest.mark.compiles
def test_an_mlp_has_a_lower_end_alone_and_says_so(monkeypatch):
    small = {"hidden": (16,), "dropout": (0.0,), "learning_rate": 1e-2, "patience": 200}
    monkeypatch.setattr(families, "fit_mlp", lambda *given, **how: fit_mlp(*given, **how | small))
    ring = np.random.default_rng(0).normal(size=(800, 2))
    ring *= (1 + 2 * (np.arange(800) % 2) + 0.3 * np.random.default_rng(1).random(800))[:, None] / np.linalg.norm(
        ring, axis=1, keepdims=True
    )
    linear, mlp = (mi.usable_information(ring, np.arange(800) % 2, family=name) for name in ("linear", "mlp"))
    assert linear.upper_bits < 0.3
    assert mlp.lower_bits > 0.7
    assert mlp.largest_loss_nats < 20
    assert (mlp.upper_bits, mlp.kl_upper_bits, mlp.norm, mlp.reach) == (None, None, None, None)
    assert "no upper end is known, because the loss is not convex in an MLP's weights" in str(mlp)
    assert "MLPs of 16 units" in mlp.family
    assert "–" in mlp._repr_html_()
    assert mlp.figure().axes
    assert -np.log2(np.e) * mlp.largest_loss_nats <= (mlp.pointwise_bits - 1).min()


def test_rows_that_the_encoder_has_seen_only_help_to_fit():
    """The encoder memorized their labels: it adds a direction that names them."""
    h, seen = clusters(CLASSES, 1), np.arange(800) < 300
    memorized = np.hstack([h, np.where(seen[:, None], np.eye(3)[CLASSES], 1 / 3)])
    result = mi.usable_information(memorized, CLASSES, seen=seen, rows="independent")
    assert not np.isin(result.rows, np.flatnonzero(seen)).any()
    assert len(result.rows) == pytest.approx(0.6 * 500, abs=2)
    np.testing.assert_allclose(list(result.frequencies.values()), np.bincount(CLASSES[~seen]) / 500)
    assert result.lower_bits < mi.usable_information(h, CLASSES).upper_bits


def test_rows_that_an_encoder_has_seen_give_no_end():
    result = mi.usable_information(clusters(CLASSES, 1), CLASSES, seen=True)
    assert result.value_bits > 0
    assert result.lower_bits is result.upper_bits is result.kl_upper_bits is None
    assert "the ends are withheld, as the encoder has seen all rows" in str(result)


def test_a_row_that_is_far_from_all_others_changes_little():
    """Standardized, it is beyond float32."""
    h = 1e-3 * clusters(CLASSES, 1)
    plain = mi.usable_information(h, CLASSES, rows="independent")
    h[plain.rows[0]] = -3e38
    far = mi.usable_information(h, CLASSES, rows="independent")
    assert abs(far.lower_bits - plain.lower_bits) < 0.15
    assert abs(far.upper_bits - plain.upper_bits) < 0.15


def test_the_range_of_a_probe_s_loss_is_by_its_rarest_class():
    """log N would be too little: a flat probe loses -log p_c on a rare class."""
    family = LinearFamily(np.log([0.9, 0.07, 0.03]), np.zeros(D), np.ones(D), np.eye(D), 3.0, 1.0, 1.0)
    rng = np.random.default_rng(0)
    for strength in (0.0, 0.3, 1.0):
        w = rng.normal(size=(D + 1, 3))
        probe = BoundedLinear(family, strength * w / np.linalg.norm(w, axis=0))
        h = rng.standard_cauchy((20_000, D)) * 100
        worst = [probe.losses(h, np.full(len(h), c)).max() for c in range(3)]
        assert np.all(worst <= probe.largest_losses + 1e-12)
        assert max(worst) >= 0.9 * probe.largest_losses.max()
        assert np.all(probe.largest_losses <= family.largest_losses * (1 + 1e-6))
    assert np.log(3) < -family.log_p[2] == BoundedLinear(family, np.zeros((D + 1, 3))).largest_losses[2]


def test_constant_columns_change_nothing():
    """As units have that never fire. Rounding once gave them weights of 1e15, and the ends were empty."""
    h = clusters(CLASSES, 3)
    plain = mi.usable_information(h, CLASSES, rows="independent")
    constant = np.full((len(h), 2), 0.3), np.zeros((len(h), 9))
    result = mi.usable_information(np.hstack([*constant, h]), CLASSES, rows="independent")
    for name in ("value_bits", "lower_bits", "upper_bits", "norm", "largest_loss_nats"):
        assert getattr(result, name) == pytest.approx(getattr(plain, name), rel=1e-3)


def test_predictions_are_those_of_the_probe():
    """The class of the largest q(c|h), and the entropy of q(.|h), from the pointwise information of each class."""
    h, names = clusters(CLASSES, 3, apart=0.5), np.array(["c", "a", "b", "d"])[: CLASSES.max() + 1]
    result = mi.usable_information(h, names[CLASSES], rows="independent")
    division = Division.of(names[CLASSES], False)
    probe = fit_on(h, division, "linear")
    unseen = h[result.rows]
    q = np.exp(-np.stack([probe.losses(unseen, np.full(len(unseen), c)) for c in range(len(names))], axis=1))
    np.testing.assert_allclose(q.sum(axis=1), 1)
    assert result.predicted.tolist() == np.sort(names)[q.argmax(axis=1)].tolist()
    np.testing.assert_allclose(result.prediction_entropy_bits, stats.entropy(q, base=2, axis=1), atol=1e-9)
    own = q[np.arange(len(q)), division.classes[result.rows]]
    np.testing.assert_allclose(
        result.pointwise_bits, np.log2(own / division.frequencies[division.classes[result.rows]])
    )


def test_constant_rows_have_no_information():
    result = mi.usable_information(np.ones((800, D)), CLASSES, rows="independent")
    assert result.value_bits == pytest.approx(0, abs=1e-6)
    assert result.lower_bits == 0 <= result.upper_bits < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h": np.zeros((799, D))}, "h has 799 rows and labels 800: expected one label a row"),
        ({"labels": np.zeros(800, int)}, "labels hold 1 class: H(C) is 0"),
        (
            {"labels": np.arange(800) // 9},
            "expected 10 or more of every class; give more, or drop",
        ),
        ({"confidence": 1.0}, "confidence = 1.0: expected in [0.5, 1); 0.95 is usual"),
        ({"rows": "fine"}, "rows = 'fine': expected 'checked', or 'independent'"),
        ({"family": "tree"}, "family = 'tree': expected 'linear' or 'mlp'"),
        ({"seen": np.zeros(7, bool)}, "seen is of dtype bool, shape (7,): expected one bool, or (800,) bools"),
        ({"seen": np.arange(800)}, "seen is of dtype int64, shape (800,): expected one bool, or (800,) bools"),
        ({"seen": CLASSES == 2}, "class 2 has 0 rows that the encoder has not seen, expected 10 or more"),
        ({"h": np.full((800, D), np.nan)}, "h has 3,200 NaN or infinite values, the first at [0, 0]; drop those rows"),
    ],
)
def test_a_bad_argument_is_one_line(change, message):
    given = {"h": clusters(CLASSES, 1), "labels": CLASSES} | change
    with pytest.raises(InputError) as error:
        mi.usable_information(**given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
