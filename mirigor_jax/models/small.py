"""Small encoders for small images, as Gosch 2020 studies them on MNIST: a LeNet-5 and an MLP."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mirigor_jax.errors import InputError
from mirigor_jax.models.dtypes import compute_dtype
from mirigor_jax.models.heads import MLP
from mirigor_jax.settings import Encoder

Features = Float[Array, "n d"] | dict[str, Float[Array, "n _"]]


def make(name: str, *, dtype: str = Encoder.dtype) -> nn.Module:
    """Build the encoder of this name. dtype: see `mirigor_jax.models.resnet.make_encoder`.

    Raises InputError for an unknown name or dtype.
    """
    if name not in ENCODERS:
        raise InputError(f"unknown encoder '{name}'; choose one of {', '.join(ENCODERS)}")
    return ENCODERS[name](dtype=compute_dtype(dtype))


class LeNet5(nn.Module):
    """(n, s, s, c) images → (n, 120) features: two 5×5 convolutions with max-pooling, a dense layer, ReLU after each.

    With `stages`, a dict: `L0` and `L1`, the flattened pooled maps (1176 and 784 numbers at 28²), and `prelogits`.
    Source: LeCun et al. 1998 in the variant of Gosch 2020, §D.1.
    """

    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Float[Array, "n s s c"], train: bool, stages: bool = False) -> Features:
        if min(images.shape[1:3]) < 4:
            raise InputError(f"LeNet-5 halves images twice, and these have {images.shape[1]} pixels; give 4 or more")
        param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        x, features = images.astype(self.dtype), {}
        for i, channels in enumerate((6, 16)):
            x = nn.Conv(channels, (5, 5), padding=2, dtype=self.dtype, param_dtype=param_dtype, name=f"conv{i}")(x)
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
            features[f"L{i}"] = x.reshape(len(x), -1).astype(param_dtype)
        x = nn.relu(nn.Dense(120, dtype=self.dtype, param_dtype=param_dtype, name="dense")(features["L1"]))
        features["prelogits"] = x.astype(param_dtype)
        return features if stages else features["prelogits"]


class MLPEncoder(nn.Module):
    """(n, s, s, c) images → (n, 100) features by an MLP on the pixels. With `stages`, a dict {"prelogits": features}.

    Source: Gosch 2020, §C.2.
    """

    hidden: tuple[int, ...] = (300, 300)
    features: int = 100
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Float[Array, "n s s c"], train: bool, stages: bool = False) -> Features:
        h = MLP(self.hidden, self.features, self.dtype, name="mlp")(images.reshape(len(images), -1))
        h = h.astype(jnp.promote_types(self.dtype, jnp.float32))
        return {"prelogits": h} if stages else h


ENCODERS: dict[str, Any] = {"lenet5": LeNet5, "mlp": MLPEncoder}
