"""Linear regression at its least-squares solution: a quadratic loss whose examples differ in their gradients."""

import jax.numpy as jnp
import numpy as np

import llc

CURVATURES = np.array([4.0, 1.0, 0.25])


def regression(num_data=6000, noise=1.0):
    """The Hessian XᵀX/n is diag(CURVATURES), residuals stay."""
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.normal(size=(num_data, 3)))[0] * np.sqrt(num_data * CURVATURES)
    residual = noise * rng.normal(size=num_data)
    residual -= x @ np.linalg.lstsq(x, residual, rcond=None)[0]
    data = x.astype(np.float32), residual.astype(np.float32)

    def losses(w, batch):
        return 0.5 * (batch[0] @ w - batch[1]) ** 2

    return llc.LocalPosterior(losses, jnp.zeros(3), data)


def heating(posterior, step_size, batch_size):
    """Predicted relative heating of λ̂ by the examples' gradients, in closed form: ε s² / 4 a direction."""
    x, residual = (np.asarray(part, np.float64) for part in posterior.data)
    nbeta, gamma = float(posterior.nbeta), float(posterior.gamma)
    shares = 0.5 * nbeta * CURVATURES / (nbeta * CURVATURES + gamma)
    variances = (x * residual[:, None]).var(axis=0)
    return step_size * nbeta**2 * np.sum(shares * variances) / (4 * batch_size * shares.sum())
