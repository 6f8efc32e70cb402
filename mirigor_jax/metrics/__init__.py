"""Metrics of a frozen encoder's representations: METRICS, the table of them, and `evaluate`, which computes them."""

from mirigor_jax.metrics.evaluation import Evaluation, evaluate, evaluate_parts, evaluate_several
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
from mirigor_jax.metrics.spectrum import (
    Spectrum,
    alpha_req,
    lidar,
    participation_ratio,
    rank_me,
    stable_rank,
)
from mirigor_jax.metrics.sufficiency import information_sufficiency
from mirigor_jax.metrics.table import (
    GOODNESS,
    METRICS,
    PROBES,
    Inputs,
    Metric,
    Options,
    Parts,
    grouped,
    row_name,
    shown,
)
from mirigor_jax.metrics.transfer import h_score, log_me, shrinkage

__all__ = [
    "GOODNESS",
    "METRICS",
    "PROBES",
    "Evaluation",
    "Inputs",
    "Metric",
    "Options",
    "Parts",
    "Spectrum",
    "alignment",
    "alpha_req",
    "class_alignment",
    "class_pairs",
    "contrastive_loss_nats",
    "evaluate",
    "evaluate_parts",
    "evaluate_several",
    "grouped",
    "h_score",
    "information_sufficiency",
    "label_nmi",
    "lidar",
    "log_me",
    "participation_ratio",
    "rank_me",
    "row_name",
    "shown",
    "shrinkage",
    "stable_rank",
    "supervised_loss_bound_nats",
    "tolerance",
    "uniformity",
]
