"""TPU slices: the peak rates of their chips, and the least time of a collective."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.experimental import topologies

from mirigor_jax.errors import InputError

GIB = 2**30
HOP_S = 1e-6  # seconds that one hop of a message takes ("How to Scale Your Model", part 3)


class Chip(NamedTuple):
    """Peak rates of one chip, from Google's pages on TPU v5e, v5p and v6e.

    flops: bfloat16 operations a second.
    hbm_bandwidth: bytes a second.
    hbm: bytes of HBM that XLA lets a program use.
    link: bytes a second, one way, over one ICI link: the chip's bandwidth divided by its 4 (v5e, v6e) or 6 (v5p) links.
    ring: an axis of a slice closes to a ring if `ring` divides its length ("How to Scale Your Model", part 2).
    slices: shapes of the slices that can be planned.
    """

    flops: float
    hbm_bandwidth: float
    hbm: int
    link: float
    ring: int
    slices: tuple[str, ...]


_SQUARES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CHIPS = {
    "v5e": Chip(197e12, 819e9, int(15.75 * GIB), 50e9, 16, _SQUARES),
    "v5p": Chip(
        459e12, 2765e9, int(95.74 * GIB), 100e9, 4, ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
    ),
    "v6e": Chip(918e12, 1640e9, int(31.25 * GIB), 100e9, 16, _SQUARES),
}


class Slice(NamedTuple):
    """A TPU slice: chips of one kind in a mesh. An axis of the mesh may close to a ring.

    axes: number of chips along each axis.
    """

    name: str
    chip: Chip
    axes: tuple[int, ...]
    devices: Sequence[Any]

    @property
    def lanes(self) -> int:
        """Links that a chip sends over at once if all chips reduce or gather: 2 an axis that is a ring, 1 any other."""
        return sum(2 if self._closed(n) else 1 for n in self.axes if n > 1)

    @property
    def hops(self) -> int:
        """Hops from a chip to the farthest chip."""
        return sum(n // 2 if self._closed(n) else n - 1 for n in self.axes)

    def _closed(self, n: int) -> bool:
        return n > 2 and n % self.chip.ring == 0

    def seconds(self, kind: str, size: int) -> float:
        """Least seconds of a collective: the time of its bytes or that of its hops, whichever is longer.

        kind: one of `hlo.COLLECTIVES`.
        size: bytes, as `hlo.Collective` counts them.
        Each of n chips sends (n−1)/n of the bytes in an all-gather or reduce-scatter, and twice that in an all-reduce.
        A collective-permute sends all bytes over one link. In an all-to-all, half of the bytes cross the middle of the
        longest axis. Source: "How to Scale Your Model", part 3.
        """
        n, link = len(self.devices), self.chip.link
        share, hops = (n - 1) / n * size / (self.lanes * link), self.hops
        if kind == "all-reduce":
            share, hops = 2 * share, 2 * hops
        elif kind == "collective-permute":
            share, hops = size / link, 1
        elif kind == "all-to-all":
            longest = max(self.axes)
            share = longest * size / 4 / ((2 if self._closed(longest) else 1) * link)
        return max(share, hops * HOP_S)


def find(name: str) -> Slice:
    """The slice of this name, such as v5e:4x4. Raises InputError if the name is unknown or libtpu is not installed."""
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or shape not in CHIPS[kind].slices:
        known = "; ".join(f"{kind}:{', '.join(chip.slices)}" for kind, chip in CHIPS.items())
        raise InputError(f"unknown --topology={name}; known are {known}")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError('there is no compiler for TPUs here; pip install -e ".[plan]" brings libtpu, which is one')
    # Without these variables libtpu queries the metadata of a TPU VM and complains that there is none. It may be loaded
    # several times, because no process holds a chip here.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_MIN_LOG_LEVEL="3", TPU_STDERR_LOG_LEVEL="3")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    return Slice(name, CHIPS[kind], tuple(map(int, shape.split("x"))), devices)


def gib(size: int) -> str:
    """The size in GiB, as text. size: bytes."""
    return f"{size / GIB:.2f} GiB"
