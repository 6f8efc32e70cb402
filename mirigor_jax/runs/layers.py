"""Every stage of a finished run's encoder, measured as a run measures its last one: information against depth.

The images go through the encoder once, and every stage's features are kept. Each stage is then measured on its own, so
a killed command continues with the next stage.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ml_collections import ConfigDict
from numpy import ndarray
from scipy.special import entr

from mirigor_jax import metrics, parallel, stopping, tables
from mirigor_jax.data.attribute_classes import AttributeClasses
from mirigor_jax.data.pairing import shares_image, shares_nothing, split
from mirigor_jax.data.population import Features
from mirigor_jax.data.sources import table
from mirigor_jax.encoding import stage_columns
from mirigor_jax.errors import InputError
from mirigor_jax.mi.by_attribute import AttributeProbes
from mirigor_jax.mi.usable_results import UsableInformation
from mirigor_jax.monitoring import NO_MONITORING, Monitoring
from mirigor_jax.progress import Progress
from mirigor_jax.runs import figures, knobs, report, usable
from mirigor_jax.runs.estimate import both_views, certified, fit_probe, joint_of, linear_accuracy, measure_by_class
from mirigor_jax.runs.features import encode, freeze, load, parts_to_encode
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import Job, precision, re_estimated
from mirigor_jax.runs.re_estimate import parse_restored, restorable
from mirigor_jax.runs.schema import LayerEntry, read
from mirigor_jax.runs.usable import rows_of

K = 64  # pairs a batch of InfoNCE, which is not reported here; any K gives the same certificates
ROWS, COLUMNS = "stages.jsonl", "columns.json"


def run(config: ConfigDict, name: str, workdir: str | None, monitoring: Monitoring = NO_MONITORING) -> None:
    """Measure every stage of the encoder of the run in `config.restore`, or only draw the results if they are there.

    They go to RUN/layers, or to `workdir`.
    Raises InputError if there is no finished run, if it has no encoder or an encoder of a single stage, if its images
    have no classes, and as a run on images does.
    """
    del name, monitoring  # the results go into the restored run's folder; no stage is watched
    folder = RunFolder.at(config.restore) if config.restore else None
    if folder is None:
        raise InputError("config.restore='' is not a run folder; give a run's path")
    restorable(folder)  # the lock needs an existing run folder
    target = RunFolder.at(workdir) if workdir else RunFolder((folder / "layers").path)
    with folder.lock():
        run_config = ConfigDict(restorable(folder))
        if table.holds_features(run_config.data.source):
            raise InputError(
                f"the run in '{folder}' is on features (data.source='{run_config.data.source}') and has no encoder; "
                "restore a run on images"
            )
        changed = _changed(run_config, config)
        with precision(changed):
            job = parse_restored(changed, run_config, folder)
            if job.pairing.by_class is None or job.pairing.by_class.num_classes < 2:
                raise InputError(
                    f"pairing='{job.config.data.pairing}' shares no class; give attributes, such as --config.pairing="
                    f"{job.images.tasks[-1] if job.images.tasks else 'class'}"
                )
            print(f"run folder: {folder}, layers: {target}", flush=True)
            frozen = freeze(job, folder, parallel.make_mesh(job.config.features.batch_size))
            if len(columns := stage_columns(frozen, job.config.data.size)) < 2:
                raise InputError(
                    f"the encoder of the run in '{folder}' has {'1 stage' if columns else 'no stages'}: expected two "
                    "or more; --config=configs/estimate.py measures the encoder's output"
                )
            with target.claimed(job.config):
                target.mend(partial(_stages, job, frozen, columns, target))


def idle(config: ConfigDict, given: Sequence[str]) -> Mapping[str, str]:
    """The given keys that have no effect, each with words for a message.

    Raises InputError if there is no finished run.
    """
    if "rows" not in given or not config.restore:
        return {}
    run_config = ConfigDict(restorable(RunFolder.at(config.restore)))
    words = knobs.idle(_changed(run_config, config), ["estimate.rows"])
    return {key.rpartition(".")[2]: text for key, text in words.items()}


def _changed(run_config: ConfigDict, asked: ConfigDict) -> ConfigDict:
    """The run's config with the changes that a config of kind `layers` asks for.

    Both views of a pair always have the same class, also if the run's pairing passes attributes through a channel.
    """
    shared, _ = split(run_config.data.pairing)
    if shares_image(run_config.data.pairing) or shares_nothing(run_config.data.pairing):
        shared = "all" if table.find(run_config.data.source).is_generated else "class"
    shared = shared if asked.pairing is None else asked.pairing
    config, _ = re_estimated(run_config, pairing=shared, seed=asked.seed)
    if asked.images is not None:
        for part in ("fit", "validation", "test", "unseen"):
            limit = config.features[part]
            config.features[part] = asked.images if limit is None else min(limit, asked.images)
    if asked.confidence is not None:
        config.estimate.confidence = asked.confidence
    if asked.rows is not None:
        config.estimate.rows = asked.rows
    config.estimate.k = min(K, config.estimate.k)
    config.estimate.stream = False
    config.evaluate.classes = None
    return config


def _stages(job: Job, frozen: Any, columns: dict[str, slice], target: RunFolder) -> None:
    features = target / "features"
    rows = [read(LayerEntry, row) for row in target.rows(ROWS)]
    finished = {row.stage for row in rows} == columns.keys()
    parts = parts_to_encode(job, unseen=True)
    with target.stage("encode", finished or all(features.exists(f"{part}.npz") for part in parts)) as work:
        if work:
            features.write(COLUMNS, {stage: [each.start, each.stop] for stage, each in columns.items()})
            mesh = parallel.make_mesh(job.config.features.batch_size)
            encode(job, frozen, parts, features, mesh, every_stage=True)
    with target.stage("measure", finished) as work:
        if work:
            _measure(job, target, columns, rows)
    parallel.from_main(_report, job, target, rows)


def _measure(job: Job, target: RunFolder, columns: dict[str, slice], rows: list[LayerEntry]) -> None:
    """Measure the stages that `rows` lacks, and append them, in the order of depth."""
    features, usable_rows = load(target / "features"), rows_of(job, target)
    done = len(rows)
    with Progress("stages", len(columns), "measured") as progress:
        for stage, own in list(columns.items())[done:]:
            parts = {part: _own(arrays, own) for part, arrays in features.items()}
            try:
                entry = _entry(job, stage, parts, usable.information(job, usable_rows, usable_rows.h[:, own]))
            except InputError as error:  # too few rows of a class; the other numbers stand
                entry = _entry(job, stage, parts, None, (f"usable information is not measured: {error}",))
            rows.append(entry)
            target.write_rows(ROWS, [dataclasses.asdict(row) for row in rows])
            progress.update(len(rows), f"{stage}: {tables.bits(entry.usable_bits)} usable bits")
            if parallel.stop_asked():
                stopping.stop()


def _own(arrays: dict[str, ndarray], columns: slice) -> dict[str, ndarray]:
    """The arrays of a part with the features of one stage."""
    return {name: x[:, columns] if name in ("h", "h_x", "h_y") else x for name, x in arrays.items()}


def _entry(
    job: Job, stage: str, features: Features, found: UsableInformation | None, warnings: tuple[str, ...] = ()
) -> LayerEntry:
    classes = job.pairing.by_class
    assert classes is not None  # `run` has checked it
    estimate = certified(job, measure_by_class(job, job.images.paired(features, job.pairing)).estimate)
    probe = fit_probe(job, features, classes)
    h, c = both_views(features["test"], classes)
    if isinstance(probe, AttributeProbes):
        made = joint_of(classes)
        assert isinstance(made, AttributeClasses)  # `fit_probe` fitted probes of the attributes
        nmi = 1 - float(probe.losses(h, made.values[c]).mean()) / float(entr(made.frequencies).sum())
    else:
        nmi = metrics.label_nmi(probe.logits(h) / probe.temperature, c)
    return LayerEntry(
        stage=stage,
        width=h.shape[1],
        i_class_bits=estimate.value_bits,
        i_class_lower_bits=estimate.lower_bits,
        certificate=estimate.certificate,
        usable_bits=None if found is None else found.value_bits,
        usable_lower_bits=None if found is None else found.lower_bits,
        usable_upper_bits=None if found is None else found.upper_bits,
        unseen_rows=0 if found is None else len(found.rows),
        entropy_bits=None if found is None else found.entropy_bits,
        nmi=nmi,
        accuracy=linear_accuracy(job, features, classes),
        warnings=tuple(dict.fromkeys((*estimate.warnings, *warnings, *(() if found is None else found.warnings)))),
    )


def _report(job: Job, target: RunFolder, rows: list[LayerEntry]) -> None:
    pairing, confidence, entropy_bits = job.pairing, job.config.estimate.confidence, job.pairing.entropy_bits
    assert entropy_bits is not None  # the pairing is by class
    fields = [field.name for field in dataclasses.fields(LayerEntry) if field.name != "warnings"]
    target.write_table("layers.csv", fields, ([getattr(row, name) for name in fields] for row in rows))
    parts = {
        "shared": tuple(pairing.shared),
        "entropy_bits": entropy_bits,
        "confidence": confidence,
        "layers": tuple(rows),
    }
    drawn = {"layers": figures.layers(rows, entropy_bits, confidence)}
    report.publish(job.config, target, parts, drawn, report.LAYERS_FORM, notes=job.notes)
