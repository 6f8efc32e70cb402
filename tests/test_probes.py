"""Probes: the linear one against scipy's optimum, neighbors against a plain loop, the MLP on inseparable classes."""

import time

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax
from small import calibration_seconds

from mirigor_jax.errors import InputError
from mirigor_jax.probes import accuracy, class_posterior, fit_knn, fit_linear, fit_mlp, knn

# One shape of a fit, so that what one test compiles serves the next.
N, D, CLASSES = 600, 11, 4
SMALL = {"hidden": (32, 32), "dropout": (0.1, 0.1), "learning_rate": 5e-3, "max_steps": 300, "patience": 200}


def clusters(rng, n, dimensions, classes, noise):
    labels = rng.integers(classes, size=n)
    centers = np.random.default_rng(99).normal(size=(classes, dimensions))
    return (centers[labels] + noise * rng.normal(size=(n, dimensions))).astype(np.float32), labels


def log_loss(probabilities, labels):
    return -np.mean(np.log(probabilities[np.arange(len(labels)), labels]))


def above_the_optimum(probe, features, labels):
    """The probe's objective minus that of scipy's best fit in float64, in nats."""
    x = (features.astype(float) - features.mean(axis=0)) / np.where(features.std(axis=0) > 0, features.std(axis=0), 1)
    (n, d), classes = x.shape, len(probe.bias)

    def objective(parameters):
        kernel, bias = parameters[:-classes].reshape(d, classes), parameters[-classes:]
        log_probabilities = log_softmax(x @ kernel + bias, axis=1)
        residuals = (np.exp(log_probabilities) - np.eye(classes)[labels]) / n
        value = -log_probabilities[np.arange(n), labels].mean() + probe.l2 / 2 * np.sum(kernel**2)
        return value, np.concatenate([(x.T @ residuals + probe.l2 * kernel).ravel(), residuals.sum(axis=0)])

    options = {"maxiter": 20_000, "maxfun": 10**6, "ftol": 0, "gtol": 1e-9}
    best = minimize(objective, np.zeros((d + 1) * classes), jac=True, method="L-BFGS-B", options=options).fun
    return objective(np.concatenate([probe.kernel.ravel(), probe.bias]).astype(float))[0] - best


@pytest.mark.parametrize("l2", [1e-1, 1e-3, 0.0])
def test_probe_reaches_the_optimum_scipy_finds(l2):
    rng = np.random.default_rng(0)
    features, labels = clusters(rng, N, D - 3, CLASSES, noise=3)
    features = 3 * features @ rng.normal(size=(D - 3, D - 3)).astype(np.float32) + 5  # correlated, off-center, scaled
    features = np.concatenate([features, features[:, :2], np.ones((N, 1), np.float32)], axis=1)  # of rank D − 3
    probe = fit_linear(features, labels, CLASSES, l2=[l2], validation_features=features, validation_labels=labels)
    assert above_the_optimum(probe, features, labels) == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_few_steps_suffice_for_correlated_features_and_fewer_along_a_path():
    rng = np.random.default_rng(7)
    features, labels = clusters(rng, 1000, 24, 5, noise=4)
    features = features / np.arange(1, 25, dtype=np.float32)[None, :] ** 2
    features = features @ np.linalg.qr(rng.normal(size=(24, 24)))[0].astype(np.float32)

    def excess(l2, max_steps):
        options = {"validation_features": features, "validation_labels": labels, "max_steps": max_steps}
        probe = fit_linear(features, labels, 5, l2=l2, **options)
        assert probe.l2 == pytest.approx(1e-4)
        return above_the_optimum(probe, features, labels)

    assert excess([1e-4], 10) < 1e-5  # in the features' own coordinates, 0.2
    assert excess(np.logspace(-1, -4, 13).tolist(), 2) < 1e-6  # started at the fit before, 3e-5; at zero, 1e-3


def test_a_fit_ends_once_its_newton_decrement_is_below_what_float32_tells():
    features, labels = clusters(np.random.default_rng(13), N, D, CLASSES, noise=3)
    options = {"l2": [1e-1], "validation_features": features, "validation_labels": labels}
    few, many = (fit_linear(features, labels, CLASSES, **limit, **options) for limit in ({"max_steps": 6}, {}))
    np.testing.assert_array_equal(few.kernel, many.kernel)
    assert above_the_optimum(few, features, labels) < 1e-6


def test_a_path_of_penalties_gives_each_its_own_optimum():
    features, labels = clusters(np.random.default_rng(1), N, D, CLASSES, noise=2)
    options = {"validation_features": features, "validation_labels": labels}
    alone = fit_linear(features, labels, CLASSES, l2=[1e-3], **options)
    chosen = fit_linear(features, labels, CLASSES, l2=[1e-3, 10.0], **options)
    assert chosen.l2 == 1e-3
    np.testing.assert_allclose(chosen.kernel, alone.kernel, atol=5e-3)


def test_separable_classes_are_separated_and_given_confident_posteriors():
    rng = np.random.default_rng(2)
    (features, labels), (validation, of_validation) = (clusters(rng, N, D, CLASSES, noise=0.1) for _ in range(2))
    fresh, fresh_labels = clusters(rng, 1000, D, CLASSES, noise=0.1)
    options = {"validation_features": validation, "validation_labels": of_validation}
    probe = fit_linear(features, labels, CLASSES, l2=[1e-2, 1e-4], **options)
    assert probe.validation_accuracy == accuracy(probe, fresh, fresh_labels) == 1.0
    assert probe.l2 == 1e-4  # both classify all; the log-loss decides
    posterior = class_posterior(probe, fresh)
    assert posterior.dtype == np.float64
    assert posterior[np.arange(1000), fresh_labels].min() > 0.99


def test_validation_chooses_a_penalty_by_log_loss_or_a_larger_one_that_it_cannot_tell_from_it():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 500)
    x = rng.normal(size=(3, 20))[truth] * 0.5 + rng.normal(size=(500, 20))
    options = {"validation_features": x[200:], "validation_labels": truth[200:]}
    penalties = [1e-3, 1e-2, 2e-2, 4e-2, 8e-2, 1.0]
    losses = []
    for l2 in penalties:
        each = fit_linear(x[:200], truth[:200], 3, l2=[l2], **options)
        logits = each.logits(x[200:]).astype(np.float64)
        losses.append(logsumexp(logits, axis=1) - logits[np.arange(300), truth[200:]])
    least = int(np.argmin(np.mean(losses, axis=1)))
    excess = np.array(losses) - losses[least]
    alike = excess.mean(axis=1) <= excess.std(axis=1) / np.sqrt(300)
    largest = max(np.flatnonzero(alike))
    assert largest > least  # otherwise the test shows little
    for chosen_by, expected in (("log_loss", least), ("one_standard_error", largest)):
        chosen = fit_linear(x[:200], truth[:200], 3, l2=penalties, chosen_by=chosen_by, **options)
        assert chosen.l2 == pytest.approx(penalties[expected])


@pytest.mark.slow
def test_validation_chooses_the_penalty_where_features_outnumber_images():
    rng = np.random.default_rng(3)
    x, y = clusters(rng, 3000, 5, 2, noise=1.5)
    x = np.concatenate([x, rng.normal(size=(3000, 120)).astype(np.float32)], axis=1)
    penalties = [3.0, 1.0, 1e-6]
    options = {"validation_features": x[150:1500], "validation_labels": y[150:1500]}
    chosen = fit_linear(x[:150], y[:150], 2, l2=penalties, **options)
    each = [fit_linear(x[:150], y[:150], 2, l2=[l2], **options) for l2 in penalties]
    assert chosen.l2 == 1.0
    assert chosen.validation_accuracy == pytest.approx(max(p.validation_accuracy for p in each), abs=2e-3)
    assert accuracy(chosen, x[1500:], y[1500:]) > accuracy(each[2], x[1500:], y[1500:])


@pytest.mark.slow
def test_the_temperature_is_the_best_on_validation_and_calibrates_fresh_images():
    rng = np.random.default_rng(4)
    x, y = clusters(rng, 4000, 60, 3, noise=6)
    probe = fit_linear(x[:150], y[:150], 3, l2=[1e-5], validation_features=x[150:2000], validation_labels=y[150:2000])
    losses = {
        t: log_loss(softmax(probe.logits(x[150:2000]).astype(float) / t, axis=1), y[150:2000])
        for t in probe.temperature * np.array([0.8, 1.0, 1.25])
    }
    assert min(losses, key=losses.get) == probe.temperature > 1.5  # 150 images in 60 dimensions: overconfident
    plain = softmax(probe.logits(x[2000:]).astype(float), axis=1)
    assert log_loss(class_posterior(probe, x[2000:]), y[2000:]) < log_loss(plain, y[2000:])


def test_constant_columns_and_a_class_missing_from_the_fit_part():
    rng = np.random.default_rng(5)
    features, labels = clusters(rng, N, D, CLASSES - 1, noise=0.1)
    features[:, 2], features[:, 4] = 0.1, 0.0
    labels[labels == 2] = 3
    options = {"validation_features": features, "validation_labels": labels}
    probe = fit_linear(features, labels, CLASSES, l2=[1e-3], **options)
    shifted = features + np.isin(np.arange(D), [2, 4])  # columns that the fit part could not have learned from
    np.testing.assert_allclose(probe.logits(shifted), probe.logits(features), atol=1e-3)
    assert accuracy(probe, features, labels) == 1.0
    assert class_posterior(probe, features)[:, 2].max() < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(9, int)}, "fit part: 10 feature rows for 9 labels"),
        ({"labels": np.full(10, 2)}, "labels from 2 to 2, expected 0 to 1"),
        ({"validation_labels": np.full(10, -1)}, "validation part: labels from -1 to -1"),
        ({"l2": []}, "at least one penalty"),
        ({"l2": [1e-3, -1.0]}, "none negative"),
    ],
)
def test_bad_input_is_refused_in_one_line(change, message):
    good = {"features": np.zeros((10, 3), np.float32), "labels": np.arange(10) % 2, "l2": [1e-3]}
    good |= {"validation_features": np.ones((10, 3), np.float32), "validation_labels": np.arange(10) % 2}
    with pytest.raises(InputError, match=message):
        fit_linear(num_classes=2, **(good | change))


def test_rows_that_are_added_for_a_program_change_nothing():
    features, labels = clusters(np.random.default_rng(3), 140, 3, 3, noise=2)
    held_out = {"validation_features": features[100:], "validation_labels": labels[100:]}
    fits = {"l2": [1e-1, 1e-2], **held_out}
    plain, filled = (fit_linear(features[:100], labels[:100], 3, **fits, compiled_rows=rows) for rows in (0, 250))
    np.testing.assert_allclose(filled.kernel, plain.kernel, atol=1e-3)
    np.testing.assert_allclose(filled.bias, plain.bias, atol=1e-3)
    assert (filled.l2, filled.validation_accuracy) == (plain.l2, plain.validation_accuracy)


@pytest.mark.slow
@pytest.mark.timed
def test_sixty_four_classes_are_fitted_in_seconds():
    features, labels = clusters(np.random.default_rng(6), 12_288, 128, 64, noise=2)
    start = time.perf_counter()
    probe = fit_linear(
        features[:8192],
        labels[:8192],
        64,
        l2=[1e-1, 1e-2, 1e-3, 1e-4, 1e-5],
        validation_features=features[8192:],
        validation_labels=labels[8192:],
    )
    assert time.perf_counter() - start < 5 * calibration_seconds()
    assert probe.validation_accuracy > 0.95


def votes_by_loop(bank, labels, classes, k, tau, rows):
    shares = np.zeros((len(rows), classes))
    for i, row in enumerate(rows.astype(float)):
        cosines = [row @ other / np.linalg.norm(row) / np.linalg.norm(other) for other in bank.astype(float)]
        for j in np.argsort(cosines)[::-1][:k]:
            shares[i, labels[j]] += np.exp(cosines[j] / tau)
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("k", "tau"), [(15, 0.07), (15, 0.002), (1000, 0.5)])
def test_neighbors_vote_as_in_a_plain_loop(monkeypatch, k, tau):
    rng = np.random.default_rng(8)
    bank, labels = clusters(rng, 120, 6, 4, noise=2)
    rows, truth = clusters(rng, 23, 6, 4, noise=2)
    bank *= rng.uniform(0.1, 10, size=(120, 1)).astype(np.float32)  # lengths do not count
    monkeypatch.setattr(knn, "KNN_SCORES", 120 * 5)  # five rows at a time, of 23
    probe = fit_knn(bank, labels, 5, k=k, tau=tau)
    expected = votes_by_loop(bank, labels, 5, k, tau, rows)
    np.testing.assert_allclose(class_posterior(probe, rows), expected, atol=1e-4)
    assert not class_posterior(probe, rows)[:, 4].any()  # the class without images
    assert accuracy(probe, rows, truth) == np.mean(expected.argmax(axis=1) == truth)


def test_near_neighbors_outvote_more_that_are_far():
    angles = np.array([0.0, 0.5, 0.5, -0.5])
    bank = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    row, labels = np.array([[3.0, 0.0]], np.float32), np.array([0, 1, 1, 1])
    assert accuracy(fit_knn(bank, labels, 2), row, np.array([0])) == 1
    assert accuracy(fit_knn(bank, labels, 2, tau=10.0), row, np.array([1])) == 1


@pytest.mark.parametrize(
    ("k", "tau", "message"), [(0, 0.07, "k = 0: expected 1 or more"), (5, 0.0, "tau = 0.0: expected above 0")]
)
def test_no_neighbors_or_no_tau_is_refused(k, tau, message):
    with pytest.raises(InputError, match=message):
        fit_knn(np.ones((10, 2), np.float32), np.arange(10) % 2, 2, k=k, tau=tau)


def xor(rng, n):
    """Classes that no line separates: the sign of the product of two of four columns."""
    features = rng.normal(size=(n, 4)).astype(np.float32)
    return 5 * features + 3, (features[:, 0] * features[:, 1] > 0).astype(int)


@pytest.mark.slow
def test_the_mlp_parts_classes_that_the_linear_probe_cannot():
    rng = np.random.default_rng(9)
    (x, y), (x_validation, y_validation), (fresh, truth) = (xor(rng, n) for n in (2000, 1000, 1000))
    options = {"validation_features": x_validation, "validation_labels": y_validation}
    assert accuracy(fit_linear(x, y, 2, l2=[1e-3], **options), fresh, truth) < 0.55
    probe = fit_mlp(x, y, 2, **options, **SMALL)
    assert accuracy(probe, fresh, truth) == pytest.approx(probe.validation_accuracy, abs=0.03)
    assert accuracy(probe, fresh, truth) > 0.93
    calibrated = [
        log_loss(softmax(probe.logits(x_validation).astype(float) / t, axis=1), y_validation)
        for t in probe.temperature * np.array([0.9, 1.0, 1.1])
    ]
    assert min(calibrated) == calibrated[1]


@pytest.mark.slow
def test_labels_at_random_leave_the_mlp_at_chance_and_end_its_fit():
    rng = np.random.default_rng(10)
    (x, y), (x_validation, y_validation), (fresh, truth) = (clusters(rng, n, 8, 4, 0.5) for n in (600, 600, 2000))
    y_validation, looks = rng.permutation(y_validation), []
    probe = fit_mlp(
        x,
        rng.permutation(y),
        4,
        validation_features=x_validation,
        validation_labels=y_validation,
        on_progress=lambda *progress: looks.append(progress),
        **(SMALL | {"max_steps": 10_000}),
    )
    assert accuracy(probe, fresh, rng.permutation(truth)) == pytest.approx(0.25, abs=0.04)
    assert log_loss(class_posterior(probe, fresh), rng.permutation(truth)) > np.log(4) - 0.01
    losses = {step: float(note.split()[1]) for step, _, note in looks}
    assert losses[probe.step] == min(losses.values()) < losses[looks[-1][0]]
    assert looks[-1][0] == probe.step + 200  # its patience
    best_log_loss = log_loss(softmax(probe.logits(x_validation).astype(float), axis=1), y_validation)
    assert best_log_loss == pytest.approx(losses[probe.step], abs=1e-3)


def test_the_mlp_s_fit_ends_at_its_last_step():
    rng, looks = np.random.default_rng(12), []
    (x, y), (x_validation, y_validation) = (xor(rng, 100) for _ in range(2))
    options = {"validation_features": x_validation, "validation_labels": y_validation}
    fit_mlp(
        x,
        y,
        2,
        **options,
        hidden=(4,),
        dropout=(0.0,),
        max_steps=200,
        on_progress=lambda *progress: looks.append(progress[:2]),
    )
    assert looks == [(100, 200), (200, 200)]


@pytest.mark.slow
def test_an_mlp_is_its_seed_s_and_its_options_count():
    rng = np.random.default_rng(11)
    (x, y), (x_validation, y_validation) = (xor(rng, n) for n in (2000, 1000))
    options = {"validation_features": x_validation, "validation_labels": y_validation} | SMALL | {"max_steps": 100}

    def fitted(**changed):
        return fit_mlp(x, y, 2, **(options | changed)).params["Dense_0"]["kernel"]

    kernel = fitted()
    np.testing.assert_array_equal(kernel, fitted())
    assert np.abs(kernel - fitted(seed=1)).max() > 0.1
    assert np.abs(kernel - fitted(dropout=(0.0, 0.0))).max() > 0.01
    assert np.abs(kernel - fitted(learning_rate=1e-6)).max() > 0.1
    assert np.abs(fitted(weight_decay=10.0)).mean() < 0.5 * np.abs(kernel).mean()
    with pytest.raises(InputError, match="2 hidden layers, 1 dropout rates"):
        fitted(dropout=(0.5,))
    with pytest.raises(InputError, match="max_steps = 0: expected 1 or more"):
        fitted(max_steps=0)
