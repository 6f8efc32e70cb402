"""Images of binary patches: pixels against a loop, bits that can be read off, pairs of known MI."""

import itertools
import math
import time

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from mirigor_jax.data import cdp, pairing, patches
from mirigor_jax.errors import InputError

# Arguments of images whose grid fills the image, leaves pixels over, has colors, or has more words than eight.
CASES = {
    "gray": {"size": 32, "bits": 10},
    "cells that leave pixels over": {"size": 34, "bits": 5, "grid": (2, 3)},
    "three channels": {"size": 24, "bits": 11, "grid": (2, 2), "channels": 3},
    "a shift": {"size": 32, "bits": 7, "grid": (2, 4), "jitter": 3},
    "sixteen bits": {"size": 20, "bits": 16, "mixing": 0.9},
}


@pytest.fixture(params=CASES)
def images(request):
    return patches.make(**CASES[request.param], seed=3)


def rendered(images, bits, nuisance):
    """One image, pixel by pixel."""
    strip, first, down, right = nuisance
    result = images.backgrounds[strip, first : first + images.size].astype(int)
    rows, columns = images.grid
    height, width = (round(0.75 * (images.size // cells)) for cells in images.grid)
    slots = itertools.product(range(rows), range(columns), range(images.channels))
    for bit, (row, column, channel) in zip(bits, slots, strict=False):
        for y, x in itertools.product(range(height), range(width)):
            pixel = row * (images.size // rows) + down + y, column * (images.size // columns) + right + x
            for one in range(3) if images.channels == 1 else [channel]:
                result[(*pixel, one)] += bit * images.light
    return result


def test_pixels_are_those_of_a_loop(images):
    words = np.random.default_rng(0).integers(2**32, size=(6, images.words), dtype=np.uint32)
    bits, nuisances = images.draw(words)
    for image, *given in zip(images.render(bits, nuisances), bits, nuisances, strict=True):
        np.testing.assert_array_equal(image, rendered(images, *given))


def test_an_image_shows_its_bits(images):
    """A lit pixel is brighter than any that is not, so each bit can be read off one pixel of its patch."""
    dark = patches.make(size=images.size, bits=images.bits, grid=images.grid, channels=images.channels, mixing=0.45)
    batch = dark.images(0, 200, seed=1)
    rows, columns = dark.grid
    cell = dark.size // rows, dark.size // columns
    centers = batch["image"][:, cell[0] // 2 :: cell[0], cell[1] // 2 :: cell[1]][:, :rows, :columns, : dark.channels]
    np.testing.assert_array_equal(centers.reshape(200, -1)[:, : dark.bits] >= dark.light, batch["attributes"])


def test_bits_are_uniform_and_independent(images):
    bits, _ = images._drawn(images._words(2, 7, 0, 40_000))
    for j, k in itertools.pairwise(range(images.bits)):
        assert chisquare(np.bincount(2 * bits[:, j] + bits[:, k], minlength=4)).pvalue > 1e-4
    assert abs(np.corrcoef(bits.T) - np.eye(images.bits)).max() < 5 / len(bits) ** 0.5


def test_nuisances_do_not_depend_on_the_bits(images):
    bits, nuisances = images._drawn(images._words(4, 7, 0, 40_000))
    seen = np.corrcoef(np.concatenate([bits, nuisances[:, :2]], axis=1).T)[: images.bits, images.bits :]
    assert abs(seen).max() < 5 / len(bits) ** 0.5


def test_an_image_depends_on_its_index_alone(images):
    shared = pairing.parse("all", images.space, mi_bits=0.4 * images.bits)
    for read in (
        lambda seed, stream, *rows: images.images(*rows, seed=seed, stream=stream),
        lambda *index: shared.draw(images, *index),
    ):
        whole = read(5, 2, 10, 40)
        parts = [read(5, 2, *cut) for cut in itertools.pairwise([10, 11, 17, 40])]
        for name, values in whole.items():
            np.testing.assert_array_equal(values, np.concatenate([part[name] for part in parts]))
            for seed, stream in [(5, 3), (6, 2)]:
                assert (read(seed, stream, 10, 40)[name] != values).any()


@pytest.mark.parametrize("bits", [1, 2, 9, 16])
def test_views_that_share_all_bits_have_an_mi_of_all_bits(bits):
    images = patches.make(size=16, bits=bits)
    same = pairing.parse("all", images.space)
    batch = same.draw(images, 0, 3, 0, 50)
    assert same.truth_bits == same.entropy_bits == bits
    np.testing.assert_array_equal(batch["attributes_x"], batch["attributes_y"])
    assert (batch["x"] != batch["y"]).any(axis=(1, 2, 3)).all()  # other backgrounds
    some = pairing.parse("b1", images.space)
    assert some.truth_bits == 1


def test_a_dial_flips_each_bit_at_the_rate_of_its_channel():
    images = patches.make(size=16, bits=12)
    dialed = pairing.parse("all", images.space, mi_bits=6.0)
    flip = dialed.epsilon[0]
    assert 12 * (1 + flip * math.log2(flip) + (1 - flip) * math.log2(1 - flip)) == pytest.approx(6)
    batch = dialed.draw(images, 0, 3, 0, 3_000)
    flipped = batch["attributes_x"] != batch["attributes_y"]
    for one in flipped.T:
        assert binomtest(int(one.sum()), len(one), flip).pvalue > 1e-4
    assert abs(np.corrcoef(flipped.T) - np.eye(12)).max() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 17}, "bits=17: expected 1 to 16"),
        ({"bits": 10, "grid": (3, 3)}, "bits=10: a grid of 3×3 cells with 1 channels has 9 patches"),
        ({"channels": 2}, "channels=2: expected 1"),
        ({"grid": (20, 1)}, r"grid \(20, 1\) on 64 pixels: expected at least"),
        ({"size": 15}, "image size 15: expected an even number"),
    ],
)
def test_impossible_arguments_are_named(options, message):
    with pytest.raises(InputError, match=message):
        patches.make(**options)


def test_cdp_has_up_to_twelve_bits():
    images = cdp.make(size=96, colors=16, digits=range(8), grid=(4, 8))
    same = pairing.parse("all", images.space)
    assert same.truth_bits == pytest.approx(12)
    batch = same.draw(images, 0, 3, 0, 64)
    np.testing.assert_array_equal(same.classes(batch["attributes_x"]), same.classes(batch["attributes_y"]))
    assert same.num_classes == 4096


@pytest.mark.slow
def test_rendering_is_at_least_half_as_fast_as_cdps():
    """Measured in turns, since other programs share the processor."""
    kinds = {"cdp": cdp.make(size=64), "patches": patches.make(size=64, bits=16)}
    seconds = {name: [] for name in kinds}
    for start in range(0, 8 * 1024, 1024):
        for name, images in kinds.items():
            began = time.perf_counter()
            images.images(start, start + 1024)
            seconds[name].append(time.perf_counter() - began)
    assert np.median(seconds["patches"]) < 2 * np.median(seconds["cdp"])
