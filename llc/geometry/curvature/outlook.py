"""What a spectrum for a price is asked for, and what a first Lanczos run says of the work left (see deflated.py)."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from llc.bounds.shrinkage import shrink, signed_shrink
from llc.geometry.curvature.krylov import Ritz
from llc.geometry.curvature.problem import Problem

MAX_STEPS = 400  # of one run
MAX_PROBES = 64
_RESIDUAL = 1e-4  # ρ² / (θ c) of a pair that is deflated
_CURVED = 0.1  # θ / c above which deflation is worth a vector
_DEEP, _DEEPEST = 0.7, 0.9  # |h_min| nβ / γ up to which λ_quad is signed, and to which a node is cut


class Target(NamedTuple):
    """What is asked: λ_quad at γ/nβ = `scale`, with the relative standard error `error`; signed where that exists."""

    scale: float
    error: float
    signed: bool

    def parts(self, nodes: Float[np.ndarray, "node"]) -> Float[np.ndarray, "node"]:
        """What each eigenvalue adds to λ_quad."""
        if self.signed:
            return signed_shrink(np.maximum(nodes, -_DEEPEST * self.scale), self.scale)
        return shrink(nodes, self.scale)

    def allowed(self, quad: float) -> float:
        """The wanted standard error; no smaller than that of half a parameter."""
        return self.error * max(abs(quad), 0.5)


class Outlook(NamedTuple):
    """What the run of the whole matrix says of the rest of the work."""

    known: Float[np.ndarray, "step"]  # which pairs are deflated
    quad: float
    num_steps: int  # of a probe
    num_probes: int


def outlook_of(found: Ritz, dim: int, target: Target) -> Outlook:
    """Which pairs of a run have converged, and the steps and probes that the rest takes."""
    size = np.abs(found.nodes)
    known = (found.residuals**2 <= _RESIDUAL * size * target.scale) & (size >= _CURVED * target.scale)
    nodes, weights = found.nodes[~known], found.weights[~known]
    weights = weights * (dim - int(known.sum())) / max(float(weights.sum()), np.finfo(np.float64).tiny)
    parts = target.parts(nodes)
    quad = float(np.sum(target.parts(found.nodes[known])) + np.sum(weights * parts))
    variance = 2 * float(np.sum(weights * parts**2))
    num_probes = num_probes_for(variance, target.allowed(quad))
    condition = float(np.abs(nodes).max(initial=0.0)) / target.scale
    if target.signed:  # a function without a kink, with a pole at −γ/nβ
        condition = float((nodes.max(initial=0.0) + target.scale) / (nodes.min(initial=0.0) + target.scale))
    num_steps = min(math.ceil(0.5 * math.pi * math.sqrt(condition)) + 1, MAX_STEPS)
    return Outlook(known, quad, num_steps, num_probes)


def target_of(problem: Problem, found: Ritz) -> Target:
    """γ/nβ of the posterior, or the part of h_max that was asked for."""
    posterior, settings = problem.posterior, problem.settings
    scale = settings.relative_scale * float(found.nodes[0])
    if posterior.gamma is not None and float(posterior.gamma) > 0:
        scale = posterior.scale.localization
    scale = max(scale, np.finfo(np.float64).tiny)
    return Target(scale, settings.relative_error, signed=bool(-found.nodes[-1] < _DEEP * scale))


def num_probes_for(variance: float, error: float) -> int:
    """Probes that bring the error down to the wanted one, two at least: the variance is an estimate."""
    return min(max(math.ceil(variance / error**2) if error > 0 else 2, 2), MAX_PROBES)
