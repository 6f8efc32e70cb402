"""The checkpoints that stay on disk and can be measured, and that a save has the state of its moment."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirigor_jax import config_files, parallel
from mirigor_jax.checkpoint import Checkpoints
from mirigor_jax.errors import InputError
from mirigor_jax.runs.job import parse


def test_the_last_two_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path / "train") as checkpoints:
        assert (checkpoints.last, checkpoints.best) == (None, None)
        for step, mi_bits in ((1, 1.0), (2, 3.0), (3, 2.0), (4, 1.5)):
            checkpoints.save(step, {"w": jnp.full(3, step)}, mi_bits=mi_bits)
    with Checkpoints(tmp_path / "train") as checkpoints:
        assert (checkpoints.last, checkpoints.best) == (4, 2)
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == ["2", "3", "4"]


def test_checkpoints_of_every_nth_step_are_kept_too(tmp_path):
    for steps in (range(1, 6), range(6, 10)):  # also by a run that was continued
        with Checkpoints(tmp_path / "train", keep_every=3) as checkpoints:
            for step in steps:
                checkpoints.save(step, {"w": jnp.full(3, step)}, mi_bits=-abs(step - 4.0))
    with Checkpoints(tmp_path / "train") as checkpoints:  # whoever only reads removes none
        assert checkpoints.steps == [3, 4, 6, 8, 9]
        assert (checkpoints.last, checkpoints.best) == (9, 4)
        mesh = parallel.make_mesh(8)
        restored = checkpoints.restore(6, parallel.abstract(parallel.place({"w": jnp.full(3, 0)}, mesh), mesh))
    np.testing.assert_array_equal(restored["w"], 6)


def test_a_save_in_the_background_holds_the_state_of_its_moment(tmp_path):
    """The step donates its state while orbax writes."""
    mesh = parallel.make_mesh(8)
    step = parallel.map_step(
        partial(jax.tree.map, lambda w: w + 1.0), mesh, (parallel.REPLICATED,), parallel.REPLICATED, donate=(0,)
    )
    state = parallel.place({"w": jnp.zeros(200_000)}, mesh)
    abstract = parallel.abstract(state, mesh)
    with Checkpoints(tmp_path / "train") as checkpoints:
        checkpoints.save(3, state, mi_bits=0.0)
        for _ in range(20):
            state = step(state)
    with Checkpoints(tmp_path / "train") as checkpoints:
        restored = checkpoints.restore(3, abstract)
    np.testing.assert_array_equal(restored["w"], 0.0)
    assert restored["w"].sharding == abstract["w"].sharding


EVERY = ["--config.train.steps=300", "--config.train.checkpoint_every=100"]
KEPT = {
    "train.keep_every=150": "expected a multiple of train.checkpoint_every=100",
    "features.checkpoint=100": "the training keeps only the last two checkpoints and the best",
    "train.keep_every=100 features.checkpoint=150": "a multiple of train.keep_every=100 up to train.steps=300",
    "train.keep_every=100 features.checkpoint=400": "a multiple of train.keep_every=100 up to train.steps=300",
}


@pytest.mark.parametrize("given", KEPT)
def test_a_checkpoint_that_is_not_kept_cannot_be_measured(given):
    flags = [f"--config.{one}" for one in given.split()]
    with pytest.raises(InputError, match=KEPT[given]):
        parse(config_files.parse(["--config=configs/cdp.py", *EVERY, *flags])[0])


def test_a_step_that_is_kept_and_the_last_step_can_be_measured():
    for which in ("100", "200", "300"):
        flags = ["--config.train.keep_every=100", f"--config.features.checkpoint={which}"]
        assert (
            parse(config_files.parse(["--config=configs/cdp.py", *EVERY, *flags])[0]).config.features.checkpoint
            == which
        )
