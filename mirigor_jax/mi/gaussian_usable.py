"""Gaussian V-information: the part of y's variance that maps of x can predict, as information in nats or bits.

The family V predicts y by N(φ(x), ½I), for maps φ of a class Φ that contains the constants. Then
I_V(x->y) = inf over constants m of E|y - m|² - inf over φ in Φ of E|y - φ(x)|², in nats, summed over y's columns. The
first term is tr Cov(y).

Source: Xu et al. 2020 (predictive V-information); Gosch 2020, eq. 14.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mirigor_jax import checks
from mirigor_jax.data.draws import parts_of, row_keys
from mirigor_jax.errors import InputError
from mirigor_jax.fitting import OnProgress
from mirigor_jax.mi.api import LEAST, as_rows
from mirigor_jax.mi.confidence import interval_of
from mirigor_jax.mi.rows import Rows, check_regression, check_values
from mirigor_jax.mi.usable_results import GaussianVInformation
from mirigor_jax.mlp import HIDDEN, fit_mlp_map
from mirigor_jax.settings import Arrays, Evaluate
from mirigor_jax.softmax import mean_and_scale

Map = Callable[[Float[np.ndarray, "n p"]], Float[np.ndarray, "n q"]]
Part = tuple[Float[np.ndarray, "n p"], Float[np.ndarray, "n q"]]  # rows of x and of y

# L2 penalties of the linear map, for standardized x; validation chooses one. The last leaves a constant map.
PENALTIES = (0.0, *np.geomspace(1e-6, 1e3, 19), math.inf)
KIND = "t, of the value's expectation, over test rows"


def gaussian_v_information(
    x: Any,
    y: Any,
    *,
    family: str = "linear",
    confidence: float = Arrays.confidence,
    seed: int = Arrays.seed,
    rows: Rows = Arrays.rows,
    on_progress: OnProgress | None = None,
) -> GaussianVInformation:
    """Estimate the information about y that a family of maps of x can use, for predictions N(φ(x), ½I).

    It is tr Cov(y) minus the least expected squared error of φ in the family, in nats; the result has bits. It is no
    mutual information: it depends on y's units, and twice as large a y has four times as much. Divide y by a scale of
    your own to compare sets; `share` has no unit. Rows must be independent draws that x's encoder was not trained on.
    The rows are split 60 : 20 : 20 as in `estimate`. φ is fitted on the first part, the second (validation) chooses its
    penalty or its step, and the third (test) is read once. The test rows' sample covariance gives tr Cov(y) without
    bias, so the value is too low in expectation, by the excess error of the fitted φ. The interval is about that
    expectation; its lower end hence is an approximate lower limit of I_V too. For linear maps, the best one on all rows
    gives a second value, with tr Cov(y) of all rows. It is too high in expectation. As the two are read on different
    rows, either may be the larger one.

        print(mi.gaussian_v_information(h, images.reshape(len(images), -1) / 255))

    Args:
        x: (n, p) or (n,) numbers, an array of any framework. n is 110 at least.
        y: (n, q) or (n,) numbers. Row i is predicted from x's row i.
        family: "linear": affine maps. "mlp": the sum of an affine map and of an MLP with three hidden layers.
        confidence: in [0.5, 1). Of the interval.
        seed: seeds the MLP's start and its batches. Linear maps have no randomness.
        rows: "checked": if rows look dependent, the interval is withheld; a few copies are left out. They look so if
            neighbors, in the given order, resemble each other in x, in y or in pointwise information, also if the rows
            are sorted. "independent": you state that rows are independent draws.
        on_progress: called as on_progress(step, steps, note) at every evaluation of the MLP on validation.

    Returns:
        The `GaussianVInformation`, in bits, with the pointwise information of every test row.

    Raises:
        InputError: the arrays do not allow an estimate, the family is unknown, or an option is out of its limits.

    Source: Xu et al. 2020; Gosch 2020, eq. 14.
    """
    checks.confidence(confidence)
    checks.seed(seed)
    if family not in MAPS:
        raise InputError(f"family = {family!r}: expected {' or '.join(map(repr, MAPS))}")
    given, targets = as_rows(x, "x"), as_rows(y, "y", as_they_are=True)
    if len(given) != len(targets):
        raise InputError(
            f"x has {len(given):,} rows and y has {len(targets):,}: expected equal numbers, as y's row i is predicted "
            "from x's row i"
        )
    if len(given) < LEAST:
        raise InputError(
            f"{len(given)} rows are too few to split into fit, validation and test parts; {LEAST} at least"
        )
    fitted, validation, test = parts_of(np.zeros(len(given), int), row_keys(len(given)))
    found = check_regression(given, targets, test, rows)
    test = test[~found.copies]
    result = read_checked(
        given, targets, (fitted, validation, test), family, confidence=confidence, seed=seed, on_progress=on_progress
    )
    result = found.applied_to(result)
    return result if found.contradiction else check_values(result.pointwise_bits, rows).applied_to(result)


def read_checked(
    x: Float[np.ndarray, "n p"],
    y: Float[np.ndarray, "n q"],
    parts: Sequence[Int[np.ndarray, " _"]],
    family: str,
    *,
    confidence: float,
    seed: int,
    on_progress: OnProgress | None = None,
) -> GaussianVInformation:
    """The Gaussian V-information of rows that are known to be independent. parts: rows to fit on, validation, test."""
    fitted, validation, test = ((x[part], y[part]) for part in parts)
    kind = MAPS[family]
    predict, words = kind.fit(fitted, validation, seed, on_progress)
    given, targets = test
    around = np.sum((targets - targets.mean(axis=0)) ** 2, axis=1) * len(targets) / (len(targets) - 1)
    # Both terms are of the same rows, so that most of their noise cancels if x says little.
    nats = around - np.sum((targets - predict(given)) ** 2, axis=1)
    every = np.concatenate(parts)
    upper = None if kind.in_sample_nats is None else kind.in_sample_nats(x[every], y[every])
    of_all = float(y[every].var(axis=0, ddof=1).sum())
    return GaussianVInformation(
        family=words,
        value_bits=float(nats.mean()) / math.log(2),
        in_sample_bits=None if upper is None else upper / math.log(2),
        in_sample_total_bits=None if upper is None else of_all / math.log(2),
        total_bits=float(around.mean()) / math.log(2),
        interval=interval_of(nats, confidence, KIND),
        confidence=confidence,
        rows=parts[2],
        pointwise_bits=nats / math.log(2),
    )


@dataclass(frozen=True)
class _Ridge:
    """The linear map of the least mean squared error + penalty |kernel|², for every penalty; x is standardized.

    left: x's right singular vectors, as columns. sizes: the singular values, squared and divided by n.
    projected: left' x'y / n.
    """

    mean: Float[np.ndarray, " p"]
    scale: Float[np.ndarray, " p"]
    center: Float[np.ndarray, " q"]
    left: Float[np.ndarray, "p r"]
    sizes: Float[np.ndarray, " r"]
    projected: Float[np.ndarray, "r q"]

    @classmethod
    def of(cls, x: Float[np.ndarray, "n p"], y: Float[np.ndarray, "n q"]) -> "_Ridge":
        (mean, scale), center = mean_and_scale(x), y.mean(axis=0)
        _, sizes, right = np.linalg.svd(((x - mean) / scale) / math.sqrt(len(x)), full_matrices=False)
        kept = sizes > max(x.shape) * np.finfo(np.float64).eps * max(sizes.max(initial=0), 1.0)
        left, sizes = right[kept].T, sizes[kept] ** 2
        return cls(mean, scale, center, left, sizes, left.T @ ((x - mean) / scale).T @ (y - center) / len(x))

    def map(self, penalty: float) -> Map:
        """The map of this penalty. An infinite one leaves y's mean."""
        factors = self.projected / (self.sizes + penalty)[:, None]
        return lambda x: self.center + ((x - self.mean) / self.scale) @ self.left @ factors


def _best_linear(fitted: Part, validation: Part) -> tuple[Map, float]:
    """(the linear map with the least squared error on validation, its penalty)."""
    ridge, (x, y) = _Ridge.of(*fitted), validation
    errors = [float(np.mean((y - ridge.map(penalty)(x)) ** 2)) for penalty in PENALTIES]
    best = PENALTIES[int(np.argmin(errors))]
    return ridge.map(best), best


def _in_sample_nats(x: Float[np.ndarray, "n p"], y: Float[np.ndarray, "n q"]) -> float:
    """tr Cov(y) minus the least mean squared error of linear maps on these rows."""
    left = y - _Ridge.of(x, y).map(0.0)(x)
    return float(y.var(axis=0, ddof=1).sum() - np.sum(left**2) / len(y))


def _linear(fitted: Part, validation: Part, seed: int, on_progress: OnProgress | None) -> tuple[Map, str]:
    predict, penalty = _best_linear(fitted, validation)
    chosen = "a constant map" if penalty == math.inf else f"a linear map, L2 penalty {penalty:.3g}"
    return predict, f"{chosen} (validation's choice), fitted on {len(fitted[0]):,} rows"


def _mlp(fitted: Part, validation: Part, seed: int, on_progress: OnProgress | None) -> tuple[Map, str]:
    """An MLP of what the best linear map leaves, so that the family contains all linear maps."""
    linear, _ = _best_linear(fitted, validation)
    rest = fit_mlp_map(
        fitted[0],
        fitted[1] - linear(fitted[0]),
        validation_features=validation[0],
        validation_targets=validation[1] - linear(validation[0]),
        max_steps=Evaluate.mlp_steps,
        seed=seed,
        on_progress=on_progress,
    )
    widths = ", ".join(map(str, HIDDEN))
    words = f"the sum of a linear map and of an MLP of {widths} units, fitted on {len(fitted[0]):,} rows"
    return lambda x: linear(x) + rest(x), words


@dataclass(frozen=True)
class Family:
    """A family of maps.

    fit: (fit part, validation, seed, on_progress) → a map of it, and its words.
    in_sample_nats: (x, y) → tr Cov(y) minus the least mean squared error of the family on these rows; None if it is not
        known, because the error is not convex.
    """

    fit: Callable[[Part, Part, int, OnProgress | None], tuple[Map, str]]
    in_sample_nats: Callable[[Float[np.ndarray, "n p"], Float[np.ndarray, "n q"]], float] | None


MAPS = {"linear": Family(_linear, _in_sample_nats), "mlp": Family(_mlp, None)}
