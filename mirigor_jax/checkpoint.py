"""Saving and restoring a training or fitting state. The only file that knows orbax."""

from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from mirigor_jax import parallel
from mirigor_jax.files import AnyPath

_policies = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of one folder: the last one and, by in-training MI or else by the loss, the best one are kept.

    A context manager; leaving it waits for the save under way.
    """

    def __init__(self, folder: AnyPath):
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute() if isinstance(folder, Path) else folder,
            preservation_policy=_policies.AnyPreservationPolicy(
                [_policies.LatestN(1), _policies.BestN(get_metric_fn=lambda metrics: metrics["mi_bits"], n=1)]
            ),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._checkpointer.close()

    @property
    def last(self) -> int | None:
        """The step of the newest checkpoint; None where there is none. Asked by all processes, told by the first."""
        latest = self._checkpointer.latest
        return parallel.from_main(getattr, latest, "step", None)

    @property
    def best(self) -> int | None:
        """The step of the kept checkpoint with the highest in-training MI; None where there is none. As `last`."""
        with_metrics = [c for c in self._checkpointer.checkpoints if c.metrics]
        best = max(with_metrics, key=lambda c: c.metrics["mi_bits"], default=None)
        return parallel.from_main(getattr, best, "step", None)

    def save(self, step: int, state: Any, *, mi_bits: float) -> None:
        """Save in the background; the state is captured before this returns. Every process saves its part."""
        items = {"state": state}
        self._checkpointer.save_checkpointables_async(step, items, force=True, metrics={"mi_bits": mi_bits})

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The state saved at `step`, laid out as `abstract_state`, whichever devices and processes saved it."""
        return self._checkpointer.load_checkpointables(step, {"state": abstract_state})["state"]
