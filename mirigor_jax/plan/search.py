"""A step's memory and its least time, the largest batch that fits, and the run's efficiency on more and more chips."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mirigor_jax import memory
from mirigor_jax.errors import InputError
from mirigor_jax.plan import chips, hlo
from mirigor_jax.plan.chips import Slice, gib
from mirigor_jax.plan.work import STAGES, Work, at_batch, train_work
from mirigor_jax.progress import Progress
from mirigor_jax.runs.job import Job

ON_CHIP = 2**27  # bytes of temporaries that may be in on-chip memory, and move to HBM as the batch grows


def compile_work(work: Work, where: Slice, label: str) -> tuple[Any, int, float]:
    """Compile a step for a slice, and print how long it takes, as it can be minutes, and the HBM that it needs.

    Returns (the program, or None if it doesn't fit; the bytes of HBM that it needs; the seconds that compiling took).
    """
    with Progress(f"compiling {label} for {where.name}, {work.batch}") as progress:
        began = time.monotonic()
        compiled, needed = memory.compile_within(lambda: work.step.lower(*work.arguments).compile())
        seconds = time.monotonic() - began
        fits = compiled is not None and needed <= where.chip.hbm
        progress.end(f", {gib(needed)}{'' if fits else ': does not fit'}")
    return compiled if fits else None, needed, seconds


def measure(work: Work, where: Slice, label: str) -> dict[str, Any]:
    """The memory, work and least time of one call of the step on one chip: a row of plan.json, of plain data.

    label: the stage's name.
    """
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
    """Returns the function k → the largest batch up to k that `largest` may try.

    These batches are n units, with n below 4, or 4, 5, 6 or 7 times a power of two.
    """

    def down(k: int) -> int:
        units = k // unit
        power = max(0, units.bit_length() - 3)
        return unit * (units >> power << power)

    return down


def largest(
    need: Callable[[int], tuple[bool, int]], k: int, unit: int, available: int, tries: int = 8
) -> tuple[int | None, int | None]:
    """Search for the largest batch that fits.

    need: batch → (whether it fits, the bytes that it needs).
    k: the first batch to try.
    unit: every batch is a multiple of it.
    available: bytes of HBM.
    tries: the most batches to try.
    Returns (the largest tried batch that fits, the smallest tried batch that does not), each None if there is none.
    A batch that needs little grows by the largest factor that fits even if all its bytes grow in proportion. With two
    batches that fit, the next is at the point where a line through their bytes reaches the available bytes. The search
    ends when the largest that fits and the smallest that does not are neighbors. Before any batch fits, the next is
    smaller by the factor of available to needed bytes.
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
    """The largest train.k that fits the slice, and all tried ones. first: `measure`'s row of the job's own train.k."""
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
    """Plan the stages on slices of 4, 16, 64 and 256 chips of the kind of `where`.

    Training has the same number of pairs a chip on every slice, estimation has the same K.
    rows: the stages on `where`, which are not compiled again.
    Yields rows as `measure` returns them. If they fit, they have `efficiency_at_best` (network, memory and arithmetic
    overlap in full) and `efficiency_without_overlap`: pairs a second and chip, relative to the smallest slice that
    fits.
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
