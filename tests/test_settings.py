"""A setting is written once: configs, checks, --help and the library take default, limits and meaning from there."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import FieldReference
from small import cdp as cdp_run

from mirigor_jax import config_files, encoding, fields, help_pages, metrics, mi, settings, training
from mirigor_jax.config_files import flatten, shipped_configs
from mirigor_jax.data import augmentation, cdp, patches
from mirigor_jax.errors import InputError
from mirigor_jax.fields import of, settings_of
from mirigor_jax.main import main
from mirigor_jax.settings import KINDS, Images

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mirigor_jax"
SECTIONS = {**KINDS, "export": settings.Export}
ALL = {f"{kind}: {key}": one for kind, section in SECTIONS.items() for key, one in settings_of(section).items()}


def page(capsys, *argv: str) -> list[str]:
    """The lines that a command with --help prints."""
    assert main([*argv, "--help"]) == 0
    return capsys.readouterr().out.splitlines()


def entry(lines: list[str], head: str) -> str:
    """The text of the page below the line that begins with `head`."""
    (at,) = (i for i, line in enumerate(lines) if line.strip() == head or line.strip().startswith(f"{head}  ("))
    rest = lines[at + 1 :]
    return " ".join(" ".join(rest[: next(i for i, line in enumerate(rest) if not line.startswith("      "))]).split())


@pytest.mark.parametrize("name", shipped_configs())
def test_every_setting_of_every_shipped_config_is_explained_on_its_page(name, capsys):
    lines = page(capsys, f"--config={name}")
    assert max(map(len, lines)) <= 80
    loaded = config_files.load(name)
    known = settings_of(KINDS[loaded.config.kind])
    values = flatten(loaded.config)
    assert values.keys() == known.keys()
    fields.check(KINDS[loaded.config.kind], values)  # as each run does
    flat = " ".join(" ".join(lines).split())
    for key, value in values.items():
        assert known[key].meaning in flat
        default = help_pages.shown(known[key].default)
        differs = help_pages.shown(value) != default
        assert f"{key} = {help_pages.shown(value)}{f' (default {default})' * differs} " in flat
    assert loaded.arguments
    for argument, one in loaded.arguments.items():
        said = entry(lines, f"{argument}={help_pages.shown(one.default, '+')}")
        assert said.startswith(one.meaning)
        assert all(choice in said for choice in one.choices)
    examples = " ".join(lines[lines.index("Examples") :])
    assert examples.count("python -m mirigor_jax.") == 3  # two, and what lists the options
    assert examples.count(f"--config={name}") == 2


def test_the_page_shows_the_values_that_the_command_line_gives(capsys):
    lines = page(capsys, "--config=configs/cdp.py:k=8,seed=5", "--config.estimate.rows=independent", "--tensorboard")
    assert "  train.k = 8  (default 64)" in lines
    assert "  seed = 5  (default 0)" in lines
    assert "  estimate.rows = independent  (default checked)" in lines
    assert "[checked or independent]" in entry(lines, "estimate.rows = independent")
    assert entry(lines, "train.k = 8").endswith("[int; at least 2; pairs]")
    assert main(["--config=configs/cdp.py", "--config.train.stps=3", "--help"]) == 2
    assert "did you mean train.steps" in capsys.readouterr().err


def test_the_command_s_page_lists_configs_and_options(capsys):
    lines = page(capsys)
    assert max(map(len, lines)) <= 80
    for name in shipped_configs():
        first = ast.get_docstring(ast.parse((ROOT / name).read_text())).splitlines()[0]
        assert entry(lines, name) == first
    text = "\n".join(lines)
    for flag in ("--workdir=", "--verbose", "--tensorboard", "--profile", "--coordinator=", "--config.KEY=VALUE"):
        assert flag in text
    for _, config in help_pages.DOORS:
        assert f"--config={config}" in text
        config_files.load(config)


def test_help_does_not_wait_for_jax():
    program = (
        "import sys; from mirigor_jax.main import main\n"
        "for argv in ([], ['--config=configs/cdp.py'], ['--config=configs/studies/batch_size.py']):\n"
        "    assert main([*argv, '--help']) == 0\n"
        "print(*({'jax', 'flax'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_a_config_of_one_s_own_has_a_page(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(
        '"""Mine."""\n'
        "import common\n"
        "def get_config(arg):\n"
        "    args = common.parse_arg(arg, k=8, rate=float, names=('a', 'b'))\n"
        "    config = common.base()\n"
        "    config.train.k = args.k\n"
        "    config.data.mine = {'stripes': 3}\n"
        "    return config\n"
    )
    lines = page(capsys, f"--config={mine}:k=16")
    assert "Mine." in lines
    assert "  train.k = 16  (default 64)" in lines
    assert "  data.mine.stripes = 3" in lines
    assert not any(line.startswith("Arguments") for line in lines)
    for wrong, message in (("k=two", "k=two is not of type int"), ("rat=1", "did you mean rate=")):
        with pytest.raises(InputError, match=message):
            config_files.load(f"{mine}:{wrong}")
    mine.write_text(mine.read_text() + "ARGUMENTS = ['of another kind']")
    assert not any(line.startswith("Arguments") for line in page(capsys, f"--config={mine}"))
    mine.write_text("from ml_collections import ConfigDict\ndef get_config(arg): return ConfigDict({'kind': 'mine'})")
    assert "  kind = mine" in page(capsys, f"--config={mine}")


@pytest.mark.parametrize("key", ALL)
def test_every_setting_has_a_meaning_and_a_default_that_it_may_have(key):
    one = ALL[key]
    assert re.fullmatch(r"[A-Z'L].*\.", one.meaning), one.meaning
    if one.default is not None or one.none:
        one.check(key, one.default)
    assert (one.default is None) <= bool(one.none)
    for value in one.default if one.several and one.default else ():
        assert isinstance(value, one.kind)


def test_a_config_s_types_are_its_settings():
    for kind, section in KINDS.items():
        config = config_files.defaults(kind)
        fields_of = flatten(config.to_dict(preserve_field_references=True))
        for key, one in settings_of(section).items():
            reference = fields_of[key]
            if one.none:
                assert isinstance(reference, FieldReference)
                assert reference.get_type() is (tuple if one.several else one.kind)
            else:
                assert type(reference) is (tuple if one.several else one.kind)


@pytest.mark.parametrize("key", [key for key, one in ALL.items() if one.table])
def test_the_names_of_a_setting_are_those_of_its_table(key):
    module, _, table = ALL[key].table.rpartition(".")
    assert set(ALL[key].names) == set(getattr(importlib.import_module(module), table))


# Names that mean another thing in a function: its own draws, the last stage, and settings of other fits.
OTHERS = {
    ("mi.flow.flow_matching", "batch_size"),
    ("mi.critics.CosineCritic", "temperature"),
    ("mi.fit.FitConfig", "eval_every"),
    ("runs.job.re_estimated", "name"),
    ("models.vit.Swin", "patch"),  # of the network, not of the objective that hides patches
    *((name, "stage") for name in ("encoding.encode_step", "encoding.encode_pairs", "models.frozen.FrozenEncoder")),
}


def literal_defaults(path: Path) -> list[tuple[str, str, object]]:
    """(function or class, name, value) of each default that is a literal in the module."""
    module, results = ".".join(path.relative_to(PACKAGE).with_suffix("").parts), []
    for node in ast.walk(ast.parse(path.read_text())):
        pairs: list[tuple[str, ast.expr]] = []
        if isinstance(node, ast.FunctionDef):
            positional = node.args.posonlyargs + node.args.args
            late = positional[len(positional) - len(node.args.defaults) :]
            pairs = [(one.arg, value) for one, value in zip(late, node.args.defaults, strict=True)]
            pairs += [(o.arg, v) for o, v in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if v]
        elif isinstance(node, ast.ClassDef):
            pairs = [(n.target.id, n.value) for n in node.body if isinstance(n, ast.AnnAssign) and n.value]
        for name, value in pairs:
            try:
                results.append((f"{module}.{node.name}", name, ast.literal_eval(value)))
            except ValueError:  # a name: where it comes from is written once
                continue
    return results


def test_no_default_is_written_twice():
    """If a default has a setting's name and value, it must come from the setting. Seeds are exempt."""
    defaults = [(key.rpartition(".")[2].rpartition(" ")[2], one.default) for key, one in ALL.items()]
    twice = {
        (where, name)
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("settings.py", "fields.py")
        for where, name, value in literal_defaults(path)
        if value is not None and name != "seed"
        if any(name == known and type(value) is type(default) and value == default for known, default in defaults)
    }
    assert twice == OTHERS


def test_the_library_s_defaults_are_the_settings():
    def keywords(function) -> dict:
        return {name: p.default for name, p in inspect.signature(function).parameters.items()}

    of_cdp = keywords(cdp.make)
    assert {name: of_cdp[name] for name in settings_of(settings.Cdp)} == vars(settings.Cdp())
    assert (of_cdp["size"], of_cdp["seed"]) == (settings.Data.size, settings.Data.seed)
    exported = keywords(cdp.export)
    assert {name: exported[name] for name in settings_of(settings.Export).keys() - {"out"}}.items() <= vars(
        settings.Export()
    ).items()
    assert (exported["pairing"], exported["mi"]) == (settings.Data.pairing, settings.Data.mi)
    assert vars(augmentation.Augmentation()) == vars(settings.Augment())
    of_patches = keywords(patches.make)
    assert {name: of_patches[name] for name in settings_of(settings.Patches)} == vars(settings.Patches())
    trained = keywords(training.train)
    for name in settings_of(settings.Train).keys() - {"checkpoint_every", "keep_every"}:
        assert trained[name] == getattr(settings.Train, name)
    assert keywords(encoding.encode)["batch_size"] == settings.Features.batch_size
    assert keywords(metrics.evaluate)["mlp_steps"] == settings.Evaluate.mlp_steps
    for function in (mi.estimate, mi.estimate_all):
        given = keywords(function)
        assert (given["critic"], given["batch_size"], given["confidence"]) == ("joint", 64, 0.95)
        assert given["rows"] == settings.Arrays.rows
    assert keywords(mi.estimate_labels)["tolerance_bits"] == settings.Estimate.tolerance_bits


def test_the_limit_of_colors_is_their_number():
    assert of(settings.Cdp, "colors").most == len(cdp.COLORS)


def test_a_preset_departs_from_the_defaults():
    sys.path.insert(0, str(ROOT / "configs"))
    try:
        common = importlib.import_module("common")
    finally:
        sys.path.pop(0)
        sys.modules.pop("common", None)
    known = settings_of(Images)
    for preset in (*common.SCALES.values(), *(preset for preset, _ in common.SETS.values())):
        assert [key for key, value in preset.items() if value == known[key].default] == []


@pytest.mark.parametrize("name", shipped_configs())
def test_an_argument_s_own_default_departs_from_its_key_s(name):
    """If it equals the key's default, the config takes it from the key and does not repeat it."""
    tree = ast.parse((ROOT / name).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "of_key" and len(node.args) == 2:
            key, default = map(ast.literal_eval, node.args)
            assert settings_of(Images)[key].default != default


def test_the_reference_is_current():
    text = (ROOT / "docs" / "reference" / "settings.md").read_text()
    assert text == help_pages.reference(), "run: python -m mirigor_jax.help_pages > docs/reference/settings.md"


BAD = {
    "train.k=1": "expected at least 2",
    "train.temperature=0.0": "expected a number above 0",
    "train.optimizer='adam'": "expected adamw, sgd or lars",
    "data.noise=1.5": "expected 0 to 1",
    "data.cdp.colors=17": "expected 1 to 16",
    "data.augment.crop=1.0": "expected 0 to 0.99",
    "data.resident='some'": "expected auto, always or never",
    "encoder.dtype='float16'": "expected auto, float32, bfloat16 or float64",
    "encoder.width=0": "expected at least 1",
    "head.hidden=(0,)": "expected at least 1",
    "features.checkpoint='first'": "expected last, best or a number",
    "features.test=1": "expected at least 2",
    "estimate.confidence=1.0": "expected at least 0.5 and below 1",
    "estimate.rows='fine'": "expected checked or independent",
    "evaluate.mlp_steps=0": "expected at least 1",
}


@pytest.mark.parametrize("given", BAD)
def test_a_value_out_of_its_limits_is_one_line_of_one_form(given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(cdp_run(f"--config.{given.replace(chr(39), '')}")) == 2
    assert capsys.readouterr().err == f"error: {given}: {BAD[given]}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("configs/cdp.py:scale=huge", "config argument scale=huge: expected laptop or paper"),
        ("configs/studies/objectives.py:set=mnist", "config argument set=mnist: expected fashion, cifar10"),
        ("configs/invertible.py --config.k=1", "k=1: expected at least 2"),
        ("configs/arrays.py --config.x=x --config.y=y --config.seeds=0", "seeds=0: expected at least 1"),
        (
            "configs/estimate.py --config.restore=x --config.checkpoint=first",
            "checkpoint='first': expected last, best or a number",
        ),
        ("configs/studies/batch_size.py --config.run.train.k=1", "run.train.k=1: expected at least 2"),
        (
            "configs/cdp.py --config.features.test=None",
            "features.test=None: images of 'cdp' have no end; give a number",
        ),
    ],
)
def test_other_kinds_and_arguments_have_the_same_form(command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(f"--config={command}".split()) == 2
    error = capsys.readouterr().err
    assert f"error: {message}" in error
    assert error.count("\n") == 1


def test_nan_none_and_nothing_are_out_of_every_limit():
    one = fields.argument(2, "A number.", least=1)
    for wrong in (float("nan"), float("inf"), None, 0):
        with pytest.raises(InputError, match=rf"^n={wrong}: expected at least 1$"):
            one.check("n", wrong)
    with pytest.raises(InputError, match=r"^estimate\.k_curve=\(\): expected at least 2$"):
        fields.check(Images, {"estimate.k_curve": ()})
    fields.check(Images, {"head.hidden": (), "estimate.k_curve": [2], "a.key.of.one's.own": 0})
