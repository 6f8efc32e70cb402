"""The contents of estimate.json and report.json: every field with its meaning and unit.

The files are written from these types, and `read` turns them back into these types. None stands for null: a number that
is not known or not finite. MI is in bits, accuracies are shares of 1.
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
    """Facts about the two views that hold for any encoder.

    entropy_bits: H(C) of the class C that they share.
    mutual_information_bits: I(X;Y), if it is known exactly; no encoder can exceed it.
    shared: the attributes that they share.
    """

    entropy_bits: float | None = None
    mutual_information_bits: float | None = None
    shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class InTraining:
    """The end of a training that has an in-training MI.

    objective: name of the training loss.
    num_classes: number of classes that a labeled objective uses; None without labels.
    k: pairs per batch.
    steps: number of steps taken.
    loss_nats: the training loss, a mean over the last tenth of the steps.
    mi_bits: log2(2k-1) minus the loss in bits, a mean over the same steps; not a bound.
    ceiling_bits: log2(2k-1).
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
    """The critic's fit, with one value per evaluation: steps taken, InfoNCE of the fit part and of validation."""

    step: tuple[int, ...]
    fit_bits: tuple[float | None, ...]
    validation_bits: tuple[float | None, ...]


@dataclass(frozen=True)
class Fit:
    """The fit of the critic: steps taken, the step that validation chose, pairs per batch, and the history."""

    steps: int
    best_step: int
    k: int
    history: History


@dataclass(frozen=True)
class EstimateEntry:
    """estimate.json: an estimate of I(h_X;h_Y) of a run's encoder under one pairing.

    name: name of the estimate's folder in estimates/.
    shared: the attributes that the two views share.
    value_bits: the point estimate of a lower bound of I; never below that bound's lower confidence limit, lower_bits.
    statistic: name of the statistic that gives value_bits.
    interval: interval of that bound, two-sided; approximate unless it is a classifier's.
    k: pairs in a batch of the test part at which InfoNCE is quoted.
    info_nce_bits: InfoNCE at k, a lower bound of I in expectation, from the critic that the certificates read.
    ceiling_bits: log2 k.
    max_info_nce_bits: InfoNCE of an optimal critic at k; None if it is not known.
    nt_xent_bits: the NT-Xent estimate at its own K, not a bound (Lee et al. 2023, Eq. 4), from a critic of the
        projection head's architecture; None if it was not read.
    lower_bits, upper_bits: I lies between them at `confidence`; the lower end is certified on fresh pairs.
    confidence: confidence level of the certificate and the intervals.
    certificate: the name of the certificate that validation chose.
    certificates: the result of every certificate, by name.
    verdict: one word for the conclusion from the interval.
    entropy_bits: H(C) of the shared class.
    curve: the readings of each estimator at every K, by name; InfoNCE comes first.
    fit: the fit of the critic that InfoNCE reads.
    conclusions: sentences that the estimate supports, the headline first.
    warnings: doubts about the images as a random sample, in words.
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


@dataclass(frozen=True, kw_only=True)
class UsableEntry:
    """usable.json: what linear probes can use of a run's representations, on rows that the encoder has not seen.

    shared: the attributes that define the class.
    family: the family of probes in words; empty if nothing is measured.
    value_bits, lower_bits, upper_bits, kl_upper_bits, confidence, entropy_bits, frequencies, norm, reach,
        largest_loss_nats, warnings, sentence: as in `mi.UsableInformation`; None or empty if nothing is measured.
    rows: number of unseen rows from which the value and the ends are computed, by part.
    note: why nothing is measured; empty if it is.
    """

    shared: tuple[str, ...]
    family: str = ""
    value_bits: float | None = None
    lower_bits: float | None = None
    upper_bits: float | None = None
    kl_upper_bits: float | None = None
    confidence: float | None = None
    entropy_bits: float | None = None
    frequencies: dict[str, float] = dataclasses.field(default_factory=dict)
    norm: float | None = None
    reach: float | None = None
    largest_loss_nats: float | None = None
    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    note: str = ""
    warnings: tuple[str, ...] = ()
    sentence: str = ""


@dataclass(frozen=True)
class ArrayEntry:
    """estimate.json of a run on arrays: the fields of `mi.Estimate` or `mi.LabelEstimate`, and these computed ones:

    value_nats: value_bits in nats.
    mean_bits, spread_bits: mean and standard deviation over the values of the single seeds.
    sentence: the estimate in words.
    entropy_bits, certificates, nmi, nmi_lower: set only for an estimate of I_class.
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
    """The time, memory, machine and config of a run.

    seconds: time of each stage, and of all as `total`.
    peak_memory_gib: largest memory of the process.
    devices: number and kind of the devices.
    versions: versions of packages.
    revision: the commit of this package; None for an installed wheel.
    stages: the notes of each stage in stages.json.
    config: every setting.
    seed: the config's seed.
    cores: number of CPU cores that the process may use.
    instructions: those instructions of the CPU that change how XLA computes.
    xla_flags: the value of XLA_FLAGS. It, cores and instructions are None if an older version made the run.
    command: the command line that made its last stage; None if Python code did, or an older version.
    notes: what was passed over in the files of the images, the arrays and the encoder, such as hidden files and keys.
    same_numbers: the conditions under which the same config gives the same numbers, and the differences otherwise.
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
    command: str | None = None
    same_numbers: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """The fields that every report.json has. name: the run's name. workdir: its folder."""

    name: str
    workdir: str
    run: Run


@dataclass(frozen=True, kw_only=True)
class ImageReport(Report):
    """report.json of a run on images, or on their features.

    in_training: None if nothing was trained, or if the loss corresponds to no MI.
    estimate: the run's own estimate.
    estimates: all estimates of this encoder by name, including the run's own.
    linear: accuracy of a linear probe on test images, by task.
    measured: the name of the estimate that is shown beside the metrics of `class` and of `augmentation`; None: none is.
    metrics: the values that `metrics.evaluate` returns, None for one that is not defined; empty if not asked for.
    usable: None if there are no labels of two classes, or if an older version evaluated the run.
    """

    truth: Truth
    in_training: InTraining | None
    estimate: EstimateEntry
    estimates: dict[str, EstimateEntry]
    linear: dict[str, float]
    measured: dict[str, str | None]
    metrics: dict[str, float | None]
    usable: UsableEntry | None = None


@dataclass(frozen=True, kw_only=True)
class ArrayReport(Report):
    """report.json of a run on arrays.

    estimate: the first of `estimates`.
    estimates: the estimates by the name of the estimator; `labels` for an estimate of I_class.
    usable: None without labels.
    """

    truth: Truth
    estimate: ArrayEntry
    estimates: dict[str, ArrayEntry]
    usable: UsableEntry | None = None


@dataclass(frozen=True)
class LayerEntry:
    """One stage of an encoder.

    stage: its name. width: number of its features.
    i_class_bits: the estimate of I(h_X;h_Y) of two images of one class. i_class_lower_bits: its certified lower end.
    certificate: the name of the certificate that validation chose.
    usable_bits: information about the class that linear probes can use. usable_lower_bits, usable_upper_bits: it lies
        between them at `confidence`, from unseen_rows images.
    entropy_bits: H(C) at the class frequencies that usable information is about. If usable information cannot be
        measured, the fields usable_* and entropy_bits are None, and unseen_rows is 0.
    nmi: I(h;C) / H(C), estimated from a linear probe's log-loss on test images. accuracy: of that probe.
    warnings: doubts about the images as a random sample, in words; ends that they withhold are None.
    """

    stage: str
    width: int
    i_class_bits: float
    i_class_lower_bits: float | None
    certificate: str | None
    usable_bits: float | None
    usable_lower_bits: float | None
    usable_upper_bits: float | None
    unseen_rows: int
    entropy_bits: float | None
    nmi: float
    accuracy: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayersReport(Report):
    """layers.json: every stage of a finished run's encoder.

    shared: the attributes that make the class. entropy_bits: H(C), an upper end of I(h_X;h_Y).
    confidence: confidence level of each end alone; both ends of usable information hold together.
    layers: the stages in the order of depth.
    """

    shared: tuple[str, ...]
    entropy_bits: float
    confidence: float
    layers: tuple[LayerEntry, ...]


def read(kind: type[T], result: Any) -> T:
    """Turn the contents of a JSON file into one of these types.

    Raises InputError if they have other fields, which means that another version wrote the file.
    """
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
