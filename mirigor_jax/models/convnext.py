"""ConvNeXt in Flax Linen, for public checkpoints: version 1 with LayerScale, version 2 with response normalization."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mirigor_jax.models.convolution import convolution

Features = Float[Array, "n d"] | dict[str, Float[Array, "n _"]]
EPSILON = 1e-6  # of every normalization


class ResponseNorm(nn.Module):
    """Global response normalization: y = γ·x·‖x‖ / mean ‖x‖ + β + x, with norms over the map, and the mean of channels.

    Source: Woo et al. 2023, §3.2.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        scale = self.param("scale", nn.initializers.zeros, x.shape[-1:])[None, None, None]
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])[None, None, None]
        wide = x.astype(jnp.float32)
        norm = jnp.sqrt(jnp.sum(wide**2, axis=(1, 2), keepdims=True))
        response = norm / (jnp.mean(norm, axis=-1, keepdims=True) + EPSILON)
        return (scale * wide * response + bias + wide).astype(x.dtype)


class ConvNeXtBlock(nn.Module):
    """y = x + γ·MLP(norm(7×7 convolution of each channel of x)). Fields: see `ConvNeXt`."""

    dtype: str
    layer_scale: bool
    response_norm: bool

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        c = x.shape[-1]
        conv = nn.Conv(
            c,
            (7, 7),
            padding=3,
            feature_group_count=c,
            conv_general_dilated=convolution,
            dtype=self.dtype,
            name="conv",
        )
        y = conv(x)
        y = nn.LayerNorm(epsilon=EPSILON, dtype=jnp.float32, name="norm")(y)
        y = nn.Dense(4 * c, dtype=self.dtype, name="fc1")(y)
        y = jax.nn.gelu(y, approximate=False)
        if self.response_norm:
            y = ResponseNorm(name="response_norm")(y)
        y = nn.Dense(c, dtype=self.dtype, name="fc2")(y)
        if self.layer_scale:
            y = y * self.param("gamma", nn.initializers.constant(1e-6), (c,)).astype(y.dtype)[None, None, None]
        return x + y


class ConvNeXt(nn.Module):
    """ConvNeXt. Between stages, a LayerNorm and a 2×2 convolution halve the map's sides.

    It maps (n, s, s, 3) normalized images of any side to (n, d) features: the LayerNorm of the map's mean. With
    `stages=True`, the result is a dict: `prelogits` are these features, and `block0`, `block1`, … are the means of the
    blocks' outputs. There is neither dropout nor stochastic depth, so `train` changes nothing.
    depths, widths: the number of blocks and of channels in each stage.
    layer_scale: whether blocks have a learned scale γ (version 1).
    response_norm: whether blocks have a `ResponseNorm` (version 2).
    Source: Liu et al. 2022; Woo et al. 2023.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    dtype: str
    layer_scale: bool = True
    response_norm: bool = False
    any_size: ClassVar[bool] = True

    @nn.compact
    def __call__(self, images: Float[Array, "n s s 3"], train: bool, stages: bool = False) -> Features:
        def norm(name):
            return nn.LayerNorm(epsilon=EPSILON, dtype=jnp.float32, name=name)

        x = nn.Conv(self.widths[0], (4, 4), (4, 4), "VALID", dtype=self.dtype, name="merge0")(images)
        x = norm("merge0_norm")(x).astype(self.dtype)
        features: dict[str, Array] = {}
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if stage:
                x = norm(f"merge{stage}_norm")(x)
                x = nn.Conv(width, (2, 2), (2, 2), "VALID", dtype=self.dtype, name=f"merge{stage}")(x)
            for i in range(depth):
                block = ConvNeXtBlock(self.dtype, self.layer_scale, self.response_norm, name=f"stage{stage}_block{i}")
                x = block(x)
                features[f"block{len(features)}"] = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        features["prelogits"] = norm("norm")(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))
        return features if stages else features["prelogits"]
