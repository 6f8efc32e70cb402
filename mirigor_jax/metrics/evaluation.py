"""`evaluate` computes every metric of some features; its result prints, plots and goes into a report."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mirigor_jax import fitting, tables
from mirigor_jax.data.draws import parts_of, row_keys
from mirigor_jax.drawing import Figure
from mirigor_jax.errors import InputError
from mirigor_jax.metrics import picture
from mirigor_jax.metrics.table import ARRAYS, METRICS, PROBES, Inputs, Options, Parts, check_table, shown
from mirigor_jax.mi import api
from mirigor_jax.mi.gaussian_pairs import gaussian_v_shares
from mirigor_jax.mi.labeled import classes_of
from mirigor_jax.numerics import compact

PARTS = ("fit", "validation", "test")


@dataclass(frozen=True)
class Evaluation:
    """Every metric of an encoder's features, on test images.

    values: by the names in METRICS; accuracies are in 0..1.
    k, temperature: of the contrastive losses. They use k pairs a batch, or all pairs if there are fewer.
    Tables and pictures show only metrics that are in METRICS when they are made.
    """

    values: dict[str, float]
    k: int
    temperature: float

    def rows(self) -> list[tuple[str, str]]:
        """Each metric's title and its value as text."""
        return [(metric.title, metric.text(value)) for metric, value in shown(self.values)]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return dataclasses.asdict(self)

    def figure(self) -> Figure:
        """A matplotlib Figure of the probes' metrics, and of the other metrics by pairing."""
        return picture.evaluation(self.values)

    def __str__(self) -> str:
        return "\n".join([f"{self._header()}:", *tables.aligned(("", ""), self.rows(), "<>")[1:]])

    def _repr_html_(self) -> str:
        return tables.html((self._header(), ""), self.rows())

    def _header(self) -> str:
        return f"on test images; contrastive losses at K = {self.k:,} and temperature {self.temperature:g}"


def evaluate(
    h: Any,
    labels: Any = None,
    *,
    views: Sequence[Any] | None = None,
    only: Sequence[str] | None = None,
    l2: Sequence[float] = Options.l2,
    temperature: float = Options.temperature,
    k: int = Options.k,
    mlp_steps: int = Options.mlp_steps,
    seed: int = Options.seed,
    on_progress: fitting.OnProgress | None = None,
) -> Evaluation:
    """Compute every metric in METRICS that the arrays allow, for representations h (n, d) and labels (n,).

    Rows are split 60 : 20 : 20 within classes, as `mi.estimate_labels` splits them. Probes are fitted on the first part
    and choose their settings on the second. The third is measured.
    h: (n, d). Representations of images, one row an image, from any framework.
    labels: (n,) integers, strings or bools. The images' classes. None: only metrics that need no labels, of all rows.
    views: (h_x, h_y), each (m, d). Representations of two augmentations of each of m test images. None: no metrics of
        augmentations.
    only: names of the metrics in METRICS to compute, such as ("linear_accuracy", "rank_me"). None: all. Without
        "mlp_accuracy" and "mlp_nmi" it takes a small part of the time.
    l2, temperature, k, mlp_steps, on_progress: as in `Options`.
    seed: seeds the same-class pairs and the MLP probe.
    Raises InputError for arrays of different lengths, NaN, values that are not numbers, a single class, classes with
    too few rows, options out of range, and metrics in `only` that are unknown or need arrays that are not given.
    Source: Lee et al. 2023, Tables IV-IX.

        print(evaluate(h, labels))
    """
    options = Options(tuple(l2), temperature, k, mlp_steps, seed, on_progress)
    rows = compact(api.as_rows(h, "h", as_they_are=True))
    parts: dict[str, dict[str, np.ndarray]] = {name: {} for name in PARTS}
    if labels is None:
        parts["test"]["h"] = rows
    else:
        classes = classes_of(labels).classes
        if len(classes) != len(rows):
            raise InputError(f"h has {len(rows):,} rows and labels {len(classes):,}: expected one label a row")
        for name, part in zip(PARTS, parts_of(classes, row_keys(len(classes))), strict=True):
            parts[name] = {"h": rows[part], "labels": classes[part]}
    if views is not None and len(views) != 2:
        raise InputError(f"views holds {len(views)} array(s), expected two, h_x and h_y: augmentations of each image")
    for name, view in zip(("h_x", "h_y"), views or (), strict=False):
        parts["test"][name] = compact(api.as_rows(view, name, as_they_are=True))
    return evaluate_parts(parts, options, only)


def evaluate_several(features: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Compute the metrics that compare an encoder with others: encoder → name of the metric in METRICS → value.

    features: name of an encoder → its representations (n, d), from any framework. Row i of each is the same image. The
        widths d may differ. The encoders must not have been trained on these images.
    Raises InputError as `mi.gaussian_v_shares` does.

        print(evaluate_several({"A": h_a, "B": h_b, "C": h_c}))
    """
    shares = gaussian_v_shares(features)
    others = {
        name: {"test": {"others": np.delete(row, i)}}
        for i, (name, row) in enumerate(zip(features, shares, strict=True))
    }
    return {name: evaluate_parts(parts, Options()).values for name, parts in others.items()}


def evaluate_parts(parts: Parts, options: Options, only: Sequence[str] | None = None) -> Evaluation:
    """Compute every metric of the part "test" that the arrays allow, with probes fitted on "fit" and "validation".

    parts: part → array name → array. Every part may have h (n, d) and labels (n,). The test part may have h_x and h_y,
        both (m, d): features of two augmentations of each image. It may have others (o,), as in `Inputs`.
    only: as in `evaluate`.
    Raises InputError as the metrics do, for metrics in `only` that are unknown or need arrays that are not given, and
        if METRICS has an entry that cannot be computed.
    """
    check_table()
    test = parts["test"]
    known = {need for need, arrays in ARRAYS.items() if all(name in test for name in arrays)}
    if "labels" in known:
        known |= PROBES.keys()
    allowed = {name: metric for name, metric in METRICS.items() if set(metric.needs) <= known}
    if only is not None:
        if not only:
            raise InputError("`only` names no metric; name some, or give None for all")
        if unknown := [name for name in only if name not in METRICS]:
            raise InputError(f"unknown metric '{unknown[0]}'; choose from {', '.join(METRICS)}")
        if absent := [name for name in only if name not in allowed]:
            missing = sorted({need if need in ARRAYS else "labels" for need in METRICS[absent[0]].needs} - known)
            raise InputError(f"metric '{absent[0]}' needs {', '.join(missing)}, not given here; leave it out of `only`")
        allowed = {name: metric for name, metric in allowed.items() if name in only}
    if not allowed:
        raise InputError("no metric can be computed without representations; give h, or two views")
    none = np.zeros((0, 0), np.float32)
    inputs = Inputs(
        h=test.get("h", none),
        labels=test.get("labels", np.zeros(0, np.int32)),
        h_x=test.get("h_x", none),
        h_y=test.get("h_y", none),
        others=test.get("others", np.zeros(0)),
        probes={},
        options=options,
    )
    needed = {need for metric in allowed.values() for need in metric.needs}
    fits = {name: fit for name, fit in PROBES.items() if name in needed}
    counter = fitting.StepCounter(options.on_progress, len(allowed) + len(fits))
    values: dict[str, float] = {}

    def compute(names: list[str], inputs: Inputs) -> None:
        for name in names:
            values[name] = float(allowed[name].compute(inputs))
            counter.count(allowed[name].title)

    # Metrics without a fit come first, so that arrays of different lengths are refused at once.
    compute([name for name, metric in allowed.items() if not metric.needs_probe], inputs)
    fitted = {}
    for name, fit in fits.items():
        fitted[name] = fit(parts, dataclasses.replace(options, on_progress=partial(counter.within, f"{name} probe")))
        counter.count(f"{name} probe fitted")
    compute(
        [name for name, metric in allowed.items() if metric.needs_probe], dataclasses.replace(inputs, probes=fitted)
    )
    return Evaluation({name: values[name] for name in allowed}, options.k, options.temperature)
