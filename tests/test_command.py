"""The console command `mirigor`: each part is a short form of a command, with the same flags."""

import shlex
import subprocess
import sys

import pytest

from mirigor_jax import __version__, command, starting
from mirigor_jax.config_files import shipped_configs


@pytest.fixture
def called(monkeypatch):
    """The arguments that each part gets, instead of a run."""
    calls: list[tuple[str, list[str]]] = []

    def note(name):
        return lambda argv: calls.append((name, argv)) or 0

    for name in ("_main", "_plan", "_report", "_export"):
        monkeypatch.setattr(command, name, note(name.strip("_")))
    parts = {
        name: command.Part(part.usage, part.meaning, getattr(command, part.run.__name__), part.translate)
        for name, part in command.PARTS.items()
    }
    monkeypatch.setattr(command, "PARTS", parts)
    return calls


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("run cdp", ("main", "--config=configs/cdp.py")),
        (
            "run cdp:pairing=color --workdir=runs/a --config.seed=1",
            ("main", "--config=configs/cdp.py:pairing=color --workdir=runs/a --config.seed=1"),
        ),
        ("run studies/width:seeds=1", ("main", "--config=configs/studies/width.py:seeds=1")),
        ("run my/own.py", ("main", "--config=my/own.py")),
        ("run --config=configs/cdp.py", ("main", "--config=configs/cdp.py")),
        ("run --help", ("main", "--help")),
        ("run cdp --help", ("main", "--config=configs/cdp.py --help")),
        ("estimate x.npy y.npy", ("main", "--config=configs/arrays.py --config.x=x.npy --config.y=y.npy")),
        (
            "estimate h.npy --config.labels=c.csv",
            ("main", "--config=configs/arrays.py --config.labels=c.csv --config.x=h.npy"),
        ),
        (
            "rank a.pth b.pth --config.run.data.source=folder:i",
            ("main", "--config=configs/rank.py:encoders=a.pth+b.pth --config.run.data.source=folder:i"),
        ),
        ("rank --config=configs/rank.py:paths=f", ("main", "--config=configs/rank.py:paths=f")),
        ("plan imagenet --topology=v5e:4x4", ("plan", "--config=configs/imagenet.py --topology=v5e:4x4")),
        ("report runs/a", ("report", "runs/a")),
        ("export --out=pairs --data.mi=3", ("export", "--out=pairs --data.mi=3")),
    ],
)
def test_each_part_is_a_command(called, given, expected):
    assert command.main(shlex.split(given)) == 0
    assert called == [(expected[0], shlex.split(expected[1]))]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("runs", "unknown part 'runs'; choose one of run, estimate, rank, plan, report, export, completion"),
        ("run", "give one config, such as cdp"),
        ("run cdp arrays", "(got 2)"),
        ("estimate a b c", "(got 3 files)"),
    ],
)
def test_a_wrong_line_is_refused_in_one_line(called, capsys, given, said):
    assert command.main(given.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), called) == ("", 1, [])
    assert err.startswith("error: ")
    assert said in err


def test_help_lists_every_part_and_version_is_the_package_s(capsys):
    assert command.main([]) == command.main(["--help"]) == 0
    first, second = capsys.readouterr().out.split("mirigor measures")[1:]
    assert first == second
    assert all(f"mirigor {name} " in first for name in command.PARTS)
    assert max(map(len, first.splitlines())) <= 100
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mirigor-jax {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["r"], {"run", "rank", "report"}),
        (["run", "cd"], {"cdp"}),
        (["plan", "studies/wi"], {"studies/width"}),
    ],
)
def test_bash_completes_parts_and_configs(typed, offered):
    words = " ".join(shlex.quote(word) for word in ["mirigor", *typed])
    script = f"{command.completion()}\nCOMP_WORDS=({words}); COMP_CWORD={len(typed)}; _mirigor; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered


def test_completion_knows_every_shipped_config():
    assert all(f" {path[8:-3]}" in command.completion().replace('"', " ") for path in shipped_configs())


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        (["python", "-m", "mirigor_jax.main", "--config=configs/cdp.py:k=2"], "python -m mirigor_jax.main {}"),
        (["/usr/bin/python3", "/venv/bin/mirigor", "run", "cdp"], "mirigor run cdp"),
        (["python", "-m", "pytest"], None),
    ],
)
def test_a_report_can_name_the_command_that_made_it(monkeypatch, started, expected):
    monkeypatch.setattr(sys, "orig_argv", started)
    assert starting.command() == (expected and expected.format("--config=configs/cdp.py:k=2"))
