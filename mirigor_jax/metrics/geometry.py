"""What representations are like, as functions of arrays: alignment, uniformity, tolerance, contrastive loss, NMI.

A pairing says which two views are alike: two images of a class, or two augmentations (h_x, h_y) of an image. The
conventions are Wang & Isola's (2020): unit rows (made so here), squared distances, t = 2, no image its own partner.
Code that leaves rows as they are or takes t = 1 gives other numbers.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Integer
from scipy.special import entr, log_softmax

from mirigor_jax import checks
from mirigor_jax.data.draws import by_class, rank_in_class
from mirigor_jax.errors import InputError
from mirigor_jax.mi import contrastive
from mirigor_jax.numerics import unit_rows


def alignment(
    h_x: Float[np.ndarray | Array, "n d"], h_y: Float[np.ndarray | Array, "n_y d_y"], alpha: float = 2.0
) -> float:
    """Mean of |x - y|^alpha over pairs of unit rows: 0, which is best, to 2^alpha.

    Raises InputError where the two are not of one shape, or without a row, or if alpha is not above 0.
    Source: Wang & Isola 2020, section 4.1.1.
    """
    checks.views(h_x, h_y)
    checks.above_zero("alpha", alpha, "2")
    return float(np.mean(np.linalg.norm(unit_rows(h_x) - unit_rows(h_y), axis=1) ** alpha))


def class_alignment(h: Float[np.ndarray | Array, "n d"], labels: Integer[np.ndarray | Array, " n_labels"]) -> float:
    """`alignment` of two distinct images of a class, the class drawn by its frequency: over all such pairs.

    O(n d), by sums over classes. A class of one image has no pair, and is left out.
    Raises InputError where no class has two images, or lengths differ.
    Source: Wang & Isola 2020, section 4.1.1; the pairing is Lee et al. 2023, III-A.
    """
    sizes, cosines = _class_cosines(h, labels)
    return float(2 - 2 * np.average(cosines, weights=sizes))


def tolerance(h: Float[np.ndarray | Array, "n d"], labels: Integer[np.ndarray | Array, " n_labels"]) -> float:
    """Mean cosine over all pairs of distinct images with one label, up to 1, which is best.

    O(n d), by sums over classes. A class weighs by its pairs; in `class_alignment` it does by its images.
    Others count otherwise. Lee et al. 2023 seem to have each image its own partner too, T + (1 - T)/n for n images a
    class: so the columns of their Tables VI-IX are related, at ImageNet's n = 50. Wang & Liu's expectation is over
    pairs of any labels, with 0 for those that differ: T times the share of the others.
    Raises InputError where no class has two images, or lengths differ.
    Source: Wang & Liu 2021, arXiv:2012.09740.
    """
    sizes, cosines = _class_cosines(h, labels)
    return float(np.average(cosines, weights=sizes * (sizes - 1)))


def uniformity(h: Float[np.ndarray | Array, "n d"]) -> float:
    """Log of the mean of e^(-2 |x - y|^2) over all pairs of distinct unit rows: least, which is best, if spread evenly.

    Source: Wang & Isola 2020, section 4.1.2, with t = 2.
    """
    return float(_uniformity(_on_device(h)))


def class_pairs(labels: Integer[np.ndarray | Array, " n"], seed: int = 0) -> Int[np.ndarray, "m 2"]:
    """Rows of same-class pairs, drawn at random and in random order: as many as there may be with no row in two."""
    rng, labels = np.random.default_rng(seed), np.unique(checks.labels(labels), return_inverse=True)[1]
    rows = by_class(np.arange(len(labels)), labels, rng)
    classes = labels[rows]
    first = np.flatnonzero((rank_in_class(classes)[:-1] % 2 == 0) & (classes[:-1] == classes[1:]))
    return rng.permutation(rows[first[:, None] + np.arange(2)[None, :]])


def contrastive_loss_nats(
    z_x: Float[np.ndarray | Array, "n d"], z_y: Float[np.ndarray | Array, "n_y d_y"], temperature: float, k: int
) -> float:
    """NT-Xent, the mean over batches of k pairs in the order given; a rest is left out. It rises with k.

    Raises InputError where the two are not of one shape, for fewer than k pairs, and for k or temperature not positive.
    Source: Lee et al. 2023, Eq. 2-3; their Tables IV-V have it at each encoder's own temperature of training.
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
    """What the mean classifier's cross-entropy is at most, in nats, where NT-Xent of k same-class pairs is loss_nats.

    L + log(1 / (p (2k - 1))) + gap(2/τ), with gap(w) = log((e^w - 1)/w) - 1 + w/(e^w - 1): p is the frequency of the
    rarest class, 1/C where they are balanced. The mean classifier gives class c the logit s_c = u·μ_c/τ, u an image's
    unit row and μ_c the mean of the class's. L is an expectation over fresh pairs, as `contrastive_loss_nats` of
    `class_pairs` estimates it. An encoder's order by this is its order by L, if all are at one temperature.
    Proof. Given everyone's class, an anchor's loss is convex in its candidates: it is no less with each one's μ_c in
    its place (Jensen). There log Σ_j e^{s_j} >= log(2k - 1) + mean_j s_j, whose expectation is at least
    log(2k - 1) + E Σ_c p_c s_c, since E s_C - E Σ_c p_c s_c = E|μ_C|² - |E μ_C|² times 1/τ. And
    log Σ_c e^{s_c} <= log(1/p) + log Σ_c p_c e^{s_c} <= log(1/p) + Σ_c p_c s_c + gap(2/τ): gap(w) is the most that
    log-mean-exp exceeds the mean by for numbers in an interval of width w, the log of Specht's ratio.
    Raises InputError where k is not positive, temperature is not above 0, or least_frequency not in (0, 1].
    Source: after Bao, Nagano & Nozawa 2022, who bound this loss so for every number of negatives ([57] of Lee et al.
    2023, IV-B); the constants are those of the proof above, and may differ from the published ones.
    """
    checks.number("loss_nats", loss_nats)
    checks.whole("k", k, 1)
    checks.temperature(temperature)
    if not 0 < checks.number("least_frequency", least_frequency) <= 1:
        raise InputError(f"least_frequency = {least_frequency:g}: expected in (0, 1]")
    width = 2 / temperature
    # log((e^w - 1)/w) and w/(e^w - 1), where e^w alone would overflow
    gap = width + math.log(-math.expm1(-width) / width) - 1 - width * math.exp(-width) / math.expm1(-width)
    return loss_nats - math.log(least_frequency * (2 * k - 1)) + gap


def label_nmi(logits: Float[np.ndarray, "n c"], labels: Integer[np.ndarray | Array, " n"]) -> float:
    """I(h;Y)/H(Y) as far as a probe shows it: 1 - E[-log q(Y|h)] / H(Y), at most 1.

    logits: of q, a probe's posterior of images that it was not fitted on; in expectation this is then a lower bound
    (Barber & Agakov 2003), below 0 where the probe is worse than the classes' frequencies. H(Y) is by those of
    `labels`. Two images' I_class over H(C), an encoder's other NMI, is `mi.LabelEstimate.nmi`.
    Raises InputError where there is one class only.
    Source: Gosch 2020, Eq. 11, whose I(h;Y) is the plug-in of a critic fitted by Jensen-Shannon: not a bound.
    """
    truth = checks.labels(labels)
    entropy_nats = entr(np.unique(truth, return_counts=True)[1] / len(truth)).sum()
    if entropy_nats == 0:
        raise InputError("labels hold 1 class: H(Y) is 0 and NMI not defined; give two classes or more")
    log_posterior = log_softmax(logits.astype(np.float64), axis=1)
    return float(1 + np.mean(log_posterior[np.arange(len(truth)), truth]) / entropy_nats)


def _on_device(h: Float[np.ndarray | Array, "n d"]) -> Float[Array, "n d"]:
    """The rows for a loss that normalizes them: what float64 alone can hold of them is their scale."""
    if isinstance(h, jax.Array):
        return h
    rows = np.asarray(h)
    is_of_jax = rows.dtype.isnative and rows.dtype.itemsize <= 4
    return jnp.asarray(rows if is_of_jax else unit_rows(rows, np.float32))


def _class_cosines(
    h: Float[np.ndarray | Array, "n d"], labels: Integer[np.ndarray | Array, " n_labels"]
) -> tuple[Int[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Of every class with two images or more: their number, and the mean cosine of two distinct ones."""
    if len(h) != len(labels):
        raise InputError(f"{len(h)} feature rows for {len(labels)} labels: expected as many, row i of image i")
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
