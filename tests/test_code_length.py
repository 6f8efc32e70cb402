"""The prequential code length of labels against a loop with scipy's fits, and what it says of encoders."""

import numpy as np
import pytest
from scipy import optimize, special

from mirigor_jax import probes

L2 = 1e-2


def clusters(n, distance, d=3, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    c = rng.integers(classes, size=n)
    return (distance * np.eye(classes, d)[c] + rng.normal(size=(n, d))).astype(np.float32), c


def code(h, c, held, *, classes=3, l2=(L2,), seed=0):
    return probes.fit_prequential(
        h, c, classes, l2=l2, validation_features=held[0], validation_labels=held[1], seed=seed
    )


def logits_by_scipy(x, c, classes):
    """Softmax regression of standardized features with the penalty L2 / 2 |W|², as a function of features."""
    mean, scale = x.mean(axis=0), x.std(axis=0)
    z = (x - mean) / scale

    def loss(flat):
        w = flat.reshape(-1, classes)
        nats = special.log_softmax(z @ w[:-1] + w[-1], axis=1)
        return -np.mean(nats[np.arange(len(c)), c]) + L2 / 2 * np.sum(w[:-1] ** 2)

    w = optimize.minimize(loss, np.zeros((x.shape[1] + 1) * classes), method="BFGS", options={"gtol": 1e-7}).x
    w = w.reshape(-1, classes)
    return lambda rows: (rows - mean) / scale @ w[:-1] + w[-1]


def test_the_code_is_that_of_a_loop_with_scipys_fits():
    """Voita & Titov 2020, eq. 3, block by block: 32 labels by the uniform code, then 32, 64, and the last 128."""
    (h, c), held = clusters(256, 2.0), clusters(100, 2.0, seed=1)
    order = np.random.default_rng(0).permutation(256)
    x, y = h[order].astype(np.float64), c[order]
    bits = 32 * np.log2(3)
    for start, end in ((32, 64), (64, 128), (128, 256)):
        logits = logits_by_scipy(x[:start], y[:start], 3)

        def nats(rows, labels, t, logits=logits):
            return -special.log_softmax(logits(rows) / t, axis=1)[np.arange(len(labels)), labels]

        temperature = np.exp(
            optimize.minimize_scalar(
                lambda t, nats=nats: nats(held[0], held[1], np.exp(t)).mean(), bounds=(-5, 5), method="bounded"
            ).x
        )
        bits += nats(x[start:end], y[start:end], temperature).sum() / np.log(2)
    coded = code(h, c, held)
    assert (coded.rows, coded.first) == (256, 32)
    assert coded.code_bits / 256 == pytest.approx(bits / 256, abs=1e-3)


def test_a_better_encoder_has_a_shorter_code():
    lengths = [
        code(*clusters(256, distance), clusters(100, distance, seed=1)).code_bits / 256 for distance in (1.0, 2.0, 4.0)
    ]
    assert lengths[0] > lengths[1] + 0.2 > lengths[2] + 0.4


def test_random_labels_take_the_uniform_code_or_more():
    h, c = clusters(256, 0.0)
    assert code(h, c, clusters(100, 0.0, seed=1)).code_bits / 256 > np.log2(3) - 0.01


def test_the_order_is_the_seeds_and_the_rows_order_does_not_matter_much():
    (h, c), held = clusters(256, 2.0), clusters(100, 2.0, seed=1)
    one, again, other = (code(h, c, held, seed=seed).code_bits for seed in (0, 0, 1))
    assert one == again != other
    by_class = np.argsort(c, kind="stable")
    assert code(h[by_class], c[by_class], held).code_bits == pytest.approx(one, rel=0.25)


def test_few_labels_have_a_code_too():
    h, c = clusters(3, 1.0)
    coded = code(h, c, clusters(20, 1.0, seed=1))
    assert (coded.first, coded.rows) == (1, 3)
    assert np.isfinite(coded.code_bits)
