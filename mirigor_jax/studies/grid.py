"""A study: a grid of runs, a table of the finished ones, and figures.

Each run has an ordinary run folder inside the study's folder. The code of single runs makes, continues and re-estimates
it; this module chooses, counts and reads the runs. A study may also make fits of its own, each in its own folder.
"""

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict

from mirigor_jax import parallel, stopping
from mirigor_jax.config_files import did_you_mean, flatten
from mirigor_jax.errors import InputError, listed
from mirigor_jax.files import io_errors, write_text
from mirigor_jax.manifest import DamagedError
from mirigor_jax.monitoring import NO_MONITORING, Monitoring
from mirigor_jax.progress import Progress, duration
from mirigor_jax.runs import images, knobs, report_page, side_by_side
from mirigor_jax.runs.folder import RunFolder, provenance
from mirigor_jax.runs.job import re_estimated
from mirigor_jax.runs.lock import LockedError
from mirigor_jax.runs.re_estimate import re_estimate
from mirigor_jax.runs.report import pictures
from mirigor_jax.runs.schema import ImageReport, read
from mirigor_jax.studies.rows import Row
from mirigor_jax.studies.table import STUDIES

T = TypeVar("T")
FIT = "fit.json"  # of a finished fit's folder: its rows, its seconds, and the devices


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    config: the run's settings; None if another study trained it, or for a fit.
    tags: name → value. Facts about the run that its row shows beside its measurements.
    """

    name: str
    folder: RunFolder
    config: ConfigDict | None
    tags: Mapping[str, Any] = field(default_factory=dict)


def run(config: ConfigDict, name: str, workdir: str | None, monitoring: Monitoring = NO_MONITORING) -> None:
    """Run the study's unfinished cells, or only the cell that `study.only` names, and tabulate all finished cells.

    The fits come after the runs, and are left out if `study.only` names a run.
    Raises InputError if the study can't start, and at the end if a run or a fit failed.
    """
    folder = RunFolder.at(workdir or f"runs/studies-{name}")
    print(f"study folder: {folder}", flush=True)
    if config.study.name not in STUDIES:
        raise InputError(f"unknown study '{config.study.name}'; choose one of {', '.join(STUDIES)}")
    cells, fits = cells_of(config, folder), _fits_of(config, folder)
    if not cells and not fits:
        raise InputError(f"the study {config.study.name} has no runs; give its config's arguments, which --help lists")
    chosen, wanted = chosen_of(config.study.only, cells), config.study.estimates
    with folder.claimed(_without_tags(config), wait=True):
        pass  # released at once: other processes may run cells of this study at the same time
    finish = partial(_finish, wanted=wanted, monitoring=monitoring)
    errors = _work(cells, chosen, "run", lambda cell: finished(cell, wanted) is not None, finish) if cells else {}
    if fits and not config.study.only:
        finish_fit = partial(_finish_fit, config=config, runs={cell.name: cell.folder for cell in cells})
        errors |= _work(fits, fits, "fit", lambda fit: _rows_of(fit) is not None, finish_fit)
        chosen = [*chosen, *fits]
    _tabulate(config, folder, cells, fits, errors)
    if errors:
        what = "runs and fits" if fits else "runs"
        raise InputError(f"{len(errors)} of {len(chosen)} {what} failed, the others went on: see {folder / 'study.md'}")


def _fits_of(config: ConfigDict, folder: RunFolder) -> list[Cell]:
    """The cells of the study's fits. Raises InputError if the study, or a job of several processes, makes no fits."""
    if not config.study.fits:
        return []
    if STUDIES[config.study.name].fits is None:
        raise InputError(f"study.fits: the study {config.study.name} fits no critics besides its runs; leave them out")
    if jax.process_count() > 1 and not config.study.only:
        raise InputError(
            "the fits of a study need a single process; start one, or for runs alone give --config.study.only=1/N"
        )
    names = [f"fits/{fit['name']}" for fit in config.study.fits]
    return [Cell(name, RunFolder(folder.path / name), None) for name in names]


def cells_of(config: ConfigDict, folder: RunFolder) -> list[Cell]:
    """The study's own runs, and the finished runs of the studies that `study.sources` names."""
    cells = [
        Cell(cell["name"], RunFolder(folder.path / cell["name"]), run_config, dict(cell.get("tags", {})))
        for cell, run_config in zip(config.study.cells, configs_of(config.run, config.study.cells), strict=True)
    ]
    study = STUDIES[config.study.name]
    if study.row is None:
        for name in ("cells", "sources", "only", "estimates"):
            if given := config.study[name]:
                words = f"the study {config.study.name} makes fits and has no runs; leave it out"
                raise InputError(f"study.{name}={given!r}: {words}")
    tags = study.tags
    for source in map(RunFolder.at, filter(None, config.study.sources.split(","))):
        cells += [
            Cell(f"{source.name.removeprefix('studies-')}/{name}", RunFolder(source.path / name), None, phrase)
            for name, phrase in parallel.from_main(_finished_cells, source, tags)
        ]
    for cell in cells:
        if missing := [tag for tag in tags if tag not in cell.tags]:
            raise InputError(f"{cell.name}: study {config.study.name} needs a tag '{missing[0]}' of each cell; give it")
    return cells


def configs_of(run: ConfigDict, cells: Sequence[Mapping[str, Any]]) -> list[ConfigDict]:
    """The config of each cell's run: `run` with the keys that the cell sets. Raises InputError for an unknown key."""
    known, configs = flatten(run), []
    for cell in cells:
        if unknown := cell["run"].keys() - known.keys():
            raise InputError(
                f"{cell['name']}: unknown config key '{min(unknown)}'; {did_you_mean(min(unknown), list(known))}"
            )
        configs.append(ConfigDict(run.to_dict()))
        configs[-1].update_from_flattened_dict(cell["run"])
    return configs


def idle(config: ConfigDict, given: Sequence[str]) -> dict[str, str]:
    """Of the `given` keys, those that affect no run of the study: key → the reason."""
    # The study also re-estimates each run, and an estimate may use a setting that the run itself does not.
    runs = [
        (cell["run"], [own, *(re_estimated(own, **asked)[0] for asked in config.study.estimates)])
        for cell, own in zip(config.study.cells, configs_of(config.run, config.study.cells), strict=True)
    ]
    words = {key: _idle_words(key.removeprefix("run."), runs) for key in given if key.startswith("run.")}
    return {key: said for key, said in words.items() if said is not None}


def _idle_words(key: str, runs: Sequence[tuple[Mapping[str, Any], Sequence[ConfigDict]]]) -> str | None:
    """Why the key has no effect; None if it has one.

    runs: for each run, (the settings of its cell, [its config, the configs of its re-estimates]).
    """
    if not runs:
        return "only affects a study's own runs, and this study has none; leave it out"
    rules = [knobs.rule_of(config, key) for own, configs in runs if key not in own for config in configs]
    if not rules:
        return "has no effect, since every run of this study sets its own value; leave it out"
    found = [rule for rule in rules if rule is not None]
    if len(found) < len(rules):
        return None
    return f"only affects {found[0].whose}, and no run of this study uses it; leave it out"


def _without_tags(config: ConfigDict) -> ConfigDict:
    """The config without the cells' tags. No result depends on tags, so changed tags may use the same folder."""
    run_config = ConfigDict(config.to_dict())
    run_config.study.cells = tuple({"name": cell["name"], "run": cell["run"]} for cell in config.study.cells)
    return run_config


def _finished_cells(source: RunFolder, tags: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """For each finished run in a study's folder: (its name, those of the given tags that its row has).

    Raises InputError if the folder does not hold a study.
    """
    try:
        study = source.read("study.json")
        if study is None:
            raise FileNotFoundError("no study.json there")
        return [(row["cell"], {tag: row[tag] for tag in tags if tag in row}) for row in study["rows"]]
    except (io_errors(source.path), ValueError, KeyError) as error:
        raise InputError(f"study.sources: '{source}' is no study's folder; run that study first ({error})") from error


def chosen_of(only: str, cells: Sequence[T]) -> Sequence[T]:
    """All cells, or the one cell that `only`, such as `3/16`, names. Raises InputError if there is none."""
    if not only:
        return cells
    number, _, total = only.partition("/")
    if total != str(len(cells)) or not number.isdigit() or not 1 <= int(number) <= len(cells):
        raise InputError(f"study.only='{only}': this study has {len(cells)} runs; give 1/{len(cells)} and so on")
    return [cells[int(number) - 1]]


def finished(cell: Cell, wanted: Sequence[dict[str, Any]]) -> ImageReport | None:
    """The run's report; None if it is missing, unreadable, or lacks one of the wanted re-estimates."""
    try:
        contents = cell.folder.read("report.json")
        report = None if contents is None else read(ImageReport, contents)
    except InputError:  # written by another version, or damaged: the run makes it again
        return None
    return report if report is not None and _names(report, wanted) <= report.estimates.keys() else None


def _names(report: ImageReport, wanted: Sequence[dict[str, Any]]) -> set[str]:
    """The names that the report gives to the wanted re-estimates."""
    return {re_estimated(ConfigDict(report.run.config), **asked)[1] for asked in wanted}


def _work(
    cells: Sequence[Cell],
    chosen: Sequence[Cell],
    what: str,
    is_finished: Callable[[Cell], bool],
    finish: Callable[[Cell], None],
) -> dict[str, str]:
    """Finish the chosen cells; a cell that another process holds comes after the others.

    what: the word for a cell.
    Returns the name of each cell that failed → its error message.
    """
    todo = [cell for cell in chosen if not is_finished(cell)]
    before = len(chosen) - len(todo)
    print(f"{len(cells)} {what}s, {len(chosen)} asked for, {before} of these finished before", flush=True)
    errors: dict[str, str] = {}
    locked: list[Cell] = []
    began, done = time.monotonic(), 0
    for last, batch in ((False, todo), (True, locked)):
        for cell in batch:
            left = f"; about {duration((time.monotonic() - began) / done * (len(todo) - done))} left" if done else ""
            print(f"\n=== {what} {cells.index(cell) + 1} of {len(cells)}: {cell.name}{left}", flush=True)
            try:
                finish(cell)
                done += 1
            except LockedError:
                print(f"another process is running it: {'skipped' if last else 'tried again later'}", flush=True)
                if not last:
                    locked.append(cell)
            except Exception as error:
                stopping.check()  # a library may have turned the exception of a stop into another one
                # The other runs go on after one has failed. Only an unexpected error in a job of several processes
                # ends the study, because no process can go on alone.
                if not isinstance(error, InputError):
                    if jax.process_count() > 1:
                        raise
                    traceback.print_exc()
                message = f"{type(error).__name__}: {error}".splitlines()[0]
                before_it = next((name for name, known in errors.items() if known == message), None)
                print(f"failed: {message if before_it is None else f'as {before_it}'}", file=sys.stderr, flush=True)
                errors[cell.name] = message
                done += 1
    return errors


def _finish_fit(cell: Cell, config: ConfigDict, runs: Mapping[str, RunFolder]) -> None:
    study = STUDIES[config.study.name]
    asked = next(fit for fit in config.study.fits if cell.name == f"fits/{fit['name']}")
    with cell.folder.lock():
        if _rows_of(cell) is not None:
            print("finished by another process", flush=True)
            return
        assert study.fits is not None  # `_fits_of` has refused the others
        began = time.monotonic()
        with Progress(cell.name):
            rows = study.fits.make(asked, runs, cell.folder)
        seconds, devices = round(time.monotonic() - began, 2), provenance()["devices"]
        cell.folder.write(FIT, {"seconds": seconds, "devices": devices, "rows": rows})


def _rows_of(fit: Cell) -> list[Row] | None:
    """The rows of a fit; None if it is not finished, or damaged, so that it is made again."""
    try:
        contents = fit.folder.read(FIT)
    except InputError:
        return None
    return None if contents is None else contents["rows"]


def _finish(cell: Cell, wanted: Sequence[dict[str, Any]], monitoring: Monitoring) -> None:
    if finished(cell, wanted):
        print("finished by another process", flush=True)
        return
    if cell.config is not None:
        images.run(cell.config, cell.name, str(cell.folder), monitoring)
    for asked in wanted:
        re_estimate(cell.folder, monitoring, **asked)


def _tabulate(
    config: ConfigDict, folder: RunFolder, cells: Sequence[Cell], fits: Sequence[Cell], failures: dict[str, str]
) -> None:
    """Write study.json, study.md, study.html and the figures from all finished cells, also of other processes."""
    wanted = config.study.estimates
    # The lock makes the process that writes last include the runs that all others have finished.
    with folder.lock(wait=True):
        reports = [(cell, finished(cell, wanted)) for cell in cells]
        parallel.from_main(_write_table, config, folder, reports, fits, failures)


def _write_table(
    config: ConfigDict,
    folder: RunFolder,
    reports: Sequence[tuple[Cell, ImageReport | None]],
    fits: Sequence[Cell],
    errors: dict[str, str],
) -> None:
    study, wanted = STUDIES[config.study.name], config.study.estimates
    rows: list[dict[str, Any]] = []
    errors, missing = dict(errors), []
    for cell, done in reports:
        if done:
            try:
                assert study.row is not None  # `cells_of` has refused runs without it
                seconds, row = _seconds(cell, done, wanted), study.row(done, cell.folder.path)
            except DamagedError as damaged:  # the table leaves out this run alone
                errors[cell.name] = str(damaged)
            else:
                facts: dict[str, Any] = {"cell": cell.name, "seconds": seconds, "devices": done.run.devices}
                rows.append({**facts, **cell.tags, **row})
                continue
        missing.append(cell.name)
    runs = {cell.name: cell.folder for cell, _ in reports}
    if rows and study.joined:
        rows = study.joined(rows, runs, folder)
    document = {
        "study": config.study.name,
        "runs": len(reports),
        "finished": len(rows),
        "missing": missing,
        "failures": errors,
        "rows": rows,
    }
    drawn = study.draw(rows) if rows and study.draw else {}
    fitted = {fit.name: made for fit in fits if (made := _rows_of(fit)) is not None}
    fit_rows = [row for made in fitted.values() for row in made]
    if fits:
        document["fits"] = {"asked": len(fits), "finished": len(fitted), "rows": fit_rows}
    more = [
        *([study.together(rows, runs, folder)] if rows and study.together else []),
        *([study.fits.section(fit_rows)] if fit_rows and study.fits else []),
    ]
    extra = [section for section in more if section is not None]
    folder.write_figures({**drawn, **{name: figure for one in extra for name, figure in one.figures.items()}})
    counted = f"{len(rows)} of {len(reports)} runs finished" + (f"; missing: {', '.join(missing)}" if missing else "")
    counted_fits = [f"{len(fitted)} of {len(fits)} fits finished."] if fits else []
    sections = [f"# {config.study.name}", *([f"{counted}."] if reports else []), *counted_fits]
    for message in dict.fromkeys(errors.values()):  # runs that share a fault, such as a missing file, share a line
        failed = [name for name, known in errors.items() if known == message]
        sections += [f"- {listed(failed, 5)} failed: {message}"]
    if rows and study.table:
        sections += [study.table(rows), *pictures([f"figures/{name}.png" for name in drawn], study.captions)]
    for one in extra:
        files = [f"figures/{name}.png" for name in one.figures]
        sections += [f"## {one.title}", one.text, *pictures(files, study.captions)]
    if spent := [*rows, *(fit.folder.read(FIT) for fit in fits if fit.name in fitted)]:
        total = duration(sum(one["seconds"] for one in spent))
        sections += [f"{total} in all, on {', '.join(sorted({one['devices'] for one in spent}))}."]
    more_files = {name: text for one in extra for name, text in one.files.items()}
    for name, text in more_files.items():
        write_text(folder.path / name, text)
    text = "\n\n".join(sections) + "\n"
    write_text(folder.path / "study.md", text)
    found = [side_by_side.Found(cell.folder, cell.name, cell.folder.config() or {}, done) for cell, done in reports]
    write_text(folder.path / "study.html", report_page.html(text, folder.path, more=side_by_side.section(found)))
    folder.write("study.json", document)
    written = ", ".join(str(folder / name) for name in ("study.md", "study.html", *more_files))
    print("\n" + "\n\n".join(sections[1:]) + f"\nstudy: {written}", flush=True)


def _seconds(cell: Cell, done: ImageReport, wanted: Sequence[dict[str, Any]]) -> float:
    """Seconds that this study spent on the cell: on its run, unless another study made it, and on its re-estimates."""
    noted = [cell.folder.read(f"estimates/{name}/stages.json") or {} for name in _names(done, wanted)]
    stages = [stage for stages_of_run in noted for stage in stages_of_run.values()]
    return sum((s["seconds"] for s in stages), done.run.seconds["total"] if cell.config is not None else 0.0)
