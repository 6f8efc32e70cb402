"""Which settings of `config.data` the chosen source has a use for; one without effect is an error."""

from dataclasses import fields
from typing import Any

from ml_collections import ConfigDict

from mirigor_jax.data.sources.table import SOURCES, Request
from mirigor_jax.errors import InputError

# Settings of finite sets of images with their defaults; the last two are about pixels, which features have none of.
OF_SETS = {
    field.name: field.default
    for field in fields(Request)
    if field.name in ("classes", "corrupted", "negatives", "rotations", "noise")
}
OF_PIXELS = ("rotations", "noise")
SHARED = ("tfds_dir",)  # knobs of several sources, which stand in `data` itself; the others stand in `data.NAME`


def given(data: ConfigDict, name: str) -> dict[str, Any]:
    """What the config says of each knob of the source of this name."""
    section = _section(data, name)
    shared = {knob: data[knob] for knob in SHARED if knob in SOURCES[name].knobs}
    return shared | section


def check(data: ConfigDict) -> None:
    """Raises InputError for a setting away from its default that neither the source nor the negatives have a use for.

    data: with a known source.
    """
    used = {spec.partition(":")[0] for spec in (data.source, data.negatives)}
    for name, source in SOURCES.items():
        for knob, value in _section(data, name).items():
            if knob not in source.knobs:
                raise InputError(f"data.{name}.{knob} is unknown; the source takes {', '.join(source.knobs)}")
            if name not in used and value != source.knobs[knob]:
                raise _useless(f"{name}.{knob}", value, f"data.source='{name}'", data)
    for knob in SHARED:
        users = [name for name, source in SOURCES.items() if knob in source.knobs]
        if data[knob] is not None and not used & {*users}:
            raise _useless(knob, data[knob], f"the sources {' and '.join(users)}", data)
    source = SOURCES[data.source.partition(":")[0]]
    useless = OF_SETS if source.is_generated else OF_PIXELS if source.holds_features else ()
    for name in useless:
        if data[name] != OF_SETS[name]:
            raise _useless(name, data[name], "sets of images", data)


def _section(data: ConfigDict, name: str) -> dict[str, Any]:
    section = data.get(name)
    knobs = section.to_dict() if isinstance(section, ConfigDict) else {}
    return {knob: tuple(x) if isinstance(x, list) else x for knob, x in knobs.items()}  # a stored config has lists


def _useless(key: str, value: Any, whose: str, data: ConfigDict) -> InputError:
    shown = f"'{value}'" if isinstance(value, str) else value
    return InputError(f"data.{key}={shown} is of {whose}, and data.source='{data.source}'; leave it out")
