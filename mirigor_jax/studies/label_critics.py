"""Critics of features and labels: their values over training on validation, and an honest reading on test rows.

After Gosch 2020, section 4 and appendix D.1. y is the one-hot label, and a permutation of the batch's labels gives the
negatives. The paper reports the largest value over training on validation. That is biased up, and a plug-in may be
largest where the critic is bad. So the reading here takes the epoch at which the critic's own objective is best on
validation, and the value from test rows, which it reads once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from mirigor_jax.errors import InputError
from mirigor_jax.fitting import CriticState, OnProgress
from mirigor_jax.mi.confidence import BATCHES, interval_of
from mirigor_jax.mi.critics import Activation, JointCritic
from mirigor_jax.mi.estimators import Estimator, resolve
from mirigor_jax.mi.fit import draw_partners, read_batch
from mirigor_jax.mi.usable_fit import clipped
from mirigor_jax.settings import Arrays
from mirigor_jax.softmax import mean_and_scale, standardize
from mirigor_jax.studies import critic_steps
from mirigor_jax.studies.critic_steps import CriticTraining

LEAST_BATCHES = 8  # fewest test batches for an interval over batches


class Architecture(NamedTuple):
    """A critic of the paper.

    layers: number of hidden layers.
    readers: estimators that read it.
    dropout: rate of each hidden layer; (): none.
    """

    layers: int
    readers: tuple[str, ...]
    dropout: tuple[float, ...]
    weight_decay: float


# Estimator whose loss trains a critic → the paper's critic. That of JS is read as a plug-in and, at f + 1, by NWJ.
CRITICS = {
    "mine": Architecture(2, ("mine",), dropout=(), weight_decay=0.0),
    "nwj": Architecture(2, ("nwj",), dropout=(), weight_decay=0.0),
    "js": Architecture(3, ("js", "js_nwj"), dropout=(0.5, 0.3, 0.2), weight_decay=2.5e-5),
}


class Part(NamedTuple):
    """Features of n rows and their classes, from 0."""

    h: Float[np.ndarray, "n d"]
    classes: Int[np.ndarray, " n"]


class Parts(NamedTuple):
    """The rows that train critics, those that choose the epoch, and those that are read once. No row is in two."""

    fit: Part
    validation: Part
    test: Part


@dataclass(frozen=True)
class Reading:
    """What an estimator reads from one critic's training. Bits.

    curve: its value on validation after each epoch; negatives are shuffled labels, as in training.
    largest: the largest of them, the paper's estimate. It is biased up.
    epoch: the epoch, from 1, at which the objective of the critic's training is best on validation. For MINE and NWJ
        it is that of the largest value. A plug-in may be largest where the critic is bad.
    value, lower, upper: the value on test rows of the critic of that epoch, and its interval. Negatives are all
        classes, weighted by their frequencies.
    """

    curve: Float[np.ndarray, " e"]
    largest: float
    epoch: int
    value: float
    lower: float
    upper: float


def training_of(
    name: str, width: int, *, k: int, learning_rate: float, activation: Activation = "relu"
) -> CriticTraining:
    """How the paper trains a critic.

    name: a key of CRITICS.
    width: of each hidden layer; the paper has 512. k: pairs a batch. learning_rate: the paper has 1e-4.
    """
    own = CRITICS[name]
    return CriticTraining(
        critic=JointCritic((width,) * own.layers, activation, own.dropout or 0.0),
        estimator=resolve(name),
        readers=tuple(map(resolve, own.readers)),
        negatives="shuffle",
        k=k,
        learning_rate=learning_rate,
        weight_decay=own.weight_decay,
    )


def fit(
    parts: Parts,
    frequencies: Float[np.ndarray, " c"],
    training: CriticTraining,
    *,
    epochs: int,
    seed: int,
    on_progress: OnProgress,
) -> dict[str, Reading]:
    """Train a critic of features and one-hot labels for some epochs, and read it.

    frequencies: p(c), by which negatives are weighted when test rows are read.
    epochs: passes over the fit rows; rows that fill no batch are left out of a pass.
    seed: of the critic's start, the batches, the negatives and the dropout.
    on_progress: called as on_progress(epoch, epochs, note) after every epoch.
    Returns the name of each reader → its reading.
    Raises InputError if a part has too few rows for its batches, and if the critic diverges.
    Source: Gosch 2020, appendix D.1.
    """
    _check(parts, training.k)
    width = parts.fit.h.shape[1]
    labels = _label_rows(len(frequencies), width)
    arrays = [(jnp.asarray(x), labels[part.classes]) for x, part in zip(_feature_rows(parts), parts, strict=True)]
    state = critic_steps.start(seed, (width, len(frequencies)), training)
    best, chosen, params = -math.inf, 0, state.params
    curves = []
    for epoch in range(1, epochs + 1):
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        state, values, objective = _epoch(state, *arrays[:2], key, training)
        curves.append(np.asarray(values) / math.log(2))
        if float(objective) > best:
            best, chosen, params = float(objective), epoch, state.params
        on_progress(epoch, epochs, f"{training.estimator.name} {curves[-1][0]:z.3f} bits on validation")
    if not math.isfinite(best):
        raise InputError(
            f"learning_rate={training.learning_rate:g}: the {training.estimator.name} critic diverged; lower it"
        )
    x, classes = (
        values[: len(values) // training.k * training.k].reshape(-1, training.k, *values.shape[1:])
        for values in (arrays[2][0], jnp.asarray(parts.test.classes))
    )
    weights, result = jnp.asarray(frequencies, jnp.float32), {}
    for reader, curve in zip(training.readers, np.stack(curves, axis=1), strict=True):
        nats = np.asarray(_read(params, x, classes, weights, critic=training.critic, reader=reader), float)
        interval = interval_of(nats, Arrays.confidence, BATCHES)
        assert interval is not None  # `_check` asks for several batches
        value, ends = float(nats.mean()) / math.log(2), (interval.lower_bits, interval.upper_bits)
        result[reader.name] = Reading(curve, float(curve.max()), chosen, value, *ends)
    return result


def _feature_rows(parts: Parts) -> list[Float[np.ndarray, "_ d"]]:
    """The standardized features of each part. Rows longer than every fit row are shortened to the longest of these.

    A feature that is nearly constant on the fit rows can make a single other row a hundred times as long. A critic may
    give it any score, and one e^f then decides the mean.
    """
    mean, scale = mean_and_scale(parts.fit.h)
    rows = [standardize(part.h, mean, scale) for part in parts]
    longest = float(np.linalg.norm(rows[0], axis=1).max())
    return [clipped(x, longest).astype(np.float32) for x in rows]


def _label_rows(count: int, width: int) -> Float[Array, "c c"]:
    """The y of each class: its one-hot vector, as long as a standardized row of features.

    A label of length 1 beside 1,176 features would hardly move the first layer, and a critic would take hundreds of
    steps to begin.
    """
    return math.sqrt(width) * jnp.eye(count)


def _check(parts: Parts, k: int) -> None:
    for name, least in (("fit", 1), ("validation", 1), ("test", LEAST_BATCHES)):
        n = len(getattr(parts, name).h)
        if n < least * k:
            raise InputError(f"{n:,} {name} rows: expected {least * k:,} or more, {least} batches of {k}; give more")


@partial(jax.jit, static_argnames="training")
def _epoch(
    state: CriticState,
    fitted: tuple[Array, Array],
    validation: tuple[Array, Array],
    key: Array,
    training: CriticTraining,
) -> tuple[CriticState, Float[Array, " r"], Float[Array, ""]]:
    """Train a critic for an epoch, and read it on validation's batches, which have the same negatives every time.

    Returns its state, each reader's mean value, and the mean objective of its training, in nats.
    """
    order_key, key = jax.random.split(key)

    def one(state: CriticState, batch: tuple[Array, Array]) -> tuple[CriticState, Array]:
        rows, key = batch
        partner_key, dropout = jax.random.split(key)
        x, y = (values[rows] for values in fitted)
        return critic_steps.step(state, x, y, (partner_key, dropout), training)

    batches = len(fitted[0]) // training.k
    rows = jax.random.permutation(order_key, len(fitted[0]))[: batches * training.k].reshape(batches, training.k)
    state, _ = lax.scan(one, state, (rows, jax.random.split(key, batches)))

    first_carry = jax.tree.map(jnp.float32, training.estimator.carry)

    def read(batch: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        x, y, key = batch
        partners = draw_partners(training.negatives, key, training.k)
        scores: Any = training.critic.apply({"params": state.params}, x, y, partners, method="scores")
        values = jnp.stack([reader.value(*read_batch(scores, partners, reader)) for reader in training.readers])
        loss, _ = training.estimator.loss(first_carry, *read_batch(scores, partners, training.estimator))
        return values, -loss

    whole = len(validation[0]) // training.k
    x, y = (v[: whole * training.k].reshape(whole, training.k, v.shape[1]) for v in validation)
    values, objectives = lax.map(read, (x, y, jax.random.split(jax.random.key(0), whole)))
    return state, jnp.mean(values, axis=0), jnp.mean(objectives)


@partial(jax.jit, static_argnames=("critic", "reader"))
def _read(
    params: Mapping[str, Any],
    x: Float[Array, "b k d"],
    classes: Int[Array, "b k"],
    frequencies: Float[Array, " c"],
    *,
    critic: JointCritic,
    reader: Estimator,
) -> Float[Array, " b"]:
    """The reader's value of each batch, in nats. Each row's negatives are all classes c, with weights p(c)."""
    count = len(frequencies)
    # Readers weigh all negatives alike: adding log(count p) to a score gives its e^f the weight p.
    weights = jnp.log(count * frequencies)[None]

    def one(batch: tuple[Array, Array]) -> Array:
        rows, own = batch
        scores: Any = critic.apply({"params": params}, rows, _label_rows(count, rows.shape[1]), method="scores")
        return reader.value(jnp.take_along_axis(scores, own[:, None], axis=1)[:, 0], scores + weights)

    return lax.map(one, (x, classes))
