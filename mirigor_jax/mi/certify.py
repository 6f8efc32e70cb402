"""The table of certificates, the choice of one on validation, and the lower end of each on the test part.

All of it serves any pairing. It takes the models' posteriors, predictions and scores, not the models.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float, Int

from mirigor_jax.data.attribute_classes import AttributeClasses
from mirigor_jax.mi.by_attribute import Posteriors, attribute_certificate
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
from mirigor_jax.mi.prequential import Block, prequential_certificate

LEAST_PAIRS = 16  # fewest pairs of the test part and of validation: eight batches of two
# Share of the error probability 1 - confidence that is spent on the event that a class runs out of rows. This share
# allows a quarter more pairs than 0.01 would.
DEPLETION_SHARE = 0.1

# p(c, c') of the pairs' classes; None if the pairing has no classes.
Joint = Float[np.ndarray, "c c"] | AttributeClasses | None
Counts = dict[str, int]  # the counts that a certificate uses, by names such as "errors"


@dataclass(frozen=True)
class Certified:
    """The result of one certificate of I(h_X;h_Y) on a part of the pairs; bits.

    value_bits: the certificate's point estimate of a lower bound of I. It is at least 0, and never below lower_bits.
        It is convex in sample means, so its expectation may exceed that bound by O(1/n).
    lower_bits: lower confidence limit of that bound, and so of I, at the confidence that was asked for.
    interval: two-sided interval of that bound; None if there is none.
    counts: the numbers of pairs, batches or errors that it uses, by name.
    """

    value_bits: float
    lower_bits: float
    interval: Interval | None
    counts: Counts


@dataclass(frozen=True)
class Classified:
    """Predictions for the classes of held-out rows, by models that were fitted on other images, and the true classes.

    q_x, q_y: class posteriors of the n pairs' two views; or each attribute's own, if there are many classes.
    c_x, c_y: the pairs' true classes.
    predicted: a classifier's class for each of m independent rows, or -1 for none that exists. The rows may be images
        of the pairs.
    c: the rows' true classes.
    stratified: whether the number of rows of each class was fixed rather than drawn.
    """

    q_x: Float[np.ndarray, "n c"] | Posteriors
    q_y: Float[np.ndarray, "n c"] | Posteriors
    c_x: Int[np.ndarray, " n"]
    c_y: Int[np.ndarray, " n"]
    predicted: Int[np.ndarray, " m"]
    c: Int[np.ndarray, " m"]
    stratified: bool = False


@dataclass(frozen=True)
class HeldOut:
    """The models' outputs for fresh independent pairs.

    scores: a critic's scores, in nats, of disjoint batches of the pairs; the diagonal holds the positives.
    classified: predictions of their classes; None if the pairing has no classes.
    blocks: for the prequential certificate; empty if it does not apply. Of the test part: the blocks of pairs
        that this certificate reads, which are not the pairs of `scores`. Of validation: the posteriors of the same
        probes for the pairs of validation.
    """

    scores: Float[np.ndarray, "b k k"]
    classified: Classified | None = None
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Certificate:
    """A method to prove a lower end of I(h_X;h_Y) on fresh pairs, and its words in reports.

    name: in results and sentences.
    heading: in tables and pictures.
    show: (part, validation, joint, confidence) → its result on `part`; None if it does not apply. joint: the classes'
        p(c, c'); None if the pairing has no classes. Settings of its own are chosen on validation.
    evidence: its counts → words such as "0 errors in 4,096 images".
    limited_by_k: whether the number of pairs a batch limits its lower end.
    mistakes: its counts → the number of mistakes that lower its lower end; None if it counts none.
    theorem: (counts, confidence) → a sentence on a theorem that could give I = H(C) from these counts; None if there is
        no such theorem.
    """

    name: str
    heading: str
    show: Callable[[HeldOut, HeldOut, Joint, float], Certified | None]
    evidence: Callable[[Counts], str]
    limited_by_k: bool = False
    mistakes: Callable[[Counts], int] | None = None
    theorem: Callable[[Counts, float], str] | None = None


def common_frequencies(joint: Joint) -> Float[np.ndarray, " c"] | None:
    """p(c) of the class that both views always share; None if their classes may differ, or if there are none."""
    if joint is None:
        return None
    if isinstance(joint, AttributeClasses):
        return joint.common_frequencies
    return joint.diagonal() if np.all(joint == np.diag(joint.diagonal())) else None


def _posterior(part: HeldOut, validation: HeldOut, joint: Joint, confidence: float) -> Certified | None:
    """As `Certificate.show`. A product posterior needs independent attributes."""
    del validation
    seen = part.classified
    if seen is None or joint is None:
        return None
    if isinstance(joint, AttributeClasses):
        if not joint.independent:
            return None
        a_x, a_y = joint.values[seen.c_x], joint.values[seen.c_y]
        q_x, q_y = cast(Posteriors, seen.q_x), cast(Posteriors, seen.q_y)  # the probes are those of the attributes
        result = attribute_certificate(q_x, q_y, a_x, a_y, joint.joints, confidence=confidence)
    else:
        whole = cast(np.ndarray, seen.q_x), cast(np.ndarray, seen.q_y)
        result = posterior_certificate(*whole, seen.c_x, seen.c_y, joint, confidence=confidence)
    interval = interval_of(result.influence_nats, confidence, PAIRS)
    counts = {"pairs": len(seen.c_x)}
    return Certified(result.value_bits, result.lower_bits, interval and interval.positive_part, counts)


def _classifier(part: HeldOut, validation: HeldOut, joint: Joint, confidence: float) -> Certified | None:
    """As `Certificate.show`. It applies only if the views always share their class."""
    del validation
    seen = part.classified
    if seen is None or (frequencies := common_frequencies(joint)) is None:
        return None
    wrong, images = seen.predicted != seen.c, len(seen.c)
    errors, rate, stretch = int(wrong.sum()), float(wrong.mean()), np.ones(1)
    if seen.stratified:
        counts = np.bincount(seen.c, minlength=len(frequencies))
        images = stratified_trials(errors, counts, frequencies, confidence)
        stretch = frequencies * len(seen.c) / counts  # p_c over the class's share of the rows
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


def _prequential(part: HeldOut, validation: HeldOut, joint: Joint, confidence: float) -> Certified | None:
    """As `Certificate.show`. It applies only if there are blocks, which needs views that always share their class."""
    if not part.blocks or (frequencies := common_frequencies(joint)) is None:
        return None
    result = prequential_certificate(part.blocks, validation.blocks, frequencies, confidence=confidence)
    interval = interval_of(result.influence_nats, confidence, PAIRS)
    counts = {"pairs": len(part.blocks[0].c), "blocks": len(part.blocks)}
    return Certified(result.value_bits, result.lower_bits, interval and interval.positive_part, counts)


def _info_nce(part: HeldOut, validation: HeldOut, joint: Joint, confidence: float) -> Certified:
    del joint
    result = info_nce_lower_bits(validation.scores, part.scores, confidence)
    half = (result.t_upper_bits - result.t_lower_bits) / 2  # from one partition; the mean over several varies no more
    interval = Interval(result.value_bits - half, result.value_bits + half, BATCHES).positive_part
    return Certified(result.value_bits, result.lower_bits, interval, {"k": result.k, "batches": result.batches})


def _theorem_of_the_classifier(counts: Counts, confidence: float) -> str:
    """A sentence on Lee et al. 2023, Theorem III.2."""
    errors, images = counts["errors"], counts["images"]
    rate = clopper_pearson_upper(errors, images, confidence)
    return (
        f"By Theorem III.2, I = H(C) if a classifier of C never errs: {errors:,} errors in {images:,} images show only "
        f"that it errs on at most {math.ceil(1e4 * rate) / 100:.2f} % of all images, so I = H(C) does not follow."
    )


# Of equally good certificates, `certify` chooses the first in this table.
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
    "prequential": Certificate(
        "prequential",
        "class posterior, refitted",
        _prequential,
        evidence=lambda counts: (
            f"{counts['pairs']:,} fresh pairs, each predicted by a probe that was fitted on rows before it"
        ),
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
    """The results, by name, of every certificate that applies to these fresh pairs.

    part: the pairs to certify. Models and critic have seen neither part nor validation.
    validation: the pairs on which certificates choose their settings.
    joint: the distribution p(c, c') of the pairs' classes; None if the pairing has no classes.
    """
    results = {
        name: certificate.show(part, validation, joint, confidence) for name, certificate in CERTIFICATES.items()
    }
    return {name: result for name, result in results.items() if result is not None}


def certify(validation: HeldOut, test: HeldOut, joint: Joint, confidence: float) -> tuple[str, dict[str, Certified]]:
    """Choose the certificate with the best lower end on validation, and compute every certificate on test.

    Returns (name of the chosen certificate, results on test by name). Test has no influence on the choice, so the
    chosen certificate's lower end holds at `confidence`. The prequential certificate is an exception: it also reads
    rows that the models were fitted on, and these models' values on validation decide the choice. If it is among the
    certificates, each lower end is computed for half of the error probability 1 - confidence. Then the prequential
    lower end and that of the others' best on validation hold together at `confidence`.
    """
    if test.blocks:
        confidence = (1 + confidence) / 2
    result = shown(test, validation, joint, confidence)
    if len(result) == 1:
        return next(iter(result)), result
    rehearsed = shown(validation, validation, joint, confidence)
    return max(rehearsed, key=lambda name: rehearsed[name].lower_bits), result


def most_bits(certificates: Collection[str], k: int, common_frequencies: Float[np.ndarray, " c"] | None) -> float:
    """The largest lower end that these certificates are expected to reach; infinite if K does not limit all of them.

    k: pairs of a score matrix.
    common_frequencies: p(c) of the class that both views always share; None if they do not share one.
    """
    if not all(CERTIFICATES[name].limited_by_k for name in certificates):
        return math.inf
    return math.log2(k) if common_frequencies is None else max_info_nce_bits(k, common_frequencies)


def value_ceiling_bits(certificate: str | None, shown: Certified, k: int) -> float:
    """The largest estimate that a certificate can give: log2 of the pairs in a batch; infinite if K does not limit it.

    certificate: its name; None for InfoNCE at k itself. shown: its result.
    """
    if certificate is not None and not CERTIFICATES[certificate].limited_by_k:
        return math.inf
    return math.log2(shown.counts.get("k", k))


def batch_rows(test_pairs: int, validation_pairs: int) -> int:
    """Pairs in each score matrix of `HeldOut`: at most 1,024, and few enough for sixteen matrices of test pairs.

    The number is smaller if validation could not otherwise be cut into the eight batches that a certificate needs.
    """
    most = min(1024, max(2, test_pairs // 16), validation_pairs)
    return next((size for size in range(most, 2, -1) if validation_pairs // size * (size // 2) >= 8), 2)
