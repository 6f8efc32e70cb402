"""The PyTorch recipe of docs/how_to/cdp_elsewhere.md, on an export, against this package on the same images."""

import re
from pathlib import Path

import numpy as np
import pytest

import mirigor_jax as mj
from mirigor_jax.softmax import fit_linear

torch = pytest.importorskip("torch")
PAGE = (Path(__file__).parents[1] / "docs" / "how_to" / "cdp_elsewhere.md").read_text()
PAIRS, TESTED, SIDE = 4000, 2000, 32


@pytest.fixture(scope="module")
def recipe():
    """The names that the page's code defines."""
    names: dict = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)), names)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "pairs"
    mj.cdp.export(out, pairs=PAIRS, test=TESTED, size=SIDE)
    return out


@pytest.fixture(scope="module")
def arrays(folder):
    with np.load(folder / "pairs.npz") as file:
        return {name: file[name] for name in file.files}


def test_the_dataset_has_the_pairs_of_the_export(recipe, folder, arrays):
    for part, ending, n in (("train", "", PAIRS), ("test", "_test", TESTED)):
        pairs = recipe["Pairs"](folder, part)
        assert len(pairs) == n
        x, y, label, of_x, of_y = pairs[n - 1]
        for view, name in ((x, "images"), (y, "images_y")):
            assert view.shape == (3, SIDE, SIDE)
            np.testing.assert_array_equal(
                np.rint(255 * view.numpy().transpose(1, 2, 0)), arrays[f"{name}{ending}"][n - 1]
            )
        assert label == arrays[f"labels{ending}"][n - 1]
        np.testing.assert_array_equal(of_x, arrays[f"attributes{ending}"][n - 1])
        np.testing.assert_array_equal(of_y, arrays[f"attributes_y{ending}"][n - 1])


def our_accuracy(h, labels, h_test, labels_test):
    """The accuracy on test rows of this package's probe at the recipe's penalty, which leaves nothing to choose."""
    held_out = {"validation_features": h_test, "validation_labels": labels_test}
    return fit_linear(h, labels, 64, l2=[1e-3], **held_out).validation_accuracy


def test_a_linear_probe_is_as_good_as_ours_on_the_same_images(recipe, folder, arrays):
    """Both probes minimize one convex loss, here of every fourth pixel, so only solvers and data may differ."""

    def thinned(x):
        return x[..., ::4, ::4].flatten(1)

    parts = [recipe["features"](thinned, recipe["Pairs"](folder, part)) for part in ("train", "test")]
    theirs = recipe["linear_accuracy"](*parts)
    h, h_test = (arrays[f"images{end}"][:, ::4, ::4].reshape(-1, SIDE**2 * 3 // 16) / 255 for end in ("", "_test"))
    assert 0.2 < theirs < 0.98
    assert theirs == pytest.approx(our_accuracy(h, arrays["labels"], h_test, arrays["labels_test"]), abs=0.01)


def test_an_encoder_that_the_recipe_trains_is_read_as_well_by_both_probes(recipe, folder):
    encoder = recipe["train"](recipe["Pairs"](folder), steps=100)
    parts = [recipe["features"](encoder, recipe["Pairs"](folder, part)) for part in ("train", "test")]
    theirs = recipe["linear_accuracy"](*parts)
    assert theirs > 0.9  # it learned: an untrained one has less
    assert theirs == pytest.approx(our_accuracy(*(array.numpy() for part in parts for array in part)), abs=0.01)
