"""Does a run fit a TPU slice, and how fast can it be there? Compiles the run's own steps for slices that are not here.

python -m mirigor_jax.plan --config=FILE[:ARGUMENTS] --topology=v5e:4x4 [--config.KEY=VALUE …] [--workdir=DIR]
    [--only=train,encode,estimate] [--sweep] [--classes=N] [--verbose]

Needs libtpu (`pip install -e ".[plan]"`) and no TPU. No number is a measurement: the amounts of work are read from the
program that XLA:TPU compiles (`hlo.py`), and the chips' peak rates are published ones. Each step has two times. `at
best` is the longest of its arithmetic, HBM traffic and network, each at full speed. `without overlap` is the sum of the
three. Real steps take longer still. --verbose prints all progress lines also if stdout is no terminal.
"""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mirigor_jax import config_files
from mirigor_jax.errors import InputError
from mirigor_jax.files import plain, write_figure, write_json, write_text
from mirigor_jax.plan import chips, report, search
from mirigor_jax.plan.chips import gib
from mirigor_jax.plan.work import STAGES, prepare
from mirigor_jax.progress import verbosely
from mirigor_jax.runs.job import Job, precision


def run(
    config: ConfigDict,
    topology: str,
    folder: Path,
    *,
    classes: int | None = None,
    only: Sequence[str] = tuple(STAGES),
    sweep: bool = False,
) -> None:
    """Plan a run's stages on a TPU slice. Prints the plan and writes it to `folder`.

    topology: name of the slice, such as v5e:4x4.
    classes: number of classes, if the pairing needs it and the images are not rendered.
    only: names of the stages.
    sweep: whether to plan the run on 4 to 256 chips, too.
    Raises InputError as `chips.find` and `prepare` do, for an unknown stage, if `folder` has the plan of other options,
    and if the training batch doesn't fit.
    """
    if unknown := set(only) - STAGES.keys():
        raise InputError(f"--only={','.join(only)}: unknown '{min(unknown)}'; choose from {', '.join(STAGES)}")
    where = chips.find(topology)
    print(f"plan folder: {folder}", flush=True)
    job = prepare(config, classes)
    asked = {"topology": topology, "classes": classes, "only": [*only], "sweep": sweep, "config": job.config.to_dict()}
    _refuse_another_plan(folder / "plan.json", asked)
    with precision(job.config):
        rows, notes = _measured(job, where, only)
        trained = next((row for row in rows if row["stage"] == "train"), None)
        largest = trained and search.search(job, where, trained)
        curve = list(search.scaling(job, where, rows)) if sweep else []
    versions = {name: version(name) for name in ("mirigor-jax", "jax", "libtpu")}
    text = report.report(rows, notes, where, largest, curve, versions=versions)
    print(text)
    plan: dict[str, Any] = {
        "note": report.NOTE,
        "chip": where.chip._asdict(),
        "stages": rows,
        "notes": notes,
    }
    plan |= {"largest": largest, "scaling": curve, "versions": versions} | asked
    write_json(folder / "plan.json", plan)
    write_text(folder / "plan.md", text)
    if curve:
        write_figure(folder / "scaling.png", report.scaling(curve, where.name.partition(":")[0]))
    if trained and not trained["fits"]:
        raise InputError(_too_large(job.config, trained, largest))


def _refuse_another_plan(file: Path, asked: dict[str, Any]) -> None:
    """Raise InputError if the file exists and is not the plan of the same options, as a plan can take an hour."""
    if not file.exists():
        return
    try:
        kept = json.loads(file.read_text())
    except ValueError:
        kept = {}
    if {name: kept.get(name) for name in asked} != plain(asked):
        raise InputError(f"{file.parent} has the plan of other options; give --workdir=FOLDER, or move it away")


def _measured(job: Job, where: chips.Slice, stages: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """(A row for each stage that could be planned, a note for each that could not)."""
    rows, notes = [], []
    for stage in stages:
        try:
            rows.append(search.measure(STAGES[stage](job, where.devices), where, stage))
        except InputError as error:
            notes.append(f"{stage}: {error}")
    return rows, notes


def _too_large(config: ConfigDict, row: dict[str, Any], largest: dict[str, Any] | None) -> str:
    needed, available = (row["hbm"][f"{name}_bytes"] for name in ("needed", "available"))
    fits = largest and largest["largest_k"]
    advice = f"train.k={fits} fits" if fits else "no batch of whole pairs a chip fits; raise train.accumulate"
    return f"train.k={config.train.k} needs {gib(needed)} of {gib(available)} a chip of {row['topology']}; {advice}"


def main(argv: list[str] | None = None) -> int:
    """Plan one config. Returns the exit code: 0; 2 (and a line on stderr) if input is bad or the batch doesn't fit."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(__doc__, end="")
        return 0
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # the cache can't load programs for absent devices
    try:
        rest, options = config_files.pop_flags(argv, topology=str, classes=int, only=str, sweep=bool, verbose=bool)
        config, name, workdir, _ = config_files.parse(rest)
        if options["topology"] is None:
            raise InputError("give --topology=KIND:SHAPE, for example --topology=v5e:4x4")
        folder = Path(workdir or f"plans/{name}-{options['topology'].replace(':', '_')}").expanduser()
        only = (options["only"] or ",".join(STAGES)).split(",")
        with verbosely(options["verbose"]):
            run(config, options["topology"], folder, classes=options["classes"], only=only, sweep=options["sweep"])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
