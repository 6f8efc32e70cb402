"""Devices: the mesh, and how a step written for one device is mapped over it. The only file that names meshes."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mirigor_jax.errors import InputError

AXIS = "data"
SHARDED = P(AXIS)
REPLICATED = P()


def make_mesh(batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis "data" over as many of the devices as divide `batch_size` (all of them, where they do).

    Raises InputError where several processes would have to leave devices idle.
    """
    devices = list(jax.devices() if devices is None else devices)
    used = math.gcd(batch_size, len(devices))
    if used != len(devices) and jax.process_count() > 1:
        raise InputError(f"a batch of {batch_size} does not divide over {len(devices)} devices; use a multiple of them")
    return jax.make_mesh((used,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices[:used])


def memory_bytes() -> int:
    """What a device has for arrays: what its allocator may take, or the machine's memory where it doesn't say."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same values on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, REPLICATED))


def abstract(tree: Any, mesh: Mesh, spec: P = REPLICATED) -> Any:
    """Shapes, dtypes and layout of a tree of arrays or shapes: what a step is compiled for."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def layout(abstract_tree: Any) -> Any:
    """The shardings of what `abstract` made, for jit's out_shardings: nothing is then created in the wrong place."""
    return jax.tree.map(lambda x: x.sharding, abstract_tree)
