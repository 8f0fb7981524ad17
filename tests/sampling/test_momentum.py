r"""SGHMC and SGNHT on quadratics: the exact stationary law of the linear recursion, and the thermostat's.

With z = (x, p), curvature a, κ = exp(−αh) and minibatch noise ζ in ∇U, a step is z ← M z + b ζ + c η with

$$ p' = (-ha, 1) z, \quad M = \begin{pmatrix} (1, 0) + \tfrac h2 (1 + \kappa) p' \\ \kappa p' \end{pmatrix}, \quad
   b = -h \begin{pmatrix} \tfrac h2 (1 + \kappa) \\ \kappa \end{pmatrix}, \quad
   c = \sqrt{v} \begin{pmatrix} \tfrac h2 \\ 1 \end{pmatrix}, $$

and the covariance of z at the ends of epochs of m minibatches solves Σ = M^m Σ M^mᵀ + what an epoch adds, with ζ as in
test_sgmcmc.py: variance s², covariance −S²/n between minibatches of an epoch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import llc
from llc.bounds.spectral_measure import Spectrum
from llc.sampling.momentum import energy_friction, flat_rate, predicted_heating
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
from tests.support.tiers import weekly

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


@pytest.mark.slow
@pytest.mark.parametrize("batches", weekly(BATCH_SIZES, but=("4 batches",)))
def test_stationary_law_of_sghmc(batches):
    mean, error = estimate(squares(draw(llc.SGHMC(STEP_SIZE, FRICTION), BATCH_SIZES[batches])))
    truth = stationary_variance(BATCH_SIZES[batches])
    assert (error < 0.03 * truth).all()
    assert (np.abs(mean - truth) < 4 * error).all()
    if batches == "full":
        np.testing.assert_allclose(truth, 1 / A, rtol=1e-12)  # no bias of the step
    else:
        assert not (np.abs(mean - 1 / A) < 4 * error).all(), "negative control: minibatches heat"


@pytest.mark.slow
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
@pytest.mark.study
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


# Synthetic gradient noise: every step's batch is the white noise ζ in ∇U itself.

STIFF = np.array([0.05, 0.2, 0.5, 1.0, 2.0])  # εa
COPIES, NUM_STEPS, REST = 256, 6000, 1000
CURVATURE = np.repeat(STIFF / STEP_SIZE, COPIES)  # a = h + γ at nβ = 1
NOISE = 2.0 / STEP_SIZE  # s²: SGLD's variance would rise by half and more


def noisy_loss(w, batch):
    return 0.5 * jnp.sum((CURVATURE - GAMMA).astype(np.float32) * w**2) + jnp.sum(batch * w)


@functools.cache
def simulated(make, noise):
    """a·E[w²] for each stiffness: its mean over independent copies, and the standard error of that."""
    sampler = make()
    data = np.zeros((2, len(CURVATURE)), np.float32)
    posterior = llc.LocalPosterior(noisy_loss, jnp.zeros(len(CURVATURE)), data, nbeta=1.0, gamma=GAMMA)

    @jax.jit
    def run(key):
        def step(carry, i):
            state, total = carry
            step_key, batch_key = jax.random.split(jax.random.fold_in(key, i))
            zeta = np.sqrt(noise).astype(np.float32) * jax.random.normal(batch_key, (len(CURVATURE),))
            state, _ = sampler.step(step_key, posterior, state, zeta)
            return (state, total + jnp.where(i >= REST, state.position**2, 0.0)), None

        start = sampler.init(key, posterior)
        return jax.lax.scan(step, (start, jnp.zeros(len(CURVATURE))), jnp.arange(REST + NUM_STEPS))[0][1]

    ratios = CURVATURE * np.asarray(run(jax.random.key(5)), np.float64) / NUM_STEPS
    ratios = ratios.reshape(len(STIFF), COPIES)
    return ratios.mean(axis=1), ratios.std(axis=1, ddof=1) / np.sqrt(COPIES)


def weak():
    return llc.SGHMC(STEP_SIZE, 5.0)


def strong():
    return llc.SGHMC(STEP_SIZE, 15.0)


def langevin():
    return llc.SGLD(STEP_SIZE)


def first_order():
    return llc.SGLD(STEP_SIZE, integrator="euler_maruyama")


@pytest.mark.optimized
@pytest.mark.parametrize("make", [weak, strong, langevin])
def test_without_gradient_noise_the_variance_has_no_bias_of_the_step(make):
    mean, error = simulated(make, 0.0)
    assert (error < 0.015).all()
    assert (np.abs(mean - 1) < 4 * error).all()


@pytest.mark.optimized
def test_a_bias_of_the_step_is_found_out():
    """Negative control: Euler–Maruyama at the same steps."""
    mean, error = simulated(first_order, 0.0)
    assert (np.abs(mean - 1) > 4 * error)[STIFF >= 0.2].all()
    assert (np.abs(mean - 1 / (1 - STIFF / 4)) < 4 * error).all()


FRICTIONS = {weak: 5.0, strong: 15.0, langevin: np.inf}


@pytest.mark.optimized
@pytest.mark.parametrize("make", FRICTIONS)
def test_heating_is_as_predicted(make):
    mean, error = simulated(make, NOISE)
    predicted = predicted_heating(STEP_SIZE, FRICTIONS[make], STIFF / STEP_SIZE, NOISE)
    assert (np.abs(mean - 1 - predicted) < 4 * error).all()
    for other, friction in FRICTIONS.items():
        if other is not make:  # negative control
            wrong = predicted_heating(STEP_SIZE, friction, STIFF / STEP_SIZE, NOISE)
            assert (np.abs(mean - 1 - wrong) > 4 * error).all()


@pytest.mark.parametrize("friction", [0.1, 5.0, 20.0, 200.0])
def test_predicted_heating_solves_the_equation_of_the_covariance(friction):
    """At any step, and for noise of any size; the docstring's ratio to SGLD is 2/(αh) where αh is small."""
    h, noise = np.sqrt(STEP_SIZE), 7.0
    kept = np.exp(-friction * h)
    for a in np.append(A, 3.9 / STEP_SIZE):
        kick = np.array([-h * a, 1.0])
        step = np.array([[1.0, 0.0] + h / 2 * (1 + kept) * kick, kept * kick])
        of_batch = -h * np.array([h / 2 * (1 + kept), kept])
        added = scipy.linalg.solve_discrete_lyapunov(step, noise * np.outer(of_batch, of_batch))[0, 0]
        np.testing.assert_allclose(predicted_heating(STEP_SIZE, friction, a, noise), a * added, rtol=1e-9)
    ratio = predicted_heating(STEP_SIZE, friction, A, noise) / predicted_heating(STEP_SIZE, np.inf, A, noise)
    np.testing.assert_allclose(ratio, (1 + kept) / (1 - kept), rtol=1e-12)
    if friction * h < 1:
        np.testing.assert_allclose(ratio, 2 / (friction * h), rtol=0.09)
    assert predicted_heating(STEP_SIZE, friction, 4 / STEP_SIZE, noise) == np.inf


# Friction


def spectrum_of(eigenvalues):
    nodes = np.asarray(eigenvalues, np.float64)[None]
    return Spectrum(nodes, np.ones_like(nodes), nodes.size, "hessian", "dense", np.zeros(0), np.zeros(0))


def energy_variance(step_size, friction, eigenvalues, nbeta, gamma):
    """Σ s² (1 + 2 Σ_k ρ_k²) of the exact recursion, for steps of time h: the asymptotic variance of λ̂ times 2."""
    h = np.sqrt(step_size)
    kept, total = np.exp(-friction * h), 0.0
    for curvature in nbeta * np.asarray(eigenvalues) + gamma:
        kick = np.array([-h * curvature, 1.0])
        step = np.array([[1.0, 0.0] + h / 2 * (1 + kept) * kick, kept * kick])
        added = (1 - kept**2) * np.outer([h / 2, 1.0], [h / 2, 1.0])
        covariance = scipy.linalg.solve_discrete_lyapunov(step, added)
        row = covariance[:, 0] / covariance[0, 0]  # ρ_k = (M^k Σ)_00 / Σ_00
        memory = scipy.linalg.solve_discrete_lyapunov(step, np.outer(row, row))[0, 0]  # Σ_k ρ_k²
        total += ((curvature - gamma) / curvature) ** 2 * (2 * memory - 1)
    return h * total


SPECTRA = {
    "one": ([3.0], 10.0, 1.0),
    "flat and curved": ([0.0, 0.0, 0.01, 0.1, 1.0, 1.0, 10.0], 50.0, 1.0),
    "three decades": (np.logspace(-2, 1, 12), 30.0, 0.5),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_energy_friction_is_the_best_one(name):
    eigenvalues, nbeta, gamma = SPECTRA[name]
    found = energy_friction(spectrum_of(eigenvalues), nbeta=nbeta, gamma=gamma)
    step_size = 0.02 / (nbeta * np.max(eigenvalues) + gamma)
    grid = found * np.linspace(0.5, 2.0, 61)
    variances = [energy_variance(step_size, friction, eigenvalues, nbeta, gamma) for friction in grid]
    assert grid[np.argmin(variances)] == pytest.approx(found, rel=0.06)
    assert found >= np.sqrt(gamma)
    if name == "one":
        assert found == pytest.approx(np.sqrt(nbeta * 3 + gamma))
        critical = energy_variance(step_size, 2 * found, eigenvalues, nbeta, gamma)
        assert critical / min(variances) == pytest.approx(1.25, rel=0.02)


@pytest.mark.parametrize("friction", [0.5, 2.0, 9.0])
def test_flat_directions_relax_at_the_rate_of_the_oscillator(friction):
    """The slowest eigenvalue of (x, p)' = (p, −γx − αp), and of the splitting itself where h is small."""
    gamma, step_size = 1.7, 1e-6
    slowest = np.linalg.eigvals([[0.0, 1.0], [-gamma, -friction]]).real.max()
    found = flat_rate(step_size, friction, gamma)
    assert found == pytest.approx(-slowest * np.sqrt(step_size), rel=1e-12)
    h = np.sqrt(step_size)
    kept, kick = np.exp(-friction * h), np.array([-h * gamma, 1.0])
    step = np.array([[1.0, 0.0] + h / 2 * (1 + kept) * kick, kept * kick])
    assert np.abs(np.linalg.eigvals(step)).max() == pytest.approx(1 - found, abs=1e-5)


@pytest.mark.parametrize("make", [llc.SGHMC, llc.SGNHT])
def test_the_default_friction_is_critical_for_localization(make):
    data = {"x": X, "y": Y}
    posterior = llc.LocalPosterior(loss, jnp.asarray(CENTER, jnp.float32), data, gamma=GAMMA)

    def moved(sampler):
        state = sampler.init(jax.random.key(0), posterior)
        return sampler.step(jax.random.key(1), posterior, state, data)[0].position

    np.testing.assert_allclose(moved(make(STEP_SIZE)), moved(make(STEP_SIZE, 2 * np.sqrt(GAMMA))), rtol=1e-6)
    assert (moved(make(STEP_SIZE)) != moved(make(STEP_SIZE, np.sqrt(GAMMA)))).any(), "negative control"


@pytest.mark.parametrize("make", [llc.SGHMC, llc.SGNHT])
def test_without_localization_friction_has_to_be_given(make):
    posterior = llc.LocalPosterior(loss, jnp.asarray(CENTER, jnp.float32), {"x": X, "y": Y}, gamma=0.0)
    settings = {"num_warmup": 0, "num_draws": 4, "progress": False}
    with pytest.raises(ValueError, match="friction"):
        llc.sample(jax.random.key(0), posterior, make(STEP_SIZE), **settings)
    assert llc.sample(jax.random.key(0), posterior, make(STEP_SIZE, 1.0), **settings)


def test_no_curvature_has_no_friction():
    with pytest.raises(ValueError, match="spectrum"):
        energy_friction(spectrum_of([0.0, 0.0]), nbeta=10.0, gamma=1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: llc.SGHMC(0.0, 1.0), "SGHMC needs a finite step_size > 0, got 0.0"),
        (lambda: llc.SGHMC(1e-3, -1.0), "SGHMC needs a finite friction > 0, got -1.0"),
        (lambda: llc.SGHMC(1e-3, 1.0, noise=-1.0), "noise needs"),
        (lambda: llc.SGNHT(np.nan, 1.0), "SGNHT needs a finite step_size > 0, got nan"),
        (lambda: llc.SGLD(jnp.asarray(-1.0)), "SGLD needs a finite step_size > 0, got -1.0"),
        (lambda: llc.SGNHT(1e-3, 0.0), "SGNHT needs a finite friction > 0, got 0.0"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
