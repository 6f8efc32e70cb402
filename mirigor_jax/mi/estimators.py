"""Estimators of MI: each is a loss for a critic and a value of its held-out scores. ESTIMATORS has their constructors.

`mi.estimate(x, y, estimator=...)` takes a name in ESTIMATORS, or the `Estimator` that a constructor returns:
`estimator=mi.estimators.smile(tau=1.0)`. The same arguments give the same object, so that no program is compiled twice.
To add your own, put a function into ESTIMATORS that needs no arguments and returns an `Estimator`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Literal, ParamSpec, cast, get_args

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
from mirigor_jax.mi.values import Anchors, Divergence, LogSums, Nats, Negatives, Positives

P = ParamSpec("P")
Loss = Callable[..., tuple[Nats, Any]]
MAIN = "info_nce_symmetric"  # runs fit their critics by this one: a lower bound
PLUG_IN = "right if the critic is log dP/dQ; otherwise its error can have either sign"  # the note of every plug-in
NT_XENT = "nt_xent"  # the estimate of Lee et al. 2023, Eq. 4


@dataclass(frozen=True)
class Estimator:
    """A loss for the critic, and a value of its held-out scores. Nats throughout.

    `dataclasses.replace` makes a changed copy. If it changes `value` or `anchors`, the copy drops `from_sums` and
    `from_embeddings`, which compute the old value, unless it is given new ones.

    name: in results and tables.
    kind: how the mean of `value` over fresh pairs relates to I(X;Y).
    note: its bias, in words.
    value: (positives, negatives) → nats; if `needs_u`, with a third array u(x_i, y_i).
    loss: (carry, positives, negatives) → (nats to minimize, the next step's carry); if `needs_u`, with u too.
    candidates: k pairs a batch → number of candidates of an anchor. `value` is at most its log. None: no ceiling.
    carry: the loss's carry at the first step, numbers in nested tuples; () if the loss has none.
    needs_u: whether a second critic u is fitted. The best u is −log dP/dQ.
    anchors: the rows of a batch's score matrix that are read, see `values.anchored`.
    from_sums: (positives, row sums, column sums) → `value` of a batch without its score matrix, see
        `values.info_nce_of_sums`. None: `value` needs the matrix, which limits K.
    heading: its name in reports of runs; empty: `name`.
    max_bits: (k, class probabilities) → bits. The most that the best critic reaches, in expectation, on k pairs that
        share their class. None: not known.
    from_embeddings: (z_x, z_y, temperature, axis name) → `value` of a batch that devices share, from a cosine critic's
        unit embeddings. None: the embeddings have to be gathered for the score matrix.
    shortcuts: set by the class itself: (value, anchors, from_sums, from_embeddings). After `replace` they show whether
        the last two still belong to the value.
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
        """Whether it also scores rows of one view against each other, so that one critic has to take both views."""
        return self.anchors == "all"

    def views(self, x: Float[Array, "k p"], y: Float[Array, "k q"]) -> tuple[Float[Array, "n _"], Float[Array, "n _"]]:
        """The rows that the critic scores against each other: x and y, or [x; y] and itself."""
        if not self.within_views:
            return x, y
        both = jnp.concatenate([x, y])
        return both, both

    def pairs(self, rows: int) -> int:
        """The number of pairs in a score matrix with this many rows."""
        return rows // 2 if self.within_views else rows

    def rows(self, pairs: Int[Array, " m"], k: int) -> Int[Array, " n"]:
        """The rows of the score matrix that belong to these of its k pairs."""
        return jnp.concatenate([pairs, pairs + k]) if self.within_views else pairs

    def read(self, scores: Float[Array, "n n"], u: Positives | None = None) -> Nats:
        """`value` of a batch's score matrix; u: of the positives, if `needs_u`."""
        return self.value(*values.anchored(scores, self.anchors), *(() if u is None else (u,)))

    def ceiling_at(self, k: int) -> float:
        """The most nats that `value` can reach with k pairs a batch; inf if there is no limit."""
        return math.inf if self.candidates is None else math.log(self.candidates(k))

    def read_embeddings(self, z_x: Array, z_y: Array, temperature: Array, axis_name: str) -> Nats:
        """`value` of a batch that the axis's devices share, from this device's unit embeddings."""
        if self.from_embeddings is not None:
            return self.from_embeddings(z_x, z_y, temperature, axis_name)
        x, y = self.views(*(lax.all_gather(z, axis_name, tiled=True) for z in (z_x, z_y)))
        return self.read(x / temperature @ y.T)

    def check(self, critic: nn.Module, negatives: str) -> None:
        """Raise InputError if this critic, or these negatives, cannot fit the estimator."""
        if self.within_views and not isinstance(critic, CosineCritic):
            raise InputError(f"{self.name} scores rows of one view against each other; it needs critic='cosine'")
        if self.within_views and negatives != "in-batch":
            raise InputError(f"{self.name} takes its negatives from the batch; negatives='{negatives}' is not for it")


def maximize(value: Callable[..., Nats]) -> Loss:
    """A loss without a carry that maximizes this value."""
    return lambda carry, *scores: (-value(*scores), carry)


def minimize(objective: Callable[..., Nats]) -> Loss:
    """A loss without a carry that minimizes this objective."""
    return lambda carry, *scores: (objective(*scores), carry)


def _once(constructor: Callable[P, Estimator]) -> Callable[P, Estimator]:
    """Cache a constructor. The same arguments give the same object, so programs that were compiled for it are found."""
    return cast(Callable[P, Estimator], lru_cache(constructor))


def max_info_nce_bits(k: int, class_probabilities: Float[np.ndarray, " c"]) -> float:
    """The most InfoNCE, in bits, that any critic reaches in expectation on batches of k pairs that share their class.

    The optimal critic only tells whether x and y are of one class. Its InfoNCE is
    log2 K - sum_c p_c E log2(1 + Bin(K-1, p_c)), summed exactly.
    Source: Poole et al. 2019, eq. 10, at the density ratio of same-class sampling (Lee et al. 2023, III-A).
    """
    probabilities, counts = np.unique(class_probabilities, return_counts=True)
    return float(np.log2(k) - sum(m * p * _mean_log2(k - 1, p) for p, m in zip(probabilities, counts, strict=True)))


def _mean_log2(trials: int, p: float) -> float:
    """E log2(1 + B), B ~ Bin(trials, p). The sum leaves out values of B of total probability < 1e-15."""
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
    """InfoNCE: pick y_i from all y of the batch, given x_i. A lower bound, at most log K.

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
    note = "cannot pass log K for K candidates, the positive included; its downward bias grows as I nears log K"
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
    """log(2K−1) − L_NT-Xent, with negatives from both views. Not a bound; it needs critic="cosine".

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
    """DV's value of a critic that MINE's gradient trains: a running mean replaces the batch's E_Q e^f in it.

    rate: in (0, 1). Weight of the newest step in the running mean; a smaller one is less biased, and slower.
    Raises InputError if rate is not in (0, 1).
    Source: Belghazi et al. 2018, §3.2.
    """
    if not 0 < rate < 1:
        raise InputError(f"rate = {rate}: the weight of the newest step must be between 0 and 1; use 0.01")
    note = "the value has DV's bias; the running mean removes only the gradient's bias"
    loss = partial(values.mine_loss, rate=rate)
    return Estimator("mine", "not a bound", note, values.dv, loss, carry=(-math.inf, -math.inf))


@_once
def nwj() -> Estimator:
    """Nguyen, Wainwright and Jordan's E_P f − E_Q e^{f−1}. A lower bound without bias; its variance grows with e^I.

    Source: Nguyen et al. 2010; Gosch 2020, Eq. 5.
    """
    note = "unbiased for a lower bound; its variance grows with e^I"
    return Estimator("nwj", "lower bound", note, values.nwj, maximize(values.nwj))


@_once
def js() -> Estimator:
    """The plug-in E_P f of a critic fitted by Jensen–Shannon. The best f is log dP/dQ. Not a bound.

    Source: Nowozin et al. 2016; Gosch 2020, Eq. 7.
    """
    return Estimator("js", "plug-in", PLUG_IN, values.plug_in, minimize(values.js_loss))


@_once
def js_nwj() -> Estimator:
    """NWJ's value of a critic fitted by Jensen–Shannon, which makes training steadier. A lower bound.

    Source: Poole et al. 2019.
    """
    note = "unbiased for a lower bound; its variance grows with e^I"
    return Estimator("js_nwj", "lower bound", note, values.js_nwj, minimize(values.js_loss))


@_once
def smile(tau: float = 5.0) -> Estimator:
    """DV's value of a critic fitted by Jensen–Shannon, the negatives' e^f clipped to [e^−τ, e^τ]. Not a bound.

    tau: nats, above 0. Half width of the clip; a smaller one has less variance, and more bias.
    Raises InputError if tau is not above 0.
    Source: Song & Ermon 2020.
    """
    if not tau > 0:
        raise InputError(f"tau = {tau}: the clip's half width, in nats, must be above 0; use 5")
    note = "clipping lowers variance and adds bias: the value can exceed I, as clipped negatives subtract too little"
    return Estimator("smile", "not a bound", note, partial(values.smile, tau=tau), minimize(values.js_loss))


@_once
def flo() -> Estimator:
    """Fenchel–Legendre optimization: a lower bound that a second critic u makes tight, pair by pair.

    Source: Guo et al. 2022.
    """
    note = "unbiased for a lower bound; loose until u nears −log dP/dQ"
    return Estimator("flo", "lower bound", note, values.flo, maximize(values.flo), needs_u=True)


@_once
def f_divergence(divergence: Divergence = "hellinger") -> Estimator:
    """The plug-in E_P f of a critic fitted by the variational form of an f-divergence. The best f is log dP/dQ.

    divergence: as in `values.f_divergence_loss`. `js` is the same plug-in for Jensen–Shannon, and `js_nwj` is the bound
        that "kl" maximizes: NWJ at f + 1.
    Raises InputError for an unknown divergence.
    Source: Nguyen et al. 2010; Nowozin et al. 2016; Letizia et al. 2024 (the plug-in).
    """
    if divergence not in (known := get_args(Divergence)):
        raise InputError(f"unknown divergence '{divergence}'; choose one of {', '.join(known)}")
    loss = partial(values.f_divergence_loss, divergence=divergence)
    return Estimator("f_divergence", "plug-in", PLUG_IN, values.plug_in, minimize(loss))


@_once
def anchor(nu: float = 1.0, rule: Rule = log_score) -> Estimator:
    """The plug-in E_P f of a critic fitted by InfoNCE with an anchor class. The best f is log dP/dQ. Not a bound.

    nu: above 0. Prior odds of the anchor class to each candidate. The anchor class says: no candidate is the partner.
    rule: proper scoring rule, such as `mi.scoring.log_score` or `mi.scoring.tsallis(2.0)`.
    Raises InputError if nu is not above 0.
    Source: Ryu et al. 2025.
    """
    if not nu > 0:
        raise InputError(f"nu = {nu}: without an anchor (nu = 0, InfoNCE) dP/dQ is known up to a factor; use nu = 1")

    def objective(positives: Positives, negatives: Negatives) -> Nats:
        return anchor_loss(positives, negatives, nu, rule)

    return Estimator("anchor", "plug-in", PLUG_IN, values.plug_in, minimize(objective))


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
    "f_divergence": f_divergence,
    "anchor": anchor,
}


def resolve(estimator: str | Estimator) -> Estimator:
    """The estimator of that name with its defaults, or the given one. Raises InputError for an unknown name."""
    if isinstance(estimator, Estimator):
        return estimator
    if estimator not in ESTIMATORS:
        raise InputError(f"unknown estimator '{estimator}'; choose one of {', '.join(ESTIMATORS)}")
    return _by_defaults(ESTIMATORS[estimator])


@lru_cache
def _by_defaults(constructor: Callable[..., Estimator]) -> Estimator:
    return constructor()
