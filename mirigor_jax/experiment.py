"""The stages of one run, in order: train, encode, estimate, evaluate, report; of arrays: estimate, report.

Each reads the folder of the one before and skips what it finds finished, so a first run, a resumed one and a
re-estimate are the same code.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from mirigor_jax import encode, estimate, metrics, mi, parallel, probes, train
from mirigor_jax.configuration import flatten
from mirigor_jax.data import array_files, augment, cdp, sources
from mirigor_jax.data.image_set import ImageSet
from mirigor_jax.data.pairing import AnyPairing, ByClass, SameImage
from mirigor_jax.data.pipeline import batches
from mirigor_jax.data.population import STREAMS, Collected, Features, Population, Read, Rendered
from mirigor_jax.data.preprocess import image_keys
from mirigor_jax.errors import InputError
from mirigor_jax.files import (
    AnyPath,
    failures,
    locate,
    read_arrays,
    read_rows,
    reason,
    replace_arrays,
    replace_figure,
    replace_json,
)
from mirigor_jax.mi import picture
from mirigor_jax.mi.certify import RUN_OUT
from mirigor_jax.mi.results import conclusions
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.progress import Progress, duration
from mirigor_jax.runs import figures, report
from mirigor_jax.watch import UNWATCHED, Watch

SHOWN = 100  # what the root key is folded with for the pictures' augmentations
PARTS = ("fit", "validation", "test")
HELD_SHARE = 4  # a quarter of a device's memory at most is spent on holding images
PACKAGES = ("mirigor-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# What may differ when a run or a study is continued: it changes no number (of arrays the content counts, not the path).
RESOURCES = ("data.threads", "data.workers", "data.resident")
FREE = (*RESOURCES, *(f"run.{name}" for name in RESOURCES), "study.only", "x", "y", "labels")
# The least that each of these may be; several numbers at least one.
LEAST = {
    **dict.fromkeys(("seed", "data.seed", "data.threads", "data.workers", "train.steps", "train.warmup_steps"), 0),
    **dict.fromkeys(("train.weight_decay", "evaluate.l2", "estimate.tolerance_bits"), 0),
    **dict.fromkeys(("train.checkpoint_every", "features.fit", "features.batch_size", "head.features"), 1),
    **dict.fromkeys(("estimate.steps", "estimate.eval_every"), 1),
    "data.images": 1,
    **dict.fromkeys(("features.validation", "estimate.k", "estimate.fit_k", "estimate.paper_k", "estimate.curve"), 2),
}
# What may be left open: of a set of images all are taken then.
OPTIONAL = {True: ("data.images",), False: ("data.images", *(f"features.{part}" for part in PARTS))}
POSITIVE = ("train.temperature", "train.learning_rate", "estimate.learning_rate")


def run(config: ConfigDict, name: str, workdir: str | None, watch: Watch = UNWATCHED) -> None:
    """Run, resume, or re-estimate, and write the report. Raises InputError for what the user can put right."""
    if config.kind == "restore":
        return _restore(config, workdir, watch)
    folder = locate(workdir or f"runs/{name}")
    print(f"run folder: {folder}", flush=True)
    if config.kind == "arrays" and jax.process_count() > 1:
        raise InputError(f"a job of kind {config.kind} is one process's; start it without the others")
    if config.kind == "arrays":
        if watch != UNWATCHED:
            raise InputError("--tensorboard and --profile are of trainings and their critics; arrays have none")
        return _run_arrays(config, folder)
    population, law = check(config)
    if digests := _digests(config):
        with config.unlocked():
            config.sha256 = digests
    claim(folder, config)
    with lock(folder):
        if not _given(config):
            _train(config, folder, population, law, watch)
        own = _own_features(config, folder)
        _estimate(config, folder, estimate_name(config), own, folder, population, law, watch)
        for more, name in _others(config, population):
            _add_estimate(config, more, folder, name, folder, *check(more, population), watch)
        _evaluate(config, folder, population, law, watch)
        parallel.from_main(lambda: _report(config, folder, population))
    return None


def _run_arrays(config: ConfigDict, folder: AnyPath) -> None:
    """Estimates of I(X;Y), or of I_class where there are labels, from samples in files."""
    if config.x is None or (config.y is None) == (config.labels is None):
        raise InputError("give --config.x=FILE and either --config.y=FILE or --config.labels=FILE: paired rows")
    if not config.estimators:
        raise InputError(f"estimators=(): expected one at least, of {', '.join(mi.ESTIMATORS)}")
    x = array_files.read(config.x, "x")
    y = array_files.read_labels(config.labels) if config.y is None else array_files.read(config.y, "y")
    with config.unlocked():
        config.sha256 = {"x": _digest(x), "y" if config.labels is None else "labels": _digest(y)}
    claim(folder, config)
    with lock(folder):
        try:
            _estimate_arrays(config, folder, x, y)
        except InputError:
            if not any(folder.glob("estimates/*/estimate.json")):
                # Nothing came of it: the corrected command may have the folder.
                (folder / "stages.json").unlink()
                (folder / "config.json").unlink()
            raise
        _report_arrays(config, folder)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.dtype.str} {array.shape}".encode() + array.tobytes()).hexdigest()


def _restore(overrides: ConfigDict, workdir: str | None, watch: Watch) -> None:
    if workdir:
        raise InputError(
            f"--workdir={workdir} is not for re-estimates: they go into the restored run, RUN/estimates/NAME"
        )
    if not overrides.restore:
        raise InputError("config.restore='' is not a run folder; give a run's path")
    asked = {name: value for name, value in overrides.items() if name not in ("kind", "restore") and value is not None}
    re_estimate(locate(overrides.restore), watch, **asked)


def re_estimate(folder: AnyPath, watch: Watch = UNWATCHED, **asked: Any) -> None:
    """Another estimate of a finished run's encoder, in `folder`/estimates/NAME. asked: as `re_estimated` takes it.

    Raises InputError where there is no finished run, or nothing new to estimate under that name.
    """
    own = ConfigDict(parallel.from_main(lambda: _restorable(folder)))
    config, name = re_estimated(own, **asked)
    print(f"run folder: {folder}, estimate: {name}", flush=True)
    try:
        population, law = check(config)
        changed = _digests(own) != own.get("sha256", ConfigDict()).to_dict()
    except AttributeError as error:
        raise InputError(f"the run in '{folder}' was made by an older version ({error}); run it again") from error
    if changed:
        raise InputError(f"the encoder or the features of the run in '{folder}' are no longer what it was made from")
    with lock(folder):
        _add_estimate(own, config, folder, name, folder / "estimates" / name, population, law, watch)
        parallel.from_main(lambda: _report(own, folder, population))


def _restorable(folder: AnyPath) -> dict[str, Any]:
    """The config of a finished run. Raises InputError where there is none."""
    try:
        found = (folder / "config.json").is_file()
    except failures(folder) as error:
        raise InputError(f"config.restore='{folder}' cannot be read ({reason(error)}); give a run's path") from error
    if not found:
        raise InputError(f"config.restore='{folder}' is not a run folder: no config.json there; give a run's path")
    own = _read_config(folder / "config.json")
    if not _given(ConfigDict(own)) and not any((folder / "train").glob("[0-9]*")):
        raise InputError(f"no checkpoint in '{folder / 'train'}'; finish the run first, then restore it")
    if not (folder / "report.json").is_file():
        raise InputError(f"the run in '{folder}' is not finished; give its own command again, then restore it")
    return own


def re_estimated(
    own: ConfigDict,
    *,
    name: str = "",
    pairing: str | None = None,
    mi: float | None = None,
    seed: int | None = None,
    **changes: Any,
) -> tuple[ConfigDict, str]:
    """A run's config as a re-estimate changes it, and the estimate's name: made from what differs where none is given.

    changes: any of k, steps, stream, curve, test and checkpoint.
    """
    config = ConfigDict(own.to_dict())
    config.estimate.also = ()
    config.lock()  # so that an unknown change raises KeyError
    if pairing is not None or mi is not None:
        config.data.pairing = own.data.pairing if pairing is None else pairing
        config.data.mi = mi
        config.data.epsilon = dict.fromkeys(own.data.epsilon)
    for key, value in changes.items():
        room = config.features if key in ("test", "checkpoint") else config.estimate
        room[key] = list(value) if key == "curve" else value
    words = [f"{key}={'+'.join(map(str, x)) if key == 'curve' else x}" for key, x in sorted(changes.items())]
    if seed is not None:
        config.seed = seed
        words = [f"seed={seed}", *words]
    name = name or "-".join([estimate_name(config), *words])
    if "/" in name:
        raise InputError(f"config.name='{name}' holds a slash; give the plain name of a folder")
    return config.unlock(), name


def _add_estimate(
    own: ConfigDict,
    config: ConfigDict,
    folder: AnyPath,
    name: str,
    clock: AnyPath,
    population: Population,
    law: AnyPairing,
    watch: Watch,
) -> None:
    if name != estimate_name(own):
        target = folder / "estimates" / name
        claim(target, config)
        features, fitted = target / "features", folder / "features" / "fit.npz"
        if _augmentation(config) is None:
            same = ("seed", "features.fit", "features.checkpoint")
            if isinstance(population, Collected) and flatten(config.features) == flatten(own.features):
                features = folder / "features"  # whose images serve every pairing
            else:
                equal = all(flatten(config)[key] == flatten(own)[key] for key in same)
                if parallel.is_main() and equal and fitted.exists() and not (features / "fit.npz").exists():
                    replace_arrays(features / "fit.npz", dict(read_arrays(fitted)))
        _estimate(config, folder, name, features, clock, population, law, watch)
    elif flatten(config) | {"estimate.also": ()} != flatten(own) | {"estimate.also": ()}:
        raise InputError(f"estimates/{name} is the run's own; give the new one another name by --config.name=NAME")


def check(config: ConfigDict, population: Population | None = None) -> tuple[Population, AnyPairing]:
    """Build the data and the pairing. What can be wrong about a config is found here, before any file is written.

    population: the config's, where it is built already.
    """
    d, t, f, flat = config.data, config.train, config.features, flatten(config)
    if t.k < 2:
        raise InputError(f"train.k={t.k}: contrastive learning needs at least 2 pairs a batch, for one negative")
    for key, least in LEAST.items():
        if flat[key] is None and key in OPTIONAL[d.source == "cdp"]:
            continue
        if not np.all(np.asarray(flat[key]) >= least) or not np.all(np.isfinite(flat[key])) or np.size(flat[key]) == 0:
            raise InputError(f"{key}={flat[key]}: expected at least {least}")
    for key in POSITIVE:
        if not 0 < flat[key] < math.inf:
            raise InputError(f"{key}={flat[key]}: expected a number above 0")
    train.check_parts(t.k // parallel.make_mesh(t.k).size, t.accumulate)
    parallel.make_mesh(f.batch_size)
    if f.checkpoint not in ("last", "best"):
        raise InputError(f"features.checkpoint='{f.checkpoint}' is unknown; choose last or best")
    if config.encoder.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    train.make_optimizer(t.optimizer, learning_rate=t.learning_rate, steps=1, warmup_steps=0, weight_decay=0.0)
    if fresh := population is None:
        population = _population(config)
    if d.size is None and not _represented(config):
        d.size = population.side
    if _represented(config) and (config.estimate.stream or _augmentation(config) is not None):
        what = f"data.pairing='{d.pairing}' augments" if _augmentation(config) else "estimate.stream=True streams"
        raise InputError(f"{what} images, and data.source='{d.source}' has none; leave it out")
    law = _law(config, population)
    if fresh and not _represented(config):
        encode.check(config)
    if config.evaluate.classes:
        population.task(config.evaluate.classes)
    if not _given(config):
        train.make_objective(config, _num_classes(_classes(population, law)))
    for more, _ in _others(config, population):
        check(more, population)
    estimate.check(config, law, *(population.num_pairs(part, law) for part in ("test", "validation")))
    if d.resident not in ("auto", "always", "never"):
        raise InputError(f"data.resident='{d.resident}' is unknown; choose auto, always or never")
    if population.training(law) is None and d.resident == "always":
        raise InputError("data.resident='always': there is nothing to hold, every image is new; give data.images=N")
    return population, law


def _represented(config: ConfigDict) -> bool:
    """Whether the source holds representations instead of images."""
    return config.data.source.startswith("features:")


def _others(config: ConfigDict, population: Population) -> list[tuple[ConfigDict, str]]:
    """What else is estimated, with its names: no views of representations, and no classes without labels."""

    def possible(shared: str, augmentation: augment.Augmentation | None) -> bool:
        return not (_represented(config) and augmentation) and (bool(population.names) or not shared)

    also = [text for text in config.estimate.also if possible(*augment.parse(text, config.data.augment.to_dict()))]
    found = [re_estimated(config, pairing=pairing) for pairing in also]
    return [(more, name) for more, name in found if name != estimate_name(config)]


def _digests(config: ConfigDict) -> dict[str, str]:
    """Of the files that stand for an encoder or for images: the same name may hold another one tomorrow."""
    kind, _, path = config.data.source.partition(":")
    files = {"encoder": config.encoder.path, "source": path if kind in ("features", "npz") else ""}
    kind, _, path = config.data.negatives.partition(":")
    files["negatives"] = path if kind == "npz" else ""
    digests = {}
    for name in (name for name, file in files.items() if file):
        with locate(files[name]).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _given(config: ConfigDict) -> bool:
    """Whether there is an encoder already, so that none is trained."""
    return bool(config.encoder.path) or _represented(config)


def _population(config: ConfigDict) -> Population:
    d, f = config.data, config.features
    if d.source == "cdp":
        if d.size is None:
            raise InputError("data.size=None: CDP images are rendered at a size; give one, 64 for the paper's")
        if d.negatives:
            raise InputError(f"data.negatives='{d.negatives}' go with sets of images, not with CDP; leave them out")
        return Rendered(_cdp(config, d.size), config.seed, {part: f[part] for part in PARTS}, d.images)
    sets = _labelled_sets(config, d.source, d.size, d.classes)
    limits = {"train": d.images, "fit": f.fit, "validation": f.validation, "test": f.test}
    for stream, (name, limit) in enumerate(limits.items()):
        images = sets["train" if name == "fit" else name]
        few = limit is not None and limit < len(images)
        order = np.random.default_rng([d.seed, stream]).permutation(len(images))
        sets[name] = images.take(order[:limit]) if few else images
    if d.negatives:
        sets["negatives"] = _negatives(config, sets["train"])
    return Collected(sets, config.seed, RUN_OUT * (1 - config.estimate.confidence))


def _cdp(config: ConfigDict, size: int) -> cdp.CDP:
    d = config.data
    return cdp.make(
        size=size,
        colors=d.colors,
        digits=tuple(d.digits),
        grid=tuple(d.grid),
        mixing=d.mixing,
        jitter=d.jitter,
        background=d.background,
        glyphs=d.glyphs,
        seed=d.seed,
    )


def _labelled_sets(config: ConfigDict, spec: str, size: int | None, classes: str) -> dict[str, ImageSet]:
    d = config.data
    own = {name: d[name] for name in ("rotations", "noise", "corrupted")} if spec == d.source else {}
    return sources.labelled(spec, size=size, classes=classes, seed=d.seed, tfds_dir=d.tfds_dir, **own)


def _negatives(config: ConfigDict, images: ImageSet) -> ImageSet:
    """What `data.negatives` names: `own`, the training images; of their source `classes:…`; noise; another source.

    Raises InputError as `sources.labelled` does, and where there is nothing to train.
    """
    d, (kind, _, argument) = config.data, config.data.negatives.partition(":")
    if _given(config):
        raise InputError(f"data.negatives='{d.negatives}' are for training, and the encoder is given; leave them out")
    if d.negatives == "own":
        return images
    size = images.read(np.arange(1)).shape[1]
    if d.negatives in ("uniform", "gaussian"):
        return sources.noise(d.negatives, count=len(images), size=size, seed=d.seed)
    if d.negatives == "cdp":
        return _cdp(config, size).finite(config.seed, STREAMS["negatives"], len(images))
    spec, classes = (d.source, argument) if kind == "classes" else (d.negatives, "all")
    return _labelled_sets(config, spec, size, classes)["train"]


def _law(config: ConfigDict, population: Population) -> AnyPairing:
    epsilon = {name: value for name, value in config.data.epsilon.items() if value is not None}
    shared, _ = augment.parse(config.data.pairing, config.data.augment.to_dict())
    return population.law(shared, mi_bits=config.data.mi, epsilon=epsilon)


def _augmentation(config: ConfigDict) -> augment.Augmentation | None:
    return augment.parse(config.data.pairing, config.data.augment.to_dict())[1]


def _own_features(config: ConfigDict, folder: AnyPath) -> AnyPath:
    """Where a run's own estimate has its features: those of augmented views can't serve the evaluation too."""
    return (
        folder / "features" if _augmentation(config) is None else folder / f"estimates/{estimate_name(config)}/features"
    )


def claim(folder: AnyPath, config: ConfigDict) -> None:
    """Make the folder this config's own: write config.json, or find it equal there.

    Raises InputError where another config made it (naming the keys that differ), where it holds other files, or where
    it can't be written.
    """
    parallel.from_main(lambda: _claim(folder, config))


def _claim(folder: AnyPath, config: ConfigDict) -> None:
    path = folder / "config.json"
    mine = json.loads(config.to_json())
    try:
        found, others = path.is_file(), folder.is_dir() and any(p.name[0] != "." for p in folder.iterdir())
    except failures(folder) as error:
        raise InputError(f"run folder '{folder}' cannot be read ({reason(error)}); give another --workdir") from error
    if found:
        here, there = flatten(mine), flatten(_read_config(path))
        differ = sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k) and k not in FREE)
        if differ:
            other = "from other data" if all(k.startswith("sha256.") for k in differ) else "by another config"
            raise InputError(f"'{folder}' was made {other} ({', '.join(differ)} differ); give another --workdir")
    elif others:
        raise InputError(f"'{folder}' holds files but no run (no config.json); give another --workdir")
    try:
        replace_json(path, mine)
    except failures(folder) as error:
        raise InputError(
            f"run folder '{folder}' cannot be written ({reason(error)}); give another --workdir"
        ) from error


def _read_config(path: AnyPath) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (failures(path), ValueError) as error:
        raise InputError(f"'{path}' is no readable config ({error}); give another run folder") from error


class LockedError(InputError):
    """Another process is at work in a run folder."""


@contextlib.contextmanager
def lock(folder: AnyPath, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder for all of a job's processes; LockedError where another job does, unless to wait for it.

    The lock goes with the process. In a bucket there is none: what would outlive a process that is gone.
    """
    if not isinstance(folder, Path):
        yield
        return
    with contextlib.ExitStack() as held:

        def take() -> None:
            file = held.enter_context((folder / ".lock").open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                raise LockedError(
                    f"another process is at work in '{folder}'; wait for it, or give another --workdir"
                ) from None

        parallel.from_main(take)
        yield


def estimate_name(config: ConfigDict) -> str:
    """How a pairing is called in estimates/: `all`, `color+digit`, `all-mi=3.3`, `all-epsilon.color=0.1`."""
    epsilon = [f"epsilon.{name}={value:g}" for name, value in config.data.epsilon.items() if value is not None]
    mi = [] if config.data.mi is None else [f"mi={config.data.mi:g}"]
    return "-".join([config.data.pairing, *mi, *epsilon])


@contextlib.contextmanager
def stage(folder: AnyPath, name: str, done: bool) -> Iterator[bool]:
    """Yields whether there is work; notes in stages.json what did it and how long.

    Time adds up over interrupted runs; a killed one leaves no note.
    """
    if parallel.from_main(lambda: done):
        print(f"{name}: finished before, skipped", flush=True)
        yield False
        return
    print(f"{name}:", flush=True)
    start = time.monotonic()
    try:
        yield True
    finally:
        path = folder / "stages.json"
        stages = json.loads(path.read_text()) if parallel.is_main() and path.exists() else {}
        before = stages.get(name, {"seconds": 0.0, "peak_memory_gib": 0.0})
        # The peak is of the process so far; macOS counts it in bytes, Linux in KiB.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)
        stages[name] = {
            "seconds": round(before["seconds"] + time.monotonic() - start, 2),
            "peak_memory_gib": round(max(before["peak_memory_gib"], peak), 3),
            **_provenance(),
        }
        replace_json(path, stages)


def _training_pairs(
    config: ConfigDict, population: Population, law: AnyPairing
) -> tuple[Read, UInt8[np.ndarray, "n s s 3"] | None]:
    """How training reads its pairs, and the images that the devices hold for it where they do; says which."""
    found, wanted = population.training(law), config.data.resident
    classes = _classes(population, law)
    if classes is not None and not train.make_objective(config, _num_classes(classes)).labelled:
        classes = None
    if found is None:
        print("  training images: every one new, streamed", flush=True)
        fresh = population.pairs(law, "train")

        def rendered(start: int, stop: int) -> dict[str, np.ndarray]:
            batch = fresh(start, stop)
            if classes is not None:
                batch |= {f"c_{view}": classes.classes(batch[f"attributes_{view}"]) for view in ("x", "y")}
            return batch

        return rendered, None
    images, rows = found
    negatives = population.negatives()
    sets = [images] if negatives is None else [images, negatives[0]]
    n, limit = sum(map(len, sets)), parallel.from_main(parallel.memory_bytes) // HELD_SHARE
    needed = n * images.read(np.arange(1)).nbytes
    holds = wanted == "always" or (wanted == "auto" and needed <= limit)
    print(
        f"  training images: {n:,}, {needed / 2**20:,.0f} MiB, {'held by each device' if holds else 'streamed'} "
        f"(data.resident={wanted}; auto holds up to {limit / 2**20:,.0f} MiB)",
        flush=True,
    )
    of_images = None if classes is None else classes.classes(images.attributes)

    def drawn(start: int, stop: int) -> dict[str, np.ndarray]:
        of = rows(start, stop)
        batch = of if holds else {view: images.read(chosen) for view, chosen in of.items()}
        if of_images is not None:
            batch = batch | {f"c_{view}": of_images[chosen] for view, chosen in of.items()}
        if negatives is not None:
            more, draw = negatives
            for view, chosen in draw(start, stop).items():
                batch[view] = len(images) + chosen if holds else more.read(chosen)
        return batch

    return drawn, np.concatenate([one.read(np.arange(len(one))) for one in sets]) if holds else None


def _classes(population: Population, law: AnyPairing) -> ByClass | None:
    """What a labelled objective tells apart: the classes that the views share, else all; None without labels."""
    if not isinstance(law, SameImage):
        return law
    return population.task(population.tasks[-1]) if population.names else None


def _num_classes(classes: ByClass | None) -> int | None:
    return None if classes is None else classes.num_classes


def _labelled(read: Read) -> Read:
    """A population's attributes under the name that a features folder has for them."""
    return lambda start, stop: {k.replace("attributes", "labels"): v for k, v in read(start, stop).items()}


def _train(config: ConfigDict, folder: AnyPath, population: Population, law: AnyPairing, watch: Watch) -> None:
    t, path = config.train, folder / "train"
    watched = watch.of(folder, path)
    with stage(folder, "train", (path / "summary.json").exists()) as work:
        if not work:
            if watch.tensorboard:
                watched.rows(read_rows(path / "metrics.jsonl"))
            return
        mesh = parallel.make_mesh(t.k)
        parts = population.parts(law, _augmentation(config) is not None)
        images = sum(n if name == "fit" else 2 * n for name, (_, n) in parts.items())

        def expect(seconds_a_step: float, steps: int) -> None:
            training, encoding = steps * seconds_a_step, images * seconds_a_step / (2 * t.k) / 3
            print(
                f"  expect about {duration(training + encoding + 30)}: training {duration(training)}, encoding "
                f"{duration(encoding)}, critic, probes and figures half a minute; {mesh.size} of {jax.device_count()} "
                f"{jax.devices()[0].device_kind} devices",
                flush=True,
            )

        read, held = _training_pairs(config, population, law)
        classes = _classes(population, law)
        num_classes = _num_classes(classes)
        train.train(config, path, read, mesh, held=held, num_classes=num_classes, on_rate=expect, watch=watched)
        if parallel.is_main():
            _summarise(config, path, num_classes)


def _summarise(config: ConfigDict, path: AnyPath, num_classes: int | None) -> None:
    """The end of a training, for the stages behind it and for the report."""
    t, rows = config.train, read_rows(path / "metrics.jsonl")
    last = rows[-max(1, len(rows) // 10) :]
    summary = {
        "objective": t.objective,
        "num_classes": num_classes,
        "k": t.k,
        "steps": t.steps,
    }
    for name in rows[0].keys() - {"step"} if rows else ():
        summary[name] = float(np.mean([row[name] for row in last]))
    if "mi_bits" in summary:
        summary["ceiling_bits"] = math.log2(2 * t.k - 1)
    replace_json(path / "summary.json", summary)


def _frozen(config: ConfigDict, folder: AnyPath, mesh: Mesh) -> FrozenEncoder:
    """The run's encoder; its head, which is restored with it, is as wide as the training made it."""
    num_classes = None
    if not _given(config):
        num_classes = parallel.from_main(lambda: _read(folder / "train/summary.json")["num_classes"])
    return encode.freeze(config, folder / "train", mesh, num_classes)


def _estimate(
    config: ConfigDict,
    folder: AnyPath,
    name: str,
    features: AnyPath,
    clock: AnyPath,
    population: Population,
    law: AnyPairing,
    watch: Watch,
) -> None:
    """Encode what `features` lacks, then estimate into estimates/`name`. clock: the folder that counts the time."""
    target = folder / "estimates" / name
    watched, done = watch.of(folder, target), (target / "estimate.json").exists()
    _encode(config, folder, features, clock, population, law, _augmentation(config), watch, done=done)
    with stage(clock, "estimate", done) as work:
        if work:
            paired = population.paired(encode.load(features), law)
            mesh = estimate.make_mesh(config, len(paired["test"]["h_x"]), len(paired["validation"]["h_x"]))
            streamed = None
            if estimate.streams(config):
                frozen = _frozen(config, folder, mesh)
                dataset = partial(
                    batches,
                    population.pairs(law, "critic"),
                    batch_size=config.estimate.fit_k,
                    process_index=jax.process_index(),
                    process_count=jax.process_count(),
                    threads=config.data.threads,
                    workers=config.data.workers,
                )
                streamed = frozen, lambda first: dataset(first=first)
            risk = population.risk(law)
            estimate.estimate(config, name, paired, law, target, mesh, risk=risk, streamed=streamed, watch=watched)
        elif watch.tensorboard:
            watched.rows(read_rows(target / "fit.jsonl"))


def _encode(
    config: ConfigDict,
    folder: AnyPath,
    features: AnyPath,
    clock: AnyPath,
    population: Population,
    law: AnyPairing,
    augmentation: augment.Augmentation | None,
    watch: Watch,
    *,
    done: bool,
) -> None:
    """The three parts of a features folder, unless what they are for is done."""
    f = config.features
    parts = {name: (_labelled(read), n) for name, (read, n) in population.parts(law, augmentation is not None).items()}
    mesh = parallel.make_mesh(f.batch_size)
    with stage(clock, "encode", done or all((features / f"{part}.npz").exists() for part in parts)) as work:
        if work:
            frozen = None if _represented(config) else _frozen(config, folder, mesh)
            encode.encode(config, frozen, parts, features, mesh, augmentation, watch.of(folder, features))


def _estimates(config: ConfigDict) -> list[str]:
    """How the estimates of a run on arrays are called in estimates/."""
    return ["labels"] if config.y is None else list(config.estimators)


def _estimate_arrays(config: ConfigDict, folder: AnyPath, x: np.ndarray, y: np.ndarray) -> None:
    """Estimate what is not in estimates/ yet, all of it in one program. y: the samples' partners, or their labels."""
    paths = {name: folder / "estimates" / name / "estimate.json" for name in _estimates(config)}
    missing = [name for name, path in paths.items() if not path.exists()]
    progress = Progress("critics", 0, "steps")

    def look(step: int, steps: int, note: str) -> None:
        progress.total = steps
        progress.update(step, note)

    def options(*names: str) -> dict[str, Any]:
        return {name: config[name] for name in names if config[name] is not None} | {"report": look}

    with stage(folder, "estimate", not missing) as work:
        if not work:
            return
        found: Sequence[mi.Estimate]
        if config.y is None:
            found = [mi.estimate_labels(x, y, **options("k", "steps", "seeds", "seed", "confidence"))]
        else:
            more = options("critic", "k", "batch_size", "steps", "seeds", "seed", "confidence")
            [found] = mi.estimate_all([(x, y)], estimators=missing, **more)
        for name, result in zip(missing, found, strict=True):
            more = {"value_nats": result.value_nats, "mean_bits": result.mean_bits, "spread_bits": result.spread_bits}
            replace_json(paths[name], {**vars(result), **more, "sentence": str(result)})


def _report_arrays(config: ConfigDict, folder: AnyPath) -> None:
    found = {name: _read(folder / "estimates" / name / "estimate.json") for name in _estimates(config)}
    first = next(iter(found.values()))
    parts = {
        "truth": {"entropy_bits": first["entropy_bits"]} if config.y is None else {},
        "estimate": first,
        "estimates": found,
    }
    drawn = {"estimators": picture.estimators(list(found.values()))}
    write_report(config, folder, parts, drawn, report.ARRAY_FORM)


def _evaluate(config: ConfigDict, folder: AnyPath, population: Population, law: AnyPairing, watch: Watch) -> None:
    """On the frozen features of plain images: linear evaluation of every attribute, and the metrics if asked for."""
    path = folder / "evaluate" / "linear.json"
    if _augmentation(config) is not None:
        plain = population.law("none"), None
        _encode(config, folder, folder / "features", folder, population, *plain, watch, done=path.exists())
    with stage(folder, "evaluate", path.exists()) as work:
        if not work:
            return
        features = encode.load(folder / "features")
        parallel.from_main(lambda: _probe(config, folder, population, law, features))


def _probe(config: ConfigDict, folder: AnyPath, population: Population, law: AnyPairing, features: Features) -> None:
    accuracies = {}
    for task in population.tasks:
        classes = population.task(task)
        probe = estimate.fit_probe(config, features, classes)
        accuracies[task] = probes.accuracy(probe, *estimate.both_views(features["test"], classes))
        print(f"  {task}: {100 * accuracies[task]:.2f} % of test images", flush=True)
    if config.evaluate.metrics:
        replace_json(folder / "evaluate" / "metrics.json", _metrics(config, folder, population, law, features))
    replace_json(folder / "evaluate" / "linear.json", accuracies)


def _metrics(
    config: ConfigDict, folder: AnyPath, population: Population, law: AnyPairing, features: Features
) -> dict[str, float]:
    """Every metric, of `evaluate.classes`; None: of those that the pairing shares, or of the task that counts."""
    parts: Features = {name: {} for name in PARTS}
    if population.names:
        classes = population.task(population.tasks[-1]) if law.num_classes in (None, 1) else law
        if config.evaluate.classes:
            classes = population.task(config.evaluate.classes)
        assert not isinstance(classes, SameImage)
        for name in PARTS:
            h, labels = estimate.both_views(features[name], classes)
            parts[name] |= {"h": h, "labels": labels}
    views = folder / "estimates" / "simclr" / "features" / "test.npz"
    if views.exists():
        parts["test"] |= {name: read_arrays(views)[name] for name in ("h_x", "h_y")}
    progress = Progress("MLP probe", 0, "steps")

    def look(step: int, steps: int, note: str) -> None:
        progress.total = steps
        progress.update(step, note)

    options = {"temperature": config.train.temperature, "k": config.estimate.paper_k, "seed": config.seed}
    options["max_steps"] = config.evaluate.mlp_steps
    return metrics.evaluate(parts, l2=tuple(config.evaluate.l2), report=look, **options)


def _report(config: ConfigDict, folder: AnyPath, population: Population) -> None:
    """What the stages left in the folder, for report.json, report.md and the figures."""
    law = _law(config, population)
    estimates = {path.parent.name: _read(path) for path in sorted(folder.glob("estimates/*/estimate.json"))}
    for found in estimates.values():
        found["conclusions"] = _conclusions(found, config.estimate.tolerance_bits)
    parts = {
        "truth": {
            "entropy_bits": law.entropy_bits,
            "mutual_information_bits": _true_bits(config, law),
            "shared": list(law.shared),
        },
        "in_training": _in_training(config, folder),
        "estimate": estimates[estimate_name(config)],
        "estimates": estimates,
        "linear": _read(folder / "evaluate/linear.json"),
        "measured": _measured(config, law, estimates),
        "metrics": _read(measured) if (measured := folder / "evaluate/metrics.json").exists() else {},
    }
    write_report(config, folder, parts, _draw(config, folder, population, law, parts), report.IMAGE_FORM)


def _measured(config: ConfigDict, law: AnyPairing, estimates: dict[str, Any]) -> dict[str, str | None]:
    """Which estimate stands beside the metrics of each pairing, by name; None where there is none."""
    own = [estimate_name(config)] if law.num_classes not in (None, 1) and _augmentation(config) is None else []
    of_class = [name for name in (config.evaluate.classes, *own, "class", "all") if name in estimates]
    return {"class": next(iter(of_class), None), "augmentation": "simclr" if "simclr" in estimates else None}


def _in_training(config: ConfigDict, folder: AnyPath) -> dict[str, Any] | None:
    """The end of the training, where its loss tells an MI."""
    summary = None if _given(config) else _read(folder / "train/summary.json")
    return summary if summary and "mi_bits" in summary else None


def _true_bits(config: ConfigDict, law: AnyPairing) -> float | None:
    """I(X;Y) where it is known: CDP's images show their class, others need not, nor do augmented views."""
    known = config.data.source == "cdp" and _augmentation(config) is None
    return law.mutual_information_bits if known else None


def write_report(
    config: ConfigDict,
    folder: AnyPath,
    parts: dict[str, Any],
    drawn: dict[str, Figure],
    form: report.Form,
    captions: Mapping[str, str] = report.CAPTIONS,
) -> None:
    """report.json, report.md and the figures: the parts of this kind of run, and what its stages noted."""
    # A kill between a stage's result and its note leaves the result alone.
    stages = _read(folder / "stages.json") if (folder / "stages.json").exists() else {}
    last = stages.get("estimate") or _provenance()
    document = {
        "name": folder.name,
        "workdir": str(folder),
        **parts,
        "run": {
            "seconds": {name: stage["seconds"] for name, stage in stages.items()}
            | {"total": sum((stage["seconds"] for stage in stages.values()), 0.0)},
            "peak_memory_gib": max((stage["peak_memory_gib"] for stage in stages.values()), default=0.0),
            **{name: last[name] for name in ("devices", "versions", "revision")},
            "stages": stages,
            "config": json.loads(config.to_json()),
            "seed": config.seed,
        },
    }
    for name, figure in drawn.items():
        replace_figure(folder / "figures" / f"{name}.png", figure)
    report.write(folder, document, form, captions)
    print("\n" + report.table(document, form), flush=True)


def _read(path: AnyPath) -> Any:
    return json.loads(path.read_text())


def _draw(
    config: ConfigDict, folder: AnyPath, population: Population, law: AnyPairing, parts: dict[str, Any]
) -> dict[str, Figure]:
    drawn = {} if _represented(config) else {"pairs": _pair_sheet(config, population, law)}
    # Guessing the most frequent class.
    chance = {task: float(population.task(task).law.max()) for task in population.tasks}
    drawn |= {
        "bars": figures.bars(parts),
        "critic": figures.critic(parts["estimate"]),
    }
    if parts["metrics"]:
        drawn["metrics"] = figures.metrics(parts["metrics"])
    if parts["linear"]:
        drawn["linear"] = figures.linear(parts["linear"], chance)
    rows = read_rows(folder / "train" / "metrics.jsonl")
    if rows and "mi_bits" in rows[0]:
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        drawn["training"] = figures.training(
            columns["step"],
            columns["loss_nats"],
            columns["mi_bits"],
            ceiling_bits=math.log2(2 * config.train.k - 1),
            entropy_bits=law.entropy_bits,
            true_bits=_true_bits(config, law),
        )
    return drawn


def _pair_sheet(config: ConfigDict, population: Population, law: AnyPairing) -> Figure:
    pairs = population.pairs(law, "train")(0, 12)
    if (augmentation := _augmentation(config)) is not None:
        for first, view in ((0, "x"), (12, "y")):
            keys = image_keys(jax.random.fold_in(jax.random.key(config.seed), SHOWN), first, 12)
            seen = augment.augment(jnp.asarray(pairs[view]), keys, augmentation)
            pairs[view] = np.asarray(jnp.round(255 * seen)).astype(np.uint8)
    captions = [
        [
            ", ".join(names[v] for names, v in zip(population.value_names, row, strict=True))
            for row in pairs[f"attributes_{view}"]
        ]
        for view in ("x", "y")
    ]
    return figures.pair_sheet(pairs["x"], pairs["y"], *captions, shared=law.shared)


def _conclusions(found: dict[str, Any], tolerance_bits: float) -> list[str]:
    upper = math.inf if found["upper_bits"] is None else found["upper_bits"]
    return conclusions(
        n=found["routes"].get("posterior", {}).get("pairs", 0),
        errors=found["routes"].get("classifier", {}).get("errors"),
        shared_exactly=upper != math.inf and math.isclose(upper, found["entropy_bits"], abs_tol=1e-9),
        tolerance_bits=tolerance_bits,
        # Where the classes pass through channels no critic shows more than their information, nor than log2 K.
        reach_bits=min(upper, found["reach_bits"] or found["ceiling_bits"]),
        t_lower_bits=-math.inf if found["t_lower_bits"] is None else found["t_lower_bits"],
        t_upper_bits=math.inf if found["t_upper_bits"] is None else found["t_upper_bits"],
        **{
            name: found[name]
            for name in (
                "lower_bits",
                "upper_bits",
                "confidence",
                "certificate",
                "strict_bits",
                "k",
                "paper_bits",
                "paper_k",
            )
        },
    )


def _provenance() -> dict[str, Any]:
    """What this process computes with."""
    return {
        "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "versions": {package: _version(package) for package in PACKAGES},
        "revision": _revision(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "not installed"


def _revision() -> str | None:
    """The commit of the checkout this package runs from; None for an installed wheel, or without git."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    try:
        command = ["git", "rev-parse", "HEAD"]
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None
