"""Critics against plain numpy on every pair, scores of given partners against the matrix, and the cost of pairs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from mirigor_jax.errors import InputError
from mirigor_jax.mi import critics, measure
from mirigor_jax.mi.critics import BilinearCritic, CosineCritic, JointCritic, PosteriorCritic, Scorer, SeparableCritic
from mirigor_jax.softmax import LinearProbe

ACTIVATIONS = {"relu": lambda a: np.maximum(a, 0), "elu": lambda a: np.where(a > 0, a, np.expm1(a))}
CRITICS = {
    "cosine": CosineCritic(hidden=(8,), features=4),
    "separable": SeparableCritic(hidden=(8, 8), features=4),
    "bilinear": BilinearCritic(),
    "joint": JointCritic(hidden=(8, 6)),
}


def arrays(n=5, m=7, d=3, e=3):
    rng = np.random.default_rng(0)
    return jnp.array(rng.normal(size=(n, d))), jnp.array(rng.normal(size=(m, e)))


def init(critic, x, y):
    """Random parameters of the right shapes, so biases are not 0 as at the start."""
    shapes = jax.eval_shape(partial(critic.init, method="scores"), jax.random.key(0), x, y)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.array(rng.normal(size=p.shape, scale=0.5), p.dtype), shapes)


def scored(critic, params, x, y, partners=None):
    return jax.jit(partial(critic.apply, method="scores"))(params, x, y, partners)


def mlp(layers, h, activation):
    """Dense layers in order, the activation between them."""
    names = sorted(layers)
    for name in names:
        h = h @ np.asarray(layers[name]["kernel"]) + np.asarray(layers[name]["bias"])
        h = h if name == names[-1] else ACTIVATIONS[activation](h)
    return h


def pairwise(score, x, y):
    return np.array([[score(a, b) for b in np.asarray(y)] for a in np.asarray(x)])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_joint_is_an_mlp_of_the_concatenated_pair(activation):
    x, y = arrays(e=4)
    critic = JointCritic(hidden=(8, 6, 5), activation=activation)
    params = init(critic, x, y)
    p = params["params"]

    def score(a, b):
        first = np.concatenate([a, b]) @ np.asarray(p["kernel"]) + np.asarray(p["bias"])[0]
        return mlp(p["mlp"], ACTIVATIONS[activation](first), activation)[0]

    np.testing.assert_allclose(scored(critic, params, x, y), pairwise(score, x, y), rtol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_separable_is_an_inner_product_of_two_mlps(activation):
    x, y = arrays(e=4)
    critic = SeparableCritic(hidden=(8, 6), features=5, activation=activation)
    params = init(critic, x, y)
    towers = params["params"]

    def score(a, b):
        return mlp(towers["mlp_x"], a, activation) @ mlp(towers["mlp_y"], b, activation)

    np.testing.assert_allclose(scored(critic, params, x, y), pairwise(score, x, y), rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_bilinear_is_a_matrix_between_the_two():
    x, y = arrays(e=4)
    params = init(BilinearCritic(), x, y)
    w = np.asarray(params["params"]["w"]["kernel"])
    assert w.shape == (3, 4)
    np.testing.assert_allclose(scored(BilinearCritic(), params, x, y), x @ w @ y.T, rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_cosine_is_the_cosine_over_the_temperature():
    x, y = arrays()
    critic = CRITICS["cosine"]
    params = init(critic, x, y)
    p = params["params"]

    def score(a, b):
        a, b = mlp(p["mlp"], a, "relu"), mlp(p["mlp"], b, "relu")
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b) * np.exp(p["log_temperature"]))

    np.testing.assert_allclose(scored(critic, params, x, y), pairwise(score, x, y), rtol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CRITICS)
def test_given_partners_score_as_in_the_matrix(name):
    x, y = arrays()
    critic = CRITICS[name]
    params = init(critic, x, y)
    partners = np.random.default_rng(2).integers(0, len(y), size=(len(x), 4))
    matrix = scored(critic, params, x, y)
    scores_of_partners = scored(critic, params, x, y, jnp.array(partners))
    np.testing.assert_allclose(scores_of_partners, np.take_along_axis(np.asarray(matrix), partners, axis=1), rtol=1e-12)


@pytest.mark.parametrize("partnered", [False, True])
def test_the_first_layer_of_a_joint_critic_does_not_run_on_every_pair(partnered):
    n, d, width = 64, 128, 16
    x = y = jnp.zeros((n, d))
    critic = JointCritic(hidden=(width,))
    params = init(critic, x, y)
    partners = jnp.zeros((n, 1), jnp.int32) if partnered else None
    lowered = jax.jit(lambda p: critic.apply(p, x, y, partners, method="scores")).lower(params)
    first_layer, pairs = 2 * n * 2 * d * width, n if partnered else n * n
    # a sum, a ReLU, and the last layer's product for each hidden unit of a pair
    assert lowered.cost_analysis()["flops"] < 1.1 * first_layer + 6 * pairs * width


def test_a_joint_critic_adds_many_pairs_row_by_row_with_the_same_numbers(monkeypatch):
    critic, (x, y) = JointCritic(hidden=(8, 6)), arrays()
    params = init(critic, x, y)

    def gradients(large):
        monkeypatch.setattr(critics, "LARGE", large)
        loss = jax.value_and_grad(lambda *of: jnp.sum(jnp.sin(critic.apply(*of, method="scores"))), argnums=(0, 1, 2))
        assert ("while" in jax.jit(loss).lower(params, x, y).as_text()) == (large == 0)
        return loss(params, x, y)

    np.testing.assert_allclose(*(ravel_pytree(gradients(large))[0] for large in (0, 2**23)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_joint_first_layer_starts_at_the_scale_of_the_whole_input():
    x, y = jnp.zeros((2, 40)), jnp.zeros((2, 160))
    kernel = JointCritic(hidden=(500,)).init(jax.random.key(0), x, y, method="scores")["params"]["kernel"]
    for part in (kernel[:40], kernel[40:]):
        np.testing.assert_allclose(jnp.var(part), 1 / 200, rtol=0.05)


@pytest.mark.parametrize("make", [SeparableCritic, JointCritic])
def test_dropout_only_where_it_is_asked_for(make):
    x, y = arrays()
    options = {"features": 4} if make is SeparableCritic else {}
    plain, dropping = make(hidden=(8, 8), **options), make(hidden=(8, 8), dropout=0.5, **options)
    params = init(plain, x, y)
    scores = [scored(dropping, params, x, y), scored(plain, params, x, y)]
    np.testing.assert_array_equal(*scores)
    draw = jax.jit(partial(dropping.apply, deterministic=False, method="scores"))
    drawn = [draw(params, x, y, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.allclose(drawn[0], drawn[2])
    assert not np.allclose(drawn[0], scores[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda window: SeparableCritic(hidden=(8,), features=4, window=window),
        lambda window: BilinearCritic(window=window),
        lambda window: JointCritic(hidden=(8,), window=window),
    ],
)
def test_a_window_clips(make):
    x, y = arrays()
    params = init(make(None), x, y)
    scores = np.asarray(scored(make(None), params, x, y))
    low, high = np.quantile(scores, [0.2, 0.7]).tolist()
    for partners in (None, jnp.tile(jnp.arange(7), (5, 1))):
        clipped = scored(make((low, high)), params, x, y, partners)
        np.testing.assert_allclose(clipped, np.clip(scores, low, high), rtol=1e-5)


@pytest.mark.parametrize("name", CRITICS)
def test_bfloat16_in_float32_scores_out(name):
    x, y = (a.astype(jnp.bfloat16) for a in arrays())
    critic = CRITICS[name]
    params = init(critic, x, y)
    if name != "cosine":
        assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    @jax.jit
    def both(x, y):
        return [critic.apply(params, x, y, partners, method="scores") for partners in (None, jnp.arange(5)[:, None])]

    for coarse, fine in zip(both(x, y), both(x.astype(jnp.float32), y.astype(jnp.float32)), strict=True):
        assert coarse.dtype == jnp.float32
        np.testing.assert_allclose(coarse, fine, atol=0.03 * float(jnp.max(jnp.abs(fine))))


JOINTS = {
    "shared": np.diag([0.5, 0.3, 0.2]),
    "asymmetric": np.array([[0.30, 0.02, 0.08], [0.00, 0.25, 0.05], [0.15, 0.00, 0.15]]),
}


def posterior_inputs(joint, n=6, d=4):
    """Representations of two views, and a probe with random weights that makes critics' inputs of them."""
    rng = np.random.default_rng(4)
    h = rng.normal(size=(2, n, d))
    probe = LinearProbe(
        kernel=rng.normal(size=(d, 3)).astype(np.float32), bias=rng.normal(size=3).astype(np.float32),
        mean=rng.normal(size=d).astype(np.float32), scale=np.exp(rng.normal(size=d)).astype(np.float32),
        l2=0.0, temperature=0.7, validation_accuracy=1.0,
    )  # fmt: skip
    sided = not np.all(joint == np.diag(joint.diagonal()))
    return h, probe, measure._Inputs(probe, joint, sided)


@pytest.mark.parametrize("joint", JOINTS.values(), ids=JOINTS)
def test_a_posterior_critic_starts_at_the_density_ratio_of_the_classes(joint):
    """log sum q(c|x) p(c,c') / (p(c) p(c')) q(c'|y), q mixed with the uniform distribution, by a loop.

    The probe is fitted on views x, so Bayes' rule turns its q(c'|y) into that at the frequencies p(c') of y.
    """
    (h_x, h_y), probe, inputs = posterior_inputs(joint)
    p_x, p_y = joint.sum(axis=1), joint.sum(axis=0)

    def posterior(h, weights):
        logits = ((h - probe.mean) / probe.scale) @ probe.kernel + probe.bias
        q = np.exp(logits / probe.temperature) * weights
        return 0.999 * q / q.sum() + 0.001 / 3

    def score(a, b):
        q_a, q_b = posterior(a, 1), posterior(b, p_y / p_x)
        terms = [q_a[i] * joint[i, j] / (p_x[i] * p_y[j]) * q_b[j] for i in range(3) for j in range(3)]
        return np.log(sum(terms))

    expected = pairwise(score, h_x, h_y)
    critic, x, y = PosteriorCritic(measure.INNER, 3, sided=inputs.sided), inputs(h_x), inputs(h_y)
    assert x.dtype == np.float32
    params = critic.init(jax.random.key(0), x, y, method="scores")["params"]
    assert params["trust"] == 1
    alone = params | {"gain": jnp.float32(0)}
    np.testing.assert_allclose(Scorer(critic).scores(alone, x, y), expected, rtol=1e-4, atol=1e-5)
    if inputs.sided:
        assert np.abs(expected - pairwise(score, h_y, h_x).T).max() > 0.1  # x and y are told apart


@pytest.mark.parametrize("joint", JOINTS.values(), ids=JOINTS)
def test_a_posterior_critic_adds_what_its_inner_critic_reads_of_the_representations(joint):
    (h_x, h_y), _, inputs = posterior_inputs(joint)
    critic, x, y = PosteriorCritic(CRITICS["cosine"], 3, sided=inputs.sided), inputs(h_x), inputs(h_y)
    params = init(critic, x, y)["params"]
    both = (jnp.array(h, jnp.float32) for h in (h_x, h_y))
    learned = scored(CRITICS["cosine"], {"params": params["inner"]}, *both)
    known = Scorer(critic).scores(params | {"trust": jnp.float32(1), "gain": jnp.float32(0)}, x, y)
    expected = params["trust"] * known + params["gain"] * learned
    np.testing.assert_allclose(Scorer(critic).scores(params, x, y), expected, rtol=1e-4, atol=1e-5)


def test_equal_critics_have_equal_scorers():
    """Otherwise a program would be compiled twice."""
    one, other = (Scorer(PosteriorCritic(CosineCritic((8,), 4), 3, sided=True)) for _ in range(2))
    assert (one, hash(one)) == (other, hash(other))
    assert one != Scorer(PosteriorCritic(CosineCritic((8,), 4), 3))


def test_a_joint_critic_needs_a_hidden_layer():
    with pytest.raises(InputError, match="hidden"):
        JointCritic(hidden=()).init(jax.random.key(0), *arrays(), method="scores")


def test_each_layer_of_a_joint_critic_has_its_own_dropout_rate():
    x, y = arrays()
    params = init(JointCritic(hidden=(8, 8)), x, y)

    def drawn(*rates: float) -> jax.Array:
        critic, key = JointCritic(hidden=(8, 8), dropout=rates), jax.random.key(0)
        return critic.apply(params, x, y, deterministic=False, method="scores", rngs={"dropout": key})

    plain, first, last = drawn(0.0, 0.0), drawn(0.5, 0.0), drawn(0.0, 0.5)
    np.testing.assert_allclose(plain, scored(JointCritic(hidden=(8, 8)), params, x, y), rtol=1e-5)
    assert not np.allclose(plain, first)
    assert not np.allclose(plain, last)
    assert not np.allclose(first, last)
    with pytest.raises(InputError, match="2 hidden layers, 1 dropout rates: expected one rate for each"):
        drawn(0.5)
