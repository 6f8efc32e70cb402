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
from mirigor_jax.data.image_set import ImageSet
from mirigor_jax.data.sources.table import labeled
from mirigor_jax.drawing import CEILING, CERTIFIED, INK, LOWER_BOUND, Figure, floats, legends, panels
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
    "invertible": "InfoNCE, accuracy and invertibility over training, after Tschannen et al. 2020, Fig. 1.",
}


@dataclass(frozen=True, kw_only=True)
class InvertibleReport(Report):
    """report.json of a run that trains invertible encoders.

    ceiling_bits: log2 K.
    over_training: objective → its rows, as `invertible_encoders.train` writes them.
    correlation: objective → the correlation of InfoNCE and accuracy over training; None if one of them is constant.
    """

    ceiling_bits: float
    over_training: dict[str, list[dict[str, Any]]]
    correlation: dict[str, float | None]


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
    settings = invertible_encoders.Settings(
        encoder=RealNVP(config.layers, tuple(config.hidden)),
        num_classes=sets["train"].sizes[0],
        **{name: config[name] for name in ("k", "learning_rate", "adversarial_weight", "ridge", "seed")},
    )
    with folder.claimed(config):
        folder.mend(partial(_stages, config, folder, sets, settings, monitoring))


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
        rows, monitor = objective_folder.rows("records.jsonl"), monitoring.of(folder.path, objective_folder.path)
        with folder.stage(name, bool(rows) and rows[-1]["step"] == config.steps) as work:
            if work:
                parts = parts or {part: invertible_encoders.halves_of(images) for part, images in sets.items()}
                how = {key: config[key] for key in ("steps", "record_every", "probed", "l2")}
                invertible_encoders.train(parts, objective_folder, name, settings, **how, monitor=monitor)
            else:
                monitor.rows(rows)
    _report(config, folder)


def _report(config: ConfigDict, folder: RunFolder) -> None:
    records = {name: (folder / name).rows("records.jsonl") for name in config.objectives}
    ceiling = math.log2(config.k)
    parts = {
        "ceiling_bits": ceiling,
        "over_training": records,
        "correlation": {name: invertible_encoders.correlation(rows) for name, rows in records.items()},
    }
    drawn = {"invertible": picture(records, ceiling_bits=ceiling)}
    publish(config, folder, parts, drawn, INVERTIBLE_FORM, captions=CAPTIONS)


def _invertible_sections(report: InvertibleReport) -> list[str]:
    return [tables.grid(*_over_training(report)), _invertible_legend(report)]


def _invertible_lines(report: InvertibleReport) -> list[str]:
    return [*tables.aligned(*_over_training(report), "<>>>>>>>"), "", *textwrap.wrap(_invertible_legend(report), 100)]


def _over_training(report: InvertibleReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows: for each objective the first and the last record of its training."""
    rows = [
        [
            name,
            f"{row['step']:,}",
            tables.bits(row["held_out_bits"]),
            tables.bits(row["train_bits"]),
            f"{100 * row['accuracy']:.2f} %",
            f"{row['log_det_nats']:z.1f}",
            f"{row['log_det_error_nats']:.1e}",
            f"{row['inverse_error']:.1e}",
        ]
        for name, records in report.over_training.items()
        for row in (records[0], records[-1])
    ]
    return ["objective", "step", "InfoNCE", "training", "accuracy", "log|det J|", "its error", "inverse"], rows


def _invertible_legend(report: InvertibleReport) -> str:
    """The legend of `_over_training`: its columns, the largest errors of all records, and the correlations."""
    records = [row for rows in report.over_training.values() for row in rows]
    worst = {key: max(row[key] for row in records) for key in ("log_det_error_nats", "inverse_error")}
    correlations = [f"{name} {value:+.2f}" for name, value in report.correlation.items() if tables.known(value)]
    sentences = [
        f"InfoNCE is in bits, on test images and in training (the mean since the record before); its ceiling is "
        f"{tables.bits(report.ceiling_bits)} bits",
        "the accuracy is that of a linear probe on the top half; log|det J| is the sum of both encoders', in nats; "
        "“its error” is the largest difference from the Jacobian's; “inverse” is the largest error of the inverse",
        f"at every record these errors are at most {worst['log_det_error_nats']:.1e} and {worst['inverse_error']:.1e}: "
        + ("the maps are" if max(worst.values()) <= INVERTIBLE else "this does not show that the maps are")
        + " invertible, so that the true mutual information is the same at each",
    ]
    if correlations:
        sentences += [f"correlation of InfoNCE and accuracy over training: {', '.join(correlations)}"]
    return "; ".join(sentences) + "."


def picture(runs: Mapping[str, Sequence[dict[str, Any]]], *, ceiling_bits: float) -> Figure:
    """Draw InfoNCE, linear accuracy and the error of the encoders' inverses against the training step.

    runs: objective → its rows, as `invertible_encoders.train` writes them.
    ceiling_bits: log2 K.
    Each objective has a line. Dashed lines are InfoNCE on training batches.
    """
    figure, (estimate, accuracy, error) = panels(
        "InfoNCE, bits; the true MI can't change", "linear accuracy of the top half, %", "invertibility, largest error"
    )
    for (name, rows), color in zip(runs.items(), (INK, LOWER_BOUND, CERTIFIED), strict=False):
        step, held_out, train, percent, inverse, log_det = (
            floats([row[key] for row in rows])
            for key in ("step", "held_out_bits", "train_bits", "accuracy", "inverse_error", "log_det_error_nats")
        )
        estimate.plot(step, held_out, color=color, marker="o", markersize=3, label=f"{name}, test images")
        estimate.plot(step[1:], train[1:], color=color, linestyle="--", linewidth=1, label=f"{name}, in training")
        accuracy.plot(step, 100 * percent, color=color, marker="o", markersize=3, label=name)
        error.plot(step, inverse, color=color, marker="o", markersize=3, label=f"{name}: inverse")
        error.plot(step, log_det, color=color, linestyle=":", label=f"{name}: log |det J|, nats")
    estimate.axhline(ceiling_bits, color=CEILING, linestyle="--", label=f"ceiling log₂ K = {ceiling_bits:.3g} bits")
    error.axhline(1e-4, color=CEILING, linestyle="--", label="1e-4")
    error.set_yscale("symlog", linthresh=1e-7)
    for ax in (estimate, accuracy, error):
        ax.set_xlabel("training step")
    legends(estimate, accuracy, error)
    return figure


INVERTIBLE_FORM = Form(InvertibleReport, _invertible_sections, _invertible_lines)
