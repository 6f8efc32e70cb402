"""Usable information: the part of H(C) that a family of probes can predict from representations, with two ends.

I_V(h->C) = H(C) - inf over q in V of E[-log q(C|h)], for a family V of probes that contains p(c).
Source: Xu et al. 2020 (predictive V-information).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import entr

from mirigor_jax import checks, settings
from mirigor_jax.data.draws import parts_of, row_keys
from mirigor_jax.errors import InputError
from mirigor_jax.mi import api
from mirigor_jax.mi.confidence import fixed_bet_lower_bound, kl_lower_bound
from mirigor_jax.mi.labels import classes_of
from mirigor_jax.mi.results import UsableInformation
from mirigor_jax.mi.rows import Rows, check_labeled
from mirigor_jax.mi.usable_fit import LinearFamily, Problem, bends_of, clipped, minimize, minorant
from mirigor_jax.softmax import LinearProbe, fit_linear

UNSEEN, VALIDATION = 0.6, 0.1  # shares of the rows: for the ends, and for the choices of the first part
LEAST_NORM = 1e-3  # of a family, if the first part's own probe is flat
FLATTEST = 0.1  # added to the singular values of the pilot's weights, so that no direction of h is lost
ROOM = 1.2  # the family's norm over that of the first part's own probe
BETS = tuple(np.geomspace(1e-3, 10, 41).tolist())  # of the upper end, per nat
TOLERANCE = 2e-4  # nats. Gap of a certified minimum at which the solver stops


def usable_information(
    h: Any,
    labels: Any,
    *,
    confidence: float = settings.Arrays.confidence,
    rows: Rows = settings.Arrays.rows,
) -> UsableInformation:
    """Estimate the information about the class that linear probes can use, with a lower and an upper end.

    The encoder must not have been trained or selected on these rows or their labels: otherwise neither end holds.
    The result is about a population: its class frequencies p(c) are exactly those of `labels`, and its images are
    independent given their class. The rows must be a sample of it, without copies or two views of one image.
    Rows are split 40 : 60 within classes, by random numbers that depend on a row's number alone. The first part fits a
    pilot probe, whose weights give a map z = T(h), and a probe on z, whose largest weight gives the norm of the family
    V: all probes softmax(log p + W z) with |w_k| <= norm and |z| <= reach. It then is fixed. The second part, the
    unseen rows, gives both ends, each at half of the risk. The lower end is a betting limit of the loss of the probe
    on z. The upper end bets against the best probe of V, which nobody knows: V's least possible gain on the unseen rows
    is a convex problem, and its minimum is certified. An upper end is about V alone: other probes may use more.

        print(mi.usable_information(h, labels))

    Args:
        h: (n, d) numbers, an array of any framework. At least 10 rows of every class.
        labels: (n,) integers, strings or bools. The class of each row.
        confidence: in [0.5, 1). Confidence that both ends hold.
        rows: "checked": if rows look dependent given their class, as neighbors in a video or many copies do, the ends
            are withheld; a few copies are left out. "independent": you state that rows are independent draws,
            whatever they look like.

    Returns:
        The `UsableInformation`, in bits, with the pointwise information of every unseen row.

    Raises:
        InputError: lengths differ, values are NaN or not numbers, there is only one class, a class has too few rows,
            or an option is out of its limits.

    Source: Xu et al. 2020; Ethayarajh et al. 2022 (pointwise); Waudby-Smith & Ramdas 2023 (betting).
    """
    checks.confidence(confidence)
    classes, _ = classes_of(labels)
    representations = api.as_rows(h, "h")
    if len(representations) != len(classes):
        raise InputError(f"h has {len(representations):,} rows and labels {len(classes):,}: expected one label a row")
    fit, validation, unseen = parts_of(classes, row_keys(len(classes)), validation=VALIDATION, test=UNSEEN)
    found = check_labeled(representations, classes, unseen, rows)
    unseen = unseen[~found.copies]
    frequencies = np.bincount(classes) / len(classes)
    family, weights = fit_family(
        representations[fit], classes[fit], representations[validation], classes[validation], frequencies
    )
    ends = Ends.of(
        family, weights, representations[validation], classes[validation], classes[unseen], confidence=confidence
    )
    losses, most = ends.most(representations[unseen], classes[unseen])
    by_betting, by_kl = ends.least(representations[unseen], classes[unseen])
    names = np.unique(checks.labels(labels)).tolist()
    entropy = float(entr(frequencies).sum())
    pointwise = -losses - family.log_p[classes[unseen]]
    result = UsableInformation(
        family="linear",
        value_bits=max(0.0, float(np.mean(ends.weights[classes[unseen]] * pointwise))) / math.log(2),
        lower_bits=max(0.0, entropy - most) / math.log(2),
        upper_bits=(entropy - by_betting) / math.log(2),
        kl_upper_bits=(entropy - by_kl) / math.log(2),
        confidence=confidence,
        entropy_bits=entropy / math.log(2),
        frequencies=dict(zip(names, frequencies.tolist(), strict=True)),
        norm=family.norm,
        reach=family.reach,
        largest_loss_nats=float(family.largest_losses.max()),
        rows=unseen,
        pointwise_bits=pointwise / math.log(2),
    )
    return found.applied_to(result)


def fit_family(
    h: Float[np.ndarray, "n d"],
    classes: Int[np.ndarray, " n"],
    validation: Float[np.ndarray, "m d"],
    validation_classes: Int[np.ndarray, " m"],
    frequencies: Float[np.ndarray, " c"],
) -> tuple[LinearFamily, Float[np.ndarray, "e c"]]:
    """A family of linear probes, and the weights of one probe in it, from the rows of the first part.

    A pilot probe's weights A (d, c) on standardized columns give the map: the square root of A A' + 0.01 I. Directions
    that the pilot does not use become short, so a small norm and a small reach hold all good probes: the ends widen
    with the product of both.
    """

    def fitted(part: np.ndarray, judged: np.ndarray) -> LinearProbe:
        return fit_linear(
            part,
            classes,
            len(frequencies),
            l2=settings.Evaluate.l2,
            validation_features=judged,
            validation_labels=validation_classes,
        )

    pilot = fitted(h, validation)
    directions, sizes, _ = np.linalg.svd(pilot.kernel, full_matrices=True)
    sizes = np.hypot(np.pad(sizes, (0, len(directions) - len(sizes))), FLATTEST)
    root = directions * sizes @ directions.T
    unclipped = LinearFamily(np.log(frequencies), pilot.mean, pilot.scale, root, np.inf, 1.0, 0.0)
    lengths = np.linalg.norm(unclipped.map(h)[:, :-1], axis=1)
    clip = float(np.median(lengths) or lengths.mean() or 1.0)
    z, judged = (clipped(unclipped.map(part)[:, :-1], clip) for part in (h, validation))
    probe = fitted(z, judged)
    kernel = probe.kernel / probe.scale[:, None]
    bias = probe.bias - probe.mean @ kernel - unclipped.log_p
    kernel, bias = kernel - kernel.mean(axis=1, keepdims=True), bias - bias.mean()  # which changes no probability
    longest, largest = float(np.linalg.norm(kernel, axis=0).max()), float(np.abs(bias).max())
    # The constant at which the product of norm and reach is least.
    constant = float(np.clip(math.sqrt(clip * largest / longest), clip / 10, clip)) if longest > 0 else clip
    weights = np.vstack([kernel, bias[None, :] / constant])
    norm = max(LEAST_NORM, ROOM * float(np.linalg.norm(weights, axis=0).max()))
    family = LinearFamily(unclipped.log_p, pilot.mean, pilot.scale, root, clip, constant, norm)
    return family, weights * _strength(family, family.map(validation), validation_classes, weights)


def _strength(
    family: LinearFamily,
    z: Float[np.ndarray, "n e"],
    classes: Int[np.ndarray, " n"],
    weights: Float[np.ndarray, "e c"],
) -> float:
    """The factor of the weights, from 0 to ROOM, at which the mean loss on these rows is least."""
    from scipy.optimize import minimize_scalar  # here, because the import takes a tenth of a second

    return float(
        minimize_scalar(lambda t: family.losses(z, classes, t * weights).mean(), bounds=(0, ROOM), method="bounded").x
    )


@dataclass(frozen=True)
class Ends:
    """Limits of a family's loss on unseen rows. All but the classes of those rows is fixed before they are seen.

    family: the probes.
    probe: the weights of one of them.
    weights: of each class's rows, p_c n / n_c, so that a mean over the rows is about p(c) if n_c are other counts.
    risk: the probability with which each end may fail.
    bet: of the lower end, per nat of weighted loss.
    minorant_bet: of the upper end, per nat of weighted loss.
    """

    family: LinearFamily
    probe: Float[np.ndarray, "e c"]
    weights: Float[np.ndarray, " c"]
    risk: float
    bet: float
    minorant_bet: float

    @classmethod
    def of(
        cls,
        family: LinearFamily,
        probe: Float[np.ndarray, "e c"],
        validation: Float[np.ndarray, "m d"],
        validation_classes: Int[np.ndarray, " m"],
        unseen_classes: Int[np.ndarray, " n"],
        *,
        confidence: float,
    ) -> "Ends":
        """Ends that together hold at `confidence`, with the bets that suit the probe's losses on validation.

        Raises InputError if a class has no unseen row.
        """
        counts, n = np.bincount(unseen_classes, minlength=len(family.log_p)), len(unseen_classes)
        risk = 0.5 * (1 - confidence)
        if counts.min() == 0:
            raise InputError(
                "a class has 0 unseen rows that are no copies of others: expected 1 or more; give more rows, or drop it"
            )
        weights = np.exp(family.log_p) * n / counts
        losses = family.losses(family.map(validation), validation_classes, probe)
        # Few rows may show no spread at all; 1 / n stands for a nat in one of n rows.
        variance = max(float(np.var(weights[validation_classes] * losses)), 1 / n)
        bet = math.sqrt(2 * math.log(1 / risk) / (n * variance))

        def expected(minorant_bet: float) -> float:
            """The limit that the upper end would use if the best probe lost what this probe loses on validation."""
            bets = minorant_bet * weights
            bends = bends_of(bets, family.largest_losses)
            gains = minorant(losses, bets[validation_classes], bends[validation_classes])[0]
            return cls(family, probe, weights, risk, bet, minorant_bet).end_of_bets(gains.mean() / minorant_bet, n)

        return cls(family, probe, weights, risk, bet, max(BETS, key=expected))

    def most(
        self, h: Float[np.ndarray, "n d"], classes: Int[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, " n"], float]:
        """The probe's loss of each unseen row, and an upper limit of its expectation, so of the family's least loss."""
        losses = self.family.losses(self.family.map(h), classes, self.probe)
        squares = np.sum(self.probe**2, axis=0)
        apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * self.probe.T @ self.probe, 0)).max(axis=0)
        high = float(np.max(self.weights * (self.family.reach * apart * (1 + 1e-6) - self.family.log_p)))  # rounding
        weighted = self.weights[classes] * losses
        return losses, -fixed_bet_lower_bound(-weighted, -high, 0.0, 1 - self.risk, self.bet)

    def least(self, h: Float[np.ndarray, "n d"], classes: Int[np.ndarray, " n"]) -> tuple[float, float]:
        """Two lower limits of the family's least expected loss: by bets against its best probe, and by KL.

        Let q be the best probe of the family, which does not depend on these rows, l_i its weighted losses, and L the
        mean of their expectations. The expectation of prod(1 + bet l_i) is at most (1 + bet L)^n, and the minorant's
        sum is at most the product's logarithm. By Markov's inequality that sum is below n log(1 + bet L) + log(1/risk),
        except with probability `risk`, and so is its least value over the family. The least mean loss is at most q's,
        for which Hoeffding's bound holds.
        """
        z, n = self.family.map(h), len(h)
        plain = Problem(z, classes, self.family.log_p, self.weights, self.family.norm)
        mean = minimize(plain, tolerance=TOLERANCE)
        bent = self.against_the_best(plain)
        gain = minimize(bent, tolerance=TOLERANCE, start=mean.weights)
        return (
            self.end_of_bets(gain.lowest, n),
            kl_lower_bound(
                max(0.0, mean.lowest), n, float(np.max(self.weights * self.family.largest_losses)), 1 - self.risk
            ),
        )

    def against_the_best(self, plain: Problem) -> Problem:
        """The problem with the minorant in place of the loss."""
        return plain._replace(
            bet=self.minorant_bet, bends=bends_of(self.minorant_bet * self.weights, self.family.largest_losses)
        )

    def end_of_bets(self, least: float, n: int) -> float:
        """The lower limit of the least expected loss from the least mean of minorant / bet over n rows, or less."""
        return max(0.0, math.expm1(self.minorant_bet * least - math.log(1 / self.risk) / n) / self.minorant_bet)
