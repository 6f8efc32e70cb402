"""ResNet encoders f_e (v1.5), and the same networks without skip connections ("plain"), in Flax Linen.

Parameters, BatchNorm's statistics and the global average are at least float32 for any compute dtype. Padding is
explicit, and BatchNorm's momentum and epsilon are torch's (torch's 0.1 is 0.9 here), so public weights fit.
Source: He et al. 2016. The stride of a bottleneck is in its 3×3 convolution ("v1.5"), as in torchvision.
"""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mirigor_jax import parallel
from mirigor_jax.errors import InputError
from mirigor_jax.models.convolution import convolution, max_pool
from mirigor_jax.models.dtypes import compute_dtype
from mirigor_jax.settings import Encoder

STAGES = {
    "resnet18": ((2, 2, 2, 2), "basic"),
    "resnet34": ((3, 4, 6, 3), "basic"),
    "resnet50": ((3, 4, 6, 3), "bottleneck"),
    "resnet101": ((3, 4, 23, 3), "bottleneck"),
    "resnet152": ((3, 8, 36, 3), "bottleneck"),
    "plainnet18": ((2, 2, 2, 2), "plain"),
    "plainnet34": ((3, 4, 6, 3), "plain"),
}


STEMS = ("imagenet", "cifar")


def make_encoder(
    name: str,
    *,
    width: int = 16,
    stem: str = "imagenet",
    dtype: str = Encoder.dtype,
    remat: bool = False,
    axis_name: str | None = None,
) -> "ResNet":
    """Build the ResNet of this name.

    width: channels of the first stage. 64 is the published width; 16 can be trained on a laptop.
    dtype: of the computations. "auto" is float32 on CPU, and bfloat16 on accelerators, where it is faster.
    stem, remat, axis_name: see `ResNet`.
    Raises InputError for an unknown name, stem or dtype, or a width below 1.
    """
    for option, value, known in (("encoder", name, STAGES), ("stem", stem, STEMS)):
        if value not in known:
            raise InputError(f"unknown {option} '{value}'; choose one of {', '.join(known)}")
    if width < 1:
        raise InputError(f"width={width}: expected at least 1 channel in the first stage of {name}")
    dtype = compute_dtype(dtype)
    stages, block = STAGES[name]
    return ResNet(stages=stages, block=block, width=width, stem=stem, dtype=dtype, remat=remat, axis_name=axis_name)


class ResNet(nn.Module):
    """(n, s, s, 3) normalized images → (n, d) features: the global average of the last map.

    d is 8·width, or 32·width with bottlenecks. With `stages`, the result is a dict of (n, d) arrays: `B0` is the map
    after the first convolution, `B1` … `B4` are the maps after each stage, all max-pooled to d numbers, and `prelogits`
    is the global average (Gosch 2020, §2.5).
    stages: number of blocks in each stage.
    block: "basic", "bottleneck" or "plain", see `Block`.
    width: channels of the first stage.
    stem: "imagenet" (7×7 convolution of stride 2, then max-pool) or "cifar" (3×3 convolution of stride 1).
    remat: whether only the blocks' inputs are stored for the gradient, and the rest is computed again. That takes less
        memory and a third more work.
    axis_name: the mapped axis over which BatchNorm takes its statistics. None: each device's own images.
    """

    any_size: ClassVar[bool] = True
    stages: tuple[int, ...]
    block: str
    width: int = 64
    stem: str = "imagenet"
    dtype: str = "float32"
    remat: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "n s s 3"], train: bool, stages: bool = False
    ) -> Float[Array, "n d"] | dict[str, Float[Array, "n d"]]:
        param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        conv = partial(
            nn.Conv,
            use_bias=False,
            conv_general_dilated=convolution,
            dtype=self.dtype,
            param_dtype=param_dtype,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        )
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            param_dtype=param_dtype,
            axis_name=self.axis_name if train else None,
        )
        x = images.astype(self.dtype)
        imagenet = self.stem == "imagenet"
        kernel, stride = (7, 2) if imagenet else (3, 1)
        x = conv(self.width, (kernel, kernel), (stride, stride), padding=kernel // 2, name="stem")(x)
        x = nn.relu(norm(name="stem_norm")(x))
        maps = [x]
        if imagenet:
            x = max_pool(x)
        block = nn.remat(Block) if self.remat else Block
        folds = train and parallel.platform() == "tpu"
        for stage, depth in enumerate(self.stages):
            for index in range(depth):
                x = block(
                    kind=self.block,
                    channels=self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    conv=conv,
                    norm=norm,
                    folds=folds,
                    name=f"stage{stage + 1}_block{index + 1}",
                )(x)
            maps.append(x)
        prelogits = jnp.mean(x, axis=(1, 2), dtype=param_dtype)
        if not stages:
            return prelogits
        pooled = {f"B{i}": _max_pool_to(x, prelogits.shape[1]).astype(param_dtype) for i, x in enumerate(maps)}
        return pooled | {"prelogits": prelogits}


def _max_pool_to(x: Float[Array, "n h w c"], features: int) -> Float[Array, "n d"]:
    """The maxima in a grid of features/c windows that covers the map, flattened. The windows are about square.

    features/c is a power of two. Along an axis of s pixels, window i of m spans pixels ⌊i·s/m⌋ to ⌈(i+1)·s/m⌉.
    """
    windows = features // x.shape[3]
    rows = 2 ** ((windows.bit_length() - 1) // 2)
    for axis, count in ((1, rows), (2, windows // rows)):
        size = x.shape[axis]
        spans = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        x = jnp.stack([lax.slice_in_dim(x, *span, axis=axis).max(axis) for span in spans], axis)
    return x.reshape(len(x), features)


class Block(nn.Module):
    """One residual block: "basic" (3×3, 3×3), "bottleneck" (1×1, 3×3, 1×1) or "plain" (basic without the skip).

    folds: whether BatchNorm is folded into a 1×1 convolution of stride 1 to more channels, see `FoldedNorm`.
    """

    kind: str
    channels: int
    stride: int
    conv: partial
    norm: partial
    folds: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n g v d"]:
        if self.kind == "bottleneck":
            layers = [(self.channels, 1, 1), (self.channels, 3, self.stride), (4 * self.channels, 1, 1)]
        else:
            layers = [(self.channels, 3, self.stride), (self.channels, 3, 1)]
        y = x
        for i, layer in enumerate(layers, 1):
            y = self.normed(y, *layer, names=(f"conv{i}", f"norm{i}"))
            if i < len(layers):
                y = nn.relu(y)
        if self.kind != "plain":
            if x.shape != y.shape:
                x = self.normed(x, y.shape[-1], 1, self.stride, names=("shortcut", "shortcut_norm"))
            y = x + y
        return _relu(y) if self.folds else nn.relu(y)

    def normed(
        self, x: Float[Array, "n h w c"], features: int, kernel: int, stride: int, *, names: tuple[str, str]
    ) -> Float[Array, "n g v d"]:
        """A convolution and its BatchNorm."""
        pads = kernel // 2
        conv = partial(self.conv, features, (kernel, kernel), (stride, stride), padding=pads, name=names[0])
        if not self.folds or max(kernel, stride) > 1 or features <= x.shape[-1]:
            return self.norm(name=names[1])(conv()(x))
        options = self.norm.keywords
        weights = conv(dtype=options["param_dtype"], conv_general_dilated=lambda x, kernel, *_, **__: kernel)(x)
        fields = ("momentum", "epsilon", "param_dtype", "axis_name")
        folded = FoldedNorm(**{field: options[field] for field in fields}, name=names[1])
        matrix, shift = folded(x, weights[0, 0])
        y = convolution(
            x, matrix[None, None].astype(x.dtype), (1, 1), [(0, 0)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return (y + shift[None, None, None]).astype(x.dtype)


class FoldedNorm(nn.Module):
    """BatchNorm of z·matrix in training. It returns (folded, shift): z·folded + shift is the normalized product.

    The mean and the variance of z·matrix follow from the means of z and zzᵀ. So z·matrix is neither stored before it is
    normalized nor computed again for the gradient. If z has fewer channels than z·matrix, that saves HBM traffic, which
    limits the speed of a step on TPUs (docs/how_to/plan.md).
    """

    momentum: float
    epsilon: float
    param_dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(
        self, z: Float[Array, "n h w c"], matrix: Float[Array, "c d"]
    ) -> tuple[Float[Array, "c d"], Float[Array, " d"]]:
        shape = matrix.shape[1:]
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
        mean = matmul(jnp.mean(z, (0, 1, 2), dtype=self.param_dtype), matrix)
        square = jnp.sum(matrix * matmul(_second_moment(z), matrix), 0)
        if self.axis_name:
            mean, square = lax.pmean((mean, square), self.axis_name)
        variance = jnp.maximum(0, square - mean**2)
        for name, start, value in (("mean", jnp.zeros, mean), ("var", jnp.ones, variance)):
            running = self.variable("batch_stats", name, start, shape, self.param_dtype)
            if not self.is_initializing():
                running.value = self.momentum * running.value + (1 - self.momentum) * value
        scale = scale * lax.rsqrt(variance + self.epsilon)
        return matrix * scale[None], bias - mean * scale


@jax.custom_vjp
def _second_moment(z: Float[Array, "n h w c"]) -> Float[Array, "c c"]:
    """The mean of zzᵀ over all pixels, with a gradient that is one matrix product."""
    wide = jnp.promote_types(z.dtype, jnp.float32)
    return jnp.einsum("nhwi,nhwj->ij", z, z, preferred_element_type=wide) / (z.size // z.shape[-1])


def _from_second_moment(z: Float[Array, "n h w c"], gradient: Float[Array, "c c"]) -> tuple[Float[Array, "n h w c"]]:
    symmetric = (gradient + gradient.T) / (z.size // z.shape[-1])
    return (jnp.einsum("nhwi,ij->nhwj", z, symmetric.astype(z.dtype)),)


_second_moment.defvjp(lambda z: (_second_moment(z), z), _from_second_moment)


@jax.custom_jvp
def _relu(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """ReLU with a gradient that is computed from its output, which is stored anyway, and not from its input."""
    return jnp.maximum(x, 0)


_relu.defjvps(lambda dx, result, _: jnp.where(result > 0, dx, 0))
