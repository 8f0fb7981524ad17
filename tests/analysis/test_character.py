"""Local, left the basin, localization only: told from exact draws of losses whose degree and share are known."""

import dataclasses
import json
import math

import arviz_base
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.analysis.character import character_of
from llc.analysis.estimators import energy_variance, mean_energy
from llc.analysis.verdict import Findings, judge
from tests.support.runs import with_energies

NBETA, CHAINS, DRAWS = 100.0, 4, 500


def draws_of(offsets, loss, slope, gamma, *, to_reference=None, nbeta=NBETA):
    """Independent draws at w* + `offsets` (chain, draw, dim), with L(w) − L(w*) and x·∇L there."""
    excess, along, squares = loss(offsets), slope(offsets), np.sum(offsets**2, axis=-1)
    dim, zeros = offsets.shape[-1], np.zeros(excess.shape)
    constants = {"init_loss": 0.1, "nbeta": nbeta, "gamma": gamma, "num_data": 1000, "num_params": dim}
    constants |= {"eval_size": 1000} | ({} if to_reference is None else {"reference_loss": 0.1 + to_reference})
    stats = {"virial": (nbeta * along + gamma * squares) / dim, "distance": np.sqrt(squares), "diverging": zeros > 0}
    tree = arviz_base.from_dict(
        {
            "posterior": {"loss": 0.1 + excess, "llc": nbeta * excess},
            "sample_stats": stats | {"potential": nbeta * (0.1 + excess) + gamma / 2 * squares, "grad_norm": zeros},
            "constant_data": constants,
        }
    )
    sampler = {"name": "SGLD", "step_size": 1e-3, "integrator": "leimkuhler_matthews"}
    settings = {"sampler": sampler | {"preconditioner": {"name": "Identity"}}}
    tree.attrs.update(settings=json.dumps(settings), sampler="SGLD", seed="[0, 0]", versions=json.dumps({}))
    return tree


def character(draws, quad=None):
    return character_of(draws, mean_energy(draws), energy_variance(draws), quad)


def gaussian(curvatures, gamma):
    """Draws of the posterior of ½ Σ h x²."""
    scales = 1 / np.sqrt(NBETA * curvatures + gamma)
    return np.random.default_rng(0).normal(size=(CHAINS, DRAWS, len(curvatures))) * scales


def quadratic(curvatures, gamma, **settings):
    loss = lambda x: 0.5 * np.sum(curvatures * x**2, axis=-1)  # noqa: E731
    return draws_of(gaussian(curvatures, gamma), loss, lambda x: 2 * loss(x), gamma, **settings)


CURVED = np.array([4.0, 2.0, 1.0, 0.5])


def quad_of(curvatures, gamma):
    return 0.5 * np.sum(NBETA * curvatures / (NBETA * curvatures + gamma))


def test_the_evidence_of_a_quadratic():
    gamma = 30.0
    evidence = character(quadratic(CURVED, gamma, to_reference=1.0), quad_of(CURVED, gamma)).evidence
    shares = NBETA * CURVED / (NBETA * CURVED + gamma)
    mean = np.sum(shares) / 2
    assert evidence.degree == pytest.approx(2)
    error = np.sqrt(np.sum(shares**2) / 2 / (CHAINS * DRAWS))  # Var[½ p z²] = ½ p²
    assert abs(NBETA * evidence.excess - mean) < 4 * error
    assert abs(evidence.share - np.sum(shares**2) / np.sum(shares)) < 4 * evidence.share_error
    assert evidence.share_error < 0.1
    # E x² = (1 − p)/γ, Var x² = 2 (1 − p)²/γ²
    assert abs(evidence.distance - np.mean(1 - shares)) < 4 * np.sqrt(2 * np.sum((1 - shares) ** 2) / 4**2 / 2000)
    assert evidence.quad_ratio == pytest.approx(NBETA * evidence.excess / mean)
    assert evidence.reference == evidence.excess
    assert math.isnan(evidence.half_step)


def saturating(gamma, *, dim=200, depth=1.0, **settings):
    """Draws of the localization alone, far out on the plateau of depth · (1 − exp(−|x|²/2))."""
    offsets = np.random.default_rng(0).normal(size=(CHAINS, DRAWS, dim)) / np.sqrt(gamma)
    loss = lambda x: depth * (1 - np.exp(-0.5 * np.sum(x**2, axis=-1)))  # noqa: E731
    slope = lambda x: depth * np.sum(x**2, axis=-1) * np.exp(-0.5 * np.sum(x**2, axis=-1))  # noqa: E731
    return draws_of(offsets, loss, slope, gamma, **settings)


def noisy_plateau(**settings):
    """The same plateau with hills, as of a network whose outputs are large and wrong: it rises, and is at chance."""
    offsets = np.random.default_rng(0).normal(size=(CHAINS, DRAWS, 200))
    loss = lambda x: 1 + 0.01 * np.sum(x**2, axis=-1)  # noqa: E731
    return draws_of(offsets, loss, lambda x: 3 + 0.02 * np.sum(x**2, axis=-1), 1.0, **settings)


def quartic(gamma=1e-6):
    """Draws of the posterior of Σ x⁴, whose localization is next to nothing: nβ x⁴ is Gamma(¼)."""
    rng = np.random.default_rng(0)
    offsets = (rng.gamma(0.25, size=(CHAINS, DRAWS, 20)) / NBETA) ** 0.25 * rng.choice([-1, 1], (CHAINS, DRAWS, 20))
    loss = lambda x: np.sum(x**4, axis=-1)  # noqa: E731
    return draws_of(offsets, loss, lambda x: 4 * loss(x), gamma)


WEAK = np.full(50, 1e-4)
CASES = {  # draws, λ_quad, character
    "a quadratic": (lambda: quadratic(CURVED, 1.0), quad_of(CURVED, 1.0), "local"),
    "without a spectrum": (lambda: quadratic(CURVED, 1.0), None, "local"),
    "a quadratic as far as chance": (lambda: quadratic(CURVED, 1.0, to_reference=0.02), 2.0, "local"),
    "as far as chance, and not that quadratic": (
        lambda: quadratic(CURVED, 1.0, to_reference=0.02),
        0.5,
        "left the basin",
    ),
    "as far as chance, without a spectrum": (
        lambda: quadratic(CURVED, 1.0, to_reference=0.02),
        None,
        "left the basin",
    ),
    "a quartic": (quartic, 0.0, "local"),
    "on a plateau": (lambda: saturating(0.1), None, "left the basin"),
    "on a plateau that λ_quad reaches by chance": (
        lambda: saturating(0.1, to_reference=1.0),
        NBETA,
        "left the basin",
    ),
    "a wrong L(w*)": (lambda: saturating(0.1, depth=0.1, to_reference=1.0), None, "local"),
    "at chance, where the loss still rises": (lambda: noisy_plateau(to_reference=1.0), 2.0, "left the basin"),
    "at chance, which nobody knows": (noisy_plateau, 2.0, "local"),
    "held by γ": (lambda: quadratic(WEAK, 1.0), quad_of(WEAK, 1.0), "localization only"),
    "held by γ, without a spectrum": (lambda: quadratic(WEAK, 1.0), None, "localization only"),
    "half of each direction": (lambda: quadratic(WEAK, 1e-2), quad_of(WEAK, 1e-2), "local"),
}


@pytest.mark.parametrize(("to_reference", "warm"), [(0.02, True), (1.0, False), (None, False)])
def test_a_quadratic_that_reaches_chance_says_what_the_most_is(to_reference, warm):
    found = character(quadratic(CURVED, 1.0, to_reference=to_reference), quad_of(CURVED, 1.0))
    assert found.name == "local"
    assert ("nbeta" in found.reason) == warm
    if warm:
        assert f"{NBETA * to_reference:.2g}" in found.reason


@pytest.mark.parametrize(("draws", "quad", "name"), CASES.values(), ids=CASES)
def test_the_character_of_a_run(draws, quad, name):
    assert character(draws(), quad).name == name


def test_nothing_is_told_of_an_energy_that_is_not_above_zero():
    draws = quadratic(CURVED, 1.0)
    draws = with_energies(draws, draws["posterior"]["llc"] - 10.0)
    assert character(draws) is None
    assert llc.report(draws).character is None


@pytest.mark.parametrize("name", ["on a plateau", "held by γ", "a quadratic"])
def test_a_report_prints_and_keeps_its_character(name, tmp_path):
    report = llc.report(CASES[name][0]())
    (line,) = (line for line in str(report).splitlines() if line.split()[:1] == ["character"])
    assert report.character.name in line
    assert json.loads(report.to_json())["character"]["name"] == report.character.name
    llc.save(report.draws, tmp_path / "run.nc")
    assert llc.report(llc.load(tmp_path / "run.nc")).character == report.character
    failed = {check.name for check in report.failed if check.kind == "scale"}
    assert (
        failed
        == {"left the basin": {"basin"}, "localization only": {"localization_only"}, "local": set()}[
            report.character.name
        ]
    )


def test_a_user_says_what_chance_is(tmp_path):
    draws = noisy_plateau()
    assert llc.report(draws).character.name == "local"
    report = llc.report(draws, reference_loss=1.1)
    assert report.character.name == "left the basin"
    llc.save(report.draws, tmp_path / "run.nc")
    assert llc.report(llc.load(tmp_path / "run.nc")).character == report.character
    assert "reference_loss" not in draws["constant_data"], "the draws are left as they are"
    with pytest.raises(ValueError, match="reference_loss needs a finite number"):
        llc.report(draws, reference_loss=math.nan)


def test_the_verdict_on_draws_that_left_is_unresolved():
    found = llc.report(saturating(0.1)).findings
    assert judge(found).verdict == "UNRESOLVED"
    stayed = dataclasses.replace(found, character=character(quadratic(CURVED, 1.0)))
    assert "left the basin" not in judge(stayed).reason
    assert isinstance(stayed, Findings)


@pytest.mark.parametrize(("name", "advice"), [("on a plateau", "leave gamma out"), ("held by γ", "gamma=")])
def test_advice_names_a_value_unless_the_program_chose_this_one(name, advice):
    draws = CASES[name][0]()
    (given,) = (check for check in llc.report(draws).failed if check.kind == "scale")
    assert advice in given.message
    draws.attrs["gamma_origin"] = "quadratic loss"
    (chosen,) = (check for check in llc.report(draws).failed if check.kind == "scale")
    assert advice not in chosen.message if name == "held by γ" else "gamma=1" in chosen.message
    draws.attrs["weaker_gamma"] = 0.123
    (named,) = (check for check in llc.report(draws).failed if check.kind == "scale")
    assert ("gamma=0.123" in named.message) == (name == "held by γ")


def test_the_named_gamma_shows_half_of_the_average_direction():
    (check,) = (check for check in llc.report(quadratic(WEAK, 1.0)).failed if check.kind == "scale")
    named = float(check.message.split("gamma=")[1].split(",")[0])
    share = NBETA * WEAK[0] / (NBETA * WEAK[0] + named)
    assert 0.4 < share < 0.6


@pytest.mark.parametrize(("gamma", "name"), [(1e-2, "left the basin"), (200.0, "local"), (1e4, "localization only")])
def test_a_sampler_that_leaves_a_basin(gamma, name):
    """1 − exp(−|w − w*|²/2) in 200 dimensions: nβ r² exp(−r²/2) < 200 everywhere, so that no bowl holds the draws."""
    posterior = llc.LocalPosterior(
        lambda w, _: 1 - jnp.exp(-0.5 * jnp.sum((w - 1) ** 2)), jnp.ones(200), np.zeros((1000, 1)), gamma=gamma
    )
    step_size = 0.5 / (float(posterior.nbeta) + gamma)
    report = llc.report(
        llc.sample(jax.random.key(0), posterior, llc.SGLD(step_size), num_warmup=2000, num_draws=300, progress=False)
    )
    assert report.character.name == name, str(report)
    assert float(report.draws["constant_data"]["reference_loss"]) == pytest.approx(1.0)
    if name == "left the basin":
        assert report.verdict == "UNRESOLVED"
        assert report.character.evidence.reference > 0.9


def test_chains_that_still_move_away_say_nothing_of_the_degree():
    """x·∇U of the steps before a draw, and ‖x‖² of the draw: in many dimensions the lag looks like a plateau."""
    gamma, curvatures = 30.0, np.full(200, 0.01)
    settled = quadratic(curvatures, gamma)
    assert character(settled).evidence.degree == pytest.approx(2)
    moving = settled.copy()
    moving["sample_stats"]["virial"] = moving["sample_stats"]["virial"] * 0.9  # as if ‖x‖ had been 5 % smaller
    found = character(moving)
    assert found.evidence.degree < 0
    assert found.name != "left the basin"
