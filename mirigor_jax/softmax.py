"""Softmax regression and its class posteriors; validation chooses the l2 penalty and the temperature."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int, Integer
from scipy.special import log_softmax, softmax

from mirigor_jax import checks, parallel
from mirigor_jax.errors import InputError
from mirigor_jax.numerics import CHUNK

Choice = Literal["accuracy", "log_loss", "one_standard_error"]  # by which validation chooses a penalty
Classes: TypeAlias = Any  # (n,) class numbers from 0, of any kind that `checks.labels` takes


@runtime_checkable
class Probe(Protocol):
    """A classifier of features. Its class posterior is the softmax of `logits` divided by `temperature`."""

    @property
    def num_classes(self) -> int: ...

    @property
    def temperature(self) -> float: ...

    def logits(self, features: Float[np.ndarray | Array, "n d"]) -> Float[np.ndarray, "n c"]: ...


@dataclass(frozen=True)
class LinearProbe:
    """A softmax regression on features that are standardized by the fit part's mean and scale, in float64."""

    kernel: Float[np.ndarray, "d c"]
    bias: Float[np.ndarray, " c"]
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    l2: float
    temperature: float
    validation_accuracy: float

    @property
    def num_classes(self) -> int:
        return len(self.bias)

    def logits(self, features: Float[np.ndarray | Array, "n d"]) -> Float[np.ndarray, "n c"]:
        """Class scores (n, c), before the temperature."""
        return standardize(features, self.mean, self.scale) @ self.kernel + self.bias[None, :]


def fit_linear(
    features: Float[np.ndarray | Array, "n d"],
    labels: Classes,
    num_classes: int,
    *,
    l2: Sequence[float],
    validation_features: Float[np.ndarray | Array, "m d"],
    validation_labels: Classes,
    max_steps: int = 200,
    chosen_by: Choice = "accuracy",
    compiled_rows: int = 0,
) -> LinearProbe:
    """Minimize mean cross-entropy (nats) + l2/2 |kernel|^2 by full-batch L-BFGS for each l2; keep validation's best.

    The bias is not penalized. scikit-learn's C is 1/(n l2). The best fit has the highest validation accuracy; among
    equals, the least validation log-loss. With chosen_by="log_loss" it has the least log-loss. With
    "one_standard_error" it has the largest penalty whose log-loss exceeds the least by at most one standard error of
    the difference: a smaller probe that validation can hardly tell from the best (Breiman et al. 1984, section 3.4.3).
    The temperature is then chosen to minimize that log-loss. A fit ends after max_steps, or once the Newton decrement
    (Boyd and Vandenberghe 2004, section 9.5.1), with the Hessian at zero weights, is at most 1e-7 nats.
    l2: penalties to try, each 0 or more.
    compiled_rows: the data is padded to at least so many rows, by zero rows of weight 0. Fits of different numbers of
        rows then share one compiled program.
    Raises InputError if lengths differ, a label is outside 0..num_classes-1, a feature is not finite in float32, l2 is
    empty or negative, or a fit diverges.
    """
    classes = check_part(features, labels, num_classes, "fit")
    truth = check_part(validation_features, validation_labels, num_classes, "validation")
    if len(l2) == 0 or min(checks.number("l2", penalty) for penalty in l2) < 0:
        raise InputError(f"l2 = {list(l2)}: expected at least one penalty, none negative")
    checks.whole("max_steps", max_steps, 1)
    mean, scale = mean_and_scale(features)
    path = sorted(map(float, l2), reverse=True)  # each fit starts close, from fits of stronger penalties
    n = len(features)
    rows: list[np.ndarray] = [standardize(features, mean, scale), classes]
    rows.append(np.full(n, 1 / n, np.float32))
    if compiled_rows > n:
        rows = [np.pad(one, [(0, compiled_rows - n)] + [(0, 0)] * (one.ndim - 1)) for one in rows]
    data = *rows, np.asarray(path, np.float32)
    with jax.enable_x64(False):  # in float32, even if the process uses x64
        kernels, biases = jax.device_get(
            _fit_path()(*jax.device_put(data), num_classes=num_classes, max_steps=max_steps)
        )
    if diverged := [l2 for l2, *fit in zip(path, kernels, biases, strict=True) if not all(map(_all_finite, fit))]:
        raise InputError(
            f"the linear probe's weights at l2 = {diverged[0]:g} are not finite after at most {max_steps:,} steps of "
            "L-BFGS, whose line search chooses the rate; give larger penalties, or drop extreme feature rows"
        )
    validation = standardize(validation_features, mean, scale)
    logits = validation @ kernels + biases[:, None, :]
    accuracies = np.mean(logits.argmax(axis=2) == truth[None, :], axis=1)
    losses = [_losses(each, truth) for each in logits]
    best = _chosen(accuracies, losses, chosen_by)
    return LinearProbe(
        kernel=kernels[best],
        bias=biases[best],
        mean=mean,
        scale=scale,
        l2=path[best],
        temperature=best_temperature(logits[best], truth),
        validation_accuracy=float(accuracies[best]),
    )


def class_posterior(probe: Probe, features: Float[np.ndarray | Array, "n d"]) -> Float[np.ndarray, "n c"]:
    """Class probabilities (n, c) in float64: the softmax of the scores divided by the temperature.

    Source: Guo et al. 2017, section 4.2 (temperature scaling).
    """
    return softmax(probe.logits(features).astype(np.float64) / probe.temperature, axis=1)


@cache
def _fit_path() -> Any:
    """`_path`, compiled for each shape."""
    return jax.jit(_path, static_argnames=("num_classes", "max_steps"), compiler_options=parallel.quick_compilation())


def _path(
    x: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    weights: Float[Array, " n"],
    l2: Float[Array, " p"],
    *,
    num_classes: int,
    max_steps: int,
) -> tuple[Float[Array, "p d c"], Float[Array, "p c"]]:
    """Fit kernels and biases for each penalty in turn. Each fit starts from the parabola through the last three fits.

    weights: 1/n for each of the n rows of data, and 0 for the zero rows that pad them.
    L-BFGS moves in coordinates in which the Hessian at zero kernels, x'x / (n c) + l2 for every class, is the identity.
    Correlated features then do not slow it, and half the squared gradient is the Newton decrement.
    """
    optimizer = optax.lbfgs()
    identity = jnp.eye(x.shape[1], dtype=x.dtype)
    with jax.default_matmul_precision("highest"):  # accelerators' default is too coarse for the line search
        # the multiple of the identity outweighs float32's rounding of x'x; the trace of x'x is n d
        hessian = (x.T @ x * weights[0] + 1e-6 * x.shape[1] * identity) / num_classes

        def fit(latest, problem):
            penalty, coefficients = problem
            factor = jnp.linalg.cholesky(hessian + penalty * identity)
            whitening = solve_triangular(factor, identity, lower=True).T

            def kernel_and_bias(params):
                return whitening @ params[0], params[1] * num_classes**0.5

            def loss_nats(params):
                kernel, bias = kernel_and_bias(params)
                losses = optax.softmax_cross_entropy(x @ kernel + bias[None, :], jax.nn.one_hot(labels, num_classes))
                return losses @ weights + penalty / 2 * jnp.sum(kernel**2)

            def step(carry):
                params, state, count = carry
                value, grad = optax.value_and_grad_from_state(loss_nats)(params, state=state)
                updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=loss_nats)
                return optax.apply_updates(params, updates), state, count + 1

            def unfinished(carry):
                _, state, count = carry
                decrement = optax.tree.norm(optax.tree.get(state, "grad"), squared=True) / 2
                return (count < max_steps) & ((count == 0) | (decrement > 1e-7))

            kernel, bias = jax.tree.map(lambda fits: jnp.tensordot(coefficients, fits, axes=1), latest)
            start = factor.T @ kernel, bias / num_classes**0.5
            params, _, _ = lax.while_loop(unfinished, step, (start, optimizer.init(start), 0))
            fitted = kernel_and_bias(params)
            latest = jax.tree.map(lambda new, fits: jnp.stack([new, *fits[:2]]), fitted, latest)
            return latest, fitted

        extrapolation = [[0, 0, 0], [1, 0, 0], [2, -1, 0]] + [[3, -3, 1]] * len(l2)
        zeros = jnp.zeros((3, x.shape[1], num_classes), x.dtype), jnp.zeros((3, num_classes), x.dtype)
        return lax.scan(fit, zeros, (l2, jnp.asarray(extrapolation[: len(l2)], x.dtype)))[1]


def mean_and_scale(
    features: Float[np.ndarray | Array, "n d"],
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Each column's mean and standard deviation in float64; the latter is 1 if the column is constant."""
    rows = np.asarray(features, np.float64)
    mean = rows.mean(axis=0)
    # Squares of a column of 1e-310 would vanish, so columns are measured in units of their largest deviation.
    most = np.maximum(rows.max(axis=0) - mean, mean - rows.min(axis=0))
    unit = np.where(most > 0, most, 1.0)
    deviations = rows - mean[None, :]
    deviations /= unit[None, :]
    scale = unit * np.sqrt(np.mean(np.square(deviations, out=deviations), axis=0))
    # A constant column's mean may be off by rounding, which must not count as spread.
    return mean, np.where(scale > 16 * np.finfo(np.float64).eps * np.abs(mean), scale, 1.0)


def standardize(
    features: Float[np.ndarray | Array, "n d"], mean: Float[np.ndarray, " d"], scale: Float[np.ndarray, " d"]
) -> Float[np.ndarray, "n d"]:
    """(features - mean) / scale in float32. It is computed in float64, where large offsets cancel without loss."""
    rows, result = np.asarray(features), np.empty(features.shape, np.float32)
    for first in range(0, len(rows), CHUNK):
        part = slice(first, first + CHUNK)
        result[part] = (rows[part].astype(np.float64) - mean[None, :]) / scale[None, :]
    return result


def best_temperature(logits: Float[np.ndarray, "n c"], labels: Integer[np.ndarray, " n"]) -> float:
    """The temperature, from e^-5 to e^5, at which the logits' log-loss is least. Source: Guo et al. 2017, 4.2."""
    from scipy.optimize import minimize_scalar  # here, because the import takes a tenth of a second

    log_temperature = minimize_scalar(
        lambda t: _log_loss(logits / np.exp(t), labels), bounds=(-5, 5), method="bounded"
    ).x
    return float(np.exp(log_temperature))


def _chosen(accuracies: Sequence[float], losses: Sequence[Float[np.ndarray, " m"]], chosen_by: Choice) -> int:
    """The number of the best fit. Fits are in the order of their penalties, the largest first."""
    means = [float(each.mean()) for each in losses]
    if chosen_by == "accuracy":
        return min(range(len(means)), key=lambda i: (-accuracies[i], means[i]))
    best = int(np.argmin(means))
    if chosen_by == "log_loss":
        return best
    excess = [each - losses[best] for each in losses]
    return next(i for i, each in enumerate(excess) if each.mean() <= each.std() / len(each) ** 0.5)


def _log_loss(logits: Float[np.ndarray, "n c"], labels: Integer[np.ndarray, " n"]) -> float:
    return float(_losses(logits, labels).mean())


def _losses(logits: Float[np.ndarray, "n c"], labels: Integer[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]


def check_part(features, labels, num_classes: int, part: str) -> Int[np.ndarray, " n"]:
    """The classes of a part's rows, in 0..num_classes-1.

    Raises InputError if the part has no images or unequal numbers of rows and labels, if labels are no class numbers,
    or if a value is not finite in float32.
    """
    if len(features) != len(labels) or len(labels) == 0:
        raise InputError(
            f"{part} part: {len(features)} feature rows for {len(labels)} labels, expected equal numbers, not 0"
        )
    classes = checks.labels(labels, f"{part} part: labels")
    if classes.dtype.kind not in "biu":
        raise InputError(
            f"{part} part: labels are strings, such as '{classes[0]}', expected class numbers; give "
            "numpy.unique(labels, return_inverse=True)[1]"
        )
    low, high = int(np.min(classes)), int(np.max(classes))
    if low < 0 or high >= num_classes:
        raise InputError(f"{part} part: labels from {low} to {high}, expected 0 to {num_classes - 1}")
    checks.finite(np.asarray(features), f"{part} part: features")
    return classes.astype(np.int32)


def _all_finite(weights: np.ndarray) -> bool:
    return bool(np.isfinite(weights).all())
