"""Mutual information of paired representations: estimates, bounds and certificates of arrays from any framework.

    from mirigor_jax import mi

    print(mi.estimate(x, y))  # I(X;Y) of paired rows
    print(mi.estimate_labels(h, labels))  # I_class of representations and their classes
    print(mi.usable_information(h, labels))  # what linear probes can use of it

The package also has `discrete` (information measures of discrete variables), `estimators` (constructors for
`estimate`), `values` (functions of scores), `scoring` (proper scoring rules), `critics`, `distributions` (known mutual
information), and the certificates as functions of arrays.
"""

from mirigor_jax.errors import InputError
from mirigor_jax.mi import critics, discrete, distributions, estimators, scoring, values
from mirigor_jax.mi.api import CRITICS, estimate, estimate_all
from mirigor_jax.mi.certificates import (
    InfoNCECertificate,
    classifier_lower_bits,
    info_nce_lower_bits,
    info_nce_lower_bits_at,
    posterior_lower_bits,
)
from mirigor_jax.mi.certify import CERTIFICATES, Certificate, Certified
from mirigor_jax.mi.confidence import Interval, clopper_pearson_upper, mean_lower_bound, t_interval
from mirigor_jax.mi.contrastive import info_nce_from_embeddings, nt_xent, nt_xent_mi, uniformity
from mirigor_jax.mi.critics import BilinearCritic, CosineCritic, JointCritic, SeparableCritic
from mirigor_jax.mi.estimators import ESTIMATORS, Estimator
from mirigor_jax.mi.families import FAMILIES
from mirigor_jax.mi.flow import flow_matching
from mirigor_jax.mi.gaussian_pairs import gaussian_v_shares
from mirigor_jax.mi.gaussian_usable import gaussian_v_information
from mirigor_jax.mi.labels import compare, estimate_labels, monitor
from mirigor_jax.mi.mige import density_ratio_gradients, mige
from mirigor_jax.mi.order import compare_many
from mirigor_jax.mi.results import Comparison, Estimate, Estimates, FlowEstimate, LabelEstimate, Reading
from mirigor_jax.mi.usable import usable_information
from mirigor_jax.mi.usable_results import GaussianVInformation, PairOrder, UsableInformation, UsableOrder
from mirigor_jax.mi.values import info_nce, info_nce_symmetric

__all__ = [
    "CERTIFICATES",
    "CRITICS",
    "ESTIMATORS",
    "FAMILIES",
    "BilinearCritic",
    "Certificate",
    "Certified",
    "Comparison",
    "CosineCritic",
    "Estimate",
    "Estimates",
    "Estimator",
    "FlowEstimate",
    "GaussianVInformation",
    "InfoNCECertificate",
    "InputError",
    "Interval",
    "JointCritic",
    "LabelEstimate",
    "PairOrder",
    "Reading",
    "SeparableCritic",
    "UsableInformation",
    "UsableOrder",
    "classifier_lower_bits",
    "clopper_pearson_upper",
    "compare",
    "compare_many",
    "critics",
    "density_ratio_gradients",
    "discrete",
    "distributions",
    "estimate",
    "estimate_all",
    "estimate_labels",
    "estimators",
    "flow_matching",
    "gaussian_v_information",
    "gaussian_v_shares",
    "info_nce",
    "info_nce_from_embeddings",
    "info_nce_lower_bits",
    "info_nce_lower_bits_at",
    "info_nce_symmetric",
    "mean_lower_bound",
    "mige",
    "monitor",
    "nt_xent",
    "nt_xent_mi",
    "posterior_lower_bits",
    "scoring",
    "t_interval",
    "uniformity",
    "usable_information",
    "values",
]
