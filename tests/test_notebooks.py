"""The notebooks in docs/notebooks: their stored outputs are clean, and a new execution measures what is true."""

import ast
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 300_000  # bytes
OF_A_MACHINE = re.compile(r"/(?:home|tmp|work|root|Users)/")
TRIES = 200_000  # draws of an oracle


def code_cells(path: Path) -> list[dict]:
    """The code cells of a notebook. Raises ValueError if the file is not JSON."""
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_all_three_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["start", "train_and_watch", "your_features"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_complete_and_clean(path):
    assert path.stat().st_size < LARGEST
    assert not OF_A_MACHINE.search(path.read_text())
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert all(cell["metadata"] == {} for cell in notebook["cells"])  # no times of execution
    for cell in cells:
        source = "".join(cell["source"])
        shows = isinstance(ast.parse(source).body[-1], ast.Expr) or "print(" in source
        assert bool(cell["outputs"]) == shows, source
    assert any("image/png" in output.get("data", {}) for output in outputs)


def execute(name: str, expression: str) -> dict:
    """Execute a notebook in a process of its own. Returns the values of the expression, a dict, at its end."""
    nbclient = pytest.importorskip("nbclient")  # of the extra `docs`
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    code = f"import json; print(json.dumps({expression}, default=float))"
    notebook.cells.append(nbformat.v4.new_code_cell(code))
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    inherited = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    client = nbclient.NotebookClient(notebook, timeout=1200, coalesce_streams=True)
    client.execute(env=inherited | environment)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    return json.loads(outputs[-1].text)


@pytest.mark.slow
def test_the_first_notebook_certifies_the_true_information_of_cdp():
    found = execute(
        "start",
        "{'counts': np.unique(labels, return_counts=True)[1].tolist(), 'positions': attributes[:, 2].tolist(),"
        " 'all': [trained.lower_bits, trained.value_bits, trained.upper_bits],"
        " 'untrained': [untrained.lower_bits, untrained.value_bits, untrained.upper_bits],"
        " 'position': [position.lower_bits, position.value_bits, position.upper_bits]}",
    )
    for name, counts in (("all", found["counts"]), ("position", np.bincount(found["positions"]))):
        shares = np.asarray(counts) / np.sum(counts)
        entropy = -float(np.sum(shares * np.log2(shares)))  # the true MI: every image shows its class
        lower, value, upper = found[name]
        assert lower <= value <= upper + 1e-6
        assert upper == pytest.approx(entropy, abs=1e-5)
        assert lower > entropy - 0.25
    assert len(found["counts"]) == 16
    assert found["untrained"][0] < found["all"][0] - 0.1


def true_information(scale: float) -> tuple[float, float]:
    """(I(h_X;h_Y), I(C;h)) of the second notebook's law, in bits, by draws and scipy's densities. scale: of means."""
    from scipy.special import logsumexp
    from scipy.stats import multivariate_normal

    means = scale * np.random.default_rng(0).normal(size=(8, 16)) / 4
    rng = np.random.default_rng(99)
    classes = rng.integers(0, 8, TRIES)

    def log_posterior() -> np.ndarray:
        h = means[classes] + rng.normal(size=(TRIES, 16))
        joint = np.stack([multivariate_normal(mean).logpdf(h) for mean in means], axis=1)
        return joint - logsumexp(joint, axis=1, keepdims=True)

    x, y = log_posterior(), log_posterior()
    shared = logsumexp(x + y, axis=1) + math.log(8)
    class_bits = 3 + np.mean(np.sum(np.exp(x) * x, axis=1)) / math.log(2)
    return float(shared.mean() / math.log(2)), float(class_bits)


@pytest.mark.slow
def test_the_second_notebook_s_ends_hold_the_truth_of_its_laws():
    found = execute(
        "your_features",
        "{'truth': truth, 'usable': [usable.lower_bits, usable.upper_bits], 'pairs': [pairs.lower_bits, true_bits],"
        " 'A': [comparison.a.lower_bits, comparison.a.upper_bits],"
        " 'B': [comparison.b.lower_bits, comparison.b.upper_bits],"
        " 'orders': {a + b: order.pair(a, b).larger for a, b in ('AB', 'AC', 'BC')}}",
    )
    for name, scale in (("A", 3.0), ("B", 2.0)):
        truth, of_class = true_information(scale)
        assert found["truth"][name] == pytest.approx(truth, abs=0.03)
        lower, upper = found[name]
        assert truth - 0.4 < lower <= truth <= upper == pytest.approx(3)
        if name == "A":  # what linear probes can use is at most I(C;h), and nearly all: this law's posterior is linear
            assert of_class - 0.3 < found["usable"][0] <= of_class
            assert found["usable"][0] < found["usable"][1] < 3
    assert found["pairs"][1] == pytest.approx(-1.5 * math.log2(1 - 0.64))
    assert 1 < found["pairs"][0] <= found["pairs"][1]
    assert found["orders"] == {"AB": "A", "AC": None, "BC": "C"}


@pytest.mark.slow
def test_the_third_notebook_s_certified_end_rises_to_the_entropy():
    found = execute(
        "train_and_watch",
        "{'lower': lower.tolist(), 'value': value.tolist(), 'at': at.tolist(), 'entropy': entropy_bits,"
        " 'in_training': in_training[-20:],"
        " 'counts': np.unique(held_out['attributes'], axis=0, return_counts=True)[1].tolist()}",
    )
    shares = np.asarray(found["counts"]) / np.sum(found["counts"])
    entropy = -float(np.sum(shares * np.log2(shares)))
    assert found["entropy"] == pytest.approx(entropy, abs=1e-5)
    assert found["at"] == [0, 20, 40, 100]
    assert all(low <= value <= entropy + 1e-6 for low, value in zip(found["lower"], found["value"], strict=True))
    assert found["lower"][-1] > entropy - 0.25
    assert found["lower"][-1] > found["lower"][0] + 0.5
    assert np.mean(found["in_training"]) == pytest.approx(4, abs=0.4)
