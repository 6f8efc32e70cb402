"""The steps that benchmark.py and benchmark_gpu.py time: the library's own, and the same steps in PyTorch."""

import math
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from benchmark_rows import OURS, cores
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mirigor_jax import config_files, parallel
from mirigor_jax.data import cdp, pairing
from mirigor_jax.data.attributes import uniform
from mirigor_jax.data.pipeline import batches
from mirigor_jax.mi import ESTIMATORS, JointCritic
from mirigor_jax.mi.fit import CriticJob, FitConfig, Pairs, critic_step, make_bank, start_critic
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.models.resnet import STAGES
from mirigor_jax.models.vit import ENCODERS as VITS
from mirigor_jax.runs.job import Job, without_images
from mirigor_jax.runs.steps import (
    WITHIN_BATCH,
    first_state,
    init_critic,
    make_critic_step,
    make_encode_step,
    make_train_step,
)
from mirigor_jax.training import TrainState

try:
    import torch
except ImportError:
    torch = None

Work = Callable[[], int]  # does some work, and returns its number of items


class Peer(NamedTuple):
    """Work that ours is compared with.

    name: another library with its version and flags; or OURS and the words for the work, if it is this library's own.
    """

    work: Work
    name: str


def our_own(work: Work, what: str) -> Peer:
    """Make this library's own work the peer of another part of the library. what: the words for the work."""
    return Peer(work, OURS + what)


def views_on(mesh: Mesh) -> Callable[[dict[str, np.ndarray]], dict[str, Array]]:
    """The function that places a batch on the devices of `mesh`, as training does."""
    return lambda batch: parallel.shard({"x": batch["x"], "y": batch["y"]}, mesh)


def image_config(name: str, width: int | None, size: int, images: int) -> ConfigDict:
    """The config of a CDP run with this encoder.

    name: name of the encoder.
    width: None if the encoder's name determines its width.
    size: side of the images, pixels.
    images: number of images in a training batch and in an encoding batch.
    """
    config = config_files.load_config("configs/cdp.py")[0]
    config.encoder.update(name=name, width=width)
    config.data.size, config.train.k, config.features.batch_size = size, images // 2, images
    return config


def job_of(config: ConfigDict) -> Job:
    """The job of this config, with 64 equally frequent classes. It reads no images."""
    return without_images(config, pairing.parse("all", uniform(("class",), (64,))))


def fresh_state(config: ConfigDict) -> TrainState:
    """The state at the start of a training, on one device."""
    job, mesh = job_of(config), parallel.make_mesh(1, jax.devices()[:1])
    _, (state, *_) = make_train_step(job, mesh)
    return first_state(job, state)


def random_images(config: ConfigDict) -> np.ndarray:
    """An encoding batch of images of noise."""
    shape = (config.features.batch_size, config.data.size, config.data.size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def train_work(config: ConfigDict, steps: int, devices: int = 1) -> Work:
    """The library's own training steps, on one batch that is on the device."""
    mesh = parallel.make_mesh(devices, jax.devices()[:devices])
    step, abstract = make_train_step(job_of(config), mesh)
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
    """The library's own encode steps, on one batch that is on the device."""
    mesh = parallel.make_mesh(1)
    step, abstract = make_encode_step(job_of(config), mesh)
    compiled = step.lower(*abstract).compile()
    images = parallel.shard(random_images(config), mesh)
    state = fresh_state(config)
    frozen = parallel.place({"params": state.params["encoder"], "batch_stats": state.batch_stats}, mesh)

    def work() -> int:
        jax.block_until_ready([compiled(frozen, images, None) for _ in range(steps)])
        return steps * config.features.batch_size

    return work


def torch_resnet(name: str, width: int) -> "torch.nn.Module":
    """The library's ResNet of this name and width, in PyTorch."""
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
    return torch.nn.Sequential(*layers)


def torch_vit(size: int, width: int, depth: int, heads: int, patch: int = 16) -> "torch.nn.Module":
    """The library's ViT of these sizes, made of PyTorch's own layers."""

    class ViT(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Conv2d(3, width, patch, patch)
            self.token = torch.nn.Parameter(torch.zeros(1, 1, width))
            self.positions = torch.nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, width))
            options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
            layers = (torch.nn.TransformerEncoderLayer(width, heads, 4 * width, **options) for _ in range(depth))
            self.blocks = torch.nn.Sequential(*layers)
            self.norm = torch.nn.LayerNorm(width)

        def forward(self, images):
            x = self.embed(images).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
            return self.norm(self.blocks(x)[:, 0])

    return ViT()


def torch_encoder(config: ConfigDict) -> tuple["torch.nn.Module", int]:
    """(The config's encoder in PyTorch, channels last, on the GPU if there is one; its number of features)."""
    name = config.encoder.name
    if name in STAGES:
        width = config.encoder.width
        encoder, features = torch_resnet(name, width), width * (32 if STAGES[name][1] == "bottleneck" else 8)
    else:
        sizes = VITS[name][1]
        encoder, features = torch_vit(config.data.size, **sizes), sizes["width"]
    return encoder.to(torch_device(), memory_format=torch.channels_last), features


def torch_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_autocast() -> "torch.autocast":
    """The context in which PyTorch computes in bfloat16 on GPUs and in float32 on CPUs, as our code does."""
    return torch.autocast(torch_device(), torch.bfloat16, enabled=torch_device() == "cuda")


def torch_name(*flags: str) -> str:
    """PyTorch's name as a peer: its version, these flags, and its present number of threads."""
    threads = torch.get_num_threads()
    return ", ".join([f"PyTorch {torch.__version__}", *flags, f"{threads} thread{'s' * (threads > 1)}"])


def torch_dtype_name() -> str:
    return "bf16 autocast, TF32, cudnn.benchmark" if torch_device() == "cuda" else "float32"


def tune_torch() -> None:
    """Make PyTorch choose as JAX does on GPUs: TF32 for float32, and the fastest of cuDNN's convolutions."""
    torch.set_float32_matmul_precision("high" if torch_device() == "cuda" else "highest")
    torch.backends.cudnn.benchmark = True


def torch_images(config: ConfigDict) -> "torch.Tensor":
    return torch.tensor(random_images(config), device=torch_device()).permute(0, 3, 1, 2)


def torch_train(config: ConfigDict, steps: int, compiled: bool = False) -> Peer:
    """The same training steps in PyTorch, with fused AdamW, bfloat16 autocast on GPUs, and one thread or all.

    compiled: bool. If true, torch.compile(mode="max-autotune") compiles the network and the loss, with CUDA graphs on
        GPUs. If false, both are eager.
    """
    encoder, features = torch_encoder(config)
    hidden, device = config.head.hidden[0], torch_device()
    head = torch.nn.Sequential(
        torch.nn.Linear(features, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, config.head.features)
    ).to(device)
    k = config.train.k
    positives = torch.arange(2 * k, device=device).roll(k)
    itself = torch.eye(2 * k, dtype=torch.bool, device=device)

    def loss_of(images: torch.Tensor) -> torch.Tensor:
        with torch_autocast():
            z = head(encoder(images / 127.5 - 1))
        z = torch.nn.functional.normalize(z.float())
        scores = (z @ z.T / config.train.temperature).masked_fill(itself, -torch.inf)
        return torch.nn.functional.cross_entropy(scores, positives)

    loss = torch.compile(loss_of, mode="max-autotune") if compiled else loss_of
    how = ["torch.compile(max-autotune)", *(["CUDA graphs"] if device == "cuda" else [])] if compiled else ["eager"]
    work = torch_steps(loss, [*encoder.parameters(), *head.parameters()], config, steps)
    return Peer(work, torch_name(*how, "channels last", torch_dtype_name()))


def torch_steps(
    loss_of: Callable[["torch.Tensor"], "torch.Tensor"], parameters: Any, config: ConfigDict, steps: int
) -> Work:
    """Steps of fused AdamW on the loss of one batch on the device, on one thread or on all, whichever is faster."""
    tune_torch()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    images = torch_images(config)

    def work() -> int:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of(images)
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the GPU
        return steps * len(images)

    return with_best_threads(work)


def torch_encode(config: ConfigDict, steps: int) -> Peer:
    """The same encode steps in eager PyTorch."""
    tune_torch()
    encoder, images = torch_encoder(config)[0].eval(), torch_images(config)

    @torch.inference_mode()
    def work() -> int:
        with torch_autocast():
            for _ in range(steps):
                h = encoder(images / 127.5 - 1)
        h[0, 0].item()
        return steps * len(images)

    with_best_threads(work)
    return Peer(work, torch_name("eager", "channels last", torch_dtype_name()))


def with_best_threads(work: Work) -> Work:
    """Set PyTorch's threads to the number with which the work is faster, and return the work.

    On CPUs this times the work on one thread and on all cores that the process may use. With a GPU it sets all.
    """

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        work()
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    torch.set_num_threads(min((1, cores()), key=seconds) if torch_device() == "cpu" else cores())
    return work


def critic_works(config: ConfigDict, cached_steps: int, streamed_steps: int) -> tuple[Work, Work]:
    """(Critic steps on cached features, critic steps on images that the frozen encoder encodes in each step)."""
    k, mesh, rng = config.estimate.batch_size, parallel.make_mesh(1, jax.devices()[:1]), np.random.default_rng(0)
    labels, h = rng.integers(0, 64, 4096).astype(np.int32), rng.normal(size=(4096, 512)).astype(np.float32)
    job = job_of(config)
    state = fresh_state(config)
    encoder = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    frozen = {"encoder": encoder, "mean": np.zeros(512, np.float32), "scale": np.ones(512, np.float32)}
    views = np.tile(random_images(config), (streamed_steps, 1, 1, 1, 1))
    validation = parallel.shard((h[None, :k], h[None, k : 2 * k]), mesh, WITHIN_BATCH)

    def work(steps: int, stream: bool, frozen: Any, batch: Any) -> Work:
        config.estimate.stream = stream
        whole = FrozenEncoder(job.encoder(), encoder) if stream else None
        chunk, _ = make_critic_step(job, mesh, {"fit": {"h": h}, "validation": {"h_x": h}}, whole)
        keys = parallel.place(jax.random.split(jax.random.key(0), steps), mesh)
        start = jax.jit(partial(init_critic, job, h[:2], jax.random.key(0)))

        def run() -> int:
            jax.block_until_ready(chunk(start(), frozen, batch, validation, keys))
            return steps

        return run

    bank = parallel.place(make_bank(h, labels, job.pairing.by_class.joint()), mesh)
    images = parallel.shard({"x": views, "y": views}, mesh, WITHIN_BATCH)
    return (
        work(cached_steps, False, {}, bank),
        work(streamed_steps, True, parallel.place(frozen, mesh), images),
    )


def fed_work(config: ConfigDict, steps: int, num_resident: int) -> Work:
    """Training steps on CDP images that the pipeline feeds as in a run.

    num_resident: number of images on the device; 0: every batch is rendered and copied there.
    """
    k, mesh = config.train.k, parallel.make_mesh(1, jax.devices()[:1])
    data = cdp.make(size=config.data.size)
    shared = pairing.parse("all", data.space)
    images = data.finite(0, 0, num_resident) if num_resident else None
    read = images.row_pairs(shared, 0, 1) if images else partial(shared.draw, data, 0, 0)
    threads = max(2, cores() - 2)
    iterator = iter(batches(read, batch_size=k, threads=threads, prefetch=max(8, threads), place=views_on(mesh)))
    on_device = parallel.place(images.read(np.arange(num_resident)), mesh) if images else None
    step, abstract = make_train_step(job_of(config), mesh, num_resident)
    compiled = step.lower(*abstract).compile()
    state = parallel.place(fresh_state(config), mesh)

    def work() -> int:
        nonlocal state
        for _ in range(steps):
            state, _ = compiled(state, next(iterator), on_device)
        jax.block_until_ready(state)
        return 2 * k * steps

    return work


def critic_work(critic: nn.Module, x: Float[Array, "n d"], y: Float[Array, "n e"], k: int, steps: int) -> Work:
    """The library's own critic steps, from a fresh critic and in one dispatch."""
    rates = {"learning_rate": 1e-3, "weight_decay": 0.0}
    fit_config = FitConfig(critic, (ESTIMATORS["info_nce"](),), batch_size=k, steps=steps, **rates)
    data, critic_job = Pairs(x[None], y[None]), CriticJob(*np.zeros((3,), np.int32))
    state = start_critic(critic_job, data, data, fit_config=fit_config)

    @jax.jit
    def run(state, data, key):
        def step(state, key):
            rows = jax.random.randint(key, (k,), 0, data.x.shape[1])
            return critic_step(state, (data, critic_job), rows, key, fit_config=fit_config)

        return jax.lax.scan(step, state, jax.random.split(key, steps))

    def work() -> int:
        jax.block_until_ready(run(state, data, jax.random.key(2)))
        return steps

    return work


def torch_critic(critic: nn.Module, x: Float[Array, "n d"], y: Float[Array, "n e"], k: int, steps: int) -> Peer:
    """The same critic steps in eager PyTorch."""
    torch.set_num_threads(cores())
    x, y = (torch.tensor(np.asarray(a)) for a in (x, y))

    def mlp(*widths: int) -> torch.nn.Module:
        layers = [layer for ends in pairwise(widths) for layer in (torch.nn.Linear(*ends), torch.nn.ReLU())]
        return torch.nn.Sequential(*layers[:-1])

    if isinstance(critic, JointCritic):
        width = critic.hidden[0]
        encode_x, encode_y = torch.nn.Linear(x.shape[1], width), torch.nn.Linear(y.shape[1], width, bias=False)
        rest = mlp(*critic.hidden, 1)
    else:
        encode_x, encode_y = (mlp(a.shape[1], *critic.hidden, critic.features) for a in (x, y))
        rest = torch.nn.Identity()

    def scores(x, y):
        if isinstance(critic, JointCritic):
            return rest(torch.relu(encode_x(x)[:, None] + encode_y(y)))[..., 0]
        return encode_x(x) @ encode_y(y).T

    optimizer = torch.optim.Adam([*encode_x.parameters(), *encode_y.parameters(), *rest.parameters()], lr=1e-3)
    positives = torch.arange(k)

    def work() -> int:
        for _ in range(steps):
            rows = torch.randint(len(x), (k,))
            loss = torch.nn.functional.cross_entropy(scores(x[rows], y[rows]), positives)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steps

    return Peer(work, torch_name("eager", "float32"))


def matrix_loss(q: "torch.Tensor", k: "torch.Tensor") -> "torch.Tensor":
    return torch.nn.functional.cross_entropy(10.0 * q @ k.T, torch.arange(len(q), device=q.device))


def torch_info_nce(loss: Callable[..., "torch.Tensor"], z: np.ndarray, dtype: "torch.dtype") -> Peer:
    """InfoNCE, the mean of both directions, with its gradient in PyTorch. loss: contrastive loss of one direction."""
    tune_torch()
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
    return Peer(work, torch_name("eager", str(dtype).removeprefix("torch.")))


def once(step: Callable[[Array], Any], z: Array) -> Work:
    """The work of one call of the step."""

    def work() -> int:
        jax.block_until_ready(step(z))
        return 1

    return work


def as_one_matrix(z: Float[Array, "2 k d"]) -> Float[Array, ""]:
    """NT-Xent from the whole matrix of scores."""
    z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    rows = z.reshape(-1, z.shape[-1])
    scores = jnp.where(jnp.eye(len(rows), dtype=bool), -jnp.inf, rows @ rows.T / 0.1)
    return jnp.mean(jax.nn.logsumexp(scores, axis=1)) - jnp.mean(jnp.sum(z[0] * z[1], axis=1)) / 0.1


def products(z: Float[Array, "2 k d"], *, tile: int) -> tuple[Array, Array]:
    """The matrix products of NT-Xent and its gradient alone, tile by tile."""
    blocks = z.reshape(-1, tile, z.shape[-1])
    pairs = np.stack(np.triu_indices(len(blocks)), axis=1)

    def forward(largest, pair):
        return jnp.maximum(largest, jnp.max(blocks[pair[0]] @ blocks[pair[1]].T)), None

    def backward(sums, pair):
        i, j = pair
        scores = blocks[i] @ blocks[j].T
        return sums.at[i].add(scores @ blocks[j]).at[j].add(scores.T @ blocks[i]), None

    return jax.lax.scan(forward, -jnp.inf, pairs)[0], jax.lax.scan(backward, jnp.zeros_like(blocks), pairs)[0]
