"""The certificates, the choice among them on validation, and every one's lower end on the test part.

It serves any pairing, and takes what models say of the classes and scores of the pairs, not the models.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mirigor_jax.mi.certificates import (
    classifier_lower_bits,
    info_nce_lower_bits,
    posterior_lower_bits,
    stratified_trials,
)
from mirigor_jax.mi.confidence import clopper_pearson_upper

LEAST_PAIRS = 16  # in the test part and in validation: two to a batch, for eight batches
DEPLETION_SHARE = 0.1  # share of the risk that goes to a class running out of rows: a quarter more pairs than with 0.01

Joint = Float[np.ndarray, "c c"] | None
Counts = dict[str, Any]  # {"lower_bits": of a certificate, and the name of each count that it rests on: how many}


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
    lower: (part, validation, joint, confidence) → its lower end on `part` with the counts it rests on; None if it does
        not apply. joint: the classes' p(c, c'), None if the pairing knows no classes. It chooses on validation.
    evidence: its counts → words such as "0 errors in 4,096 images".
    limited_by_k: whether the pairs a batch limit what it can show.
    mistakes: its counts → how many mistakes cost it something; None if it counts none.
    theorem: (counts, confidence) → a sentence on a theorem by which the counts could make I = H(C); None if none does.
    """

    name: str
    heading: str
    lower: Callable[[HeldOut, HeldOut, Joint, float], Counts | None]
    evidence: Callable[[Counts], str]
    limited_by_k: bool = False
    mistakes: Callable[[Counts], int] | None = None
    theorem: Callable[[Counts, float], str] | None = None


def _posterior(part: HeldOut, validation: HeldOut, joint: Joint, confidence: float) -> Counts | None:
    del validation
    seen = part.classified
    if seen is None or joint is None:
        return None
    lower = posterior_lower_bits(seen.q_x, seen.q_y, seen.c_x, seen.c_y, joint, confidence=confidence)
    return {"lower_bits": lower, "pairs": len(seen.q_x)}


def _classifier(part: HeldOut, validation: HeldOut, joint: Joint, confidence: float) -> Counts | None:
    """None also if the views do not always share their class."""
    del validation
    seen = part.classified
    if seen is None or joint is None or not np.all(joint == np.diag(joint.diagonal())):
        return None
    errors, images, distribution = int(np.sum(seen.predicted != seen.c)), len(seen.c), joint.diagonal()
    if seen.stratified:
        images = stratified_trials(errors, np.bincount(seen.c, minlength=len(distribution)), distribution, confidence)
    return {
        "lower_bits": classifier_lower_bits(errors, images, distribution, confidence),
        "errors": errors,
        "images": images,
    }


def _info_nce(part: HeldOut, validation: HeldOut, joint: Joint, confidence: float) -> Counts:
    del joint
    result = info_nce_lower_bits(validation.scores, part.scores, confidence)
    return {"lower_bits": result.lower_bits, "k": result.k, "batches": result.batches}


def _theorem_of_the_classifier(counts: Counts, confidence: float) -> str:
    """Source: Lee et al. 2023, Theorem III.2."""
    errors, images = counts["errors"], counts["images"]
    rate = clopper_pearson_upper(errors, images, confidence)
    return (
        f"Theorem III.2, a classifier of C that never errs makes I = H(C): {errors:,} errors in {images:,} images show "
        f"only that it errs on at most {math.ceil(1e4 * rate) / 100:.2f} % of them, so no equality may be concluded."
    )


INFO_NCE = "infonce"  # the one that takes scores alone
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
    INFO_NCE: Certificate(
        INFO_NCE,
        "InfoNCE on disjoint batches",
        _info_nce,
        evidence=lambda counts: f"{counts['batches']:,} batches of {counts['k']:,} fresh pairs",
        limited_by_k=True,
    ),
}


def lower_ends(part: HeldOut, validation: HeldOut, joint: Joint, confidence: float) -> dict[str, Counts]:
    """Every certificate that applies to these fresh pairs: its lower end and the counts that it rests on.

    part: the pairs that it speaks of. Models and critic have seen neither part nor validation.
    joint: the distribution p(c, c') of the pairs' classes; None if the pairing knows no classes.
    """
    results = {
        name: certificate.lower(part, validation, joint, confidence) for name, certificate in CERTIFICATES.items()
    }
    return {name: counts for name, counts in results.items() if counts is not None}


def certify(validation: HeldOut, test: HeldOut, joint: Joint, confidence: float) -> tuple[str, dict[str, Counts]]:
    """(certificate, every one's counts on test): the one with the best lower end on validation; test has no say in it.

    Its lower end holds at `confidence`.
    """
    result = lower_ends(test, validation, joint, confidence)
    if len(result) == 1:
        return next(iter(result)), result
    rehearsed = lower_ends(validation, validation, joint, confidence)
    return max(rehearsed, key=lambda name: rehearsed[name]["lower_bits"]), result


def most_bits(certificate: str | None, max_info_nce_bits: float) -> float:
    """The most that a certificate can show at a K at which InfoNCE shows so much; infinite if K does not limit it."""
    limited = certificate is not None and CERTIFICATES[certificate].limited_by_k
    return max_info_nce_bits if limited else math.inf


def batch_rows(test_pairs: int, validation_pairs: int) -> int:
    """Pairs to a score matrix of `HeldOut`: sixteen matrices or more, of at most 1,024 pairs.

    Fewer, where validation's could not be cut into the eight batches that a certificate takes.
    """
    most = min(1024, max(2, test_pairs // 16), validation_pairs)
    return next((size for size in range(most, 2, -1) if validation_pairs // size * (size // 2) >= 8), 2)
