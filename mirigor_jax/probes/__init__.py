"""What a frozen encoder's features say of their classes: a linear probe, neighbors and an MLP read it off."""

import numpy as np
from jaxtyping import Array, Float

from mirigor_jax.probes.knn import NearestNeighbors, fit_knn
from mirigor_jax.probes.mlp import MLPProbe, fit_mlp
from mirigor_jax.softmax import Classes, LinearProbe, Probe, check_part, class_posterior, fit_linear

__all__ = [
    "LinearProbe",
    "MLPProbe",
    "NearestNeighbors",
    "Probe",
    "accuracy",
    "class_posterior",
    "fit_knn",
    "fit_linear",
    "fit_mlp",
]


def accuracy(probe: Probe, features: Float[np.ndarray | Array, "n d"], labels: Classes) -> float:
    """The share of images, in 0..1, whose highest score is their label's. Raises InputError as `fit_linear` does."""
    check_part(features, labels, probe.num_classes, "test")
    return float(np.mean(probe.logits(features).argmax(axis=1) == np.asarray(labels)))
