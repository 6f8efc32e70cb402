"""Saving and restoring a training or fitting state. Only this module uses orbax."""

import contextlib
import threading
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from mirigor_jax import parallel, stopping
from mirigor_jax.errors import InputError
from mirigor_jax.files import AnyPath
from mirigor_jax.manifest import Manifest

_policies = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints in one folder: it keeps the last two, the one with the highest score, and every n-th step's.

    If the last checkpoint is damaged, a run continues from the one before it. This is a context manager; on exit it
    waits until a save in progress is complete.
    """

    def __init__(self, folder: AnyPath, manifest: Manifest | None = None, *, keep_every: int | None = None):
        """manifest: the manifest of the run that owns the folder. It records the digests of the saved files.

        keep_every: checkpoints of the multiples of this step are kept; None: none but the others.

        For a bucket no digests are recorded, since every file would have to be downloaded; buckets keep their own.
        """
        self._folder = folder
        self._manifest = manifest if isinstance(folder, Path) and parallel.is_main() else None
        self._noting: threading.Thread | None = None
        kept: list[Any] = [_policies.LatestN(2)]
        kept.append(_policies.BestN(get_metric_fn=lambda metrics: metrics["mi_bits"], n=1))
        if keep_every is not None:
            kept.append(_policies.EveryNSteps(keep_every))
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute() if isinstance(folder, Path) else folder,
            preservation_policy=_policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        with stopping.finishing():
            self._checkpointer.close()
            if self._noting is not None:
                self._noting.join()

    @property
    def last(self) -> int | None:
        """The step of the newest checkpoint; None if there is none. All processes must ask; process 0 answers."""
        latest = self._checkpointer.latest
        return parallel.from_main(getattr, latest, "step", None)

    @property
    def steps(self) -> list[int]:
        """The steps of all kept checkpoints, in order. All processes must ask; process 0 answers."""
        return parallel.from_main(sorted, [c.step for c in self._checkpointer.checkpoints])

    @property
    def best(self) -> int | None:
        """The step of the kept checkpoint with the highest score; None if there is none. All processes must ask."""
        with_metrics = [c for c in self._checkpointer.checkpoints if c.metrics]
        best = max(with_metrics, key=lambda c: c.metrics["mi_bits"], default=None)
        return parallel.from_main(getattr, best, "step", None)

    def save(self, step: int, state: Any, *, mi_bits: float) -> None:
        """Save in the background; the state is captured before this returns. Every process saves its part.

        mi_bits: the score of this checkpoint, by which `best` is chosen; higher is better.
        """
        items = {"state": state}
        with stopping.finishing():
            saved = self._checkpointer.save_checkpointables_async(step, items, force=True, metrics={"mi_bits": mi_bits})
        if self._manifest is not None and saved is not None:
            before = self._noting

            def note(manifest: Manifest = self._manifest) -> None:
                if before is not None:
                    before.join()
                with stopping.saving():
                    try:
                        saved.result()
                    except Exception:  # the checkpointer raises it again at the next save, or on close
                        return
                    with contextlib.suppress(OSError):  # the disk is full, or later saves removed this one
                        manifest.note_tree(self._folder / str(step))

            self._noting = threading.Thread(target=note)
            self._noting.start()

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The state saved at `step`, with the layout of `abstract_state`; the saving devices may have been others.

        Raises InputError if it can't be read (with several processes, orbax's own error).
        """
        try:
            return self._checkpointer.load_checkpointables(step, {"state": abstract_state})["state"]
        except Exception as error:
            if jax.process_count() > 1:
                raise
            path, why = self._folder / str(step), (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(
                f"checkpoint '{path}' cannot be restored ({why}); remove it, and give the command again"
            ) from error
