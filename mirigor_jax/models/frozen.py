"""A frozen encoder: its module, its weights, and the normalization of its images."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

OURS = (0.5, 0.5, 0.5)  # mean and std that map pixels from [0, 1] to [-1, 1], as our training does


@dataclass(frozen=True, eq=False)
class FrozenEncoder:
    """An encoder, its variables, and the normalization of its images: (pixel - mean) / std for pixels in [0, 1].

    encoder: the module. From a public checkpoint it computes in float32; `encoder.clone(dtype="bfloat16")` is the same
        encoder in half precision.
    variables: the argument of `encoder.apply`: {"params", "batch_stats"}, the latter only with BatchNorm.
    mean, std: of each channel.
    stage: the stage that gives the representation; "" for the last.
    size: pixels. The side of the images that a public checkpoint was trained on.
    resized: says that the encoder was made for images of another side; "" if it was not.
    layout: a public checkpoint's name in LAYOUTS.
    place: where a public checkpoint has the encoder, "DICTIONARY/PREFIX."; "" for plain keys.
    others: the places of further encoders in the same checkpoint.
    used, ignored: the keys in a public checkpoint's state dict; every key is in one of the two.
    """

    encoder: nn.Module
    variables: Any
    mean: tuple[float, ...] = OURS
    std: tuple[float, ...] = OURS
    stage: str = ""
    size: int | None = None
    resized: str = ""
    layout: str = ""
    place: str = ""
    others: tuple[str, ...] = ()
    used: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `encode_step` and `encode_pairs` for this encoder."""
        return {"encoder": self.encoder, "mean": self.mean, "std": self.std, "stage": self.stage}

    def apply(
        self, variables: Any, images: UInt8[Array, "n s s 3"], *, stages: bool = False
    ) -> Float[Array, "n d"] | dict[str, Float[Array, "n _"]]:
        """Representations of RGB images, normalized with mean and std; with `stages`, a dict of every stage's."""
        mean, std = (jnp.asarray(values, jnp.float32)[None, None, None, :] for values in (self.mean, self.std))
        x = (images.astype(jnp.float32) / 255.0 - mean) / std
        features: Any = self.encoder.apply(variables, x, train=False, stages=stages or bool(self.stage))
        return features[self.stage] if self.stage and not stages else features
