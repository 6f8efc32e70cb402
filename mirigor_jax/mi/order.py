"""The order of encoders by usable information, proven by bets on the same unseen rows."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mirigor_jax import checks, settings
from mirigor_jax.errors import InputError
from mirigor_jax.fitting import OnProgress, StepCounter
from mirigor_jax.mi.confidence import ROWS, interval_of
from mirigor_jax.mi.labeled import representations_of
from mirigor_jax.mi.rows import Rows, check_labeled
from mirigor_jax.mi.usable import Best, Division, Read, fit_on, read_unseen
from mirigor_jax.mi.usable_fit import bends_of, bracket, minimize, minorant
from mirigor_jax.mi.usable_results import PairOrder, UsableOrder

TOLERANCE = 2e-4  # nats. Gap at which the solver stops, if a proof is still open
LARGEST_STAKE = 0.9  # of a bet: the share of the capital that one row may cost
FACTORS = np.geomspace(1 / 8, 2, 9)  # of the bet that is best without a minorant


def compare_many(
    encoders: Mapping[str, Any],
    labels: Any,
    *,
    seen: Any = settings.Arrays.seen,
    confidence: float = settings.Arrays.confidence,
    rows: Rows = settings.Arrays.rows,
    on_progress: OnProgress | None = None,
) -> UsableOrder:
    """Compare encoders by usable information on the same unseen rows, and prove which holds more, pair by pair.

    Each encoder has its own family of linear probes, by the recipe of `usable_information`; all share the rows of each
    part. "A > B" is proven by a bet: if I_V of A were at most that of B, then B's best probe would lose no more than
    A's probe of the first part, and a capital that bets on the difference of their losses on each unseen row would
    reach 1/risk with probability `risk` at most. B's best probe is not known, so the capital is the least over B's
    family. The proof needs no H(C), and only the variance of the difference.
    Twenty encoders of 16,000 rows and 128 columns take about 150 seconds of one core.

        print(mi.compare_many({"A": h_a, "B": h_b, "C": h_c}, labels))

    Args:
        encoders: name -> (n, d) numbers, representations of the same images in the same order. Two or more.
        labels: (n,) integers, strings or bools. The class of each image.
        seen: as in `usable_information`: the rows that any of the encoders was trained or chosen on.
        confidence: in [0.5, 1). Confidence that all proven orders hold together. Each encoder's two ends hold at the
            same confidence, but not together with the orders or with other encoders' ends.
        rows: as in `usable_information`.
        on_progress: called as on_progress(step, steps, note) after every encoder and after every pair.

    Returns:
        The `UsableOrder`: each encoder's `UsableInformation`, and for each pair the proven order, in bits.

    Raises:
        InputError: as `usable_information` does, or there are fewer than two encoders.
    """
    checks.confidence(confidence)
    if len(encoders) < 2:
        raise InputError(f"encoders holds {len(encoders)}: expected two or more, by name")
    division = Division.of(labels, seen)
    # One encoder after the other, so that only one has a float64 copy.
    findings = [
        check_labeled(h, division.classes, division.unseen, rows, part="unseen")
        for h in _each_representation(encoders, labels)
    ]
    unseen = division.without(np.any([found.copies for found in findings], axis=0))
    counter = StepCounter(on_progress, len(encoders) * (len(encoders) + 1) // 2)
    read = []
    for name, h in zip(encoders, _each_representation(encoders, labels), strict=True):
        read.append(read_unseen(h, division, unseen, fit_on(h, division, "linear"), confidence))
        counter.count(f"{name}: {read[-1].result.value_bits:.3f} bits")
    results = [division.allowed(found.applied_to(one.result)) for found, one in zip(findings, read, strict=True)]
    independent = all(result.lower_bits is not None for result in results)
    risk = (1 - confidence) / (len(read) * (len(read) - 1))
    validation_classes, classes = division.classes[division.validation], division.classes[unseen]
    pairs = []
    for (name_a, a), (name_b, b) in combinations(zip(encoders, read, strict=True), 2):
        nats = a.weights[classes] * (b.losses - a.losses)
        proofs = {
            name: prove(one, other, validation_classes, classes, risk)
            for name, one, other in ((name_a, a, b), (name_b, b, a))
        }
        proven = [name for name, proof in proofs.items() if proof.proven and independent]
        larger = proven[0] if len(proven) == 1 else None
        # These rows were not enough if nothing is proven, whatever the rule says.
        needed = max(min(proof.rows_needed for proof in proofs.values()), len(unseen) + 1)
        pairs.append(
            PairOrder(
                a=name_a,
                b=name_b,
                difference_bits=float(nats.mean()) / math.log(2),
                interval=interval_of(nats, confidence, ROWS) if independent else None,
                larger=larger,
                at_twice_the_norm=larger is not None and proofs[larger].at_twice_the_norm,
                rows_needed=None if larger is not None or math.isinf(needed) else math.ceil(needed),
            )
        )
        counter.count(pairs[-1].verdict)
    return UsableOrder(dict(zip(encoders, results, strict=True)), tuple(pairs), confidence, len(unseen))


def _each_representation(encoders: Mapping[str, Any], labels: Any) -> Iterator[Float[np.ndarray, "n _"]]:
    for h in encoders.values():
        yield from representations_of([h], labels)


@dataclass(frozen=True)
class Proof:
    """Whether one encoder is proven to hold more usable information than another.

    at_twice_the_norm: whether it is also proven if the probes of the encoder that holds less may have twice the norm.
    rows_needed: about how many unseen rows would prove it, by the differences seen; inf if they point the other way.
    """

    proven: bool
    at_twice_the_norm: bool
    rows_needed: float


def prove(
    one: Read, other: Read, validation_classes: Int[np.ndarray, " v"], classes: Int[np.ndarray, " n"], risk: float
) -> Proof:
    """Whether `one` holds more than the other, by a bet that validation chooses.

    If some probe of the other encoder has no larger mean loss on the unseen rows than the probe of `one`, the order
    cannot be proven, and no bet is made. Against that probe, the logarithm of the capital is at most the bet times the
    sum of the probe's losses minus those of `one`, so it is not positive.
    """
    best = _best(other)
    if np.mean(other.weights[classes] * best.losses - one.weights[classes] * one.losses) <= 0:
        return Proof(False, False, math.inf)
    return Bet.of(one, other, validation_classes, classes, risk).proof(one, other, classes)


@dataclass(frozen=True)
class Bet:
    """A bet that the best probe of one encoder, "the other", loses more than the probe of another encoder.

    On each row the capital is multiplied by 1 - bet a + bet l = (1 - bet a)(1 + bet' l), with the weighted losses a of
    the probe and l of the other's best probe, and bet' = bet / (1 - bet a). bet' l has the minorant of `usable_fit`.
    bet: per nat of weighted loss, fixed before unseen rows are read. bet a is at most LARGEST_STAKE.
    target: the logarithm of the capital that proves the order.
    """

    bet: float
    target: float

    @classmethod
    def of(
        cls,
        one: Read,
        other: Read,
        validation_classes: Int[np.ndarray, " v"],
        classes: Int[np.ndarray, " n"],
        risk: float,
    ) -> "Bet":
        """The bet for which the least difference of losses would be enough, by validation.

        A bet b proves a difference of about b variance / 2 + log(1/risk) / (n b) nats, and the minorant's cost.
        """
        n, target = len(classes), math.log(1 / risk)
        most = LARGEST_STAKE / float(np.max(one.weights * one.probe.largest_losses))
        a, losses = one.weights[validation_classes] * one.validation_losses, other.validation_losses
        variance = max(float(np.var(other.weights[validation_classes] * losses - a)), 1 / n)

        def kept(bet: float) -> float:
            """The difference that is left of the one on validation after all costs."""
            gains = cls(bet, target).gains(one, other, a, losses, validation_classes)
            return (float(gains.mean()) - target / n) / bet

        return cls(max(np.minimum(FACTORS * math.sqrt(2 * target / (n * variance)), most).tolist(), key=kept), target)

    def gains(
        self,
        one: Read,
        other: Read,
        a: Float[np.ndarray, " m"],
        losses: Float[np.ndarray, " m"],
        classes: Int[np.ndarray, " m"],
    ) -> Float[np.ndarray, " m"]:
        """At most the logarithm of each row's factor. a: weighted losses of the one. losses: of the other's probe."""
        bets = self.bet * other.weights[classes] / (1 - self.bet * a)
        bends = bends_of(bets, _best(other).family.largest_losses[classes])
        return np.log1p(-self.bet * a) + minorant(losses, bets, bends)[0]

    def proof(self, one: Read, other: Read, classes: Int[np.ndarray, " n"]) -> Proof:
        """Read the unseen rows. The other's best probe for the mean loss shows first whether a proof is possible."""
        a, best = one.weights[classes] * one.losses, _best(other)
        gains = self.gains(one, other, a, best.losses, classes)
        variance = max(float(np.var(other.weights[classes] * best.losses - a)), 1 / len(a))
        difference = float(gains.mean()) / self.bet + self.bet * variance / 2
        if difference <= 0:
            return Proof(False, False, math.inf)
        best_bet = min(difference / variance, LARGEST_STAKE / float(np.max(one.weights * one.probe.largest_losses)))
        needed = self.target / (best_bet * difference - best_bet**2 * variance / 2)
        least = float(gains.sum())
        if least >= self.target:
            least = self._least_capital(a, best, classes, other.weights, 1)
        if least >= self.target:
            doubled = self._least_capital(a, best, classes, other.weights, 2)
            return Proof(True, doubled >= self.target, needed)
        # At this bet the logarithm of the capital is proportional to the number of rows.
        return Proof(False, False, max(needed, len(a) * self.target / least) if least > 0 else needed)

    def _least_capital(
        self,
        a: Float[np.ndarray, " n"],
        best: Best,
        classes: Int[np.ndarray, " n"],
        class_weights: Float[np.ndarray, " c"],
        times: int,
    ) -> float:
        """The logarithm of the least capital over the other's family.

        If the result reaches the target, it is a certified lower bound of this logarithm. The solver stops as soon as
        it is known whether the least capital reaches the target.
        best: of the other. times: factor on the norm of the other's family.
        """
        family = replace(best.family, norm=times * best.family.norm)
        weights = class_weights[classes] / (1 - self.bet * a)
        bends = bends_of(self.bet * weights, family.largest_losses[classes])
        problem = best.problem._replace(weights=weights, norm=family.norm, bet=self.bet, bends=bends)
        staked = float(np.log1p(-self.bet * a).sum())
        # The mean of minorant / bet at which the capital reaches the target.
        enough = (self.target - staked) / (len(a) * self.bet)
        found = bracket(problem, best.minimum.weights)
        for tolerance in ((found.value - enough) / 2, TOLERANCE):
            if found.lowest >= enough or found.value < enough:
                break
            found = minimize(problem, tolerance=max(tolerance, TOLERANCE), start=found.weights)
        return staked + len(a) * self.bet * (found.value if found.value < enough else found.lowest)


def _best(read: Read) -> Best:
    assert read.best is not None  # linear families have an upper end
    return read.best
