"""Settings: their description, and how a dataclass of settings is read and checked.

A dataclass is a section, and each of its fields is a setting, made by `setting`. The field's annotation is the type;
`| None` says that the setting may be None, and `Literal` lists its only values.
"""

import dataclasses
import math
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mirigor_jax.errors import InputError


@dataclass(frozen=True)
class Setting:
    """The description of one setting, or of one argument of a config.

    default: the value if the user gives none.
    meaning: the meaning in a sentence.
    kind: the type of the value; for a tuple, of each element.
    several: whether the value is a tuple.
    least, above, most, below: limits of a number, or of each number of a tuple; None: no limit.
    may_be_empty: whether a tuple with limits may be empty.
    choices: the allowed values; empty: any value of the type.
    or_number: whether a text with choices may be a whole number instead, such as a step.
    names: if the value names an entry of a table, the entries that the package defines. A config file may add some.
    table: the table, as "module.NAME".
    unit: the unit of a number.
    none: the meaning of None; "": the value may not be None.
    key: for an argument, the dotted key of the config that it sets; "": no key, or several.
    """

    default: Any
    meaning: str
    kind: type = str
    several: bool = False
    least: int | float | None = None
    above: int | float | None = None
    most: int | float | None = None
    below: int | float | None = None
    may_be_empty: bool = False
    choices: tuple[str, ...] = ()
    or_number: bool = False
    names: tuple[str, ...] = ()
    table: str = ""
    unit: str = ""
    none: str = ""
    key: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raises InputError if the setting cannot have this value. name: the setting's name in the message."""
        if value is None and self.none:
            return
        given = f"{name}={value!r}" if isinstance(value, str) else f"{name}={value}"
        if self.choices and value not in self.choices and not (self.or_number and str(value).isdecimal()):
            raise InputError(f"{given}: expected {either(self.values)}")
        if not self.limits:
            return
        numbers = tuple(value) if isinstance(value, tuple | list) else (value,)
        are_fit = bool(numbers or self.may_be_empty) and all(map(self._allows, numbers))
        if not are_fit:
            raise InputError(f"{given}: expected {'a number ' if self.limits.startswith('above') else ''}{self.limits}")

    def _allows(self, number: Any) -> bool:
        return (
            number is not None
            and math.isfinite(number)
            and (
                (self.least is None or number >= self.least)
                and (self.above is None or number > self.above)
                and (self.most is None or number <= self.most)
                and (self.below is None or number < self.below)
            )
        )

    @property
    def values(self) -> tuple[str, ...]:
        """The choices, and words for a number if it may be one."""
        return (*self.choices, "a number") if self.or_number else self.choices

    @property
    def limits(self) -> str:
        """The limits in words; "" if there are none."""
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        words = [
            f"{phrase} {limit:g}"
            for phrase, limit in (
                ("at least", self.least),
                ("above", self.above),
                ("at most", self.most),
                ("below", self.below),
            )
            if limit is not None
        ]
        return " and ".join(words)


def either(names: Iterable[str]) -> str:
    """The names in one phrase: "a, b or c"; "" for no names."""
    *first, last = [*names] or [""]
    return f"{', '.join(first)} or {last}" if first else last


def setting(default: Any, meaning: str, **more: Any) -> Any:
    """A field of a section. more: further fields of `Setting`; kind, several and choices come from the annotation."""
    return dataclasses.field(default=default, metadata={"more": {"meaning": meaning, **more}})


def argument(default: Any, meaning: str, **more: Any) -> Setting:
    """An argument of a config: NAME=VALUE after the colon of --config.

    default: the value if the argument is not given. For a tuple, the command line joins several values by +.
    more: further fields of `Setting`. If the default is None, give `kind`, and `several` for a tuple.
    """
    several = isinstance(default, tuple)
    first = default[0] if isinstance(default, tuple) else default
    guessed: dict[str, Any] = {"several": several} | ({} if first is None else {"kind": type(first)})
    return Setting(default, meaning, **(guessed | more))


def of(section: type, name: str) -> Setting:
    """The setting with this dotted key in a section."""
    return settings_of(section)[name]


def settings_of(section: type, prefix: str = "") -> dict[str, Setting]:
    """Every setting of a section and of its subsections, by dotted key, in the order of definition."""
    result: dict[str, Setting] = {}
    for name, field, annotation in _fields(section):
        if dataclasses.is_dataclass(annotation):
            result |= settings_of(annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            result[prefix + name] = _setting(field, annotation)
    return result


def sections_of(section: type, prefix: str = "") -> dict[str, str]:
    """Titles of a section and of its subsections, in order, by the prefix of their keys: "", "data.", "data.cdp."."""
    result = {prefix: (section.__doc__ or "").splitlines()[0].rstrip(".")}
    for name, _, annotation in _fields(section):
        if dataclasses.is_dataclass(annotation):
            result |= sections_of(annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
    return result


def check(section: type, values: Mapping[str, Any], *, skip: Collection[str] = ()) -> None:
    """Raises InputError for the first value that its setting cannot have.

    values: values by dotted key. Keys that the section lacks are not checked: a config file may define its own.
    skip: further keys that are not checked.
    """
    for key, known in settings_of(section).items():
        if key in values and key not in skip:
            known.check(key, values[key])


def _fields(section: type) -> Iterator[tuple[str, "dataclasses.Field[Any]", Any]]:
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        yield field.name, field, hints[field.name]


def _setting(field: "dataclasses.Field[Any]", annotation: Any) -> Setting:
    """The setting that a field and its annotation describe."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation, _ = get_args(annotation)  # the other is None
    if get_origin(annotation) is Literal:
        facts: dict[str, Any] = {"choices": get_args(annotation)}
    elif get_origin(annotation) is tuple:
        facts = {"kind": get_args(annotation)[0], "several": True}
    else:
        facts = {"kind": annotation}
    return Setting(field.default, **facts, **field.metadata["more"])
