"""Information sufficiency: how much an encoder's representations say about those of other encoders."""

import numpy as np
from jaxtyping import Float


def information_sufficiency(others: Float[np.ndarray, " o"]) -> float:
    """The median, over the other encoders, of the share of their variance that linear maps of this encoder predict.

    It needs neither labels nor augmentations, but several encoders of the same images, and it ranks an encoder only
    among these: if most of them share a fault, the median rewards it. An encoder that keeps everything that the others
    vary in has 1.
    others: this encoder's row of `mi.gaussian_v_shares`, without itself. NaN for an encoder whose representations are
        constant, which the median leaves out.
    Returns NaN if no other encoder is left.
    Source: after Darrin et al. 2024. They estimate mutual information, which is infinite between two injective encoders
    of one image; Gaussian V-information (Xu et al. 2020; Gosch 2020, eq. 14) is finite.
    """
    known = others[np.isfinite(others)]
    return float(np.median(known)) if len(known) else float("nan")
