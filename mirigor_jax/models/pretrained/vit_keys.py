"""The keys of ViTs with more than a plain ViT has: DINOv2, DINOv3, CLIP and SigLIP. See `transformer_keys`."""

from functools import partial

from mirigor_jax.models.pretrained.transformer_keys import (
    BLOCK,
    HEADS,
    HUGGING_FACE,
    NORM,
    PATCHES,
    TOKENS,
    Family,
    Rule,
    Sizes,
    block,
    layer,
    parts,
    vit,
)

# Sizes of DINOv3. The huge one has more heads than other huge ViTs.
DINOV3: Sizes = {
    "dinov3_l": {"width": 1024, "depth": 24, "heads": 16},
    "dinov3_h": {"width": 1280, "depth": 32, "heads": 20},
    "dinov3_7b": {"width": 4096, "depth": 40, "heads": 32},
}

_POOL = "attention_pool"
# In Meta's own training checkpoints, blocks are in chunks: blocks.CHUNK.BLOCK.
_META = r"blocks\.(?:\d+\.)?(?P<block>\d+)"


def _registers(name: str) -> Rule:
    return (name, "params/registers", "same")


def _scales(source: str) -> Rule:
    """The rule of LayerScale; its number is the end of `source`'s group `scale`."""
    return (source, rf"params/{BLOCK}/gamma_\g<scale>", "same")


_DINO = (
    ("cls_token", "params/cls_token", "same"),
    _registers("(?:reg_token|register_tokens|storage_tokens)"),
    *PATCHES,
    *block(_META, BLOCK),
    *layer(rf"{_META}\.mlp\.w12", f"{BLOCK}/fc1", "dense"),
    *parts(rf"{_META}\.mlp\.", ("w1", "w2"), f"{BLOCK}/fc1"),
    *layer(rf"{_META}\.mlp\.w3", f"{BLOCK}/fc2", "dense"),
    _scales(rf"{_META}\.ls(?P<scale>[12])\.gamma"),
    *NORM,
)
_HUGGING_FACE_EMBEDDINGS = (
    (r"embeddings\.cls_token", "params/cls_token", "same"),
    (r"embeddings\.position_embeddings", "params/pos_embed", "same"),
    _registers(r"embeddings\.register_tokens"),
)
_DINOV3_LAYER = r"layer\.(?P<block>\d+)"
_HUGGING_FACE_DINOV3 = (
    *_HUGGING_FACE_EMBEDDINGS,
    *layer(r"embeddings\.patch_embeddings", "patch_embed", "conv"),
    *layer(rf"{_DINOV3_LAYER}\.norm(?P<norm>[12])", rf"{BLOCK}/norm\g<norm>", "same"),
    *parts(rf"{_DINOV3_LAYER}\.attention\.", ("q_proj", "k_proj", "v_proj"), f"{BLOCK}/attn/qkv"),
    *layer(rf"{_DINOV3_LAYER}\.attention\.o_proj", f"{BLOCK}/attn/proj", "dense"),
    *layer(rf"{_DINOV3_LAYER}\.mlp\.down_proj", f"{BLOCK}/fc2", "dense"),
    _scales(rf"{_DINOV3_LAYER}\.layer_scale(?P<scale>[12])\.lambda1"),
    *NORM,
)
_HUGGING_FACE_DINOV3 = (
    *_HUGGING_FACE_EMBEDDINGS,
    *layer(r"embeddings\.patch_embeddings", "patch_embed", "conv"),
    *layer(rf"{_DINOV3_LAYER}\.norm(?P<norm>[12])", rf"{BLOCK}/norm\g<norm>", "same"),
    *parts(rf"{_DINOV3_LAYER}\.attention\.", ("q_proj", "k_proj", "v_proj"), f"{BLOCK}/attn/qkv"),
    *layer(rf"{_DINOV3_LAYER}\.attention\.o_proj", f"{BLOCK}/attn/proj", "dense"),
    *layer(rf"{_DINOV3_LAYER}\.mlp\.down_proj", f"{BLOCK}/fc2", "dense"),
    _scales(rf"{_DINOV3_LAYER}\.layer_scale(?P<scale>[12])\.lambda1"),
    *NORM,
)
# DINOv3 has no bias of keys. Its authors' files have one, and multiply it by a mask that is zero.
_WITHOUT_KEY_BIAS: Rule = (rf"{_META}\.attn\.qkv\.bias", f"params/{BLOCK}/attn/qkv/bias[{{0,,2}}/3]", "same")
KEY_BIAS = r"params/block\d+/attn/qkv/bias\[1/3\]"
QKV_BIAS = r"params/block\d+/attn/qkv/bias"


def _openai() -> tuple[Rule, ...]:
    source = r"visual\.transformer\.resblocks\.(?P<block>\d+)"
    return (
        (r"visual\.class_embedding", "params/cls_token", "token"),
        (r"visual\.positional_embedding", "params/pos_embed", "tokens"),
        (r"visual\.conv1\.weight", "params/patch_embed/kernel", "conv"),
        *layer(r"visual\.ln_pre", "pre_norm", "same"),
        *layer(rf"{source}\.ln_(?P<norm>[12])", rf"{BLOCK}/norm\g<norm>", "same"),
        (rf"{source}\.attn\.in_proj_weight", f"params/{BLOCK}/attn/qkv/kernel", "dense"),
        (rf"{source}\.attn\.in_proj_bias", f"params/{BLOCK}/attn/qkv/bias", "same"),
        *layer(rf"{source}\.attn\.out_proj", f"{BLOCK}/attn/proj", "dense"),
        *layer(rf"{source}\.mlp\.c_fc", f"{BLOCK}/fc1", "dense"),
        *layer(rf"{source}\.mlp\.c_proj", f"{BLOCK}/fc2", "dense"),
        *layer(r"visual\.ln_post", "norm", "same"),
        (r"visual\.proj", "params/projection/kernel", "same"),
    )


def _hugging_face_tower() -> tuple[Rule, ...]:
    """The keys that CLIP and SigLIP share, with the prefix of older files and of whole models, and without."""
    rules: list[Rule] = []
    for prefix in (r"vision_model\.", ""):
        source = prefix + r"encoder\.layers\.(?P<block>\d+)"
        rules += (
            (rf"{prefix}embeddings\.position_embedding\.weight", "params/pos_embed", "tokens"),
            *layer(rf"{prefix}embeddings\.patch_embedding", "patch_embed", "conv"),
            *layer(rf"{source}\.layer_norm(?P<norm>[12])", rf"{BLOCK}/norm\g<norm>", "same"),
            *parts(rf"{source}\.self_attn\.", ("q_proj", "k_proj", "v_proj"), f"{BLOCK}/attn/qkv"),
            *layer(rf"{source}\.self_attn\.out_proj", f"{BLOCK}/attn/proj", "dense"),
            *layer(rf"{source}\.mlp\.(?P<layer>fc[12])", rf"{BLOCK}/\g<layer>", "dense"),
            *layer(rf"{prefix}post_layernorm", "norm", "same"),
        )
    return tuple(rules)


def _hugging_face_clip() -> tuple[Rule, ...]:
    rules: list[Rule] = [*_hugging_face_tower()]
    for prefix in (r"vision_model\.", ""):
        rules += (
            (rf"{prefix}embeddings\.class_embedding", "params/cls_token", "token"),
            *layer(rf"{prefix}pre_layrnorm", "pre_norm", "same"),  # their spelling
        )
    return (*rules, (r"visual_projection\.weight", "params/projection/kernel", "dense"))


def _hugging_face_siglip() -> tuple[Rule, ...]:
    rules: list[Rule] = [*_hugging_face_tower()]
    for prefix in (r"vision_model\.", ""):
        rules += (
            (rf"{prefix}head\.probe", f"params/{_POOL}/latent", "same"),
            (rf"{prefix}head\.attention\.in_proj_weight", f"params/{_POOL}/{{q,k,v}}/kernel", "dense"),
            (rf"{prefix}head\.attention\.in_proj_bias", f"params/{_POOL}/{{q,k,v}}/bias", "same"),
            *layer(rf"{prefix}head\.attention\.out_proj", f"{_POOL}/proj", "dense"),
            *layer(rf"{prefix}head\.layernorm", f"{_POOL}/norm", "same"),
            *layer(rf"{prefix}head\.mlp\.(?P<layer>fc[12])", rf"{_POOL}/\g<layer>", "dense"),
        )
    return tuple(rules)


# The other networks of CLIP and its kin, which are beside the image tower.
_TEXT = (
    r"(?:transformer|token_embedding|ln_final|text|text_model)\..*",
    r"(?:positional_embedding|text_projection(?:\.weight)?|logit_scale|logit_bias)",
    r"(?:input_resolution|context_length|vocab_size)",
    r"(?:vision_model\.)?embeddings\.position_ids",
)
_CLIP = partial(vit, pre_norm=True, patch_bias=False, epsilon=1e-5)
_SIGLIP = partial(vit, pool="attention")
_DINOV2 = partial(vit, layer_scale=1e-5)
_DINOV3 = partial(vit, more=DINOV3, position="rotary", layer_scale=1e-5, epsilon=1e-5)
VITS: dict[str, Family] = {
    "dinov2": ((*_DINO, ("pos_embed", "params/pos_embed", "same")), (*HEADS, "mask_token"), _DINOV2),
    "huggingface-dinov2": (
        (
            *_HUGGING_FACE_EMBEDDINGS,
            *layer(r"embeddings\.patch_embeddings\.projection", "patch_embed", "conv"),
            *layer(rf"{HUGGING_FACE}\.norm(?P<norm>[12])", rf"{BLOCK}/norm\g<norm>", "same"),
            *parts(rf"{HUGGING_FACE}\.attention\.attention\.", ("query", "key", "value"), f"{BLOCK}/attn/qkv"),
            *layer(rf"{HUGGING_FACE}\.attention\.output\.dense", f"{BLOCK}/attn/proj", "dense"),
            *layer(rf"{HUGGING_FACE}\.mlp\.(?:fc1|weights_in)", f"{BLOCK}/fc1", "dense"),
            *layer(rf"{HUGGING_FACE}\.mlp\.(?:fc2|weights_out)", f"{BLOCK}/fc2", "dense"),
            _scales(rf"{HUGGING_FACE}\.layer_scale(?P<scale>[12])\.lambda1"),
            *layer("layernorm", "norm", "same"),
        ),
        (r"embeddings\.mask_token", r"pooler\..*"),
        _DINOV2,
    ),
    "dinov3": (
        (_WITHOUT_KEY_BIAS, *_DINO),
        (*HEADS, "mask_token", r"rope_embed\.periods", r".*\.attn\.qkv\.bias_mask", r"(?:local_)?cls_norm\..*"),
        _DINOV3,
    ),
    "timm-dinov3": (
        (*_DINO, *parts(rf"{_META}\.mlp\.", ("fc1_g", "fc1_x"), f"{BLOCK}/fc1")),
        HEADS,
        _DINOV3,
    ),
    "huggingface-dinov3": (
        (*_HUGGING_FACE_DINOV3, *layer(rf"{_DINOV3_LAYER}\.mlp\.up_proj", f"{BLOCK}/fc1", "dense")),
        (r"embeddings\.mask_token",),
        _DINOV3,
    ),
    "huggingface-dinov3-gated": (
        (*_HUGGING_FACE_DINOV3, *parts(rf"{_DINOV3_LAYER}\.mlp\.", ("gate_proj", "up_proj"), f"{BLOCK}/fc1")),
        (r"embeddings\.mask_token",),
        _DINOV3,
    ),
    "clip": (_openai(), _TEXT, _CLIP),
    "huggingface-clip": (_hugging_face_clip(), _TEXT, _CLIP),
    "timm-clip": (
        (TOKENS, *PATCHES, *layer("norm_pre", "pre_norm", "same"), *block(_META, BLOCK), *NORM),
        HEADS,
        _CLIP,
    ),
    "timm-siglip": (
        (
            TOKENS,
            *PATCHES,
            *block(_META, BLOCK),
            (r"attn_pool\.latent", f"params/{_POOL}/latent", "same"),
            *layer(r"attn_pool\.(?P<layer>q|proj)", rf"{_POOL}/\g<layer>", "dense"),
            (r"attn_pool\.kv\.weight", f"params/{_POOL}/{{k,v}}/kernel", "dense"),
            (r"attn_pool\.kv\.bias", f"params/{_POOL}/{{k,v}}/bias", "same"),
            *layer(r"attn_pool\.norm", f"{_POOL}/norm", "same"),
            *layer(r"attn_pool\.mlp\.(?P<layer>fc[12])", rf"{_POOL}/\g<layer>", "dense"),
            *NORM,
        ),
        HEADS,
        _SIGLIP,
    ),
    "huggingface-siglip": (_hugging_face_siglip(), _TEXT, _SIGLIP),
}
