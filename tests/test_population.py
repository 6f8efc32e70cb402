"""Runs on image sets, checkpoints and feature files, through `main`; and the images that their pairs contain."""

import json
import math
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from small import encoder, image_set

from mirigor_jax import config_files
from mirigor_jax.data.sources.noise import noise_images
from mirigor_jax.main import main
from mirigor_jax.mi.certificates import classifier_lower_bits
from mirigor_jax.mi.certify import DEPLETION_SHARE
from mirigor_jax.models import pretrained
from mirigor_jax.runs.job import PARTS, digests, parse
from mirigor_jax.runs.train import job_training_data

pytestmark = pytest.mark.compiles

COUNTS = {"": (1500, 900, 600), "_test": (300, 150, 150)}  # images of three classes: unlike in training and test


def draw(counts, size, rng):
    """Gray images in random order, each as bright as its class."""
    classes = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    noise = rng.normal(0, 30, (len(classes), size, size))
    return np.clip(60 * (1 + classes[:, None, None]) + noise, 0, 255).astype(np.uint8), classes


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    path, rng, arrays = tmp_path_factory.mktemp("sets") / "gray.npz", np.random.default_rng(0), {}
    for part, counts in COUNTS.items():
        arrays[f"images{part}"], arrays[f"labels{part}"] = draw(counts, 12, rng)
    np.savez(path, **arrays)
    return path


def job(images: Path, folder: Path, *arguments: str, pairing: str = "class") -> list[str]:
    return image_set(f"npz:{images}", folder, *arguments, pairing=pairing)


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "class"
    assert main(job(images, folder, "--config.estimate.extra_pairings=()")) == 0
    return folder


def read(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_the_upper_end_is_the_test_part_s_entropy_and_no_mi_is_called_true(finished):
    report, shares = read(finished), np.array(COUNTS["_test"]) / 600
    entropy_bits = float(-np.sum(shares * np.log2(shares)))
    assert report["truth"]["entropy_bits"] == pytest.approx(entropy_bits)
    assert report["estimate"]["upper_bits"] == pytest.approx(entropy_bits)
    assert report["truth"]["mutual_information_bits"] is None
    assert 0 <= report["estimate"]["lower_bits"] <= entropy_bits
    assert set(report["linear"]) == {"class"}


def test_features_are_of_every_image_once_and_of_its_class(finished, images):
    arrays = np.load(images)
    sizes = {name: len(np.load(finished / "features" / f"{name}.npz")["h"]) for name in PARTS}
    assert sizes["test"] == 600
    assert sizes["fit"] + sizes["validation"] == 3000
    test = np.load(finished / "features" / "test.npz")
    np.testing.assert_array_equal(test["labels"][:, 0], arrays["labels_test"])


def test_pairs_share_a_class_use_no_image_twice_and_follow_the_classes_frequencies(images, tmp_path):
    config = config_files.parse(job(images, tmp_path))[0]
    parsed = parse(config)
    population, pairing = parsed.images, parsed.pairing
    rows = population._rows("test", pairing)
    classes = np.load(images)["labels_test"]
    assert len(np.unique(rows)) == rows.size
    np.testing.assert_array_equal(classes[rows[:, 0]], classes[rows[:, 1]])
    expected = len(rows) * np.array(COUNTS["_test"]) / 600
    assert stats.chisquare(np.bincount(classes[rows[:, 0]]), expected).pvalue > 1e-3
    assert population.risk(pairing) == pytest.approx(DEPLETION_SHARE * 0.05)
    # What validation chooses must not depend on the test: its pairs' classes are drawn apart.
    validation = population.sets["validation"].attributes[population._rows("validation", pairing)[:, 0], 0]
    assert np.mean(validation == classes[rows[: len(validation), 0]]) < 0.6
    # What is encoded once serves every pairing: representations in pairs are those of the pairs' images.
    h = np.arange(600, dtype=np.float32)[:, None]
    features = {"h": h, "labels": classes[:, None].astype(np.int32)}
    part = {"fit": features, "validation": features, "test": features}
    paired = population.paired(part, pairing)["test"]
    np.testing.assert_array_equal(paired["h_x"][:, 0], rows[:, 0])
    np.testing.assert_array_equal(paired["labels_y"][:, 0], classes[rows[:, 1]])


def test_a_certificate_pays_for_the_classes_that_may_run_out(finished):
    """From the stored features, the certificate's lower end is that at the higher confidence, not at the plain one."""
    report = read(finished)["estimate"]
    classifier = report["certificates"]["classifier"]
    errors, images = classifier["counts"]["errors"], classifier["counts"]["images"]
    assert images == 600  # the part's shares are the frequencies, so each of its images counts whole
    frequencies = np.array(COUNTS["_test"]) / 600
    paid = classifier_lower_bits(errors, images, frequencies, 0.95 + DEPLETION_SHARE * 0.05)
    assert classifier["lower_bits"] == pytest.approx(paid)
    assert paid < classifier_lower_bits(errors, images, frequencies, 0.95)


@pytest.mark.slow
def test_another_pairing_of_a_set_encodes_nothing(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("features/*.npz")}
    restore = ["--config=configs/estimate.py:k_est=16", f"--config.restore={finished}", "--config.pairing=none"]
    assert main(restore) == 0
    assert "encode: finished before, skipped" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert read(finished)["estimates"]["none-k=16"]["upper_bits"] == 0


@pytest.mark.parametrize("resident", ["always", "never"])
@pytest.mark.parametrize("pairing", ["class", "simclr"])
def test_a_labeled_objective_is_given_each_images_own_class(images, tmp_path, pairing, resident):
    options = ("--config.train.objective=supcon", f"--config.data.resident={resident}")
    config = config_files.parse(job(images, tmp_path, *options, pairing=pairing))[0]
    parsed = parse(config)
    population = parsed.images
    data = job_training_data(parsed)
    read, on_devices = data.read, data.resident_images
    batch, train = read(0, 200), population.sets["train"]
    assert (on_devices is None) == (resident == "never")
    for view in ("x", "y"):
        pixels = batch[view] if on_devices is None else on_devices[batch[view]]
        if on_devices is not None:
            np.testing.assert_array_equal(batch[f"c_{view}"], train.attributes[batch[view], 0])
        # 144 pixels of noise 30 about 60, 120 or 180: the mean tells the class
        np.testing.assert_array_equal(batch[f"c_{view}"], np.rint(pixels.mean(axis=(1, 2, 3)) / 60) - 1)


NEGATIVES = ("own", "classes:second-half", "uniform", "gaussian", "npz")


@pytest.mark.parametrize("resident", ["always", "never"])
@pytest.mark.parametrize("name", NEGATIVES)
def test_negatives_come_from_their_own_images(images, tmp_path, name, resident):
    """The class in use has brightness 60, and so do its own negatives; the others' have 120 and 180, noise 128."""
    other = tmp_path / "other.npz"
    np.savez(other, images=np.random.default_rng(0).integers(20, size=(50, 8, 8), dtype=np.uint8))
    named = f"npz:{other}" if name == "npz" else name
    options = ("--config.data.classes=first-half", f"--config.data.negatives={named}")
    command = job(images, tmp_path / "run", *options, f"--config.data.resident={resident}", pairing="simclr")
    config = config_files.parse(command)[0]
    parsed = parse(config)
    data = job_training_data(parsed)
    read, on_devices = data.read, data.resident_images
    batch = read(0, 300)
    assert (on_devices is None) == (resident == "never")
    seen = {view: rows if on_devices is None else on_devices[rows] for view, rows in batch.items()}
    level = {view: pixels.mean(axis=(1, 2, 3)) for view, pixels in seen.items()}
    assert {pixels.shape[1:] for pixels in seen.values()} == {(12, 12, 3)}
    np.testing.assert_array_equal(np.rint(np.concatenate([level["x"], level["y"]]) / 60), 1)
    negatives = np.concatenate([level["n_x"], level["n_y"]])
    expected = {"own": {1}, "classes:second-half": {2, 3}, "uniform": {2}, "gaussian": {2}, "npz": {0}}
    if name in expected:
        assert set(np.rint(negatives / 60).astype(int)) == expected[name]
    assert len(np.unique(negatives)) > (25 if name == "npz" else 400)  # drawn apart, of 30 and of thousands


def test_classes_of_the_same_source_are_salted_as_it_is_and_another_file_is_told_by_its_content(images, tmp_path):
    def negatives(name):
        command = job(images, tmp_path / "run", "--config.data.noise=1", f"--config.data.negatives={name}")
        config = config_files.parse(command)[0]
        population = parse(config).images
        return digests(config), population.sets["negatives"].read(np.arange(30))

    for name, values in (("classes:second-half", {0, 255}), (f"npz:{images}", {0, 255})):
        content, pixels = negatives(name)
        assert set(np.unique(pixels)) == values
        assert ("negatives" in content) == name.startswith("npz:")
    other = tmp_path / "other.npz"
    np.savez(other, images=np.full((50, 12, 12), 7, np.uint8))
    content, pixels = negatives(f"npz:{other}")
    assert (set(np.unique(pixels[:9])), content["negatives"] == content["source"]) == ({7}, False)


def test_noise_is_of_the_distribution_it_is_called_by_and_of_its_row():
    for kind, cdf in (("uniform", lambda k: (k + 1) / 256), ("gaussian", lambda k: stats.norm.cdf((k - 127) / 64))):
        noise = noise_images(kind, count=40, size=32, seed=3)
        pixels = noise.read(np.arange(40))
        for level in (20, 64, 127, 200):  # 122,880 bytes: a standard error of 0.0014 at most
            assert np.mean(pixels <= level) == pytest.approx(cdf(level), abs=0.006)
        np.testing.assert_array_equal(noise.read(np.array([7, 3])), pixels[[7, 3]])
        assert np.abs(np.corrcoef(pixels[:2].reshape(2, -1))[0, 1]) < 0.08


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config.data.negatives=noise",), "unknown image set 'noise'"),
        (("--config.data.negatives=classes:1+7",), "no class '7'"),
        (
            ("--config.data.negatives=own", "--config.train.objective=supcon"),
            "supcon' takes no separate set of negatives",
        ),
    ],
)
def test_negatives_that_cannot_be_are_named_before_anything_is_written(images, tmp_path, arguments, message, capsys):
    assert main(job(images, tmp_path / "run", *arguments, pairing="simclr")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_negatives_of_another_set_train_without_an_in_training_mi(images, tmp_path):
    options = ("--config.data.negatives=classes:second-half", "--config.data.classes=first-half")
    assert main(job(images, tmp_path / "run", *options, "--config.estimate.extra_pairings=()", pairing="simclr")) == 0
    report = read(tmp_path / "run")
    assert report["in_training"] is None
    assert len((tmp_path / "run" / "train" / "metrics.jsonl").read_text().splitlines()) == 6


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["supcon", "cross_entropy"])
def test_labeled_objectives_train_without_an_in_training_mi(images, tmp_path, objective):
    assert main(job(images, tmp_path / "run", f"--config.train.objective={objective}")) == 0
    report = read(tmp_path / "run")
    assert report["in_training"] is None
    summary = json.loads((tmp_path / "run" / "train" / "summary.json").read_text())
    assert (summary["objective"], summary["num_classes"], "mi_bits" in summary) == (objective, 3, False)


@pytest.mark.slow
def test_views_of_one_image_are_estimated_without_a_class(images, tmp_path, finished):
    """The run also estimates I_class, from the same encoder's plain features."""
    assert main(job(images, tmp_path / "run", pairing="simclr")) == 0
    report = read(tmp_path / "run")
    assert (report["truth"]["entropy_bits"], report["estimate"]["upper_bits"]) == (None, None)
    views = np.load(tmp_path / "run" / "estimates" / "simclr" / "features" / "test.npz")
    assert len(views["h_x"]) == 600
    np.testing.assert_array_equal(views["labels_x"], views["labels_y"])
    assert np.abs(views["h_x"] - views["h_y"]).max() > 0
    assert len(np.load(tmp_path / "run" / "features" / "test.npz")["h"]) == 600  # plain, for the evaluation
    assert set(report["estimates"]) == {"simclr", "class"}
    assert report["measured"] == {"class": "class", "augmentation": "simclr"}
    assert report["estimates"]["class"]["entropy_bits"] == read(finished)["truth"]["entropy_bits"]


def test_images_without_labels_are_paired_by_themselves_alone(tmp_path):
    pixels, _ = draw((300,), 12, np.random.default_rng(0))
    np.savez(tmp_path / "plain.npz", images=pixels)
    config = config_files.parse(job(tmp_path / "plain.npz", tmp_path, pairing="simclr"))[0]
    parsed = parse(config)
    population, pairing = parsed.images, parsed.pairing
    assert parsed.others == ()
    assert (pairing.num_classes, population.tasks) == (None, ())


@pytest.mark.slow
def test_another_file_of_the_same_name_is_another_run(tmp_path, capsys):
    path = features(tmp_path / "h.npz")
    command = row(path, tmp_path / "run")
    assert main(command) == 0
    features(path, h=np.random.default_rng(1).normal(size=(900, 4)).astype(np.float32))
    assert main(command) == 2
    assert "was made from other data (sha256.source differ)" in capsys.readouterr().err
    restore = ["--config=configs/estimate.py:k_est=16", f"--config.restore={tmp_path / 'run'}"]
    assert main(restore) == 2
    assert "no longer what it was made from" in capsys.readouterr().err


EARLY = {
    "no encoder": (["--config=configs/encoder.py"], "no encoder is given"),
    "no checkpoint": (["--config=configs/encoder.py", "--config.encoder.path=X.npz"], "no checkpoint 'X.npz'"),
    "no such stage": (["--config=configs/images.py:encoder=lenet5", "--config.encoder.stage=B2"], "one of L0, L1"),
    "images too small": (["--config=configs/images.py:encoder=lenet5,size=3"], "these have 3 pixels"),
    "another pairing's K": (["--config=configs/images.py:pairing=simclr,k_est=512"], "or leave rare classes out"),
    "another pairing's name": (["--config=configs/images.py", "--config.estimate.extra_pairings=('kind',)"], "'kind'"),
}


@pytest.mark.parametrize("case", EARLY)
def test_what_is_wrong_is_told_before_anything_is_made(images, tmp_path, capsys, case):
    arguments, message = EARLY[case]
    source = [f"--config.data.source=npz:{images}", f"--workdir={tmp_path / 'run'}"]
    assert main([*arguments, *source]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_an_encoder_that_is_given_is_not_trained_with_negatives(images, tmp_path, capsys):
    given = ("--config.data.negatives=own", "--config.encoder.path=X.npz")
    assert main(encoder(f"npz:{images}", tmp_path / "run", *given)) == 2
    assert "the encoder is given; leave them out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_public_checkpoint_is_encoded_as_its_source_normalized(tmp_path, capsys):
    rng, arrays = np.random.default_rng(0), {}
    for part in COUNTS:
        arrays[f"images{part}"], arrays[f"labels{part}"] = draw((400, 400) if part == "" else (100, 100), 32, rng)
    np.savez(tmp_path / "images.npz", **arrays)
    golden = np.load(Path(__file__).parent / "golden" / "resnet18.npz")
    weights = {key.removeprefix("weights/"): golden[key] for key in golden.files if key.startswith("weights/")}
    np.savez(tmp_path / "checkpoint.npz", **weights)
    source, path = f"npz:{tmp_path / 'images.npz'}", f"--config.encoder.path={tmp_path / 'checkpoint.npz'}"
    assert main(encoder(source, tmp_path / "run", path)) == 0
    report = read(tmp_path / "run")
    assert report["in_training"] is None
    assert not (tmp_path / "run" / "train").exists()
    options = pretrained.load(tmp_path / "checkpoint.npz")
    rgb = np.repeat(arrays["images_test"][..., None], 3, axis=3)
    h = options.apply(options.variables, jnp.asarray(rgb))
    np.testing.assert_allclose(np.load(tmp_path / "run/features/test.npz")["h"], h, rtol=1e-4, atol=1e-4)

    assert main(encoder(source, tmp_path / "B1", path, "--config.encoder.stage=B1")) == 0
    h = options.apply(options.variables, jnp.asarray(rgb), stages=True)["B1"]
    np.testing.assert_allclose(np.load(tmp_path / "B1/features/test.npz")["h"], h, rtol=1e-4, atol=1e-4)
    assert main(encoder(source, tmp_path / "B9", path, "--config.encoder.stage=B9")) == 2
    assert "encoder.stage='B9' is unknown; choose one of B0, B1" in capsys.readouterr().err


def features(path: Path, **change) -> Path:
    rng = np.random.default_rng(0)
    arrays = {"h": rng.normal(size=(900, 4)).astype(np.float32), "labels": np.repeat([3, 5, 7], 300)}
    arrays["h"][:, :3] += 30 * np.eye(3, dtype=np.float32).repeat(300, axis=0)
    arrays |= change
    np.savez(path, **{name: x for name, x in arrays.items() if x is not None})
    return path


def row(path: Path, folder: Path, *arguments: str) -> list[str]:
    return encoder(f"features:{path}", folder, *arguments)


@pytest.mark.slow
def test_a_file_of_features_gives_the_same_row_without_an_encoder(tmp_path):
    path = features(tmp_path / "h.npz")
    measured = ("--config.evaluate.metrics=True", "--config.evaluate.mlp_steps=100")
    assert main(row(path, tmp_path / "run", *measured)) == 0
    report = read(tmp_path / "run")
    assert report["estimate"]["upper_bits"] == pytest.approx(math.log2(3))
    assert report["linear"]["class"] == 1.0
    assert report["metrics"]["knn_accuracy"] == 1.0
    assert report["metrics"]["class_tolerance"] == pytest.approx(1.0, abs=0.01)
    assert not (tmp_path / "run" / "figures" / "pairs.png").exists()


BAD = {
    "rows": ({"labels": np.zeros(899, int)}, "900 train rows, 899 labels: expected as many"),
    "not finite": (
        {"h": np.full((900, 4), np.nan, np.float32)},
        r"train h has 3,600 NaN or infinite values, the first",
    ),
    "no labels": ({"labels": None}, "900 train rows of h and no labels"),
    "no h": ({"h": None}, "holds labels: expected h, labels"),
    "integers": ({"h": np.zeros((900, 4), int)}, r"h of dtype int64, shape \(900, 4\): expected floats"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_of_features_is_one_line_and_exit_code_2(case, tmp_path, capsys):
    change, message = BAD[case]
    if change.get("h", 0) is None:
        np.savez(tmp_path / "h.npz", labels=np.zeros(3, int))
    else:
        features(tmp_path / "h.npz", **change)
    assert main(row(tmp_path / "h.npz", tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", ["data.pairing=simclr", "estimate.stream=True"])
def test_features_have_no_images_to_augment_or_to_stream(tmp_path, capsys, override):
    path = features(tmp_path / "h.npz")
    assert main(row(path, tmp_path / "run", f"--config.{override}")) == 2
    assert "has none; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
