"""Usable information: the part of H(C) that a family of probes can predict from representations, with certified ends.

I_V(h->C) = H(C) - inf over q in V of E[-log q(C|h)], for a family V of probes that contains p(c).
Source: Xu et al. 2020 (predictive V-information).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import entr, log_softmax

from mirigor_jax import checks, settings
from mirigor_jax.data.draws import parts_of, row_keys
from mirigor_jax.errors import InputError
from mirigor_jax.fitting import OnProgress, StepCounter
from mirigor_jax.mi.confidence import fixed_bet_lower_bound, kl_lower_bound
from mirigor_jax.mi.families import BoundedProbe, FirstPart, fit_probe
from mirigor_jax.mi.labeled import LEAST_ROWS, check_rows, classes_of, representations_of
from mirigor_jax.mi.rows import Rows, check_labeled
from mirigor_jax.mi.usable_fit import LinearFamily, Minimum, Problem, bends_of, minimize, minorant, row_losses
from mirigor_jax.mi.usable_results import UsableInformation

UNSEEN, VALIDATION = 0.6, 0.1  # shares of the rows: for the ends, and for the choices of the first part
BETS = np.geomspace(1e-3, 10, 41)  # against the best probe, per nat
TOLERANCE = 1e-3  # nats. Gap of a certified minimum at which the solver stops
# Largest number of solver steps in float32, and again in float64. Thirty times as many lowered the upper end by only
# 0.003 bits and took two minutes (11,000 rows, 64 classes, a best probe with large weights).
STEPS = 100
ALL_SEEN = "the ends are withheld, as the encoder has seen all rows; give rows that it was not trained or chosen on"


def usable_information(
    h: Any,
    labels: Any,
    *,
    family: str = "linear",
    seen: Any = settings.Arrays.seen,
    confidence: float = settings.Arrays.confidence,
    rows: Rows = settings.Arrays.rows,
    mlp_steps: int | None = None,
    on_progress: OnProgress | None = None,
) -> UsableInformation:
    """Estimate the information about the class that a family of probes can use, with certified ends.

    Both ends are computed from unseen rows: neither the encoder nor any probe was trained or chosen on them. Say in
    `seen` which rows the encoder has seen. The result is about a population: its class frequencies p(c) are exactly
    those of the rows that the encoder has not seen, and its images are independent given their class. The rows must be
    a sample of it, without copies or two views of one image.
    Rows that the encoder has not seen are split 40 : 60 within classes, by random numbers that depend on a row's number
    alone. The first part fits a pilot probe, whose weights give a map z = T(h), and a probe on z, whose largest weight
    gives the norm of the family V: all probes softmax(log p + W z) with |w_k| <= norm and |z| <= reach. It then is
    fixed. The second part, the unseen rows, gives both ends, each for half of the error probability 1 - confidence. The
    lower end is a betting limit of the loss of the probe on z. The upper end bets against the best probe of V, which
    nobody knows: V's least possible gain on the unseen rows is a convex problem, and its minimum is certified. An upper
    end is about V alone: other probes may use more. An MLP's loss is not convex, so that family has only a lower end.

        print(mi.usable_information(h, labels))

    Args:
        h: (n, d) numbers, an array of any framework. At least 10 rows of every class.
        labels: (n,) integers, strings or bools. The class of each row.
        family: "linear", or "mlp": three hidden layers, with only a lower end.
        seen: (n,) bools: the rows that the encoder was trained or chosen on. They only help to fit the probe. Or one
            bool for all rows; if it has seen all, the ends are withheld.
        confidence: in [0.5, 1). Confidence that all ends hold.
        rows: "checked": if rows look dependent given their class, as neighbors in a video or many copies do, the ends
            are withheld; a few copies are left out. "independent": you state that rows are independent draws,
            whatever they look like.
        mlp_steps: largest number of steps of an MLP's fit. None: the family's own. Other families do not take it.
        on_progress: called as on_progress(step, steps, note) after the check of the rows, the fit and the reading.

    Returns:
        The `UsableInformation`, in bits, with the pointwise information of every unseen row.

    Raises:
        InputError: lengths differ, values are NaN or not numbers, there is only one class, a class has too few rows,
            or an option is out of its limits.

    Source: Xu et al. 2020; Ethayarajh et al. 2022 (pointwise); Waudby-Smith & Ramdas 2023 (betting).
    """
    checks.confidence(confidence)
    division = Division.of(labels, seen)
    [representations] = representations_of([h], labels)
    found = check_labeled(representations, division.classes, division.unseen, rows, part="unseen")
    counter = StepCounter(on_progress, 3)
    counter.count("rows checked")
    options = {} if mlp_steps is None else {"mlp_steps": mlp_steps}
    result = read_checked(
        representations, division, confidence, family=family, options=options, copies=found.copies, counter=counter
    )
    return found.applied_to(result)


def read_checked(
    h: Float[np.ndarray, "n d"],
    division: "Division",
    confidence: float,
    *,
    family: str = "linear",
    options: Mapping[str, Any] = MappingProxyType({}),
    copies: Bool[np.ndarray, " u"] | None = None,
    counter: StepCounter,
) -> UsableInformation:
    """The usable information of rows that are known to be independent.

    options: of the family's fit.
    copies: whether to leave out each unseen row; None if all are kept.
    counter: counts the two steps of this function: the fit and the reading of the unseen rows.
    """
    unseen = division.unseen if copies is None else division.without(copies)
    probe = fit_on(h, division, family, **options)
    counter.count("probe fitted")
    result = division.allowed(read_unseen(h, division, unseen, probe, confidence).result)
    counter.count(f"{result.value_bits:.3f} bits")
    return result


def read_attributes(
    h: Float[np.ndarray, "n d"],
    attributes: Int[np.ndarray, "n a"],
    value_names: Sequence[Sequence[str]],
    confidence: float,
    *,
    counter: StepCounter,
) -> UsableInformation:
    """The usable information of independent attributes by the product of their probes.

    The rows are known to be independent draws, which the encoder has not seen.

    V holds the products of one linear probe for each attribute. The log-loss of a product is the sum of the probes'
    log-losses, so I_V is the sum of the attributes' usable information. Each of d attributes has ends at the confidence
    1 - (1 - confidence) / d, so all of them, and their sums, hold together at `confidence`.

    attributes: from 0. value_names: of each attribute's values, which the class's name joins by ", ".
    counter: counts one step for each attribute.
    Raises InputError for a value of fewer than LEAST_ROWS rows.
    """
    n, each = len(attributes), 1 - (1 - confidence) / attributes.shape[1]
    # One split for all attributes, so that each row's pointwise information is a sum over attributes.
    split = parts_of(np.zeros(n, int), row_keys(n), validation=VALIDATION, test=UNSEEN)
    parts, frequencies = [], np.ones(1)
    for a, names in zip(attributes.T, value_names, strict=True):
        counts = np.bincount(a, minlength=len(names))
        if (
            min(counts.min(), *(np.bincount(a[of], minlength=len(names)).min() * LEAST_ROWS for of in split))
            < LEAST_ROWS
        ):
            raise InputError(
                f"value {names[int(counts.argmin())]!r} of an attribute has {counts.min()} rows, expected {LEAST_ROWS} "
                "or more of every value; give more rows"
            )
        division = Division(list(names), a, counts / n, *split, all_seen=False)
        probe = fit_on(h, division, "linear")
        parts.append(read_unseen(h, division, division.unseen, probe, each).result)
        frequencies = np.outer(frequencies, division.frequencies).ravel()
        counter.count(f"{sum(part.value_bits for part in parts):.3f} bits")

    def total(name: str) -> Any:
        return sum(getattr(part, name) for part in parts)

    occurring = np.unique(attributes, axis=0)
    sizes = [len(names) for names in value_names]
    joined = (", ".join(names[v] for names, v in zip(value_names, row, strict=True)) for row in occurring)
    return UsableInformation(
        family=f"products of {len(parts)} linear probes, one for each attribute",
        value_bits=total("value_bits"),
        lower_bits=total("lower_bits"),
        upper_bits=total("upper_bits"),
        kl_upper_bits=total("kl_upper_bits"),
        confidence=confidence,
        entropy_bits=total("entropy_bits"),
        frequencies=dict(zip(joined, frequencies[np.ravel_multi_index(occurring.T, sizes)].tolist(), strict=True)),
        norm=None,
        reach=None,
        largest_loss_nats=total("largest_loss_nats"),
        rows=split[2],
        pointwise_bits=total("pointwise_bits"),
        predicted=np.array([", ".join(row) for row in zip(*(part.predicted for part in parts), strict=True)]),
        prediction_entropy_bits=total("prediction_entropy_bits"),
    )


@dataclass(frozen=True)
class Division:
    """The part of each row. It depends on labels and `seen` alone, not on the encoder.

    names: of the classes. classes: of each row, from 0.
    frequencies: p(c), of the rows that the encoder has not seen.
    fit, validation, unseen: the rows of each part. Rows that the encoder has seen are in `fit`.
    all_seen: whether the encoder has seen every row. They are then split as if it had seen none.
    """

    names: list[Any]
    classes: Int[np.ndarray, " n"]
    frequencies: Float[np.ndarray, " c"]
    fit: Int[np.ndarray, " f"]
    validation: Int[np.ndarray, " v"]
    unseen: Int[np.ndarray, " u"]
    all_seen: bool

    @classmethod
    def of(cls, labels: Any, seen: Any) -> "Division":
        """Raises InputError for labels of few rows or one class, and for `seen` of another length or type."""
        named = classes_of(labels)
        classes, names = named.classes, named.names.tolist()
        given = checks.to_numpy(seen, "seen")
        if given.dtype.kind != "b" or given.shape not in ((), classes.shape):
            raise InputError(
                f"seen is of dtype {given.dtype}, shape {given.shape}: expected one bool, or ({len(classes)},) bools"
            )
        all_seen = bool(given.all())
        known = np.zeros(len(classes), bool) if all_seen else np.broadcast_to(given, classes.shape)
        own = np.flatnonzero(~known)
        counts = np.bincount(classes[own], minlength=len(names))
        check_rows(named.names, counts, "that the encoder has not seen")
        parts = parts_of(classes[own], row_keys(len(classes))[own], validation=VALIDATION, test=UNSEEN)
        fit, validation, unseen = (own[part] for part in parts)
        fit = np.union1d(fit, np.flatnonzero(known))
        return cls(names, classes, counts / len(own), fit, validation, unseen, all_seen)

    def without(self, copies: Bool[np.ndarray, " u"]) -> Int[np.ndarray, " _"]:
        """The unseen rows that are no copies. Raises InputError if a class has none."""
        kept = self.unseen[~copies]
        counts = np.bincount(self.classes[kept], minlength=len(self.names))
        check_rows(np.array(self.names), counts, "that are unseen and no copies of others", 1)
        return kept

    def allowed(self, result: UsableInformation) -> UsableInformation:
        """The result without its ends if the encoder has seen all rows."""
        return result.without_ends(ALL_SEEN) if self.all_seen else result


def fit_on(h: Float[np.ndarray, "n d"], division: Division, family: str, **options: Any) -> BoundedProbe:
    """A probe of this family, from the rows of the first part.

    options: of the family's fit.
    Raises InputError if there is no such family, or if it has no such option.
    """
    fit, validation, classes = division.fit, division.validation, division.classes
    part = FirstPart(h[fit], classes[fit], h[validation], classes[validation], division.frequencies)
    return fit_probe(family, part, **options)


@dataclass(frozen=True)
class Read:
    """An encoder's usable information, and the values behind it, which a comparison reads too.

    probe: of the first part.
    weights: of each class.
    validation_losses, losses: of the probe, on validation and on the unseen rows; nats.
    best: of the probe's family; None if it has no upper end.
    """

    result: UsableInformation
    probe: BoundedProbe
    weights: Float[np.ndarray, " c"]
    validation_losses: Float[np.ndarray, " v"]
    losses: Float[np.ndarray, " u"]
    best: "Best | None"


class Best(NamedTuple):
    """The best probe of a family on the unseen rows.

    problem: the family's mean loss on the unseen rows. minimum: its certified minimum.
    losses: of each row, by the weights of the minimum.
    """

    family: LinearFamily
    problem: Problem
    minimum: Minimum
    losses: Float[np.ndarray, " n"]


def read_unseen(
    h: Float[np.ndarray, "n d"],
    division: Division,
    unseen: Int[np.ndarray, " u"],
    probe: BoundedProbe,
    confidence: float,
) -> Read:
    """Read the unseen rows once, by a probe of the first part and by the best probe of its family."""
    classes, validation, frequencies = division.classes[unseen], division.validation, division.frequencies
    bets = Bets.of(
        probe,
        probe.losses(h[validation], division.classes[validation]),
        division.classes[validation],
        class_weights(frequencies, classes),
        n=len(unseen),
        risk=(1 - confidence) / (1 if probe.family is None else 2),
    )
    scores = probe.scores(h[unseen])
    losses = row_losses(scores, classes)
    entropy, pointwise = float(entr(frequencies).sum()), -losses - probe.log_p[classes]
    result = UsableInformation(
        family=probe.words,
        value_bits=max(0.0, float(np.mean(bets.weights[classes] * pointwise))) / math.log(2),
        lower_bits=max(0.0, entropy - bets.most(losses, classes)) / math.log(2),
        upper_bits=None,
        kl_upper_bits=None,
        confidence=confidence,
        entropy_bits=entropy / math.log(2),
        frequencies=dict(zip(division.names, frequencies.tolist(), strict=True)),
        norm=None,
        reach=None,
        largest_loss_nats=float(probe.largest_losses.max()),
        rows=unseen,
        pointwise_bits=pointwise / math.log(2),
        predicted=np.asarray(division.names)[scores.argmax(axis=1)],
        prediction_entropy_bits=entr(np.exp(log_softmax(scores, axis=1))).sum(axis=1) / math.log(2),
        note=probe.note,
    )
    if probe.family is None:
        return Read(result, probe, bets.weights, bets.validation_losses, losses, None)
    problem = mean_loss(probe.family, h[unseen], classes, bets.weights)
    best = minimize(problem, tolerance=TOLERANCE, max_steps=STEPS, start=probe.weights)
    result = replace(
        result,
        upper_bits=(entropy - bets.least_by_betting(problem, best)) / math.log(2),
        kl_upper_bits=(entropy - bets.least_by_kl(best)) / math.log(2),
        norm=probe.family.norm,
        reach=probe.family.reach,
        largest_loss_nats=float(probe.family.largest_losses.max()),
    )
    found = Best(probe.family, problem, best, probe.family.losses(np.asarray(problem.z), classes, best.weights))
    return Read(result, probe, bets.weights, bets.validation_losses, losses, found)


def class_weights(frequencies: Float[np.ndarray, " c"], classes: Int[np.ndarray, " n"]) -> Float[np.ndarray, " c"]:
    """p_c n / n_c for each class, so that a mean over the rows is about p(c) if the counts n_c are others."""
    return frequencies * len(classes) / np.bincount(classes, minlength=len(frequencies))


def mean_loss(
    family: LinearFamily, h: Float[np.ndarray, "n d"], classes: Int[np.ndarray, " n"], weights: Float[np.ndarray, " c"]
) -> Problem:
    """The weighted mean loss of the family on these rows. weights: of each class."""
    return Problem.of_mean_loss(family.map(h), classes, family.log_p, weights[classes], family.norm)


@dataclass(frozen=True)
class Bets:
    """Limits of a family's loss on unseen rows. All but the classes of those rows is fixed before they are seen.

    Rows may be a fixed number of each class: every bet is fixed beforehand, so the expected capital is a product of
    terms 1 + bet (mean_c - m), which is largest if all classes have the same mean (the inequality of arithmetic and
    geometric means).
    probe: of the first part. validation_losses: its losses there.
    weights: of each class.
    n: number of unseen rows.
    risk: the probability with which each end may fail.
    bet: of the lower end, per nat of weighted loss.
    best_bet: of the upper end, against the family's best probe, per nat of weighted loss.
    """

    probe: BoundedProbe
    validation_losses: Float[np.ndarray, " v"]
    weights: Float[np.ndarray, " c"]
    n: int
    risk: float
    bet: float
    best_bet: float

    @classmethod
    def of(
        cls,
        probe: BoundedProbe,
        losses: Float[np.ndarray, " v"],
        classes: Int[np.ndarray, " v"],
        weights: Float[np.ndarray, " c"],
        *,
        n: int,
        risk: float,
    ) -> "Bets":
        """The bets that suit the probe's losses on validation, of these classes.

        To second order both limits depend on the losses' variance, not on their square: a bet b costs
        b variance / 2 + log(1/risk) / (n b) nats, where b stands for best_bet / (1 + best_bet mean) at the upper end.
        There, losses also pay for the minorant, so it is chosen from a grid.
        """
        # Few rows may show no spread at all; 1 / n stands for a nat in one of n rows.
        variance = max(float(np.var(weights[classes] * losses)), 1 / n)
        price = math.log(1 / risk) / n
        bet, best_bet = math.sqrt(2 * price / variance), 0.0
        if probe.family is not None:
            largest, per_row = probe.family.largest_losses, weights[classes]

            def expected(one: float) -> float:
                """The limit that the upper end would use if the best probe lost what this probe loses."""
                bends = bends_of(one * weights, largest)[classes]
                return math.expm1(float(minorant(losses, one * per_row, bends)[0].mean()) - price) / one

            best_bet = float(max(BETS, key=expected))
        return cls(probe, losses, weights, n, risk, bet, best_bet)

    def most(self, losses: Float[np.ndarray, " n"], classes: Int[np.ndarray, " n"]) -> float:
        """An upper limit of the expected loss of the probe with these losses, so of the family's least loss."""
        high = float(np.max(self.weights * self.probe.largest_losses))
        return -fixed_bet_lower_bound(-self.weights[classes] * losses, -high, 0.0, 1 - self.risk, self.bet)

    def least_by_betting(self, problem: Problem, best: Minimum) -> float:
        """A lower limit of the family's least expected loss, by bets against its best probe.

        Let q be that probe, which does not depend on these rows, l_i its weighted losses, and L the mean of their
        expectations. The expectation of prod(1 + bet l_i) is at most (1 + bet L)^n, and the minorant's sum is at most
        the product's logarithm. By Markov's inequality that sum is below n log(1 + bet L) + log(1/risk), except with
        probability `risk`, and so is its least value over the family.
        best: the minimum of the mean loss, to start from.
        """
        gain = minimize(self.against_the_best(problem), tolerance=TOLERANCE, max_steps=STEPS, start=best.weights)
        return self.end_of_gain(gain.lowest)

    def against_the_best(self, problem: Problem) -> Problem:
        """The problem with the minorant in place of the loss."""
        bends = bends_of(self.best_bet * self.weights, self._family.largest_losses)
        return problem._replace(bet=self.best_bet, bends=bends[problem.classes])

    def end_of_gain(self, least: float) -> float:
        """The lower limit of the least expected loss from the least mean of minorant / bet, or less."""
        return max(0.0, math.expm1(self.best_bet * least - math.log(1 / self.risk) / self.n) / self.best_bet)

    def least_by_kl(self, best: Minimum) -> float:
        """A simpler lower limit: the least mean loss is at most the best probe's, for which Hoeffding's bound holds."""
        high = float(np.max(self.weights * self._family.largest_losses))
        return kl_lower_bound(max(0.0, best.lowest), self.n, high, 1 - self.risk)

    @property
    def _family(self) -> LinearFamily:
        assert self.probe.family is not None  # callers ask only for families with an upper end
        return self.probe.family
