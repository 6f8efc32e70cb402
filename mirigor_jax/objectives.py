"""Training objectives: losses, in nats, of the head's outputs for the views of k pairs.

Each loss is the mean over this device's 2k views. With `axis_name`, these views are scored against the views of all
devices. So `pmean` of the loss over the axis is the global batch's loss, and `pmean` of its gradients is the global
gradient (as in mi/contrastive.py).

The squared error of a pixel counts as nats, too: up to a constant, it is the negative log-likelihood of a Gaussian of
variance 1/2 around the decoder's output.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int, Key

from mirigor_jax import checks, fields, siamese
from mirigor_jax.data.preprocess import rotate
from mirigor_jax.errors import InputError
from mirigor_jax.mi.contrastive import nt_xent, unit_rows
from mirigor_jax.mi.mige import ROWS_PER_COLUMN, mige
from mirigor_jax.mi.scoring import anchor_loss
from mirigor_jax.settings import Train

Batch = Mapping[str, Array]  # arrays of k rows by name: views and labels
Keys = Callable[[], Sequence[Key[Array, " k"]]]  # () → for each view, a key an image, new at every step


def _no_targets(batch: Batch, keys: Keys) -> tuple[Array, ...]:
    return ()


@dataclass(frozen=True)
class Objective:
    """A loss, the networks and the batches that it needs, and the function that prepares a batch.

    loss: (z of each view …, each target …) → nats, the mean over this device's views.
    prepare: (batch, keys) → the targets, arrays of k rows. keys() gives, for each view, a key an image.
    transform: (images, a target for each) → the images that the encoder sees. It follows normalization and
        augmentation, and needs one target array for each view. None: images stay unchanged.
    needs_classes: whether batches contain the classes of the pairs' images, c_x and c_y.
    needs_negatives: whether batches contain negatives, n_x and n_y, which are views too.
    outputs: number of outputs of the head. None: the caller chooses it.
    bounds_mi: whether log(2k−1) − loss is the in-training MI (Lee et al. 2023, Eq. 4). That holds for NT-Xent alone,
        which finds one partner among 2k−1 views. With several partners, supcon's loss is at least the log of their
        number. decoupled leaves the partner out of the candidates, so its loss may be negative. anchor has a class
        more, and mige's value is no bound. The other losses are of classes or pixels, or have no unit.
    pairs_per_output: least number of pairs in a batch for each of the head's outputs. 0: there is none.
    needs_decoder: whether a decoder, from the encoder's features to pixels, is trained beside the head. The loss then
        also gets, by keyword and as (views, k, s, s, 3), `decoded`, its output, and `images`: the views, normalized and
        augmented, before the transform.
    patch: pixels. Side of the patches that the images are cut into. 0: they are not cut.
    uses: names of the SETTINGS that the loss depends on.
    on_top: a module on top of the head, trained with it: rows (n, f) → (n, g), which are the loss's z. None: there is
        none, and z are the head's outputs.
    slow_share: if the loss also gets, after the targets, the outputs of a slow copy of encoder and head for each view:
        (number of updates so far) → the share of the copy that stays at an update. None: there is no copy.
    with_negatives: the same objective with separate images as negatives. None: there is no such objective.
    """

    loss: Callable[..., Float[Array, ""]]
    prepare: Callable[[Batch, Keys], tuple[Array, ...]] = _no_targets
    transform: Callable[[Float[Array, "n s s 3"], Array], Float[Array, "n s s 3"]] | None = None
    needs_classes: bool = False
    needs_negatives: bool = False
    outputs: int | None = None
    bounds_mi: bool = False
    pairs_per_output: int = 0
    needs_decoder: bool = False
    patch: int = 0
    uses: tuple[str, ...] = ()
    on_top: nn.Module | None = None
    slow_share: Callable[[Array], Float[Array, ""]] | None = None
    with_negatives: "Objective | None" = None

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the images in a batch that go through the encoder, in order."""
        return ("x", "y", "n_x", "n_y") if self.needs_negatives else ("x", "y")

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the other arrays in a batch, each int32 (k,)."""
        return ("c_x", "c_y") if self.needs_classes else ()


@dataclass(frozen=True)
class Options:
    """What an objective of the table is made for.

    num_classes: number of classes of the images. None: they have no labels.
    axis_name: the mapped axis that the batch is spread over. None: one device.
    steps: number of updates of the training.
    temperature: of the contrastive losses.
    embedding_noise: standard deviation of the noise that is added to the embeddings.
    reconstruction: weight λ of the squared error of a pixel. None: there is no other term (λ = ∞).
    masked: share of the patches that are hidden.
    patch: pixels. Side of the patches.
    redundancy: weight λ of the squared correlations of different coordinates.
    vicreg_weights: weights λ, μ and ν of invariance, variance and covariance.
    target_decay: share of the target network's weights that stays at the first update.
    prototypes: number of prototypes.
    """

    num_classes: int | None
    axis_name: str | None
    steps: int = Train.steps
    temperature: float = Train.temperature
    embedding_noise: float = Train.embedding_noise
    reconstruction: float | None = Train.reconstruction
    masked: float = Train.masked
    patch: int = Train.patch
    redundancy: float = Train.redundancy
    vicreg_weights: tuple[float, ...] = Train.vicreg_weights
    target_decay: float = Train.target_decay
    prototypes: int = Train.prototypes


# Settings of training, and options of `Options`, that some objectives depend on and others do not.
SETTINGS = (
    "temperature",
    "embedding_noise",
    "reconstruction",
    "masked",
    "patch",
    "redundancy",
    "vicreg_weights",
    "target_decay",
    "prototypes",
)
TEMPERATURE = ("temperature",)


def _classes(batch: Batch, keys: Keys) -> tuple[Array, ...]:
    return batch["c_x"], batch["c_y"]


def _keys(batch: Batch, keys: Keys) -> tuple[Array, ...]:
    return tuple(keys())


def _rotations(batch: Batch, keys: Keys) -> tuple[Array, ...]:
    """A random number of quarter turns, 0 to 3, for each image of each view."""
    return tuple(jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(view_keys) for view_keys in keys())


def simclr_objective(options: Options) -> Objective:
    """NT-Xent; its negatives are the batch's other pairs, or separate images (`with_negatives`)."""
    given: Any = {"temperature": options.temperature, "axis_name": options.axis_name}
    other = Objective(partial(nce, **given), needs_negatives=True, uses=TEMPERATURE)
    return Objective(partial(nt_xent, **given), bounds_mi=True, uses=TEMPERATURE, with_negatives=other)


def supcon_objective(options: Options) -> Objective:
    """SupCon: all images of a class are positives of each other."""
    loss = partial(supcon, temperature=options.temperature, axis_name=options.axis_name)
    return Objective(loss, prepare=_classes, needs_classes=True, uses=TEMPERATURE)


def decoupled_objective(options: Options) -> Objective:
    """The decoupled contrastive loss."""
    loss = partial(decoupled, temperature=options.temperature, axis_name=options.axis_name)
    return Objective(loss, uses=TEMPERATURE)


def anchor_objective(options: Options) -> Objective:
    """NT-Xent with an anchor class: the scores are log density ratios, with no factor left free."""
    loss = partial(anchor, temperature=options.temperature, axis_name=options.axis_name)
    return Objective(loss, uses=TEMPERATURE)


def mige_objective(options: Options) -> Objective:
    """The MI of noisy embeddings, by its own gradient (MIGE)."""
    return Objective(
        partial(noisy_mige, noise=options.embedding_noise, axis_name=options.axis_name),
        prepare=_keys,
        pairs_per_output=2 * ROWS_PER_COLUMN,
        uses=("embedding_noise",),
    )


def cross_entropy_objective(options: Options) -> Objective:
    """Supervised learning of the images' classes."""
    return Objective(cross_entropy, prepare=_classes, needs_classes=True, outputs=options.num_classes)


def rotation_objective(options: Options) -> Objective:
    """Each view is turned by a random multiple of 90°, and the head predicts this multiple."""
    del options
    return Objective(cross_entropy, prepare=_rotations, transform=rotate, outputs=4)


def supervised_autoencoder_objective(options: Options) -> Objective:
    """The head predicts the images' classes, and a decoder the images.

    Without weight on the reconstruction this is `cross_entropy`. With weight on nothing else it needs no classes.
    """
    if options.reconstruction == 0:
        return replace(cross_entropy_objective(options), uses=("reconstruction",))
    made = Objective(autoencoder, needs_decoder=True, uses=("reconstruction",))
    if options.reconstruction is None:
        return made
    loss = partial(supervised_autoencoder, reconstruction=options.reconstruction)
    return replace(made, loss=loss, prepare=_classes, needs_classes=True, outputs=options.num_classes)


def masked_objective(options: Options) -> Objective:
    """Random patches of each image are hidden from the encoder, and a decoder predicts their pixels."""
    masks: Any = {"share": options.masked, "patch": options.patch}
    return Objective(
        partial(masked, **masks),
        prepare=_keys,
        transform=partial(hide, **masks),
        needs_decoder=True,
        patch=options.patch,
        uses=("masked", "patch"),
    )


def barlow_twins_objective(options: Options) -> Objective:
    """The cross-correlation matrix of the views is to be the identity."""
    loss = partial(siamese.barlow_twins, redundancy=options.redundancy, axis_name=options.axis_name)
    return Objective(loss, uses=("redundancy",))


def vicreg_objective(options: Options) -> Objective:
    """The views are to be alike, and each view's coordinates to vary and to be uncorrelated."""
    return Objective(
        partial(siamese.vicreg, weights=options.vicreg_weights, axis_name=options.axis_name),
        uses=("vicreg_weights",),
    )


def byol_objective(options: Options) -> Objective:
    """A predictor finds, from one view, a slow copy's output for the other view."""
    return Objective(
        siamese.byol,
        uses=("target_decay",),
        on_top=siamese.Predictor(),
        slow_share=partial(siamese.target_share, decay=options.target_decay, steps=options.steps),
    )


def swav_objective(options: Options) -> Objective:
    """Each view's assignment to prototypes is predicted from the other view."""
    return Objective(
        partial(siamese.swav, temperature=options.temperature, axis_name=options.axis_name),
        uses=("temperature", "prototypes"),
        on_top=siamese.Prototypes(options.prototypes),
    )


# Name → (what the objective is made for) → the objective.
OBJECTIVES: dict[str, Callable[[Options], Objective]] = {
    "simclr": simclr_objective,
    "supcon": supcon_objective,
    "decoupled": decoupled_objective,
    "anchor": anchor_objective,
    "mige": mige_objective,
    "cross_entropy": cross_entropy_objective,
    "rotation": rotation_objective,
    "supervised_autoencoder": supervised_autoencoder_objective,
    "masked": masked_objective,
    "barlow_twins": barlow_twins_objective,
    "vicreg": vicreg_objective,
    "byol": byol_objective,
    "swav": swav_objective,
}


def make(
    name: str,
    *,
    temperature: float,
    num_classes: int | None,
    axis_name: str | None,
    steps: int = Train.steps,
    embedding_noise: float = Train.embedding_noise,
    reconstruction: float | None = Train.reconstruction,
    masked: float = Train.masked,
    patch: int = Train.patch,
    redundancy: float = Train.redundancy,
    vicreg_weights: tuple[float, ...] = Train.vicreg_weights,
    target_decay: float = Train.target_decay,
    prototypes: int = Train.prototypes,
    negatives: bool = False,
) -> Objective:
    """Build the objective of that name.

    temperature: of the contrastive losses.
    num_classes: number of classes of the images. None: they have no labels.
    axis_name: the mapped axis that the batch is spread over. None: one device.
    steps: number of updates of the training, for an objective that changes with them.
    embedding_noise: standard deviation of the noise that mige adds to the embeddings.
    reconstruction: weight λ that supervised_autoencoder gives to the reconstruction. None: nothing else counts (λ = ∞).
    masked, patch: the share of the patches that masked hides, and their side in pixels.
    redundancy: weight λ that barlow_twins gives to the squared correlations of different coordinates.
    vicreg_weights: weights λ, μ and ν that vicreg gives to invariance, variance and covariance.
    target_decay: share of byol's target network that stays at the first update.
    prototypes: number of prototypes of swav.
    negatives: whether the negatives are separate images instead of the batch's other pairs.
    Raises InputError for an unknown name, for an option out of its range, if the objective needs classes and there are
    fewer than two, and if it cannot use separate negatives that are asked for.
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective='{name}' is unknown; choose one of {', '.join(OBJECTIVES)}")
    checks.temperature(temperature)
    checks.above_zero("embedding_noise", embedding_noise)
    given: dict[str, Any] = {
        "reconstruction": reconstruction,
        "masked": masked,
        "patch": patch,
        "redundancy": redundancy,
        "vicreg_weights": tuple(vicreg_weights),
        "target_decay": target_decay,
        "prototypes": prototypes,
    }
    fields.check(Train, given)
    if len(given["vicreg_weights"]) != 3:
        raise InputError(f"vicreg_weights={given['vicreg_weights']}: expected three, as in {Train.vicreg_weights}")
    options = Options(num_classes, axis_name, steps, temperature, embedding_noise, **given)
    made = OBJECTIVES[name](options)
    if made.needs_classes and (num_classes or 0) < 2:
        free = [other for other, constructor in OBJECTIVES.items() if not constructor(options).needs_classes]
        raise InputError(
            f"objective='{name}' needs images of two classes or more, and these have {num_classes or 'no labels'}; "
            f"give labeled images, or choose one of {', '.join(free)}"
        )
    if not negatives:
        return made
    if made.with_negatives is None:
        able = [other for other, constructor in OBJECTIVES.items() if constructor(options).with_negatives]
        raise InputError(
            f"objective='{name}' takes no separate set of negatives; leave it out, or choose one of {', '.join(able)}"
        )
    return made.with_negatives


def _everyone(rows: Array, axis_name: str | None) -> Array:
    return rows if axis_name is None else lax.all_gather(rows, axis_name, tiled=True)


def _unit(z_x: Float[Array, "k d"], z_y: Float[Array, "k_y d_y"]) -> Float[Array, "m d"]:
    """This device's m = 2k embeddings, normalized, at least float32."""
    checks.views(z_x, z_y)
    return unit_rows(jnp.concatenate([z_x, z_y]))


def _scores(
    z: Float[Array, "m d"], others: Float[Array, "m d"], temperature: float | Float[Array, ""], axis_name: str | None
) -> tuple[Float[Array, "m n"], Int[Array, " m"]]:
    """Cosine/temperature of this device's m rows and all devices' n others, and the column of each row's own other."""
    checks.temperature(temperature)
    first = 0 if axis_name is None else len(z) * lax.axis_index(axis_name)
    return (z / temperature) @ _everyone(others, axis_name).T, first + jnp.arange(len(z))


def supcon(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k_y d_y"],
    c_x: Int[Array, " k"],
    c_y: Int[Array, " k_y"],
    temperature: float | Float[Array, ""],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Supervised contrastive loss L_out, in nats: a view's positives are all other views of its class.

    The loss of a view without a positive is 0.
    z_x, z_y: embeddings; this function normalizes them.
    c_x, c_y: their classes.
    Raises InputError if the views differ in shape, or if the temperature is not a finite number above 0.
    Source: Khosla et al. 2020, Eq. 2.
    """
    z = _unit(z_x, z_y)
    scores, own_columns = _scores(z, z, temperature, axis_name)
    classes = jnp.concatenate([c_x, c_y])
    others = own_columns[:, None] != jnp.arange(scores.shape[1])[None, :]
    positive = others & (classes[:, None] == _everyone(classes, axis_name)[None, :])
    positives = jnp.sum(positive, axis=1)
    score = jnp.sum(jnp.where(positive, scores, 0), axis=1) / jnp.maximum(positives, 1)
    losses = logsumexp(jnp.where(others, scores, -jnp.inf), axis=1) - score
    return jnp.mean(jnp.where(positives > 0, losses, 0))


def decoupled(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k_y d_y"],
    temperature: float | Float[Array, ""],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Decoupled contrastive loss, in nats: NT-Xent without the positive in the denominator. It may be negative.

    Positives are not weighted (L_DC, not L_DCW).
    z_x, z_y: embeddings; this function normalizes them.
    Raises InputError if all devices together have only one pair, and as `supcon` does.
    Source: Yeh et al. 2022, section 3.
    """
    z = _unit(z_x, z_y)
    scores, own_columns = _scores(z, z, temperature, axis_name)
    if scores.shape[1] == 2:
        raise InputError("objective='decoupled' has no negatives at k = 1; give 2 pairs or more")
    views = jnp.arange(scores.shape[1])[None, :]
    partner = views == jnp.roll(own_columns, len(z_x))[:, None]
    negative = ~partner & (views != own_columns[:, None])
    positives = jnp.sum(jnp.where(partner, scores, 0), axis=1)
    return jnp.mean(logsumexp(jnp.where(negative, scores, -jnp.inf), axis=1) - positives)


def anchor(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k_y d_y"],
    temperature: float | Float[Array, ""],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """InfoNCE with an anchor class, in nats, over the candidates of NT-Xent: `mi.scoring.anchor_loss` with ν = 1.

    With K pairs on all devices together, a view's negatives are the 2K−2 views of the other pairs. Beside its partner
    it has one fewer, as both terms of the loss need equally many candidates. The one left out is the second view of the
    pair before its own.
    z_x, z_y: embeddings; this function normalizes them.
    Raises InputError if all devices together have only one pair, and as `supcon` does.
    Source: Ryu et al. 2025 (InfoNCE-anchor as an objective of representation learning); Lee et al. 2023, Eq. 2.
    """
    z, k = _unit(z_x, z_y), len(z_x)
    scores, own_columns = _scores(z, z, temperature, axis_name)
    pairs = scores.shape[1] // 2
    if pairs == 1:
        raise InputError("objective='anchor' has no negatives at k = 1; give 2 pairs or more")
    # A device's columns are its first views, then its second views. Negatives are in the order of the pairs, so that
    # the one left out is the same on any number of devices.
    pair = own_columns // (2 * k) * k + own_columns % k
    others = (pair[:, None, None] + jnp.arange(1, pairs)[None, :, None]) % pairs
    columns = others // k * 2 * k + others % k + jnp.array([0, k])[None, None, :]
    negatives = jnp.take_along_axis(scores, columns.reshape(2 * k, -1), axis=1)
    positives = jnp.sum(z * jnp.roll(z, k, axis=0), axis=1) / temperature
    return anchor_loss(positives, negatives, 1.0)


def noisy_mige(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k_y d_y"],
    keys_x: Key[Array, " k"],
    keys_y: Key[Array, " k_y"],
    noise: float | Float[Array, ""],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """`mi.mige` of embeddings plus Gaussian noise, in nats: its gradient is minus that of their MI.

    Without noise the MI of two views would be infinite if one determined the other.
    z_x, z_y: embeddings; this function normalizes them. All devices together need 4d pairs.
    keys_x, keys_y: for each embedding, the key of its noise.
    noise: standard deviation of the noise in each coordinate.
    Raises InputError if the views differ in shape, or if there are too few pairs.
    Source: Wen et al. 2020, Eq. 8.
    """
    checks.views(z_x, z_y)

    def noisy(z: Float[Array, "k d"], keys: Key[Array, " k"]) -> Float[Array, "k d"]:
        return unit_rows(z) + noise * jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(keys)

    return mige(noisy(z_x, keys_x), noisy(z_y, keys_y), axis_name=axis_name)


def nce(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k_y d_y"],
    n_x: Float[Array, "k_n d_n"],
    n_y: Float[Array, "k_m d_m"],
    temperature: float | Float[Array, ""],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """NT-Xent, in nats, with separate images as negatives, which may be of any distribution.

    Both anchors of pair i leave out n_x[i] and n_y[i]. So with K pairs on all devices together, each anchor has 2K−2
    negatives, as in NT-Xent. With n_x = z_x and n_y = z_y, this loss is NT-Xent.
    z_x, z_y: embeddings of the pairs.
    n_x, n_y: embeddings of the negatives, shared by all anchors. This function normalizes all four.
    Raises InputError as `supcon` does.
    Source: Lee et al. 2023, Eq. 2 and appendix C.
    """
    z = _unit(z_x, z_y)
    scores, own_columns = _scores(z, _unit(n_x, n_y), temperature, axis_name)
    k, column = len(z_x), jnp.arange(scores.shape[1])[None, :]
    left_out = (column == own_columns[:, None]) | (column == jnp.roll(own_columns, k)[:, None])
    positive = jnp.sum(z * jnp.roll(z, k, axis=0), axis=1) / temperature
    candidates = jnp.concatenate([positive[:, None], jnp.where(left_out, -jnp.inf, scores)], axis=1)
    return jnp.mean(logsumexp(candidates, axis=1) - positive)


def cross_entropy(
    z_x: Float[Array, "k c"], z_y: Float[Array, "k c"], c_x: Int[Array, " k"], c_y: Int[Array, " k"]
) -> Float[Array, ""]:
    """Cross-entropy of both views' classes, in nats.

    z_x, z_y: logits of the classes 0 to c − 1.
    c_x, c_y: the classes.
    Source: supervised learning as in Lee et al. 2023, Table I; with turns as classes, Gidaris et al. 2018, section 3.1,
    who use all four turns of each image.
    """
    z = jnp.concatenate([z_x, z_y])
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    classes = jnp.concatenate([c_x, c_y])
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(z, classes))


def autoencoder(
    z_x: Float[Array, "k c"],
    z_y: Float[Array, "k c"],
    *,
    decoded: Float[Array, "v k s s 3"],
    images: Float[Array, "v k s s 3"],
) -> Float[Array, ""]:
    """Squared error of a pixel, the mean over both views.

    z_x, z_y: of no use.
    decoded: the decoder's outputs for both views.
    images: both views, on the scale [-1, 1].
    Source: Gosch 2020, eq. 16 with λ = ∞.
    """
    del z_x, z_y
    return jnp.mean(_squared_errors(decoded, images))


def supervised_autoencoder(
    z_x: Float[Array, "k c"],
    z_y: Float[Array, "k c"],
    c_x: Int[Array, " k"],
    c_y: Int[Array, " k"],
    *,
    decoded: Float[Array, "v k s s 3"],
    images: Float[Array, "v k s s 3"],
    reconstruction: float,
) -> Float[Array, ""]:
    """Cross-entropy of both views' classes, in nats, plus λ times the squared error of a pixel.

    z_x, z_y, c_x, c_y: see `cross_entropy`.
    decoded, images: see `autoencoder`.
    reconstruction: λ.
    Source: Gosch 2020, eq. 16. Its squared norm counts as a mean over pixels, because the errors in Table 3 are means.
    """
    return cross_entropy(z_x, z_y, c_x, c_y) + reconstruction * autoencoder(z_x, z_y, decoded=decoded, images=images)


def masked(
    z_x: Float[Array, "k c"],
    z_y: Float[Array, "k c"],
    keys_x: Key[Array, " k"],
    keys_y: Key[Array, " k"],
    *,
    decoded: Float[Array, "v k s s 3"],
    images: Float[Array, "v k s s 3"],
    share: float,
    patch: int,
) -> Float[Array, ""]:
    """Squared error of a hidden pixel, the mean over both views. Pixels that the encoder sees don't count.

    The encoder sees images whose hidden patches `hide` has filled. It may be any encoder: unlike the vision transformer
    of He et al., it computes on hidden patches too, and the decoder reads its features, not the patches' tokens.
    z_x, z_y: of no use.
    decoded, images: see `autoencoder`.
    keys_x, keys_y, share, patch: see `hidden_pixels`.
    Source: He et al. 2022 (masked autoencoders), section 3.
    """
    del z_x, z_y
    drawn = [hidden_pixels(keys, side=images.shape[2], share=share, patch=patch) for keys in (keys_x, keys_y)]
    hidden = jnp.stack(drawn)[..., None]
    # Each image has equally many hidden pixels, so this is the mean over images, too.
    return jnp.mean(_squared_errors(decoded, images), where=hidden)


def hide(
    images: Float[Array, "n s s 3"], keys: Key[Array, " n"], *, share: float, patch: int
) -> Float[Array, "n s s 3"]:
    """The images with a random share of their patches filled by 0, the middle of the scale [-1, 1].

    keys, share, patch: see `hidden_pixels`.
    """
    hidden = hidden_pixels(keys, side=images.shape[1], share=share, patch=patch)
    return jnp.where(hidden[..., None], jnp.zeros_like(images), images)


def hidden_pixels(keys: Key[Array, " n"], *, side: int, share: float, patch: int) -> Bool[Array, "n s s"]:
    """Whether each pixel is hidden: of each image equally many patches, drawn by its key.

    keys: one an image.
    side: pixels. The images' side.
    share: of the patches that are hidden. Their number is rounded, but one patch at least is hidden, and one is not.
    patch: pixels. The side of a patch.
    Raises InputError as `patches_across` does.
    """
    across = patches_across(side, patch)
    hidden = min(max(round(share * across**2), 1), across**2 - 1)

    def patches(key: Key[Array, ""]) -> Bool[Array, " p"]:
        return jax.random.permutation(key, across**2) < hidden

    drawn = jax.vmap(patches)(keys).reshape(-1, across, across)
    return jnp.repeat(jnp.repeat(drawn, patch, axis=1), patch, axis=2)


def patches_across(side: int, patch: int) -> int:
    """The number of patches along a side of an image.

    side, patch: pixels. The sides of the image and of a patch.
    Raises InputError if they are not whole patches, or only one.
    """
    if side % patch or side == patch:
        fit = [size for size in range(1, side) if side % size == 0]
        raise InputError(
            f"patch={patch}: images of {side} pixels are not cut into whole patches, two or more along a side; "
            f"choose one of {', '.join(map(str, fit))}"
        )
    return side // patch


def _squared_errors(decoded: Float[Array, "v k s s 3"], images: Float[Array, "v k s s 3"]) -> Float[Array, "v k s s 3"]:
    """Of every pixel, at least float32."""
    dtype = jnp.promote_types(decoded.dtype, jnp.float32)
    return (decoded.astype(dtype) - images.astype(dtype)) ** 2
