"""What a frozen encoder's representations are like: alignment, uniformity, tolerance, contrastive loss, NMI, probes.

A pairing says which two views are alike: two images of a class, or two augmentations (h_x, h_y) of an image. The
conventions are Wang & Isola's (2020): unit rows (made so here), squared distances, t = 2, no image its own partner.
Code that leaves rows as they are or takes t = 1 gives other numbers.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Integer
from scipy.special import entr, log_softmax

from mirigor_jax import fitting, probes
from mirigor_jax.errors import InputError
from mirigor_jax.mi.contrastive import nt_xent, uniformity


def alignment(
    h_x: Float[np.ndarray | Array, "n d"], h_y: Float[np.ndarray | Array, "n_y d_y"], alpha: float = 2.0
) -> float:
    """Mean of |x - y|^alpha over pairs of unit rows: 0, which is best, to 2^alpha.

    Raises InputError where the two are not of one shape, or without a row.
    Source: Wang & Isola 2020, section 4.1.1.
    """
    _check_views(h_x, h_y)
    return float(np.mean(np.linalg.norm(_unit(h_x) - _unit(h_y), axis=1) ** alpha))


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


def class_pairs(labels: Integer[np.ndarray | Array, " n"], seed: int = 0) -> Int[np.ndarray, "m 2"]:
    """Rows of same-class pairs, drawn at random and in random order: as many as there may be with no row in two."""
    rng, labels = np.random.default_rng(seed), np.asarray(labels)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    classes = labels[order]
    rank = np.arange(len(order)) - np.searchsorted(classes, classes)
    first = np.flatnonzero((rank[:-1] % 2 == 0) & (classes[:-1] == classes[1:]))
    return rng.permutation(order[first[:, None] + np.arange(2)[None, :]])


def contrastive_loss_nats(
    z_x: Float[np.ndarray | Array, "n d"], z_y: Float[np.ndarray | Array, "n_y d_y"], temperature: float, k: int
) -> float:
    """NT-Xent, the mean over batches of k pairs in the order given; a rest is left out. It rises with k.

    Raises InputError where the two are not of one shape, for fewer than k pairs, and for k or temperature not positive.
    Source: Lee et al. 2023, Eq. 2-3; their Tables IV-V have it at each encoder's own temperature of training.
    """
    _check_views(z_x, z_y)
    if not 1 <= k <= len(z_x) or temperature <= 0:
        raise InputError(
            f"k = {k}, temperature = {temperature:g}: expected 1 to the {len(z_x)} pairs there are, and above 0"
        )
    n = len(z_x) // k * k
    x, y = (jnp.asarray(z)[:n].reshape(-1, k, z.shape[1]) for z in (z_x, z_y))
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
    if k < 1 or temperature <= 0 or not 0 < least_frequency <= 1:
        raise InputError(
            f"k = {k}, temperature = {temperature:g}, least_frequency = {least_frequency:g}: expected 1 or more, above "
            "0, and in (0, 1]"
        )
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
    truth = np.asarray(labels)
    entropy_nats = entr(np.unique(truth, return_counts=True)[1] / len(truth)).sum()
    if entropy_nats == 0:
        raise InputError("labels hold 1 class: H(Y) is 0 and NMI not defined; give two classes or more")
    log_posterior = log_softmax(logits.astype(np.float64), axis=1)
    return float(1 + np.mean(log_posterior[np.arange(len(truth)), truth]) / entropy_nats)


def evaluate(
    features: Mapping[str, Mapping[str, np.ndarray]],
    *,
    l2: Sequence[float],
    temperature: float = 0.1,
    k: int = 256,
    max_steps: int = 20_000,
    seed: int = 0,
    report: fitting.Report | None = None,
) -> dict[str, float]:
    """Every metric of the part "test" that its arrays allow, by probes made on the parts "fit" and "validation".

    h (n, d) and labels (n,) of every part give `class_*` (same-class pairing), accuracies of the linear, kNN and MLP
    probes, and the NMI that the first and last show; h_x and h_y (m, d) of the test part, two augmentations of each
    image, give `augmentation_*`. These need no labels; their tolerance is the mean cosine of the pairs.
    l2: the linear probe's penalties. temperature, k (all pairs, where there are fewer): of the contrastive loss, by the
    cosines of h itself. max_steps,
    report: of the MLP. Raises InputError as the functions called do.
    Source: Lee et al. 2023, Tables IV-IX.
    """
    test = features["test"]
    found: dict[str, float] = {}
    if "h_x" in test:
        h_x, h_y = test["h_x"], test["h_y"]
        distance = alignment(h_x, h_y)
        found |= {
            "augmentation_alignment": distance,
            # of each view alone, as in Wang & Isola's code: a pair's two are not independent
            "augmentation_uniformity": (_uniformity(h_x) + _uniformity(h_y)) / 2,
            "augmentation_tolerance": 1 - distance / 2,
            "augmentation_contrastive_loss_nats": contrastive_loss_nats(h_x, h_y, temperature, min(k, len(h_x))),
        }
    if "labels" in test:
        h, labels = test["h"], test["labels"]
        x, y = class_pairs(labels, seed).T
        found |= {
            "class_alignment": class_alignment(h, labels),
            "class_uniformity": _uniformity(h),
            "class_tolerance": tolerance(h, labels),
            "class_contrastive_loss_nats": contrastive_loss_nats(h[x], h[y], temperature, min(k, len(x))),
        }
        num_classes = 1 + max(int(part["labels"].max()) for part in features.values())
        part = features["fit"]["h"], features["fit"]["labels"], num_classes
        h_validation, of_validation = features["validation"]["h"], features["validation"]["labels"]
        linear = probes.fit_linear(*part, l2=l2, validation_features=h_validation, validation_labels=of_validation)
        knn = probes.fit_knn(*part)
        mlp = probes.fit_mlp(
            *part,
            validation_features=h_validation,
            validation_labels=of_validation,
            max_steps=max_steps,
            seed=seed,
            report=report,
        )
        found |= {
            "linear_accuracy": probes.accuracy(linear, h, labels),
            "knn_accuracy": probes.accuracy(knn, h, labels),
            "mlp_accuracy": probes.accuracy(mlp, h, labels),
            "linear_nmi": label_nmi(linear.logits(h) / linear.temperature, labels),
            "mlp_nmi": label_nmi(mlp.logits(h) / mlp.temperature, labels),
        }
    return found


def _unit(h: Float[np.ndarray | Array, "n d"]) -> Float[np.ndarray, "n d"]:
    rows = np.asarray(h, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _class_cosines(
    h: Float[np.ndarray | Array, "n d"], labels: Integer[np.ndarray | Array, " n_labels"]
) -> tuple[Int[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Of every class with two images or more: their number, and the mean cosine of two distinct ones."""
    if len(h) != len(labels):
        raise InputError(f"{len(h)} feature rows for {len(labels)} labels: expected as many, row i of image i")
    _, classes, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if sizes.max(initial=0) < 2:
        raise InputError(f"{len(h)} images of {len(sizes)} classes: expected a class of two or more; give more images")
    rows, starts = _unit(h)[np.argsort(classes, kind="stable")], np.cumsum(sizes) - sizes
    sums = np.add.reduceat(rows, starts)
    totals = np.sum(sums**2, axis=1) - np.add.reduceat(np.sum(rows**2, axis=1), starts)
    kept = sizes > 1
    sizes, totals = sizes[kept], totals[kept]
    return sizes, totals / (sizes * (sizes - 1))


def _check_views(h_x, h_y) -> None:
    if h_x.shape != h_y.shape or len(h_x) == 0:
        raise InputError(f"views of shapes {h_x.shape} and {h_y.shape}: expected one shape, row i of each a pair")


@jax.jit
def _mean_nt_xent(
    z_x: Float[Array, "b k d"], z_y: Float[Array, "b k d"], temperature: float | Array
) -> Float[Array, ""]:
    return jnp.mean(lax.map(lambda batch: nt_xent(batch[0], batch[1], temperature), (z_x, z_y)))


def _uniformity(h: Float[np.ndarray | Array, "n d"]) -> float:
    return float(_jitted_uniformity(jnp.asarray(h)))


_jitted_uniformity = jax.jit(uniformity)
