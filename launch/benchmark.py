"""How fast the parts are on this machine, peers beside them where installed: one row a measurement.

python launch/benchmark.py                      every part; with `pip install -e ".[bench]"` against peers
python launch/benchmark.py --only=train,encode  ResNet training and inference
python launch/benchmark.py --only=input         training fed by the pipeline, or from images held on the device
python launch/benchmark.py --only=estimate      a post-training estimate, against one with the encoder in the loop
python launch/benchmark.py --only=critic        critic steps on arrays
python launch/benchmark.py --only=nt_xent       NT-Xent with its gradient, against one matrix and its bare products
python launch/benchmark.py --only=info_nce      InfoNCE with its gradient, against PyTorch and Inf-CL (inf_cl on PyPI)
python launch/benchmark.py --only=probe         linear probes against scikit-learn's
python launch/benchmark.py --only=cdp           CDP rendering, and the pipeline into a step that does nothing
python launch/benchmark.py --only=scaling       the training step over 1, 2, 4 and 8 devices
python launch/benchmark.py --json=FILE          the rows as JSON too: {name, ours, peer, ratio, unit}
python launch/benchmark.py --profile=FOLDER     a trace of it all, for Perfetto or XProf

Each number is the median of several rounds in which ours and the peer's take turns, in this one process.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict
from scipy.special import log_softmax

from mirigor_jax import configuration, encode, estimate, parallel, train
from mirigor_jax.data import cdp, pairing
from mirigor_jax.data.pipeline import batches
from mirigor_jax.mi import ESTIMATORS, JointCritic, SeparableCritic
from mirigor_jax.mi.contrastive import info_nce_embeddings, nt_xent
from mirigor_jax.mi.distributions import Gaussian
from mirigor_jax.mi.fit import Member, Pairs, Recipe, critic_step, make_bank, start_critic
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.models.resnet import STAGES
from mirigor_jax.probes import fit_linear

try:
    import torch
except ImportError:
    torch = None
try:
    from inf_cl import cal_flash_loss
except ImportError:
    cal_flash_loss = None
try:
    from sklearn.linear_model import LogisticRegression
except ImportError:
    LogisticRegression = None

Row = dict[str, str | float | None]
Work = Callable[[], int]  # does some of it, and says how many items that was


def measure(name: str, unit: str, ours: Work, peer: Work | None = None, rounds: int = 7) -> Row:
    """Medians of items a second over rounds in which both take their turn, after one to warm up."""
    rates: dict[Work, list[float]] = {work: [] for work in (ours, peer) if work}
    for _ in range(1 + rounds):
        for work, of_work in rates.items():
            if peer:
                time.sleep(0.5)  # what the other's threads may spin for, waiting for more work
            start = time.perf_counter()
            items = work()
            of_work.append(items / (time.perf_counter() - start))
    mine, other = (statistics.median(rates[work][1:]) if work else None for work in (ours, peer))
    return {"name": name, "ours": mine, "peer": other, "ratio": other and mine / other, "unit": unit}


def bench_cdp() -> Iterator[Row]:
    """Images a second at 64×64, in batches of 256 pairs: rendered on one core, and fed to a step as training does.

    Each row's peer is what it adds to: the pipeline to host memory, and on to the device.
    """
    data = cdp.make()
    read = partial(data.pairs, pairing.parse("all", data.names, data.sizes), 0, 0)
    pairs, count = 256, 40

    def render() -> int:
        for batch in range(count):
            read(batch * pairs, (batch + 1) * pairs)
        return 2 * pairs * count

    mesh = parallel.make_mesh(1, jax.devices()[:1])
    nothing = jax.jit(lambda batch: None)

    def pipeline(step: Callable[[Any], Any], **options: Any) -> Work:
        def work() -> int:
            iterator = iter(batches(read, batch_size=pairs, **options))
            for _ in range(count):
                step(next(iterator))
            return 2 * pairs * count

        return work

    placed = pipeline(lambda batch: None, place=views_on(mesh))
    fed = pipeline(nothing, place=views_on(mesh))
    yield measure("cdp rendering, one core", "images/s", render)
    yield measure("cdp pipeline, on to the device", "images/s", placed, pipeline(lambda batch: None))
    yield measure("cdp pipeline, into a step that does nothing", "images/s", fed, placed)


def views_on(mesh: Mesh) -> Callable[[dict[str, np.ndarray]], dict[str, Array]]:
    """How training places a batch on its devices."""
    return lambda batch: parallel.shard({"x": batch["x"], "y": batch["y"]}, mesh)


PEAK_TFLOPS = {"TPU v5 lite": 197, "TPU v5": 459, "TPU v6 lite": 918, "NVIDIA H100": 989, "NVIDIA H200": 989}  # bf16
RESNET50_TRAIN_TFLOP = 3 * 2 * 4.1e9 / 1e12  # an image of 224²: 4.1e9 multiply-adds, and twice as many in the gradient


def bench_train() -> Iterator[Row]:
    """Images a second of whole training steps on one device: NT-Xent, AdamW, encoder and projection head.

    The dtype is the one training takes by default; PyTorch's autocast takes the same. On accelerators ResNet-50 at 224²
    too, and the share of the chip's peak that its additions and multiplications are.
    """
    accelerated = jax.default_backend() != "cpu"
    for name, width, size, images, steps in (
        ("resnet18", 64, 64, 64, 30 if accelerated else 2),
        ("resnet18", 16, 64, 64, 30 if accelerated else 10),
        *([("resnet50", 64, 224, 256, 5)] if accelerated else []),
    ):
        config = image_config(name, width, size, images)
        label = f"train {name}, width {width}, {size}²"
        row = measure(label, "images/s", train_work(config, steps), torch and torch_train(config, steps))
        yield row
        kind = jax.devices()[0].device_kind
        peak = next((peak for chip, peak in PEAK_TFLOPS.items() if kind.startswith(chip)), None)
        if name == "resnet50" and peak:
            share = 100 * row["ours"] * RESNET50_TRAIN_TFLOP / peak
            yield {"name": f"  of {kind}'s peak", "ours": share, "peer": None, "ratio": None, "unit": "%"}


def bench_encode() -> Iterator[Row]:
    """Images a second through the frozen encoder on one device, in the dtype that it is trained in."""
    accelerated = jax.default_backend() != "cpu"
    for name, width, size, steps in (
        ("resnet18", 64, 64, 30 if accelerated else 4),
        ("resnet18", 16, 64, 30 if accelerated else 20),
        *([("resnet50", 64, 224, 10)] if accelerated else []),
    ):
        config = image_config(name, width, size, 256 if accelerated else 64)
        label = f"encode {name}, width {width}, {size}²"
        yield measure(label, "images/s", encode_work(config, steps), torch and torch_encode(config, steps))


def image_config(name: str, width: int, size: int, images: int) -> ConfigDict:
    """The CDP run with this encoder, and this many images in a training and in an encoding batch."""
    config = configuration.load_config("configs/cdp.py")[0]
    config.encoder.update(name=name, width=width)
    config.data.size, config.train.k, config.features.batch_size = size, images // 2, images
    return config


def fresh_state(config: ConfigDict) -> train.TrainState:
    return jax.jit(partial(train.init_state, config))(jax.random.key(0))


def random_images(config: ConfigDict) -> np.ndarray:
    shape = (config.features.batch_size, config.data.size, config.data.size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def train_work(config: ConfigDict, steps: int, devices: int = 1) -> Work:
    """The library's own steps, on a batch that is there."""
    mesh = parallel.make_mesh(devices, jax.devices()[:devices])
    step, abstract = train.make_step(config, mesh)
    compiled = step.lower(*abstract).compile()
    batch = parallel.shard(dict(zip("xy", np.split(random_images(config), 2), strict=True)), mesh)
    state = parallel.place(fresh_state(config), mesh)

    def work() -> int:
        nonlocal state
        for _ in range(steps):
            state, _ = compiled(state, batch, None)
        jax.block_until_ready(state)
        return steps * config.features.batch_size

    return work


def encode_work(config: ConfigDict, steps: int) -> Work:
    mesh = parallel.make_mesh(1)
    step, abstract = encode.make_step(config, mesh)
    compiled = step.lower(*abstract).compile()
    images = parallel.shard(random_images(config), mesh)
    state = fresh_state(config)
    frozen = parallel.place({"params": state.params["encoder"], "batch_stats": state.batch_stats}, mesh)

    def work() -> int:
        jax.block_until_ready([compiled(frozen, images, None) for _ in range(steps)])
        return steps * config.features.batch_size

    return work


def torch_resnet(name: str, width: int) -> "torch.nn.Module":
    """The same encoder, channels last, on the GPU where there is one."""
    stages, kind = STAGES[name]
    expansion = 4 if kind == "bottleneck" else 1

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> torch.nn.Sequential:
        layer = torch.nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return torch.nn.Sequential(layer, torch.nn.BatchNorm2d(outputs))

    def relu() -> torch.nn.Module:
        return torch.nn.ReLU(inplace=True)

    class Block(torch.nn.Module):
        def __init__(self, inputs: int, channels: int, stride: int) -> None:
            super().__init__()
            outputs = expansion * channels
            if kind == "bottleneck":
                layers = [conv(inputs, channels, 1), relu(), conv(channels, channels, 3, stride), relu()]
                layers.append(conv(channels, outputs, 1))
            else:
                layers = [conv(inputs, channels, 3, stride), relu(), conv(channels, outputs, 3)]
            self.layers = torch.nn.Sequential(*layers)
            self.shortcut = torch.nn.Identity() if inputs == outputs else conv(inputs, outputs, 1, stride)

        def forward(self, x):
            return torch.relu_(self.layers(x) + self.shortcut(x))

    layers, inputs = [conv(3, width, 7, 2), relu(), torch.nn.MaxPool2d(3, 2, 1)], width
    for stage, depth in enumerate(stages):
        for index in range(depth):
            layers.append(Block(inputs, width * 2**stage, 2 if stage > 0 and index == 0 else 1))
            inputs = expansion * width * 2**stage
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers).to(torch_device(), memory_format=torch.channels_last)


def torch_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_images(config: ConfigDict) -> "torch.Tensor":
    return torch.tensor(random_images(config), device=torch_device()).permute(0, 3, 1, 2)


def torch_train(config: ConfigDict, steps: int) -> Work:
    """The same step in eager PyTorch: fused AdamW, bfloat16 autocast on GPUs, the better of one thread and all."""
    encoder = torch_resnet(config.encoder.name, config.encoder.width)
    hidden, device = config.head.hidden[0], torch_device()
    features = config.encoder.width * (32 if STAGES[config.encoder.name][1] == "bottleneck" else 8)
    head = torch.nn.Sequential(
        torch.nn.Linear(features, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, config.head.features)
    ).to(device)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-3, fused=True)
    images, k = torch_images(config), config.train.k
    positives = torch.arange(2 * k, device=device).roll(k)
    itself = torch.eye(2 * k, dtype=torch.bool, device=device)

    def work() -> int:
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                z = head(encoder(images / 127.5 - 1)).float()
            z = torch.nn.functional.normalize(z)
            scores = (z @ z.T / config.train.temperature).masked_fill(itself, -torch.inf)
            loss = torch.nn.functional.cross_entropy(scores, positives)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the GPU
        return steps * 2 * k

    return with_best_threads(work)


def torch_encode(config: ConfigDict, steps: int) -> Work:
    encoder = torch_resnet(config.encoder.name, config.encoder.width).eval()
    images, device = torch_images(config), torch_device()

    @torch.inference_mode()
    def work() -> int:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            for _ in range(steps):
                h = encoder(images / 127.5 - 1)
        h[0, 0].item()
        return steps * len(images)

    return with_best_threads(work)


def with_best_threads(work: Work) -> Work:
    """The work, on one thread or on all that the process may use, whichever took less time now."""

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        work()
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    torch.set_num_threads(min((1, len(os.sched_getaffinity(0))), key=seconds))
    return work


def bench_estimate() -> Iterator[Row]:
    """Post-training estimates an hour: ResNet-18 of width 64 on 20,000 images of 64², 2,000 critic steps at K = 256.

    Ours encodes every image once and fits on what is cached; the peer is our own step with the encoder inside, as
    estimate.stream runs it. A part of the images and of the steps is timed, and scaled up to all.
    """
    images, steps, k = 20_000, 2000, 256
    timed = 1 if jax.default_backend() == "cpu" else 20
    config = image_config("resnet18", 64, 64, k)
    config.estimate.update(fit_k=k, k=k)
    yield (
        cached := measure("critic step, encoder in the loop", "steps/s", *critic_works(config, 200, timed), rounds=5)
    )
    encoded = measure("encode", "images/s", encode_work(config, 2 * timed), rounds=5)
    whole = [3600 / (images / encoded["ours"] + steps / cached["ours"]), 3600 * cached["peer"] / steps]
    name = "estimate, 20,000 images, encoder in the loop"
    yield {"name": name, "ours": whole[0], "peer": whole[1], "ratio": whole[0] / whole[1], "unit": "an hour"}


def critic_works(config: ConfigDict, cached_steps: int, streamed_steps: int) -> tuple[Work, Work]:
    """Critic steps on cached features, and on images through the frozen encoder."""
    k, mesh, rng = config.estimate.fit_k, parallel.make_mesh(1, jax.devices()[:1]), np.random.default_rng(0)
    labels, h = rng.integers(0, 64, 4096).astype(np.int32), rng.normal(size=(4096, 512)).astype(np.float32)
    classes = pairing.parse("all", ("class",), (64,))
    state = fresh_state(config)
    encoder = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    frozen = {"encoder": encoder, "mean": np.zeros(512, np.float32), "scale": np.ones(512, np.float32)}
    views = np.tile(random_images(config), (streamed_steps, 1, 1, 1, 1))
    validation = parallel.shard((h[None, :k], h[None, k : 2 * k]), mesh, estimate.WITHIN_BATCH)

    def work(steps: int, stream: bool, frozen: Any, batch: Any) -> Work:
        config.estimate.stream = stream
        whole = FrozenEncoder(train.make_encoder(config), encoder) if stream else None
        chunk, _ = estimate.make_step(config, mesh, {"fit": {"h": h}, "validation": {"h_x": h}}, classes, whole)
        keys = parallel.place(jax.random.split(jax.random.key(0), steps), mesh)
        start = jax.jit(partial(estimate.init_critic, config, h[:2], jax.random.key(0)))

        def run() -> int:
            jax.block_until_ready(chunk(start(), frozen, batch, validation, keys))
            return steps

        return run

    bank = parallel.place(make_bank(h, labels, classes.joint()), mesh)
    images = parallel.shard({"x": views, "y": views}, mesh, estimate.WITHIN_BATCH)
    return (
        work(cached_steps, False, {}, bank),
        work(streamed_steps, True, parallel.place(frozen, mesh), images),
    )


def bench_scaling() -> Iterator[Row]:
    """Images a second of the training step at 64 images a device, over 1, 2, 4, 8 of them; the peer is one device.

    Devices that share cores (JAX_NUM_CPU_DEVICES=8 makes them of a CPU) can show no more than that it still runs.
    """
    one = None
    for devices in (count for count in (1, 2, 4, 8) if count <= jax.device_count()):
        work = train_work(image_config("resnet18", 16, 64, 64 * devices), 2, devices)
        one = one or work
        yield measure(f"train resnet18, width 16, {devices} devices", "images/s", work, one, rounds=5)


def bench_input() -> Iterator[Row]:
    """Images a second of training steps fed by the pipeline; the peer is the same step on a batch that is there.

    streamed: every image rendered, copied and normalised; held: 4,096 images on the device, of which come rows.
    """
    accelerated = jax.default_backend() != "cpu"
    for name, width, size, images, steps in (
        ("resnet18", 16, 64, 128, 100 if accelerated else 5),
        *([("resnet50", 64, 224, 256, 10)] if accelerated else []),
    ):
        config = image_config(name, width, size, images)
        for held in (0, 4096):
            label = f"train {name}, {size}², {'held' if held else 'streamed'} images"
            yield measure(label, "images/s", fed_work(config, steps, held), train_work(config, steps), rounds=5)


def fed_work(config: ConfigDict, steps: int, held: int) -> Work:
    """Training steps on CDP images as a run reads them."""
    k, mesh = config.train.k, parallel.make_mesh(1, jax.devices()[:1])
    data = cdp.make(size=config.data.size)
    law = pairing.parse("all", data.names, data.sizes)
    images = data.finite(0, 0, held) if held else None
    read = images.row_pairs(law, 0, 1) if images else partial(data.pairs, law, 0, 0)
    threads = max(2, len(os.sched_getaffinity(0)) - 2)
    iterator = iter(batches(read, batch_size=k, threads=threads, prefetch=max(8, threads), place=views_on(mesh)))
    on_device = parallel.place(images.read(np.arange(held)), mesh) if images else None
    step, abstract = train.make_step(config, mesh, held)
    compiled = step.lower(*abstract).compile()
    state = parallel.place(fresh_state(config), mesh)

    def work() -> int:
        nonlocal state
        for _ in range(steps):
            state, _ = compiled(state, next(iterator), on_device)
        jax.block_until_ready(state)
        return 2 * k * steps

    return work


def bench_critic() -> Iterator[Row]:
    """Adam steps a second on in-batch InfoNCE, in float32 on every core the process may use (two: taskset -c 0,1).

    Both draw each step's batch from the same array on the device. The peer is what a PyTorch user writes who knows that
    a joint critic's first layer splits into one of x and one of y: the same layers, its own Adam, eager. Run it alone:
    where other work takes a core, PyTorch's waiting threads lose far more than ours, and the ratio flatters us.
    """
    hidden, features = (256, 256), 128
    with jax.default_device(jax.devices("cpu")[0]):
        x, y = Gaussian(20, 4.0).sample(jax.random.key(0), 6000)
        for name, critic, k, steps in (
            ("separable", SeparableCritic(hidden, features), 64, 500),
            ("joint", JointCritic(hidden), 256, 6),
        ):
            peer = torch and torch_critic(critic, x, y, k, steps)
            label = f"critic {name}, {hidden[0]} wide, K = {k}"
            yield measure(label, "steps/s", critic_work(critic, x, y, k, steps), peer)


def critic_work(critic: nn.Module, x: Float[Array, "n d"], y: Float[Array, "n e"], k: int, steps: int) -> Work:
    """The library's own steps from a fresh critic, in one dispatch."""
    recipe = Recipe(critic, (ESTIMATORS["info_nce"](),), batch_size=k, steps=steps)
    data, member = Pairs(x[None], y[None]), Member(*np.zeros((3,), np.int32))
    state = start_critic(member, data, data, recipe=recipe)

    @jax.jit
    def run(state, data, key):
        def step(state, key):
            rows = jax.random.randint(key, (k,), 0, data.x.shape[1])
            return critic_step(state, (data, member), rows, key, recipe=recipe)

        return jax.lax.scan(step, state, jax.random.split(key, steps))

    def work() -> int:
        jax.block_until_ready(run(state, data, jax.random.key(2)))
        return steps

    return work


def torch_critic(critic: nn.Module, x: Float[Array, "n d"], y: Float[Array, "n e"], k: int, steps: int) -> Work:
    """The same critic's steps in eager PyTorch."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    x, y = (torch.tensor(np.asarray(a)) for a in (x, y))

    def mlp(*widths: int) -> torch.nn.Module:
        layers = [layer for ends in pairwise(widths) for layer in (torch.nn.Linear(*ends), torch.nn.ReLU())]
        return torch.nn.Sequential(*layers[:-1])

    if isinstance(critic, JointCritic):
        width = critic.hidden[0]
        of_x, of_y = torch.nn.Linear(x.shape[1], width), torch.nn.Linear(y.shape[1], width, bias=False)
        rest = mlp(*critic.hidden, 1)
    else:
        of_x, of_y = (mlp(a.shape[1], *critic.hidden, critic.features) for a in (x, y))
        rest = torch.nn.Identity()

    def scores(x, y):
        if isinstance(critic, JointCritic):
            return rest(torch.relu(of_x(x)[:, None] + of_y(y)))[..., 0]
        return of_x(x) @ of_y(y).T

    optimizer = torch.optim.Adam([*of_x.parameters(), *of_y.parameters(), *rest.parameters()], lr=1e-3)
    positives = torch.arange(k)

    def work() -> int:
        for _ in range(steps):
            rows = torch.randint(len(x), (k,))
            loss = torch.nn.functional.cross_entropy(scores(x[rows], y[rows]), positives)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steps

    return work


def bench_nt_xent() -> Iterator[Row]:
    """NT-Xent with its gradient in float32, K pairs of 128 numbers; and the MiB it takes above them, less being better.

    Peers: the whole matrix of scores, where it fits; and nothing but the products, of the tiles on and above the
    diagonal once forward, and again backward with two more.
    """
    accelerator = jax.default_backend() != "cpu"
    for k in (2048, 8192, 65_536) if accelerator else (2048, 8192):
        z = jax.random.normal(jax.random.key(0), (2, k, 128))
        ours = jax.jit(jax.value_and_grad(lambda z: nt_xent(*z, 0.1))).lower(z).compile()
        peers = {"its products": jax.jit(partial(products, tile=min(2 * k, 8192 if accelerator else 512)))}
        mib, other = ours.memory_analysis().temp_size_in_bytes / 2**20, None
        if k <= 8192:
            peers["one matrix"] = jax.jit(jax.value_and_grad(as_one_matrix)).lower(z).compile()
            other = peers["one matrix"].memory_analysis().temp_size_in_bytes / 2**20
        for name, peer in peers.items():
            yield measure(f"nt_xent, K = {k}, {name}", "steps/s", once(ours, z), once(peer, z), rounds=5)
        ratio = other and mib / other
        yield {"name": f"nt_xent, K = {k}, memory", "ours": mib, "peer": other, "ratio": ratio, "unit": "MiB"}


def bench_info_nce() -> Iterator[Row]:
    """InfoNCE with its gradient, K pairs of 128 unit-length numbers at temperature 0.1.

    Peers: PyTorch on one matrix of scores (TF32 on GPUs, as JAX takes it), where that fits, and Inf-CL's kernels for
    GPUs. Their values are printed beside ours.
    """
    on_gpu = jax.default_backend() == "gpu"
    for k in (8192, 32_768, 65_536) if on_gpu else (2048,):
        z = jax.random.normal(jax.random.key(0), (2, k, 128))
        z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
        loss = jax.value_and_grad(lambda z: info_nce_embeddings(z[0] * 10, z[1]))
        for dtype in (jnp.float32, jnp.bfloat16):
            ours = jax.jit(loss).lower(z.astype(dtype)).compile()
            peers = {"one matrix": matrix_loss} if torch and k <= 32_768 else {}
            if torch and cal_flash_loss and on_gpu:
                peers["Inf-CL"] = partial(cal_flash_loss, scale=10.0, head_dim=128)
            for name, peer in peers.items():
                theirs = torch_info_nce(peer, np.asarray(z), torch.float32 if dtype == jnp.float32 else torch.bfloat16)
                label = f"info_nce, K = {k}, {jnp.dtype(dtype)}, {name}"
                yield measure(label, "steps/s", once(ours, z.astype(dtype)), theirs, rounds=5)
        print(f"  ours at K = {k}: {float(loss(z)[0]):.4f} nats")


def matrix_loss(q: "torch.Tensor", k: "torch.Tensor") -> "torch.Tensor":
    return torch.nn.functional.cross_entropy(10.0 * q @ k.T, torch.arange(len(q), device=q.device))


def torch_info_nce(loss: Callable[..., "torch.Tensor"], z: np.ndarray, dtype: "torch.dtype") -> Work:
    """Mean of both directions, and its gradient."""
    torch.set_float32_matmul_precision("high" if torch_device() == "cuda" else "highest")
    z = torch.tensor(z, device=torch_device(), dtype=dtype, requires_grad=True)
    value = None

    def work() -> int:
        nonlocal value
        z.grad = None
        total = (loss(z[0], z[1]).mean() + loss(z[1], z[0]).mean()) / 2
        total.backward()
        value = total.item()  # waits for the GPU
        return 1

    work()
    print(f"  PyTorch's: {math.log(z.shape[1]) - value:.4f} nats")
    return work


def once(step: Callable[[Array], Any], z: Array) -> Work:
    """One call of it."""

    def work() -> int:
        jax.block_until_ready(step(z))
        return 1

    return work


def as_one_matrix(z: Float[Array, "2 k d"]) -> Float[Array, ""]:
    """NT-Xent the short way."""
    z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    rows = z.reshape(-1, z.shape[-1])
    scores = jnp.where(jnp.eye(len(rows), dtype=bool), -jnp.inf, rows @ rows.T / 0.1)
    return jnp.mean(jax.nn.logsumexp(scores, axis=1)) - jnp.mean(jnp.sum(z[0] * z[1], axis=1)) / 0.1


def products(z: Float[Array, "2 k d"], *, tile: int) -> tuple[Array, Array]:
    """The matrix products of NT-Xent and its gradient, with nothing between them."""
    blocks = z.reshape(-1, tile, z.shape[-1])
    pairs = np.stack(np.triu_indices(len(blocks)), axis=1)

    def forward(largest, pair):
        return jnp.maximum(largest, jnp.max(blocks[pair[0]] @ blocks[pair[1]].T)), None

    def backward(sums, pair):
        i, j = pair
        scores = blocks[i] @ blocks[j].T
        return sums.at[i].add(scores @ blocks[j]).at[j].add(scores.T @ blocks[i]), None

    return jax.lax.scan(forward, -jnp.inf, pairs)[0], jax.lax.scan(backward, jnp.zeros_like(blocks), pairs)[0]


def bench_probe() -> Iterator[Row]:
    """Images a second that a linear probe is fitted to, and on a path of 20 penalties, whose peer is our own one fit.

    50,000 images of 512 correlated features, 100 classes. Ours includes choosing by 10,000 validation images. The
    peer's tol is the loosest that brings its objective to within 1e-4 nats of ours; its features are already
    standardised. A path that takes six times one fit's time has a ratio of 20 / 6 = 3.3.
    """
    n, d, classes, l2 = 50_000, 512, 100, 1e-4
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=n + 10_000)
    features = rng.normal(size=(len(labels), d)) + 0.18 * rng.normal(size=(classes, d))[labels]
    features = features * np.arange(1, d + 1) ** -0.75 @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    features = (features * np.exp(rng.normal(size=d))).astype(np.float32)
    x = ((features - features[:n].mean(axis=0)) / features[:n].std(axis=0)).astype(np.float32)
    fitted = {}

    def ours(penalties: list[float]) -> int:
        held_out = {"validation_features": features[n:], "validation_labels": labels[n:]}
        probe = fit_linear(features[:n], labels[:n], classes, l2=penalties, **held_out)
        if penalties == [l2]:
            fitted["ours"] = probe.kernel, probe.bias
        return n * len(penalties)

    def peer() -> int:
        regression = LogisticRegression(C=1 / (n * l2), tol=2e-5, max_iter=1000).fit(x[:n], labels[:n])
        fitted["peer"] = regression.coef_.T, regression.intercept_
        return n

    one, path = partial(ours, [l2]), partial(ours, np.logspace(-1, -5, 20).tolist())
    yield measure("probe, 50,000×512, 100 classes", "images/s", one, LogisticRegression and peer, rounds=3)
    yield measure("probe, 20 penalties over one", "images/s", path, one, rounds=3)
    for name, (kernel, bias) in fitted.items():
        logits = x @ kernel + bias
        loss = -log_softmax(logits[:n].astype(float), axis=1)[np.arange(n), labels[:n]].mean()
        accuracy = np.mean(logits[n:].argmax(axis=1) == labels[n:])
        print(f"  {name}: objective {loss + l2 / 2 * np.sum(kernel**2):.5f} nats, accuracy {accuracy:.4f}")


COLUMNS = {"ratio": ".2f", "ours": ",.1f", "peer": ",.1f"}
PARTS = {
    "train": bench_train,
    "encode": bench_encode,
    "estimate": bench_estimate,
    "critic": bench_critic,
    "nt_xent": bench_nt_xent,
    "info_nce": bench_info_nce,
    "probe": bench_probe,
    "cdp": bench_cdp,
    "input": bench_input,
    "scaling": bench_scaling,
}


def peak_memory() -> Row:
    """The most that the first device's arrays took at once, where it counts them; else the process."""
    used = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    # Linux counts in KiB, macOS in bytes.
    used = used or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"name": "peak memory of all the above", "ours": used / 2**20, "peer": None, "ratio": None, "unit": "MiB"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"comma-separated, of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - PARTS.keys():
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose of {', '.join(PARTS)}")
    parallel.keep_freed_memory()  # as runs do, and for the peers too
    device = jax.devices()[0].device_kind
    print(f"on {jax.device_count()} × {device}, {os.cpu_count()} cores, {platform.platform()}, jax {jax.__version__}")
    print(f"load {os.getloadavg()[0]:.1f}\n{'':48s} {'ratio':>7s} {'ours':>10s} {'peer':>10s}", flush=True)
    rows = []
    with jax.profiler.trace(options.profile) if options.profile else contextlib.nullcontext():
        for part in options.only.split(","):
            rows += [show(row) for row in PARTS[part]()]
    rows.append(show(peak_memory()))
    if options.json:
        options.json.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def show(row: Row) -> Row:
    ratio, ours, peer = ("-" if row[key] is None else f"{row[key]:{form}}" for key, form in COLUMNS.items())
    print(f"{row['name']:48s} {ratio:>7s} {ours:>10s} {peer:>10s} {row['unit']}", flush=True)
    return row


if __name__ == "__main__":
    main()
