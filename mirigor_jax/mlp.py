"""The non-linear probe: an MLP on frozen features, fitted until validation stops improving."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from mirigor_jax import checks, fitting
from mirigor_jax.errors import InputError
from mirigor_jax.softmax import Classes, best_temperature, check_part, mean_and_scale, standardize

BATCH = 512
EVAL_EVERY = 100  # steps between evaluations on validation


class Classifier(nn.Module):
    """Dense layers with ELU and dropout, then a linear layer: (n, d) → class scores (n, num_classes)."""

    num_classes: int
    hidden: tuple[int, ...]
    dropout: tuple[float, ...]

    @nn.compact
    def __call__(self, h: Float[Array, "n d"], deterministic: bool = True) -> Float[Array, "n c"]:
        for width, rate in zip(self.hidden, self.dropout, strict=True):
            h = nn.Dropout(rate)(nn.elu(nn.Dense(width)(h)), deterministic)
        return nn.Dense(self.num_classes)(h)


@dataclass(frozen=True)
class MLPProbe:
    """An MLP on features that are standardized by the fit part's mean and scale; `step`: its steps of training."""

    classifier: Classifier
    params: Any
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    temperature: float
    validation_accuracy: float
    step: int

    @property
    def num_classes(self) -> int:
        return self.classifier.num_classes

    def logits(self, features: Float[np.ndarray | Array, "n d"]) -> Float[np.ndarray, "n c"]:
        """Class scores (n, c), before the temperature."""
        return np.asarray(_scores(self.classifier, self.params, standardize(features, self.mean, self.scale)))


def fit_mlp(
    features: Float[np.ndarray | Array, "n d"],
    labels: Classes,
    num_classes: int,
    *,
    validation_features: Float[np.ndarray | Array, "m d"],
    validation_labels: Classes,
    hidden: Sequence[int] = (512, 512, 512),
    dropout: Sequence[float] = (0.5, 0.3, 0.2),
    learning_rate: float = 5e-4,
    weight_decay: float = 2.5e-5,
    max_steps: int = 20_000,
    patience: int = 2000,
    seed: int = 0,
    on_progress: fitting.OnProgress | None = None,
) -> MLPProbe:
    """Minimize cross-entropy + weight_decay/2 |parameters|^2 by Adam, with 512 images a step.

    Every 100 steps the MLP is evaluated on validation, and the one with the least log-loss there is kept. The fit ends
    at the first evaluation that follows `patience` steps without improvement, or max_steps steps in all. The
    temperature is then chosen to minimize that log-loss.
    hidden: widths of the hidden layers. dropout: their rates, one for each.
    learning_rate: above 0. weight_decay: 0 or more.
    seed: seeds the parameters, the batches and the dropout.
    on_progress: called as on_progress(step, steps, note) at every evaluation.
    Raises InputError as `fit_linear` does, if the numbers of dropout rates and hidden layers differ, for options out of
    range, and at the next evaluation if a loss is not finite.
    Source: Gosch 2020, C.2. Those fits last 1000 epochs, and none of their steps is chosen on validation.
    """
    check_part(features, labels, num_classes, "fit")
    check_part(validation_features, validation_labels, num_classes, "validation")
    if len(hidden) != len(dropout):
        raise InputError(f"{len(hidden)} hidden layers, {len(dropout)} dropout rates: expected one rate for each")
    for width in hidden:
        checks.whole("hidden", width, 1)
    for rate in dropout:
        if not 0 <= checks.number("dropout", rate) < 1:
            raise InputError(f"dropout = {rate}: expected in [0, 1)")
    checks.above_zero("learning_rate", learning_rate)
    checks.not_negative("weight_decay", weight_decay)
    for name, steps in {"max_steps": max_steps, "patience": patience}.items():
        checks.whole(name, steps, 1)
    checks.seed(seed)
    mean, scale = mean_and_scale(features)
    classifier = Classifier(num_classes, tuple(hidden), tuple(dropout))
    part = jax.device_put((standardize(features, mean, scale), np.asarray(labels).astype(np.int32)))
    truth = np.asarray(validation_labels).astype(np.int32)
    validation = jax.device_put((standardize(validation_features, mean, scale), truth))
    init_key, fit_key = jax.random.split(jax.random.key(seed))
    state = fitting.fresh(
        classifier.init(init_key, part[0][:1])["params"], _adam(learning_rate, weight_decay), np.float32
    )
    options = {"classifier": classifier, "learning_rate": learning_rate, "weight_decay": weight_decay}
    while state.step < max_steps and state.step - state.best_step < patience:
        state, looked = _chunk(state, part, validation, fit_key, **options)
        fitting.check_finite(looked, ["the MLP probe"], int(state.step), learning_rate, int(state.best_step))
        if on_progress is not None:
            loss_nats = -float(looked["validation_nats"])
            on_progress(min(int(state.step), max_steps), max_steps, f"log-loss {loss_nats:.3f} nats on validation")
    params = jax.device_get(state.best_params)
    logits = np.asarray(_scores(classifier, params, validation[0]))
    return MLPProbe(
        classifier=classifier,
        params=params,
        mean=mean,
        scale=scale,
        temperature=best_temperature(logits, truth),
        validation_accuracy=float(np.mean(logits.argmax(axis=1) == truth)),
        step=int(state.best_step),
    )


def _adam(learning_rate: float | Array, weight_decay: float | Array) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate))


@partial(jax.jit, static_argnames="classifier")
def _chunk(
    state: fitting.CriticState,
    part: tuple[Array, Array],
    validation: tuple[Array, Array],
    key: Array,
    *,
    classifier: Classifier,
    learning_rate: float | Array,
    weight_decay: float | Array,
) -> tuple[fitting.CriticState, dict[str, Array]]:
    """Take EVAL_EVERY steps on batches of the fit part (features, labels), then evaluate on validation."""

    def loss_nats(params, x, labels, dropout):
        rngs = {} if dropout is None else {"dropout": dropout}
        logits = classifier.apply({"params": params}, x, dropout is None, rngs=rngs)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def step(state, frozen, part, key):
        row_key, dropout = jax.random.split(key)
        rows = jax.random.randint(row_key, (BATCH,), 0, len(part[0]))
        loss, gradients = jax.value_and_grad(loss_nats)(state.params, *(x[rows] for x in part), dropout)
        return fitting.update(state, _adam(learning_rate, weight_decay), gradients), -loss

    def validate(params, x, labels):
        return (-loss_nats(params, x, labels, None),)

    keys = jax.random.split(jax.random.fold_in(key, state.step), EVAL_EVERY)
    return fitting.fit_chunk(state, {}, part, validation, keys, step=step, validate=validate, streamed=False)


@partial(jax.jit, static_argnames="classifier")
def _scores(classifier: Classifier, params: Any, x: Float[np.ndarray | Array, "n d"]) -> Float[Array, "n c"]:
    logits: Any = classifier.apply({"params": params}, x)
    return logits
