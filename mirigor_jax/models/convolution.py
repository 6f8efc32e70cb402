"""Convolution and max-pool for the encoders: XLA's own operations, and faster substitutes on CPUs.

The platform that a program is lowered for decides, so steps compiled on a CPU for an accelerator use XLA's operations.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Convolve = Callable[[Array, Array], Array]  # (images, kernel) → images


def convolution(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "p q _ d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "n g v d"]:
    """The function for `flax.linen.Conv(conv_general_dilated=convolution)`; it takes no dilation, and explicit padding.

    If a kernel is larger than the map that it slides over, XLA:CPU uses a scalar loop instead of its fast convolutions
    and is 10 to 200 times slower. That map is the input in the forward pass, and the output in the gradient of the
    input. So a kernel larger than the output is applied as one matrix product with the patches under it.
    Gradients are slower still if each channel has its own kernels (`feature_group_count=c`, the only grouping that
    this function takes). These kernels are applied as a sum of shifted products, without those that see only padding.
    If the products of a 3×3 kernel take most of the time, `_winograd` needs less than half of them.

    The gradients of strided convolutions are slow too: XLA puts zeros between the entries of the output's gradient. So
    a 1×1 kernel is applied only to the pixels that the stride keeps. A 3×3 kernel has the gradients of the matrix
    product. A larger kernel, the stem's, has its gradient summed over parts of the batch, since a part's patches stay
    in cache. On CPUs, the last two have only reverse-mode derivatives.
    """

    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)

    output = jax.eval_shape(convolve, x, kernel)
    size, channels, strides = kernel.shape[:2], kernel.shape[2:], tuple(strides)
    by_three = size == (3, 3) and strides == (1, 1) and [*map(tuple, padding)] == [(1, 1)] * 2
    squares = math.prod(output.shape[:3]) / 4
    product = partial(_matmul, strides=strides, padding=padding)
    on_cpu: Convolve
    if channels[0] < x.shape[3]:
        on_cpu = partial(_by_channel, strides=strides, padding=padding)
    elif (
        by_three and 32 <= min(channels) <= squares and squares * math.prod(channels) >= 2**22 and x.dtype.itemsize >= 4
    ):
        on_cpu = _winograd
    elif size[0] > output.shape[1] or size[1] > output.shape[2]:
        on_cpu = product
    elif strides == (1, 1):
        return convolve(x, kernel)
    elif size == (1, 1):
        on_cpu = product
    elif size == (3, 3):
        on_cpu = _with_gradients_of(product, convolve)
    else:
        # With 32 output channels or more, XLA's strided convolution is no slower.
        in_pairs = strides == (2, 2) and channels[1] < 32
        value = partial(_on_pixel_pairs, padding=padding) if in_pairs else convolve
        on_cpu = _with_gradients_of(partial(_in_parts, convolve=convolve), value)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=convolve)


def _winograd(x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "n h w d"]:
    """A 3×3 convolution with one pixel of zero padding, by 16 products for every 2×2 pixels instead of 36.

    Source: Lavin & Gray 2016, §4.1, F(2×2, 3×3).
    """
    n, height, width, _ = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    x = jnp.pad(x, ((0, 0), (1, 1 + 2 * rows - height), (1, 1 + 2 * columns - width), (0, 0)))

    def spread(x, axis):  # Bᵀ on windows of four entries, at stride two
        pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
        even, odd = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
        a, b, c, d = (lax.slice_in_dim(z, i, i + even.shape[axis] - 1, axis=axis) for i in (0, 1) for z in (even, odd))
        return a - c, b + c, c - b, b - d

    def raised(k):  # G on the first axis
        a, b, c = k
        return a, (a + b + c) / 2, (a - b + c) / 2, c

    def gathered(a, b, c, d):  # Aᵀ
        return a + b + c, b - c - d

    inputs = [z.reshape(-1, z.shape[3]) for along_rows in spread(x, 1) for z in spread(along_rows, 2)]
    weights = [w for along_rows in lax.optimization_barrier(raised(kernel)) for w in raised(along_rows)]
    products = [(z @ w).reshape(n, rows, columns, -1) for z, w in zip(inputs, weights, strict=True)]
    by_row = zip(*(gathered(*products[i : i + 4]) for i in range(0, 16, 4)), strict=True)
    left, right = (gathered(*column) for column in by_row)
    pixels = jnp.stack([jnp.stack(pair, axis=3) for pair in zip(left, right, strict=True)], axis=2)
    return pixels.reshape(n, 2 * rows, 2 * columns, -1)[:, :height, :width]


def _matmul(x, kernel, *, strides, padding):
    return jnp.concatenate(_taps(x, kernel, strides, padding), axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _with_gradients_of(other: Convolve, value: Convolve) -> Convolve:
    """The function `value` with the gradients of `other`, which computes the same values."""
    differentiable = jax.custom_vjp(value)
    differentiable.defvjp(lambda *inputs: (value(*inputs), inputs), lambda inputs, dy: jax.vjp(other, *inputs)[1](dy))
    return differentiable


def _in_parts(x, kernel, *, convolve):
    parts = jnp.split(x, math.gcd(len(x), 8))
    return jnp.concatenate([convolve(part, kernel) for part in parts])


def _on_pixel_pairs(x, kernel, *, padding):
    """A convolution of stride 2, computed at stride 1 on blocks of 2×2 pixels with four times the channels."""
    rows, columns, channels, features = kernel.shape
    odd = rows % 2, columns % 2
    kernel = jnp.pad(kernel, ((odd[0], 0), (odd[1], 0), (0, 0), (0, 0)))
    halves, widths = [], [(0, 0, 0)]
    for side, size, extra, (before, after) in zip(x.shape[1:3], (rows, columns), odd, padding, strict=True):
        needed = (side + before + after - size) // 2 * 2 + size + extra
        widths.append((before + extra, needed - side - before - extra, 0))
        halves.append(needed // 2)
    x = lax.pad(x, jnp.zeros((), x.dtype), [*widths, (0, 0, 0)])
    x = x.reshape(len(x), halves[0], 2, halves[1], 2, channels).swapaxes(2, 3).reshape(len(x), *halves, -1)
    kernel = kernel.reshape(kernel.shape[0] // 2, 2, -1, 2, channels, features).swapaxes(1, 2)
    kernel = kernel.reshape(*kernel.shape[:2], -1, features)
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _by_channel(x, kernel, *, strides, padding):
    if strides == (1, 1):
        for axis, (before, after) in enumerate(padding):
            side, count = x.shape[1 + axis], kernel.shape[axis]
            # The rows (or columns) of the kernel that ever see a pixel.
            start, stop = max(0, count - side - after), min(count, before + side)
            kernel = lax.slice_in_dim(kernel, start, stop, axis=axis)
            padding = [*padding[:axis], (before - start, after - (count - stop)), *padding[axis + 1 :]]
    taps = _taps(x, kernel, strides, padding)
    weights = kernel.reshape(len(taps), 1, 1, 1, x.shape[-1], -1)
    sums = sum(tap[..., None] * weight for tap, weight in zip(taps, weights, strict=True))
    return sums.reshape(*sums.shape[:3], -1)


def _taps(x, kernel, strides, padding):
    """The pixels under each position of the kernel: a list of (n, g, v, c)."""
    rows, columns = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    last_row, last_column = x.shape[1] - rows, x.shape[2] - columns
    return [
        x[:, i : i + last_row + 1 : strides[0], j : j + last_column + 1 : strides[1]]
        for i in range(rows)
        for j in range(columns)
    ]


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n g v c"]:
    """The maximum over 3×3 windows at stride 2, with one pixel of −∞ as padding: (h, w) → (⌈h/2⌉, ⌈w/2⌉).

    On CPUs it is a maximum of slices along each axis: 5 times faster than XLA's windows, and 8 times in the gradient.
    """
    windows = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    return lax.platform_dependent(x, cpu=lambda x: _max_of_three(_max_of_three(x, 1), 2), default=windows)


def _max_of_three(x, axis):
    """max(x[2i-1], x[2i], x[2i+1]) along the axis."""

    def pad(x, before, after):
        widths = [(before, after, 0) if a == axis else (0, 0, 0) for a in range(4)]
        return lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), widths)

    x = pad(x, 0, x.shape[axis] % 2)
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    even, odd = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    return jnp.maximum(jnp.maximum(even, odd), pad(odd, 1, -1))
