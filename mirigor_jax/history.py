"""The numbers of a training at each step: `train` returns them beside the state."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mirigor_jax import drawing
from mirigor_jax.drawing import Figure
from mirigor_jax.mi.contrastive import nt_xent_mi

Row = dict[str, Any]
ENDING = 10  # `ending` averages the last 1/ENDING of the steps


def in_training_bits(loss_nats: float, k: int) -> float:
    """The MI that an NT-Xent loss of a batch of k pairs corresponds to, in bits (Lee et al. 2023, Eq. 4)."""
    return nt_xent_mi(loss_nats, k) / math.log(2)


def ceiling_bits(k: int) -> float:
    """The largest possible in-training MI of a batch of k pairs, log2(2k−1) bits (Lee et al. 2023, Prop. II.2)."""
    return math.log2(2 * k - 1)


def note(rows: Sequence[Row], k: int) -> str:
    """The mean over the last 20 rows, in words for a progress line."""
    loss = float(np.mean([row["loss_nats"] for row in rows[-20:]] or [0.0]))
    if not rows or "mi_bits" not in rows[-1]:
        return f"loss {loss:.3f} nats"
    return f"in-training I {in_training_bits(loss, k):.2f} bits (ceiling {ceiling_bits(k):.2f})"


@dataclass(frozen=True, eq=False)
class TrainingHistory:
    """The training's numbers at each step.

    k: pairs per batch.
    step: int (n,). Number of steps taken.
    loss_nats: (n,), nats. The training loss.
    mi_bits: (n,), bits. The in-training MI; None if the objective's loss corresponds to no MI.
    """

    k: int
    step: Int[np.ndarray, " n"]
    loss_nats: Float[np.ndarray, " n"]
    mi_bits: Float[np.ndarray, " n"] | None = None

    @classmethod
    def of(cls, rows: Sequence[Row], k: int) -> "TrainingHistory":
        """The history of rows with "step", "loss_nats" and, in all rows or in none, "mi_bits"."""
        columns = {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ("step", "loss_nats"))}
        mi_bits = columns.get("mi_bits")
        return cls(k, columns["step"].astype(int), columns["loss_nats"].astype(float), mi_bits)

    @property
    def ceiling_bits(self) -> float:
        """The largest possible mi_bits."""
        return ceiling_bits(self.k)

    def ending(self) -> dict[str, float]:
        """Means over the last tenth of the steps: loss_nats, and mi_bits if it is not None. Empty without steps."""
        last = slice(-max(1, len(self.step) // ENDING), None)
        columns = {"loss_nats": self.loss_nats, "mi_bits": self.mi_bits}
        return {name: float(np.mean(x[last])) for name, x in columns.items() if x is not None and len(x)}

    def __str__(self) -> str:
        ending = self.ending()
        if not ending:
            return f"no training step at K = {self.k:,}"
        text = f"{len(self.step):,} steps at K = {self.k:,}: loss {ending['loss_nats']:.3f} nats"
        if "mi_bits" in ending:
            text += f", in-training MI {ending['mi_bits']:z.3f} of at most {self.ceiling_bits:.3f} bits"
        return f"{text} at the end"

    def to_dict(self) -> dict[str, Any]:
        """The history as plain numbers and lists, for JSON."""
        columns = {"step": self.step, "loss_nats": self.loss_nats, "mi_bits": self.mi_bits}
        return {"k": self.k} | {name: None if x is None else x.tolist() for name, x in columns.items()}

    def _repr_html_(self) -> str:
        """The sentence, and a table of up to ten steps, for notebooks."""
        chosen = np.unique(np.linspace(0, len(self.step) - 1, min(10, len(self.step))).round().astype(int))
        columns = {"step": self.step, "loss, nats": self.loss_nats, "in-training MI, bits": self.mi_bits}
        shown = {heading: x[chosen] for heading, x in columns.items() if x is not None}
        head = "".join(f"<th>{heading}</th>" for heading in shown)
        cells = [[f"{step:,}", *(f"{value:.4f}" for value in row)] for step, *row in zip(*shown.values(), strict=True)]
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)
        return f"<p>{self}</p><table><tr>{head}</tr>{body}</table>"

    def figure(self, *, entropy_bits: float | None = None, true_bits: float | None = None) -> Figure:
        """Draw the loss and, if it is not None, the in-training MI: values (faint) and a running mean over 5 % of them.

        entropy_bits: H(C), drawn as a line. true_bits: the true MI, drawn as a line if it differs from H(C).
        Returns a matplotlib Figure.
        """
        drawn = {"training loss, nats": self.loss_nats}
        drawn |= {} if self.mi_bits is None else {"in-training MI, bits": self.mi_bits}
        figure, axes = drawing.panels(*drawn)
        window = np.full(max(1, len(self.step) // 20), 1.0)
        window /= len(window)
        for ax, values in zip(axes, drawn.values(), strict=True):
            ax.plot(self.step, values, color=drawing.IN_TRAINING, alpha=0.3, linewidth=0.8, label="each value")
            centers, means = np.convolve(self.step, window, "valid"), np.convolve(values, window, "valid")
            label = f"running mean of {len(window)}"
            ax.plot(centers, means, color=drawing.IN_TRAINING, linewidth=2, label=label)
            ax.set_xlabel("training step")
        if self.mi_bits is not None:
            label = f"ceiling log₂(2K−1) = {self.ceiling_bits:.3f} bits"
            axes[1].axhline(self.ceiling_bits, color=drawing.CEILING, linestyle="--", label=label)
            drawing.references(axes[1], entropy_bits, true_bits)
        drawing.legends(*axes)
        return figure
