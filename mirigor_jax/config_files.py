"""From a command line to a config: which file, its arguments behind the colon, and overrides key by key."""

import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_flags

from mirigor_jax.errors import InputError

SHIPPED = (Path(__file__).parent, Path(__file__).parents[1])  # where a wheel and a checkout keep configs/


class Parsed(NamedTuple):
    """What a command line asks for.

    name: the config's, with its arguments and overrides: what the default run folder is called.
    given: dotted keys of the config that the command line names, by --config.KEY=VALUE or by an argument so called.
    """

    config: ConfigDict
    name: str
    workdir: str | None
    given: tuple[str, ...]


def load_config(text: str) -> tuple[ConfigDict, str]:
    """The config that "PATH[:ARGUMENTS]" names, unlocked for nothing new, and its short name.

    PATH is found from the current directory, else among the shipped configs. A config file may import the common.py
    beside it, else the one in the folder above, else the shipped one.
    Raises InputError if the file is missing or an argument is wrong.
    """
    path_text, _, arguments = text.partition(":")
    path = next((p for p in (Path(path_text), *(folder / path_text for folder in SHIPPED)) if p.is_file()), None)
    if path is None:
        raise InputError(f"no config file '{path_text}'; the shipped ones are {', '.join(shipped_configs())}")
    # It is imported under its plain name, so one folder's common.py must not stand in for another's.
    folders = (*path.resolve().parents[:2], *(folder / "configs" for folder in SHIPPED))
    sys.path.insert(0, str(next((folder for folder in folders if (folder / "common.py").is_file()), folders[0])))
    sys.modules.pop("common", None)
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
        sys.modules.pop("common", None)
    config = module.get_config(arguments)
    config.lock()
    return config, "-".join([path.stem, *([arguments] if arguments else [])])


def shipped_configs() -> list[str]:
    """Paths of the shipped configs, as they are given to --config."""
    paths = {p.relative_to(folder).as_posix() for folder in SHIPPED for p in (folder / "configs").rglob("*.py")}
    return sorted(paths - {"configs/common.py"})


def parse(argv: list[str]) -> Parsed:
    """What the arguments behind the program's name ask for. Raises InputError where they are wrong."""
    files = [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
    if len(files) != 1:
        raise InputError(f"give one --config=FILE, for example --config=configs/cdp.py (got {len(files)})")
    config, name = load_config(files[0])
    overrides = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    keys = list(flatten(config))
    given = [override.partition("=")[0] for override in overrides]
    for key in sorted(given):
        if key not in keys:
            raise InputError(f"unknown config key '{key}'; {did_you_mean(key, keys)}")
    arguments = [argument.partition("=")[0] for argument in files[0].partition(":")[2].split(",")]
    given = [*(argument for argument in arguments if argument in keys), *given]
    rest = ["main", *_without_nones(config, [a for a in argv if a != f"--config={files[0]}"])]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
    flags.DEFINE_string("workdir", None, "run folder", flag_values=values)
    try:
        rest = values(rest)
    except flags.Error as error:
        raise InputError(str(error).replace("\n", " ")) from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument '{rest[1]}'; options start with --config or --workdir")
    # Those of one study's parts have one name.
    named = [override for override in sorted(overrides) if not override.startswith("study.only=")]
    return Parsed(values.config, _folder_name(name, named), values.workdir, tuple(dict.fromkeys(given)))


def _without_nones(config: ConfigDict, argv: list[str]) -> list[str]:
    """The arguments without KEY=None of keys that may be None, which the config then has."""
    fields = flatten(config.to_dict(preserve_field_references=True))
    optional = {f"--config.{key}" for key, value in fields.items() if isinstance(value, FieldReference)}
    last = {argument.partition("=")[0]: argument for argument in argv}
    empty = {f"{flag}=None" for flag in optional}
    nones = {flag for flag in optional & last.keys() if last[flag] in empty}
    config.update_from_flattened_dict({flag.removeprefix("--config."): None for flag in nones})
    return [argument for argument in argv if argument not in empty and argument.partition("=")[0] not in nones]


def split_job_flags(argv: list[str]) -> tuple[list[str], dict[str, Any], dict[str, bool]]:
    """The arguments without those that change no number, and these: which process it is, and how it is monitored."""
    rest, peers = pop_flags(argv, coordinator=str, processes=int, process=int)
    rest, monitoring_flags = pop_flags(rest, tensorboard=bool, profile=bool)
    return rest, peers, monitoring_flags


def pop_flags(argv: list[str], **kinds: type) -> tuple[list[str], dict[str, Any]]:
    """The arguments without those that are asked for by name, and these, None (flags: False) where they are not given.

    kinds: str and int for --NAME=VALUE, bool for the flag --NAME. Raises InputError for a value that is no number.
    """
    rest: list[str] = []
    values: dict[str, Any] = {name: False if kind is bool else None for name, kind in kinds.items()}
    for argument in argv:
        name, equals, value = argument.removeprefix("--").partition("=")
        kind = kinds.get(name) if argument.startswith("--") else None
        if kind is None or (kind is bool) == bool(equals):
            rest.append(argument)
            continue
        try:
            values[name] = True if kind is bool else kind(value)
        except ValueError:
            raise InputError(f"--{name}={value} is not a number; give 0, 1, 2, ...") from None
    return rest, values


def _folder_name(name: str, overrides: list[str]) -> str:
    """The config's name and its overrides; many of them are stood for by a digest, as file names are short."""
    whole = "-".join([name, *overrides]).replace("/", "_")
    return whole if len(whole) <= 100 else f"{name}-{hashlib.sha256(whole.encode()).hexdigest()[:10]}"


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Every entry under its dotted name."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping | ConfigDict) else {prefix + key: value}
    return flat


def did_you_mean(key: str, known: list[str]) -> str:
    """ "did you mean …" by spelling, on the whole name or its last part; else all that is known."""
    tails = {k.rpartition(".")[2]: k for k in known}
    close = difflib.get_close_matches(key, known, n=3)
    close += [tails[t] for t in difflib.get_close_matches(key.rpartition(".")[2], tails, n=3) if tails[t] not in close]
    return f"did you mean {', '.join(close[:4])}?" if close else f"known are {', '.join(known)}"
