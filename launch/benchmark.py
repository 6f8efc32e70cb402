"""How fast the parts are on this machine, peers beside them where installed: one row a measurement.

python launch/benchmark.py                    every part
python launch/benchmark.py --only=cdp         CDP rendering on one core, and the whole grain pipeline
python launch/benchmark.py --only=critic      critic steps against eager PyTorch's (pip install torch; else no peer)
python launch/benchmark.py --only=nt_xent     NT-Xent with its gradient, against one matrix and its bare products
python launch/benchmark.py --json=FILE        the rows as JSON too: {name, ours, peer, ratio, unit}

Each number is the median of several rounds in which ours and the peer's take turns, in this one process.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mirigor_jax.data import cdp, pairing
from mirigor_jax.data.pipeline import batches
from mirigor_jax.mi import ESTIMATORS, JointCritic, SeparableCritic
from mirigor_jax.mi.contrastive import nt_xent
from mirigor_jax.mi.distributions import Gaussian
from mirigor_jax.mi.fit import Member, Pairs, Recipe, critic_step, start_critic

try:
    import torch
except ImportError:
    torch = None

Row = dict[str, str | float | None]
Work = Callable[[], int]  # does some of it, and says how many items that was


def measure(name: str, unit: str, ours: Work, peer: Work | None = None, rounds: int = 7) -> Row:
    """Medians of items a second over rounds in which both take their turn, after one to warm up."""
    rates: dict[Work, list[float]] = {work: [] for work in (ours, peer) if work}
    for _ in range(1 + rounds):
        for work, of_work in rates.items():
            start = time.perf_counter()
            items = work()
            of_work.append(items / (time.perf_counter() - start))
    mine, other = (statistics.median(rates[work][1:]) if work else None for work in (ours, peer))
    return {"name": name, "ours": mine, "peer": other, "ratio": other and mine / other, "unit": unit}


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

    return [measure("cdp rendering, one core", "images/s", render), measure("cdp grain pipeline", "images/s", pipeline)]


def bench_critic() -> list[Row]:
    """Adam steps a second on in-batch InfoNCE, in float32 on every core the process may use (two: taskset -c 0,1).

    Both draw each step's batch from the same array on the device. The peer is what a PyTorch user writes who knows that
    a joint critic's first layer splits into one of x and one of y: the same layers, its own Adam, eager. Run it alone:
    where other work takes a core, PyTorch's waiting threads lose far more than ours, and the ratio flatters us.
    """
    hidden, features = (256, 256), 128
    with jax.default_device(jax.devices("cpu")[0]):
        x, y = Gaussian(20, 4.0).sample(jax.random.key(0), 6000)
        return [
            measure(
                f"critic {name}, {hidden[0]} wide, K = {k}",
                "steps/s",
                fit(critic, x, y, k, steps),
                torch and torch_fit(critic, x, y, k, steps),
            )
            for name, critic, k, steps in (
                ("separable", SeparableCritic(hidden, features), 64, 500),
                ("joint", JointCritic(hidden), 256, 6),
            )
        ]


def fit(critic: nn.Module, x: Float[Array, "n d"], y: Float[Array, "n e"], k: int, steps: int) -> Work:
    """The library's own steps from a fresh critic, in one dispatch."""
    recipe = Recipe(critic, (ESTIMATORS["info_nce"](),), batch_size=k, steps=steps)
    data, member = Pairs(x[None], y[None]), Member(*np.zeros((3,), np.int32))
    state = start_critic(member, data, data, recipe=recipe)

    @jax.jit
    def run(state, data, key):
        def step(state, key):
            rows = jax.random.randint(key, (k,), 0, data.x.shape[1])
            return critic_step(state, (data, member), rows, key, recipe=recipe)

        return jax.lax.scan(step, state, jax.random.split(key, steps))

    def work() -> int:
        jax.block_until_ready(run(state, data, jax.random.key(2)))
        return steps

    return work


def torch_fit(critic: nn.Module, x: Float[Array, "n d"], y: Float[Array, "n e"], k: int, steps: int) -> Work:
    """The same critic's steps in eager PyTorch."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    x, y = (torch.tensor(np.asarray(a)) for a in (x, y))

    def mlp(*widths: int) -> torch.nn.Module:
        layers = [layer for ends in pairwise(widths) for layer in (torch.nn.Linear(*ends), torch.nn.ReLU())]
        return torch.nn.Sequential(*layers[:-1])

    if isinstance(critic, JointCritic):
        width = critic.hidden[0]
        of_x, of_y = torch.nn.Linear(x.shape[1], width), torch.nn.Linear(y.shape[1], width, bias=False)
        rest = mlp(*critic.hidden, 1)
    else:
        of_x, of_y = (mlp(a.shape[1], *critic.hidden, critic.features) for a in (x, y))
        rest = torch.nn.Identity()

    def scores(x, y):
        if isinstance(critic, JointCritic):
            return rest(torch.relu(of_x(x)[:, None] + of_y(y)))[..., 0]
        return of_x(x) @ of_y(y).T

    optimizer = torch.optim.Adam([*of_x.parameters(), *of_y.parameters(), *rest.parameters()], lr=1e-3)
    positives = torch.arange(k)

    def work() -> int:
        for _ in range(steps):
            rows = torch.randint(len(x), (k,))
            loss = torch.nn.functional.cross_entropy(scores(x[rows], y[rows]), positives)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steps

    return work


def bench_nt_xent() -> list[Row]:
    """NT-Xent with its gradient in float32, K pairs of 128 numbers; and the MiB it takes above them, less being better.

    Peers: the whole matrix of scores, where it fits; and nothing but the products, of the tiles on and above the
    diagonal once forward, and again backward with two more.
    """
    accelerator = jax.default_backend() != "cpu"
    rows: list[Row] = []
    for k in (2048, 8192, 65_536) if accelerator else (2048, 8192):
        z = jax.random.normal(jax.random.key(0), (2, k, 128))
        ours = jax.jit(jax.value_and_grad(lambda z: nt_xent(*z, 0.1))).lower(z).compile()
        peers = {"its products": jax.jit(partial(products, tile=4096 if accelerator else 512))}
        mib, other = ours.memory_analysis().temp_size_in_bytes / 2**20, None
        if k <= 8192:
            peers["one matrix"] = jax.jit(jax.value_and_grad(as_one_matrix)).lower(z).compile()
            other = peers["one matrix"].memory_analysis().temp_size_in_bytes / 2**20
        for name, peer in peers.items():
            rows.append(measure(f"nt_xent, K = {k}, {name}", "steps/s", once(ours, z), once(peer, z), rounds=5))
        ratio = other and mib / other
        rows.append({"name": f"nt_xent, K = {k}, memory", "ours": mib, "peer": other, "ratio": ratio, "unit": "MiB"})
    return rows


def once(step: Callable[[Array], Any], z: Array) -> Work:
    """One call of it."""

    def work() -> int:
        jax.block_until_ready(step(z))
        return 1

    return work


def as_one_matrix(z: Float[Array, "2 k d"]) -> Float[Array, ""]:
    """NT-Xent the short way."""
    z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    rows = z.reshape(-1, z.shape[-1])
    scores = jnp.where(jnp.eye(len(rows), dtype=bool), -jnp.inf, rows @ rows.T / 0.1)
    return jnp.mean(jax.nn.logsumexp(scores, axis=1)) - jnp.mean(jnp.sum(z[0] * z[1], axis=1)) / 0.1


def products(z: Float[Array, "2 k d"], *, tile: int) -> tuple[Array, Array]:
    """The matrix products of NT-Xent and its gradient, with nothing between them."""
    blocks = z.reshape(-1, tile, z.shape[-1])
    pairs = np.stack(np.triu_indices(len(blocks)), axis=1)

    def forward(largest, pair):
        return jnp.maximum(largest, jnp.max(blocks[pair[0]] @ blocks[pair[1]].T)), None

    def backward(sums, pair):
        i, j = pair
        scores = blocks[i] @ blocks[j].T
        return sums.at[i].add(scores @ blocks[j]).at[j].add(scores.T @ blocks[i]), None

    return jax.lax.scan(forward, -jnp.inf, pairs)[0], jax.lax.scan(backward, jnp.zeros_like(blocks), pairs)[0]


COLUMNS = {"ratio": ".2f", "ours": ",.1f", "peer": ",.1f"}
PARTS = {"cdp": bench_cdp, "critic": bench_critic, "nt_xent": bench_nt_xent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"comma-separated, of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - PARTS.keys():
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose of {', '.join(PARTS)}")
    print(f"on {platform.processor() or platform.machine()}, {platform.platform()}, load {os.getloadavg()[0]:.1f}")
    rows = [row for part in options.only.split(",") for row in PARTS[part]()]
    print(f"{'':36s} {'ratio':>7s} {'ours':>10s} {'peer':>10s}")
    for row in rows:
        ratio, ours, peer = ("-" if row[key] is None else f"{row[key]:{form}}" for key, form in COLUMNS.items())
        print(f"{row['name']:36s} {ratio:>7s} {ours:>10s} {peer:>10s} {row['unit']}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
