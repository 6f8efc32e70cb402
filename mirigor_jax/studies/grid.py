"""A study: a grid of runs, a table over the finished ones, and figures.

Its runs are ordinary run folders inside the study's, made, continued and re-estimated as any; here they are only told
apart, counted and read.
"""

import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from ml_collections import ConfigDict

from mirigor_jax import parallel, stopping
from mirigor_jax.config_files import did_you_mean, flatten
from mirigor_jax.errors import InputError
from mirigor_jax.files import io_errors, write_text
from mirigor_jax.manifest import DamagedError
from mirigor_jax.monitoring import NO_MONITORING, Monitoring
from mirigor_jax.progress import duration
from mirigor_jax.runs import images, knobs
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import re_estimated
from mirigor_jax.runs.lock import LockedError
from mirigor_jax.runs.re_estimate import re_estimate
from mirigor_jax.runs.report import pictures
from mirigor_jax.runs.schema import ImageReport, read
from mirigor_jax.studies.table import STUDIES


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    config: what it is trained with; None if another study trained it.
    tags: what its row says of it beside what it measured, by name.
    """

    name: str
    folder: RunFolder
    config: ConfigDict | None
    tags: Mapping[str, Any] = field(default_factory=dict)


def run(config: ConfigDict, name: str, workdir: str | None, monitoring: Monitoring = NO_MONITORING) -> None:
    """Run what is not finished of the study's cells, or of those `study.only` names; then tabulate what is.

    Raises InputError where the study can't be started, and at its end where a run failed.
    """
    folder = RunFolder.at(workdir or f"runs/studies-{name}")
    print(f"study folder: {folder}", flush=True)
    if config.study.name not in STUDIES:
        raise InputError(f"unknown study '{config.study.name}'; choose one of {', '.join(STUDIES)}")
    cells = cells_of(config, folder)
    chosen = _chosen(config.study.only, cells)
    with folder.claimed(_without_tags(config), wait=True):
        pass  # other parts of the study are run beside this one
    errors = _work(cells, chosen, config.study.estimates, monitoring)
    _tabulate(config, folder, cells, errors)
    if errors:
        raise InputError(f"{len(errors)} of {len(chosen)} runs failed, the others went on: see {folder / 'study.md'}")


def cells_of(config: ConfigDict, folder: RunFolder) -> list[Cell]:
    """The config's own runs, and the finished ones of the studies it reads."""
    cells = [
        Cell(cell["name"], RunFolder(folder.path / cell["name"]), run_config, dict(cell.get("tags", {})))
        for cell, run_config in zip(config.study.cells, _own_configs(config), strict=True)
    ]
    tags = STUDIES[config.study.name].tags
    for source in map(RunFolder.at, filter(None, config.study.sources.split(","))):
        cells += [
            Cell(f"{source.name.removeprefix('studies-')}/{name}", RunFolder(source.path / name), None, phrase)
            for name, phrase in parallel.from_main(_finished_cells, source, tags)
        ]
    for cell in cells:
        if missing := [tag for tag in tags if tag not in cell.tags]:
            raise InputError(f"{cell.name}: study {config.study.name} needs a tag '{missing[0]}' of each cell; give it")
    return cells


def _own_configs(config: ConfigDict) -> list[ConfigDict]:
    """What each of the config's own runs is made with. Raises InputError for an unknown key."""
    known, configs = flatten(config.run), []
    for cell in config.study.cells:
        if unknown := cell["run"].keys() - known.keys():
            raise InputError(
                f"{cell['name']}: unknown config key '{min(unknown)}'; {did_you_mean(min(unknown), list(known))}"
            )
        configs.append(ConfigDict(config.run.to_dict()))
        configs[-1].update_from_flattened_dict(cell["run"])
    return configs


def idle(config: ConfigDict, given: Sequence[str]) -> dict[str, str]:
    """What is wrong with those of the given keys that have no effect in any run of the study."""
    # Each run is also restored, and an estimate may have a use for what the run itself has none for.
    runs = [
        (cell["run"], [own, *(re_estimated(own, **asked)[0] for asked in config.study.estimates)])
        for cell, own in zip(config.study.cells, _own_configs(config), strict=True)
    ]
    words = {key: _idle_words(key.removeprefix("run."), runs) for key in given if key.startswith("run.")}
    return {key: said for key, said in words.items() if said is not None}


def _idle_words(key: str, runs: Sequence[tuple[Mapping[str, Any], Sequence[ConfigDict]]]) -> str | None:
    """Why the key has no effect; None if it has one. runs: what each sets itself, and its config and its estimates'."""
    if not runs:
        return "is of runs of the study's own, and it has none; leave it out"
    rules = [knobs.rule_of(config, key) for own, configs in runs if key not in own for config in configs]
    if not rules:
        return "is set by each run of this study itself; leave it out"
    found = [rule for rule in rules if rule is not None]
    if len(found) < len(rules):
        return None
    return f"is of {found[0].whose}, and no run of this study has a use for it; leave it out"


def _without_tags(config: ConfigDict) -> ConfigDict:
    """The settings that results depend on: a folder belongs to these, whatever its table says beside them."""
    run_config = ConfigDict(config.to_dict())
    run_config.study.cells = tuple({"name": cell["name"], "run": cell["run"]} for cell in config.study.cells)
    return run_config


def _finished_cells(source: RunFolder, tags: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """The name of each run in a study's folder, and those of these tags that its row has.

    Raises InputError if the folder is no study's.
    """
    try:
        study = source.read("study.json")
        if study is None:
            raise FileNotFoundError("no study.json there")
        return [(row["cell"], {tag: row[tag] for tag in tags if tag in row}) for row in study["rows"]]
    except (io_errors(source.path), ValueError, KeyError) as error:
        raise InputError(f"study.sources: '{source}' is no study's folder; run that study first ({error})") from error


def _chosen(only: str, cells: Sequence[Cell]) -> Sequence[Cell]:
    """All cells, or the one that `3/16` names."""
    if not only:
        return cells
    number, _, total = only.partition("/")
    if total != str(len(cells)) or not number.isdigit() or not 1 <= int(number) <= len(cells):
        raise InputError(f"study.only='{only}': this study has {len(cells)} runs; give 1/{len(cells)} and so on")
    return [cells[int(number) - 1]]


def finished(cell: Cell, wanted: Sequence[dict[str, Any]]) -> ImageReport | None:
    """The run's report where it is there, with every estimate that is wanted of it."""
    try:
        contents = cell.folder.read("report.json")
        report = None if contents is None else read(ImageReport, contents)
    except InputError:  # of another version, or damaged: the run makes it again
        return None
    return report if report is not None and _names(report, wanted) <= report.estimates.keys() else None


def _names(report: ImageReport, wanted: Sequence[dict[str, Any]]) -> set[str]:
    return {re_estimated(ConfigDict(report.run.config), **asked)[1] for asked in wanted}


def _work(
    cells: Sequence[Cell], chosen: Sequence[Cell], wanted: Sequence[dict[str, Any]], monitoring: Monitoring
) -> dict[str, str]:
    """Finish the chosen cells, one that another process is at after all others; the message of each that failed."""
    todo = [cell for cell in chosen if not finished(cell, wanted)]
    print(f"{len(cells)} runs, {len(chosen)} asked for, {len(chosen) - len(todo)} of these finished before", flush=True)
    errors: dict[str, str] = {}
    locked: list[Cell] = []
    began, done = time.monotonic(), 0
    for last, batch in ((False, todo), (True, locked)):
        for cell in batch:
            left = f"; about {duration((time.monotonic() - began) / done * (len(todo) - done))} left" if done else ""
            print(f"\n=== run {cells.index(cell) + 1} of {len(cells)}: {cell.name}{left}", flush=True)
            try:
                _finish(cell, wanted, monitoring)
                done += 1
            except LockedError:
                print(f"another process is at it{', and keeps it' if last else ': later'}", flush=True)
                if not last:
                    locked.append(cell)
            except Exception as error:
                stopping.check()  # which a library may have made another exception of
                # One run's failure must not cost the others theirs; but among several processes none can go on alone.
                if not isinstance(error, InputError):
                    if jax.process_count() > 1:
                        raise
                    traceback.print_exc()
                errors[cell.name] = f"{type(error).__name__}: {error}".splitlines()[0]
                print(f"failed: {errors[cell.name]}", file=sys.stderr, flush=True)
                done += 1
    return errors


def _finish(cell: Cell, wanted: Sequence[dict[str, Any]], monitoring: Monitoring) -> None:
    if finished(cell, wanted):
        print("finished by another process", flush=True)
        return
    if cell.config is not None:
        images.run(cell.config, cell.name, str(cell.folder), monitoring)
    for asked in wanted:
        re_estimate(cell.folder, monitoring, **asked)


def _tabulate(config: ConfigDict, folder: RunFolder, cells: Sequence[Cell], failures: dict[str, str]) -> None:
    """study.json, study.md and the figures, of the runs that are finished; those of other processes too."""
    wanted = config.study.estimates
    # Whoever writes last has then seen the runs of all before.
    with folder.lock(wait=True):
        reports = [(cell, finished(cell, wanted)) for cell in cells]
        parallel.from_main(_write_table, config, folder, reports, failures)


def _write_table(
    config: ConfigDict, folder: RunFolder, reports: Sequence[tuple[Cell, ImageReport | None]], errors: dict[str, str]
) -> None:
    study, wanted = STUDIES[config.study.name], config.study.estimates
    rows: list[dict[str, Any]] = []
    errors, missing = dict(errors), []
    for cell, done in reports:
        if done:
            try:
                seconds, row = _seconds(cell, done, wanted), study.row(done, cell.folder.path)
            except DamagedError as damaged:  # one run's, which costs the others nothing
                errors[cell.name] = str(damaged)
            else:
                facts: dict[str, Any] = {"cell": cell.name, "seconds": seconds, "devices": done.run.devices}
                rows.append({**facts, **cell.tags, **row})
                continue
        missing.append(cell.name)
    document = {
        "study": config.study.name,
        "runs": len(reports),
        "finished": len(rows),
        "missing": missing,
        "failures": errors,
        "rows": rows,
    }
    drawn = study.draw(rows) if rows else {}
    folder.write_figures(drawn)
    counted = f"{len(rows)} of {len(reports)} runs finished" + (f"; missing: {', '.join(missing)}" if missing else "")
    sections = [f"# {config.study.name}", f"{counted}."]
    sections += [f"- {name} failed: {message}" for name, message in errors.items()]
    if rows:
        spent = duration(sum(row["seconds"] for row in rows))
        sections += [study.table(rows), *pictures([f"figures/{name}.png" for name in drawn], study.captions)]
        sections += [f"{spent} in all, on {', '.join(sorted({row['devices'] for row in rows}))}."]
    write_text(folder.path / "study.md", "\n\n".join(sections) + "\n")
    folder.write("study.json", document)
    print("\n" + "\n\n".join(sections[1:]) + f"\nstudy: {folder / 'study.md'}", flush=True)


def _seconds(cell: Cell, done: ImageReport, wanted: Sequence[dict[str, Any]]) -> float:
    """What the study's own stages took: the run's, unless another study made it, and those of its re-estimates."""
    noted = [cell.folder.read(f"estimates/{name}/stages.json") or {} for name in _names(done, wanted)]
    stages = [stage for stages_of_run in noted for stage in stages_of_run.values()]
    return sum((s["seconds"] for s in stages), done.run.seconds["total"] if cell.config is not None else 0.0)
