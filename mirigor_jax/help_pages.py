"""The page that `--help` prints for the command or for a config, and docs/reference/settings.md.

`python -m mirigor_jax.help_pages` prints docs/reference/settings.md.
"""

import ast
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mirigor_jax import config_files
from mirigor_jax.fields import Setting, either, sections_of, settings_of
from mirigor_jax.settings import KINDS, Export, Study

WIDTH = 80  # columns
COMMAND = "python -m mirigor_jax.main"
DOORS = (
    ("nothing yet: see what it does on images whose information is known", "configs/cdp.py"),
    ("images, to train an encoder on", "configs/images.py:data=folder:PATH,size=64"),
    ("a checkpoint, or features with labels", "configs/encoder.py"),
    ("two arrays, or an array and labels", "configs/arrays.py"),
    ("a finished run, to be measured in another way", "configs/estimate.py"),
    ("a finished run, to be measured layer by layer", "configs/layers.py"),
    ("a TPU, a cluster, several machines", "configs/imagenet.py"),
)
FLAGS = (
    ("--config=FILE[:NAME=VALUE,...]", "The config, and its arguments. Required."),
    ("--config.KEY=VALUE", "Another value for a setting; --config.KEY=None if the setting may be None."),
    (
        "--workdir=FOLDER",
        "Folder for the results, or gs://BUCKET/RUN. The default is runs/NAME, named after the config. The same "
        "command continues a run that is there.",
    ),
    (
        "--verbose",
        "Print all progress lines also if stdout is no terminal, where each job prints only its last line else.",
    ),
    ("--tensorboard", "Also write event files for TensorBoard, RUN/tensorboard."),
    ("--wandb", "Also send the rows, and the report's numbers and pictures, to Weights & Biases."),
    (
        "--profile",
        "Also trace a few steps of training, encoding and the critic's fit for XProf and Perfetto, RUN/profile.",
    ),
    (
        "--coordinator=HOST:PORT --processes=N --process=I",
        "Make N processes one job, each with its own I. SLURM, Open MPI and TPU workers need none of these.",
    ),
    ("--help", "This page; with --config=FILE, that config's arguments and settings."),
)
EXAMPLES = (
    f"{COMMAND} --config=configs/cdp.py:pairing=color --workdir=runs/color",
    f"{COMMAND} --config=configs/cdp.py --help",
)


def page(argv: list[str]) -> str:
    """The page of the config that the arguments name; without a config, the page of the command.

    argv: the command's arguments without --help. Raises InputError if they are wrong.
    """
    if not any(argument.startswith("--config=") for argument in argv):
        return "\n".join(_general()) + "\n"
    text = config_files.config_in(argv)
    loaded = config_files.load(text)
    parsed = config_files.override(loaded.config, loaded.name, text, argv)
    return "\n".join(_of_config(text, loaded, config_files.flatten(parsed.config))) + "\n"


def _general() -> Iterator[str]:
    yield from _prose(
        "mirigor_jax measures how much information a representation holds: it trains encoders, freezes them, estimates "
        "the mutual information of the representations of two views, and certifies a lower bound of it."
    )
    yield ""
    yield from _command(f"{COMMAND} --config=FILE[:NAME=VALUE,...] [--config.KEY=VALUE ...]")
    yield "\nYou have"
    for have, config in DOORS:
        yield from _entry(have, f"--config={config}")
    yield from _prose("launch/ has scripts for TPU VMs, SLURM and arrays of runs; each explains itself with --help.", 6)
    yield "\nConfigs"
    for path in config_files.shipped_configs():
        yield from _entry(path, _first_line(path))
    yield "\nOptions"
    for flag, meaning in FLAGS:
        yield from _entry(flag, meaning)
    yield "\nExamples"
    for example in EXAMPLES:
        yield from _command(example)
    yield ""
    yield from _prose(
        "In Python: `import mirigor_jax as mj`, then mj.mi.estimate(x, y), mj.mi.estimate_labels(h, labels), "
        "mj.evaluate(h, labels). docs/start.md explains the results, docs/reference/settings.md has every setting."
    )


def _of_config(text: str, loaded: config_files.Loaded, values: Mapping[str, Any]) -> Iterator[str]:
    """The page of a config.

    text: the "PATH[:ARGUMENTS]" of the config. values: the config's values by dotted key.
    """
    path = text.partition(":")[0]
    lines = loaded.doc.splitlines()
    commands = [line for line in lines if line.startswith("python -m ")] or [f"{COMMAND} --config={path}"]
    yield path
    for part in "\n".join(line for line in lines if line not in commands).split("\n\n"):
        if part.strip():
            yield from ("", *_prose(" ".join(part.split())))
    yield from _arguments(path, loaded.arguments, values)
    yield from _settings(values)
    yield "\nExamples"
    for example, _, result in (command.partition("  ") for command in commands[:2]):
        yield from _command(example)
        yield from _prose(result.strip(), 6)
    yield ""
    yield from _prose(f"Options of the command, such as --workdir: {COMMAND} --help")


def _arguments(path: str, arguments: Mapping[str, Setting], values: Mapping[str, Any]) -> Iterator[str]:
    """The arguments that the config takes. `_settings` explains the key that an argument sets."""
    if arguments:
        yield ""
        yield from _prose(f"Arguments: --config={path}:NAME=VALUE,...")
    for name, argument in arguments.items():
        is_below = argument.key in values
        sets = f" Sets {argument.key}." if is_below else ""
        words = _sentences(argument, "{}, or several joined by +", names=not is_below)
        yield from _entry(f"{name}={shown(argument.default, '+')}", words + sets)


def _settings(values: Mapping[str, Any]) -> Iterator[str]:
    """Every setting with its value, by section; settings that only the config file defines come last."""
    kind = KINDS.get(str(values.get("kind")))
    known = {} if kind is None else settings_of(kind)
    yield "\nSettings: --config.KEY=VALUE"
    for prefix, title in ({} if kind is None else sections_of(kind)).items():
        yield ""
        yield from _prose(f"{prefix}* {title}." if prefix else f"{title}.")
        for key, setting in known.items():
            if _prefix(key) == prefix and key in values:
                differs = _plain(values[key]) != _plain(setting.default)
                default = f"  (default {shown(setting.default)})" if differs else ""
                yield from _entry(f"{key} = {shown(values[key])}{default}", _sentences(setting))
    if others := {key: value for key, value in values.items() if key not in known}:
        yield "\nOf this config file's own"
        for key, value in others.items():
            yield from _prose(f"{key} = {shown(value)}", 2)


def _sentences(setting: Setting, several: str = "tuple of {}", *, names: bool = True) -> str:
    """The meaning of a setting, and in brackets the values that it takes.

    several: words for a setting that takes several values; {} stands for their type.
    names: whether to list the entries of the setting's table.
    """
    said = [setting.meaning] if setting.meaning else []
    if setting.names and names:
        said.append(f"Names: {', '.join(setting.names)} ({setting.table}).")
    facts = [either(setting.values) or setting.kind.__name__]
    if setting.several:
        facts = [several.format(facts[0])]
    if setting.limits:
        facts.append(f"each {setting.limits}" if setting.several else setting.limits)
    facts += [setting.unit] if setting.unit else []
    facts += [f"None: {setting.none}"] if setting.none else []
    return " ".join([*said, f"[{'; '.join(facts)}]"])


def shown(value: Any, joint: str = "") -> str:
    """A value as a user writes it on a command line. joint: the separator of several values; "": write a tuple."""
    if isinstance(value, tuple | list):
        if any(isinstance(each, Mapping) for each in value):
            return f"{len(value)} {'entry' if len(value) == 1 else 'entries'}"
        if joint:
            return joint.join(map(shown, value))
        return f"({', '.join(map(repr, value))}{',' * (len(value) == 1)})"
    return repr(value) if value == "" else str(value)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _prefix(key: str) -> str:
    return key[: key.rfind(".") + 1]


def _first_line(path: str) -> str:
    """The first line of a shipped config's docstring."""
    file = next(folder / path for folder in config_files.SHIPPED if (folder / path).is_file())
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


def _prose(text: str, indent: int = 0) -> Iterator[str]:
    space = " " * indent
    yield from textwrap.wrap(text, WIDTH, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)


def _entry(head: str, text: str) -> Iterator[str]:
    yield from textwrap.wrap(head, WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
    yield from _prose(text, 6)


def _command(text: str) -> Iterator[str]:
    """A command, wrapped into lines that a backslash continues."""
    lines = textwrap.wrap(text, WIDTH - 4, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    yield from " \\\n".join(f"  {line}" for line in lines).splitlines()


def reference() -> str:
    """The text of docs/reference/settings.md."""
    lines = [
        "# Every setting",
        "",
        "Made by `python -m mirigor_jax.help_pages > docs/reference/settings.md` from `mirigor_jax/settings.py`. "
        "`python -m mirigor_jax.main --config=FILE --help` shows those of one config, with its values and arguments.",
    ]
    for kind, section in KINDS.items():
        titles, known = sections_of(section), settings_of(section)
        lines += ["", f"## {kind}: {titles['']}"]
        for prefix, title in titles.items():
            if section is Study and prefix.startswith("run."):
                continue  # the table of `Images` has them
            own = {key: setting for key, setting in known.items() if _prefix(key) == prefix}
            lines += ["", *([f"### {prefix}*: {title}", ""] if prefix else []), *_table(own)]
        if section is Study:
            lines += ["", "`run.*` are the settings of every run: those of a run on images, as above."]
    export = f"## python -m mirigor_jax.data.cdp: {sections_of(Export)['']}"
    words = (
        "It also takes `seed`, `data.size`, `data.pairing`, `data.mi`, `data.seed`, `data.epsilon.*` and `data.cdp.*`."
    )
    lines += ["", export, "", *_table(settings_of(Export)), "", words]
    return "\n".join(lines) + "\n"


def _table(settings: Mapping[str, Setting]) -> Iterable[str]:
    yield "| key | default | meaning |"
    yield "| --- | --- | --- |"
    for key, setting in settings.items():
        words = _sentences(setting).replace("|", "\\|").replace("[", "(").replace("]", ")")
        yield f"| `{key}` | `{shown(setting.default)}` | {words} |"


if __name__ == "__main__":
    print(reference(), end="")
