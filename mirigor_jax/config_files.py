"""Reads a command line into a config: the config file, its arguments after the colon, and overrides of single keys."""

import difflib
import hashlib
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_flags
from ml_collections.config_dict import placeholder

from mirigor_jax.errors import InputError, shown
from mirigor_jax.fields import Setting, settings_of
from mirigor_jax.settings import KINDS

SHIPPED = (Path(__file__).parent, Path(__file__).parents[1])  # where a wheel and a checkout keep configs/
MOST_SOURCE = 2**20  # bytes of a config file


class Parsed(NamedTuple):
    """A command line, read.

    name: name of the config with its arguments and overrides; the default run folder has this name.
    workdir: the run folder that --workdir names; None without that flag.
    given: dotted keys of the config that the command line names, by --config.KEY=VALUE or by an argument of that name.
    """

    config: ConfigDict
    name: str
    workdir: str | None
    given: tuple[str, ...]


class Loaded(NamedTuple):
    """A config file, loaded with its arguments.

    config: locked, so that an unknown key raises.
    name: short name, made of the file's name and the arguments.
    doc: the file's docstring; "" if it has none.
    arguments: the arguments that the file takes, by name; empty if the file does not list them in ARGUMENTS.
    """

    config: ConfigDict
    name: str
    doc: str
    arguments: Mapping[str, Setting]


def defaults(kind: str) -> ConfigDict:
    """A config in which every setting has its default.

    kind: the kind of run, a key of `settings.KINDS`.
    """
    config = ConfigDict()
    for key, setting in settings_of(KINDS[kind]).items():
        *sections, name = key.split(".")
        section = config
        for each in sections:
            if each not in section:
                section[each] = ConfigDict()
            section = section[each]
        if setting.none:
            section[name] = placeholder(tuple if setting.several else setting.kind)
            section.update({name: setting.default})
        else:
            section[name] = setting.default
    return config


def load_config(text: str) -> tuple[ConfigDict, str]:
    """The config that "PATH[:ARGUMENTS]" names, and its short name. An unknown key raises, as the config is locked.

    Raises InputError as `load` does.
    """
    loaded = load(text)
    return loaded.config, loaded.name


def load(text: str) -> Loaded:
    """Run the config file that "PATH[:ARGUMENTS]" names, with these arguments.

    PATH is relative to the current directory, or names a shipped config. `import common` in a config file finds the
    common.py beside the file, else the one in the folder above, else the shipped one.
    Raises InputError if the file is missing or fails, or if an argument is wrong.
    """
    path_text, _, arguments = text.partition(":")
    path = next((p for p in (Path(path_text), *(folder / path_text for folder in SHIPPED)) if os.path.isfile(p)), None)
    if path is None:
        problem = f"'{path_text}' is no file" if os.path.exists(path_text) else f"no config file '{path_text}'"
        raise InputError(f"{problem}; the shipped configs are {', '.join(shipped_configs())}")
    # Config files import it as `common`, so the common.py of another folder must not be left in sys.modules.
    folders = (*path.resolve().parents[:2], *(folder / "configs" for folder in SHIPPED))
    sys.path.insert(0, str(next((folder for folder in folders if (folder / "common.py").is_file()), folders[0])))
    sys.modules.pop("common", None)
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        # An importer would leave a compiled copy beside the file.
        exec(compile(_source(path), path, "exec", dont_inherit=True), module.__dict__)
        if not callable(getattr(module, "get_config", None)):
            raise InputError(f"config file '{path}' has no get_config; define get_config(arguments) -> ConfigDict")
        config = module.get_config(arguments)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise InputError(f"config file '{path}' {_fault(path, error)}; repair it") from error
    finally:
        sys.path.pop(0)
        sys.modules.pop("common", None)
    if not isinstance(config, ConfigDict):
        raise InputError(f"get_config of '{path}' returns a {type(config).__name__}; return a ConfigDict")
    config.lock()
    name = "-".join([path.stem, *([arguments] if arguments else [])])
    declared = getattr(module, "ARGUMENTS", {})
    if not isinstance(declared, Mapping) or not all(isinstance(each, Setting) for each in declared.values()):
        declared = {}  # the user has another use for the name
    return Loaded(config, name, module.__doc__ or "", declared)


def _source(path: Path) -> bytes:
    with path.open("rb") as file:
        source = file.read(MOST_SOURCE + 1)
    if len(source) > MOST_SOURCE:
        raise InputError(f"config file '{path}' has over {MOST_SOURCE:,} bytes; give a Python file with get_config")
    return source


def _fault(path: Path, error: BaseException) -> str:
    """The error that a config file raised, and its line in the file, in words."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"is no Python: line {error.lineno}, {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    where = f" in line {lines[-1]}" if lines else ""
    return f"raises {type(error).__name__}{where}: {shown(str(error), 300)}"


def shipped_configs() -> list[str]:
    """Paths of the shipped configs, as --config takes them."""
    paths = {p.relative_to(folder).as_posix() for folder in SHIPPED for p in (folder / "configs").rglob("*.py")}
    return sorted(paths - {"configs/common.py"})


def parse(argv: list[str]) -> Parsed:
    """Read the command line's arguments, without the program's name. Raises InputError if they are wrong."""
    text = config_in(argv)
    config, name = load_config(text)
    return override(config, name, text, argv)


def config_in(argv: list[str]) -> str:
    """The "PATH[:ARGUMENTS]" of --config. Raises InputError unless it is given once."""
    files = [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
    if len(files) != 1:
        raise InputError(f"give one --config=FILE, for example --config=configs/cdp.py (got {len(files)})")
    return files[0]


def override(config: ConfigDict, name: str, text: str, argv: list[str]) -> Parsed:
    """Apply the overrides of a command line to a config that is already loaded.

    name: the config's short name. text: the "PATH[:ARGUMENTS]" that it was loaded from. argv: all arguments.
    Raises InputError as `parse` does.
    """
    overrides = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    keys = list(flatten(config))
    given = [override.partition("=")[0] for override in overrides]
    for key in sorted(given):
        if key not in keys:
            raise InputError(f"unknown config key '{key}'; {did_you_mean(key, keys)}")
    arguments = [argument.partition("=")[0] for argument in text.partition(":")[2].split(",")]
    given = [*(argument for argument in arguments if argument in keys), *given]
    rest = ["main", *_without_nones(config, [a for a in argv if a != f"--config={text}"])]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
    flags.DEFINE_string("workdir", None, "run folder", flag_values=values)
    try:
        rest = values(rest)
    except flags.Error as error:
        raise InputError(str(error).replace("\n", " ")) from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument '{rest[1]}'; options start with --config or --workdir")
    # Jobs that make single runs of one study (study.only) share its folder.
    named = [override for override in sorted(overrides) if not override.startswith("study.only=")]
    return Parsed(values.config, _folder_name(name, named), values.workdir, tuple(dict.fromkeys(given)))


def _without_nones(config: ConfigDict, argv: list[str]) -> list[str]:
    """Set keys that the arguments give as KEY=None, if they may be None, and return the other arguments."""
    fields = flatten(config.to_dict(preserve_field_references=True))
    optional = {f"--config.{key}" for key, value in fields.items() if isinstance(value, FieldReference)}
    last = {argument.partition("=")[0]: argument for argument in argv}
    empty = {f"{flag}=None" for flag in optional}
    nones = {flag for flag in optional & last.keys() if last[flag] in empty}
    config.update_from_flattened_dict({flag.removeprefix("--config."): None for flag in nones})
    return [argument for argument in argv if argument not in empty and argument.partition("=")[0] not in nones]


class JobFlags(NamedTuple):
    """A command line without the flags that do not affect results, and these flags.

    rest: the other arguments.
    peers: the flags that say which process this is.
    monitoring: the flags of `monitoring.Monitoring`.
    verbose: whether --verbose is given.
    """

    rest: list[str]
    peers: dict[str, Any]
    monitoring: dict[str, Any]
    verbose: bool


def split_job_flags(argv: list[str]) -> JobFlags:
    """Split off the flags that do not affect results."""
    rest, peers = pop_flags(argv, coordinator=str, processes=int, process=int)
    rest, monitoring_flags = pop_flags(rest, tensorboard=bool, profile=bool, wandb=bool)
    rest, progress = pop_flags(rest, verbose=bool)
    return JobFlags(rest, peers, monitoring_flags, **progress)


def pop_flags(argv: list[str], **kinds: type) -> tuple[list[str], dict[str, Any]]:
    """Split off the named flags: (the other arguments, the flags' values by name).

    kinds: name → str or int for --NAME=VALUE, bool for --NAME. A flag that is not given is None, or False if bool.
    Raises InputError if the value of an int flag is not a number.
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
    """The config's name and its overrides; a digest replaces the overrides if the name exceeds 100 characters."""
    whole = "-".join([name, *overrides]).replace("/", "_")
    return whole if len(whole) <= 100 else f"{name}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:10]}"


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Every entry of a nested mapping, by its dotted key."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping | ConfigDict) else {prefix + key: value}
    return flat


def did_you_mean(key: str, known: list[str]) -> str:
    """ "did you mean …" with known keys that are spelled alike, as a whole or in the last part; else all known keys."""
    tails = {k.rpartition(".")[2]: k for k in known}
    close = difflib.get_close_matches(key, known, n=3)
    close += [tails[t] for t in difflib.get_close_matches(key.rpartition(".")[2], tails, n=3) if tails[t] not in close]
    return f"did you mean {', '.join(close[:4])}?" if close else f"known are {', '.join(known)}"
