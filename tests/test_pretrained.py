"""Public checkpoints: features against torchvision's own, every layout, every file format, and refused files."""

import os
import pickle
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mirigor_jax.errors import InputError
from mirigor_jax.models import vit
from mirigor_jax.models.pretrained import convert, load
from mirigor_jax.models.pretrained.__main__ import main
from mirigor_jax.models.pretrained.layouts import LAYOUTS

GOLDEN = Path(__file__).parent / "golden"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def golden(name):
    """torchvision's state dict, images, and their features by stage."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        parts = {
            part: {key.removeprefix(f"{part}/"): arrays[key] for key in arrays.files if key.startswith(f"{part}/")}
            for part in ("weights", "features")
        }
        return parts["weights"], arrays["images"], parts["features"]


@pytest.fixture(scope="module")
def weights():
    return golden("resnet18")[0]


def saved(folder, arrays, name="checkpoint.npz"):
    path = folder / name
    np.savez(path, **arrays) if name.endswith(".npz") else safetensors.numpy.save_file(arrays, path)
    return path


def renamed(weights, prefix, head=True):
    return {prefix + key: array for key, array in weights.items() if head or not key.startswith("fc.")}


def supcon_cifar():
    """The CIFAR network's weights under SupContrast's keys, which name the shortcuts `shortcut` only."""
    weights = renamed(golden("resnet18_cifar")[0], "model/encoder.", head=False)
    return {key.replace("downsample", "shortcut"): array for key, array in weights.items()} | head("model/head.0")


def head(*names):
    return {f"{name}.{kind}": np.ones((3, 2)[: 2 - i]) for name in names for i, kind in enumerate(("weight", "bias"))}


@pytest.mark.parametrize(
    ("name", "layout", "size"),
    [
        ("resnet18", "torchvision", 224),
        pytest.param("resnet50", "torchvision", 224, marks=pytest.mark.slow),
        ("resnet18_cifar", "supcon-cifar10", 32),
    ],
)
def test_features_of_every_stage_are_torchvision_s(tmp_path, name, layout, size):
    weights, images, features = golden(name)
    arrays = supcon_cifar() if "cifar" in name else weights
    encoder = load(saved(tmp_path, arrays))
    assert (encoder.layout, encoder.size) == (layout, size)
    assert sorted((*encoder.used, *encoder.ignored)) == sorted(key.removeprefix("model/") for key in arrays)
    ours = jax.jit(partial(encoder.apply, stages=True))(encoder.variables, images)
    assert list(ours) == ["B0", "B1", "B2", "B3", "B4", "prelogits"]
    for stage, h in features.items():
        np.testing.assert_allclose(ours[stage], h, atol=1e-4, err_msg=stage)
    if size == 32:
        stage_b2 = jax.jit(replace(encoder, stage="B2").apply)(encoder.variables, images)
        np.testing.assert_allclose(stage_b2, features["B2"], atol=1e-4)


@pytest.mark.parametrize(
    ("layout", "prefix", "classifier", "beside"),
    [
        ("torchvision", "", True, {}),
        ("torchvision", "", False, {}),  # the bare backbones of DINO and Barlow Twins
        ("torchvision", "state_dict/module.", True, {"optimizer/state/0/momentum_buffer": np.ones(3)}),
        ("vissl", "classy_state_dict/base_model/model/trunk/_feature_blocks.", False,
         head("classy_state_dict/base_model/model/heads/0.clf.0")),
        ("vissl", "model_state_dict/_feature_blocks.", False, {}),
        ("vissl", "_feature_blocks.", False, {}),
        ("swav", "module.", False, head("module.projection_head.0", "module.projection_head.3", "module.prototypes")),
        ("swav", "state_dict/module.", False, head("state_dict/module.prototypes.prototypes0")),
        ("dino", "teacher/module.backbone.", False, head("teacher/module.head.mlp.0", "student/module.head.mlp.0")),
        ("dino", "teacher/backbone.", False, head("teacher/head.last_layer")),
        ("barlow-twins", "model/module.backbone.", False,
         head("model/module.projector.0") | {"model/module.bn.running_mean": np.ones(3)}),
        ("moco", "state_dict/module.encoder_q.", False,
         head("state_dict/module.encoder_q.fc", "state_dict/module.encoder_k.conv1")
         | {"state_dict/module.queue": np.ones((2, 3)), "state_dict/module.queue_ptr": np.zeros(1, np.int64)}),
        ("moco", "state_dict/encoder_q.", False, head("state_dict/encoder_q.fc.0", "state_dict/encoder_q.fc.2")),
        ("moco-v3", "state_dict/module.base_encoder.", False,
         head("state_dict/module.base_encoder.fc.0", "state_dict/module.momentum_encoder.conv1",
              "state_dict/module.predictor.0")),
        ("supcon", "model/module.encoder.", False, head("model/module.head.0", "model/module.head.2")),
        ("supcon", "model/encoder.module.", False, head("model/head.0")),
    ],
)  # fmt: skip
def test_every_layout_gives_the_same_tree_before_and_after_conversion(
    tmp_path, weights, layout, prefix, classifier, beside
):
    # Column by column in memory, as torch has them in channels_last: safetensors would write them transposed.
    weights = {key: np.asarray(array, order="F") for key, array in weights.items()}
    path = saved(tmp_path, renamed(weights, prefix, classifier) | beside)
    expected = load(saved(tmp_path, weights, "torchvision.npz")).variables
    converted = convert(path, tmp_path / "converted.safetensors")
    for encoder in (load(path), converted, load(tmp_path / "converted.safetensors")):
        assert (encoder.layout, encoder.mean, encoder.std) == (layout, *IMAGENET)
        assert jax.tree.all(jax.tree.map(np.array_equal, encoder.variables, expected))
    state = prefix.rpartition("/")[0]
    keys = [key for key in (*renamed(weights, prefix, classifier), *beside) if key.rpartition("/")[0] == state]
    assert sorted((*converted.used, *converted.ignored)) == sorted(key.rpartition("/")[2] for key in keys)
    assert sorted(safetensors.numpy.load_file(tmp_path / "converted.safetensors")) == sorted(
        key.rpartition("/")[2] for key in keys
    )


def test_depth_and_block_are_told_from_the_shapes(tmp_path):
    norm = {key: np.ones(4) for key in ("weight", "bias", "running_mean", "running_var")}
    arrays = {"conv1.weight": np.ones((4, 3, 7, 7))} | {f"bn1.{key}": a for key, a in norm.items()}
    channels = 4
    for stage, depth in enumerate((3, 4, 6, 3)):
        width = 4 * 2**stage
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            layers = {"conv1": (width, channels, 3, 3), "conv2": (width, width, 3, 3)}
            if channels != width:
                layers["downsample.0"] = (width, channels, 1, 1)
            for layer, shape in layers.items():
                arrays[f"{name}.{layer}.weight"] = np.ones(shape)
                follower = layer.replace("conv", "bn").replace("downsample.0", "downsample.1")
                arrays |= {f"{name}.{follower}.{key}": np.ones(width) for key in norm}
            channels = width
    encoder = load(saved(tmp_path, arrays)).encoder
    assert (encoder.stages, encoder.block, encoder.width, encoder.stem) == ((3, 4, 6, 3), "basic", 4, "imagenet")


def test_safetensors_are_read_whatever_their_precision(tmp_path, weights):
    expected = load(saved(tmp_path, weights)).variables["params"]["stem"]["kernel"]
    half = {key: a.astype(ml_dtypes.bfloat16) if a.ndim else a for key, a in weights.items()}
    read = load(saved(tmp_path, half, "half.safetensors")).variables["params"]["stem"]["kernel"]
    assert read.dtype == jnp.float32
    np.testing.assert_array_equal(read, expected.astype(jnp.bfloat16).astype(jnp.float32))


def without(weights, *keys):
    return {key: array for key, array in weights.items() if key not in keys}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: without(w, "layer2.0.bn2.running_var"), "nothing gives batch_stats/stage2_block1/norm2/var"),
        (lambda w: without(w, "conv1.weight"), "nothing gives params/stem/kernel"),
        (lambda w: w | {"layer1.0.extra.weight": np.ones(3)}, "layer1.0.extra.weight is unexpected"),
        (lambda w: w | {"adapter.weight": np.ones(3)}, "adapter.weight is unexpected"),
        (lambda w: w | {"layer1.0.conv3.extra": np.ones(3)}, "layer1.0.conv3.extra is unexpected"),
        (lambda w: w | {"layer1.0.se.weight": np.ones(3)}, "a ResNet with squeeze and excitation, which is not supp"),
        (lambda w: w | {"conv1.0.weight": np.ones((4, 3, 3, 3))}, "a ResNet with a stem of several convolutions"),
        (lambda w: w | {"bn1.running_var": np.full(4, np.inf)}, r"bn1.running_var holds NaN or infinity \(4 of 4 val"),
        (lambda w: w | {"bn1.running_var": -np.ones(4)}, "bn1.running_var holds a negative variance"),
        (lambda w: w | {"conv1.weight": np.where(np.arange(7) == 3, np.nan, w["conv1.weight"])},
         "conv1.weight holds NaN or infinity"),
        (lambda w: w | {"layer1.0.downsample.0.weight": np.ones((4, 4, 1, 1))}, "layer1.0.downsample.0.weight is unex"),
        (lambda w: w | {"layer3.1.conv2.weight": np.ones((16, 8, 3, 3))},
         r"layer3.1.conv2.weight has shape \(16, 8, 3, 3\), not \(16, 16, 3, 3\)"),
        (lambda w: w | {"conv1.weight": np.ones((4, 1, 7, 7))}, r"\(4, 1, 7, 7\), not \(4, 3, 7, 7\)"),
        (lambda w: w | {"conv1.weight": np.ones((4, 3, 3, 3))}, "first convolution is 3×3, a stem for small images"),
        (lambda w: w | {"module.bn1.bias": np.ones(4)}, "module.bn1.bias gives params/stem_norm/bias a second time"),
        (lambda w: w | {"bn1.bias": np.ones(())}, r"bn1.bias has shape \(\), not \(4,\)"),
        (lambda w: w | {"layer1.0.conv1.weight": np.ones((4, 4))}, r"conv1.weight has shape \(4, 4\), not 4 axes"),
        (lambda w: {key: a for key, a in w.items() if not key.startswith("layer4.1")},
         r"\(2, 2, 2, 1\) basic blocks is none of resnet18, resnet34, resnet50, resnet101, resnet152"),
        (lambda w: {key: a for key, a in w.items() if not key.startswith("layer2")}, r"\(2, 0, 2, 2\) basic"),
        (lambda w: {key + "_q": a for key, a in w.items()}, r"not of any known layout \(torchvision, .*it holds co"),
        (lambda w: {key + "_q": a for key, a in w.items()}, r"it holds conv1.weight_q, .* \(122 in all\)"),
        (lambda w: {}, "not of any known layout"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_told_where(tmp_path, weights, change, message):
    with pytest.raises(InputError, match=message) as error:
        load(saved(tmp_path, change(weights)))
    assert "checkpoint.npz" in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.args[0].count(" is unexpected") + error.value.args[0].count("nothing gives") <= 4


def test_a_layout_may_be_named(tmp_path, weights):
    # Without a head SwAV's keys are those of torch's DataParallel.
    path = saved(tmp_path, renamed(weights, "module.", head=False))
    assert load(path).layout == "torchvision"
    assert load(path, layout="swav").layout == "swav"
    with pytest.raises(InputError, match="not of the layout cait"):
        load(path, layout="cait")
    with pytest.raises(InputError, match="unknown layout 'byol'; choose one of torchvision, vissl"):
        load(path, layout="byol")


@pytest.mark.parametrize("name", ["checkpoint.npz", "checkpoint.safetensors"])
@pytest.mark.parametrize("num_bytes", [0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, weights, name, num_bytes):
    path = saved(tmp_path, weights, name)
    path.write_bytes(path.read_bytes()[: int(num_bytes * path.stat().st_size)])
    with pytest.raises(InputError, match=f"'.*{name}' is cut off") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_a_path_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"there is no checkpoint '.*gone.npz'"):
        load(tmp_path / "gone.npz")
    saved(tmp_path, {"conv1.weight": np.ones(3)})
    with pytest.raises(InputError, match=r"is a folder \(checkpoint.npz\); give the path of a checkpoint in it"):
        load(tmp_path)


class Foreign:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("torch_installed", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".torch", ".pth.tar", ".npz", ".safetensors"])
def test_foreign_code_in_a_pickle_is_not_run(tmp_path, monkeypatch, suffix, torch_installed):
    if torch_installed:
        pytest.importorskip("torch")
    else:
        monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / f"checkpoint{suffix}"
    path.write_bytes(pickle.dumps({"conv1.weight": Foreign(str(tmp_path / "ran"))}, protocol=2))
    with pytest.raises(InputError, match="a pickle that torch did not write, so it may be code; nothing in it was run"):
        load(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists()  # it would have been


def test_foreign_code_in_an_array_of_objects_is_not_run(tmp_path):
    path = tmp_path / "checkpoint.npz"
    np.savez(path, **{"conv1.weight": np.array([Foreign(str(tmp_path / "ran"))], object)})
    with pytest.raises(InputError, match="nothing in it was run"):
        load(path)
    assert not (tmp_path / "ran").exists()


def test_torch_s_own_files(tmp_path, weights):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.from_numpy(array) for key, array in renamed(weights, "module.encoder_q.").items()}
    strided = tensors["module.encoder_q.layer1.0.conv1.weight"].to(memory_format=torch.channels_last)
    tensors |= {"module.queue": torch.ones(2, 3), "module.encoder_q.layer1.0.conv1.weight": strided}
    tensors["module.encoder_q.bn1.weight"] = torch.nn.Parameter(tensors["module.encoder_q.bn1.weight"].bfloat16())
    path = tmp_path / "moco.pth.tar"
    torch.save({"epoch": 200, "state_dict": tensors, "optimizer": {"state": {0: {"momentum": torch.ones(3)}}}}, path)
    expected = load(saved(tmp_path, weights)).variables
    scale = expected["params"]["stem_norm"]["scale"]
    expected["params"]["stem_norm"]["scale"] = scale.astype(jnp.bfloat16).astype(jnp.float32)
    convert(path, tmp_path / "moco.safetensors")
    for encoder in (load(path), load(tmp_path / "moco.safetensors")):
        assert encoder.layout == "moco"
        assert jax.tree.all(jax.tree.map(np.array_equal, encoder.variables, expected))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="is cut off"):
        load(path)
    torch.save({"state_dict": tensors, "opt": Foreign(str(tmp_path / "ran"))}, path)
    with pytest.raises(InputError, match="save its state dict alone"):
        load(path)
    assert not (tmp_path / "ran").exists()


def test_the_command_converts_once_and_says_what_it_did(tmp_path, weights, capsys):
    path, converted = saved(tmp_path, renamed(weights, "module.encoder_q.")), tmp_path / "moco.safetensors"
    assert main([str(path), str(converted)]) == 0
    out = capsys.readouterr().out
    parameters = sum(a.size for key, a in weights.items() if not key.startswith("fc.") and "running" not in key)
    assert f"moco layout, {parameters - 20:,} parameters in 100 keys" in out  # 20 counters
    assert "22 keys ignored" in out
    assert "  module.encoder_q.fc.weight\n" in out
    before = converted.read_bytes()
    assert main([str(path), str(converted)]) == 2
    assert "moco.safetensors' exists already" in capsys.readouterr().err
    assert converted.read_bytes() == before
    assert main([str(path), str(tmp_path / "moco.npz")]) == 2
    assert main([str(tmp_path / "gone.npz"), str(tmp_path / "other.safetensors")]) == 2
    assert not (tmp_path / "other.safetensors").exists()


def transformer(case):
    """timm's state dict of a tiny encoder, and its features."""
    with np.load(GOLDEN / "transformers.npz") as arrays:
        of = [key for key in arrays.files if key.startswith(f"{case}/weights/")]
        weights = {key.removeprefix(f"{case}/weights/"): arrays[key].astype(np.float32) for key in of}
        return weights, arrays["images"], arrays[f"{case}/features/prelogits"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "prefix", "named"),
    [
        ("deit", "", True),
        ("timm-vit", "model/", True),
        ("dino-vit", "teacher/backbone.", False),
        ("moco-v3-vit", "state_dict/module.base_encoder.", False),
        ("mae", "model/", False),
    ],
)
def test_a_vit_s_source_is_asked_for_where_its_keys_don_t_tell(tmp_path, monkeypatch, layout, prefix, named):
    weights, images, features = transformer("deit")
    monkeypatch.setitem(vit.ENCODERS, "deit_ti", (vit.ViT, {"width": 16, "depth": 2, "heads": 2}))
    of_moco = LAYOUTS["moco-v3-vit"]  # whose ViTs have 12 heads, more than the tiny one
    monkeypatch.setitem(LAYOUTS, "moco-v3-vit", replace(of_moco, fields=(("heads", 2),)))
    beside = {
        "dino-vit": head("teacher/head.mlp.0"),
        "mae": head("model/decoder_embed", "model/decoder_blocks.0.norm1"),
    }
    path = saved(tmp_path, renamed(weights, prefix) | beside.get(layout, {}))
    if named:
        with pytest.raises(InputError, match=r"name its layout: deit \(.*\); timm-vit \("):
            load(path)
    encoder = load(path, layout=layout if named else None)
    assert (encoder.layout, encoder.size) == (layout, 32)
    assert encoder.mean == ((0.5,) * 3 if layout == "timm-vit" else IMAGENET[0])
    h = encoder.encoder.apply(encoder.variables, jnp.asarray(images, jnp.float32), train=False)
    np.testing.assert_allclose(h, features, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "layout", "name", "family", "arguments"),
    [
        ("cait", "cait", "cait_xxs24", vit.CaiT, {"width": 16, "depth": 2, "heads": 2, "layer_scale": 1e-5}),
        (
            "pit",
            "pit",
            "pit_s",
            vit.PiT,
            {"width": 8, "depths": (1, 2, 1), "heads": (1, 2, 4), "patch": 8, "stride": 4},
        ),
    ],
)
def test_other_transformers_are_known_by_their_keys(tmp_path, monkeypatch, case, layout, name, family, arguments):
    weights, images, features = transformer(case)
    monkeypatch.setitem(vit.ENCODERS, name, (family, arguments))
    encoder = load(saved(tmp_path, weights))
    assert encoder.layout == layout
    h = encoder.encoder.apply(encoder.variables, jnp.asarray(images, jnp.float32), train=False)
    np.testing.assert_allclose(h, features, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "layout", "prefix", "other"),
    [
        ("torchvision", "torchvision-vit", "", None),
        ("torchvision", "torchvision-vit", "state_dict/model.backbone.", None),
        ("huggingface", "huggingface-vit", "", "huggingface-deit"),
        ("huggingface", "huggingface-deit", "vit.", "huggingface-vit"),
    ],
)
def test_vits_of_torchvision_and_hugging_face(tmp_path, monkeypatch, case, layout, prefix, other):
    monkeypatch.setitem(vit.ENCODERS, "vit_ti", (vit.ViT, {"width": 16, "depth": 2, "heads": 2}))
    with np.load(GOLDEN / "vits.npz") as arrays:
        weights = {
            key.removeprefix(f"{case}/weights/"): arrays[key].astype(np.float32)
            for key in arrays.files
            if key.startswith(f"{case}/weights/")
        }
        images, features = arrays["images"], arrays[f"{case}/features"]
    path = saved(tmp_path, renamed(weights, prefix))
    if other:
        with pytest.raises(InputError, match=r"name its layout: huggingface-vit .*; huggingface-deit"):
            load(path)
    encoder = load(path, layout=layout if other else None)
    assert (encoder.layout, encoder.size) == (layout, 32)
    assert encoder.mean == ((0.5,) * 3 if layout == "huggingface-vit" else IMAGENET[0])
    ignored = {key.removeprefix(prefix.rpartition("/")[2]).split(".")[0] for key in encoder.ignored}
    assert ignored == ({"heads"} if case == "torchvision" else {"pooler"})
    h = encoder.encoder.apply(encoder.variables, jnp.asarray(images, jnp.float32), train=False)
    np.testing.assert_allclose(h, features, atol=1e-4)
    lacking = saved(tmp_path, {key: a for key, a in renamed(weights, prefix).items() if "key.bias" not in key})
    if other:
        with pytest.raises(InputError, match="nothing gives params/block0/attn/qkv/bias"):
            load(lacking, layout=layout)
