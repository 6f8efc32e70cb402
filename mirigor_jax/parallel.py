"""Processes and devices: processes start together, devices form a mesh, and a step for one device is mapped over it.

Every process of a job runs the same program. Process 0 alone writes files and reports. It also reads the run's folder
and sends the others what they need (`from_main`), so only checkpoints need a folder that all processes see.
"""

import functools
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
PATIENCE_S = 30  # if one process dies or ends alone, the others are ended after this time
CHUNK = 2**28  # bytes that process 0 sends at once
_polls = itertools.count(1)
_alone = False  # whether process 0 is running a function whose result the others wait for


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join this job's other processes, if there are any. Call this before anything asks JAX for its devices.

    Without arguments, JAX finds the other processes by SLURM, Open MPI, or the metadata of TPU VMs and of Kubernetes'
    TPU nodes. If it finds none, this process works alone.
    coordinator: HOST:PORT of process 0.
    processes: number of processes.
    process: number of this process, from 0.
    Raises InputError if only some of the three are given, or if this process cannot join the others.
    """
    process_spec = (coordinator, processes, process)
    if any(value is not None for value in process_spec) and None in process_spec:
        raise InputError("give --coordinator=HOST:PORT, --processes=N and --process=I together, or none of them")
    try:
        patience: Any = {"heartbeat_timeout_seconds": PATIENCE_S, "shutdown_timeout_seconds": PATIENCE_S}
        jax.distributed.initialize(coordinator, processes, process, **patience)
    except (ValueError, RuntimeError) as error:
        # JAX found no other process; or it was started already, as in a notebook, with or without others.
        alone = ("coordinator_address should be defined", "must be called before", "should only be called once")
        if coordinator is not None or not any(message in str(error) for message in alone):
            raise InputError(f"the processes cannot be started together: {' '.join(str(error).split())}") from None
    if jax.process_count() > 1:
        # This first exchange waits for the slowest process; later exchanges time out after 30 seconds on CPUs.
        multihost_utils.sync_global_devices("start")


def stop_asked() -> bool:
    """Whether any process was told to stop. All processes get the same answer at the same call.

    All processes must call this equally often.
    """
    # The processes agree on a call that none of them has reached yet.
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(next(_polls))
    return stopping.asked() is not None


def is_main() -> bool:
    """Whether this is process 0, which writes and reports."""
    return jax.process_index() == 0


def from_main(make: Callable[..., T], *args: Any) -> T:
    """Run `make(*args)` on process 0 and return its result on every process. An InputError is raised on all of them.

    Inside `make`, which only process 0 runs, calls of this function just call their own `make`.
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
    """Send process 0's bytes to all processes."""
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
    """All `total` rows. rows: this process's contiguous part, as `pipeline.batches` cuts it."""
    processes = jax.process_count()
    if processes == 1:
        return rows
    padded = np.zeros((-(-total // processes), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    # Sent as bytes, since JAX would turn 64-bit numbers into 32-bit ones.
    parts = np.asarray(multihost_utils.process_allgather(padded.view(np.uint8))).view(rows.dtype)
    cuts = [total * p // processes for p in range(processes + 1)]
    return np.concatenate([part[: b - a] for part, a, b in zip(parts, cuts, cuts[1:], strict=False)])


def make_mesh(batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with one axis, "data", over all devices if their number divides `batch_size`.

    Otherwise it is over as many as the greatest common divisor of the two numbers.
    devices: the devices to use. None: all of `jax.devices()`.
    Raises InputError if there are several processes and some devices would stay idle.
    """
    devices = list(jax.devices() if devices is None else devices)
    used = math.gcd(batch_size, len(devices))
    if used != len(devices) and jax.process_count() > 1:
        raise InputError(f"a batch of {batch_size} does not divide over {len(devices)} devices; use a multiple of them")
    return jax.make_mesh((used,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices[:used])


def platform() -> str:
    """The platform that the step being traced will run on, such as "cpu".

    A step may be compiled for a mesh of devices that this machine lacks; without a mesh it is JAX's default platform.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


@functools.cache
def quick_compilation(*, runs_once: bool = False) -> dict[str, Any] | None:
    """Compiler options for a program that would compile longer than it runs; None on accelerators.

    On CPUs, XLA's older code generator compiles in half the time, if this jaxlib still has it: 0.10 does, 0.12 doesn't.
    Its loops are slower by up to a fifth, so a program that takes many steps is better off without it.
    runs_once: also leave out LLVM's optimizations.
    """
    if jax.default_backend() != "cpu":
        return None
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True} if runs_once else {}
    older = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=older).lower().compile()
    except jax.errors.JaxRuntimeError:  # no such option
        return options
    return options | older


def map_step(
    step: Callable[..., Any],
    mesh: Mesh,
    in_specs: tuple,
    out_specs: Any,
    *,
    donate: tuple[int, ...] = (),
    compiler_options: dict[str, Any] | None = None,
) -> Any:
    """Map a per-device step over the mesh and jit it: jit of shard_map, which is how JAX implements pmap today.

    in_specs, out_specs: the layout of the arguments and of the outputs. The step must make a REPLICATED output equal on
        all devices; a SHARDED output is the rows of all devices, joined.
    donate: positions of the arguments that the step may overwrite.
    compiler_options: as `jax.jit` takes them.
    """
    # check_vma=False keeps pmap's semantics: the step itself averages over "data".
    mapped = jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=donate, compiler_options=compiler_options)


def shard(batch: Any, mesh: Mesh, spec: P = SHARDED) -> Any:
    """Global arrays over the mesh, made of the rows that each process has."""
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:  # this process has all rows, and the host need not copy them
        return jax.device_put(batch, sharding)
    return _each(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def place(tree: Any, mesh: Mesh, spec: P = REPLICATED) -> Any:
    """Global arrays over the mesh, made of values that every process has in full."""
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return _each(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree)


def _each(to_global: Callable[[np.ndarray], Any], tree: Any) -> Any:
    """Apply `to_global` to each leaf of the tree; random keys are passed as their key data."""

    def one(x):
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(to_global(np.asarray(jax.random.key_data(x))), impl=jax.random.key_impl(x))
        return to_global(np.asarray(x))

    return jax.tree.map(one, tree)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of a global array that is sharded by rows."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[first]) for first in sorted(shards)])


def abstract(tree: Any, mesh: Mesh, spec: P = REPLICATED) -> Any:
    """A tree of shapes, dtypes and shardings, for which a step can be compiled. tree: arrays or shapes."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def layout(abstract_tree: Any) -> Any:
    """The shardings in an `abstract` tree, for jit's out_shardings, which creates arrays in their final place."""
    return jax.tree.map(lambda x: x.sharding, abstract_tree)
