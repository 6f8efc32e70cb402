"""A run's report in three forms: report.json for programs, report.md for readers, a table for the terminal."""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from mirigor_jax.files import AnyPath, replace_json, replace_text
from mirigor_jax.mi.estimate import round_down

Report = dict[str, Any]
Row = tuple[str, str, str]

HEADER: Row = ("quantity", "value", "what it is")
INVERTIBLE = 1e-4  # the largest error of an inverse, and of a log-determinant in nats, that counts as none

METRICS = {
    "alignment": "alignment ↓",
    "uniformity": "uniformity ↓",
    "tolerance": "tolerance ↑",
    "contrastive_loss_nats": "contrastive loss, nats ↓",
}
PROBES = {
    "linear_accuracy": "linear ↑",
    "knn_accuracy": "kNN ↑",
    "mlp_accuracy": "MLP ↑",
    "linear_nmi": "NMI, linear ↑",
    "mlp_nmi": "NMI, MLP ↑",
}

CAPTIONS = {
    "estimators": "Each estimator's value with its t-interval, and what is certified of the mutual information.",
    "invertible": "InfoNCE, accuracy and invertibility over training, after Tschannen et al. 2020, Fig. 1.",
    "bars": "H(C), in-training and post-training MI, after Lee et al. 2023, Fig. 4; the whisker is the t-interval.",
    "critic": "The critic's fit with the step chosen on validation, and the estimates against K.",
    "training": "Training loss and in-training MI against the ceiling log₂(2K−1) and H(C).",
    "linear": "Linear evaluation of the frozen encoder.",
    "metrics": "What probes read off the frozen encoder, and the geometry of its representations.",
    "pairs": "Positive pairs, each view with its attributes.",
    "batch_size": "MI in and after training, and linear accuracy, against K_Tr, after Lee et al. 2023, Fig. 4.",
    "infomin_tasks": "Accuracy and I_class of each task for each training pairing, after Lee et al. 2023, Figs. 6, 7.",
    "infomin_strength": "Accuracy against MI as the augmentation's strength rises, after Lee et al. 2023, Fig. 5.",
    "certified": "The paper's form beside what each route proves; a ring marks where it leaves the certified interval.",
    "reach": "Strict InfoNCE of every encoder against K, and reach(K), the most that any critic can show.",
    "quality": "Linear accuracy against each metric, a dot an encoder, after Lee et al. 2023, Tables I and II.",
    "objectives": "Linear accuracy and I_class by the objective of training, after Lee et al. 2023, Table III.",
    "trap": "An untrained encoder: what redraws of a bank of test images claim, and what fresh images prove.",
}


def write(workdir: AnyPath, report: Report) -> None:
    """Write report.md, with the pictures found in workdir/figures, and report.json.

    Each replaces its predecessor in one step, so a crash leaves the old one whole. NaN and infinities become null.
    """
    figures = [path.relative_to(workdir).as_posix() for path in (workdir / "figures").glob("*.png")]
    # report.json comes last: where it is, the run is finished.
    replace_text(workdir / "report.md", markdown(report, figures))
    replace_json(workdir / "report.json", report)


def markdown(report: Report, figures: Sequence[str] = ()) -> str:
    """The report for a reader; MI in bits, accuracies in percent.

    figures: paths of pictures relative to the report; a known stem (`CAPTIONS`) gets its caption and place.
    """
    run = report["run"]
    sections = [f"# {report['name']}", *_FORMS[_kind(report)][0](report)]
    if figures:
        sections += ["## Figures", *pictures(figures)]
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


def table(report: Report) -> str:
    """The terminal's closing table: plain text, the path of report.md on its last line.

    At most 100 columns, if the values of `estimators` are below 10 bits.
    """
    run = report["run"]
    lines = _FORMS[_kind(report)][1](report)
    title = f"{report['name']}, seed {run['seed']}, on {run['devices']}"
    time = textwrap.fill(_seconds(run["seconds"]), width=100)
    return "\n".join([title, "", *lines, "", time, f"report: {report['workdir']}/report.md"])


def _kind(report: Report) -> str:
    return report["run"]["config"].get("kind", "images")


def _image_sections(report: Report) -> list[str]:
    estimate = report["estimate"]
    headline, *conclusions = estimate["conclusions"]
    sections = [f"**{headline}**", grid(HEADER, _mi_rows(report))]
    if conclusions:
        sections += ["## What may be concluded", _list(conclusions)]
    sections += ["## Post-training estimate", _fit(estimate["fit"]), _routes(estimate), _curve(estimate["curve"])]
    if others := _other_rows(report):
        sections += ["## Other estimates of this encoder", grid(HEADER, others)]
    if linear := _linear_rows(report):
        sections += ["## Linear evaluation", grid(HEADER, linear)]
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
    sections = [f"**{report['estimate']['sentence']}**", grid(*_estimators(report)), _legend(report)]
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
        *_aligned(header, rows, "<<>>>>>>"),
        "",
        *(line for text in (_legend(report), *warnings) for line in textwrap.wrap(text, 100)),
    ]


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=False)).rstrip()
        for row in (header, *rows)
    ]


def _invertible_sections(report: Report) -> list[str]:
    return [grid(*_over_training(report)), _invertible_legend(report)]


def _invertible_lines(report: Report) -> list[str]:
    return [*_aligned(*_over_training(report), "<>>>>>>>"), "", *textwrap.wrap(_invertible_legend(report), 100)]


def _over_training(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and rows: where each objective started from and where it came to."""
    rows = [
        [
            name,
            f"{row['step']:,}",
            _bits(row["held_out_bits"]),
            _bits(row["train_bits"]),
            f"{100 * row['accuracy']:.2f} %",
            f"{row['log_det_nats']:z.1f}",
            f"{row['log_det_error_nats']:.1e}",
            f"{row['inverse_error']:.1e}",
        ]
        for name, found in report["over_training"].items()
        for row in (found[0], found[-1])
    ]
    return ["objective", "step", "InfoNCE", "training", "accuracy", "log|det J|", "its error", "inverse"], rows


def _invertible_legend(report: Report) -> str:
    """What the columns of `_over_training` are, what bounds all records, and how estimate and accuracy go together."""
    records = [row for rows in report["over_training"].values() for row in rows]
    worst = {key: max(row[key] for row in records) for key in ("log_det_error_nats", "inverse_error")}
    correlations = [f"{name} {value:+.2f}" for name, value in report["correlation"].items() if _known(value)]
    words = [
        f"InfoNCE in bits on test images and, the mean since the record before, in training; its ceiling is "
        f"{_bits(report['ceiling_bits'])} bits",
        "the accuracy is a linear probe's, of the top half; log|det J| in nats of both encoders, its error against the "
        "Jacobian's, and the largest error of the inverse",
        f"at every record these errors are at most {worst['log_det_error_nats']:.1e} and {worst['inverse_error']:.1e}: "
        + ("the maps are" if max(worst.values()) <= INVERTIBLE else "this does not show that the maps are")
        + " invertible, and the true mutual information the same at each",
    ]
    if correlations:
        words += [f"correlation of InfoNCE and accuracy over training: {', '.join(correlations)}"]
    return "; ".join(words) + "."


def _estimators(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one an estimator, in bits; a column in which nobody has anything is left out."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "estimator": lambda one: one["name"],
        "kind": lambda one: one["kind"],
        "bits": lambda one: _bits(one["value_bits"]),
        "t-interval": lambda one: _ends(one["t_lower_bits"], one["t_upper_bits"]),
        "certified": _certified,
        "InfoNCE": lambda one: _bits(one["bound_bits"]),
        "ceiling": lambda one: _bits(one["ceiling_bits"]),
        "mean ± std": lambda one: (
            f"{_bits(one['mean_bits'])} ± {_bits(one['spread_bits'])}" if _known(one["spread_bits"]) else "–"
        ),
    }
    cells = {name: [of(one) for one in report["estimates"].values()] for name, of in columns.items()}
    kept = {name: column for name, column in cells.items() if set(column) != {"–"}}
    return list(kept), [list(row) for row in zip(*kept.values(), strict=True)]


def _certified(estimate: dict[str, Any]) -> str:
    lower, upper = _down(estimate["lower_bits"]), estimate["upper_bits"]
    if upper is not None:
        return _ends(lower, upper)
    return "–" if lower is None else f"≥ {_bits(lower)}"


def _legend(report: Report) -> str:
    """What the columns of `_estimators` are."""
    estimate, (header, _) = report["estimate"], _estimators(report)
    words = [f"MI in bits, K = {estimate['k']:,} of {estimate['pairs']:,} test pairs"]
    if _known(report["truth"].get("entropy_bits")):
        words += [f"H(C) = {_bits(report['truth']['entropy_bits'])}"]
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
        rows += [("H(C)", f"{_bits(truth['entropy_bits'])} bits", f"entropy of the class ({shared})")]
    if truth.get("mutual_information_bits") is not None:
        true = f"{_bits(truth['mutual_information_bits'])} bits"
        rows += [("true MI, I(X;Y)", true, "exact; no encoder can exceed it")]
    if in_training := report.get("in_training"):
        ceiling = f"not a bound; K = {in_training['k']}, ceiling {_bits(in_training['ceiling_bits'])} bits"
        rows += [("in-training MI", f"{_bits(in_training['mi_bits'])} bits", ceiling)]
    paper_k = estimate["paper_k"]
    ceiling = f"not a bound; K = {paper_k}, ceiling {_bits(math.log2(2 * paper_k - 1))} bits"
    rows += [("post-training MI, paper's form", f"{_bits(estimate['paper_bits'])} bits", ceiling)]
    ceiling = f"{estimate['kind']}; K = {estimate['k']}, ceiling {_bits(estimate['ceiling_bits'])} bits"
    rows += [("post-training MI, strict InfoNCE", f"{_bits(estimate['strict_bits'])} bits", ceiling)]
    confidence = f"{100 * estimate['confidence']:g} %"
    if _known(estimate["t_lower_bits"]) and _known(estimate["t_upper_bits"]):
        interval = _interval(estimate["t_lower_bits"], estimate["t_upper_bits"])
        rows += [("  its t-interval", interval, f"approximate, at {confidence}, over disjoint batches")]
    if estimate["certificate"]:
        source = f"{estimate['certificate']} certificate at {confidence}"
    else:
        source = "no certificate" if estimate["lower_bits"] is None else "needs no certificate"
    interval = _interval(_down(estimate["lower_bits"]), estimate["upper_bits"])
    return [*rows, ("I(h_X;h_Y) lies in", interval, f"{estimate['verdict']}; {source}")]


def _other_rows(report: Report) -> list[Row]:
    own = report["estimate"]["name"]
    return [
        (
            f"estimate {name}",
            f"{_bits(other['value_bits'])} bits",
            f"{other['kind']}, K = {other['k']}; in {_interval(_down(other['lower_bits']), other['upper_bits'])}"
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
    found = report["metrics"]
    alike = [
        (f"{pairing} {what}", f"{found[f'{pairing}_{name}']:z.3f}", "")
        for pairing in ("augmentation", "class")
        for name, what in METRICS.items()
        if f"{pairing}_{name}" in found
    ]
    shown = [
        (f"{what} accuracy", f"{100 * found[name]:.2f} %", "on test images")
        for name, what in (("knn_accuracy", "kNN"), ("mlp_accuracy", "MLP"))
        if name in found
    ]
    return [*alike, *shown]


def _metrics(report: Report) -> list[str]:
    """The encoder's row: a line a pairing as in Lee et al. 2023, Table IV, and the probes' accuracies."""
    found, lines = report["metrics"], []
    for pairing, name in (("augmentation", "T_SimCLR"), ("class", "T_class")):
        if f"{pairing}_alignment" in found:
            of = report["estimates"].get(report["measured"][pairing])
            mi = "–" if of is None else f"{_bits(of['strict_bits'])}; {_certified(of)}"
            lines.append((name, mi, *(f"{found[f'{pairing}_{metric}']:z.3f}" for metric in METRICS)))
    tables = [grid(("pairing", "strict InfoNCE; certified, bits", *METRICS.values()), lines)]
    if known := {name: found[name] for name in PROBES if name in found}:
        cells = [f"{100 * x:.2f} %" if name.endswith("accuracy") else f"{x:.3f}" for name, x in known.items()]
        tables.append(grid([PROBES[name] for name in known], [cells]))
    config = report["run"]["config"]
    k, temperature = config["estimate"]["paper_k"], config["train"]["temperature"]
    legend = (
        f"The contrastive loss is at K = {k} (or all pairs there are) and temperature {temperature:g}. Rows have unit "
        "length; alignment is the mean squared distance of positive pairs, uniformity the log of the mean Gaussian "
        "potential of all pairs (t = 2), tolerance the mean cosine within a class (Wang & Isola 2020, Wang & Liu "
        "2021). NMI: what a probe shows of I(h;C) / H(C)."
    )
    return [*tables, legend]


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
            f"{_bits(_down(route['lower_bits']))} bits",
            ", ".join(f"{count:,} {what}" for what, count in route.items() if what != "lower_bits"),
        )
        for name, route in estimate["routes"].items()
        if route
    ]
    if not rows:
        return "No route gave a certificate."
    return grid(("route", f"lower end at {100 * estimate['confidence']:g} %", "from"), rows)


def _curve(curve: Sequence[dict[str, Any]]) -> str:
    header = ("K", "batches", "strict (bits)", "t-interval", "reach(K)", "log₂ K", "paper's form (bits)", "log₂(2K−1)")
    rows = [
        (
            str(point["k"]),
            str(point["batches"]),
            _bits(point["strict_bits"]),
            _interval(point["t_lower_bits"], point["t_upper_bits"]),
            _bits(point["reach_bits"]),
            _bits(point["ceiling_bits"]),
            _bits(point["paper_bits"]),
            _bits(point["paper_ceiling_bits"]),
        )
        for point in curve
    ]
    return grid(header, rows) + "\n\nreach(K) is the most that any critic can show at that K, in bits."


def pictures(figures: Sequence[str]) -> list[str]:
    """Markdown of each picture with its caption, those of `CAPTIONS` first and in its order."""
    stems = {Path(path).stem: path for path in sorted(figures)}
    order = [stem for stem in CAPTIONS if stem in stems] + [stem for stem in stems if stem not in CAPTIONS]
    return [f"![{stem}]({stems[stem]})\n\n{CAPTIONS.get(stem, stem)}" for stem in order]


def _seconds(seconds: dict[str, float]) -> str:
    return "time: " + ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _bits(value: float | None) -> str:
    return f"{value:z.3f}" if _known(value) else "–"


def _down(lower: float | None) -> float | None:
    return None if lower is None else round_down(lower)


def _interval(lower: float | None, upper: float | None) -> str:
    return f"{_ends(lower, upper)} bits"


def _ends(lower: float | None, upper: float | None) -> str:
    return f"[{_bits(lower)}, {_bits(upper)}]"


# The kinds of a run: the sections of its report.md, and the lines of its closing table.
_FORMS: dict[str, tuple[Callable[[Report], list[str]], Callable[[Report], list[str]]]] = {
    "images": (_image_sections, _image_lines),
    "arrays": (_arrays_sections, _arrays_lines),
    "invertible": (_invertible_sections, _invertible_lines),
}
