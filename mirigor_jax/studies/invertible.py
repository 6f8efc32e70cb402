"""Train invertible encoders on an MI estimate, and report how estimate and accuracy change though the true MI can't.

After Tschannen et al. 2020, section 3.1 and Fig. 1.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from mirigor_jax import tables
from mirigor_jax.config_files import flatten
from mirigor_jax.data.image_set import ImageSet
from mirigor_jax.data.sources.table import labeled
from mirigor_jax.drawing import CEILING, CERTIFIED, INK, LOWER_BOUND, Figure, empty_figure, floats, legends, style
from mirigor_jax.errors import InputError
from mirigor_jax.models.realnvp import RealNVP
from mirigor_jax.monitoring import NO_MONITORING, Monitoring
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.report import Form, publish
from mirigor_jax.runs.schema import Report
from mirigor_jax.studies import invertible_encoders

INVERTIBLE = 1e-4  # tolerance: the largest error of an inverse, and of a log-determinant in nats, that counts as zero
OF_ADVERSARIES = ("adversarial_weight", "ridge")  # settings of the classifier that adversarial encoders act against
CAPTIONS = {
    "invertible": "InfoNCE, accuracy, usable information and invertibility over training, after Tschannen et al. 2020, "
    "Fig. 1.",
}


@dataclass(frozen=True, kw_only=True)
class InvertibleReport(Report):
    """report.json of a run that trains invertible encoders.

    ceiling_bits: log2 K.
    over_training: objective → its rows, as `invertible_encoders.train` writes them.
    correlation: objective → the correlation of InfoNCE and accuracy over training; None if one of them is constant.
    order: objective whose encoders learn → the proven order of its first and its last encoder of the top half by usable
        information, as `invertible_encoders.order` returns it.
    """

    ceiling_bits: float
    over_training: dict[str, list[dict[str, Any]]]
    correlation: dict[str, float | None]
    order: dict[str, dict[str, Any]]


def idle(config: ConfigDict, given: Sequence[str]) -> dict[str, str]:
    """Of the `given` keys, those that have no effect: key → the reason."""
    made = map(invertible_encoders.OBJECTIVES.get, config.objectives)
    if any(objective is None or objective.adversarial for objective in made):
        return {}
    words = f"only affects adversarial objectives, and objectives={tuple(config.objectives)} has none; leave it out"
    return {key: words for key in given if key in OF_ADVERSARIES}


def run(config: ConfigDict, name: str, workdir: str | None, monitoring: Monitoring = NO_MONITORING) -> None:
    """Train invertible encoders of the two halves of images by each objective, and measure them during training.

    Raises InputError for errors that the user can put right: an unknown objective, a source without labels or with
    fewer than k test images, a training that diverges.
    """
    folder = RunFolder.at(workdir or f"runs/{name}")
    print(f"run folder: {folder}", flush=True)
    if unknown := set(config.objectives) - invertible_encoders.OBJECTIVES.keys():
        raise InputError(f"unknown objective '{min(unknown)}'; choose from {', '.join(invertible_encoders.OBJECTIVES)}")
    sets = labeled(config.source, size=config.size)
    if not sets["train"].names:
        raise InputError(f"source='{config.source}' has no labels, and the linear evaluation needs them; give some")
    if config.k > len(sets["test"]):
        raise InputError(f"k={config.k}: expected at most {len(sets['test']):,}, the test images that there are")
    if config.usable_every % config.record_every:
        raise InputError(
            f"usable_every={config.usable_every}: expected a multiple of record_every={config.record_every}"
        )
    settings = invertible_encoders.Settings(
        encoder=RealNVP(config.layers, tuple(config.hidden)),
        num_classes=sets["train"].sizes[0],
        **{name: config[name] for name in ("k", "learning_rate", "adversarial_weight", "ridge", "seed")},
    )
    with folder.claimed(config), monitoring.opened(folder.path, flatten(config)) as opened:
        folder.mend(partial(_stages, config, folder, sets, settings, opened))


def _stages(
    config: ConfigDict,
    folder: RunFolder,
    sets: Mapping[str, ImageSet],
    settings: invertible_encoders.Settings,
    monitoring: Monitoring,
) -> None:
    parts: dict[str, Any] = {}
    for name in config.objectives:
        objective_folder = folder / name
        monitor = monitoring.of(folder.path, objective_folder.path)
        with folder.stage(name, invertible_encoders.finished(objective_folder, name, config.steps)) as work:
            if work:
                parts = parts or {part: invertible_encoders.halves_of(images) for part, images in sets.items()}
                how = {key: config[key] for key in ("steps", "record_every", "usable_every", "probed", "l2")}
                invertible_encoders.train(parts, objective_folder, name, settings, **how, monitor=monitor)
            else:
                monitor.rows(objective_folder.rows("records.jsonl"))
    _report(config, folder)


def _report(config: ConfigDict, folder: RunFolder) -> None:
    records = {name: (folder / name).rows("records.jsonl") for name in config.objectives}
    ceiling = math.log2(config.k)
    parts = {
        "ceiling_bits": ceiling,
        "over_training": records,
        "correlation": {name: invertible_encoders.correlation(rows) for name, rows in records.items()},
        "order": {name: pair for name in records if (pair := (folder / name).read(invertible_encoders.ORDER))},
    }
    drawn = {"invertible": picture(records, ceiling_bits=ceiling)}
    publish(config, folder, parts, drawn, INVERTIBLE_FORM, captions=CAPTIONS)


def _invertible_sections(report: InvertibleReport) -> list[str]:
    orders = "\n".join(f"- {sentence}" for sentence in _orders(report))
    return [tables.grid(*_over_training(report)), *([orders] if orders else []), _invertible_legend(report)]


def _invertible_lines(report: InvertibleReport) -> list[str]:
    texts = [*_orders(report), _invertible_legend(report)]
    return [
        *tables.aligned(*_over_training(report), "<>>>>>>>>>"),
        *(line for text in texts for line in ("", *textwrap.wrap(text, 100))),
    ]


def _over_training(report: InvertibleReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows: for each objective the first and the last record of its training."""
    rows = [
        [
            name,
            f"{row['step']:,}",
            tables.bits(row["held_out_bits"]),
            tables.bits(row["train_bits"]),
            f"{100 * row['accuracy']:.2f} %",
            tables.bits(row["usable_bits"]),
            tables.ends(tables.down(row.get("usable_lower_bits")), tables.up(row.get("usable_upper_bits"))),
            f"{row['log_det_nats']:z.1f}",
            f"{row['log_det_error_nats']:.1e}",
            f"{row['inverse_error']:.1e}",
        ]
        for name, records in report.over_training.items()
        for row in (records[0], records[-1])
    ]
    header = ["objective", "step", "InfoNCE", "training", "accuracy", "usable", "certified", "log|det|", "error"]
    return [*header, "inverse"], rows


def _orders(report: InvertibleReport) -> list[str]:
    """For each objective whose encoders learn, a sentence on the order of its first and its last encoder."""
    same = max(_largest_errors(report).values()) <= INVERTIBLE
    sentences = []
    for name, pair in report.order.items():
        a, b, larger = pair["a"], pair["b"], pair["larger"]
        read = f"{pair['rows']:,} unseen rows"
        if larger is None:
            rows, change = pair["rows_needed"], "less" if pair["difference_bits"] > 0 else "more"
            needed = "" if rows is None else f"; about {rows:,} rows would tell them apart"
            sentences += [
                f"{name}: on {read}, usable information is not proven to differ between {a} and {b}, though its "
                f"estimate is {abs(pair['difference_bits']):.3f} bits {change} at {b}{needed}."
            ]
            continue
        more, smaller = ("more", a) if larger == b else ("less", b)
        though = ", though the mutual information is the same" if same else ""
        twice = f" This is not certified if the probes at {smaller} may have twice the norm."
        sentences += [
            f"{name}: certified at {100 * pair['confidence']:g} % on {read}: the encoder at {b} holds {more} usable "
            f"information than at {a} (by about {abs(pair['difference_bits']):.3f} bits){though}."
            f"{'' if pair['at_twice_the_norm'] else twice}"
        ]
    return sentences


def _largest_errors(report: InvertibleReport) -> dict[str, float]:
    """The largest error of a log-determinant and of an inverse, of all records."""
    records = [row for rows in report.over_training.values() for row in rows]
    return {key: max(row[key] for row in records) for key in ("log_det_error_nats", "inverse_error")}


def _invertible_legend(report: InvertibleReport) -> str:
    """The legend of `_over_training`: its columns, the largest errors of all records, and the correlations."""
    worst = _largest_errors(report)
    correlations = [f"{name} {value:+.2f}" for name, value in report.correlation.items() if tables.known(value)]
    sentences = [
        f"InfoNCE is in bits, on test images and in training (the mean since the previous record); its ceiling is "
        f"{tables.bits(report.ceiling_bits)} bits",
        "the accuracy is that of a linear probe of the encoded top half; “usable” is the information about the class "
        "that linear probes can use in it, in bits; “certified” has the lower and upper end of that information; "
        "log|det| is the sum of both encoders' log |det J| in closed form, in nats; “error” is the largest difference "
        "between an encoder's log |det J| in closed form and by automatic differentiation; “inverse” is the largest "
        "error of inverting the encoders",
        f"at every record these errors are at most {worst['log_det_error_nats']:.1e} and {worst['inverse_error']:.1e}: "
        + ("the maps are" if max(worst.values()) <= INVERTIBLE else "this does not show that the maps are")
        + " invertible, so that the true mutual information is the same at each",
    ]
    if correlations:
        sentences += [f"correlation of InfoNCE and accuracy over training: {', '.join(correlations)}"]
    return "; ".join(sentences) + "."


def picture(runs: Mapping[str, Sequence[dict[str, Any]]], *, ceiling_bits: float) -> Figure:
    """Draw InfoNCE, linear accuracy, usable information and the error of the encoders' inverses against the step.

    runs: objective → its rows, as `invertible_encoders.train` writes them.
    ceiling_bits: log2 K.
    Each objective has a line. Dashed lines are InfoNCE on training batches. Bands are between certified ends.
    """
    figure = empty_figure(9.6, 9.0)
    estimate, accuracy, usable, error = axes = figure.subplots(2, 2).ravel()
    titles = (
        "InfoNCE, bits; the true MI can't change",
        "linear accuracy of the top half, %",
        "usable information about the class in the top half, bits",
        "invertibility, largest error",
    )
    for ax, title in zip(axes, titles, strict=True):
        style(ax, title)
    for (name, rows), color in zip(runs.items(), (INK, LOWER_BOUND, CERTIFIED), strict=False):
        step, held_out, train, percent, inverse, log_det = (
            floats([row[key] for row in rows])
            for key in ("step", "held_out_bits", "train_bits", "accuracy", "inverse_error", "log_det_error_nats")
        )
        estimate.plot(step, held_out, color=color, marker="o", markersize=3, label=f"{name}, test images")
        estimate.plot(step[1:], train[1:], color=color, linestyle="--", linewidth=1, label=f"{name}, in training")
        accuracy.plot(step, 100 * percent, color=color, marker="o", markersize=3, label=name)
        measured = [row for row in rows if "usable_bits" in row]
        at, value, lower, upper = (
            floats([row.get(key) for row in measured])
            for key in ("step", "usable_bits", "usable_lower_bits", "usable_upper_bits")
        )
        usable.fill_between(at, lower, upper, color=color, alpha=0.1, linewidth=0)
        for end in (lower, upper):
            usable.plot(at, end, color=color, linestyle=":", linewidth=1)
        usable.plot(at, value, color=color, marker="o", markersize=3, label=f"{name}, with its certified ends")
        error.plot(step, inverse, color=color, marker="o", markersize=3, label=f"{name}: inverse")
        error.plot(step, log_det, color=color, linestyle=":", label=f"{name}: log |det J|, nats")
    estimate.axhline(ceiling_bits, color=CEILING, linestyle="--", label=f"ceiling log₂ K = {ceiling_bits:.3g} bits")
    error.axhline(1e-4, color=CEILING, linestyle="--", label="1e-4")
    error.set_yscale("symlog", linthresh=1e-7)
    for ax in axes:
        ax.set_xlabel("training step")
    legends(*axes)
    return figure


INVERTIBLE_FORM = Form(InvertibleReport, _invertible_sections, _invertible_lines)
