r"""What the geometry at w* says at each scale: rank, bracket, orders of what is left, and the λ̂ that follows from them.

A network without a gap in its spectrum has no rank, but it has one at every scale. At the scale τ a direction counts
where its curvature h > τ. The sampler is at that scale where γ/nβ = τ, and a direction that only γ holds is then at the
distance ρ = 1/√(nβτ). What K does along the rest at that distance is their order: 2 where a curvature below τ rules, 4
where a quartic part does, none where K is flat. The bracket of the rank, now a function of τ, is

$$ \tfrac{r(\tau)}2 \le \lambda \le \tfrac{r(\tau)}2 + \tfrac{d - D - r(\tau)}4 , $$

with D the dimension of the symmetry orbit. It bounds λ at the τ that separates zero from the rest; elsewhere it is what
a reader who can't see below τ would say. The prediction adds the directions as if each were alone (line_profiles.py),

$$ \hat\lambda(\gamma) \approx \lambda_{\mathrm{quad}}(\gamma) + \sum_i w_i \Big( E_i[n\beta K]
   - \tfrac12 \tfrac{n\beta h_i}{n\beta h_i + \gamma} \Big) , $$

w_i the number of directions that a probed one stands for. It is exact where K is a sum of functions of single
directions. Where a few directions without curvature share one zero set, as in a product of matrices at zero, they are
taken together, by rays. What else couples directions is not in it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from llc.bounds.line_profiles import joint_energy, local_orders, mean_energies
from llc.bounds.order_spectrum import ORDERS, OrderSpectrum
from llc.bounds.shrinkage import shrink
from llc.bounds.spectral_measure import Spectrum
from llc.posterior.arguments import require_number

_EDGES = (3.0, 5.0, 7.0)  # between the orders
_PER_DECADE = 2
_SEEN = 2.0  # standard deviations 1/√γ up to which K has to be known
_MOST_DECADES = 16
_PREFIX = "scale_"  # of variables in the group of the spectrum
_FEWEST_RAYS = 30  # that carry the weight, where rays are used


class Rays(NamedTuple):
    """K along uniform rays in the space of all directions without a known eigenvector.

    Attributes:
        dim: m, of that space.
        steps: distances from w*, rising.
        values: K there, the other directions relaxed.
    """

    dim: int
    steps: Float[np.ndarray, "step"]
    values: Float[np.ndarray, "ray step"]


class Prediction(NamedTuple):
    """λ̂ at a γ, as the geometry predicts it.

    Attributes:
        value: of λ̂.
        stderr: of what was sampled of the directions or rays.
        anharmonic: the sum over directions of what each differs from its quadratic, without signs. Couplings between
            directions are left out; they are large where this is, and can be larger in many dimensions.
    """

    value: float
    stderr: float
    anharmonic: float


@dataclass(frozen=True)
class ScaleSpectrum:
    """Curvatures at w*, and the loss along directions around it.

    Attributes:
        spectrum: of the Hessian.
        nbeta: nβ of the sampler whose distances are looked at.
        orbit: D, dimension of the symmetry orbit, along which K is constant; None where it was not looked for.
        reach: largest distance from w*, in units of the parameters.
        floor: K up to it is round-off.
        curvatures: h of each probed direction: an eigenvalue, or vᵀHv.
        weights: number of directions that it stands for; those of all directions and D add up to d.
        is_random: whether it was drawn at random among the directions without a known eigenvector.
        steps: distances from w* along it, rising.
        values: K there, ahead and behind, the stiffer directions relaxed.
        rays: K in the space of all random directions together, where it has 2 to 16 dimensions; else None.
    """

    spectrum: Spectrum
    nbeta: float
    orbit: int | None
    reach: float
    floor: float
    curvatures: Float[np.ndarray, "direction"]
    weights: Float[np.ndarray, "direction"]
    is_random: np.ndarray
    steps: Float[np.ndarray, "direction step"]
    values: Float[np.ndarray, "direction side step"]
    rays: Rays | None = None

    def __str__(self) -> str:
        orbit = "not looked for" if self.orbit is None else f"{self.orbit}"
        sampled = f"{len(self.weights)} probed" if self.is_sampled else "all probed"
        lines = [
            f"scales  d = {self.spectrum.dim:,}, nβ = {self.nbeta:.4g}, symmetry directions: {orbit}, {sampled}",
            str(self.order_spectrum(self.default_scales(per_decade=1))),
        ]
        if self.spectrum.row_share < 1:
            lines.append(f"curvature of {self.spectrum.row_share:.2g} of the rows of data: it gives no brackets")
        gammas = [g for g in 10.0 ** np.arange(6, -7, -1.0) if g >= self.smallest_gamma][-5:]
        found = [
            f"γ = {g:g}: {p.value:.4g}{f' ± {p.stderr:.1g}' if p.stderr else ''}"
            for g, p in ((g, self.predicted_llc(g)) for g in gammas)
        ]
        return "\n".join([*lines, "λ̂ predicted  " + ", ".join(found)])

    @property
    def is_sampled(self) -> bool:
        """Whether probed directions stand for others."""
        return bool((self.weights > 1).any())

    @property
    def smallest_gamma(self) -> float:
        """The smallest γ at which λ̂ is predicted: `reach` is then two standard deviations of a flat direction."""
        return (_SEEN / self.reach) ** 2

    def default_scales(self, per_decade: int = _PER_DECADE) -> Float[np.ndarray, "scale"]:
        """Scales from h_max (where it is zero, that of the smallest distance) down to round-off, 16 decades at most."""
        largest = self.spectrum.largest
        if not largest > 0:
            largest = 1 / (self.nbeta * self.steps[:, 1].min(initial=self.reach) ** 2)
        smallest = max(self.spectrum.threshold, self.spectrum.resolution, 10.0**-_MOST_DECADES * largest)
        if not self.spectrum.largest > 0:
            smallest = 1 / (self.nbeta * self.reach**2)
        decades = np.log10(largest / smallest)
        return largest * 10.0 ** -np.linspace(0, decades, 1 + max(1, int(np.ceil(per_decade * decades))))

    def order_spectrum(self, scales: Sequence[float] | np.ndarray | None = None) -> OrderSpectrum:
        """Rank, bracket and counts of directions by order at each scale.

        Args:
            scales: τ; None takes two a decade from h_max down to round-off.

        Raises:
            ValueError: if a scale is not positive.
        """
        scales = self.default_scales() if scales is None else np.asarray(scales, float)
        if scales.ndim != 1 or not scales.size or not (np.isfinite(scales) & (scales > 0)).all():
            raise ValueError(f"order_spectrum needs a list of finite scales > 0, got {scales}.")
        rank = np.array([self.spectrum.count(scale) for scale in scales])
        rest = np.maximum(self.spectrum.dim - (self.orbit or 0) - rank, 0)
        counts, errors = zip(*(self._counts(scale) for scale in scales), strict=True)
        known = 1.0 if self.spectrum.row_share == 1 else np.nan  # the rank of some rows bounds nothing
        return OrderSpectrum(
            scales=scales,
            distances=1 / np.sqrt(self.nbeta * scales),
            rank=rank,
            rank_stderr=np.array([self.spectrum.count_stderr(scale) for scale in scales]),
            lower=known * rank / 2,
            upper=known * (rank / 2 + rest / 4),
            effective_dimension=np.array([2 * self.spectrum.quad(scale) for scale in scales]),
            orbit=self.orbit,
            counts=np.stack(counts),
            counts_stderr=np.stack(errors),
            num_probed=len(self.weights),
        )

    def _counts(self, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Counts by order of the directions with h <= τ, and their errors."""
        distance = 1 / math.sqrt(self.nbeta * scale)
        if distance > self.reach:
            return np.full(len(ORDERS), np.nan), np.full(len(ORDERS), np.nan)
        slopes = local_orders(self.steps, self.values, self.floor, distance)
        column = np.digitize(slopes, _EDGES)
        column = np.where(slopes == 0, ORDERS.index("flat"), np.where(slopes < 0, ORDERS.index("falling"), column))
        left = self.curvatures <= scale
        hits = np.stack([left & (column == j) for j in range(len(ORDERS))]).astype(float)
        return hits @ self.weights, np.array([self._stderr(hit) for hit in hits])

    def predicted_llc(self, gamma: float) -> Prediction:
        """λ̂(nβ, γ) as the directions predict it, each as if it were alone.

        Args:
            gamma: γ, at least `smallest_gamma`.

        Raises:
            ValueError: if γ is smaller, since K was not looked at as far out as the sampler goes then.
        """
        require_number("gamma", gamma)
        if gamma < self.smallest_gamma * (1 - 1e-9):
            raise ValueError(
                f"predicted_llc needs gamma >= {self.smallest_gamma:.3g}, since K is known up to a distance of "
                f"{self.reach:.3g} only, got {gamma:g}; call scale_spectrum with reach >= {_SEEN / gamma**0.5:.3g}."
            )
        scale = gamma / self.nbeta
        alone = mean_energies(self.steps, self.values, self.nbeta, gamma)
        quadratic = shrink(self.curvatures, scale)
        joint = None
        if self.rays is not None:
            joint = joint_energy(self.rays.steps, self.rays.values, self.rays.dim, self.nbeta, gamma)
        counted, value, error = self.weights, self.spectrum.quad(scale), self.spectrum.quad_stderr(scale)
        if joint is not None and joint.effective_rays >= _FEWEST_RAYS:
            counted = np.where(self.is_random, 0.0, self.weights)
            value += joint.value - float(quadratic[self.is_random].sum())
            error = math.hypot(error, joint.stderr)
        beyond = alone - quadratic
        error = math.hypot(error, self._stderr(np.where(counted > 0, beyond, 0.0)))
        return Prediction(value + float(counted @ beyond), error, float(self.weights @ np.abs(beyond)))

    def _stderr(self, values: np.ndarray) -> float:
        """Standard error of Σ wᵢ values: that of a mean of random ones, and of a systematic sample of the others."""
        weights, values = self.weights, np.asarray(values, float)
        drawn = np.flatnonzero(self.is_random & (weights > 1))
        variance = 0.0
        if len(drawn) > 1:
            variance = float(weights[drawn].sum() ** 2 * values[drawn].var(ddof=1) / len(drawn))
        every = np.flatnonzero(~self.is_random)
        if len(every) > 1:  # neighbours differ by as much as what they stand for
            spread = 0.5 * np.diff(values[every]) ** 2
            spread = np.append(spread, spread[-1])
            variance += float(np.sum(weights[every] * (weights[every] - 1) * spread))
        return math.sqrt(variance)

    def to_dataset(self) -> xr.Dataset:
        """Profiles and settings as variables and attributes that go beside those of the spectrum."""
        variables = {
            "curvatures": (("direction",), self.curvatures),
            "weights": (("direction",), self.weights),
            "is_random": (("direction",), self.is_random.astype(np.int8)),
            "steps": (("direction", "step"), self.steps),
            "values": (("direction", "side", "step"), self.values),
        }
        if self.rays is not None:
            variables |= {"ray_steps": (("ray_step",), self.rays.steps)}
            variables |= {"ray_values": (("ray", "ray_step"), self.rays.values)}
        settings = {"nbeta": self.nbeta, "reach": self.reach, "floor": self.floor}
        settings["orbit"] = -1 if self.orbit is None else self.orbit
        settings["rays_dim"] = 0 if self.rays is None else self.rays.dim
        dims = {dim: f"{_PREFIX}{dim}" for dim in ("direction", "side", "step", "ray", "ray_step")}
        dataset = xr.Dataset({_PREFIX + name: value for name, value in variables.items()})
        dataset = dataset.rename_dims({old: new for old, new in dims.items() if old in dataset.sizes})
        return dataset.assign_attrs({_PREFIX + name: value for name, value in settings.items()})

    @classmethod
    def from_dataset(cls, dataset: Any) -> "ScaleSpectrum":
        """From the `curvature` group of a file of `llc bounds --scales`.

        Raises:
            ValueError: if there are no scales in it.
        """
        if _PREFIX + "values" not in dataset:
            raise ValueError("the file needs scales, got none; write them by llc bounds --scales --out.")

        def array(name: str) -> np.ndarray:
            return np.asarray(dataset[_PREFIX + name].values)

        settings = {name: dataset.attrs[_PREFIX + name] for name in ("nbeta", "reach", "floor", "orbit", "rays_dim")}
        rays = None
        if int(settings["rays_dim"]):
            rays = Rays(int(settings["rays_dim"]), array("ray_steps"), array("ray_values"))
        return cls(
            spectrum=Spectrum.from_dataset(dataset),
            nbeta=float(settings["nbeta"]),
            orbit=None if int(settings["orbit"]) < 0 else int(settings["orbit"]),
            reach=float(settings["reach"]),
            floor=float(settings["floor"]),
            curvatures=array("curvatures"),
            weights=array("weights"),
            is_random=array("is_random").astype(bool),
            steps=array("steps"),
            values=array("values"),
            rays=rays,
        )
