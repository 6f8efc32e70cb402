"""Metrics of a frozen encoder's representations: METRICS, the table of them, and `evaluate`, which computes them."""

from mirigor_jax.metrics.evaluation import Evaluation, evaluate, evaluate_parts
from mirigor_jax.metrics.geometry import (
    alignment,
    class_alignment,
    class_pairs,
    contrastive_loss_nats,
    label_nmi,
    supervised_loss_bound_nats,
    tolerance,
    uniformity,
)
from mirigor_jax.metrics.table import METRICS, PROBES, Inputs, Metric, Options, Parts, grouped, row_name, shown

__all__ = [
    "METRICS",
    "PROBES",
    "Evaluation",
    "Inputs",
    "Metric",
    "Options",
    "Parts",
    "alignment",
    "class_alignment",
    "class_pairs",
    "contrastive_loss_nats",
    "evaluate",
    "evaluate_parts",
    "grouped",
    "label_nmi",
    "row_name",
    "shown",
    "supervised_loss_bound_nats",
    "tolerance",
    "uniformity",
]
