import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.geometry.curvature import operators
from llc.geometry.features.behavioral_gradients import behavioral_gradients
from llc.geometry.features.hessian_identity import hessian_identity
from llc.geometry.features.units import layer_ranks, unit_states
from tests.support.models import deep_linear
from tests.support.tiers import weekly, weekly_cases

INCOMING, OUTGOING = {"weight": 0}, {"read": 0}


def _relu_net(params, inputs):
    return jax.nn.relu(inputs @ params["weight"].T) @ params["read"] + params["bias"]


def _relu_params(dtype=np.float64):
    """2-3-1 with a bias of the output; every unit is active on inputs that span the plane."""
    angles = np.array([0.9, 2.0, -1.8])
    weight = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array([[1.0], [0.7], [1.3]])
    return {"weight": weight.astype(dtype), "read": np.array([1.0, -0.8, 0.5], dtype), "bias": np.array(0.2, dtype)}


# On one side of a line, so that a unit can be dead off its kink; each unit switches at another angle.
_ANGLES = np.linspace(-1.4, 1.4, 10)
_RADII = np.array([1.0, 0.4, 1.3, 0.8, 1.1, 0.5, 1.6, 0.9, 0.7, 1.2])
RELU_INPUTS = _RADII[:, None] * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
DEAD = np.array([-1.0, 0.0])


def _linear(params, inputs):
    return inputs @ params


def _jacobian(predict_fn, params, inputs):
    """G by jax.jacobian of all outputs at once, in float64."""
    with jax.enable_x64(True):
        flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params))
        return np.asarray(jax.jacobian(lambda z: predict_fn(unravel(z), inputs).ravel())(flat)).T


def _two_outputs(params, inputs):
    return jnp.tanh(inputs @ params["a"]) @ params["b"]


@pytest.mark.parametrize("num_inputs", [1, 13], ids=lambda n: f"n={n}")
def test_matrix_and_products_match_the_dense_jacobian(num_inputs, monkeypatch):
    monkeypatch.setattr(operators, "_PIECE", 5)  # pieces of 6 inputs and a rest of one
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=(4, 2))}
    inputs = rng.normal(size=(num_inputs, 3))
    exact = _jacobian(_two_outputs, params, inputs)
    gradients = behavioral_gradients(_two_outputs, params, inputs)
    tolerance = 1e-14 * np.abs(exact).max() * max(exact.shape)
    np.testing.assert_allclose(gradients.matrix, exact, rtol=0, atol=tolerance)
    u, v = rng.normal(size=exact.shape[1]), rng.normal(size=exact.shape[0])
    np.testing.assert_allclose(gradients.product(u), exact @ u, rtol=0, atol=10 * tolerance)
    np.testing.assert_allclose(gradients.transpose_product(v), exact.T @ v, rtol=0, atol=10 * tolerance)
    np.testing.assert_allclose(gradients.feature_gram, exact @ exact.T / num_inputs, rtol=0, atol=10 * tolerance)
    sizes = np.linalg.eigvalsh(gradients.feature_gram)[::-1][: len(gradients.feature_sizes)]
    np.testing.assert_allclose(gradients.feature_sizes, sizes, rtol=0, atol=1e-13 * sizes[0])
    assert not jax.config.jax_enable_x64


def test_mask_takes_rows():
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=(4, 2))}
    inputs = rng.normal(size=(5, 3))
    exact = _jacobian(_two_outputs, params, inputs)
    moves = np.eye(3, 4, dtype=bool)
    rows = np.concatenate([np.flatnonzero(moves), np.arange(12, 20)])
    gradients = behavioral_gradients(_two_outputs, params, inputs, mask={"a": moves, "b": True})
    np.testing.assert_allclose(gradients.matrix, exact[rows], rtol=0, atol=1e-14 * np.abs(exact).max() * 20)
    assert [layer.num_params for layer in layer_ranks(gradients)] == [3, 8]
    with pytest.raises(ValueError, match="params that all move, got 'a'"):
        unit_states(gradients, {"a": 1}, {"b": 0})


# A unit that is read adds the 2 functions 1[w·x > 0] x, one with zero output weight its activation alone, a dead one
# none, a duplicate none beyond its twin; the bias adds 1. Generic: 2 + 2 + 2 + 1 = 7 of 10 params.
UNITS = {
    "generic": (lambda w, v: None, 7, (), (), ()),
    "one dead": (lambda w, v: w.__setitem__(1, DEAD), 5, (1,), (), ()),
    "two dead": (lambda w, v: w.__setitem__([1, 2], DEAD), 3, (1, 2), (), ()),
    "duplicate": (lambda w, v: w.__setitem__(2, w[0]), 5, (), (), ((0, 2),)),
    "rescaled duplicate": (lambda w, v: w.__setitem__(2, 3 * w[0]), 5, (), (), ((0, 2),)),
    "all duplicates": (lambda w, v: w.__setitem__(slice(None), w[0]), 3, (), (), ((0, 1, 2),)),
    "unread": (lambda w, v: v.__setitem__(1, 0.0), 6, (), (1,), ()),
    "none read": (lambda w, v: v.__setitem__(slice(None), 0.0), 4, (), (0, 1, 2), ()),
    "duplicate, and one unread": (
        lambda w, v: (w.__setitem__(2, w[0]), v.__setitem__(1, 0.0)),
        4,
        (),
        (1,),
        ((0, 2),),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.study)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("name", UNITS)
def test_units_and_ranks_of_a_small_relu_net(name, dtype):
    change, rank, dead, unread, duplicates = UNITS[name]
    params = _relu_params()
    change(params["weight"], params["read"])
    params = {key: np.asarray(value, dtype) for key, value in params.items()}
    gradients = behavioral_gradients(_relu_net, params, RELU_INPUTS)
    assert gradients.rank == rank
    assert gradients.max_manifold_dim == 10 - rank
    assert gradients.gap > (10 if dtype == np.float64 else 4)
    states = unit_states(gradients, INCOMING, OUTGOING)
    assert (states.dead, states.unread, states.duplicates) == (dead, unread, duplicates)
    distinct = 3 - len(dead) - len(unread) - sum(len(group) - 1 for group in duplicates)
    assert states.num_distinct == distinct
    assert [layer.path for layer in layer_ranks(gradients)] == ["bias", "read", "weight"]
    np.testing.assert_allclose(gradients.leverage.sum(), rank, rtol=1e-12)


def test_dead_and_unread_are_told_apart():
    """Negative control: the generic net has no such units, and a small tolerance finds no near duplicates."""
    params = _relu_params()
    params["weight"][2] = params["weight"][0] + [0.0, 1e-3]
    gradients = behavioral_gradients(_relu_net, params, RELU_INPUTS)
    assert unit_states(gradients, INCOMING, OUTGOING).duplicates == ()
    assert unit_states(gradients, INCOMING, OUTGOING, tolerance=1e-2).duplicates == ((0, 2),)


def test_rank_at_a_singular_point_is_no_dimension():
    """f = ab x: the zero set of f at (0, 0) is a cross of dimension 1, N − rank G = 2; at (1, 1) both are 1."""

    def predict_fn(params, inputs):
        return params["a"] * params["b"] * inputs

    for value, dimension in ((0.0, 2), (1.0, 1)):
        params = {"a": np.array(value), "b": np.array(value)}
        gradients = behavioral_gradients(predict_fn, params, np.array([1.0, 2.0]))
        assert gradients.max_manifold_dim == dimension
    empty = behavioral_gradients(predict_fn, {"a": np.zeros(()), "b": np.zeros(())}, np.array([1.0, 2.0]))
    assert (empty.rank, empty.threshold, empty.leverage.sum()) == (0, 0, 0)
    assert "rank G     0 of 2 × 2" in str(empty)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("widths", "ranks"),
    weekly_cases(
        {
            "full": ([5, 3, 4, 5], [3, 3, 3]),
            "rank 2": ([6, 4, 4, 6], [4, 2, 4]),
            "zero": ([3, 2, 3], [0, 0]),
        },
        but=("rank 2",),
    ),
)
def test_rank_of_deep_linear_nets(widths, ranks):
    """rank G = Σ (u_i − u_{i−1}) v_i with u_i = rk(W_{i+1} … W_L), v_i = rk(W_1 … W_{i−1}) (docs/theory.md §3)."""
    posterior = deep_linear(widths, ranks, num_data=20)
    depth = len(ranks)
    weights = [np.asarray(w, np.float64) for w in posterior.center]

    def product_rank(matrices, width):
        return int(np.linalg.matrix_rank(functools.reduce(np.matmul, matrices, np.eye(width)), tol=1e-4))

    after = [0] + [product_rank(weights[i + 1 :], widths[i + 1]) for i in range(depth)]
    before = [product_rank(weights[:i], widths[0]) for i in range(depth)]
    exact = sum((after[i + 1] - after[i]) * before[i] for i in range(depth))
    gradients = behavioral_gradients(
        lambda params, x: functools.reduce(jnp.matmul, params, x), posterior.center, posterior.data[0]
    )
    assert gradients.rank == exact
    # A layer alone is linear in its weights: rank of what comes before times rank of what comes after.
    assert [layer.rank for layer in layer_ranks(gradients)] == [rank * after[i + 1] for i, rank in enumerate(before)]
    assert max(layer.rank for layer in layer_ranks(gradients)) <= exact


def test_singular_values_decide_where_eigenvalues_cannot():
    """Features of size 1 and 1e-18: σ = 1 and 1e-9 are told from zero, their squares are not."""
    inputs = np.array([[1.0, 0.0, 0.0], [0.0, 1e-9, 0.0], [1.0, 1e-9, 0.0]])
    gradients = behavioral_gradients(_linear, np.ones(3), inputs)
    assert gradients.rank == 2
    assert np.linalg.matrix_rank(gradients.feature_gram, hermitian=True) == 1
    np.testing.assert_allclose(gradients.feature_sizes[1], 1e-18 / 3 * 1.5, rtol=1e-6)
    assert (gradients.num_features(1e-20), gradients.num_features(1e-10)) == (2, 1)
    # Where the sizes run through the floor, the rank is no firm number, and the text says so.
    scattered = behavioral_gradients(_linear, np.ones(20), np.diag(10.0 ** -np.arange(20)))
    assert (scattered.rank, "no gap in the singular values" in str(scattered)) == (15, True)
    assert "gap of" in str(behavioral_gradients(_linear, np.ones(3), np.eye(3)[[0, 0, 1]]))
    # Params in float32 are known to 1e-7 only, and so is what depends on them.
    assert behavioral_gradients(_linear, np.ones(3, np.float32), inputs).rank == 1


def test_dependent_inputs():
    """Input 2 is a multiple of input 0; 1 is independent of all; 3 has no gradient."""
    inputs = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [2.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    gradients = behavioral_gradients(_linear, np.ones(3), inputs)
    np.testing.assert_array_equal(gradients.dependent_inputs, [True, False, True, True])
    np.testing.assert_allclose(gradients.leverage, [0.2, 1.0, 0.8, 0.0], rtol=0, atol=1e-14)
    two = behavioral_gradients(lambda w, x: x @ w, np.ones((3, 2)), inputs)
    assert two.dependent_inputs.shape == (4, 2)
    np.testing.assert_array_equal(two.dependent_inputs.all(axis=1), [True, False, True, True])


SCALES = {
    "sum": (lambda f, y: jnp.sum((f - y) ** 2, axis=-1), 2.0),
    "half": (lambda f, y: 0.5 * jnp.sum((f - y) ** 2, axis=-1), 1.0),
    "mean of two outputs": (lambda f, y: jnp.mean((f - y) ** 2), 1.0),
}


def _tanh_posterior(loss, noise):
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(2, 2)).astype(np.float32), "b": rng.normal(size=(2, 2)).astype(np.float32)}
    params["a"][:, 1] = params["a"][:, 0]  # a duplicate: rank 6 of 8 (2 of b's rows and 2 of a's are equal)
    inputs = rng.normal(size=(30, 2))
    targets = np.tanh(inputs @ params["a"].astype(float)) @ params["b"].astype(float)
    targets = targets + noise * rng.normal(size=targets.shape)
    return llc.LocalPosterior(
        lambda params, batch: loss(_two_outputs(params, batch[0]), batch[1]),
        params,
        (inputs, targets),
        predict_fn=lambda params, batch: _two_outputs(params, batch[0]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(SCALES, but=("sum",)))
def test_hessian_is_the_gram_matrix_at_zero_residual(name):
    loss, factor = SCALES[name]
    identity = hessian_identity(_tanh_posterior(loss, 0.0))
    assert identity.holds
    assert identity.difference < 1e-12
    assert identity.residual < 1e-15
    assert identity.factor == pytest.approx(factor, rel=1e-10)
    assert identity.hessian_rank == identity.gradient_rank < 8


@pytest.mark.slow
def test_residuals_break_the_identity():
    """H gains Σ residual · ∇²f: its rank grows beyond that of G, and negative eigenvalues appear."""
    loss, _ = SCALES["sum"]
    exact, identity = (hessian_identity(_tanh_posterior(loss, noise)) for noise in (0.0, 0.5))
    assert not identity.holds
    assert identity.hessian_rank > identity.gradient_rank == exact.gradient_rank
    assert identity.smallest < -1e-4
    assert identity.difference > 1e-3
    # The mean of 30 squares of two residuals of sd ½: √(2/4) within four of its standard errors.
    assert abs(identity.residual - np.sqrt(0.5)) < 4 * np.sqrt(0.5) / np.sqrt(4 * 30)
    assert "H ≠ 2/n G Gᵀ" in str(identity)
    assert "H = 2/n G Gᵀ" in str(exact)


def test_the_identity_is_of_squared_error():
    posterior = _tanh_posterior(lambda f, y: jnp.sum((f - y) ** 4, axis=-1), 0.5)
    with pytest.raises(ValueError, match="squared error of the outputs"):
        hessian_identity(posterior)
    with pytest.raises(ValueError, match="got a posterior without predict_fn"):
        hessian_identity(deep_linear([3, 2, 3], [2, 2]))


@pytest.mark.parametrize(
    ("incoming", "outgoing", "tolerance", "message"),
    [
        ({"weights": 0}, OUTGOING, 1e-6, "got 'weights' and 0; paths and shapes are"),
        ({"weight": 2}, OUTGOING, 1e-6, "got 'weight' and 2"),
        ({"weight": 1}, OUTGOING, 1e-6, "the same number of units, got 2 and 3"),
        ({"weight": 1, "read": 0}, OUTGOING, 1e-6, "one and the same number of units, got \\[2, 3\\]"),
        ({}, OUTGOING, 1e-6, "one and the same number of units"),
        (INCOMING, OUTGOING, 0.0, "tolerance needs a"),
    ],
    ids=["path", "axis", "numbers", "numbers within", "nothing", "tolerance"],
)
def test_wrong_units(incoming, outgoing, tolerance, message):
    gradients = behavioral_gradients(_relu_net, _relu_params(), RELU_INPUTS)
    with pytest.raises(ValueError, match=message):
        unit_states(gradients, incoming, outgoing, tolerance=tolerance)


@pytest.mark.slow
def test_wrong_models():
    inputs = np.ones((4, 3))
    with pytest.raises(ValueError, match="need to depend on the params that move"):
        behavioral_gradients(lambda params, x: x, np.ones(3), inputs)
    with pytest.raises(ValueError, match="params need real floating-point array leaves"):
        behavioral_gradients(_linear, np.ones(3, int), inputs)
    for wrong in (np.ones((0, 3)), np.ones(()), (np.ones((4, 3)), np.ones(5)), ()):
        with pytest.raises(ValueError, match="inputs need arrays with the same leading axis"):
            behavioral_gradients(_linear, np.ones(3), wrong)
    normalized = behavioral_gradients(lambda params, x: (x - x.mean(axis=0)) @ params, np.ones(3), np.eye(4, 3))
    with pytest.raises(ValueError, match="treat every input by itself"):
        _ = normalized.rank
    wide = behavioral_gradients(lambda params, x: jnp.sum(params) * x, np.ones(30_000), np.ones((20_000, 1)))
    with pytest.raises(ValueError, match=r"needs 4\.5 GiB, got a limit of 4 GiB"):
        _ = wide.matrix
    np.testing.assert_allclose(wide.transpose_product(np.ones(30_000)), 30_000.0)


def test_inputs_on_another_mesh_give_the_same_gradients():
    params, inputs = np.array([1.0, -2.0], np.float32), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]], np.float32)
    mesh, replicated = jax.make_mesh((1,), ("rows",)), jax.sharding.PartitionSpec()
    placed = jax.device_put((params, inputs), jax.sharding.NamedSharding(mesh, replicated))
    for pair in ((params, inputs), placed, (placed[0], inputs), (params, placed[1])):
        found = behavioral_gradients(lambda w, x: x @ w, *pair)
        np.testing.assert_allclose(found.matrix, inputs.T, rtol=1e-12)
        [layer] = llc.layer_information(lambda w, x: [x @ w], *pair)
        assert layer.num_states == 3
