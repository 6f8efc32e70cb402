"""Class posteriors that are products over attributes: their probes, their critic and Donsker and Varadhan's bound.

A softmax over 2^d classes is neither learned from some thousand images nor computed for d = 16. Here each attribute has
a probe of its own, and q(c|h) is the product of their posteriors. Such a q is a probability distribution over the
classes whatever the attributes' law, and the certificates hold for every classifier and every critic: Fano's inequality
for any function of h, and InfoNCE and Donsker and Varadhan's bound for any function of a pair. If the attributes depend
on each other given h, the product is not the true posterior, and the ends are lower, but they hold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mirigor_jax import softmax
from mirigor_jax.data.attribute_classes import AttributeClasses
from mirigor_jax.mi.certificates import Partition, PosteriorCertificate, certificate_of_excess, mix_posterior
from mirigor_jax.mi.confidence import vector_mean_radius

Posteriors = tuple[Float[np.ndarray, "n _"], ...]  # q_j(a|h) of n rows, for each attribute j


@dataclass(frozen=True)
class AttributeProbes:
    """A linear probe of each attribute. The class posterior is the product of their posteriors."""

    probes: tuple[softmax.LinearProbe, ...]

    def posteriors(self, h: Float[np.ndarray, "n d"]) -> Posteriors:
        """Each attribute's posterior (n, m_j), in float64."""
        return tuple(softmax.class_posterior(probe, h) for probe in self.probes)

    def predicted(self, h: Float[np.ndarray, "n d"]) -> Int[np.ndarray, "n a"]:
        """The attributes that are most likely, each by its own probe."""
        return np.stack([probe.logits(h).argmax(axis=1) for probe in self.probes], axis=1)

    def losses(self, h: Float[np.ndarray, "n d"], attributes: Int[np.ndarray, "n a"]) -> Float[np.ndarray, " n"]:
        """-log q of each row's attributes, in nats."""
        columns = zip(self.posteriors(h), attributes.T, strict=True)
        return -np.sum([np.log(q[np.arange(len(a)), a]) for q, a in columns], axis=0)


def fit_attributes(
    h: Float[np.ndarray, "n d"],
    attributes: Int[np.ndarray, "n a"],
    sizes: Sequence[int],
    *,
    l2: Sequence[float],
    validation_features: Float[np.ndarray, "m d"],
    validation_attributes: Int[np.ndarray, "m a"],
) -> AttributeProbes:
    """Fit a linear probe to each attribute, as `softmax.fit_linear` does, and raise InputError as it does.

    sizes: number of values of each attribute.
    """
    columns = zip(attributes.T, validation_attributes.T, sizes, strict=True)
    return AttributeProbes(
        tuple(
            softmax.fit_linear(h, a, m, l2=l2, validation_features=validation_features, validation_labels=b)
            for a, b, m in columns
        )
    )


class AttributeCritic(nn.Module):
    """score = trust · Σ_j log Σ q_j(a|x) q_j(a'|y) p(a,a') / (p(a) p(a')), a sum over attributes j; `trust` is 1.

    This is the log density ratio if the attributes are independent and every q_j is right. Its rows are those of
    `critic_rows`: for each attribute a vector for use as x, and one for use as y.
    """

    sizes: tuple[int, ...]

    @nn.compact
    def scores(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        trust = self.param("trust", nn.initializers.ones, (), x.dtype)
        ends = np.cumsum([2 * m for m in self.sizes])
        ratios = [x[:, end - 2 * m : end - m] @ y[:, end - m : end].T for end, m in zip(ends, self.sizes, strict=True)]
        # A logarithm costs more than the products. Eight factors of at least 2e-3, by the mixing, fit float32.
        products = [reduce(jnp.multiply, ratios[first : first + 8]) for first in range(0, len(ratios), 8)]
        return trust * sum(map(jnp.log, products), jnp.zeros((), x.dtype))


def critic_rows(posteriors: Posteriors, classes: AttributeClasses, mixing: float) -> Float[np.ndarray, "n _"]:
    """The rows that `AttributeCritic` reads. mixing: weight of the uniform distribution in each attribute's posterior.

    Both vectors of an attribute share the scale √p of its values, so that none is very small.
    """
    columns = []
    for q, joint in zip(posteriors, classes.joints, strict=True):
        p_x, p_y = joint.sum(axis=1), joint.sum(axis=0)
        mixed = mix_posterior(q, mixing)
        columns += [mixed / np.sqrt(p_x)[None, :], mixed @ (joint / np.outer(np.sqrt(p_x), p_y)).T]
    return np.hstack(columns).astype(np.float32)


def attribute_certificate(
    q_x: Posteriors,
    q_y: Posteriors,
    a_x: Int[np.ndarray, "n a"],
    a_y: Int[np.ndarray, "n a"],
    joints: Sequence[Float[np.ndarray, "m m"]],
    *,
    confidence: float,
    mixing: float = 1e-3,
) -> PosteriorCertificate:
    """As `certificates.posterior_certificate`, of a product posterior and independent attributes.

    No array has n·c numbers, for c classes.

    q_x, q_y: each attribute's posterior for n fresh pairs, by probes that were fitted on other images.
    a_x, a_y: the pairs' true attributes.
    joints: p(a, a') of each attribute, which the pairs' attributes were drawn from, independently of each other.
    mixing: weight μ of the law p(c) that is mixed into the product, chosen beforehand.

    W = p(c,c') / (p(c) p(c')) is a product too, and averages to 1 over either view, so that q_x^T W q_y of the mixed
    posteriors is w Π_j q_jx^T W_j q_jy + 1 - w, with w = (1 - μ)². The expectation of the product over independent
    views follows from the mean posteriors, as in `partition_upper_bound`.
    Source: Donsker & Varadhan 1983.
    """
    weight, risk = (1 - mixing) ** 2, 1 - confidence
    ratios = [joint / np.outer(joint.sum(axis=1), joint.sum(axis=0)) for joint in joints]
    n = len(a_x)
    if all(np.allclose(ratio, 1) for ratio in ratios):
        return PosteriorCertificate(0.0, 0.0, np.zeros(n))  # independent views: there is nothing to find
    product, log_truth, truth, low, high, most, least = np.ones(n), np.zeros(n), 0.0, 1.0, 1.0, 0.0, 0.0
    for j, (ratio, joint) in enumerate(zip(ratios, joints, strict=True)):
        product *= np.sum(q_x[j] @ ratio * q_y[j], axis=1)
        logs = np.log(ratio, out=np.zeros_like(ratio), where=joint > 0)
        log_truth += logs[a_x[:, j], a_y[:, j]]
        truth += float(np.sum(joint * logs))
        low, high = low * ratio.min(), high * ratio.max()  # bilinear in q: its extremes are at the corners
        most, least = most + logs[joint > 0].max(), least + logs[joint > 0].min()
    excess = np.log(weight * product + 1 - weight) - log_truth
    f_low, f_high = math.log(weight * low + 1 - weight), math.log(weight * high + 1 - weight)
    partition, radius = _partition(q_x, q_y, a_x, a_y, joints, confidence=1 - 0.1 * risk)
    upper = partition.value + radius * partition.slope + radius**2 * partition.curvature / 2
    mixed = Partition(
        1 - weight + weight * partition.value, weight * partition.influence, partition.slope, partition.curvature
    )
    return certificate_of_excess(
        excess,
        (float(f_low - most), float(f_high - least)),
        mixed,
        truth=truth,
        partition_upper=1 - weight + weight * upper,
        least=math.exp(f_low),
        confidence=1 - 0.9 * risk,
    )


def _partition(
    q_x: Posteriors,
    q_y: Posteriors,
    a_x: Int[np.ndarray, "n a"],
    a_y: Int[np.ndarray, "n a"],
    joints: Sequence[Float[np.ndarray, "m m"]],
    *,
    confidence: float,
) -> tuple[Partition, float]:
    """(`certificates.partition_function` of product posteriors, the radius of its confidence region).

    A product posterior of all attributes is a matrix A_i^T B_i of the products of the first and of the other
    attributes, so that means over rows, and products with one vector, are matrix products of √c columns.
    """
    sizes = tuple(map(len, joints))
    p_x, p_y = ([joint.sum(axis=axis) for joint in joints] for axis in (1, 0))
    views = [_View.of(q, a, p) for q, a, p in ((q_x, a_x, p_x), (q_y, a_y, p_y))]
    d_x, d_y = (view.mean().reshape(sizes) for view in views)
    roots = [np.sqrt(reduce(np.multiply.outer, p)) for p in (p_x, p_y)]
    factors = [joint / np.sqrt(np.outer(one, other)) for joint, one, other in zip(joints, p_x, p_y, strict=True)]
    by_x = _applied(factors, d_y) - roots[0] * np.sum(roots[1] * d_y)
    by_y = _applied([factor.T for factor in factors], d_x) - roots[1] * np.sum(roots[0] * d_x)
    influence = sum(
        view.along(by) - np.sum(d * by) for view, by, d in zip(views, (by_x, by_y), (d_x, d_y), strict=True)
    )
    partition = Partition(
        value=float(1 + np.sum(d_x * by_x)),
        influence=np.asarray(influence),
        slope=float(np.hypot(np.linalg.norm(by_x), np.linalg.norm(by_y))),
        # The largest singular value of a product of channels is 1; the next one is the largest second one of a factor.
        curvature=float(max(np.linalg.svd(factor, compute_uv=False)[1] for factor in factors)),
    )
    # q and e_c lie in the simplex, so q - e_c is longest if both are vertices.
    longest = float(sum(np.sum(np.partition(1 / root.ravel() ** 2, -2)[-2:]) for root in roots))
    squares = views[0].squares + views[1].squares
    return partition, vector_mean_radius(squares, longest, confidence)


@dataclass(frozen=True)
class _View:
    """s = (q - e_c) / √p of a view's rows, for the product q of the attributes' posteriors.

    first, second: products of the posteriors of the first and of the other attributes.
    cells: the position of each row's class among all combinations.
    root: √p as a matrix (combinations of the first attributes, of the others).
    squares: |s|² of each row.
    """

    first: Float[np.ndarray, "n u"]
    second: Float[np.ndarray, "n v"]
    cells: Int[np.ndarray, " n"]
    root: Float[np.ndarray, "u v"]
    squares: Float[np.ndarray, " n"]

    @classmethod
    def of(cls, q: Posteriors, a: Int[np.ndarray, "n a"], p: Sequence[Float[np.ndarray, " m"]]) -> "_View":
        half, rows = len(q) // 2, np.arange(len(a))
        parts = [reduce(_row_products, q[of], np.ones((len(a), 1))) for of in (slice(half), slice(half, None))]
        root = np.sqrt(reduce(np.multiply.outer, p)).reshape(parts[0].shape[1], parts[1].shape[1])
        squares, chosen, likely = np.ones(len(a)), np.ones(len(a)), np.ones(len(a))
        for j, (one, frequencies) in enumerate(zip(q, p, strict=True)):
            squares *= np.sum(one**2 / frequencies[None, :], axis=1)
            chosen *= one[rows, a[:, j]]
            likely *= frequencies[a[:, j]]
        cells = np.ravel_multi_index(a.T, [one.shape[1] for one in q])
        return cls(parts[0], parts[1], cells, root, np.maximum(squares - 2 * chosen / likely + 1 / likely, 0.0))

    def mean(self) -> Float[np.ndarray, "u v"]:
        """The mean of s over the rows."""
        n = len(self.cells)
        counts = np.bincount(self.cells, minlength=self.root.size).reshape(self.root.shape)
        return (self.first.T @ self.second - counts) / (n * self.root)

    def along(self, direction: Float[np.ndarray, "..."]) -> Float[np.ndarray, " n"]:
        """The inner product of each row's s with one vector."""
        scaled = direction.reshape(self.root.shape) / self.root
        return np.sum(self.first @ scaled * self.second, axis=1) - scaled.ravel()[self.cells]


def _row_products(one: Float[np.ndarray, "n u"], other: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n um"]:
    """All products of an entry of a row and an entry of the same row of the other array."""
    return (one[:, :, None] * other[:, None, :]).reshape(len(one), -1)


def _applied(factors: Sequence[Float[np.ndarray, "m m"]], tensor: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The Kronecker product of the factors, applied to a vector that is given as a tensor."""
    for axis, factor in enumerate(factors):
        tensor = np.moveaxis(np.tensordot(factor, tensor, axes=(1, axis)), 0, axis)
    return tensor
