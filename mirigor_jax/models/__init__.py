"""The encoders: ENCODERS maps each name to a function that makes the encoder, and `build` calls it."""

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


# Each function's keywords are the encoder's options. It returns a Flax module with a field `dtype`. Called as
# `encoder(images, train, stages=False)` on normalized images (n, s, s, 3), the module returns features (n, d), or with
# `stages` a dict of features by stage. A module with a field `axis_name` takes BatchNorm's statistics over that axis.
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
    """Build the encoder of this name. An option that is None takes the encoder's own default.

    size: pixels. The side of the images. Encoders without this option ignore it.
    width, stem, remat, axis_name: options of ResNets, see `resnet.make_encoder`.
    dtype: the dtype of the computations: "auto" (the default), "float32", "bfloat16" or "float64".
    others: options of encoders that you added to ENCODERS.
    Raises InputError for an unknown name, for an option that this encoder does not have, and as its function does.
    """
    options = {"width": width, "stem": stem, "dtype": dtype, "remat": remat, "axis_name": axis_name, **others}
    check_options(name, options)
    if not idle_options(name, ["size"]):
        options["size"] = size
    return ENCODERS[name](**{option: value for option, value in options.items() if value is not None})


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raises InputError for an unknown encoder, and for an option other than None that it does not have."""
    if name not in ENCODERS:
        raise InputError(f"name='{name}' is unknown as an encoder; choose one of {', '.join(ENCODERS)}")
    for option in idle_options(name, options):
        if (value := options[option]) is not None:
            owners = ", ".join(other for other in ENCODERS if _has(other, option))
            whose = f"only of {owners}" if owners else "nor of any encoder"
            raise InputError(f"{option}={value} is not an option of {name}, {whose}; leave it out")


def idle_options(name: str, options: Iterable[str]) -> list[str]:
    """The options that the encoder does not have; [] if the encoder is unknown."""
    return [option for option in options if name in ENCODERS and not _has(name, option)]


def own_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, None for those that the encoder lacks or that equal its default. An unknown encoder keeps all."""
    if name not in ENCODERS:
        return dict(options)
    idle, parameters = idle_options(name, options), inspect.signature(ENCODERS[name]).parameters

    def says_nothing(option: str, value: Any) -> bool:
        return option in idle or (option in parameters and value == parameters[option].default)

    return {option: None if says_nothing(option, value) else value for option, value in options.items()}


def takes_any_size(encoder: nn.Module) -> bool:
    """Whether the encoder's weights fit images of any size, as its attribute `any_size` says."""
    return getattr(encoder, "any_size", False)


def _has(name: str, option: str) -> bool:
    parameters = inspect.signature(ENCODERS[name]).parameters
    return option in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
