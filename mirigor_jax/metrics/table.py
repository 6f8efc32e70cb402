"""METRICS, the table of all metrics: each has a heading, a better direction, a unit, its needs and a function.

To add a metric, add one entry, in a config file too:

    METRICS["class_spread"] = Metric("spread", "lower", "", ("h", "labels"), lambda x: spread(x.h, x.labels))
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Integer

from mirigor_jax import checks, fitting, probes, settings, tables
from mirigor_jax.errors import InputError
from mirigor_jax.metrics import geometry, spectrum, sufficiency, transfer
from mirigor_jax.metrics.spectrum import Spectrum

# Part ("fit", "validation" or "test") → array name → array; see `evaluate_parts`.
Parts = Mapping[str, Mapping[str, np.ndarray]]
# The arrays that each need stands for
ARRAYS = {"h": ("h",), "labels": ("h", "labels"), "views": ("h_x", "h_y"), "others": ("others",)}
Better = Literal["higher", "lower", "near 1"]
ARROWS: dict[Better | None, str] = {"higher": " ↑", "lower": " ↓", "near 1": " → 1", None: ""}
# Direction → value → a number that is larger for a better value.
GOODNESS: dict[Better, Callable[[float], float]] = {
    "higher": lambda value: value,
    "lower": lambda value: -value,
    "near 1": lambda value: -abs(value - 1),
}
Group = Literal["augmentation", "class", "images", "probes"]
GROUPS: dict[Group, str] = {"augmentation": "SimCLR", "class": "class", "images": "", "probes": ""}


def row_name(group: Group) -> str:
    """The name of a group's row in a table. The groups of a pairing have its name in Lee et al. 2023."""
    return f"T_{GROUPS[group]}" if GROUPS[group] else group


@dataclass(frozen=True)
class Options:
    """How metrics are computed. The defaults are the command line's.

    l2: penalties that the linear probe tries; validation chooses one.
    temperature: of the contrastive losses of the features' cosines.
    k: pairs a batch of the contrastive losses; all pairs if there are fewer.
    mlp_steps: largest number of steps of the MLP probe's fit.
    seed: seeds the same-class pairs, the MLP, and the order of the labels in the code length.
    on_progress: called as on_progress(done, all, note) after every metric and every probe's fit, and with the note of
        the MLP's fit at every evaluation of it on validation.
    Raises InputError for a number of the wrong type or out of range.
    """

    l2: tuple[float, ...] = settings.Evaluate.l2
    temperature: float = settings.Train.temperature
    k: int = settings.Estimate.nt_xent_k
    mlp_steps: int = settings.Evaluate.mlp_steps
    seed: int = settings.Images.seed
    on_progress: fitting.OnProgress | None = None

    def __post_init__(self) -> None:
        for penalty in self.l2:
            checks.not_negative("l2", penalty)
        checks.temperature(self.temperature)
        checks.whole("k", self.k, 1)
        checks.whole("mlp_steps", self.mlp_steps, 1)
        checks.seed(self.seed)


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of a metric: the test part, and the probes that were fitted on the other two.

    h: (n, d). Features of images without augmentation.
    labels: (n,). Their classes, 0..c-1.
    h_x, h_y: (m, d). Features of two augmentations of each image.
    others: (o,). The share of each other encoder's variance that maps of h predict; see `mi.gaussian_v_shares`.
    probes: the probes that some metric needs, by their names in PROBES.
    options: how metrics are computed.
    A missing array is empty; a metric is computed only if none of its needs is missing.
    """

    h: Float[np.ndarray, "n d"]
    labels: Integer[np.ndarray, " n_labels"]
    h_x: Float[np.ndarray, "m d_x"]
    h_y: Float[np.ndarray, "m_y d_y"]
    others: Float[np.ndarray, " o"]
    probes: Mapping[str, probes.Probe]
    options: Options = field(default_factory=Options)

    @cached_property
    def spectrum(self) -> Spectrum:
        """The singular values of h, decomposed once for all metrics that read them."""
        return Spectrum.of(self.h)


@dataclass(frozen=True)
class Metric:
    """One number of an encoder's features.

    heading: its name in tables and pictures, without unit and arrow; unique among the metrics of its group.
    better: "higher", "lower", "near 1", or None if no value is better.
    unit: "%" (of a value in 0..1), "nats" and so on; "" for a plain number.
    needs: any of "h", "labels" (with h), "views", "others" and the names in PROBES.
    compute: `Inputs` → the value.
    shown_with: its row in tables; None: the row that its needs imply.
    """

    heading: str
    better: Better | None
    unit: str
    needs: tuple[str, ...]
    compute: Callable[[Inputs], float]
    shown_with: Group | None = None

    @property
    def needs_probe(self) -> bool:
        """Whether a probe must be fitted for it."""
        return bool(set(self.needs) & PROBES.keys())

    @property
    def group(self) -> Group:
        """The metric's row in a table: a pairing ("augmentation" or "class"), "images", or "probes"."""
        if self.shown_with is not None:
            return self.shown_with
        if self.needs_probe:
            return "probes"
        return "augmentation" if "views" in self.needs else "class" if "labels" in self.needs else "images"

    @property
    def column(self) -> str:
        """The heading with unit and arrow, as the column of a table shows it."""
        return ", ".join(filter(None, (self.heading, self.unit))) + ARROWS[self.better]

    @property
    def title(self) -> str:
        """The heading with pairing, unit and arrow; unique in METRICS."""
        return ", ".join(filter(None, (self.heading, GROUPS[self.group], self.unit))) + ARROWS[self.better]

    def number(self, value: float) -> float:
        """The value in the metric's unit: a share, in 0..1, in percent."""
        return 100 * value if self.unit == "%" else value

    def text(self, value: float | None) -> str:
        """The value as a number in the metric's unit, without the unit; a dash for None and NaN."""
        if self.unit == "%" and tables.known(value):
            return f"{self.number(value):.2f}"
        return tables.bits(value)


def check_table() -> None:
    """Raises InputError if a metric has an unknown need, or if two metrics have the same title."""
    titles: dict[str, str] = {}
    for name, metric in METRICS.items():
        if unknown := set(metric.needs) - ARRAYS.keys() - PROBES.keys():
            raise InputError(f"metric '{name}' needs '{min(unknown)}'; expected any of {', '.join((*ARRAYS, *PROBES))}")
        if (other := titles.setdefault(metric.title, name)) != name:
            raise InputError(f"metrics '{other}' and '{name}' are both called '{metric.title}'; change one heading")


def shown(values: Mapping[str, float | None]) -> list[tuple[Metric, float | None]]:
    """(metric, value) of each value. Values of metrics that are not in METRICS are left out."""
    return [(METRICS[name], value) for name, value in values.items() if name in METRICS]


def grouped(values: Mapping[str, float | None], *groups: Group) -> tuple[list[Metric], dict[Group, list[float | None]]]:
    """The metrics of these groups as a table: (a metric for each column, group → the values in its row).

    A group without metrics has no row. If a group has no value for a column, it is None.
    """
    columns: dict[str, Metric] = {}
    results: dict[Group, dict[str, float | None]] = {}
    for metric, value in shown(values):
        if metric.group in groups:
            columns.setdefault(metric.column, metric)
            results.setdefault(metric.group, {})[metric.column] = value
    return list(columns.values()), {
        group: [results[group].get(column) for column in columns] for group in groups if group in results
    }


def _labeled(parts: Parts) -> dict[str, Any]:
    """The arguments that every fit of a probe takes."""
    num_classes = 1 + max(int(part["labels"].max()) for part in parts.values())
    return {"features": parts["fit"]["h"], "labels": parts["fit"]["labels"], "num_classes": num_classes}


def _validation(parts: Parts) -> dict[str, Any]:
    part = parts["validation"]
    return {"validation_features": part["h"], "validation_labels": part["labels"]}


def _linear(parts: Parts, options: Options) -> probes.Probe:
    return probes.fit_linear(**_labeled(parts), **_validation(parts), l2=options.l2)


def _knn(parts: Parts, options: Options) -> probes.Probe:
    return probes.fit_knn(**_labeled(parts))


def _mlp(parts: Parts, options: Options) -> probes.Probe:
    how: dict[str, Any] = {"max_steps": options.mlp_steps, "seed": options.seed, "on_progress": options.on_progress}
    return probes.fit_mlp(**_labeled(parts), **_validation(parts), **how)


def _prequential(parts: Parts, options: Options) -> probes.Probe:
    return probes.fit_prequential(**_labeled(parts), **_validation(parts), l2=options.l2, seed=options.seed)


# Probe name → its fit on the parts "fit" and "validation". It is fitted once for all metrics that need it.
PROBES: dict[str, Callable[[Parts, Options], probes.Probe]] = {
    "linear": _linear,
    "knn": _knn,
    "mlp": _mlp,
    "prequential": _prequential,
}


def _view_uniformity(x: Inputs) -> float:
    """The mean of each view's own uniformity, as in Wang & Isola's code: the views of a pair are not independent."""
    return (geometry.uniformity(x.h_x) + geometry.uniformity(x.h_y)) / 2


def _contrastive_loss(h_x: Float[np.ndarray, "n d"], h_y: Float[np.ndarray, "n d"], options: Options) -> float:
    return geometry.contrastive_loss_nats(h_x, h_y, options.temperature, min(options.k, len(h_x)))


def _class_loss(x: Inputs) -> float:
    rows_x, rows_y = geometry.class_pairs(x.labels, x.options.seed).T
    return _contrastive_loss(x.h[rows_x], x.h[rows_y], x.options)


def _accuracy(name: str) -> Callable[[Inputs], float]:
    return lambda x: probes.accuracy(x.probes[name], x.h, x.labels)


def _nmi(name: str) -> Callable[[Inputs], float]:
    return lambda x: geometry.label_nmi(x.probes[name].logits(x.h) / x.probes[name].temperature, x.labels)


def _code_length(x: Inputs) -> float:
    """Bits that a label of the fit part takes, on average; see `probes.fit_prequential`."""
    coded = x.probes["prequential"]
    assert isinstance(coded, probes.PrequentialProbe)
    return coded.code_bits / coded.rows


# Source: Lee et al. 2023, Tables IV-IX; NMI: Gosch 2020; code length: Voita & Titov 2020. The functions of spectrum.py,
# transfer.py and sufficiency.py name theirs.
METRICS: dict[str, Metric] = {
    "augmentation_alignment": Metric("alignment", "lower", "", ("views",), lambda x: geometry.alignment(x.h_x, x.h_y)),
    "augmentation_uniformity": Metric("uniformity", "lower", "", ("views",), _view_uniformity),
    # there are no classes here, so this is the mean cosine of the pairs
    "augmentation_tolerance": Metric(
        "tolerance", "higher", "", ("views",), lambda x: 1 - geometry.alignment(x.h_x, x.h_y) / 2
    ),
    "augmentation_contrastive_loss_nats": Metric(
        "contrastive loss", "lower", "nats", ("views",), lambda x: _contrastive_loss(x.h_x, x.h_y, x.options)
    ),
    "class_alignment": Metric("alignment", "lower", "", ("labels",), lambda x: geometry.class_alignment(x.h, x.labels)),
    "class_uniformity": Metric("uniformity", "lower", "", ("labels",), lambda x: geometry.uniformity(x.h)),
    "class_tolerance": Metric("tolerance", "higher", "", ("labels",), lambda x: geometry.tolerance(x.h, x.labels)),
    "class_contrastive_loss_nats": Metric("contrastive loss", "lower", "nats", ("labels",), _class_loss),
    "rank_me": Metric("RankMe", "higher", "", ("h",), lambda x: spectrum.rank_me(x.spectrum)),
    "lidar": Metric("LiDAR", "higher", "", ("views",), lambda x: spectrum.lidar(x.h_x, x.h_y), "images"),
    "alpha_req": Metric("α-ReQ", "near 1", "", ("h",), lambda x: spectrum.alpha_req(x.spectrum)),
    "participation_ratio": Metric(
        "participation ratio", "higher", "", ("h",), lambda x: spectrum.participation_ratio(x.spectrum)
    ),
    "stable_rank": Metric("stable rank", "higher", "", ("h",), lambda x: spectrum.stable_rank(x.spectrum)),
    "information_sufficiency": Metric(
        "information sufficiency", "higher", "%", ("others",), lambda x: sufficiency.information_sufficiency(x.others)
    ),
    "log_me": Metric("LogME", "higher", "nats", ("labels",), lambda x: transfer.log_me(x.spectrum, x.labels), "images"),
    "h_score": Metric("H-score", "higher", "", ("labels",), lambda x: transfer.h_score(x.spectrum, x.labels), "images"),
    "linear_accuracy": Metric("linear accuracy", "higher", "%", ("linear",), _accuracy("linear")),
    "knn_accuracy": Metric("kNN accuracy", "higher", "%", ("knn",), _accuracy("knn")),
    "mlp_accuracy": Metric("MLP accuracy", "higher", "%", ("mlp",), _accuracy("mlp")),
    "linear_nmi": Metric("NMI, linear", "higher", "", ("linear",), _nmi("linear")),
    "mlp_nmi": Metric("NMI, MLP", "higher", "", ("mlp",), _nmi("mlp")),
    "code_length_bits": Metric("code length, linear", "lower", "bits", ("prequential",), _code_length),
}
