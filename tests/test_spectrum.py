"""RankMe, α-ReQ, participation ratio, stable rank, LiDAR, LogME, H-score and information sufficiency.

The oracles are numpy loops of the papers' formulas, scipy's optimizer, and scikit-learn's formula of Ledoit and Wolf.
"""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from small import image_report
from test_gaussian_usable import several
from test_quality import finished

from mirigor_jax import metrics, mi
from mirigor_jax.errors import InputError
from mirigor_jax.metrics import METRICS, Spectrum, picture
from mirigor_jax.metrics.spectrum import CHUNK
from mirigor_jax.runs import report
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.studies import rank


def rows(n=500, d=40, seed=0):
    """(Rows of decaying variances around a mean, four classes that they tell)."""
    rng = np.random.default_rng(seed)
    h = 3 * rng.normal(size=d) + (rng.normal(size=(n, d)) / np.arange(1, d + 1)) @ rng.normal(size=(d, d))
    return h, np.argmax(h[:, :4] + 2 * rng.normal(size=(n, 4)), axis=1)


def views(n=300, d=12, seed=1):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, d)) * np.arange(1, d + 1)
    return images + rng.normal(size=(n, d)), images + rng.normal(size=(n, d))


def effective_rank(sizes):
    """exp(-Σ p ln p), p = size / sum + 1e-7, by a loop."""
    entropy = 0.0
    for size in sizes:
        p = size / sum(sizes) + 1e-7
        entropy -= p * math.log(p)
    return math.exp(entropy)


def covariance(h):
    """By a loop over rows, divided by n."""
    mean, total = h.mean(axis=0), np.zeros((h.shape[1], h.shape[1]))
    for row in h:
        total += np.outer(row - mean, row - mean)
    return total / len(h)


def alpha_by_hand(eigenvalues):
    """Minus the slope of ln λ_i against ln i, i = 10..100, by the weighted normal equations with weights 1/i."""
    sums = np.zeros(5)
    for i, value in enumerate(eigenvalues, 1):
        if 10 <= i <= 100:
            x, y, w = math.log(i), math.log(value), 1 / i
            sums += w, w * x, w * y, w * x * x, w * x * y
    w, x, y, xx, xy = sums
    return -(w * xy - x * y) / (w * xx - x * x)


def lidar_by_hand(x, y, delta=1e-4):
    d = x.shape[1]
    within, means = np.zeros((d, d)), []
    for a, b in zip(x, y, strict=True):
        mean = (a + b) / 2
        means.append(mean)
        for view in (a, b):
            within += np.outer(view - mean, view - mean) / (2 * len(x))
    sizes, axes = np.linalg.eigh(within + delta * np.eye(d))
    root = axes @ np.diag(sizes**-0.5) @ axes.T
    return effective_rank(np.linalg.eigvalsh(root @ covariance(np.array(means)) @ root).clip(0))


def log_me_by_hand(h, labels):
    """The evidence of You et al. 2021, by dense algebra, maximized over ln α and ln β by scipy from several starts."""
    n, d = h.shape
    gram, values = h.T @ h, []
    for c in np.unique(labels):
        y = (labels == c).astype(float)

        def loss(logs, y=y):
            alpha, beta = np.exp(logs)
            a = alpha * np.eye(d) + beta * gram
            m = beta * np.linalg.solve(a, h.T @ y)
            evidence = n / 2 * math.log(beta) + d / 2 * math.log(alpha) - n / 2 * math.log(2 * math.pi)
            evidence -= beta / 2 * np.sum((h @ m - y) ** 2) + alpha / 2 * m @ m + np.linalg.slogdet(a)[1] / 2
            return -evidence / n

        starts = [(0.0, 0.0), (3.0, 3.0), (-3.0, 2.0)]
        options = {"xatol": 1e-7, "fatol": 1e-13, "maxiter": 2000}
        values.append(max(-minimize(loss, s, method="Nelder-Mead", options=options).fun for s in starts))
    return np.mean(values)


def shrinkage_by_hand(h):
    """scikit-learn 1.5's `ledoit_wolf_shrinkage`, without its blocks."""
    x = h - h.mean(axis=0)
    n, d = x.shape
    trace = (x**2).sum(axis=0) / n
    mu = trace.sum() / d
    delta = (np.dot(x.T, x) ** 2).sum() / n**2
    beta = 1 / (d * n) * (np.dot((x**2).T, x**2).sum() / n - delta)
    delta = (delta - 2 * mu * trace.sum() + d * mu**2) / d
    return 0.0 if min(beta, delta) == 0 else min(beta, delta) / delta


def h_score_by_hand(h, labels):
    a, sigma = shrinkage_by_hand(h), covariance(h)
    shrunk = (1 - a) * sigma + a * np.trace(sigma) / len(sigma) * np.eye(len(sigma))
    means = np.array([h[labels == c].mean(axis=0) for c in labels])
    return np.trace(np.linalg.pinv(shrunk) @ ((1 - a) * covariance(means)))


@pytest.mark.parametrize("shape", [(500, 40), (2 * CHUNK + 7, 40), (25, 40)])
def test_the_metrics_of_the_spectrum_are_the_papers_formulas(shape):
    h, labels = rows(*shape)
    of, eigenvalues = Spectrum.of(h), np.linalg.eigvalsh(covariance(h))[::-1]
    singular = np.linalg.svd(h, compute_uv=False)
    assert metrics.rank_me(of) == pytest.approx(effective_rank(singular), rel=1e-9)
    assert metrics.stable_rank(of) == pytest.approx(np.linalg.norm(h) ** 2 / np.linalg.norm(h, 2) ** 2, rel=1e-9)
    ratio = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert metrics.participation_ratio(of) == pytest.approx(ratio, rel=1e-9)
    assert metrics.alpha_req(of) == pytest.approx(alpha_by_hand(eigenvalues[: min(40, len(h) - 1)]), rel=1e-7)
    assert metrics.shrinkage(of) == pytest.approx(shrinkage_by_hand(h), rel=1e-9)
    assert metrics.h_score(of, labels) == pytest.approx(h_score_by_hand(h, labels), rel=1e-7)


def test_alpha_is_the_exponent_of_a_power_law_whatever_comes_before_and_after():
    index = np.arange(1, 151)
    sizes = np.where(index < 10, 50.0, np.where(index > 100, 1e-3, index**-0.6))  # singular values, squared to α = 1.2
    sizes[:9] += np.arange(9)[::-1]
    rng = np.random.default_rng(0)
    left = np.linalg.qr(np.insert(rng.normal(size=(400, 150)), 0, 1.0, axis=1))[0][:, 1:]  # orthogonal to a constant
    right = np.linalg.qr(rng.normal(size=(150, 150)))[0]
    assert metrics.alpha_req(Spectrum.of(7 + left * sizes @ right)) == pytest.approx(1.2, rel=1e-9)


@pytest.mark.parametrize("n", [300, 8])
def test_lidar_is_the_paper_s_formula(n):
    x, y = views(n)
    assert metrics.lidar(x, y) == pytest.approx(lidar_by_hand(x, y), rel=1e-7)
    assert metrics.lidar(x, y, delta=3.0) == pytest.approx(lidar_by_hand(x, y, 3.0), rel=1e-7)
    x, y = views(CHUNK + 5)
    assert metrics.lidar(x, y) == pytest.approx(lidar_by_hand(x, y), rel=1e-7)


def test_lidar_counts_only_what_augmentations_leave():
    """Axes that tell images apart as much as 100 : 1 count; axes of noise alone count little, however large."""
    rng = np.random.default_rng(2)
    images = rng.normal(size=(4000, 3))
    both = [np.hstack([10 * images + rng.normal(size=(4000, 3)), 30 * rng.normal(size=(4000, 5))]) for _ in "xy"]
    # 200 each of three axes beside 1 each of five: the entropy of these shares
    shares = np.array([201.0] * 3 + [1.0] * 5) / 608
    assert metrics.lidar(*both) == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=0.02)
    assert metrics.rank_me(Spectrum.of(both[0])) > 6


@pytest.mark.parametrize("shape", [(200, 10), (15, 20)])
def test_log_me_is_the_largest_evidence(shape):
    h, labels = rows(*shape, seed=3)
    h /= 10
    value = metrics.log_me(Spectrum.of(h), labels)
    assert value == pytest.approx(log_me_by_hand(h, labels), rel=1e-5)
    assert metrics.log_me(Spectrum.of(1e6 * h), labels + 7) == pytest.approx(value, rel=1e-8)


def test_log_me_of_useless_features_is_that_of_a_normal_law_and_of_exact_ones_infinite():
    labels = np.repeat([0, 1, 1, 1], 50)
    normal = np.mean([-0.5 * np.log(2 * np.pi * np.e * share) for share in (0.25, 0.75)])
    assert metrics.log_me(Spectrum.of(np.zeros((200, 3))), labels) == pytest.approx(normal, rel=1e-12)
    crossed = np.tile([[1.0], [-1.0]], (100, 1))  # orthogonal to both targets
    assert metrics.log_me(Spectrum.of(crossed), labels) == pytest.approx(normal, rel=1e-9)
    exact = (np.eye(2)[labels] @ np.random.default_rng(0).normal(size=(2, 6))).astype(np.float32)
    assert metrics.log_me(Spectrum.of(exact), labels) == math.inf


def test_h_score_of_classes_far_apart_is_their_number_minus_one():
    rng, labels = np.random.default_rng(4), np.arange(3000) % 4
    h = 100 * np.eye(4, 6)[labels] + rng.normal(size=(3000, 6))
    assert metrics.h_score(Spectrum.of(h), labels) == pytest.approx(3, rel=2e-3)
    assert metrics.h_score(Spectrum.of(h), rng.permutation(labels)) < 0.02


NAN = math.nan
HOSTILE = {  # rows → RankMe, α-ReQ, participation ratio, stable rank, H-score
    "constant": (np.full((60, 30), 0.1), (1, NAN, NAN, 1, 0)),
    "zero": (np.zeros((60, 30)), (NAN, NAN, NAN, NAN, 0)),
    "rank 1": (np.outer(np.arange(1, 61), np.arange(1, 31)), (1, NAN, 1, 1, None)),
    "one column": (rows(60, 1)[0], (1, NAN, 1, 1, None)),
    "n below d": (rows(12, 30)[0], (None, NAN, None, None, None)),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_features_without_rank_have_a_value_or_none(name, dtype):
    h, expected = HOSTILE[name]
    h, labels = h.astype(dtype), np.arange(len(h)) % 3
    of = Spectrum.of(h)
    values = [f(of) for f in (metrics.rank_me, metrics.alpha_req, metrics.participation_ratio, metrics.stable_rank)]
    for value, wanted in zip([*values, metrics.h_score(of, labels)], expected, strict=True):
        if wanted is None:
            assert np.isfinite(value)
        else:
            assert value == pytest.approx(wanted, rel=1e-4, nan_ok=True)
    assert np.isfinite(metrics.log_me(of, labels))
    assert math.isnan(metrics.lidar(h, h)) == (name in ("constant", "zero"))


def all_values(h, labels, x, y):
    of = Spectrum.of(h)
    spectral = (metrics.rank_me, metrics.alpha_req, metrics.participation_ratio, metrics.stable_rank)
    return [*(f(of) for f in spectral), metrics.h_score(of, labels), metrics.log_me(of, labels), metrics.lidar(x, y)]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_dtype_and_an_offset_leave_the_values(scale):
    h, labels = rows()
    x, y = views()
    expected = all_values(h, labels, x, y)
    *values, lidar = all_values(scale * h.astype(np.float32), labels, scale * x, scale * y)
    assert values == pytest.approx(expected[:-1], rel=1e-5)
    if scale > 1:
        assert lidar == pytest.approx(metrics.lidar(1e6 * x, 1e6 * y), rel=1e-5)  # δ is nothing beside these
    half = [values.astype(np.float16) for values in (h, x, y)]
    assert all_values(half[0], labels, *half[1:]) == pytest.approx(expected, rel=2e-2)
    device = [jnp.asarray(values, jnp.bfloat16) for values in (h, x, y)]
    assert all_values(device[0], labels, *device[1:]) == pytest.approx(expected, rel=5e-2)
    moved = Spectrum.of(h + 1e9)
    assert metrics.participation_ratio(moved) == pytest.approx(expected[2], rel=1e-5)
    assert metrics.h_score(moved, labels) == pytest.approx(expected[4], rel=1e-4)


def test_copies_of_rows_and_columns_change_only_what_counts_them():
    h, labels = rows(200, 30)
    of = Spectrum.of(h)
    twice, wide = Spectrum.of(np.repeat(h, 2, axis=0)), Spectrum.of(np.repeat(h, 2, axis=1))
    for metric in (metrics.rank_me, metrics.alpha_req, metrics.participation_ratio, metrics.stable_rank):
        assert metric(twice) == pytest.approx(metric(of), rel=1e-9)
        assert metric(wide) == pytest.approx(metric(of), rel=1e-3)  # RankMe adds ε for each of the new zeros
    assert metrics.log_me(wide, labels) == pytest.approx(metrics.log_me(of, labels), rel=1e-9)


LABELS = np.array([0, 0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Spectrum.of(np.ones((0, 3))), r"h has shape \(0, 3\): expected \(n, d\)"),
        (lambda: Spectrum.of(np.array([[1.0, np.nan]])), r"h has 1 NaN or infinite value, the first at \[0, 1\]"),
        (lambda: metrics.log_me(Spectrum.of(np.ones((2, 2))), LABELS), "2 feature rows for 3 labels"),
        (lambda: metrics.h_score(Spectrum.of(np.ones((3, 2))), np.zeros(3, int)), "labels hold 1 class"),
        (lambda: metrics.lidar(np.ones((3, 2)), np.ones((2, 2))), r"shapes \(3, 2\) and \(2, 2\)"),
        (lambda: metrics.lidar(np.ones((3, 2)), np.ones((3, 2)), delta=0.0), "delta = 0.0: expected above 0; 1e-4"),
        (lambda: metrics.lidar(np.full((3, 2), np.inf), np.ones((3, 2))), "h_x has 6 NaN or infinite values"),
        (lambda: metrics.evaluate_several({"a": np.ones((200, 2))}), "1 encoder.*: expected two or more"),
    ],
)
def test_what_is_not_defined_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_information_sufficiency_is_the_median_over_the_others():
    features = several()
    shares = mi.gaussian_v_shares(features)
    values = metrics.evaluate_several(features)
    for a, name in enumerate(features):
        others = [shares[a, b] for b in range(5) if b != a and np.isfinite(shares[a, b])]
        assert values[name] == {"information_sufficiency": pytest.approx(np.median(others))}
    assert metrics.evaluate_several({"a": np.ones((200, 1)), "b": np.ones((200, 2))})["a"] == {
        "information_sufficiency": pytest.approx(math.nan, nan_ok=True)
    }


def test_an_evaluation_has_each_metric_that_its_arrays_allow():
    h, _ = rows(100, 24)
    alone = metrics.evaluate(h).values
    assert list(alone) == ["rank_me", "alpha_req", "participation_ratio", "stable_rank"]
    assert alone["rank_me"] == metrics.rank_me(Spectrum.of(h.astype(np.float32)))
    with_views = metrics.evaluate(h, views=views(80)).values
    assert with_views["lidar"] == pytest.approx(metrics.lidar(*views(80)), rel=1e-6)
    assert {METRICS[name].group for name in alone | {"lidar": 0.0, "log_me": 0.0}} == {"images"}
    dead = metrics.evaluate(np.ones((100, 3)))
    assert "α-ReQ → 1" in str(dead)
    json.dumps(dead.to_dict())


def test_a_metric_that_is_not_defined_is_null_in_json_and_a_dash_in_report_and_picture():
    values = dict.fromkeys(METRICS, 0.25) | {"alpha_req": None, "log_me": None}
    config = {"estimate": {"nt_xent_k": 64}, "train": {"temperature": 0.1}}
    text = report.markdown(image_report(config, metrics=values), report.IMAGE_FORM)
    assert "| 0.250 | 0.250 | – | 0.250 | 0.250 | 25.00 | – | 0.250 |" in text
    assert "α-ReQ → 1" in report.table(image_report(config, metrics=values), report.IMAGE_FORM)
    heights = [bar.get_height() for ax in picture.evaluation(values).axes for bar in ax.patches]
    assert np.isnan(heights).sum() == 2


def test_one_decomposition_serves_all_metrics(monkeypatch):
    calls, of = [], Spectrum.of
    monkeypatch.setattr(Spectrum, "of", lambda h: calls.append(len(h)) or of(h))
    for name in [name for name in METRICS if METRICS[name].needs_probe]:
        monkeypatch.delitem(METRICS, name)
    h, labels = rows(200, 5)
    assert {"rank_me", "stable_rank", "log_me", "h_score"} <= metrics.evaluate(h, labels).values.keys()
    assert calls == [40]


def test_the_ranking_compares_encoders_of_the_same_images(tmp_path, monkeypatch, capsys):
    features, labels = several(150), np.arange(150) % 3
    results, folders = [], {}
    for name, h in features.items():
        done = finished(tmp_path / name, strict=0.5, accuracy=0.5)
        np.savez(tmp_path / name / "features" / "test.npz", h=h, labels=labels[:, None])
        folders[name] = RunFolder(tmp_path / name)
        results.append({"cell": name, **rank.row(done, tmp_path / name)})
    results[-1]["test"] = "others"
    filled = rank.with_others(results, folders, RunFolder(tmp_path))
    expected = metrics.evaluate_several({name: features[name] for name in list(features)[:-1]})
    for row in filled[:-1]:
        assert row["metrics"]["information_sufficiency"] == expected[row["cell"]]["information_sufficiency"]
    assert filled[-1]["metrics"]["information_sufficiency"] is None
    text = rank.table(filled)
    assert "| encoder | accuracy, % | information sufficiency, % ↑ |" in text
    assert (
        "| information sufficiency, % ↑ | 4 |"
        in rank._correlated([row | {"accuracy": i / 9} for i, row in enumerate(filled)], None)[0]
    )
    # The folder keeps the values until features change; one encoder alone has none.
    monkeypatch.setattr(metrics, "evaluate_several", None)
    assert rank.with_others(results, folders, RunFolder(tmp_path)) == filled
    monkeypatch.undo()
    assert rank.with_others(results[-1:], folders, RunFolder(tmp_path)) == results[-1:]
    for name in folders:
        np.savez(tmp_path / name / "features" / "test.npz", h=features[name][:50], labels=labels[:50, None])
    assert rank.with_others(results, folders, RunFolder(tmp_path)) == results
    assert "encoders are not compared with each other: 50 rows are too few" in capsys.readouterr().out


def test_a_metric_that_is_best_near_one_is_ranked_by_its_distance_from_one():
    numbers = rank.ranked()
    assert (numbers["alpha_req"].better, numbers["rank_me"].better) == ("near 1", "higher")
    results = [
        {"accuracy": accuracy, "metrics": {"alpha_req": alpha, "knn_accuracy": None}}
        for accuracy, alpha in ((0.9, 1.0), (0.8, 1.2), (0.7, 0.7), (0.6, 2.0))
    ]
    assert rank.correlations(results)["alpha_req"].kendall == pytest.approx(1)
