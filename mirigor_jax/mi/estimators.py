"""Estimators: what trains a critic, and what is reported of its held-out scores. One constructor each, in ESTIMATORS.

`mi.estimate(x, y, estimator=...)` takes a name of ESTIMATORS, or what a constructor returns:
`estimator=mi.estimators.smile(tau=1.0)`. The same arguments give the same object, so that no program is compiled twice.
An estimator of your own is one entry of ESTIMATORS: a function without required arguments that returns an `Estimator`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Literal, ParamSpec, cast

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from scipy.special import gammaln, xlog1py, xlogy

from mirigor_jax.errors import InputError
from mirigor_jax.mi import values
from mirigor_jax.mi.contrastive import info_nce_from_embeddings, nt_xent_mi
from mirigor_jax.mi.contrastive import nt_xent as nt_xent_loss
from mirigor_jax.mi.critics import CosineCritic
from mirigor_jax.mi.scoring import Rule, anchor_loss, log_score
from mirigor_jax.mi.values import Anchors, LogSums, Nats, Negatives, Positives

P = ParamSpec("P")
Loss = Callable[..., tuple[Nats, Any]]
MAIN = "info_nce_symmetric"  # what the critics of runs are fitted by: a bound
NT_XENT = "nt_xent"  # the estimate of Lee et al. 2023, Eq. 4


@dataclass(frozen=True)
class Estimator:
    """An objective for the critic, and what is reported of its held-out scores. Nats throughout.

    `dataclasses.replace` makes another one of it. With another `value`, or of other `anchors`, that has the ways to the
    value by sums and by embeddings no longer, unless it is given its own.

    name: as results and tables have it.
    kind: what the mean of `value` over fresh pairs is to I(X;Y).
    note: its bias, in words.
    value: (positives, negatives) → nats; with a third array u(x_i, y_i) if `needs_u`.
    loss: (carry, positives, negatives) → (nats to minimize, the next step's carry); with u too if `needs_u`.
    candidates: k pairs a batch → how many candidates an anchor has, whose log `value` can't pass; None: no ceiling.
    carry: of the loss at the first step, numbers in nested tuples; () if the loss has none.
    needs_u: whether a second critic u is fitted, whose best is −log dP/dQ.
    anchors: which rows of a batch's score matrix are read, see `values.anchored`.
    from_sums: (positives, row sums, column sums) → `value` of a batch without its score matrix, see
    `values.info_nce_of_sums`; None if `value` needs the matrix, which limits K.
    heading: what reports of runs call it; empty for its name.
    max_bits: (k, class probabilities) → the most that any critic shows of k pairs that share their class, in bits, in
    expectation; None if it is not known.
    from_embeddings: (z_x, z_y, temperature, axis name) → `value` of a batch that devices share, by a cosine critic's
    unit embeddings; None if they have to be gathered for the score matrix.
    shortcuts: not to be given. What the two ways are to, and they themselves, for `replace` to tell whether they still
    hold.
    """

    name: str
    kind: Literal["lower bound", "plug-in", "not a bound"]
    note: str
    value: Callable[..., Nats]
    loss: Loss
    candidates: Callable[[int], int] | None = None
    carry: Any = ()
    needs_u: bool = False
    anchors: Anchors = "x"
    from_sums: Callable[[LogSums, LogSums, LogSums], Nats] | None = None
    heading: str = ""
    max_bits: Callable[[int, Float[np.ndarray, " c"]], float] | None = None
    from_embeddings: Callable[..., Nats] | None = None
    shortcuts: tuple[Any, ...] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.shortcuts is not None and self.shortcuts[:2] != (self.value, self.anchors):
            for name, inherited in zip(("from_sums", "from_embeddings"), self.shortcuts[2:], strict=True):
                if getattr(self, name) is inherited:
                    object.__setattr__(self, name, None)
        ways = (self.value, self.anchors, self.from_sums, self.from_embeddings)
        object.__setattr__(self, "shortcuts", ways)

    @property
    def within_views(self) -> bool:
        """Whether it also scores rows of one view against each other, by a critic that takes either view."""
        return self.anchors == "all"

    def views(self, x: Float[Array, "k p"], y: Float[Array, "k q"]) -> tuple[Float[Array, "n _"], Float[Array, "n _"]]:
        """The rows that the critic scores against each other: x and y, or [x; y] and itself."""
        if not self.within_views:
            return x, y
        both = jnp.concatenate([x, y])
        return both, both

    def pairs(self, rows: int) -> int:
        """How many pairs a score matrix of so many rows is of."""
        return rows // 2 if self.within_views else rows

    def rows(self, pairs: Int[Array, " m"], k: int) -> Int[Array, " n"]:
        """The rows that these of k pairs have in the score matrix."""
        return jnp.concatenate([pairs, pairs + k]) if self.within_views else pairs

    def read(self, scores: Float[Array, "n n"], u: Positives | None = None) -> Nats:
        """`value` of a batch's score matrix; u: of the positives, if `needs_u`."""
        return self.value(*values.anchored(scores, self.anchors), *(() if u is None else (u,)))

    def ceiling_at(self, k: int) -> float:
        """The most nats that `value` can reach with k pairs a batch; inf if there is no limit."""
        return math.inf if self.candidates is None else math.log(self.candidates(k))

    def read_embeddings(self, z_x: Array, z_y: Array, temperature: Array, axis_name: str) -> Nats:
        """`value` of a batch that the axis's devices share, by the unit embeddings that this device has."""
        if self.from_embeddings is not None:
            return self.from_embeddings(z_x, z_y, temperature, axis_name)
        x, y = self.views(*(lax.all_gather(z, axis_name, tiled=True) for z in (z_x, z_y)))
        return self.read(x / temperature @ y.T)

    def check(self, critic: nn.Module, negatives: str) -> None:
        """Raise InputError if it cannot be fitted by this critic, or with these negatives."""
        if self.within_views and not isinstance(critic, CosineCritic):
            raise InputError(f"{self.name} scores rows of one view against each other; it needs critic='cosine'")
        if self.within_views and negatives != "in-batch":
            raise InputError(f"{self.name} takes its negatives from the batch; negatives='{negatives}' is not for it")


def maximize(value: Callable[..., Nats]) -> Loss:
    """The loss that is a value's negative, without a carry."""
    return lambda carry, *scores: (-value(*scores), carry)


def minimize(objective: Callable[..., Nats]) -> Loss:
    """The loss that is this objective, without a carry."""
    return lambda carry, *scores: (objective(*scores), carry)


def _once(constructor: Callable[P, Estimator]) -> Callable[P, Estimator]:
    """A constructor whose same arguments give the same object: programs compiled for it are found by it."""
    return cast(Callable[P, Estimator], lru_cache(constructor))


def max_info_nce_bits(k: int, class_probabilities: Float[np.ndarray, " c"]) -> float:
    """The most any critic's InfoNCE shows, in expectation, at batches of k pairs that share their class.

    The optimal critic scores same-class pairs alone: log2 K - sum_c p_c E log2(1 + Bin(K-1, p_c)), summed exactly.
    Source: Poole et al. 2019, eq. 10, at the density ratio of same-class sampling (Lee et al. 2023, III-A).
    """
    probabilities, counts = np.unique(class_probabilities, return_counts=True)
    return float(np.log2(k) - sum(m * p * _mean_log2(k - 1, p) for p, m in zip(probabilities, counts, strict=True)))


def _mean_log2(trials: int, p: float) -> float:
    """E log2(1 + B), B ~ Bin(trials, p); what lies outside the summed window has probability < 1e-15."""
    center, radius = trials * p, 10 * np.sqrt(trials * p * (1 - p)) + 30
    successes = np.arange(max(0, int(center - radius)), min(trials, int(center + radius)) + 1)
    failures = trials - successes
    ways = gammaln(trials + 1) - gammaln(successes + 1) - gammaln(failures + 1)
    probabilities = np.exp(ways + xlogy(successes, p) + xlog1py(failures, -p))
    return float(np.sum(probabilities * np.log2(1 + successes)))


def _info_nce_of_embeddings(z_x: Array, z_y: Array, temperature: Array, axis_name: str) -> Nats:
    return info_nce_from_embeddings(z_x / temperature, z_y, axis_name=axis_name)


def _nt_xent_of_embeddings(z_x: Array, z_y: Array, temperature: Array, axis_name: str) -> Nats:
    loss = nt_xent_loss(z_x, z_y, temperature, axis_name=axis_name)
    return nt_xent_mi(loss, z_x.shape[0] * lax.axis_size(axis_name))


@_once
def info_nce() -> Estimator:
    """InfoNCE: tell y_i among all y of the batch by x_i alone. A lower bound, at most log K.

    Source: van den Oord et al. 2018, Eq. 4; Poole et al. 2019, eq. 10.
    """
    estimator = _info_nce("info_nce", "x", lambda positives, rows, columns: values.info_nce_of_sums(positives, rows))
    return replace(estimator, heading="one-sided InfoNCE")


@_once
def info_nce_symmetric() -> Estimator:
    """The mean of InfoNCE from x to y and from y to x. A lower bound, at most log K.

    Source: van den Oord et al. 2018, Eq. 4; Poole et al. 2019, eq. 10.
    """
    estimator = _info_nce(MAIN, "both", values.info_nce_of_sums)
    return replace(estimator, heading="InfoNCE", from_embeddings=_info_nce_of_embeddings)


def _info_nce(name: str, anchors: Anchors, from_sums: Callable[[LogSums, LogSums, LogSums], Nats]) -> Estimator:
    note = "cannot pass log K for K candidates, the positive among them; biased down by more as I nears it"
    value = values.classified
    return Estimator(
        name,
        "lower bound",
        note,
        value,
        maximize(value),
        candidates=lambda k: k,
        anchors=anchors,
        from_sums=from_sums,
        max_bits=max_info_nce_bits,
    )


@_once
def nt_xent() -> Estimator:
    """log(2K−1) − L_NT-Xent, whose negatives are of both views. Not a bound; it takes critic="cosine".

    Source: Lee et al. 2023, Eq. 4.
    """
    note = "ceiling log(2K−1); negatives come in dependent pairs, half of them from the anchor's own view"
    value = values.classified
    return Estimator(
        NT_XENT,
        "not a bound",
        note,
        value,
        maximize(value),
        candidates=lambda k: 2 * k - 1,
        anchors="all",
        heading="NT-Xent estimate",
        from_embeddings=_nt_xent_of_embeddings,
    )


@_once
def dv() -> Estimator:
    """Donsker and Varadhan's E_P f − log E_Q e^f. Not a bound with finitely many negatives.

    Source: Donsker & Varadhan 1975; Gosch 2020, Eq. 4.
    """
    note = "a lower bound with endless negatives; with finitely many the log of their mean biases it up"
    return Estimator("dv", "not a bound", note, values.dv, maximize(values.dv))


@_once
def mine(rate: float = 0.01) -> Estimator:
    """DV's value; the critic follows MINE's gradient, in which a running mean stands for the batch's E_Q e^f.

    rate: in (0, 1). Weight of the newest step in the running mean; smaller is less biased, and slower.
    Raises InputError for another rate.
    Source: Belghazi et al. 2018, §3.2.
    """
    if not 0 < rate < 1:
        raise InputError(f"rate = {rate}: the weight of the newest step must be between 0 and 1; use 0.01")
    note = "DV's bias of the reported value; the running mean only removes that of the gradient"
    loss = partial(values.mine_loss, rate=rate)
    return Estimator("mine", "not a bound", note, values.dv, loss, carry=(-math.inf, -math.inf))


@_once
def nwj() -> Estimator:
    """Nguyen, Wainwright and Jordan's E_P f − E_Q e^{f−1}. An unbiased lower bound, of a variance that grows with e^I.

    Source: Nguyen et al. 2010; Gosch 2020, Eq. 5.
    """
    note = "unbiased for a lower bound; its variance grows with e^I"
    return Estimator("nwj", "lower bound", note, values.nwj, maximize(values.nwj))


@_once
def js() -> Estimator:
    """The plug-in E_P f of a critic fitted by Jensen–Shannon, whose best f is log dP/dQ. Not a bound.

    Source: Nowozin et al. 2016; Gosch 2020, Eq. 7.
    """
    note = "consistent as the critic nears log dP/dQ; off either way until then"
    return Estimator("js", "plug-in", note, values.plug_in, minimize(values.js_loss))


@_once
def js_nwj() -> Estimator:
    """NWJ's value of a critic fitted by Jensen–Shannon, which trains more steadily. A lower bound.

    Source: Poole et al. 2019.
    """
    note = "unbiased for a lower bound; its variance grows with e^I"
    return Estimator("js_nwj", "lower bound", note, values.js_nwj, minimize(values.js_loss))


@_once
def smile(tau: float = 5.0) -> Estimator:
    """DV's value with the negatives' e^f clipped to [e^−τ, e^τ], of a critic fitted by Jensen–Shannon. Not a bound.

    tau: nats, above 0. Half width of the clip; smaller has less variance, and more bias.
    Raises InputError for another tau.
    Source: Song & Ermon 2020.
    """
    if not tau > 0:
        raise InputError(f"tau = {tau}: the clip's half width, in nats, must be above 0; use 5")
    note = "clipping trades variance for bias: it can exceed I by what the clipped negatives hold"
    return Estimator("smile", "not a bound", note, partial(values.smile, tau=tau), minimize(values.js_loss))


@_once
def flo() -> Estimator:
    """Fenchel–Legendre optimization: a bound of one pair at a time, with a second critic u. A lower bound.

    Source: Guo et al. 2022.
    """
    note = "unbiased for a lower bound; loose until u nears −log dP/dQ"
    return Estimator("flo", "lower bound", note, values.flo, maximize(values.flo), needs_u=True)


@_once
def anchor(nu: float = 1.0, rule: Rule = log_score) -> Estimator:
    """The plug-in E_P f of a critic fitted by InfoNCE with an anchor class, whose best f is log dP/dQ. Not a bound.

    nu: above 0. Prior odds of the anchor class, that no candidate is the partner, to each candidate.
    rule: proper scoring rule, such as `mi.scoring.log_score` or `mi.scoring.tsallis(2.0)`.
    Raises InputError for another nu.
    Source: Ryu et al. 2025.
    """
    if not nu > 0:
        raise InputError(f"nu = {nu}: without an anchor (nu = 0, InfoNCE) dP/dQ is known up to a factor; use nu = 1")

    def objective(positives: Positives, negatives: Negatives) -> Nats:
        return anchor_loss(positives, negatives, nu, rule)

    note = "consistent as the critic nears log dP/dQ; off either way until then"
    return Estimator("anchor", "plug-in", note, values.plug_in, minimize(objective))


ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "info_nce": info_nce,
    MAIN: info_nce_symmetric,
    NT_XENT: nt_xent,
    "dv": dv,
    "mine": mine,
    "nwj": nwj,
    "js": js,
    "js_nwj": js_nwj,
    "smile": smile,
    "flo": flo,
    "anchor": anchor,
}


def resolve(estimator: str | Estimator) -> Estimator:
    """The estimator of that name, by its defaults, or the given one. Raises InputError for an unknown name."""
    if isinstance(estimator, Estimator):
        return estimator
    if estimator not in ESTIMATORS:
        raise InputError(f"unknown estimator '{estimator}'; choose of {', '.join(ESTIMATORS)}")
    return _by_defaults(ESTIMATORS[estimator])


@lru_cache
def _by_defaults(constructor: Callable[..., Estimator]) -> Estimator:
    return constructor()
