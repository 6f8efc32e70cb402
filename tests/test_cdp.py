import dataclasses
import gzip
import itertools
import math
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy.ndimage import gaussian_filter
from scipy.stats import chi2_contingency, chisquare, f_oneway, norm, spearmanr

from mirigor_jax.data import cdp, pairing
from mirigor_jax.data.cdp_oracle import read as read_attributes
from mirigor_jax.data.draws import random_words
from mirigor_jax.data.sources.backgrounds import backgrounds
from mirigor_jax.data.sources.idx import read_labeled_idx
from mirigor_jax.errors import InputError


@pytest.fixture(scope="module")
def paper():
    return cdp.make()


@pytest.fixture(scope="module")
def large():
    """Unequal alphabets, 8.6 bits, in the smallest cells there are."""
    return cdp.make(size=40, colors=8, digits=(7, 0, 3), grid=(4, 4), seed=3)


def write_idx(path, array):
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())
    return path


def test_the_papers_alphabets(paper):
    assert paper.names == ("color", "digit", "position")
    assert paper.sizes == (4, 4, 4)
    assert paper.value_names == (
        ("Red", "Green", "Blue", "White"),
        ("2", "3", "4", "5"),
        ("upper left", "upper right", "lower left", "lower right"),
    )


def test_larger_alphabets_pass_six_bits(large):
    assert large.sizes == (8, 3, 16)
    assert large.value_names[2][6] == "row 2 column 3"
    assert pairing.parse("all", large.space).entropy_bits == pytest.approx(math.log2(384))


def test_colors_are_far_apart():
    for one, other in itertools.combinations(cdp.COLORS.values(), 2):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) >= 127


@pytest.mark.parametrize("images", ["paper", "large"])
def test_attributes_are_uniform_and_independent(images, request):
    images = request.getfixturevalue(images)
    attributes = images.images(0, 40_000, seed=1, stream=0)["attributes"]
    cells = np.ravel_multi_index(attributes.T, images.sizes)
    assert chisquare(np.bincount(cells, minlength=math.prod(images.sizes))).pvalue > 0.01
    following = chi2_contingency(np.histogram2d(attributes[:-1, 1], attributes[1:, 1], bins=images.sizes[1])[0])
    assert following.pvalue > 0.01


def test_an_image_depends_on_its_index_alone(paper):
    shared = pairing.parse("color+digit", paper.space, mi_bits=2.5)
    for read in (
        lambda seed, stream, *rows: paper.images(*rows, seed=seed, stream=stream),
        lambda *index: shared.draw(paper, *index),
    ):
        whole = read(5, 2, 100, 400)
        cuts = [100, 101, 117, 300, 400]
        parts = [read(5, 2, start, stop) for start, stop in itertools.pairwise(cuts)]
        for name, values in whole.items():
            np.testing.assert_array_equal(values, np.concatenate([part[name] for part in parts]))
            for seed, stream in [(5, 3), (6, 2)]:
                assert (read(seed, stream, 100, 400)[name] != values).any()


@pytest.mark.parametrize(
    "options", [{"size": 32}, {"size": 64}, {"size": 50, "colors": 3, "digits": (9,), "grid": (1, 3)}]
)
def test_an_image_shows_a_digit_blended_over_its_background(options):
    """The image equals the blend computed pixel by pixel in floating point."""
    images = cdp.make(mixing=0.6, seed=4, **options)
    size, (_, columns) = images.size, images.grid
    strips = backgrounds("spectrum", count=len(images.backgrounds), size=size, seed=4)
    _, variants, height, width = images.coverage[..., ::3].shape
    rng = np.random.default_rng(0)
    cell_height, cell_width = size // images.grid[0], size // columns
    ranges = [len(strips), size // 2, variants, cell_height - height + 1, cell_width - width + 1]
    attributes, nuisances = rng.integers(0, images.sizes, (6, 3)), rng.integers(0, [*ranges, 1, 1], (6, 7))
    rendered = images.render(attributes, nuisances)
    for n, ((color, digit, position), (strip, offset, variant, down, right, *_)) in enumerate(
        zip(attributes, nuisances, strict=True)
    ):
        expected = 0.6 * strips[strip, offset : offset + size].astype(float)
        ink = cdp.COLORS[images.value_names[0][color]]
        for i, j, channel in itertools.product(range(height), range(width), range(3)):
            row, column = position // columns * cell_height + down + i, position % columns * cell_width + right + j
            a = images.coverage[digit, variant, i, 3 * j] / 128
            expected[row, column, channel] = a * ink[channel] + (1 - a) * expected[row, column, channel]
        assert np.abs(rendered[n] - expected).max() <= 1


@pytest.mark.parametrize(("jitter", "pixels"), [(0.0, 0), (0.3, 3), (1.0, 10)])
def test_without_other_nuisances_the_images_are_those_of_earlier_versions(jitter, pixels):
    """Bit for bit, from the words that an image's index gives, as versions up to e40c5db made them."""
    images = cdp.make(jitter=jitter)
    words = random_words(4, 2, 10, 40)
    expected = []
    steps = [min(4, pixels), min(10, pixels)]  # a digit's box is 28×22 in a cell of 32×32
    ranges = [4, 4, 4, len(images.backgrounds), 64, 16, steps[0] + 1, steps[1] + 1]
    for row in words.tolist():
        color, digit, position, strip, offset, variant, down, right = (
            word * values >> 32 for word, values in zip(row, ranges, strict=True)
        )
        image = images.backgrounds[strip, offset : offset + 64].astype(int)
        top, left = position // 2 * 32 + down + (4 - steps[0]) // 2, position % 2 * 32 + right + (10 - steps[1]) // 2
        box = image[top : top + 28, left : left + 22]
        a = images.coverage[digit, variant, :, ::3].astype(int)[..., None]
        box += ((np.array(cdp.COLORS[images.value_names[0][color]]) - box) * a + 64) // 128
        expected.append(image)
    np.testing.assert_array_equal(images.images(10, 40, seed=4, stream=2)["image"], expected)


@pytest.mark.parametrize("name", ["clutter", "blur", "noise"])
def test_a_nuisance_keeps_attributes_and_every_other_draw(name):
    """Another strength of one nuisance changes what it does, not what is drawn; it grows with the strength."""
    changes = []
    for strength in (0.0, 0.3, 1.0):
        batch = cdp.make(size=32, **{name: strength}).images(3, 203)
        changes.append(batch)
    for one in changes[1:]:
        np.testing.assert_array_equal(one["attributes"], changes[0]["attributes"])
    weak, strong = (np.abs(one["image"].astype(float) - changes[0]["image"]).mean() for one in changes[1:])
    assert 0 < weak < strong


@pytest.mark.parametrize("name", ["clutter", "blur", "noise", "jitter"])
def test_an_image_with_a_nuisance_depends_on_its_index_alone(name):
    images = cdp.make(size=32, **{name: 1.0})
    whole = images.images(0, 300, seed=5, stream=2)["image"]
    for start, stop in ((0, 1), (127, 129), (250, 300)):
        np.testing.assert_array_equal(images.images(start, stop, seed=5, stream=2)["image"], whole[start:stop])
    rows = np.array([250, 3, 128])
    np.testing.assert_array_equal(images.finite(5, 2, 300).read(rows), whole[rows])
    assert (images.images(0, 300, seed=5, stream=3)["image"] != whole).any()


@pytest.mark.parametrize("name", ["clutter", "blur", "noise"])
def test_where_attributes_may_be_hidden_their_mi_is_an_upper_end_only(name):
    for strength, truth in ((0.0, 3.3), (0.1, None)):
        space = cdp.make(size=32, **{name: strength}).space
        shared, noisy = pairing.parse("all", space), pairing.parse("all", space, mi_bits=3.3)
        assert (shared.truth_bits, shared.upper_bits) == (None if truth is None else 6.0, 6.0)
        assert noisy.truth_bits == (None if truth is None else pytest.approx(truth))
        assert noisy.upper_bits == pytest.approx(3.3)
    assert pairing.parse("all", cdp.make(size=32, jitter=1.0).space).truth_bits == 6.0


def test_noise_is_gaussian_and_of_its_strength():
    """On a gray that is never clipped, values minus gray have the stated deviation and a Gaussian's quantiles."""
    images = cdp.make(size=32, noise=0.25)
    gray = dataclasses.replace(
        images, coverage=np.zeros_like(images.coverage), backgrounds=np.full_like(images.backgrounds, 128)
    )
    values = gray.images(0, 400)["image"].astype(float) - 128
    assert values.std() == pytest.approx(32, rel=0.01)
    assert abs(values.mean()) < 0.2
    np.testing.assert_allclose(
        np.quantile(values, [0.1, 0.25, 0.75, 0.9]), 32 * norm.ppf([0.1, 0.25, 0.75, 0.9]), atol=1
    )
    flat = values.reshape(400, -1)
    # Neighboring values, and the same value of two images, are not correlated.
    for one, other in ((flat[:, :-1], flat[:, 1:]), (flat[:-1], flat[1:]), (flat[::2], flat[1::2])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / math.sqrt(one.size)


def test_blur_is_gaussian_and_as_wide_as_stated():
    """Each image is scipy's Gaussian filter, at one of sixteen widths up to an eighth of the cell, of the sharp one."""
    sharp = cdp.make(size=32).images(0, 60)["image"].astype(float)
    blurred = cdp.make(size=32, blur=1.0).images(0, 60)["image"]
    widths = 2.0 * (np.arange(16) + 0.5) / 16
    chosen = []
    for before, after in zip(sharp, blurred, strict=True):
        errors = [np.abs(gaussian_filter(before, (width, width, 0), mode="nearest") - after).max() for width in widths]
        chosen.append(int(np.argmin(errors)))
        assert min(errors) <= 1.5
    assert len(set(chosen)) > 10


def test_clutter_lies_behind_the_digit_and_follows_its_strength():
    """On black, a pixel of a digit shows a share 1 - a of what lies behind; each of 16 pieces has the probability."""
    for strength in (0.25, 1.0):
        plain, cluttered = (cdp.make(size=32, mixing=0.0, clutter=c) for c in (0.0, strength))
        before, after = (one.images(0, 400)["image"].astype(float) for one in (plain, cluttered))
        a = before.max(3, keepdims=True) / 255  # each of the four colors has a channel at 255
        assert (after >= before - 1).all()
        assert (after <= before + (1 - a) * 255 + 1).all()
        piece = (cluttered.pieces[..., ::3] > 0).mean() * 7 * 5 / 32**2  # a piece's share of the image
        shown = (after.max(3) > 0)[a[..., 0] == 0].mean()
        assert shown == pytest.approx(1 - (1 - strength * piece) ** 16, rel=0.15)


def test_pieces_and_noise_do_not_depend_on_attributes():
    """With all nuisances, the corner opposite to the digit has one distribution for every digit and color."""
    images = cdp.make(size=32, clutter=0.7, blur=0.5, noise=0.3)
    batch = images.images(0, 8000, seed=2, stream=0)
    chosen = batch["attributes"][:, 2] == 0
    opposite = batch["image"][chosen, 24:, 24:].reshape(chosen.sum(), -1)
    for values in (opposite.mean(1), opposite.std(1)):
        for a in (0, 1):
            of_value = batch["attributes"][chosen, a]
            assert f_oneway(*[values[of_value == value] for value in range(4)]).pvalue > 0.01


@pytest.mark.parametrize(("name", "most"), [("mixing", 0), ("clutter", 0), ("blur", 4), ("noise", 4), ("jitter", 0)])
def test_an_oracle_reads_the_attributes_at_every_nuisance_s_full_strength(name, most):
    images = cdp.make(size=32, **{name: 1.0})
    batch = images.images(0, 512)
    assert (read_attributes(images, batch["image"]) != batch["attributes"]).any(1).sum() <= most


@pytest.mark.parametrize("options", [{"size": 32, "grid": (3, 3)}, {"size": 48, "grid": (1, 3), "colors": 12}])
def test_the_oracle_reads_other_alphabets_and_grids(options):
    images = cdp.make(**options)
    batch = images.images(0, 200)
    assert (read_attributes(images, batch["image"]) != batch["attributes"]).any(1).mean() <= 0.02


@pytest.mark.parametrize("options", [{}, {"size": 32, "grid": (3, 3)}, {"size": 64, "grid": (1, 4)}, {"size": 46}])
def test_a_digit_stays_inside_its_cell(options):
    images = cdp.make(mixing=0.0, **options)
    batch = images.images(0, 3000, stream=0)
    rows, columns = images.grid
    height, width = images.size // rows, images.size // columns
    ink = batch["image"].max(3)
    for n, position in enumerate(batch["attributes"][:, 2]):
        top, left = position // columns * height, position % columns * width
        assert ink[n].sum() == ink[n, top : top + height, left : left + width].sum() > 0


def test_digits_are_large_soft_edged_and_varied(paper):
    a = paper.coverage[..., ::3]
    tall, wide = [(a > 16).any(axis).sum(-1) for axis in (3, 2)]
    assert tall.min() >= 22
    assert wide.min() >= 16
    assert a.min() == 0
    assert (a.max((2, 3)) == 128).all()
    assert 0.2 < ((a > 0) & (a < 128)).mean() < 0.6
    assert len(np.unique(a.reshape(-1, a[0, 0].size), axis=0)) == 4 * 16


def test_each_digit_looks_like_itself():
    """The nearest of the ten upright digits, drawn plainly and stretched to the same box, is the variant's digit."""

    def framed(ink):
        box = ink.point(lambda value: 255 * (value > 32)).getbbox()
        return np.asarray(ink.resize((16, 24), box=box).filter(ImageFilter.GaussianBlur(1)), float).ravel()

    def drawn(digit):
        page = Image.new("L", (200, 200))
        ImageDraw.Draw(page).text((50, 20), str(digit), fill=255, font=ImageFont.load_default(size=120))
        return framed(page)

    digits = [5, 1, 9, 0, 2, 4, 3, 8, 7, 6]
    coverage = cdp.make(digits=digits).coverage[:, :, :, ::3]
    templates = np.array([drawn(digit) for digit in digits])
    for index, variants in enumerate(coverage):
        seen = np.array([framed(Image.fromarray(np.uint8(v))) for v in variants])
        match = np.corrcoef(seen, templates)[: len(seen), len(seen) :]
        assert (match.argmax(1) == index).mean() > 0.9


def test_digits_are_turned_a_little_either_way():
    """The angles of a 1's long axis, by its second moments, are uniform in ±3 degrees."""
    ones = cdp.make(digits=(1,)).coverage[0, :, :, ::3].astype(float)
    rows, columns = np.indices(ones.shape[1:]).reshape(2, -1)
    moments = [np.cov(rows, columns, aweights=one.ravel()) for one in ones]
    degrees = np.degrees([0.5 * np.arctan2(2 * m[0, 1], m[0, 0] - m[1, 1]) for m in moments])
    assert 4 < np.ptp(degrees) < 7
    assert degrees.std() == pytest.approx(6 / math.sqrt(12), rel=0.4)


def test_nuisances_are_independent_of_attributes(paper):
    batch = paper.images(0, 20_000, seed=2, stream=0)
    chosen = batch["attributes"][:, 2] == 0
    opposite = batch["image"][chosen, 32:, 32:].mean((1, 2, 3))
    for a in (0, 1):
        values = batch["attributes"][chosen, a]
        assert f_oneway(*[opposite[values == value] for value in range(4)]).pvalue > 0.01


def test_the_views_nuisances_are_independent():
    """There is one attribute value only, so anything that the views shared would be a nuisance."""
    one = {"colors": 1, "digits": (3,), "grid": (1, 1)}
    bare, whole = cdp.make(mixing=0.0, **one), cdp.make(**one)
    same_class = pairing.parse("all", bare.space)
    glyphs, images = (same_class.draw(data, 0, 0, 0, 4000) for data in (bare, whole))

    def features(view):
        ink = glyphs[view][..., 0].astype(float)
        mass = ink.sum((1, 2))
        return {
            "background": images[view][..., 2].mean((1, 2)),
            "variant": mass,
            "down": (ink.sum(2) @ np.arange(64)) / mass,
            "right": (ink.sum(1) @ np.arange(64)) / mass,
        }

    x, y = features("x"), features("y")
    for name in x:
        assert x[name].std() > 0
        for other in y:
            assert spearmanr(x[name], y[other]).pvalue > 0.001


def test_pairs_follow_their_pairing(paper):
    same_class = pairing.parse("color+position", paper.space, epsilon={"color": 0.2})
    batch = same_class.draw(paper, 7, 0, 0, 30_000)
    x, y = batch["attributes_x"], batch["attributes_y"]
    assert (x[:, 2] == y[:, 2]).all()
    assert chi2_contingency(np.histogram2d(x[:, 1], y[:, 1], bins=4)[0]).pvalue > 0.01
    expected = 30_000 / 4 * np.where(np.eye(4), 0.8, 0.2 / 3)
    assert chisquare(np.histogram2d(x[:, 0], y[:, 0], bins=4)[0].ravel(), expected.ravel()).pvalue > 0.01


def test_attributes_tell_what_is_shown():
    """On black backgrounds, the pixels of both views show the ink's color and position."""
    images = cdp.make(mixing=0.0)
    batch = pairing.parse("none", images.space).draw(images, 0, 0, 0, 500)
    for view in "xy":
        shown, attributes = batch[view], batch[f"attributes_{view}"]
        np.testing.assert_array_equal(shown.max((1, 2)), [list(cdp.COLORS.values())[c] for c in attributes[:, 0]])
        quadrants = shown.reshape(500, 2, 32, 2, 32, 3).sum((2, 4, 5)).reshape(500, 4)
        np.testing.assert_array_equal(quadrants.argmax(1), attributes[:, 2])


def test_spectrum_backgrounds_have_natural_spectra_and_no_seam():
    strips = backgrounds("spectrum", count=200, size=64, seed=0)
    assert strips.shape == (200, 127, 64, 3)
    np.testing.assert_array_equal(strips[:, 64:], strips[:, :63])
    image = strips[:, :64].mean(3)
    power = (np.abs(np.fft.fft2(image)) ** 2).mean(0)[0, 1:17]
    slope = np.polyfit(np.log(np.arange(1, 17)), np.log(power) / 2, 1)[0]
    assert -1.5 < slope < -0.8
    step = np.abs(np.diff(strips.astype(float), axis=1)).mean((0, 2, 3))
    assert step[63] < 1.1 * step.mean()


def test_backgrounds_from_a_folder_of_photographs(tmp_path):
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (90, 60), (200, 0, 0)).save(tmp_path / "red.png")
    Image.new("L", (40, 90), 100).save(tmp_path / "deep" / "gray.JPG", "jpeg")
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.warns(UserWarning, match="left out 1 .txt files"):
        images = cdp.make(size=32, background=f"folder:{tmp_path}", mixing=0.5)
    colors, counts = np.unique(images.backgrounds[:, ::15, ::15].reshape(-1, 3), axis=0, return_counts=True)
    assert colors.tolist() == [[50, 50, 50], [100, 0, 0]]
    assert counts[0] == counts[1]


def test_photographs_are_cropped_in_proportion(tmp_path):
    """A circle stays round, and crops show different parts."""
    photograph = Image.new("RGB", (400, 300))
    ImageDraw.Draw(photograph).ellipse((140, 90, 260, 210), fill=(255, 255, 255))
    photograph.save(tmp_path / "circle.png")
    strips = backgrounds(f"folder:{tmp_path}", count=50, size=64, seed=0)
    lit = strips[..., 0] > 127
    inside = ~(lit[:, 0].any(1) | lit[:, -1].any(1) | lit[:, :, 0].any(1) | lit[:, :, -1].any(1)) & lit.any((1, 2))
    heights, widths = lit[inside].any(2).sum(1), lit[inside].any(1).sum(1)
    assert inside.sum() >= 5
    assert np.abs(heights - widths).max() <= 2
    assert len(np.unique(strips, axis=0)) == 50


def test_backgrounds_from_a_tfds_set():
    with tfds.testing.mock_data(num_examples=5):
        assert backgrounds("tfds:mnist", count=8, size=32, seed=0).shape == (8, 48, 32, 3)
        with pytest.raises(InputError, match=r"'ag_news_subset' has .* no image"):
            backgrounds("tfds:ag_news_subset", count=8, size=32, seed=0)
    with pytest.raises(InputError, match="cannot find 'nothing_of_this_name'"):
        backgrounds("tfds:nothing_of_this_name", count=8, size=32, seed=0)


@pytest.mark.parametrize("zipped", [False, True])
def test_handwritten_digits_from_idx_files(tmp_path, zipped):
    """A "3" that is a bar and a "5" that is a block, of different sizes in the file, fill the box in proportion."""
    images, labels = np.zeros((40, 28, 28)), np.arange(40) % 2 * 2 + 3
    images[::2, 4:24, 10:14] = 255
    images[1::2, 10:20, 8:18] = 255
    paths = [
        write_idx(tmp_path / "t-images-idx3-ubyte", images),
        write_idx(tmp_path / "t-labels-idx1-ubyte", labels),
    ]
    if zipped:
        for path in paths:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    name = paths[0].name + ".gz" * zipped
    coverage = cdp.make(digits=(5, 3), glyphs=f"idx:{tmp_path / name}").coverage[..., ::3]
    assert coverage.shape == (2, 20, 28, 22)
    tall, wide = [(coverage > 64).any(axis).sum(-1) for axis in (3, 2)]
    assert (np.abs(tall[0] - wide[0]) <= 1).all()
    assert (np.abs(tall[1] - 5 * wide[1]) <= 4).all()
    assert (tall[1] >= 22).all()
    np.testing.assert_array_equal(read_labeled_idx(tmp_path / name)[0], images)


def test_a_broken_background_is_named(tmp_path):
    with pytest.raises(InputError, match=r"folder .*missing is not a folder"):
        cdp.make(background=f"folder:{tmp_path / 'missing'}")
    with pytest.raises(InputError, match="holds no photograph"):
        cdp.make(background=f"folder:{tmp_path}")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 90, 3), np.uint8)).save(tmp_path / "whole.jpg")
    broken = tmp_path / "broken.jpg"
    for content in (b"no image at all", (tmp_path / "whole.jpg").read_bytes()[:3000]):
        broken.write_bytes(content)
        with pytest.raises(InputError, match=r"broken\.jpg is a broken image") as error:
            cdp.make(background=f"folder:{tmp_path}")
        assert "\n" not in str(error.value)


def test_a_broken_idx_file_is_named(tmp_path):
    images = write_idx(tmp_path / "t-images-idx3-ubyte", np.zeros((10, 28, 28)))
    labels = write_idx(tmp_path / "t-labels-idx1-ubyte", np.arange(9))
    glyphs = f"idx:{images}"
    with pytest.raises(InputError, match=r"\(10, 28, 28\) .*\(9,\)"):
        cdp.make(glyphs=glyphs)
    write_idx(labels, np.full(10, 2))
    with pytest.raises(InputError, match=r"lacks a digit of \(2, 3, 4, 5\): choose from \[2\]"):
        cdp.make(glyphs=glyphs)
    labels.unlink()
    with pytest.raises(InputError, match=r"no IDX file .*t-labels-idx1-ubyte"):
        cdp.make(glyphs=glyphs)

    whole = images.read_bytes()
    for content, message in [
        (whole[:-1], "expected 7856 bytes, found 7855"),
        (whole[:9], "expected 16 bytes, found 9"),
        (b"\x89PNG\r\n", "begins with 89 50 4e, not 00 00 08"),
        (gzip.compress(whole)[:-20], "not a whole gzip file"),
        (b"", "begins with nothing"),
    ]:
        images.write_bytes(content)
        with pytest.raises(InputError, match=f"t-images-idx3-ubyte .*{message}") as error:
            cdp.make(glyphs=glyphs)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 65}, "image size 65: expected an even number of at least 32"),
        ({"size": 30}, "image size 30"),
        ({"colors": 17}, "colors=17: expected 1 to 16"),
        ({"colors": 0}, "colors=0"),
        ({"digits": (2, 3, 2)}, r"digits \(2, 3, 2\): .*each once"),
        ({"digits": (10,)}, r"digits \(10,\): .* 0 to 9"),
        ({"digits": ()}, r"digits \(\)"),
        ({"size": 32, "grid": (4, 4)}, r"grid \(4, 4\) on 32 pixels: .*at least 10 pixels"),
        ({"grid": (0, 2)}, r"grid \(0, 2\)"),
        ({"mixing": 1.5}, "mixing=1.5"),
        ({"clutter": -0.1}, "clutter=-0.1: expected 0 to 1"),
        ({"blur": 1.5}, "blur=1.5: expected 0 to 1"),
        ({"noise": math.nan}, "noise=nan: expected 0 to 1"),
        ({"jitter": 3.0}, "jitter=3.0: expected 0 to 1"),
        ({"background": "photos"}, "unknown background 'photos': use spectrum, folder:PATH or tfds:NAME"),
        ({"background": "folder:"}, "unknown background 'folder:'"),
        ({"glyphs": "comic"}, "unknown glyphs 'comic': use font or idx:PATH"),
    ],
)
def test_bad_options_are_explained(options, message):
    with pytest.raises(InputError, match=message) as error:
        cdp.make(**options)
    assert "\n" not in str(error.value)


def test_black_digits_on_black_are_not_shown():
    """Without a background, all images of a black digit are equal, so they do not show their digit."""
    shown = {(mixing, colors): cdp.make(size=32, mixing=mixing, colors=colors).shows_attributes
             for mixing in (0.0, 0.001, 0.5) for colors in (10, 11)}  # fmt: skip
    assert [key for key, value in shown.items() if not value] == [(0.0, 11), (0.001, 11)]
    hidden = cdp.make(size=32, mixing=0.0, colors=11)
    attributes, nuisances = hidden.draw(np.random.default_rng(0).integers(2**32, size=(64, 8), dtype=np.uint32))
    attributes[:, 0] = 10
    assert not hidden.render(attributes, nuisances).any()
    assert pairing.parse("all", hidden.space).truth_bits is None
