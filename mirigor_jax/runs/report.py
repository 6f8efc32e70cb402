"""A run's report in three forms: report.json for programs, report.md for readers, a table for the terminal."""

import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from mirigor_jax import metrics, tables
from mirigor_jax.files import AnyPath, replace_json, replace_text
from mirigor_jax.runs.folder import RunFolder, provenance

Report = dict[str, Any]
Row = tuple[str, str, str]


class Form(NamedTuple):
    """How a kind of run is told. sections: of its report.md; lines: of its closing table."""

    sections: Callable[[Report], list[str]]
    lines: Callable[[Report], list[str]]


HEADER: Row = ("quantity", "value", "what it is")

CAPTIONS = {
    "estimators": "Each estimator's value with its t-interval, and what is certified of the mutual information.",
    "bars": "H(C), in-training and post-training MI, after Lee et al. 2023, Fig. 4; the whisker is the t-interval.",
    "critic": "The critic's fit with the step chosen on validation, and the estimates against K.",
    "training": "Training loss and in-training MI against the ceiling log₂(2K−1) and H(C).",
    "linear": "Linear evaluation of the frozen encoder.",
    "metrics": "What probes read off the frozen encoder, and the geometry of its representations.",
    "pairs": "Positive pairs, each view with its attributes.",
}


def write(workdir: AnyPath, report: Report, form: Form, captions: Mapping[str, str] = CAPTIONS) -> None:
    """Write report.md, with the pictures found in workdir/figures, and report.json.

    Each replaces its predecessor in one step, so a crash leaves the old one whole. NaN and infinities become null.
    captions: of the pictures, by their stems and in their order.
    """
    figures = [path.relative_to(workdir).as_posix() for path in (workdir / "figures").glob("*.png")]
    # report.json comes last: where it is, the run is finished.
    replace_text(workdir / "report.md", markdown(report, form, figures, captions))
    replace_json(workdir / "report.json", report)


def publish(
    config: ConfigDict,
    folder: RunFolder,
    parts: dict[str, Any],
    drawn: dict[str, Figure],
    form: Form,
    *,
    captions: Mapping[str, str] = CAPTIONS,
) -> None:
    """Write and print the report: the parts of this kind of run, and what its stages noted."""
    # A kill between a stage's result and its note leaves the result alone.
    stages = folder.read("stages.json") or {}
    last = stages.get("estimate") or provenance()
    document = {
        "name": folder.name,
        "workdir": str(folder),
        **parts,
        "run": {
            "seconds": {name: stage["seconds"] for name, stage in stages.items()}
            | {"total": sum((stage["seconds"] for stage in stages.values()), 0.0)},
            "peak_memory_gib": max((stage["peak_memory_gib"] for stage in stages.values()), default=0.0),
            **{name: last[name] for name in ("devices", "versions", "revision")},
            "stages": stages,
            "config": json.loads(config.to_json()),
            "seed": config.seed,
        },
    }
    folder.write_figures(drawn)
    write(folder.path, document, form, captions)
    print("\n" + table(document, form), flush=True)


def markdown(report: Report, form: Form, figures: Sequence[str] = (), captions: Mapping[str, str] = CAPTIONS) -> str:
    """The report for a reader; MI in bits, accuracies in percent.

    figures: paths of pictures relative to the report; a stem that `captions` has gets its caption and place.
    """
    run = report["run"]
    sections = [f"# {report['name']}", *form.sections(report)]
    if figures:
        sections += ["## Figures", *pictures(figures, captions)]
    facts = [
        _seconds(run["seconds"]),
        f"devices: {run['devices']}; peak memory {run['peak_memory_gib']:.2f} GiB",
        f"seed: {run['seed']}",
        f"revision: {run['revision'] or 'unknown'}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
        "every setting: [config.json](config.json); every number: [report.json](report.json)",
    ]
    sections += ["## Run", _list(facts)]
    return "\n\n".join(sections) + "\n"


def table(report: Report, form: Form) -> str:
    """The terminal's closing table: plain text, the path of report.md on its last line.

    At most 100 columns, if the values of `estimators` are below 10 bits.
    """
    run = report["run"]
    lines = form.lines(report)
    title = f"{report['name']}, seed {run['seed']}, on {run['devices']}"
    time = textwrap.fill(_seconds(run["seconds"]), width=100)
    return "\n".join([title, "", *lines, "", time, f"report: {report['workdir']}/report.md"])


def _image_sections(report: Report) -> list[str]:
    estimate = report["estimate"]
    headline, *conclusions = estimate["conclusions"]
    sections = [f"**{headline}**", tables.grid(HEADER, _mi_rows(report))]
    if conclusions:
        sections += ["## What may be concluded", _list(conclusions)]
    sections += ["## Post-training estimate", _fit(estimate["fit"]), _routes(estimate), _curve(estimate["curve"])]
    if others := _other_rows(report):
        sections += ["## Other estimates of this encoder", tables.grid(HEADER, others)]
    if linear := _linear_rows(report):
        sections += ["## Linear evaluation", tables.grid(HEADER, linear)]
    if report["metrics"]:
        sections += ["## Metrics", *_metrics(report)]
    return sections


def _image_lines(report: Report) -> list[str]:
    rows = [*_mi_rows(report), *_other_rows(report), *_linear_rows(report), *_metric_rows(report)]
    left, middle = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [
        textwrap.fill(
            f"{quantity:<{left}}  {value:>{middle}}  {kind}".rstrip(),
            width=100,
            subsequent_indent=" " * (left + middle + 4),
            break_on_hyphens=False,
        )
        for quantity, value, kind in rows
    ]


def _arrays_sections(report: Report) -> list[str]:
    sections = [f"**{report['estimate']['sentence']}**", tables.grid(*_estimators(report)), _legend(report)]
    if warnings := _warnings(report):
        sections += ["## Warnings", _list(warnings)]
    if report["estimate"].get("routes"):
        sections += ["## Certificates", _routes(report["estimate"])]
    if notes := [
        f"{one['name']}, {one['kind']}: {one['note']}." for one in report["estimates"].values() if one["note"]
    ]:
        sections += ["## What each estimator is", _list(notes)]
    return sections


def _arrays_lines(report: Report) -> list[str]:
    header, rows = _estimators(report)
    warnings = [f"warning: {warning}" for warning in _warnings(report)]
    return [
        *tables.aligned(header, rows, "<<>>>>>>"),
        "",
        *(line for text in (_legend(report), *warnings) for line in textwrap.wrap(text, 100)),
    ]


def _estimators(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one an estimator, in bits; a column in which nobody has anything is left out."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "estimator": lambda one: one["name"],
        "kind": lambda one: one["kind"],
        "bits": lambda one: tables.bits(one["value_bits"]),
        "t-interval": lambda one: tables.ends(one["t_lower_bits"], one["t_upper_bits"]),
        "certified": _certified,
        "InfoNCE": lambda one: tables.bits(one["bound_bits"]),
        "ceiling": lambda one: tables.bits(one["ceiling_bits"]),
        "mean ± std": lambda one: (
            f"{tables.bits(one['mean_bits'])} ± {tables.bits(one['spread_bits'])}"
            if tables.known(one["spread_bits"])
            else "–"
        ),
    }
    cells = {name: [of(one) for one in report["estimates"].values()] for name, of in columns.items()}
    kept = {name: column for name, column in cells.items() if set(column) != {"–"}}
    return list(kept), [list(row) for row in zip(*kept.values(), strict=True)]


def _certified(estimate: dict[str, Any]) -> str:
    lower, upper = tables.down(estimate["lower_bits"]), estimate["upper_bits"]
    if upper is not None:
        return tables.ends(lower, upper)
    return "–" if lower is None else f"≥ {tables.bits(lower)}"


def _legend(report: Report) -> str:
    """What the columns of `_estimators` are."""
    estimate, (header, _) = report["estimate"], _estimators(report)
    words = [f"MI in bits, K = {estimate['k']:,} of {estimate['pairs']:,} test pairs"]
    if tables.known(report["truth"].get("entropy_bits")):
        words += [f"H(C) = {tables.bits(report['truth']['entropy_bits'])}"]
    words += [f"the t-interval is approximate, what is certified holds, each at {100 * estimate['confidence']:g} %"]
    if "InfoNCE" in header:
        words += ["InfoNCE: the lower bound that the same critic gives, beside an estimator that is none"]
    if "mean ± std" in header:
        words += [f"mean and standard deviation are of {len(estimate['seed_bits'])} seeds' own critics"]
    return "; ".join(words) + "."


def _warnings(report: Report) -> list[str]:
    """Each once: most are of the data."""
    return list(dict.fromkeys(warning for one in report["estimates"].values() for warning in one["warnings"]))


def _mi_rows(report: Report) -> list[Row]:
    truth, estimate = report["truth"], report["estimate"]
    shared = ", ".join(truth.get("shared", ())) or "nothing is shared"
    rows = []
    if truth.get("entropy_bits") is not None:
        rows += [("H(C)", f"{tables.bits(truth['entropy_bits'])} bits", f"entropy of the class ({shared})")]
    if truth.get("mutual_information_bits") is not None:
        true = f"{tables.bits(truth['mutual_information_bits'])} bits"
        rows += [("true MI, I(X;Y)", true, "exact; no encoder can exceed it")]
    if in_training := report.get("in_training"):
        ceiling = f"not a bound; K = {in_training['k']}, ceiling {tables.bits(in_training['ceiling_bits'])} bits"
        rows += [("in-training MI", f"{tables.bits(in_training['mi_bits'])} bits", ceiling)]
    paper_k = estimate["paper_k"]
    ceiling = f"not a bound; K = {paper_k}, ceiling {tables.bits(math.log2(2 * paper_k - 1))} bits"
    rows += [("post-training MI, paper's form", f"{tables.bits(estimate['paper_bits'])} bits", ceiling)]
    ceiling = f"{estimate['kind']}; K = {estimate['k']}, ceiling {tables.bits(estimate['ceiling_bits'])} bits"
    rows += [("post-training MI, strict InfoNCE", f"{tables.bits(estimate['strict_bits'])} bits", ceiling)]
    confidence = f"{100 * estimate['confidence']:g} %"
    if tables.known(estimate["t_lower_bits"]) and tables.known(estimate["t_upper_bits"]):
        interval = tables.interval(estimate["t_lower_bits"], estimate["t_upper_bits"])
        rows += [("  its t-interval", interval, f"approximate, at {confidence}, over disjoint batches")]
    if estimate["certificate"]:
        source = f"{estimate['certificate']} certificate at {confidence}"
    else:
        source = "no certificate" if estimate["lower_bits"] is None else "needs no certificate"
    interval = tables.interval(tables.down(estimate["lower_bits"]), estimate["upper_bits"])
    return [*rows, ("I(h_X;h_Y) lies in", interval, f"{estimate['verdict']}; {source}")]


def _other_rows(report: Report) -> list[Row]:
    own = report["estimate"]["name"]
    return [
        (
            f"estimate {name}",
            f"{tables.bits(other['value_bits'])} bits",
            f"{other['kind']}, K = {other['k']}; in "
            f"{tables.interval(tables.down(other['lower_bits']), other['upper_bits'])}"
            f" at {100 * other['confidence']:g} %: {other['verdict']}",
        )
        for name, other in report["estimates"].items()
        if name != own
    ]


def _linear_rows(report: Report) -> list[Row]:
    return [
        (f"linear accuracy, {task}", f"{100 * accuracy:.2f} %", "on test images")
        for task, accuracy in (report.get("linear") or {}).items()
    ]


def _metric_rows(report: Report) -> list[Row]:
    values = metrics.shown(report["metrics"])
    return [
        (metric.title, metric.text(value), "on test images" if metric.group == "probes" else "")
        for metric, value in values
    ]


def _metrics(report: Report) -> list[str]:
    """The encoder's rows: a line a pairing as in Lee et al. 2023, Table IV, and what the probes read."""
    columns, rows = metrics.grouped(report["metrics"], "augmentation", "class", "images")
    lines = []
    for group, values in rows.items():
        of = report["estimates"].get(report["measured"].get(group))
        mi = "–" if of is None else f"{tables.bits(of['strict_bits'])}; {_certified(of)}"
        lines.append(
            (metrics.row_name(group), mi, *(metric.text(x) for metric, x in zip(columns, values, strict=True)))
        )
    grids = [tables.grid(("pairing", "strict InfoNCE; certified, bits", *(one.column for one in columns)), lines)]
    columns, rows = metrics.grouped(report["metrics"], "probes")
    for values in rows.values():
        cells = [metric.text(value) for metric, value in zip(columns, values, strict=True)]
        grids.append(tables.grid([metric.column for metric in columns], [cells]))
    config = report["run"]["config"]
    k, temperature = config["estimate"]["paper_k"], config["train"]["temperature"]
    legend = (
        f"The contrastive loss is at K = {k} (or all pairs there are) and temperature {temperature:g}. Rows have unit "
        "length; alignment is the mean squared distance of positive pairs, uniformity the log of the mean Gaussian "
        "potential of all pairs (t = 2), tolerance the mean cosine within a class (Wang & Isola 2020, Wang & Liu "
        "2021). NMI: what a probe shows of I(h;C) / H(C)."
    )
    return [*grids, legend]


def _fit(fit: dict[str, Any]) -> str:
    return (
        f"The encoder is frozen; its critic took {fit['steps']:,} steps at K = {fit['k']}. "
        f"Step {fit['best_step']:,} was best on validation and is the one tested."
    )


def _routes(estimate: dict[str, Any]) -> str:
    """The lower end by each route that was tried."""
    rows = [
        (
            name + (", the certificate" if name == estimate["certificate"] else ""),
            f"{tables.bits(tables.down(route['lower_bits']))} bits",
            ", ".join(f"{count:,} {what}" for what, count in route.items() if what != "lower_bits"),
        )
        for name, route in estimate["routes"].items()
        if route
    ]
    if not rows:
        return "No route gave a certificate."
    return tables.grid(("route", f"lower end at {100 * estimate['confidence']:g} %", "from"), rows)


def _curve(curve: Sequence[dict[str, Any]]) -> str:
    header = ("K", "batches", "strict (bits)", "t-interval", "reach(K)", "log₂ K", "paper's form (bits)", "log₂(2K−1)")
    rows = [
        (
            str(point["k"]),
            str(point["batches"]),
            tables.bits(point["strict_bits"]),
            tables.interval(point["t_lower_bits"], point["t_upper_bits"]),
            tables.bits(point["reach_bits"]),
            tables.bits(point["ceiling_bits"]),
            tables.bits(point["paper_bits"]),
            tables.bits(point["paper_ceiling_bits"]),
        )
        for point in curve
    ]
    return tables.grid(header, rows) + "\n\nreach(K) is the most that any critic can show at that K, in bits."


def pictures(figures: Sequence[str], captions: Mapping[str, str]) -> list[str]:
    """Markdown of each picture with its caption, those of `captions` first and in its order."""
    stems = {Path(path).stem: path for path in sorted(figures)}
    order = [stem for stem in captions if stem in stems] + [stem for stem in stems if stem not in captions]
    return [f"![{stem}]({stems[stem]})\n\n{captions.get(stem, stem)}" for stem in order]


def _seconds(seconds: dict[str, float]) -> str:
    return "time: " + ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


IMAGE_FORM = Form(_image_sections, _image_lines)
ARRAY_FORM = Form(_arrays_sections, _arrays_lines)
