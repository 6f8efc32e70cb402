"""The nearest-neighbor probe, which needs no training: the k most similar images of the fit part vote for a class."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer

from mirigor_jax import checks
from mirigor_jax.numerics import unit_rows
from mirigor_jax.softmax import Classes, check_part

KNN_SCORES = 2**26  # largest number of scores held at once, 256 MiB


@dataclass(frozen=True)
class NearestNeighbors:
    """A vote of the k fit images with the largest cosines, each with weight exp(cosine / tau).

    features: (n, d). Unit rows of the fit images, on the device. labels: (n,). Their classes.
    """

    features: Float[Array, "n d"]
    labels: Integer[Array, " n"]
    num_classes: int
    k: int
    tau: float
    temperature: ClassVar[float] = 1.0  # the posterior is each class's share of the votes

    def logits(self, features: Float[np.ndarray | Array, "n d"]) -> Float[np.ndarray, "n c"]:
        """Log of each class's votes (n, c), up to a constant for each row; -inf for a class without votes."""
        sizes = {"num_classes": self.num_classes, "k": self.k, "rows": max(1, KNN_SCORES // len(self.features))}
        rows = unit_rows(features, np.float32)
        return np.asarray(_log_votes(self.features, self.labels, self.tau, rows, **sizes))


def fit_knn(
    features: Float[np.ndarray | Array, "n d"],
    labels: Classes,
    num_classes: int,
    *,
    k: int = 200,
    tau: float = 0.07,
) -> NearestNeighbors:
    """Weighted k-nearest-neighbor classification by cosine similarity. If there are fewer than k images, all vote.

    Raises InputError as `fit_linear` does, and if k is not a whole number of at least 1 or tau is not above 0.
    Source: Wu et al. 2018, section 3.4 (k = 200, tau = 0.07).
    """
    classes = check_part(features, labels, num_classes, "fit")
    checks.whole("k", k, 1)
    checks.above_zero("tau", tau, "0.07")
    rows = jnp.asarray(unit_rows(features, np.float32))
    return NearestNeighbors(rows, jnp.asarray(classes), num_classes, min(k, len(rows)), tau)


@partial(jax.jit, static_argnames=("num_classes", "k", "rows"))
def _log_votes(
    bank: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    tau: float | Array,
    h: Float[np.ndarray | Array, "m d"],
    *,
    num_classes: int,
    k: int,
    rows: int,
) -> Float[Array, "m c"]:
    """Log of each class's votes for each unit row of h; the nearest neighbor's weight is 1. rows: rows at a time."""

    def votes(row):
        cosines, nearest = lax.top_k(jnp.matmul(row, bank.T, precision="highest"), k)
        # cosines[0] is the maximum too, but XLA:CPU sorts all rows if top_k's result is sliced so: 30 times slower.
        weights = jnp.exp((cosines - jnp.max(cosines)) / tau)
        return jnp.zeros(num_classes, bank.dtype).at[labels[nearest]].add(weights)

    return jnp.log(lax.map(votes, h, batch_size=rows))
