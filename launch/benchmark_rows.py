"""Output of benchmark.py and benchmark_gpu.py: rows, the machine, and the comparison with another run."""

import argparse
import contextlib
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mirigor_jax.errors import InputError
from mirigor_jax.starting import cpu_features

MACHINE_CLASS = ("processor", "avx2", "avx512", "cores", "accelerator", "devices")
SETUP = ("jax", "jaxlib", "python", "platform", "xla_flags", "quick")
OURS = "ours: "  # prefix of the name of a peer that is this library, too
# Start of a device's name → its peak for dense bf16 products with float32 sums. The first entry that fits counts.
PEAK_TFLOPS = {
    "TPU v5 lite": 197,
    "TPU v5": 459,
    "TPU v6 lite": 918,
    "NVIDIA A100": 312,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H100": 989,
    "NVIDIA H200 NVL": 835,
    "NVIDIA H200": 989,
}
# Encoder → billions of multiply-adds of an image's forward pass at 224². A gradient takes twice as many. For ResNets
# the number is in proportion to the image's area.
GMACS_AT_224 = {"resnet18": 1.81, "resnet50": 4.09, "vit_s": 4.6}


@dataclass(frozen=True)
class Row:
    """One measurement of our code, with the peer's beside it.

    name: str. It names no versions, so `compare` finds the same measurement in another run.
    ours: float or None, in `unit`. None if ours could not be measured.
    peer: float or None, in `unit`. None if there is no peer, or if it could not be measured.
    peer_name: str or None. The peer with its version and flags.
    note: str or None. Why a number is missing.
    """

    name: str
    ours: float | None
    unit: str
    peer: float | None = None
    peer_name: str | None = None
    note: str | None = None

    @property
    def ratio(self) -> float | None:
        """Ours by the peer's."""
        return quotient(self.ours, self.peer)


@dataclass(frozen=True)
class Results:
    """The results of a benchmark: the machine's description, and the rows measured on it."""

    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)


def quotient(a: float | None, b: float | None) -> float | None:
    """a / b; None if either is missing, or b is 0."""
    return a / b if a is not None and b else None


def machine(accelerator: str | None, devices: int, cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """The facts about the machine that affect a benchmark: MACHINE_CLASS, SETUP, and its load now.

    accelerator: str or None. The kind of JAX's devices; None for CPUs.
    devices: int. Number of JAX's devices.
    cpuinfo: the file in which Linux describes the processor.
    """
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    models = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    features = cpu_features(cpuinfo)
    return {
        "processor": next(models, "") or platform.processor() or platform.machine(),
        "avx2": "avx2" in features,
        "avx512": "avx512f" in features,
        "cores": cores(),
        "accelerator": accelerator,
        "devices": devices,
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "load": round(os.getloadavg()[0], 1),
    }


def cores() -> int:
    """Number of cores that the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(machine: dict[str, Any]) -> str:
    """The machine in two lines."""
    vector = "AVX-512" if machine["avx512"] else "AVX2" if machine["avx2"] else "no AVX2"
    device = f"{machine['devices']} × {machine['accelerator'] or 'CPU'}"
    return (
        f"on {device}, {machine['cores']} cores of {machine['processor']} ({vector}), load {machine['load']}\n"
        f"jax {machine['jax']}, jaxlib {machine['jaxlib']}, Python {machine['python']}, {machine['platform']}, "
        f"XLA_FLAGS='{machine['xla_flags']}'"
    )


def share_of_peak(encoder: str, size: int, images_per_s: float | None, kind: str | None) -> float | None:
    """Percent of the chip's peak that a training reaches with its multiplications and additions.

    encoder: name of an encoder, at its published width.
    size: side of the images, pixels.
    images_per_s: float or None. Images that the training sees in a second.
    kind: str or None. The device's kind, as JAX and PyTorch name it.
    Returns None if the rate or the chip's peak is unknown.
    """
    peak = next((peak for start, peak in PEAK_TFLOPS.items() if (kind or "").startswith(start)), None)
    if images_per_s is None or peak is None:
        return None
    tflop = 3 * 2 * GMACS_AT_224[encoder] * (size / 224) ** 2 / 1e3
    return 100 * images_per_s * tflop / peak


HEADER = f"{'':56s} {'ratio':>7s} {'ours':>10s} {'peer':>10s}"


def show(row: Row) -> Row:
    """Print the row as a line of the table."""
    ratio, ours, peer = _number(row.ratio, ".2f"), _number(row.ours, ",.1f"), _number(row.peer, ",.1f")
    remarks = "; ".join(filter(None, (row.peer_name and f"peer: {row.peer_name}", row.note)))
    print(f"{row.name:56s} {ratio:>7s} {ours:>10s} {peer:>10s} {row.unit:9s} {remarks}".rstrip(), flush=True)
    return row


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def write(path: Path | None, results: Results) -> None:
    """Write the results as JSON with a line for each row: {"machine": {…}, "rows": [{name, ours, …, ratio}, …]}.

    path: None writes nothing.
    """
    if path is None:
        return
    rows = ",\n".join(json.dumps(asdict(row) | {"ratio": row.ratio}) for row in results.rows)
    path.write_text(f'{{"machine": {json.dumps(results.machine)},\n"rows": [\n{rows}\n]}}\n')


def read(path: Path) -> Results:
    """Read the results that `write` wrote. Raises InputError if the file can't be read, or has another form."""
    try:
        content = json.loads(path.read_text())
        names = Row.__dataclass_fields__.keys()
        rows = [Row(**{name: row.get(name) for name in names}) for row in content["rows"]]
        results = Results(dict(content["machine"]), rows)
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):  # no JSON, or JSON of another form
        results = None
    if results is None or not all(map(_is_valid, results.rows)):
        raise InputError(f'{path} is no JSON of this benchmark, expected {{"machine": {{…}}, "rows": [{{…}}, …]}}')
    return results


def _is_valid(row: Row) -> bool:
    numbers = all(value is None or type(value) in (int, float) for value in (row.ours, row.peer))
    texts = all(value is None or isinstance(value, str) for value in (row.peer_name, row.note))
    return numbers and texts and isinstance(row.name, str) and isinstance(row.unit, str)


def compare(now: Results, then: Results) -> Iterator[str]:
    """Yields lines that compare the rows of the same name, and the two machines.

    If a peer is another library and its name is the same in both runs, its code is the same too. A change of its rate
    is then the machine's drift. The last column removes it: (ours now / ours then) / (peer now / peer then). For
    memory, less is better.
    """
    for keys, text in ((MACHINE_CLASS, "warning: the other run is of another machine"), (SETUP, "another setup")):
        unlike = [key for key in keys if now.machine.get(key) != then.machine.get(key)]
        if unlike:
            changes = (f"{key} {then.machine.get(key)} then, {now.machine.get(key)} now" for key in unlike)
            yield f"{text}: {'; '.join(changes)}"
    old, new = ({row.name: row for row in results.rows} for results in (then, now))
    yield f"{'now / then':56s} {'ours':>7s} {'peer':>7s} {'ours by peer':>12s}"
    for name in (name for name in new if name in old):
        row, before = new[name], old[name]
        ours, same = quotient(row.ours, before.ours), row.peer_name == before.peer_name
        peer = quotient(row.peer, before.peer) if same else None
        drift = None if (row.peer_name or "").startswith(OURS) else peer
        columns = _number(ours, ".2f"), _number(peer, ".2f"), _number(quotient(ours, drift), ".2f")
        remark = "" if same else f"another peer: {before.peer_name or 'none'} then, {row.peer_name or 'none'} now"
        remark = "; ".join(filter(None, ("less is better" if row.unit == "MiB" else "", remark)))
        yield f"{name:56s} {columns[0]:>7s} {columns[1]:>7s} {columns[2]:>12s} {row.unit:9s} {remark}".rstrip()
    for rows, others, when in ((new, old, "now"), (old, new, "then")):
        if lone := [name for name in rows if name not in others]:
            yield f"{when} only: {'; '.join(lone)}"


def parse_options(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Results | None]:
    """Add --json and --against, and parse the command line. Returns (the options, the results that --against names).

    Ends the process with code 2 and one line if the file of --against can't be read or is no JSON of a benchmark, or if
    the file of --json can't be written.
    """
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the machine and the rows as JSON too")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="compare with that JSON, which another run or tree wrote"
    )
    options = parser.parse_args()
    try:
        then = options.against and read(options.against)
    except InputError as error:
        parser.exit(2, f"error: --against: {error}\n")
    try:
        with options.json.open("a") if options.json else contextlib.nullcontext():
            return options, then
    except OSError as error:
        parser.exit(2, f"error: can't write --json={options.json}: {error.strerror}\n")
