"""The encoders: ENCODERS has a maker for each name, and build calls it."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn

from mirigor_jax.errors import InputError
from mirigor_jax.models import resnet, small, vit
from mirigor_jax.settings import Encoder


def _transformer(name: str, *, size: int = 224, dtype: str = Encoder.dtype) -> nn.Module:
    return vit.make(name, size=size, dtype=dtype)


# Each maker's keywords are the encoder's options. It makes a Flax module with a field `dtype`, called as
# `encoder(images, train, stages=False)` on normalized images (n, s, s, 3), that gives features (n, d); with `stages` a
# dict of features by stage. A module with a field `axis_name` takes its batch statistics over that axis.
ENCODERS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(resnet.make_encoder, name) for name in resnet.STAGES},
    **{name: partial(_transformer, name) for name in vit.ENCODERS},
    **{name: partial(small.make, name) for name in small.ENCODERS},
}


def build(
    name: str,
    *,
    size: int | None = None,
    width: int | None = None,
    stem: str | None = None,
    dtype: str | None = None,
    remat: bool | None = None,
    axis_name: str | None = None,
    **others: Any,
) -> nn.Module:
    """The encoder of this name. An option that is None takes the encoder's own default.

    size: pixels. The side of the images; encoders that take images of any size are not told.
    width, stem, remat, axis_name: options of ResNets, see `resnet.make_encoder`.
    dtype: what the encoder computes in: auto (the default), float32, bfloat16 or float64.
    others: options of encoders that are registered elsewhere.
    Raises InputError for an unknown name, for an option that this encoder does not have, and as its maker does.
    """
    options = {"width": width, "stem": stem, "dtype": dtype, "remat": remat, "axis_name": axis_name, **others}
    check_options(name, options)
    if not idle_options(name, ["size"]):
        options["size"] = size
    return ENCODERS[name](**{option: value for option, value in options.items() if value is not None})


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raises InputError for an unknown encoder, and for an option that it does not have, unless that is None."""
    if name not in ENCODERS:
        raise InputError(f"name='{name}' is unknown as an encoder; choose one of {', '.join(ENCODERS)}")
    for option in idle_options(name, options):
        if (value := options[option]) is not None:
            owners = ", ".join(other for other in ENCODERS if _has(other, option))
            whose = f"only of {owners}" if owners else "nor of any encoder"
            raise InputError(f"{option}={value} is not an option of {name}, {whose}; leave it out")


def idle_options(name: str, options: Iterable[str]) -> list[str]:
    """Those of the options that the encoder does not have; none of an unknown one."""
    return [option for option in options if name in ENCODERS and not _has(name, option)]


def own_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, None for those that the encoder does not have and for its defaults; an unknown one keeps all."""
    if name not in ENCODERS:
        return dict(options)
    idle, parameters = idle_options(name, options), inspect.signature(ENCODERS[name]).parameters

    def says_nothing(option: str, value: Any) -> bool:
        return option in idle or (option in parameters and value == parameters[option].default)

    return {option: None if says_nothing(option, value) else value for option, value in options.items()}


def takes_any_size(encoder: nn.Module) -> bool:
    """Whether the encoder's weights serve images of any size: it says so by an attribute `any_size`."""
    return getattr(encoder, "any_size", False)


def _has(name: str, option: str) -> bool:
    parameters = inspect.signature(ENCODERS[name]).parameters
    return option in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
