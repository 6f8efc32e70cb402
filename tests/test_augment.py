"""The augmentations against torchvision's results and the distribution of its random crops, and their use of keys."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirigor_jax.data import augment
from mirigor_jax.data.augmentation import Augmentation
from mirigor_jax.errors import InputError

OFF = Augmentation(crop=0.0, flip=0.0, jitter=0.0, gray=0.0, blur=0.0)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(Path(__file__).parent / "golden" / "augment.npz"))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (256, 20, 20, 3), dtype=np.uint8)


def augmented(images, augmentation, seed=0):
    run = jax.jit(partial(augment.augment, augmentation=augmentation))
    return np.asarray(run(jnp.asarray(images), keys(len(images), seed)))


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@pytest.mark.parametrize("name", ["crop", "jitter", "blur"])
def test_each_does_what_torchvision_does(golden, name):
    x = jnp.asarray(golden["images"], jnp.float32) / 255
    results = {
        "crop": lambda: augment.resized_crop(x, *jnp.asarray(golden["crops"].T)),
        "jitter": lambda: augment.jitter(x, jnp.asarray(golden["factors"], jnp.float32), jnp.asarray(golden["orders"])),
        "blur": lambda: augment.blur(x, jnp.asarray(golden["sigmas"], jnp.float32)),
    }[name]()
    np.testing.assert_allclose(results, golden[name], atol=2e-5)


@pytest.mark.slow
def test_crops_are_spread_as_torchvision_spreads_them(golden):
    draws = jax.random.uniform(jax.random.key(0), (20_000, 22))
    top, left, height, width = map(np.asarray, augment.choose_crop(draws[:, :20], draws[:, 20:], 64, 0.08))
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 64
    levels = np.linspace(0.1, 0.9, 9)
    # Quantiles of 20,000 draws are within 0.01 of their level in rank, four standard deviations.
    for name, mine in (("areas", height * width / 64**2), ("aspects", width / height)):
        mine, theirs = mine[None, :], golden[name][:, None]
        below = np.mean(mine < theirs, axis=1) + np.mean(mine == theirs, axis=1) / 2
        np.testing.assert_allclose(below, levels, atol=0.02, err_msg=name)
    # A crop's place is uniform in what its size leaves.
    free = height < 64
    np.testing.assert_allclose(np.mean((top / np.maximum(64 - height, 1))[free]), 0.5, atol=0.01)


@pytest.mark.slow
def test_where_no_crop_fits_the_image_stays_whole():
    tries = jnp.array([[0.999] * 10 + [0.0] * 10])  # nearly the whole area at aspect 3/4: too high
    assert [int(v[0]) for v in augment.choose_crop(tries, jnp.full((1, 2), 0.9), 64, 0.08)] == [0, 0, 64, 64]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strength", "share"),
    [("flip", 0.3, 0.3), ("jitter", 1.0, 0.8), ("gray", 0.2, 0.2), ("blur", 0.5, 0.5), ("crop", 0.92, 1.0)],
)
def test_each_happens_as_often_as_it_is_asked_to(images, name, strength, share):
    images = np.concatenate([images] * 4)
    changed = augmented(images, replace(OFF, **{name: strength}))
    assert changed.min() >= 0
    assert changed.max() <= 1 + 1e-6
    rate = np.mean(np.any(np.abs(changed - images / 255) > 1e-4, axis=(1, 2, 3)))
    assert abs(rate - share) <= 4 * np.sqrt(share * (1 - share) / len(images)) + 0.005


def test_flip_and_gray_are_what_they_say(golden, images):
    flipped = augmented(images, replace(OFF, flip=1.0))
    np.testing.assert_allclose(flipped, images[:, :, ::-1] / 255, atol=1e-6)
    np.testing.assert_allclose(augmented(golden["images"], replace(OFF, gray=1.0)), golden["grey"], atol=1e-5)


@pytest.mark.slow
def test_jitter_strength_is_the_range_of_the_factors():
    # Images of one gray: contrast, saturation and hue do nothing, so what is left is the brightness factor.
    images = np.full((2000, 4, 4, 3), 100, np.uint8)
    result = augmented(images, replace(OFF, jitter=0.5))[:, 0, 0, 0] / (100 / 255)
    changed = result[np.abs(result - 1) > 1e-6]
    assert 0.6 <= changed.min() < 0.61
    assert 1.39 < changed.max() <= 1.4001
    np.testing.assert_allclose(changed.mean(), 1.0, atol=4 * 0.8 / np.sqrt(12 * len(changed)))


@pytest.mark.slow
def test_an_image_depends_on_its_key_alone(images):
    run = jax.jit(partial(augment.augment, augmentation=Augmentation()))
    whole = np.asarray(run(jnp.asarray(images), keys(256)))
    order = np.random.default_rng(1).permutation(256)
    np.testing.assert_allclose(run(jnp.asarray(images[order]), keys(256)[order]), whole[order], atol=1e-6)
    assert np.mean(np.any(augmented(images, Augmentation(), seed=1) != whole, axis=(1, 2, 3))) > 0.99


def test_strengths_outside_their_ranges_are_refused():
    for name, wrong in (("crop", 1.0), ("flip", -0.1), ("jitter", 3.0), ("blur", 1.5)):
        with pytest.raises(InputError, match=rf"^{name}=.*expected 0"):
            replace(OFF, **{name: wrong})
