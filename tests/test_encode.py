"""Encoding on one device and on eight, of last batches that are not full, and with each encoder's own normalization."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirigor_jax import config_files, encoding, parallel
from mirigor_jax.data.augmentation import Augmentation
from mirigor_jax.data.pairing import SameImage
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.runs.features import encode
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import without_images
from mirigor_jax.runs.steps import init_state


def shrunk():
    small = ("encoder.name=mlp", "data.size=8", "features.batch_size=64", "data.threads=0")
    config = config_files.parse(["--config=configs/cdp.py", *(f"--config.{one}" for one in small)])[0]
    return without_images(config, SameImage())


def start(job):
    return jax.jit(partial(init_state, job))(jax.random.key(0))


@pytest.mark.parametrize(("rows", "augmentation"), [(70, None), (64, None), (3, None), (70, Augmentation())])
def test_every_row_is_encoded_once_on_one_device_as_on_eight(tmp_path, rows, augmentation):
    job = shrunk()
    images = np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)

    def read(start, stop):
        return {"image": images[start:stop], "labels": np.arange(start, stop)}

    state = start(job)
    frozen = FrozenEncoder(job.encoder(), {"params": state.params["encoder"], "batch_stats": {}})
    results = {}
    for devices in (1, 8):
        mesh = parallel.make_mesh(64, jax.devices()[:devices])
        encode(job, frozen, {"fit": (read, rows)}, RunFolder(tmp_path / str(devices)), mesh, augmentation=augmentation)
        results[devices] = dict(np.load(tmp_path / str(devices) / "fit.npz"))
    np.testing.assert_array_equal(results[8]["labels"], np.arange(rows))
    np.testing.assert_allclose(results[8]["h"], results[1]["h"], rtol=1e-5, atol=1e-6)
    if augmentation is None:
        expected = frozen.encoder.apply(frozen.variables, jnp.asarray(images / np.float32(127.5) - 1), train=False)
        np.testing.assert_allclose(results[8]["h"], expected, rtol=1e-4, atol=1e-5)


def test_images_are_normalized_as_the_encoder_s_source_did():
    job = shrunk()
    state = start(job)
    encoder, tree = job.encoder(), {"params": state.params["encoder"], "batch_stats": {}}
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = encoder.apply(tree, jnp.asarray((images / 255 - mean) / std, jnp.float32), train=False)
    h = encoding.encode_step(tree, jnp.asarray(images), encoder=encoder, mean=mean, std=std)
    np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-5)
