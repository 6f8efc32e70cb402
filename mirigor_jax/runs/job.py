"""A run's config, parsed and checked once: population, pairing, augmentation, encoder, objective."""

import contextlib
import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mirigor_jax import fields, hub, models, objectives, parallel, training
from mirigor_jax.config_files import flatten
from mirigor_jax.data import law
from mirigor_jax.data.attribute_classes import are_many
from mirigor_jax.data.augmentation import Augmentation
from mirigor_jax.data.pairing import ByClass, Pairing, SameImage, split
from mirigor_jax.data.population import Population
from mirigor_jax.data.sources import table
from mirigor_jax.data.training_data import check_resident, told_apart
from mirigor_jax.errors import InputError, listed
from mirigor_jax.mi.api import WHOLE
from mirigor_jax.mi.certificates import classifier_lower_bits
from mirigor_jax.mi.certify import DEPLETION_SHARE, LEAST_PAIRS
from mirigor_jax.mi.estimators import MAIN, Estimator, resolve
from mirigor_jax.models import pretrained
from mirigor_jax.models.dtypes import compute_dtype
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.objectives import Objective
from mirigor_jax.progress import Progress
from mirigor_jax.runs import knobs
from mirigor_jax.runs.notes import noted
from mirigor_jax.settings import WHICH, Images

PARTS = ("fit", "validation", "test")
UNSEEN = "unseen"  # the part of the images that training leaves out
MISSING_CLASSES = 0.05  # expected number of a law's classes that may have no image to fit on


@dataclass(frozen=True, eq=False)
class Job:
    """The parsed config of a run on images.

    config: the config, with data.size filled in from the images and the digests of the files added.
    pairing: the joint distribution of two views, and the augmentation of each.
    num_classes: number of classes that a labeled objective uses; None without labels.
    population: the source of the images; None if they are not read, as in a plan.
    others: jobs of the further estimates that `estimate.extra_pairings` asks for.
    notes: what was passed over in the files of the images and of the encoder, for the report.
    """

    config: ConfigDict
    pairing: Pairing
    num_classes: int | None = None
    population: Population | None = None
    others: tuple["Job", ...] = field(default=())
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its estimate's folder in estimates/."""
        return estimate_name(self.config)

    @property
    def images(self) -> Population:
        """The population; an error if the job has none."""
        assert self.population is not None
        return self.population

    @property
    def augmentation(self) -> Augmentation | None:
        """The augmentation of each view; None without one."""
        return self.pairing.augmentation

    @property
    def has_pretrained_encoder(self) -> bool:
        """Whether a checkpoint or features are given, so that no encoder is trained."""
        return bool(self.config.encoder.path) or self.holds_features

    @property
    def holds_features(self) -> bool:
        """Whether the source holds representations instead of images."""
        return table.holds_features(self.config.data.source)

    @property
    def streams(self) -> bool:
        """Whether the critic is fitted on fresh images, with the encoder in the step."""
        return self.config.estimate.stream or self.pairing.needs_encoder_in_step

    @property
    def classes(self) -> ByClass | None:
        """The classes that a labeled objective uses: those that the views share, or else all; None without labels."""
        return told_apart(self.images, self.pairing)

    @property
    def evaluated_classes(self) -> ByClass | None:
        """The classes of metrics and usable information; None without labels.

        `evaluate.classes` defines them. If it is None, they are the classes that the pairing shares, or those of the
        population's last task if the pairing shares none.
        """
        population, classes, asked = self.images, self.pairing.by_class, self.config.evaluate.classes
        if not population.names:
            return None
        if asked or classes is None or classes.num_classes == 1:
            return population.task(asked or population.tasks[-1])
        return classes

    @property
    def seen_parts(self) -> tuple[str, ...]:
        """The parts whose images the encoder was trained or chosen on, or may have been."""
        if table.find(self.config.data.source).is_generated:
            return ()
        if not self.has_pretrained_encoder:
            return ("fit",)
        images = self.images
        parts = {*table.SEEN_PARTS[self.config.evaluate.seen or ("none" if images.is_one_sample else "train")]}
        if "fit" in parts and images.validates_on_training:
            parts |= {"validation"}
        if self.config.data.rotations:  # several turns of one image are no independent draws
            parts |= {"fit"}
        return tuple(sorted(parts))

    @property
    def objective(self) -> Objective:
        """The training loss. Raises InputError if there is no such loss, or if it needs labels and there are none."""
        return make_objective(self.config, self.num_classes)

    @property
    def estimators(self) -> dict[str, Estimator]:
        """The estimators that read the fitted critic, by name. Raises InputError for one that cannot."""
        return _estimators(self.config)

    def encoder(self) -> nn.Module:
        """The encoder to train. Raises InputError if the config names none, and as `models.build` does."""
        e = self.config.encoder
        if not e.name:
            raise InputError(
                "no encoder is given: name a checkpoint by --config.encoder.path, features by "
                "--config.data.source=features:FILE, or an encoder to train by --config.encoder.name"
            )
        options = {"width": e.width, "stem": e.stem, "dtype": None if e.dtype == "auto" else e.dtype, "remat": e.remat}
        with under("encoder."):
            models.check_options(e.name, options)
        return models.build(e.name, size=self.config.data.size, **options)

    def of(self, config: ConfigDict) -> "Job":
        """The job of another config with the same images, for a report. It does not check that there are enough."""
        pairing = _pairing(config, self.images)
        classes = told_apart(self.images, pairing)
        num_classes = None if classes is None else classes.num_classes
        return Job(config, pairing, num_classes, self.images, notes=self.notes)

    def without_augmentation(self) -> "Job":
        """The job of the same images without augmentation, paired at random, for probes and metrics."""
        return replace(self, pairing=self.images.pairing("none"))

    def public_encoder(self) -> FrozenEncoder:
        """The encoder of the checkpoint that the config names. Raises InputError as `pretrained.load` does."""
        e, size = self.config.encoder, self.config.data.size
        frozen = pretrained.load(e.path, layout=e.layout, place=e.place, size=size)
        encoder = frozen.encoder.clone(dtype=compute_dtype(e.dtype))
        return replace(frozen, encoder=encoder, stage=e.stage)


def parse(config: ConfigDict) -> Job:
    """The job of a config. Every error in the config is found here, before any file is written.

    Neither the config nor the process is changed. Raises InputError if the user has to correct something.
    """
    config = copy.deepcopy(config)
    _check_numbers(config)
    with Progress(f"reading {config.data.source}"):
        population, notes = noted(lambda: _population(config))
    asks_for_size = config.data.size is not None
    if not asks_for_size and not table.holds_features(config.data.source):
        config.data.size = population.side
    notes += _check_encoder(without_images(config, SameImage()), asks_for_size)
    job = replace(_parse(config, population), notes=notes)
    with Progress("digests of the files"):
        hashes = digests(config)
    if hashes:
        for part in (job, *job.others):
            with part.config.unlocked():
                part.config.sha256 = hashes
    return job


def without_images(config: ConfigDict, pairing: Pairing, num_classes: int | None = None) -> Job:
    """The job of a config with this pairing, without reading images. It only serves to make the job's steps."""
    return Job(config, pairing, num_classes)


def _parse(config: ConfigDict, population: Population) -> Job:
    """The job of a config, after its numbers were checked, with this population."""
    d = config.data
    _, augmented = split(d.pairing)
    has_features = table.holds_features(d.source)
    if has_features and (config.estimate.stream or augmented):
        cause = f"data.pairing='{d.pairing}' augments" if augmented else "estimate.stream=True streams"
        raise InputError(f"{cause} images, and data.source='{d.source}' has none; leave it out")
    pairing = _pairing(config, population)
    classes = told_apart(population, pairing)
    if config.evaluate.classes:
        population.task(config.evaluate.classes)
    num_classes = None if classes is None else classes.num_classes
    if not (config.encoder.path or has_features):
        objective = make_objective(config, num_classes)
        with under("train."):
            training.check_size(objective, d.size)
    others = tuple(_parse(more, population) for more in _further(config, population))
    job = Job(config, pairing, num_classes, population, others)
    seen = config.evaluate.seen
    if population.is_one_sample and seen and table.SEEN_PARTS[seen] == table.SEEN_PARTS["train"]:
        raise InputError(f"evaluate.seen='{seen}': '{d.source}' has no training part of its own; give all, or none")
    _check_pairs(job, *(population.num_pairs(part, pairing) for part in ("test", "validation")))
    has_set = population.training(pairing) is not None
    check_resident(d.resident, has_set=has_set, key="data.resident", fix="give data.images=N")
    return job


@contextlib.contextmanager
def precision(config: ConfigDict) -> Iterator[None]:
    """Within this context, JAX has float64 if the encoder computes in it. Afterwards, the old setting is back."""
    before = jax.config.values["jax_enable_x64"]
    jax.config.update("jax_enable_x64", before or config.encoder.dtype == "float64")
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@contextlib.contextmanager
def under(prefix: str) -> Iterator[None]:
    """Within this context, the message of an InputError gets a prefix, which turns an argument's name into its key."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{prefix}{error}") from error


def estimate_name(config: ConfigDict) -> str:
    """The name of a pairing's folder in estimates/: `all`, `color+digit`, `all-mi=3.3`, `all-epsilon.color=0.1`."""
    epsilon = [f"epsilon.{name}={value:g}" for name, value in config.data.epsilon.items() if value is not None]
    mi_part = [] if config.data.mi is None else [f"mi={config.data.mi:g}"]
    return "-".join([config.data.pairing, *mi_part, *epsilon])


def re_estimated(
    run_config: ConfigDict,
    *,
    name: str = "",
    pairing: str | None = None,
    mi: float | None = None,
    seed: int | None = None,
    **changes: Any,
) -> tuple[ConfigDict, str]:
    """(a run's config with the changes of a re-estimate, the estimate's name).

    name: the estimate's name; "": a name made from the changes.
    changes: any of k, steps, stream, k_curve, test, checkpoint and rows.
    Raises InputError if the name holds a slash.
    """
    config = ConfigDict(run_config.to_dict())
    config.estimate.extra_pairings = ()
    config.lock()  # so that an unknown change raises KeyError
    if pairing is not None or mi is not None:
        config.data.pairing = run_config.data.pairing if pairing is None else pairing
        config.data.mi = mi
        config.data.epsilon = dict.fromkeys(run_config.data.epsilon)
    for key, value in changes.items():
        section, _, name_there = changed_key(key).partition(".")
        config[section][name_there] = list(value) if key == "k_curve" else value
    name_parts = [f"{key}={'+'.join(map(str, x)) if key == 'k_curve' else x}" for key, x in sorted(changes.items())]
    if seed is not None:
        config.seed = seed
        name_parts = [f"seed={seed}", *name_parts]
    name = name or "-".join([estimate_name(config), *name_parts])
    if "/" in name:
        raise InputError(f"config.name='{name}' holds a slash; give the plain name of a folder")
    return config.unlock(), name


def changed_key(change: str) -> str:
    """The dotted key of a run's config that the `change` of a re-estimate sets."""
    return f"{'features' if change in ('test', 'checkpoint') else 'estimate'}.{change}"


def make_objective(config: ConfigDict, num_classes: int | None) -> Objective:
    """The config's training loss. num_classes and errors: see `objectives.make`."""
    train = config.train
    with under("train."):
        return objectives.make(
            train.objective,
            **knobs.of_objectives(train),
            steps=train.steps,
            num_classes=num_classes,
            axis_name=parallel.AXIS,
            negatives=bool(config.data.negatives),
        )


def batch_sizes(config: ConfigDict, pairs: int) -> list[int]:
    """The batch sizes K at which the test part is read: those at which estimators are quoted, and those of the curve.

    pairs: number of test pairs. A K beyond it is left out, except estimate.k.
    """
    e = config.estimate
    return sorted({e.k, *(k for k in (e.nt_xent_k, *e.k_curve) if k <= pairs)})


def quoted_k(config: ConfigDict, name: str, sizes: Sequence[int]) -> int:
    """The K at which an estimator is quoted: `estimate.NAME_k` if that key exists and is in `sizes`, else `k`."""
    k = config.estimate.get(f"{name}_k", config.estimate.k)
    return k if k in sizes else config.estimate.k


def validation_k(config: ConfigDict, pairs: int, devices: int) -> int:
    """Pairs in a validation batch: estimate.k, or if there are fewer, as many as divide over the devices."""
    return config.estimate.k if config.estimate.k <= pairs else max(pairs // devices * devices, min(pairs, devices))


def critic_mesh(config: ConfigDict, pairs: int, validation: int, devices: Any = None) -> jax.sharding.Mesh:
    """A mesh of devices that every batch size of the estimate divides over.

    pairs: number of test pairs. validation: number of validation pairs. devices: None: all devices.
    Raises InputError if several processes would have to leave devices idle.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {*batch_sizes(config, pairs), config.estimate.batch_size, validation_k(config, validation, len(devices))}
    try:
        return parallel.make_mesh(math.gcd(*sizes), devices)
    except InputError:
        raise InputError(
            f"batches of {', '.join(map(str, sorted(sizes)))} pairs (estimate.k, nt_xent_k, k_curve, batch_size; "
            f"validation) do not all divide over {len(devices)} devices; use multiples of {len(devices)}"
        ) from None


def optimizer_of(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer of a run's training. Raises InputError as `training.make_optimizer` does."""
    t = config.train
    names = ("learning_rate", "steps", "warmup_steps", "weight_decay", "schedule", "drops")
    return training.make_optimizer(t.optimizer, **{name: t[name] for name in names})


def digests(config: ConfigDict) -> dict[str, str]:
    """Hashes of the contents of the encoder, the source, the negatives and the law, which may change.

    These are SHA-256 digests of files. For a repository on the Hugging Face Hub it is the hash of its commit.
    """
    d, path = config.data, config.encoder.path
    files = {"source": table.content_of(d.source), "negatives": table.content_of(d.negatives)}
    files |= {"law": law.file_of(d.cdp.law), "encoder": "" if hub.is_hub(path) else path}
    hashes = {name: table.commit_of(d[name]) for name in ("source", "negatives")}
    hashes["encoder"] = hub.commit_of(path, "model") if hub.is_hub(path) else ""
    for name in (name for name, file in files.items() if file):
        with hub.path_of(files[name]).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return {name: digest for name, digest in hashes.items() if digest}


def _check_numbers(config: ConfigDict) -> None:
    """Raises InputError for a setting that is wrong whatever the images are."""
    t, f = config.train, config.features
    fields.check(Images, flatten(config))
    optimizer_of(config)
    for part in PARTS:
        if f[part] is None and table.find(config.data.source).is_generated:
            raise InputError(f"features.{part}=None: images of '{config.data.source}' have no end; give a number")
    if not (config.encoder.path or table.holds_features(config.data.source)):
        objective = make_objective(config, num_classes=2)  # their number is known once the images are read
        with under("train."):
            training.check_parts(t.k // parallel.make_mesh(t.k).size, t.accumulate)
            training.check_pairs(t.k, objective, t.objective, config.head.features)
        _check_kept(config)
    parallel.make_mesh(f.batch_size)


def _check_kept(config: ConfigDict) -> None:
    """Raises InputError if no checkpoint can be kept as often as asked, or if the one to measure is not kept."""
    t, which = config.train, config.features.checkpoint
    if t.keep_every is not None and t.keep_every % t.checkpoint_every:
        raise InputError(
            f"train.keep_every={t.keep_every}: expected a multiple of train.checkpoint_every={t.checkpoint_every}"
        )
    if which in WHICH or int(which) == t.steps:
        return
    if t.keep_every is None:
        raise InputError(
            f"features.checkpoint='{which}': the training keeps only the last two checkpoints and the best; give last "
            "or best, or train with train.keep_every=N"
        )
    if int(which) % t.keep_every or not 0 < int(which) < t.steps:
        raise InputError(
            f"features.checkpoint='{which}': expected last, best, or a multiple of train.keep_every={t.keep_every} up "
            f"to train.steps={t.steps}"
        )


def _check_encoder(job: Job, asks_for_size: bool) -> tuple[str, ...]:
    """What was passed over in a given encoder's file.

    asks_for_size: whether the config gives the images' side. If it does not, no encoder is made for another side.
    Prints a line if the encoder was made for images of another side than it was trained on.
    Raises InputError if there is no such encoder, stage or checkpoint, or if it cannot take the images.
    """
    if job.holds_features:
        return ()
    size, stage, path = job.config.data.size, job.config.encoder.stage, job.config.encoder.path
    given: FrozenEncoder | None = None
    notes: tuple[str, ...] = ()
    if path:
        with Progress(f"reading {path}"):
            given, notes = noted(job.public_encoder)
    if given is not None and given.resized and not asks_for_size:
        raise InputError(
            f"'{path}' takes images of {given.size} pixels, not {size}; give that size, or data.size={size} to have "
            "its position embeddings interpolated"
        )
    if given is not None and given.resized:
        notes += (given.resized,)
        print(given.resized, flush=True)
    if given is not None and given.ignored:
        notes += (f"encoder '{path}': {len(given.ignored):,} keys are ignored: {listed(given.ignored, 5)}",)
    encoder: Any = job.encoder() if given is None else given.encoder
    if models.takes_any_size(encoder) and not stage:
        return notes
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    stages: Any = jax.eval_shape(
        lambda x: encoder.init_with_output(jax.random.key(0), x, train=False, stages=True)[0], images
    )
    if stage and stage not in stages:
        raise InputError(f"encoder.stage='{stage}' is unknown; choose one of {', '.join(stages)}")
    return notes


def _estimators(config: ConfigDict) -> dict[str, Estimator]:
    """The estimators that the config names. Raises InputError for one that cannot read the critic of such a run."""
    e, names = config.estimate, tuple(config.estimate.estimators)
    if names[:1] != (MAIN,):
        raise InputError(f"estimate.estimators={names}: expected '{MAIN}', which the critic is fitted by, first")
    with under("estimate.estimators: "):
        results = {name: resolve(name) for name in names}
    for name, estimator in results.items():
        if estimator.needs_u:
            raise InputError(f"estimate.estimators: '{name}' needs a second critic, and a run on images fits one")
        if estimator.from_embeddings is None and max(e.k, e.nt_xent_k, *e.k_curve) > WHOLE:
            raise InputError(
                f"estimate.estimators: '{name}' reads whole score matrices, of at most {WHOLE:,} pairs; lower "
                "estimate.k, nt_xent_k and k_curve to that"
            )
    return results


def _check_pairs(job: Job, pairs: int, validation: int) -> None:
    """Raises InputError if there are too few pairs, or if the batches do not divide over several processes' devices.

    pairs, validation: numbers of test and validation pairs, which must suffice for an estimate and a certificate.
    """
    e, pairing = job.config.estimate, job.pairing
    if pairs < e.k:
        raise InputError(
            f"{pairs} test pairs cannot fill one batch of k_est={e.k}; lower it, or raise features.test; of a set of "
            "images give more of the rarest class, or leave rare classes out (data.classes)"
        )
    common = pairing.common_frequencies
    if common is not None and len(common) > 1 and classifier_lower_bits(0, pairs, common, e.confidence) == 0:
        raise InputError(
            f"{pairs} test pairs are too few for a certificate over {len(common)} classes: even a classifier "
            "without errors would prove nothing; raise features.test to some thousands"
        )
    if pairing.certificates and pairs < LEAST_PAIRS:
        raise InputError(f"{pairs} test pairs are too few for a certificate; raise features.test to some thousands")
    if pairing.certificates and validation < LEAST_PAIRS:
        raise InputError(
            f"{validation} validation pairs are too few to choose on; raise features.validation, or give images"
        )
    _check_rare_classes(job)
    critic_mesh(job.config, pairs, validation)
    _estimators(job.config)


def _check_rare_classes(job: Job) -> None:
    """Raises InputError if some classes of generated images are likely to have no image of the part `fit`.

    This matters to a probe of all classes, and to a critic that draws pairs of this part by class.
    """
    classes, e, fit = job.pairing.by_class, job.config.estimate, job.config.features.fit
    if classes is None or fit is None or not table.find(job.config.data.source).is_generated:
        return
    p, many = classes.frequencies, are_many(classes.num_classes, len(classes.shared))
    draws = not e.stream and tuple(e.estimators) != (MAIN,)
    if not draws if many else p.min() == p.max():  # without a law, a few classes always have images
        return
    if (missing := float(((1 - p) ** fit).sum())) > MISSING_CLASSES:
        enough = math.ceil(math.log(MISSING_CLASSES / len(p)) / math.log1p(-float(p.min())))
        leave = f", or leave all but '{MAIN}' out of estimate.estimators" if many else ", or a law without rare classes"
        raise InputError(
            f"the rarest of {len(p):,} classes has a probability of {p.min():.2g}: {missing:.2g} classes "
            f"are expected to have none of features.fit={fit:,} images; give {enough:,}{leave}"
        )


def _pairing(config: ConfigDict, population: Population) -> Pairing:
    d = config.data
    epsilon = {name: value for name, value in d.epsilon.items() if value is not None}
    with under("data.augment."):
        augmentation = Augmentation(**d.augment)
    return population.pairing(d.pairing, augmentation=augmentation, mi_bits=d.mi, epsilon=epsilon)


def _further(config: ConfigDict, population: Population) -> list[ConfigDict]:
    """The configs of the further estimates, without those that are impossible.

    Features have no augmented views, and images without labels have no shared classes.
    """

    def is_possible(shared: str, augmented: bool) -> bool:
        return not (table.holds_features(config.data.source) and augmented) and (bool(population.names) or not shared)

    also = [text for text in config.estimate.extra_pairings if is_possible(*split(text))]
    re_estimates = [re_estimated(config, pairing=pairing) for pairing in also]
    return [changed for changed, name in re_estimates if name != estimate_name(config)]


def _population(config: ConfigDict) -> Population:
    d, f = config.data, config.features
    source = table.find(d.source)
    if source.is_generated and d.size is None:
        raise InputError(f"data.size=None: images of '{d.source}' are rendered at a size; give one, such as 64")
    if d.negatives and (config.encoder.path or source.holds_features):
        raise InputError(f"data.negatives='{d.negatives}' are for training, and the encoder is given; leave them out")
    knobs.check(d)
    # Whoever trained a given encoder may have used the training images that this run leaves out.
    given = bool(config.encoder.path) or source.holds_features
    request = table.Request(
        seed=config.seed,
        data_seed=d.seed,
        size=d.size,
        parts={"train": d.images, **{part: f[part] for part in PARTS}},
        depletion_risk=DEPLETION_SHARE * (1 - config.estimate.confidence),
        knobs={name: knobs.given(d, name) for name in table.SOURCES},
        unseen=0 if given and UNSEEN in table.SEEN_PARTS[config.evaluate.seen or "train"] else f.unseen,
        **{name: d[name] for name in knobs.OF_SETS},
    )
    return source.population(d.source, request)
