"""The study `certified`: when does the NT-Xent estimate leave the certified interval?

It also shows a trap: test images that are redrawn from a finite bank seem to prove H(C) for any encoder.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from mirigor_jax import tables
from mirigor_jax.drawing import (
    CEILING,
    CERTIFIED,
    ENTROPY,
    GRID,
    INK,
    LOWER_BOUND,
    NO_BOUND,
    Figure,
    floats,
    panels,
    shared_legend,
)
from mirigor_jax.files import AnyPath
from mirigor_jax.mi.certificates import classifier_lower_bits
from mirigor_jax.mi.certify import CERTIFICATES, Certificate
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.schema import ImageReport
from mirigor_jax.studies.rows import TASKS, Row, nt_xent, run_row
from mirigor_jax.studies.table import STUDIES, Study

REDRAWS = 65_536  # any number would do: redraws cost nothing and hold no new information
CAPTIONS = {
    "certified": "The NT-Xent estimate beside what each certificate proves; a ring: it leaves the certified interval.",
    "reach": "InfoNCE of every encoder against K, and what an optimal critic shows.",
    "trap": "An untrained encoder: what redraws of a bank of test images claim, and what fresh images prove.",
}


def row(done: ImageReport, folder: AnyPath) -> Row:
    """A run's estimate named `certified`: NT-Xent and InfoNCE at every K, all certificates, and the interval.

    If the run is untrained and its pairs share all attributes, its row also has the rows of `trap`.
    """
    estimate = done.estimates["certified"]
    reading, lower = nt_xent(done, estimate), estimate.lower_bits or 0.0
    bits, upper = reading.quoted.bits, math.inf if estimate.upper_bits is None else estimate.upper_bits
    # An excess that the table's three decimals can't show does not count as outside.
    outside = "above" if bits - upper > 5e-4 else "below" if lower - bits > 5e-4 else ""
    names = ("nt_xent_bits", "info_nce_bits", "value_bits", "entropy_bits", "confidence")
    row = {
        **run_row(done),
        **{name: getattr(estimate, name) for name in names},
        "nt_xent_k": reading.k,
        "lower_bits": lower,
        "upper_bits": upper,
        "outside": outside,
        "excess_bits": bits - (upper if outside == "above" else lower) if outside else 0.0,
        "info_nce": {k: reading.bits for k, reading in estimate.info_nce.at.items()},
        "max_info_nce": {k: reading.max_bits for k, reading in estimate.info_nce.at.items()},
        "nt_xent": {k: reading.bits for k, reading in reading.at.items()},
        "certificates": {name: shown.lower_bits for name, shown in estimate.certificates.items()},
        "trap": None,
    }
    if row["steps"] == 0 and len(done.truth.shared) == len(TASKS) - 1:
        test = RunFolder(folder).arrays("estimates/certified/features/test.npz")
        classes = np.unique(test["labels_x"], axis=0, return_inverse=True)[1]
        row["trap"] = trap(test["h_x"], classes, round(2 ** row["entropy_bits"]), estimate.confidence)
    return row


def trap(
    h: Float[np.ndarray, "n d"], classes: Integer[np.ndarray, " n"], num_classes: int, confidence: float
) -> list[Row]:
    """Lower ends of I_class from images redrawn from a bank of test images, and from fresh images.

    h: representations of independent images.
    classes: their classes, out of num_classes that are equally frequent.
    The classifier gives an image the class of the nearest row of the bank. An image redrawn from the bank finds itself,
    so there are no errors, for any number of draws and any encoder. The same happens if the classes are shuffled, when
    the true information is 0.
    Returns rows {"bank", "shuffled", "redrawn_bits", "fresh_bits"}; the bits are lower ends by `classifier_lower_bits`.
    """
    rng, frequencies = np.random.default_rng(0), np.full(num_classes, 1 / num_classes)
    shuffled = rng.permutation(classes)
    rows = []
    for bank in (size for size in (64, 256, 1024, 4096) if 2 * size <= len(h)):
        fresh = slice(bank, bank + 4096)
        redrawn = rng.integers(bank, size=REDRAWS)
        nearest_of_bank, nearest_of_fresh = _nearest(h[:bank], h[:bank]), _nearest(h[fresh], h[:bank])
        for labels in (classes, shuffled):
            wrong, wrong_fresh = labels[nearest_of_bank] != labels[:bank], labels[nearest_of_fresh] != labels[fresh]
            claims = (
                classifier_lower_bits(int(errors.sum()), len(errors), frequencies, confidence)
                for errors in (wrong[redrawn], wrong_fresh)
            )
            rows.append(
                {
                    "bank": bank,
                    "shuffled": labels is shuffled,
                    **dict(zip(("redrawn_bits", "fresh_bits"), claims, strict=True)),
                }
            )
    return rows


def _nearest(h: Float[np.ndarray, "n d"], bank: Float[np.ndarray, "b d"]) -> Integer[np.ndarray, " n"]:
    """For each row of h, the index of the nearest row of the bank."""
    h, bank = h.astype(np.float64), bank.astype(np.float64)
    return np.argmin(np.sum(bank**2, axis=1)[None, :] - 2 * h @ bank.T, axis=1)


def table(rows: Sequence[Row]) -> str:
    """A line for each run and for each H(C), and the trap's table if a row has a trap."""
    ks, shown = sorted({k for row in rows for k in row["info_nce"]}), _certificates(rows)
    header = (
        "run",
        "H(C)",
        f"NT-Xent estimate, K = {rows[0]['nt_xent_k']}",
        *(f"InfoNCE, K = {k:,}" for k in ks),
        *(certificate.heading for certificate in shown.values()),
        "certified",
        "NT-Xent estimate lies",
    )
    lines = []
    for row in rows:
        info_nce, lower = row["info_nce"], row["certificates"]
        lines.append(
            (
                row["cell"],
                f"{row['entropy_bits']:.3f}",
                f"{row['nt_xent_bits']:.3f}",
                *(f"{info_nce[k]:z.3f}" if k in info_nce else "–" for k in ks),
                *(f"{tables.round_down(lower[name]):.3f}" if name in lower else "–" for name in shown),
                f"[{tables.round_down(row['lower_bits']):.3f}, {row['upper_bits']:.3f}]",
                f"**{row['outside']}, by {abs(row['excess_bits']):.3f}**" if row["outside"] else "within",
            )
        )
    entropies = sorted({row["entropy_bits"] for row in rows}, reverse=True)
    for entropy in entropies:
        most = {k: bits for row in rows if row["entropy_bits"] == entropy for k, bits in row["max_info_nce"].items()}
        cells = [tables.bits(most.get(k)) for k in ks]
        empty = [""] * (len(shown) + 2)
        lines.append((f"optimal critic at {entropy:g} bits", f"{entropy:.3f}", "", *cells, *empty))
    legend = (
        f"Values are in bits. Each certificate's lower end holds on fresh images at {100 * rows[0]['confidence']:g} % "
        "confidence; the certified interval starts at the lower end of the certificate that validation chose. No "
        "critic's InfoNCE exceeds an optimal critic's at the same K. The NT-Xent estimate (Lee et al. 2023, Eq. 4) is "
        "not a bound: if it leaves the certified interval, its error is at least its distance from the interval."
    )
    sections = [tables.grid(header, lines), legend]
    if trapped := next((row for row in rows if row["trap"]), None):
        sections += ["## What redraws certify", *_trap_table(trapped)]
    return "\n\n".join(sections)


def _certificates(rows: Sequence[Row]) -> dict[str, Certificate]:
    """The certificates that some run has."""
    return {name: one for name, one in CERTIFICATES.items() if any(name in row["certificates"] for row in rows)}


def _trap_table(trapped: Row) -> tuple[str, str]:
    """(The trap's legend, its table)."""
    redrawn = tables.grid(
        ("bank, images", "classes", "redrawn from the bank: “I ≥”", "fresh images: I ≥"),
        [
            (
                f"{point['bank']:,}",
                "shuffled: the truth is 0" if point["shuffled"] else "true",
                f"{tables.round_down(point['redrawn_bits']):.3f}",
                f"{tables.round_down(point['fresh_bits']):.3f}",
            )
            for point in trapped["trap"]
        ],
    )
    legend = (
        f"The trap, on the untrained encoder ({trapped['cell']}): a nearest-neighbor classifier on a bank of test "
        f"images is tested on {REDRAWS:,} images redrawn from the bank, and on fresh images. Redraws “certify” H(C) "
        "for any encoder with distinct rows, even if the classes are shuffled and the true information is 0."
    )
    return legend, redrawn


def draw(rows: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """The figures `certified` and `reach`, and `trap` if a row has one. rows: one for each run."""
    drawn = {"certified": _intervals(rows), "reach": _reach(rows)}
    trapped = [row for row in rows if row["trap"]]
    return drawn | ({"trap": _trap(trapped[0])} if trapped else {})


def _intervals(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw, for each run, how many bits the certificates, InfoNCE and the NT-Xent estimate fall short of H(C)."""
    figure, (ax,) = panels("bits short of H(C), on a logarithmic scale; right of 0 no MI can be")
    figure.set_size_inches(9.6, 1.8 + 0.24 * len(rows))
    ax.grid(False, axis="y")
    ax.grid(axis="x", color=GRID)
    y, entropy = np.arange(len(rows)), floats([row["entropy_bits"] for row in rows])
    lower, upper, nt_xent, info_nce = (
        entropy - floats([row[name] for row in rows])
        for name in ("lower_bits", "upper_bits", "nt_xent_bits", "info_nce_bits")
    )
    label = f"certified at {100 * rows[0]['confidence']:g} %: MI is in here"
    ax.barh(y, lower - upper, 0.7, upper, color=CERTIFIED, alpha=0.3, label=label)
    for (name, certificate), marker in zip(_certificates(rows).items(), "D<>v^Pd", strict=False):
        ends = entropy - floats([row["certificates"].get(name) for row in rows])
        ax.plot(ends, y, marker, color=INK, markersize=4, label=f"certificate: {certificate.heading}")
    ax.plot(info_nce, y, "o", color=LOWER_BOUND, markersize=5, label="InfoNCE at the largest K")
    ax.plot(nt_xent, y, "s", color=NO_BOUND, markersize=5, label=f"NT-Xent estimate, K = {rows[0]['nt_xent_k']}")
    outside = np.array([bool(row["outside"]) for row in rows])
    ring: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "color": CEILING}
    ax.plot(nt_xent[outside], y[outside], "o", label="outside of its bar by over 0.0005 bit", **ring)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set_xscale("symlog", linthresh=1e-3)
    ticks = (1, 0.1, 0.01, 0.001, 0, -0.001, -0.01)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(xlim=(1.5 * entropy.max(), -0.03), ylim=(len(rows) - 0.5, -0.5), xlabel="H(C) − bits")
    ax.set_yticks(y, [f"{row['cell']}: {row['entropy_bits']:g} bits" for row in rows])
    shared_legend(figure, [ax])
    return figure


def _reach(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw InfoNCE and the NT-Xent estimate of every encoder, and an optimal critic's InfoNCE, against K.

    Each H(C) has a panel.
    """
    entropies = sorted({row["entropy_bits"] for row in rows}, reverse=True)
    figure, axes = panels(*(f"H(C) = {entropy:.3f} bits: estimates, bits" for entropy in entropies))
    for ax, entropy in zip(axes, entropies, strict=True):
        group = [row for row in rows if row["entropy_bits"] == entropy]
        for first, row in enumerate(group):
            curves = row["info_nce"], row["info_nce"].values(), row["nt_xent"].values()
            k, info_nce, nt_xent = (floats([*values]) for values in curves)
            trained = row["steps"] > 0
            style: dict[str, Any] = {
                "linewidth": 1,
                "markersize": 3,
                "alpha": 0.7,
                "linestyle": "-" if trained else ":",
            }
            ax.plot(
                k,
                nt_xent,
                color=NO_BOUND,
                marker="s",
                label=None if first else "NT-Xent estimate (not a bound)",
                **style,
            )
            ax.plot(k, info_nce, color=LOWER_BOUND, marker="o", label=None if first else "InfoNCE", **style)
            if not trained:
                ax.annotate(
                    row["cell"], (k[1], info_nce[1]), (6, -6), textcoords="offset points", fontsize=8, color=INK
                )
        most = max((row["max_info_nce"] for row in group), key=len)
        k, bits = floats([*most]), floats([*most.values()])
        ax.plot(k, bits, color=INK, linewidth=2, label="an optimal critic: the most at K")
        ax.axhline(entropy, color=ENTROPY, label="H(C)", zorder=1.5)
        ax.set_xscale("log", base=2)
        ax.set_xticks(k, [f"{size:,.0f}" for size in k], rotation=30)
        ax.minorticks_off()
        ax.set_xlabel("K, pairs a batch")
    shared_legend(figure, axes)
    return figure


def _trap(row: dict[str, Any]) -> Figure:
    """Draw lower ends in bits against the size of the bank: for redrawn and fresh images, true and shuffled classes."""
    figure, (ax,) = panels("untrained encoder: “certified” lower end of I(h_X;h_Y), bits")
    for shuffled, classes_are, line, size in (
        (False, "true classes", "-", 5),
        (True, "shuffled: the true MI is 0", "--", 10),
    ):
        points = [point for point in row["trap"] if point["shuffled"] == shuffled]
        bank = floats([point["bank"] for point in points])
        style: dict[str, Any] = {"linestyle": line, "marker": "o", "markersize": size}
        for name, what, color in (("redrawn_bits", "redrawn", CEILING), ("fresh_bits", "fresh", LOWER_BOUND)):
            fill = "none" if shuffled else color
            bits = floats([point[name] for point in points])
            ax.plot(bank, bits, color=color, markerfacecolor=fill, label=f"{what}, {classes_are}", **style)
    lower = row["lower_bits"]
    ax.axhspan(lower, row["upper_bits"], color=CERTIFIED, alpha=0.3, label="certified, fresh images")
    ax.axhline(row["entropy_bits"], color=ENTROPY, label=f"H(C) = {row['entropy_bits']:.3f} bits", zorder=1.5)
    ax.set_xscale("log", base=2)
    ax.set_xticks(bank, [f"{size:,.0f}" for size in bank])
    ax.minorticks_off()
    ax.set_xlabel("images in the bank of the nearest-neighbor classifier")
    ax.set_ylim(-0.3, None)
    shared_legend(figure, [ax])
    return figure


STUDIES["certified"] = Study(row, table, draw, CAPTIONS)
