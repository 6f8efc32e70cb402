"""The command line: python -m mirigor_jax.main --config=FILE[:ARGUMENTS] [--config.KEY=VALUE …] [--workdir=DIR].

Messages and exit codes; everything else is in the libraries.
"""

import sys

from mirigor_jax import configuration
from mirigor_jax.errors import InputError


def main(argv: list[str] | None = None) -> int:
    """Run one config. Returns the exit code: 0, 2 for bad input (one line on stderr), 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(f"{(__doc__ or '').splitlines()[0]}\nShipped configs, each with its arguments in its header:\n  ", end="")
        print("\n  ".join(configuration.shipped_configs()))
        return 0
    try:
        config, name, workdir = configuration.parse(argv)
        from mirigor_jax import experiment  # JAX starts only for a command line that is right

        experiment.run(config, name, workdir)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
