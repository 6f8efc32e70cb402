"""The results of measuring usable information: values with their ends, orders of encoders, and sentences."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from mirigor_jax.files import plain
from mirigor_jax.mi.confidence import Interval
from mirigor_jax.tables import bits, down, ends, html, round_down, round_up

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any  # only drawing imports matplotlib

FEW = 4  # largest number of encoders whose pairs a sentence and a table list one by one
NEAREST = 3  # largest number of pairs that are not told apart and that a sentence names
RECIPE = (
    "Each encoder has its own family of linear probes. They read z = T(h), a linear map of h with clipped lengths, and "
    "their weights have at most 1.2 times the norm of a fitted probe's. T and the norm are fixed on rows that no end "
    "is computed from."
)


@dataclass(frozen=True)
class UsableInformation:
    """The information about a class that a family V of probes can use, I_V(h->C), and its certified ends. Bits.

    I_V is H(C) minus the least expected log-loss in V.
    family: V in words.
    value_bits: the estimate, the mean of pointwise_bits with the class frequencies of p(c); at least 0. It is one
        probe's information, so its expectation is at most I_V.
    lower_bits, upper_bits: I_V lies between them at `confidence`; None if that end is withheld or does not exist.
    kl_upper_bits: a simpler upper end, at the confidence of upper_bits; usually wider. The smaller of both is no end
        at that confidence.
    confidence: that all ends but kl_upper_bits hold.
    entropy_bits: H(C).
    frequencies: p(c) by class, for which all of it holds.
    norm, reach: of linear probes softmax(log p + W z): |w_k| <= norm, z = T(h) and |z| <= reach. None for others.
    largest_loss_nats: the most that a row can cost: any probe of V if V has an upper end, else the probe of value_bits.
    rows: indices of the unseen rows, from which value and ends are computed.
    pointwise_bits: log2 [q(c|h) / p(c)] of each unseen row, by the probe of the first part. The lowest are hard rows,
        or have wrong labels.
    predicted: the class that this probe finds most likely for each unseen row, as the labels name it.
    prediction_entropy_bits: entropy of the probe's q(.|h) of each unseen row: how unsure it is, whatever the label.
    note: the reason if V has no upper end.
    warnings: doubts about the data, in words. If the ends are withheld, the reason comes first.
    Source: Xu et al. 2020; Ethayarajh et al. 2022 (pointwise V-information).
    """

    family: str
    value_bits: float
    lower_bits: float | None
    upper_bits: float | None
    kl_upper_bits: float | None
    confidence: float
    entropy_bits: float
    frequencies: dict[Any, float]
    norm: float | None
    reach: float | None
    largest_loss_nats: float
    rows: Int[np.ndarray, " n"]
    pointwise_bits: Float[np.ndarray, " n"]
    predicted: Shaped[np.ndarray, " n"]
    prediction_entropy_bits: Float[np.ndarray, " n"]
    note: str = ""
    warnings: tuple[str, ...] = ()

    def withheld(self, contradiction: str) -> "UsableInformation":
        """The estimate without its ends. contradiction: why its rows are not independent."""
        return self.without_ends(withheld_reason("the ends are withheld", contradiction))

    def without_ends(self, reason: str) -> "UsableInformation":
        """The estimate without its ends, with this reason as its first warning."""
        return replace(self, lower_bits=None, upper_bits=None, kl_upper_bits=None, warnings=(reason, *self.warnings))

    def __str__(self) -> str:
        """The sentence and the warnings."""
        return " ".join([self.sentence, *(f"Warning: {warning}." for warning in self.warnings)])

    @property
    def sentence(self) -> str:
        """The estimate, its ends and the family in words, without the warnings."""
        value = f"Usable information reads {self.value_bits:z.3f} of H(C) = {self.entropy_bits:.3f} bits"
        read = f"Measured on {len(self.rows):,} unseen rows, by {self.family}."
        if self.lower_bits is None:
            return f"{value}; no end is certified. {read}"
        upper = f"; {self.note}"
        if self.upper_bits is not None:
            assert self.kl_upper_bits is not None  # both are known, or none
            simple = f"a simpler bound, by Hoeffding's inequality, gives {round_up(self.kl_upper_bits):.3f}"
            upper = f" and at most {round_up(self.upper_bits):.3f} bits ({simple})"
        least = f"it is at least {round_down(self.lower_bits):.3f}{' bits' * (self.upper_bits is None)}"
        return f"{value}; at {100 * self.confidence:.6g} % confidence {least}{upper}. {read}"

    def to_dict(self) -> dict[str, Any]:
        """Every field and the sentence, for JSON. A number that is not finite becomes None."""
        return dict(plain({**vars(self), "sentence": self.sentence}))

    def figure(self) -> Figure:
        """A matplotlib Figure of the estimate with its ends, and of the rows' pointwise information."""
        from mirigor_jax.mi import picture

        return picture.usable_information(self)

    def _repr_html_(self) -> str:
        """A table of one row, for notebooks."""
        percent = f"{100 * self.confidence:.6g} %"
        cells = {
            "usable bits": bits(self.value_bits),
            f"at least, {percent}": bits(None if self.lower_bits is None else round_down(self.lower_bits)),
            f"at most, {percent}": bits(None if self.upper_bits is None else round_up(self.upper_bits)),
            "at most, by Hoeffding": bits(None if self.kl_upper_bits is None else round_up(self.kl_upper_bits)),
            "H(C)": bits(self.entropy_bits),
            "rows": f"{len(self.rows):,}",
        }
        return html(list(cells), [list(cells.values())], [self.sentence, *self.warnings])


@dataclass(frozen=True)
class GaussianVInformation:
    """The Gaussian V-information that x has about y, I_V(x->y). Bits: nats divided by ln 2. It depends on y's units.

    family: the maps φ, in words.
    value_bits: the estimate, by one map that was fitted on other rows. Its expectation is I_V minus the amount by which
        this map's expected squared error exceeds the least in the family, so it is at most I_V. It may be below 0.
    in_sample_bits: the estimate by the linear map with the least squared error on the rows that it is read on, which
        are all rows. Its expectation is at least I_V of linear maps. None for other families.
    in_sample_total_bits: tr Cov(y), of all rows. None for other families.
    total_bits: tr Cov(y), of the test rows: what a map that predicts y exactly would have.
    interval: of the expectation of value_bits, an approximation; None if rows are not independent.
    confidence: of the interval.
    rows: indices of the test rows, from which the value is computed.
    pointwise_bits: of each of the n test rows: n/(n − 1) times its squared distance from the mean of y on these rows,
        minus its squared distance from φ(x). Their mean is value_bits.
    warnings: doubts about the data, in words. If the interval is withheld, the reason comes first.
    Source: Gosch 2020, eq. 14; Ethayarajh et al. 2022 (pointwise).
    """

    family: str
    value_bits: float
    in_sample_bits: float | None
    in_sample_total_bits: float | None
    total_bits: float
    interval: Interval | None
    confidence: float
    rows: Int[np.ndarray, " n"]
    pointwise_bits: Float[np.ndarray, " n"]
    warnings: tuple[str, ...] = ()

    @property
    def value_nats(self) -> float:
        """value_bits in nats: how much of tr Cov(y) the map explains."""
        return self.value_bits * math.log(2)

    @property
    def share(self) -> float:
        """The share of tr Cov(y) that the map explains, which has no unit; NaN if y is constant."""
        return self.value_bits / self.total_bits if self.total_bits > 0 else math.nan

    def withheld(self, contradiction: str) -> "GaussianVInformation":
        """The estimate without its interval. contradiction: why its rows are not independent."""
        reason = withheld_reason("the interval is withheld", contradiction)
        return replace(self, interval=None, warnings=(reason, *self.warnings))

    def __str__(self) -> str:
        """The sentence and the warnings."""
        return " ".join([self.sentence, *(f"Warning: {warning}." for warning in self.warnings)])

    @property
    def sentence(self) -> str:
        """The estimate, its interval, what it is, and the family in words, without the warnings."""
        of = f" ({100 * self.share:.1f} %)" if self.total_bits > 0 else ""
        known = ""
        if self.interval is not None:
            both = ends(self.interval.lower_bits, self.interval.upper_bits)
            known = f", {100 * self.confidence:.6g} % interval {both}"
        upper = ""
        if self.in_sample_bits is not None:
            upper = (
                f". Fitted and read on all rows, it is {bits(self.in_sample_bits)} of tr Cov(y) = "
                f"{bits(self.in_sample_total_bits)} bits there, too high in expectation"
            )
        return (
            f"Gaussian V-information reads {bits(self.value_bits)} of tr Cov(y) = {bits(self.total_bits)} bits{of}"
            f"{known}, on {len(self.rows):,} test rows, by {self.family}. In expectation it is too low, as its map was "
            f"fitted on other rows{upper}. Bits here depend on the units of y."
        )

    def to_dict(self) -> dict[str, Any]:
        """Every field, the derived numbers and the sentence, for JSON. A number that is not finite becomes None."""
        derived = {"value_nats": self.value_nats, "share": self.share}
        return dict(plain({**vars(self), **derived, "sentence": self.sentence}))

    def figure(self) -> Figure:
        """A matplotlib Figure of the estimate with its interval, and of the rows' pointwise information."""
        from mirigor_jax.mi import picture

        return picture.gaussian_v_information(self)

    def _repr_html_(self) -> str:
        """A table of one row, for notebooks."""
        shown = None if self.interval is None else ends(self.interval.lower_bits, self.interval.upper_bits)
        cells = {
            "Gaussian V-information, bits": bits(self.value_bits),
            f"interval, {100 * self.confidence:.6g} %": shown or "–",
            "tr Cov(y)": bits(self.total_bits),
            "share": "–" if math.isnan(self.share) else f"{100 * self.share:.1f} %",
            "test rows": f"{len(self.rows):,}",
            "fitted and read on all rows": bits(self.in_sample_bits),
            "tr Cov(y) of all rows": bits(self.in_sample_total_bits),
        }
        return html(list(cells), [list(cells.values())], [self.sentence, *self.warnings])


@dataclass(frozen=True)
class PairOrder:
    """The order of two encoders, A and B, by usable information; bits.

    a, b: their names.
    difference_bits: the value of A minus that of B, by their probes of the first part.
    interval: of the difference, paired; None if the rows are not independent.
    larger: the name of the encoder that is proven to hold more; None if neither is.
    at_twice_the_norm: whether it is also proven if the probes of the encoder that holds less may have twice the norm.
    rows_needed: about how many unseen rows would prove an order, by the differences seen; None if one is proven, or if
        nothing points to a number.
    """

    a: str
    b: str
    difference_bits: float
    interval: Interval | None
    larger: str | None
    at_twice_the_norm: bool
    rows_needed: int | None

    @property
    def smaller(self) -> str | None:
        """The name of the encoder that is proven to hold less; None if neither is."""
        return None if self.larger is None else self.b if self.larger == self.a else self.a

    @property
    def verdict(self) -> str:
        """The order in words."""
        if self.larger is None:
            known = self.rows_needed is not None
            needed = f"; about {self.rows_needed:,} unseen rows would tell them apart" if known else ""
            return f"{self.a} and {self.b} are not told apart{needed}"
        twice = "" if self.at_twice_the_norm else f", but not if {self.smaller}'s probes may have twice the norm"
        return f"certified: {self.larger} > {self.smaller}{twice}"

    @property
    def sentence(self) -> str:
        """The order and the difference in words."""
        paired = "" if self.interval is None else f" {ends(self.interval.lower_bits, self.interval.upper_bits)}"
        return f"{self.verdict} ({self.a} - {self.b} = {self.difference_bits:z.3f}{paired} bits)"


@dataclass(frozen=True)
class UsableOrder:
    """Encoders' usable information on the same unseen rows, and the proven order of each pair.

    encoders: name -> result.
    pairs: one of each two encoders. All proven orders hold together at `confidence`.
    confidence: of the orders together; of each interval alone; and of each encoder's ends, encoder by encoder.
    rows: number of unseen rows.
    """

    encoders: dict[str, UsableInformation]
    pairs: tuple[PairOrder, ...]
    confidence: float
    rows: int

    def pair(self, a: str, b: str) -> PairOrder:
        """The order of these two encoders. Raises KeyError if there is no such pair."""
        found = {frozenset((pair.a, pair.b)): pair for pair in self.pairs}
        return found[frozenset((a, b))]

    @property
    def ranking(self) -> tuple[str, ...]:
        """The encoders' names by value, the largest first."""
        return tuple(sorted(self.encoders, key=lambda name: -self.encoders[name].value_bits))

    @property
    def proven(self) -> tuple[PairOrder, ...]:
        """The pairs whose order is proven."""
        return tuple(pair for pair in self.pairs if pair.larger is not None)

    @property
    def open_pairs(self) -> tuple[PairOrder, ...]:
        """The pairs that are not told apart, the nearest to a proof first."""
        undecided = [pair for pair in self.pairs if pair.larger is None]
        return tuple(sorted(undecided, key=lambda pair: math.inf if pair.rows_needed is None else pair.rows_needed))

    @property
    def levels(self) -> tuple[tuple[str, ...], ...]:
        """The encoders in levels. Within a level they are sorted by value, the largest first.

        Every encoder from the second level on is proven to hold less than at least one of the previous level, and no
        two encoders of one level are told apart.
        """
        above = {name: {pair.larger for pair in self.proven if pair.smaller == name} for name in self.ranking}
        levels: list[tuple[str, ...]] = []
        while above:
            # If proofs contradict each other, every remaining encoder may be below another; they then are one level.
            level = tuple(name for name, larger in above.items() if not larger & above.keys()) or tuple(above)
            levels.append(level)
            above = {name: larger for name, larger in above.items() if name not in level}
        return tuple(levels)

    @property
    def sentence(self) -> str:
        """The verdicts, the recipe of the families, and their sizes. Of many pairs, it counts and summarizes."""
        head = f"Usable information on {self.rows:,} unseen rows, at {100 * self.confidence:.6g} % confidence for all "
        if len(self.encoders) <= FEW:
            verdicts = "; ".join(pair.sentence for pair in self.pairs)
            sizes = ", ".join(
                f"{name}: ‖w_k‖ ≤ {one.norm:.3g}, {one.largest_loss_nats:.3g} nats"
                for name, one in self.encoders.items()
            )
            return f"{head}orders together: {verdicts}. {RECIPE} Norm, and largest possible log-loss of a row: {sizes}."
        return f"{head}orders together: {self._counted} {self._levels_in_words}{self._nearest}{RECIPE} {self._sizes}"

    @property
    def _counted(self) -> str:
        twice = sum(pair.at_twice_the_norm for pair in self.pairs)
        return (
            f"for {len(self.proven)} of the {len(self.pairs)} pairs of encoders it is certified which holds more, for "
            f"{twice} of them even if the probes of the encoder that holds less may have twice the norm."
        )

    @property
    def _levels_in_words(self) -> str:
        if not self.proven:
            return f"By value: {', '.join(self.ranking)}. "
        levels = "; ".join(f"level {at}: {', '.join(level)}" for at, level in enumerate(self.levels, 1))
        return (
            "From level 2 on, each encoder is certified to hold less than at least one of the previous level. No two "
            f"of one level are told apart, and one of a later level may have the larger estimate. L{levels[1:]}. "
        )

    @property
    def _nearest(self) -> str:
        if not self.open_pairs:
            return ""
        nearest = [
            f"{pair.a} and {pair.b} (about {pair.rows_needed:,} unseen rows needed)"
            for pair in self.open_pairs[:NEAREST]
            if pair.rows_needed is not None
        ]
        closest = f"; nearest to a proof are {', '.join(nearest)}" if nearest else ""
        return f"{len(self.open_pairs)} pairs are not told apart{closest}. "

    @property
    def _sizes(self) -> str:
        norms = [one.norm for one in self.encoders.values() if one.norm is not None]
        losses = [one.largest_loss_nats for one in self.encoders.values()]
        return (
            f"The norms are {min(norms):.3g} to {max(norms):.3g}; the largest possible log-loss of a row is "
            f"{min(losses):.3g} to {max(losses):.3g} nats."
        )

    def __str__(self) -> str:
        """The sentence and the warnings."""
        return " ".join([self.sentence, *(f"Warning: {warning}." for warning in self.warnings)])

    @property
    def warnings(self) -> tuple[str, ...]:
        """The encoders' warnings, each once."""
        return tuple(dict.fromkeys(warning for one in self.encoders.values() for warning in one.warnings))

    def to_dict(self) -> dict[str, Any]:
        """Every field, the verdicts and the sentence, for JSON. A number that is not finite becomes None."""
        encoders = {name: one.to_dict() for name, one in self.encoders.items()}
        pairs = [{**vars(pair), "verdict": pair.verdict} for pair in self.pairs]
        return dict(plain({**vars(self), "encoders": encoders, "pairs": pairs, "sentence": self.sentence}))

    def figure(self) -> Figure:
        """A matplotlib Figure of the encoders' ends, the largest value first, beside the verdict of each pair."""
        from mirigor_jax.mi import picture

        return picture.usable_order(self)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """A header, and a row for each encoder: its value with both ends, its level, and its pairs by verdict."""
        percent = f"{100 * self.confidence:.6g} %"
        header = ["encoder", "usable bits", f"at least, {percent}", f"at most, {percent}", "norm", "largest loss, nats"]
        header += ["level", "certified above", "certified below", "not told apart from"]
        level_of = {name: 1 + at for at, level in enumerate(self.levels) for name in level}
        above, below = Counter(pair.larger for pair in self.proven), Counter(pair.smaller for pair in self.proven)
        undecided = [{pair.a, pair.b} for pair in self.pairs if pair.larger is None]
        rows = []
        for name in self.ranking:
            one = self.encoders[name]
            others = [other for other in self.ranking if other != name and {name, other} in undecided]
            rows.append(
                [
                    name,
                    bits(one.value_bits),
                    bits(down(one.lower_bits)),
                    bits(None if one.upper_bits is None else round_up(one.upper_bits)),
                    "–" if one.norm is None else f"{one.norm:.3g}",
                    f"{one.largest_loss_nats:.3g}",
                    str(level_of[name]),
                    str(above[name]),
                    str(below[name]),
                    ", ".join(others) or "–",
                ]
            )
        return header, rows

    def _repr_html_(self) -> str:
        """A table for notebooks: of few encoders a row for each pair, of many a row for each encoder."""
        if len(self.encoders) > FEW:
            return html(*self.table(), [str(self)])
        header = ["A", "B", "usable bits of A", "of B", "A − B", "verdict"]
        rows = [
            [
                pair.a,
                pair.b,
                *(bits(self.encoders[name].value_bits) for name in (pair.a, pair.b)),
                bits(pair.difference_bits),
                pair.verdict,
            ]
            for pair in self.pairs
        ]
        return html(header, rows, [str(self)])


def withheld_reason(withheld: str, contradiction: str) -> str:
    """The reason for withheld limits, and the way to have them all the same."""
    return f'{withheld}, as {contradiction}; if rows are independent draws all the same, state rows="independent"'
