"""What a step needs and how long it takes at least, the largest batch that fits, and the run on more and more chips."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mirigor_jax import memory
from mirigor_jax.errors import InputError
from mirigor_jax.plan import chips, hlo
from mirigor_jax.plan.chips import Slice, gib
from mirigor_jax.plan.work import STAGES, Work, at_batch, train_work
from mirigor_jax.progress import duration
from mirigor_jax.runs.job import Job

ON_CHIP = 2**27  # bytes of temporaries that may be on the chip, and show in HBM when the batch grows


def compile_work(work: Work, where: Slice, label: str) -> tuple[Any, int, float]:
    """(the program or None, the bytes that it needs, seconds); says that it compiles, which can take minutes."""
    print(f"  compiling {label} for {where.name}, {work.batch}", end="", flush=True)
    began = time.monotonic()
    compiled, needed = memory.compile_within(lambda: work.step.lower(*work.arguments).compile())
    seconds = time.monotonic() - began
    fits = compiled is not None and needed <= where.chip.hbm
    print(f": {duration(seconds)}, {gib(needed)}{'' if fits else ': does not fit'}", flush=True)
    return compiled if fits else None, needed, seconds


def measure(work: Work, where: Slice, label: str) -> dict[str, Any]:
    """What one call of the step needs of a chip, and how long it takes at least; plain data, as in plan.json."""
    compiled, needed, seconds = compile_work(work, where, label)
    chip, n = where.chip, len(where.devices)
    row: dict[str, Any] = {"stage": label, "topology": where.name, "chips": n, "batch": work.batch}
    row |= {"compile_seconds": seconds, "fits": compiled is not None}
    row["hbm"] = {"needed_bytes": needed, "available_bytes": chip.hbm}
    if compiled is None:
        return row
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis()
    row["hbm"] |= {
        "arguments_bytes": memory.argument_size_in_bytes,
        "results_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
    }
    cost = hlo.cost(compiled.as_text())
    parts: dict[str, float] = {
        "compute": cost.flops / chip.flops,
        "memory": cost.hbm_bytes / chip.hbm_bandwidth,
        "network": math.fsum(count * where.seconds(*collective) for collective, count in cost.collectives.items()),
    }
    slowest = max(parts, key=lambda part: parts[part])
    return row | {
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
    meets what is available, then neighbors of that, until the one that fits and the one that doesn't are neighbors.
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


def search(job: Job, where: Slice, first: dict[str, Any]) -> dict[str, Any]:
    """The largest train.k that fits on the slice, where `first` is what the job's own needs."""
    unit, sizes = len(where.devices) * job.config.train.accumulate, {}

    def need(k: int) -> tuple[bool, int]:
        if k == job.config.train.k:
            sizes[k] = first["fits"], first["hbm"]["needed_bytes"]
        else:
            work = train_work(at_batch(job, k), where.devices)
            compiled, needed, _ = compile_work(work, where, "train")
            sizes[k] = compiled is not None, needed
        return sizes[k]

    best, worst = largest(need, job.config.train.k, unit, where.chip.hbm)
    return {
        "largest_k": best,
        "fails_at_k": worst,
        "compiled": [{"k": k, "fits": fits, "needed_bytes": needed} for k, (fits, needed) in sorted(sizes.items())],
    }


def scaling(job: Job, where: Slice, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Slices of 4, 16, 64 and 256 such chips: training at the same number of pairs a chip, estimation at the same K.

    rows: the stages on `where`, which are scaled and not compiled again.

    efficiency: pairs a second and chip, against the smallest slice; of the network, memory and arithmetic overlapping
    in full, and not at all.
    """
    kind = where.name.partition(":")[0]
    a_chip = job.config.train.k // len(where.devices)
    first: dict[str, dict[str, Any]] = {}
    for shape in where.chip.slices[::2]:
        there = chips.find(f"{kind}:{shape}")
        for stage in (row["stage"] for row in rows if row["stage"] != "encode"):
            scaled = at_batch(job, a_chip * len(there.devices)) if stage == "train" else job
            try:
                known = [row for row in rows if (row["stage"], row["topology"]) == (stage, there.name)]
                row = dict(known[0]) if known else measure(STAGES[stage](scaled, there.devices), there, stage)
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
