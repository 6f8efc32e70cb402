"""Another estimate of a finished run's encoder, without training it again."""

from typing import Any

from ml_collections import ConfigDict

from mirigor_jax import parallel
from mirigor_jax.data.sources.table import holds_features
from mirigor_jax.errors import InputError
from mirigor_jax.files import failures, reason
from mirigor_jax.monitoring import UNWATCHED, Watch
from mirigor_jax.runs.estimate import estimate_stage, finished_estimate
from mirigor_jax.runs.features import own_features
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.images import add_estimate, write_report
from mirigor_jax.runs.job import digests, estimate_name, parse, precision, re_estimated


def run(overrides: ConfigDict, name: str, workdir: str | None, watch: Watch = UNWATCHED) -> None:
    """Re-estimate as a config of kind `restore` asks. Raises InputError for what the user can put right."""
    del name  # the run's own folder has it
    if workdir:
        raise InputError(
            f"--workdir={workdir} is not for re-estimates: they go into the restored run, RUN/estimates/NAME"
        )
    if not overrides.restore:
        raise InputError("config.restore='' is not a run folder; give a run's path")
    asked = {name: value for name, value in overrides.items() if name not in ("kind", "restore") and value is not None}
    re_estimate(RunFolder.at(overrides.restore), watch, **asked)


def re_estimate(folder: RunFolder, watch: Watch = UNWATCHED, **asked: Any) -> None:
    """Another estimate of a finished run's encoder, in `folder`/estimates/NAME. asked: as `re_estimated` takes it.

    Raises InputError where there is no finished run, or nothing new to estimate under that name.
    """
    own = ConfigDict(parallel.from_main(_restorable, folder))
    config, name = re_estimated(own, **asked)
    print(f"run folder: {folder}, estimate: {name}", flush=True)
    with precision(config):
        try:
            job = parse(config)
            changed = digests(own) != own.get("sha256", ConfigDict()).to_dict()
        except AttributeError as error:
            raise InputError(f"the run in '{folder}' was made by an older version ({error}); run it again") from error
        if changed:
            raise InputError(
                f"the encoder or the features of the run in '{folder}' are no longer what it was made from"
            )
        with folder.lock():
            add_estimate(own, job, folder, name, folder / "estimates" / name, watch=watch)
            _renew(own, folder, watch)
            parallel.from_main(write_report, job.of(own), folder)


def _renew(own: ConfigDict, folder: RunFolder, watch: Watch) -> None:
    """Make the estimates of an older version again: from their critics' checkpoints, if they are there."""
    for path in (one.path.parent for one in folder.matches("estimates/*/estimate.json")):
        if finished_estimate(RunFolder(path)) is not None:
            continue
        print(f"estimate {path.name}: of an older version, made again", flush=True)
        job = parse(ConfigDict(RunFolder(path).config() or own.to_dict()))
        if path.name == estimate_name(own):
            estimate_stage(job, folder, job.name, own_features(job, folder), folder, watch=watch)
        else:
            add_estimate(own, job, folder, path.name, RunFolder(path), watch=watch)


def _restorable(folder: RunFolder) -> dict[str, Any]:
    """The config of a finished run. Raises InputError where there is none."""
    path = folder.path
    try:
        found = folder.exists("config.json")
    except failures(path) as error:
        raise InputError(f"config.restore='{folder}' cannot be read ({reason(error)}); give a run's path") from error
    own = folder.config() if found else None
    if own is None:
        raise InputError(f"config.restore='{folder}' is not a run folder: no config.json there; give a run's path")
    has_encoder = bool(own["encoder"]["path"]) or holds_features(own["data"]["source"])
    if not has_encoder and not any((path / "train").glob("[0-9]*")):
        raise InputError(f"no checkpoint in '{path / 'train'}'; finish the run first, then restore it")
    if not folder.exists("report.json"):
        raise InputError(f"the run in '{folder}' is not finished; give its own command again, then restore it")
    return own
