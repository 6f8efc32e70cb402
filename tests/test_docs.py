"""README and docs/: every command is one that this package takes, every link leads somewhere, and the doors work."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirigor_jax import command, help_pages
from mirigor_jax.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "results" not in path.parts)]
RESULTS = sorted((ROOT / "docs" / "results").glob("*.md"))
CODE = re.compile(r"`([^`\n]+)`|```\n(.*?)```", re.DOTALL)
# Words of a page that stand for something of the reader's → an example of it.
EXAMPLES = {
    "FOLDER/*.pth": "FOLDER/a.pth",
    "FOLDER/*.npz": "FOLDER/a.npz",
    "paths=FILE": "paths=LIST",
    "config.study.sources=FOLDER": "config.study.sources=runs/quality",
}


def names(path):
    return str(path.relative_to(ROOT))


def commands(path, module):
    """The commands of a page that run the module: their arguments, as a shell splits them."""
    text = path.read_text()
    for one, block in CODE.findall(text):
        for line in (one or block).replace("\\\n", " ").splitlines():
            for found in re.findall(rf"(?:python -m {re.escape(module)}|(?<!\w)mirigor run)(?=\s) ?([^&;#]*)", line):
                yield line, found.strip()


def split(text):
    """The words of a shell's line, with quotes taken off."""
    return [word.replace("'", "").replace('"', "") for word in re.findall(r"(?:[^\s'\"]|'[^']*'|\"[^\"]*\")+", text)]


@pytest.mark.parametrize("path", [*PAGES, *RESULTS], ids=names)
def test_every_command_of_a_page_is_one_that_main_takes(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("FOLDER").mkdir()
    for name in ("a.pth", "a.npz"):
        (Path("FOLDER") / name).touch()
    for name in ("FILE", "LIST"):
        Path(name).write_text("one,FOLDER/a.pth\n")
    for line, found in commands(path, "mirigor_jax.main"):
        for usual, example in EXAMPLES.items():
            found = found.replace(usual, example)
        words = [word for word in split(found) if word != "--help"]
        if not words[:1] or not words[0].startswith("--config=configs/"):
            continue  # a form such as --config=FILE, or a name of `mirigor run`
        try:
            assert help_pages.page(words)
        except Exception as error:  # whatever it is, name the line
            raise AssertionError(f"{line}: {error}") from error


def test_the_commands_of_the_pages_are_found():
    found = [line for path in PAGES for line, _ in commands(path, "mirigor_jax.main")]
    assert len(found) > 30


@pytest.mark.parametrize("path", [*PAGES, *RESULTS], ids=names)
def test_every_link_and_picture_of_a_page_is_there(path):
    text = path.read_text()
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r"\{image\} (\S+)", text)
    for target in targets:
        if "://" not in target and not target.startswith("hf:"):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=names)
def test_python_on_a_page_compiles_and_uses_names_that_exist(path):
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        tree = ast.parse(block)
        homes = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                homes |= {one.asname or one.name: one.name for one in node.names if one.name.startswith("mirigor_jax")}
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mirigor_jax"):
                module = importlib.import_module(node.module)
                for one in node.names:
                    if not hasattr(module, one.name):  # then it is a module
                        importlib.import_module(f"{node.module}.{one.name}")
                    homes[one.asname or one.name] = f"{node.module}:{one.name}"
        for node in ast.walk(tree):
            chain = []
            while isinstance(node, ast.Attribute):
                chain.insert(0, node.attr)
                node = node.value
            if chain and isinstance(node, ast.Name) and node.id in homes:
                module, _, name = homes[node.id].partition(":")
                value = importlib.import_module(module)
                for part in [*([name] if name else []), *chain]:
                    assert hasattr(value, part), f"{node.id}.{'.'.join(chain)}"
                    value = getattr(value, part)


def test_every_extra_that_a_page_or_a_message_names_exists_and_is_installed_in_one_way():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = []
    for path in [*PAGES, *(ROOT / "mirigor_jax").rglob("*.py")]:
        text = path.read_text()
        found += [(path, extra) for extra in re.findall(r"pip install -e ['\"]\.\[([\w,]+)\]['\"]", text)]
        assert not re.search(r"mirigor[-_]jax\[", text), path
    assert len(found) > 15
    for path, names in found:
        assert set(names.split(",")) <= extras.keys(), path


def test_five_questions_have_answers_of_at_most_120_words():
    sections = (ROOT / "docs/concepts/questions.md").read_text().split("\n## ")[1:]
    assert [section.splitlines()[0] for section in sections] == [
        "What does [5.990, 6.000] mean?",
        "Why may 6.010 appear?",
        "Why is an untrained encoder not at 0?",
        "When may I compare two encoders?",
        "What do I report?",
    ]
    for section in sections:
        assert 30 < len(section.split("\n", 1)[1].split()) <= 120, section.splitlines()[0]


def test_every_page_is_in_a_table_of_contents():
    for folder in ("how_to", "concepts", "reference", "internals", "results", "notebooks"):
        pages = [*(ROOT / "docs" / folder).glob("*.md"), *(ROOT / "docs" / folder).glob("*.ipynb")]
        listed = (ROOT / "docs" / folder / "index.md").read_text().split("{toctree}", 1)[1].splitlines()
        assert {path.stem for path in pages} - {"index"} <= set(listed), folder


def door(title):
    """The command of one of README's five doors, and the lines that it shows of the output, if any."""
    text = (ROOT / "README.md").read_text()
    section = text.partition("## Five doors")[2].partition(f"**{title}")[2].partition("\n**")[0]
    shown = re.search(r"```\n(.*?)```", section, re.DOTALL)
    return re.search(r"`(python -m [^`]+)`", section)[1], shown[1] if shown else ""


def numbers_aside(line):
    """The name and the unit in a line of output, without numbers, spaces and the remark after them."""
    return re.sub(r"\s+", " ", re.sub(r"-?[\d.,]*\d", "#", line)).strip().partition(" bits ")[0]


@pytest.mark.slow
@pytest.mark.parametrize("title", ["I have images.", "I have a checkpoint", "I have features", "I have two arrays"])
def test_a_door_of_the_readme_opens_and_prints_what_it_shows(title, tmp_path, monkeypatch, capsys):
    """The command as README has it, on small data of the kind that it names, with small settings after it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = np.arange(900) % 3
    images = np.clip(rng.normal(60 + 60 * labels[:, None, None, None], 20, (900, 16, 16, 3)), 0, 255).astype(np.uint8)
    h = rng.normal(size=(900, 8)) + 3 * np.eye(8)[labels]
    line, shown = door(title)
    extra = ["--workdir=run"]
    if "images" in title:
        line += ":data=folder:PATH,size=16"
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = Path(f"PATH/{label}/{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        extra += [
            f"--config.{key}" for key in ("encoder.width=4", "train.steps=4", "train.k=32", "train.warmup_steps=1")
        ]
    if "checkpoint" in title:
        golden = np.load(ROOT / "tests/golden/resnet18.npz")
        weights = {key.removeprefix("weights/"): golden[key] for key in golden.files if key.startswith("weights/")}
        np.savez("X.npz", **weights)
        np.savez("set.npz", images=images, labels=labels)
        line = line.replace("X.pth", "X.npz").replace("fashion_mnist", "npz:set.npz")
    if "features" in title:
        np.savez("FILE.npz", h=h, labels=labels)
    if "arrays" in title:
        np.save("x.npy", h)
        np.save("y.npy", h + rng.normal(size=h.shape))
        extra += ["--config.steps=50"]
    else:
        extra += ["--config.estimate.k=32", "--config.estimate.steps=20", "--config.evaluate.mlp_steps=100"]
        extra += ["--config.estimate.extra_pairings=('class',)"] if "features" not in title else []
    assert main([*split(line.partition("mirigor_jax.main")[2]), *extra]) == 0
    out = {numbers_aside(text) for text in capsys.readouterr().out.splitlines()}
    for text in shown.splitlines():
        assert numbers_aside(text) in out, (text, sorted(out))


def test_the_commands_of_the_console_are_those_of_the_reference():
    rows = re.findall(
        r"^\| `(mirigor (\w+)[^`]*)` \| `([^`]*)` \|", (ROOT / "docs/reference/commands.md").read_text(), re.M
    )
    assert {part for _, part, _ in rows} == set(command.PARTS)
    for short, part, whole in rows:
        translated = command.PARTS[part].translate(split(short)[2:])
        assert translated == split(whole)[3:], short


@pytest.mark.slow
def test_sphinx_builds_the_pages_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="needs the extra [docs]")
    pytest.importorskip("myst_nb", reason="needs the extra [docs]")
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": ""})
    assert done.returncode == 0, done.stderr
    start = (tmp_path / "start.html").read_text()
    assert "search.html" in start
    # The pages need no network: every script, style and picture is a file beside them.
    for path in tmp_path.rglob("*.html"):
        for source in re.findall(r'<(?:script|img|link)[^>]* (?:src|href)="([^"]+)"', path.read_text()):
            assert "://" not in source or 'rel="canonical"' in source, (path.name, source)
