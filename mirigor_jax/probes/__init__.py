"""Probes that predict classes from a frozen encoder's features: a linear probe, nearest neighbors and an MLP.

`fit_prequential` also gives the prequential code length of the labels: the bits that transmit them to someone who has
the features.
"""

import numpy as np
from jaxtyping import Array, Float

from mirigor_jax.mlp import MLPProbe, fit_mlp
from mirigor_jax.probes.knn import NearestNeighbors, fit_knn
from mirigor_jax.probes.prequential import PrequentialProbe, fit_prequential
from mirigor_jax.softmax import Classes, LinearProbe, Probe, check_part, class_posterior, fit_linear

__all__ = [
    "LinearProbe",
    "MLPProbe",
    "NearestNeighbors",
    "PrequentialProbe",
    "Probe",
    "accuracy",
    "class_posterior",
    "fit_knn",
    "fit_linear",
    "fit_mlp",
    "fit_prequential",
]


def accuracy(probe: Probe, features: Float[np.ndarray | Array, "n d"], labels: Classes) -> float:
    """Share of images, in 0..1, that the probe classifies as labeled. Raises InputError as `fit_linear` does."""
    classes = check_part(features, labels, probe.num_classes, "test")
    return float(np.mean(probe.logits(features).argmax(axis=1) == classes))
