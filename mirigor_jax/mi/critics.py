"""Critics: modules that score pairs of representations.

Each has `scores(x, y, partners)`. Without partners it scores all pairs: scores[i, j] = f(x_i, y_j). With them it scores
only the given pairs, at only their cost: scores[i, j] = f(x_i, y[partners[i, j]]). `window` clips scores to
[low, high]: a clipped critic is a critic too, so bounds stay bounds.
"""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from mirigor_jax import parallel
from mirigor_jax.errors import InputError
from mirigor_jax.mi.contrastive import unit_rows
from mirigor_jax.models.heads import MLP

Activation = Literal["relu", "elu"]
Partners = Int[Array, "n p"] | None
Scores = Float[Array, "n _"]
Window = tuple[float, float] | None

LARGE = 2**23  # numbers in the sums of all pairs, more than the caches hold


class CosineCritic(nn.Module):
    """One MLP for both views, cosine similarity, and a learned temperature: score = cos(f(h_x), f(h_y)) / τ.

    Its MLP has the architecture of the projection head, as in Lee et al. 2023, §III-C.
    """

    hidden: tuple[int, ...]
    features: int
    temperature: float = 0.1

    @nn.compact
    def __call__(
        self, h_x: Float[Array, "n d"], h_y: Float[Array, "m d"]
    ) -> tuple[Float[Array, "n f"], Float[Array, "m f"], Float[Array, ""]]:
        """Unit-norm embeddings of both views, and the temperature."""
        dtype = str(h_x.dtype)
        start = nn.initializers.constant(jnp.log(self.temperature))
        log_temperature = self.param("log_temperature", start, (), jnp.dtype(dtype))
        z = MLP(self.hidden, self.features, dtype, name="mlp")(jnp.concatenate([h_x, h_y]))
        z = unit_rows(z)
        z_x, z_y = jnp.split(z, [h_x.shape[0]])
        return z_x, z_y, jnp.exp(log_temperature)

    def scores(
        self, x: Float[Array, "n d"], y: Float[Array, "m d"], partners: Partners = None, *, deterministic: bool = True
    ) -> Scores:
        """Cosine similarity over the temperature. There is no dropout, so `deterministic` changes nothing."""
        del deterministic
        z_x, z_y, temperature = self(x, y)
        return _inner(z_x / temperature, z_y, partners)


class SeparableCritic(nn.Module):
    """score = f(x)·g(y): the inner product of one MLP for each view. n² pairs cost 2n passes and one matmul."""

    hidden: tuple[int, ...]
    features: int
    activation: Activation = "relu"
    dropout: float = 0.0
    window: Window = None

    @nn.compact
    def scores(
        self, x: Float[Array, "n d"], y: Float[Array, "m e"], partners: Partners = None, *, deterministic: bool = True
    ) -> Scores:
        z_x = _MLP(self.hidden, self.features, self.activation, self.dropout, name="mlp_x")(x, deterministic)
        z_y = _MLP(self.hidden, self.features, self.activation, self.dropout, name="mlp_y")(y, deterministic)
        return _clip(_inner(z_x, z_y, partners), self.window)


class BilinearCritic(nn.Module):
    """score = xᵀ W y. Source: van den Oord et al. 2018, Eq. 3."""

    window: Window = None

    @nn.compact
    def scores(
        self, x: Float[Array, "n d"], y: Float[Array, "m e"], partners: Partners = None, *, deterministic: bool = True
    ) -> Scores:
        """The scores xᵀ W y. There is no dropout, so `deterministic` changes nothing."""
        del deterministic
        return _clip(_inner(_dense(x, y.shape[1], "w", use_bias=False)(x), y, partners), self.window)


class JointCritic(nn.Module):
    """score = MLP([x, y]), with at least one hidden layer.

    The first layer is W [x, y] + b = W_x x + W_y y + b, so n² pairs take 2n of its products, not n².
    dropout: one rate for all hidden layers, or a tuple with a rate for each.
    """

    hidden: tuple[int, ...]
    activation: Activation = "relu"
    dropout: float | tuple[float, ...] = 0.0
    window: Window = None

    @nn.compact
    def scores(
        self, x: Float[Array, "n d"], y: Float[Array, "m e"], partners: Partners = None, *, deterministic: bool = True
    ) -> Scores:
        if not self.hidden:
            raise InputError("a joint critic without hidden layers scores x and y apart; give it one, as hidden=(64,)")
        width, *rest = self.hidden
        rate, *rates = _rates(self.dropout, len(self.hidden))
        d, wide = x.shape[1], jnp.promote_types(x.dtype, jnp.float32)
        # One kernel for x and y, so that its first values have the scale of the concatenation's fan-in.
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (d + y.shape[1], width), wide)
        bias = self.param("bias", nn.initializers.zeros, (1, width), wide)
        kernel, bias = kernel.astype(x.dtype), bias.astype(x.dtype)
        hidden_x, hidden_y = x @ kernel[:d] + bias, y @ kernel[d:]
        h = _sums(hidden_x, hidden_y) if partners is None else hidden_x[:, None] + hidden_y[partners]
        pairs = h.shape[:2]
        h = getattr(nn, self.activation)(h.reshape(-1, width))  # flat: in 3-d XLA's CPU backend takes 1.5 times as long
        h = nn.Dropout(rate)(h, deterministic)
        h = _MLP(tuple(rest), 1, self.activation, tuple(rates), name="mlp")(h, deterministic)
        return _clip(h.reshape(pairs).astype(wide), self.window)


class ResidualCritic(nn.Module):
    """score = trust · u(x)·v(y) + gain · inner(x, y): a critic that starts from a known one, and learns the rest.

    The last `rank` columns of x and y are u and v; `inner` reads the others. `trust` and `gain` are learned. They start
    at 1 and 0, or `trust` starts where `FitConfig.trusts` says.
    """

    inner: nn.Module
    rank: int

    @nn.compact
    def scores(
        self, x: Float[Array, "n d"], y: Float[Array, "m e"], partners: Partners = None, *, deterministic: bool = True
    ) -> Scores:
        learned = self.inner.scores(x[:, : -self.rank], y[:, : -self.rank], partners, deterministic=deterministic)
        trust = self.param("trust", nn.initializers.ones, (), learned.dtype)
        gain = self.param("gain", nn.initializers.zeros, (), learned.dtype)
        return trust * _inner(x[:, -self.rank :], y[:, -self.rank :], partners) + gain * learned


class PosteriorCritic(nn.Module):
    """score = trust · log Σ q(c|x) q(c'|y) p(c,c') / (p(c) p(c')) + gain · inner(x, y); q is a classifier's posterior.

    It starts near the log density ratio if q is right: `trust` starts at 1, `gain` at 0.1. The last `classes` columns
    of x and of y are vectors, and the sum is their inner product. If `sided`, a row ends in two such vectors: the first
    is for its use as x, the second for its use as y. `inner` reads the other columns.
    Source: Lee et al. 2023, §III-A: p(x, y) = Σ_c p(c) p(x|c) p(y|c).
    """

    inner: nn.Module
    classes: int
    sided: bool = False

    @nn.compact
    def scores(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        trust = self.param("trust", nn.initializers.constant(1.0), (), x.dtype)
        gain = self.param("gain", nn.initializers.constant(0.1), (), x.dtype)
        (h_x, q_x, _), (h_y, _, q_y) = self._columns(x), self._columns(y)
        return trust * jnp.log(q_x @ q_y.T) + gain * self.inner.scores(h_x, h_y)

    def _columns(self, rows: Float[Array, "n d"]) -> tuple[Array, Array, Array]:
        """(the columns that `inner` reads, the vector for use as x, the vector for use as y)."""
        first = rows.shape[1] - self.classes * (2 if self.sided else 1)
        return rows[:, :first], rows[:, first : first + self.classes], rows[:, -self.classes :]


@dataclass(frozen=True)
class Scorer:
    """A critic's `scores` as a function of its parameters. Equal critics give equal scorers, which share programs."""

    critic: nn.Module

    def scores(self, params: Any, x: Float[Array, "k p"], y: Float[Array, "l q"]) -> Float[Array, "k l"]:
        scored: Any = self.critic.apply({"params": params}, x, y, method="scores")  # flax can't type the result
        return scored


class _MLP(nn.Module):
    hidden: tuple[int, ...]
    features: int
    activation: Activation
    dropout: float | tuple[float, ...]

    @nn.compact
    def __call__(self, h: Float[Array, "*n d"], deterministic: bool) -> Float[Array, "*n f"]:
        for width, rate in zip(self.hidden, _rates(self.dropout, len(self.hidden)), strict=True):
            h = getattr(nn, self.activation)(_dense(h, width)(h))
            h = nn.Dropout(rate)(h, deterministic)
        return _dense(h, self.features)(h)


def _rates(dropout: float | tuple[float, ...], layers: int) -> tuple[float, ...]:
    """The dropout rate of each hidden layer. Raises InputError if there is not one for each."""
    rates = dropout if isinstance(dropout, tuple) else (dropout,) * layers
    if len(rates) != layers:
        raise InputError(f"{layers} hidden layers, {len(rates)} dropout rates: expected one rate for each")
    return rates


def _dense(h: Array, features: int, name: str | None = None, use_bias: bool = True) -> nn.Dense:
    wide = jnp.promote_types(h.dtype, jnp.float32)
    return nn.Dense(features, use_bias, dtype=h.dtype, param_dtype=wide, name=name)


def _sums(x: Float[Array, "n w"], y: Float[Array, "m w"]) -> Float[Array, "n m w"]:
    """x_i + y_j of all pairs.

    On CPUs, large sums are made row by row, so that the gradient of y is added up row by row too. XLA's reduction over
    the first of three axes is slow: a step with 256² pairs of width 256 would take 1.25 times as long.
    """
    if parallel.platform() == "cpu" and x.shape[0] * y.size >= LARGE:
        return lax.map(lambda row: row[None] + y, x)
    return x[:, None] + y[None]


def _inner(z_x: Float[Array, "n f"], z_y: Float[Array, "m f"], partners: Partners) -> Scores:
    wide = jnp.promote_types(z_x.dtype, jnp.float32)
    if partners is None:
        return jnp.matmul(z_x, z_y.T, preferred_element_type=wide)
    return jnp.einsum("nf,npf->np", z_x, z_y[partners], preferred_element_type=wide)


def _clip(scores: Scores, window: Window) -> Scores:
    return scores if window is None else jnp.clip(scores, *window)
