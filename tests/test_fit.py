"""Drawing same-class pairs, and the critic's step: cached against streamed, one device against eight."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from scipy import special, stats

from mirigor_jax import fitting, parallel
from mirigor_jax.data.attributes import uniform
from mirigor_jax.data.pairing import parse
from mirigor_jax.encoding import encode_pairs, encode_step
from mirigor_jax.errors import InputError
from mirigor_jax.mi import fit
from mirigor_jax.mi.critics import CosineCritic, Scorer, SeparableCritic
from mirigor_jax.mi.estimators import ESTIMATORS, Estimator
from mirigor_jax.mi.read import read_embeddings
from mirigor_jax.mi.values import anchored, dv, info_nce, info_nce_symmetric
from mirigor_jax.models.resnet import make_encoder

INFO_NCE = (ESTIMATORS["info_nce"](),)
BOTH = tuple(ESTIMATORS[name]() for name in ("info_nce_symmetric", "nt_xent"))


def draw(bank, k, seed=0, devices=1):
    mesh = parallel.make_mesh(k, jax.devices()[:devices])
    mapped = parallel.map_step(
        partial(fit.draw_pairs, {}, k=k, axis_name=parallel.AXIS), mesh, (P(), P()), (P("data"), P("data"))
    )
    return tuple(np.asarray(h) for h in mapped(bank, jax.random.key(seed)))


@pytest.mark.parametrize("mi", [None, 1.5, 0.0])
def test_drawn_pairs_follow_the_joint_distribution_of_their_classes(mi):
    # Each row is its own label, so that the drawn classes can be counted. Classes of very unequal size.
    joint = parse("a", uniform("a", (3,)), mi_bits=mi).joint()
    classes = len(joint)
    labels = np.repeat(np.arange(classes), [200, 30, 170][:classes]).astype(np.int32)
    rows = np.stack([labels, np.arange(len(labels))], axis=1).astype(np.float32)
    h_x, h_y = draw(fit.make_bank(rows, labels, joint), 40_000)
    counts = np.zeros((classes, classes))
    np.add.at(counts, (h_x[:, 0].astype(int), h_y[:, 0].astype(int)), 1)
    share = np.bincount(labels) / len(labels)
    expected = share[:, None] * joint / joint.sum(axis=1, keepdims=True) * counts.sum()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    if possible.sum() > 1:
        assert stats.chisquare(counts[possible], expected[possible]).pvalue > 1e-3
    # every row of a class is as likely as another to be y
    within = np.bincount(h_y[h_y[:, 0] == 0][:, 1].astype(int), minlength=len(labels))[labels == 0]
    assert stats.chisquare(within).pvalue > 1e-3


def test_the_draw_does_not_depend_on_the_number_of_devices():
    labels = np.repeat(np.arange(4), 25).astype(np.int32)
    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    bank = fit.make_bank(rows, labels, np.eye(4) / 4)
    for one, eight in zip(draw(bank, 64, seed=3), draw(bank, 64, seed=3, devices=8), strict=True):
        np.testing.assert_array_equal(one, eight)


def test_a_class_without_images_is_named():
    with pytest.raises(InputError, match="classes 2"):
        fit.make_bank(np.zeros((4, 2), np.float32), np.array([0, 1, 1, 3]), np.eye(4) / 4)


def critic_and_optimizer():
    return CosineCritic(hidden=(16,), features=8), optax.sgd(0.1)


def one_step(views, frozen, batch, batch_spec, h, devices):
    critic, optimizer = critic_and_optimizer()
    mesh = parallel.make_mesh(8, jax.devices()[:devices])
    step = partial(fit.estimate_step, views=views, critic=critic, optimizer=optimizer, axis_name=parallel.AXIS)
    mapped = parallel.map_step(step, mesh, (P(), P(), batch_spec, P()), (P(), P()))
    state = fit.init_critic(critic, optimizer, h, jax.random.key(1))
    return jax.tree.map(np.asarray, mapped(state, frozen, batch, jax.random.key(2)))


def test_a_step_of_a_cosine_critic_raises_the_bound_that_it_reports():
    """The bound is InfoNCE of unit embeddings over the learned temperature, and SGD's step follows its slope."""
    h = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    critic, optimizer = critic_and_optimizer()
    before = fit.init_critic(critic, optimizer, h, jax.random.key(1)).params
    after, nats = one_step(lambda frozen, batch, key: batch, {}, (h, 0.5 * h + 1), (P("data"), P("data")), h, 1)

    def bound(params):
        z_x, z_y, temperature = critic.apply({"params": params}, h, 0.5 * h + 1)
        scores = np.asarray(z_x @ z_y.T / temperature, np.float64)
        halves = (np.diag(scores) - special.logsumexp(scores, axis=axis) for axis in (0, 1))
        return math.log(8) + np.mean([half.mean() for half in halves])

    assert nats == pytest.approx(bound(before), abs=1e-5)
    assert bound(after.params) > bound(before)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow", "float64")
def test_streamed_images_and_cached_features_give_the_same_critic_gradients():
    # SGD, so equal parameters after the step mean equal gradients; the critic is the only thing that moves.
    encoder = make_encoder("resnet18", width=4, stem="cifar", dtype="float64")
    rng = np.random.default_rng(0)
    images = {view: rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8) for view in ("x", "y")}
    variables = encoder.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    h_x, h_y = (encode_step(variables, jnp.asarray(images[view]), encoder=encoder) for view in ("x", "y"))
    mean, scale = jnp.mean(h_x, axis=0), jnp.std(h_x, axis=0)
    cached = tuple((h - mean[None]) / scale[None] for h in (h_x, h_y))

    def pairs_as_they_are(frozen, batch, key):
        return batch

    frozen = {"encoder": variables, "mean": mean, "scale": scale}
    streamed_state, streamed_nats = one_step(
        partial(encode_pairs, encoder=encoder), frozen, images, P("data"), cached[0], devices=1
    )
    for devices in (1, 8):
        state, nats = one_step(pairs_as_they_are, {}, cached, P("data"), cached[0], devices)
        np.testing.assert_allclose(nats, streamed_nats, rtol=1e-9)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-9), state.params, streamed_state.params)


def config_of(critic, estimators=INFO_NCE, **options) -> fit.FitConfig:
    """A FitConfig with the learning rate and weight decay of `mi.estimate`."""
    return fit.FitConfig(critic, estimators, **{"steps": 60, "learning_rate": 6e-3, "weight_decay": 1e-2} | options)


def test_a_critic_is_kept_where_validation_is_best_and_dropout_is_of_steps_alone():
    x = np.random.default_rng(0).normal(size=(1, 300, 2)).astype(np.float32)
    data, validation = fit.Pairs(x[:, :200], x[:, :200]), fit.Pairs(x[:, 200:], x[:, 200:])
    first = fit.CriticJob(*np.zeros((3, 1), np.int32))
    fit_config = config_of(SeparableCritic((16,), 8, dropout=0.2), batch_size=32, eval_every=20)
    params, best = fit.fit_critics(fit_config, data, validation, first)
    assert best[0] >= 40
    alone = jax.tree.map(lambda p: p[0], params["f"])
    assert info_nce(fit_config.scores(alone, validation.x[0], validation.y[0])) > 1


@pytest.mark.parametrize(("negatives", "many"), [("in-batch", 5), ("shuffle", 1), ("derange", 1)])
def test_a_loss_is_given_every_negative_of_each_pair(negatives, many):
    def loss(carry, positives, negatives):
        return jnp.float32(0) * jnp.sum(positives) + jnp.float32(100 * positives.shape[0] + negatives.shape[-1]), carry

    estimator = Estimator("counted", "not a bound", "", dv, loss)
    fit_config = config_of(SeparableCritic((2,), 2), (estimator,), batch_size=6, negatives=negatives)
    rows = np.random.default_rng(0).normal(size=(2, 1, 6, 2)).astype(np.float32)
    data, critic_job = fit.Pairs(*map(jnp.asarray, rows)), fit.CriticJob(jnp.int32(0), jnp.int32(0), jnp.int32(3))
    state = fit.start_critic(critic_job, data, data, fit_config=fit_config)
    _, nats = fit.critic_step(state, (data, critic_job), jnp.arange(6), jax.random.key(0), fit_config=fit_config)
    assert -float(nats) == 600 + many


@pytest.mark.slow
def test_each_of_many_critics_stops_by_its_own_patience():
    """A critic that has stopped beside others that go on is the same as if it were fitted alone."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 300, 1)).astype(np.float32)
    y = x + np.array([0.3, 3.0], np.float32)[:, None, None] * rng.normal(size=x.shape).astype(np.float32)
    data, validation = fit.Pairs(x[:, :200], y[:, :200]), fit.Pairs(x[:, 200:], y[:, 200:])
    fit_config = config_of(SeparableCritic((8,), 4), batch_size=32, steps=200, eval_every=10, patience=10)
    itself = np.array([[0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3]], np.int32)
    _, best = fit.fit_critics(fit_config, data, validation, fit.CriticJob(*itself))
    assert len(set(best)) > 2
    for at in range(4):
        _, alone = fit.fit_critics(fit_config, data, validation, fit.CriticJob(*itself[:, at : at + 1]))
        assert alone[0] == best[at]


@pytest.mark.slow
@pytest.mark.usefixtures("shallow", "float64")
def test_no_gradient_reaches_the_encoder():
    encoder = make_encoder("resnet18", width=4, stem="cifar", dtype="float64")
    rng = np.random.default_rng(0)
    images = {view: jnp.asarray(rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)) for view in ("x", "y")}
    variables = encoder.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    width = 8
    frozen = {"encoder": variables, "mean": jnp.zeros(width), "scale": jnp.ones(width)}
    critic, optimizer = critic_and_optimizer()
    state = fit.init_critic(critic, optimizer, jnp.zeros((4, width)), jax.random.key(1))
    views = partial(encode_pairs, encoder=encoder)

    def bound(frozen):
        step = partial(fit.estimate_step, views=views, critic=critic, optimizer=optimizer, axis_name="data")
        return jax.vmap(step, in_axes=(None, None, 0, None), axis_name="data")(
            state, frozen, jax.tree.map(lambda x: x[None], images), jax.random.key(0)
        )[1][0]

    assert all(not jnp.any(g) for g in jax.tree.leaves(jax.grad(bound)(frozen)))


def test_bounds_of_a_perfect_critic_are_what_theory_says():
    # 64 classes as one-hot representations at a low temperature, K = 256: the expectation of the strict form is 5.811
    # bits, that of the paper's 6.003, above log2 64 (closed forms in test_certificate).
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 64, (200, 256))
    h = np.eye(64, dtype=np.float32)[labels]
    critic = CosineCritic(hidden=(), features=64, temperature=0.02)
    params = critic.init(jax.random.key(0), jnp.asarray(h[0, :2]), jnp.asarray(h[0, :2]))["params"]
    params["mlp"]["Dense_0"]["kernel"] = jnp.eye(64)
    mesh = parallel.make_mesh(256)
    within = P(None, "data")
    read = partial(read_embeddings, critic=critic, estimators=BOTH, axis_name=parallel.AXIS)
    read = parallel.map_step(read, mesh, (P(), within, within), (P(), P()))
    in_bits, nt_xent = (np.asarray(x, np.float64) / math.log(2) for x in read(params, h, h))
    assert abs(in_bits.mean() - 5.811) < 4 * in_bits.std() / math.sqrt(200) + 1e-3
    assert abs(nt_xent.mean() - 6.003) < 4 * nt_xent.std() / math.sqrt(200) + 1e-3


@pytest.mark.slow
def test_every_estimator_reads_a_batch_that_devices_share_as_the_whole_matrix():
    """The value is that of the formula on the scores of all pairs, whether or not embeddings are gathered."""
    names = [name for name in ESTIMATORS if not ESTIMATORS[name]().needs_u]
    h = np.random.default_rng(0).normal(size=(2, 3, 16, 5)).astype(np.float32)
    critic = CosineCritic(hidden=(), features=4, temperature=0.5)
    params = critic.init(jax.random.key(0), h[0, 0], h[1, 0])["params"]
    estimators = tuple(ESTIMATORS[name]() for name in names)
    mesh, within = parallel.make_mesh(16), P(None, "data")
    read = partial(read_embeddings, critic=critic, estimators=estimators, axis_name=parallel.AXIS)
    result = parallel.map_step(read, mesh, (P(), within, within), (P(),) * len(names))(params, *h)
    for name, estimator, values in zip(names, estimators, result, strict=True):
        x, y = (np.concatenate(h, axis=1) if estimator.anchors == "all" else view for view in (h[0], h[1]))
        scores = [critic.apply({"params": params}, a, b, method="scores") for a, b in zip(x, y, strict=True)]
        expected = [estimator.value(*anchored(one, estimator.anchors)) for one in scores]
        np.testing.assert_allclose(values, expected, rtol=2e-5, atol=2e-5, err_msg=name)


def test_fit_keeps_the_best_critic_of_validation():
    # A rate so high that the fit gets worse after its best step: what is kept is the best, not the last.
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 32).astype(np.int32)
    h = (np.eye(4)[labels] + 0.3 * rng.normal(size=(128, 4))).astype(np.float32)
    bank = fit.make_bank(h, labels, np.eye(4) / 4)
    critic = CosineCritic(hidden=(16,), features=8)
    optimizer = optax.adam(0.5)
    mesh = parallel.make_mesh(32, jax.devices()[:1])
    step = partial(
        fit.estimate_step,
        views=partial(fit.draw_pairs, k=32, axis_name=parallel.AXIS),
        critic=critic,
        optimizer=optimizer,
        axis_name=parallel.AXIS,
    )
    read = partial(read_embeddings, critic=critic, estimators=BOTH, axis_name=parallel.AXIS)
    chunk = parallel.map_step(
        partial(fitting.fit_chunk, step=step, validate=read, streamed=False),
        mesh,
        (P(), P(), P(), P(None, "data"), P()),
        (P(), P()),
    )
    validation = (h[None, ::4], h[None, 1::4])
    state = parallel.place(fit.init_critic(critic, optimizer, jnp.asarray(h[:2]), jax.random.key(0)), mesh)
    values, remaining = [], []
    for i in range(12):
        state, metrics = chunk(state, {}, bank, validation, jax.random.split(jax.random.key(i), 2))
        values.append(float(metrics["validation_nats"]))
        remaining.append(jax.tree.map(np.asarray, state.params))
    best = int(np.argmax(values))
    assert best < 11, "the case must get worse after its best step"
    assert float(state.best_nats) == pytest.approx(max(values))
    assert int(state.best_step) == 2 * (best + 1)
    jax.tree.map(np.testing.assert_array_equal, state.best_params, remaining[best])


def test_batches_are_disjoint_rows_in_order_and_the_rest_is_left():
    rows = np.arange(22.0).reshape(11, 2)
    np.testing.assert_array_equal(fitting.in_batches(rows, 4), [rows[:4], rows[4:8]])
    assert fitting.in_batches(rows, 12).shape == (0, 12, 2)


def run(values, *, steps, patience, stride=10, on_progress=None):
    """Run `fitting.run` on critics with these evaluations: a row for each evaluation, a column for each critic."""
    values = np.array(values, float)
    asked = []

    def advance(state, done):
        asked.append(done)
        seen = values[len(asked) - 1]
        better = seen > state.best_nats
        state = state._replace(
            best_nats=np.where(better, seen, state.best_nats),
            best_step=np.where(better, done + stride, state.best_step),
        )
        return state, {"fit_nats": 2 * seen, "validation_nats": seen}

    start = fitting.CriticState(
        step=0, params=None, opt_state=None, best_params=None,
        best_nats=np.zeros(values.shape[1]), best_step=np.zeros(values.shape[1], int),
    )  # fmt: skip
    named = {"learning_rate": 1.0, "fitted": ["the critic"] * values.shape[1]}
    state, history = fitting.run(
        start, advance, steps=steps, stride=stride, patience=patience, on_progress=on_progress, **named
    )
    assert asked == [evaluation.step - stride for evaluation in history]
    return state, history


def test_a_fit_ends_at_its_steps_while_a_critic_gains():
    """Of two critics, one gains in every other evaluation, and one never gains."""
    values, calls = [[-1, 0.5], [-1, 0.4], [-1, 0.6], [-1, 0.5], [-1, 0.7]], []
    state, history = run(values, steps=45, patience=20, on_progress=lambda *call: calls.append(call))
    assert [evaluation.step for evaluation in history] == [10, 20, 30, 40, 50]
    assert [evaluation.validation_nats for evaluation in history] == pytest.approx(np.mean(values, axis=1))
    assert [evaluation.fit_nats for evaluation in history] == pytest.approx(2 * np.mean(values, axis=1))
    np.testing.assert_array_equal(state.best_step, [0, 50])
    assert [call[:2] for call in calls] == [(10, 45), (20, 45), (30, 45), (40, 45), (45, 45)]
    assert calls[0][2] == "-0.361 bits on validation"


@pytest.mark.parametrize(("patience", "evaluations"), [(10, 3), (11, 4), (20, 4), (30, 5)])
def test_a_fit_ends_when_no_critic_has_gained_in_its_patience(patience, evaluations):
    calls = []
    values = [[0.1, 0.2], [0.2, 0.1], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1]]
    state, history = run(values, steps=60, patience=patience, on_progress=lambda *call: calls.append(call))
    assert len(history) == evaluations
    np.testing.assert_array_equal(state.best_step, [20, 10])
    done = 10 * evaluations
    assert calls[-2][:2] == (done, 60)
    assert calls[-1] == (done, done, f"stopped: nothing gained in {patience} steps")
    assert len(calls) == evaluations + 1


def by_class(seed=0, noise=0.3):
    """A bank of rows of four classes, and both views of held-out pairs of neighboring rows."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), 32).astype(np.int32)
    h, fresh = (((np.eye(4)[labels]) + noise * rng.normal(size=(128, 4))).astype(np.float32) for _ in range(2))
    order = rng.permutation(64)
    return fit.make_bank(h, labels, np.eye(4) / 4), (fresh[::2][order], fresh[1::2][order])


def bounds_of(critic, params, held_out, size):
    """Each critic's mean InfoNCE over validation batches of so many pairs."""
    views = [fitting.in_batches(view, size) for view in held_out]
    each = [jax.tree.map(lambda leaf, s=s: leaf[s], params) for s in range(len(jax.tree.leaves(params)[0]))]
    return [
        float(np.mean([info_nce_symmetric(Scorer(critic).scores(one, x, y)) for x, y in zip(*views, strict=True)]))
        for one in each
    ]


@pytest.mark.slow
@pytest.mark.compiles
def test_critics_fitted_by_class_are_the_best_of_validation_each_from_its_own_start():
    bank, held_out = by_class()
    class_fit = fit.ClassFit(CosineCritic((8,), 4), batch_size=16, steps=60, eval_every=10, learning_rate=0.03)
    calls = []
    one = fit.fit_by_class(class_fit, bank, held_out, seed=3, on_progress=lambda *call: calls.append(call))
    assert [evaluation.step for evaluation in one.history] == [10, 20, 30, 40, 50, 60]
    assert [call[:2] for call in calls] == [(step, 60) for step in range(10, 70, 10)]
    values = [evaluation.validation_nats for evaluation in one.history]
    assert one.best_step == one.history[int(np.argmax(values))].step
    assert bounds_of(class_fit.critic, one.params, held_out, 32) == pytest.approx([max(values)], abs=1e-5)
    assert max(values) > 0.7
    two = fit.fit_by_class(class_fit, bank, held_out, seed=3, num_critics=2)
    for first, (alone,) in zip(jax.tree.leaves(two.params), jax.tree.leaves(one.params), strict=True):
        assert first.shape[0] == 2
        np.testing.assert_allclose(first[0], alone, rtol=1e-3, atol=1e-4)
    first, second = two.params["mlp"]["Dense_0"]["kernel"]
    assert np.abs(first - second).max() > 0.1
    other = fit.fit_by_class(class_fit, bank, held_out, seed=4)
    assert other.history != one.history


def test_a_fit_by_class_that_gains_nothing_gives_the_critic_that_it_started_from():
    """The steps are so large that the critic is worse than at its start until its patience ends."""
    bank, held_out = by_class()
    critic = SeparableCritic((8,), 4)
    class_fit = fit.ClassFit(critic, batch_size=16, steps=60, eval_every=10, learning_rate=3.0, patience=20)
    fitted = fit.fit_by_class(class_fit, bank, held_out, seed=0)
    assert (fitted.best_step, [evaluation.step for evaluation in fitted.history]) == (0, [10, 20])
    start = critic.init(jax.random.fold_in(jax.random.key(0), 0), bank.h[:2], bank.h[:2], method="scores")["params"]
    jax.tree.map(lambda leaf, first: np.testing.assert_allclose(leaf[0], first, rtol=1e-6), fitted.params, start)
    (value,) = bounds_of(critic, fitted.params, held_out, 32)
    assert value > max(evaluation.validation_nats for evaluation in fitted.history)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_eight_devices_estimate_as_one():
    """The whole fit (draws, gradients, selection) and the values on held-out pairs, in float64."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 64).astype(np.int32)
    h = np.eye(4)[labels] + 0.4 * rng.normal(size=(256, 4))
    held_out = h[None, ::4], h[None, 1::4]  # neighbors are of one class
    bank = fit.make_bank(h, labels, np.eye(4) / 4)
    critic, optimizer = CosineCritic(hidden=(16,), features=8), optax.adam(1e-2)

    def estimate(devices):
        mesh = parallel.make_mesh(64, jax.devices()[:devices])
        step = partial(
            fit.estimate_step,
            views=partial(fit.draw_pairs, k=64, axis_name=parallel.AXIS),
            critic=critic,
            optimizer=optimizer,
            axis_name=parallel.AXIS,
        )
        read = partial(read_embeddings, critic=critic, estimators=BOTH, axis_name=parallel.AXIS)
        within = P(None, "data")
        chunk = partial(fitting.fit_chunk, step=step, validate=read, streamed=False)
        chunk = parallel.map_step(chunk, mesh, (P(), P(), P(), within, P()), (P(), P()))
        state = fit.init_critic(critic, optimizer, jnp.asarray(h[:2]), jax.random.key(0))
        for i in range(3):
            state, _ = chunk(state, {}, bank, held_out, jax.random.split(jax.random.key(i), 20))
        values = parallel.map_step(read, mesh, (P(), within, within), (P(), P()))(state.best_params, *held_out)
        return jax.tree.map(np.asarray, (values, state.best_nats, state.best_step))

    one, eight = estimate(1), estimate(8)
    assert one[0][0][0] > 0.5  # it found something to agree on
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), eight, one)


@pytest.mark.parametrize("chosen", [0, 1])
def test_estimators_that_are_fitted_together_keep_each_its_own_carry(chosen):
    """Two estimators count their steps, by one and by ten, in carries of different form."""

    def counting(name, carry, after):
        return Estimator(name, "not a bound", "", dv, lambda carry, *scores: (-dv(*scores), after(carry)), carry=carry)

    one, ten = counting("one", (0.0,), lambda c: (c[0] + 1,)), counting("ten", (5.0, 0.0), lambda c: (c[0], c[1] + 10))
    fit_config = config_of(SeparableCritic((2,), 2), (one, ten), batch_size=4)
    rows = np.random.default_rng(0).normal(size=(2, 1, 8, 2)).astype(np.float32)
    data, critic_job = fit.Pairs(*map(jnp.asarray, rows)), fit.CriticJob(jnp.int32(0), jnp.int32(chosen), jnp.int32(3))
    state = jax.jit(partial(fit.start_critic, fit_config=fit_config))(critic_job, data, data)
    step = jax.jit(partial(fit.critic_step, fit_config=fit_config))
    for _ in range(2):
        state, _ = step(state, (data, critic_job), jnp.arange(4), jax.random.key(0))
    assert jax.tree.map(float, state.carry) == [((2.0,), (5.0, 0.0)), ((0.0,), (5.0, 20.0))][chosen]
