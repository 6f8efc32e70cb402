"""The MLP: the projection head f_p in training, and a critic f_c of the same architecture in estimation."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class MLP(nn.Module):
    """Dense layers with ReLU between them: (n, d) → (n, features).

    Source: the usual MLP projection head, Chen et al. 2020; Lee et al. 2023, §III-C, use the same for the critic.
    """

    hidden: tuple[int, ...]
    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, h: Float[Array, "n d"]) -> Float[Array, "n f"]:
        param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        for width in self.hidden:
            h = nn.relu(nn.Dense(width, dtype=self.dtype, param_dtype=param_dtype)(h))
        return nn.Dense(self.features, dtype=self.dtype, param_dtype=param_dtype)(h)
