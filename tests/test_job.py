"""The job that a config parses to; parsing changes neither the config nor the process."""

import jax
import numpy as np
import pytest
from small import cdp, image_set

from mirigor_jax import config_files
from mirigor_jax.errors import InputError
from mirigor_jax.runs.job import parse, precision, re_estimated, under


def test_parsing_changes_nothing_outside_of_the_job(tmp_path):
    np.savez(tmp_path / "set.npz", images=np.zeros((1500, 12, 12), np.uint8), labels=np.arange(1500) % 3)
    arguments = image_set(f"npz:{tmp_path / 'set.npz'}", tmp_path / "run", "--config.encoder.dtype=float64")
    config = config_files.parse(arguments)[0]
    before, x64 = config.to_json(), jax.config.values["jax_enable_x64"]
    with precision(config):
        job = parse(config)
    assert (config.to_json(), jax.config.values["jax_enable_x64"]) == (before, x64)
    assert (config.data.size, job.config.data.size) == (None, 12)
    assert [each.name for each in (job, *job.others)] == ["class", "simclr"]
    assert [set(each.config.sha256) for each in (job, *job.others)] == [{"source"}] * 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_double_precision_lasts_as_long_as_its_run(dtype):
    config = config_files.parse(cdp(f"--config.encoder.dtype={dtype}"))[0]
    before = jax.config.values["jax_enable_x64"]

    def interrupted():
        with precision(config):
            assert jax.config.values["jax_enable_x64"] == (dtype == "float64")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert jax.config.values["jax_enable_x64"] == before


def test_a_leaf_s_argument_is_named_by_its_key():
    with pytest.raises(InputError, match=r"^train\.k=1: too few"), under("train."):
        raise InputError("k=1: too few")
    config = config_files.parse(cdp("--config.data.pairing=simclr", "--config.data.augment.crop=1.0"))[0]
    with pytest.raises(InputError, match=r"^data\.augment\.crop=1.0: expected 0 to 0.99"):
        parse(config)
    for key, value in (("train.optimizer", "adam"), ("train.objective", "none"), ("train.accumulate", 3)):
        with pytest.raises(InputError, match=f"^{key}={value}|^{key}='{value}': expected|^{key}='{value}' is unknown"):
            parse(config_files.parse(cdp(f"--config.{key}={value}"))[0])


def test_a_batch_too_small_for_the_objective_is_named_before_images_are_read():
    arguments = ["--config=configs/images.py:data=npz:none.npz", "--config.train.objective=mige"]
    message = (
        "^train.k=128: objective='mige' needs 4 pairs for each of the head's outputs, and head.features=64; raise it "
        "to 256, or lower head.features to 32$"
    )
    with pytest.raises(InputError, match=message):
        parse(config_files.parse(arguments)[0])
    with pytest.raises(InputError, match=r"train.k=2: .*; raise it to 4$"):
        parse(config_files.parse([*arguments, "--config.train.k=2", "--config.head.features=1"])[0])
    enough = cdp("--config.train.objective=mige", "--config.head.features=2")
    assert parse(config_files.parse(enough)[0]).objective.uses == ("embedding_noise",)


def test_a_re_estimate_on_fewer_pairs_than_the_run_s_own_is_reported():
    run_config = config_files.parse(cdp())[0]
    fewer, _ = re_estimated(run_config, pairing="none", k=16, test=32)
    result = parse(fewer).of(run_config)
    assert (result.config, result.name, result.pairing.shared) == (run_config, "color", ("color",))
