"""NT-Xent, InfoNCE and uniformity as functions of embeddings: exact at any K, in blocks, and over several devices.

Each function takes this device's rows and, under `axis_name`, scores them against the rows of every device. The losses
are means over this device's anchors, so `pmean` over the axis gives the global batch's value. `pmean` of the gradients
gives the global gradient, because terms from other devices' anchors are sent back to the rows that they belong to.

A small batch is scored in one matrix against the gathered rows. If that matrix would be large, `_log_normalizers` makes
it tile by tile, in O(rows·d + block²) memory. Each tile serves its rows and its columns, so a Gram matrix costs half of
its products. The backward pass makes each tile again from the normalizers (Dao et al. 2022, for attention). On the GPUs
that it was measured on, `fused` keeps the tiles on the chip instead. With tiles, devices pass their rows round a ring
and do not gather them.
"""

import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from mirigor_jax import checks, parallel
from mirigor_jax.errors import InputError
from mirigor_jax.mi.values import info_nce_of_sums

FUSED_ROWS = 2**14  # with fewer rows the programs of `fused` leave part of the chip idle
Scalar = TypeVar("Scalar", float, Array)


def unit_rows(z: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Divide each row by its norm, in float32 at least. A row of zeros stays zero and passes its gradient unscaled.

    z: (n, d), of any floating dtype and any scale: squares of 1e30 do not overflow, and those of 1e-30 do not vanish.
    """
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    # Scaling by a power of two rounds nothing. It cancels in the result, so the gradient may take it as constant.
    largest = lax.stop_gradient(jnp.max(jnp.abs(z), axis=1, keepdims=True))
    smallest = jnp.finfo(z.dtype).minexp
    exponent = jnp.clip(jnp.frexp(largest)[1], smallest, -smallest)
    z = z * jnp.ldexp(jnp.ones_like(largest), -exponent)
    squares = jnp.sum(jnp.square(z), axis=1, keepdims=True)
    # The inner `where` keeps the gradient finite at z = 0, where the gradient of rsqrt is infinite.
    return z * lax.rsqrt(jnp.where(squares == 0, 1.0, squares))


def _accumulator(*arrays: Array) -> Any:
    """The dtype in which products of these arrays are summed: float32 at least."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def _product(a: Float[Array, "n d"], b: Float[Array, "d m"]) -> Float[Array, "n m"]:
    return jnp.matmul(a, b, preferred_element_type=_accumulator(a, b))


def _dot(a: Float[Array, "n d"], b: Float[Array, "n d"]) -> Float[Array, " n"]:
    return jnp.sum(a.astype(_accumulator(a, b)) * b, axis=1)


def _devices(axis_name: str | None) -> int:
    return 1 if axis_name is None else lax.axis_size(axis_name)


def gather_rows(z: Float[Array, "n d"], axis_name: str | None) -> Float[Array, "m d"]:
    return z if axis_name is None else lax.all_gather(z, axis_name, tiled=True)


def _tile_size(z: Float[Array, "n d"], block: int | None, axis_name: str | None) -> int | None:
    """Rows and columns of a tile; None: all devices' rows are scored in one matrix; 0: `fused` scores them.

    Raises InputError if `block` is given and not positive.
    """
    if block is not None:
        if block < 1:
            raise InputError(f"block={block} is not a number of rows; give 1 or more, or None to have it chosen")
        return block
    # Tiles of `size` stay in a CPU's cache or on a TPU's chip (docs/how_to/plan.md), or fill a GPU. Up to `whole`
    # scores (4, 64 or 256 MiB in float32) one matrix costs no more than tiles, and gathering the rows costs less than a
    # round of small messages. Neither the scores nor the gathered rows may be larger than that.
    size, whole = {"cpu": (512, 2**20), "tpu": (2048, 2**24)}.get(parallel.platform(), (8192, 2**26))
    if len(z) * max(z.shape) * _devices(axis_name) <= whole:
        return None
    return 0 if fused_is_faster(z) else size


def fused_is_faster(z: Float[Array, "n d"]) -> bool:
    """Whether the kernels of `fused` are the fastest for these rows on this device; the limits are from an H100."""
    if parallel.platform() != "gpu" or getattr(jax.devices()[0], "compute_capability", None) != "9.0":
        return False
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    known = z.dtype in (jnp.float32, jnp.bfloat16) and z.shape[1] <= 128
    return known and precision in (None, "default", "tensorfloat32") and len(z) >= FUSED_ROWS


def _kernels() -> ModuleType:
    """Import `fused` at its first use: it imports Pallas, which only large batches on a GPU need."""
    from mirigor_jax.mi import fused

    return fused


def _sweep(
    update: Callable[..., tuple[Array, Array]],
    rows: tuple[Array, ...],
    columns: tuple[Array, ...],
    sums: tuple[Array, Array],
    *,
    block: int,
    upper: bool,
    slack: int | Array,
) -> tuple[Array, Array]:
    """Update the sums (of rows, of columns) by every tile of the scores rows[0]·columns[0]ᵀ, one after another.

    update: (a tile's scores, its rows, its columns, its sums) → its sums.
    block: rows and columns of a tile.
    slack: a score counts if row < column + slack. The others become the least finite number: their exponential is 0.
    upper: skip all tiles below the diagonal; none of their scores may count.
    """
    n = rows[0].shape[0]
    size = min(block, n)
    starts = np.arange(0, n, size, dtype=np.int32)
    tiles = np.stack(np.meshgrid(starts, starts, indexing="ij"), axis=-1).reshape(-1, 2)
    if upper:
        tiles = tiles[tiles[:, 0] <= tiles[:, 1]]

    def update_tile(sums, tile):
        # The last tile is moved back to end with the rows. Scores that it shares with the tile before do not count.
        first = jnp.minimum(tile, n - size)

        def cut(arrays, side):
            return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first[side], size), arrays)

        row_block, column_block = cut(rows, 0), cut(columns, 1)
        row, column = first[0] + jnp.arange(size)[:, None], first[1] + jnp.arange(size)[None, :]
        counts = (row >= tile[0]) & (column >= tile[1]) & (row < column + slack)
        scores = _product(row_block[0], column_block[0].T)
        scores = jnp.where(counts, scores, jnp.finfo(scores.dtype).min)
        parts = update(scores, row_block, column_block, tuple(cut(x, side) for side, x in enumerate(sums)))
        return tuple(lax.dynamic_update_slice_in_dim(*x, 0) for x in zip(sums, parts, first, strict=True)), None

    return lax.scan(update_tile, sums, tiles)[0]


def _round(
    sweep: Callable[..., tuple[Array, Array]],
    rows: tuple[Array, ...],
    columns: tuple[Array, ...],
    sums: tuple[Array, Array],
    *,
    axis_name: str | None,
    itself: bool,
) -> tuple[Array, Array]:
    """Sweep this device's rows over every device's columns. Columns and their sums go round the ring and come back.

    itself: rows and columns are the same. Each pair of distinct rows is then scored once, in half a round.
    """
    n, devices = rows[0].shape[0], _devices(axis_name)

    def move(x, hops):
        return lax.ppermute(x, axis_name, [(i, (i + hops) % devices) for i in range(devices)])

    def visit(carry, _, upper=False, slack=n):
        columns, (mine, theirs) = carry
        columns, theirs = move((columns, theirs), 1)
        return (columns, sweep(rows, columns, (mine, theirs), upper=upper, slack=slack)), None

    carry = columns, sweep(rows, columns, sums, upper=itself, slack=0 if itself else n)
    if devices == 1:
        return carry[1]
    carry, _ = lax.scan(visit, carry, length=(devices - 1) // 2 if itself else devices - 1)
    if itself and devices % 2 == 0:
        # Opposite devices meet each other twice. The one of lower index takes row ≤ column, the other takes the rest.
        carry, _ = visit(carry, None, upper=True, slack=lax.axis_index(axis_name) < devices // 2)
    mine, theirs = carry[1]
    return mine, move(theirs, -(devices // 2) if itself else 1)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _log_normalizers(
    a: Float[Array, "n d"], b: Float[Array, "n d"], block: int, axis_name: str | None, itself: bool
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """log Σ_j e^{a_i·b_j} for each row of a, and log Σ_i e^{a_i·b_j} for each row of b, over all devices' rows.

    itself: a is b times a scale. Each result then holds one part of the sum over j ≠ i, and logaddexp of the two is the
        log-normalizer.
    """
    dtype = _accumulator(a, b)
    empty = jnp.finfo(dtype).min

    def update(scores, rows, columns, sums):
        return tuple(jnp.logaddexp(x, logsumexp(scores, axis=axis)) for x, axis in zip(sums, (1, 0), strict=True))

    sums = jnp.full_like(a[:, 0], empty, dtype), jnp.full_like(b[:, 0], empty, dtype)
    sweep = partial(_sweep, update, block=block) if block else _kernels().log_sums
    return _round(sweep, (a,), (b,), sums, axis_name=axis_name, itself=itself)


def _forward(a, b, block, axis_name, itself):
    normalizers = _log_normalizers(a, b, block, axis_name, itself)
    return normalizers, (a, b, *normalizers)


def _backward(block, axis_name, itself, saved, cotangents):
    a, b, log_sums_a, log_sums_b = saved

    def update(scores, rows, columns, sums):
        (a, log_sums_a, g_a), (b, log_sums_b, g_b) = rows, columns
        g = g_a[:, None] * jnp.exp(scores - log_sums_a[:, None]) + g_b[None, :] * jnp.exp(scores - log_sums_b[None, :])
        return sums[0] + _product(g.astype(b.dtype), b), sums[1] + _product(g.T.astype(a.dtype), a)

    rows, columns = (a, log_sums_a, cotangents[0]), (b, log_sums_b, cotangents[1])
    sums = jnp.zeros_like(a, _accumulator(a, b)), jnp.zeros_like(b, _accumulator(a, b))
    sweep = partial(_sweep, update, block=block) if block else _kernels().gradients
    g_a, g_b = _round(sweep, rows, columns, sums, axis_name=axis_name, itself=itself)
    return g_a.astype(a.dtype), g_b.astype(b.dtype)


_log_normalizers.defvjp(_forward, _backward)


def _log_normalizers_of_others(
    z: Float[Array, "n d"], scale: Float[Array, ""], block: int | None, axis_name: str | None
) -> Float[Array, " n"]:
    """log Σ_{j≠i} e^{scale z_i·z_j} for each row i; j runs over all devices' rows."""
    n, anchors = z.shape[0], z * scale
    size = _tile_size(z, block, axis_name)
    if size is not None:
        return jnp.logaddexp(*_log_normalizers(anchors, z, size, axis_name, True))
    scores = _product(anchors, gather_rows(z, axis_name).T)
    first = 0 if axis_name is None else n * lax.axis_index(axis_name)
    others = first + jnp.arange(n)[:, None] != jnp.arange(scores.shape[1])[None, :]
    return logsumexp(jnp.where(others, scores, -jnp.inf), axis=1)


def nt_xent(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k_y d_y"],
    temperature: float | Float[Array, ""],
    *,
    block: int | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """NT-Xent over the 2k embeddings of k positive pairs, in nats: mean over all 2k anchors.

    An anchor's candidates are its positive and both views of the other pairs, without the anchor itself: 2k−1 terms.
    z_x, z_y: (k, d). Embeddings of any scale and dtype; they are normalized here, in float32 at least.
    temperature: above 0. Divides the cosine similarities.
    block: side of the blocks of scores that are computed at a time. None: chosen by size; one matrix if that is faster.
    axis_name: the mapped axis over which devices share their embeddings. None: this device alone.
    Raises InputError if the views differ in shape, or if temperature or block is not positive.
    Source: Lee et al. 2023, Eq. 2–3 (Chen et al. 2020).
    """
    checks.views(z_x, z_y)
    checks.temperature(temperature)
    z_x, z_y = unit_rows(z_x), unit_rows(z_y)
    scale = 1 / jnp.asarray(temperature, _accumulator(z_x, z_y))
    logsumexp_x, logsumexp_y = jnp.split(
        _log_normalizers_of_others(jnp.concatenate([z_x, z_y]), scale, block, axis_name), 2
    )
    return jnp.mean(0.5 * (logsumexp_x + logsumexp_y) - _dot(z_x * scale, z_y))


def nt_xent_mi(loss_nats: Scalar, k: int) -> Scalar:
    """The estimate log(2k−1) − L of I(X;Y), in nats, from NT-Xent's loss L over k pairs; at most log(2k−1).

    It is not a lower bound: it can exceed I(X;Y) by up to log((2k−1)/k), because negatives come in dependent pairs, and
    half of them from the anchor's own view. `info_nce_from_embeddings` is a lower bound.
    Source: Lee et al. 2023, Eq. 4.
    """
    return math.log(2 * k - 1) - loss_nats


def info_nce_from_embeddings(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k_y d_y"],
    *,
    block: int | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """InfoNCE with scores z_x·z_y, in nats: a lower bound of I(X;Y), at most log k.

    It is the mean of both directions; an anchor's k candidates are all of the other view.
    z_x, z_y: (k, d). Embeddings, which are not normalized. For a cosine critic, divide one side by its temperature.
    block, axis_name: as in `nt_xent`.
    Raises InputError if the views differ in shape, or if block is not positive.
    Source: Poole et al. 2019, eq. 10.
    """
    checks.views(z_x, z_y)
    # Products and sums are in float32 in any case. The backward pass holds shares of sums, which are too small for
    # float16's exponents, but not for bfloat16's.
    z_x, z_y = (z.astype(jnp.float32) if z.dtype == jnp.float16 else z for z in (z_x, z_y))
    k, devices = z_x.shape[0], _devices(axis_name)
    size = _tile_size(z_x, block, axis_name)
    if size is not None:
        row_logsumexp, column_logsumexp = _log_normalizers(z_x, z_y, size, axis_name, False)
    else:
        scores = _product(z_x, gather_rows(z_y, axis_name).T)
        row_logsumexp, column_logsumexp = logsumexp(scores, axis=1), logsumexp(scores, axis=0)
        if axis_name is not None:  # each device has only its own x's part of every column's sum
            column_logsumexp = logsumexp(lax.all_to_all(column_logsumexp.reshape(devices, k), axis_name, 0, 0), axis=0)
    return info_nce_of_sums(_dot(z_x, z_y), row_logsumexp, column_logsumexp, candidates=k * devices)


def uniformity(
    h: Float[Array, "n d"], t: float = 2.0, *, block: int | None = None, axis_name: str | None = None
) -> Float[Array, ""]:
    """log of the mean of e^{−t‖h_i − h_j‖²} over ordered pairs i ≠ j of rows; at most 0, and lower is better.

    h: (n, d). Rows of any scale and dtype; they are normalized here, in float32 at least.
    t: above 0. block, axis_name: as in `nt_xent`; every device gets the same value.
    Raises InputError if there are no two rows, or if t or block is not positive.
    Source: Wang & Isola 2020, §4.1.2.
    """
    n = h.shape[0] * _devices(axis_name)
    if n < 2:
        raise InputError(f"uniformity of {n} row is not defined; give at least 2")
    checks.above_zero("t", t, "2")
    # ‖h_i − h_j‖² = 2 − 2 h_i·h_j on the sphere.
    scale = jnp.asarray(2 * t, _accumulator(h))
    total = logsumexp(_log_normalizers_of_others(unit_rows(h), scale, block, axis_name))
    if axis_name is not None:
        total = logsumexp(lax.all_gather(total, axis_name))
    return total - 2 * t - math.log(n * (n - 1))
