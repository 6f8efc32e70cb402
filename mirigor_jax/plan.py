"""Will it fit, and how fast can it be? A run's real steps, compiled for TPU slices that are not here.

python -m mirigor_jax.plan --config=FILE[:ARGUMENTS] --topology=v5e:4x4 [--config.KEY=VALUE …] [--workdir=DIR]
    [--only=train,encode,estimate] [--sweep] [--classes=N]

Needs libtpu (`pip install -e ".[plan]"`) and no TPU. The numbers are the compiler's, read from the program that XLA:TPU
made (`hlo.py`), over what the chips' makers say of them; none is a measurement. At best a step takes as long as the
slowest of its arithmetic, its HBM traffic and its network, each at full speed, and at worst, by the same numbers, as
all three one after the other; real steps take longer still.
"""

import copy
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mirigor_jax import configuration, encode, estimate, experiment, hlo, parallel, train
from mirigor_jax.data import augment
from mirigor_jax.data.pairing import AnyPairing, ClassPairing, SameImage
from mirigor_jax.errors import InputError
from mirigor_jax.files import replace_figure, replace_json, replace_text
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.progress import duration
from mirigor_jax.runs import figures

GIB = 2**30
HOP_S = 1e-6  # what one hop of a message takes ("How to Scale Your Model", part 3)
ON_CHIP = 2**27  # bytes of temporaries that may be on the chip, and show in HBM when the batch grows
PARTS = ("compute", "memory", "network")
NOTE = "The compiler's numbers, not a measurement"


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


class Work(NamedTuple):
    """A stage's mapped step and its abstract arguments; what goes through it in one call, on all chips together."""

    step: Any
    arguments: tuple[Any, ...]
    what: str
    images: int
    pairs: int


def train_work(config: ConfigDict, devices: Sequence[Any], law: AnyPairing) -> Work:
    """One training step."""
    k = config.train.k
    mesh = _all_of(parallel.make_mesh(k, devices), devices, f"train.k={k}")
    train.check_parts(k // mesh.size, config.train.accumulate)
    step, arguments = train.make_step(config, mesh, num_classes=law.num_classes)
    return Work(step, arguments, f"train.k={k}", (4 if config.data.negatives else 2) * k, k)


def encode_work(config: ConfigDict, devices: Sequence[Any], law: AnyPairing) -> Work:
    """One batch through the frozen encoder."""
    n = config.features.batch_size
    mesh = _all_of(parallel.make_mesh(n, devices), devices, f"features.batch_size={n}")
    step, arguments = encode.make_step(
        config, mesh, None, augment.parse(config.data.pairing, config.data.augment.to_dict())[1]
    )
    return Work(step, arguments, f"features.batch_size={n}", n, 0)


def estimate_work(config: ConfigDict, devices: Sequence[Any], law: AnyPairing) -> Work:
    """The steps of the critic from one look at validation to the next, and that look."""
    e, f = config.estimate, config.features
    if None in (f.fit, f.validation):
        raise InputError("the plan reads no images; give --config.features.fit=N and --config.features.validation=N")
    encoder, (tree, *_) = encode.make_step(config, parallel.make_mesh(1, devices))
    images = jax.ShapeDtypeStruct((1, config.data.size, config.data.size, 3), jnp.uint8)
    (d,) = jax.eval_shape(encoder, tree, images, None).shape[1:]
    tested = f.test or max(e.k, e.paper_k, *e.curve)
    rows = {("fit", "h"): f.fit, ("validation", "h_x"): f.validation, ("test", "h_x"): tested}
    features = {part: {name: jax.ShapeDtypeStruct((n, d), jnp.float32)} for (part, name), n in rows.items()}
    sizes = f"batches of {', '.join(map(str, sorted({*estimate.batch_sizes(config, tested), e.fit_k})))} pairs"
    mesh = _all_of(estimate.make_mesh(config, tested, f.validation, devices), devices, sizes)
    frozen = FrozenEncoder(train.make_encoder(config), tree) if estimate.streams(config) else None
    step, arguments = estimate.make_step(config, mesh, features, law, frozen)
    pairs = e.fit_k * min(e.eval_every, e.steps)
    return Work(step, arguments, f"estimate.fit_k={e.fit_k}", 2 * pairs if frozen else 0, pairs)


STAGES = {"train": train_work, "encode": encode_work, "estimate": estimate_work}


def _all_of(mesh: Mesh, devices: Sequence[Any], what: str) -> Mesh:
    if mesh.size < len(devices):
        raise InputError(f"{what} do not divide over {len(devices)} chips; use multiples of {len(devices)}")
    return mesh


def prepare(config: ConfigDict, classes: int | None) -> tuple[ConfigDict, AnyPairing]:
    """The config as it is on a TPU, and how it pairs images, which are not read unless they are rendered.

    classes: that they have. Raises InputError where the config is wrong, trains nothing, or needs their number.
    """
    if config.kind != "images" or config.encoder.path or config.data.source.startswith("features:"):
        raise InputError("the plan is for runs that train an encoder of images, as configs/cdp.py does")
    if config.data.size is None:
        raise InputError("data.size=None takes the images' own, and the plan reads none; give --config.data.size=N")
    with config.unlocked():
        if config.encoder.dtype == "auto":
            config.encoder.dtype = "bfloat16"
    if config.data.source == "cdp":
        return config, experiment.check(config)[1]
    shared, _ = augment.parse(config.data.pairing, config.data.augment.to_dict())
    if shared and classes is None:
        raise InputError(f"data.pairing={config.data.pairing} is of classes: say how many there are by --classes=N")
    if classes is None:
        return config, SameImage()
    return config, ClassPairing(("class",), (classes,), ("class",), np.full(classes, 1 / classes))


def changed(config: ConfigDict, **values: Any) -> ConfigDict:
    """The config with other values under their dotted names, in which __ stands for the dot."""
    config = copy.deepcopy(config)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in values.items()})
    return config


def compile_work(work: Work, where: Slice, label: str) -> tuple[Any, int, float]:
    """(the program or None, the bytes that it needs, seconds); says that it compiles, which can take minutes."""
    print(f"  compiling {label} for {where.name}, {work.what}", end="", flush=True)
    began = time.monotonic()
    compiled, needed = hlo.compile_within(lambda: work.step.lower(*work.arguments).compile())
    seconds = time.monotonic() - began
    fits = compiled is not None and needed <= where.chip.hbm
    print(f": {duration(seconds)}, {_gib(needed)}{'' if fits else ': does not fit'}", flush=True)
    return compiled if fits else None, needed, seconds


def measure(work: Work, where: Slice, label: str) -> dict[str, Any]:
    """What one call of the step needs of a chip, and how long it takes at least; plain data, as in plan.json."""
    compiled, needed, seconds = compile_work(work, where, label)
    chip, n = where.chip, len(where.devices)
    found: dict[str, Any] = {"stage": label, "topology": where.name, "chips": n, "batch": work.what}
    found |= {"compile_seconds": seconds, "fits": compiled is not None}
    found["hbm"] = {"needed_bytes": needed, "available_bytes": chip.hbm}
    if compiled is None:
        return found
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis()
    found["hbm"] |= {
        "arguments_bytes": memory.argument_size_in_bytes,
        "results_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
    }
    cost = hlo.cost(compiled.as_text())
    parts: dict[str, float] = {
        "compute": cost.flops / chip.flops,
        "memory": cost.hbm_bytes / chip.hbm_bandwidth,
        "network": math.fsum(count * where.seconds(*one) for one, count in cost.collectives.items()),
    }
    slowest = max(parts, key=lambda part: parts[part])
    return found | {
        "flops": cost.flops,
        "hbm_traffic_bytes": cost.hbm_bytes,
        "collectives": cost.totals(),
        "loops_counted_once": cost.loops,
        "xla": {"flops": analysis["flops"], "bytes_accessed": analysis["bytes accessed"]},
        "seconds": {**parts, "at_best": parts[slowest], "without_overlap": sum(parts.values())},
        "binds": slowest,
        "images_per_second": work.images / parts[slowest],
        "pairs_per_second": work.pairs / parts[slowest],
    }


def _steps_of(unit: int) -> Callable[[int], int]:
    """Batches that are tried: 4, 5, 6 or 7 times a power of two, and smaller numbers, of a unit; the last up to a k."""

    def down(k: int) -> int:
        units = k // unit
        power = max(0, units.bit_length() - 3)
        return unit * (units >> power << power)

    return down


def largest(
    need: Callable[[int], tuple[bool, int]], k: int, unit: int, available: int, tries: int = 8
) -> tuple[int | None, int | None]:
    """(the largest batch that was compiled and fits, the smallest that was and does not), None for what was not found.

    need: (whether a batch fits, the bytes it needs). k: where to begin. A batch that needs little is multiplied by as
    much as fits even if all that it needs grows along. From two that fit the next is where a line through their needs
    meets what is available, then neighbours of that, until the one that fits and the one that doesn't are neighbours.
    Where none has fitted yet, the next is as much smaller as it has to be.
    """
    down = _steps_of(unit)
    known: dict[int, tuple[bool, int]] = {}
    best, worst, k = None, None, max(unit, down(k))
    for _ in range(tries):
        known[k] = need(k)
        fitting = sorted(size for size, (fits, _) in known.items() if fits)
        best = fitting[-1] if fitting else None
        worst = min((size for size, (fits, _) in known.items() if not fits), default=None)
        if best is None:
            k = max(unit, down(min(k - 1, k * available // max(known[k][1], available)))) if k > unit else 0
        else:
            needed, above = known[best][1], best + unit * 2 ** max(0, (best // unit).bit_length() - 3)
            if worst is None and (times := available // (needed + ON_CHIP)) >= 4:
                k = down(times * best)
            elif len(fitting) == 1:
                k = down(best // 2) or above
            else:
                slope = (needed - known[fitting[-2]][1]) / (best - fitting[-2])
                guess = best + (available - needed) / slope if slope > 0 else math.inf
                k = max(above, down(int(min(guess, 4 * best))))
            if worst is not None and k >= worst:
                k = max(above, down(worst - 1))
        if k == 0 or k in known:
            break
    return best, worst


def search(config: ConfigDict, law: AnyPairing, where: Slice, first: dict[str, Any]) -> dict[str, Any]:
    """The largest train.k that fits on the slice, where `first` is what the config's own needs."""
    unit, sizes = len(where.devices) * config.train.accumulate, {}

    def need(k: int) -> tuple[bool, int]:
        if k == config.train.k:
            sizes[k] = first["fits"], first["hbm"]["needed_bytes"]
        else:
            work = train_work(changed(config, train__k=k), where.devices, law)
            compiled, needed, _ = compile_work(work, where, "train")
            sizes[k] = compiled is not None, needed
        return sizes[k]

    best, worst = largest(need, config.train.k, unit, where.chip.hbm)
    return {
        "largest_k": best,
        "fails_at_k": worst,
        "compiled": [{"k": k, "fits": fits, "needed_bytes": needed} for k, (fits, needed) in sorted(sizes.items())],
    }


def run(
    config: ConfigDict,
    topology: str,
    folder: Path,
    *,
    classes: int | None = None,
    only: Sequence[str] = tuple(STAGES),
    sweep: bool = False,
) -> None:
    """Plan these stages on the slice, and with `sweep` the run on 4 to 256 chips; print it, and write it to `folder`.

    Raises InputError as `find` and `prepare` do, for an unknown stage, and where the training batch doesn't fit.
    """
    if unknown := set(only) - STAGES.keys():
        raise InputError(f"--only={','.join(only)}: unknown '{min(unknown)}'; choose from {', '.join(STAGES)}")
    where = find(topology)
    print(f"plan folder: {folder}", flush=True)
    config, law = prepare(config, classes)
    rows, notes = [], []
    for stage in only:
        try:
            rows.append(measure(STAGES[stage](config, where.devices, law), where, stage))
        except InputError as error:
            notes.append(f"{stage}: {error}")
    trained = next((row for row in rows if row["stage"] == "train"), None)
    found = trained and search(config, law, where, trained)
    curve = list(scaling(config, law, where, rows)) if sweep else []
    versions = {name: version(name) for name in ("mirigor-jax", "jax", "libtpu")}
    text = report(rows, notes, where, found, curve, versions)
    print(text)
    plan: dict[str, Any] = {
        "note": NOTE,
        "topology": topology,
        "chip": where.chip._asdict(),
        "stages": rows,
        "notes": notes,
    }
    plan |= {"largest": found, "scaling": curve, "versions": versions, "config": config.to_dict()}
    replace_json(folder / "plan.json", plan)
    replace_text(folder / "plan.md", text)
    if curve:
        replace_figure(folder / "scaling.png", figures.scaling(curve, where.name.partition(":")[0]))
    if trained and not trained["fits"]:
        raise InputError(_too_large(config, trained, found))


def _too_large(config: ConfigDict, row: dict[str, Any], found: dict[str, Any] | None) -> str:
    needed, available = (row["hbm"][f"{name}_bytes"] for name in ("needed", "available"))
    fits = found and found["largest_k"]
    advice = f"train.k={fits} fits" if fits else "no batch of whole pairs a chip fits; raise train.accumulate"
    return f"train.k={config.train.k} needs {_gib(needed)} of {_gib(available)} a chip of {row['topology']}; {advice}"


def scaling(
    config: ConfigDict, law: AnyPairing, where: Slice, rows: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Slices of 4, 16, 64 and 256 such chips: training at the same number of pairs a chip, estimation at the same K.

    rows: the stages on `where`, which are scaled and not compiled again.

    efficiency: pairs a second and chip, against the smallest slice; of the network, memory and arithmetic overlapping
    in full, and not at all.
    """
    kind = where.name.partition(":")[0]
    a_chip = config.train.k // len(where.devices)
    first: dict[str, dict[str, Any]] = {}
    for shape in where.chip.slices[::2]:
        there = find(f"{kind}:{shape}")
        for stage in (row["stage"] for row in rows if row["stage"] != "encode"):
            scaled = changed(config, train__k=a_chip * len(there.devices)) if stage == "train" else config
            try:
                known = [row for row in rows if (row["stage"], row["topology"]) == (stage, there.name)]
                row = dict(known[0]) if known else measure(STAGES[stage](scaled, there.devices, law), there, stage)
            except InputError as error:
                print(f"  {stage} on {there.name}: {error}", flush=True)
                continue
            if row["fits"]:
                base = first.setdefault(stage, row)
                for how in ("at_best", "without_overlap"):
                    growth = row["pairs_per_second"] * row["seconds"]["at_best"] / row["chips"] / row["seconds"][how]
                    start = base["pairs_per_second"] * base["seconds"]["at_best"] / base["chips"] / base["seconds"][how]
                    row[f"efficiency_{how}"] = growth / start
            yield row


def report(
    rows: list[dict[str, Any]],
    notes: list[str],
    where: Slice,
    found: dict[str, Any] | None,
    curve: list[dict[str, Any]],
    versions: dict[str, str],
) -> str:
    """Tables in Markdown: the stages side by side, the largest batch, the scaling."""
    made_by = ", ".join(f"{name} {versions[name]}" for name in ("jax", "libtpu"))
    kinds = sorted({kind for row in rows for kind in row.get("collectives", ())})
    lines: dict[str, Callable[[dict[str, Any]], str]] = {
        "arithmetic": lambda row: _amount(row["flops"], "FLOP"),
        "HBM traffic": lambda row: _amount(row["hbm_traffic_bytes"], "B"),
        **{kind: partial(_collective, kind) for kind in kinds},
        "compute, memory, network": lambda row: ", ".join(_time(row["seconds"][part]) for part in PARTS),
        "at best it takes": lambda row: f"{_time(row['seconds']['at_best'])}: {row['binds']} binds",
        "without overlap": lambda row: _time(row["seconds"]["without_overlap"]),
        "images/s of all chips, at best": lambda row: _rate(row["images_per_second"]),
        "pairs/s of all chips, at best": lambda row: _rate(row["pairs_per_second"]),
    }
    table = [["a chip, a call", *(f"{row['stage']}, {row['batch']}" for row in rows)]]
    table += [[f"HBM needed, of {_gib(where.chip.hbm)}", *(_gib(row["hbm"]["needed_bytes"]) for row in rows)]]
    table += [[name, *(value(row) if row["fits"] else "" for row in rows)] for name, value in lines.items()]
    said = [f"Not planned: {note}" for note in notes]
    for row in rows:
        if row.get("loops_counted_once"):
            said.append(f"{row['stage']}: {row['loops_counted_once']} loops, whose trips are not known, count once.")
    if found:
        best, worst = found["largest_k"], found["fails_at_k"]
        most = f"Largest batch compiled that fits: train.k={best:,}" if best else "No batch compiled fits"
        said.append(f"{most}; train.k={worst:,} does not." if worst else f"{most}; larger ones were not tried.")
    if curve:
        names = ["chips", "stage", "batch", "at best", "binds", "efficiency", "without overlap"]
        said += ["", _table([names, *map(_scaled, curve)])]
    title = f"**{where.name}, {len(where.devices)} chips. {NOTE}** ({made_by})."
    return "\n".join([title, "", _table(table), "", *said]).rstrip() + "\n"


def _table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def _scaled(row: dict[str, Any]) -> list[str]:
    cells = [f"{row['chips']} ({row['topology']})", row["stage"], row["batch"]]
    if not row["fits"]:
        return [*cells, "does not fit", "", "", ""]
    efficiency = [f"{100 * row[f'efficiency_{how}']:.1f} %" for how in ("at_best", "without_overlap")]
    return [*cells, _time(row["seconds"]["at_best"]), row["binds"], *efficiency]


def _collective(kind: str, row: dict[str, Any]) -> str:
    total = row["collectives"].get(kind)
    return f"{total['count']:,}: {_amount(total['bytes'], 'B')}" if total else "none"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value else ""


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


def _amount(value: float | int, unit: str) -> str:
    power = min(4, int(math.log10(value) // 3)) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}{unit}"


def _time(seconds: float) -> str:
    power = 0 if seconds >= 1 or seconds == 0 else 1 if seconds >= 1e-3 else 2
    return f"{seconds * 1000**power:.3g} {('s', 'ms', 'µs')[power]}"


def main(argv: list[str] | None = None) -> int:
    """Plan one config. Returns the exit code: 0; 2 for bad input and a batch that doesn't fit (one line on stderr)."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(__doc__, end="")
        return 0
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # it can't load programs for devices that are not there
    try:
        rest, given = configuration.take(argv, topology=str, classes=int, only=str, sweep=bool)
        config, name, workdir = configuration.parse(rest)
        if given["topology"] is None:
            raise InputError("give --topology=KIND:SHAPE, for example --topology=v5e:4x4")
        folder = Path(workdir or f"plans/{name}-{given['topology'].replace(':', '_')}").expanduser()
        only = (given["only"] or ",".join(STAGES)).split(",")
        run(config, given["topology"], folder, classes=given["classes"], only=only, sweep=given["sweep"])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
