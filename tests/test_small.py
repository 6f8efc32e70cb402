"""LeNet-5 and the MLP encoder against numpy and scipy."""

import jax
import numpy as np
import pytest
from scipy.signal import correlate2d

from mirigor_jax.errors import InputError
from mirigor_jax.models.small import make


def weights_of(encoder, images):
    """Random values for each parameter of the encoder, biases too."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda images: encoder.init(jax.random.key(0), images, train=False), images)
    return jax.tree.map(lambda leaf: rng.normal(scale=0.2, size=leaf.shape).astype(np.float32), shapes)


def stages_of(encoder, variables, images):
    return jax.jit(lambda variables, images: encoder.apply(variables, images, train=False, stages=True))(
        variables, images
    )


def test_lenet5_is_its_formula():
    images = np.random.default_rng(1).normal(size=(2, 28, 28, 1)).astype(np.float32)
    encoder = make("lenet5", dtype="float32")
    variables = weights_of(encoder, images)
    weights = variables["params"]
    x = images.transpose(0, 3, 1, 2)
    expected = {}
    for i in (0, 1):
        kernel, bias = weights[f"conv{i}"]["kernel"], weights[f"conv{i}"]["bias"]
        x = np.stack(
            [
                [
                    sum(correlate2d(image[c], kernel[:, :, c, o], mode="same") for c in range(len(image))) + bias[o]
                    for o in range(len(bias))
                ]
                for image in x
            ]
        )
        n, o, s, _ = x.shape
        x = np.maximum(x, 0).reshape(n, o, s // 2, 2, s // 2, 2).max((3, 5))
        expected[f"L{i}"] = x.transpose(0, 2, 3, 1).reshape(n, -1)
    assert [expected[f"L{i}"].shape[1] for i in (0, 1)] == [1176, 784]  # the source's
    expected["prelogits"] = np.maximum(expected["L1"] @ weights["dense"]["kernel"] + weights["dense"]["bias"], 0)

    ours = stages_of(encoder, variables, images)
    assert ours.keys() == expected.keys()
    for name, h in expected.items():
        np.testing.assert_allclose(ours[name], h, atol=1e-4, err_msg=name)


def test_mlp_is_its_formula():
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    encoder = make("mlp", dtype="float32")
    variables = weights_of(encoder, images)
    h = images.reshape(2, -1)
    for i in range(3):
        layer = variables["params"]["mlp"][f"Dense_{i}"]
        h = (np.maximum(h, 0) if i else h) @ layer["kernel"] + layer["bias"]
    assert h.shape == (2, 100)
    np.testing.assert_allclose(stages_of(encoder, variables, images)["prelogits"], h, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["lenet5", "mlp"])
def test_color_at_32_and_bfloat16_give_float32_features(name):
    encoder = make(name, dtype="bfloat16")
    images = np.zeros((2, 32, 32, 3), np.float32)

    def forward(images):
        return encoder.apply(encoder.init(jax.random.key(0), images, train=False), images, train=True)

    h = jax.eval_shape(forward, images)
    assert (h.shape, h.dtype) == ((2, {"lenet5": 120, "mlp": 100}[name]), np.float32)


def test_unknown_names_are_named():
    with pytest.raises(InputError, match="unknown encoder 'lenet'; choose one of lenet5, mlp"):
        make("lenet", dtype="float32")
    with pytest.raises(InputError, match="dtype='half': expected auto, float32"):
        make("mlp", dtype="half")
