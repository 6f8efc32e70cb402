"""The command line: python -m mirigor_jax.main --config=FILE[:ARGUMENTS] [--config.KEY=VALUE …] [--workdir=DIR].

This module prints messages and sets exit codes; everything else is in the libraries. --tensorboard, --wandb and
--profile also make event files, a run of Weights & Biases, and traces (see `monitoring`). --verbose prints all progress
lines also if stdout is no terminal (see `progress`). Several processes form one job if each one of a SLURM or Open MPI
job, or each worker of a TPU, starts the same command; elsewhere --coordinator=HOST:PORT --processes=N --process=I does
it.
"""

import contextlib
import io
import sys

from mirigor_jax import starting, stopping  # quick to import: signal handlers are set before the slow imports
from mirigor_jax.errors import InputError


def main(argv: list[str] | None = None) -> int:
    """Run one config.

    argv: the command line's arguments; None: those of the process, which ends after this call.
    Returns the exit code: 0; 2 for bad input (one line on stderr); 1 if another process is gone; 130 after Ctrl-C and
    143 after SIGTERM.
    """
    to_the_end = argv is None  # started as a command, not called from Python
    argv = sys.argv[1:] if argv is None else argv
    if to_the_end:  # the process runs nothing else, and has no other thread yet
        starting.keep_freed_memory()
    with stopping.honored(to_the_end=to_the_end):
        try:
            return _run(argv)
        except BaseException as error:
            stopping.heard()
            # A library may have turned the exception of a stop into another one.
            if (number := stopping.asked() or stopping.number_of(error)) is not None:
                print(stopping.said(number), file=sys.stderr)
                return 128 + number
            if isinstance(error, InputError):
                print(f"error: {error}", file=sys.stderr)
                return 2
            raise


def _run(argv: list[str]) -> int:
    with stopping.importing():
        from mirigor_jax import config_files
    if {"-h", "--help"} & set(argv):
        with stopping.importing():
            from mirigor_jax import help_pages

            flags = config_files.split_job_flags([a for a in argv if a not in ("-h", "--help")])
            print(help_pages.page(flags.rest), end="")
        return 0
    flags = config_files.split_job_flags(argv)
    starting.keep_compiled_programs()  # before JAX is imported, which a config file may do
    starting.choose_convolutions()
    with stopping.importing():
        config, name, workdir, given = config_files.parse(flags.rest)
        import jax

        # JAX starts only if the command line is valid.
        from mirigor_jax import kinds, memory, monitoring, parallel, progress
    memory.run_in_calling_thread()
    parallel.start(**flags.peers)
    reports = contextlib.nullcontext() if parallel.is_main() else contextlib.redirect_stdout(io.StringIO())
    with reports, progress.verbosely(flags.verbose):
        try:
            kinds.run(config, name, workdir, monitoring.Monitoring(**flags.monitoring), given)
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() == 1:
                raise
            # When this process ends, JAX names the process that is missing.
            print(f"error: another process is gone ({str(error).splitlines()[0]})", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    stopping.leave_after(main())
