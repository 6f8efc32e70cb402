"""Checkpoints as people have them: trainers' prefixes and dictionaries, file formats, and files that are none."""

import argparse
import collections
import datetime
import io
import json
import os
import pathlib
import pickle
import sys
import tarfile
import types
import warnings
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mirigor_jax.errors import InputError
from mirigor_jax.models.pretrained import convert, load
from mirigor_jax.models.pretrained.__main__ import main
from mirigor_jax.models.pretrained.finding import find
from mirigor_jax.models.pretrained.layouts import LAYOUTS
from mirigor_jax.models.pretrained.reading import PASSED_OVER, read_tensors

ADVICE = ("weights_only", "allow_pickle", "safe_globals", "torch.load")


def resnet18(width=2, seed=0, expansion=1):
    """torchvision's keys of a narrow ResNet-18 with random weights; of a ResNet-50 for `expansion` 4."""
    rng, arrays, channels = np.random.default_rng(seed), {}, width

    def layer(conv, norm, shape):
        arrays[f"{conv}.weight"] = rng.normal(0, 0.3, shape).astype(np.float32)
        for key in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"{norm}.{key}"] = rng.uniform(0.5, 1.5, shape[0]).astype(np.float32)
        arrays[f"{norm}.num_batches_tracked"] = np.array(7)

    layer("conv1", "bn1", (width, 3, 7, 7))
    for stage, depth in enumerate((2, 2, 2, 2) if expansion == 1 else (3, 4, 6, 3)):
        inner = width * 2**stage
        for block in range(depth):
            name, outer = f"layer{stage + 1}.{block}", inner * expansion
            kernels = (3, 3) if expansion == 1 else (1, 3, 1)
            ends = (channels, inner, outer) if expansion == 1 else (channels, inner, inner, outer)
            for i, kernel in enumerate(kernels, 1):
                layer(f"{name}.conv{i}", f"{name}.bn{i}", (ends[i], ends[i - 1], kernel, kernel))
            if channels != outer or (stage and not block):
                layer(f"{name}.downsample.0", f"{name}.downsample.1", (outer, channels, 1, 1))
            channels = outer
    return arrays


PLAIN = resnet18()
OTHER = resnet18(seed=1)
HEAD = {"weight": np.ones((3, 4), np.float32), "bias": np.ones(3, np.float32)}


def under(prefix, arrays=PLAIN):
    return {prefix + key: array for key, array in arrays.items()}


def written(folder, arrays, name="checkpoint"):
    """A checkpoint without a telling suffix. A `/` in a key stands for an inner dictionary, as in `read_tensors`."""
    path = folder / name
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def same(encoder, arrays, folder):
    expected = load(written(folder, arrays, "expected")).variables
    return jax.tree.all(jax.tree.map(np.array_equal, encoder.variables, expected))


WRAPPED = {
    "DataParallel": under("module."),
    "torch.compile": under("_orig_mod."),
    "DataParallel of compiled": under("module._orig_mod."),
    "compiled DataParallel": under("_orig_mod.module."),
    "FSDP": {key.replace("layer1.0.", "layer1.0._fsdp_wrapped_module."): a for key, a in PLAIN.items()},
    "compiled stages": {key.replace("layer2.", "layer2._orig_mod."): a for key, a in PLAIN.items()},
    "Lightning": under("state_dict/model.") | under("state_dict/head.", HEAD),
    "Lightning, nested": under("state_dict/model.backbone.") | under("state_dict/model.head.", HEAD),
    "Lightning, compiled": under("state_dict/model._orig_mod.backbone.module."),
    "solo-learn": under("state_dict/backbone.") | under("state_dict/classifier.", HEAD)
    | under("state_dict/projector.0.", HEAD),
    "solo-learn, old": under("state_dict/encoder."),
    "VISSL in a trainer": under("classy_state_dict/base_model/model/trunk/base_model._feature_blocks."),
    "any name": under("weights/network.image_tower."),
    "lightly, Sequential": under("state_dict/backbone.", {
        key.replace("conv1.", "0.", key.startswith("conv1")).replace("bn1.", "1.", key.startswith("bn1"))
        .replace("layer1", "4").replace("layer2", "5").replace("layer3", "6").replace("layer4", "7"): a
        for key, a in PLAIN.items()
    }),
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_an_encoder_is_found_in_any_wrapper(tmp_path, wrapper):
    arrays = WRAPPED[wrapper]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = load(written(tmp_path, arrays))
    assert same(encoder, PLAIN, tmp_path)
    keys = [key.rpartition("/")[2] for key in arrays]
    assert sorted((*encoder.used, *encoder.ignored)) == sorted(keys)
    assert [key for key in encoder.ignored if "head" in key] == [key for key in keys if "head" in key]
    assert encoder.others == ()


TWO = {
    "ema dictionary": ("state_dict/", "state_dict_ema/"),
    "ema first": ("model/", "model_ema/"),
    "teacher": ("teacher/backbone.", "student/backbone."),
    "MoCo": ("state_dict/module.encoder_q.", "state_dict/module.encoder_k."),
    "solo-learn": ("state_dict/backbone.", "state_dict/momentum_backbone."),
    "lightly": ("state_dict/backbone.", "state_dict/backbone_momentum."),
    "BYOL": ("state_dict/online_network.", "state_dict/target_network."),
}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("case", TWO)
def test_of_two_encoders_it_is_said_which_was_taken(tmp_path, case, order):
    taken, other = TWO[case]
    parts = [under(taken), under(other, OTHER)]
    path = written(tmp_path, {key: a for part in parts[::order] for key, a in part.items()})
    plain = [prefix.replace("module.", "") for prefix in (taken, other)]
    with pytest.warns(UserWarning, match="holds 2 encoders: that in") as told:
        encoder = load(path)
    assert f"that in '{plain[0]}' is taken; choose the one in '{plain[1]}' by its place" in str(told[0].message)
    assert (encoder.place, encoder.others) == (plain[0], (plain[1],))
    assert same(encoder, PLAIN, tmp_path)
    for place in (other, other.rstrip("./"), plain[1]) if order == 1 else ():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            chosen = load(path, place=place)
        assert same(chosen, OTHER, tmp_path)
        assert chosen.others == ()
    with pytest.raises(InputError, match="in 'nowhere' are not of any known layout"):
        load(path, place="nowhere")


@pytest.mark.parametrize(("first", "second"), [("model/", "model_ema/"), ("encoder_q.", "encoder_k.")])
def test_the_command_says_which_was_taken_and_takes_the_other(tmp_path, capsys, first, second):
    path = written(tmp_path, under(first) | under(second, OTHER))
    for i, (place, other, arrays) in enumerate(((first, second, PLAIN), (second, "", OTHER))):
        converted = tmp_path / f"{i}.safetensors"
        assert main([str(path), str(converted), *([f"--place={place}"] if i else [])]) == 0
        out = capsys.readouterr().out
        assert f"taken from '{place}'\n" in out
        assert (f"another encoder is in '{other}'; --place takes it\n" in out) == bool(other)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert same(load(converted), arrays, tmp_path)


def test_an_average_alone_is_taken(tmp_path):
    encoder = load(written(tmp_path, under("ema_model.backbone.")))
    assert encoder.place == "ema_model.backbone."
    assert same(encoder, PLAIN, tmp_path)


def test_an_incomplete_copy_is_not_taken(tmp_path):
    without_statistics = {key: a for key, a in under("model/").items() if "running" not in key}
    encoder = load(written(tmp_path, without_statistics | under("model_ema/", OTHER)))
    assert encoder.place == "model_ema/"


def half(arrays, dtype):
    return {key: a.astype(dtype) if a.dtype == np.float32 else a for key, a in arrays.items()}


@pytest.mark.parametrize(("dtype", "step"), [(ml_dtypes.bfloat16, 2**-8), (np.float16, 2**-11)])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin", "weights"])
def test_half_precision_is_read_whatever_the_name(tmp_path, dtype, step, name):
    safetensors.numpy.save_file(half(PLAIN, dtype), tmp_path / name)
    read = load(tmp_path / name).variables["params"]["stem"]["kernel"]
    expected = PLAIN["conv1.weight"].transpose(2, 3, 1, 0)
    assert np.all(np.abs(read - expected) <= step * np.abs(expected))
    assert not np.array_equal(read, expected)


def sharded(folder):
    """A checkpoint of two shards. Returns its index and its shards."""
    keys, names = sorted(PLAIN), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {key: names[i % 2] for i, key in enumerate(keys)}
    for name in names:
        safetensors.numpy.save_file({key: PLAIN[key] for key in keys if where[key] == name}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index, [folder / name for name in names]


def test_shards_are_read_by_their_index(tmp_path):
    index, shards = sharded(tmp_path)
    assert same(load(index), PLAIN, tmp_path)
    with pytest.raises(InputError, match=r"is shard 2 of 2 of a checkpoint; give its index, .*index\.json") as error:
        load(shards[1])
    assert str(index) in str(error.value)
    index.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"is shard 1 of 2 .*give its index, an \.index\.json beside all shards"):
        load(shards[0])
    assert same(load(tmp_path / "moved"), PLAIN, tmp_path)


def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path):
    index, shards = sharded(tmp_path)
    whole = json.loads(index.read_text())
    for name in ("../secret", "/etc/passwd", "sub/model.safetensors", "", "gone.safetensors"):
        index.write_text(json.dumps({"weight_map": whole["weight_map"] | {"conv1.weight": name}}))
        with pytest.raises(InputError, match=r"names the shard .*, which is not beside it; download all"):
            load(index)
    index.write_text(json.dumps({"weight_map": whole["weight_map"] | {"more": shards[0].name}}))
    with pytest.raises(InputError, match="lack more, which the index lists"):
        load(index)
    index.write_text(json.dumps({"weight_map": {"a": index.name}}))
    with pytest.raises(InputError, match=r"neither safetensors, .npz nor a file of torch"):
        load(index)
    index.write_text('{"hidden_size": 768}')
    with pytest.raises(InputError, match="is JSON text without a weight_map, so no index; give the checkpoint beside"):
        load(index)


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model/weights.pth"))
    return file.getvalue()


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return file.getvalue()


FOREIGN = {
    "empty": (b"", "is empty; download it again"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "is a Git-LFS pointer"),
    "page": (b"\n<!DOCTYPE html><html><head>404</head></html>", "is a web page; open it in a browser"),
    "error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page; open it"),
    "tar": (tar(), r"is a tar archive \(of model/weights.pth, …\); unpack it"),
    "gzip": (b"\x1f\x8b\x08\0\0\0", "is compressed; unpack it"),
    "keras": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes"),
    "zip": (zipped("a.txt", "weights.pth"), r"is a zip archive \(of a.txt, weights.pth\); unpack it"),
    "script": (zipped("m/data.pkl", "m/constants.pkl", "m/code/a.py"), "is a program of TorchScript; save the state"),
    "pickle": (pickle.dumps({"a": 1}), "is a pickle that torch did not write, so it may be code; nothing"),
    "array": (b"\x93NUMPY\x01\0v\0{", "is one array without a name; save the arrays"),
    "text": (b"epoch 1: loss 0.3\n", "is cut off, or no checkpoint: it is neither safetensors, .npz nor"),
    "cut header": ((1000).to_bytes(8, "little") + b'{"a":', "is cut off: it has 13 of 1,008 bytes; download it again"),
    "cut": (safetensors.numpy.save(PLAIN)[:-100], r"is cut off: it has [\d,]+ of [\d,]+ bytes; download it again"),
    "cut zip": (zipped("a.npy")[:-30], "is cut off: the list of contents at its end is missing; download it again"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint.safetensors", "checkpoint.PTH"])
@pytest.mark.parametrize("case", FOREIGN)
def test_each_file_that_is_no_checkpoint_has_a_sentence_of_its_own(tmp_path, case, name):
    content, sentence = FOREIGN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence) as error:
        load(tmp_path / name)
    assert str(error.value).startswith(f"'{tmp_path / name}'")
    assert "\n" not in str(error.value)
    assert not any(advice in str(error.value) for advice in ADVICE)


def wide(arrays):
    """The weights of blocks that are twice as wide inside."""
    result = dict(arrays)
    for key, a in arrays.items():
        if key.startswith("layer") and key.endswith("weight") and a.ndim == 4 and "downsample" not in key:
            times = {"conv1": (2, 1, 1, 1), "conv2": (2, 2, 1, 1), "conv3": (1, 2, 1, 1)}[key.split(".")[2]]
            result[key] = np.tile(a, times)
        elif key.startswith("layer") and key.split(".")[2] in ("bn1", "bn2") and a.ndim:
            result[key] = np.tile(a, 2)
    return result


FIFTY = resnet18(expansion=4)
OTHERS = {
    "wide": (wide(FIFTY), "its blocks are 2 times as wide inside as a resnet50's: a wide ResNet"),
    "grouped": ({key: a[:, : len(a) // 2] if ".conv2." in key else a for key, a in FIFTY.items()},
                "its 3×3 convolutions have 2 groups, so it is a ResNeXt"),
    "3×3 stem": (PLAIN | {"conv1.weight": np.ones((2, 3, 3, 3))}, "its first convolution is 3×3, a stem for small im"),
    "infinite": (PLAIN | {"bn1.running_var": np.full(2, np.inf)}, r"bn1.running_var holds NaN or infinity \(2 of 2"),
    "too large": (PLAIN | {"bn1.weight": np.array([1.0, 1e300])}, r"bn1.weight holds NaN or infinity \(1 of 2 v"),
    "NaN": (PLAIN | {"conv1.weight": np.full((2, 3, 7, 7), np.nan)}, r"conv1.weight holds NaN or infinity \(294 of"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_what_differs_is_named_rightly(tmp_path, case):
    arrays, message = OTHERS[case]
    with pytest.raises(InputError, match=message):
        load(written(tmp_path, arrays))


FAMILIES = {
    "a CLIP model with a ResNet": ["visual.attnpool.k_proj.weight", "visual.bn1.weight", "logit_scale"],
    "a ResNet with squeeze and excitation": [*PLAIN, "layer1.0.se.fc1.weight"],
    "a BEiT with Hugging Face's keys": ["encoder.layer.0.lambda_1", "layernorm.weight"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_without_a_module_is_named(tmp_path, family):
    arrays = {key: PLAIN.get(key, np.ones((2, 2))) for key in FAMILIES[family]}
    with pytest.raises(InputError, match=f"holds {family}, which is not supported; encode your images by the code"):
        load(written(tmp_path, arrays))


def test_a_long_checkpoint_is_searched_in_a_moment():
    arrays = {f"optimizer/state/{i}/momentum.{i}.buffer": np.ones(1) for i in range(5000)} | under("model/")
    found, _ = find(arrays, {layout.architecture for layout in LAYOUTS.values()})
    assert (found.place, len(found.used)) == ("model/", 100)


class Foreign:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def settings_of_a_trainer():
    """Objects that trainers save beside the weights."""
    return {
        "opt": argparse.Namespace(lr=0.1, out=pathlib.Path("runs"), parts={1, 2}, when=datetime.datetime(2020, 1, 1)),
        "best": np.float64(0.7),
        "curve": np.arange(3.0),
        "history": collections.defaultdict(list, loss=[1.0]),
        "counts": collections.Counter("aab"),
        "names": frozenset("ab"),
        "more": types.SimpleNamespace(a=complex(1, 2), b=slice(3)),
    }


@pytest.mark.parametrize("zip_file", [True, False])
@pytest.mark.parametrize("name", ["last.ckpt", "pytorch_model.bin", "model.PTH", "model.pytorch", "model"])
def test_torch_s_files_with_a_trainer_s_settings(tmp_path, name, zip_file):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.from_numpy(a) for key, a in PLAIN.items()}
    tensors |= {"queue": torch.ones(2, 3)}
    content = {"state_dict": tensors, "epoch": 3, **settings_of_a_trainer()}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zip_file)
    encoder = load(tmp_path / name)
    assert same(encoder, PLAIN, tmp_path)
    assert {"queue"} <= {*encoder.ignored}
    assert same(convert(tmp_path / name, tmp_path / "converted.safetensors"), PLAIN, tmp_path)
    for i, hidden in enumerate(("opt", "state_dict")):
        inside = {**content, hidden: {"a": [Foreign(str(tmp_path / "ran"))]}}
        torch.save(inside, tmp_path / f"{i}{name}", _use_new_zipfile_serialization=zip_file)
        with pytest.raises(InputError, match="nothing in it was run") as error:
            load(tmp_path / f"{i}{name}")
        assert not any(advice in str(error.value) for advice in ADVICE)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_torch_s_half_precision(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.from_numpy(a) for key, a in PLAIN.items()}
    halves = {key: a.to(getattr(torch, dtype)) if a.is_floating_point() else a for key, a in tensors.items()}
    torch.save(halves, tmp_path / "half.pt")
    read = read_tensors(tmp_path / "half.pt")
    for key, a in halves.items():
        np.testing.assert_array_equal(read[key].astype(np.float32), a.float().numpy(), err_msg=key)


def test_classes_of_a_trainer_are_neither_imported_nor_called(tmp_path):
    torch = pytest.importorskip("torch")
    called = []

    class Config(dict):
        def __setstate__(self, state):
            called.append(state)

    modules = {}
    for dotted in PASSED_OVER:
        module, _, name = dotted.rpartition(".")
        if module.split(".")[0] in ("easydict", "omegaconf", "pytorch_lightning", "mmengine", "yacs"):
            for i in range(len(parts := module.split("."))):
                modules.setdefault(".".join(parts[: i + 1]), types.ModuleType(".".join(parts[: i + 1])))
            made = type(name, (Config,) if PASSED_OVER[dotted].__name__ == "_Mapping" else (), {"__module__": module})
            setattr(modules[module], name, made)
    kinds = [kind for module in modules.values() for kind in vars(module).values() if isinstance(kind, type)]
    assert len(kinds) >= 15
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        beside = [kind(a=1) if issubclass(kind, dict) else kind() for kind in kinds]
        for thing in beside:
            thing.lr = 0.1
        torch.save({"state_dict": {"a": torch.ones(2)}, "beside": beside}, tmp_path / "a.ckpt")
    assert [*read_tensors(tmp_path / "a.ckpt")] == ["state_dict/a"]
    assert called == []
    assert not modules.keys() & sys.modules.keys()


WHOLE = {
    "module": lambda torch: torch.nn.Linear(2, 2),
    "parallel": lambda torch: torch.nn.DataParallel(torch.nn.Linear(2, 2)),
    "list of modules": lambda torch: torch.nn.Sequential(torch.nn.Linear(2, 2)),
}


@pytest.mark.parametrize("zip_file", [True, False])
@pytest.mark.parametrize("case", WHOLE)
def test_a_whole_module_has_a_sentence_of_its_own(tmp_path, case, zip_file):
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about the module's source
        torch.save(WHOLE[case](torch), tmp_path / "a.pt", _use_new_zipfile_serialization=zip_file)
    with pytest.raises(InputError, match=r"is a whole pickled object \(torch.nn.*\), which only its own code") as error:
        load(tmp_path / "a.pt")
    assert "torch.save(model.state_dict(), PATH)" in str(error.value)
    assert not any(advice in str(error.value) for advice in ADVICE)


@pytest.mark.parametrize("zip_file", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_off_file_of_torch_is_refused(tmp_path, share, zip_file):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    torch.save({key: torch.from_numpy(a) for key, a in PLAIN.items()}, path, _use_new_zipfile_serialization=zip_file)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=r"is (cut off|damaged)") as error:
        load(path)
    assert not any(advice in str(error.value) for advice in ADVICE)


def test_without_torch_its_files_ask_for_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for content in (zipped("archive/data.pkl", "archive/version"), pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)):
        (tmp_path / "a.ckpt").write_bytes(content)
        with pytest.raises(InputError, match=r"takes torch: pip install -e '\.\[torch\]', or convert it once"):
            load(tmp_path / "a.ckpt")
