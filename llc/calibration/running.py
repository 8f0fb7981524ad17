"""Runs by calibrated settings: again with a smaller step where it was too large, and longer as far as that helps."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from llc.analysis import schema
from llc.analysis.chain_checks import has_mixed
from llc.analysis.estimators import Estimate, best_energy
from llc.analysis.report import Report
from llc.analysis.reporting import report
from llc.analysis.schema import variable
from llc.analysis.series import finite_chains, plus_minus
from llc.analysis.store import MAIN, Store
from llc.bounds.rank import Bounds
from llc.calibration.record import Calibration
from llc.calibration.telling import about, run_forecast, say
from llc.sampling.chains import Chains
from llc.sampling.observable import Observable

Observables = Mapping[str, Callable[..., Any] | Observable] | None

_FIRST_LOOK, _LOOKS = 8, 5  # draws before the first λ̂ that a run of minutes tells, and its parts between the others
_ENDS_WITH_ESS = 200.0  # of the draws themselves, for errors that can be trusted (analysis/fitting.py)
_TIMED = 2  # draws of the warm-up from which the time of a run is told
_SIGMAS = 4  # standard errors below zero at which λ̂ is negative
_MAX_FACTOR = 8  # times the first draws that `target_mcse` may take without a budget
_TARGET, _TARGET_OVERHEAD_BOUND = 0.02, 0.01  # of λ̂: with the second the 95 % interval is λ̂ ± 2 %


class Place(NamedTuple):
    """Where chains run and are kept, and what is recorded beside the loss.

    Attributes:
        store: None keeps nothing.
        mesh: devices to spread chains over.
        observables: as of `llc.sample`.
        under_way: the chains that were begun, with their calibrations.
    """

    store: Store | None = None
    mesh: Mesh | None = None
    observables: Observables = None
    under_way: tuple[tuple[Calibration, Chains], ...] | list[tuple[Calibration, Chains]] = ()


class Run(NamedTuple):
    """Chains under way, with the settings that they run by and a report on their draws so far.

    Attributes:
        calibration: the settings.
        chains: with their draws.
        report: on these.
        ends_at: standard error of λ̂, as a part of it, at which a run of minutes ends before it has all its draws; None
            of a run whose draws are wanted.
    """

    calibration: Calibration
    chains: Chains
    report: Report
    ends_at: float | None = None


def draw_cool_enough(
    keys: tuple[PRNGKeyArray, ...],
    calibration: Calibration,
    bounds: Bounds | None,
    place: Place = Place(),
    target_mcse: float | None = None,
    *,
    progress: bool | None,
) -> Run:
    """The first draws of a run; again with a smaller step, as long as there are keys, where that one was too large."""
    run = _start(keys[0], calibration, bounds, place, MAIN, target_mcse, progress=progress)
    for number, key in enumerate(keys[1:], start=2):
        extended = run.chains.asked > run.calibration.lengths.num_draws  # in the store, so that its step was not
        if extended or not (calibration.overhead_bound and _step_too_large(run.report)):
            break
        smaller = run.calibration.with_smaller_step()
        run = _start(key, smaller, bounds, place, f"{MAIN}-{number}", target_mcse, progress=progress)
    return run


def _start(
    key: PRNGKeyArray,
    calibration: Calibration,
    bounds: Bounds | None,
    place: Place,
    name: str,
    target_mcse: float | None,
    *,
    progress: bool | None,
) -> Run:
    """The first draws of a run, or all that it has in its store under `name`."""
    spectrum, lengths = calibration.spectrum, calibration.lengths
    chains = Chains(
        key,
        calibration.posterior,
        calibration.sampler,
        lengths,
        spectrum=spectrum,
        observables=place.observables,
        store=place.store and place.store.run(name),
        mesh=place.mesh,
    )
    if isinstance(place.under_way, list):
        place.under_way.append((calibration, chains))
    wanted = calibration.choices["num_draws"].origin == "given" or place.observables
    ends_at = None if wanted else _target(calibration, target_mcse)
    there = chains.num_drawn  # where a store goes on, a run ends where it would have ended
    looks = [look for look in _looks(calibration, max(lengths.num_draws, chains.asked)) if look >= there]
    _draw(chains, looks, calibration, ends_at, progress=progress)
    return Run(calibration, chains, _report(chains, calibration, bounds), ends_at)


def _report(chains: Chains, calibration: Calibration, bounds: Bounds | None) -> Report:
    """On the draws so far, with how their settings were chosen."""
    draws = chains.tree()
    draws.attrs[schema.CALIBRATION] = str(calibration)
    draws.attrs[schema.GAMMA_ORIGIN] = calibration.gamma_origin
    if math.isfinite(weaker := calibration.choices["gamma"].evidence.get("weaker", math.nan)):
        draws.attrs[schema.WEAKER_GAMMA] = weaker
    result = report(draws, bounds=bounds, spectrum=calibration.spectrum)
    chains.note(result.draws.filter(lambda node: node.path in ("/", f"/{schema.CURVATURE}")))
    return result


def report_so_far(place: Place, bounds: Bounds | None) -> Report | None:
    """On the draws of a run that was cut short; None where there are none.

    Args:
        place: of the run.
        bounds: as of `llc.report`.
    """
    for calibration, chains in reversed(place.under_way):
        if chains.num_drawn:
            return _report(chains, calibration, bounds)
    return None


def _looks(calibration: Calibration, num_draws: int) -> list[int]:
    """The numbers of draws of a chain at which a run of minutes tells λ̂, and may end: wherever it was resumed.

    Args:
        calibration: its settings.
        num_draws: of a chain, in the end.
    """
    if calibration.enough_draws is None:
        return [num_draws]
    part = math.ceil(calibration.lengths.num_draws / _LOOKS)
    later = [look for look in range(part, num_draws, part) if look > _FIRST_LOOK]
    return [_FIRST_LOOK, *later, num_draws] if num_draws > _FIRST_LOOK else [num_draws]


def _draw(
    chains: Chains, looks: list[int], calibration: Calibration, ends_at: float | None, *, progress: bool | None
) -> None:
    """Draws of a run, up to the last of `looks`; where it takes minutes, λ̂ so far is told at each of them.

    Args:
        chains: to draw from.
        looks: numbers of draws of a chain, rising.
        calibration: their settings.
        ends_at: as of `Run`.
        progress: whether to show it; None shows it on a terminal.
    """
    num_draws, told = looks[-1], False
    if calibration.enough_draws is None:
        chains.draw_until(num_draws, progress=progress)
        return
    _tell_pace(chains, num_draws, progress=progress)
    there, start = chains.done, time.perf_counter()
    for look in looks:
        chains.draw_until(look, asked=num_draws, progress=progress)
        draws = chains.so_far()
        llc = best_energy(draws)
        accurate = ends_at is not None and llc.mcse <= ends_at * abs(llc.value) and has_mixed(draws, _ENDS_WITH_ESS)
        ends = look == num_draws or accurate
        pace = (time.perf_counter() - start) / max(chains.done - there, 1)
        to_go = "" if ends else f", at most {about((num_draws - look) * pace)} to go"
        if not ends and not told and _is_negative(llc):
            to_go += "; chains find lower losses than at w*, which more draws don't change: Ctrl-C gives the report"
            told = True
        say(f"λ̂ = {plus_minus(llc.value, llc.mcse)} after {look} draws of each chain{to_go}", progress=progress)
        if ends:
            return


def _tell_pace(chains: Chains, num_draws: int, *, progress: bool | None) -> None:
    """Tells how long a run takes, after two draws of its warm-up: the first one compiles.

    Args:
        chains: to draw from.
        num_draws: of a chain, in the end.
        progress: as of `_draw`.
    """
    if chains.done or chains.warmup < _TIMED:
        return
    chains.draw_until(_TIMED - chains.warmup, asked=num_draws, progress=progress)
    left = chains.warmup + num_draws - chains.done
    say(run_forecast(left * chains.seconds_per_draw), progress=progress)


def _is_negative(llc: Estimate) -> bool:
    """Whether chains find lower losses than at w*, so that λ̂ tells that w* is no minimum, whatever its error."""
    return llc.value < -_SIGMAS * llc.mcse


def _target(calibration: Calibration, target_mcse: float | None) -> float:
    """Standard error of λ̂ to reach, as a part of it."""
    if target_mcse is not None:
        return target_mcse
    return _TARGET_OVERHEAD_BOUND if calibration.overhead_bound else _TARGET


def _step_too_large(result: Report) -> bool:
    """Whether chains were thrown out of stiff places: dead, hotter than the posterior, or with rare high energies."""
    if not finite_chains(variable(result.draws, "posterior", "llc")).all():
        return True
    # Below a w* that is no minimum the energies say nothing of the step.
    no_minimum = any(check.kind == "minimum" and check.direction is None for check in result.failed)
    return not no_minimum and any(check.direction == "hot" for check in result.failed)


def extended(run: Run, target_mcse: float | None, bounds: Bounds | None, *, progress: bool | None) -> Report:
    """A report on the run with as many more draws as the target takes and the budget allows.

    Without a target or a budget, a run of minutes ends with `enough_draws`.
    """
    calibration, chains, result, ends_at = run
    most, has_limit = calibration.lengths.max_draws(_MAX_FACTOR), calibration.lengths.max_steps is not None
    enough = None if target_mcse is not None or has_limit else calibration.enough_draws
    if enough is not None:
        most = min(most, enough)
    target_mcse = _target(calibration, target_mcse)
    while (done := chains.num_drawn) < most and (more := _num_extra_draws(result, target_mcse, done)):
        looks = [look for look in _looks(calibration, min(done + more, most)) if look > done]
        _draw(chains, looks, calibration, ends_at, progress=progress)
        result = _report(chains, calibration, bounds)
    if enough is not None and (more := _num_extra_draws(result, target_mcse, done)):
        say(f"λ̂ becomes more accurate with more draws of each chain: num_draws={done + more}", progress=progress)
    return result


def _num_extra_draws(result: Report, target_mcse: float, done: int) -> int:
    """Draws to add for the target, at most as many as there are; 0 where it is reached or out of reach."""
    failed, character = result.failed_of_chains, result.character
    if _is_negative(result.llc):
        return 0
    if character is not None and character.name == "left the basin":
        return 0
    if not all(check.cured_by_draws for check in failed) or not math.isfinite(result.llc.value):
        return 0
    excess = result.llc.mcse / (target_mcse * abs(result.llc.value)) if result.llc.value else 0.0
    if excess <= 1 and not failed:
        return 0
    return done if excess**2 >= 2 or excess <= 1 else max(1, int((excess**2 - 1) * done * 1.1))
