"""The training step of a joint critic as in Gosch 2020: Adam at a constant rate, and a value before each update."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mirigor_jax.fitting import CriticState, fresh, update
from mirigor_jax.mi.critics import JointCritic
from mirigor_jax.mi.estimators import Estimator
from mirigor_jax.mi.fit import Negatives, draw_partners, read_batch


@dataclass(frozen=True)
class CriticTraining:
    """How a critic is trained: by Adam at a constant rate.

    estimator: its loss trains the critic.
    readers: estimators whose values are read from the same scores.
    k: pairs a batch.
    weight_decay: is added to the gradient as `weight_decay` times the parameters.
    """

    critic: JointCritic
    estimator: Estimator
    readers: tuple[Estimator, ...]
    negatives: Negatives
    k: int
    learning_rate: float
    weight_decay: float

    @property
    def optimizer(self) -> optax.GradientTransformation:
        adam = optax.adam(self.learning_rate)
        return optax.chain(optax.add_decayed_weights(self.weight_decay), adam) if self.weight_decay else adam


def start(seed: Array | int, widths: tuple[int, int], training: CriticTraining) -> CriticState:
    """A fresh critic. widths: of x and of y."""
    x, y = (jnp.zeros((2, width)) for width in widths)
    params = training.critic.init(jax.random.key(seed), x, y, method="scores")["params"]
    carry = jax.tree.map(jnp.float32, training.estimator.carry)
    return fresh(params, training.optimizer, x.dtype)._replace(carry=carry)


def step(
    state: CriticState,
    x: Float[Array, "k p"],
    y: Float[Array, "k q"],
    keys: tuple[Array, Array],
    training: CriticTraining,
) -> tuple[CriticState, Float[Array, " r"]]:
    """Read a batch, and update the critic on it.

    keys: of the negatives and of the dropout.
    Returns the next state and the value of each reader before the update, in nats; dropout is off when they read.
    """
    partners = draw_partners(training.negatives, keys[0], training.k)

    def scores(params: Any, deterministic: bool) -> Array:
        apply: Any = partial(training.critic.apply, rngs={"dropout": keys[1]}, method="scores")
        return apply({"params": params}, x, y, partners, deterministic=deterministic)

    def loss(params: Any) -> tuple[Array, tuple[Any, Array]]:
        trained = scores(params, not training.critic.dropout)
        value, carry = training.estimator.loss(state.carry, *read_batch(trained, partners, training.estimator))
        return value, (carry, trained)

    (_, (carry, trained)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    read = scores(state.params, True) if training.critic.dropout else trained
    values = jnp.stack([reader.value(*read_batch(read, partners, reader)) for reader in training.readers])
    return update(state, training.optimizer, gradients)._replace(carry=carry), values
