"""Processes and devices: how they start together, the mesh, and how a step for one device is mapped over it.

Every process of a job runs the same program. Process 0 alone writes files and reports; what it reads of the run's
folder it tells the others (`from_main`), so that only checkpoints need a folder that all of them see.
"""

import itertools
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mirigor_jax import stopping
from mirigor_jax.errors import InputError

T = TypeVar("T")
AXIS = "data"
SHARDED = P(AXIS)
REPLICATED = P()
PATIENCE_S = 30  # after which the processes beside one that is gone, or that ended alone, are ended
CHUNK = 2**28  # bytes that process 0 sends at once
_polls = itertools.count(1)
_alone = False  # whether process 0 computes what the others wait for


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join this job's other processes, if there are any. To be called before JAX is asked for its devices.

    coordinator: HOST:PORT of process 0, with the number of processes and this one's; without them SLURM, Open MPI, or
    the metadata of TPU VMs and of Kubernetes' TPU nodes tell, and where these don't, this process is alone.
    Raises InputError where only some of the three are given, and where the others cannot be joined.
    """
    process_spec = (coordinator, processes, process)
    if any(value is not None for value in process_spec) and None in process_spec:
        raise InputError("give --coordinator=HOST:PORT, --processes=N and --process=I together, or none of them")
    try:
        patience: Any = {"heartbeat_timeout_seconds": PATIENCE_S, "shutdown_timeout_seconds": PATIENCE_S}
        jax.distributed.initialize(coordinator, processes, process, **patience)
    except (ValueError, RuntimeError) as error:
        # Nothing tells of others; or JAX is at work here already, as in a notebook, alone or with them.
        alone = ("coordinator_address should be defined", "must be called before", "should only be called once")
        if coordinator is not None or not any(message in str(error) for message in alone):
            raise InputError(f"the processes cannot be started together: {' '.join(str(error).split())}") from None
    if jax.process_count() > 1:
        # The first exchange has all of them wait for the slowest; later, within 30 seconds, CPUs give up.
        multihost_utils.sync_global_devices("start")


def stop_asked() -> bool:
    """Whether a process was told to stop: then all of them are, at the same call. Each has to call it equally often."""
    # The processes agree on a later call than any of them has reached.
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(next(_polls))
    return stopping.asked() is not None


def is_main() -> bool:
    """Whether this is process 0, which writes and reports."""
    return jax.process_index() == 0


def from_main(make: Callable[..., T], *args: Any) -> T:
    """What `make(*args)` returns on process 0, for every process; its InputError too is raised in all of them.

    Within `make`, which process 0 runs alone, further calls of this function are calls of theirs alone.
    """
    global _alone
    if jax.process_count() == 1 or _alone:
        return make(*args)
    result: Any = None
    if is_main():
        _alone = True
        try:
            result = make(*args)
        except InputError as error:
            result = error
        finally:
            _alone = False
    result = pickle.loads(_broadcast(pickle.dumps(result) if is_main() else b""))
    if isinstance(result, InputError):
        raise result
    return result


def _broadcast(data: bytes) -> bytes:
    """Process 0's bytes."""
    high, low = multihost_utils.broadcast_one_to_all(np.array(divmod(len(data), 2**16), np.int32)).tolist()
    total = high * 2**16 + low
    parts = []
    for first in range(0, total, CHUNK):
        part = np.frombuffer(data, np.uint8)[first : first + CHUNK] if is_main() else None
        if part is None:
            part = np.zeros(min(CHUNK, total - first), np.uint8)
        parts.append(np.asarray(multihost_utils.broadcast_one_to_all(part), np.uint8).tobytes())
    return b"".join(parts)


def gather_rows(rows: np.ndarray, total: int) -> np.ndarray:
    """All `total` rows, of which each process has the contiguous part that `pipeline.batches` gives it."""
    processes = jax.process_count()
    if processes == 1:
        return rows
    padded = np.zeros((-(-total // processes), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    # As bytes, since JAX would make 32 bits of 64.
    parts = np.asarray(multihost_utils.process_allgather(padded.view(np.uint8))).view(rows.dtype)
    cuts = [total * p // processes for p in range(processes + 1)]
    return np.concatenate([part[: b - a] for part, a, b in zip(parts, cuts, cuts[1:], strict=False)])


def make_mesh(batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis "data" over as many of the devices as divide `batch_size` (all of them, where they do).

    Raises InputError where several processes would have to leave devices idle.
    """
    devices = list(jax.devices() if devices is None else devices)
    used = math.gcd(batch_size, len(devices))
    if used != len(devices) and jax.process_count() > 1:
        raise InputError(f"a batch of {batch_size} does not divide over {len(devices)} devices; use a multiple of them")
    return jax.make_mesh((used,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices[:used])


def platform() -> str:
    """Where the step that is being traced will run: its mesh may be of devices elsewhere; without one, JAX's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def map_step(
    step: Callable[..., Any], mesh: Mesh, in_specs: tuple, out_specs: Any, *, donate: tuple[int, ...] = ()
) -> Any:
    """Map a per-device step over the mesh and compile it: jit of shard_map, which is what pmap is today.

    Every output is what the step made equal on all devices (REPLICATED) or its shards laid side by side (SHARDED).
    """
    # check_vma=False keeps pmap's meaning: the step itself says what is averaged over "data".
    mapped = jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=donate)


def shard(batch: Any, mesh: Mesh, spec: P = SHARDED) -> Any:
    """This process's rows → global arrays laid out over the mesh."""
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:  # the rows are all the rows, and the host need not copy them
        return jax.device_put(batch, sharding)
    return _each(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def place(tree: Any, mesh: Mesh, spec: P = REPLICATED) -> Any:
    """Values that every process has whole → global arrays laid out over the mesh."""
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return _each(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree)


def _each(to_global: Callable[[np.ndarray], Any], tree: Any) -> Any:
    """Random keys go as the numbers they are made of."""

    def one(x):
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(to_global(np.asarray(jax.random.key_data(x))), impl=jax.random.key_impl(x))
        return to_global(np.asarray(x))

    return jax.tree.map(one, tree)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of a global array that is laid out by rows."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[first]) for first in sorted(shards)])


def abstract(tree: Any, mesh: Mesh, spec: P = REPLICATED) -> Any:
    """Shapes, dtypes and layout of a tree of arrays or shapes: what a step is compiled for."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def layout(abstract_tree: Any) -> Any:
    """The shardings of what `abstract` made, for jit's out_shardings: nothing is then created in the wrong place."""
    return jax.tree.map(lambda x: x.sharding, abstract_tree)
