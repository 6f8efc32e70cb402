"""The plan: costs read from compiled programs, times of collectives, the search, and real steps for TPUs."""

import importlib.util
import json
import re
import string
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.compilation_cache import compilation_cache

from mirigor_jax import config_files, parallel
from mirigor_jax.data import pairing
from mirigor_jax.data.attributes import uniform
from mirigor_jax.errors import InputError
from mirigor_jax.memory import needed_bytes
from mirigor_jax.mi import fit
from mirigor_jax.mi.contrastive import info_nce_from_embeddings
from mirigor_jax.models import resnet
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.plan import __main__ as command
from mirigor_jax.plan import chips, hlo, report, search, work
from mirigor_jax.runs.estimate import pairs_in_batches
from mirigor_jax.runs.job import without_images
from mirigor_jax.runs.steps import WITHIN_BATCH, init_critic, init_state, make_critic_step

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='pip install -e ".[plan]"')

# As XLA:TPU writes them, without metadata: 7 products in a loop from 1 to 15 by 2, whose operands are on the chip, 5
# rounds of a ring, and a slice of an array in HBM.
PROGRAM = string.Template("""\
HloModule jit_f, is_scheduled=true

%fused (param_0: bf16[1024,512], param_1: bf16[512,512]) -> bf16[1024,512] {
  %param_0 = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1 = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.5 = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} convolution(%param_0, %param_1), dim_labels=bf_io->bf
}

%sliced (param_2: f32[4096,100], param_3: s32[]) -> f32[8,100] {
  %param_2 = f32[4096,100]{1,0:T(8,128)} parameter(0)
  %param_3 = s32[]{:T(128)} parameter(1)
  %constant.9 = s32[]{:T(128)} constant(0)
  ROOT %dynamic-slice.1 = f32[8,100]{1,0:T(8,128)} dynamic-slice(%param_2, %param_3, %constant.9)
}

%body (p: (s32[], bf16[1024,512], bf16[512,512])) -> (s32[], bf16[1024,512], bf16[512,512]) {
  %constant.2 = s32[]{:T(128)} constant(2)
  %p = $loop parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  %w = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=2
  %product = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %w), kind=kOutput, calls=%fused
  %next = s32[]{:T(128)} add(%i, %constant.2), backend_config={"flag_configs":[]}
  ROOT %t = $loop tuple(%next, %product, %w)
}

%below (q: (s32[], bf16[1024,512], bf16[512,512])) -> pred[] {
  %constant.3 = s32[]{:T(128)} constant(15)
  %q = $loop parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %constant.3), direction=LT
}

%round (r: (s32[], f32[256,128])) -> (s32[], f32[256,128]) {
  %constant.4 = s32[]{:T(128)} constant(1)
  %r = $ring parameter(0)
  %m = s32[]{:T(128)} get-tuple-element(%r), index=0
  %z = $rows get-tuple-element(%r), index=1
  %start = ($rows, $rows, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%z), source_target_pairs={{0,1},{1,0}}
  %done = $rows collective-permute-done(%start)
  %n = s32[]{:T(128)} add(%m, %constant.4)
  ROOT %u = $ring tuple(%n, %done)
}

%fewer (s: (s32[], f32[256,128])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(5)
  %s = $ring parameter(0)
  %v = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%v, %constant.5), direction=LT
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add = f32[]{:T(128)} add(%a, %b)
}

ENTRY %main (x0: bf16[1024,512], i0: s32[]) -> (f32[8,100], f32[256,128]) {
  %constant.0 = s32[]{:T(128)} constant(0)
  %constant.1 = s32[]{:T(128)} constant(1)
  %copied = s32[]{:T(128)} copy(%constant.1)
  %x0 = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %w0 = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %z0 = $rows parameter(2)
  %h = f32[4096,100]{1,0:T(8,128)} parameter(3)
  %i0 = s32[]{:T(128)S(1)} parameter(4)
  %in = $loop tuple(%copied, %x0, %w0)
  %while.1 = $loop while(%in), condition=%below, body=%body
  %in.2 = $ring tuple(%constant.0, %z0)
  %while.2 = $ring while(%in.2), condition=%fewer, body=%round
  %g = $rows get-tuple-element(%while.2), index=1
  %reduced = ($rows, $rows) all-reduce(%g, %z0), channel_id=2, replica_groups={{0,1,2,3}}, to_apply=%sum
  %part = f32[8,100]{1,0:T(8,128)} fusion(%h, %i0), kind=kLoop, calls=%sliced
  %first = $rows get-tuple-element(%reduced), index=0
  ROOT %out = (f32[8,100]{1,0:T(8,128)}, $rows) tuple(%part, %first)
}
""").substitute(
    rows="f32[256,128]{1,0:T(8,128)S(1)}",
    ring="(s32[]{:T(128)}, f32[256,128]{1,0:T(8,128)S(1)})",
    loop="(s32[]{:T(128)}, bf16[1024,512]{1,0:T(8,128)(2,1)S(1)}, bf16[512,512]{1,0:T(8,128)(2,1)S(1)})",
)


def test_loops_count_by_their_trips_and_memory_on_the_chip_does_not():
    cost = hlo.cost(PROGRAM)
    assert cost.flops == 7 * 2 * 1024 * 512 * 512
    a_round, reduced = 256 * 128 * 4, 2 * 256 * 128 * 4
    assert cost.totals() == {
        "collective-permute": {"count": 5, "bytes": 5 * a_round},
        "all-reduce": {"count": 1, "bytes": reduced},
    }
    # Eight rows of 128 stored floats are read and written; the counters, one tile of 128 numbers, move as well: the
    # copy, and in each loop what is added to and added, and the sum.
    counters = (2 + 7 * 3 + 5 * 3) * 128 * 4 + (7 + 5) * 2 * 128 * 4 + (7 + 5) * 0
    assert cost.hbm_bytes == pytest.approx(2 * 8 * 128 * 4, abs=counters)
    assert cost.loops == 0


def test_what_is_brought_to_the_chip_is_read_once_and_not_written():
    text = """\
ENTRY %main (x: f32[64,256]) -> f32[8,256] {
  %x = f32[64,256]{1,0:T(8,128)} parameter(0)
  %s = (f32[64,256]{1,0:T(8,128)}, f32[8,256]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[8:16], [0:256]}
  %t = f32[8,256]{1,0:T(8,128)S(1)} slice-done(%s)
  %c = (f32[64,256]{1,0:T(8,128)S(1)}, f32[64,256]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %d = f32[64,256]{1,0:T(8,128)S(1)} copy-done(%c)
  ROOT %r = f32[8,256]{1,0:T(8,128)} copy(%t)
}
"""
    assert hlo.cost(text).hbm_bytes == 4 * 256 * (8 + 64 + 8)


def test_an_operand_that_a_fusion_within_only_renames_is_read():
    text = """\
%renamed (a: f32[64,256]) -> f32[64,256] {
  %a = f32[64,256]{1,0:T(8,128)} parameter(0)
  ROOT %b = f32[64,256]{1,0:T(8,128)} bitcast(%a)
}

%product (p: f32[8,256], q: f32[64,256]) -> f32[8,64] {
  %p = f32[8,256]{1,0:T(8,128)S(1)} parameter(0)
  %q = f32[64,256]{1,0:T(8,128)} parameter(1)
  %f = f32[64,256]{1,0:T(8,128)} fusion(%q), kind=kLoop, calls=%renamed
  ROOT %y = f32[8,64]{1,0:T(8,128)S(1)} convolution(%p, %f), dim_labels=bf_oi->bf
}

ENTRY %main (x: f32[8,256], w: f32[64,256]) -> f32[8,64] {
  %x = f32[8,256]{1,0:T(8,128)S(1)} parameter(0)
  %w = f32[64,256]{1,0:T(8,128)} parameter(1)
  ROOT %r = f32[8,64]{1,0:T(8,128)S(1)} fusion(%x, %w), kind=kOutput, calls=%product
}
"""
    assert hlo.cost(text).hbm_bytes == 4 * 64 * 256


def test_a_loop_of_unknown_trips_counts_once_and_is_named():
    cost = hlo.cost(PROGRAM.replace("direction=LT", "direction=NE"))
    assert cost.flops == 2 * 1024 * 512 * 512
    assert cost.loops == 2


@pytest.mark.parametrize(
    ("shapes", "window", "multiply_adds"),
    [
        # 3×3/2 on 8², one pixel of padding: of three rows the first output sees two, so 11 pairs a side.
        (((2, 8, 8, 5), (3, 3, 5, 7), (2, 4, 4, 7)), "size=3x3 stride=2x2 pad=1_1x1_1", 2 * 5 * 7 * 11 * 11),
        # Its gradient by the input, whose zeros between pixels cost nothing: as many.
        (((2, 4, 4, 7), (3, 3, 7, 5), (2, 8, 8, 5)), "size=3x3 pad=1_2x1_2 lhs_dilate=2x2", 2 * 5 * 7 * 11 * 11),
    ],
)
def test_multiply_adds_of_a_convolution_are_those_within_the_image(shapes, window, multiply_adds):
    x, w, y = (f"f32[{','.join(map(str, shape))}]{{3,2,1,0}}" for shape in shapes)
    text = f"""\
ENTRY %main (x: f32[1], w: f32[1]) -> f32[1] {{
  %x = {x} parameter(0)
  %w = {w} parameter(1)
  ROOT %y = {y} convolution(%x, %w), window={{{window}}}, dim_labels=b01f_01io->b01f
}}
"""
    assert hlo.cost(text).flops == 2 * multiply_adds


def test_flops_of_matrix_products_are_xla_s_own_where_nothing_loops():
    a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 64, 32), (3, 32, 16)))
    compiled = jax.jit(jnp.matmul).lower(a, b).compile()
    assert hlo.cost(compiled.as_text()).flops == 2 * 3 * 64 * 32 * 16 == compiled.cost_analysis()["flops"]


def a_slice(name: str) -> chips.Slice:
    kind, shape = name.split(":")
    axes = tuple(map(int, shape.split("x")))
    return chips.Slice(name, chips.CHIPS[kind], axes, [None] * int(np.prod(axes)))


def test_the_network_is_as_fast_as_published():
    # "How to Scale Your Model", part 2, question 6: 16 GB gathered on v5e 4x4, two links a chip: 150 ms.
    assert a_slice("v5e:4x4").seconds("all-gather", 16_000_000_000) == pytest.approx(0.150)
    # Google, "TPU v5e" and "TPU v6e": 51.2 and 102.4 TB/s of all-reduce bandwidth a pod, all links of its torus in use.
    for name, bandwidth in (("v5e:16x16", 51.2e12), ("v6e:16x16", 102.4e12)):
        pod = a_slice(name)
        assert 256 * pod.lanes * pod.chip.link == bandwidth
        # A ring sends 2(n−1)/n of what is reduced.
        assert pod.seconds("all-reduce", 2**30) == pytest.approx(2 * 255 / 256 * 2**30 * 256 / bandwidth)
    # Part 3: a message is as slow as its hops, of 1 µs each, three and three to the corner of a mesh of 4x4.
    assert a_slice("v5e:4x4").seconds("all-gather", 4) == pytest.approx(6e-6)
    assert a_slice("v5e:4x4").seconds("all-reduce", 4) == pytest.approx(12e-6)
    # Cubes of v5p close to a torus, smaller slices do not.
    assert [a_slice(f"v5p:{shape}").lanes for shape in ("2x2x1", "2x2x2", "4x4x4")] == [2, 3, 6]


@pytest.mark.parametrize("start", [64, 1024, 4096])
@pytest.mark.parametrize(("fixed", "a_pair"), [(2e8, 1.5e7), (1e8, 1e6), (2e7, 4e4)])
def test_the_search_ends_between_neighbors_within_few_compiles(start, fixed, a_pair):
    available, asked = 16_911_433_728, []

    def need(k: int) -> tuple[bool, int]:
        asked.append(k)
        return fixed + a_pair * k <= available, int(fixed + a_pair * k)

    best, worst = search.largest(need, start, 4, available)
    limit = (available - fixed) / a_pair
    assert best is not None
    assert worst is not None
    assert best <= limit < worst <= 1.25 * best + 4
    assert len(asked) <= 6
    assert all(k % 4 == 0 for k in asked)


def test_the_search_goes_down_to_what_fits_and_says_when_nothing_does():
    assert search.largest(lambda k: (k <= 40, 10 * k), 4096, 4, 400) == (40, 48)
    assert search.largest(lambda k: (False, 10**6), 64, 4, 400) == (None, 4)


TINY = (
    "--config.encoder.width=4",
    "--config.data.size=32",
    "--config.train.k=16",
    "--config.features.batch_size=32",
    "--config.features.fit=512",
    "--config.features.validation=512",
    "--config.features.test=512",
    "--config.estimate.k=256",
    "--config.estimate.batch_size=64",
    "--config.estimate.steps=8",
    "--config.estimate.eval_every=4",
    "--config.estimate.k_curve=(64,)",
)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("stream", [False, True])
def test_the_abstract_arguments_of_the_estimate_are_the_real_ones(stream):
    config, *_ = config_files.parse(["--config=configs/cdp.py", *TINY, f"--config.estimate.stream={stream}"])
    same_class = pairing.parse("all", uniform(("color", "digit"), (2, 3)))
    job = without_images(config, same_class)
    rng, mesh = np.random.default_rng(0), parallel.make_mesh(64)
    h = rng.normal(size=(512, 8)).astype(np.float32)
    features = {"fit": {"h": h}, "validation": {"h_x": h, "h_y": h}}
    frozen = None
    if stream:
        state = init_state(job, jax.random.key(0))
        tree = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
        frozen = FrozenEncoder(job.encoder(), tree)
    step, abstract = make_critic_step(job, mesh, features, frozen)
    compiled = step.lower(*abstract).compile()
    columns = np.zeros(8, np.float32), np.ones(8, np.float32)
    place = partial(parallel.place, mesh=mesh)
    if frozen is not None:
        whole = place({"encoder": frozen.variables, "mean": columns[0], "scale": columns[1]})
        images = rng.integers(0, 256, (4, 64, 32, 32, 3)).astype(np.uint8)
        batch = parallel.shard({"x": images, "y": images}, mesh, WITHIN_BATCH)
    else:
        whole = {}
        batch = place(fit.make_bank(h, rng.permutation(np.arange(512) % 6).astype(np.int32), same_class.joint()))
    init = partial(init_critic, job, jnp.zeros((2, 8)), jax.random.key(1))
    state = jax.jit(init, out_shardings=parallel.layout(abstract[0]))()
    validation = pairs_in_batches(features["validation"], 256, mesh)
    # What was compiled for other shapes, types or layouts refuses these.
    _, metrics = compiled(state, whole, batch, validation, place(jax.random.split(jax.random.key(0), 4)))
    assert np.isfinite(metrics["validation_nats"])


@pytest.mark.slow
@pytest.mark.parametrize("pairing", ["simclr", "class"])
def test_imagenet_is_planned_without_its_images(pairing):
    config, *_ = config_files.parse([f"--config=configs/imagenet.py:pairing={pairing}", "--config.encoder.width=4"])
    job = work.prepare(config, None if pairing == "simclr" else 1000)
    results = {stage: work_of(job, jax.devices()) for stage, work_of in work.STAGES.items()}
    assert job.config.encoder.dtype == "bfloat16"
    assert results["train"].arguments[1]["x"].shape == (1024, 224, 224, 3)
    assert (results["train"].images, results["train"].pairs, results["encode"].images) == (2048, 1024, 256)
    _, frozen, batch, validation, keys = results["estimate"].arguments
    assert validation[0].shape == (10_000 // 4096, 4096, 4 * 32)
    assert keys.shape == (100,)
    assert results["estimate"].pairs == 100 * 256
    if pairing == "simclr":
        assert batch["x"].shape == (100, 256, 224, 224, 3)
        assert results["estimate"].images == 2 * 100 * 256
        assert set(frozen) == {"encoder", "mean", "scale"}
    else:
        assert batch.h.shape == (100_000, 4 * 32)
        assert batch.cumulative.shape == (1000, 1000)
        assert frozen == {}


@pytest.mark.slow
def test_batches_that_leave_chips_idle_are_refused():
    config, *_ = config_files.parse(["--config=configs/cdp.py", *TINY])
    config.train.k, config.estimate.batch_size = 12, 20
    job = work.prepare(config, None)
    with pytest.raises(InputError, match=r"train\.k=12 do not divide over 8 chips; use multiples of 8"):
        work.train_work(job, jax.devices())
    with pytest.raises(InputError, match="batches of 20, 64, 256 pairs do not divide over 8 chips"):
        work.estimate_work(job, jax.devices())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config=configs/cdp.py"], "give --topology"),
        (["--config=configs/cdp.py", "--topology=v5e:3x5"], "unknown --topology=v5e:3x5; known are v5e:2x2, 2x4"),
        (["--config=configs/cdp.py", "--topology=v5e:2x2", "--classes=ten"], "--classes=ten is not a number"),
        (["--config=configs/arrays.py", "--topology=v5e:2x2"], "for runs that train an encoder"),
        (["--config=configs/images.py", "--topology=v5e:2x2"], "give --config.data.size=N"),
        (["--config=configs/images.py:size=28", "--topology=v5e:2x2"], "by --classes=N"),
        (["--config=configs/cdp.py:k=1", "--topology=v5e:2x2"], "train.k=1"),
        (["--config=configs/cdp.py", "--topology=v5e:2x2", "--only=test"], "choose from train, encode, estimate"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, expected, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(chips, "find", lambda name: _known(name))
    assert command.main([*arguments, f"--workdir={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert expected in message


def _known(name: str) -> chips.Slice:
    if name != "v5e:2x2":
        raise InputError(f"unknown --topology={name}; known are v5e:2x2, 2x4")
    return a_slice(name)


class Compiled:
    """A compiled program of XLA:TPU that needs 15 GiB of HBM."""

    def as_text(self) -> str:
        return PROGRAM

    def memory_analysis(self) -> SimpleNamespace:
        parts = {"argument": 8, "output": 4, "temp": 3, "alias": 1, "generated_code": 1}
        return SimpleNamespace(**{f"{name}_size_in_bytes": size * 2**30 for name, size in parts.items()})

    def cost_analysis(self) -> dict[str, float]:
        return {"flops": 1.0, "bytes accessed": 2.0}


def test_a_stage_takes_as_long_as_the_slowest_of_its_parts():
    step = SimpleNamespace(lower=lambda *arguments: SimpleNamespace(compile=Compiled))
    where = a_slice("v5e:2x2")
    row = search.measure(work.Work(step, (), "train.k=8", 16, 8), where, "train")
    assert (row["fits"], row["hbm"]["needed_bytes"], row["hbm"]["results_bytes"]) == (True, 15 * 2**30, 3 * 2**30)
    # Seven products take 19.1 µs; five messages over one link and what is reduced, two hops there and back, 17.1 µs.
    compute, network = 7 * 2 * 1024 * 512 * 512 / 197e12, 5 * 2**17 / 50e9 + 4e-6
    assert row["binds"] == "compute"
    assert (row["seconds"]["at_best"], row["seconds"]["network"]) == (pytest.approx(compute), pytest.approx(network))
    assert row["images_per_second"] == 2 * row["pairs_per_second"] == pytest.approx(16 / compute)
    text = report.report([row], [], where, None, [], versions={"mirigor-jax": "1", "jax": "2", "libtpu": "3"})
    assert "compute binds" in text


def test_a_batch_that_does_not_fit_is_one_line_that_says_which_does(monkeypatch, tmp_path, capsys):
    def compile_work(of: work.Work, where: chips.Slice, label: str):
        return (Compiled() if of.pairs <= 12 else None), 2**30 * of.pairs, 0.0

    monkeypatch.setattr(chips, "find", lambda name: a_slice(name)._replace(devices=jax.devices()[:4]))
    monkeypatch.setattr(search, "compile_work", compile_work)
    monkeypatch.setattr(command, "version", lambda name: "1")
    arguments = ["--config=configs/cdp.py", *TINY, "--topology=v5e:2x2", "--only=train", f"--workdir={tmp_path}"]
    assert command.main(arguments) == 2
    output = capsys.readouterr().err
    assert output == "error: train.k=16 needs 16.00 GiB of 15.75 GiB a chip of v5e:2x2; train.k=12 fits\n"
    written = (tmp_path / "plan.json").read_text()
    assert json.loads(written)["largest"]["fails_at_k"] == 16
    assert command.main(arguments) == 2
    assert capsys.readouterr().err == output  # the same options again
    assert command.main([*arguments, "--config.train.k=8"]) == 2
    assert f"{tmp_path} has the plan of other options; give --workdir=FOLDER" in capsys.readouterr().err
    assert (tmp_path / "plan.json").read_text() == written


def test_without_the_compiler_the_command_that_brings_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[plan\]"'):
        chips.find("v5e:2x2")
    with pytest.raises(InputError, match=r"unknown --topology=v4:2x2x1; known are v5e:2x2.*v5p:2x2x1.*v6e:2x2"):
        chips.find("v4:2x2x1")


def test_the_scaling_is_drawn():
    rows = [
        {"stage": stage, "chips": chips, "fits": True, "efficiency_at_best": e, "efficiency_without_overlap": e**2}
        for stage in ("train", "estimate")
        for chips, e in ((4, 1.0), (16, 0.9), (64, 0.8))
    ]
    figure = report.scaling([*rows, {"stage": "train", "chips": 256, "fits": False}], "v5e")
    assert [len(ax.lines[0].get_xdata()) for ax in figure.axes] == [3, 3]
    (alone,) = report.scaling(rows[:3], "v5e").axes
    assert alone.get_title(loc="left").startswith("training")


@pytest.fixture
def uncached():
    """Turn the cache of compiled programs off, because it can write programs for absent devices but not read them."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@needs_libtpu
@pytest.mark.usefixtures("uncached")
def test_the_scores_of_a_large_k_stay_on_the_chip():
    where = chips.find("v5e:2x2")
    mesh, k, d = parallel.make_mesh(4, where.devices), 16_384, 128
    loss = partial(info_nce_from_embeddings, axis_name=parallel.AXIS)
    mapped = parallel.map_step(jax.grad(loss, (0, 1)), mesh, (parallel.SHARDED,) * 2, parallel.SHARDED)
    z = parallel.abstract(jax.ShapeDtypeStruct((k, d), jnp.float32), mesh, parallel.SHARDED)
    cost = hlo.cost(mapped.lower(z, z).compile().as_text())
    # A device makes a quarter of the scores, and again for the gradients, of which each is one product more.
    assert cost.flops == pytest.approx(4 * 2 * k * k * d / 4, rel=0.01)
    # Written to HBM once they alone would be k²/4 float32.
    assert cost.hbm_bytes < k * k / 4


@needs_libtpu
@pytest.mark.usefixtures("uncached")
def test_products_and_collectives_of_a_program_for_tpus_are_those_counted_by_hand():
    where = chips.find("v5e:2x2")
    mesh = parallel.make_mesh(4, where.devices)

    def step(x, w):
        y, _ = lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, length=7)
        z, _ = lax.scan(
            lambda c, _: (lax.ppermute(c, parallel.AXIS, [(i, (i + 1) % 4) for i in range(4)]) + 1, None),
            y @ w,
            length=5,
        )
        return lax.psum(jnp.sum(z), parallel.AXIS), lax.all_gather(y, parallel.AXIS, tiled=True)

    mapped = parallel.map_step(step, mesh, (parallel.SHARDED, parallel.REPLICATED), (parallel.REPLICATED,) * 2)
    x, w = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((4096, 512), (512, 512)))
    arguments = parallel.abstract(x, mesh, parallel.SHARDED), parallel.abstract(w, mesh)
    compiled = mapped.lower(*arguments).compile()
    cost = hlo.cost(compiled.as_text())
    assert cost.flops == 8 * 2 * 1024 * 512 * 512
    # XLA's own analysis has the loop's body once, and other arithmetic with it.
    assert compiled.cost_analysis()["flops"] == pytest.approx(2 * 2 * 1024 * 512 * 512, rel=0.01)
    totals, shard = cost.totals(), 1024 * 512 * 2
    assert totals["collective-permute"] == {"count": 5, "bytes": 5 * shard}
    assert totals["all-gather"] == {"count": 1, "bytes": 4 * shard}
    assert totals["all-reduce"]["count"] == 1
    # In HBM are the arguments and the results alone, but for the scalars. The compiler either keeps the weights in VMEM
    # for the whole loop or reads them again for each of the eight products.
    loop = next(line for line in compiled.as_text().splitlines() if re.search(r"= \(.*bf16\[512,512].* while\(", line))
    reads = 1 if re.search(r"bf16\[512,512]\{[^}]*S\(1\)", loop) else 8
    assert cost.hbm_bytes == pytest.approx(shard + reads * 512 * 512 * 2 + 4 * shard, rel=0.01)
    memory = compiled.memory_analysis()
    assert needed_bytes(compiled) == memory.generated_code_size_in_bytes + shard + 512 * 512 * 2 + (
        memory.output_size_in_bytes + memory.temp_size_in_bytes
    )


@needs_libtpu
@pytest.mark.slow
@pytest.mark.usefixtures("uncached")
def test_wide_maps_cross_hbm_less_often_where_norms_are_folded(monkeypatch):
    monkeypatch.setitem(resnet.STAGES, "resnet50", ((2,), "bottleneck"))
    config, *_ = config_files.parse(["--config=configs/cdp.py:encoder=resnet50,size=224,k=256,scale=paper"])
    where = chips.find("v5e:2x2")

    def traffic() -> float:
        step, arguments, *_ = work.train_work(work.prepare(config, None), where.devices)
        return hlo.cost(step.lower(*arguments).compile().as_text()).hbm_bytes

    folded = traffic()
    monkeypatch.setattr(parallel, "platform", lambda: "gpu")
    # A block's wide map of 128 images has 56² pixels of 256 channels, 2 bytes each; there are two, and a shortcut's.
    saved = traffic() - folded
    assert saved > 3 * 3 * 128 * 56 * 56 * 256 * 2


@needs_libtpu
@pytest.mark.slow
@pytest.mark.usefixtures("shallow", "uncached")
def test_a_plan_of_the_shrunk_cdp_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(search, "largest", lambda need, k, unit, available: (k, None))  # minutes of compiling
    assert command.main(["--config=configs/cdp.py", *TINY, "--topology=v5e:2x2", f"--workdir={tmp_path}"]) == 0
    output = capsys.readouterr().out
    report = json.loads((tmp_path / "plan.json").read_text())
    assert "The compiler's numbers, not a measurement" in output
    assert [row["stage"] for row in report["stages"]] == ["train", "encode", "estimate"]
    for row in report["stages"]:
        hbm = row["hbm"]
        parts = sum(hbm[f"{part}_bytes"] for part in ("arguments", "results", "temporaries", "code"))
        assert hbm["needed_bytes"] == parts < hbm["available_bytes"]
        assert row["seconds"]["at_best"] == max(row["seconds"][part] for part in ("compute", "memory", "network"))
        assert 0 < row["seconds"]["at_best"] <= row["seconds"]["without_overlap"]
        assert row["loops_counted_once"] == 0
    assert report["stages"][0]["pairs_per_second"] == pytest.approx(16 / report["stages"][0]["seconds"]["at_best"])
    # The batch of one chip is among the arguments: 4 pairs of 32² pixels.
    assert report["stages"][0]["hbm"]["arguments_bytes"] > 4 * 2 * 32 * 32 * 3
    assert report["notes"] == []
