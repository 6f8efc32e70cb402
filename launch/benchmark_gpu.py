"""Compare our SimCLR training steps on one GPU with PyTorch's and stable-pretraining's, in at most 10 minutes.

pip install -e ".[cuda13,bench]"
git clone https://github.com/galilai-group/stable-pretraining && pip install -e "stable-pretraining[jax]"
                                     (a peer: PyPI's release 0.1.7 has no JAX, and git+https brings no subpackages)

python launch/benchmark_gpu.py --json=gpu.json             ResNet-18 at 64², ViT-S/16 and ResNet-50 at 224², 256 images
python launch/benchmark_gpu.py --against=gpu.json          compares with that JSON of another run or tree
python launch/benchmark_gpu.py --tiny                      a dry run of everything at small sizes; CPUs can do it too

A step trains the encoder and the projection head with NT-Xent and AdamW, on a batch that is on the device, in bfloat16
with float32 parameters. Each comparison has rows for the images a second (medians over rounds in which the two take
turns), the share of the chip's bf16 peak, and the peak memory of the device's arrays, including memory for tuning. Our
code and each peer have processes of their own, so memory is counted separately. A peer that fails or compiles for too
long ends alone, and its row names the reason. If no time is left for a comparison, its row says so. The JSON is
written after every comparison.
"""

import argparse
import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmark_rows import HEADER, Results, Row, compare, describe, machine, parse_options, share_of_peak, show, write

if TYPE_CHECKING:
    from benchmark_steps import Peer

ROUNDS = 5
ROUNDS_S = 25  # seconds reserved for the rounds of a comparison, without its preparation
LEAST_S = 60  # the least seconds that a case needs


class Case(NamedTuple):
    """One encoder at its published width.

    size: side of the images, pixels.
    images: images in a batch, counting both views of every pair.
    steps: training steps in a turn.
    """

    encoder: str
    size: int
    images: int
    steps: int


CASES = (Case("resnet18", 64, 256, 100), Case("vit_s", 224, 256, 15), Case("resnet50", 224, 256, 15))
TINY = (Case("resnet18", 32, 8, 1), Case("vit_s", 224, 4, 1), Case("resnet50", 32, 8, 1))


def ours(case: Case) -> "Peer":
    from benchmark_steps import Peer, train_work

    return Peer(train_work(_config(case), case.steps), "ours")


def pytorch(case: Case, compiled: bool) -> "Peer":
    from benchmark_steps import torch_train

    return torch_train(_config(case), case.steps, compiled)


def stable_jax(case: Case) -> "Peer":
    """stable-pretraining's SimCLR module, backbone and optimizer for JAX, in one jitted step that donates its state.

    We jit the step because its own Trainer.fit compiles anew at each call, and waits for every step's loss.
    """
    import jax
    import stable_pretraining.jax as spj
    from benchmark_steps import Peer, random_images
    from flax import nnx

    from mirigor_jax.models.dtypes import compute_dtype

    config, rngs, dtype = _config(case), nnx.Rngs(0), compute_dtype("auto")
    if case.encoder == "vit_s":
        backbone = spj.backbone.vit_small(rngs=rngs, img_size=case.size, dtype=dtype)
    else:
        backbone = getattr(spj.backbone, case.encoder)(rngs=rngs, dtype=dtype)
    model = spj.SimCLR(backbone=backbone, embed_dim=backbone.embed_dim, rngs=rngs, dtype=dtype, **_head(config))
    graph, state = nnx.split((model, nnx.Optimizer(model, spj.create_optimizer(model.optim), wrt=nnx.Param)))

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, images: jax.Array) -> Any:
        model, optimizer = nnx.merge(graph, state)
        views = [{"image": view} for view in (images / 127.5 - 1).reshape(2, -1, *images.shape[1:])]
        gradient = nnx.grad(lambda model: model.compute({"views": views}, "fit")[0]["loss"])(model)
        optimizer.update(model, gradient)
        return nnx.state((model, optimizer))

    images = jax.device_put(random_images(config))

    def work() -> int:
        nonlocal state
        for _ in range(case.steps):
            state = step(state, images)
        jax.block_until_ready(state)
        return case.steps * case.images

    return Peer(work, f"stable-pretraining {version('stable-pretraining')}, jitted by us, {dtype}")


def stable_torch(case: Case) -> "Peer":
    """stable-pretraining's SimCLR module for PyTorch, eager, as its own trainer runs it."""
    from benchmark_steps import Peer, torch, torch_autocast, torch_device, torch_dtype_name, torch_name, torch_steps
    from stable_pretraining.methods import SimCLR

    config = _config(case)
    model = SimCLR({"vit_s": "vit_small_patch16_224"}.get(case.encoder, case.encoder), **_head(config))
    model = model.to(torch_device(), memory_format=torch.channels_last)

    def loss_of(images: "torch.Tensor") -> "torch.Tensor":
        with torch_autocast():
            return model(*(images / 127.5 - 1).chunk(2)).loss

    work = torch_steps(loss_of, model.parameters(), config, case.steps)
    name = f"stable-pretraining {version('stable-pretraining')} on "
    return Peer(work, name + torch_name("eager", "channels last", torch_dtype_name()))


def _config(case: Case) -> Any:
    from benchmark_steps import image_config

    return image_config(case.encoder, 64 if case.encoder.startswith("resnet") else None, case.size, case.images)


def _head(config: Any) -> dict[str, Any]:
    """The projection head's sizes and the loss's temperature, as keyword arguments of stable-pretraining's SimCLR."""
    dims = (*config.head.hidden, config.head.features)
    return {"projector_dims": dims, "temperature": config.train.temperature}


class Contestant(NamedTuple):
    """Our code or a peer.

    framework: jax or torch. The benchmark reads peak memory from it.
    module: the module that must be installed.
    start: case → the work and its name.
    """

    framework: str
    module: str
    start: Callable[[Case], "Peer"]


# torch.compile comes last because it takes longest: it gets the time that the others leave.
CONTESTANTS = {
    "ours": Contestant("jax", "jax", ours),
    "PyTorch eager": Contestant("torch", "torch", partial(pytorch, compiled=False)),
    "stable-pretraining JAX": Contestant("jax", "stable_pretraining.jax", stable_jax),
    "stable-pretraining PyTorch": Contestant("torch", "stable_pretraining.methods", stable_torch),
    "torch.compile": Contestant("torch", "torch", partial(pytorch, compiled=True)),
}
PEERS = tuple(CONTESTANTS)[1:]


def serve(name: str, case: Case, needs_gpu: bool) -> None:
    """Do the contestant's work once for each line of standard input, and reply to each with a line of JSON.

    The first line also prepares the work. All that libraries print goes to standard error.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contestant, peer = CONTESTANTS[name], None
    with contextlib.suppress(ImportError):  # the replies name the missing module
        import_module("benchmark_steps")
        import_module(contestant.module)
    for _ in sys.stdin:
        try:
            import_module(contestant.module)
            device, memory = _device(contestant.framework)
            if needs_gpu and device is None:
                raise RuntimeError(f"{contestant.framework} sees no GPU here")
            if peer is None:
                peer = contestant.start(case)
                peer.work()
            start = time.perf_counter()
            rate = peer.work() / (time.perf_counter() - start)
            reply = {"rate": rate, "name": peer.name, "device": device, "mib": memory()}
        except ModuleNotFoundError as error:
            reply = {"error": f"{error.name} is not installed"}
        except Exception as error:  # the row names any error as its reason
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(reply), file=replies, flush=True)


def _device(framework: str) -> tuple[str | None, Callable[[], float | None]]:
    """(The GPU's kind, or None without a GPU; the function that returns its arrays' peak memory so far, in MiB)."""
    if framework == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name(0), lambda: torch.cuda.max_memory_allocated() / 2**20
    else:
        import jax

        if jax.default_backend() == "gpu":
            device = jax.devices()[0]
            return device.device_kind, lambda: device.memory_stats()["peak_bytes_in_use"] / 2**20
    return None, lambda: None


class Failed(Exception):
    """The reason why a contestant has no number."""


class Remote:
    """A contestant in its own process, which can import its libraries while other contestants work."""

    def __init__(self, name: str, case: Case, tiny: bool) -> None:
        command = [sys.executable, __file__, f"--serve={name}", f"--encoder={case.encoder}", *["--tiny"] * tiny]
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # else JAX leaves the peers a quarter
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process lives
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self.process: Any = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)

    def turn(self, until: float) -> dict[str, Any]:
        """One turn's reply. Raises Failed if the contestant has failed, or has not replied by `until`."""
        start = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], max(0.0, until - start))[0]:
            raise Failed(f"not done after {time.monotonic() - start:.0f} s, when its time was spent")
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            last = self.log.read().decode(errors="replace").strip().rpartition("\n")[2][:300]
            raise Failed(f"its process ended with code {self.process.wait()}: {last}")
        reply = json.loads(line)
        if "error" in reply:
            raise Failed(reply["error"])
        return reply

    def end(self) -> None:
        """Kill the process and the compilers that it started. A second call has no effect."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(BrokenPipeError):
                file.close()


def race(remotes: dict[str, Remote], failed: dict[str, str], until: float) -> dict[str, dict[str, Any]]:
    """Let the contestants take turns. Returns the last reply of each, with its median rate.

    remotes: name → contestant.
    failed: name → the reason why it failed. The function skips these, ends and adds those that fail now, and returns
        no reply for any of them.
    until: time.monotonic() at which the last round must be over.
    """
    replies: dict[str, list[dict[str, Any]]] = {name: [] for name in remotes}
    for turn in range(1 + ROUNDS):
        for name in [name for name in remotes if name not in failed]:
            try:
                replies[name].append(remotes[name].turn(until if turn else until - ROUNDS_S))
            except Failed as failure:
                failed[name] = str(failure)
                remotes[name].end()
    return {
        name: turns[-1] | {"rate": statistics.median(reply["rate"] for reply in turns[1:])}
        for name, turns in replies.items()
        if name not in failed
    }


def case_rows(case: Case, until: float, tiny: bool) -> Iterator[tuple[list[Row], str | None]]:
    """Yields for each peer (its rows, the GPU's kind): images a second, share of the chip's peak, and peak memory."""
    failed: dict[str, str] = {}
    remotes: dict[str, Remote] = {}
    try:
        for name in CONTESTANTS:
            remotes[name] = Remote(name, case, tiny)
        for peer in PEERS:
            if time.monotonic() > until - ROUNDS_S:
                yield [left_out(case, peer, "the time of this encoder is spent")], None
                continue
            names = ("ours", peer)
            done = race({name: remotes[name] for name in names}, failed, until)
            mine, theirs = (done.get(name, {}) for name in names)
            label, peer_name = _label(case, peer), theirs.get("name")
            kind, rates = mine.get("device") or theirs.get("device"), (mine.get("rate"), theirs.get("rate"))
            note = "; ".join(f"{name}: {failed[name]}" for name in names if name in failed)
            rows = [Row(label, rates[0], "images/s", rates[1], peer_name, note or None)]
            shares = [share_of_peak(case.encoder, case.size, rate, kind) for rate in rates]
            for what, unit, values in (
                ("of the chip's peak", "%", shares),
                ("peak memory", "MiB", [mine.get("mib"), theirs.get("mib")]),
            ):
                if any(value is not None for value in values):
                    rows.append(Row(f"{label}, {what}", values[0], unit, values[1], peer_name))
            yield rows, kind
            remotes[peer].end()
    finally:
        for remote in remotes.values():
            remote.end()


def left_out(case: Case, peer: str, why: str) -> Row:
    """The row of a comparison that is not started."""
    return Row(_label(case, peer), None, "images/s", note=f"left out: {why}")


def _label(case: Case, peer: str) -> str:
    return f"train {case.encoder}, {case.size}², {peer}"


def main() -> None:
    """Measure every encoder, or serve as one contestant if --serve names it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="batches of 4 and 8 images, on CPUs where there is no GPU")
    parser.add_argument("--seconds", type=float, default=600, help="all that it may take; 600 unless given")
    parser.add_argument("--serve", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--encoder", help=argparse.SUPPRESS)
    options, then = parse_options(parser)
    cases = TINY if options.tiny else CASES
    if options.serve:
        serve(options.serve, next(case for case in cases if case.encoder == options.encoder), not options.tiny)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # exits through `finally`, which ends the contestants
    end = time.monotonic() + options.seconds
    results = Results(machine(None, 1))
    print(HEADER, flush=True)
    for index, case in enumerate(cases):
        remaining = end - time.monotonic()
        if remaining < LEAST_S:
            why = f"{max(remaining, 0):.0f} of {options.seconds:.0f} s remained"
            found: Iterator[tuple[list[Row], str | None]] = iter(
                [([left_out(case, peer, why) for peer in PEERS], None)]
            )
        else:
            found = case_rows(case, time.monotonic() + remaining / (len(cases) - index), options.tiny)
        for rows, kind in found:
            results.machine["accelerator"] = kind or results.machine["accelerator"]
            results.rows.extend(map(show, rows))
            write(options.json, results)
    print(f"\n{describe(results.machine)}")
    if then:
        print("", *compare(results, then), sep="\n")


if __name__ == "__main__":
    main()
