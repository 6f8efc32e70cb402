"""Training and encoding in memory have a run's numbers and a config's defaults, and write nothing to disk."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import cdp as cdp_run
from small import image_set, user_environment

from mirigor_jax import config_files, encoding, models, parallel
from mirigor_jax.checkpoint import Checkpoints
from mirigor_jax.data import cdp
from mirigor_jax.data.augmentation import Augmentation
from mirigor_jax.data.population import STREAMS
from mirigor_jax.encoding import encode
from mirigor_jax.errors import InputError
from mirigor_jax.files import read_rows
from mirigor_jax.history import TrainingHistory
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import parse
from mirigor_jax.runs.steps import make_train_step
from mirigor_jax.runs.train import train_stage
from mirigor_jax.training import train

ROOT = Path(__file__).parents[1]
TINY = cdp.make(size=32, colors=2)


@pytest.fixture(autouse=True)
def few_devices(monkeypatch):
    """Use two of the eight devices, for which steps compile faster."""
    some = jax.devices()[:2]
    monkeypatch.setattr(jax, "devices", lambda: some)


def gray(n: int, seed: int = 0):
    """Images of two classes, dark and bright, and their classes."""
    classes = np.arange(n) % 2
    pixels = 100 * classes[:, None, None, None] + np.random.default_rng(seed).integers(0, 99, (n, 12, 12, 3))
    return pixels.astype(np.uint8), classes


def assert_trains_as_a_run(arguments, folder, **settings):
    """Check that `train` returns the last checkpoint and the rows of the run's training, to the last bit."""
    job = parse(config_files.parse(arguments)[0])
    train_stage(job, RunFolder(folder))
    with Checkpoints(folder / "train") as checkpoints:
        like = make_train_step(job, parallel.make_mesh(job.config.train.k))[1][0]
        expected = checkpoints.restore(checkpoints.last, like)
    source = settings.pop("source", job.images)
    state, history = train(job.encoder(), source, **settings)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    rows = read_rows(folder / "train" / "metrics.jsonl")
    assert history.step.tolist() == [row["step"] for row in rows] == [1, 2, 3]
    assert history.loss_nats.tolist() == [row["loss_nats"] for row in rows]
    assert (history.mi_bits is None) == ("mi_bits" not in rows[0])
    assert history.mi_bits is None or history.mi_bits.tolist() == [row["mi_bits"] for row in rows]


@pytest.mark.slow
def test_images_that_are_new_train_as_in_a_run(tmp_path):
    run = cdp_run("--config.train.steps=3", "--config.seed=5", "--config.train.learning_rate=0.001")
    settings = {"pairing": "color", "k": 8, "steps": 3, "seed": 5, "learning_rate": 0.001}
    assert_trains_as_a_run(run, tmp_path, source=TINY, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "more"),
    [
        ("supervised_autoencoder", {"decoder": "mlp", "decoder_width": 16, "reconstruction": 2.0}),
        ("supervised_autoencoder", {"reconstruction": None}),
        ("masked", {"masked": 0.5, "patch": 8, "accumulate": 2}),
        ("barlow_twins", {"redundancy": 0.1}),
        ("vicreg", {"vicreg_weights": (5.0, 5.0, 2.0)}),
        ("byol", {"target_decay": 0.5, "accumulate": 2}),
        ("swav", {"prototypes": 7}),
    ],
)
def test_objectives_with_further_networks_or_settings_train_as_in_a_run(tmp_path, objective, more):
    given = {"steps": 3, "learning_rate": 0.001, "objective": objective, **more}
    run = cdp_run(*(f"--config.train.{name}={value}" for name, value in given.items()))
    assert_trains_as_a_run(run, tmp_path, source=TINY, pairing="color", k=8, **given)


@pytest.mark.slow
@pytest.mark.parametrize("resident", ["always", "never"])
def test_a_finite_set_trains_as_in_a_run(tmp_path, resident):
    (images, labels), (images_test, labels_test) = gray(2000), gray(300, seed=1)
    np.savez(tmp_path / "set.npz", images=images, labels=labels, images_test=images_test, labels_test=labels_test)
    asked = ("objective=supcon", "k=16", "steps=3", "accumulate=2", "temperature=0.5", "optimizer=sgd")
    more = [*(f"--config.train.{one}" for one in asked), f"--config.data.resident={resident}"]
    run = image_set(f"npz:{tmp_path / 'set.npz'}", tmp_path, *more, pairing="class+simclr")
    augmentation = Augmentation(crop=0.7, jitter=0.5, blur=0.0)
    settings = {"pairing": "class+simclr", "augmentation": augmentation, "objective": "supcon", "k": 16, "steps": 3}
    settings |= {"accumulate": 2, "temperature": 0.5, "optimizer": "sgd", "learning_rate": 2e-3, "warmup_steps": 50}
    assert_trains_as_a_run(run, tmp_path, **settings, resident_images="never")


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_eight_devices_train_as_one():
    encoder, options = models.build("resnet18", width=4), {"k": 8, "steps": 2, "learning_rate": 1e-4}
    results = [train(encoder, TINY, devices=jax.local_devices()[:n], **options) for n in (8, 1)]
    images = TINY.images(0, 8)["image"]
    h_8, h_1 = (encode(encoder, state, images, devices=jax.local_devices()[:1]) for state, _ in results)
    np.testing.assert_allclose(results[0][1].loss_nats, results[1][1].loss_nats, rtol=1e-5)
    np.testing.assert_allclose(h_8, h_1, rtol=1e-3, atol=1e-3)


def test_defaults_are_the_command_line_s():
    config = config_files.parse(["--config=configs/cdp.py"])[0]
    base = config_files.load_config("configs/images.py")[0]
    ours = {name: p.default for name, p in inspect.signature(train).parameters.items()}
    same = ("objective", "k", "optimizer", "warmup_steps", "weight_decay", "schedule", "drops", "temperature")
    siamese = ("redundancy", "vicreg_weights", "target_decay", "prototypes")
    decoding = ("decoder", "decoder_width", "reconstruction", "masked", "patch")
    for name in (*same, *decoding, *siamese, "embedding_noise", "accumulate"):
        assert ours.pop(name) == config.train[name], name
    assert ours.pop("learning_rate") == config.train.learning_rate
    assert ours.pop("global_batch_norm") == config.train.global_batch_norm
    assert (ours.pop("pairing"), ours.pop("seed")) == (config.data.pairing, config.seed)
    assert ours.pop("resident_images") == config.data.resident
    assert [ours.pop(name) for name in ("threads", "workers")] == [config.data.threads, config.data.workers]
    assert ours.pop("steps") == 300
    assert {name for name, default in ours.items() if default is not None} == {"encoder", "source"}
    assert inspect.signature(encode).parameters["batch_size"].default == base.features.batch_size


def test_progress_is_told_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values, encoded = [], []
    encoder = models.build("mlp")
    options = {"k": 8, "steps": 2, "on_progress": lambda *message: values.append(message)}
    images, labels = gray(20)
    state, history = train(encoder, (images, labels), pairing="class", **options)
    assert [phrase[:2] for phrase in values] == [(1, 2), (2, 2)]
    assert "in-training I" in values[1][2]
    assert "(ceiling 3.91)" in values[1][2]
    batch = {"image": images, "attributes": np.stack([labels, 5 - labels], 1)}
    h, result = encode(encoder, state, batch, batch_size=8, on_progress=lambda *message: encoded.append(message))
    assert encoded == [(8, 20, ""), (16, 20, ""), (20, 20, "")]
    np.testing.assert_array_equal(result, labels)
    expected = encoder.apply(state.encoder_variables, jnp.asarray(images / 127.5 - 1, jnp.float32), train=False)
    np.testing.assert_allclose(h, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(encode(encoder, state.encoder_variables, images, batch_size=8), h)
    assert len(history.step) == 2
    assert (capsys.readouterr().out, list(tmp_path.iterdir())) == ("", [])


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_the_library_s_example_runs_in_an_empty_folder_and_leaves_no_file(tmp_path, devices):
    golden = np.load(ROOT / "tests" / "golden" / "resnet18.npz")
    weights = {key.removeprefix("weights/"): golden[key] for key in golden.files if key.startswith("weights/")}
    np.savez(tmp_path / "checkpoint.npz", **weights)
    example = (ROOT / "docs/how_to/library.md").read_text().split("```")[1].removeprefix("python")
    small = {"size=64": "size=32, colors=2, digits=(2, 3), grid=(1, 1)", "width=16": "width=4", "k=64": "k=16"}
    for usual, less in (small | {"steps=300": "steps=2", "10_000": "1000", ".pth": ".npz"}).items():
        assert usual in example
        example = example.replace(usual, less)
    shown = "\nprint(history)\nprint(mj.encode(frozen.encoder, frozen, cdp.images(0, 3)['image']).shape)"
    environment = user_environment()
    environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    run = [sys.executable, "-c", example + shown]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for phrase in ("I_class by ", "InfoNCE at K =", "linear accuracy, % ↑", "paired 95 % interval"):
        assert phrase in done.stdout
    assert "2 steps at K = 16: loss " in done.stdout
    assert done.stdout.splitlines()[-1] == "(3, 32)"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]


def test_images_by_their_numbers_are_apart_from_what_is_trained_on():
    images = TINY.images(3, 9)
    np.testing.assert_array_equal(images["image"], TINY.images(0, 9)["image"][3:])
    assert len(set(STREAMS.values())) == len(STREAMS)
    assert STREAMS["library"] == inspect.signature(TINY.images).parameters["stream"].default


@pytest.mark.parametrize(("count", "rows"), [(3, 4), (4, 4), (600, 256)])
def test_a_few_images_are_not_padded_to_a_whole_batch(count, rows, monkeypatch):
    """At 518² a batch of 256 images takes gigabytes, and minutes on a CPU. Here are two devices."""
    sizes, make_step = [], encoding.make_step

    def watched(*args, **options):
        sizes.append(options["batch_size"])
        return make_step(*args, **options)

    monkeypatch.setattr(encoding, "make_step", watched)
    encoder, images = models.build("mlp"), np.zeros((count, 4, 4, 3), np.uint8)
    variables = encoder.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False)
    assert encode(encoder, variables, images, devices=jax.devices()[:2]).shape[0] == count
    assert sizes == [rows]


def test_a_frozen_encoder_normalizes_as_its_source_and_computes_as_its_module():
    encoder, (images, _) = models.build("mlp"), gray(6)
    variables = encoder.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)), train=False)
    frozen = FrozenEncoder(encoder, variables, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    h = encode(frozen.encoder, frozen, images, batch_size=6)
    np.testing.assert_allclose(h, frozen.apply(variables, jnp.asarray(images)), rtol=1e-4, atol=1e-5)
    half = encode(frozen.encoder.clone(dtype="bfloat16"), frozen, images, batch_size=6)
    assert 0 < np.abs(half - h).max() < 0.1 * np.abs(h).max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 1}, r"^k=1: expected at least 2"),
        ({"objective": "simsiam"}, r"^objective='simsiam' is unknown; choose one of simclr"),
        ({"pairing": "kind"}, r"unknown attribute 'kind'"),
        ({"augmentation": Augmentation()}, r"^pairing='all' augments nothing, .* leave it out"),
        ({"resident_images": "some"}, r"^resident_images='some': expected auto, always or never"),
        ({"resident_images": "always"}, r"^resident_images='always': there is nothing to hold, every image is new"),
        ({"optimizer": "adam"}, r"^optimizer='adam': expected adamw, sgd or lars"),
        ({"source": np.zeros((4, 8, 8, 3))}, r"^images are float64 \(4, 8, 8, 3\); expected bytes, uint8"),
        ({"source": (np.zeros((4, 8, 8, 3), np.uint8), [0, 1])}, r"^labels have shape \(2,\); expected \(4,\), one an"),
        ({"source": "cdp"}, r"^images are str; expected bytes"),
        ({"source": np.zeros((4, 8, 8, 3), np.uint8), "pairing": "class"}, r"needs labels, and the images has none"),
    ],
)
def test_what_does_not_go_together_is_said_in_a_line(settings, message):
    with pytest.raises(InputError, match=message):
        train(models.build("mlp"), **({"source": TINY, "steps": 1} | settings))


@pytest.mark.parametrize("images", [np.zeros((4, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), [1]])
def test_images_to_encode_are_bytes(images):
    with pytest.raises(InputError, match=r"^images are .*; expected bytes, uint8 \(n, s, s, 3\)"):
        encode(models.build("mlp"), {}, images)


def test_a_history_is_a_sentence_a_table_and_plain_numbers():
    steps = np.arange(1, 41)
    rows = [{"step": int(i), "loss_nats": 3.0 - i / 40, "mi_bits": i / 40} for i in steps]
    history = TrainingHistory.of(rows, k=8)
    assert str(history) == ("40 steps at K = 8: loss 2.038 nats, in-training MI 0.963 of at most 3.907 bits at the end")
    assert json.loads(json.dumps(history.to_dict()))["mi_bits"] == [row["mi_bits"] for row in rows]
    html = history._repr_html_()
    assert html.count("<tr>") == 11
    assert "<td>40</td><td>2.0000</td><td>1.0000</td>" in html
    assert len(history.figure().axes) == 2
    plain = TrainingHistory.of([{"step": 1, "loss_nats": 0.5}], k=8)
    assert (plain.mi_bits, len(plain.figure().axes), plain.ending()) == (None, 1, {"loss_nats": 0.5})
    assert str(TrainingHistory.of([], k=8)) == "no training step at K = 8"
