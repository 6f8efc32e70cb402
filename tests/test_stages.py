"""Every stage of a finished run's encoder: their columns and order, known information, a killed command, the report."""

import csv
import json
import shutil
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import image_report, image_set

from mirigor_jax import encoding, models
from mirigor_jax.main import main
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.runs import figures, layers, report
from mirigor_jax.runs.schema import LayerEntry, LayersReport

CONFIG = "--config=configs/layers.py"


def made(name: str, size: int) -> FrozenEncoder:
    """The encoder of this name with the shapes of its variables."""
    encoder = models.build(name, size=size)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return FrozenEncoder(encoder, jax.eval_shape(partial(encoder.init, train=False), jax.random.key(0), images))


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", [*(f"B{i}" for i in range(5)), "prelogits"]),
        ("vit_ti", [*(f"block{i}" for i in range(12)), "prelogits"]),  # JAX would sort block10 before block2
        ("lenet5", ["L0", "L1", "prelogits"]),
    ],
)
def test_stages_are_in_the_order_of_depth(name, stages):
    columns = encoding.stage_columns(made(name, 32), 32)
    assert [*columns] == stages
    edges = [each.start for each in columns.values()], [each.stop for each in columns.values()]
    assert (edges[0][0], edges[0][1:]) == (0, edges[1][:-1])


def test_features_of_every_stage_stand_side_by_side():
    encoder = models.build("lenet5")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    x = jnp.asarray(images / np.float32(127.5) - 1)
    variables = encoder.init(jax.random.key(0), x, train=False)
    columns = encoding.stage_columns(FrozenEncoder(encoder, variables), 8)
    h = encoding.encode_step(variables, jnp.asarray(images), encoder=encoder, every_stage=True)
    for stage, expected in encoder.apply(variables, x, train=False, stages=True).items():
        np.testing.assert_allclose(h[:, columns[stage]], expected, rtol=1e-4, atol=1e-5)


class Known(nn.Module):
    """An encoder whose stages hold the shade of an image's top, which is its class, of its bottom, or of both."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, train, stages=False):
        self.param("unused", nn.initializers.zeros, (1,))
        halves = jnp.mean(images.reshape(len(images), 2, -1), axis=2)
        noisy = halves + images[:, -1, -2:, 0]
        outputs = {"bottom": halves[:, 1:], "noisy top": noisy[:, :1], "top": halves[:, :1], "both": halves}
        return outputs if stages else outputs["both"]


@pytest.mark.slow
@pytest.mark.compiles
def test_a_stage_holds_what_it_was_made_to_hold(tmp_path, monkeypatch, capsys, undrawn):
    """The classes are equally frequent: a stage that shows them holds 1 bit, and one of noise holds none."""
    rng = np.random.default_rng(0)
    labels = np.arange(4000) % 2
    pixels = rng.integers(0, 256, (4000, 4, 4, 3), dtype=np.uint8)
    pixels[:, :2] = (60 + 120 * labels)[:, None, None, None] + rng.integers(-9, 9, (4000, 2, 4, 3))
    np.savez(tmp_path / "set.npz", images=pixels, labels=labels)
    monkeypatch.setitem(models.ENCODERS, "known", lambda *, dtype="float32": Known())
    folder = tmp_path / "run"
    changes = ["--config.encoder.name=known", "--config.train.steps=0"]
    assert main(image_set(f"npz:{tmp_path}/set.npz", folder, *changes)) == 0
    # Four columns of few values have many equal rows, though the images are independent.
    assert main([CONFIG, f"--config.restore={folder}", "--config.rows=independent"]) == 0
    rows = {row["stage"]: row for row in json.loads((folder / "layers/layers.json").read_text())["layers"]}
    assert [*rows] == ["bottom", "noisy top", "top", "both"]
    for row in rows.values():
        assert row["usable_lower_bits"] <= row["usable_bits"] <= row["usable_upper_bits"]
        assert row["i_class_lower_bits"] <= row["i_class_bits"] <= 1
        # The encoder has seen the training images, 60 % of all, so the ends are computed from 60 % of the others.
        assert row["unseen_rows"] == pytest.approx(0.6 * 1600, abs=5)
    bottom, top = rows["bottom"], rows["top"]
    assert (bottom["usable_lower_bits"], bottom["i_class_lower_bits"]) == (0, 0)
    assert bottom["usable_upper_bits"] < 0.1
    assert abs(bottom["accuracy"] - 0.5) < 0.06
    assert top["usable_lower_bits"] > 0.9
    assert (top["accuracy"], top["usable_upper_bits"]) == (1, pytest.approx(1, abs=0.01))
    assert top["i_class_lower_bits"] > 0.85
    assert top["nmi"] > 0.98
    assert 0.05 < rows["noisy top"]["usable_bits"] < top["usable_bits"]
    assert "is largest at top, stage 3 of 4" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.compiles
def test_a_killed_command_goes_on_with_the_next_stage_and_a_finished_one_only_draws(
    cdp_run, tmp_path, monkeypatch, capsys
):
    """The last stage has the numbers of the run's own evaluation and estimate, which read the same images."""
    folder = tmp_path / "run"
    shutil.copytree(cdp_run, folder)
    command, measured, information = [CONFIG, f"--config.restore={folder}"], [], layers.usable.information

    def killed(job, rows, h):
        measured.append(h.shape[1])
        if len(measured) == 2:
            raise KeyboardInterrupt
        return information(job, rows, h)

    # Of LeNet's 1,024 columns of L1, 32 are enough.
    narrow = {"L1": slice(1536, 1568), "prelogits": slice(2560, 2680)}
    assert encoding.stage_columns(made("lenet5", 32), 32)["prelogits"] == narrow["prelogits"]
    monkeypatch.setattr(layers, "stage_columns", lambda frozen, size: narrow)
    monkeypatch.setattr(layers.usable, "information", killed)
    assert main(command) == 130
    [first] = (folder / "layers/stages.jsonl").read_text().splitlines()
    assert main(command) == 0
    assert "encode: finished before, skipped" in capsys.readouterr().out
    own, run = json.loads((folder / "layers/layers.json").read_text()), json.loads((folder / "report.json").read_text())
    assert [row["width"] for row in own["layers"]] == [32, 120]
    assert measured == [32, 120, 120]
    assert own["layers"][0] == json.loads(first)
    last = own["layers"][-1]
    assert last["stage"] == "prelogits"
    assert last["accuracy"] == run["linear"]["color"]
    estimate = run["estimate"]
    assert last["i_class_bits"] == pytest.approx(estimate["value_bits"], abs=1e-3)
    assert last["i_class_lower_bits"] == pytest.approx(estimate["lower_bits"], abs=1e-3)
    with open(folder / "layers/layers.csv") as file:
        table = list(csv.DictReader(file))
    assert [(row["stage"], float(row["usable_bits"])) for row in table] == [
        (row["stage"], row["usable_bits"]) for row in own["layers"]
    ]
    assert "![" in (folder / "layers/layers.md").read_text()
    assert (folder / "layers/figures/layers.png").stat().st_size > 10_000

    (folder / "layers/figures/layers.png").unlink()
    assert main(command) == 0
    assert "measure: finished before, skipped" in capsys.readouterr().out
    assert json.loads((folder / "layers/layers.json").read_text())["layers"] == own["layers"]
    assert (folder / "layers/figures/layers.png").exists()
    assert main([*command, "--config.images=100"]) == 2
    assert "layers' was made by another config (features." in capsys.readouterr().err


@pytest.fixture
def run_folder(cdp_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(cdp_run, folder)
    return folder


def test_what_has_no_stages_is_refused_in_one_line(run_folder, monkeypatch, capsys):
    def refused(*arguments: str) -> str:
        assert main([CONFIG, *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    restore = f"--config.restore={run_folder}"
    assert "config.restore='' is not a run folder" in refused()
    assert "config.restore='nowhere' is not a run folder" in refused("--config.restore=nowhere")
    assert "pairing='none' shares no class; give attributes, such as --config.pairing=all" in refused(
        restore, "--config.pairing=none"
    )
    assert "rows='independent' only affects sets of images, and data.source='cdp'; leave it out" in refused(
        restore, "--config.rows=independent"
    )
    monkeypatch.setattr(layers, "stage_columns", lambda frozen, size: {"prelogits": slice(0, 120)})
    assert f"the encoder of the run in '{run_folder}' has 1 stage: expected two or more" in refused(restore)
    monkeypatch.setattr(layers, "stage_columns", lambda frozen, size: {})
    assert "has no stages: expected two or more" in refused(restore)

    config = json.loads((run_folder / "config.json").read_text())
    config["data"]["source"] = "features:h.npz"
    (run_folder / "manifest.json").unlink()
    (run_folder / "config.json").write_text(json.dumps(config))
    assert "is on features (data.source='features:h.npz') and has no encoder" in refused(restore)
    (run_folder / "report.json").unlink()
    assert f"the run in '{run_folder}' is not finished" in refused(restore)
    assert not (run_folder / "layers").exists()


def entry(stage: str, usable_bits: float, **changes) -> LayerEntry:
    fields = {
        "stage": stage, "width": 128, "i_class_bits": 1.5, "i_class_lower_bits": 1.23456, "certificate": "posterior",
        "usable_bits": usable_bits, "usable_lower_bits": usable_bits - 0.1, "usable_upper_bits": usable_bits + 0.20001,
        "unseen_rows": 900, "entropy_bits": 1.999, "nmi": 0.75, "accuracy": 0.875,
    }  # fmt: skip
    return LayerEntry(**fields | changes)


ROWS = (
    entry("B0", 0.5),
    entry("B1", 1.75),
    entry("prelogits", 1.5, usable_lower_bits=None, usable_upper_bits=None, warnings=("copies",)),
)


def test_the_report_names_the_stage_with_most_usable_information():
    own = LayersReport(
        name="layers", workdir="runs/cdp/layers", run=image_report().run, shared=("color",), entropy_bits=2.0,
        confidence=0.95, layers=ROWS,
    )  # fmt: skip
    for form in (report.markdown, report.table):
        text = " ".join(form(own, report.LAYERS_FORM).replace("|", " ").replace("*", "").split())
        assert "about the class (color) is largest at B1, stage 2 of 3: 1.750 of 1.999 bits. The certified" in text
        assert "do not prove that one stage holds more than another." in text
        assert "B1 128 1.500 ≥ 1.234 1.750 [1.650, 1.951] 0.750 87.50 %" in text  # rounded outwards
        assert "prelogits 128 1.500 ≥ 1.234 1.500 [–, –]" in text
        assert "arning: prelogits: copies" in text
        assert "layers.md" in text or "layers.json" in text
    assert max(map(len, report.table(own, report.LAYERS_FORM).splitlines())) <= 100


def test_the_figure_has_the_stages_in_order_with_their_ends():
    information, probed = figures.layers(ROWS, 2.0, 0.95).axes
    assert [label.get_text() for label in information.get_xticklabels()] == ["B0", "B1", "prelogits"]
    lines = {line.get_label(): line.get_ydata() for line in (*information.lines, *probed.lines)}
    np.testing.assert_allclose(lines["usable information"], [0.5, 1.75, 1.5])
    np.testing.assert_allclose(lines["I_class, certified at 95 %"], 1.23456)
    np.testing.assert_allclose(lines["accuracy"], 87.5)
    np.testing.assert_allclose(lines["NMI"], 75)
    band = np.concatenate([path.vertices[:, 1] for path in information.collections[0].get_paths()])
    assert (band.min(), band.max()) == (pytest.approx(0.4), pytest.approx(1.95001))
