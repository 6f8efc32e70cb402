"""DINOv2, DINOv3, CLIP, SigLIP and ConvNeXt: features against their makers' own, and images of other sides."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax.traverse_util import flatten_dict

from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.models import vit
from mirigor_jax.models.convnext import ConvNeXt
from mirigor_jax.models.pretrained import load
from mirigor_jax.models.pretrained.layouts import LAYOUTS
from mirigor_jax.models.pretrained.transformer_keys import LARGE_VITS
from mirigor_jax.models.pretrained.vit_keys import DINOV3

FOLDER = Path(__file__).parent / "golden"
VITS, CONVNEXTS = np.load(FOLDER / "vit_families.npz"), np.load(FOLDER / "convnexts.npz")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Case → its layout, the layouts that its keys don't tell apart, and its normalization.
CASES = {
    "dinov2": ("dinov2", (), IMAGENET),
    "dinov2_registers": ("dinov2", (), IMAGENET),
    "dinov2_giant": ("dinov2", (), IMAGENET),
    "deit3": ("dinov2", (), IMAGENET),
    "hf_dinov2": ("huggingface-dinov2", (), IMAGENET),
    "hf_dinov2_registers": ("huggingface-dinov2", (), IMAGENET),
    "timm_dinov3": ("timm-dinov3", (), IMAGENET),
    "timm_dinov3_gated": ("timm-dinov3", (), IMAGENET),
    "hf_dinov3": ("huggingface-dinov3", (), IMAGENET),
    "hf_dinov3_gated": ("huggingface-dinov3-gated", (), IMAGENET),
    "open_clip": ("clip-quickgelu", ("open-clip",), CLIP),
    "hf_clip": ("huggingface-clip", ("huggingface-open-clip",), CLIP),
    "hf_clip_tower": ("huggingface-open-clip", ("huggingface-clip",), CLIP),
    "timm_clip": ("timm-clip-quickgelu", ("timm-clip",), CLIP),
    "timm_siglip": ("timm-siglip", ("timm-siglip-tanh",), HALF),
    "hf_siglip": ("huggingface-siglip", (), HALF),
}
TINY = {"width": 8, "depth": 2, "heads": 2}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Weights don't show the number of heads, so the tiny ViT has to be known."""
    monkeypatch.setitem(vit.ENCODERS, "deit_ti", (vit.ViT, TINY))


def weights(arrays, case):
    prefix = f"{case}/weights/"
    return {key.removeprefix(prefix): arrays[key].astype(np.float32) for key in arrays.files if key.startswith(prefix)}


def saved(folder, arrays):
    np.savez(folder / "checkpoint.npz", **arrays)
    return folder / "checkpoint.npz"


def features(encoder, images):
    images = jnp.asarray(images, jnp.float32)
    return jax.jit(lambda v: encoder.encoder.apply(v, images, train=False, stages=True))(encoder.variables)


def same(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one.variables, other.variables))


@pytest.mark.parametrize("case", CASES)
def test_features_of_vits_are_their_makers(tmp_path, case):
    layout, others, norm = CASES[case]
    arrays = weights(VITS, case)
    path = saved(tmp_path, arrays)
    if others:
        with pytest.raises(
            InputError, match=rf"don't tell its mlp; name its layout: (?=.*{layout} \().*{others[0]} \("
        ):
            load(path)
    encoder = load(path, layout=layout if others else None, size=16)
    assert (encoder.layout, encoder.mean, encoder.std, encoder.others) == (layout, *norm, ())
    assert encoder.encoder.size == 16
    assert sorted((*encoder.used, *encoder.ignored)) == sorted(arrays)
    assert all(re.match(r"(?:embeddings\.)?mask_token|.*logit|transf|token|pos|ln_f|text", k) for k in encoder.ignored)
    ours = features(encoder, VITS["images"])
    np.testing.assert_allclose(ours["prelogits"], VITS[f"{case}/features"], atol=1e-4)
    if case == "hf_clip":
        np.testing.assert_allclose(ours["pooled"], VITS[f"{case}/pooled"], atol=1e-4)


@pytest.mark.parametrize(
    ("case", "config", "layout"),
    [
        ("hf_clip", {"vision_config": {"hidden_act": "quick_gelu"}}, "huggingface-clip"),
        ("hf_clip", {"vision_config": {"hidden_act": "gelu"}}, "huggingface-open-clip"),
        ("hf_clip_tower", {"hidden_act": "quick_gelu"}, "huggingface-clip"),
        ("timm_clip", {"architecture": "vit", "model_args": {"act_layer": "quick_gelu"}}, "timm-clip-quickgelu"),
        ("timm_siglip", {"model_args": {"act_layer": "gelu_tanh"}}, "timm-siglip-tanh"),
    ],
)
def test_a_config_beside_the_weights_tells_the_activation(tmp_path, case, config, layout):
    path = saved(tmp_path, weights(VITS, case))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(path).layout == layout


@pytest.mark.parametrize("side", [8, 24])
@pytest.mark.parametrize("case", ["dinov2", "dinov2_registers", "timm_clip", "timm_siglip", "timm_dinov3_gated"])
def test_at_another_side_features_are_timm_s(tmp_path, case, side):
    layout = CASES[case][0]
    encoder = load(saved(tmp_path, weights(VITS, case)), layout=layout, size=side)
    ours = features(encoder, VITS[f"images_{side}"])["prelogits"]
    np.testing.assert_allclose(ours, VITS[f"{case}/features_{side}"], atol=1e-4)
    patches = f"{side // 4}×{side // 4}"
    if "dinov3" in case:
        assert f"its rotary position embeddings are those of {patches} patches" in encoder.resized
    else:
        said = (
            f"trained on images of 16 pixels, and gets {side}: its position embeddings of 4×4 patches are interpolated"
        )
        assert f"{said} to {patches} (bicubic, as in timm)" in encoder.resized
        assert load(saved(tmp_path, weights(VITS, case)), layout=layout).resized == ""


def test_a_side_that_an_encoder_can_t_take_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"checkpoint.npz': images of 18² are not tiled by patches of 4"):
        load(saved(tmp_path, weights(VITS, "dinov2")), size=18)
    cait = weights(np.load(FOLDER / "transformers.npz"), "cait")
    monkeypatch.setitem(vit.ENCODERS, "cait_xxs24", (vit.CaiT, {**TINY, "width": 16, "layer_scale": 1e-5}))
    with pytest.raises(InputError, match="takes images of 32 pixels, not 64; give that size"):
        load(saved(tmp_path, cait), size=64)


def meta_dinov2(arrays):
    """Hugging Face's keys of a DINOv2 → Meta's on the hub."""
    result = {}
    for key, array in arrays.items():
        key = re.sub(r"^embeddings\.", "", key).replace("position_embeddings", "pos_embed")
        key = key.replace("patch_embeddings.projection", "patch_embed.proj").replace("layernorm", "norm")
        key = (
            re.sub(r"encoder\.layer\.(\d+)", r"blocks.\1", key).replace("layer_scale", "ls").replace("lambda1", "gamma")
        )
        key = (
            key.replace("attention.output.dense", "attn.proj").replace("weights_in", "w12").replace("weights_out", "w3")
        )
        result[key] = array
    for block in range(2):
        for kind in ("weight", "bias"):
            parts = [f"blocks.{block}.attention.attention.{name}.{kind}" for name in ("query", "key", "value")]
            result[f"blocks.{block}.attn.qkv.{kind}"] = np.concatenate([result.pop(part) for part in parts])
    return result


@pytest.mark.parametrize("case", ["hf_dinov2", "hf_dinov2_registers"])
@pytest.mark.parametrize("chunk", ["", "0."])
def test_meta_s_keys_of_dinov2_give_the_same_tree(tmp_path, case, chunk):
    arrays = weights(VITS, case)
    expected = load(saved(tmp_path, arrays))
    meta = {re.sub(r"blocks\.", f"blocks.{chunk}", key): array for key, array in meta_dinov2(arrays).items()}
    if chunk:  # a whole checkpoint of a training
        meta = {f"teacher/backbone.{key}": array for key, array in meta.items()}
    encoder = load(saved(tmp_path, meta))
    assert (encoder.layout, encoder.mean) == ("dinov2", IMAGENET[0])
    assert [key.removeprefix("backbone.") for key in encoder.ignored] == ["mask_token"]
    assert same(encoder, expected)


@pytest.mark.parametrize("case", ["hf_dinov3", "hf_dinov3_gated"])
def test_meta_s_keys_of_dinov3_give_the_same_tree_without_the_bias_of_keys(tmp_path, case):
    arrays = weights(VITS, case)
    expected = load(saved(tmp_path, arrays))
    meta = {"rope_embed.periods": np.ones(1, np.float32)}
    names = {"up_proj": "w2" if "gated" in case else "fc1", "gate_proj": "w1", "o_proj": "proj"}
    names["down_proj"] = "w3" if "gated" in case else "fc2"
    for key, array in arrays.items():
        key = re.sub(r"^embeddings\.", "", key).replace("register_tokens", "storage_tokens")
        key = (
            key.replace("patch_embeddings", "patch_embed.proj").replace("layer_scale", "ls").replace("lambda1", "gamma")
        )
        key = re.sub(r"^layer\.", "blocks.", key).replace("attention", "attn")
        meta[re.sub(r"\w+_proj", lambda name: names.get(name[0], name[0]), key)] = array
    for block in range(2):
        source = f"blocks.{block}.attn."
        q, k, v = (meta.pop(f"{source}{name}_proj.weight") for name in "qkv")
        meta[f"{source}qkv.weight"] = np.concatenate([q, k, v])
        q, v = (meta.pop(f"{source}{name}_proj.bias") for name in "qv")
        meta[f"{source}qkv.bias"] = np.concatenate([q, np.full_like(q, 9), v])
        meta[f"{source}qkv.bias_mask"] = np.concatenate([np.ones_like(q), np.zeros_like(q), np.ones_like(q)])
    encoder = load(saved(tmp_path, meta))
    assert encoder.layout == "dinov3"
    assert sorted(encoder.ignored) == sorted(key for key in meta if re.search(r"rope|mask", key))
    assert same(encoder, expected)


def test_openai_s_own_files_are_recognized(tmp_path):
    arrays = weights(VITS, "open_clip")
    sides = {"input_resolution": np.array(16), "context_length": np.array(5), "vocab_size": np.array(7)}
    encoder = load(saved(tmp_path, arrays | sides))
    assert encoder.layout == "clip"
    assert same(encoder, load(saved(tmp_path, arrays), layout="clip-quickgelu"))


def test_a_clip_s_text_is_no_other_encoder(tmp_path):
    arrays = weights(VITS, "hf_clip")
    text = {key.replace("vision_model", "text_model"): array for key, array in arrays.items() if "encoder" in key}
    text |= {key.replace(".1.", ".2."): array for key, array in text.items()}  # it has more keys than the image tower
    encoder = load(saved(tmp_path, arrays | text), layout="huggingface-clip")
    assert (encoder.place, encoder.others) == ("", ())
    assert sorted(encoder.ignored) == sorted(text)


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        ("timm", "timm-convnext"),
        ("timm_v2", "timm-convnext"),
        ("timm_conv", "timm-convnext"),
        ("torchvision", "torchvision-convnext"),
        ("hf", "huggingface-convnext"),
        ("hf_v2", "huggingface-convnext"),
    ],
)
def test_features_of_convnexts_are_their_makers(tmp_path, case, layout):
    arrays = weights(CONVNEXTS, case)
    encoder = load(saved(tmp_path, arrays), size=64)
    assert (encoder.layout, encoder.mean, encoder.others, encoder.resized) == (layout, IMAGENET[0], (), "")
    assert (encoder.encoder.layer_scale, encoder.encoder.response_norm) == ("v2" not in case, "v2" in case)
    assert sorted((*encoder.used, *encoder.ignored)) == sorted(arrays)
    assert all(re.match(r"head\.fc|classifier\.2", key) for key in encoder.ignored)
    ours = features(encoder, CONVNEXTS["images"])
    np.testing.assert_allclose(ours["prelogits"], CONVNEXTS[f"{case}/features"], atol=1e-4)
    assert list(ours) == ["block0", "block1", "block2", "block3", "block4", "prelogits"]


@pytest.mark.parametrize("case", ["timm", "timm_v2"])
def test_the_authors_keys_of_a_convnext_give_the_same_tree(tmp_path, case):
    arrays = weights(CONVNEXTS, case)
    expected = load(saved(tmp_path, arrays))
    theirs = {}
    for key, array in arrays.items():
        key = key.replace("stem.", "downsample_layers.0.").replace("head.norm", "norm").replace("head.fc", "head")
        key = re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", key).replace("conv_dw", "dwconv")
        key = key.replace("blocks.", "").replace("mlp.fc", "pwconv")
        key = key.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
        theirs[f"model/{key}"] = array[None, None, None] if "grn" in key else array
    encoder = load(saved(tmp_path, theirs))
    assert (encoder.layout, encoder.place) == ("convnext", "model/")
    assert same(encoder, expected)


def test_what_a_family_lacks_is_named(tmp_path):
    for case, key, message in (
        ("dinov2", "blocks.1.ls2.gamma", "nothing gives params/block1/gamma_2"),
        ("dinov2", "pos_embed", "nothing gives pos_embed"),
        ("hf_dinov3", "layer.1.attention.v_proj.bias", "nothing gives params/block1/attn/qkv/bias"),
        ("hf_siglip", "head.probe", "nothing gives params/attention_pool/latent"),
        ("timm_siglip", "attn_pool.kv.bias", "nothing gives params/attention_pool/k/bias"),
    ):
        arrays = {name: array for name, array in weights(VITS, case).items() if name != key}
        with pytest.raises(InputError, match=message):
            load(saved(tmp_path, arrays), layout=CASES[case][0])
    pool = weights(VITS, "timm_siglip") | {"attn_pool.kv.weight": np.ones((15, 8), np.float32)}
    with pytest.raises(InputError, match=r"attn_pool.kv.weight has shape \(15, 8\), not \(16, 8\)"):
        load(saved(tmp_path, pool), layout="timm-siglip")
    with pytest.raises(InputError, match=r"blocks\.0\.ls3\.gamma is unexpected"):
        load(saved(tmp_path, weights(VITS, "dinov2") | {"blocks.0.ls3.gamma": np.ones(8, np.float32)}))


def test_moco_v3_s_small_vit_has_twelve_heads():
    # Its authors' vits.py gives vit_small and vit_base 12 heads each; timm's small ViT has 6.
    found = shapes(vit.make("deit_s", size=32, dtype="float32"), 32)
    encoder, _ = LAYOUTS["moco-v3-vit"].architecture.encoder(found)
    assert encoder.heads == 6
    assert encoder.clone(**dict(LAYOUTS["moco-v3-vit"].fields)).heads == 12


DINOV2 = {"size": 518, "patch": 14, "layer_scale": 1e-5}
GATED = {"mlp": "swiglu", "registers": 4}
DINOV3_HUGE = {"position": "rotary", "layer_scale": 1e-5, "epsilon": 1e-5}
PUBLISHED = {
    "vit_small_patch14_dinov2": ("dinov2", vit.ENCODERS["vit_s"][1], DINOV2),
    "deit3_medium_patch16_224": ("dinov2", LARGE_VITS["vit_m"], {"layer_scale": 1e-5, "position": "patches"}),
    "vit_large_patch14_dinov2": ("dinov2", LARGE_VITS["vit_l"], DINOV2),
    "vit_giant_patch14_reg4_dinov2": (
        "dinov2", LARGE_VITS["dinov2_g"], DINOV2 | GATED | {"mlp_width": 4096, "position": "patches"}
    ),
    "vit_huge_patch14_clip_224": (
        "timm-clip", LARGE_VITS["vit_h"], {"patch": 14, "pre_norm": True, "patch_bias": False, "epsilon": 1e-5}
    ),
    "vit_so400m_patch14_siglip_384": (
        "timm-siglip",
        LARGE_VITS["vit_so400m"],
        {"size": 378, "patch": 14, "mlp_width": 4304, "pool": "attention", "position": "patches"},
    ),
    "vit_huge_plus_patch16_dinov3": ("timm-dinov3", DINOV3["dinov3_h"], GATED | DINOV3_HUGE),
}  # fmt: skip


def shapes(encoder, size):
    variables = jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x, train=False), jnp.zeros((1, size, size, 3)))
    return {path: leaf.shape for path, leaf in flatten_dict(variables, sep="/").items()}


def parameters(shapes):
    return sum(np.prod(shape, dtype=int) for shape in shapes.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_has_timm_s_number_of_parameters_and_is_known_by_its_shapes(name):
    layout, sizes, fields = PUBLISHED[name]
    encoder = vit.ViT(**{"size": 224, "dtype": "float32"} | sizes | fields)
    found = shapes(encoder, encoder.size)
    # timm's files of DINOv3 have no bias of queries, keys and values, which is zero here.
    absent = sizes["depth"] * 3 * sizes["width"] if "dinov3" in name else 0
    assert parameters(found) - absent == VITS[f"parameters/{name}"]
    assert LAYOUTS[layout].architecture.encoder(found) == (encoder, encoder.size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "depths", "widths"),
    [
        ("convnext_tiny", (3, 3, 9, 3), (96, 192, 384, 768)),
        ("convnextv2_huge", (3, 3, 27, 3), (352, 704, 1408, 2816)),
    ],
)
def test_full_size_convnexts_have_timm_s_number_of_parameters(name, depths, widths):
    encoder = ConvNeXt(depths, widths, "float32", layer_scale="v2" not in name, response_norm="v2" in name)
    found = shapes(encoder, 64)
    assert parameters(found) == CONVNEXTS[f"parameters/{name}"]
    assert LAYOUTS["timm-convnext"].architecture.encoder(found)[0] == encoder


def full_size(arrays, *, width, depth, patch, side):
    """The weights of a tiny encoder of width 8 and depth 2 → random ones under the keys of a full-size encoder."""
    rng, result = np.random.default_rng(0), {}
    tokens = (side // patch) ** 2
    for key, array in arrays.items():
        shape = tuple(n // 8 * width if n % 8 == 0 else n for n in array.shape)
        if re.search("pos_embed|position", key):
            shape = (*array.shape[:-2], array.shape[-2] - 16 + tokens, width)
        if array.ndim == 4:
            shape = (width, 3, patch, patch)
        blocks = range(1, depth) if ".1." in key else [1]
        for block in blocks:
            values = 0.02 * rng.normal(size=shape) + (array.ndim == 1 and key.endswith("weight"))
            result[key.replace(".1.", f".{block}.")] = values.astype(np.float16)
    return result


@pytest.mark.slow
def test_a_full_size_vit_runs_through_the_command(tmp_path, capsys):
    sizes = {"width": 384, "depth": 12, "patch": 14, "side": 518}
    path = saved(tmp_path, full_size(weights(VITS, "dinov2_registers"), **sizes))
    rng, sets = np.random.default_rng(0), {}
    for part, count in (("", 800), ("_test", 200)):
        labels = rng.permutation(np.repeat([0, 1], count // 2))
        noise = rng.normal(0, 30, (count, 32, 32))
        sets[f"images{part}"] = np.clip(60 * (1 + labels[:, None, None]) + noise, 0, 255).astype(np.uint8)
        sets[f"labels{part}"] = labels
    np.savez(tmp_path / "images.npz", **sets)
    named = "--config.encoder.layout=dinov2"
    command = small.encoder(f"npz:{tmp_path / 'images.npz'}", tmp_path / "run", f"--config.encoder.path={path}", named)
    assert main(command) == 2
    assert "images of 32² are not tiled by patches of 14" in capsys.readouterr().err
    assert main([*command, "--config.data.size=28"]) == 0
    assert capsys.readouterr().out.count("was trained on images of") == 1
    h = np.load(tmp_path / "run/features/test.npz")["h"]
    assert h.shape == (200, 384)
    assert np.isfinite(h).all()
    assert small.report(tmp_path / "run")["estimate"]
