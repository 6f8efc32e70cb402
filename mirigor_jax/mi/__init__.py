"""Mutual information of paired representations: estimates, bounds, certificates. Usable alone on arrays."""

from mirigor_jax.mi import distributions
from mirigor_jax.mi.api import CRITICS, estimate, estimate_all
from mirigor_jax.mi.contrastive import info_nce_embeddings, nt_xent, nt_xent_mi
from mirigor_jax.mi.critics import BilinearCritic, CosineCritic, JointCritic, SeparableCritic
from mirigor_jax.mi.estimators import ESTIMATORS, info_nce, info_nce_symmetric
from mirigor_jax.mi.labels import compare, estimate_labels, monitor
from mirigor_jax.mi.results import Comparison, Estimate, LabelEstimate

__all__ = [
    "CRITICS",
    "ESTIMATORS",
    "BilinearCritic",
    "Comparison",
    "CosineCritic",
    "Estimate",
    "JointCritic",
    "LabelEstimate",
    "SeparableCritic",
    "compare",
    "distributions",
    "estimate",
    "estimate_all",
    "estimate_labels",
    "info_nce",
    "info_nce_embeddings",
    "info_nce_symmetric",
    "monitor",
    "nt_xent",
    "nt_xent_mi",
]
