"""Metrics of representations against closed forms and plain loops over pairs."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import pdist
from scipy.special import ive, logsumexp
from small import image_report

from mirigor_jax import config_files, metrics, probes
from mirigor_jax.errors import InputError
from mirigor_jax.mi.labels import Design
from mirigor_jax.runs import report
from mirigor_jax.studies import rank


def unbalanced(seed=0):
    """Rows of many norms, in classes of 1 to 9 images in no order. One class has a single image."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([7, 3, -1, 12], [9, 4, 1, 2]))
    centers = rng.normal(size=(13, 5))
    return rng.uniform(0.1, 9, size=(16, 1)) * (centers[labels] + 0.7 * rng.normal(size=(16, 5))), labels


def cosine(x, y):
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def same_class_cosines(h, labels, itself=False):
    """For each class, the cosines of its ordered pairs, by two loops."""
    results = {}
    for i in range(len(h)):
        for j in range(len(h)):
            if labels[i] == labels[j] and (itself or i != j):
                results.setdefault(labels[i], []).append(cosine(h[i], h[j]))
    return results


def circle(angles):
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def nt_xent_by_hand(x, y, temperature):
    z = np.concatenate([x, y]).astype(float)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    scores, rows = z @ z.T / temperature, np.arange(len(z))
    np.fill_diagonal(scores, -np.inf)
    return np.mean(logsumexp(scores, axis=1) - scores[rows, np.roll(rows, len(x))])


def test_alignment_on_a_circle_is_the_chord():
    angles = np.linspace(0, 6, 20)
    x, y = 3 * circle(angles), 0.2 * circle(angles + 0.7)  # lengths do not count
    assert metrics.alignment(x, y) == pytest.approx(2 - 2 * np.cos(0.7), rel=1e-6)
    assert metrics.alignment(x, y, alpha=1.0) == pytest.approx(2 * np.sin(0.35), rel=1e-6)
    assert metrics.alignment(x, -x) == pytest.approx(4)


def test_tolerance_is_the_mean_over_all_same_class_pairs():
    h, labels = unbalanced()
    by_class = same_class_cosines(h, labels)
    assert sorted(map(len, by_class.values())) == [2, 12, 72]
    expected = np.mean(np.concatenate(list(by_class.values())))
    assert metrics.tolerance(h, labels) == pytest.approx(expected, rel=1e-12)
    assert metrics.tolerance(jnp.asarray(h, jnp.float32), jnp.asarray(labels)) == pytest.approx(expected, abs=1e-6)


def test_class_alignment_draws_the_class_by_its_frequency():
    h, labels = unbalanced(1)
    frequencies = {c: np.sum(labels == c) / 15 for c in (7, 3, 12)}  # the single image's class has no pair
    expected = sum(
        frequencies[c] * np.mean(2 - 2 * np.array(cosines)) for c, cosines in same_class_cosines(h, labels).items()
    )
    assert metrics.class_alignment(h, labels) == pytest.approx(expected, rel=1e-12)
    assert metrics.class_alignment(h, labels) != pytest.approx(2 - 2 * metrics.tolerance(h, labels), abs=1e-3)


def test_tolerance_converts_to_the_other_conventions():
    rng = np.random.default_rng(2)
    h, labels = rng.normal(size=(24, 3)), np.arange(24) % 4
    t = metrics.tolerance(h, labels)
    with_itself = np.mean(np.concatenate(list(same_class_cosines(h, labels, itself=True).values())))
    assert t + (1 - t) / 6 == pytest.approx(with_itself, rel=1e-12)
    others = [cosine(h[i], h[j]) * (labels[i] == labels[j]) for i in range(24) for j in range(24) if i != j]
    assert t * 5 / 23 == pytest.approx(np.mean(others), rel=1e-12)


def test_an_image_of_zeros_has_no_direction():
    h = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert metrics.tolerance(h, np.zeros(3, int)) == pytest.approx(1 / 3)


def test_class_pairs_are_disjoint_and_of_one_class_and_as_many_as_there_can_be():
    _, labels = unbalanced()
    pairs = metrics.class_pairs(labels)
    assert len(pairs) == 4 + 2 + 1
    assert len(set(pairs.ravel())) == 14
    np.testing.assert_array_equal(labels[pairs[:, 0]], labels[pairs[:, 1]])
    assert {tuple(sorted(p)) for p in pairs} != {tuple(sorted(p)) for p in metrics.class_pairs(labels, seed=1)}
    assert metrics.class_pairs(np.arange(5)).shape == (0, 2)
    large = np.arange(1000) // 100
    drawn = large[metrics.class_pairs(large)[:, 0]]
    assert len(drawn) == 500
    assert np.mean(drawn[1:] == drawn[:-1]) == pytest.approx(0.1, abs=0.05)  # in random order
    gaps = np.abs(np.diff(metrics.class_pairs(large), axis=1))
    assert np.mean(gaps) == pytest.approx(101 / 3, rel=0.1)  # of two of a hundred


def test_contrastive_loss_is_the_mean_of_batches():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 17, 4)).astype(np.float32)
    expected = np.mean([nt_xent_by_hand(x[i : i + 5], y[i : i + 5], 0.3) for i in (0, 5, 10)])
    assert metrics.contrastive_loss_nats(x, y, 0.3, 5) == pytest.approx(expected, rel=1e-5)


def test_label_nmi_of_a_channel_is_its_capacity_over_the_entropy():
    # 20 images of each of two classes, of which the features tell nine in ten: I = H(Y) - H_b(0.1)
    labels = np.repeat([0, 1], 20)
    seen = labels.copy()
    seen[[0, 1, 20, 21]] ^= 1
    logits = np.log(np.where(seen[:, None] == np.arange(2)[None, :], 0.9, 0.1)) + 7
    lost = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    assert metrics.label_nmi(logits, labels) == pytest.approx(1 - lost)
    # unequal classes, and nothing known but their frequencies
    skewed = np.repeat([0, 1, 2], [6, 3, 1])
    assert metrics.label_nmi(np.tile(np.log([0.6, 0.3, 0.1]), (10, 1)), skewed) == pytest.approx(0)
    assert metrics.label_nmi(np.zeros((10, 3)), skewed) < 0
    certain = 1e4 * np.eye(3)[skewed]
    assert metrics.label_nmi(certain, skewed) == pytest.approx(1)


@pytest.fixture
def small_mlp(monkeypatch):
    monkeypatch.setattr(probes, "fit_mlp", partial(probes.fit_mlp, hidden=(16,), dropout=(0.1,), learning_rate=1e-2))


@pytest.mark.slow
@pytest.mark.usefixtures("small_mlp")
def test_every_metric_of_points_on_a_circle():
    # Four classes, a quarter of the circle each; the test part's points are equally spaced.
    n = 256
    angles = (np.arange(n) + 0.5) * 2 * np.pi / n
    order = np.random.default_rng(4).permutation(n)

    def part(angles):
        return {"h": 2 * circle(angles), "labels": np.floor(2 * angles / np.pi).astype(np.int32)}

    rng = np.random.default_rng(5)
    splits = {"fit": part(rng.uniform(0, 2 * np.pi, 800)), "validation": part(rng.uniform(0, 2 * np.pi, 400))}
    turned = angles[order] + 0.1 * np.sign(np.sin(angles[order]))  # a gap opens at 0, another closes at pi
    views = {"h_x": circle(angles[order]), "h_y": circle(turned)}
    splits["test"] = part(angles[order]) | views
    values = metrics.evaluate_parts(splits, metrics.Options((1e-4,), temperature=0.5, k=64, mlp_steps=300)).values

    uniformity_y = np.log(np.mean(np.exp(-2 * pdist(views["h_y"]) ** 2)))
    uniformity = np.log((n * ive(0, 4) - 1) / (n - 1))  # the mean of e^{-4 + 4 cos}, itself left out
    quarter = np.mean([np.cos(angles[i] - angles[j]) for i in range(64) for j in range(64) if i != j])
    batch = [views[name][:64] for name in views]
    closed = {name: values.pop(name) for name in ("lidar", "log_me", "h_score")}  # see test_spectrum.py
    assert np.isfinite([*closed.values()]).all()
    assert values == {
        "augmentation_alignment": pytest.approx(2 - 2 * np.cos(0.1), rel=1e-4),
        "augmentation_uniformity": pytest.approx((uniformity + uniformity_y) / 2, abs=1e-5),
        "augmentation_tolerance": pytest.approx(np.cos(0.1), rel=1e-5),
        # equally spaced whatever the batch, but for chance
        "augmentation_contrastive_loss_nats": pytest.approx(nt_xent_by_hand(*batch, 0.5), abs=0.05),
        "class_alignment": pytest.approx(2 - 2 * quarter, rel=1e-5),
        "class_uniformity": pytest.approx(uniformity, abs=1e-5),
        "class_tolerance": pytest.approx(quarter, rel=1e-5),
        # uniform on the circle, log(2k - 1) + log of the mean of e^{2 cos}, less the positives' 2 cos; at k = 64
        "class_contrastive_loss_nats": pytest.approx(np.log(127 * ive(0, 2) * np.e**2) - 2 * quarter, abs=0.1),
        "rank_me": pytest.approx(2, rel=1e-4),
        "alpha_req": pytest.approx(np.nan, nan_ok=True),
        "participation_ratio": pytest.approx(2, rel=1e-4),
        "stable_rank": pytest.approx(2, rel=1e-4),
        "linear_accuracy": pytest.approx(1, abs=0.03),
        "knn_accuracy": pytest.approx(1, abs=0.03),
        "mlp_accuracy": pytest.approx(1, abs=0.03),
        "linear_nmi": pytest.approx(0.95, abs=0.05),
        "mlp_nmi": pytest.approx(0.9, abs=0.1),
        # of the 800 labels, the first 32 take a bit each, and the next ones have a probe of 32 rows
        "code_length_bits": pytest.approx(0.15, abs=0.1),
    }
    unlabeled = metrics.evaluate_parts({"test": views}, metrics.Options(temperature=0.5, k=64)).values
    of_views = {name: value for name, value in values.items() if name.startswith("augmentation_")}
    assert unlabeled == of_views | {"lidar": closed["lidar"]}


@pytest.fixture
def table():
    """METRICS without those that need a long fit of a probe. The test may change it."""
    remaining = dict(metrics.METRICS)
    for name in ("mlp_accuracy", "mlp_nmi", "linear_accuracy", "linear_nmi", "code_length_bits"):
        del metrics.METRICS[name]
    yield metrics.METRICS
    metrics.METRICS.clear()
    metrics.METRICS.update(remaining)


def clusters(n=900):
    """(Points around three centers, their labels as words, two views of 80 images)."""
    rng = np.random.default_rng(6)
    classes = np.arange(n) % 3
    h = (3 * np.eye(3, 4)[classes] + rng.normal(size=(n, 4))).astype(np.float32)
    views = rng.normal(size=(1, 80, 4)) + 0.3 * rng.normal(size=(2, 80, 4))
    return h, np.array(["a", "b", "c"])[classes], tuple(views.astype(np.float32))


def test_evaluate_measures_the_test_rows_of_the_split_that_estimates_have(table):
    h, labels, views = clusters()
    values = metrics.evaluate(h, labels, views=views, k=16, seed=2)
    design = Design.of(labels, seed=2, confidence=0.95)
    parts = {
        name: {"h": h[rows], "labels": design.classes[rows]}
        for name, rows in (("fit", design.fit), ("validation", design.validation), ("test", design.test))
    }
    parts["test"] |= {"h_x": views[0], "h_y": views[1]}
    np.testing.assert_equal(values.values, metrics.evaluate_parts(parts, metrics.Options(k=16, seed=2)).values)
    assert list(values.values) == [name for name in table if table[name].needs != ("others",)]
    assert values.values["class_tolerance"] == metrics.tolerance(h[design.test], design.classes[design.test])
    only = ("knn_accuracy", "class_tolerance")
    some = metrics.evaluate(h, labels, only=only, k=16, seed=2).values
    assert some == {name: values.values[name] for name in table if name in only}
    alone = metrics.evaluate(h, labels, k=16, seed=2).values
    of_labels = {name: value for name, value in values.values.items() if "views" not in table[name].needs}
    np.testing.assert_equal(alone, of_labels)
    other = metrics.evaluate(h, labels, k=16, seed=3).values  # the seed is of the pairs, and moves no row
    drawn = {"class_contrastive_loss_nats", "class_uniformity", "alpha_req"}  # α of four columns is NaN
    assert {name for name in alone if alone[name] != other[name]} <= drawn
    assert alone["class_contrastive_loss_nats"] != other["class_contrastive_loss_nats"]
    unlabeled = [name for name in table if set(table[name].needs) <= {"h", "views"}]
    assert list(metrics.evaluate(h, views=views).values) == unlabeled


def test_an_evaluation_prints_each_metric_with_unit_and_arrow():
    result = metrics.Evaluation({"class_contrastive_loss_nats": 3.25, "knn_accuracy": 0.5, "mlp_nmi": np.nan}, 64, 0.5)
    lines = [" ".join(line.split()) for line in str(result).splitlines()]
    assert lines == [
        "on test images; contrastive losses at K = 64 and temperature 0.5:",
        "contrastive loss, class, nats ↓ 3.250",
        "kNN accuracy, % ↑ 50.00",
        "NMI, MLP ↑ –",
    ]
    assert "<td>kNN accuracy, % ↑</td><td>50.00</td>" in result._repr_html_()
    assert result.to_dict()["values"]["knn_accuracy"] == 0.5


def test_a_metric_registered_in_a_config_file_is_in_report_picture_and_ranking(table, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import numpy as np\n"
        "from mirigor_jax.metrics import METRICS, Metric\n"
        "def norm(x):\n"
        "    return np.linalg.norm(x.h, axis=1).mean()\n"
        "def error(x):\n"
        "    return np.mean(x.probes['knn'].logits(x.h).argmax(axis=1) != x.labels)\n"
        'METRICS["norm"] = Metric("mean length", None, "m", ("h",), norm)\n'
        'METRICS["error"] = Metric("error", "lower", "%", ("knn",), error)\n'
        "def get_config(arg):\n"
        "    from ml_collections import ConfigDict\n"
        "    return ConfigDict()\n"
    )
    config_files.load_config(str(mine))
    h, labels, _ = clusters()
    values = metrics.evaluate(h, labels)
    test = Design.of(labels, seed=0, confidence=0.95).test
    assert values.values["norm"] == pytest.approx(np.linalg.norm(h[test], axis=1).mean())
    assert values.values["error"] == pytest.approx(1 - values.values["knn_accuracy"])
    settings = {"estimate": {"nt_xent_k": 64}, "train": {"temperature": 0.1}}
    text = report.markdown(image_report(settings, metrics=values.values), report.IMAGE_FORM)
    pairs, probed = ([line for line in text.splitlines() if of in line] for of in ("mean length, m |", "| error, % ↓"))
    assert (len(pairs), len(probed)) == (1, 1)
    assert f" {values.values['norm']:.3f} |" in text.partition(pairs[0])[2].splitlines()[2]
    assert f"{100 * values.values['error']:.2f} |" in text.partition(probed[0])[2].splitlines()[2]
    assert "error, % ↓" in report.table(image_report(settings, metrics=values.values), report.IMAGE_FORM)
    ticks = [" ".join(tick.get_text().split()) for ax in values.figure().axes for tick in ax.get_xticklabels()]
    assert {"mean length, m", "error, % ↓", "kNN accuracy, % ↑"} <= set(ticks)
    assert (rank.ranked()["error"].better, "norm" in rank.ranked()) == ("lower", False)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (metrics.Metric("x", None, "", ("lable",), lambda x: 0.0), "metric 'mine' needs 'lable'; expected any of h, l"),
        (metrics.Metric("alignment", "lower", "", ("h", "labels"), lambda x: 0.0), "'class_alignment' and 'mine' are"),
    ],
)
def test_a_metric_that_cannot_be_computed_or_told_apart_is_named(table, metric, message):
    table["mine"] = metric
    with pytest.raises(InputError, match=message):
        metrics.evaluate_parts({"test": {}}, metrics.Options())


LABELS = np.array([0, 0, 1])
ROWS = np.ones((20, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.alignment(np.ones((3, 2)), np.ones((2, 2))), r"shapes \(3, 2\) and \(2, 2\)"),
        (lambda: metrics.alignment(np.ones((0, 2)), np.ones((0, 2))), r"shapes \(0, 2\)"),
        (lambda: metrics.contrastive_loss_nats(np.ones((3, 2)), np.ones((3, 1)), 0.1, 2), r"\(3, 2\) and \(3, 1\)"),
        (lambda: metrics.contrastive_loss_nats(np.ones((3, 2)), np.ones((3, 2)), 0.1, 4), "k = 4.*1 to the 3 pairs"),
        (lambda: metrics.contrastive_loss_nats(np.ones((3, 2)), np.ones((3, 2)), 0.0, 2), "temperature = 0"),
        (lambda: metrics.tolerance(np.ones((2, 2)), LABELS), "2 feature rows for 3 labels"),
        (lambda: metrics.tolerance(np.ones((3, 2)), np.arange(3)), "3 images of 3 classes"),
        (lambda: metrics.class_alignment(np.ones((3, 2)), np.arange(3)), "a class of two or more"),
        (lambda: metrics.label_nmi(np.ones((3, 2)), np.ones(3, int)), "labels hold 1 class"),
        (lambda: metrics.evaluate(ROWS, np.arange(20) % 2, views=(ROWS, ROWS[:3])), r"shapes \(20, 2\) and \(3, 2\)"),
        (lambda: metrics.evaluate(ROWS, np.arange(30) % 2), "h has 20 rows and labels 30: expected one label a row"),
        (
            lambda: metrics.evaluate(ROWS, np.arange(20) % 3),
            r"3 of 3 classes have fewer than 10 rows: 0 \(7\)",
        ),
        (lambda: metrics.evaluate(ROWS, views=(ROWS,)), r"views holds 1 array\(s\), expected two"),
        (lambda: metrics.evaluate(ROWS, only=()), "`only` names no metric"),
        (lambda: metrics.evaluate(ROWS, only=("rankme",)), "unknown metric 'rankme'; choose from augmentation_align"),
        (lambda: metrics.evaluate(ROWS, only=("mlp_nmi",)), "metric 'mlp_nmi' needs labels, not given here; leave it"),
        (lambda: metrics.evaluate_parts({"test": {}}, metrics.Options()), "no metric can be computed without repr"),
    ],
)
def test_what_is_not_defined_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()


def gap_by_search(width):
    """The largest excess of log-mean-exp over the mean, among distributions on the ends of an interval."""
    result = minimize_scalar(
        lambda p: p * width - np.log(p * np.exp(width) + 1 - p),
        bounds=(1e-9, 1),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return -result.fun


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_the_supervised_bound_adds_what_a_mean_can_miss(temperature):
    alone = metrics.supervised_loss_bound_nats(0.0, k=1, temperature=temperature, least_frequency=1.0)
    assert alone == pytest.approx(gap_by_search(2 / temperature), rel=1e-6)
    more = metrics.supervised_loss_bound_nats(0.7, k=8, temperature=temperature, least_frequency=0.05)
    assert more - alone == pytest.approx(0.7 + np.log(20) - np.log(15))
    assert np.isfinite(metrics.supervised_loss_bound_nats(0.0, k=1, temperature=1e-3, least_frequency=1.0))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("k", [2, 16])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_the_mean_classifiers_loss_is_within_the_supervised_bound(temperature, k, spread):
    """Each class has 40 rows, drawn unevenly with replacement, so the mean classifier's loss is exact."""
    rng, frequencies = np.random.default_rng(0), np.array([0.5, 0.3, 0.15, 0.05])
    rows = rng.normal(size=(4, 1, 3)) + spread * rng.normal(size=(4, 40, 3))
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    logits = np.einsum("cid,ed->cie", rows, rows.mean(axis=1)) / temperature
    itself = logits[np.arange(4), :, np.arange(4)]
    supervised = frequencies @ (logsumexp(logits, axis=2) - itself).mean(axis=1)
    classes = rng.choice(4, size=2000 * k, p=frequencies)
    x, y = (rows[classes, rng.integers(40, size=len(classes))].astype(np.float32) for _ in "xy")
    loss = metrics.contrastive_loss_nats(x, y, temperature, k)
    bound = metrics.supervised_loss_bound_nats(loss, k=k, temperature=temperature, least_frequency=0.05)
    assert supervised <= bound


def test_the_supervised_bound_is_near_where_only_its_gap_is_lost():
    """Balanced classes are points and there are many negatives: the losses differ only by the number of candidates."""
    rng, points = np.random.default_rng(0), np.eye(8, dtype=np.float32)
    classes = rng.integers(8, size=4096)
    loss = metrics.contrastive_loss_nats(points[classes], points[classes], 0.5, 1024)
    supervised = np.log(1 + 7 * np.exp(-2))
    bound = metrics.supervised_loss_bound_nats(loss, k=1024, temperature=0.5, least_frequency=1 / 8)
    assert bound - gap_by_search(4) == pytest.approx(supervised, abs=0.02)


@pytest.mark.parametrize("wrong", [{"k": 0}, {"temperature": 0.0}, {"least_frequency": 0.0}, {"least_frequency": 1.5}])
def test_the_supervised_bound_says_what_it_takes(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"^{name} = .*: expected (1 or more|above 0|in)"):
        metrics.supervised_loss_bound_nats(1.0, **{"k": 2, "temperature": 0.1, "least_frequency": 0.1, **wrong})
