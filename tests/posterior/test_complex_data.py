"""Losses of complex data, such as Fourier coefficients: their imaginary part counts in every precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc


def _least_squares(rng, num_data=200):
    """Inputs and targets, and w* of ½|xᵀw − y|²: a quadratic, whose Hessian is that of real and imaginary parts."""
    x, y = (rng.normal(size=(num_data, *size)) + 1j * rng.normal(size=(num_data, *size)) for size in ((3,), ()))
    real = [np.concatenate([part.real, part.imag]) for part in (x, y)]
    return x.astype(np.complex64), y.astype(np.complex64), np.linalg.lstsq(*real)[0].astype(np.float32)


def _loss(w, batch):
    residual = batch[0] @ w.astype(batch[0].dtype) - batch[1]
    return 0.5 * (residual.real**2 + residual.imag**2)


@pytest.mark.parametrize("method", ["dense", "deflated"])
def test_loss_and_curvature_are_those_of_both_parts(method):
    x, y, w = _least_squares(np.random.default_rng(0))
    posterior = llc.LocalPosterior(_loss, jnp.asarray(w), (x, y), gamma=1.0)
    curvatures = np.linalg.eigvalsh((x.conj().T @ x).real / len(x))
    assert posterior.init_loss() == pytest.approx(0.5 * np.mean(np.abs(x @ w - y) ** 2), rel=1e-5)
    scale = 1.0 / float(posterior.nbeta)
    quad = 0.5 * np.sum(curvatures / (curvatures + scale))
    assert llc.spectrum(posterior, method=method).quad(scale) == pytest.approx(quad, rel=1e-4)
    of_real_part = np.linalg.eigvalsh(x.real.T @ x.real / len(x))
    assert 0.5 * np.sum(of_real_part / (of_real_part + scale)) != pytest.approx(quad, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 32])
def test_lambda_is_exact(batch_size):
    x, y, w = _least_squares(np.random.default_rng(0))
    posterior = llc.LocalPosterior(_loss, jnp.asarray(w), (x, y), gamma=1.0)
    lengths = {"num_draws": 500, "num_warmup": 200, "batch_size": batch_size}
    spectrum = llc.spectrum(posterior)
    draws = llc.sample(jax.random.key(0), posterior, llc.SGLD(1e-3), spectrum=spectrum, progress=False, **lengths)
    mean = llc.mean_energy(draws)
    assert abs(mean.value - spectrum.quad(1.0 / float(posterior.nbeta))) < 4 * mean.mcse
