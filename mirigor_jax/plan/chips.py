"""Slices of TPUs: what their chips can do at most, and how long a collective takes on them."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.experimental import topologies

from mirigor_jax.errors import InputError

GIB = 2**30
HOP_S = 1e-6  # what one hop of a message takes ("How to Scale Your Model", part 3)


class Chip(NamedTuple):
    """What one chip can do at most, by Google's pages on TPU v5e, v5p and v6e; hbm: bytes that XLA lets a program have.

    link: bytes a second, one way, over one of its ICI links: the chip's bandwidth over 4 links (v5e, v6e) or 6 (v5p).
    An axis closes to a ring where `ring` divides its length ("How to Scale Your Model", part 2).
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
    """Chips of a kind joined to a mesh, or to a torus where its axes close."""

    name: str
    chip: Chip
    axes: tuple[int, ...]
    devices: Sequence[Any]

    @property
    def lanes(self) -> int:
        """Links that a chip can send over at once when all of them reduce or gather: two an axis that is a ring."""
        return sum(2 if self._closed(n) else 1 for n in self.axes if n > 1)

    @property
    def hops(self) -> int:
        """How far it is to the farthest chip."""
        return sum(n // 2 if self._closed(n) else n - 1 for n in self.axes)

    def _closed(self, n: int) -> bool:
        return n > 2 and n % self.chip.ring == 0

    def seconds(self, kind: str, size: int) -> float:
        """A collective of `size` bytes (see `hlo.Collective`): as long as its bytes or its hops take, whichever more.

        On n chips each sends (n−1)/n of what is gathered or reduced and scattered, and twice that to have it reduced
        everywhere; what is permuted goes over one link; of what is exchanged by all, half crosses the middle of the
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
    """The slice of this name, as in v5e:4x4. Raises InputError where there is none, or no compiler for it."""
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or shape not in CHIPS[kind].slices:
        known = "; ".join(f"{kind}:{', '.join(chip.slices)}" for kind, chip in CHIPS.items())
        raise InputError(f"unknown --topology={name}; known are {known}")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError('there is no compiler for TPUs here; pip install -e ".[plan]" brings libtpu, which is one')
    # What libtpu would ask a TPU VM about, and complain of where there is none; and no chips are anybody's own here.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_MIN_LOG_LEVEL="3", TPU_STDERR_LOG_LEVEL="3")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    return Slice(name, CHIPS[kind], tuple(map(int, shape.split("x"))), devices)


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / GIB:.2f} GiB"
