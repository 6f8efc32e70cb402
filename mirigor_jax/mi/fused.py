"""GPU kernels for the sums of `contrastive._round` and for their gradients, which keep the scores on the chip.

A program owns a block of anchors and takes their partners block by block, as FlashAttention does (Dao et al. 2022).
In one pass the rows are the anchors, in another the columns are. No two programs add to one place, so results do not
depend on the programs' order.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array

from mirigor_jax import parallel

ANCHORS, PARTNERS = 128, 64  # anchors of a program, and partners that it takes at a time
LOG2_E = math.log2(math.e)
EMPTY = float(jnp.finfo(jnp.float32).min)  # the log-sum of no terms
Arrays = tuple[Array, ...]


def log_sums(
    rows: Arrays, columns: Arrays, sums: tuple[Array, Array], *, upper: bool, slack: int | Array
) -> tuple[Array, Array]:
    """A sweep of `contrastive`'s forward pass: add rows (a,) and columns (b,) to the log-sums of e^{a_i·b_j}."""
    del upper  # `slack` alone tells the kernels which blocks to skip
    run = partial(_run, slack, gradient=False)
    row_sums, column_sums = run(rows, columns, later=True), run(columns, rows, later=False)
    return jnp.logaddexp(sums[0], row_sums), jnp.logaddexp(sums[1], column_sums)


def gradients(
    rows: Arrays, columns: Arrays, sums: tuple[Array, Array], *, upper: bool, slack: int | Array
) -> tuple[Array, Array]:
    """A sweep of its backward pass: add to both gradients. rows, columns: (embeddings, log-sums, cotangents)."""
    del upper
    run = partial(_run, slack, gradient=True)
    return sums[0] + run(rows, columns, later=True), sums[1] + run(columns, rows, later=False)


def _run(slack: int | Array, anchors: Arrays, partners: Arrays, *, later: bool, gradient: bool) -> Array:
    """Each anchor's log-sum over its partners, or its gradient.

    later: True: anchors are rows, and row i counts with columns j > i − slack. False: anchors are columns, and column i
        counts with rows j < i + slack.
    """
    n, d = anchors[0].shape
    size, wide = pl.cdiv(n, ANCHORS) * ANCHORS, max(16, pl.next_power_of_2(d))  # widths that tensor cores take

    def fill(x: Array) -> Array:
        return jnp.pad(x, [(0, size - n), (0, wide - d)][: x.ndim])

    def block(shape: tuple[int, ...]) -> pl.BlockSpec:
        return pl.BlockSpec((ANCHORS, *shape[1:]), lambda i: (i, *[0] * (len(shape) - 1)))

    anchors, partners = jax.tree.map(fill, (anchors, partners))
    if gradient:  # tensor cores read float32 only along the axis that is summed over
        partners = *partners, partners[0].T
    out = jax.ShapeDtypeStruct((size, wide) if gradient else (size,), jnp.float32)
    result = pl.pallas_call(
        partial(_gradient_kernel if gradient else _log_sum_kernel, n=n, later=later),
        out,
        grid=(size // ANCHORS,),
        in_specs=[pl.no_block_spec, *[block(x.shape) for x in anchors], *[pl.no_block_spec] * len(partners)],
        out_specs=block(out.shape),
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=3 if gradient else 1),
        interpret=parallel.platform() == "cpu",
    )(jnp.reshape(jnp.asarray(slack, jnp.int32), 1), *anchors, *partners)
    return result[:n, :d] if gradient else result[:n]


def _meet(add: Callable[[Any, Array | None, Any], Any], carry: Any, slack_ref: Any, *, n: int, later: bool) -> Any:
    """Call `add` for every block of partners that counts, and return the last carry.

    add: (slice of the partners, mask of the scores that count, carry) → carry. The mask is None if all count; only
        blocks at an edge need one.
    """
    slack, first = slack_ref[0], pl.program_id(0) * ANCHORS
    i = first + jnp.arange(ANCHORS, dtype=jnp.int32)[:, None]
    last = pl.cdiv(n, PARTNERS)

    def inside(block: Array, carry: Any) -> Any:
        return add(pl.ds(block * PARTNERS, PARTNERS), None, carry)

    def edge(block: Array, carry: Any) -> Any:
        j = block * PARTNERS + jnp.arange(PARTNERS, dtype=jnp.int32)[None, :]
        return add(pl.ds(block * PARTNERS, PARTNERS), (i < j + slack if later else j < i + slack) & (j < n), carry)

    def block_of(j: Array) -> Array:
        return jnp.clip(j, 0, n) // PARTNERS

    if later:
        start, full = block_of(first - slack + 1), pl.cdiv(jnp.clip(first + ANCHORS - slack, 0, n), PARTNERS)
        carry = lax.fori_loop(start, full, edge, carry)
        carry = lax.fori_loop(full, n // PARTNERS, inside, carry)
        return lax.fori_loop(jnp.maximum(full, n // PARTNERS), last, edge, carry) if n % PARTNERS else carry
    full, stop = block_of(first + slack), pl.cdiv(jnp.clip(first + ANCHORS - 1 + slack, 0, n), PARTNERS)
    return lax.fori_loop(full, stop, edge, lax.fori_loop(0, full, inside, carry))


def _exp(x: Array) -> Array:
    return jnp.exp2(x * LOG2_E)


def _log_sum_kernel(slack_ref, a_ref, b_ref, out_ref, *, n: int, later: bool) -> None:
    """log Σ_j e^{a_i·b_j} of each anchor, computed relative to the largest score so far."""
    a = a_ref[...]

    def add_block(at, counts, carry):
        most, total = carry
        scores = triton.dot(a, b_ref[at, :], trans_b=True)
        scores = scores if counts is None else jnp.where(counts, scores, EMPTY)
        top = jnp.maximum(most, jnp.max(scores, axis=1))
        terms = _exp(scores - top[:, None])
        terms = terms if counts is None else jnp.where(counts, terms, 0.0)
        return top, total * _exp(most - top) + jnp.sum(terms, axis=1)

    start = jnp.full((ANCHORS,), EMPTY), jnp.zeros((ANCHORS,), jnp.float32)
    most, total = _meet(add_block, start, slack_ref, n=n, later=later)
    out_ref[...] = jnp.where(total > 0, most + jnp.log(total), EMPTY)


def _gradient_kernel(
    slack_ref, a_ref, log_sum_a_ref, g_a_ref, b_ref, log_sum_b_ref, g_b_ref, b_t_ref, out_ref, *, n: int, later: bool
) -> None:
    """Σ_j (g_i e^{a_i·b_j − log-sum_i} + g_j e^{a_i·b_j − log-sum_j}) b_j of each anchor."""
    a, log_sum_a, g_a = a_ref[...], log_sum_a_ref[...], g_a_ref[...]

    def add_block(at, counts, total):
        scores = triton.dot(a, b_ref[at, :], trans_b=True)
        g = g_a[:, None] * _exp(scores - log_sum_a[:, None]) + g_b_ref[at][None, :] * _exp(
            scores - log_sum_b_ref[at][None, :]
        )
        g = g if counts is None else jnp.where(counts, g, 0.0)
        b_t = b_t_ref[:, at]
        return total + triton.dot(g.astype(b_t.dtype), b_t, trans_b=True)

    out_ref[...] = _meet(add_block, jnp.zeros(a.shape, jnp.float32), slack_ref, n=n, later=later)
