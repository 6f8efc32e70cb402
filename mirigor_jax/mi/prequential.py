"""The prequential certificate: a lower end of I(h_X;h_Y) for which almost every row is a test row once.

Pairs are read in one random order. A probe predicts a block of them after it was fitted on the rows before the block.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.special import entr

from mirigor_jax.mi.certificates import PosteriorCertificate, mix_posterior
from mirigor_jax.mi.confidence import mean_lower_bound, vector_mean_radius
from mirigor_jax.softmax import LinearProbe, class_posterior

MIXINGS = (1e-3, 3e-3, 1e-2, 3e-2)  # weights of the uniform distribution in a posterior, to choose from
PARTITION_SHARE = 0.1  # of the error probability 1 - confidence; the betting bound uses the rest


@dataclass(frozen=True)
class Block:
    """A probe's class posteriors for all pairs that come after the rows it was fitted on.

    q_x, q_y: posteriors of the two views of n pairs, in the order of the pairs.
    c: the class that both views of a pair share.
    own: number of pairs in the block itself, which are the first `own` of the n. The other pairs belong to later
        blocks.
    """

    q_x: Float[np.ndarray, "n c"]
    q_y: Float[np.ndarray, "n c"]
    c: Int[np.ndarray, " n"]
    own: int

    @classmethod
    def of(
        cls, probe: LinearProbe, x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"], c: Int[np.ndarray, " n"],
        own: int,
    ) -> "Block":  # fmt: skip
        """The block of the pairs (x, y) with this probe."""
        return cls(class_posterior(probe, x), class_posterior(probe, y), c, own)

    def resized(self, like: "Block") -> "Block":
        """The block with its pairs repeated or cut to the number of pairs of `like`.

        The certificate's value on it predicts its value on `like`, and so helps to choose between certificates.
        """
        at = np.arange(len(like.c)) % len(self.c)
        return Block(self.q_x[at], self.q_y[at], self.c[at], like.own)


def balanced(
    probe: LinearProbe, rows: Float[np.ndarray, "n d"], frequencies: Float[np.ndarray, " c"], iterations: int = 20
) -> LinearProbe:
    """The probe with biases for which its mean posterior over these rows is about the class frequencies.

    The partition function of a block is 1 if the two are equal in the population.
    iterations: number of iterations. Each multiplies the posteriors by the class frequencies over the mean posterior.
    Source: Saerens, Latinne & Decaestecker 2002, eq. 2.4 (posteriors for other class frequencies).
    """
    q = start = class_posterior(probe, rows)
    shift = np.zeros(len(frequencies))
    for _ in range(iterations):
        shift += np.log(frequencies) - np.log(np.maximum(q.mean(axis=0), 1e-12))
        q = start * np.exp(shift - shift.max())[None, :]
        q /= np.maximum(q.sum(axis=1, keepdims=True), 1e-300)
    return replace(probe, bias=probe.bias + probe.temperature * shift)


def prequential_certificate(
    blocks: Sequence[Block],
    reference: Sequence[Block],
    frequencies: Float[np.ndarray, " c"],
    *,
    confidence: float,
) -> PosteriorCertificate:
    """The prequential certificate's lower end of I(h_X;h_Y), and the point estimate of its lower bound.

    Both views must always share their class.
    blocks: the blocks of n pairs in one order, fixed at random before looking. The pairs are independent; their classes
        are draws from `frequencies`. Each block's probe, with everything chosen for it, depends only on rows before the
        block and on rows that are in no pair. The blocks' own pairs follow one another; each block also holds all pairs
        after it.
    reference: for each block, the same probe's posteriors for pairs that are certified nowhere.
    frequencies: p(c), known exactly.
    confidence: in (0, 1), one-sided. Here 1 - confidence is called the risk.

    For each block t let q be its posterior, mixed with some of the uniform distribution, f = log Σ_c q_c(x) q_c(y)
    / p_c and Z_t = E_Q e^f = Σ_c (E q_c)² / p_c, with Q the product of the distributions of x and of y. Given the rows
    before the block, Donsker and Varadhan's bound holds for its pairs: E f <= I + log Z_t. A pair's value is b = f -
    g_c + Σ_c' p_c' g_c', with the same expectation. g_c approximates the mean of f in class c. It is computed from the
    first block's reference, so it is fixed before the first pair.

    *Betting.* Write m_t for I + log Z_t, which the rows before the block determine. The gambler's factor
    1 + λ (b - m_t) has an expectation of at most 1 given the past, because the bet λ depends on earlier values only.
    The product of the factors, over all blocks, therefore reaches 1/risk with probability risk at most (Ville's
    inequality). A factor falls as m grows, so the capital against the one value m = I + max_t log Z_t is never more
    than this product. Hence the limit of `mean_lower_bound` for the values of all blocks, which is the largest m whose
    capital reaches 1/risk, is at most I + max_t log Z_t, except with probability risk.

    *Partition.* Given the rows before block t, all pairs from there on are independent and new to its probe. Let u_c be
    any distributions, fixed by the reference, and s = ((q_x + q_y) / 2 - u_c) / √p. As Σ_c p_c = Σ_c E q_c = 1,
    Z_t = 1 + |d|² with d = (E q - p) / √p = E s + (Σ_c p_c u_c - p) / √p. So Z_t <= 1 + (|d at the sample's mean| + r)²
    if the mean of s is within r of its expectation. `vector_mean_radius` gives an r for which this fails with at most a
    share of the risk. u_c approximates the mean of q in class c, which makes s short.

    The lower end is the betting limit minus the largest of the upper limits of log Z_t.
    Source: Donsker & Varadhan 1983; Dawid 1984 (prequential); Waudby-Smith & Ramdas 2023, Theorem 3; Pinelis 1994.
    """
    p, risk, n = frequencies, 1 - confidence, len(blocks[0].c)
    mixing = _mixing(reference[0], p, -math.log(risk) / (0.9 * n))
    corners = mix_posterior(np.eye(len(p)), mixing)
    f_low, f_high = _extremes(p, mixing)
    gains = _by_class(_log_ratio(reference[0], p, mixing), reference[0].c, -np.log(p))
    shift = float(p @ gains)
    window = f_low - float(gains.max()) + shift, f_high - float(gains.min()) + shift
    values, influences, highest = [], [], 0.0
    for block, seen in zip(blocks, reference, strict=True):
        own, start = slice(0, block.own), n - len(block.c)
        values.append((_log_ratio(block, p, mixing) - gains[block.c])[own] + shift)
        centers = _by_class(_mean_posterior(seen, mixing), seen.c, np.eye(len(p)))
        s = (_mean_posterior(block, mixing) - centers[block.c]) / np.sqrt(p)[None, :]
        d = s.mean(axis=0) + (p @ centers - p) / np.sqrt(p)
        longest = float(np.max(np.sum((corners[:, None] - centers[None, :]) ** 2 / p, axis=2)))
        share = 1 - PARTITION_SHARE * risk / len(blocks)
        radius = vector_mean_radius(np.sum(s**2, axis=1), longest, share)
        highest = max(highest, math.log1p((np.linalg.norm(d) + radius) ** 2))
        z = 1 + float(d @ d)
        effect = np.zeros(n)
        effect[start : start + block.own] -= math.log(z)
        effect[start:] -= block.own / len(block.c) * 2 * (s - s.mean(axis=0)[None, :]) @ d / z
        influences.append(effect)
    b = np.concatenate(values)
    influence = b + np.sum(influences, axis=0)
    lower = mean_lower_bound(b, *window, 1 - (1 - PARTITION_SHARE) * risk) - highest
    most = float(entr(p).sum())
    lower_bits, value_bits = (min(max(0.0, nats), most) / math.log(2) for nats in (lower, float(influence.mean())))
    return PosteriorCertificate(lower_bits, value_bits, influence)


def _mixing(reference: Block, p: Float[np.ndarray, " c"], price: float) -> float:
    """The weight in MIXINGS with the largest expected lower end.

    That is taken to be the mean log ratio minus `price` times its distance from the least possible log ratio.
    """

    def expected(mixing: float) -> float:
        mean = float(np.mean(_log_ratio(reference, p, mixing)))
        return mean - price * (mean - _extremes(p, mixing)[0])

    return max(MIXINGS, key=expected)


def _extremes(p: Float[np.ndarray, " c"], mixing: float) -> tuple[float, float]:
    """The least and the largest possible log ratio.

    The ratio is linear in either posterior, so it is extreme if each gives one class all probability (before mixing).
    """
    corners = mix_posterior(np.eye(len(p)), mixing)
    ratios = corners / p[None, :] @ corners.T
    return float(np.log(ratios.min())), float(np.log(ratios.max()))


def _mean_posterior(block: Block, mixing: float) -> Float[np.ndarray, "n c"]:
    return mix_posterior((block.q_x + block.q_y) / 2, mixing)


def _log_ratio(block: Block, p: Float[np.ndarray, " c"], mixing: float) -> Float[np.ndarray, " n"]:
    return np.log(np.sum(mix_posterior(block.q_x, mixing) * mix_posterior(block.q_y, mixing) / p[None, :], axis=1))


def _by_class(
    values: Float[np.ndarray, "n ..."], c: Int[np.ndarray, " n"], start: Float[np.ndarray, "c ..."]
) -> Float[np.ndarray, "c ..."]:
    """For each class, the mean of its values with one value added: the class's entry in `start`."""
    sums = start.copy()
    np.add.at(sums, c, values)
    counts = 1 + np.bincount(c, minlength=len(start))
    return (sums.T / counts).T
