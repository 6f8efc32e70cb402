"""The package's modules import only modules below them, in no circle, and heavy libraries only when needed."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from mirigor_jax.data.pairing import PAIRINGS
from mirigor_jax.data.sources.table import SOURCES
from mirigor_jax.kinds import RUN_KINDS
from mirigor_jax.metrics import METRICS, PROBES
from mirigor_jax.mi import CERTIFICATES, ESTIMATORS
from mirigor_jax.models import ENCODERS
from mirigor_jax.objectives import OBJECTIVES
from mirigor_jax.studies.table import STUDIES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mirigor_jax"
# From the lowest layer to the highest: a module imports what is in its own layer or below.
LAYERS = (
    ("errors", "starting", "stopping", "fields", "settings"),
    ("checks", "numerics", "outside", "files", "hub", "parallel", "memory", "fitting", "softmax", "refits", "mlp"),
    ("tables", "drawing", "progress", "manifest", "checkpoint", "wandb_run", "monitoring"),
    ("config_files", "help_pages"),
    ("data", "models"),
    ("probes",),
    ("mi",),
    ("siamese", "objectives", "history", "encoding", "training", "metrics"),
    ("lightning", "runs"),
    ("studies", "plan"),
    ("kinds",),
    ("main", "report"),
    ("command",),
)
ALLOWED: set[tuple[str, str]] = set()  # imports that go up all the same: (module, what it imports)
NO_CONFIG = "ConfigDict"


def modules() -> dict[str, ast.Module]:
    """Dotted name of a module, without the package's name → its syntax tree."""
    results = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            results[name] = ast.parse(path.read_text())
    return results


def imported(tree: ast.Module, known: dict[str, ast.Module]) -> set[str]:
    """The package's modules that a module imports, also inside functions."""
    result = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            inside = ".".join((node.module or "").split(".")[1:])
            for alias in node.names:
                longer = f"{inside}.{alias.name}".strip(".")
                result.add(longer if longer in known else inside)
        elif isinstance(node, ast.Import):
            result |= {name.name.partition(".")[2] for name in node.names if name.name.startswith(f"{PACKAGE.name}.")}
    return result - {""}


def layer(name: str) -> int:
    module = name.split(".")[0]
    return next(i for i, rooms in enumerate(LAYERS) if module in rooms)


KNOWN = modules()
GRAPH = {name: imported(tree, KNOWN) for name, tree in KNOWN.items()}


def test_every_module_has_a_layer_and_every_import_is_of_a_module():
    assert {name.split(".")[0] for name in KNOWN} == {module for rooms in LAYERS for module in rooms}
    assert {target for targets in GRAPH.values() for target in targets} <= KNOWN.keys()


def test_imports_only_go_down():
    up = {(name, target) for name, targets in GRAPH.items() for target in targets if layer(target) > layer(name)}
    assert up == ALLOWED


def test_no_imports_go_round_in_a_circle():
    TopologicalSorter(GRAPH).prepare()


def test_mi_needs_neither_probes_nor_pictures():
    rooms = {
        target.split(".")[0] for name, targets in GRAPH.items() if layer(name) == layer("mi") for target in targets
    }
    assert not rooms & {"probes", "runs", "studies"}
    importers = {name for name, targets in GRAPH.items() if "drawing" in targets and name.startswith("mi")}
    assert importers == {"mi.picture"}


def test_functions_take_at_most_five_parameters_by_position():
    """Further parameters are given by name. Pallas passes a kernel's references by position."""
    long = set()
    for name, tree in KNOWN.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                positional = [one.arg for one in node.args.posonlyargs + node.args.args]
                if len(positional) - (positional[:1] in (["self"], ["cls"])) > 5:
                    long.add(f"{name}.{getattr(node, 'name', 'lambda')}")
    assert long == {"mi.fused._gradient_kernel"}


def test_only_the_rooms_of_runs_know_config_dicts():
    knowing = {name.split(".")[0] for name, tree in KNOWN.items() if NO_CONFIG in {
        getattr(node, "id", getattr(node, "name", None)) for node in ast.walk(tree)
    }}  # fmt: skip
    assert knowing <= {"config_files", "runs", "studies", "plan", "kinds", "main"}


CLASSES = {"SameImage", "ClassPairing", "ChannelPairing", "GeneratedPopulation", "FinitePopulation"}
TABLES = (PAIRINGS, SOURCES, ENCODERS, OBJECTIVES, ESTIMATORS, CERTIFICATES, METRICS, PROBES, STUDIES, RUN_KINDS)
# Words that mean something else where they are compared.
OTHERS = {
    ("data.cdp", "idx"),  # files of CDP's glyphs
    ("data.population", "negatives"),  # a set of images
    ("data.sources.backgrounds", "folder"),  # of CDP's backgrounds
    ("data.sources.backgrounds", "tfds"),
    ("data.sources.split", "all"),  # the classes of a set
    ("mi.estimators", "all"),  # the anchors of a score matrix
    ("studies.infomin_strength", "all"),  # a family of augmentations
    ("studies.rank", "class"),  # the estimates and metrics that its runs must have
    ("studies.rank", "class_alignment"),
    ("studies.nuisance", "nuisance"),  # a column of its rows
    ("runs.knobs", "negatives"),  # keys of a config
    ("runs.renamed", "images"),
    ("runs.re_estimate", "restore"),
    ("runs.side_by_side", "study"),
}


def test_nobody_outside_its_table_asks_which_entry_it_is():
    names = {name for table in TABLES for name in table}
    asking = set()
    for module, tree in KNOWN.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                asked = {getattr(name, "id", getattr(name, "attr", None)) for name in ast.walk(node.args[1])} & CLASSES
            elif isinstance(node, ast.Compare) or getattr(getattr(node, "func", None), "attr", "") == "startswith":
                words = {constant.value for constant in ast.walk(node) if isinstance(constant, ast.Constant)}
                asked = {str(word).rstrip(":") for word in words} & names
            else:
                continue
            asking |= {(module, name) for name in asked}
    assert asking == OTHERS


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("mirigor_jax", "jax matplotlib grain tensorflow_datasets"),
        (
            "mirigor_jax.mi",
            "matplotlib grain tensorflow_datasets ml_collections orbax PIL scipy.stats scipy.optimize "
            "jax.experimental.pallas mirigor_jax.mi.fused mirigor_jax.probes",
        ),
        ("mirigor_jax.kinds", "matplotlib scipy.stats tensorflow_datasets"),
        ("mirigor_jax.starting", "jax numpy importlib.metadata"),
        ("mirigor_jax.config_files", "jax matplotlib grain tensorflow_datasets"),
        ("mirigor_jax.data.sources.table", "jax tensorflow_datasets array_record"),
    ],
)
def test_what_is_heavy_is_imported_by_those_who_need_it(module, heavy):
    command = f"import sys, {module}; print(*({set(heavy.split())!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_laptop_s_config_is_read_without_what_computes():
    program = (
        "import sys; from mirigor_jax.config_files import load_config\n"
        "for name in ('cdp', 'images', 'studies/batch_size'): load_config(f'configs/{name}.py')\n"
        "print(*({'jax', 'flax'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_types_are_there_for_those_who_check_theirs():
    assert (PACKAGE / "py.typed").exists()
