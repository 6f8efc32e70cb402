"""Metrics of representations as functions of arrays: alignment, uniformity, tolerance, contrastive loss, NMI.

A pairing says which two views are alike: two images of a class, or two augmentations (h_x, h_y) of an image. The
conventions are those of Wang & Isola (2020): rows are normalized (here), distances are squared, t = 2, and no image is
its own partner. Code that does not normalize rows, or takes t = 1, gives other numbers.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from scipy.special import entr, log_softmax

from mirigor_jax import checks
from mirigor_jax.data.draws import by_class, rank_in_class
from mirigor_jax.errors import InputError
from mirigor_jax.mi import contrastive
from mirigor_jax.numerics import unit_rows


def alignment(
    h_x: Float[np.ndarray | Array, "n d"], h_y: Float[np.ndarray | Array, "n_y d_y"], alpha: float = 2.0
) -> float:
    """Mean of |x - y|^alpha over pairs of unit rows, from 0 (best) to 2^alpha.

    Raises InputError if the shapes differ, if there is no row, or if alpha is not above 0.
    Source: Wang & Isola 2020, section 4.1.1.
    """
    checks.views(h_x, h_y)
    checks.above_zero("alpha", alpha, "2")
    return float(np.mean(np.linalg.norm(unit_rows(h_x) - unit_rows(h_y), axis=1) ** alpha))


def class_alignment(h: Float[np.ndarray | Array, "n d"], labels: Any) -> float:
    """`alignment` of two distinct images of a class, averaged over all such pairs; a class weighs by its images.

    It takes O(n d), by sums over classes. A class of one image has no pair, and is left out.
    Raises InputError if no class has two images, or if lengths differ.
    Source: Wang & Isola 2020, section 4.1.1; the pairing is Lee et al. 2023, III-A.
    """
    sizes, cosines = _class_cosines(h, labels)
    return float(2 - 2 * np.average(cosines, weights=sizes))


def tolerance(h: Float[np.ndarray | Array, "n d"], labels: Any) -> float:
    """Mean cosine over all pairs of distinct images with the same label, at most 1, which is best.

    It takes O(n d), by sums over classes. A class weighs by its pairs; in `class_alignment` it weighs by its images.
    Other definitions differ from this T. Lee et al. 2023 also seem to pair each image with itself, which gives
    T + (1 - T)/n for n images a class: the columns of their Tables VI-IX are related in this way, at ImageNet's n = 50.
    The expectation of Wang & Liu is over pairs of any labels, with 0 for different labels: T times the share of pairs
    with the same label.
    Raises InputError if no class has two images, or if lengths differ.
    Source: Wang & Liu 2021, arXiv:2012.09740.
    """
    sizes, cosines = _class_cosines(h, labels)
    return float(np.average(cosines, weights=sizes * (sizes - 1)))


def uniformity(h: Float[np.ndarray | Array, "n d"]) -> float:
    """Log of the mean of e^(-2 |x - y|^2) over all pairs of distinct unit rows. Lower is better: rows spread evenly.

    Source: Wang & Isola 2020, section 4.1.2, with t = 2.
    """
    return float(_uniformity(_on_device(h)))


def class_pairs(labels: Any, seed: int = 0) -> Int[np.ndarray, "m 2"]:
    """Rows of random same-class pairs, in random order: as many pairs as possible with each row in one at most."""
    rng, labels = np.random.default_rng(seed), np.unique(checks.labels(labels), return_inverse=True)[1]
    rows = by_class(np.arange(len(labels)), labels, rng)
    classes = labels[rows]
    first = np.flatnonzero((rank_in_class(classes)[:-1] % 2 == 0) & (classes[:-1] == classes[1:]))
    return rng.permutation(rows[first[:, None] + np.arange(2)[None, :]])


def contrastive_loss_nats(
    z_x: Float[np.ndarray | Array, "n d"], z_y: Float[np.ndarray | Array, "n_y d_y"], temperature: float, k: int
) -> float:
    """NT-Xent, in nats: mean over batches of k pairs in the given order. Left-over pairs are not used. It rises with k.

    Raises InputError if the shapes differ, if there are fewer than k pairs, or if k or temperature is not positive.
    Source: Lee et al. 2023, Eq. 2-3. Their Tables IV-V have it at the temperature that each encoder was trained with.
    """
    checks.views(z_x, z_y)
    checks.whole("k", k, 1)
    checks.temperature(temperature)
    if k > len(z_x):
        raise InputError(f"k = {k}: expected 1 to the {len(z_x)} pairs there are")
    n = len(z_x) // k * k
    x, y = (_on_device(z)[:n].reshape(-1, k, z.shape[1]) for z in (z_x, z_y))
    return float(_mean_nt_xent(x, y, temperature))


def supervised_loss_bound_nats(loss_nats: float, *, k: int, temperature: float, least_frequency: float) -> float:
    """Upper bound of the mean classifier's cross-entropy, in nats, from the NT-Xent loss L of k same-class pairs.

    The bound is L + log(1 / (p (2k - 1))) + gap(2/τ), with gap(w) = log((e^w - 1)/w) - 1 + w/(e^w - 1). The mean
    classifier gives class c the logit s_c = u·μ_c/τ: u is an image's unit row, μ_c is the mean of those of class c. At
    one temperature the bound ranks encoders as L does.
    loss_nats: L, an expectation over fresh pairs; `contrastive_loss_nats` of `class_pairs` estimates it.
    temperature: τ. least_frequency: p, the frequency of the rarest class; 1/N if N classes are balanced.
    Proof. Given all classes, an anchor's loss is convex in its candidates, so replacing each candidate by its class
    mean does not raise the expected loss (Jensen). Then log Σ_j e^{s_j} >= log(2k - 1) + mean_j s_j. The right side has
    an expectation of at least log(2k - 1) + E Σ_c p_c s_c, because E s_C - E Σ_c p_c s_c = (E|μ_C|² - |E μ_C|²)/τ >= 0.
    Also log Σ_c e^{s_c} <= log(1/p) + log Σ_c p_c e^{s_c} <= log(1/p) + Σ_c p_c s_c + gap(2/τ): by at most gap(w), the
    log of Specht's ratio, log-mean-exp exceeds the mean of numbers in an interval of width w.
    Raises InputError if k or temperature is not positive, or if least_frequency is not in (0, 1].
    Source: after Bao, Nagano & Nozawa 2022 ([57] of Lee et al. 2023, IV-B), who bound this loss in the same way for
    every number of negatives. The constants are those of the proof above, and may differ from the published ones.
    """
    checks.number("loss_nats", loss_nats)
    checks.whole("k", k, 1)
    checks.temperature(temperature)
    if not 0 < checks.number("least_frequency", least_frequency) <= 1:
        raise InputError(f"least_frequency = {least_frequency:g}: expected in (0, 1]")
    width = 2 / temperature
    # log((e^w - 1)/w) and w/(e^w - 1), written so that e^w does not overflow
    gap = width + math.log(-math.expm1(-width) / width) - 1 - width * math.exp(-width) / math.expm1(-width)
    return loss_nats - math.log(least_frequency * (2 * k - 1)) + gap


def label_nmi(logits: Float[np.ndarray, "n c"], labels: Any) -> float:
    """A probe's estimate of I(h;Y)/H(Y): 1 - E[-log q(Y|h)] / H(Y), at most 1.

    logits: (n, c). Those of q, a probe's posterior, for images that the probe was not fitted on. In expectation the
        estimate is then a lower bound (Barber & Agakov 2003). It is below 0 if q is worse than the class frequencies.
    labels: (n,). H(Y) uses their frequencies.
    An encoder's other NMI, I_class / H(C) of two images of a class, is `mi.LabelEstimate.nmi`.
    Raises InputError if there is only one class.
    Source: Gosch 2020, Eq. 11. There I(h;Y) is the plug-in of a critic fitted by Jensen-Shannon, which is not a bound.
    """
    truth = checks.labels(labels)
    entropy_nats = entr(np.unique(truth, return_counts=True)[1] / len(truth)).sum()
    if entropy_nats == 0:
        raise InputError("labels hold 1 class: H(Y) is 0 and NMI not defined; give two classes or more")
    log_posterior = log_softmax(logits.astype(np.float64), axis=1)
    return float(1 + np.mean(log_posterior[np.arange(len(truth)), truth]) / entropy_nats)


def _on_device(h: Float[np.ndarray | Array, "n d"]) -> Float[Array, "n d"]:
    """The rows in JAX, for a loss that normalizes them. float64 rows are normalized here: float32 may not hold them."""
    if isinstance(h, jax.Array):
        return h
    rows = np.asarray(h)
    is_of_jax = rows.dtype.isnative and rows.dtype.itemsize <= 4
    return jnp.asarray(rows if is_of_jax else unit_rows(rows, np.float32))


def _class_cosines(
    h: Float[np.ndarray | Array, "n d"], labels: Any
) -> tuple[Int[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """(number of images, mean cosine of two distinct images) of each class with at least two images."""
    if len(h) != len(labels):
        raise InputError(f"{len(h)} feature rows for {len(labels)} labels: expected one label for each row")
    _, classes, sizes = np.unique(checks.labels(labels), return_inverse=True, return_counts=True)
    if sizes.max(initial=0) < 2:
        raise InputError(f"{len(h)} images of {len(sizes)} classes: expected a class of two or more; give more images")
    rows, starts = unit_rows(h)[np.argsort(classes, kind="stable")], np.cumsum(sizes) - sizes
    sums = np.add.reduceat(rows, starts)
    totals = np.sum(sums**2, axis=1) - np.add.reduceat(np.sum(rows**2, axis=1), starts)
    has_pair = sizes > 1
    sizes, totals = sizes[has_pair], totals[has_pair]
    return sizes, totals / (sizes * (sizes - 1))


@jax.jit
def _mean_nt_xent(
    z_x: Float[Array, "b k d"], z_y: Float[Array, "b k d"], temperature: float | Array
) -> Float[Array, ""]:
    return jnp.mean(lax.map(lambda batch: contrastive.nt_xent(batch[0], batch[1], temperature), (z_x, z_y)))


_uniformity = jax.jit(contrastive.uniformity)
