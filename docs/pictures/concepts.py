"""Make two pictures of Concepts from simulations: certificates.png and nt_xent.png.

`python docs/pictures/concepts.py` takes a few minutes.
"""

from pathlib import Path

import numpy as np

from mirigor_jax import mi
from mirigor_jax.drawing import CERTIFIED, INK, LOWER_BOUND, NO_BOUND, legends, panels

HERE = Path(__file__).parent
REPEATS, ROWS, CLASSES, SPREAD = 40, 2000, 4, 1.3
NUM_CLASSES, BATCHES = 64, 20_000  # of the second picture


def sample(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n rows of two numbers, normal around the mean of their class, and the classes."""
    labels = rng.integers(0, CLASSES, n)
    angles = 2 * np.pi * labels / CLASSES
    means = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return means + SPREAD * rng.normal(size=(n, 2)), labels


def true_bits(rng: np.random.Generator, n: int = 1_000_000) -> float:
    """I(h_X;h_Y) of two rows of one class: the mean of log2 of Σ_c p(c|x) p(c|y) / p(c) over n pairs."""
    x, labels = sample(rng, n)
    angles = 2 * np.pi * np.arange(CLASSES) / CLASSES
    means = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    y = means[labels] + SPREAD * rng.normal(size=(n, 2))
    posterior = []
    for rows in (x, y):
        log = -((rows[:, None] - means) ** 2).sum(axis=2) / (2 * SPREAD**2)
        weights = np.exp(log - log.max(axis=1, keepdims=True))
        posterior.append(weights / weights.sum(axis=1, keepdims=True))
    return float(np.log2(CLASSES * (posterior[0] * posterior[1]).sum(axis=1)).mean())


def draw_certificates() -> None:
    """The certified interval of each of many fresh samples, and the truth."""
    truth = true_bits(np.random.default_rng(0))
    lower = []
    for seed in range(REPEATS):
        h, labels = sample(np.random.default_rng(1000 + seed), ROWS)
        lower.append(mi.estimate_labels(h, labels).lower_bits)
        print(f"sample {seed + 1} of {REPEATS}: at least {lower[-1]:.3f} bits", flush=True)
    wrong = sum(end > truth for end in lower)
    figure, (ax,) = panels(f"{REPEATS} measurements on fresh samples: certified intervals, bits")
    place = np.arange(REPEATS)
    ax.bar(
        place, np.log2(CLASSES) - np.array(lower), bottom=lower, color=CERTIFIED, alpha=0.6, label="certified at 95 %"
    )
    ax.axhline(truth, color=INK, linestyle="--", label=f"true I(h_X;h_Y) = {truth:.3f} bits; missed {wrong} times")
    ax.set_xlabel("sample")
    ax.set_ylim(0, 2.1)
    legends(ax)
    figure.savefig(HERE / "certificates.png")


def draw_nt_xent() -> None:
    """InfoNCE with the true density ratio, and the NT-Xent estimate of a critic that also tells the two views apart."""
    rng, truth = np.random.default_rng(0), np.log2(NUM_CLASSES)
    sizes = 2 ** np.arange(1, 13)
    info_nce = []
    for k in sizes:
        # The density ratio of a pair is 64 if the classes agree, else 0: the loss counts the partners of the class.
        others = rng.binomial(k - 1, 1 / NUM_CLASSES, BATCHES)
        info_nce.append(float(np.mean(np.log2(k / (1 + others)))))
    nt_xent = np.array(info_nce) + np.log2((2 * sizes - 1) / sizes)
    figure, (ax,) = panels("64 classes, bits")
    ax.axhline(truth, color=INK, linestyle="--", label=f"true MI = {truth:.0f} bits")
    ax.plot(sizes, nt_xent, "s-", color=NO_BOUND, markersize=4, label="NT-Xent estimate, the views told apart")
    ax.plot(sizes, info_nce, "o-", color=LOWER_BOUND, markersize=4, label="InfoNCE, the true density ratio")
    ax.plot(sizes, np.log2(sizes), ":", color=INK, label="log₂ K")
    ax.set_xscale("log", base=2)
    ax.set_ylim(0, 7.4)
    ax.set_xlabel("K, pairs in a batch")
    legends(ax)
    figure.savefig(HERE / "nt_xent.png")


if __name__ == "__main__":
    draw_nt_xent()
    draw_certificates()
