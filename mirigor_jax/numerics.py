"""Rows of any scale and offset on the host: unit rows of them, and the dtype that holds them."""

from typing import Any

import numpy as np
from jaxtyping import Float

CHUNK = 4096  # rows that are held in float64 at once
KEPT = 1e-4  # of a column's range, which rounding may take


def unit_rows(h: Float[Any, "n d"], dtype: type = np.float64) -> Float[np.ndarray, "n d"]:
    """Each row over its norm, computed in float64, whatever its scale; a row of zeros stays one.

    h: (n, d), any array. dtype: of what is returned.
    """
    rows = np.asarray(h)
    result: Any = np.empty(rows.shape, dtype)
    for first in range(0, len(rows), CHUNK):
        part = rows[first : first + CHUNK].astype(np.float64)
        largest = np.max(np.abs(part), axis=1, keepdims=True, initial=0.0)
        part /= np.where(largest == 0, 1.0, largest)
        norms = np.linalg.norm(part, axis=1, keepdims=True)
        result[first : first + CHUNK] = part / np.where(norms == 0, 1.0, norms)
    return result


def compact(h: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The rows in float32 if that keeps what tells them apart; else as they are: offsets of 1e9, columns of 1e-310.

    h: (n, d), finite in float32.
    """
    if h.dtype.itemsize <= 4 or not h.size:
        return h.astype(np.float32)
    rounded = h.astype(np.float32)
    spread = h.max(axis=0) - h.min(axis=0)
    error = np.max(np.abs(rounded - h), axis=0)
    return rounded if np.all(error <= KEPT * spread) else h
