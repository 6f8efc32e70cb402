"""Fits in chunks: one dispatch scans many steps and evaluates on validation; the best parameters there are kept."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float

from mirigor_jax.errors import InputError

OnProgress = Callable[[int, int, str], None]  # (step, number of steps, a note on validation)


@dataclass
class StepCounter:
    """Counts the finished steps of a job, and reports each to on_progress."""

    on_progress: OnProgress | None
    steps: int
    done: int = 0

    def count(self, note: str) -> None:
        self.done += 1
        self._report(note)

    def within(self, what: str, step: int, steps: int, note: str) -> None:
        """Report how far a step of the job is, and count no step. what: names that step."""
        self._report(f"{what}: {step:,} of {steps:,} steps, {note}")

    def _report(self, note: str) -> None:
        if self.on_progress is not None:
            self.on_progress(self.done, self.steps, note)


class CriticState(NamedTuple):
    """A critic (or probe) in training, its best parameters on validation so far, and their value there in nats."""

    step: Array
    params: Any
    opt_state: Any
    best_params: Any
    best_nats: Array
    best_step: Array
    carry: Any = ()  # of the objective, if it has one (MINE)


class Evaluation(NamedTuple):
    """An evaluation of a fit at a step: InfoNCE (or the estimator's objective) of the fit part and of validation."""

    step: int
    fit_nats: float
    validation_nats: float


def in_batches(rows: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, "b k d"]:
    """Disjoint batches of k rows; left-over rows are not used."""
    return rows[: len(rows) // k * k].reshape(-1, k, rows.shape[1])


def fresh(params: Any, optimizer: optax.GradientTransformation, dtype: Any) -> CriticState:
    """The state before any step and any evaluation on validation."""
    zero = jnp.zeros((), jnp.int32)
    return CriticState(zero, params, optimizer.init(params), params, jnp.full((), -jnp.inf, dtype), zero)


def update(state: CriticState, optimizer: optax.GradientTransformation, gradients: Any) -> CriticState:
    """The state after one step along the gradients."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state)


def fit_chunk(
    state: CriticState,
    frozen: Any,
    batch: Any,
    validation: tuple[Any, Any],
    keys: Array,
    *,
    step: Callable[..., tuple[CriticState, Array]],
    validate: Callable[..., tuple[Array, ...]],
    streamed: bool,
) -> tuple[CriticState, dict[str, Array]]:
    """Take one step for each key in one scan, then evaluate on validation and keep the best parameters so far.

    frozen, batch: passed to every step.
    step: (state, frozen, batch, key) → (the next state, its value in nats).
    validate: (params, *validation) → values in nats; the mean of the first decides.
    streamed: whether `batch` has a leading axis with one batch for each step. If not, every step draws from `batch`.
    Returns the state, and the mean of the steps' values and validation's value.
    """
    if streamed:
        state, fitted = lax.scan(lambda s, x: step(s, frozen, x[0], x[1]), state, (batch, keys))
    else:
        state, fitted = lax.scan(lambda s, key: step(s, frozen, batch, key), state, keys)
    value = jnp.mean(validate(state.params, *validation)[0])
    better = value > state.best_nats
    best = jax.tree.map(partial(jnp.where, better), state.params, state.best_params)
    state = state._replace(
        best_params=best,
        best_nats=jnp.where(better, value, state.best_nats),
        best_step=jnp.where(better, state.step, state.best_step),
    )
    return state, {"fit_nats": jnp.mean(fitted), "validation_nats": value}


def check_finite(
    seen: Mapping[str, Array], fitted: Sequence[str], step: int, learning_rate: float, best_step: int | None = None
) -> None:
    """Raises InputError if a value is not finite: the loss of a step, or validation's value after the last step.

    seen: the values that `fit_chunk` returns, one for each fit. fitted: the name of each fit, for the message.
    step: steps taken. best_step: the step at which validation was best; None: the message does not say it.
    """
    fit_nats, validation_nats = (np.asarray(seen[f"{part}_nats"]).reshape(-1) for part in ("fit", "validation"))
    bad = np.flatnonzero(~np.isfinite(fit_nats) | ~np.isfinite(validation_nats))
    if not len(bad):
        return
    # The fit part's values come from the parameters before each update, validation's from those after the last.
    at = "at its last update, by " if np.isfinite(fit_nats[bad[0]]) else "by "
    kept = "" if best_step is None else f" (validation was best at step {best_step:,})"
    raise InputError(
        f"learning_rate={learning_rate:g}: {fitted[bad[0]]} diverged {at}step {step:,} (fit {fit_nats[bad[0]]:g}, "
        f"validation {validation_nats[bad[0]]:g} nats), as updates grew too large; lower it{kept}"
    )


@jax.jit
def _all_finite(leaves: list[Array]) -> Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


def is_finite(tree: Any) -> bool:
    """Whether all floating-point numbers of the tree are finite. The devices that hold it compute one answer."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if jax.default_backend() == "cpu" and jax.process_count() == 1:  # NumPy reads them in place, without compiling
        return all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves)
    return not leaves or bool(_all_finite(leaves))


def run(
    state: CriticState,
    advance: Callable[[CriticState, int], tuple[CriticState, dict[str, Array]]],
    *,
    steps: int,
    stride: int,
    patience: int,
    learning_rate: float,
    fitted: Sequence[str],
    on_progress: OnProgress | None = None,
) -> tuple[CriticState, tuple[Evaluation, ...]]:
    """Advance by `stride` steps up to `steps`, or until no critic has improved on validation for `patience` steps.

    advance: (state, steps done) → (the next state, the values of its evaluation, one for each critic).
    learning_rate: at the first step, for messages. fitted: the name of each critic, for messages.
    on_progress: called as on_progress(step, steps, note) at every evaluation.
    Returns the last state, and every evaluation as the mean over critics.
    Raises InputError at the first evaluation that shows a critic to have diverged.
    """
    history: list[Evaluation] = []
    done = best_step = 0
    while done < steps and done - best_step < patience:
        state, seen = advance(state, done)
        done, best_step = done + stride, int(np.max(np.asarray(state.best_step)))
        check_finite(seen, fitted, done, learning_rate, best_step)
        history.append(Evaluation(done, *(float(np.mean(seen[f"{part}_nats"])) for part in ("fit", "validation"))))
        if on_progress is not None:
            note = f"{history[-1].validation_nats / math.log(2):z.3f} bits on validation"
            on_progress(min(done, steps), steps, note)
    if on_progress is not None and done < steps:
        on_progress(done, done, f"stopped: nothing gained in {patience:,} steps")
    return state, tuple(history)
