"""The command line: python -m mirigor_jax.main --config=FILE[:ARGUMENTS] [--config.KEY=VALUE …] [--workdir=DIR].

Messages and exit codes; everything else is in the libraries.
"""

import os
import sys
from pathlib import Path

from mirigor_jax import configuration
from mirigor_jax.errors import InputError


def keep_compiled_programs() -> None:
    """Have JAX keep what it compiles in the user's cache folder, unless the environment says otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mirigor_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def main(argv: list[str] | None = None) -> int:
    """Run one config. Returns the exit code: 0, 2 for bad input (one line on stderr), 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(f"{(__doc__ or '').splitlines()[0]}\nShipped configs, each with its arguments in its header:\n  ", end="")
        print("\n  ".join(configuration.shipped_configs()))
        return 0
    try:
        config, name, workdir = configuration.parse(argv)
        keep_compiled_programs()
        from mirigor_jax import experiment, study  # JAX starts only for a command line that is right

        (study if config.kind == "study" else experiment).run(config, name, workdir)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
