"""Mutual information of paired representations: estimates, bounds, certificates. Usable alone on arrays."""

from mirigor_jax.mi import distributions
from mirigor_jax.mi.arrays import CRITICS, estimate, estimate_all
from mirigor_jax.mi.bounds import ESTIMATORS, info_nce, info_nce_symmetric
from mirigor_jax.mi.certificate import Estimate
from mirigor_jax.mi.contrastive import info_nce_embeddings, nt_xent, nt_xent_mi
from mirigor_jax.mi.critics import BilinearCritic, CosineCritic, JointCritic, SeparableCritic
from mirigor_jax.mi.labels import Comparison, LabelEstimate, compare, estimate_labels, monitor

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
