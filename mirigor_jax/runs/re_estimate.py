"""Another estimate of a finished run's encoder, without training it again."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from mirigor_jax import parallel
from mirigor_jax.config_files import flatten
from mirigor_jax.data.sources.table import holds_features
from mirigor_jax.errors import InputError
from mirigor_jax.files import describe, io_errors
from mirigor_jax.monitoring import NO_MONITORING, Monitoring
from mirigor_jax.runs import knobs
from mirigor_jax.runs.estimate import estimate_stage, finished_estimate
from mirigor_jax.runs.features import own_features
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.images import add_estimate, write_report
from mirigor_jax.runs.job import Job, changed_key, digests, estimate_name, parse, precision, re_estimated


def run(overrides: ConfigDict, name: str, workdir: str | None, monitoring: Monitoring = NO_MONITORING) -> None:
    """Make the estimate that a config of kind `restore` asks for.

    Raises InputError if the user has to correct something.
    """
    del name  # the estimate goes into the restored run's folder
    if workdir:
        raise InputError(
            f"--workdir={workdir} is not for re-estimates: they go into the restored run, RUN/estimates/NAME"
        )
    if not overrides.restore:
        raise InputError("config.restore='' is not a run folder; give a run's path")
    re_estimate(RunFolder.at(overrides.restore), monitoring, **_asked(overrides))


def idle(overrides: ConfigDict, given: Sequence[str]) -> dict[str, str]:
    """The given keys that have no effect, each with words for a message.

    Raises InputError if there is no finished run.
    """
    if not overrides.restore:
        return {}
    run_config = ConfigDict(parallel.from_main(restorable, RunFolder.at(overrides.restore)))
    config, _ = re_estimated(run_config, **_asked(overrides))
    keys = {changed_key(key): key for key in given}
    return {keys[key]: words for key, words in knobs.idle(config, list(keys)).items()}


def _asked(overrides: ConfigDict) -> dict[str, Any]:
    """The changes that a config of kind `restore` makes to the run's config, as arguments of `re_estimated`."""
    return {name: value for name, value in overrides.items() if name not in ("kind", "restore") and value is not None}


def re_estimate(folder: RunFolder, monitoring: Monitoring = NO_MONITORING, **asked: Any) -> None:
    """Make another estimate of a finished run's encoder, in `folder`/estimates/NAME, and write the report again.

    folder: the run's folder. asked: arguments of `re_estimated`.
    Raises InputError if there is no finished run, if its encoder or features have changed, or if another estimate has
    that name.
    """
    parallel.from_main(restorable, folder)  # the lock needs an existing run folder
    with folder.lock():
        run_config = ConfigDict(parallel.from_main(restorable, folder))
        config, name = re_estimated(run_config, **asked)
        print(f"run folder: {folder}, estimate: {name}", flush=True)
        with precision(config):
            job = parse_restored(config, run_config, folder)

            def stages(opened: Monitoring) -> None:
                add_estimate(run_config, job, folder, name, folder / "estimates" / name, monitoring=opened)
                _renew(run_config, folder, opened)
                parallel.from_main(write_report, job.of(run_config), folder)

            with monitoring.opened(folder.path, flatten(run_config)) as opened:
                folder.mend(partial(stages, opened))


def parse_restored(config: ConfigDict, run_config: ConfigDict, folder: RunFolder) -> Job:
    """The job of a config that changes a run's config. folder: the run's.

    Raises InputError as `parse` does, and if the run's encoder or features have changed since.
    """
    try:
        job = parse(config)
        changed = digests(run_config) != run_config.get("sha256", ConfigDict()).to_dict()
    except AttributeError as error:
        raise InputError(f"the run in '{folder}' was made by an older version ({error}); run it again") from error
    if changed:
        raise InputError(f"the encoder or the features of the run in '{folder}' are no longer what it was made from")
    return job


def _renew(itself: ConfigDict, folder: RunFolder, monitoring: Monitoring) -> None:
    """Make the estimates of an older version again, from their critics' checkpoints if there are any."""
    names = [match.path.parent.name for match in folder.matches("estimates/*/estimate.json")]
    for target in (folder / "estimates" / name for name in names):
        if finished_estimate(target) is not None:
            continue
        print(f"estimate {target.name}: of an older version, made again", flush=True)
        job = parse(ConfigDict(target.config() or itself.to_dict()))
        if target.name == estimate_name(itself):
            estimate_stage(job, folder, job.name, own_features(job, folder), folder, monitoring=monitoring)
        else:
            add_estimate(itself, job, folder, target.name, target, monitoring=monitoring)


def restorable(folder: RunFolder) -> dict[str, Any]:
    """The config of a finished run. Raises InputError if the folder holds none."""
    path = folder.path
    try:
        is_run = folder.exists("config.json")
    except io_errors(path) as error:
        raise InputError(f"config.restore='{folder}' cannot be read ({describe(error)}); give a run's path") from error
    run_config = folder.config() if is_run else None
    if run_config is None:
        raise InputError(f"config.restore='{folder}' is not a run folder: no config.json there; give a run's path")
    has_pretrained_encoder = bool(run_config["encoder"]["path"]) or holds_features(run_config["data"]["source"])
    if not has_pretrained_encoder and not any((path / "train").glob("[0-9]*")):
        raise InputError(f"no checkpoint in '{path / 'train'}'; finish the run first, then restore it")
    if not folder.exists("report.json"):
        raise InputError(f"the run in '{folder}' is not finished; give its own command again, then restore it")
    return run_config
