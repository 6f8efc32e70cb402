"""Pages for a browser of what a folder holds: python -m mirigor_jax.report FOLDER.

A run or a study gets its page again, FOLDER/report.html or FOLDER/study.html, also while it runs: the page then shows
how far it is. For any other folder, FOLDER/index.html shows all runs below it side by side. Nothing else is changed.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mirigor_jax.errors import InputError
from mirigor_jax.files import AnyPath, write_text
from mirigor_jax.history import TrainingHistory
from mirigor_jax.progress import duration
from mirigor_jax.runs import page, report_page, side_by_side
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.page import Column


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and print its path. Returns the exit code: 0, or 2 for bad input (one line on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m mirigor_jax.report", description=__doc__.split("\n\n")[1])
    parser.add_argument(
        "folder", metavar="FOLDER", help="A run, a study, or a folder that holds runs; or gs://BUCKET/…"
    )
    try:
        print(f"page: {write(RunFolder.at(parser.parse_args(argv).folder))}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write(folder: RunFolder) -> AnyPath:
    """Write the page of what the folder holds, and return its path. Raises InputError if it holds no run."""
    if not folder.path.is_dir():
        raise InputError(f"'{folder}' is no folder; give the folder of a run or a study, or one that holds runs")
    config = folder.config()
    found = [] if side_by_side.is_run(config) else side_by_side.runs_below(folder)
    stem = next((stem for stem in ("study", "report", "layers") if folder.exists(f"{stem}.md")), None)
    if stem is not None:
        text = (folder.path / f"{stem}.md").read_text(encoding="utf-8")
        report = side_by_side.report_of(folder)
        bars = [] if report is None else report_page.bars_of(report)
        contents = report_page.html(text, folder.path, bars, side_by_side.section(found))
    elif side_by_side.is_run(config):
        stem, contents = "report", page.page(folder.name, running(folder, config))
    elif found:
        stem = "index" if config is None else "study"
        contents = page.page(folder.name, side_by_side.blocks(found))
    else:
        raise InputError(f"'{folder}' holds no run (a folder with a config.json); give a folder that holds runs")
    path = folder.path / f"{stem}.html"
    write_text(path, contents)
    return path


def running(folder: RunFolder, config: Mapping[str, Any]) -> list[str]:
    """The blocks of a run without a report: the stages that are done, and its training so far."""
    stages = folder.read("stages.json") or {}
    rows = folder.rows("train/metrics.jsonl")
    state = side_by_side.state(stages, rows, config)
    blocks = [page.paragraph(f"Not finished: {state}. The same command continues it.")]
    done = [[name, duration(stage["seconds"])] for name, stage in stages.items()]
    if done:
        names, seconds = zip(*done, strict=True)
        blocks.append(page.table([Column("stage", names), Column("time", seconds)]))
    if rows:
        history = TrainingHistory.of(rows, config["train"]["k"])
        caption = f"Training so far: {history}." if len(rows) > 1 else "Training so far."
        blocks.append(page.figure(history.figure(), caption))
    return blocks


if __name__ == "__main__":
    sys.exit(main())
