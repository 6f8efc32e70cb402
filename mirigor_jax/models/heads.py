"""The MLP: the projection head f_p in training, a critic f_c of the same architecture in estimation, and decoders."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class MLP(nn.Module):
    """Dense layers with an activation between them: (n, d) → (n, features).

    Source: the usual MLP projection head, Chen et al. 2020; Lee et al. 2023, §III-C, use the same for the critic.
    """

    hidden: tuple[int, ...]
    features: int
    dtype: str = "float32"
    activation: Literal["relu", "elu"] = "relu"

    @nn.compact
    def __call__(self, h: Float[Array, "n d"]) -> Float[Array, "n f"]:
        param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        for width in self.hidden:
            h = getattr(nn, self.activation)(nn.Dense(width, dtype=self.dtype, param_dtype=param_dtype)(h))
        return nn.Dense(self.features, dtype=self.dtype, param_dtype=param_dtype)(h)
