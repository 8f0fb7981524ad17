r"""SGLD against its exact stationary law on quadratics, with the bias of step size and minibatches in it.

With $x = w - w^*$, curvature a, $\theta = 1 - \epsilon a / 2$ and minibatch noise ζ in ∇U, a step is

$$ x_{k+1} = \theta x_k - \tfrac{\epsilon}{2} \zeta_k + \sqrt{\epsilon}\, \xi_k, $$

so the variance of x is the sum of what ξ and ζ give alone; $1 - \theta^2 = \epsilon a (1 - \epsilon a / 4)$.

- Euler–Maruyama: ξ is white with variance 1, so x has $\epsilon / (1 - \theta^2) = 1 / (a (1 - \epsilon a / 4))$.
- Leimkuhler–Matthews: $\xi_k = (\eta_k + \eta_{k+1}) / 2$ has variance ½ and covariance ¼ with its neighbours, so
  $v (1 - \theta^2) = \epsilon (\tfrac12 + 2 \theta \tfrac14)$, that is $v = (\epsilon / 2) / (1 - \theta) = 1 / a$.
- White ζ of variance s²: $(\epsilon^2 s^2 / 4) / (1 - \theta^2)$ more, for both.

Minibatches of B out of n rows without replacement have mean gradients of variance $s^2 = (S^2 / B)(1 - B / n)$, with S²
the sample variance (n − 1 in the denominator) of nβ·gradient over the rows, and two of one epoch have covariance
$c = -S^2 / n$: ζ is not white, an epoch's ζ nearly add up to 0, and a slow direction heats less. After p steps of an
epoch

$$ v_p = \theta^{2p} v_0 + \tfrac{\epsilon^2}{4}
   \Big[ (s^2 - c) \sum_{i<p} \theta^{2i} + c \Big(\sum_{i<p} \theta^i\Big)^2 \Big], $$

and $v_0 = v_M$ at the end of the epoch's M steps, as epochs are independent.

All this needs a Hessian that is the same in every minibatch: inputs are ±1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from arviz_stats import mcse

import llc
from llc import LocalPosterior
from llc.sampling.energies import make_evaluation
from llc.sampling.kernel import center_gradient

NUM_DATA, GAMMA, STEP_SIZE = 256, 5.0, 0.01
NBETA = NUM_DATA / np.log(NUM_DATA)
STIFFNESS = np.array([0.1, 0.5, 1.0, 2.0, 3.0])  # εa; the limit of stability is 4
A = STIFFNESS / STEP_SIZE
CURVATURES = (A - GAMMA) / NBETA

RNG = np.random.default_rng(6)
X = RNG.choice([-1.0, 1.0], size=(NUM_DATA, 5)).astype(np.float32)
Y = (X + 0.7 / np.sqrt(CURVATURES) * RNG.normal(size=X.shape)).astype(np.float32)
CENTER = (X * Y).mean(axis=0, dtype=np.float64)  # least squares, as X² = 1
INTEGRATORS = ["leimkuhler_matthews", "euler_maruyama"]
BATCH_SIZES = {"full": None, "4 batches": 64, "64 batches": 4}


def loss(w, batch):
    """Five linear regressions at once, of different curvature."""
    return 0.5 * jnp.mean(jnp.sum(CURVATURES.astype(np.float32) * (batch["x"] * w - batch["y"]) ** 2, axis=1))


def langevin_variance(integrator):
    return 1 / A if integrator == "leimkuhler_matthews" else 1 / (A * (1 - STIFFNESS / 4))


def batch_noise(batch_size):
    """s² and c, for every coordinate."""
    gradients = NBETA * CURVATURES * (X * (X * CENTER - Y)).astype(np.float64)
    variance = gradients.var(axis=0, ddof=1)
    return variance / batch_size * (1 - batch_size / NUM_DATA), -variance / NUM_DATA


def white_heating(batch_size):
    """What minibatch noise would add to the variance if it were white."""
    return STEP_SIZE * batch_noise(batch_size)[0] / 4 / (A * (1 - STIFFNESS / 4))


def heating(batch_size):
    """What minibatches add to the variance (mean over an epoch), and to x·∇U through the covariance of x and ζ."""
    noise, covariance = batch_noise(batch_size)
    theta, num_batches = 1 - STIFFNESS / 2, NUM_DATA // batch_size
    powers = np.concatenate([np.zeros((1, 5)), np.cumsum(theta ** np.arange(num_batches)[:, None], axis=0)])
    squares = np.concatenate([np.zeros((1, 5)), np.cumsum(theta ** (2 * np.arange(num_batches)[:, None]), axis=0)])
    added = STEP_SIZE**2 / 4 * ((noise - covariance) * squares + covariance * powers**2)
    steps = np.arange(num_batches + 1)[:, None]
    variances = theta ** (2 * steps) * added[-1] / (1 - theta ** (2 * num_batches)) + added
    return variances[1:].mean(axis=0), (-STEP_SIZE / 2 * covariance * powers[:-1]).mean(axis=0)


def exact(integrator, batch_size):
    """E[x²] of every coordinate, E[nβK] and the virial."""
    added, cross = (0.0, 0.0) if batch_size is None else heating(batch_size)
    variance = langevin_variance(integrator) + added
    return variance, 0.5 * NBETA * (CURVATURES * variance).sum(), (A * variance + cross).mean()


def estimate(values):
    """Mean over the draws and its Monte Carlo standard error, for every coordinate."""
    error = mcse(xr.Dataset({"x": values}))["x"].to_numpy()
    return values.mean(("chain", "draw")).to_numpy(), error


@pytest.fixture(scope="module")
def sampled():
    """Draws of each integrator and batch size, made once."""
    cache = {}

    def draw(integrator, batch_size):
        if (integrator, batch_size) not in cache:
            posterior = LocalPosterior(loss, jnp.asarray(CENTER, jnp.float32), {"x": X, "y": Y}, gamma=GAMMA)
            cache[integrator, batch_size] = llc.sample(
                jax.random.key(7),
                posterior,
                llc.SGLD(STEP_SIZE, integrator=integrator),
                num_warmup=640,
                num_draws=24_000,
                batch_size=batch_size,
                keep_params=True,
                progress=False,
            )
        return cache[integrator, batch_size]

    return draw


def squares(draws):
    params = draws["posterior"]["params.w"]
    return (params - xr.DataArray(CENTER, dims=params.dims[-1])) ** 2


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize("batches", BATCH_SIZES)
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_stationary_law(sampled, integrator, batches):
    draws = sampled(integrator, BATCH_SIZES[batches])
    variance, energy, virial = exact(integrator, BATCH_SIZES[batches])
    for values, truth in (
        (squares(draws), variance),
        (draws["posterior"]["llc"], energy),
        (draws["sample_stats"]["virial"], virial),
    ):
        mean, error = estimate(values)
        assert (error < 0.03 * truth).all()
        assert (np.abs(mean - truth) < 4 * error).all()


@pytest.mark.slow
def test_the_integrators_differ_by_more_than_the_tolerance(sampled):
    """Negative control: the value of one integrator rejects the draws of the other at large εa."""
    for integrator, other in (INTEGRATORS, INTEGRATORS[::-1]):
        mean, error = estimate(squares(sampled(integrator, None)))
        rejected = np.abs(mean - langevin_variance(other)) > 4 * error
        assert rejected[STIFFNESS >= 0.5].all()


@pytest.mark.study
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_minibatches_are_not_white_noise(sampled, integrator):
    """Negative control: neither no heating nor that of white noise fits draws from four minibatches an epoch.

    All directions together along what tells them apart: in none of them is the expected distance much above 4 errors.
    """
    mean, error = estimate(squares(sampled(integrator, 64)))
    right = heating(64)[0]
    for wrong in (0.0, white_heating(64)):
        apart, seen = (right - wrong) / error, (mean - langevin_variance(integrator) - wrong) / error
        assert apart @ seen / np.linalg.norm(apart) > 4


@pytest.mark.slow
def test_control_variates_take_off_the_noise_of_the_labels():
    """The Hessian is that of every minibatch, so nothing is left of their noise; without them it shows."""
    shifted = (CENTER + 0.3).astype(np.float32)  # not quite the minimum: ∇L(w*) counts
    posterior = LocalPosterior(loss, jnp.asarray(shifted), {"x": X, "y": Y}, gamma=GAMMA)
    mean = (NBETA * CURVATURES * CENTER + GAMMA * shifted) / A
    for control_variates, right in ((True, True), (False, False)):
        sampler = llc.SGLD(STEP_SIZE, control_variates=control_variates)
        settings = {"num_warmup": 640, "num_draws": 16_000, "batch_size": 4, "keep_params": True, "progress": False}
        draws = llc.sample(jax.random.key(8), posterior, sampler, **settings)
        params = draws["posterior"]["params.w"]
        location, error = estimate(params)
        assert (np.abs(location - mean) < 4 * error).all()
        variance, error = estimate((params - xr.DataArray(mean, dims=params.dims[-1])) ** 2)
        assert (np.abs(variance - 1 / A) < 4 * error).all() == right
        assert (draws["sample_stats"]["num_gradients"] == 1 + control_variates).all()


@pytest.mark.parametrize("rows", [256, 251])  # in pieces of equal length, and with a rest
def test_gradient_at_the_center(rows, monkeypatch):
    monkeypatch.setattr("llc.sampling.energies._EVAL_ROWS", 100)
    data = {"x": X[:rows], "y": Y[:rows]}
    assert (make_evaluation(LocalPosterior(loss, jnp.zeros(5), data), None).rows.rest is None) == (rows == 256)
    found = center_gradient(LocalPosterior(loss, jnp.zeros(5), data))
    exact = -CURVATURES * (data["x"] * data["y"]).mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_heating_tends_to_that_of_white_noise():
    """The closed form of SGLD's docstring is the limit of long epochs, M εa ≫ 1, with an error that falls as 1/M."""
    long = STIFFNESS >= 0.5
    errors = [np.abs(heating(size)[0] / white_heating(size) - 1)[long] for size in (4, 1)]  # M = 64, 256
    np.testing.assert_allclose(errors[1], errors[0] / 4, rtol=0.05, atol=1e-12)
    assert (errors[1] < 0.03).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_size": 0.0}, "finite step_size > 0, got 0.0"),
        ({"step_size": -1.0}, "finite step_size > 0"),
        ({"step_size": float("inf")}, "finite step_size > 0, got inf"),
        ({"step_size": float("nan")}, "finite step_size > 0, got nan"),
        ({"step_size": 1e-50}, "step_size of SGLD needs a number that float32"),
        ({"step_size": 1e39}, "step_size of SGLD needs a number that float32"),
        ({"step_size": 1.0, "integrator": "euler"}, "integrator needs one of .*leimkuhler_matthews.*got 'euler'"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        llc.SGLD(**settings)
