"""The encoders: ENCODERS has each by its name, and build makes one."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from mirigor_jax.errors import InputError
from mirigor_jax.models import resnet, small, vit


def _resnet(name: str, *, size: int, **options: Any) -> nn.Module:
    del size  # which takes images of any
    return resnet.make_encoder(name, **options)


def _transformer(name: str, *, size: int, dtype: str, **others: Any) -> nn.Module:
    del others
    return vit.make(name, size=size, dtype=dtype)


def _small(name: str, *, dtype: str, **others: Any) -> nn.Module:
    del others
    return small.make(name, dtype=dtype)


ENCODERS: dict[str, Callable[..., nn.Module]] = {
    **dict.fromkeys(resnet.STAGES, _resnet),
    **dict.fromkeys(vit.ENCODERS, _transformer),
    **dict.fromkeys(small.ENCODERS, _small),
}


def build(
    name: str, *, size: int, width: int, stem: str, dtype: str, remat: bool = False, axis_name: str | None = None
) -> nn.Module:
    """The encoder of this name: a ResNet, a vision transformer of images of `size`, LeNet-5 or an MLP.

    width, stem, dtype, remat, axis_name: see `resnet.make_encoder`; the others take the dtype alone of these.
    Raises InputError for an unknown name, and as the encoders' own builders do.
    """
    if name not in ENCODERS:
        raise InputError(f"unknown encoder '{name}'; choose one of {', '.join(ENCODERS)}")
    return ENCODERS[name](name, size=size, width=width, stem=stem, dtype=dtype, remat=remat, axis_name=axis_name)
