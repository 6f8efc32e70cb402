"""Prequential probes: linear probes of rows in an order, refitted after N, 2N, 4N, ... rows.

Each probe predicts later rows only.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Integer

from mirigor_jax.softmax import LinearProbe, fit_linear

# Up to so many rows it takes less time to pad the rows of all fits to one length (by rows of weight 0) than to compile
# a program for each length.
SHARED = 8192


def doublings(first: int, n: int) -> list[int]:
    """The rows at which blocks start, of n rows in order: first, 2 first, 4 first and so on, up to n/2.

    A probe for the block that starts at t is fitted on the t rows before it. The last block goes on to the end. It has
    at least as many rows as were fitted on, because a refit for fewer rows hardly pays.
    """
    starts = [first]
    while 4 * starts[-1] <= n:
        starts.append(2 * starts[-1])
    return starts


def refits(
    features: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, " n"],
    num_classes: int,
    starts: Sequence[int],
    *,
    l2: Sequence[float],
    validation_features: Float[np.ndarray, "m d"],
    validation_labels: Integer[np.ndarray, " m"],
) -> Iterator[LinearProbe]:
    """The linear probe of each block, fitted on the rows before the block. Validation chooses penalty and temperature.

    features, labels: rows in the order in which they are predicted.
    starts: the first row of each block, as from `doublings`.
    l2, validation_features, validation_labels: as in `fit_linear`; the rows of validation are others.
    Raises InputError as `fit_linear` does.
    Source: Dawid 1984 (prequential prediction); blocks by doubling: Blier & Ollivier 2018, section 2.
    """
    compiled_rows = starts[-1] if starts[-1] <= SHARED else 0
    for start in starts:
        yield fit_linear(
            features[:start],
            labels[:start],
            num_classes,
            l2=l2,
            validation_features=validation_features,
            validation_labels=validation_labels,
            compiled_rows=compiled_rows,
        )
