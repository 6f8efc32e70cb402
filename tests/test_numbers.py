"""Numbers of any dtype, scale and offset give the same results as in float64; other input is refused by name."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse

from mirigor_jax import checks, metrics, mi, objectives, probes
from mirigor_jax.data.sources.features import read_features
from mirigor_jax.errors import InputError
from mirigor_jax.mi import api, measure
from mirigor_jax.mi.contrastive import unit_rows
from mirigor_jax.numerics import compact
from mirigor_jax.softmax import mean_and_scale, standardize

HALF = (jnp.float16, jnp.bfloat16)
Z = np.random.default_rng(1).normal(size=(2, 16, 8)).astype(np.float32)
C = np.arange(16) % 4
X = np.random.default_rng(2).normal(size=(400, 2))
SCALES = (1e-30, 1e-13, 1e18, 1e30)


@pytest.fixture
def unchecked():
    """Functions as users have them, without beartype, which would refuse a float for an int first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def with_slopes(loss, *z):
    value, slopes = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(z)))))(*z)
    return float(value), [np.asarray(slope, np.float64) for slope in slopes]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("block", [None, 2])
def test_nt_xent_in_half_precision_is_that_of_the_same_numbers(dtype, block):
    loss = jax.jit(partial(mi.nt_xent, block=block, temperature=0.1))
    zero, slopes = with_slopes(loss, *jnp.zeros((2, 4, 8), dtype))
    assert zero == pytest.approx(math.log(7), abs=1e-6)
    assert np.isfinite(slopes).all()
    eye = 300 * jnp.eye(2, dtype=dtype)
    assert float(loss(eye, eye)) == pytest.approx(2 * math.exp(-10), rel=0.01)
    assert float(jax.jit(mi.nt_xent)(eye, eye, 1.0)) == pytest.approx(math.log(1 + 2 / math.e), rel=1e-6)
    z = jnp.asarray(40 * Z, dtype)
    assert float(loss(*z)) == pytest.approx(float(loss(*z.astype(jnp.float32) / 64)), rel=1e-6)


@pytest.mark.parametrize("dtype", HALF)
def test_uniformity_in_half_precision_is_that_of_the_same_numbers(dtype):
    corners = 300 * jnp.array([[1, 0], [-1, 0], [0, 1], [0, -1]], dtype)
    exact = math.log((8 * math.exp(-4) + 4 * math.exp(-8)) / 12)
    assert metrics.uniformity(corners) == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("block", [None, 8])
def test_info_nce_s_gradient_in_float16_is_not_rounded_to_nothing(block):
    """Single shares of 1e-8 of a sum are below float16's least number, but their sum is not."""
    k = 64
    z = jnp.concatenate([jnp.full((k, 1), 4.0), jnp.eye(k)], axis=1).astype(jnp.float16)
    loss = partial(mi.info_nce_from_embeddings, block=block)
    expected = with_slopes(loss, 1e-3 * z.astype(jnp.float32), z.astype(jnp.float32))
    value, slopes = with_slopes(loss, (1e-3 * z.astype(jnp.float32)).astype(jnp.float16), z)
    assert value == pytest.approx(expected[0], rel=2e-2)
    np.testing.assert_allclose(slopes[0], expected[1][0], rtol=2e-2, atol=1e-4)


LOSSES = {
    "nt_xent": lambda x, y: mi.nt_xent(x, y, 0.1),
    "nt_xent in blocks": lambda x, y: mi.nt_xent(x, y, 0.1, block=5),
    "supcon": lambda x, y: objectives.supcon(x, y, jnp.asarray(C), jnp.asarray(C), 0.1),
    "decoupled": lambda x, y: objectives.decoupled(x, y, 0.1),
    "nce": lambda x, y: objectives.nce(x, y, y, x, 0.1),
    "uniformity": lambda x, y: mi.uniformity(jnp.concatenate([x, y])),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_do_not_see_the_scale_of_rows(name):
    evaluate = jax.jit(jax.value_and_grad(LOSSES[name]))
    value, slope = evaluate(*Z)
    for scale in SCALES:
        scaled, slopes = evaluate(Z[0] * np.float32(scale), Z[1])
        assert float(scaled) == pytest.approx(float(value), rel=2e-6)
        np.testing.assert_allclose(np.asarray(slopes, np.float64) * scale, slope, atol=2e-6 * np.abs(slope).max())


def test_unit_rows_of_ordinary_numbers_are_those_of_the_plain_formula():
    plain = Z[0] / np.linalg.norm(Z[0].astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(unit_rows(jnp.asarray(Z[0])), plain, atol=1e-7)
    assert np.isnan(unit_rows(jnp.array([[np.nan, 1.0]]))).all()


@pytest.mark.parametrize("scale", SCALES)
def test_metrics_and_neighbors_do_not_see_the_scale_of_rows(scale):
    rows = Z[0] * np.float32(scale)
    assert metrics.alignment(rows, Z[1]) == pytest.approx(metrics.alignment(Z[0], Z[1]), rel=1e-6)
    assert metrics.tolerance(rows, C) == pytest.approx(metrics.tolerance(Z[0], C), rel=1e-6)
    assert metrics.uniformity(rows) == pytest.approx(metrics.uniformity(Z[0]), rel=1e-6)
    assert metrics.uniformity(rows.astype(np.float64) * 1e200) == pytest.approx(metrics.uniformity(Z[0]), rel=1e-6)
    near = probes.fit_knn(Z[0], C, 4, k=5).logits(Z[1])
    np.testing.assert_allclose(probes.fit_knn(rows, C, 4, k=5).logits(Z[1] * np.float32(scale)), near, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *((partial(mi.nt_xent, *Z, t), f"temperature = {t}: expected") for t in (-1.0, 0.0, math.nan, math.inf)),
        (partial(mi.nt_xent, Z[0][:4], Z[1][:3], 0.1), r"shapes \(4, 8\) and \(3, 8\): expected one shape"),
        (partial(mi.info_nce_from_embeddings, Z[0][:4], Z[1][:3]), "expected one shape"),
        (partial(objectives.decoupled, Z[0][:4], Z[1][:3], 0.1), "expected one shape"),
        (partial(objectives.decoupled, *Z, -0.1), "temperature = -0.1: expected above 0"),
        (partial(objectives.nce, *Z, *Z, math.nan), "temperature = nan: expected a finite"),
        (partial(mi.uniformity, Z[0], 0.0), "t = 0.0: expected above 0"),
        (partial(metrics.alignment, *Z, math.nan), "alpha = nan"),
        (partial(metrics.contrastive_loss_nats, *Z, math.nan, 4), "temperature = nan"),
        (partial(probes.fit_knn, Z[0], C, 4, tau=math.nan), "tau = nan: expected a finite"),
        (partial(metrics.Options, temperature=0.0), "temperature = 0.0: expected above 0"),
        (partial(metrics.Options, seed=-1), "seed = -1: expected from 0"),
        (partial(checks.whole, "k", 30.0, 1), "k = 30.0: expected a whole number; give 30"),
        (partial(checks.whole, "k", "30", 1), "k = '30': expected a whole number"),
        (partial(checks.whole, "k", True, 1), "k = True: expected a whole number"),
        (partial(checks.number, "a", np.True_), "a = True: expected a finite number"),
        (
            partial(probes.fit_knn, Z[0], C[:, None] + [[0, 1]], 4),
            r"labels are of shape \(16, 2\): expected",
        ),
        (partial(probes.fit_knn, Z[0], C.astype(str), 4), r"strings, .* give numpy.unique\(labels, return_inverse"),
        (partial(checks.number, "t", np.ones(2)), "t = .*: expected a finite number"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_numbers_out_of_range_are_refused_by_name(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_temperature_that_is_traced_is_taken():
    assert jax.jit(mi.nt_xent)(*Z, 0.1) == pytest.approx(float(mi.nt_xent(*Z, np.float32(0.1))), rel=1e-6)


def test_arrays_of_another_byte_order_and_numbers_in_arrays_are_taken():
    expected = metrics.uniformity(Z[0])
    for dtype in (">f4", ">f8"):
        assert metrics.uniformity(Z[0].astype(dtype)) == pytest.approx(expected, rel=1e-5)
    checks.temperature(np.array([0.1]))
    labels = np.arange(400) % 2
    given = {"l2": np.array([1e-3]), "validation_features": X, "validation_labels": labels}
    assert probes.fit_linear(X, labels, 2, **given).l2 == 1e-3


OUT_OF_RANGE = [
    ({"seed": -1}, "seed = -1: expected from 0"),
    ({"seed": 2**70}, "seed = 11805.*: expected from 0"),
    ({"num_critics": 1.5}, "num_critics = 1.5: expected a whole number"),
    ({"k": 30.0}, "k = 30.0: expected a whole number; give 30"),
    ({"steps": 1.5}, "steps = 1.5: expected a whole number"),
]


@pytest.mark.parametrize(("options", "message"), OUT_OF_RANGE)
@pytest.mark.usefixtures("unchecked")
def test_options_of_estimates_are_refused_before_the_fit(monkeypatch, options, message):
    def begin(*_, **__):
        raise AssertionError("a fit began")

    monkeypatch.setattr(api.fit, "fit_critics", begin)
    monkeypatch.setattr(measure.softmax, "fit_linear", begin)
    for estimate, second in ((mi.estimate, X), (mi.estimate_labels, np.arange(400) % 2)):
        with pytest.raises(InputError, match=message):
            estimate(X, second, **options)


def test_seven_and_more_digits_of_whole_numbers_are_kept():
    nanoseconds = 1_700_000_000_000_000_000 + np.arange(400) % 7
    np.testing.assert_array_equal(api.as_rows(nanoseconds, "x")[:, 0], np.arange(400) % 7)
    far = np.array([-(2**63), 2**63 - 1])
    np.testing.assert_array_equal(api.as_rows(far, "x")[:, 0], [0, 2.0**64])


def test_columns_that_are_nearly_zero_are_read_as_scaled_ones():
    tiny = api.as_rows(X * 1e-310, "x")
    np.testing.assert_allclose(tiny / tiny[0], X / X[0], rtol=1e-9)
    assert np.abs(tiny).max() > 0.1
    np.testing.assert_array_equal(api.as_rows(X, "x"), X)


@pytest.mark.parametrize("offset", [0.0, 1.7e9])
def test_probes_see_classes_on_an_offset(offset):
    labels = np.arange(400) % 2
    h = X + 4 * labels[:, None] + offset
    np.testing.assert_allclose(standardize(h, *mean_and_scale(h)).std(axis=0), 1, rtol=1e-4)
    probe = probes.fit_linear(h, labels, 2, l2=[1e-3], validation_features=h, validation_labels=labels)
    assert probe.validation_accuracy > 0.98


def test_a_column_s_scale_may_be_anything_and_a_constant_column_has_none():
    _, scale = mean_and_scale(X * np.array([[1e-310, 1e30]]))
    np.testing.assert_allclose(scale, X.std(axis=0) * [1e-310, 1e30], rtol=1e-9)
    _, scale = mean_and_scale(np.full((997, 1), 0.1))
    assert scale == 1


def test_features_keep_the_dtype_that_tells_their_rows_apart(tmp_path):
    assert compact(X).dtype == np.float32
    np.testing.assert_array_equal(compact(X + 1.7e9), X + 1.7e9)
    np.testing.assert_array_equal(compact(X * 1e-310), X * 1e-310)
    np.savez(tmp_path / "f.npz", h=X + 1.7e9, labels=np.arange(400) % 2)
    parts, _ = read_features(str(tmp_path / "f.npz"), None)
    np.testing.assert_array_equal(parts["train"].read(np.arange(5)), (X + 1.7e9)[:5])


def test_one_rule_says_what_is_finite(tmp_path):
    huge = X.copy()
    huge[3, 1] = 1e39
    message = r"has 1 value beyond 3.4e\+38, the first at \[3, 1\]; computations are in float32, where it is infinite"
    labels = np.arange(400) % 2
    np.savez(tmp_path / "f.npz", h=huge, labels=labels)
    for call in (
        partial(mi.estimate, huge, X),
        partial(mi.estimate_labels, huge, labels),
        partial(metrics.evaluate, huge, labels),
        partial(read_features, str(tmp_path / "f.npz"), None),
        partial(probes.fit_knn, huge, labels, 2),
    ):
        with pytest.raises(InputError, match=message):
            call()


class Tensor:
    """An object that behaves like a torch tensor that requires a gradient."""

    def __init__(self, values):
        self.values = values

    def detach(self):
        return self

    cpu = detach

    def is_floating_point(self):
        return True

    def double(self):
        return self.values.astype(np.float64)


def test_arrays_of_other_frameworks_are_read_or_refused_in_words():
    half = X.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(checks.to_numpy(half, "x"), half.astype(np.float64))
    np.testing.assert_array_equal(checks.to_numpy(Tensor(half), "x"), half.astype(np.float64))
    np.testing.assert_array_equal(checks.to_numpy(X.astype(object), "x"), X)
    for values, message in (
        (half.view("V2"), "x is of dtype |V2: expected numbers .*; save it as float32"),
        (X.astype(str).astype(object), r"x\[0, 0\] is .* \(str\): expected numbers; encode it"),
        ([[1, 2], [3]], "x is no array: expected rows of numbers, all of one length"),
        (scipy.sparse.csr_matrix(X), r"x is sparse \(csr_matrix\).*; give x.toarray\(\)"),
    ):
        with pytest.raises(InputError, match=message) as error:
            checks.to_numpy(values, "x")
        assert "\n" not in str(error.value)


def test_labels_of_a_probe_may_be_bools_and_no_floats():
    labels = np.arange(400) % 2 == 0
    h = X + 4 * labels[:, None]
    probe = probes.fit_linear(h, labels, 2, l2=[1e-3], validation_features=h, validation_labels=labels)
    assert probes.accuracy(probe, h, labels) > 0.98
    assert probes.accuracy(probes.fit_knn(h, labels, 2, k=5), h, labels) > 0.85


DISCRETE = {
    "a binary symmetric channel": lambda rng, x: (x % 2, (x % 2) ^ (rng.random(len(x)) < 0.11), 0.5001),
    "an exclusive or": lambda rng, x: (np.stack([x % 2, x // 5], axis=1), (x % 2) ^ (x // 5), 1.0),
    "a value beside uniform noise": lambda rng, x: (x % 5, x % 5 + 2 * rng.random(len(x)), math.log2(5) - 0.8),
    "a multiple": lambda rng, x: (x, 3 * x, math.log2(10)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DISCRETE)
def test_information_of_discrete_columns_is_found_and_not_passed(kind):
    """Estimates are within 0.03 bit, or 7 % if I is over 1.5 bits, and at most 0.02 bit above I."""
    rng = np.random.default_rng(0)
    x, y, truth = DISCRETE[kind](rng, rng.integers(0, 10, 4000))
    value = mi.estimate(x, y).value_bits
    assert truth - max(0.03, 0.07 * truth if truth > 1.5 else 0) <= value <= truth + 0.02
