"""The probe without a fit: the k most similar images of the fit part vote for a class."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer

from mirigor_jax.errors import InputError
from mirigor_jax.softmax import check_part

KNN_SCORES = 2**26  # held at once, 256 MiB


@dataclass(frozen=True)
class NearestNeighbors:
    """A vote of the k fit images most similar by cosine, each of weight exp(cosine / tau). Unit rows, on the device."""

    features: Float[Array, "n d"]
    labels: Integer[Array, " n"]
    num_classes: int
    k: int
    tau: float
    temperature: ClassVar[float] = 1.0  # the posterior is each class's share of the votes

    def logits(self, features: Float[np.ndarray | Array, "n d"]) -> Float[np.ndarray, "n c"]:
        """Log of each class's votes (n, c), up to a term of the row's; -inf for a class without any."""
        sizes = {"num_classes": self.num_classes, "k": self.k, "rows": max(1, KNN_SCORES // len(self.features))}
        votes = _log_votes(self.features, self.labels, self.tau, jnp.asarray(features), **sizes)
        return np.asarray(votes)


def fit_knn(
    features: Float[np.ndarray | Array, "n d"],
    labels: Integer[np.ndarray | Array, " n_labels"],
    num_classes: int,
    *,
    k: int = 200,
    tau: float = 0.07,
) -> NearestNeighbors:
    """Weighted k-nearest-neighbor classification by cosine similarity; of fewer than k images all have a vote.

    Raises InputError as `fit_linear` does, and where k or tau is not positive.
    Source: Wu et al. 2018, section 3.4 (k = 200, tau = 0.07).
    """
    check_part(features, labels, num_classes, "fit")
    if k < 1 or tau <= 0:
        raise InputError(f"k = {k}, tau = {tau:g}: expected both above 0; 200 and 0.07 are usual")
    rows = np.asarray(features, np.float32)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return NearestNeighbors(jnp.asarray(rows), jnp.asarray(labels), num_classes, min(k, len(rows)), tau)


@partial(jax.jit, static_argnames=("num_classes", "k", "rows"))
def _log_votes(
    bank: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    tau: float | Array,
    h: Float[Array, "m d"],
    *,
    num_classes: int,
    k: int,
    rows: int,
) -> Float[Array, "m c"]:
    """Log-votes for each row of h, so many rows at a time; the nearest neighbor's weight is 1."""

    def votes(row):
        row = row / jnp.maximum(jnp.linalg.norm(row), 1e-12)
        cosines, nearest = lax.top_k(jnp.matmul(row, bank.T, precision="highest"), k)
        # cosines[0] is the maximum too, but with that slice of its result XLA:CPU sorts all rows, 30 times as slow.
        weights = jnp.exp((cosines - jnp.max(cosines)) / tau)
        return jnp.zeros(num_classes, bank.dtype).at[labels[nearest]].add(weights)

    return jnp.log(lax.map(votes, h, batch_size=rows))
