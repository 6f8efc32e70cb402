"""Vision transformers in Flax Linen: ViT, DeiT, CaiT, PiT and Swin.

Each maps (n, s, s, 3) normalized images to (n, d) features, as timm's `forward_head(..., pre_logits=True)` does. The
features follow the last LayerNorm: they are the class token, the mean of the class and distillation tokens if there are
both, or Swin's mean token. A ViT may also pool its tokens by attention, and project its features, as CLIP does.
With `stages=True`, the result is a dict: `prelogits` are these features, and `block0`, `block1`, … are the blocks'
outputs, numbered through all stages. The outputs are read from the same tokens, without LayerNorm; CaiT's blocks before
its class blocks have no class token, so theirs are mean tokens.
Parameters, LayerNorm, softmax and features are at least float32 for any compute dtype. There is neither dropout nor
stochastic depth, so `train` changes nothing.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mirigor_jax.errors import InputError
from mirigor_jax.models.convolution import convolution
from mirigor_jax.models.dtypes import compute_dtype

Features = Float[Array, "n d"] | dict[str, Float[Array, "n _"]]

SMALL = nn.initializers.truncated_normal(0.02)
ROPE_BASE = 100.0
GATED = "swiglu"
# The function between the two layers of an MLP. A gated MLP multiplies it by the other half of the first layer.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    GATED: jax.nn.silu,
}


def make(name: str, *, size: int, dtype: str, **overrides: Any) -> nn.Module:
    """Build the encoder of this name for images of size×size pixels.

    dtype: of the computations, see `mirigor_jax.models.resnet.make_encoder`.
    overrides: fields of the encoder's class, such as `patch=4` for small images.
    Raises InputError for an unknown name, dtype or override, and for a size that patches or windows don't tile.
    """
    if name not in ENCODERS:
        raise InputError(f"unknown encoder '{name}'; choose one of {', '.join(ENCODERS)}")
    family, arguments = ENCODERS[name]
    fields = sorted(set(family.__dataclass_fields__) - {"size", "dtype", "parent", "name"})
    for field, value in {**overrides, "size": size}.items():
        if field not in (*fields, "size"):
            raise InputError(f"{name} has no '{field}'; it has {', '.join(fields)}")
        if not isinstance(value, bool | float | str) and np.min(value) < 1:
            raise InputError(f"{field}={value} for {name}; it must be at least 1")
    encoder = family(size=size, dtype=compute_dtype(dtype), **arguments | overrides)
    encoder.check()
    return encoder


def _wide(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _dense(width, dtype, name, use_bias=True):
    return nn.Dense(width, use_bias=use_bias, dtype=dtype, param_dtype=_wide(dtype), kernel_init=SMALL, name=name)


def _norm(dtype, name, epsilon=1e-6):
    return nn.LayerNorm(epsilon=epsilon, dtype=_wide(dtype), param_dtype=_wide(dtype), name=name)


def _conv(width, kernel, stride, dtype, name, *, padding=0, **options):
    kernel, strides = (kernel, kernel), (stride, stride)
    return nn.Conv(width, kernel, strides, padding, dtype=dtype, param_dtype=_wide(dtype), name=name, **options)


def _embed(images, encoder, width, stride, use_bias=True):
    """(n, s, s, 3) → (n, h, h, width): a dense layer on each patch."""
    if images.shape[1] != encoder.size:
        raise InputError(f"images of {images.shape[1]}² for an encoder of {encoder.size}²; make it for their size")
    embed = _conv(width, encoder.patch, stride, encoder.dtype, "patch_embed", use_bias=use_bias)
    return embed(images.astype(encoder.dtype))


def _check(size, patch, width, heads):
    if size % patch:
        raise InputError(f"images of {size}² are not tiled by patches of {patch}; choose another size or patch")
    if width % heads:
        raise InputError(f"a width of {width} is not divided by {heads} heads; choose another width or number of heads")


def _check_stages(depths, heads):
    if len(depths) != len(heads):
        raise InputError(f"{len(depths)} depths for {len(heads)} numbers of heads; give one of each for every stage")


def _repeat(token, like):
    """(1, t, d) → (n, t, d)."""
    return jnp.broadcast_to(token, (like.shape[0], *token.shape[1:])).astype(like.dtype)


def _attend(q, k, v, bias=None, *, before=lambda logits: logits, after=lambda weights: weights):
    """softmax(q·k/√d + bias)·v for q, k, v of shape (…, tokens, heads, d).

    before, after: functions of the (…, heads, q, k) arrays before and after the softmax.
    """
    wide = _wide(q.dtype)
    logits = jnp.einsum("...qhd,...khd->...hqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=wide)
    weights = after(jax.nn.softmax(before(logits if bias is None else logits + bias)))
    return jnp.einsum("...hqk,...khd->...qhd", weights.astype(v.dtype), v).reshape(*q.shape[:-2], -1)


def _rotated(x, side):
    """Rotary position embeddings: the last side² of the tokens x (n, t, heads, d), rotated by angles of their position.

    A patch's center has coordinates in [-1, 1]. A quarter of the channels turns by angles of the row, a quarter by
    angles of the column; the other half is their second coordinate. Source: Siméoni et al. 2025 (DINOv3), §3.1.
    """
    d = x.shape[-1]
    center = (np.arange(side) + 0.5) / side * 2 - 1
    angle = 2 * np.pi * center[:, None] / ROPE_BASE ** (4 * np.arange(d // 4) / d)
    row, column = (np.broadcast_to(a, (side, side, d // 4)) for a in (angle[:, None], angle[None]))
    angles = np.tile(np.concatenate([row, column], axis=-1).reshape(1, side**2, 1, d // 2), 2)
    first, last = x[:, : -(side**2)], x[:, -(side**2) :].astype(_wide(x.dtype))
    turned = jnp.concatenate([-last[..., d // 2 :], last[..., : d // 2]], axis=-1)
    last = last * np.cos(angles).astype(np.float32) + turned * np.sin(angles).astype(np.float32)
    return jnp.concatenate([first, last.astype(x.dtype)], axis=1)


def resample(position: Float[Array, "1 t d"], side: int) -> Float[Array, "1 _ d"]:
    """Position embeddings of a map of another side, interpolated as timm's `resample_abs_pos_embed` does.

    position: those of tokens that are no patches, if there are any, come first, and stay as they are.
    side: number of patches along the new map's side.
    Interpolation is bicubic, and smooths first if the map shrinks.
    """
    old, d = math.isqrt(position.shape[1]), position.shape[2]
    first = position[:, : position.shape[1] - old**2]
    grid = position[:, first.shape[1] :].reshape(1, old, old, d)
    grid = jax.image.resize(grid, (1, side, side, d), "cubic", antialias=True)
    return jnp.concatenate([first, grid.reshape(1, side**2, d)], axis=1)


class Attention(nn.Module):
    """Multi-head self-attention.

    talking: whether heads are mixed before and after softmax (Shazeer et al. 2020).
    rotated: the side of the map whose tokens, the last ones, have rotary position embeddings; 0 for none.
    """

    heads: int
    dtype: str
    talking: bool = False
    rotated: int = 0

    @nn.compact
    def __call__(self, x, bias=None):
        qkv = _dense(3 * x.shape[-1], self.dtype, "qkv")(x).reshape(*x.shape[:-1], 3, self.heads, -1)
        q, k, v = jnp.moveaxis(qkv, -3, 0)
        if self.rotated:
            q, k = _rotated(q, self.rotated), _rotated(k, self.rotated)
        names = {"before": "proj_l", "after": "proj_w"} if self.talking else {}
        mixed = {when: partial(self.mix, name=name) for when, name in names.items()}
        return _dense(x.shape[-1], self.dtype, "proj")(_attend(q, k, v, bias, **mixed))

    def mix(self, maps, name):
        mixing = _dense(self.heads, _wide(self.dtype), name)
        return jnp.moveaxis(mixing(jnp.moveaxis(maps, -3, -1)), -1, -3)


class ClassAttention(nn.Module):
    """Attention of the first token to all: (n, t, d) → (n, 1, d)."""

    heads: int
    dtype: str

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        q, k, v = (
            _dense(d, self.dtype, name)(tokens).reshape(*tokens.shape[:-1], self.heads, -1)
            for name, tokens in (("q", x[:, :1]), ("k", x), ("v", x))
        )
        return _dense(d, self.dtype, "proj")(_attend(q, k, v))


class WindowAttention(nn.Module):
    """Attention within windows of a map (n, h, h, d), with a learned bias for each head and relative position.

    The map is first rolled by `shift`, and rolled back in the end. If the roll puts tokens from opposite sides of the
    image into one window, they do not attend to each other.
    Source: Liu et al. 2021, §3.2.
    """

    heads: int
    dtype: str
    window: int
    shift: int

    @nn.compact
    def __call__(self, x):
        side, window, shift = x.shape[1], self.window, self.shift
        row, column = np.divmod(np.arange(window**2), window)
        offset = [axis[:, None] - axis[None] + window - 1 for axis in (row, column)]
        table_shape = ((2 * window - 1) ** 2, self.heads)
        table = self.param("relative_position_bias_table", SMALL, table_shape, _wide(self.dtype))
        bias = jnp.moveaxis(table[offset[0] * (2 * window - 1) + offset[1]], -1, 0)[None]
        if shift:
            band = np.digitize(np.arange(side), (side - window, side - shift))
            region = _windows((3 * band[:, None] + band[None])[None, :, :, None], window)[0, :, :, 0]
            apart = region[:, :, None] != region[:, None, :]
            bias = jnp.where(apart[:, None], -jnp.inf, bias)
            x = jnp.roll(x, (-shift, -shift), (1, 2))
        windows = Attention(self.heads, self.dtype, name="attention")(_windows(x, window), bias[None])
        count = side // window
        x = windows.reshape(-1, count, count, window, window, x.shape[-1]).swapaxes(2, 3).reshape(x.shape)
        return jnp.roll(x, (shift, shift), (1, 2)) if shift else x


def _windows(x, window):
    """(n, h, h, d) → (n, windows, tokens, d)."""
    n, side, _, d = x.shape
    count = side // window
    return x.reshape(n, count, window, count, window, d).swapaxes(2, 3).reshape(n, count**2, window**2, d)


def _mlp(x, norm, dtype, mlp, width):
    """The MLP of norm(x), made in the module that calls this. mlp, width: see `Block`."""
    width = width or 4 * x.shape[-1]
    gated = mlp == GATED
    y = _dense((1 + gated) * width, dtype, "fc1")(norm(x))
    y = ACTIVATIONS[mlp](y[..., :width]) * y[..., width:] if gated else ACTIVATIONS[mlp](y)
    return _dense(x.shape[-1], dtype, "fc2")(y)


class Block(nn.Module):
    """y = x + γ₁·attention(norm(x)), then y + γ₂·MLP(norm(y)).

    attention: builds the attention module, given dtype and name. If the module returns fewer tokens than x has, the
        block returns only as many, the first ones.
    layer_scale: the initial value of the learned γ (Touvron et al. 2021b, eq. 4). None: γ = 1.
    mlp: the MLP's activation, a name in ACTIVATIONS.
    mlp_width: channels inside the MLP. None: four times as many as outside.
    """

    attention: partial
    dtype: str
    epsilon: float = 1e-6
    layer_scale: float | None = None
    mlp: str = "gelu"
    mlp_width: int | None = None

    @nn.compact
    def __call__(self, x):
        y = self.attention(dtype=self.dtype, name="attn")(_norm(self.dtype, "norm1", self.epsilon)(x))
        x = x[:, : y.shape[1]] + self.scale(y, "gamma_1")
        y = _mlp(x, _norm(self.dtype, "norm2", self.epsilon), self.dtype, self.mlp, self.mlp_width)
        return x + self.scale(y, "gamma_2")

    def scale(self, y, name):
        if self.layer_scale is None:
            return y
        gamma = self.param(name, nn.initializers.constant(self.layer_scale), y.shape[-1:], _wide(self.dtype))
        return y * gamma[None, None].astype(y.dtype)


class AttentionPool(nn.Module):
    """Attention of one learned token to all tokens, then a residual MLP: (n, t, d) → (n, d).

    mlp, mlp_width, epsilon: see `Block`.
    Source: Zhai et al. 2022, §3 (the "MAP" head).
    """

    heads: int
    dtype: str
    epsilon: float
    mlp: str
    mlp_width: int | None

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        latent = _repeat(self.param("latent", SMALL, (1, 1, d), _wide(self.dtype)), x)
        q, k, v = (
            _dense(d, self.dtype, name)(tokens).reshape(*tokens.shape[:-1], self.heads, -1)
            for name, tokens in (("q", latent), ("k", x), ("v", x))
        )
        x = _dense(d, self.dtype, "proj")(_attend(q, k, v))
        x = x + _mlp(x, _norm(self.dtype, "norm", self.epsilon), self.dtype, self.mlp, self.mlp_width)
        return x[:, 0].astype(_wide(self.dtype))


POOLS = ("cls", "mean", "attention")
POSITIONS = ("tokens", "patches", "rotary")


class ViT(nn.Module):
    """ViT and DeiT, and the ViTs of MAE, DINOv2, DINOv3, CLIP and SigLIP. They are one module with different options.

    distilled: whether there is a distillation token beside the class token, as in a distilled DeiT.
    pool: "cls" for the class token (with a distillation token, the mean of both), "mean" for the mean patch token,
        "attention" for an `AttentionPool` of the patch tokens, without a class token.
    registers: the number of tokens after the class token that are not read (Darcet et al. 2024).
    position: all "tokens" but registers have a learned position embedding, or only "patches"; "rotary" embeddings turn
        the queries and keys of patches.
    layer_scale, mlp, mlp_width, epsilon: see `Block`; epsilon is that of every LayerNorm.
    pre_norm: whether a LayerNorm comes before the blocks.
    patch_bias: whether the layer on the patches has a bias.
    projection: channels of a linear map of the pooled features, which then are the stage "pooled". None: no map.
    Source: Dosovitskiy et al. 2021; Touvron et al. 2021a; Radford et al. 2021; Oquab et al. 2023; Zhai et al. 2023.
    """

    size: int
    width: int
    depth: int
    heads: int
    dtype: str
    patch: int = 16
    distilled: bool = False
    pool: str = "cls"
    registers: int = 0
    position: str = "tokens"
    layer_scale: float | None = None
    mlp: str = "gelu"
    mlp_width: int | None = None
    epsilon: float = 1e-6
    pre_norm: bool = False
    patch_bias: bool = True
    projection: int | None = None

    def check(self) -> None:
        _check(self.size, self.patch, self.width, self.heads)
        for field, known in (("pool", POOLS), ("position", POSITIONS), ("mlp", ACTIVATIONS)):
            if (value := getattr(self, field)) not in known:
                raise InputError(f"unknown {field} '{value}'; choose one of {', '.join(known)}")

    @nn.compact
    def __call__(self, images: Float[Array, "n s s 3"], train: bool, stages: bool = False) -> Features:
        wide = _wide(self.dtype)
        x = _embed(images, self, self.width, self.patch, self.patch_bias)
        side = x.shape[1]
        x = x.reshape(len(x), -1, self.width)
        names = ("cls_token", "dist_token")[: 0 if self.pool == "attention" else 1 + self.distilled]
        tokens = [_repeat(self.param(name, SMALL, (1, 1, self.width), wide), x) for name in names]
        if self.position == "tokens":
            x, tokens = jnp.concatenate([*tokens, x], axis=1), []
        if self.position != "rotary":
            x = x + self.param("pos_embed", SMALL, (1, *x.shape[1:]), wide).astype(x.dtype)
        x = jnp.concatenate([*tokens, x], axis=1)
        if self.registers:
            registers = _repeat(self.param("registers", SMALL, (1, self.registers, self.width), wide), x)
            x = jnp.concatenate([x[:, : len(names)], registers, x[:, len(names) :]], axis=1)
        if self.pre_norm:
            x = _norm(self.dtype, "pre_norm", self.epsilon)(x).astype(self.dtype)
        read = slice(len(names)) if self.pool == "cls" else slice(len(names) + self.registers, None)
        mlp: dict[str, Any] = {"epsilon": self.epsilon, "mlp": self.mlp, "mlp_width": self.mlp_width}
        attention = partial(Attention, self.heads, rotated=side if self.position == "rotary" else 0)
        features: dict[str, Array] = {}
        for i in range(self.depth):
            x = Block(attention, self.dtype, layer_scale=self.layer_scale, name=f"block{i}", **mlp)(x)
            features[f"block{i}"] = jnp.mean(x[:, read], axis=1, dtype=wide)
        x = _norm(self.dtype, "norm", self.epsilon)(x[:, read])
        if self.pool == "attention":
            x = AttentionPool(self.heads, self.dtype, name="attention_pool", **mlp)(x.astype(self.dtype))
        else:
            x = jnp.mean(x, axis=1)
        if self.projection:
            features["pooled"] = x
            x = _dense(self.projection, wide, "projection", use_bias=False)(x)
        features["prelogits"] = x
        return features if stages else x


class CaiT(nn.Module):
    """CaiT: talking-heads blocks with layer scale on the patch tokens, then blocks that update the class token alone.

    class_depth: number of these last blocks.
    Source: Touvron et al. 2021b.
    """

    size: int
    width: int
    depth: int
    heads: int
    layer_scale: float
    dtype: str
    patch: int = 16
    class_depth: int = 2

    def check(self) -> None:
        _check(self.size, self.patch, self.width, self.heads)

    @nn.compact
    def __call__(self, images: Float[Array, "n s s 3"], train: bool, stages: bool = False) -> Features:
        block = partial(Block, dtype=self.dtype, layer_scale=self.layer_scale)
        x = _embed(images, self, self.width, self.patch)
        x = x.reshape(len(x), -1, self.width)
        x = x + self.param("pos_embed", SMALL, (1, *x.shape[1:]), _wide(self.dtype)).astype(x.dtype)
        features: dict[str, Array] = {}
        for i in range(self.depth):
            x = block(partial(Attention, self.heads, talking=True), name=f"block{i}")(x)
            features[f"block{i}"] = jnp.mean(x, axis=1, dtype=_wide(self.dtype))
        token = _repeat(self.param("cls_token", SMALL, (1, 1, self.width), _wide(self.dtype)), x)
        for i in range(self.class_depth):
            token = block(partial(ClassAttention, self.heads), name=f"class_block{i}")(jnp.concatenate([token, x], 1))
            features[f"block{self.depth + i}"] = token[:, 0].astype(_wide(self.dtype))
        features["prelogits"] = _norm(self.dtype, "norm")(token[:, 0])
        return features if stages else features["prelogits"]


class PiT(nn.Module):
    """PiT: ViT blocks in stages. Between stages, a depthwise convolution halves the map's sides and adds channels.

    A dense layer widens the class token, and the distillation token if there is one, to as many channels.
    width: channels of a head.
    patch, stride: of the convolution that embeds overlapping patches.
    Source: Heo et al. 2021.
    """

    size: int
    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    dtype: str
    patch: int
    stride: int
    distilled: bool = False

    def check(self) -> None:
        _check_stages(self.depths, self.heads)
        if self.size < self.patch:
            raise InputError(f"images of {self.size}² are smaller than a patch of {self.patch}; choose a larger size")

    @nn.compact
    def __call__(self, images: Float[Array, "n s s 3"], train: bool, stages: bool = False) -> Features:
        wide, width = _wide(self.dtype), self.width * self.heads[0]
        x = _embed(images, self, width, self.stride)
        # Channels come before the map, as in timm, so its weights need only new names.
        position = self.param("pos_embed", SMALL, (1, width, *x.shape[1:3]), wide)
        x = x + jnp.moveaxis(position, 1, -1).astype(x.dtype)
        count = 2 if self.distilled else 1
        tokens = _repeat(self.param("cls_token", SMALL, (1, count, width), wide), x)
        features: dict[str, Array] = {}
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if stage:
                by_channel = {"feature_group_count": width, "conv_general_dilated": convolution}
                width = self.width * heads
                x = _conv(width, 3, 2, self.dtype, f"pool{stage}_conv", padding=1, **by_channel)(x)
                tokens = _dense(width, self.dtype, f"pool{stage}_fc")(tokens)
            shape = x.shape
            x = jnp.concatenate([tokens, x.reshape(len(x), -1, width)], axis=1)
            for i in range(depth):
                x = Block(partial(Attention, heads), self.dtype, name=f"stage{stage}_block{i}")(x)
                features[f"block{len(features)}"] = jnp.mean(x[:, :count], axis=1, dtype=wide)
            tokens, x = x[:, :count], x[:, count:].reshape(shape)
        features["prelogits"] = jnp.mean(_norm(self.dtype, "norm")(tokens), axis=1)
        return features if stages else features["prelogits"]


class Swin(nn.Module):
    """Swin: blocks with attention in windows; every second block shifts the windows by half their side.

    Between stages, 2×2 tokens are merged into one token of twice the width. A map no larger than the window is one
    window. Source: Liu et al. 2021.
    """

    size: int
    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    dtype: str
    patch: int = 4
    window: int = 7

    def check(self) -> None:
        _check(self.size, self.patch, self.width, self.heads[0])
        _check_stages(self.depths, self.heads)
        for stage in range(len(self.depths)):
            side, rest = divmod(self.size, self.patch * 2**stage)
            if rest or (side > self.window and side % self.window):
                side = self.size / self.patch / 2**stage
                raise InputError(
                    f"images of {self.size}² are maps of {side:g}² in stage {stage}, not tiled by windows of "
                    f"{self.window}; choose another size, patch or window"
                )

    @nn.compact
    def __call__(self, images: Float[Array, "n s s 3"], train: bool, stages: bool = False) -> Features:
        norm = partial(_norm, self.dtype, epsilon=1e-5)
        x = _embed(images, self, self.width, self.patch)
        x = norm("patch_norm")(x).astype(self.dtype)
        features: dict[str, Array] = {}
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if stage:
                n, side, _, d = x.shape
                x = x.reshape(n, side // 2, 2, side // 2, 2, d).transpose(0, 1, 3, 4, 2, 5)
                x = norm(f"merge{stage}_norm")(x.reshape(n, side // 2, side // 2, 4 * d))
                x = _dense(2 * d, self.dtype, f"merge{stage}", use_bias=False)(x)
            window = min(self.window, x.shape[1])
            for i in range(depth):
                shift = window // 2 if i % 2 and window < x.shape[1] else 0
                attention = partial(WindowAttention, heads, window=window, shift=shift)
                x = Block(attention, self.dtype, epsilon=1e-5, name=f"stage{stage}_block{i}")(x)
                features[f"block{len(features)}"] = jnp.mean(x, axis=(1, 2), dtype=_wide(self.dtype))
        features["prelogits"] = jnp.mean(norm("norm")(x), axis=(1, 2))
        return features if stages else features["prelogits"]


_VIT = {
    "ti": {"width": 192, "depth": 12, "heads": 3},
    "s": {"width": 384, "depth": 12, "heads": 6},
    "b": {"width": 768, "depth": 12, "heads": 12},
}
# Size → (width, heads).
_CAIT = {"xxs": (192, 4), "xs": (288, 6), "s": (384, 8), "m": (768, 16)}
_PIT = {
    "ti": {"width": 32, "depths": (2, 6, 4), "heads": (2, 4, 8), "patch": 16, "stride": 8},
    "xs": {"width": 48, "depths": (2, 6, 4), "heads": (2, 4, 8), "patch": 16, "stride": 8},
    "s": {"width": 48, "depths": (2, 6, 4), "heads": (3, 6, 12), "patch": 16, "stride": 8},
    "b": {"width": 64, "depths": (3, 6, 4), "heads": (4, 8, 16), "patch": 14, "stride": 7},
}

# Name → (class, its arguments except size and dtype).
ENCODERS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{f"{kind}_{size}": (ViT, _VIT[size]) for kind in ("vit", "deit") for size in _VIT},
    **{f"deit_{size}_distilled": (ViT, {**_VIT[size], "distilled": True}) for size in _VIT},
    **{
        f"cait_{size}{depth}": (CaiT, {"width": width, "heads": heads, "layer_scale": 1e-5, "depth": depth})
        for size, (width, heads) in _CAIT.items()
        for depth in ((36, 48) if size == "m" else (24,) if size == "xs" else (24, 36))
    },
    **{f"pit_{size}": (PiT, _PIT[size]) for size in _PIT},
    **{f"pit_{size}_distilled": (PiT, {**_PIT[size], "distilled": True}) for size in _PIT},
    "swin_t": (Swin, {"width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)}),
    "swin_s": (Swin, {"width": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)}),
    "swin_b": (Swin, {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)}),
    "swin_l": (Swin, {"width": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48)}),
}
