"""The table of encoders: defaults, and options that only some encoders have."""

import json
import subprocess
import sys

import flax.linen as nn
import pytest
from small import cdp, report, user_environment

from mirigor_jax import config_files, models
from mirigor_jax.data.pairing import SameImage
from mirigor_jax.errors import InputError
from mirigor_jax.runs.job import without_images
from mirigor_jax.runs.renamed import current


def test_a_name_is_enough_and_options_are_the_encoder_s_own():
    resnet = models.build("resnet18")
    assert (resnet.width, resnet.stem, resnet.dtype, resnet.remat, resnet.axis_name) == (
        16, "imagenet", "float32", False, None,
    )  # fmt: skip
    assert models.build("resnet18", width=4, stem="cifar", remat=True, size=32).clone(width=16, remat=False) == (
        models.build("resnet18", stem="cifar")
    )
    assert (models.build("vit_ti").size, models.build("vit_ti", size=32).size) == (224, 32)
    assert models.build("mlp", dtype="bfloat16", size=28).dtype == "bfloat16"
    assert [models.takes_any_size(models.build(name)) for name in ("resnet50", "vit_ti", "lenet5")] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("option", [{"width": 8}, {"stem": "cifar"}, {"remat": False}, {"axis_name": "data"}])
@pytest.mark.parametrize("name", ["vit_ti", "lenet5"])
def test_an_option_of_another_encoder_is_refused_by_whose_it_is(name, option):
    ((key, value),) = option.items()
    with pytest.raises(InputError, match=rf"^{key}={value} is not an option of {name}, only of resnet18, .*; leave"):
        models.build(name, **option)


def test_an_option_of_no_encoder_and_no_encoder_are_refused():
    with pytest.raises(InputError, match="depth=3 is not an option of resnet18, nor of any encoder; leave it out"):
        models.build("resnet18", depth=3)
    with pytest.raises(InputError, match=r"name='resnet19' is unknown as an encoder; choose one of resnet18, .*, mlp"):
        models.build("resnet19")


def test_a_registered_encoder_has_the_options_of_its_maker(monkeypatch):
    class Mine(nn.Module):
        depth: int
        dtype: str = "float32"

    monkeypatch.setitem(models.ENCODERS, "mine", lambda *, depth=2: Mine(depth))
    assert (models.build("mine", size=32).depth, models.build("mine", depth=3).depth) == (2, 3)
    with pytest.raises(InputError, match="depth=1 is not an option of mlp, only of mine; leave it out"):
        models.build("mlp", depth=1)


def job(*arguments: str):
    return without_images(config_files.parse([*arguments])[0], SameImage())


@pytest.mark.parametrize(
    "config",
    [
        "cdp.py:encoder=vit_ti,scale=paper",
        "cdp.py:encoder=mlp",
        "imagenet.py:encoder=swin_t",
        "images.py:encoder=lenet5,size=28",
    ],
)
def test_what_a_scale_chooses_for_resnets_is_left_out_of_another_encoder_s_config(config):
    assert type(job(f"--config=configs/{config}").encoder()).__name__ in ("ViT", "MLPEncoder", "Swin", "LeNet5")


def test_configs_keep_the_width_and_stem_that_they_had():
    at = {"cdp.py": 16, "cdp.py:scale=paper": 64, "images.py": 16, "images.py:width=8": 8, "imagenet.py": 64}
    encoders = {name: job(f"--config=configs/{name}").encoder() for name in at}
    assert {name: (e.width, e.stem, e.remat) for name, e in encoders.items()} == {
        name: (width, "imagenet", False) for name, width in at.items()
    }


def test_an_option_without_effect_is_named_by_its_key_in_the_config():
    asked = job("--config=configs/images.py:encoder=vit_ti,size=32,width=8")
    with pytest.raises(
        InputError, match=r"^encoder\.width=8 is not an option of vit_ti, only of resnet18, .*; leave it out"
    ):
        asked.encoder()


@pytest.mark.parametrize("encoder", ["lenet5", "resnet18"])
def test_older_configs_that_gave_every_encoder_a_width_are_today_s(encoder):
    run_config = config_files.parse([f"--config=configs/images.py:encoder={encoder},size=28"])[0].to_dict()
    older = {**run_config, "encoder": run_config["encoder"] | {"width": 16, "stem": "imagenet", "remat": False}}
    assert current(older) == run_config
    older["encoder"]["width"] = 64
    assert current(older)["encoder"]["width"] == (64 if encoder == "resnet18" else None)


def test_older_configs_that_named_no_encoder_are_today_s():
    run_config = config_files.parse(["--config=configs/encoder.py", "--config.encoder.path=x.pth"])[0].to_dict()
    older = {**run_config, "encoder": run_config["encoder"] | {"width": 16, "stem": "imagenet", "remat": False}}
    assert current(older) == run_config


REGISTERING = '''
import flax.linen as nn
import jax.numpy as jnp
from mirigor_jax import models, objectives
from mirigor_jax.config_files import load_config


class Means(nn.Module):
    """A dense layer on the images' means of rows."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, train, stages=False):
        h = nn.Dense(8)(jnp.mean(images, axis=2).reshape(len(images), -1))
        return {"prelogits": h} if stages else h


def invariance(options):
    """The views of a pair and the class of each, as one loss."""
    def loss(z_x, z_y, c_x, c_y):
        return jnp.mean((z_x - z_y) ** 2) / options.temperature + 0.0 * jnp.sum(c_x - c_y)

    prepare = lambda batch, keys: (batch["c_x"], batch["c_y"])
    return objectives.Objective(loss, prepare=prepare, needs_classes=True, outputs=3)


models.ENCODERS["means"] = Means
objectives.OBJECTIVES["invariance"] = invariance


def get_config(arg):
    config, _ = load_config(f"configs/cdp.py:{arg}")
    config.encoder.name, config.train.objective = "means", "invariance"
    return config
'''


@pytest.mark.slow
def test_a_config_file_registers_an_encoder_and_an_objective_in_one_line_each(tmp_path):
    (tmp_path / "mine.py").write_text(REGISTERING)
    command = cdp(f"--workdir={tmp_path / 'run'}", encoder="--config.train.temperature=0.5")
    command[0] = f"--config={tmp_path / 'mine.py'}:pairing=color"
    run = [sys.executable, "-m", "mirigor_jax.main", *command]
    done = subprocess.run(run, env=user_environment(), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    contents = report(tmp_path / "run")
    assert contents["in_training"] is None
    rows = [json.loads(line) for line in (tmp_path / "run/train/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss_nats"] < rows[0]["loss_nats"]
    assert contents["estimate"]["upper_bits"] == 1.0
