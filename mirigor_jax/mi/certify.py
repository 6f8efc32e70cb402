"""The choice among the three certificates, on validation, and the chosen one's lower end on the test part.

It serves any pairing whose classes' law is known, and takes what a model says of the classes, not the model.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mirigor_jax.mi.certificates import (
    Certificate,
    classifier_lower_bits,
    info_nce_lower_bits,
    posterior_lower_bits,
    stratified_trials,
)

LEAST_PAIRS = 16  # in the test part and in validation: two to a batch, for eight batches
RUN_OUT = 0.1  # share of the risk that goes to a class running out of rows: a quarter more pairs than with 0.01


@dataclass(frozen=True)
class HeldOut:
    """Fresh representations as models see them: n independent pairs with their classes, m independent rows with theirs.

    q_x, q_y: class posteriors of the pairs' views, by a model fitted on other images; c_x, c_y: their true classes.
    predicted: the class that a classifier gives each row, c its true one. The rows may be of the pairs' images.
    stratified: how many of them each class has was fixed, not drawn. scores: of disjoint batches of the pairs.
    """

    q_x: Float[np.ndarray, "n c"]
    q_y: Float[np.ndarray, "n c"]
    c_x: Int[np.ndarray, " n"]
    c_y: Int[np.ndarray, " n"]
    predicted: Int[np.ndarray, " m"]
    c: Int[np.ndarray, " m"]
    scores: Float[np.ndarray, "b k k"]
    stratified: bool = False


def routes(
    part: HeldOut,
    validation: HeldOut,
    joint: Float[np.ndarray, "c c"],
    confidence: float,
) -> dict[Certificate, dict[str, Any]]:
    """Every certificate that applies to fresh pairs whose classes have law p(c, c') = joint, and what it rests on.

    A classifier certifies only where the views share their class.
    validation: what InfoNCE's batches are chosen on. Scores are those of a critic that has not seen either part.
    """
    lower = posterior_lower_bits(part.q_x, part.q_y, part.c_x, part.c_y, joint, confidence=confidence)
    found: dict[Certificate, dict[str, Any]] = {"posterior": {"lower_bits": lower, "pairs": len(part.q_x)}}
    if _exact(joint):
        errors, images, law = int(np.sum(part.predicted != part.c)), len(part.c), joint.diagonal()
        if part.stratified:
            images = stratified_trials(errors, np.bincount(part.c, minlength=len(law)), law, confidence)
        lower = classifier_lower_bits(errors, images, law, confidence)
        found["classifier"] = {"lower_bits": lower, "errors": errors, "images": images}
    found["infonce"] = info_nce_route(validation.scores, part.scores, confidence)
    return found


def info_nce_route(
    validation: Float[np.ndarray, "b k k"], scores: Float[np.ndarray, "c m m"], confidence: float
) -> dict[str, Any]:
    """The certificate that needs no class, and what it rests on: `info_nce_lower_bits`."""
    info_nce = info_nce_lower_bits(validation, scores, confidence)
    return {"lower_bits": info_nce.lower_bits, "k": info_nce.k, "batches": info_nce.batches}


def certify(
    validation: HeldOut,
    test: HeldOut,
    joint: Float[np.ndarray, "c c"],
    confidence: float,
) -> tuple[Certificate, dict[Certificate, dict[str, Any]]]:
    """(route, all routes on test): the route is the best on validation, and test has no say in it."""
    rehearsed = routes(validation, validation, joint, confidence)
    route = max(rehearsed, key=lambda name: rehearsed[name]["lower_bits"])
    return route, routes(test, validation, joint, confidence)


def _exact(joint: Float[np.ndarray, "c c"]) -> bool:
    """Whether both views always have the same class."""
    return bool(np.all(joint == np.diag(joint.diagonal())))


def batch_rows(test_pairs: int, validation_pairs: int) -> int:
    """Pairs to a score matrix of `HeldOut`: sixteen matrices or more, of at most 1,024 pairs.

    Fewer, where validation's could not be cut into the eight batches that a certificate takes.
    """
    most = min(1024, max(2, test_pairs // 16), validation_pairs)
    return next((size for size in range(most, 2, -1) if validation_pairs // size * (size // 2) >= 8), 2)
