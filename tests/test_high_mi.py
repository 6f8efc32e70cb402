"""The study high_mi: its training against numpy, its limits against quadrature, and the whole through `main`."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import image_report

from mirigor_jax import config_files, fields, kinds
from mirigor_jax.config_files import flatten
from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.mi.critics import JointCritic
from mirigor_jax.mi.distributions import Gaussian
from mirigor_jax.mi.estimators import resolve
from mirigor_jax.mi.values import derange, shuffle
from mirigor_jax.runs import report
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.settings import FreshPairs
from mirigor_jax.studies import critic_steps, high_mi, high_mi_critics
from mirigor_jax.studies.high_mi_critics import Training

CONFIG = "--config=configs/studies/high_mi.py"
TRAINING = Training(
    critic=JointCritic((6,), "elu"),
    estimator=resolve("js"),
    readers=tuple(map(resolve, ("js", "js_nwj", "nwj", "mine"))),
    negatives="shuffle",
    k=8,
    batches=1,
    dimension=3,
    learning_rate=1e-2,
    weight_decay=0.0,
)


def level(nats: float, dimension: int) -> tuple[jax.Array, jax.Array]:
    correlation, noise = Gaussian(dimension, nats).correlation_and_noise
    return jnp.float32(correlation), jnp.float32(noise)


@pytest.mark.parametrize("negatives", ["shuffle", "derange", "in-batch"])
def test_a_step_reads_its_batch_as_the_papers_formulas_do(negatives):
    training = dataclasses.replace(TRAINING, negatives=negatives)
    state, key = critic_steps.start(jnp.int32(3), (3, 3), training), jax.random.key(5)
    after, values = high_mi_critics.train_step(state, key, level(4.0, 3), training)

    pair_key, partner_key, _ = jax.random.split(key, 3)
    x, y = map(np.asarray, Gaussian(3, 4.0).sample(pair_key, 8))
    params = jax.tree.map(np.asarray, state.params)
    hidden = lambda a, b: np.concatenate([a, b]) @ params["kernel"] + params["bias"][0]  # noqa: E731
    elu = lambda h: np.where(h > 0, h, np.exp(np.minimum(h, 0)) - 1)  # noqa: E731
    out = params["mlp"]["Dense_0"]
    f = lambda i, j: float((elu(hidden(x[i], y[j])) @ out["kernel"] + out["bias"])[0])  # noqa: E731
    positives = np.array([f(i, i) for i in range(8)])
    if negatives == "in-batch":
        others = [(i, j) for i in range(8) for j in range(8) if i != j]
    else:
        partners = {"shuffle": shuffle, "derange": derange}[negatives](partner_key, 8)[:, 0]
        others = list(enumerate(np.asarray(partners).tolist()))
    of_others = np.array([f(i, j) for i, j in others])
    plug_in = positives.mean()
    expected = [
        plug_in,
        plug_in + 1 - np.exp(of_others).mean(),
        plug_in - np.exp(of_others - 1).mean(),
        plug_in - np.log(np.exp(of_others).mean()),
    ]
    np.testing.assert_allclose(values, expected, atol=1e-5)
    # Adam's first step is the sign of the gradient, times the rate.
    moved = np.asarray(after.params["mlp"]["Dense_0"]["bias"]) - out["bias"]
    slope = np.mean(1 / (1 + np.exp(-of_others))) - np.mean(1 / (1 + np.exp(positives)))
    np.testing.assert_allclose(moved, -1e-2 * np.sign(slope), rtol=1e-3)


def test_critics_of_one_seed_see_the_same_draws_and_another_seed_sees_others():
    levels = tuple(jnp.stack(column) for column in zip(level(2.0, 3), level(2.0, 3), strict=True))
    roots, epoch = jnp.arange(2), jnp.int32(0)
    states = high_mi_critics.start_all(roots, levels, TRAINING)
    _, values = high_mi_critics.train_epoch(states, roots, epoch, levels, TRAINING)
    assert values.shape == (2, 2, 4)
    np.testing.assert_allclose(values[:, 0], values[:, 1], rtol=1e-5)
    assert np.abs(values[0] - values[1]).max() > 1e-3


def test_small_batches_make_as_many_pairs_an_epoch():
    def steps(k):
        return dataclasses.replace(TRAINING, k=k, batches=100).steps

    assert [steps(k) for k in (64, 256, 512, 1024, 32_768)] == [800, 200, 100, 100, 100]


def test_smoothing_is_the_weighted_mean_of_the_appendix():
    curve = np.random.default_rng(0).normal(size=(2, 40))
    expected = np.empty_like(curve)
    for row in range(2):
        for epoch in range(40):
            near = [e for e in range(40) if abs(e - epoch) <= 10]
            weights = [(11 - abs(e - epoch)) / 11 for e in near]
            expected[row, epoch] = sum(w * curve[row, e] for w, e in zip(weights, near, strict=True)) / sum(weights)
    np.testing.assert_allclose(high_mi_critics.smoothed(curve), expected)


def test_the_most_that_permutations_show_is_the_divergence_from_their_mixture():
    """Quadrature of KL(P ‖ (1 − 1/k) Q + P/k) in one dimension."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = np.outer(weights, weights) / (2 * np.pi)
    rho = math.sqrt(-math.expm1(-2 * 1.2))
    x, y = nodes[:, None], rho * nodes[:, None] + math.sqrt(1 - rho**2) * nodes[None, :]
    log_ratio = 1.2 + 0.5 * (y**2 - ((y - rho * x) / math.sqrt(1 - rho**2)) ** 2)
    expected = np.sum(weights * -np.log((1 - 1 / 4) * np.exp(-log_ratio) + 1 / 4))
    assert high_mi_critics.most_of_permutations(1.2, 1, 4) == pytest.approx(expected, abs=0.02)
    assert expected < 1.2 < math.log(4)
    assert math.log(512) - 0.01 < high_mi_critics.most_of_permutations(30.0, 20, 512) < math.log(512)


def test_a_training_goes_on_until_it_has_settled_and_stops_at_the_last_doubling(monkeypatch):
    told = []
    for slope, expected in ((0.01, 10), (1.0, 40), (math.nan, 40)):

        def fake(states, roots, epoch, levels, training, slope=slope):
            return states, jnp.broadcast_to(slope * epoch, (2, 1, 4))

        monkeypatch.setattr(high_mi_critics, "train_epoch", fake)
        how = {"epochs": 10, "doublings": 2, "settled_nats": 0.1}
        curves = high_mi_critics.train(TRAINING, (2.0,), (0, 1), **how, on_progress=lambda *told_: told.append(told_))
        assert curves.shape == (4, 2, 1, expected)
    assert told[9][:2] == (10, 10)
    rising = np.arange(50.0)[None, None]
    assert high_mi_critics.rise(rising)[0] == pytest.approx(10, abs=3.5)  # the ends' averages are one-sided
    assert not high_mi_critics.has_settled(rising, 0.1)
    assert high_mi_critics.has_settled(-rising, 0.1)


@pytest.mark.slow
def test_permuted_negatives_saturate_at_log_n_and_deranged_ones_do_not():
    """The claim of the study, small: 10 nats in five dimensions, batches of 16, log 16 = 2.77."""
    ends = {}
    for negatives in ("shuffle", "derange"):
        training = dataclasses.replace(
            TRAINING, critic=JointCritic((64,), "elu"), estimator=resolve("nwj"), readers=(resolve("nwj"),),
            negatives=negatives, k=16, batches=10, dimension=5, learning_rate=2e-3,
        )  # fmt: skip
        how = {"epochs": 20, "doublings": 0, "settled_nats": 0.1}
        curves = high_mi_critics.train(training, (10.0,), (0, 1), **how, on_progress=lambda *_: None)
        ends[negatives] = curves[0, :, 0, -5:].mean()
    assert math.log(16) - 0.7 < ends["shuffle"] < math.log(16) + 0.1
    assert math.log(16) + 1 < ends["derange"] < 10


@pytest.mark.slow
def test_mine_passes_log_n_in_batches_of_which_the_permutation_parts_all_pairs():
    """The explanation of the page, small: 20 nats in five dimensions, batches of 16, log 16 = 2.77."""
    training = dataclasses.replace(
        TRAINING, critic=JointCritic((64,), "elu"), estimator=resolve("mine"), readers=(resolve("mine"),),
        k=16, batches=10, dimension=5, learning_rate=2e-3,
    )  # fmt: skip
    one = level(20.0, 5)
    roots, levels = jnp.arange(1), (one[0][None], one[1][None])
    states = high_mi_critics.start_all(roots, levels, training)
    for epoch in range(20):
        states, _ = high_mi_critics.train_epoch(states, roots, jnp.int32(epoch), levels, training)
    state = jax.tree.map(lambda leaf: leaf[0, 0], states)

    def read(key):
        partners = shuffle(jax.random.split(key, 3)[1], 16)[:, 0]
        return high_mi_critics.train_step(state, key, one, training)[1][0], jnp.sum(partners == jnp.arange(16))

    values, together = jax.jit(jax.vmap(read))(jax.random.split(jax.random.key(1), 4000))
    apart = together == 0
    assert np.mean(apart) == pytest.approx(math.exp(-1), abs=0.03)
    assert np.mean(values) > math.log(16) + 0.2
    assert np.mean(values[apart]) > math.log(16) + 1.5
    assert np.mean(values[~apart]) < math.log(16)


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_every_training_of_the_shipped_config_can_be_made(scale):
    config, _ = config_files.load_config(f"configs/studies/high_mi.py:scale={scale}")
    known = fields.settings_of(FreshPairs)
    batches = {}
    for cell in config.study.cells:
        assert cell["run"].keys() <= known.keys()
        own = {key: cell["run"].get(key, flatten(config.run)[key]) for key in known}
        batches.setdefault((own["estimator"], own["negatives"]), set()).add(own["k"])
    assert config.run.levels == tuple(2.5 * i for i in range(1, 13))
    assert {64, 128, 256, 512, 1024} <= batches["nwj", "shuffle"]
    assert batches["nwj", "in-batch"] == batches["mine", "in-batch"] == batches["js", "in-batch"] == {64}
    if scale == "paper":
        assert config.run.epochs == 1000
        assert batches["mine", "shuffle"] == {256, 512, 1024, 32_768}


@pytest.fixture
def shrunk(tmp_path, monkeypatch):
    """The arguments that shrink the shipped config."""
    monkeypatch.chdir(tmp_path)
    keys = {
        "batches": 1,
        "dimension": 4,
        "pairs": 200,
        "run.seeds": 2,
        "run.activation": "relu",
    }
    only = "nwj-shuffle-512+nwj-shuffle-1024+js-in-batch"
    return [f"{CONFIG}:only={only}", *(f"--config.{key}={value}" for key, value in keys.items())]


@pytest.mark.slow
@pytest.mark.compiles
def test_a_killed_study_goes_on_to_the_same_report(shrunk, tmp_path, monkeypatch, capsys):
    assert main([*shrunk, "--workdir=whole"]) == 0
    output = capsys.readouterr().out
    whole = json.loads((tmp_path / "whole/report.json").read_text())
    rows = {(row["cell"], row["reader"]): row for row in whole["trainings"]}
    assert list(rows) == [
        ("nwj-shuffle-512", "nwj"), ("nwj-shuffle-1024", "nwj"),
        *(("js-in-batch", reader) for reader in ("js", "js_nwj", "nwj")),
    ]  # fmt: skip
    js = rows["js-in-batch", "js"]
    curves = np.load(tmp_path / "whole/js-in-batch/curves.npz")["js"]
    assert curves.shape == (2, 3, 12)
    np.testing.assert_allclose(js["values"], curves[:, :, -2:].mean(axis=(0, 2)), rtol=1e-6)
    assert (js["epochs"], js["steps"], js["activation"]) == (12, 12 * 8, "relu")
    for row in whole["today"]:
        assert row["lower"] <= row["value"] <= row["ceiling"]
    assert [row["level"] for row in whole["today"]] == js["levels"] == [2.5, 10, 30]
    assert f"{js['values'][-1]:z.2f}" in output
    for name in ("high_mi", "high_mi_curves"):
        assert (tmp_path / f"whole/figures/{name}.png").stat().st_size > 10_000

    third = "--config.study.only=3/3"
    assert main([*shrunk, third, "--workdir=run"]) == 0
    part = json.loads((tmp_path / "run/report.json").read_text())
    assert (part["missing"], part["today"]) == (["nwj-shuffle-512", "nwj-shuffle-1024"], [])
    assert part["trainings"] == whole["trainings"][2:]
    with RunFolder(tmp_path / "run/nwj-shuffle-512").lock():
        assert main([*shrunk, third, "--workdir=run"]) == 0
    with RunFolder(tmp_path / "run/js-in-batch").lock():
        assert main([*shrunk, third, "--workdir=run"]) == 2
    assert "another process is at work in 'run/js-in-batch'" in capsys.readouterr().err

    train, calls = high_mi_critics.train, []

    def killed(*arguments, **named):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*arguments, **named)

    monkeypatch.setattr(high_mi_critics, "train", killed)
    assert main([*shrunk, "--workdir=run"]) == 130
    assert main([*shrunk, "--workdir=run"]) == 0
    assert len(calls) == 3
    assert whole["run"]["seconds"].keys() == {*(cell for cell, _ in rows), "today", "total"}
    assert "nwj-shuffle-512: finished before, skipped" in capsys.readouterr().out
    again = json.loads((tmp_path / "run/report.json").read_text())
    assert (again["trainings"], again["today"]) == (whole["trainings"], whole["today"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([":only=nwj-shuffle-65"], "only=nwj-shuffle-65: no training of laptop scale; did you mean"),
        ([":only=nwj-in-batch", "run.k=1"], "run.k=1: expected at least 2"),
        ([":only=nwj-in-batch", "run.k=9"], "run.k=9 has no effect, since every training of this study sets its own"),
        (
            [":only=nwj-in-batch", "run.dropout=(0.5,0.5)"],
            "nwj-in-batch: dropout=(0.5, 0.5): expected one rate for each",
        ),
        ([":only=nwj-in-batch", "run.estimator=nt_xent"], "nwj-in-batch: nt_xent scores rows of one view"),
        ([":only=nwj-in-batch", "run.estimator=flo"], "nwj-in-batch: flo needs a second critic"),
        ([":only=nwj-in-batch", "run.estimator=none"], "nwj-in-batch: unknown estimator 'none'"),
        ([":only=nwj-in-batch", "study.only=2/1"], "study.only='2/1': this study has 1 runs"),
        ([":only=nwj-in-batch", "study.cells=()"], "study.cells=(): this study has no training"),
    ],
)
def test_a_bad_config_is_one_line_and_exit_code_2(given, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argument, *keys = given
    assert main([f"{CONFIG}{argument}", *(f"--config.{key}" for key in keys), "--workdir=run"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


def test_a_setting_that_some_training_uses_is_taken():
    config, _ = config_files.load_config("configs/studies/high_mi.py")
    assert not kinds.RUN_KINDS["high_mi"].idle(config, ["run.epochs", "run.k", "seed"])


def test_a_row_has_the_values_of_two_budgets_and_the_fall_from_the_largest():
    config, _ = config_files.load_config("configs/studies/high_mi.py:only=js-shuffle-levels")
    curve = np.zeros((2, 3, 40))
    curve[:, :, 8:10] = [[[1.0], [3.0], [2.0]], [[1.0], [5.0], [6.0]]]  # the last fifth of the first ten epochs
    curve[:, :, 32:] = [[[2.0], [7.0], [6.5]], [[2.0], [7.0], [6.0]]]  # the last fifth of all
    [row] = high_mi._rows_of("cell", config.run, TRAINING, {"js": curve})
    assert (row["values"], row["spread"]) == ([2, 7, 6.25], pytest.approx([0, 0, math.sqrt(0.125)]))
    assert (row["quarter"], row["quarter_spread"]) == ([1, 4, 4], pytest.approx([0, math.sqrt(2), math.sqrt(8)]))
    assert (row["fall"], row["fall_spread"]) == (0.75, pytest.approx(math.sqrt(0.125)))
    [row] = high_mi._rows_of("cell", config.run, TRAINING, {"js": curve[:1]})
    assert row["spread"] is row["quarter_spread"] is row["fall_spread"] is None


def row(cell: str, **changes) -> dict:
    return {
        "cell": cell, "reader": "nwj", "estimator": "nwj", "negatives": "shuffle", "k": 512, "activation": "elu",
        "learning_rate": 5e-4, "seeds": 3, "hidden": [64], "dropout": [], "levels": [30.0], "epochs": 20, "steps": 2000,
        "values": [6.011], "spread": [0.0312], "quarter": [5.5], "quarter_spread": [0.1], "fall": 0.0,
        "fall_spread": 0.0, "rise": [0.01], "settled": True,
    } | changes  # fmt: skip


ROWS = [
    row("small", k=64, values=[4.012]),
    row("large"),
    row(
        "levels", estimator="js", reader="js", levels=[2.5, 30.0], values=[2.25, -5e6], spread=None,
        quarter=[1.5, 1.75], quarter_spread=None, fall=0.75, fall_spread=0.125, rise=[0.3, math.nan], settled=False,
    ),
]  # fmt: skip
TODAY = [
    {"level": nats, "value": value, "lower": lower, "ceiling": 7.6, "k": 2000, "confidence": 0.95, "sentence": "."}
    for nats, value, lower in ((2.5, 2.4, 2.3019), (30.0, 7.59, 6.0))
]


def test_the_report_says_how_far_from_log_n_a_value_is():
    result = high_mi.HighMiReport(
        name="high_mi", workdir="runs/high_mi", trainings=ROWS, missing=["other"], today=TODAY, run=image_report().run
    )
    result.run.config["pairs"] = 10_000
    for form in (report.markdown, report.table):
        text = " ".join(form(result, high_mi.FORM).replace("|", " ").split())
        assert "large nwj 512 6.24 30 5.50 ± 0.10 6.01 ± 0.03 -0.23 – +0.01 20 yes" in text
        assert "levels js 512 6.24 30 1.75 -5e+06 -5e+06 0.75 ± 0.12 – 20 no" in text
        assert "levels: js at ¼ 1.50 1.75" in text
        assert "levels: js 2.25 -5e+06" in text
        assert "certified: at least 2.30 6.00" in text
    assert "Trainings that are missing: other." in report.markdown(result, high_mi.FORM)


def test_the_figures_show_the_rows():
    figure = high_mi.picture(ROWS, TODAY, 20)
    by_batch, default, js = figure.axes  # no panel of nwj, as its critics have one level
    lines = {line.get_label(): line for line in by_batch.lines}
    np.testing.assert_allclose(lines["nwj, shuffle, critic 64"].get_xydata(), [(64, 4.012), (512, 6.011)])
    np.testing.assert_allclose(lines["log N"].get_ydata(), np.log([64, 512]))
    np.testing.assert_allclose(default.lines[1].get_ydata(), [2.3019, 6.0])
    np.testing.assert_allclose(js.lines[0].get_ydata(), [2.25, -5e6])
    assert js.get_ylim()[0] == -3  # values below are not drawn
    assert js.lines[1].get_label() == "most at N = 512, shuffle"
    assert js.get_title(loc="left").startswith("critics trained by js")
    curves = {cell: {"nwj": np.full((1, 1, 20), 6.0)} for cell in ("small", "large")}
    curves["levels"] = {"js": np.stack([np.full((1, 20), 2.0), np.full((1, 20), 9.0)], axis=1)}
    figure = high_mi.picture_curves(ROWS, curves)
    by_n, by_level = figure.axes
    assert by_n.get_title(loc="left") == "shuffle, 30 nats: nwj, nats"
    assert [line.get_ydata()[0] for line in by_level.lines] == pytest.approx([2, 9, math.log(512)])


def test_a_cell_whose_name_is_taken_is_named():
    config, name = config_files.load_config("configs/studies/high_mi.py:only=nwj-in-batch")
    config.study.cells *= 2
    with pytest.raises(InputError, match="the name 'nwj-in-batch' is taken"):
        kinds.run(config, name, None)
