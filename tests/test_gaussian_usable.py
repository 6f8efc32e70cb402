"""Gaussian V-information: its closed form on linear Gaussian data, numpy's least squares, and the sign of its bias."""

import math

import numpy as np
import pytest

from mirigor_jax import mi, mlp
from mirigor_jax.data.draws import parts_of, row_keys
from mirigor_jax.errors import InputError
from mirigor_jax.mi.gaussian_usable import read_checked
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
