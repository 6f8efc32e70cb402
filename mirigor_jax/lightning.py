"""A callback for PyTorch Lightning that measures an encoder in training: all metrics, or an estimate of I_class."""

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any

import numpy as np

from mirigor_jax import checks, metrics, mi
from mirigor_jax.errors import InputError

PACKAGES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}  # package → its Callback's home


def callback(
    encode: Callable[[Any, Any], Any],
    batches: Iterable[tuple[Any, Any]],
    *,
    measure: str = "metrics",
    every: int = 1,
    num_batches: int | None = None,
    package: str | None = None,
    **options: Any,
) -> Any:
    """A Callback that measures the encoder at the end of training epochs, and logs each number as `mi/NAME`.

    Its `results` lists (epoch, result) of each measurement; results print themselves and have `figure()`. Of several
    processes only the first measures, and the others wait for it.

    encode: (the LightningModule, images) → representations (n, d). It is called in eval mode, without gradients.
    batches: pairs (images, labels), such as a DataLoader of images that training does not see. They are read anew at
        each measurement.
    measure: "metrics" is every metric of `metrics.evaluate`, or those of its `only`. "information" is the value and the
        certified ends of `mi.estimate_labels`, in bits.
    every: epochs from one measurement to the next, at least 1.
    num_batches: number of batches to read. None: all.
    package: "lightning" or "pytorch_lightning": that of your Trainer. None: the first of them that is installed.
    options: keyword arguments of the function that measures.
    Returns the Callback, for `Trainer(callbacks=[…])`.
    Raises InputError if the package is not installed, and for another `measure` or an `every` below 1. The measurement
    raises it if there are no batches, and if the function does.
    """
    if measure not in ("metrics", "information"):
        raise InputError(f"measure = '{measure}': expected metrics or information")
    checks.whole("every", every, 1)
    wanted = list(PACKAGES) if package is None else [package]
    found = next((PACKAGES[name] for name in wanted if name in PACKAGES and find_spec(name)), None)
    if found is None:
        raise InputError(f"{' or '.join(wanted)} is not installed: pip install lightning")

    class Measure(import_module(found).Callback):  # type: ignore[misc]  # the base is known only here
        """Measures the encoder at the end of every Nth epoch of training."""

        def __init__(self) -> None:
            self.results: list[tuple[int, Any]] = []

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if (trainer.current_epoch + 1) % every or not trainer.is_global_zero:
                return
            h, labels = _encoded(pl_module, encode, islice(batches, num_batches))
            if measure == "metrics":
                result: Any = metrics.evaluate(h, labels, **options)
                values = result.values
            else:
                result = mi.estimate_labels(h, labels, **options)
                values = {name: getattr(result, name) for name in ("value_bits", "lower_bits", "upper_bits")}
            self.results.append((trainer.current_epoch, result))
            known = {f"mi/{name}": float(value) for name, value in values.items() if value is not None}
            pl_module.log_dict(known, on_step=False, on_epoch=True, batch_size=len(h), rank_zero_only=True)

    return Measure()


def _encoded(
    module: Any, encode: Callable[[Any, Any], Any], batches: Iterable[tuple[Any, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """The representations (n, d) and the labels (n,) of all batches. Every part of the module keeps its mode."""
    import torch

    training = [part for part in module.modules() if part.training]
    rows, labels = [], []
    module.eval()
    try:
        with torch.no_grad():
            for images, of_batch in batches:
                rows.append(encode(module, images.to(module.device)).float().cpu().numpy())
                labels.append(np.asarray(of_batch))
    finally:
        for part in training:
            part.training = True
    if not rows:
        raise InputError("there are no batches to measure on: give a list or a loader, which can be read again")
    return np.concatenate(rows), np.concatenate(labels)
