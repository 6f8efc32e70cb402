"""Gaussian V-information: its closed form on linear Gaussian data, numpy's least squares, and the sign of its bias."""

import math

import numpy as np
import pytest
from scipy.signal import lfilter

from mirigor_jax import mi, mlp
from mirigor_jax.data.draws import parts_of, row_keys
from mirigor_jax.errors import InputError
from mirigor_jax.mi import gaussian_pairs
from mirigor_jax.mi import rows as rows_module
from mirigor_jax.mi.gaussian_usable import PENALTIES, read_checked
from mirigor_jax.mi.rows import check_pairs, check_regression, check_values
from mirigor_jax.mi.usable_results import GaussianVInformation


def parts(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return parts_of(np.zeros(n, int), row_keys(n))


def unchecked(x: np.ndarray, y: np.ndarray) -> GaussianVInformation:
    """Without the check of the rows, which takes most of the time."""
    return read_checked(x, y, parts(len(x)), "linear", confidence=0.9, seed=0)


def joint_covariance(p: int, q: int, seed: int = 0) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(p + q, p + q))
    return factor @ factor.T / (p + q)


def truth_nats(covariance: np.ndarray, p: int) -> float:
    """tr Σ_yx Σ_xx⁻¹ Σ_xy, the variance of y that the best linear map of x explains."""
    cross = covariance[:p, p:]
    return float(np.trace(cross.T @ np.linalg.solve(covariance[:p, :p], cross)))


def draws(rng: np.random.Generator, covariance: np.ndarray, n: int) -> np.ndarray:
    return rng.normal(size=(n, len(covariance))) @ np.linalg.cholesky(covariance).T


def with_moments(rows: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The rows moved to mean 0 and to exactly this sample covariance."""
    rows = rows - rows.mean(axis=0)
    factor = np.linalg.cholesky(np.cov(rows, rowvar=False))
    return rows @ np.linalg.inv(factor).T @ np.linalg.cholesky(covariance).T


def test_rows_with_the_moments_of_linear_gaussian_data_give_the_closed_form():
    p, q, n = 4, 3, 30_000
    covariance, rng = joint_covariance(p, q), np.random.default_rng(1)
    rows = np.empty((n, p + q))
    for part in parts(n):
        rows[part] = with_moments(rng.normal(size=(len(part), p + q)), covariance)
    result = unchecked(rows[:, :p] + 5, rows[:, p:] - 7)
    truth = truth_nats(covariance, p)
    assert result.value_nats == pytest.approx(truth, abs=1e-3)
    assert result.in_sample_bits * math.log(2) == pytest.approx(truth, abs=1e-3)
    assert result.total_bits * math.log(2) == pytest.approx(np.trace(covariance[p:, p:]), rel=1e-9)
    assert "L2 penalty 0 (" in result.family


def test_the_value_is_that_of_numpy_s_least_squares():
    rows = draws(np.random.default_rng(2), joint_covariance(3, 2), 1500)
    x, y = rows[:, :3], rows[:, 3:]
    result = mi.gaussian_v_information(x, y, confidence=0.9)
    fitted, _, test = parts(1500)
    ones = np.ones((1500, 1))
    weights, *_ = np.linalg.lstsq(np.hstack([x, ones])[fitted], y[fitted], rcond=None)
    around = ((y[test] - y[test].mean(axis=0)) ** 2).sum(axis=1) * len(test) / (len(test) - 1)
    expected = around - ((y[test] - np.hstack([x, ones])[test] @ weights) ** 2).sum(axis=1)
    np.testing.assert_array_equal(result.rows, test)
    # Validation may choose a small penalty.
    np.testing.assert_allclose(result.pointwise_bits * math.log(2), expected, atol=0.02)
    assert result.value_nats == pytest.approx(expected.mean(), abs=2e-3)
    assert result.total_bits * math.log(2) == pytest.approx(np.trace(np.cov(y[test], rowvar=False)))
    half = (result.interval.upper_bits - result.interval.lower_bits) / 2 * math.log(2)
    assert half == pytest.approx(1.65 * expected.std(ddof=1) / math.sqrt(len(test)), rel=0.02)
    residual = y - np.hstack([x, ones]) @ np.linalg.lstsq(np.hstack([x, ones]), y, rcond=None)[0]
    in_sample = np.trace(np.cov(y, rowvar=False)) - (residual**2).sum(axis=1).mean()
    assert result.in_sample_bits * math.log(2) == pytest.approx(in_sample)


def test_on_average_the_value_is_too_low_and_the_in_sample_value_too_high():
    """Samples of 110 rows, of which 66 fit a map of eight columns, beside what the best map has on the same rows."""
    p, q, repeats = 8, 2, 150
    covariance, rng = joint_covariance(p, q), np.random.default_rng(3)
    truth, weights = truth_nats(covariance, p), np.linalg.solve(covariance[:p, :p], covariance[:p, p:])
    below, above, exact, covered = [], [], [], 0
    for _ in range(repeats):
        rows = draws(rng, covariance, 110)
        x, y = rows[:, :p], rows[:, p:]
        result, test = unchecked(x, y), parts(110)[2]
        best = [np.cov(y[at], rowvar=False).trace() - ((y - x @ weights)[at] ** 2).sum(axis=1).mean()
                for at in (test, slice(None))]  # fmt: skip
        exact.append(best[0])
        below.append(result.value_nats - best[0])
        above.append(result.in_sample_bits * math.log(2) - best[1])
        covered += result.interval.lower_bits * math.log(2) <= truth

    def z(values):
        return np.mean(values) / (np.std(values, ddof=1) / math.sqrt(repeats))

    assert abs(z(np.subtract(exact, truth))) < 3
    assert z(below) < -5
    assert z(above) > 5
    assert covered >= 0.95 * repeats - 3 * math.sqrt(0.95 * 0.05 * repeats)


def test_the_value_is_not_biased_upwards_if_x_says_nothing():
    rng, repeats = np.random.default_rng(4), 150
    values = [unchecked(rng.normal(size=(110, 1)), rng.normal(size=(110, 3))).value_nats for _ in range(repeats)]
    error = np.std(values, ddof=1) / math.sqrt(repeats)
    # The error of three means of 66 rows alone is 3 / 66.
    assert -3 * 3 / 66 < np.mean(values) < -3 / 66 + 3 * error


def test_the_units_of_y_count_by_their_square_and_rotations_and_units_of_x_do_not():
    rows = draws(np.random.default_rng(5), joint_covariance(3, 3), 1000)
    x, y = rows[:, :3], rows[:, 3:]
    plain = mi.gaussian_v_information(x, y)
    rotation = np.linalg.qr(np.random.default_rng(6).normal(size=(3, 3)))[0]
    moved = mi.gaussian_v_information(x * [10, 1, 0.1] + 3, 2 * y @ rotation + 1)
    assert moved.value_bits == pytest.approx(4 * plain.value_bits)
    assert moved.in_sample_bits == pytest.approx(4 * plain.in_sample_bits)
    assert moved.share == pytest.approx(plain.share)


def test_constant_and_repeated_columns_change_nothing():
    rows = draws(np.random.default_rng(7), joint_covariance(3, 2), 1000)
    x, y = rows[:, :3], rows[:, 3:]
    plain = mi.gaussian_v_information(x, y)
    more = mi.gaussian_v_information(np.hstack([x, x[:, :1], np.full((1000, 1), 3.0)]), y)
    assert more.in_sample_bits == pytest.approx(plain.in_sample_bits)
    assert more.value_bits == pytest.approx(plain.value_bits, abs=0.01)
    nothing = mi.gaussian_v_information(np.ones(1000), y)
    assert nothing.value_bits == pytest.approx(0, abs=0.02)
    assert "nan" not in str(mi.gaussian_v_information(x, np.ones(1000)))


@pytest.mark.slow
def test_an_mlp_uses_what_linear_maps_cannot(monkeypatch):
    monkeypatch.setattr(mlp, "HIDDEN", (64, 64, 64))  # layers of 512 take minutes
    rng = np.random.default_rng(8)
    x = rng.uniform(-2, 2, size=(2000, 1))
    y = np.hstack([x**2, x]) + 0.3 * rng.normal(size=(2000, 2))
    linear, deep = mi.gaussian_v_information(x, y), mi.gaussian_v_information(x, y, family="mlp")
    truth = 64 / 45 + 4 / 3  # Var(x²) + Var(x)
    assert linear.value_nats == pytest.approx(4 / 3, abs=0.2)
    assert deep.in_sample_bits is None
    test = deep.rows
    best = y[test] - np.hstack([x**2, x])[test]
    oracle = np.cov(y[test], rowvar=False).trace() - (best**2).sum(axis=1).mean()
    assert oracle == pytest.approx(truth, abs=0.4)
    assert 0.93 * oracle < deep.value_nats < oracle + 0.01
    nothing = mi.gaussian_v_information(rng.normal(size=(300, 2)), rng.normal(size=300), family="mlp", seed=1)
    assert -0.1 < nothing.value_nats < 0.03


def test_rows_in_a_series_have_no_interval():
    rng = np.random.default_rng(9)
    walk = np.cumsum(rng.normal(size=(2000, 2)), axis=0)
    result = mi.gaussian_v_information(walk[:, 0], walk[:, 1])
    assert result.interval is None
    assert result.warnings[0].startswith("the interval is withheld, as ")
    stated = mi.gaussian_v_information(walk[:, 0], walk[:, 1], rows="independent")
    assert stated.interval is not None


def stationary(n: int, coefficient: float, rng: np.random.Generator) -> np.ndarray:
    """A series of variance 1: each value is the coefficient times the last one, plus noise."""
    noise = rng.normal(size=n) * math.sqrt(1 - coefficient**2)
    start = rng.normal() * coefficient  # the value before the first one
    return lfilter([1], [1, -coefficient], noise, zi=[start])[0]


def of_regimes(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Uncorrelated rows. In every second stretch of 200 rows, x varies more, so that it explains more of y."""
    x = np.where(np.arange(n) // 200 % 2, 3.0, 0.3) * rng.normal(size=n)
    return x, x + rng.normal(size=n)


def test_the_interval_is_withheld_if_x_alone_y_alone_or_the_values_resemble_their_neighbors():
    rng = np.random.default_rng(12)
    series, free = stationary(3000, 0.99, rng), rng.normal(size=3000)
    cases = {
        "rows up to 1 apart resemble each other in x": (series, series + 0.5 * free),
        "rows up to 1 apart resemble each other in y": (free, series),
        "the values of test rows up to ": of_regimes(3000, rng),
    }
    for words, (x, y) in cases.items():
        result = mi.gaussian_v_information(x, y)
        assert result.interval is None
        assert result.warnings[0].startswith(f"the interval is withheld, as {words}")
        assert len(result.warnings) == 1
        assert mi.gaussian_v_information(x, y, rows="independent").interval is not None


def test_independent_rows_keep_their_interval(monkeypatch):
    """In 200 samples of skewed, heavy-tailed, coarse and mostly equal columns; tests/test_rows.py has pairs' checks."""
    monkeypatch.setattr(rows_module, "_of_pairs", lambda x, y, test: ("", np.zeros(len(test), bool), []))
    withheld = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x = np.stack([rng.normal(size=300), rng.standard_t(2, size=300)], axis=1)
        y = np.stack([np.exp(x[:, 0] + rng.normal(size=300)), rng.integers(0, 3, 300), rng.random(300) < 0.05], axis=1)
        withheld += bool(check_regression(x, y, parts(300)[2]).contradiction or check_values(y[:, 0]).contradiction)
    assert withheld <= 2


def test_what_is_said_of_columns_is_about_the_variance():
    x = np.random.default_rng(13).normal(size=(500, 1))
    assert "infinite" in check_pairs(x, x, parts(500)[2]).warnings[0]
    result = mi.gaussian_v_information(x, x)
    assert result.warnings == ()
    assert result.share == pytest.approx(1)
    of_all = np.var(x, ddof=1) / math.log(2)
    assert result.in_sample_total_bits == pytest.approx(of_all)
    assert f"on all rows, it is {of_all:.3f} of tr Cov(y) = {of_all:.3f} bits there" in str(result)


def test_the_mlp_s_progress_has_the_fit_part_s_mean_square_as_unit(monkeypatch):
    monkeypatch.setattr(mlp, "HIDDEN", (4, 4, 4))
    rng, notes = np.random.default_rng(14), []
    x = rng.normal(size=(60, 1))
    y = 100 * np.hstack([x, x + 1])
    given = {"validation_features": x[40:], "validation_targets": y[40:], "max_steps": 100}
    predict = mlp.fit_mlp_map(x[:40], y[:40], **given, on_progress=lambda *message: notes.append(message))
    error = np.mean((y[40:] - predict(x[40:])) ** 2) / np.mean(y[:40] ** 2)
    [(_, _, note)] = notes
    words, shown = note.split(" on validation, "), float(note.split()[2])
    assert words == [f"squared error {shown:.4g}", "in units of the fit part's mean square"]
    assert shown == pytest.approx(error, rel=1e-3)


def test_the_result_as_a_sentence_a_table_and_a_picture():
    rows = draws(np.random.default_rng(10), joint_covariance(2, 2), 500)
    result = mi.gaussian_v_information(rows[:, :2], rows[:, 2:])
    assert f"reads {result.value_bits:.3f} of tr Cov(y) = {result.total_bits:.3f} bits" in str(result)
    assert "depend on the units of y" in str(result)
    assert f"{result.in_sample_bits:.3f}" in result._repr_html_()
    assert result.to_dict()["value_nats"] == pytest.approx(result.pointwise_bits.mean() * math.log(2))
    assert len(result.figure().axes) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"family": "tree"}, "family = 'tree': expected 'linear' or 'mlp'"),
        ({"confidence": 1.0}, "confidence = 1.0"),
        ({"seed": -1}, "seed = -1"),
        ({"rows": "some"}, "rows = 'some'"),
        ({"y": np.ones(199)}, "x has 200 rows and y has 199"),
        ({"x": np.ones(50), "y": np.ones(50)}, "50 rows are too few"),
        ({"y": np.full(200, np.nan)}, "y has 200 NaN or infinite values"),
    ],
)
def test_what_it_cannot_use_is_one_line(given, message):
    rng = np.random.default_rng(11)
    with pytest.raises(InputError) as error:
        mi.gaussian_v_information(**{"x": rng.normal(size=200), "y": rng.normal(size=200)} | given)
    assert str(error.value).startswith(message)


def several(n=400):
    """Encoders of one image: two of the same three numbers, one that has a third of them, noise, and a constant."""
    rng = np.random.default_rng(5)
    z = rng.normal(size=(n, 3))
    return {
        "all": z @ rng.normal(size=(3, 7)) + 5,
        "more": np.hstack([z, rng.normal(size=(n, 2))]),
        "part": z[:, :1] + 0.3 * rng.normal(size=(n, 1)),
        "noise": rng.normal(size=(n, 4)),
        "dead": np.ones((n, 2)),
    }


def share_by_hand(x, y, split):
    """The share of the variance of y's test rows that ridge regression by the normal equations explains."""
    fit, validation, test = split
    mean, scale = x[fit].mean(axis=0), x[fit].std(axis=0)
    z = (x - mean) / np.where(scale > 0, scale, 1.0)
    center, n, errors = y[fit].mean(axis=0), len(fit), []
    for penalty in PENALTIES:
        inverse = np.zeros((z.shape[1],) * 2)
        if np.isfinite(penalty):
            inverse = np.linalg.pinv(z[fit].T @ z[fit] / n + penalty * np.eye(z.shape[1]), rcond=1e-10)
        guess = center + z @ (inverse @ (z[fit].T @ (y[fit] - center) / n))
        errors.append([np.mean(np.sum((y[part] - guess[part]) ** 2, axis=1)) for part in (validation, test)])
    left = min(errors)[1]
    return 1 - left / np.trace(np.atleast_2d(np.cov(y[test], rowvar=False)))


def test_shares_of_all_pairs_are_those_of_ridge_regression_and_of_the_pairwise_function():
    features = several()
    shares = mi.gaussian_v_shares(features)
    for a, x in enumerate(features.values()):
        for b, y in enumerate(features.values()):
            if a == b or y.std() == 0:
                assert math.isnan(shares[a, b])
            else:
                assert shares[a, b] == pytest.approx(share_by_hand(x, y, parts(400)), rel=1e-5, abs=1e-7)
                pairwise = mi.gaussian_v_information(x, y, rows="independent").share
                assert shares[a, b] == pytest.approx(pairwise, rel=1e-5, abs=1e-6)
    names = list(features)
    assert shares[names.index("more"), names.index("all")] > 0.999
    assert shares[names.index("all"), names.index("more")] == pytest.approx(3 / 5, abs=0.08)


def test_the_programs_of_the_pairs_are_compiled_once():
    features = several(300)
    before = gaussian_pairs._share._cache_size(), gaussian_pairs._source._cache_size()
    mi.gaussian_v_shares(features)
    after = gaussian_pairs._share._cache_size(), gaussian_pairs._source._cache_size()
    assert np.subtract(after, before).tolist() == [1, 1]


@pytest.mark.parametrize(("columns", "width"), [(1, 64), (64, 64), (65, 128), (257, 512), (1280, 1280)])
def test_a_wide_encoder_does_not_widen_the_others(columns, width):
    h = np.random.default_rng(0).normal(size=(8, columns))
    filled, *_ = gaussian_pairs._Standard.of(h, np.arange(8)).parts([np.arange(8)])
    assert filled.shape == (8, width)
    assert not filled[:, columns:].any()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"a": np.ones((200, 2))}, "1 encoder.*: expected two or more"),
        (
            {"a": np.ones((200, 2)), "b": np.ones((199, 2))},
            "the encoders have 199 to 200 rows: expected the same images",
        ),
        (dict.fromkeys("ab", np.ones((9, 2))), "9 rows are too few"),
        (dict.fromkeys("ab", np.full((200, 2), np.nan)), "a has 400 NaN"),
    ],
)
def test_encoders_that_cannot_be_compared_are_refused_in_one_line(features, message):
    with pytest.raises(InputError, match=message) as error:
        mi.gaussian_v_shares(features)
    assert "\n" not in str(error.value)
