"""Families of probes, and the probe of each that is fitted on the first part. It is fixed before unseen rows are read.

A family V holds the class frequencies p(c) themselves, so H(C) minus its least expected log-loss is not negative.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax

from mirigor_jax import checks, settings
from mirigor_jax.errors import InputError
from mirigor_jax.mi.usable_fit import LinearFamily, clipped, row_losses, standardized
from mirigor_jax.mlp import MLPProbe, fit_mlp
from mirigor_jax.softmax import Choice, LinearProbe, fit_linear, mean_and_scale

LEAST_NORM = 1e-3  # of a family, if the first part's own probe is flat
FLATTEST = 0.1  # added to the singular values of the pilot's weights, so that no direction of h is lost
# L2 penalties of the pilot probe and of the second probe (`_linear`); validation chooses one for each. On few rows,
# smaller ones give overconfident probes.
PENALTIES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
ROOM = 1.2  # the family's norm over that of the first part's own probe
RANGE_PRICE = 0.6  # nats, over validation's rows: log(1/risk) over the unseen rows, which are six times as many
WINDOWS = np.geomspace(0.1, 50, 28)  # nats, of an MLP's outputs
NO_UPPER = "no upper end is known, because the loss is not convex in an MLP's weights"


class FirstPart(NamedTuple):
    """The rows that choose a family and one probe of it.

    h, classes: rows to fit on. validation, validation_classes: rows to choose on.
    frequencies: p(c).
    """

    h: Float[np.ndarray, "n d"]
    classes: Int[np.ndarray, " n"]
    validation: Float[np.ndarray, "m d"]
    validation_classes: Int[np.ndarray, " m"]
    frequencies: Float[np.ndarray, " c"]


class BoundedProbe(Protocol):
    """A probe q(c|h) of a family. Its losses -log q(c|h) are bounded. Nats.

    log_p: log p(c).
    family: what the upper end needs; None if the family has no upper end.
    weights: the probe's own W in the family, from which the search for the best one starts; None if there is no family.
    note: the reason if there is no upper end.
    """

    @property
    def log_p(self) -> Float[np.ndarray, " c"]: ...

    @property
    def family(self) -> LinearFamily | None: ...

    @property
    def weights(self) -> Float[np.ndarray, "e c"] | None: ...

    @property
    def note(self) -> str: ...

    @property
    def words(self) -> str:
        """The family in words."""

    @property
    def largest_losses(self) -> Float[np.ndarray, " c"]:
        """The most that the loss of this probe can be for each class, over all h."""

    def scores(self, h: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
        """log q(c|h) of each class, up to a constant of each row."""

    def losses(self, h: Float[np.ndarray, "n d"], classes: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]: ...


@dataclass(frozen=True)
class BoundedLinear:
    """The probe with these weights in a linear family."""

    family: LinearFamily
    weights: Float[np.ndarray, "e c"]
    note: str = ""

    @property
    def log_p(self) -> Float[np.ndarray, " c"]:
        return self.family.log_p

    @property
    def words(self) -> str:
        family = self.family
        return (
            f"linear probes softmax(ln p + W z), ‖w_k‖ ≤ {family.norm:.3g}, on z = T(h), ‖z‖ ≤ {family.reach:.3g}, "
            f"with a log-loss of at most {family.largest_losses.max():.3g} nats a row"
        )

    @property
    def largest_losses(self) -> Float[np.ndarray, " c"]:
        """-log q(c|h) <= -log p_c + max_j (clip |k_j - k_c| + b_j - b_c), for the kernel's columns k and the biases b.

        log N in place of -log p_c would be too little for a class rarer than 1/N.
        """
        kernel, bias = self.weights[:-1], self.family.constant * self.weights[-1]
        squares = np.sum(kernel**2, axis=0)
        apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * kernel.T @ kernel, 0))
        # The differences of squares are rounded.
        return (self.family.clip * apart * (1 + 1e-6) + bias[:, None] - bias).max(axis=0) - self.log_p

    def scores(self, h: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
        return self.log_p + self.family.map(h) @ self.weights

    def losses(self, h: Float[np.ndarray, "n d"], classes: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return row_losses(self.scores(h), classes)


@dataclass(frozen=True)
class BoundedMLP:
    """The probe softmax(log p + f(h)), for an MLP f of standardized h with outputs from -window to window.

    probe: the MLP. mean, scale: of each column of h.
    """

    probe: MLPProbe
    log_p: Float[np.ndarray, " c"]
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    window: float
    family: None = None
    weights: None = None
    note: str = NO_UPPER

    @property
    def words(self) -> str:
        widths = ", ".join(map(str, self.probe.classifier.hidden))
        return (
            f"MLPs of {widths} units on standardized h, with outputs from {-self.window:.3g} to {self.window:.3g}, and "
            f"a log-loss of at most {self.largest_losses.max():.3g} nats a row"
        )

    @property
    def largest_losses(self) -> Float[np.ndarray, " c"]:
        return 2 * self.window - self.log_p

    def scores(self, h: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
        outputs = _outputs(self.probe, self.log_p, standardized(h, self.mean, self.scale))
        return self.log_p + np.clip(outputs, -self.window, self.window)

    def losses(self, h: Float[np.ndarray, "n d"], classes: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return row_losses(self.scores(h), classes)


def _outputs(probe: MLPProbe, log_p: Float[np.ndarray, " c"], x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
    """f by the MLP's scores at its temperature, centered between its extremes. 0 stands for p(c)."""
    outputs = log_softmax(probe.logits(x).astype(np.float64) / probe.temperature, axis=1) - log_p
    return outputs - (outputs.max(axis=1, keepdims=True) + outputs.min(axis=1, keepdims=True)) / 2


def _linear(part: FirstPart) -> BoundedLinear:
    """A family of linear probes, and one probe in it.

    A pilot probe's weights A (d, c) on standardized columns give the map: the square root of A A' + 0.01 I. Directions
    that the pilot does not use become short, so a small norm and a small reach hold all good probes: the ends widen
    with the product of both. A second probe, on mapped and clipped rows, gives the norm: rows longer than the median
    are shortened, so the pilot's own weights would be too small for them. Validation chooses the penalties by log-loss,
    because the ends bound a log-loss. A choice by accuracy may take a penalty whose probe is overconfident, with
    weights that are several times as long. The second probe's weights are then scaled by the factor that is best on
    validation; if that factor is below 1, the norm shrinks by it too.
    """
    log_p, (mean, scale) = np.log(part.frequencies), mean_and_scale(part.h)
    x, judged = (standardized(rows, mean, scale) for rows in (part.h, part.validation))
    pilot = _fitted(part, x, judged, "one_standard_error")
    # Constant columns are left out of the map. Otherwise rounding would put values of about 1e-17 into their mapped
    # columns, and the second probe would give these columns weights of about 1e17.
    varies = x.std(axis=0) > 0.5  # standardized columns have a standard deviation of 1, and constant ones of 0
    root = np.zeros((x.shape[1], x.shape[1]))
    root[np.ix_(varies, varies)] = _root((pilot.kernel / pilot.scale[:, None])[varies])
    x, judged = x @ root, judged @ root
    lengths = np.linalg.norm(x, axis=1)
    clip = float(np.median(lengths) or lengths.mean() or 1.0)
    probe = _fitted(part, clipped(x, clip), clipped(judged, clip), "log_loss")
    kernel = probe.kernel / probe.scale[:, None]
    bias = probe.bias - probe.mean @ kernel - log_p
    kernel, bias = kernel - kernel.mean(axis=1, keepdims=True), bias - bias.mean()  # which changes no probability
    longest, largest = float(np.linalg.norm(kernel, axis=0).max()), float(np.abs(bias).max())
    # The constant at which the product of norm and reach is least.
    constant = float(np.clip(math.sqrt(clip * largest / longest), clip / 10, clip)) if longest > 0 else clip
    weights = np.vstack([kernel, bias[None, :] / constant])
    norm = ROOM * float(np.linalg.norm(weights, axis=0).max())
    family = LinearFamily(log_p, mean, scale, root, clip, constant, max(LEAST_NORM, norm))
    strength = _strength(family, part, weights)
    family = replace(family, norm=max(LEAST_NORM, norm * min(1, strength)))
    return BoundedLinear(family, weights * strength)


def _root(weights: Float[np.ndarray, "d c"]) -> Float[np.ndarray, "d d"]:
    """The square root of A A' + FLATTEST^2 I."""
    directions, sizes, _ = np.linalg.svd(weights, full_matrices=True)
    sizes = np.hypot(np.pad(sizes, (0, len(directions) - len(sizes))), FLATTEST)
    return directions * sizes @ directions.T


def _fitted(
    part: FirstPart, x: Float[np.ndarray, "n e"], judged: Float[np.ndarray, "m e"], chosen_by: Choice
) -> LinearProbe:
    return fit_linear(
        x,
        part.classes,
        len(part.frequencies),
        l2=PENALTIES,
        chosen_by=chosen_by,
        validation_features=judged,
        validation_labels=part.validation_classes,
    )


def _strength(family: LinearFamily, part: FirstPart, weights: Float[np.ndarray, "e c"]) -> float:
    """The factor of the weights, from 0 to ROOM, at which the mean loss on validation is least, with a price of range.

    A lower end pays for the largest loss that a probe may have: RANGE_PRICE nats a nat.
    """
    from scipy.optimize import minimize_scalar  # here, because the import takes a tenth of a second

    z, price = family.map(part.validation), RANGE_PRICE / len(part.validation)

    def cost_nats(factor: float) -> float:
        probe = BoundedLinear(family, factor * weights)
        losses = family.losses(z, part.validation_classes, probe.weights)
        return float(losses.mean()) + price * float(probe.largest_losses.max())

    return float(minimize_scalar(cost_nats, bounds=(0, ROOM), method="bounded").x)


def _mlp(part: FirstPart, mlp_steps: int = settings.Evaluate.mlp_steps) -> BoundedMLP:
    """An MLP that validation stops. Its window has the least mean loss on validation, with a price of range.

    mlp_steps: largest number of steps of the fit.
    """
    checks.whole("mlp_steps", mlp_steps, 1)
    log_p, (mean, scale) = np.log(part.frequencies), mean_and_scale(part.h)
    x, judged = (standardized(rows, mean, scale) for rows in (part.h, part.validation))
    probe = fit_mlp(
        x,
        part.classes,
        len(part.frequencies),
        validation_features=judged,
        validation_labels=part.validation_classes,
        max_steps=mlp_steps,
    )
    price = RANGE_PRICE / len(judged)

    def cost_nats(limited: BoundedMLP) -> float:
        losses = limited.losses(part.validation, part.validation_classes)
        return float(losses.mean()) + price * float(limited.largest_losses.max())

    limited = (BoundedMLP(probe, log_p, mean, scale, float(window)) for window in WINDOWS)
    return min(limited, key=cost_nats)


# Each family's name, and the function that fits one of its probes.
# The function's keywords are the options of the fit.
FAMILIES: dict[str, Callable[..., BoundedProbe]] = {"linear": _linear, "mlp": _mlp}


def fit_probe(family: str, part: FirstPart, **options: Any) -> BoundedProbe:
    """Fit a probe of this family. Raises InputError if there is no such family, or if it has no such option."""
    if family not in FAMILIES:
        raise InputError(f"family = {family!r}: expected {' or '.join(map(repr, FAMILIES))}")
    for option, value in options.items():
        if option not in inspect.signature(FAMILIES[family]).parameters:
            raise InputError(f"{option}={value} is no option of family={family!r}; leave it out")
    return FAMILIES[family](part, **options)
