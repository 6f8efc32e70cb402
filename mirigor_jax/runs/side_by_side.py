"""Many runs side by side: a table of their states and numbers, their intervals, and a plot of any two numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, cast

from mirigor_jax.config_files import flatten
from mirigor_jax.errors import InputError
from mirigor_jax.runs import page, report_page
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.page import Column
from mirigor_jax.runs.schema import ArrayReport, ImageReport, read
from mirigor_jax.tables import round_down, round_up

DEPTH = 4  # levels of folders in which runs are looked for
MOST_DRAWN = 40  # intervals in one drawing
STAGES = ("train", "encode", "estimate", "evaluate")
Ends = tuple[float | None, float | None] | None


@dataclasses.dataclass(frozen=True)
class Found:
    """A run: its folder, its name below the folder that was asked for, its config and its report, if it has one."""

    folder: RunFolder
    name: str
    config: Mapping[str, Any]
    report: ImageReport | ArrayReport | None


def report_of(folder: RunFolder) -> ImageReport | ArrayReport | None:
    """The report of a finished run on images or arrays; None without one, or if it is damaged or of another version."""
    for kind in (ImageReport, ArrayReport):
        try:
            contents = folder.read("report.json")
            return None if contents is None else cast("ImageReport | ArrayReport", read(kind, contents))
        except InputError:
            continue
    return None


def is_run(config: Mapping[str, Any] | None) -> TypeGuard[Mapping[str, Any]]:
    """Whether a folder's config is that of a run: not missing, and not that of a study, which holds runs."""
    return config is not None and "study" not in config


def runs_below(folder: RunFolder) -> list[Found]:
    """All runs below a folder, in the order of their names."""
    found, level = [], [folder]
    for _ in range(DEPTH):
        below = [each for parent in level for each in parent.matches("*") if each.path.is_dir()]
        configs = [(each, _config(each)) for each in below]
        for each, config in configs:
            if is_run(config):
                own = RunFolder(each.path)
                found.append(Found(own, each.path.relative_to(folder.path).as_posix(), config, report_of(own)))
        # A run's own folders hold no other runs.
        level = [each for each, config in configs if not is_run(config)]
    return sorted(found, key=lambda one: one.name)


def _config(folder: RunFolder) -> dict[str, Any] | None:
    """The config of a run; None if the folder holds none, or the config.json of another program."""
    try:
        config = folder.config()
    except InputError:
        return None
    return config if config is not None and "kind" in config else None


def state(stages: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    """What a run without a report does, in words."""
    steps = config.get("train", {}).get("steps")
    if "train" not in stages and rows and steps:
        return f"training, step {rows[-1]['step']:,} of {steps:,}"
    following = next((stage for stage in STAGES if stage not in stages), "report")
    return f"{len(stages)} stages done, next: {following}" if stages else "just begun"


def _state_of(one: Found) -> str:
    """What a run does, or that it is finished."""
    if one.report is not None:
        return "finished"
    if one.folder.exists("report.json"):
        return "finished; its report cannot be read"
    try:
        stages, rows = one.folder.read("stages.json") or {}, one.folder.rows("train/metrics.jsonl")
    except InputError:  # another process is writing them, or they are damaged, which the run's own command mends
        return "not readable now"
    return state(stages, rows, one.config)


def blocks(found: Sequence[Found]) -> list[str]:
    """The blocks of a page."""
    states = [_state_of(one) for one in found]
    finished = sum(state.startswith("finished") for state in states)
    links = [
        f"{one.name}/report.html" if one.folder.exists("report.html") else f"{one.name}/config.json" for one in found
    ]
    numbers = _numbers([one.report for one in found])
    columns = [
        Column("run", [one.name for one in found], links=links),
        Column("state", states),
        *numbers,
        *_settings([one.config for one in found]),
    ]
    result = [page.paragraph(f"{finished} of {len(found)} runs are finished. MI is in bits.")]
    if settled := [one for one in found if one.report is not None]:
        bars = [
            dataclasses.replace(bar, title=f"{one.name}: {bar.title}")
            for one in settled[:MOST_DRAWN]
            for bar in report_page.bars_of(one.report)[:1]
        ]
        if bars:
            result.append(page.intervals(bars, report_page.CAPTION))
    result.append(page.table(columns))
    known = [column for column in numbers if any(value is not None for value in column.values)]
    if len(known) > 1:
        result += [page.heading("Any two numbers"), page.scatter([one.name for one in found], known, 0, 1)]
    return result


def section(found: Sequence[Found]) -> list[str]:
    """The blocks as a section of a study's page; empty without runs."""
    return [page.heading("Runs"), *blocks(found)] if found else []


def _numbers(reports: Sequence[ImageReport | ArrayReport | None]) -> list[Column]:
    """A column for each number of reports."""
    rows = [_row(report) for report in reports]
    columns = []
    for title in dict.fromkeys(title for row in rows for title in row):
        values = [row.get(title, (None, None)) for row in rows]
        texts = [_text(value, ends) for value, ends in values]
        columns.append(Column(title, texts, [value for value, _ in values], [ends for _, ends in values]))
    return columns


def _row(report: ImageReport | ArrayReport | None) -> dict[str, tuple[float | None, Ends]]:
    """Title → (the number, its proven ends)."""
    if report is None:
        return {}
    estimate, usable = report.estimate, report.usable
    ends = None if estimate.lower_bits is None else (round_down(estimate.lower_bits), estimate.upper_bits)
    row: dict[str, tuple[float | None, Ends]] = {
        "H(C)": (report.truth.entropy_bits, None),
        "I, estimate [proven]": (estimate.value_bits, ends),
    }
    if usable is not None and usable.lower_bits is not None and usable.upper_bits is not None:
        proven = round_down(usable.lower_bits), round_up(usable.upper_bits)
        row["usable [proven]"] = (usable.value_bits, proven)
    if isinstance(report, ImageReport):
        if report.in_training is not None:
            row["in-training MI"] = (report.in_training.mi_bits, None)
        row |= {f"linear accuracy, {task}, %": (100 * share, None) for task, share in report.linear.items()}
    return row | {"seconds": (report.run.seconds["total"], None)}


def _text(value: float | None, ends: Ends) -> str:
    text = "–" if value is None else f"{value:z.3f}"
    if ends is None:
        return text
    return f"{text} [{', '.join('–' if end is None else f'{end:.3f}' for end in ends)}]"


def _settings(configs: Sequence[Mapping[str, Any]]) -> list[Column]:
    """A column for each setting in which the runs differ."""
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    differ = [key for key in keys if len({str(one.get(key)) for one in flat}) > 1]
    return [Column(key, ["–" if one.get(key) is None else str(one[key]) for one in flat]) for key in differ]
