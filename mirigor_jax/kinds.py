"""Every kind of run in one table, by `config.kind`.

A new kind is one entry, in a config file too: `RUN_KINDS["mine"] = RunKind(run)`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
from ml_collections import ConfigDict

from mirigor_jax import fields
from mirigor_jax.config_files import flatten
from mirigor_jax.errors import InputError
from mirigor_jax.monitoring import NO_MONITORING, Monitoring
from mirigor_jax.runs import arrays, images, knobs, layers, re_estimate
from mirigor_jax.settings import KINDS
from mirigor_jax.studies import grid, high_mi, invertible


def nothing_idle(config: ConfigDict, given: Sequence[str]) -> Mapping[str, str]:
    """The `idle` of a kind of run in which every setting has an effect."""
    return {}


@dataclass(frozen=True)
class RunKind:
    """How to run a config of one kind.

    run: (config, name, workdir or None, monitoring). Runs or resumes the config and writes its report. Raises
        InputError if the user has to correct something.
    is_shared: whether several processes can run it together.
    is_watched: whether it has stages that --tensorboard, --wandb and --profile can show.
    idle: (config, keys that the user gave) → the keys that have no effect, each with words that follow KEY=VALUE in a
        message. Keys that the user did not give are not judged: a config file sets values for whole families of runs.
    """

    run: Callable[[ConfigDict, str, str | None, Monitoring], None]
    is_shared: bool = True
    is_watched: bool = True
    idle: Callable[[ConfigDict, Sequence[str]], Mapping[str, str]] = nothing_idle


RUN_KINDS: dict[str, RunKind] = {
    "images": RunKind(images.run, idle=knobs.idle),
    "restore": RunKind(re_estimate.run, idle=re_estimate.idle),
    "layers": RunKind(layers.run, is_shared=False, is_watched=False, idle=layers.idle),
    "arrays": RunKind(arrays.run, is_shared=False, is_watched=False, idle=arrays.idle),
    "study": RunKind(grid.run, idle=grid.idle),
    "invertible": RunKind(invertible.run, is_shared=False, idle=invertible.idle),
    "high_mi": RunKind(high_mi.run, is_shared=False, is_watched=False, idle=high_mi.idle),
}


def run(
    config: ConfigDict,
    name: str,
    workdir: str | None,
    monitoring: Monitoring = NO_MONITORING,
    given: Sequence[str] = (),
) -> None:
    """Run a config by its kind.

    given: keys that the command line names.
    Raises InputError, before anything is written, if there is no such kind, if the kind cannot run in several processes
    or be monitored as asked, if a setting is out of its limits, or if a given setting has no effect.
    """
    if config.kind not in RUN_KINDS:
        raise InputError(f"unknown kind '{config.kind}'; choose one of {', '.join(RUN_KINDS)}")
    kind = RUN_KINDS[config.kind]
    if not kind.is_shared and jax.process_count() > 1:
        raise InputError(f"a job of kind {config.kind} runs in one process; start a single process")
    if not kind.is_watched and monitoring != NO_MONITORING:
        raise InputError(
            f"--tensorboard, --wandb and --profile show trainings and their critics; a job of kind {config.kind} has "
            "none: leave them out"
        )
    values = flatten(config)
    if config.kind in KINDS:
        fields.check(KINDS[config.kind], values)
    said = [key for key in given if values[key] not in (None, "")]
    if said and (idle := kind.idle(config, said)):
        key, words = next(iter(idle.items()))
        raise InputError(f"{key}={values[key]!r} {words}")
    kind.run(config, name, workdir, monitoring)
