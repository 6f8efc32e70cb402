"""How fast the parts are on this machine: one row a measurement, medians of several runs.

python launch/benchmark.py                    every part
python launch/benchmark.py --only=cdp         CDP rendering on one core, and the whole grain pipeline
python launch/benchmark.py --json=FILE        the rows as JSON too: {name, ours, peer, ratio, unit}
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mirigor_jax.data import cdp, pairing
from mirigor_jax.data.pipeline import batches

Row = dict[str, str | float | None]


def rate(work: Callable[[], int], repeats: int = 7) -> float:
    """Median of items a second, after one run to warm up."""
    work()
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        items = work()
        rates.append(items / (time.perf_counter() - start))
    return statistics.median(rates)


def bench_cdp() -> list[Row]:
    """Images a second at 64×64, in batches of 256 pairs: rendered on one core, and as the training loop draws them."""
    data = cdp.make()
    read = partial(data.pairs, pairing.parse("all", data.names, data.sizes), 0, 0)
    pairs, count = 256, 40

    def render() -> int:
        for batch in range(count):
            read(batch * pairs, (batch + 1) * pairs)
        return 2 * pairs * count

    def pipeline() -> int:
        iterator = iter(batches(read, batch_size=pairs))
        for _ in range(count):
            next(iterator)
        return 2 * pairs * count

    return [
        {"name": f"cdp {name}", "ours": rate(work), "peer": None, "ratio": None, "unit": "images/s"}
        for name, work in (("rendering, one core", render), ("grain pipeline", pipeline))
    ]


PARTS = {"cdp": bench_cdp}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"comma-separated, of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - PARTS.keys():
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose of {', '.join(PARTS)}")
    print(f"on {platform.processor() or platform.machine()}, {platform.platform()}")
    rows = [row for part in options.only.split(",") for row in PARTS[part]()]
    for row in rows:
        print(f"{row['name']:32s} {row['ours']:>12,.0f} {row['unit']}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
