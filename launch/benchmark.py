"""Measure the speed of the library's parts on this machine, beside those peers that are installed.

python launch/benchmark.py                      every part; `pip install -e ".[bench]"` brings the peers
python launch/benchmark.py --only=train,encode  ResNet training and inference
python launch/benchmark.py --only=input         training fed by the pipeline, or from images held on the device
python launch/benchmark.py --only=estimate      a post-training estimate, against one with the encoder in every step
python launch/benchmark.py --only=critic        critic steps on arrays
python launch/benchmark.py --only=nt_xent       NT-Xent with its gradient, against one matrix, and products alone
python launch/benchmark.py --only=info_nce      InfoNCE with its gradient, against PyTorch and Inf-CL (inf_cl on PyPI)
python launch/benchmark.py --only=probe         linear probes against scikit-learn's
python launch/benchmark.py --only=cdp           CDP rendering, and the pipeline that feeds a step that does nothing
python launch/benchmark.py --only=scaling       the training step over 1, 2, 4 and 8 devices
python launch/benchmark.py --quick              the most important rows, in three rounds: 2 minutes on two cores
python launch/benchmark.py --json=FILE          writes JSON too: {"machine": {...}, "rows": [{name, ours, ...}, ...]}
python launch/benchmark.py --against=FILE       compares with that JSON of another run or tree
python launch/benchmark.py --profile=FOLDER     writes a trace of the whole benchmark for Perfetto or XProf

Prints one row for each measurement. Each number is the median of several rounds, in which our code and the peer's take
turns in this one process. launch/benchmark_gpu.py compares training on a GPU with compiled peers.
"""

import argparse
import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mirigor_jax import starting

starting.keep_freed_memory()  # as runs do; it also serves the peers
starting.keep_compiled_programs()
starting.choose_convolutions()

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_rows import HEADER, Results, Row, compare, describe, machine, parse_options, share_of_peak, show, write
from benchmark_steps import (
    Peer,
    Work,
    as_one_matrix,
    critic_work,
    critic_works,
    encode_work,
    fed_work,
    image_config,
    matrix_loss,
    once,
    our_own,
    products,
    torch,
    torch_critic,
    torch_encode,
    torch_info_nce,
    torch_train,
    train_work,
    views_on,
)
from scipy.special import log_softmax

from mirigor_jax import memory, parallel
from mirigor_jax.data import cdp, pairing
from mirigor_jax.data.pipeline import batches
from mirigor_jax.mi import JointCritic, SeparableCritic
from mirigor_jax.mi.contrastive import info_nce_from_embeddings, nt_xent
from mirigor_jax.mi.distributions import Gaussian
from mirigor_jax.probes import fit_linear

try:
    from inf_cl import cal_flash_loss
except ImportError:
    cal_flash_loss = None
try:
    from sklearn.linear_model import LogisticRegression
except ImportError:
    LogisticRegression = None

memory.run_in_calling_thread()


def measure(name: str, unit: str, ours: Work, peer: Peer | None = None, rounds: int = 7) -> Row:
    """Measure the median items a second of our work and of the peer's.

    The two take turns in every round. One more round, the first, warms up and does not count.
    """
    rates: dict[Work, list[float]] = {work: [] for work in (ours, peer and peer.work) if work}
    for _ in range(1 + rounds):
        for work, samples in rates.items():
            if peer:
                time.sleep(0.5)  # the other's threads may spin for so long while they wait for more work
            start = time.perf_counter()
            items = work()
            samples.append(items / (time.perf_counter() - start))
    medians = {work: statistics.median(samples[1:]) for work, samples in rates.items()}
    return Row(name, medians[ours], unit, *((medians[peer.work], peer.name) if peer else ()))


def bench_cdp() -> Iterator[Row]:
    """Images a second at 64×64, in batches of 256 pairs: rendered on one core, and fed to a step as in training.

    The peer of a pipeline row is the same pipeline without its last stage.
    """
    data = cdp.make()
    read = partial(pairing.parse("all", data.space).draw, data, 0, 0)
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
    to_host = our_own(pipeline(lambda batch: None), "to host memory")
    yield measure("cdp pipeline, on to the device", "images/s", placed, to_host)
    to_device = our_own(placed, "on to the device")
    yield measure("cdp pipeline, into a step that does nothing", "images/s", fed, to_device)


def bench_train(quick: bool = False) -> Iterator[Row]:
    """Images a second of whole training steps on one device: NT-Xent, AdamW, encoder and projection head.

    The dtype is training's default; PyTorch's autocast has the same. Accelerators also train ResNet-50 at 224², and get
    a row with the share of the chip's peak that its additions and multiplications reach.
    """
    accelerated = jax.default_backend() != "cpu"
    cases = [
        ("resnet18", 64, 64, 64, 30 if accelerated else 2),
        ("resnet18", 16, 64, 64, 30 if accelerated else 10),
        *([("resnet50", 64, 224, 256, 5)] if accelerated else []),
    ]
    for name, width, size, images, steps in cases[1:2] if quick else cases:
        steps = steps // 2 if quick else steps
        config = image_config(name, width, size, images)
        label = f"train {name}, width {width}, {size}²"
        peer = torch and torch_train(config, steps)
        row = measure(label, "images/s", train_work(config, steps), peer, rounds=3 if quick else 7)
        yield row
        kind = jax.devices()[0].device_kind
        if name == "resnet50" and (share := share_of_peak(name, size, row.ours, kind)):
            peer_share = share_of_peak(name, size, row.peer, kind)
            yield Row(f"{label}, of the chip's peak", share, "%", peer_share, row.peer_name)


def bench_encode(quick: bool = False) -> Iterator[Row]:
    """Images a second that the frozen encoder encodes on one device, in the dtype of its training."""
    accelerated = jax.default_backend() != "cpu"
    cases = [
        ("resnet18", 64, 64, 30 if accelerated else 4),
        ("resnet18", 16, 64, 30 if accelerated else 20),
        *([("resnet50", 64, 224, 10)] if accelerated else []),
    ]
    for name, width, size, steps in cases[1:2] if quick else cases:
        steps = steps // 2 if quick else steps
        config = image_config(name, width, size, 256 if accelerated else 64)
        label = f"encode {name}, width {width}, {size}²"
        peer = torch and torch_encode(config, steps)
        yield measure(label, "images/s", encode_work(config, steps), peer, rounds=3 if quick else 7)


def bench_estimate() -> Iterator[Row]:
    """Post-training estimates an hour: ResNet-18 of width 64 on 20,000 images of 64², 2,000 critic steps at K = 256.

    Our estimate encodes every image once and fits the critic on the cached features. The peer is our own step with the
    encoder inside, as estimate.stream runs it. The times are those of some images and steps, scaled up to all.
    """
    images, steps, k = 20_000, 2000, 256
    timed = 1 if jax.default_backend() == "cpu" else 20
    config = image_config("resnet18", 64, 64, k)
    config.estimate.update(batch_size=k, k=k)
    cached_work, streamed_work = critic_works(config, 200, timed)
    peer = our_own(streamed_work, "the encoder in the loop")
    yield (cached := measure("critic step, encoder in the loop", "steps/s", cached_work, peer, rounds=5))
    encoded = measure("encode", "images/s", encode_work(config, 2 * timed), rounds=5)
    ours, theirs = 3600 / (images / encoded.ours + steps / cached.ours), 3600 * cached.peer / steps
    yield Row("estimate, 20,000 images, encoder in the loop", ours, "an hour", theirs, peer.name)


def bench_scaling() -> Iterator[Row]:
    """Images a second of the training step with 64 images a device, on 1, 2, 4 and 8 devices; the peer is one device.

    JAX_NUM_CPU_DEVICES=8 makes eight devices of a CPU. They share its cores, so they show only that the step runs.
    """
    on_one_device = None
    for devices in (count for count in (1, 2, 4, 8) if count <= jax.device_count()):
        work = train_work(image_config("resnet18", 16, 64, 64 * devices), 2, devices)
        on_one_device = on_one_device or our_own(work, "one device")
        yield measure(f"train resnet18, width 16, {devices} devices", "images/s", work, on_one_device, rounds=5)


def bench_input() -> Iterator[Row]:
    """Images a second of training steps that the pipeline feeds; the peer is the same step on one batch on the device.

    Streamed images are rendered, copied and normalized for every batch. Resident images, 4,096 of them, are on the
    device, and the pipeline sends only the numbers of their rows.
    """
    accelerated = jax.default_backend() != "cpu"
    for name, width, size, images, steps in (
        ("resnet18", 16, 64, 128, 100 if accelerated else 5),
        *([("resnet50", 64, 224, 256, 10)] if accelerated else []),
    ):
        config = image_config(name, width, size, images)
        for num_resident in (0, 4096):
            label = f"train {name}, {size}², {'resident' if num_resident else 'streamed'} images"
            there = our_own(train_work(config, steps), "the step on a batch that is there")
            yield measure(label, "images/s", fed_work(config, steps, num_resident), there, rounds=5)


def bench_critic(quick: bool = False) -> Iterator[Row]:
    """Adam steps a second on in-batch InfoNCE, in float32 on every core the process may use (two: taskset -c 0,1).

    Both draw each step's batch from the same array on the device. The peer is eager PyTorch with the same layers and
    PyTorch's own Adam. It splits a joint critic's first layer into one of x and one of y, as a skilled user would. Run
    this benchmark alone: if other work takes a core, PyTorch's waiting threads lose far more time than ours, and the
    ratio flatters us.
    """
    hidden, features = (256, 256), 128
    with jax.default_device(jax.devices("cpu")[0]):
        x, y = Gaussian(20, 4.0).sample(jax.random.key(0), 6000)
        cases = [
            ("separable", SeparableCritic(hidden, features), 64, 500),
            ("joint", JointCritic(hidden), 256, 6),
        ]
        for name, critic, k, steps in cases[1:] if quick else cases:
            steps = steps // 2 if quick else steps
            peer = torch and torch_critic(critic, x, y, k, steps)
            label = f"critic {name}, {hidden[0]} wide, K = {k}"
            yield measure(label, "steps/s", critic_work(critic, x, y, k, steps), peer, rounds=3 if quick else 7)


def bench_nt_xent(quick: bool = False) -> Iterator[Row]:
    """Steps a second and temporary memory in MiB of NT-Xent with its gradient, in float32 on K pairs of 128 numbers.

    One peer computes the whole matrix of scores, if it fits. The other computes the matrix products alone: one for each
    tile on and above the diagonal in the forward pass, and in the backward pass the same with two more.
    """
    accelerator = jax.default_backend() != "cpu"
    for k in (2048,) if quick else (2048, 8192, 65_536) if accelerator else (2048, 8192):
        z = jax.random.normal(jax.random.key(0), (2, k, 128))
        ours = jax.jit(jax.value_and_grad(lambda z: nt_xent(*z, 0.1))).lower(z).compile()
        peers = {}
        if not quick:
            peers["its products"] = jax.jit(partial(products, tile=min(2 * k, 8192 if accelerator else 512)))
        mib, other = ours.memory_analysis().temp_size_in_bytes / 2**20, None
        if k <= 8192:
            peers["one matrix"] = jax.jit(jax.value_and_grad(as_one_matrix)).lower(z).compile()
            other = peers["one matrix"].memory_analysis().temp_size_in_bytes / 2**20
        for name, peer in peers.items():
            label = f"nt_xent, K = {k}, {name}"
            yield measure(label, "steps/s", once(ours, z), Peer(once(peer, z), name), rounds=3 if quick else 5)
        yield Row(f"nt_xent, K = {k}, memory", mib, "MiB", other, None if other is None else "one matrix")


def bench_info_nce() -> Iterator[Row]:
    """Steps a second of InfoNCE with its gradient, on K pairs of unit vectors of 128 numbers, at temperature 0.1.

    The peers are PyTorch on one matrix of scores, if that fits (with TF32 on GPUs, as in JAX), and Inf-CL's kernels for
    GPUs. Prints their values beside ours.
    """
    on_gpu = jax.default_backend() == "gpu"
    for k in (8192, 32_768, 65_536) if on_gpu else (2048,):
        z = jax.random.normal(jax.random.key(0), (2, k, 128))
        z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
        loss = jax.value_and_grad(lambda z: info_nce_from_embeddings(z[0] * 10, z[1]))
        for dtype in (jnp.float32, jnp.bfloat16):
            ours = jax.jit(loss).lower(z.astype(dtype)).compile()
            peers = {"one matrix": (matrix_loss, "")} if torch and k <= 32_768 else {}
            if torch and cal_flash_loss and on_gpu:
                loss_of = partial(cal_flash_loss, scale=10.0, head_dim=128)
                peers["Inf-CL"] = loss_of, f"Inf-CL {version('inf_cl')} on "
            for name, (peer, library) in peers.items():
                theirs = torch_info_nce(peer, np.asarray(z), torch.float32 if dtype == jnp.float32 else torch.bfloat16)
                theirs = theirs._replace(name=library + theirs.name)
                label = f"info_nce, K = {k}, {jnp.dtype(dtype)}, {name}"
                yield measure(label, "steps/s", once(ours, z.astype(dtype)), theirs, rounds=5)
        print(f"  ours at K = {k}: {float(loss(z)[0]):.4f} nats")


def bench_probe() -> Iterator[Row]:
    """Images a second of fitting a linear probe, with one penalty and with a path of 20 penalties.

    There are 50,000 images with 512 correlated features and 100 classes. Our time includes the choice on 10,000
    validation images. The peer gets standardized features, and the loosest tol that brings its objective to within 1e-4
    nats of ours. The path's peer is our own single fit: if the path takes six times as long, its ratio is 20 / 6 = 3.3.
    """
    n, d, classes, l2 = 50_000, 512, 100, 1e-4
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=n + 10_000)
    features = rng.normal(size=(len(labels), d)) + 0.18 * rng.normal(size=(classes, d))[labels]
    features = features * np.arange(1, d + 1) ** -0.75 @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    features = (features * np.exp(rng.normal(size=d))).astype(np.float32)
    x = ((features - features[:n].mean(axis=0)) / features[:n].std(axis=0)).astype(np.float32)
    fitted = {}
    options = {"solver": "lbfgs", "tol": 2e-5, "max_iter": 1000}

    def ours(penalties: list[float]) -> int:
        held_out = {"validation_features": features[n:], "validation_labels": labels[n:]}
        probe = fit_linear(features[:n], labels[:n], classes, l2=penalties, **held_out)
        if penalties == [l2]:
            fitted["ours"] = probe.kernel, probe.bias
        return n * len(penalties)

    def peer() -> int:
        regression = LogisticRegression(C=1 / (n * l2), **options).fit(x[:n], labels[:n])
        fitted["peer"] = regression.coef_.T, regression.intercept_
        return n

    single, path = partial(ours, [l2]), partial(ours, np.logspace(-1, -5, 20).tolist())
    theirs = LogisticRegression and Peer(peer, f"scikit-learn {version('scikit-learn')}, LogisticRegression, {options}")
    yield measure("probe, 50,000×512, 100 classes", "images/s", single, theirs, rounds=3)
    yield measure("probe, 20 penalties over one", "images/s", path, our_own(single, "one fit"), rounds=3)
    for name, (kernel, bias) in fitted.items():
        logits = x @ kernel + bias
        loss = -log_softmax(logits[:n].astype(float), axis=1)[np.arange(n), labels[:n]].mean()
        accuracy = np.mean(logits[n:].argmax(axis=1) == labels[n:])
        print(f"  {name}: objective {loss + l2 / 2 * np.sum(kernel**2):.5f} nats, accuracy {accuracy:.4f}")


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


QUICK_PARTS = {name: partial(PARTS[name], quick=True) for name in ("train", "encode", "critic", "nt_xent")}


def peak_memory(parts: str) -> Row:
    """Peak memory of the first device's arrays, or of the process if the device counts none. parts: for the name."""
    used = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    # Linux counts in KiB, macOS in bytes.
    used = used or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Row(f"peak memory of {parts}", used / 2**20, "MiB")


def main() -> None:
    """Measure the parts that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PARTS", help=f"comma-separated, of {', '.join(PARTS)}")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="train and encode at width 16, the joint critic, and NT-Xent at K = 2,048 against one matrix, in 3 rounds "
        "rather than 5 or 7; leaves out width 64, ResNet-50, the separable critic, larger K and every other part",
    )
    parser.add_argument("--profile", type=Path, metavar="FOLDER")
    options, then = parse_options(parser)
    parts = QUICK_PARTS if options.quick else PARTS
    chosen = options.only.split(",") if options.only else list(parts)
    if unknown := set(chosen) - parts.keys():
        of = ", ".join(parts)
        parser.exit(
            2, f"error: unknown part {', '.join(sorted(unknown))}; choose from {of}{' with --quick' * options.quick}\n"
        )
    accelerator = None if jax.default_backend() == "cpu" else jax.devices()[0].device_kind
    results = Results(machine(accelerator, jax.device_count()) | {"quick": options.quick})
    print(f"{describe(results.machine)}\n{HEADER}", flush=True)
    with jax.profiler.trace(options.profile) if options.profile else contextlib.nullcontext():
        for part in chosen:
            for row in parts[part]():
                results.rows.append(show(row))
                write(options.json, results)
    results.rows.append(show(peak_memory(",".join(chosen) + ", quick" * options.quick)))
    write(options.json, results)
    if then:
        print("", *compare(results, then), sep="\n")


if __name__ == "__main__":
    main()
