"""A setting without effect is an error on the command line, which names its use; in a config file it is no error."""

import json
from dataclasses import fields

import pytest
from ml_collections import ConfigDict
from small import IMAGES, batch_size, cdp, encoder, image_set, options

from mirigor_jax import kinds
from mirigor_jax.config_files import flatten, load_config, parse
from mirigor_jax.main import main
from mirigor_jax.objectives import OBJECTIVES, SETTINGS, Options
from mirigor_jax.runs.knobs import RULES, rule_of

FEATURES = ["--config=configs/encoder.py", "--config.data.source=features:h.npz"]
CHECKPOINT = ["--config=configs/encoder.py", "--config.data.source=npz:set.npz", "--config.encoder.path=x.pth"]
RENDERED = ["--config=configs/encoder.py:size=64", "--config.data.source=cdp", "--config.encoder.path=x.pth"]
INFO_NCE = "--config.estimate.estimators=('info_nce_symmetric',)"
PLAIN = "--config.evaluate.metrics=False"
LABELS = ["--config=configs/arrays.py", "--config.x=x.npy", "--config.labels=y.npy"]
UNADVERSARIAL = ["--config=configs/invertible.py", "--config.objectives=('critic','infonce')"]
TRAINING = "only affects runs that train an encoder, and"
OF_IMAGES = "only affects images, and"
OF_FEATURES = "data.source='features:h.npz'"

# What is given, and what is said of it.
IDLE = {
    "augment.crop": (
        cdp("--config.data.pairing=all", "--config.data.augment.crop=0.5"),
        "data.augment.crop=0.5 only affects pairings with simclr, and data.pairing='all'; leave it out, or give "
        "--config.data.pairing=all+simclr",
    ),
    "augment of features": ([*FEATURES, "--config.data.augment.flip=0.0"], f"=0.0 {OF_IMAGES} {OF_FEATURES}"),
    "size of features": ([*FEATURES, "--config.data.size=32"], f"data.size=32 {OF_IMAGES} {OF_FEATURES}"),
    "encoder of features": ([*FEATURES, "--config.encoder.name=mlp"], f"='mlp' {OF_IMAGES} {OF_FEATURES}"),
    "checkpoint of features": ([*FEATURES, "--config.encoder.path=x.pth"], f"='x.pth' {OF_IMAGES} {OF_FEATURES}"),
    "views of features": (
        [*FEATURES, "--config.estimate.extra_pairings=('simclr',)"],
        f"estimate.extra_pairings=('simclr',) {OF_IMAGES} {OF_FEATURES}",
    ),
    "training on features": ([*FEATURES, "--config.train.k=8"], f"train.k=8 {TRAINING} {OF_FEATURES}"),
    "held for no training": ([*FEATURES, "--config.data.resident=never"], f"='never' {TRAINING} {OF_FEATURES}"),
    "training": ([*CHECKPOINT, "--config.train.steps=9"], f"train.steps=9 {TRAINING} encoder.path='x.pth'"),
    "name": ([*CHECKPOINT, "--config.encoder.name=mlp"], f"encoder.name='mlp' {TRAINING} encoder.path='x.pth'"),
    "width": ([*CHECKPOINT, "--config.encoder.width=4"], f"encoder.width=4 {TRAINING} encoder.path='x.pth'"),
    "remat": ([*CHECKPOINT, "--config.encoder.remat=True"], f"encoder.remat=True {TRAINING} encoder.path='x.pth'"),
    "best": ([*CHECKPOINT, "--config.features.checkpoint=best"], f"='best' {TRAINING} encoder.path='x.pth'"),
    "rendered for training": ([*RENDERED, "--config.data.images=99"], f"data.images=99 {TRAINING} encoder.path"),
    "temperature": (
        [*CHECKPOINT, "--config.train.temperature=0.5", PLAIN],
        "train.temperature=0.5 only affects contrastive losses and metrics, and encoder.path='x.pth' and "
        "evaluate.metrics=False; leave it out",
    ),
    "temperature of another loss": (
        cdp("--config.train.objective=cross_entropy", "--config.train.temperature=0.5"),
        "=0.5 only affects contrastive losses and metrics, and train.objective='cross_entropy'",
    ),
    "temperature of mige": (
        cdp("--config.train.objective=mige", "--config.train.temperature=0.5"),
        "=0.5 only affects contrastive losses and metrics, and train.objective='mige'",
    ),
    "noise of another loss": (
        cdp("--config.train.embedding_noise=0.2"),
        "train.embedding_noise=0.2 only affects an objective that adds noise to the embeddings, and "
        "train.objective='simclr'; leave it out, or give --config.train.objective=mige",
    ),
    "weight of no reconstruction": (
        cdp("--config.train.reconstruction=1.0"),
        "train.reconstruction=1.0 only affects an objective that weighs the reconstruction, and "
        "train.objective='simclr'; leave it out, or give --config.train.objective=supervised_autoencoder",
    ),
    "decoder of none": (
        cdp("--config.train.decoder=mlp"),
        "train.decoder='mlp' only affects an objective with a decoder, and train.objective='simclr'; leave it out, or",
    ),
    "decoder without weight": (
        cdp("--config.train.objective=supervised_autoencoder", "--config.train.reconstruction=0.0",
            "--config.train.decoder=mlp"),
        "train.decoder='mlp' only affects reconstructions with a weight, and train.reconstruction=0.0; leave it out",
    ),
    "width of a linear decoder": (
        cdp("--config.train.objective=masked", "--config.train.decoder_width=9"),
        "train.decoder_width=9 only affects decoders with hidden layers, and train.decoder='linear'; leave it out, or",
    ),
    "masks of none": (
        cdp("--config.train.objective=supervised_autoencoder", "--config.train.patch=2"),
        "train.patch=2 only affects an objective that hides patches, and train.objective='supervised_autoencoder'",
    ),
    "noise without training": ([*FEATURES, "--config.train.embedding_noise=0.2"], f"=0.2 {TRAINING} {OF_FEATURES}"),
    "layout": (
        cdp("--config.encoder.layout=timm"),
        "encoder.layout='timm' only affects public checkpoints, and encoder.path=''; leave it out, or give "
        "--config.encoder.path=FILE",
    ),
    "drops": (
        cdp("--config.train.drops=(0.3,)"),
        "train.drops=(0.3,) only affects a learning rate that falls in steps, and train.schedule='cosine'; leave it "
        "out, or give --config.train.schedule=steps",
    ),
    "batch norm": (cdp("--config.train.global_batch_norm=False"), "=False only affects encoders with BatchNorm, and"),
    "MLP probe": (
        cdp("--config.evaluate.mlp_steps=9"),
        "evaluate.mlp_steps=9 only affects the metrics, and evaluate.metrics=False; leave it out, or give "
        "--config.evaluate.metrics=True",
    ),
    "seen by an encoder that the run trains": (
        ["--config=configs/images.py", "--config.evaluate.seen=none"],
        "evaluate.seen='none' only affects given encoders and features, and encoder.path='' and "
        "data.source='fashion_mnist'; leave it out",
    ),
    "seen, of new images": (
        [*RENDERED, "--config.evaluate.seen=all"],
        "evaluate.seen='all' only affects sets of images, and data.source='cdp'; leave it out",
    ),
    "left out of no limit": (
        ["--config=configs/images.py", "--config.features.unseen=9"],
        "features.unseen=9 only affects training images that are left out and that the encoder has not seen, and "
        "data.images=None and",
    ),
    "left out of a limit that a given encoder may not have had": (
        [*CHECKPOINT, "--config.data.images=99", "--config.features.unseen=9"], "=9 only affects training images that"
    ),
    "left out, but perhaps negatives": (
        ["--config=configs/images.py", "--config.data.images=99", "--config.data.negatives=classes:0+1",
         "--config.features.unseen=9"],
        "data.negatives='classes:0+1'",
    ),
    "left out of new images": (cdp("--config.features.unseen=9"), "features.unseen=9 only affects sets of images, and"),
    "stream": (
        cdp("--config.data.pairing=simclr", "--config.estimate.stream=False"),
        "estimate.stream=False only affects pairings by class, and views of one image are always streamed",
    ),
    "nothing at random": (
        ["--config=configs/images.py:data=npz:set.npz", "--config.data.seed=3"],
        "data.seed=3 only affects images that are made, changed or chosen at random, and data.source='npz:set.npz'",
    ),
    "rate of a critic that is not fitted": (
        ["--config=configs/cdp.py", INFO_NCE, "--config.estimate.learning_rate=0.1"],
        "estimate.learning_rate=0.1 only affects the critic with the head's architecture, and "
        "estimate.estimators=('info_nce_symmetric',); leave it out",
    ),
    "its checks": (cdp(INFO_NCE, "--config.estimate.eval_every=2"), "every=2 only affects the critic with the head's"),
    "its head, with features": (
        [*FEATURES, INFO_NCE, "--config.head.features=8"],
        f"head.features=8 only affects training and the critic with the head's architecture, and {OF_FEATURES} and",
    ),
    "study's own": (
        ["--config=configs/studies/batch_size.py", "--config.run.train.k=8"],
        "run.train.k=8 has no effect, since every run of this study sets its own value; leave it out",
    ),
    "no run of a study": (
        ["--config=configs/studies/batch_size.py", "--config.run.data.augment.crop=0.5"],
        "run.data.augment.crop=0.5 only affects pairings with simclr, and no run of this study uses it; leave it out",
    ),
    "seen, without labels": (
        ["--config=configs/arrays.py", "--config.x=x.npy", "--config.y=y.npy", "--config.seen=True"],
        "seen=True only affects I_class and usable information, which need labels, and none are given; leave it out",
    ),
    "batch": ([*LABELS, "--config.batch_size=8"], "batch_size=8 only affects critics of rows x and y, and labels="),
    "critic as an argument": (
        ["--config=configs/arrays.py:critic=cosine", *LABELS[1:]],
        "critic='cosine' only affects critics of rows x and y, and labels='y.npy' are given instead of y; leave it out",
    ),
    "estimators": (["--config=configs/arrays.py:estimators=nwj", *LABELS[1:]], "('nwj',) only affects critics of"),
    "adversary": ([*UNADVERSARIAL, "--config.ridge=2.0"], "ridge=2.0 only affects adversarial objectives, and"),
}  # fmt: skip


@pytest.mark.parametrize("case", IDLE)
def test_an_option_without_effect_is_an_error_before_anything_is_written(case, tmp_path, monkeypatch, capsys):
    arguments, message = IDLE[case]
    monkeypatch.chdir(tmp_path)
    assert main([*arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*"))


USED = {
    "augment": cdp("--config.data.pairing=color+simclr", "--config.data.augment.crop=0.5"),
    "augment of a further estimate": cdp(
        "--config.data.augment.crop=0.5", "--config.estimate.extra_pairings=('simclr',)"
    ),
    "temperature of metrics": [*CHECKPOINT, "--config.train.temperature=0.5"],
    "noise of mige": cdp("--config.train.objective=mige", "--config.train.embedding_noise=0.2"),
    "masks": cdp("--config.train.objective=masked", "--config.train.masked=0.5", "--config.train.patch=2"),
    "decoder of masked": cdp(
        "--config.train.objective=masked", "--config.train.decoder=mlp", "--config.train.decoder_width=9"
    ),
    "reconstruction": cdp("--config.train.objective=supervised_autoencoder", "--config.train.reconstruction=0.0"),
    "temperature of mige's metrics": cdp(
        "--config.train.objective=mige", "--config.train.temperature=0.5", "--config.evaluate.metrics=True"
    ),
    "dtype and stage": [*CHECKPOINT, "--config.encoder.dtype=float32", "--config.encoder.stage=B2"],
    "images of a set that a critic is fitted on": [*CHECKPOINT, "--config.data.images=99"],
    "classes, of usable information": cdp("--config.evaluate.classes=color"),
    "seen by a given encoder": [*CHECKPOINT, "--config.evaluate.seen=none"],
    "seen before the features were made": [*FEATURES, "--config.evaluate.seen=all"],
    "left out of training": ["--config=configs/images.py", "--config.data.images=99", "--config.features.unseen=9"],
    "left out of fitting, not seen by a given encoder": [
        *CHECKPOINT,
        "--config.data.images=99",
        "--config.features.unseen=9",
        "--config.evaluate.seen=none",
    ],
    "options that say nothing": [*CHECKPOINT, "--config.encoder.width=None", "--config.encoder.name="],
    "head, which the critic has too": [*FEATURES, "--config.head.features=8", *options(IMAGES)],
    "rate of a critic of augmented views": cdp(
        INFO_NCE, "--config.data.pairing=color+simclr", "--config.estimate.learning_rate=0.1"
    ),
    "rate of a critic of independent views": cdp(
        INFO_NCE, "--config.data.pairing=none", "--config.estimate.learning_rate=0.1"
    ),
    "head of a training": ["--config=configs/cdp.py", INFO_NCE, "--config.head.features=8"],
    "metrics": cdp("--config.evaluate.metrics=True", "--config.evaluate.mlp_steps=9"),
    "stream of one of two": cdp("--config.estimate.stream=True", "--config.estimate.extra_pairings=('simclr',)"),
    "random subset": ["--config=configs/images.py", "--config.data.seed=3", "--config.features.fit=99"],
    "one run of a study": ["--config=configs/studies/infomin_strength.py", "--config.run.estimate.stream=True"],
    "labels": [*LABELS, "--config.k=8", "--config.confidence=0.9"],
    "pairs": ["--config=configs/arrays.py:critic=cosine", "--config.x=x.npy", "--config.y=y.npy"],
    "adversarial": ["--config=configs/invertible.py", "--config.ridge=2.0"],
    "tests' own": cdp(),
    "tests' own set": image_set("fashion_mnist", "run"),
    "tests' own encoder": encoder("features:h.npz", "run"),
    "tests' own study": batch_size("run"),
}


@pytest.mark.parametrize("case", USED)
def test_options_with_an_effect_are_none_and_so_are_a_config_file_s(case):
    config, _, _, given = parse([*USED[case]])
    assert given
    assert not kinds.RUN_KINDS[config.kind].idle(config, [key for key in given if flatten(config)[key]])


def test_a_study_whose_estimates_have_a_use_for_a_setting_takes_it():
    config, *_ = load_config("configs/studies/infomin_tasks.py")
    key = "run.data.augment.crop"
    idle = kinds.RUN_KINDS["study"].idle
    assert idle(config, [key])
    config.study.estimates = ({"pairing": "color+simclr"},)
    assert not idle(config, [key])
    config.study.cells = ()
    assert idle(config, [key])[key].startswith("only affects a study's own runs, and this study has none")


def test_a_re_estimate_is_told_what_its_run_has_no_use_for(tmp_path, capsys):
    run_config, *_ = parse(CHECKPOINT)
    (tmp_path / "config.json").write_text(run_config.to_json())
    (tmp_path / "report.json").write_text(json.dumps({}))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["--config=configs/estimate.py", f"--config.restore={tmp_path}", "--config.checkpoint=best"]) == 2
    assert f"checkpoint='best' {TRAINING} encoder.path='x.pth'; leave it out" in capsys.readouterr().err
    streamed = ["--config=configs/estimate.py:pairing=simclr", "--config.stream=False"]
    assert main([*streamed, f"--config.restore={tmp_path}"]) == 2
    assert "stream=False only affects pairings by class" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_rules_are_of_keys_that_there_are():
    keys = flatten(load_config("configs/cdp.py")[0])
    for rule in RULES:
        assert set(rule.because) <= keys.keys()
        assert all(any(map(rule.is_of, keys)) for _ in rule.keys)
        assert all(any(key == own or key.startswith(own) for key in keys) for own in rule.keys + rule.but)


# Losses without negatives, each with the settings that it alone uses.
SIAMESE = {
    "barlow_twins": ("redundancy",),
    "vicreg": ("vicreg_weights",),
    "byol": ("target_decay",),
    "swav": ("prototypes",),
}


@pytest.mark.parametrize("objective", SIAMESE)
def test_a_setting_of_one_objective_names_it_where_another_trains(objective):
    config, key = load_config("configs/cdp.py")[0], f"train.{SIAMESE[objective][0]}"
    rule = rule_of(config, key)
    assert rule is not None
    assert rule.words(config).endswith(
        f"train.objective='simclr'; leave it out, or give --config.train.objective={objective}"
    )
    config.train.objective = objective
    assert rule_of(config, key) is None


def test_objectives_say_what_makes_a_difference_to_them():
    made = {name: make(Options(num_classes=2, axis_name=None)) for name, make in OBJECTIVES.items()}
    contrastive = dict.fromkeys(("simclr", "supcon", "decoupled", "anchor"), ("temperature",))
    assert {name: objective.uses for name, objective in made.items()} == {
        **contrastive,
        **SIAMESE,
        "swav": ("temperature", "prototypes"),
        "mige": ("embedding_noise",),
        "cross_entropy": (),
        "rotation": (),
        "supervised_autoencoder": ("reconstruction",),
        "masked": ("masked", "patch"),
    }
    assert {name for name, objective in made.items() if objective.needs_decoder} == {"supervised_autoencoder", "masked"}
    assert {setting for objective in made.values() for setting in objective.uses} == set(SETTINGS)
    assert set(SETTINGS) == {field.name for field in fields(Options)} - {"num_classes", "axis_name", "steps"}


def test_a_command_line_says_which_keys_it_gives():
    parsed = parse(["--config=configs/cdp.py:k=8,seed=3", "--config.train.steps=9", "--config.data.mi=None"])
    assert parsed.given == ("seed", "train.steps", "data.mi")
    assert isinstance(parsed.config, ConfigDict)
    assert (parsed.name, parsed.workdir) == ("cdp-k=8,seed=3-data.mi=None-train.steps=9", None)
