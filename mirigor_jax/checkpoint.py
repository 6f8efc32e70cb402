"""Saving and restoring a training or fitting state. The only file that knows orbax."""

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
    """The checkpoints of one folder: the last two and, by in-training MI or else by the loss, the best one are kept.

    The one before the last is what a run goes on from if the last is damaged. A context manager; leaving it waits for
    the save under way.
    """

    def __init__(self, folder: AnyPath, manifest: Manifest | None = None):
        """manifest: of the run that the folder is in, which has the digests of the files of what is saved.

        In a bucket they are left to the bucket, which has its own: they would have to be fetched for it.
        """
        self._folder = folder
        self._manifest = manifest if isinstance(folder, Path) and parallel.is_main() else None
        self._noting: threading.Thread | None = None
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute() if isinstance(folder, Path) else folder,
            preservation_policy=_policies.AnyPreservationPolicy(
                [_policies.LatestN(2), _policies.BestN(get_metric_fn=lambda metrics: metrics["mi_bits"], n=1)]
            ),
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
                    except Exception:  # which the checkpointer raises at the next save, or when it is closed
                        return
                    with contextlib.suppress(OSError):  # of a full disk, or where others have followed it already
                        manifest.note_tree(self._folder / str(step))

            self._noting = threading.Thread(target=note)
            self._noting.start()

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The state saved at `step`, laid out as `abstract_state`, whichever devices and processes saved it.

        Raises InputError if it can't be read.
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
