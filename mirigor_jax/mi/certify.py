"""The certificates, the choice among them on validation, and every one's lower end on the test part.

It serves any pairing, and takes what models say of the classes and scores of the pairs, not the models.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mirigor_jax.mi.certificates import (
    classifier_lower_bits,
    fano_bits,
    info_nce_lower_bits,
    posterior_certificate,
    stratified_trials,
)
from mirigor_jax.mi.confidence import (
    BATCHES,
    ERRORS,
    PAIRS,
    Interval,
    clopper_pearson_lower,
    clopper_pearson_upper,
    interval_of,
)
from mirigor_jax.mi.estimators import max_info_nce_bits

LEAST_PAIRS = 16  # in the test part and in validation: two to a batch, for eight batches
DEPLETION_SHARE = 0.1  # share of the risk that goes to a class running out of rows: a quarter more pairs than with 0.01

Joint = Float[np.ndarray, "c c"] | None
Counts = dict[str, int]  # the name of each count that a certificate rests on, such as "errors": how many


@dataclass(frozen=True)
class Certified:
    """What one certificate shows of I(h_X;h_Y) on a part of the pairs; bits.

    value_bits: its statistic's value, which estimates a lower bound of I. Never below lower_bits, at least 0. It is
        convex in means over the sample, so that its own expectation may lie above that bound by a multiple of 1/n.
    lower_bits: the lower limit of that bound, and so of I, at the confidence that was asked for.
    interval: the two-sided interval of that bound; None if there is none.
    counts: what it rests on.
    """

    value_bits: float
    lower_bits: float
    interval: Interval | None
    counts: Counts


@dataclass(frozen=True)
class Classified:
    """What models that were fitted on other images say of the classes of held-out rows, and what the classes are.

    q_x, q_y: class posteriors of the n pairs' two views.
    c_x, c_y: the pairs' true classes.
    predicted: the class that a classifier gives each of m independent rows, which may be of the pairs' images.
    c: the rows' true classes.
    stratified: whether the number of rows of each class was fixed and not drawn.
    """

    q_x: Float[np.ndarray, "n c"]
    q_y: Float[np.ndarray, "n c"]
    c_x: Int[np.ndarray, " n"]
    c_y: Int[np.ndarray, " n"]
    predicted: Int[np.ndarray, " m"]
    c: Int[np.ndarray, " m"]
    stratified: bool = False


@dataclass(frozen=True)
class HeldOut:
    """Fresh independent pairs as models see them.

    scores: a critic's, in nats, of disjoint batches of the pairs; the diagonal holds the positives.
    classified: what models say of their classes; None if the pairing knows no classes.
    """

    scores: Float[np.ndarray, "b k k"]
    classified: Classified | None = None


@dataclass(frozen=True)
class Certificate:
    """A way to prove a lower end of I(h_X;h_Y) on fresh pairs, and how a report tells it.

    name: as results and sentences have it.
    heading: as tables and pictures have it.
    show: (part, validation, joint, confidence) → what it shows on `part`; None if it does not apply. joint: the
        classes' p(c, c'), None if the pairing knows no classes. It chooses on validation.
    evidence: its counts → words such as "0 errors in 4,096 images".
    limited_by_k: whether the pairs a batch limit what it can show.
    mistakes: its counts → how many mistakes cost it something; None if it counts none.
    theorem: (counts, confidence) → a sentence on a theorem by which the counts could make I = H(C); None if none does.
    """

    name: str
    heading: str
    show: Callable[[HeldOut, HeldOut, Joint, float], Certified | None]
    evidence: Callable[[Counts], str]
    limited_by_k: bool = False
    mistakes: Callable[[Counts], int] | None = None
    theorem: Callable[[Counts, float], str] | None = None


def _posterior(part: HeldOut, validation: HeldOut, joint: Joint, confidence: float) -> Certified | None:
    del validation
    seen = part.classified
    if seen is None or joint is None:
        return None
    result = posterior_certificate(seen.q_x, seen.q_y, seen.c_x, seen.c_y, joint, confidence=confidence)
    interval = interval_of(result.influence_nats, confidence, PAIRS)
    counts = {"pairs": len(seen.q_x)}
    return Certified(result.value_bits, result.lower_bits, interval and interval.positive_part, counts)


def _classifier(part: HeldOut, validation: HeldOut, joint: Joint, confidence: float) -> Certified | None:
    """None also if the views do not always share their class."""
    del validation
    seen = part.classified
    if seen is None or joint is None or not np.all(joint == np.diag(joint.diagonal())):
        return None
    wrong, images, frequencies = seen.predicted != seen.c, len(seen.c), joint.diagonal()
    errors, rate, stretch = int(wrong.sum()), float(wrong.mean()), np.ones(1)
    if seen.stratified:
        counts = np.bincount(seen.c, minlength=len(frequencies))
        images = stratified_trials(errors, counts, frequencies, confidence)
        stretch = frequencies * len(seen.c) / counts  # by which the mean over rows may differ from that over draws
        rate = float(np.mean(wrong * stretch[seen.c]))
    two_sided = (1 + confidence) / 2
    lowest = clopper_pearson_lower(errors, len(seen.c), two_sided) * float(stretch.min())
    highest = clopper_pearson_upper(errors, len(seen.c), two_sided) * float(stretch.max())
    return Certified(
        value_bits=fano_bits(rate, frequencies),
        lower_bits=classifier_lower_bits(errors, images, frequencies, confidence),
        interval=Interval(fano_bits(highest, frequencies), fano_bits(lowest, frequencies), ERRORS),
        counts={"errors": errors, "images": images},
    )


def _info_nce(part: HeldOut, validation: HeldOut, joint: Joint, confidence: float) -> Certified:
    del joint
    result = info_nce_lower_bits(validation.scores, part.scores, confidence)
    half = (result.t_upper_bits - result.t_lower_bits) / 2  # of one partition; the mean over several varies no more
    interval = Interval(result.value_bits - half, result.value_bits + half, BATCHES).positive_part
    return Certified(result.value_bits, result.lower_bits, interval, {"k": result.k, "batches": result.batches})


def _theorem_of_the_classifier(counts: Counts, confidence: float) -> str:
    """Source: Lee et al. 2023, Theorem III.2."""
    errors, images = counts["errors"], counts["images"]
    rate = clopper_pearson_upper(errors, images, confidence)
    return (
        f"Theorem III.2, a classifier of C that never errs makes I = H(C): {errors:,} errors in {images:,} images show "
        f"only that it errs on at most {math.ceil(1e4 * rate) / 100:.2f} % of them, so no equality may be concluded."
    )


# The first is chosen among equals.
CERTIFICATES: dict[str, Certificate] = {
    "posterior": Certificate(
        "posterior",
        "class posterior",
        _posterior,
        evidence=lambda counts: f"{counts['pairs']:,} fresh pairs",
    ),
    "classifier": Certificate(
        "classifier",
        "classifier",
        _classifier,
        evidence=lambda counts: f"{counts['errors']:,} errors in {counts['images']:,} images",
        mistakes=lambda counts: counts["errors"],
        theorem=_theorem_of_the_classifier,
    ),
    "infonce": Certificate(
        "infonce",
        "InfoNCE on disjoint batches",
        _info_nce,
        evidence=lambda counts: f"{counts['batches']:,} batches of {counts['k']:,} fresh pairs",
        limited_by_k=True,
    ),
}


def shown(part: HeldOut, validation: HeldOut, joint: Joint, confidence: float) -> dict[str, Certified]:
    """What every certificate that applies to these fresh pairs shows of them.

    part: the pairs that it speaks of. Models and critic have seen neither part nor validation.
    joint: the distribution p(c, c') of the pairs' classes; None if the pairing knows no classes.
    """
    results = {
        name: certificate.show(part, validation, joint, confidence) for name, certificate in CERTIFICATES.items()
    }
    return {name: result for name, result in results.items() if result is not None}


def certify(validation: HeldOut, test: HeldOut, joint: Joint, confidence: float) -> tuple[str, dict[str, Certified]]:
    """(certificate, what every one shows of test): the one with the best lower end on validation; test has no say.

    Its lower end holds at `confidence`.
    """
    result = shown(test, validation, joint, confidence)
    if len(result) == 1:
        return next(iter(result)), result
    rehearsed = shown(validation, validation, joint, confidence)
    return max(rehearsed, key=lambda name: rehearsed[name].lower_bits), result


def most_bits(certificates: Collection[str], k: int, common_frequencies: Float[np.ndarray, " c"] | None) -> float:
    """The most that any of these certificates should show of score matrices of k pairs; infinite if K limits not all.

    common_frequencies: p(c) of the class that both views always have in common; None if they have none.
    """
    if not all(CERTIFICATES[name].limited_by_k for name in certificates):
        return math.inf
    return math.log2(k) if common_frequencies is None else max_info_nce_bits(k, common_frequencies)


def value_ceiling_bits(certificate: str | None, shown: Certified, k: int) -> float:
    """The most that a certificate's statistic can be: log2 of its pairs a batch; infinite if K does not limit it.

    certificate: None for InfoNCE at k itself. shown: what it shows.
    """
    if certificate is not None and not CERTIFICATES[certificate].limited_by_k:
        return math.inf
    return math.log2(shown.counts.get("k", k))


def batch_rows(test_pairs: int, validation_pairs: int) -> int:
    """Pairs to a score matrix of `HeldOut`: sixteen matrices or more, of at most 1,024 pairs.

    Fewer, where validation's could not be cut into the eight batches that a certificate takes.
    """
    most = min(1024, max(2, test_pairs // 16), validation_pairs)
    return next((size for size in range(most, 2, -1) if validation_pairs // size * (size // 2) >= 8), 2)
