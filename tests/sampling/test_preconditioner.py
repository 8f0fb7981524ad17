"""RMSProp against its equations in NumPy; all preconditioners where their law is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from arviz_stats import mcse

import llc
from llc import LocalPosterior

DECAY, EPS = 0.9, 0.1
NBETA, GAMMA, STEP_SIZE = 3.0, 2.0, 0.05
SLOPES = np.array([0.1, 1.0, 10.0], np.float32)
DATA = np.zeros((4, 1), np.float32)


def slope_loss(w, batch):
    """A loss whose gradient is the same everywhere: P is constant, whatever the preconditioner remembers."""
    return jnp.sum(SLOPES * w) + 0 * batch[0, 0]


def curved_loss(w, batch):
    return jnp.sum(SLOPES * (0.5 * w**2 + jnp.sin(w))) + 0 * batch[0, 0]


def curved_gradient(w):
    return SLOPES * (w + np.cos(w))


def test_one_preconditioner_on_drift_tether_and_noise():
    """w ← w − ε/2 P (nβ ∇L + γ (w − w*)) + √(εP) ξ, step by step in NumPy, with the bias correction of V."""
    posterior = LocalPosterior(curved_loss, jnp.array([0.3, -0.2, 0.1]), DATA, nbeta=NBETA, gamma=GAMMA)
    sampler = llc.SGLD(STEP_SIZE, preconditioner=llc.RMSProp(decay=DECAY, eps=EPS))
    state = sampler.init(jax.random.key(0), posterior)
    center = w = np.asarray(posterior.center, np.float64)
    second_moment = 0.0
    for count in range(1, 4):
        after, info = sampler.step(jax.random.key(count), posterior, state, DATA)
        gradient = curved_gradient(w)
        second_moment = DECAY * second_moment + (1 - DECAY) * gradient**2
        scale = 1 / (EPS + np.sqrt(second_moment / (1 - DECAY**count)))
        noise = 0.5 * (np.asarray(state.noise, np.float64) + np.asarray(after.noise, np.float64))
        full_gradient = NBETA * gradient + GAMMA * (w - center)
        moved = w - 0.5 * STEP_SIZE * scale * full_gradient + np.sqrt(STEP_SIZE * scale) * noise
        np.testing.assert_allclose(after.position, moved, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(info.grad_norm, np.linalg.norm(full_gradient), rtol=1e-5)
        np.testing.assert_allclose(info.virial, (w - center) @ full_gradient / 3, rtol=1e-4, atol=1e-6)
        state, w = after, moved


def test_first_preconditioner_is_that_of_the_first_gradient():
    """Without the correction V would be (1 − α) g² and the first step 1/√(1 − α) times too long."""
    preconditioner = llc.RMSProp(decay=0.99, eps=EPS)
    gradient = jnp.array([0.5, -2.0])
    state = preconditioner.update(preconditioner.init(jnp.zeros(2)), gradient)
    np.testing.assert_allclose(preconditioner.apply(state, jnp.ones(2)), 1 / (EPS + np.array([0.5, 2.0])), rtol=1e-4)
    half = preconditioner.apply(state, jnp.ones(2), power=0.5)
    np.testing.assert_allclose(half, (EPS + np.array([0.5, 2.0])) ** -0.5, rtol=1e-4)


def test_constant_gradient_is_sgld_with_a_step_of_its_own_for_each_parameter():
    """With P constant, U = nβ c·w + γ/2 w² is Gaussian: mean −nβc/γ, and 1/γ at every εP with Leimkuhler–Matthews.

    A P left out of the noise or of the localization would scale the variance by 1/P or P, which spans 0.1 to 5 here.
    """
    posterior = LocalPosterior(slope_loss, jnp.zeros(3), DATA, nbeta=0.5, gamma=GAMMA)
    preconditioner = llc.RMSProp(decay=DECAY, eps=EPS)
    scale = 1 / (EPS + SLOPES)
    for integrator, variance in {
        "leimkuhler_matthews": np.full(3, 1 / GAMMA),
        "euler_maruyama": 1 / (GAMMA * (1 - 0.2 * scale * GAMMA / 4)),
    }.items():
        draws = llc.sample(
            jax.random.key(4),
            posterior,
            llc.SGLD(0.2, integrator=integrator, preconditioner=preconditioner),
            num_warmup=2000,
            num_draws=20_000,
            keep_params=True,
            progress=False,
        )["posterior"]["params.w"]
        mean = -0.5 * SLOPES / GAMMA
        errors = draws - xr.DataArray(mean, dims=draws.dims[-1])
        for statistic, exact in ((errors, np.zeros(3)), (errors**2, variance)):
            error = mcse(xr.Dataset({"x": statistic}))["x"].to_numpy()
            assert (np.abs(statistic.mean(("chain", "draw")).to_numpy() - exact) < 4 * error).all()
            assert (error < 0.1 * variance).all()


ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
HESSIAN = (ROTATION * [20.0, 1.0, 0.0]) @ ROTATION.T
STIFFNESS = NBETA * HESSIAN + GAMMA * np.eye(3)


def quadratic(mask=None):
    def loss(w, batch):
        x = jnp.concatenate([w["a"], w["b"]])
        return 0.5 * x @ HESSIAN.astype(np.float32) @ x + 0 * batch[0, 0]

    return LocalPosterior(loss, {"a": jnp.zeros(1), "b": jnp.zeros(2)}, DATA, nbeta=NBETA, gamma=GAMMA, mask=mask)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mask"), [("curvature", None), pytest.param("curvature", "b", marks=pytest.mark.study), ("diagonal", None)]
)
def test_a_constant_preconditioner_keeps_the_law(name, mask):
    """Covariance (nβH + γ)⁻¹ at a step size at which SGLD without it is unstable."""
    posterior = quadratic(mask)
    stiffness = STIFFNESS if mask is None else STIFFNESS[1:, 1:]
    step_size = 5 / np.linalg.eigvalsh(stiffness)[-1]
    preconditioner = llc.Curvature.of(llc.spectrum(posterior))
    if name == "diagonal":
        scales = 0.5 / np.diag(stiffness) / step_size  # εP a is at most 0.5 times d = 3
        preconditioner = llc.Diagonal({"a": scales[:1], "b": scales[1:]})
    settings = {"num_warmup": 500, "num_draws": 20_000, "keep_params": True, "progress": False}
    draws = llc.sample(jax.random.key(5), posterior, llc.SGLD(step_size, preconditioner=preconditioner), **settings)
    params = [draws["posterior"][f"params.{leaf}"].to_numpy() for leaf in ("a", "b") if mask in (None, leaf)]
    x = np.concatenate(params, axis=-1)
    products = np.einsum("cdi,cdj->cdij", x, x).reshape(*x.shape[:2], -1)
    error = mcse(xr.Dataset({"x": (("chain", "draw", "entry"), products)}))["x"].to_numpy()
    exact = np.linalg.inv(stiffness).ravel()
    assert (np.abs(products.mean(axis=(0, 1)) - exact) < 4 * error).all()
    assert (error < 0.05 * exact.max()).all()
    assert "arrays of shapes" in draws.attrs["settings"], "settings hold no matrices"
    plain = llc.sample(jax.random.key(5), posterior, llc.SGLD(step_size), **settings | {"num_draws": 500})
    assert not np.isfinite(plain["posterior"]["llc"].to_numpy()).all(), "negative control"


def test_what_does_not_fit_is_refused():
    spectrum = llc.spectrum(quadratic())
    with pytest.raises(ValueError, match=r"damping > 0, in units of h_max, got 0"):
        llc.Curvature.of(spectrum, damping=0.0)
    with pytest.raises(ValueError, match=r"a spectrum with eigenvectors .*got method 'lanczos'"):
        llc.Curvature.of(llc.spectrum(quadratic(), method="lanczos", num_matvecs=2))
    with pytest.raises(ValueError, match="the spectrum of the 2 parameters that move, got d = 3"):
        llc.Curvature.of(spectrum).init({"b": jnp.zeros(2)})
    with pytest.raises(ValueError, match="finite scales > 0, got one of -1"):
        llc.Diagonal({"a": np.array([1.0, -1.0])})
    with pytest.raises(ValueError, match=r"shapes \[\(3,\)\], got \[\(2,\)\]"):
        llc.Diagonal(np.ones(2)).init(jnp.zeros(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"decay": 1.0}, "0 <= decay < 1, got 1.0"), ({"decay": -0.1}, "0 <= decay < 1"), ({"eps": 0.0}, "eps > 0")],
)
def test_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        llc.RMSProp(**settings)


def test_scales_of_other_names_are_refused():
    data = np.ones((30, 2), np.float32)
    posterior = LocalPosterior(lambda w, x: 0.5 * (x @ w["w"]) ** 2, {"w": jnp.zeros(2)}, data, gamma=1.0)
    lengths = {"num_chains": 1, "num_draws": 1, "num_warmup": 0, "progress": False}
    for name in ("w", "v"):
        sampler = llc.SGLD(0.01, preconditioner=llc.Diagonal({name: np.ones(2, np.float32)}))
        if name == "w":
            llc.sample(jax.random.key(0), posterior, sampler, **lengths)
            continue
        with pytest.raises(ValueError, match=r"\['w'\], got \['v'\]"):
            llc.sample(jax.random.key(0), posterior, sampler, **lengths)


def test_vectors_that_are_not_orthonormal_are_refused():
    with pytest.raises(ValueError, match="orthonormal"):
        llc.Curvature(np.ones((2, 2), np.float32), np.ones(2, np.float32))
    llc.Curvature(np.eye(2, dtype=np.float32), np.ones(2, np.float32))
