"""Points beside the set of zeros, as training leaves them: what is left of the loss counts as zero, and no more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from theory import two_layer
from zoo_strata import stratum_weights

import llc
from llc.geometry.higher_order.excess import distance_left, excess_loss
from llc.posterior.precision import float64
from tests.support.tiers import weekly

KEY = jax.random.key(0)


def loss_fn(params, batch):
    x, y = batch
    return 0.5 * jnp.sum((x @ params["A"].T @ params["B"].T - y) ** 2, axis=1)


def beside(stratum, distance, *, noise=0.0):
    """A two-layer linear net in random coordinates, off a zero of known ranks by `distance`, in float32."""
    rng = np.random.default_rng(0)
    inputs, hidden, outputs = stratum[:3]
    turns = [np.linalg.qr(rng.normal(size=(size, size)))[0] for size in (inputs, hidden, outputs)]
    first, second = stratum_weights(*stratum)
    first, second = turns[1] @ first @ turns[0], turns[2] @ second @ turns[1].T
    x = rng.normal(size=(100, inputs))
    y = x @ first.T @ second.T + noise * rng.normal(size=(100, outputs))
    params = {"A": first, "B": second}
    params = {name: (w + distance * rng.normal(size=w.shape)).astype(np.float32) for name, w in params.items()}
    return llc.LocalPosterior(loss_fn, params, (x.astype(np.float32), y.astype(np.float32)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "stratum", weekly([(3, 2, 2, 2, 1, 1), (2, 3, 2, 2, 1, 1), (3, 3, 2, 2, 2, 1)], but=[(3, 3, 2, 2, 2, 1)])
)
def test_a_manifold_of_zeros_beside_w_is_certified(stratum):
    posterior = beside(stratum, 1e-7)
    assert 0 < posterior.init_loss() < 1e-12
    bounds = llc.higher_bounds(posterior, key=KEY, progress=False)
    assert bounds.lower == bounds.upper == float(two_layer(*stratum).value)
    certificate = next(record for record in bounds.records if record.name.startswith("certificate"))
    assert "training left" in certificate.assumptions


@pytest.mark.slow
@pytest.mark.parametrize("distance", weekly([1e-7, 3e-6], but=[3e-6]))
@pytest.mark.parametrize(
    "stratum",
    {
        "a quartic": (1, 2, 2, 0, 1, 0),
        "deeper than any manifold beside it": (3, 2, 3, 1, 0, 0),
        "dead directions of the size that training left": (2, 3, 2, 1, 1, 0),
        "many of them": (2, 4, 3, 1, 0, 0),
    }.values(),
)
def test_no_bracket_beside_a_singular_point_misses_its_coefficient(stratum, distance):
    """At 3·10⁻⁶ the dimension of the symmetry's orbit would be that of a point beside it, and the bound too low."""
    bounds = llc.higher_bounds(beside(stratum, distance), key=KEY, progress=False)
    assert bounds.valid
    assert bounds.lower <= float(two_layer(*stratum).value) <= bounds.upper
    certificate = next(record for record in bounds.records if record.name.startswith("certificate"))
    assert certificate.status == "undecided", "negative control: K is not zero there"


def test_what_is_left_is_told_by_the_loss():
    def left(**keywords):
        with float64():
            return distance_left(excess_loss(beside((2, 2, 2, 1, 1, 1), **keywords), KEY), KEY)

    near, far = left(distance=1e-7), left(distance=1e-5)
    assert 1e-8 < near < 1e-6
    assert 30 < far / near < 300
    assert left(distance=0.0) < 1e-7
    assert left(distance=0.0, noise=0.1) == 0, "a loss whose least value is not zero does not tell"
