"""Compare MIGE's gradient of MI with the true one: makes the table and the picture of docs/results/mige.md.

python launch/mige.py --out=FOLDER      two samples for each case, number of columns and number of pairs

With --out it also writes its rows (FOLDER/mige.json), its table (mige.md) and its picture (mige.png).
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from numpy.polynomial.hermite_e import hermegauss

from mirigor_jax import mi
from mirigor_jax.mi.mige import spectral_score
from mirigor_jax.tables import grid

Row = dict[str, Any]
COLUMNS, SAMPLES, SEEDS = (5, 20), (500, 2000, 8000), 2


class Case(NamedTuple):
    """Pairs whose I has a known gradient with respect to parameters p.

    x, y: the pairs. pull: (g_x, g_y), the log density ratio's gradients → the gradient of I with respect to p, the mean
    over pairs of g_x·∂x/∂p + g_y·∂y/∂p. truth: that gradient.
    """

    x: np.ndarray
    y: np.ndarray
    pull: Callable[[np.ndarray, np.ndarray], np.ndarray]
    truth: np.ndarray


def _turn(d: int, seed: int) -> np.ndarray:
    """A random rotation of rows with unequal scales."""
    rng = np.random.default_rng(seed)
    return np.linalg.qr(rng.normal(size=(d, d)))[0] * rng.uniform(0.5, 2, d)[None, :]


def gaussian(d: int, n: int, seed: int) -> Case:
    """Correlations 0.3 to 0.9 of d pairs of coordinates, each view rotated and scaled; p are the correlations."""
    a, b, slopes, truth = _correlated(d, n, seed)
    turn_x, turn_y = _turn(d, 1), _turn(d, 2)
    return Case(a @ turn_x, b @ turn_y, lambda g_x, g_y: np.mean(g_y @ turn_y.T * slopes, axis=0), truth)


def lognormal(d: int, n: int, seed: int) -> Case:
    """The exponential of each coordinate, not rotated. I and its gradient are the Gaussian's."""
    a, b, slopes, truth = _correlated(d, n, seed)
    return Case(np.exp(a), np.exp(b), lambda g_x, g_y: np.mean(g_y * np.exp(b) * slopes, axis=0), truth)


def _correlated(d: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(a, b, ∂b/∂ρ, ∂I/∂ρ) for I = −½ Σ log(1 − ρ²)."""
    rho = np.linspace(0.3, 0.9, d)
    a, noise = np.random.default_rng(seed).normal(size=(2, n, d))
    rest = np.sqrt(1 - rho**2)
    return a, rho * a + rest * noise, a - rho / rest * noise, rho / (1 - rho**2)


def shared_sign(d: int, n: int, seed: int, length: float = 2.0) -> Case:
    """x and y are ±c plus noise and share the sign alone; p is x's c. Each view is rotated and scaled."""
    rng, direction = np.random.default_rng(seed), np.random.default_rng(3).normal(size=d)
    center = length * direction / np.linalg.norm(direction)
    sign = rng.choice([-1.0, 1.0], (n, 1))
    x, y = sign * center + rng.normal(size=(2, n, d))
    turn_x, turn_y = _turn(d, 1), _turn(d, 2)
    step = 1e-4
    rise = (_shared_sign_nats(length + step, length) - _shared_sign_nats(length - step, length)) / (2 * step)
    truth = rise * center / length
    return Case(x @ turn_x, y @ turn_y, lambda g_x, g_y: np.mean(g_x @ turn_x.T * sign, axis=0), truth)


def _shared_sign_nats(norm_x: float, norm_y: float) -> float:
    """I by quadrature over the coordinates along the centers, given that the sign is +."""
    nodes, weights = hermegauss(80)
    x, y = norm_x * (norm_x + nodes[:, None]), norm_y * (norm_y + nodes[None, :])
    ratio = np.logaddexp(x + y, -x - y) - np.logaddexp(x, -x) - np.logaddexp(y, -y) + np.log(2)
    return float(weights @ ratio @ weights / weights.sum() ** 2)


def gaussian_alone(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """The gradients of the log density ratio of the Gaussian with the rows' moments."""
    both = np.hstack([x - x.mean(axis=0), y - y.mean(axis=0)])
    covariance, d = both.T @ both / len(both), x.shape[1]
    joint = -both @ np.linalg.inv(covariance)
    alone = [-both[:, part] @ np.linalg.inv(covariance[part, part]) for part in (slice(d), slice(d, None))]
    return [joint[:, :d] - alone[0], joint[:, d:] - alone[1]]


@jax.jit
def ssge_alone(x: jax.Array, y: jax.Array) -> list[jax.Array]:
    """The same from SSGE of the scaled rows, with nothing known of the scores."""
    scales = [jnp.std(rows, axis=0, keepdims=True) for rows in (x, y)]
    parts = [rows / scale for rows, scale in zip((x, y), scales, strict=True)]
    joint, *alone = (spectral_score(r, jnp.zeros_like(r)) for r in (jnp.hstack(parts), *parts))
    d = x.shape[1]
    pairs = zip((joint[:, :d], joint[:, d:]), alone, scales, strict=True)
    return [(together - apart) / scale for together, apart, scale in pairs]


CASES = {"Gaussians, rotated": gaussian, "log-normal": lognormal, "shared sign, rotated": shared_sign}
WAYS: dict[str, tuple[Callable[..., Any], str]] = {  # and each way's color
    "Gaussian alone": (gaussian_alone, "#999999"),
    "SSGE alone": (ssge_alone, "#E69F00"),
    "mi.mige": (jax.jit(mi.density_ratio_gradients), "#0072B2"),
}


def rows() -> Iterator[Row]:
    """Yields a row for each case, number of columns and of pairs, way and sample."""
    for d in COLUMNS:
        for n in SAMPLES:
            for name, make in CASES.items():
                for seed in range(SEEDS):
                    case = make(d, n, seed)
                    for way, (gradients, _) in WAYS.items():
                        views = (case.x.astype(np.float32), case.y.astype(np.float32))
                        found = case.pull(*(np.asarray(g, np.float64) for g in gradients(*views)))
                        length, true_length = np.linalg.norm(found), np.linalg.norm(case.truth)
                        cosine = found @ case.truth / (length * true_length) if length > 0 else 0.0
                        yield {
                            "case": name,
                            "d": d,
                            "n": n,
                            "way": way,
                            "seed": seed,
                            "norm": float(length / true_length - 1),
                            "degrees": float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
                            "error": float(np.linalg.norm(found - case.truth) / true_length),
                        }


def table(made: list[Row]) -> str:
    """Errors in norm and in direction at each n, means of their sizes over samples."""
    header = ["case", "d", "way", *(f"n = {n:,}" for n in SAMPLES)]
    lines = []
    for case in CASES:
        for d in COLUMNS:
            for way in WAYS:
                cells = []
                for n in SAMPLES:
                    same = [r for r in made if (r["case"], r["d"], r["n"], r["way"]) == (case, d, n, way)]
                    norm, degrees = (np.mean([abs(r[key]) for r in same]) for key in ("norm", "degrees"))
                    cells.append(f"{100 * norm:.1f} %, {degrees:.1f}°")
                lines.append([case, str(d), way, *cells])
    return grid(header, lines)


def figure(made: list[Row]) -> Figure:
    """Draw the relative error of the gradient against n: a column for each case, a line style for each d."""
    drawn = Figure(figsize=(11, 4), dpi=150, layout="constrained")
    axes = drawn.subplots(1, len(CASES), sharey=True)
    for ax, case in zip(axes, CASES, strict=True):
        for way, (_, color) in WAYS.items():
            for d, line in zip(COLUMNS, ("-", "--"), strict=True):
                same = [r for r in made if (r["case"], r["d"], r["way"]) == (case, d, way)]
                means = [np.mean([r["error"] for r in same if r["n"] == n]) for n in SAMPLES]
                ax.plot(SAMPLES, means, line, marker="o", markersize=4, color=color, label=f"{way}, d = {d}")
        ax.axhline(0.05, color="#333333", linewidth=0.8)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xticks(SAMPLES, [f"{n:,}" for n in SAMPLES])
        ax.minorticks_off()
        ax.set_title(case, loc="left", fontsize=10)
        ax.set_xlabel("n, pairs")
        ax.spines[["top", "right"]].set_visible(False)
    ticks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    axes[0].set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    axes[0].set_ylabel("length of the gradient's error / true length")
    handles, labels = axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    made = []
    for row in rows():
        made.append(row)
        print(json.dumps(row), flush=True)
    print(table(made))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "mige.json").write_text("[\n" + ",\n".join(map(json.dumps, made)) + "\n]\n")
        (options.out / "mige.md").write_text(table(made) + "\n")
        figure(made).savefig(options.out / "mige.png")


if __name__ == "__main__":
    main()
