"""The Hugging Face Hub, by a local server of its file interface: encoders, data sets, commits, and what goes wrong."""

import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from hub_server import served
from PIL import Image
from small import encoder
from test_pretrained import golden, transformer

from mirigor_jax import config_files, hub
from mirigor_jax.data import cdp
from mirigor_jax.data.sources.table import labeled
from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.models import pretrained, vit
from mirigor_jax.runs import job

NAMES = ("ant", "bee", "cat")
N, TESTED = 30, 12
SET, MODEL = "hf:someone/insects", "hf:someone/resnet"


def test_a_name_has_a_repository_a_revision_and_a_part():
    assert hub.parse("hf:timm/vit_small.lvd142m") == hub.Reference("timm/vit_small.lvd142m", None, "")
    assert hub.parse("hf:a/b@refs/convert/parquet:c-d") == hub.Reference("a/b", "refs/convert/parquet", "c-d")
    assert hub.parse("hf:a/b:sub/model.pth") == hub.Reference("a/b", None, "sub/model.pth")
    for wrong in ("hf:", "hf:a/b/c", "hf:a b/c", "hf:a/b@", "hf:a/b:", "hf:a/b@x@y"):
        with pytest.raises(InputError, match=r"is no repository on the Hub: give hf:OWNER/NAME"):
            hub.parse(wrong)


def test_the_client_is_asked_for(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub._repository.cache_clear()
    with pytest.raises(InputError, match=r"takes huggingface_hub: pip install -e '\.\[hf\]'"):
        pretrained.load(MODEL)
    assert main(encoder(SET, tmp_path / "run", "--config.encoder.path=x", "--config.data.size=8")) == 2
    assert (
        "error: 'hf:someone/insects' is on the Hugging Face Hub, which takes huggingface_hub" in capsys.readouterr().err
    )


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The server, which huggingface_hub asks in this test, with an empty cache."""
    client = pytest.importorskip("huggingface_hub.constants")
    with served() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)  # which the client reads when it is imported
        monkeypatch.setattr(client, "ENDPOINT", running.url)
        monkeypatch.setattr(
            client, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(client, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(client, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        again()
        yield running
    again()


def again() -> None:
    """What a new process does: it asks for the commits again."""
    hub._repository.cache_clear()


def picture(i: int, ending: str = "PNG") -> bytes:
    """An image of its own for each i: noise, whose corner pixel has the value i."""
    image = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
    image[0, 0] = i % 256
    file = io.BytesIO()
    Image.fromarray(image).save(file, ending)
    return file.getvalue()


def corners(part) -> list[int]:
    return part.read(np.arange(len(part)))[:, 0, 0, 0].tolist()


def classes_of(part) -> list[str]:
    return [part.value_names[0][c] for c in part.attributes[:, 0]]


IMAGE = {"dtype": "image", "_type": "Image"}
LABEL = {"names": list(NAMES), "_type": "ClassLabel"}


def parquet(first: int, n: int, features: dict | None = None, **more: list) -> bytes:
    """A table as the library `datasets` writes it: images as {bytes, path}, the features in the schema."""
    images = [{"bytes": picture(i), "path": None} for i in range(first, first + n)]
    table = pa.table({"image": images, "label": [i % 3 for i in range(first, first + n)]} | more)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=7)
    return file.getvalue()


DESCRIBED = {"image": IMAGE, "label": LABEL}


def table_files(**more: list) -> dict[str, bytes]:
    """The files of a set of two parts; the first is in two files."""
    return {
        "README.md": b"# Insects\n",
        "data/train-00000-of-00002.parquet": parquet(0, 16, DESCRIBED),
        "data/train-00001-of-00002.parquet": parquet(16, N - 16, DESCRIBED),
        "data/test-00000-of-00001.parquet": parquet(N, TESTED, DESCRIBED),
    }


def put(server, files, repo="someone/insects", **more):
    return server.put(repo, files, kind="datasets", **more)


def train_and_validation(sets) -> dict[int, str]:
    """Corner pixel → class, of the images that were in the set's training part."""
    parts = [sets["train"], sets["validation"]]
    return {corner: name for part in parts for corner, name in zip(corners(part), classes_of(part), strict=True)}


EXPECTED = {i: NAMES[i % 3] for i in range(N)}


def test_parquet_files_are_read_as_datasets_writes_them(server):
    put(server, table_files())
    sets = labeled(SET, size=8)
    assert train_and_validation(sets) == EXPECTED
    assert corners(sets["test"]) == [*range(N, N + TESTED)]
    assert classes_of(sets["test"]) == [NAMES[i % 3] for i in range(N, N + TESTED)]


def test_a_card_describes_splits_and_columns(server):
    """In the card, one class has another name, and the parts have names that the files do not have."""
    card = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/a*}
  - {split: val, path: [small/b.parquet]}
- config_name: large
  data_files: {train: large/*.parquet}
dataset_info:
- config_name: small
  features:
  - {name: image, dtype: image}
  - {name: kind, dtype: {class_label: {names: {'0': wasp, '1': bee, '2': cat}}}}
- config_name: large
  features: []
---
"""
    files = {"README.md": card.encode(), "large/x.parquet": parquet(100, 9)}
    files |= {"small/a1.parquet": parquet(0, N, kind=[i % 3 for i in range(N)])}
    files |= {"small/b.parquet": parquet(N, TESTED, kind=[i % 3 for i in range(TESTED)])}
    put(server, files)
    with pytest.raises(InputError, match=r"has several configurations; give hf:someone/insects:CONFIG .*small, large"):
        labeled(SET, size=8)
    with pytest.raises(InputError, match=r"has no configuration; give .*small, large"):
        labeled(f"{SET}:smal", size=8)
    sets = labeled(f"{SET}:small", size=8)
    assert train_and_validation(sets) == {i: ("wasp", "bee", "cat")[i % 3] for i in range(N)}
    assert sorted(corners(sets["test"])) == [*range(N, N + TESTED)]  # a validation part without a test part is the test
    large = labeled(f"{SET}:large", size=8)
    assert large.is_split
    assert classes_of(large["train"])[0] in ("0", "1", "2")  # numbers without names


@pytest.mark.parametrize("name", ["train/0.parquet", "default/train/0000.parquet", "Train_a.parquet", "x.parquet"])
def test_parts_are_found_by_the_words_in_the_names_of_files(server, name):
    other = "test" if name != "x.parquet" else "x.parquet"
    files = {name: parquet(0, N, DESCRIBED)}
    if other == "test":
        files[name.replace("train", "test").replace("Train", "valid")] = parquet(N, TESTED, DESCRIBED)
    put(server, files)
    sets = labeled(SET, size=8)
    assert sets.is_split == (other != "test")
    if other == "test":
        assert train_and_validation(sets) == EXPECTED


def test_folders_of_images_are_read_as_our_own_folders_are(server, tmp_path):
    """The same images are in each part as from the same folder on a disk."""
    files = {f"{'train' if i < N else 'test'}/{NAMES[i % 3]}/{i:02d}.png": picture(i) for i in range(N + TESTED)}
    put(server, {f"data/{name}": content for name, content in files.items()} | {"data/logo.png": picture(99)})
    for name, content in files.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(content)
    ours, hubs = labeled(f"folder:{tmp_path}/set", size=8), labeled(SET, size=8)
    for part in ("train", "validation", "test"):
        assert corners(hubs[part]) == corners(ours[part])
        assert classes_of(hubs[part]) == classes_of(ours[part])
    with pytest.raises(InputError, match=r"has folders of images and no columns"):
        labeled(SET, size=8, label="x")


def test_an_image_that_is_twice_in_a_folder_stays_twice(server):
    """The cache keeps one file for both, and links to it."""
    put(server, {f"{NAMES[i % 3]}/{i}.png": picture(i // 2) for i in range(N)})
    sets = labeled(SET, size=8)
    assert sorted(c for part in sets.values() for c in corners(part)) == sorted(i // 2 for i in range(N))
    assert [*sets["train"].value_names] == [NAMES]


def test_an_ambiguous_column_is_refused_and_the_setting_chooses(server):
    two = {"left": IMAGE, "right": IMAGE, "fine": LABEL, "coarse": {"names": ["a", "b"], "_type": "ClassLabel"}}
    images = [{"bytes": picture(i), "path": None} for i in range(N)]
    table = pa.table({"left": images, "right": images[::-1], "fine": np.arange(N) % 3, "coarse": np.arange(N) % 2})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": two}})})
    file = io.BytesIO()
    pq.write_table(table, file)
    put(server, {"train.parquet": file.getvalue()})
    with pytest.raises(InputError, match=r"several columns of images; give --config\.data\.hf\.image= .* left, right"):
        labeled(SET, size=8)
    with pytest.raises(InputError, match=r"several columns of labels; give --config\.data\.hf\.label= .* fine, coarse"):
        labeled(SET, size=8, image="right")
    with pytest.raises(InputError, match=r"data.hf.image='x' is no column of .*; it has left, right, fine, coarse"):
        labeled(SET, size=8, image="x")
    with pytest.raises(InputError, match=r"data.hf.label='left' of .* holds neither numbers nor text"):
        labeled(SET, size=8, image="right", label="left")
    with pytest.raises(InputError, match=r"the column fine holds int64, expected images"):
        labeled(SET, size=8, image="fine", label="coarse")
    sets = labeled(SET, size=8, image="right", label="coarse")
    found = {c: name for part in sets.values() for c, name in zip(corners(part), classes_of(part), strict=True)}
    assert found == {N - 1 - i: "ab"[i % 2] for i in range(N)}
    assert labeled(SET, size=8, image="left", label="")["train"].names == ()


def test_labels_of_text_and_images_without_labels(server):
    """Without a description, only a column named `label` is taken for the classes."""
    text = pa.table({"image": [picture(i) for i in range(N)], "caption": [NAMES[i % 3] for i in range(N)]})
    file = io.BytesIO()
    pq.write_table(text, file)
    put(server, {"train.parquet": file.getvalue()})
    with pytest.raises(InputError, match=r"does not say which column has the classes; give .* caption, or ''"):
        labeled(SET, size=8)
    sets = labeled(SET, size=8, label="caption")
    assert sets["train"].value_names == (NAMES,)
    found = {c: name for part in sets.values() for c, name in zip(corners(part), classes_of(part), strict=True)}
    assert found == EXPECTED


def test_a_part_without_labels_is_left_out_and_single_missing_labels_are_refused(server):
    files = table_files() | {"data/test-00000-of-00001.parquet": parquet(N, TESTED, DESCRIBED, label=[-1] * TESTED)}
    put(server, files)
    assert labeled(SET, size=8).is_split
    files["data/test-00000-of-00001.parquet"] = parquet(N, TESTED, DESCRIBED, label=[-1, None] + [0] * (TESTED - 2))
    put(server, files)
    again()
    with pytest.raises(InputError, match=r"2 rows of the test part have no label"):
        labeled(SET, size=8)
    files["data/test-00000-of-00001.parquet"] = parquet(N, TESTED, DESCRIBED, label=[3] * TESTED)
    put(server, files)
    again()
    with pytest.raises(InputError, match=r"label 3 is none of its 3 classes"):
        labeled(SET, size=8)


def test_our_own_export_reads_back_from_a_repository(server, tmp_path):
    cdp.export(tmp_path / "pairs", size=32, pairing="color", pairs=60, test=20, format="parquet")
    put(server, {path.name: path.read_bytes() for path in (tmp_path / "pairs").iterdir()})
    sets = labeled(SET, size=32)
    rows = pq.read_table(tmp_path / "pairs" / "test.parquet").to_pylist()
    images = sets["test"].read(np.arange(20))
    for row, image in zip(rows, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(row["image"]))), image)
    assert sets["test"].attributes[:, 0].tolist() == [row["label"] for row in rows]
    assert {name: len(part) for name, part in sets.items()} == {"train": 54, "validation": 6, "test": 20}


def test_broken_sets_are_refused_in_words(server):
    put(server, {"README.md": b"#", "images.zip": b"PK"})
    with pytest.raises(
        InputError, match=r"neither Parquet files nor images; give hf:someone/insects@refs/convert/parquet"
    ):
        labeled(SET, size=8)
    put(server, {"train.parquet": parquet(0, N, DESCRIBED)[:-20]})
    again()
    with pytest.raises(InputError, match=r"a Parquet file of 'hf:someone/insects' is damaged"):
        labeled(SET, size=8)
    put(server, {"README.md": b"---\nconfigs: [}\n---\n", "train.parquet": parquet(0, N, DESCRIBED)})
    again()
    with pytest.raises(InputError, match=r"README\.md of 'hf:someone/insects' is no card"):
        labeled(SET, size=8)
    put(server, {"1.png": picture(1), "metadata.csv": b"file_name,label\n1.png,0\n"})
    again()
    with pytest.raises(InputError, match=r"labels of .* are in a metadata file, which is not read"):
        labeled(SET, size=8)
    put(server, {"train.parquet": parquet(0, N, DESCRIBED, image=[None] * N)})
    again()
    with pytest.raises(InputError, match=r"the column image holds null"):
        labeled(SET, size=8)


def weights_of(arrays) -> bytes:
    return safetensors.numpy.save({key: np.ascontiguousarray(array) for key, array in arrays.items()})


def same_encoder(one, other) -> bool:
    import jax

    return jax.tree.all(jax.tree.map(np.array_equal, one.variables, other.variables))


def test_the_weights_of_a_model_are_found(server, tmp_path):
    """Safetensors come before torch's files, whatever else is there; a name chooses a file and a revision."""
    weights = golden("resnet18")[0]
    half = len(weights) // 2
    (tmp_path / "x.safetensors").write_bytes(weights_of(weights))
    expected = pretrained.load(tmp_path / "x.safetensors")
    other = {key: 2 * array for key, array in weights.items()}
    files = {
        "README.md": b"#",
        "model.safetensors": weights_of(weights),
        "optimizer.pt": b"?",
        "open.safetensors": b"?",
    }
    server.put("someone/resnet", files | {"pytorch_model.bin": b"?", "sub/other.safetensors": weights_of(other)})
    assert same_encoder(pretrained.load(MODEL), expected)
    assert not any("pytorch_model.bin" in one or "open." in one for one in server.asked)  # only what is needed comes
    assert not same_encoder(pretrained.load(f"{MODEL}:sub/other.safetensors"), expected)
    with pytest.raises(
        InputError, match=r"has no file 'gone.pth'; give a FILE, with one of .gitattributes, README.md, m"
    ):
        pretrained.load(f"{MODEL}:gone.pth")

    shards = {f"model-{i}-of-00002.safetensors": dict([*weights.items()][part]) for i, part in
              (("00001", slice(half)), ("00002", slice(half, None)))}  # fmt: skip
    where = {key: name for name, part in shards.items() for key in part}
    files = {"model.safetensors.index.json": json.dumps({"weight_map": where}).encode()}
    files |= {name: weights_of(part) for name, part in shards.items()}
    commit = server.put("someone/resnet", files, revision="sharded")
    for revision in ("sharded", commit):
        assert same_encoder(pretrained.load(f"{MODEL}@{revision}"), expected)

    server.put("someone/resnet", {"a.pth": b"?", "b.pth": b"?"}, revision="two")
    with pytest.raises(
        InputError, match=r"several files may hold the encoder; give hf:someone/resnet@two:FILE.*a.pth, b"
    ):
        pretrained.load(f"{MODEL}@two")
    server.put("someone/resnet", {"README.md": b"#", "training_args.bin": b"?"}, revision="none")
    with pytest.raises(InputError, match=r"has no file of weights"):
        pretrained.load(f"{MODEL}@none")


def test_a_repository_s_files_stay_in_its_folder(server):
    server.put("someone/resnet", {"../../model.safetensors": b"?", "/etc/model.safetensors": b"?"})
    with pytest.raises(InputError, match=r"has no file of weights"):
        pretrained.load(MODEL)


@pytest.mark.parametrize("program", ["timm", "transformers"])
def test_the_config_of_a_model_says_how_its_images_are_normalized(server, monkeypatch, program):
    weights, *_ = transformer("deit")
    monkeypatch.setitem(vit.ENCODERS, "deit_ti", (vit.ViT, {"width": 16, "depth": 2, "heads": 2}))
    model = {"model.safetensors": weights_of(weights)}

    def config(mean, std):
        if program == "timm":
            return {"config.json": json.dumps({"pretrained_cfg": {"mean": mean, "std": std}}).encode()}
        return {"preprocessor_config.json": json.dumps({"image_mean": mean, "image_std": std}).encode()}

    server.put("someone/resnet", model | config([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert pretrained.load(MODEL).layout == "deit"
    server.put("someone/resnet", model | config([0.5] * 3, [0.5] * 3), revision="half")
    assert pretrained.load(f"{MODEL}@half").layout == "timm-vit"
    server.put("someone/resnet", model | config([0.1] * 3, [0.5] * 3), revision="odd")
    with pytest.raises(
        InputError, match=r"the config beside .* says mean and std \(\[0.1, 0.1, 0.1\], .*, and no layout"
    ):
        pretrained.load(f"{MODEL}@odd")
    server.put("someone/resnet", model | {"config.json": b"[]"}, revision="silent")
    with pytest.raises(InputError, match=r"don't tell how its images were normalized; name its layout"):
        pretrained.load(f"{MODEL}@silent")


def test_what_a_user_can_mend_is_said_in_a_line(server):
    with pytest.raises(InputError, match=r"there is no model http://\S+/someone/resnet, or it is private; correct"):
        pretrained.load(MODEL)
    with pytest.raises(InputError, match=r"there is no data set http://\S+/datasets/someone/insects, or it is private"):
        labeled(SET, size=8)
    server.put("someone/resnet", {"model.safetensors": b"?"})
    with pytest.raises(InputError, match=r"has no such revision; give a branch, a tag or a commit"):
        pretrained.load(f"{MODEL}@gone")
    server.gated.add("someone/resnet")
    with pytest.raises(
        InputError, match=r"is gated: accept its conditions on http://\S+, then log in by `hf auth login`"
    ):
        pretrained.load(MODEL)


def test_without_a_network_the_cache_is_read_and_never_a_part_of_it(server, monkeypatch):
    client = sys.modules["huggingface_hub.constants"]
    put(server, table_files())
    before = corners(labeled(SET, size=8)["train"])
    monkeypatch.setattr(client, "HF_HUB_OFFLINE", True)
    again()
    assert corners(labeled(SET, size=8)["train"]) == before
    missing = "cannot be reached, and the cache .* does not hold it whole; run `hf download someone/insects --repo-type"
    [file] = Path(client.HF_HUB_CACHE).glob("*insects/snapshots/*/data/test-*")
    file.unlink()
    with pytest.raises(InputError, match=missing):
        labeled(SET, size=8)
    with pytest.raises(InputError, match=r"cannot be reached, and the cache"):
        pretrained.load(MODEL)
    monkeypatch.setattr(client, "HF_HUB_OFFLINE", False)
    server.down = True
    with pytest.raises(InputError, match=missing.replace("insects --repo-type", "other")):
        labeled("hf:someone/other", size=8)


def test_features_and_arrays_may_be_files_of_a_repository(server):
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    np.savez(file, h=rng.normal(size=(N, 4)).astype(np.float32), labels=np.arange(N) % 3)
    put(server, {"features/a.npz": file.getvalue(), "README.md": b"#"})
    sets = labeled(f"features:{SET}:features/a.npz")
    assert sum(map(len, sets.values())) == N
    with pytest.raises(
        InputError, match=r"names no file of the repository; give hf:REPO:FILE, with one of .gitattributes, READ"
    ):
        labeled(f"features:{SET}")


def test_rank_takes_encoders_of_the_hub_by_name():
    arguments = "encoders=hf:timm/vit_small.lvd142m+hf:timm/vit_small.dino@v1+features:hf:a/b:f/x.npz"
    config, *_ = config_files.parse([f"--config=configs/rank.py:{arguments}"])
    cells = {cell["name"]: dict(cell["run"]) for cell in config.study.cells}
    assert cells == {
        "vit_small.lvd142m": {"encoder.path": "hf:timm/vit_small.lvd142m"},
        "vit_small.dino@v1": {"encoder.path": "hf:timm/vit_small.dino@v1"},
        "x": {"data.source": "features:hf:a/b:f/x.npz"},
    }
    config, *_ = config_files.parse(["--config=configs/rank.py:encoders=hf:a/x+hf:b/x"])
    assert [cell["name"] for cell in config.study.cells] == ["a-x", "b-x"]
    with pytest.raises(InputError, match=r"encoders: 'hf:timm/vit\*' is on the Hub, where names have no \* and \?"):
        config_files.parse(["--config=configs/rank.py:encoders=hf:timm/vit*"])


def test_a_run_is_of_the_commits_that_its_config_names(server, tmp_path):
    """They are in the config, so in the report, and a folder is not continued with another one."""
    weights = golden("resnet18_cifar")[0]
    files = {f"{name}.parquet": parquet(150 * i, 150, DESCRIBED) for i, name in enumerate(("train", "val", "test"))}
    of_set = put(server, files)
    keys = {f"model.encoder.{key.replace('downsample', 'shortcut')}": array for key, array in weights.items()}
    keys = {key: array for key, array in keys.items() if ".fc." not in key}
    of_model = server.put("someone/resnet", {"model.safetensors": weights_of(keys)})
    arguments = encoder(SET, tmp_path / "run", f"--config.encoder.path={MODEL}", "--config.data.size=8")
    config, *_ = config_files.parse(arguments)
    commits = {"encoder": of_model, "source": of_set}
    assert job.parse(config).config.sha256.to_dict() == commits
    newer = put(server, files | {"README.md": b"# New\n"})
    assert job.digests(config) == commits  # a process asks once
    again()
    assert job.digests(config) == commits | {"source": newer}
    pinned, *_ = config_files.parse([*arguments, f"--config.data.source={SET}@{of_set}"])
    assert job.digests(pinned) == commits
    features, *_ = config_files.parse([*arguments, "--config.encoder.path="])
    features.data.source, file = f"features:{SET}:h.npz", b"any bytes"
    put(server, {"h.npz": file})
    again()
    assert job.digests(features) == {"source": hashlib.sha256(file).hexdigest()}
