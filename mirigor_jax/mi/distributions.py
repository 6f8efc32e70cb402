"""Distributions of pairs with exactly known mutual information, to judge estimators by and to choose defaults on.

Every distribution samples (x, y) on the device, and knows I(X;Y) and the log density ratio, which is the best critic.
Nats.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Bool, Float, Int
from scipy.special import digamma, gammaln, rel_entr

from mirigor_jax.errors import InputError

MARGIN, SPREAD = 0.2, 0.1  # of the bit's direction in `Embeddings`; all normal components together have length 1


@runtime_checkable
class Distribution(Protocol):
    """A distribution of pairs (x, y) with known mutual information; samples are float32, or float64 under x64."""

    @property
    def dim_x(self) -> int: ...

    @property
    def dim_y(self) -> int: ...

    def sample(self, key: Array, n: int) -> tuple[Float[Array, "n dx"], Float[Array, "n dy"]]:
        """n independent pairs, a function of the key alone."""
        ...

    def mutual_information(self) -> float:
        """I(X;Y) in nats, exact."""
        ...

    def log_ratio(self, x: Float[Array, "n dx"], y: Float[Array, "n dy"]) -> Float[Array, " n"]:
        """log p(x,y) / (p(x) p(y)) of each row, in nats; minus infinity if x and y can occur, but not together."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """Standard normal x and y of the same dimension d with a chosen I, which all d components share equally.

    Component i of x and component i of y correlate by ρ = √(1 − e^(−2I/d)); all others are independent. Thus
    I = −(d/2) log(1 − ρ²).
    Raises InputError if the dimension is below 1, or if I is negative or not finite.
    Source: Cover & Thomas 2006, example 8.5.1; the benchmark of Poole et al. 2019, §3.
    """

    dimension: int
    mi_nats: float

    def __post_init__(self):
        if self.dimension < 1 or not 0 <= self.mi_nats < math.inf:
            raise InputError(
                f"Gaussian of dimension {self.dimension} with {self.mi_nats} nats: expected dimension >= 1 "
                "and a finite mi_nats >= 0"
            )

    @property
    def dim_x(self) -> int:
        return self.dimension

    @property
    def dim_y(self) -> int:
        return self.dimension

    @property
    def correlation_and_noise(self) -> tuple[float, float]:
        """ρ and √(1 − ρ²): a component of y is ρ times x's plus √(1 − ρ²) times independent noise."""
        exponent = -2 * self.mi_nats / self.dimension
        return math.sqrt(-math.expm1(exponent)), math.exp(exponent / 2)

    def sample(self, key: Array, n: int) -> tuple[Float[Array, "n dx"], Float[Array, "n dy"]]:
        return correlated_normals(key, (n, self.dimension), *self.correlation_and_noise)

    def mutual_information(self) -> float:
        return float(self.mi_nats)

    def log_ratio(self, x: Float[Array, "n dx"], y: Float[Array, "n dy"]) -> Float[Array, " n"]:
        correlation, noise = self.correlation_and_noise
        return self.mi_nats + 0.5 * jnp.sum(y**2 - ((y - correlation * x) / noise) ** 2, axis=1)


def correlated_normals(
    key: Array, shape: tuple[int, int], correlation: float | Float[Array, ""], noise: float | Float[Array, ""]
) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
    """n pairs of `Gaussian`. The correlation may be an argument of a compiled program; the normals do not depend on it.

    shape: (n, d), pairs and components.
    correlation, noise: as `Gaussian.correlation_and_noise`.
    """
    x, independent = jax.random.normal(key, (2, *shape))
    return x, correlation * x + noise * independent


@dataclass(frozen=True, eq=False)
class MultivariateNormal:
    """(x, y) jointly normal with mean 0 and any covariance Σ; x is the first dim_x coordinates.

    I = ½ log(|Σ_x| |Σ_y| / |Σ|) = ½ log(|Σ_y| / |Σ_{y|x}|). The Cholesky factor of Σ ends in that of Σ_{y|x}.
    Raises InputError unless Σ is finite, symmetric and positive definite, and 1 <= dim_x < its size.
    Source: Cover & Thomas 2006, theorem 8.4.1.
    """

    covariance: Float[np.ndarray, "d d"]
    dim_x: int

    def __post_init__(self):
        c = self.covariance
        try:
            valid = np.isfinite(np.linalg.cholesky(c)).all() and np.allclose(c, c.T)
        except np.linalg.LinAlgError:
            valid = False
        if not valid:
            raise InputError(
                f"covariance of shape {c.shape} with entries from {c.min():.6g} to {c.max():.6g}: "
                "expected a finite, symmetric, positive definite matrix; weaken its correlations"
            )
        if not 1 <= self.dim_x < len(c):
            raise InputError(f"dim_x {self.dim_x} of {len(c)} coordinates: expected 1 <= dim_x < {len(c)}")

    @classmethod
    def dense(cls, dim_x: int, dim_y: int, correlation: float) -> "MultivariateNormal":
        """Unit variances, and one correlation between any two coordinates."""
        dim = dim_x + dim_y
        return cls(np.full((dim, dim), correlation) + (1 - correlation) * np.eye(dim), dim_x)

    @classmethod
    def sparse(cls, dim_x: int, dim_y: int, pairs: int, correlation: float) -> "MultivariateNormal":
        """Unit variances; x_i and y_i correlate for i < pairs, and nothing else does.

        Raises InputError as the class does, and unless 0 <= pairs <= min(dim_x, dim_y).
        """
        if not 0 <= pairs <= min(dim_x, dim_y):
            raise InputError(f"{pairs} pairs of {dim_x} and {dim_y} coordinates: expected 0 <= pairs <= the fewer")
        cross = np.zeros((dim_x, dim_y))
        np.fill_diagonal(cross[:pairs, :pairs], correlation)
        return cls(np.block([[np.eye(dim_x), cross], [cross.T, np.eye(dim_y)]]), dim_x)

    @property
    def dim_y(self) -> int:
        return len(self.covariance) - self.dim_x

    def sample(self, key: Array, n: int) -> tuple[Float[Array, "n dx"], Float[Array, "n dy"]]:
        z = jax.random.normal(key, (n, len(self.covariance)))
        factor = jnp.asarray(np.linalg.cholesky(self.covariance), z.dtype)
        xy = jnp.matmul(z, factor.T, precision="highest")
        return xy[:, : self.dim_x], xy[:, self.dim_x :]

    def mutual_information(self) -> float:
        joint, y = self._factors()
        return float(np.sum(np.log(np.diag(y)) - np.log(np.diag(joint)[self.dim_x :])))

    def log_ratio(self, x: Float[Array, "n dx"], y: Float[Array, "n dy"]) -> Float[Array, " n"]:
        _, y_square, given_x_square = self.squares(x, y)
        return self.mutual_information() + 0.5 * (y_square - given_x_square)

    def squares(
        self, x: Float[Array, "n dx"], y: Float[Array, "n dy"]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
        """Squared Mahalanobis lengths of x, of y, and of y about its mean given x. First + third is that of (x, y)."""
        joint, y_factor = (jnp.asarray(factor, x.dtype) for factor in self._factors())
        whitened = solve_triangular(joint, jnp.concatenate([x, y], axis=1).T, lower=True) ** 2
        y_whitened = solve_triangular(y_factor, y.T, lower=True) ** 2
        return whitened[: self.dim_x].sum(axis=0), y_whitened.sum(axis=0), whitened[self.dim_x :].sum(axis=0)

    def _factors(self) -> tuple[np.ndarray, np.ndarray]:
        return np.linalg.cholesky(self.covariance), np.linalg.cholesky(self.covariance[self.dim_x :, self.dim_x :])


@dataclass(frozen=True)
class StudentT:
    """(x, y) jointly Student-t: a normal pair times √(df / χ²), with one χ²_df for x and y.

    The normal pair's covariance is the dispersion. The shared scale makes x and y dependent even if the normal x and y
    are independent: I = h(X) + h(Y) − h(X,Y) = I_normal + g(d_x) + g(d_y) − g(d_x + d_y), with
    g(k) = log Γ(ν/2) − log Γ((ν+k)/2) + ((ν+k)/2) (ψ((ν+k)/2) − ψ(ν/2)), ν = df.
    If df < 0.5, the heavy tails overflow float32 now and then.
    Raises InputError unless df is positive and finite.
    Source: Arellano-Valle, Contreras-Reyes & Genton 2013, eq. 7 (the entropies); the benchmark of Czyż et al. 2023.
    """

    normal: MultivariateNormal
    df: float

    def __post_init__(self):
        if not 0 < self.df < math.inf:
            raise InputError(f"{self.df} degrees of freedom: expected 0 < df < inf; df = inf is MultivariateNormal")

    @property
    def dim_x(self) -> int:
        return self.normal.dim_x

    @property
    def dim_y(self) -> int:
        return self.normal.dim_y

    def sample(self, key: Array, n: int) -> tuple[Float[Array, "n dx"], Float[Array, "n dy"]]:
        normal_key, scale_key = jax.random.split(key)
        x, y = self.normal.sample(normal_key, n)
        scale = jnp.sqrt(self.df / jax.random.chisquare(scale_key, self.df, (n, 1)))
        return x * scale, y * scale

    def mutual_information(self) -> float:
        def g(k: int) -> float:
            half, whole = self.df / 2, (self.df + k) / 2
            return gammaln(half) - gammaln(whole) + whole * (digamma(whole) - digamma(half))

        return float(self.normal.mutual_information() + g(self.dim_x) + g(self.dim_y) - g(self.dim_x + self.dim_y))

    def log_ratio(self, x: Float[Array, "n dx"], y: Float[Array, "n dy"]) -> Float[Array, " n"]:
        def log_density(k: int, square: Float[Array, " n"]) -> Float[Array, " n"]:  # without the terms that cancel
            return gammaln((self.df + k) / 2) - gammaln(self.df / 2) - (self.df + k) / 2 * jnp.log1p(square / self.df)

        x_square, y_square, given_x_square = self.normal.squares(x, y)
        joint = log_density(self.dim_x + self.dim_y, x_square + given_x_square)
        ratio = joint - log_density(self.dim_x, x_square) - log_density(self.dim_y, y_square)
        return self.normal.mutual_information() + ratio


@dataclass(frozen=True)
class AdditiveUniform:
    """y = x + noise in one dimension; x is uniform on (0, 1), the noise is uniform on (−ε, ε).

    p(y) is a trapezoid: the length of the part of (0, 1) that is within ε of y, divided by 2ε. I = h(Y) − log 2ε, which
    is ε − log 2ε if ε <= ½, and 1 / (4ε) otherwise.
    Raises InputError unless ε is positive and finite.
    Source: Czyż et al. 2023, additive noise; Gao et al. 2017.
    """

    epsilon: float

    def __post_init__(self):
        if not 0 < self.epsilon < math.inf:
            raise InputError(f"noise half-width {self.epsilon}: expected 0 < epsilon < inf")

    @property
    def dim_x(self) -> int:
        return 1

    @property
    def dim_y(self) -> int:
        return 1

    def sample(self, key: Array, n: int) -> tuple[Float[Array, "n dx"], Float[Array, "n dy"]]:
        x_key, noise_key = jax.random.split(key)
        x = jax.random.uniform(x_key, (n, 1))
        return x, x + jax.random.uniform(noise_key, (n, 1), minval=-self.epsilon, maxval=self.epsilon)

    def mutual_information(self) -> float:
        return self.epsilon - math.log(2 * self.epsilon) if self.epsilon <= 0.5 else 0.25 / self.epsilon

    def log_ratio(self, x: Float[Array, "n dx"], y: Float[Array, "n dy"]) -> Float[Array, " n"]:
        x, y = x[:, 0], y[:, 0]
        within = jnp.minimum(y + self.epsilon, 1) - jnp.maximum(y - self.epsilon, 0)
        # y = x + noise is rounded, and a pair at the edge of the noise has to stay possible.
        max_bits = self.epsilon + jnp.finfo(y.dtype).eps * (1 + self.epsilon)
        return jnp.where(jnp.abs(y - x) <= max_bits, -jnp.log(within), -jnp.inf)


@dataclass(frozen=True, eq=False)
class Discrete:
    """One-hot x and y of two classes with a given joint distribution p(c, c').

    I = Σ p(c,c') log p(c,c') / (p(c) p(c')).
    Raises InputError unless p(c,c') >= 0 with sum 1 and every class has mass.
    Source: Cover & Thomas 2006, eq. 2.28.
    """

    joint: Float[np.ndarray, "a b"]

    def __post_init__(self):
        p = self.joint
        if p.min() < 0 or abs(p.sum() - 1) > 1e-9 or p.sum(axis=0).min() <= 0 or p.sum(axis=1).min() <= 0:
            raise InputError(
                f"joint distribution of classes with least entry {p.min():.6g} and sum {p.sum():.6g}: "
                "expected p(c,c') >= 0 with sum 1, no class empty"
            )

    @classmethod
    def same_class(cls, num_classes: int, epsilon: float = 0.0) -> "Discrete":
        """Uniform classes: y's class is x's with probability 1 − ε, and otherwise any other class, uniformly.

        I = log m − H_b(ε) − ε log(m − 1) for m classes; ε = 0 is same-class sampling.
        Raises InputError unless m >= 2 and 0 <= ε <= 1.
        Source: Cover & Thomas 2006, eq. 7.23 (symmetric channel); Lee et al. 2023, III-A.
        """
        if num_classes < 2 or not 0 <= epsilon <= 1:
            raise InputError(f"{num_classes} classes, epsilon {epsilon}: expected at least 2 and 0 <= epsilon <= 1")
        channel = np.full((num_classes, num_classes), epsilon / (num_classes - 1))
        np.fill_diagonal(channel, 1 - epsilon)
        return cls(channel / num_classes)

    @property
    def dim_x(self) -> int:
        return self.joint.shape[0]

    @property
    def dim_y(self) -> int:
        return self.joint.shape[1]

    def sample(self, key: Array, n: int) -> tuple[Float[Array, "n dx"], Float[Array, "n dy"]]:
        cell = jax.random.choice(key, self.joint.size, (n,), p=jnp.asarray(self.joint.ravel()))
        c_x, c_y = jnp.divmod(cell, self.dim_y)
        return jax.nn.one_hot(c_x, self.dim_x), jax.nn.one_hot(c_y, self.dim_y)

    def mutual_information(self) -> float:
        return float(np.sum(rel_entr(self.joint, self._independent)))

    def log_ratio(self, x: Float[Array, "n dx"], y: Float[Array, "n dy"]) -> Float[Array, " n"]:
        log_joint = np.log(self.joint, out=np.full(self.joint.shape, -np.inf), where=self.joint > 0)
        table = jnp.asarray(log_joint - np.log(self._independent), x.dtype)
        return table[jnp.argmax(x, axis=1), jnp.argmax(y, axis=1)]

    @property
    def _independent(self) -> Float[np.ndarray, "a b"]:
        return np.outer(self.joint.sum(axis=1), self.joint.sum(axis=0))


@dataclass(frozen=True)
class Embeddings:
    """Views that are embeddings of sentences side by side, like a sentence encoder's; each sentence shows one bit.

    Source s of a view has the bit b_s, and the other view's source s has the bit b_s, flipped with probability ε (a
    binary symmetric channel). Bits and flips are fair and independent of each other, so I = S (log 2 − H_b(ε)) for S
    sources, which is S bits if ε = 0.
    The embedding of a sentence has length 1. Before that, it is a common direction, plus normal components whose
    variance falls as 1/k, plus ±(margin + spread·|normal|) in one further direction, whose sign is the bit. All
    directions are orthogonal, the same for all sentences, and rotated against the coordinates. So a view tells its bits
    without error, although they are a small part of its variance.

    sources: S. Number of sentences of a view.
    dimension: numbers in the embedding of one sentence; a view has S times as many.
    epsilon: ε.
    Raises InputError unless S >= 1, dimension >= 3 and 0 <= ε <= ½.
    Source: Lee & Rhee 2024 (several sources of one bit side by side, and the channel); the embeddings' law is ours.
    """

    sources: int
    dimension: int
    epsilon: float = 0.0

    def __post_init__(self):
        if self.sources < 1 or self.dimension < 3 or not 0 <= self.epsilon <= 0.5:
            raise InputError(
                f"{self.sources} sources of dimension {self.dimension}, epsilon {self.epsilon}: expected at least 1 "
                "source, at least 3 dimensions and 0 <= epsilon <= 0.5"
            )

    @property
    def dim_x(self) -> int:
        return self.sources * self.dimension

    @property
    def dim_y(self) -> int:
        return self.sources * self.dimension

    def sample(self, key: Array, n: int) -> tuple[Float[Array, "n dx"], Float[Array, "n dy"]]:
        bit_key, flip_key, *view_keys = jax.random.split(key, 4)
        bits = jax.random.bernoulli(bit_key, 0.5, (n, self.sources))
        flipped = bits ^ jax.random.bernoulli(flip_key, self.epsilon, bits.shape)
        x, y = (self._embed(view_key, of_view) for view_key, of_view in zip(view_keys, (bits, flipped), strict=True))
        return x, y

    def bits(self, view: Float[Array, "n dx"]) -> Int[Array, "n s"]:
        """The bit of each source of a view, 0 or 1: its labels."""
        sentences = view.reshape(len(view), self.sources, self.dimension)
        along = jnp.matmul(sentences, self._directions[1].astype(view.dtype), precision="highest")
        return (along > 0).astype(jnp.int32)

    def mutual_information(self) -> float:
        return self.sources * Discrete.same_class(2, self.epsilon).mutual_information()

    def log_ratio(self, x: Float[Array, "n dx"], y: Float[Array, "n dy"]) -> Float[Array, " n"]:
        differs = self.bits(x) != self.bits(y)
        flipped = math.log(2 * self.epsilon) if self.epsilon > 0 else -math.inf
        return jnp.sum(jnp.where(differs, flipped, math.log(2 * (1 - self.epsilon))), axis=1)

    @property
    def _directions(self) -> Float[Array, "d d"]:
        """Orthogonal directions, one a row: the common one, that of the bit, and those of the normal components."""
        normals = np.random.default_rng(0).normal(size=(self.dimension, self.dimension))
        return jnp.asarray(np.linalg.qr(normals)[0].T)

    def _embed(self, key: Array, bits: Bool[Array, "n s"]) -> Float[Array, "n dx"]:
        falling = 1 / np.sqrt(np.arange(1, self.dimension - 1))
        z = jax.random.normal(key, (*bits.shape, self.dimension))
        size = MARGIN + SPREAD * jnp.abs(z[..., 1])
        others = z[..., 2:] * jnp.asarray(falling / np.linalg.norm(falling), z.dtype)[None, None, :]
        parts = [jnp.ones_like(size)[..., None], jnp.where(bits, size, -size)[..., None], others]
        whole = jnp.concatenate(parts, axis=-1)
        whole = whole / jnp.linalg.norm(whole, axis=-1, keepdims=True)
        return jnp.matmul(whole, self._directions.astype(z.dtype), precision="highest").reshape(len(bits), -1)


@dataclass(frozen=True)
class Homeomorphism:
    """A continuous, strictly increasing function that acts on every coordinate, and its inverse."""

    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]


def _normal_quantile(u: Array) -> Array:
    # Φ rounds to 1 in the far upper tail, and the quantile of 1 is infinite.
    return ndtri(jnp.minimum(u, 1 - jnp.finfo(u.dtype).epsneg))


CUBE = Homeomorphism(lambda x: x**3, jnp.cbrt)
ASINH = Homeomorphism(jnp.arcsinh, jnp.sinh)
HALF_CUBE = Homeomorphism(lambda x: x * jnp.sqrt(jnp.abs(x)), lambda x: jnp.sign(x) * jnp.abs(x) ** (2 / 3))
NORMAL_CDF = Homeomorphism(ndtr, _normal_quantile)


@dataclass(frozen=True)
class Transformed:
    """A distribution with one map applied to each view. The maps change the densities, but not their ratio or I.

    Source: Kraskov, Stögbauer & Grassberger 2004, appendix; Czyż et al. 2023, theorem 2.1.
    """

    base: Distribution
    map_x: Homeomorphism
    map_y: Homeomorphism

    @property
    def dim_x(self) -> int:
        return self.base.dim_x

    @property
    def dim_y(self) -> int:
        return self.base.dim_y

    def sample(self, key: Array, n: int) -> tuple[Float[Array, "n dx"], Float[Array, "n dy"]]:
        x, y = self.base.sample(key, n)
        return self.map_x.forward(x), self.map_y.forward(y)

    def mutual_information(self) -> float:
        return self.base.mutual_information()

    def log_ratio(self, x: Float[Array, "n dx"], y: Float[Array, "n dy"]) -> Float[Array, " n"]:
        return self.base.log_ratio(self.map_x.inverse(x), self.map_y.inverse(y))


_BIVARIATE = MultivariateNormal.sparse(1, 1, 1, 0.75)
_TWO_PAIRS = MultivariateNormal.sparse(5, 5, 2, 0.8)
_STUDENT = StudentT(MultivariateNormal.dense(5, 5, 0.0), 2.0)

# The defaults of the estimators are chosen on these. The tasks are those of Czyż et al. 2023 with their names, except
# *gaussian-* (dimension, nats) and same-class-* (classes, epsilon). "2-2.0" means two pairs of strength 2, that is, of
# correlation 2²/(1 + 2²).
BENCHMARK: Mapping[str, Distribution] = {
    "gaussian-5-0.0": Gaussian(5, 0.0),
    "gaussian-5-1.0": Gaussian(5, 1.0),
    "gaussian-20-4.0": Gaussian(20, 4.0),
    "cube-gaussian-20-4.0": Transformed(Gaussian(20, 4.0), CUBE, CUBE),
    "1v1-normal-0.75": _BIVARIATE,
    "normal_cdf-1v1-normal-0.75": Transformed(_BIVARIATE, NORMAL_CDF, NORMAL_CDF),
    "half_cube-1v1-normal-0.75": Transformed(_BIVARIATE, HALF_CUBE, HALF_CUBE),
    "1v1-additive-0.1": AdditiveUniform(0.1),
    "1v1-additive-0.75": AdditiveUniform(0.75),
    "multinormal-dense-5-5-0.5": MultivariateNormal.dense(5, 5, 0.5),
    "multinormal-dense-25-25-0.5": MultivariateNormal.dense(25, 25, 0.5),
    "multinormal-sparse-5-5-2-2.0": _TWO_PAIRS,
    "multinormal-sparse-25-25-2-2.0": MultivariateNormal.sparse(25, 25, 2, 0.8),
    "normal_cdf-multinormal-sparse-5-5-2-2.0": Transformed(_TWO_PAIRS, NORMAL_CDF, NORMAL_CDF),
    "half_cube-multinormal-sparse-5-5-2-2.0": Transformed(_TWO_PAIRS, HALF_CUBE, HALF_CUBE),
    "student-identity-1-1-1": StudentT(MultivariateNormal.dense(1, 1, 0.0), 1.0),
    "student-identity-5-5-2": _STUDENT,
    "asinh-student-identity-5-5-2": Transformed(_STUDENT, ASINH, ASINH),
    "same-class-10-0.1": Discrete.same_class(10, 0.1),
}
