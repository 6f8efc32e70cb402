"""A run's report in four forms: report.json for programs, report.md for readers, report.html for a browser, and a table
for the terminal."""

import dataclasses
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mirigor_jax import metrics, tables
from mirigor_jax.drawing import Figure
from mirigor_jax.files import write_text
from mirigor_jax.mi.results import Curve, shown_ends
from mirigor_jax.runs import report_page
from mirigor_jax.runs.folder import SAME_NUMBERS, RunFolder, provenance
from mirigor_jax.runs.schema import (
    ArrayEntry,
    ArrayReport,
    EstimateEntry,
    Fit,
    ImageReport,
    LayersReport,
    Report,
    Run,
    UsableEntry,
)

Row = tuple[str, str, str]


class Form(NamedTuple):
    """The form of the report for one kind of run.

    report: type of the report. sections: report → sections of report.md. lines: report → lines of the closing table.
    stem: of the files' names.
    """

    report: type[Report]
    sections: Callable[[Any], list[str]]
    lines: Callable[[Any], list[str]]
    stem: str = "report"


HEADER: Row = ("quantity", "value", "what it is")

SHARES_SHOWN = 12  # largest number of classes whose frequencies a report lists

CAPTIONS = {
    "estimators": "Each estimator's value with its interval, and what is certified of the mutual information.",
    "bars": "H(C), in-training and post-training MI, after Lee et al. 2023, Fig. 4; whiskers are intervals.",
    "critic": "The critic's fit with the step chosen on validation, and the estimates against K.",
    "training": "Training loss and in-training MI against the ceiling log₂(2K−1) and H(C).",
    "usable": "Usable information with its certified ends, and the pointwise information of each unseen image.",
    "hardest": "Unseen images that a linear probe predicts worst: label → prediction, pointwise information.",
    "linear": "Linear evaluation of the frozen encoder.",
    "metrics": "What probes read off the frozen encoder, and the geometry of its representations.",
    "pairs": "Positive pairs, each view with its attributes.",
    "layers": "Information about the class against depth, and what a linear probe reads off each stage.",
}


def write(folder: RunFolder, report: Report, form: Form, captions: Mapping[str, str] = CAPTIONS) -> None:
    """Write report.md, with the pictures found in the folder's figures/, report.html, and report.json.

    Each file replaces its predecessor in one step, so a crash leaves the old one whole. NaN and infinities become null.
    captions: stem of a picture's file → its caption, in the order of the report.
    """
    figures = [match.path.relative_to(folder.path).as_posix() for match in folder.matches("figures/*.png")]
    # report.json comes last: it marks the run as finished.
    text = markdown(report, form, figures, captions)
    write_text(folder.path / f"{form.stem}.md", text)
    write_text(folder.path / f"{form.stem}.html", report_page.html(text, folder.path, report_page.bars_of(report)))
    folder.write(f"{form.stem}.json", dataclasses.asdict(report))


def publish(
    config: ConfigDict,
    folder: RunFolder,
    parts: dict[str, Any],
    drawn: dict[str, Figure],
    form: Form,
    *,
    captions: Mapping[str, str] = CAPTIONS,
    notes: Sequence[str] = (),
) -> None:
    """Write and print the report.

    parts: the fields that this kind of run has, by name. drawn: figures by name. captions: as in `write`.
    notes: what was passed over in the user's files.
    """
    # A kill between a stage's result and its note leaves the result without a note.
    stages = folder.read("stages.json") or {}
    last = stages.get("estimate") or provenance()
    seconds = {name: stage["seconds"] for name, stage in stages.items()}
    run = Run(
        seconds=seconds | {"total": sum(seconds.values(), 0.0)},
        peak_memory_gib=max((stage["peak_memory_gib"] for stage in stages.values()), default=0.0),
        **{name: last[name] for name in ("devices", "versions", "revision")},
        cores=last.get("cores"),
        instructions=last.get("instructions"),
        xla_flags=last.get("xla_flags"),
        command=last.get("command"),
        same_numbers=SAME_NUMBERS,
        stages=stages,
        config=json.loads(config.to_json()),
        seed=config.seed,
        notes=tuple(notes),
    )
    document = form.report(name=folder.name, workdir=str(folder), run=run, **parts)
    folder.write_figures(drawn)
    write(folder, document, form, captions)
    print("\n" + table(document, form), flush=True)


def markdown(report: Report, form: Form, figures: Sequence[str] = (), captions: Mapping[str, str] = CAPTIONS) -> str:
    """The text of report.md, with MI in bits and accuracies in percent.

    figures: paths of pictures, relative to the report. captions: as in `write`.
    """
    run = report.run
    cores = "" if run.cores is None else f", {run.cores} CPU cores"
    sections = [f"# {report.name}", *form.sections(report)]
    if figures:
        sections += ["## Figures", *pictures(figures, captions)]
    facts = [
        *([] if run.command is None else [f"command: `{run.command}`"]),
        _seconds(run.seconds),
        f"devices: {run.devices}{cores}; peak memory {run.peak_memory_gib:.2f} GiB",
        f"seed: {run.seed}",
        f"revision: {run.revision or 'unknown'}",
        *(f"note: {note}" for note in run.notes),
        "versions: " + ", ".join(f"{name} {version}" for name, version in run.versions.items()),
        f"every setting: [config.json](config.json); every number: [{form.stem}.json]({form.stem}.json)",
    ]
    sections += ["## Run", _list(facts)]
    return "\n\n".join(sections) + "\n"


def table(report: Report, form: Form) -> str:
    """The table that a run prints at its end: plain text, with the paths of report.md and report.html on the last line.

    It has at most 100 columns if the values of the estimators are below 10 bits.
    """
    run = report.run
    lines = form.lines(report)
    title = f"{report.name}, seed {run.seed}, on {run.devices}"
    time = textwrap.fill(_seconds(run.seconds), width=100)
    return "\n".join([title, "", *lines, "", time, f"report: {report.workdir}/{form.stem}.md, {form.stem}.html"])


def _image_sections(report: ImageReport) -> list[str]:
    estimate = report.estimate
    headline, *conclusions = estimate.conclusions
    warnings = [f"**Warning: {warning}.**" for warning in estimate.warnings if warning not in headline]
    sections = [f"**{headline}**", *warnings, tables.grid(HEADER, _mi_rows(report))]
    if conclusions:
        sections += ["## What may be concluded", _list(conclusions)]
    sections += ["## Post-training estimate", _fit(estimate.fit), _certificates(estimate), *_curves(estimate.curve)]
    if others := _other_rows(report):
        sections += ["## Other estimates of this encoder", tables.grid(HEADER, others)]
    if report.usable is not None:
        sections += ["## Usable information", *_usable(report.usable, "image")]
    if linear := _linear_rows(report):
        sections += ["## Linear evaluation", tables.grid(HEADER, linear)]
    if report.metrics:
        sections += ["## Metrics", *_metrics(report)]
    return sections


def _image_lines(report: ImageReport) -> list[str]:
    rows = [*_mi_rows(report), *_other_rows(report), *_linear_rows(report), *_metric_rows(report)]
    left, middle = (max(len(row[column]) for row in rows) for column in (0, 1))
    warnings = [textwrap.fill(f"warning: {warning}", width=100) for warning in report.estimate.warnings]
    return warnings + [
        textwrap.fill(
            f"{quantity:<{left}}  {value:>{middle}}  {kind}".rstrip(),
            width=100,
            subsequent_indent=" " * (left + middle + 4),
            break_on_hyphens=False,
        )
        for quantity, value, kind in rows
    ]


def _layers_sections(report: LayersReport) -> list[str]:
    warnings = [f"**Warning: {warning}.**" for warning in _layer_warnings(report)]
    return [f"**{_most_usable(report)}**", *warnings, tables.grid(*_layers(report)), _layers_legend(report)]


def _layers_lines(report: LayersReport) -> list[str]:
    warnings = [f"warning: {warning}" for warning in _layer_warnings(report)]
    texts = (_most_usable(report), _layers_legend(report), *warnings)
    return [*tables.aligned(*_layers(report), "<>>>>>>>"), *(f"\n{textwrap.fill(text, width=100)}" for text in texts)]


def _layers(report: LayersReport) -> tuple[list[str], list[list[str]]]:
    """(the header, a row for each stage), in bits."""
    header = ["stage", "width", "I_class", "certified", "usable", "certified", "NMI", "accuracy"]
    return header, [
        [
            layer.stage,
            f"{layer.width:,}",
            tables.bits(layer.i_class_bits),
            "–" if layer.i_class_lower_bits is None else f"≥ {tables.bits(tables.down(layer.i_class_lower_bits))}",
            tables.bits(layer.usable_bits),
            tables.ends(tables.down(layer.usable_lower_bits), tables.up(layer.usable_upper_bits)),
            tables.bits(layer.nmi),
            f"{100 * layer.accuracy:.2f} %",
        ]
        for layer in report.layers
    ]


def _most_usable(report: LayersReport) -> str:
    """The stage with the largest estimate of usable information."""
    measured = [(layer.usable_bits, place, layer) for place, layer in enumerate(report.layers, 1)]
    known = [(bits, place, layer) for bits, place, layer in measured if bits is not None]
    if not known:
        return "Usable information is not measured."
    bits, place, layer = max(known, key=lambda each: each[0])
    return (
        f"The estimate of usable information about the class ({', '.join(report.shared)}) is largest at {layer.stage}, "
        f"stage {place} of {len(report.layers)}: {tables.bits(bits)} of {tables.bits(layer.entropy_bits)} bits. The "
        "certified bounds in the table hold for each stage alone, so they do not prove that one stage holds more than "
        "another."
    )


def _layers_legend(report: LayersReport) -> str:
    """The explanation of the columns of `_layers`."""
    rows = max(layer.unseen_rows for layer in report.layers)
    return (
        f"Stages are in the order of depth. I_class is the information that two images of one class share through a "
        f"stage's features, with its certified lower end; its upper end is H(C) = {report.entropy_bits:.3f} bits. "
        f"“Usable” is the information about the class that linear probes can use, with its certified lower and upper "
        f"end from {rows:,} images that the encoder has not seen. Each certified bound holds with "
        f"{100 * report.confidence:g} % confidence for its stage alone. NMI is I(h;C) / H(C), estimated from a linear "
        "probe's log-loss on test images; accuracy is that of the same probe."
    )


def _layer_warnings(report: LayersReport) -> list[str]:
    return [f"{layer.stage}: {warning}" for layer in report.layers for warning in layer.warnings]


def _arrays_sections(report: ArrayReport) -> list[str]:
    warnings = [f"**Warning: {warning}.**" for warning in _warnings(report)]
    sections = [f"**{report.estimate.sentence}**", *warnings, tables.grid(*_estimators(report)), _legend(report)]
    if report.estimate.certificates:
        sections += ["## Certificates", _certificates(report.estimate)]
    if notes := [
        f"{estimate.name}, {estimate.kind}: {estimate.note}." for estimate in report.estimates.values() if estimate.note
    ]:
        sections += ["## What each estimator is", _list(notes)]
    if report.usable is not None:
        rows = _usable_rows(report.usable, "row")
        sections += ["## Usable information", tables.grid(HEADER, rows), *_usable(report.usable, "row")]
    return sections


def _arrays_lines(report: ArrayReport) -> list[str]:
    header, rows = _estimators(report)
    warnings = [f"warning: {warning}" for warning in _warnings(report)]
    more = [] if report.usable is None else _usable_rows(report.usable, "row")
    usable = [line for row in more for line in textwrap.wrap(" ".join(row), 100, subsequent_indent="    ")]
    return [
        *tables.aligned(header, rows, "<<>>>>>>"),
        "",
        *usable,
        *(line for text in (_legend(report), *warnings) for line in textwrap.wrap(text, 100)),
    ]


def _estimators(report: ArrayReport) -> tuple[list[str], list[list[str]]]:
    """(the header, a row for each estimator), in bits. Columns without any value are left out."""
    columns: dict[str, Callable[[ArrayEntry], str]] = {
        "estimator": lambda estimate: estimate.name,
        "kind": lambda estimate: estimate.kind,
        "bits": lambda estimate: tables.bits(estimate.value_bits),
        "interval": lambda estimate: shown_ends(estimate.interval),
        "certified": _certified,
        "InfoNCE": lambda estimate: tables.bits(None if estimate.info_nce is None else estimate.info_nce.bits),
        "ceiling": lambda estimate: tables.bits(estimate.ceiling_bits),
        "mean ± std": lambda estimate: (
            f"{tables.bits(estimate.mean_bits)} ± {tables.bits(estimate.spread_bits)}"
            if tables.known(estimate.spread_bits)
            else "–"
        ),
    }
    cells = {name: [of(estimate) for estimate in report.estimates.values()] for name, of in columns.items()}
    filled = {name: column for name, column in cells.items() if set(column) != {"–"}}
    return list(filled), [list(row) for row in zip(*filled.values(), strict=True)]


def _certified(estimate: EstimateEntry | ArrayEntry) -> str:
    lower, upper = tables.down(estimate.lower_bits), estimate.upper_bits
    if upper is not None:
        return tables.ends(lower, upper)
    return "–" if lower is None else f"≥ {tables.bits(lower)}"


def _legend(report: ArrayReport) -> str:
    """The explanation of the columns of `_estimators`."""
    estimate, (header, _) = report.estimate, _estimators(report)
    parts = [f"MI in bits, K = {estimate.k:,} of {estimate.pairs:,} test pairs"]
    if tables.known(report.truth.entropy_bits):
        parts += [f"H(C) = {tables.bits(report.truth.entropy_bits)}"]
    if estimate.interval is not None:
        parts += [f"the interval is {estimate.interval.kind}"]
    parts += [f"the certified ends hold on fresh rows, each at {100 * estimate.confidence:g} %"]
    if "InfoNCE" in header:
        parts += ["InfoNCE: the lower bound that the same critics give at K"]
    if "mean ± std" in header:
        parts += [f"mean and standard deviation are of {len(estimate.seed_bits)} seeds' own critics"]
    return "; ".join(parts) + "."


def _warnings(report: ArrayReport) -> list[str]:
    """The warnings of all estimates, without duplicates: most concern the data, and so every estimate."""
    return list(dict.fromkeys(warning for estimate in report.estimates.values() for warning in estimate.warnings))


def _mi_rows(report: ImageReport) -> list[Row]:
    truth, estimate, in_training = report.truth, report.estimate, report.in_training
    shared = ", ".join(truth.shared) or "nothing is shared"
    rows = []
    if truth.entropy_bits is not None:
        rows += [("H(C)", f"{tables.bits(truth.entropy_bits)} bits", f"entropy of the class ({shared})")]
    if truth.mutual_information_bits is not None:
        true = f"{tables.bits(truth.mutual_information_bits)} bits"
        rows += [("true MI, I(X;Y)", true, "exact; no encoder can exceed it")]
    if in_training is not None:
        ceiling = f"not a bound; K = {in_training.k}, ceiling {tables.bits(in_training.ceiling_bits)} bits"
        rows += [("in-training MI", f"{tables.bits(in_training.mi_bits)} bits", ceiling)]
    rows += [_post_training(curve) for curve in (*estimate.others, estimate.info_nce)]
    confidence = f"{100 * estimate.confidence:g} %"
    if estimate.certificate:
        kind = f"lower bound: {estimate.statistic}"
        rows += [("I(h_X;h_Y), estimate", f"{tables.bits(estimate.value_bits)} bits", kind)]
    if estimate.interval is not None:
        rows += [("  its interval", f"{shown_ends(estimate.interval)} bits", f"{estimate.interval.kind}, {confidence}")]
    if estimate.certificate:
        source = f"{estimate.certificate} certificate at {confidence}"
    else:
        source = "no certificate" if estimate.lower_bits is None else "needs no certificate"
    interval = tables.interval(tables.down(estimate.lower_bits), estimate.upper_bits)
    rows += [("I(h_X;h_Y) lies in", interval, f"{estimate.verdict}; {source}")]
    return rows if report.usable is None else [*rows, *_usable_rows(report.usable, "image")]


def _post_training(curve: Curve) -> Row:
    ceiling = curve.quoted.ceiling_bits
    limit = "" if ceiling is None else f", ceiling {tables.bits(ceiling)} bits"
    return (
        f"post-training MI, {curve.heading}",
        f"{tables.bits(curve.quoted.bits)} bits",
        f"{curve.kind}; K = {curve.k}{limit}",
    )


def _usable_rows(usable: UsableEntry, unit: str) -> list[Row]:
    """unit: "image" or "row"."""
    name = "usable information, linear probes"
    if usable.value_bits is None:
        return [(name, "–", f"not measured: {usable.note}")]
    entropy = (
        f"out of H(C) = {tables.bits(usable.entropy_bits)} bits ({', '.join(usable.shared)}), at the class frequencies "
        f"of unseen {unit}s"
    )
    rows = [(name, f"{tables.bits(usable.value_bits)} bits", entropy)]
    if usable.lower_bits is None or usable.upper_bits is None or usable.confidence is None:
        return [*rows, ("  lies in", "–", next(iter(usable.warnings), ""))]
    ends = tables.interval(tables.round_down(usable.lower_bits), tables.round_up(usable.upper_bits))
    read = f"{sum(usable.rows.values()):,} unseen {unit}s"
    return [*rows, ("  lies in", ends, f"certified at {100 * usable.confidence:g} %, {read}")]


def _usable(usable: UsableEntry, unit: str) -> list[str]:
    """The sentence, the warnings, and the details of usable information: its class, family, rows and simpler upper end.

    unit: "image" or "row".
    """
    if usable.value_bits is None:
        return [f"It is not measured: {usable.note}."]
    shares = usable.frequencies
    frequencies = (
        ", ".join(f"{name} {share:.4f}" for name, share in shares.items())
        if len(shares) <= SHARES_SHOWN
        else f"{len(shares)} classes, from {min(shares.values()):.4f} to {max(shares.values()):.4f}"
    )
    limits = f"Each attribute has its own ({usable.family})"
    if usable.norm is not None:
        limits = f"‖w_k‖ ≤ {usable.norm:.3g}, ‖z‖ ≤ {usable.reach:.3g}"
    facts = [
        f"The class is {', '.join(usable.shared)}. H(C) = {tables.bits(usable.entropy_bits)} bits and both certified "
        f"ends hold for the class frequencies p(c) of the {unit}s that the encoder has not seen: {frequencies}.",
        f"The probes: softmax(ln p + W z) on z = T(h). The map T was fitted on {unit}s that the ends do not use. "
        f"{limits}; the largest loss is {usable.largest_loss_nats:.3g} nats. Other probes may use more information.",
        f"Number of {unit}s from which the ends are computed, by part: "
        + ", ".join(f"{part} {count:,}" for part, count in usable.rows.items()),
    ]
    if usable.kl_upper_bits is not None:
        simple = tables.bits(tables.round_up(usable.kl_upper_bits))
        facts.append(
            f"For comparison, a simpler upper end by Hoeffding's inequality (in its Kullback-Leibler form) is {simple} "
            "bits. It is usually larger."
        )
    facts.append(
        f"Each {unit}'s pointwise information log2 [q(label|h) / p(label)]: [evaluate/pvi.csv](evaluate/pvi.csv). The "
        f"lowest are hard {unit}s, or have wrong labels."
    )
    return [usable.sentence, *(f"**Warning: {warning}.**" for warning in usable.warnings), _list(facts)]


def _other_rows(report: ImageReport) -> list[Row]:
    return [
        (
            f"estimate {name}",
            f"{tables.bits(other.value_bits)} bits",
            f"{other.info_nce.kind}, {other.statistic}; in "
            f"{tables.interval(tables.down(other.lower_bits), other.upper_bits)}"
            f" at {100 * other.confidence:g} %: {other.verdict}",
        )
        for name, other in report.estimates.items()
        if name != report.estimate.name
    ]


def _linear_rows(report: ImageReport) -> list[Row]:
    return [
        (f"linear accuracy, {task}", f"{100 * accuracy:.2f} %", "on test images")
        for task, accuracy in report.linear.items()
    ]


def _metric_rows(report: ImageReport) -> list[Row]:
    values = metrics.shown(report.metrics)
    return [
        (metric.title, metric.text(value), "on test images" if metric.needs_probe else "") for metric, value in values
    ]


def _metrics(report: ImageReport) -> list[str]:
    """Tables of the metrics: one row per pairing, as in Lee et al. 2023, Table IV, and one row each without a pairing.

    A row without a pairing has metrics of the images' representations alone, or of the probes.
    """
    columns, rows = metrics.grouped(report.metrics, "augmentation", "class")
    lines = []
    for group, values in rows.items():
        of = report.estimates.get(report.measured.get(group) or "")
        mi_cell = "–" if of is None else f"{tables.bits(of.value_bits)}; {_certified(of)}"
        lines.append(
            (metrics.row_name(group), mi_cell, *(metric.text(x) for metric, x in zip(columns, values, strict=True)))
        )
    header = ("pairing", "MI; certified, bits", *(metric.column for metric in columns))
    grids = [tables.grid(header, lines)] if lines else []
    for alone in ("images", "probes"):
        columns, rows = metrics.grouped(report.metrics, alone)
        for values in rows.values():
            cells = [metric.text(value) for metric, value in zip(columns, values, strict=True)]
            grids.append(tables.grid([metric.column for metric in columns], [cells]))
    config = report.run.config
    k, temperature = config["estimate"]["nt_xent_k"], config["train"]["temperature"]
    legend = (
        f"The contrastive loss is at K = {k} (or all pairs there are) and temperature {temperature:g}. In the first "
        "table rows have unit length; alignment is the mean squared distance of positive pairs, uniformity the log of "
        "the mean Gaussian potential of all pairs (t = 2), tolerance the mean cosine within a class (Wang & Isola "
        "2020, Wang & Liu 2021). RankMe, LiDAR, participation ratio and stable rank count dimensions that the "
        "representations use (LiDAR: to tell images apart beyond their augmentations); RankMe compares runs of one "
        "method only. α-ReQ: decay of the covariance's eigenvalues. LogME: log evidence of a Bayesian linear map to a "
        "label. H-score: variance of the class means in units of all variance, summed over its axes. A dash: not "
        "defined for these representations. NMI: I(h;C) / H(C), estimated from a probe's log-loss. "
        "Code length: mean number of bits for a label of the fit part, if each label is coded by a linear probe that "
        "was fitted on earlier images and labels (Voita & Titov 2020). The first labels (1/32 of all, at least 32) "
        "take log2 N bits each, for N classes."
    )
    return [*grids, legend]


def _fit(fit: Fit) -> str:
    return (
        f"The encoder is frozen; InfoNCE's critic was fitted for {fit.steps:,} steps at K = {fit.k}. "
        f"The test part is read by the critic of step {fit.best_step:,}, the best on validation."
    )


def _certificates(estimate: EstimateEntry | ArrayEntry) -> str:
    """A table of the certificates that apply, with the lower end of each."""
    rows = [
        (
            name + (", the chosen one" if name == estimate.certificate else ""),
            f"{tables.bits(shown.value_bits)} bits",
            f"{tables.bits(tables.down(shown.lower_bits))} bits",
            ", ".join(f"{count:,} {unit}" for unit, count in shown.counts.items()),
        )
        for name, shown in estimate.certificates.items()
    ]
    if not rows:
        return "No certificate applies."
    return tables.grid(("certificate", "value", f"lower end at {100 * estimate.confidence:g} %", "from"), rows)


def _curves(curves: Mapping[str, Curve]) -> list[str]:
    """A table with one row per K: each estimator's value, interval and limits, in bits."""
    batches = {k: reading.batches for curve in curves.values() for k, reading in curve.at.items()}
    columns = {"K": [str(k) for k in batches], "batches": [str(count) for count in batches.values()]}
    for curve in curves.values():
        readings = [curve.at[k] for k in batches]
        columns |= {
            f"{curve.heading}, bits": [tables.bits(reading.bits) for reading in readings],
            f"{curve.heading}: interval": [shown_ends(reading.interval) for reading in readings],
            f"{curve.heading}: optimal critic": [tables.bits(reading.max_bits) for reading in readings],
            f"{curve.heading}: ceiling": [tables.bits(reading.ceiling_bits) for reading in readings],
        }
    known = {name: cells for name, cells in columns.items() if set(cells) != {"–"}}
    legend = "The optimal critic's value is the most that any critic shows at that K, in expectation."
    return [tables.grid(list(known), list(zip(*known.values(), strict=True))), legend]


def pictures(figures: Sequence[str], captions: Mapping[str, str]) -> list[str]:
    """Markdown of each picture with its caption. Pictures in `captions` come first, in its order."""
    stems = {Path(path).stem: path for path in sorted(figures)}
    order = [stem for stem in captions if stem in stems] + [stem for stem in stems if stem not in captions]
    return [f"![{stem}]({stems[stem]})\n\n{captions.get(stem, stem)}" for stem in order]


def _seconds(seconds: dict[str, float]) -> str:
    return "time: " + ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


IMAGE_FORM = Form(ImageReport, _image_sections, _image_lines)
LAYERS_FORM = Form(LayersReport, _layers_sections, _layers_lines, stem="layers")
ARRAY_FORM = Form(ArrayReport, _arrays_sections, _arrays_lines)
