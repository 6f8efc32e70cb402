"""Every kind of run in one table, by `config.kind`.

A new kind is one entry, in a config file too: `RUN_KINDS["mine"] = RunKind(run)`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
from ml_collections import ConfigDict

from mirigor_jax.errors import InputError
from mirigor_jax.monitoring import NO_MONITORING, Monitoring
from mirigor_jax.runs import arrays, images, re_estimate
from mirigor_jax.studies import grid, invertible


@dataclass(frozen=True)
class RunKind:
    """How a config of this kind is run.

    run: (config, name, workdir or None, monitoring). Runs or resumes it and writes its report; raises InputError for
        what the user can put right.
    is_shared: whether several processes can run it together.
    is_watched: whether it trains what --tensorboard and --profile show.
    """

    run: Callable[[ConfigDict, str, str | None, Monitoring], None]
    is_shared: bool = True
    is_watched: bool = True


RUN_KINDS: dict[str, RunKind] = {
    "images": RunKind(images.run),
    "restore": RunKind(re_estimate.run),
    "arrays": RunKind(arrays.run, is_shared=False, is_watched=False),
    "study": RunKind(grid.run),
    "invertible": RunKind(invertible.run, is_shared=False),
}


def run(config: ConfigDict, name: str, workdir: str | None, monitoring: Monitoring = NO_MONITORING) -> None:
    """Run a config by its kind. Raises InputError if there is no such kind, or if it cannot be run as asked."""
    if config.kind not in RUN_KINDS:
        raise InputError(f"unknown kind '{config.kind}'; choose one of {', '.join(RUN_KINDS)}")
    kind = RUN_KINDS[config.kind]
    if not kind.is_shared and jax.process_count() > 1:
        raise InputError(f"a job of kind {config.kind} is one process's; start it without the others")
    if not kind.is_watched and monitoring != NO_MONITORING:
        raise InputError(
            f"--tensorboard and --profile are of trainings and their critics; a job of kind {config.kind} has none"
        )
    kind.run(config, name, workdir, monitoring)
