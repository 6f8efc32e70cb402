"""The prequential code of labels: how many bits they take if each is predicted from earlier images and labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float
from scipy.special import log_softmax

from mirigor_jax import checks
from mirigor_jax.refits import doublings, refits
from mirigor_jax.softmax import Classes, LinearProbe, check_part

FIRST = 32  # the first part has a 32nd of the rows, but at least 32


@dataclass(frozen=True)
class PrequentialProbe:
    """The linear probe of the last block, and the length of the code of all labels.

    code_bits: length of the code, in bits: that of the first part plus that of every block by its own probe.
    rows, first: number of labels, and of those in the first part.
    """

    last: LinearProbe
    code_bits: float
    rows: int
    first: int

    @property
    def num_classes(self) -> int:
        return self.last.num_classes

    @property
    def temperature(self) -> float:
        return self.last.temperature

    def logits(self, features: Float[np.ndarray | Array, "n d"]) -> Float[np.ndarray, "n c"]:
        """Class scores (n, c) of the last block's probe, before the temperature."""
        return self.last.logits(features)


def fit_prequential(
    features: Float[np.ndarray | Array, "n d"],
    labels: Classes,
    num_classes: int,
    *,
    l2: Sequence[float],
    validation_features: Float[np.ndarray | Array, "m d"],
    validation_labels: Classes,
    seed: int = 0,
) -> PrequentialProbe:
    """Code length of labels: MDL = t log2 N + Σ over blocks of -log2 q(c|h), q the linear probe of earlier rows.

    Rows are in a random order. The first t = max(n / 32, 32) labels take log2 N bits each. Probes are refitted at
    t, 2t, 4t and so on, up to half of the rows. Validation chooses each probe's penalty and temperature. Its labels are
    known to sender and receiver and are not coded.
    features, labels: of at least 2 images.
    num_classes: N.
    l2, validation_features, validation_labels: as in `fit_linear`.
    seed: seeds the order of the rows.
    Raises InputError as `fit_linear` does.
    Source: Voita & Titov 2020, section 2.2, eq. 3; Blier & Ollivier 2018.
    """
    classes = check_part(features, labels, num_classes, "fit")
    truth = check_part(validation_features, validation_labels, num_classes, "validation")
    checks.seed(seed)
    n = len(features)
    order = np.random.default_rng(seed).permutation(n)
    x, c = np.asarray(features)[order], classes[order]
    first = max(n // FIRST, min(FIRST, n // 2), 1)
    starts = doublings(first, n)
    bits = first * np.log2(num_classes)
    probes = refits(
        x,
        c,
        num_classes,
        starts,
        l2=l2,
        validation_features=np.asarray(validation_features),
        validation_labels=truth,
    )
    for probe, start, end in zip(probes, starts, [*starts[1:], n], strict=True):
        nats = log_softmax(probe.logits(x[start:end]).astype(np.float64) / probe.temperature, axis=1)
        bits -= nats[np.arange(end - start), c[start:end]].sum() / np.log(2)
    return PrequentialProbe(probe, float(bits), n, first)
