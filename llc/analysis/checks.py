"""Named checks of a run: what was seen, what is allowed, and what to change.

A failed check is data. It never hides the number, and the number never hides it.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr
from scipy import stats

from llc.analysis.estimators import Estimate
from llc.analysis.pointwise import subset_stderr
from llc.analysis.series import constant, finite_chains, monte_carlo_error, variable

if TYPE_CHECKING:
    from llc.bounds.rank import Bounds
    from llc.bounds.spectral_measure import Spectrum

OF_CHAINS = (
    "finite_chains",
    "divergences",
    "rhat",
    "ess",
    "drift",
    "virial",
    "virial_error",
    "virial_curved",
    "step_size_bias",
)

_MINIMUM = ("positive", "lower_loss", "mean_variance")
_SCALE = ("localization",)
_CURED_BY_DRAWS = ("rhat", "ess", "drift", "virial_error")

Kind = Literal["chains", "minimum", "bounds", "scale"]
Direction = Literal["hot", "cold"]

_MAX_RHAT = 1.05  # at ESS 400 eight half-chains give 1.01 on average and 1.04 at four sigma (χ²₇ / 7 times 8 / ESS)
MIN_ESS = 400.0  # below it R-hat and ESS themselves are unreliable (Vehtari et al. 2021, §4)
_MAX_Z = 4.0
_MAX_VIRIAL = 0.05  # THEORY §7: every unmixed run had .37–.9, every trusted one is within .05
_MAX_VIRIAL_CURVED = 0.03  # the same where λ_quad comes from
_MAX_BIAS = 0.02  # of λ̂: the accuracy that a report claims
_MIN_SHARE = 0.5  # of r/2 in λ_quad; below it λ_corr is more extrapolated than measured
_SHAPE_GAP = 0.10  # of λ̂: mean and variance differ by at most 7 % in every exact finite-n case of THEORY §2


@dataclass(frozen=True)
class Check:
    """One named test of a run.

    Attributes:
        name: what was tested.
        kind: what it is about: the chains, the minimum, the bounds or the scale (nβ, γ) at which λ is seen.
        passed: whether the value is within its threshold.
        value: what was seen.
        threshold: what is allowed.
        message: what it means and, if it failed, what to change in which direction.
        cured_by_draws: whether more draws can pass it.
        direction: of a failed check, whether the chains are "hot" or "cold" against their posterior; None if it does
            not tell.
    """

    name: str
    kind: Kind
    passed: bool
    value: float
    threshold: float
    message: str
    cured_by_draws: bool = False
    direction: Direction | None = None


def run_checks(
    draws: xr.DataTree,
    mean: Estimate,
    variance: Estimate,
    bounds: "Bounds | None",
    spectrum: "Spectrum | None",
    corrected: Estimate | None,
    shift: Estimate | None = None,
) -> tuple[Check, ...]:
    """All checks that apply: of the chains, of the minimum, of the estimators, and against the bounds.

    Args:
        draws: of one run.
        mean: the mean energy λ̂.
        variance: the energy variance.
        bounds: on the asymptotic λ, if the geometry is known.
        spectrum: of the Hessian, if known.
        corrected: λ_corr.
        shift: its change from a larger γ; as much it may still be off.
    """
    checks = [
        _finite(draws),
        _divergences(draws),
        _rhat(mean),
        _ess(mean),
        _drift(draws),
        _virial(draws, mean),
        _virial_error(draws),
        _virial_curved(draws),
        _positive(mean),
        _lower_loss(draws, mean),
        _mean_variance(draws, mean, variance, spectrum),
    ]
    if spectrum is not None:
        checks += [_step_size(draws, spectrum), _resolution(draws, spectrum)]
    if bounds is not None:
        checks += [_assumption(assumption) for assumption in bounds.assumptions]
        if bounds.valid and corrected is not None:
            moves = 0.0 if shift is None or not abs(shift.value) > 2 * shift.mcse else abs(shift.value)
            checks += [
                _localization(bounds, mean, corrected, shift),
                _below(corrected, bounds, moves),
                _above(corrected, bounds, moves),
            ]
    return tuple(check for check in checks if check is not None)


def _check(
    name: str,
    value: float | int,
    threshold: float | int,
    seen: str,
    cure: str,
    *,
    passed: bool | np.bool_,
    direction: Direction | None = None,
) -> Check:
    return Check(
        name=name,
        kind=_kind_of(name),
        passed=bool(passed),
        value=float(value),
        threshold=float(threshold),
        message=seen if passed else f"{seen}: {cure}",
        cured_by_draws=name in _CURED_BY_DRAWS,
        direction=None if passed else direction,
    )


def _kind_of(name: str) -> Kind:
    if name in OF_CHAINS:
        return "chains"
    if name in _MINIMUM:
        return "minimum"
    return "scale" if name in _SCALE else "bounds"


def _finite(draws: xr.DataTree) -> Check:
    finite = finite_chains(variable(draws, "posterior", "llc"))
    dead = [str(i) for i in np.flatnonzero(~finite)]
    names = f" (chain {', '.join(dead)})" if dead else ""
    seen = f"{len(dead)} of {len(finite)} chains have non-finite losses{names}"
    cure = "they are left out of the estimates; lower step_size or raise gamma"
    return _check("finite_chains", len(dead), 0, seen, cure, passed=not dead, direction="hot")


def _divergences(draws: xr.DataTree) -> Check:
    share = float(variable(draws, "sample_stats", "diverging").mean())
    cure = "lower step_size, or raise target_accept"
    return _check("divergences", share, 0, f"{share:.2%} of draws diverged", cure, passed=share == 0)


def _rhat(mean: Estimate) -> Check:
    cure = "the chains disagree; take more draws and warm-up, or a larger step_size"
    return _check("rhat", mean.rhat, _MAX_RHAT, f"R-hat {mean.rhat:.3f}", cure, passed=mean.rhat <= _MAX_RHAT)


def _ess(mean: Estimate) -> Check:
    cure = "take more draws or a larger thinning, or a larger step_size if step_size_bias allows"
    seen = f"{mean.ess:.0f} effective draws"
    return _check("ess", mean.ess, MIN_ESS, seen, cure, passed=mean.ess >= MIN_ESS)


def _drift(draws: xr.DataTree) -> Check:
    """Last third against first third: by the errors of the two, and by the spread of the difference over chains.

    A slow drift inflates the errors of both thirds, but chains that drift alike differ little in it (Student's t).
    """
    llc = variable(draws, "posterior", "llc")
    llc = llc[finite_chains(llc)]
    third = max(1, llc.shape[1] // 3)
    first, last = llc[:, :third], llc[:, -third:]
    change = last.mean(axis=1) - first.mean(axis=1)
    z = change.mean() / np.hypot(monte_carlo_error(first), monte_carlo_error(last)) if len(llc) else np.nan
    if len(llc) > 1 and change.std() > 0:
        student = change.mean() / (change.std(ddof=1) / np.sqrt(len(change)))
        normal = np.sign(student) * stats.norm.isf(stats.t.sf(abs(student), len(change) - 1))
        z = max(z, normal, key=abs)
    seen = f"the last third of the draws differs from the first by {z:+.1f} standard errors"
    cure = "the chains still move; raise num_warmup, then num_draws"
    return _check("drift", z, _MAX_Z, seen, cure, passed=abs(z) <= _MAX_Z)


def _virial(draws: xr.DataTree, mean: Estimate) -> Check:
    virial = variable(draws, "sample_stats", "virial")
    finite = virial[finite_chains(virial)]
    value = float(finite.mean()) if finite.size else np.nan
    # Chains that have not mixed make its own error large, so it may excuse little: on (w₁w₂)²/2 at nβ from 3e5 on, λ̂
    # was 6 % too high (6 mcse) at .89 ± .03 to .91 ± .03.
    error = monte_carlo_error(virial)
    noise = 3 * error
    # Heating sits in the stiff directions: an excess of x·∇U/d by δ moves λ̂ by δ d/2.
    dim = constant(draws, "num_params")
    hot = max(_MAX_VIRIAL * min(1.0, 2 * max(mean.value, 0.0) / dim), noise)
    cold = max(_MAX_VIRIAL, noise)
    seen = f"x·∇U/d = {value:.3f} ± {error:.2g}, 1 is exact"
    cure = (
        "the chains are hotter than the posterior; lower step_size or raise batch_size"
        if value > 1
        else "the chains have not filled the posterior; take more draws and warm-up, or raise gamma"
    )
    threshold = hot if value > 1 else cold
    passed = abs(value - 1) <= threshold
    return _check("virial", value, threshold, seen, cure, passed=passed, direction=_direction(value - 1))


def _direction(excess: float) -> Direction | None:
    """What an energy in excess of the posterior's says."""
    return "hot" if excess > 0 else "cold" if excess < 0 else None


def _virial_error(draws: xr.DataTree) -> Check:
    """Whether `virial` can see what it is there for."""
    error = monte_carlo_error(variable(draws, "sample_stats", "virial"))
    seen = f"x·∇U/d has a standard error of {error:.2g}"
    cure = "too large to see chains that have not filled the posterior; take more draws or a larger thinning"
    return _check("virial_error", error, _MAX_VIRIAL, seen, cure, passed=error <= _MAX_VIRIAL)


def _virial_curved(draws: xr.DataTree) -> Check | None:
    """The virial ratio weighted by A = ½ nβH (nβH + γ)⁻¹, what each direction has of λ_quad."""
    if "stein_curved" not in draws["sample_stats"] or constant(draws, "trace_curved") == 0:
        return None
    trace = constant(draws, "trace_curved")
    ratio = 1 + variable(draws, "sample_stats", "stein_curved") / trace
    finite = ratio[finite_chains(ratio)]
    value = float(finite.mean()) if finite.size else np.nan
    subset = constant(draws, "nbeta") * subset_stderr(draws, (0.0, 1.0)) / trace
    threshold = max(_MAX_VIRIAL_CURVED, _MAX_Z * np.hypot(monte_carlo_error(ratio), subset))
    seen = f"x·A∇U / tr A = {value:.3f} in the curved directions, 1 is exact"
    cure = (
        "the sampler heats them; lower step_size or raise batch_size"
        if value > 1
        else "the chains have not filled them; take more draws and warm-up"
    )
    passed = abs(value - 1) <= threshold
    return _check("virial_curved", value, threshold, seen, cure, passed=passed, direction=_direction(value - 1))


def _positive(mean: Estimate) -> Check:
    cure = "w* is no minimum of this loss on these data, or the chains are not at their temperature; train further"
    return _check("positive", mean.value, 0, f"λ̂ = {mean.value:.4g}", cure, passed=mean.value >= 0)


def _lower_loss(draws: xr.DataTree, mean: Estimate) -> Check:
    llc = variable(draws, "posterior", "llc")
    finite = llc[finite_chains(llc)]
    deficit = max(0.0, -float(finite.min())) if finite.size else np.nan
    threshold = _MAX_BIAS * abs(mean.value) + 3 * constant(draws, "nbeta") * subset_stderr(draws)
    seen = f"draws go {deficit:.2g} below L(w*) in units of nβ·loss"
    cure = "w* is no minimum, and λ̂ is too low by at least that; train further, to a smaller gradient"
    return _check("lower_loss", deficit, threshold, seen, cure, passed=deficit <= threshold)


def _mean_variance(draws: xr.DataTree, mean: Estimate, variance: Estimate, spectrum: "Spectrum | None") -> Check:
    # The localization lowers the Gaussian parts differently: ½ Σ p in the mean, ½ Σ p² in the variance, p = h / (h +
    # γ/nβ).
    expected = 0.0
    if spectrum is not None:
        scale = constant(draws, "gamma") / constant(draws, "nbeta")
        expected = spectrum.quad(scale) - spectrum.sum(lambda h: 0.5 * _share(h, scale) ** 2)
    gap = mean.value - variance.value - expected
    # Errors as they would be under a Gamma law of shape λ: those of the draws grow with the outliers to be caught.
    shape = max(mean.value, 0.0)
    error = np.hypot(mean.mcse, np.sqrt((2 * shape**2 + 6 * shape) / max(variance.ess, 1.0)))
    threshold = 3 * error + _SHAPE_GAP * abs(mean.value)
    if spectrum is None:
        threshold += mean.value  # without a spectrum, the localization may take all of the variance
    seen = f"mean {mean.value:.3g} against variance {variance.value:.3g}, {expected:.2g} of it expected from γ"
    cure = "the energy is not Gamma-distributed: unmixed chains, a wrong L(w*), or another basin; look at the trace"
    # Rare high energies, of chains that are thrown out of stiff places, raise the variance above the mean.
    passed = abs(gap) <= threshold
    return _check("mean_variance", gap, threshold, seen, cure, passed=passed, direction=_direction(-gap))


def _share(h: np.ndarray, scale: float) -> np.ndarray:
    h = np.maximum(h, 0.0)
    return np.divide(h, h + scale, out=np.zeros_like(h), where=h > 0)


def _step_size(draws: xr.DataTree, spectrum: "Spectrum") -> Check | None:
    settings = json.loads(draws.attrs["settings"])["sampler"]
    if settings["name"] != "SGLD" or settings["preconditioner"]["name"] != "Identity":
        return None
    nbeta, gamma, step_size = constant(draws, "nbeta"), constant(draws, "gamma"), settings["step_size"]
    stiffest = step_size * (nbeta * spectrum.largest + gamma)
    scale = gamma / nbeta
    bias = 0.0
    if settings["integrator"] == "euler_maruyama":
        # Variance 1 / (a (1 − εa/4)) instead of 1 / a, a = nβh + γ; unstable from εa = 4 on.

        def excess(h):
            a = np.minimum(step_size * (nbeta * np.maximum(h, 0.0) + gamma), 3.99)
            return 0.5 * _share(h, scale) * a / (4 - a)

        quad = spectrum.quad(scale)
        bias = spectrum.sum(excess) / quad if quad > 0 else 0.0
    seen = f"ε (nβ h_max + γ) = {stiffest:.2g} (stable below 4); predicted bias of λ̂ on the Gaussian part {bias:+.1%}"
    smaller = "lower step_size to about 0.5 / (nβ h_max + γ), or take integrator='leimkuhler_matthews'"
    passed = bias <= _MAX_BIAS and stiffest <= 2
    value, threshold = (stiffest, 2) if stiffest > 2 else (bias, _MAX_BIAS)
    return _check("step_size_bias", value, threshold, seen, smaller, passed=passed)


def _resolution(draws: xr.DataTree, spectrum: "Spectrum") -> Check | None:
    if spectrum.exact:
        return None
    scale = constant(draws, "gamma") / constant(draws, "nbeta")
    steps = spectrum.nodes.shape[1]
    cure = "λ_quad is not trustworthy; raise num_matvecs, or gamma"
    seen = f"{steps} Lanczos steps for γ/nβ = {scale:.2g} and h_max = {spectrum.largest:.2g}"
    return _check("spectrum_resolution", steps, np.nan, seen, cure, passed=spectrum.resolves(scale))


def _assumption(assumption) -> Check:
    cure = "the bounds do not hold here" + ("" if assumption.name == "smooth" else "; train w* to a sharper minimum")
    name = assumption.name.replace(" ", "_")
    return _check(name, float(not assumption.holds), 0, assumption.message, cure, passed=assumption.holds)


def _localization(bounds: "Bounds", mean: Estimate, corrected: Estimate, shift: Estimate | None) -> Check | None:
    if bounds.localization_scale == 0:
        return None
    if bounds.rank_is_unique and bounds.rank > 0:
        share = 2 * bounds.quad / bounds.rank
        seen = f"at γ/nβ = {bounds.localization_scale:.2g} the Gaussian part is {share:.0%} of r/2"
        cure = "the localization hides most directions, λ_corr extrapolates; lower gamma (and take more steps)"
        return _check("localization", share, _MIN_SHARE, seen, cure, passed=share >= _MIN_SHARE)
    if not corrected.value > 0:
        return None
    # Without one rank to compare with: λ̂ against λ_corr, which adds what the localization hides of the r_lo sure
    # directions.
    shown, error = mean.value / corrected.value, 2 * mean.mcse / corrected.value
    if shift is None or shown + error < _MIN_SHARE:
        seen = f"at γ/nβ = {bounds.localization_scale:.2g} λ̂ is {shown:.0%} of λ_corr"
        cure = "the rest is extrapolated; lower gamma (and take more steps)"
        return _check("localization", shown, _MIN_SHARE, seen, cure, passed=shown + error >= _MIN_SHARE)
    # The others, with none added: directions of one curvature h that show a share p = h / (h + γ/nβ) at γ lose
    # 2 (1 − p) / (3 − 2p) of it at 3γ, a half at p = 1/2.
    moved = shift.value / corrected.value
    most = 2 * (1 - _MIN_SHARE) / (3 - 2 * _MIN_SHARE)
    seen = f"at the larger γ λ_corr is {moved:.0%} smaller"
    cure = "the localization hides most of λ; lower gamma (and take more steps)"
    passed = moved - 2 * shift.mcse / corrected.value <= most
    return _check("localization", moved, most, seen, cure, passed=passed)


def _below(corrected: Estimate, bounds: "Bounds", moves: float) -> Check:
    least = bounds.lower - _MAX_BIAS * bounds.lower - 3 * corrected.mcse - moves
    seen = f"λ_corr = {_with_move(corrected, moves)} against λ ≥ {bounds.lower:.4g}"
    cure = (
        "too low: unmixed chains (more draws, larger step_size), a localization that hides what is singular (lower "
        "gamma) or is so weak that chains reach parameters of smaller λ (raise gamma), or a rank that counts "
        "directions of an imperfect minimum (train further)"
    )
    return _check("below_bounds", corrected.value, least, seen, cure, passed=corrected.value >= least)


def _with_move(corrected: Estimate, moves: float) -> str:
    return f"{corrected.value:.4g}" + (f" (± {moves:.2g} that it moves with γ)" if moves else "")


def _above(corrected: Estimate, bounds: "Bounds", moves: float) -> Check:
    most = bounds.upper + _MAX_BIAS * bounds.upper + 3 * corrected.mcse + moves
    seen = f"λ_corr = {_with_move(corrected, moves)} against λ ≤ {bounds.upper:.4g}"
    cure = "too high: step or minibatch heating (lower step_size, raise batch_size), a wrong L(w*), or another basin"
    return _check("above_bounds", corrected.value, most, seen, cure, passed=corrected.value <= most)
