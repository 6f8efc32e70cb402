"""The public names: all there, each imported at its first use, and seen by type checkers."""

import ast
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
    names = {alias.name for node in seen if isinstance(node, ast.ImportFrom) for alias in node.names}
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
        "assert not {'jax', 'mirigor_jax.mi'} & sys.modules.keys()\n"
        "mj.mi\n"
        "assert 'mirigor_jax.mi' in sys.modules and 'mirigor_jax.metrics' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_version_is_the_installed_one():
    assert mj.__version__ == version("mirigor-jax")
