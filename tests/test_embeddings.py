"""The how-to of docs/how_to/embeddings.md, at a smaller size: its code, and its command, against the truth."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mirigor_jax.main import main

PAGE = (Path(__file__).parents[1] / "docs" / "how_to" / "embeddings.md").read_text()


@pytest.mark.slow
def test_the_page_s_code_and_command_find_what_is_known_to_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)), names)
    truth = names["make"](0.05, n=4000, sources=2, dimension=24)
    Path("pairs-0.05.npz").rename("pairs.npz")
    (command,) = re.findall(r"`python -m mirigor_jax.main (--config=configs/arrays.py:\S+ .*)`", PAGE)
    assert main([*command.split(), "--workdir=run"]) == 0
    (found,) = json.loads(Path("run/report.json").read_text())["estimates"].values()
    assert found["lower_bits"] < truth
    assert found["value_bits"] == pytest.approx(truth, abs=0.2)
    assert found["lower_bits"] > 0.6 * truth
    with np.load("pairs.npz") as pairs:
        value, lower = names["by_source"](pairs["x"], pairs["y"], 2)
    assert lower < truth
    assert value == pytest.approx(truth, abs=0.2)
    assert lower > 0.6 * truth
