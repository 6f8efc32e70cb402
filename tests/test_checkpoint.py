"""The checkpoints that stay on disk, and that a save has the state of its moment."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mirigor_jax import parallel
from mirigor_jax.checkpoint import Checkpoints


def test_the_last_two_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path / "train") as checkpoints:
        assert (checkpoints.last, checkpoints.best) == (None, None)
        for step, mi_bits in ((1, 1.0), (2, 3.0), (3, 2.0), (4, 1.5)):
            checkpoints.save(step, {"w": jnp.full(3, step)}, mi_bits=mi_bits)
    with Checkpoints(tmp_path / "train") as checkpoints:
        assert (checkpoints.last, checkpoints.best) == (4, 2)
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == ["2", "3", "4"]


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
