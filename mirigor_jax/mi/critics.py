"""Critics f_c: what scores a pair of representations."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mirigor_jax.models.heads import MLP


class CosineCritic(nn.Module):
    """One MLP for both views, cosine similarity, and a learned temperature: score = cos(f(h_x), f(h_y)) / τ.

    The architecture of the projection head, as in Lee et al. 2023, §III-C.
    """

    hidden: tuple[int, ...]
    features: int
    temperature: float = 0.1

    @nn.compact
    def __call__(
        self, h_x: Float[Array, "k d"], h_y: Float[Array, "k d"]
    ) -> tuple[Float[Array, "k f"], Float[Array, "k f"], Float[Array, ""]]:
        """Unit-norm embeddings of both views, and the temperature."""
        dtype = str(h_x.dtype)
        start = nn.initializers.constant(jnp.log(self.temperature))
        log_temperature = self.param("log_temperature", start, (), jnp.dtype(dtype))
        z = MLP(self.hidden, self.features, dtype, name="mlp")(jnp.concatenate([h_x, h_y]))
        z = z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-12)
        z_x, z_y = jnp.split(z, 2)
        return z_x, z_y, jnp.exp(log_temperature)
