"""An oracle that reads the attributes off CDP images by likelihood. It knows how they are rendered and fits nothing."""

from collections.abc import Iterator
from itertools import product

import numpy as np
from jaxtyping import Float32, Int, UInt8

from mirigor_jax.data.cdp import CDP, KERNEL, OPAQUE

READ_AT_ONCE = 1024  # images
ROUNDING = 4.0  # standard deviation that each value has besides the nuisances, for rounding and for what is left out
WIDTHS = 4  # of the blur that are tried


def read(data: CDP, images: UInt8[np.ndarray, "n s s 3"]) -> Int[np.ndarray, "n 3"]:
    """The attributes under which each image is most likely, int32: color, digit and position.

    data: the population that the images are from.
    The likelihood is simplified: all values of background and noise are independent Gaussians, there is no clutter, and
    the digit leaves no mark outside its cell. So its error rate is an upper limit of the least possible one.
    """
    images = images.astype(np.float32)
    return np.concatenate([_read(data, images[i : i + READ_AT_ONCE]) for i in range(0, len(images), READ_AT_ONCE)])


def _read(data: CDP, images: Float32[np.ndarray, "n s s 3"]) -> Int[np.ndarray, "n 3"]:
    rows, columns = data.grid
    height, width = data.size // rows, data.size // columns
    best, found = np.full(len(images), -np.inf, np.float32), np.zeros((len(images), 3), np.int32)
    mean, own = data.backgrounds.mean(axis=(0, 1, 2)).astype(np.float32), float(data.backgrounds.var())
    rest = ROUNDING**2 + (float(data.noise.astype(float).var()) if len(data.noise) else 0.0)
    inks = data.palette.astype(np.float32)
    masks = [*_masks(data)]
    for row, column in np.ndindex(rows, columns):
        cells = images[:, row * height :, column * width :][:, :height, :width].reshape(len(images), -1, 3)
        of_ink = (cells @ inks.T).swapaxes(1, 2)
        of_mean, of_square = cells @ mean, (cells**2).sum(axis=2)
        for a in masks:
            # The log-likelihood ratio of a·ink + (1 - a)·background to background alone, expanded in the values.
            variance, alone = (1 - a) ** 2 * own + rest, own + rest
            linear, square = (1 - a) / variance - 1 / alone, 0.5 / alone - 0.5 / variance
            shown = a[None, :, :, None] * inks[:, None, None] + (1 - a)[None, :, :, None] * mean
            constant = 0.5 * (np.sum(mean**2) / alone - np.sum(shown**2, axis=3) / variance)
            constant = (constant + 1.5 * np.log(alone / variance)).sum(axis=2)
            scores = of_ink @ (a / variance).T + (of_mean @ linear.T + of_square @ square.T)[:, None] + constant
            scores = scores.reshape(len(images), -1)
            chosen = scores.argmax(axis=1)
            score = scores[np.arange(len(images)), chosen]
            better = score > best
            best[better] = score[better]
            color, digit, _ = np.unravel_index(chosen[better], (len(inks), *data.coverage.shape[:2]))
            found[better] = np.stack([color, digit, np.full(len(color), row * columns + column)], axis=1)
    return found


def _masks(data: CDP) -> Iterator[Float32[np.ndarray, "t p"]]:
    """Masks of a cell, 0 to 1, for every digit and variant: one array for each place in the cell and width of blur."""
    height, width = data.size // data.grid[0], data.size // data.grid[1]
    a = data.coverage[..., ::3].astype(np.float32) / OPAQUE
    rooms = (height - a.shape[2], width - a.shape[3])
    steps = [min(room, data.jitter) for room in rooms]
    starts = [(room - step) // 2 for room, step in zip(rooms, steps, strict=True)]
    downs, rights = (range(start, start + step + 1) for start, step in zip(starts, steps, strict=True))
    spacing = max(len(data.blurs) // WIDTHS, 1)
    for top, left in product(downs, rights):
        cell = np.zeros((*a.shape[:2], height, width), np.float32)
        cell[:, :, top : top + a.shape[2], left : left + a.shape[3]] = a
        blurs = data.blurs[spacing // 2 :: spacing] / KERNEL
        blurred = [blur[:height, :height] @ cell @ blur[:width, :width].T for blur in blurs]
        for mask in blurred or [cell]:
            yield mask.reshape(-1, height * width)
