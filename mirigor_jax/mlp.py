"""MLPs on frozen features, fitted until validation stops improving: the non-linear probe, and a map of vectors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

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
HIDDEN = (512, 512, 512)  # widths of the hidden layers
RATE = 5e-4  # learning rate of Adam
LAST = f"Dense_{len(HIDDEN)}"  # the last layer of an MLP of these widths, in its parameters

Loss = Callable[[Array, Array], Array]  # (outputs, labels or targets) → its mean over the rows


class Network(nn.Module):
    """Dense layers with an activation and dropout, then a linear layer: (n, d) → (n, outputs). No layers: affine."""

    outputs: int
    hidden: tuple[int, ...]
    dropout: tuple[float, ...]
    activation: Literal["elu", "relu"]

    @nn.compact
    def __call__(self, h: Float[Array, "n d"], deterministic: bool = True) -> Float[Array, "n c"]:
        for width, rate in zip(self.hidden, self.dropout, strict=True):
            h = nn.Dropout(rate)(getattr(nn, self.activation)(nn.Dense(width)(h)), deterministic)
        return nn.Dense(self.outputs)(h)


@dataclass(frozen=True)
class MLPProbe:
    """An MLP on features that are standardized by the fit part's mean and scale; `step`: its steps of training."""

    classifier: Network
    params: Any
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    temperature: float
    validation_accuracy: float
    step: int

    @property
    def num_classes(self) -> int:
        return self.classifier.outputs

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
    hidden: Sequence[int] = HIDDEN,
    dropout: Sequence[float] = (0.5, 0.3, 0.2),
    learning_rate: float = RATE,
    weight_decay: float = 2.5e-5,
    max_steps: int = 20_000,
    patience: int = 500,
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
    classes = check_part(features, labels, num_classes, "fit")
    truth = check_part(validation_features, validation_labels, num_classes, "validation")
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
    classifier = Network(num_classes, tuple(hidden), tuple(dropout), "elu")
    part = jax.device_put((standardize(features, mean, scale), classes))
    validation = jax.device_put((standardize(validation_features, mean, scale), truth))
    init_key, fit_key = jax.random.split(jax.random.key(seed))
    state = fitting.fresh(
        classifier.init(init_key, part[0][:1])["params"], adam(learning_rate, weight_decay), np.float32
    )
    state = _fit(
        state,
        part,
        validation,
        fit_key,
        classifier=classifier,
        loss=_cross_entropy,
        words=("the MLP probe", "log-loss {:.3f} nats on validation"),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        max_steps=max_steps,
        patience=patience,
        on_progress=on_progress,
    )
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


def fit_mlp_map(
    features: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n q"],
    *,
    validation_features: Float[np.ndarray, "m d"],
    validation_targets: Float[np.ndarray, "m q"],
    max_steps: int,
    patience: int = 500,
    learning_rate: float = RATE,
    seed: int = 0,
    on_progress: fitting.OnProgress | None = None,
) -> Callable[[Float[np.ndarray, "k d"]], Float[np.ndarray, "k q"]]:
    """Minimize the mean squared error of an MLP's outputs by Adam, with 512 rows a step; no dropout, no weight decay.

    At the start all outputs are 0. As in `fit_mlp`, the step with the least error on validation is kept, the start
    included, and the fit ends `patience` steps after it, or at max_steps.
    max_steps, patience, learning_rate, seed, on_progress: as in `fit_mlp`.
    Returns the map, features → predicted targets in float64.
    Raises InputError at the next evaluation if a loss is not finite.
    """
    mean, scale = mean_and_scale(features)
    unit = float(np.sqrt(np.mean(np.square(targets)))) or 1.0
    network = Network(targets.shape[1], HIDDEN, (0.0,) * len(HIDDEN), "elu")
    part, validation = (
        jax.device_put((standardize(x, mean, scale), (y / unit).astype(np.float32)))
        for x, y in ((features, targets), (validation_features, validation_targets))
    )
    init_key, fit_key = jax.random.split(jax.random.key(seed))
    params = network.init(init_key, part[0][:1])["params"]
    params = {**params, LAST: jax.tree.map(jnp.zeros_like, params[LAST])}
    state = fitting.fresh(params, adam(learning_rate, 0.0), np.float32)
    state = state._replace(best_nats=-_squared_error(jnp.zeros_like(validation[1]), validation[1]))
    state = _fit(
        state,
        part,
        validation,
        fit_key,
        classifier=network,
        loss=_squared_error,
        words=("the MLP map", "squared error {:.4g} on validation, in units of the fit part's mean square"),
        learning_rate=learning_rate,
        weight_decay=0.0,
        max_steps=max_steps,
        patience=patience,
        on_progress=on_progress,
    )
    best = jax.device_get(state.best_params)
    return lambda x: unit * np.asarray(_scores(network, best, standardize(x, mean, scale)), np.float64)


def _cross_entropy(logits: Float[Array, "n c"], labels: Array) -> Float[Array, ""]:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def _squared_error(outputs: Float[Array, "n q"], targets: Float[Array, "n q"]) -> Float[Array, ""]:
    return jnp.mean((outputs - targets) ** 2)


def _fit(
    state: fitting.CriticState,
    part: tuple[Array, Array],
    validation: tuple[Array, Array],
    key: Array,
    *,
    classifier: Network,
    loss: Loss,
    words: tuple[str, str],
    learning_rate: float,
    weight_decay: float,
    max_steps: int,
    patience: int,
    on_progress: fitting.OnProgress | None,
) -> fitting.CriticState:
    """Advance until nothing has improved on validation for `patience` steps, or by max_steps.

    words: the network's name in messages, and the note of an evaluation, with a place for its loss.
    """
    options = {"classifier": classifier, "loss": loss, "learning_rate": learning_rate, "weight_decay": weight_decay}
    while state.step < max_steps and state.step - state.best_step < patience:
        state, looked = _chunk(state, part, validation, key, **options)
        fitting.check_finite(looked, [words[0]], int(state.step), learning_rate, int(state.best_step))
        if on_progress is not None:
            note = words[1].format(-float(looked["validation_nats"]))
            on_progress(min(int(state.step), max_steps), max_steps, note)
    return state


def adam(learning_rate: float | Array, weight_decay: float | Array) -> optax.GradientTransformation:
    """Adam whose gradients have a weight decay added."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate))


@partial(jax.jit, static_argnames=("classifier", "loss"))
def _chunk(
    state: fitting.CriticState,
    part: tuple[Array, Array],
    validation: tuple[Array, Array],
    key: Array,
    *,
    classifier: Network,
    loss: Loss,
    learning_rate: float | Array,
    weight_decay: float | Array,
) -> tuple[fitting.CriticState, dict[str, Array]]:
    """Take EVAL_EVERY steps on batches of the fit part (features, targets), then evaluate on validation."""

    def loss_of(params, x, targets, dropout):
        rngs = {} if dropout is None else {"dropout": dropout}
        return loss(classifier.apply({"params": params}, x, dropout is None, rngs=rngs), targets)

    def step(state, frozen, part, key):
        row_key, dropout = jax.random.split(key)
        rows = jax.random.randint(row_key, (BATCH,), 0, len(part[0]))
        value, gradients = jax.value_and_grad(loss_of)(state.params, *(x[rows] for x in part), dropout)
        return fitting.update(state, adam(learning_rate, weight_decay), gradients), -value

    def validate(params, x, targets):
        return (-loss_of(params, x, targets, None),)

    keys = jax.random.split(jax.random.fold_in(key, state.step), EVAL_EVERY)
    return fitting.fit_chunk(state, {}, part, validation, keys, step=step, validate=validate, streamed=False)


@partial(jax.jit, static_argnames="classifier")
def _scores(classifier: Network, params: Any, x: Float[np.ndarray | Array, "n d"]) -> Float[Array, "n c"]:
    logits: Any = classifier.apply({"params": params}, x)
    return logits
