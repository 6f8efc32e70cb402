"""Finds settings that have no effect in a run on images; such a setting is an error.

`check` looks at `config.data`, whoever set its values; `RULES` look at the keys that a user gave on the command line.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ml_collections import ConfigDict

from mirigor_jax import models
from mirigor_jax.config_files import flatten
from mirigor_jax.data.pairing import shares_image, shares_nothing, split
from mirigor_jax.data.sources.table import SEEN_PARTS, SOURCES, Request, holds_features, left_out_is_unseen
from mirigor_jax.errors import InputError
from mirigor_jax.mi.estimators import MAIN
from mirigor_jax.objectives import OBJECTIVES, SETTINGS, Objective, Options
from mirigor_jax.training import DECODER_LAYERS

# Settings of finite sets of images, with their defaults.
OF_SETS = {
    field.name: field.default
    for field in fields(Request)
    if field.name in ("classes", "corrupted", "negatives", "rotations", "noise")
}
OF_PIXELS = ("rotations", "noise")  # settings that features have no use for
SHARED = ("tfds_dir",)  # settings of several sources, which are keys of `data`; all others are keys of data.NAME


def given(data: ConfigDict, name: str) -> dict[str, Any]:
    """The values that the config has for the settings of one source, by name."""
    section = _section(data, name)
    shared = {knob: data[knob] for knob in SHARED if knob in SOURCES[name].knobs}
    return shared | section


def check(data: ConfigDict) -> None:
    """Raises InputError for a setting that is not at its default, and that neither source nor negatives use.

    data: `config.data`, with a known source.
    """
    used = {spec.partition(":")[0] for spec in (data.source, data.negatives)}
    for name, source in SOURCES.items():
        for knob, value in _section(data, name).items():
            if knob not in source.knobs:
                raise InputError(f"data.{name}.{knob} is unknown; the source takes {', '.join(source.knobs)}")
            if name not in used and value != source.knobs[knob]:
                raise _useless(f"{name}.{knob}", value, f"data.source='{name}'", data)
    for knob in SHARED:
        users = [name for name, source in SOURCES.items() if knob in source.knobs]
        if data[knob] is not None and not used & {*users}:
            raise _useless(knob, data[knob], f"the sources {' and '.join(users)}", data)
    source = SOURCES[data.source.partition(":")[0]]
    useless = OF_SETS if source.is_generated else OF_PIXELS if source.holds_features else ()
    for name in useless:
        if data[name] != OF_SETS[name]:
            raise _useless(name, data[name], "sets of images", data)


def _section(data: ConfigDict, name: str) -> dict[str, Any]:
    section = data.get(name)
    knobs = section.to_dict() if isinstance(section, ConfigDict) else {}
    return {knob: tuple(x) if isinstance(x, list) else x for knob, x in knobs.items()}  # stored configs have lists


def _useless(key: str, value: Any, whose: str, data: ConfigDict) -> InputError:
    shown = f"'{value}'" if isinstance(value, str) else value
    return InputError(f"data.{key}={shown} only affects {whose}, and data.source='{data.source}'; leave it out")


def _features(config: ConfigDict) -> bool:
    return holds_features(config.data.source)


def _checkpoint(config: ConfigDict) -> bool:
    return bool(config.encoder.path)


def _generated(config: ConfigDict) -> bool:
    source = SOURCES.get(config.data.source.partition(":")[0])
    return source is not None and source.is_generated


def _whole_sets(config: ConfigDict) -> bool:
    """Whether whole sets of images are read unchanged: no image is chosen, made or changed at random."""
    data, limits = config.data, (config.data.images, *(config.features[part] for part in ("fit", "validation", "test")))
    at_random = data.negatives or any(data[name] != OF_SETS[name] for name in ("corrupted", "rotations", "noise"))
    return not _generated(config) and not at_random and all(limit is None for limit in limits)


def _given(config: ConfigDict) -> bool:
    return _checkpoint(config) or _features(config)


def _leaves_out_none(config: ConfigDict) -> bool:
    """Whether `features.unseen` has no effect.

    This is so if no training image is left out, or if the encoder may have seen those that are.
    """
    data, seen = config.data, SEEN_PARTS.get(config.evaluate.seen, SEEN_PARTS["train"])
    may_be_seen = _given(config) and "unseen" in seen
    return data.images is None or may_be_seen or not left_out_is_unseen(data.negatives)


def _pairings(config: ConfigDict) -> tuple[str, ...]:
    """All pairings under which the encoder is measured."""
    return (config.data.pairing, *config.estimate.extra_pairings)


def _starts_from_posteriors(config: ConfigDict) -> bool:
    """Whether every critic starts from a class posterior, so no critic with the head's architecture is fitted.

    This holds if InfoNCE is the only estimator, and all pairings are by class.
    """
    pairings = _pairings(config)
    if _features(config):  # they have no augmented views
        pairings = tuple(text for text in pairings if not split(text)[1])
    by_class = not any(split(text)[1] or shares_nothing(text) for text in pairings)
    return by_class and not config.estimate.stream and tuple(config.estimate.estimators) == (MAIN,)


def _without_metrics(config: ConfigDict) -> bool:
    return not config.evaluate.metrics


def _both(one: Callable[[ConfigDict], bool], other: Callable[[ConfigDict], bool]) -> Callable[[ConfigDict], bool]:
    """A condition that holds if both conditions hold."""
    return lambda config: one(config) and other(config)


def of_objectives(train: ConfigDict) -> dict[str, Any]:
    """The settings of training that objectives depend on, by name. Stored configs have lists instead of tuples."""
    return {name: tuple(x) if isinstance(x := train[name], list) else x for name in SETTINGS}


def _objective(config: ConfigDict) -> Objective | None:
    """The training loss, to read what it uses; None if its name is unknown, which is an error elsewhere."""
    make = OBJECTIVES.get(config.train.objective)
    return make and make(Options(num_classes=None, axis_name=None, **of_objectives(config.train)))


def _without_decoder(config: ConfigDict) -> bool:
    objective = _objective(config)
    return objective is not None and not objective.needs_decoder


def _unused(name: str) -> Callable[[ConfigDict], bool]:
    """The condition that the training's objective does not depend on its setting of this name."""

    def unused(config: ConfigDict) -> bool:
        objective = _objective(config)
        return objective is not None and name not in objective.uses

    return unused


def _without_batch_norm(config: ConfigDict) -> bool:
    try:
        return not hasattr(models.build(config.encoder.name), "axis_name")
    except InputError:  # raised elsewhere, too
        return False


@dataclass(frozen=True)
class Rule:
    """Settings that have no effect in some runs on images.

    keys: dotted keys of the settings. A section's name with a dot stands for all settings in it.
    whose: words for the runs, images or encoders that use the settings.
    where: (config) → whether the settings have no effect.
    because: keys of the settings that cause this.
    but: keys that the rule leaves out.
    instead: an argument that gives the settings an effect; {} stands for the value of the first key of `because`.
    """

    keys: tuple[str, ...]
    whose: str
    where: Callable[[ConfigDict], bool]
    because: tuple[str, ...]
    but: tuple[str, ...] = ()
    instead: str = ""

    def is_of(self, key: str) -> bool:
        """Whether the rule covers this key."""
        sections = tuple(own for own in self.keys if own.endswith("."))
        return key not in self.but and (key in self.keys or key.startswith(sections))

    def words(self, config: ConfigDict) -> str:
        """The words of the message, after KEY=VALUE."""
        values = flatten(config)
        causes = " and ".join(f"{key}={values[key]!r}" for key in self.because)
        advice = f", or give {self.instead.format(values[self.because[0]])}" if self.instead else ""
        return f"only affects {self.whose}, and {causes}; leave it out{advice}"


OF_TRAINING = ("train.", "data.resident", "features.checkpoint")
TEMPERATURE = ("train.temperature",)  # the metrics use it, too
DECODER = ("train.decoder", "train.decoder_width")
OF_FITS = ("estimate.learning_rate", "estimate.eval_every")
HEAD = "the critic with the head's architecture"
TRAINING, LOSSES = "runs that train an encoder", "contrastive losses and metrics"
# The first rule that applies to a key makes the message. No rule covers data.threads, data.workers and
# features.batch_size: a user chooses them for the machine.
RULES = (
    Rule(("data.size", "data.augment.", "encoder."), "images", _features, ("data.source",)),
    Rule(
        ("estimate.extra_pairings",),
        "images",
        lambda c: _features(c) and all(split(text)[1] for text in c.estimate.extra_pairings),
        ("data.source",),
    ),
    Rule(OF_TRAINING, TRAINING, _features, ("data.source",), but=TEMPERATURE),
    Rule(OF_TRAINING, TRAINING, _checkpoint, ("encoder.path",), but=TEMPERATURE),
    Rule(tuple(f"encoder.{o}" for o in ("name", "width", "stem", "remat")), TRAINING, _checkpoint, ("encoder.path",)),
    Rule(("data.images",), TRAINING, lambda c: _checkpoint(c) and _generated(c), ("encoder.path",)),
    Rule(
        ("encoder.layout", "encoder.place"),
        "public checkpoints",
        lambda c: not _checkpoint(c),
        ("encoder.path",),
        instead="--config.encoder.path=FILE",
    ),
    Rule(TEMPERATURE, LOSSES, _both(_features, _without_metrics), ("data.source", "evaluate.metrics")),
    Rule(TEMPERATURE, LOSSES, _both(_checkpoint, _without_metrics), ("encoder.path", "evaluate.metrics")),
    Rule(
        TEMPERATURE,
        LOSSES,
        _both(_unused("temperature"), _without_metrics),
        ("train.objective", "evaluate.metrics"),
    ),
    Rule(
        ("train.embedding_noise",),
        "an objective that adds noise to the embeddings",
        _unused("embedding_noise"),
        ("train.objective",),
        instead="--config.train.objective=mige",
    ),
    Rule(
        ("train.reconstruction",),
        "an objective that weighs the reconstruction",
        _unused("reconstruction"),
        ("train.objective",),
        instead="--config.train.objective=supervised_autoencoder",
    ),
    Rule(
        DECODER,
        "an objective with a decoder",
        _both(_without_decoder, _unused("reconstruction")),
        ("train.objective",),
        instead="--config.train.objective=supervised_autoencoder",
    ),
    Rule(DECODER, "reconstructions with a weight", _without_decoder, ("train.reconstruction",)),
    Rule(
        ("train.decoder_width",),
        "decoders with hidden layers",
        lambda c: not DECODER_LAYERS.get(c.train.decoder),
        ("train.decoder",),
        instead="--config.train.decoder=mlp",
    ),
    Rule(
        ("train.masked", "train.patch"),
        "an objective that hides patches",
        _unused("masked"),
        ("train.objective",),
        instead="--config.train.objective=masked",
    ),
    Rule(
        ("train.redundancy",),
        "an objective that weighs redundancy",
        _unused("redundancy"),
        ("train.objective",),
        instead="--config.train.objective=barlow_twins",
    ),
    Rule(
        ("train.vicreg_weights",),
        "an objective that weighs invariance, variance and covariance",
        _unused("vicreg_weights"),
        ("train.objective",),
        instead="--config.train.objective=vicreg",
    ),
    Rule(
        ("train.target_decay",),
        "an objective with a target network",
        _unused("target_decay"),
        ("train.objective",),
        instead="--config.train.objective=byol",
    ),
    Rule(
        ("train.prototypes",),
        "an objective with prototypes",
        _unused("prototypes"),
        ("train.objective",),
        instead="--config.train.objective=swav",
    ),
    Rule(
        ("train.drops",),
        "a learning rate that falls in steps",
        lambda c: c.train.schedule != "steps",
        ("train.schedule",),
        instead="--config.train.schedule=steps",
    ),
    Rule(("train.global_batch_norm",), "encoders with BatchNorm", _without_batch_norm, ("encoder.name",)),
    Rule(
        ("evaluate.mlp_steps",),
        "the metrics",
        _without_metrics,
        ("evaluate.metrics",),
        instead="--config.evaluate.metrics=True",
    ),
    Rule(
        ("data.augment.",),
        "pairings with simclr",
        lambda c: not any(split(text)[1] for text in _pairings(c)),
        ("data.pairing",),
        instead="--config.data.pairing={}+simclr",
    ),
    Rule(
        ("estimate.stream",),
        "pairings by class, and views of one image are always streamed",
        lambda c: all(map(shares_image, _pairings(c))),
        ("data.pairing",),
    ),
    Rule(("estimate.rows", "evaluate.seen", "features.unseen"), "sets of images", _generated, ("data.source",)),
    Rule(("evaluate.seen",), "given encoders and features", lambda c: not _given(c), ("encoder.path", "data.source")),
    Rule(
        ("features.unseen",),
        "training images that are left out and that the encoder has not seen",
        _leaves_out_none,
        ("data.images", "evaluate.seen", "data.negatives"),
    ),
    Rule(OF_FITS, HEAD, _starts_from_posteriors, ("estimate.estimators",)),
    Rule(
        ("head.",),
        f"training and {HEAD}",
        _both(_features, _starts_from_posteriors),
        ("data.source", "estimate.estimators"),
    ),
    Rule(
        ("head.",),
        f"training and {HEAD}",
        _both(_checkpoint, _starts_from_posteriors),
        ("encoder.path", "estimate.estimators"),
    ),
    Rule(("data.seed",), "images that are made, changed or chosen at random", _whole_sets, ("data.source",)),
)


def rule_of(config: ConfigDict, key: str) -> Rule | None:
    """The rule that says why the key has no effect in this run; None if it has an effect."""
    return next((rule for rule in RULES if rule.is_of(key) and rule.where(config)), None)


def idle(config: ConfigDict, given: Sequence[str]) -> dict[str, str]:
    """The given keys that have no effect, each with words for a message."""
    rules = {key: rule_of(config, key) for key in given}
    return {key: rule.words(config) for key, rule in rules.items() if rule is not None}
