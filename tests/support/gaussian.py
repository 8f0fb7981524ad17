"""A linear regression at its least-squares solution, where covariances, influence and responses have closed forms."""

import json

import numpy as np
import xarray as xr
from arviz_base import from_dict

NBETA, GAMMA = 30.0, 2.0


class Regression:
    """½ (x·w − y)² of `num_data` rows and `num_probes` others, at the minimum w* of the first."""

    def __init__(self, num_data=60, dim=4, num_probes=5, *, noise=0.7, seed=0):
        rng = np.random.default_rng(seed)
        self.x, self.probe_x = (rng.normal(size=(rows, dim)) * [2.0, 1.0, 0.5, 0.3] for rows in (num_data, num_probes))
        truth = rng.normal(size=dim)
        self.y, self.probe_y = (x @ truth + noise * rng.normal(size=len(x)) for x in (self.x, self.probe_x))
        self.center = np.linalg.lstsq(self.x, self.y, rcond=None)[0]
        self.hessian = self.x.T @ self.x / num_data
        self.probe_hessian = self.probe_x.T @ self.probe_x / num_probes
        self.residual, self.probe_residual = self.x @ self.center - self.y, self.probe_x @ self.center - self.probe_y
        self.probe_gradient = self.probe_residual @ self.probe_x / num_probes

    def covariance(self, moves=slice(None), extra=0.0):
        """Σ = (nβ (H + extra) + γ)⁻¹ of the parameters that move."""
        curvature = (self.hessian + extra)[moves, moves]
        return np.linalg.inv(NBETA * curvature + GAMMA * np.eye(len(curvature)))

    def loss_covariances(self):
        """Cov of the losses of data rows and probes: gᵢᵀΣgⱼ + ½ tr(ΣHᵢΣHⱼ)."""
        products = self.x @ self.covariance() @ self.probe_x.T
        return np.outer(self.residual, self.probe_residual) * products + 0.5 * products**2

    def loss_variances(self):
        """Variances of the losses of data rows, and of probes."""
        sigma = self.covariance()
        pairs = ((self.x, self.residual), (self.probe_x, self.probe_residual))
        spreads = [(np.einsum("ij,jk,ik->i", x, sigma, x), r) for x, r in pairs]
        return tuple(r**2 * s + 0.5 * s**2 for s, r in spreads)

    def susceptibility(self, moves):
        """−(E_C[φΔL] − E_C[φ] E_W[ΔL]) of the parameters that move, to a shift towards the probes' mean loss."""
        sigma, difference = self.covariance(moves), self.probe_hessian - self.hessian
        h, d = self.hessian[moves, moves], difference[moves, moves]
        energy, shift = 0.5 * np.trace(h @ sigma), 0.5 * np.trace(d @ sigma)
        joint = energy * shift + 0.5 * np.trace(h @ sigma @ d @ sigma)
        return -(joint - energy * 0.5 * np.trace(difference @ self.covariance()))

    def response(self, moves, h):
        """r(h) = E_C[φ e^(−nβhΔL)] / E_W[e^(−nβhΔL)], from Gaussian integrals of both."""
        energy, log_component = self._tilted(moves, h)
        return energy * np.exp(log_component - self._tilted(slice(None), h)[1])

    def _tilted(self, moves, h):
        """Mean of φ under the tilted Gaussian, and log E[e^(−nβhΔL)]."""
        before, after = self.covariance(moves), self.covariance(moves, h * (self.probe_hessian - self.hessian))
        mean = -NBETA * h * after @ self.probe_gradient[moves]
        energy = 0.5 * (np.trace(self.hessian[moves, moves] @ after) + mean @ self.hessian[moves, moves] @ mean)
        log = 0.5 * (np.linalg.slogdet(after)[1] - np.linalg.slogdet(before)[1] + mean @ np.linalg.solve(after, mean))
        return energy, log

    def draws(self, moves=slice(None), *, num_chains=4, num_draws=2000, seed=1, phi=0.0):
        """Draws of llc from the exact posterior, autoregressive with `phi`, with observables by row and of the mean."""
        rng, sigma = np.random.default_rng(seed), self.covariance(moves)
        normal = rng.normal(size=(num_chains, num_draws, len(sigma)))
        for i in range(1, num_draws):
            normal[:, i] = phi * normal[:, i - 1] + np.sqrt(1 - phi**2) * normal[:, i]
        offset = np.zeros((num_chains, num_draws, len(self.center)))
        offset[..., moves] = normal @ np.linalg.cholesky(sigma).T
        train, probe = (
            r * (step := offset @ x.T) + 0.5 * step**2
            for x, r in ((self.x, self.residual), (self.probe_x, self.probe_residual))
        )
        return tree(train.mean(axis=-1), {"train": train, "probe": probe, "ood": probe.mean(axis=-1)}, len(sigma))


def tree(delta, observables, num_params, *, init_loss=1.0):
    """Draws of llc whose L(w) − L(w*) is `delta` (chain, draw), with observables that have these axes first."""
    ones, num_data = np.ones_like(delta), 60
    groups = {
        "posterior": {"loss": init_loss + delta, "llc": NBETA * delta},
        "sample_stats": {"virial": ones, "diverging": ones < 0},
        "constant_data": {
            "init_loss": init_loss,
            "nbeta": NBETA,
            "gamma": GAMMA,
            "num_data": num_data,
            "num_params": num_params,
            "eval_size": num_data,
        },
    }
    draws = from_dict(groups)
    draws.attrs |= {"sampler": "NUTS", "settings": json.dumps({"sampler": {"name": "NUTS"}})}
    found = {
        name: (("chain", "draw", *(f"{name}_row",) * (x.ndim - 2)), x.astype(np.float32))
        for name, x in observables.items()
    }
    draws["observables"] = xr.DataTree(xr.Dataset(found))
    return draws


def in_blocks(draws, first, second, num_blocks=5):
    """The same draws with the moments of two observables in blocks instead of their draws, made in NumPy."""
    series = {name: draws["observables"][name].to_numpy().astype(np.float64) for name in (first, second)}
    delta = draws["posterior"]["loss"].to_numpy() - float(draws["constant_data"]["init_loss"])
    parts = np.array_split(np.arange(delta.shape[1]), num_blocks)
    found = {"num_draws": ("block", [float(len(part)) for part in parts])}
    loss = np.stack([delta[:, part] for part in parts])
    found["loss.mean"] = (("block", "chain"), loss.mean(axis=2))
    centered = {}
    for name, x in series.items():
        split = np.stack([x[:, part] for part in parts])
        centered[name] = off = split - split.mean(axis=2, keepdims=True)
        dims = ("block", "chain", *(f"{name}_row",) * (x.ndim - 2))
        found[f"{name}.mean"] = (dims, split.mean(axis=2))
        found[f"{name}.variance"] = (dims, np.mean(off**2, axis=2))
        found[f"{name}.cov.loss"] = (
            dims,
            np.einsum("bcd...,bcd->bc...", off, loss - loss.mean(2)[..., None]) / len(parts[0]),
        )
    if first != second:
        products = np.einsum("bcdi,bcdj->bcij", centered[first], centered[second]) / len(parts[0])
        found[f"{first}.cov.{second}"] = (("block", "chain", f"{first}_row", f"{second}_row"), products)
    draws = draws.copy()
    draws["observables"] = xr.DataTree(xr.Dataset(found))
    return draws
