"""A frozen encoder: its module, its weights, and how its images are normalized."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

OURS = (0.5, 0.5, 0.5)  # pixels in [0, 1] less this, over this: the [-1, 1] that our encoders are trained on


@dataclass(frozen=True, eq=False)
class FrozenEncoder:
    """An encoder, its tree, and the normalization of the images it takes: (pixel - mean) / std, of pixels in [0, 1].

    encoder: of a public checkpoint it computes in float32; `encoder.clone(dtype="bfloat16")` is the same in half
    precision. variables: what `encoder.apply` takes: {"params", "batch_stats"}, the latter where there is BatchNorm.
    stage: whose features are its representation; "" for the last.
    Of a public checkpoint also: size: the side of the images it was trained on. layout: its name in LAYOUTS. used,
    ignored: the keys of the state dict, every one in either.
    """

    encoder: nn.Module
    variables: Any
    mean: tuple[float, ...] = OURS
    std: tuple[float, ...] = OURS
    stage: str = ""
    size: int | None = None
    layout: str = ""
    used: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """What `encode_step` and `encode_pairs` are told of it."""
        return {"encoder": self.encoder, "mean": self.mean, "std": self.std, "stage": self.stage}

    def apply(
        self, variables: Any, images: UInt8[Array, "n s s 3"], *, stages: bool = False
    ) -> Float[Array, "n d"] | dict[str, Float[Array, "n _"]]:
        """Representations of RGB images as the source normalized them; with `stages` a dict of every stage's."""
        mean, std = (jnp.asarray(values, jnp.float32)[None, None, None, :] for values in (self.mean, self.std))
        x = (images.astype(jnp.float32) / 255.0 - mean) / std
        features: Any = self.encoder.apply(variables, x, train=False, stages=stages or bool(self.stage))
        return features[self.stage] if self.stage and not stages else features
