"""Mutual information of paired representations: estimates, bounds, certificates. Usable alone on arrays."""

from mirigor_jax.mi import distributions
from mirigor_jax.mi.bounds import ESTIMATORS, info_nce, info_nce_symmetric
from mirigor_jax.mi.certificate import Estimate
from mirigor_jax.mi.contrastive import info_nce_embeddings, nt_xent, nt_xent_mi

__all__ = [
    "ESTIMATORS",
    "Estimate",
    "distributions",
    "info_nce",
    "info_nce_embeddings",
    "info_nce_symmetric",
    "nt_xent",
    "nt_xent_mi",
]
