"""What estimate.json and report.json hold: every field with its meaning and unit. They are written from these types
and read through them.

None stands for null: a number that is not known or not finite. MI is in bits, accuracies are shares of 1.
"""

import dataclasses
import types
from dataclasses import dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from mirigor_jax.errors import InputError
from mirigor_jax.mi.certify import Certified
from mirigor_jax.mi.confidence import Interval
from mirigor_jax.mi.results import Curve, Reading

T = TypeVar("T")


@dataclass(frozen=True)
class Truth:
    """What is known of the views before any encoder sees them.

    entropy_bits: H(C) of the class that they share.
    mutual_information_bits: I(X;Y), where it is known exactly; no encoder can exceed it.
    shared: the attributes that they share.
    """

    entropy_bits: float | None = None
    mutual_information_bits: float | None = None
    shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class InTraining:
    """The end of a training whose loss stands for an MI; means over the last tenth of its steps.

    objective: what it was trained for. num_classes: that a labeled objective tells apart.
    k: pairs a batch. steps: how many were taken.
    loss_nats: the training loss. mi_bits: log2(2k-1) less the loss, not a bound. ceiling_bits: log2(2k-1).
    """

    objective: str
    num_classes: int | None
    k: int
    steps: int
    loss_nats: float
    mi_bits: float
    ceiling_bits: float


@dataclass(frozen=True)
class History:
    """The critic's fit, a value an evaluation: steps taken, InfoNCE of the fit part and of validation."""

    step: tuple[int, ...]
    fit_bits: tuple[float | None, ...]
    validation_bits: tuple[float | None, ...]


@dataclass(frozen=True)
class Fit:
    """How the critic was fitted: steps taken, the step that validation chose, pairs a batch."""

    steps: int
    best_step: int
    k: int
    history: History


@dataclass(frozen=True)
class EstimateEntry:
    """estimate.json: an estimate of I(h_X;h_Y) of a run's encoder under one pairing.

    name: of the folder in estimates/. shared: the attributes that the two views share.
    value_bits: the estimate, of a lower bound of I; never below lower_bits.
    statistic: what the value is, in words.
    interval: of that bound, two-sided and approximate but for a classifier's.
    lower_bits, upper_bits: I lies between them at `confidence`; the lower end is certified on fresh pairs.
    certificate: the name of the certificate that validation chose. certificates: what every one shows.
    k: pairs a batch of the test part where InfoNCE is quoted.
    info_nce_bits: InfoNCE at k, of the critic that the certificates read, a lower bound of I in expectation.
    ceiling_bits: log2 k. max_info_nce_bits: what an optimal critic shows at k.
    nt_xent_bits: the NT-Xent estimate at its own K, no bound (Lee et al. 2023, Eq. 4), of a critic of the projection
        head's architecture; None unless it was read.
    verdict: in a word what the interval allows. entropy_bits: H(C) of the shared class.
    curve: by estimator its readings at every K, InfoNCE's first. fit: how the critic that InfoNCE reads was fitted.
    conclusions: what may be concluded, the headline first. warnings: what speaks against the images, in words.
    """

    name: str
    shared: tuple[str, ...]
    value_bits: float
    statistic: str
    interval: Interval | None
    k: int
    info_nce_bits: float
    ceiling_bits: float | None
    max_info_nce_bits: float | None
    nt_xent_bits: float | None
    lower_bits: float | None
    upper_bits: float | None
    confidence: float
    certificate: str | None
    certificates: dict[str, Certified]
    verdict: str
    entropy_bits: float | None
    curve: dict[str, Curve]
    fit: Fit
    conclusions: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def info_nce(self) -> Curve:
        """The readings of InfoNCE."""
        return next(iter(self.curve.values()))

    @property
    def others(self) -> list[Curve]:
        """The readings of the further estimators."""
        return list(self.curve.values())[1:]


@dataclass(frozen=True)
class ArrayEntry:
    """estimate.json of a run on arrays: the fields of `mi.Estimate`, or `mi.LabelEstimate`, and what follows from them.

    value_nats: value_bits in nats. mean_bits, spread_bits: mean and standard deviation of the seeds' own values.
    sentence: the estimate in words. entropy_bits, certificates, nmi, nmi_lower: of an estimate of I_class alone.
    """

    name: str
    value_bits: float
    kind: str
    k: int
    ceiling_bits: float | None
    interval: Interval | None
    lower_bits: float | None
    upper_bits: float | None
    confidence: float
    certificate: str | None
    verdict: str
    pairs: int
    seed_bits: tuple[float, ...]
    info_nce: Reading | None
    note: str
    warnings: tuple[str, ...]
    value_nats: float
    mean_bits: float
    spread_bits: float | None
    sentence: str
    entropy_bits: float | None = None
    certificates: dict[str, Certified] = dataclasses.field(default_factory=dict)
    nmi: float | None = None
    nmi_lower: float | None = None


@dataclass(frozen=True)
class Run:
    """What a run took, and with what.

    seconds: of each stage, and `total`. peak_memory_gib: of the process. devices: how many of which kind.
    cores: of CPU that the process may use; None of a run of an older version.
    instructions: of the CPU, those that change how XLA computes. xla_flags: XLA_FLAGS. None of an older version.
    same_numbers: where the same config gives the same numbers, and how far they are apart elsewhere, in words.
    versions: of packages. revision: this package's commit, None of an installed wheel.
    stages: what stages.json notes of each stage. config: every setting. seed: the config's.
    """

    seconds: dict[str, float]
    peak_memory_gib: float
    devices: str
    versions: dict[str, str]
    revision: str | None
    stages: dict[str, Any]
    config: dict[str, Any]
    seed: int
    cores: int | None = None
    instructions: list[str] | None = None
    xla_flags: str | None = None
    same_numbers: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What every report.json has. name: of the run. workdir: its folder."""

    name: str
    workdir: str
    run: Run


@dataclass(frozen=True, kw_only=True)
class ImageReport(Report):
    """report.json of a run on images, or on their features.

    in_training: None where nothing was trained, or the loss stands for no MI.
    estimate: the run's own. estimates: by name all of this encoder, its own among them.
    linear: accuracy of a linear probe of each task on test images.
    measured: the name of the estimate beside the metrics of each pairing, `class` and `augmentation`; None: no one.
    metrics: as `metrics.evaluate` gives them; empty unless they were asked for.
    """

    truth: Truth
    in_training: InTraining | None
    estimate: EstimateEntry
    estimates: dict[str, EstimateEntry]
    linear: dict[str, float]
    measured: dict[str, str | None]
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ArrayReport(Report):
    """report.json of a run on arrays. estimate: the first of `estimates`, which are by estimator, or `labels`."""

    truth: Truth
    estimate: ArrayEntry
    estimates: dict[str, ArrayEntry]


def read(kind: type[T], result: Any) -> T:
    """What a JSON file holds, as one of these types. Raises InputError if it holds other fields: of another version."""
    return _read(kind, result, kind.__name__)


def _read(kind: Any, result: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(result, dict):
            raise InputError(f"{where} is {result!r}: expected the fields of {kind.__name__}; make it again")
        fields, hints = dataclasses.fields(kind), get_type_hints(kind)
        required = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
        if odd := sorted((required - result.keys()) | (result.keys() - hints.keys())):
            raise InputError(f"{where} is of another version ({', '.join(odd)}); make it again")
        return kind(**{name: _read(hints[name], value, f"{where}.{name}") for name, value in result.items()})
    if origin in (types.UnionType, Union):
        return None if result is None else _read(next(a for a in arguments if a is not types.NoneType), result, where)
    if origin is tuple:
        return tuple(_read(arguments[0], value, where) for value in result)
    if origin is dict:
        return {arguments[0](key): _read(arguments[1], value, f"{where}.{key}") for key, value in result.items()}
    return result
