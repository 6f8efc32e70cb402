"""Vision transformers against timm's own, with random weights under timm's keys; sizes, dtypes and bad input."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mirigor_jax.errors import InputError
from mirigor_jax.models.convolution import convolution
from mirigor_jax.models.pretrained.transformer_keys import FAMILIES
from mirigor_jax.models.vit import ENCODERS, WindowAttention, make

GOLDEN = np.load(Path(__file__).parent / "golden" / "transformers.npz")
VIT = {"width": 16, "depth": 2, "heads": 2, "patch": 8}
PIT = {"width": 8, "depths": (1, 2, 1), "heads": (1, 2, 4), "patch": 8, "stride": 4}
SWIN = {"width": 8, "depths": (2, 2, 1), "heads": (1, 2, 4), "window": 4}
CASES = {
    "vit": ("vit", "vit_ti", VIT),
    "vit_mean": ("vit", "vit_ti", {**VIT, "pool": "mean"}),
    "deit": ("vit", "deit_ti", VIT),
    "deit_distilled": ("vit", "deit_ti_distilled", VIT),
    "cait": ("cait", "cait_xxs24", VIT),
    "pit": ("pit", "pit_s", PIT),
    "pit_distilled": ("pit", "pit_s_distilled", PIT),
    "swin": ("swin", "swin_t", SWIN),
}
TRANSFORMS = {
    "same": lambda w: w,
    "dense": lambda w: w.T,
    "conv": lambda w: w.transpose(2, 3, 1, 0),
}


def part(case, kind):
    prefix = f"{case}/{kind}/"
    return {key.removeprefix(prefix): GOLDEN[key] for key in GOLDEN.files if key.startswith(prefix)}


def renamed(family, weights):
    """(The Flax tree of timm's weights, the keys that it leaves out)."""
    rules, ignored, _ = FAMILIES[family]
    tree, left = {}, []
    for key, w in weights.items():
        matches = ((re.fullmatch(source, key), target, transform) for source, target, transform in rules)
        match, target, transform = next((m for m in matches if m[0]), (None, None, None))
        if match:
            path = re.sub(r"(\d)\+1", lambda number: str(int(number[1]) + 1), match.expand(target))
            tree[tuple(path.split("/"))] = TRANSFORMS[transform](w.astype(np.float32))
        else:
            assert any(re.fullmatch(pattern, key) for pattern in ignored), key
            left.append(key)
    return unflatten_dict(tree), left


def abstract(encoder):
    """Shapes and dtypes of the encoder's variables."""
    images = jax.ShapeDtypeStruct((1, encoder.size, encoder.size, 3), jnp.float32)
    return jax.eval_shape(lambda images: encoder.init(jax.random.key(0), images, train=False), images)


@pytest.mark.parametrize(
    "case",
    [
        case if case in ("vit", "deit_distilled", "swin") else pytest.param(case, marks=pytest.mark.slow)
        for case in CASES
    ],
)
def test_forward_is_timm_s(case):
    family, name, arguments = CASES[case]
    encoder = make(name, size=32, dtype="float32", **arguments)
    variables, left = renamed(family, part(case, "weights"))
    assert all(key.startswith("head") for key in left)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, abstract(encoder))

    images = jnp.asarray(GOLDEN["images"], jnp.float32)

    @jax.jit
    def forward(variables):
        stages = encoder.apply(variables, images, train=False, stages=True)
        return stages | {"alone": encoder.apply(variables, images, train=True)}

    ours, theirs = forward(variables), part(case, "features")
    theirs["alone"] = theirs["prelogits"]
    assert ours.keys() == theirs.keys()
    for stage, h in theirs.items():
        np.testing.assert_allclose(ours[stage], h, atol=1e-4, err_msg=stage)


WORDS = ("vit", "deit", "swin")  # families whose sizes are words in timm
SIDES = {"cait_xs24": 384, "cait_s36": 384, "cait_m36": 384, "cait_m48": 448}  # of images, if not 224


def timm_s_name(name):
    """pit_s → pit_s_224, deit_b_distilled → deit_base_distilled_patch16_224, …"""
    family, size, *rest = name.split("_")
    size = {"ti": "tiny", "t": "tiny", "s": "small", "b": "base", "l": "large"}[size] if family in WORDS else size
    ending = {"cait": [], "pit": [], "swin": ["patch4", "window7"]}.get(family, ["patch16"])
    return "_".join([family, size, *rest, *ending, str(SIDES.get(name, 224))])


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_full_size_has_timm_s_number_of_parameters_and_is_known_by_its_shapes(name):
    side = SIDES.get(name, 224)
    encoder = make(name, size=side, dtype="float32")
    variables = flatten_dict(abstract(encoder), sep="/")
    assert sum(leaf.size for leaf in variables.values()) == GOLDEN[f"parameters/{timm_s_name(name)}"]
    _, _, recognize = FAMILIES[name.split("_")[0].replace("deit", "vit")]
    assert recognize({path: leaf.shape for path, leaf in variables.items()}) == (encoder, side)


@pytest.mark.parametrize(
    ("name", "size", "arguments"), [("vit_s", 96, {"patch": 8}), ("swin_b", 384, {"window": 12}), ("pit_b", 56, {})]
)
def test_other_sizes_are_known_by_their_shapes(name, size, arguments):
    encoder = make(name, size=size, dtype="float32", **arguments)
    shapes = {path: leaf.shape for path, leaf in flatten_dict(abstract(encoder), sep="/").items()}
    assert FAMILIES[name.split("_")[0]][2](shapes) == (encoder, size)


def test_shapes_of_no_published_encoder_are_named():
    shapes = {
        "params/" + "/".join(path): leaf.shape
        for path, leaf in flatten_dict(abstract(make("vit_ti", size=32, dtype="float32"))["params"]).items()
        if "block11" not in path
    }
    with pytest.raises(InputError, match="a ViT of width 192, depth 11, distilled False is none of vit_ti, "):
        FAMILIES["vit"][2](shapes)
    with pytest.raises(InputError, match="pos_embed has 2 axes, not 3"):
        FAMILIES["vit"][2]({**shapes, "params/pos_embed": (5, 192)})
    with pytest.raises(InputError, match="nothing gives stage0_block0/attn/relative_position_bias_table"):
        FAMILIES["swin"][2](shapes)


@pytest.mark.parametrize(
    ("case", "original", "key", "earlier"),
    [
        ("swin", "swin-original", r"layers\.(\d)\.downsample", "layers.{}.downsample"),
        ("pit", "pit", r"transformers\.(\d)\.pool", "pools.{}"),
    ],
)
def test_the_authors_own_files_give_the_same_tree(case, original, key, earlier):
    weights = part(case, "weights")
    before = {re.sub(key, lambda at: earlier.format(int(at[1]) - 1), name): w for name, w in weights.items()}
    assert before.keys() != weights.keys()
    ours, theirs = (flatten_dict(renamed(*of)[0]) for of in ((original, before), (case, weights)))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[path], theirs[path]) for path in ours)


def test_swin_s_buffers_are_left_out():
    buffers = {f"layers.0.blocks.1.{name}": np.zeros(1) for name in ("attn.relative_position_index", "attn_mask")}
    assert renamed("swin", buffers) == ({}, list(buffers))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["deit_distilled", "cait", "pit", "swin"])
def test_bfloat16_leaves_parameters_norms_softmax_and_features_in_float32(case):
    _, name, arguments = CASES[case]
    encoder = make(name, size=32, dtype="bfloat16", **arguments)
    variables = abstract(encoder)
    images = jnp.zeros((2, 32, 32, 3))
    forward = jax.make_jaxpr(lambda variables: encoder.apply(variables, images, train=False, stages=True))(variables)
    assert {leaf.dtype for leaf in (*jax.tree.leaves(variables), *forward.out_avals)} == {jnp.dtype("float32")}
    program = str(forward)
    for operation in ("exp", "rsqrt"):
        assert f"] = {operation} " in program
        assert not re.search(rf":bf16\[[\d,]*\] = {operation} ", program)
    products = len(re.findall(r":bf16\[[\d,]*\] = dot_general", program))
    blocks = len(forward.out_avals) - 1
    assert products >= 5 * blocks  # q·k alone comes in float32


@pytest.mark.slow
def test_tokens_that_a_shift_brought_together_have_finite_gradients():
    attention = WindowAttention(heads=1, dtype="float32", window=2, shift=1)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 2)), jnp.float32)

    @jax.jit
    def gradients(key):
        variables = attention.init(key, x)
        return jax.grad(lambda variables, x: jnp.sum(attention.apply(variables, x) ** 2), (0, 1))(variables, x)

    g_variables, g_x = gradients(jax.random.key(0))
    assert all(jnp.isfinite(g).all() for g in (*jax.tree.leaves(g_variables), g_x))
    assert jnp.any(g_variables["params"]["relative_position_bias_table"] != 0)


@pytest.mark.parametrize(
    ("map", "side", "stride", "padding"),
    [
        pytest.param((7, 7), 3, 2, ((1, 1), (1, 1)), marks=pytest.mark.slow),
        ((2, 3), 7, 1, ((3, 3), (3, 3))),  # rows and columns of the kernel see only padding
        ((1, 9), 5, 1, ((4, 0), (1, 3))),
        ((1, 2), 3, 1, ((3, 3), (2, 2))),  # the result is larger than the map
    ],
)
def test_convolution_by_channel_is_lax_s(map, side, stride, padding):
    r = np.random.default_rng(0)
    x, kernel = (r.normal(size=shape).astype(np.float32) for shape in ((2, *map, 3), (side, side, 1, 6)))

    def loss(x, kernel, convolve):
        options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 3}
        return jnp.sum(jnp.sin(convolve(x, kernel, (stride, stride), padding, **options)))

    @jax.jit
    def of_both(x, kernel):
        return [jax.value_and_grad(loss, (0, 1))(x, kernel, f) for f in (convolution, jax.lax.conv_general_dilated)]

    ours, theirs = (jax.tree.leaves(of) for of in of_both(x, kernel))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "arguments", "message"),
    [
        ("vit_l", 224, {}, "unknown encoder 'vit_l'; choose one of vit_ti, "),
        ("vit_s", 224, {"dtype": "int8"}, "dtype='int8': expected auto, float32"),
        ("vit_s", 224, {"stride": 8}, "vit_s has no 'stride'; it has depth, distilled, epsilon, heads, "),
        ("vit_s", 224, {"pool": "max"}, "unknown pool 'max'"),
        ("vit_s", 0, {}, "size=0 for vit_s; it must be at least 1"),
        ("swin_t", 224, {"heads": (3, 6, 0, 24)}, "heads=(3, 6, 0, 24) for swin_t; it must be at least 1"),
        ("vit_s", 100, {}, "images of 100² are not tiled by patches of 16"),
        ("cait_xxs24", 100, {}, "images of 100² are not tiled by patches of 16"),
        ("vit_s", 224, {"heads": 5}, "a width of 384 is not divided by 5 heads"),
        ("swin_t", 222, {}, "images of 222² are not tiled by patches of 4"),
        ("swin_t", 256, {}, "images of 256² are maps of 64² in stage 0, not tiled by windows of 7"),
        ("swin_t", 84, {}, "images of 84² are maps of 10.5² in stage 1"),
        ("swin_t", 224, {"depths": (2, 2)}, "2 depths for 4 numbers of heads"),
        ("pit_s", 224, {"depths": (2, 2)}, "2 depths for 3 numbers of heads"),
        ("pit_s", 8, {}, "images of 8² are smaller than a patch of 16"),
    ],
)
def test_bad_input_is_named(name, size, arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make(name, **{"size": size, "dtype": "float32"} | arguments)


def test_images_of_another_size_are_named():
    encoder = make("vit_ti", size=32, dtype="float32", **VIT)
    with pytest.raises(InputError, match="images of 48² for an encoder of 32²"):
        encoder.init(jax.random.key(0), jnp.zeros((1, 48, 48, 3)), train=False)
