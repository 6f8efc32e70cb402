"""The results of estimating I(h_X;h_Y): estimates, curves and comparisons, their verdicts and their sentences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np

from mirigor_jax.files import plain
from mirigor_jax.mi.certify import Certified
from mirigor_jax.mi.confidence import Interval
from mirigor_jax.mi.usable_results import UsableOrder, withheld_reason
from mirigor_jax.tables import bits, ends, html, round_down

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any  # only drawing imports matplotlib

Verdict = Literal["certified", "bounded", "k-limited", "not-a-bound", "not-independent", "seen"]


@dataclass(frozen=True)
class Reading:
    """An estimator's value on the test part at one K.

    bits: the mean over the batches.
    batches: number of disjoint batches of K pairs.
    interval: of the mean; None if there is none.
    ceiling_bits: the most that the estimator can be at K; None: it has no ceiling.
    max_bits: the most that the best critic reaches at K, in expectation; None: not known.
    """

    bits: float
    batches: int
    interval: Interval | None
    ceiling_bits: float | None
    max_bits: float | None


@dataclass(frozen=True)
class Estimate:
    """One estimate of I(h_X;h_Y), and the interval in which I is certified to lie. Bits unless a name says nats.

    name: the estimator's.
    value_bits: the estimate, by the critics' averaged scores. Its mean may exceed I unless `kind` is "lower bound".
    kind: how the value's mean relates to I: "lower bound", "plug-in" or "not a bound".
    k: pairs in a test batch, if the estimator's value depends on it.
    ceiling_bits: the most that the value can reach; inf if there is no limit.
    interval: the two-sided interval of the value's expectation; None if there is none.
    lower_bits, upper_bits: I lies between them at `confidence`, by the certificate; None if that end is not known.
    confidence: of both intervals.
    certificate: name of the certificate that gives lower_bits; None if there is none.
    verdict: the conclusion from the certified interval, in one word; see `verdict`.
    pairs: number of test pairs that were read.
    seed_bits: each critic's own value.
    info_nce: InfoNCE of the same critics at k, if the value is another statistic; None if it was not read.
    certificates: by name, the result of every certificate that applies to the test part.
    note: the estimator's bias, in words.
    warnings: doubts about the data, in words. If a certificate is withheld, the reason comes first.
    """

    name: str
    value_bits: float
    kind: str
    k: int
    ceiling_bits: float
    interval: Interval | None
    lower_bits: float | None
    upper_bits: float | None
    confidence: float
    certificate: str | None
    verdict: Verdict
    pairs: int = 0
    seed_bits: tuple[float, ...] = ()
    info_nce: Reading | None = None
    certificates: dict[str, Certified] = field(default_factory=dict)
    note: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def value_nats(self) -> float:
        """value_bits in nats."""
        return self.value_bits * float(np.log(2))

    @property
    def mean_bits(self) -> float:
        """The mean of the critics' own values."""
        return float(np.mean(self.seed_bits or self.value_bits))

    @property
    def spread_bits(self) -> float | None:
        """The standard deviation of the critics' own values; None for a single critic."""
        return float(np.std(self.seed_bits, ddof=1)) if len(self.seed_bits) > 1 else None

    @property
    def limit_bits(self) -> float:
        """The most that the value, or a lower end from this many test pairs, can be.

        Source: McAllester & Stratos 2020: a lower end for any distribution grows at most like ln n with n pairs.
        """
        return min(self.ceiling_bits, math.log2(self._certified_pairs) if self.pairs else math.inf)

    @property
    def _certified_pairs(self) -> int:
        """Number of pairs that the certificate read. The prequential one reads more than the test pairs."""
        chosen = self.certificates.get(self.certificate or "")
        return self.pairs if chosen is None else chosen.counts.get("pairs", self.pairs)

    def withheld(self, contradiction: str) -> Self:
        """The estimate without its certificate and interval. contradiction: why its rows are not independent."""
        reason = withheld_reason("the certificate is withheld", contradiction)
        return self._without_certificate("not-independent", reason)

    def of_seen_rows(self, reason: str) -> Self:
        """The estimate without its certificate and interval. reason: the warning that the encoder has seen rows."""
        return self._without_certificate("seen", reason)

    def _without_certificate(self, verdict: Verdict, reason: str) -> Self:
        return replace(
            self,
            interval=None,
            lower_bits=None,
            certificate=None,
            certificates={},
            verdict=verdict,
            warnings=(reason, *self.warnings),
        )

    def __str__(self) -> str:
        """The sentence and the warnings."""
        return " ".join([self.sentence, *(f"Warning: {warning}." for warning in self.warnings)])

    @property
    def sentence(self) -> str:
        """The estimate and the certified interval in words, without the warnings."""
        return " ".join([self._claim, *self._near_its_limit])

    @property
    def _near_its_limit(self) -> list[str]:
        """A sentence if the value is within a nat of its limit, so that more pairs might show more; else nothing."""
        more = self.upper_bits is None or self.upper_bits > self.limit_bits
        if not more or self.value_bits < self.limit_bits - 1 / math.log(2):
            return []
        of = f"K = {self.k:,}" if self.limit_bits == self.ceiling_bits else f"{self._certified_pairs:,} test pairs"
        return [
            f"The value is within a nat of {self.limit_bits:.3f} bits, the most that {of} can show: the mutual "
            "information may be far larger."
        ]

    @property
    def _claim(self) -> str:
        estimate = f"{self._what} reads {self.value_bits:z.3f} bits ({self.kind})"
        if self.spread_bits is not None:
            estimate += f", {self.mean_bits:z.3f} ± {self.spread_bits:.3f} over {len(self.seed_bits)} seeds"
        if self.info_nce is not None:
            estimate += f", InfoNCE at K = {self.k:,} {self.info_nce.bits:z.3f} bits"
        if self.lower_bits is None:
            return f"{estimate}; nothing is certified."
        claimed = claim(self.lower_bits, self.upper_bits, self.confidence)
        by = f"by the {self.certificate} certificate" if self.certificate else "without a certificate"
        return f"{estimate}; the MI {claimed}, {by} ({self.verdict})."

    def to_dict(self) -> dict[str, Any]:
        """Every field, the derived numbers and the sentence, for JSON. A number that is not finite becomes None."""
        derived = {"value_nats": self.value_nats, "mean_bits": self.mean_bits, "spread_bits": self.spread_bits}
        return dict(plain({**vars(self), **derived, **self._derived(), "sentence": self.sentence}))

    def figure(self) -> Figure:
        """A matplotlib Figure of the estimate with its interval, certificate, ceiling and critics."""
        from mirigor_jax.mi import picture

        return picture.estimators([self])

    @property
    def _what(self) -> str:
        return f"{self.name} at K = {self.k:,}"

    def _derived(self) -> dict[str, Any]:
        return {}

    def _rows(self) -> list[tuple[str, str]]:
        """Headings and cells for tables."""
        percent = f"{100 * self.confidence:.6g} %"
        return [
            ("estimator", self.name),
            ("kind", self.kind),
            ("bits", bits(self.value_bits)),
            (f"interval, {percent}", shown_ends(self.interval)),
            (f"certified, {percent}", _certified(self.lower_bits, self.upper_bits)),
            ("certificate", self.certificate or "–"),
            ("InfoNCE", bits(None if self.info_nce is None else self.info_nce.bits)),
            ("K", f"{self.k:,}"),
            ("ceiling", bits(self.ceiling_bits)),
        ]

    def _repr_html_(self) -> str:
        """A table of one row, for notebooks."""
        header, cells = zip(*self._rows(), strict=True)
        return html(header, [cells], [self.sentence, *self.warnings])


@dataclass(frozen=True)
class FlowEstimate(Estimate):
    """The Estimate of `flow_matching`, which reads all test pairs. `k` is their number, and limits nothing."""

    @property
    def limit_bits(self) -> float:
        return math.inf

    @property
    def _what(self) -> str:
        return self.name

    def _rows(self) -> list[tuple[str, str]]:
        return [row for row in super()._rows() if row[0] not in ("InfoNCE", "K", "ceiling")]


@dataclass(frozen=True)
class Curve:
    """An estimator's readings of one fitted critic on the test part, at several K.

    heading: the estimator's name in reports.
    kind: how it relates to I: "lower bound", "plug-in" or "not a bound".
    k: the K whose reading is quoted.
    at: the reading at each K.
    """

    heading: str
    kind: str
    k: int
    at: dict[int, Reading]

    @property
    def quoted(self) -> Reading:
        return self.at[self.k]

    @property
    def is_bound(self) -> bool:
        return self.kind == "lower bound"


@dataclass(frozen=True, kw_only=True)
class LabelEstimate(Estimate):
    """The Estimate of I_class = I(h_X;h_Y): X and Y are independent images of one class C ~ p(c).

    The value is the point estimate of the chosen certificate's lower bound; `name` is the certificate's heading.
    lower_bits is the lower confidence limit of the same bound, so the value is never below it.
    entropy_bits: H(C), the most that I_class can be.
    """

    entropy_bits: float

    @property
    def info_nce_bits(self) -> float:
        """InfoNCE at k."""
        assert self.info_nce is not None  # `measure` always reads it
        return self.info_nce.bits

    @property
    def nmi(self) -> float:
        """The estimate of I_class / H(C). Source: Lee et al. 2023; Gosch 2020 (normalized MI)."""
        return self.value_bits / self.entropy_bits

    @property
    def nmi_lower(self) -> float:
        """The certified lower end of I_class / H(C)."""
        return (self.lower_bits or 0.0) / self.entropy_bits

    @property
    def _claim(self) -> str:
        """The claim of `Estimate`, and the share of H(C)."""
        share = f"The estimate is {self.nmi:.3f} of H(C) = {self.entropy_bits:.3f} bits"
        if self.lower_bits is not None:
            share += f"; at least {round_down(self.nmi_lower):.3f} is certified"
        return f"{super()._claim} {share}."

    @property
    def _what(self) -> str:
        return f"I_class by {self.name}"

    def _derived(self) -> dict[str, Any]:
        return {"nmi": self.nmi, "nmi_lower": self.nmi_lower}

    def _rows(self) -> list[tuple[str, str]]:
        share = f"{self.nmi:z.3f}, ≥ {round_down(self.nmi_lower):.3f}"
        return [*super()._rows(), ("H(C)", bits(self.entropy_bits)), ("NMI", share)]


@dataclass(frozen=True)
class Estimates(Sequence[tuple[Estimate, ...]]):
    """Estimates of several data sets by several estimators: estimates[i][j] is that of data set i by estimator j."""

    rows: tuple[tuple[Estimate, ...], ...]

    @overload
    def __getitem__(self, index: int) -> tuple[Estimate, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[Estimate, ...], ...]: ...

    def __getitem__(self, index: int | slice) -> tuple[Estimate, ...] | tuple[tuple[Estimate, ...], ...]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        """One line for each estimate, then the warnings."""
        lines = [f"{name}: {result.sentence}" if name else result.sentence for name, result in self._named()]
        return "\n".join([*lines, *(f"Warning: {warning}." for warning in self._warnings)])

    def to_dict(self) -> dict[str, Any]:
        """The dictionaries of all estimates, in the same order."""
        return {"estimates": [[result.to_dict() for result in row] for row in self.rows]}

    def figure(self) -> Figure:
        """A matplotlib Figure of all estimates, one row each, with interval, certificate and ceiling."""
        from mirigor_jax.mi import picture

        named = [replace(result, name=f"{result.name}, {name}") if name else result for name, result in self._named()]
        return picture.estimators(named)

    def _named(self) -> list[tuple[str, Estimate]]:
        """Every estimate, after its data set's name if there are several data sets."""
        several = len(self.rows) > 1
        return [(f"data set {i}" if several else "", result) for i, row in enumerate(self.rows) for result in row]

    def _repr_html_(self) -> str:
        """A table with one row for each estimate, for notebooks."""
        named = self._named()
        cells = [[name, *(cell for _, cell in result._rows())] for name, result in named]
        header = ["", *(heading for heading, _ in named[0][1]._rows())] if named else []
        return html(header, cells, list(self._warnings))

    @property
    def _warnings(self) -> tuple[str, ...]:
        """Each warning once: most are about the data, which the estimators share."""
        return tuple(dict.fromkeys(warning for row in self.rows for result in row for warning in result.warnings))


@dataclass(frozen=True)
class Comparison:
    """Two encoders' InfoNCE at the same K on the same test pairs, and the order of their usable information; bits.

    a, b: the encoders' estimates.
    difference_bits: a's InfoNCE minus b's.
    interval: of the difference, paired, for these two critics; None if there is none.
    k: pairs a batch.
    max_info_nce_bits: the most InfoNCE that any encoder reaches at this K, in expectation.
    confidence: of the interval.
    usable: the encoders' usable information, and its order if one is proven. `larger` is about InfoNCE alone.
    """

    a: LabelEstimate
    b: LabelEstimate
    difference_bits: float
    interval: Interval | None
    k: int
    max_info_nce_bits: float
    confidence: float
    usable: UsableOrder

    @property
    def larger(self) -> str | None:
        """The encoder whose bound is larger, "A" or "B"; None if the data cannot tell."""
        if self.interval is None:
            return None
        return "A" if self.interval.lower_bits > 0 else "B" if self.interval.upper_bits < 0 else None

    @property
    def saturated(self) -> bool:
        """Whether both encoders' InfoNCE is within 0.05 bits of the most that is possible at K."""
        return min(self.a.info_nce_bits, self.b.info_nce_bits) > self.max_info_nce_bits - 0.05

    def __str__(self) -> str:
        """Which encoder's InfoNCE is larger, by how much, and the limits of that comparison, in sentences."""
        answer = f"{self.larger}'s is larger" if self.larger else "the data cannot tell which is larger"
        sentence = (
            f"At K = {self.k:,} InfoNCE reads {self.a.info_nce_bits:.3f} bits for A and {self.b.info_nce_bits:.3f} "
            f"for B: {answer} (A - B = {self.difference_bits:z.3f}, paired {100 * self.confidence:.6g} % interval "
            f"{shown_ends(self.interval)}). This compares two lower bounds of I_class, each "
            "by its own critic, not the two I_class."
        )
        if self.saturated:
            sentence += (
                f" Both are at {self.max_info_nce_bits:.3f} bits, the most that InfoNCE can show at this K"
                f" (H(C) = {self.a.entropy_bits:.3f}): these labels at this K cannot tell the encoders apart further."
            )
        warnings = dict.fromkeys((*self.a.warnings, *self.b.warnings, *self.usable.warnings))
        return " ".join([sentence, self.usable.sentence, *(f"Warning: {warning}." for warning in warnings)])

    def to_dict(self) -> dict[str, Any]:
        """Every field, the derived answers and the sentence, for JSON. A number that is not finite becomes None."""
        both = {"a": self.a.to_dict(), "b": self.b.to_dict(), "usable": self.usable.to_dict()}
        derived = {"larger": self.larger, "saturated": self.saturated, "sentence": str(self)}
        return dict(plain({**vars(self), **both, **derived}))

    def figure(self) -> Figure:
        """A matplotlib Figure of both estimates, A above B, each with its interval and certificate."""
        from mirigor_jax.mi import picture

        return picture.estimators([replace(self.a, name="A"), replace(self.b, name="B")])

    def _repr_html_(self) -> str:
        """A table of A, B and their difference, for notebooks."""
        rows = [[name, *(cell for _, cell in result._rows()[2:])] for name, result in (("A", self.a), ("B", self.b))]
        header = ["encoder", *(heading for heading, _ in self.a._rows()[2:])]
        cells = {"encoder": "A − B", "InfoNCE": f"{bits(self.difference_bits)} {shown_ends(self.interval)}"}
        return html(header, [*rows, [cells.get(heading, "") for heading in header]], [str(self)])


def shown_ends(interval: Interval | None) -> str:
    """An interval as a table's cell shows it."""
    return "–" if interval is None else ends(interval.lower_bits, interval.upper_bits)


def _certified(lower_bits: float | None, upper_bits: float | None) -> str:
    """The certified interval as a table's cell shows it."""
    if lower_bits is None:
        return "–"
    return f"≥ {round_down(lower_bits):.3f}" if upper_bits is None else ends(round_down(lower_bits), upper_bits)


def claim(lower_bits: float, upper_bits: float | None, confidence: float) -> str:
    """The certified interval in words; the subject of the sentence comes before it."""
    upper = "" if upper_bits is None else f" of at most {upper_bits:.3f}"
    return f"is at least {round_down(lower_bits):.3f}{upper} bits, at {100 * confidence:.6g} % confidence"


def verdict(lower_bits: float | None, upper_bits: float | None, tolerance_bits: float, most_bits: float) -> Verdict:
    """The conclusion from [lower_bits, upper_bits] in one word; most_bits: the most that a certificate could show.

    `certified`: the ends meet within the tolerance.
    `k-limited`: they do not, and no critic could make them meet, because every certificate reads batches of too few
    pairs.
    `bounded`: they do not meet for another reason, or there is no upper end.
    `not-a-bound`: there is no lower end, because the estimator guarantees none.
    `Estimate.withheld` sets `not-independent`, and `Estimate.of_seen_rows` sets `seen`.
    """
    if lower_bits is None:
        return "not-a-bound"
    if upper_bits is None:
        return "bounded"
    if upper_bits - lower_bits <= tolerance_bits:
        return "certified"
    return "k-limited" if most_bits < upper_bits - tolerance_bits else "bounded"
