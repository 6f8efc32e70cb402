"""Unit rows, and a dtype that holds the rows, for rows of any scale and offset. Both are computed on the host."""

from typing import Any

import numpy as np
from jaxtyping import Float

CHUNK = 4096  # rows that are held in float64 at once
KEPT = 1e-4  # largest rounding error, as a share of a column's range


def unit_rows(h: Float[Any, "n d"], dtype: type = np.float64) -> Float[np.ndarray, "n d"]:
    """Divide each row by its norm, in float64 and at any scale. A row of zeros stays zero.

    h: (n, d), any array. dtype: of the result.
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
    """The rows in float32 if they stay apart there, and otherwise as they are.

    float32 is too coarse for columns with an offset such as 1e9, or with values such as 1e-310.
    h: (n, d), finite in float32.
    """
    if h.dtype.itemsize <= 4 or not h.size:
        return h.astype(np.float32)
    rounded = h.astype(np.float32)
    spread = h.max(axis=0) - h.min(axis=0)
    error = np.max(np.abs(rounded - h), axis=0)
    return rounded if np.all(error <= KEPT * spread) else h
