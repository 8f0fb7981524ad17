r"""SGHMC and SGNHT on quadratics: the exact stationary law of the linear recursion, and the thermostat's.

With z = (x, p), curvature a, κ = exp(−αh) and minibatch noise ζ in ∇U, a step is z ← M z + b ζ + c η with

$$ p' = (-ha, 1) z, \quad M = \begin{pmatrix} (1, 0) + \tfrac h2 (1 + \kappa) p' \\ \kappa p' \end{pmatrix}, \quad
   b = -h \begin{pmatrix} \tfrac h2 (1 + \kappa) \\ \kappa \end{pmatrix}, \quad
   c = \sqrt{v} \begin{pmatrix} \tfrac h2 \\ 1 \end{pmatrix}, $$

and the covariance of z at the ends of epochs of m minibatches solves Σ = M^m Σ M^mᵀ + what an epoch adds, with ζ as in
test_sgmcmc.py: variance s², covariance −S²/n between minibatches of an epoch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import llc
from tests.sampling.test_sgmcmc import (
    BATCH_SIZES,
    CENTER,
    GAMMA,
    NUM_DATA,
    STEP_SIZE,
    A,
    X,
    Y,
    batch_noise,
    estimate,
    loss,
    squares,
)

FRICTION = 20.0


def stationary_variance(batch_size, noise=0.0, friction=FRICTION):
    """E[x²] of every coordinate, averaged over an epoch."""
    return np.array([_variance(i, batch_size, noise, friction) for i in range(len(A))])


def _variance(i, batch_size, noise, friction):
    h = np.sqrt(STEP_SIZE)
    kept = np.exp(-friction * h)
    kick = np.array([-h * A[i], 1.0])
    step = np.array([[1.0, 0.0] + h / 2 * (1 + kept) * kick, kept * kick])
    of_batch = -h * np.array([h / 2 * (1 + kept), kept])
    of_friction = np.array([h / 2, 1.0])
    added = (1 - kept**2 * (1 + h**2 * noise)) * np.outer(of_friction, of_friction)
    if batch_size is None:
        return scipy.linalg.solve_discrete_lyapunov(step, added)[0, 0]
    variance, covariance = (part[i] for part in batch_noise(batch_size))
    added = added + (variance - covariance) * np.outer(of_batch, of_batch)
    total, line, power = np.zeros((2, 2)), np.zeros(2), np.eye(2)
    seen = []  # what p steps of an epoch add, and M^p
    for _ in range(NUM_DATA // batch_size):
        total, line, power = total + power @ added @ power.T, line + power @ of_batch, step @ power
        seen.append((total + covariance * np.outer(line, line), power))
    start = scipy.linalg.solve_discrete_lyapunov(power, seen[-1][0])
    return np.mean([(power @ start @ power.T + more)[0, 0] for more, power in seen])


def draw(sampler, batch_size):
    posterior = llc.LocalPosterior(loss, jnp.asarray(CENTER, jnp.float32), {"x": X, "y": Y}, gamma=GAMMA)
    settings = {"num_warmup": 640, "num_draws": 12_000, "keep_params": True, "progress": False}
    return llc.sample(jax.random.key(7), posterior, sampler, batch_size=batch_size, **settings)


@pytest.mark.parametrize("batches", BATCH_SIZES)
def test_stationary_law_of_sghmc(batches):
    mean, error = estimate(squares(draw(llc.SGHMC(STEP_SIZE, FRICTION), BATCH_SIZES[batches])))
    truth = stationary_variance(BATCH_SIZES[batches])
    assert (error < 0.03 * truth).all()
    assert (np.abs(mean - truth) < 4 * error).all()
    if batches == "full":
        np.testing.assert_allclose(truth, 1 / A, rtol=1e-12)  # no bias of the step
    else:
        assert not (np.abs(mean - 1 / A) < 4 * error).all(), "negative control: minibatches heat"


def test_known_noise_is_taken_off():
    """At weak friction: at a strong one the noise of a kick is in the position before friction can take it off."""
    noise = batch_noise(64)[0][1]
    mean, error = estimate(squares(draw(llc.SGHMC(STEP_SIZE, 5.0, noise=noise), 64)))
    truth, hot = stationary_variance(64, noise, 5.0), stationary_variance(64, 0.0, 5.0)
    assert (np.abs(mean - truth) < 4 * error).all()
    assert not (np.abs(mean - hot) < 4 * error).all(), "negative control: with nothing taken off"
    assert abs(A[1] * truth[1] - 1) < 0.2 * (A[1] * hot[1] - 1)


def test_the_thermostat_is_exact_without_minibatches():
    mean, error = estimate(squares(draw(llc.SGNHT(STEP_SIZE, FRICTION), None)))
    assert (error < 0.03 / A).all()
    assert (np.abs(mean - 1 / A) < 4 * error).all()


@pytest.mark.slow
def test_the_thermostat_takes_off_noise_that_it_does_not_know():
    """One noise for all directions heats SGHMC by 37 %; what is left is of second order in the heat h² s² of a kick."""
    rng = np.random.default_rng(3)
    x = rng.choice([-1.0, 1.0], size=(4096, 20)).astype(np.float32)
    y = (x + 0.2 * rng.normal(size=x.shape)).astype(np.float32)
    center = jnp.asarray((x * y).mean(axis=0))
    posterior = llc.LocalPosterior(
        lambda w, batch: 0.5 * jnp.mean(jnp.sum((batch["x"] * w - batch["y"]) ** 2, axis=1)),
        center,
        {"x": x, "y": y},
        gamma=GAMMA,
    )
    nbeta = float(posterior.nbeta)
    curvature = nbeta + GAMMA
    step_size, friction = 0.1 / curvature, 0.5 * np.sqrt(curvature)
    heat = step_size * (0.2 * nbeta) ** 2 / 16
    exact = 0.5 * 20 * nbeta / curvature
    settings = {"batch_size": 16, "num_warmup": 2000, "num_draws": 3000, "thinning": 4, "progress": False}
    cool = llc.mean_energy(llc.sample(jax.random.key(0), posterior, llc.SGNHT(step_size, friction), **settings))
    hot = llc.mean_energy(llc.sample(jax.random.key(0), posterior, llc.SGHMC(step_size, friction), **settings))
    assert abs(cool.value - exact) < 4 * cool.mcse + heat**2 * exact
    assert cool.mcse < 0.01 * exact
    assert hot.value > 1.3 * exact


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: llc.SGHMC(0.0, 1.0), "SGHMC needs a finite step_size > 0, got 0.0"),
        (lambda: llc.SGHMC(1e-3, -1.0), "SGHMC needs a finite friction > 0, got -1.0"),
        (lambda: llc.SGHMC(1e-3, 1.0, noise=-1.0), "SGHMC needs a finite noise >= 0, the variance of ∂U/∂w"),
        (lambda: llc.SGNHT(np.nan, 1.0), "SGNHT needs a finite step_size > 0, got nan"),
        (lambda: llc.SGLD(jnp.asarray(-1.0)), "SGLD needs a finite step_size > 0, got -1.0"),
        (lambda: llc.SGNHT(1e-3, 0.0), "SGNHT needs a finite friction > 0, got 0.0"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
