"""The console command `mirigor`: short forms of this package's commands. Their flags stay as they are.

`mirigor run cdp:k=2 --workdir=runs/k2` is `python -m mirigor_jax.main --config=configs/cdp.py:k=2 --workdir=runs/k2`.
`mirigor --help` lists all parts, and `mirigor PART --help` explains one.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mirigor_jax import __version__, stopping  # quick to import: signal handlers are set before slow imports
from mirigor_jax.errors import InputError

# bash and zsh complete the name of a part, and after `run` and `plan` that of a config.
COMPLETION = """_mirigor() {{
  local word=${{COMP_WORDS[COMP_CWORD]}}
  if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "{parts}" -- "$word"))
  elif [[ "${{COMP_WORDS[1]}}" =~ ^(run|plan)$ && "$COMP_CWORD" -eq 2 ]]; then
    COMPREPLY=($(compgen -W "{configs}" -- "$word") $(compgen -f -X '!*.py' -- "$word"))
  else COMPREPLY=($(compgen -f -- "$word")); fi
}}
[ -n "$ZSH_VERSION" ] && autoload -U +X bashcompinit && bashcompinit
complete -o filenames -F _mirigor mirigor
"""


@dataclass(frozen=True)
class Part:
    """A part of the command.

    usage: what follows its name. meaning: one sentence.
    run: (arguments, or None for those of the process) → the exit code.
    translate: the arguments after the part's name → those that `run` takes.
    """

    usage: str
    meaning: str
    run: Callable[[list[str] | None], int]
    translate: Callable[[Sequence[str]], list[str]] = list


def main(argv: Sequence[str] | None = None) -> int:
    """Run one part. argv: the arguments; None: those of the process. Returns the exit code, as `main.main` does."""
    given = list(sys.argv[1:] if argv is None else argv)
    name = given[0] if given else "--help"
    if name in ("-h", "--help"):
        print(page(), end="")
        return 0
    if name == "--version":
        print(f"mirigor-jax {__version__}")
        return 0
    if name == "completion":
        print(completion(), end="")
        return 0
    if name not in PARTS:
        known = ", ".join([*PARTS, "completion"])
        print(f"error: unknown part '{name}'; choose one of {known}, or give --help", file=sys.stderr)
        return 2
    try:
        arguments = PARTS[name].translate(given[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if argv is not None:
        return PARTS[name].run(arguments)
    sys.argv[1:] = arguments  # so the part knows that the process is its own
    return PARTS[name].run(None)


def page() -> str:
    """The page of --help."""
    lines = ["mirigor measures how much information a representation holds.", ""]
    for name, part in PARTS.items():
        lines += [f"  mirigor {name} {part.usage}", f"      {part.meaning}"]
    lines += [
        "  mirigor completion",
        '      Prints a script for bash and zsh: eval "$(mirigor completion)" completes parts and configs.',
        "  mirigor --version",
        "",
        "Each part explains itself with --help. docs/start.md explains the results. run, estimate, rank, plan",
        "and export take --verbose: print all progress lines also if stdout is no terminal.",
    ]
    return "\n".join(lines) + "\n"


def completion() -> str:
    """The script that completes parts and configs."""
    from mirigor_jax.config_files import shipped_configs

    configs = " ".join(path.removeprefix("configs/").removesuffix(".py") for path in shipped_configs())
    return COMPLETION.format(parts=" ".join([*PARTS, "completion"]), configs=configs)


def _positional(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the arguments that are no flags, the flags)."""
    flags = [argument for argument in argv if argument.startswith("-")]
    return [argument for argument in argv if not argument.startswith("-")], flags


def _config(argv: Sequence[str]) -> list[str]:
    """NAME[:ARGUMENTS] or FILE.py[:ARGUMENTS] becomes --config=FILE.py[:ARGUMENTS]."""
    names, flags = _positional(argv)
    if len(names) > 1 or not (names or {"-h", "--help"} & set(flags) or any(f.startswith("--config=") for f in flags)):
        raise InputError(f"give one config, such as cdp, images:data=folder:PATH or my/config.py (got {len(names)})")
    for text in names:
        path, colon, arguments = text.partition(":")
        path = path if path.endswith(".py") else f"configs/{path}.py"
        flags = [f"--config={path}{colon}{arguments}", *flags]
    return flags


def _arrays(argv: Sequence[str]) -> list[str]:
    """X and Y become --config.x=X and --config.y=Y."""
    arrays, flags = _positional(argv)
    if len(arrays) > 2:
        raise InputError(f"give two arrays, X and Y, or X and --config.labels=FILE (got {len(arrays)} files)")
    given = [f"--config.{name}={path}" for name, path in zip("xy", arrays, strict=False)]
    return [*_with_config("configs/arrays.py", flags), *given]


def _encoders(argv: Sequence[str]) -> list[str]:
    """Paths of encoders become --config=configs/rank.py:encoders=PATH+PATH."""
    paths, flags = _positional(argv)
    named = f":encoders={'+'.join(paths)}" if paths else ""
    return _with_config(f"configs/rank.py{named}", flags)


def _with_config(text: str, flags: list[str]) -> list[str]:
    return flags if any(flag.startswith("--config=") for flag in flags) else [f"--config={text}", *flags]


def _main(argv: list[str] | None) -> int:
    from mirigor_jax.main import main

    return main(argv)


def _plan(argv: list[str] | None) -> int:
    from mirigor_jax.plan.__main__ import main

    return main(argv)


def _report(argv: list[str] | None) -> int:
    from mirigor_jax.report import main

    return main(argv)


def _export(argv: list[str] | None) -> int:
    from mirigor_jax.data import cdp, export

    return export.main(cdp.export, argv)


PARTS: dict[str, Part] = {
    "run": Part(
        "CONFIG[:NAME=VALUE,...] [--config.KEY=VALUE ...] [--workdir=FOLDER]",
        "Train, freeze, estimate and certify, as the config says; cdp is a good first one.",
        _main,
        _config,
    ),
    "estimate": Part(
        "X Y [--config.KEY=VALUE ...]",
        "Mutual information of two arrays; X --config.labels=FILE: of features and labels.",
        _main,
        _arrays,
    ),
    "rank": Part(
        "PATH... --config.run.data.source=IMAGES",
        "Rank encoders by how much they hold about the classes of a set of images.",
        _main,
        _encoders,
    ),
    "plan": Part(
        "CONFIG[:NAME=VALUE,...] --topology=v5e:4x4",
        "Tell whether a run fits a TPU slice, and how fast it can be there.",
        _plan,
        _config,
    ),
    "report": Part(
        "FOLDER",
        "Make the web page of a run or a study, of a running one too, or of many runs side by side.",
        _report,
    ),
    "export": Part(
        "--out=FOLDER [--format=npz] [--data.KEY=VALUE ...]",
        "Write pairs of CDP images with known mutual information for any framework.",
        _export,
    ),
}


def console() -> None:
    """The entry point of the console command: run one part, and end the process with its exit code."""
    stopping.leave_after(main())


if __name__ == "__main__":
    console()
