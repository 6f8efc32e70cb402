"""RealNVP: an encoder that is invertible for any weights, with its inverse and its log-determinant."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class RealNVP(nn.Module):
    """Affine couplings: each layer changes the even entries of a row given the odd entries, or the other way round.

    Entries v become v exp(2 tanh(s) / layers) + t, where an MLP computes s and t from the unchanged entries. If the
    number of layers is even, they scale each entry by 1/e to e in all, so float32 can compute the inverse.
    Untrained, the map is the identity.
    layers: number of couplings.
    hidden: widths of the MLP's hidden layers.
    Source: Dinh et al. 2017, sections 3.2 to 3.5.
    """

    layers: int
    hidden: tuple[int, ...]

    def setup(self) -> None:
        self.couplings = [_Affine(self.hidden, 2 / self.layers) for _ in range(self.layers)]

    def __call__(self, x: Float[Array, "n d"]) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """Rows of d >= 2 numbers → (their representations, log |det J| of the map at each row, in nats)."""
        views, log_det = [x[:, 0::2], x[:, 1::2]], jnp.zeros(len(x), x.dtype)
        for i, coupling in enumerate(self.couplings):
            moved, fixed = i % 2, 1 - i % 2
            log_scale, shift = coupling(views[fixed], views[moved].shape[1])
            views[moved] = views[moved] * jnp.exp(log_scale) + shift
            log_det += jnp.sum(log_scale, axis=1)
        return _interleave(*views), log_det

    def inverse(self, z: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """The rows that `__call__` maps to z."""
        views = [z[:, 0::2], z[:, 1::2]]
        for i, coupling in reversed(list(enumerate(self.couplings))):
            moved, fixed = i % 2, 1 - i % 2
            log_scale, shift = coupling(views[fixed], views[moved].shape[1])
            views[moved] = (views[moved] - shift) * jnp.exp(-log_scale)
        return _interleave(*views)


class _Affine(nn.Module):
    hidden: tuple[int, ...]
    most: float  # largest absolute log-scale

    @nn.compact
    def __call__(self, fixed: Float[Array, "n k"], width: int) -> tuple[Float[Array, "n w"], Float[Array, "n w"]]:
        # At lower precision, an accelerator could round the shifts of the inverse differently from the map's.
        dense, h = partial(nn.Dense, precision="highest"), fixed
        for features in self.hidden:
            h = nn.relu(dense(features)(h))
        log_scale, shift = jnp.split(dense(2 * width, kernel_init=nn.initializers.zeros)(h), 2, axis=1)
        return self.most * jnp.tanh(log_scale), shift


def _interleave(even: Float[Array, "n a"], odd: Float[Array, "n b"]) -> Float[Array, "n d"]:
    rows = jnp.zeros((len(even), even.shape[1] + odd.shape[1]), even.dtype)
    return rows.at[:, 0::2].set(even).at[:, 1::2].set(odd)
