"""Product posteriors over attributes: against the certificate of all classes, against closed forms, and in a run."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binomtest

from mirigor_jax import mi
from mirigor_jax.data import law, pairing, patches
from mirigor_jax.data.attribute_classes import are_many
from mirigor_jax.data.attributes import uniform
from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.mi import certificates
from mirigor_jax.mi.by_attribute import attribute_certificate
from mirigor_jax.mi.certify import Classified, HeldOut, shown


def classes_of(sizes, **options):
    names = [f"a{j}" for j in range(len(sizes))]
    return pairing.parse("all", uniform(names, sizes), **options)


def posteriors(rng, attributes, sizes, sharpness):
    """Posteriors of each attribute that favor the true value, more or less."""
    result = []
    for a, m in zip(attributes.T, sizes, strict=True):
        scores = rng.normal(size=(len(a), m))
        scores[np.arange(len(a)), a] += sharpness
        result.append(np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True))
    return tuple(result)


def whole(parts):
    """The product posterior over all combinations, by outer products row by row."""
    rows = []
    for i in range(len(parts[0])):
        row = np.ones(1)
        for q in parts:
            row = np.outer(row, q[i]).ravel()
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("sizes", [(2, 3, 2), (4, 5), (2, 2, 2, 2, 2)])
@pytest.mark.parametrize("channel", [{}, {"mi_bits": 1.1}, {"epsilon": {"a0": 0.2}}])
@pytest.mark.parametrize("sharpness", [0.0, 3.0, 12.0])
def test_the_product_certificate_is_that_of_all_classes(sizes, channel, sharpness):
    made, rng = classes_of(sizes, **channel), np.random.default_rng(5)
    c_x, c_y = np.unravel_index(rng.choice(made.num_classes**2, 150, p=made.joint().ravel()), (made.num_classes,) * 2)
    by = made.by_attribute()
    q_x, q_y = (posteriors(rng, by.values[c], sizes, sharpness) for c in (c_x, c_y))
    # The true classes, the control variate, have another weight in the two, but only by the mixing.
    options = {"confidence": 0.9, "mixing": 1e-9}
    found = attribute_certificate(q_x, q_y, by.values[c_x], by.values[c_y], by.joints, **options)
    dense = certificates.posterior_certificate(whole(q_x), whole(q_y), c_x, c_y, made.joint(), **options)
    assert found.lower_bits == pytest.approx(dense.lower_bits, abs=1e-5)
    assert found.value_bits == pytest.approx(dense.value_bits, abs=1e-5)
    np.testing.assert_allclose(found.influence_nats, dense.influence_nats, atol=1e-5)


def test_classes_are_combinations_of_attributes():
    by = classes_of((3, 2, 4), epsilon={"a1": 0.1}).by_attribute()
    assert (by.sizes, by.exact, by.independent) == ((3, 2, 4), False, True)
    assert by.common_frequencies is None
    np.testing.assert_array_equal(by.index(by.values), np.arange(24))
    np.testing.assert_allclose(by.joints[1], [[0.45, 0.05], [0.05, 0.45]])
    table = np.ones((3, 3))
    table[0, 1] = 0
    the_law = law.of_table(table, (3, 3))
    dependent = pairing.channels(["a", "b"], ["a", "b"], (3, 3), law=the_law).by_attribute()
    assert (len(dependent.values), dependent.independent, dependent.exact) == (8, False, True)
    np.testing.assert_array_equal(dependent.index(np.array([[0, 0], [0, 1], [0, 2]])), [0, -1, 1])
    np.testing.assert_allclose(dependent.common_frequencies, np.full(8, 1 / 8))
    assert are_many(65, 2)
    assert not are_many(64, 2)
    assert not are_many(1000, 1)


@pytest.mark.parametrize("bits", [10, 16])
def test_no_errors_certify_almost_all_bits(bits):
    """0 errors of 8,192 give 9.976 of 10 bits by the classifier. The posterior is limited by the number of classes."""
    images = patches.make(size=16, bits=bits)
    made, rng = pairing.parse("all", images.space).by_attribute(), np.random.default_rng(0)
    c = rng.integers(2**bits, size=8192)
    sure = tuple(np.where(a[:, None] == np.arange(2), 0.9999, 0.0001) for a in made.values[c].T)
    part = HeldOut(np.zeros((16, 2, 2)), Classified(sure, sure, c, c, c, c))
    found = shown(part, part, made, 0.95)
    assert found["classifier"].lower_bits == pytest.approx({10: 9.976, 16: 15.969}[bits], abs=1e-3)
    assert {10: 9.95, 16: 15.4}[bits] < found["posterior"].lower_bits < bits


def test_a_product_posterior_certifies_dependent_attributes_by_classifier_alone():
    rng = np.random.default_rng(0)
    the_law = law.of_table(rng.exponential(size=(10, 10)), (10, 10))
    made = pairing.channels(["a", "b"], ["a", "b"], (10, 10), law=the_law).by_attribute()
    c = rng.choice(100, 4000, p=made.frequencies)
    q = posteriors(rng, made.values[c], (10, 10), 30.0)
    part = HeldOut(np.zeros((16, 2, 2)), Classified(q, q, c, c, c, c))
    found = shown(part, part, made, 0.95)
    assert "posterior" not in found
    assert found["classifier"].lower_bits < -np.sum(made.frequencies * np.log2(made.frequencies))


def rows(n, bits, noise, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=(n, bits))
    return (2 * labels - 1) + noise * rng.normal(size=(n, bits)), labels


@pytest.mark.slow
def test_labels_may_be_attributes():
    """7 bits are 128 classes, so each attribute has a probe; 2 bits are four classes, as their names would be."""
    h, labels = rows(12_000, 7, 0.2)
    found = mi.estimate_labels(h, labels)
    assert found.entropy_bits == pytest.approx(7, abs=0.05)
    assert 6.7 < found.lower_bits <= found.value_bits <= found.upper_bits
    assert "posterior" not in found.certificates  # the labels' frequencies make the attributes depend on each other
    few = rows(2_000, 2, 0.2)
    names = few[1] @ [2, 1]
    assert mi.estimate_labels(*few).lower_bits == mi.estimate_labels(few[0], names).lower_bits
    with pytest.raises(InputError, match="num_critics = 2: of 128 classes, told apart by their attributes"):
        mi.estimate_labels(h, labels, num_critics=2)


def symmetric_bits(classes, error):
    """I(g(h_X);g(h_Y)) if g is uniform over all classes with probability `error`, and else right."""
    same = (1 - error) ** 2 + (1 - (1 - error) ** 2) / classes
    other = (1 - same) / (classes - 1)
    return math.log2(classes) + same * math.log2(same) + (classes - 1) * other * math.log2(max(other, 1e-300))


@pytest.mark.slow
@pytest.mark.parametrize(("error", "n"), [(0.0, 60), (0.02, 1000), (0.3, 60)])
def test_the_ends_hold_if_the_attributes_err_together(error, n):
    """Whole rows are confused, so errors are correlated over attributes; the truth is a closed form."""
    bits = 8
    made = pairing.parse("all", patches.make(size=16, bits=bits).space).by_attribute()
    truth, failures = symmetric_bits(2**bits, error), Counter[str]()
    for repeat in range(300):
        rng = np.random.default_rng([repeat, n])
        c = rng.integers(2**bits, size=n)
        views = [np.where(rng.random(n) < error, rng.integers(2**bits, size=n), c) for _ in range(2)]
        trust = 1 - error / 2
        q_x, q_y = (
            tuple(np.where(a[:, None] == np.arange(2), trust, 1 - trust) for a in made.values[view].T) for view in views
        )
        part = HeldOut(np.zeros((16, 2, 2)), Classified(q_x, q_y, c, c, views[0], c))
        found = shown(part, part, made, 0.95)
        for certificate in ("classifier", "posterior"):
            failures[certificate] += found[certificate].lower_bits > truth + 1e-9
    for count in failures.values():
        assert binomtest(count, 300, 0.05, alternative="greater").pvalue > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("sharpness", "n"), [(0.3, 60), (2.0, 1000), (6.0, 60)])
def test_the_posterior_s_end_is_below_its_own_bound(sharpness, n):
    """Weak and overconfident posteriors. The population's bound is read from 200,000 pairs."""
    made = pairing.parse("all", patches.make(size=16, bits=6).space, mi_bits=4.5).by_attribute()

    def sample(n, rng):
        a_x = rng.integers(2, size=(n, 6))
        a_y = np.where(rng.random((n, 6)) < made.joints[0][0, 1] * 2, 1 - a_x, a_x)
        common = rng.normal(size=(2, n, 1))  # noise that the attributes of a view share
        q = []
        for a, shared in zip((a_x, a_y), common, strict=True):
            scores = sharpness * (2 * a - 1 + 0.7 * rng.normal(size=a.shape) + 0.7 * shared)
            q.append(tuple(np.stack([1 / (1 + np.exp(s)), 1 / (1 + np.exp(-s))], axis=1) for s in scores.T))
        return *q, a_x, a_y, made.joints

    population = attribute_certificate(*sample(200_000, np.random.default_rng(1)), confidence=0.5).influence_nats
    bound = max(0.0, population.mean() / math.log(2)) + 3 * population.std() / 200_000**0.5
    lower = [
        attribute_certificate(*sample(n, np.random.default_rng([2, r])), confidence=0.95).lower_bits for r in range(300)
    ]
    failures = int(np.sum(np.array(lower) > bound))
    assert binomtest(failures, 300, 0.05, alternative="greater").pvalue > 0.01


@pytest.mark.slow
def test_a_run_on_patches(tmp_path):
    arguments = [
        "--config=configs/patches.py:bits=7,size=16,k=32",
        f"--workdir={tmp_path}",
        "--config.encoder.name=mlp",
        "--config.train.steps=60",
        "--config.features.fit=1024",
        "--config.features.validation=512",
        "--config.features.test=2048",
        "--config.estimate.k=256",
    ]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    [found] = report["estimates"].values()
    assert report["truth"]["mutual_information_bits"] == found["upper_bits"] == 7
    assert 0 < found["lower_bits"] <= found["value_bits"] <= 7 + 1e-9
    assert {*found["certificates"]} == {"posterior", "classifier", "infonce"}
    usable = report["usable"]
    assert 0 < usable["lower_bits"] <= usable["value_bits"] <= usable["upper_bits"] <= usable["entropy_bits"]
    assert {*report["linear"]} == {*(f"b{j}" for j in range(1, 8)), "all"}


def test_a_head_critic_needs_images_of_every_class(capsys):
    arguments = ["--config=configs/patches.py", "--config.estimate.estimators=('info_nce_symmetric','nt_xent')"]
    assert main(arguments) == 2
    assert "the rarest of 1,024 classes" in capsys.readouterr().err
