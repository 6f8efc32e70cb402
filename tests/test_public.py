"""The public names: all exist, each is imported at its first use, and type checkers see them."""

import ast
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import mirigor_jax as mj
from mirigor_jax.data import cdp
from mirigor_jax.errors import InputError

ROOT = Path(__file__).parents[1]


def test_every_public_name_is_there_and_type_checkers_see_the_same():
    source = ast.parse((ROOT / "mirigor_jax" / "__init__.py").read_text())
    (seen,) = (node.body for node in source.body if isinstance(node, ast.If))
    names = {alias.asname or alias.name for node in seen if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == mj._HOMES.keys() == set(mj.__all__) - {"__version__"}
    assert set(mj.__all__) <= set(dir(mj))
    for name in mj.__all__:
        assert getattr(mj, name) is not None
    assert (mj.cdp, mj.InputError) == (cdp, InputError)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'mirigor_jax' has no attribute 'estimat'"):
        mj.estimat  # noqa: B018


def test_a_name_is_imported_at_its_first_use():
    code = (
        "import sys, mirigor_jax as mj\n"
        "assert 'jax' not in sys.modules\n"
        "mj.InputError\n"
        "assert 'mirigor_jax.errors' in sys.modules and 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_version_is_the_installed_one():
    assert mj.__version__ == version("mirigor-jax")
    cited = (Path(__file__).parents[1] / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {mj.__version__}\n" in cited


def test_the_public_names_of_mi_are_there():
    assert set(mj.mi.__all__) <= vars(mj.mi).keys()
    certificates = {"classifier_lower_bits", "posterior_lower_bits", "info_nce_lower_bits"}
    assert certificates | {"InputError", "estimators", "uniformity"} <= set(mj.mi.__all__)


USER = """
from collections.abc import Callable

import mirigor_jax as mj
from mirigor_jax import InputError, mi

try:
    cdp = mj.cdp.make(size=32)
except InputError as error:
    print(error)


def report(step: int, steps: int, note: str) -> None:
    print(step, steps, note)


found: mi.Estimate = mi.estimate([1.0], [2.0], estimator=mi.estimators.smile(tau=1.0), on_progress=report)
bits: float = found.value_bits
lower: float | None = found.lower_bits
as_json: dict[str, object] = found.to_dict()
found.figure().savefig("estimate.png")
for row in mi.estimate_all([([1.0], [2.0])], estimators=["nwj", "js"], num_critics=2):
    for one in row:
        print(one.name, one.k, None if one.interval is None else one.interval.lower_bits)
of_classes: mi.LabelEstimate = mi.estimate_labels([[1.0]], ["a"], k=64)
nmi: float = of_classes.nmi
info_nce_bits: float = of_classes.info_nce_bits
proven: float = of_classes.certificates["posterior"].lower_bits
metrics: dict[str, float] = mj.evaluate([[1.0]], ["a"], k=64).values
larger: str | None = mi.compare([[1.0]], [[2.0]], ["a"]).larger
know: Callable[[object], mi.Estimate] = mi.monitor(lambda params, x: x, [])
mi.ESTIMATORS["own"] = mi.estimators.js
encoder = mj.models.build("resnet18", width=16)
state, history = mj.train(encoder, cdp, pairing="all", k=64, steps=300, seed=0, on_progress=report)
ceiling: float = history.ceiling_bits
h, labels = mj.encode(encoder, state, cdp.images(0, 10_000))
frozen = mj.load_encoder("checkpoint.pth")
rows: int = len(mj.encode(frozen.encoder, frozen, cdp.images(0, 10)["image"]))
"""
WRONG = {
    'mi.estimate([1.0], [2.0], estimators="nwj")': "call-arg",
    "mi.estimators.smile(tao=1.0)": "call-arg",
    'mi.estimators.smile(tau="1")': "arg-type",
    "mj.estimat": "attr-defined",
    "found.value_bit": "attr-defined",
    "found.t_lower_bits": "attr-defined",
    "found.interval.lower_bits": "union-attr",
    "mj.train(encoder, cdp, step=300)": "call-arg",
    "history.loss": "attr-defined",
    "text: str = found.value_bits": "assignment",
    "mi.estimate([1.0], [2.0], on_progress=len)": "arg-type",
}


@pytest.mark.slow
def test_a_users_program_is_type_checked(tmp_path):
    """mypy --strict finds every mistake in the program and nothing else."""
    program = tmp_path / "program.py"
    program.write_text(USER + "\n".join(WRONG) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    options = [f"--cache-dir={tmp_path / 'cache'}", "--config-file=", str(program)]
    done = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True)
    first = USER.count("\n") + 1
    expected = {(first + i, code) for i, code in enumerate(WRONG.values())}
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert {(int(line.split(":")[1]), line.rsplit("[", 1)[1].rstrip("]")) for line in lines} == expected, done.stdout
