"""Batches by index, read ahead on threads or worker processes. Each process of a job reads only its own rows."""

from collections.abc import Callable
from functools import partial
from typing import Any

import grain
import numpy as np
from absl import flags

from mirigor_jax.errors import InputError
from mirigor_jax.settings import Data

ENDLESS = 2**48  # batches; no run gets there


def batches(
    read: Callable[[int, int], dict[str, np.ndarray]],
    *,
    batch_size: int,
    num_examples: int | None = None,
    first: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = Data.threads,
    prefetch: int = 8,
    workers: int = Data.workers,
    place: Callable[[dict[str, np.ndarray]], Any] | None = None,
) -> grain.IterDataset:
    """This process's part of every batch of a stream, from batch `first` on.

    Batch b is rows [b·B, (b+1)·B) of the stream; process p of P gets the p-th of P contiguous parts of them.
    read: (start, stop) → rows [start, stop) of the stream. They must not depend on how the range is cut, so a run can
        continue from any batch, also with another number of processes.
    batch_size: B, on all processes together.
    num_examples: rows in the stream; the last batch may be short. None: the stream is endless.
    process_index, process_count: p and P.
    threads: threads that read batches ahead, in each worker process if there are workers.
    prefetch: batches that are read ahead. 0: none.
    workers: worker processes. They help if reading a batch is slower than copying it between processes.
    place: a function that is applied to each batch, such as a copy to the devices, also ahead of time.
    Raises InputError if batch_size is not a multiple of process_count.
    """
    if batch_size < 1 or batch_size % process_count:
        raise InputError(f"batch size {batch_size}: expected a multiple of the {process_count} processes")

    read_batch = partial(_read_batch, read, batch_size, num_examples, (process_index, process_count))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    count = ENDLESS if num_examples is None else -(-num_examples // batch_size)
    dataset = grain.MapDataset.range(first, count).map(read_batch)
    if place is None:
        place = _as_it_is
    if not workers:
        return dataset.map(place).to_iter_dataset(options)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads absl's flags, which only absl.app.run parses
    dataset = dataset.to_iter_dataset(options)
    return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)).map(place)


def _as_it_is(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return batch


def _read_batch(
    read: Callable, batch_size: int, num_examples: int | None, process: tuple[int, int], index: int
) -> dict[str, np.ndarray]:
    """A process's part of batch `index`. process: (index of the process, number of processes)."""
    process_index, process_count = process
    start = index * batch_size
    rows = batch_size if num_examples is None else min(batch_size, num_examples - start)
    return read(start + rows * process_index // process_count, start + rows * (process_index + 1) // process_count)
