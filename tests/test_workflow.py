"""The one call, against known values; and the finite-n value of a singular model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import log_grid

import llc
from llc.analysis.verdict import judge
from llc.workflow import split_key
from tests.support.models import deep_linear

KNOWN = {  # full-rank bottlenecks: λ(w*) = r (d_0 + d_L − r) / 2 (Aoyagi 2024)
    "4-2-4": (lambda: deep_linear([4, 2, 4], [2, 2]), 6.0),
    "5-3-4-5": (lambda: deep_linear([5, 3, 4, 5], [3, 3, 3]), 10.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["4-2-4", pytest.param("5-3-4-5", marks=pytest.mark.study)])
def test_estimate_of_a_known_model(name):
    make, known = KNOWN[name]
    given = make()
    posterior = llc.LocalPosterior(given.loss_fn, given.center, given.data)
    report = llc.estimate(jax.random.key(0), posterior, num_draws=500)
    # All of it is r/2: what is flat may be suppressed at both γ, and only bounds that meet say that nothing is.
    assert report.gaussian_only
    assert report.verdict == "SCALE_DEPENDENT", str(report)
    assert report.bounds.lower == known
    pinned = dataclasses.replace(report.findings, bounds=dataclasses.replace(report.bounds, upper=known))
    assert judge(pinned).verdict == "CONSISTENT"
    # λ_corr is γ-corrected to 2 % (docs/theory.md §4: −1.3 … +0.9 % at trained deep linear nets).
    assert abs(report.corrected.value - known) < 4 * report.corrected.mcse + 0.02 * known
    assert abs(1.2 * report.corrected.value - known) > 4 * report.corrected.mcse + 0.02 * known
    assert report.corrected.mcse < 0.02 * known


def quadratic(**scale):
    def loss_fn(w, batch):
        return 0.5 * jnp.sum(jnp.arange(1.0, 5.0) * w**2)

    return llc.LocalPosterior(loss_fn, jnp.zeros(4), np.zeros((1000, 1)), **scale)


@pytest.mark.slow
def test_gamma_is_chosen_and_reported():
    posterior = quadratic()
    report = llc.estimate(jax.random.key(0), posterior, num_warmup=500, num_draws=1000, thinning=2)
    nbeta = 1000 / np.log(1000)
    gamma = float(report.draws["constant_data"]["gamma"])
    assert gamma == pytest.approx(80 * nbeta * 4 / (0.5 * 2500))  # the quadratic is local at once
    step_size = report.settings["sampler"]["step_size"]
    assert step_size == pytest.approx(0.5 / (4 * nbeta + gamma))
    # On a quadratic, Leimkuhler–Matthews is exact: λ̂ is λ_quad, and λ_corr is d/2.
    assert abs(report.singular) < 4 * report.llc.mcse
    assert abs(report.corrected.value - 2.0) < 4 * report.corrected.mcse
    assert report.verdict == "CONSISTENT", str(report)
    assert report.settings["batch_size"] == 1000
    assert report.draws.attrs["gamma_origin"] == "run length"
    # The report says how each setting was chosen.
    assert report.calibration in "\n".join(line.removeprefix("  ") for line in str(report).splitlines())
    assert json.loads(report.to_json())["calibration"] == report.calibration.splitlines()
    assert [line.split()[0] for line in report.calibration.splitlines()][:3] == ["sampler", "step_size", "gamma"]


@pytest.mark.slow
@pytest.mark.study
def test_a_weak_localization_shrinks_the_step():
    """At γ = 1 the chains go where b ~ N(0, 1), and a is up to a hundred times as stiff as at w*."""
    data, nbeta = np.zeros((1000, 1)), 1000 / np.log(1000)
    center = {"a": jnp.zeros(()), "b": jnp.zeros(())}
    posterior = llc.LocalPosterior(
        lambda w, batch: 0.05 * w["a"] ** 2 + 0.5 * (w["a"] * w["b"]) ** 2, center, data, gamma=1.0
    )
    report = llc.estimate(jax.random.key(0), posterior, num_draws=4000)
    at_center = 0.5 / (0.1 * nbeta + 1)
    assert report.settings["sampler"]["step_size"] < 0.1 * at_center
    assert float(report.draws["constant_data"]["gamma"]) == 1.0, "what the user set is not overridden"
    exact = log_grid(lambda a, b: 0.05 * a**2 + 0.5 * (a * b) ** 2, 2, nbeta).mean
    assert abs(report.llc.value - exact) < 4 * report.llc.mcse
    assert report.llc.mcse < 0.05 * exact
    draws = llc.sample(jax.random.key(0), posterior, llc.SGLD(at_center), num_draws=4000, thinning=10)
    wrong = llc.mean_energy(draws)
    assert not abs(wrong.value - exact) < 4 * wrong.mcse, "negative control: the step of w*"


@pytest.mark.slow
def test_the_scale_may_be_given_or_taken_from_another_report():
    settings = {"num_draws": 100, "num_warmup": 100, "thinning": 1, "progress": False}
    first = llc.estimate(jax.random.key(0), quadratic(gamma=1.0), nbeta=50.0, gamma=3.0, **settings)
    second = llc.estimate(jax.random.key(1), quadratic(), like=first, **settings)
    for report in (first, second):
        constants = report.draws["constant_data"]
        assert (float(constants["nbeta"]), float(constants["gamma"])) == (50.0, 3.0)
        assert report.draws.attrs["gamma_origin"] == "given"
    for scale in ({"nbeta": 50.0}, {"gamma": 3.0}):
        with pytest.raises(ValueError, match="like needs nbeta and gamma to be None"):
            llc.estimate(jax.random.key(0), quadratic(), like=first, **scale)


def quartic(**scale):
    """(w1² + w2⁴)/2 at n = 1000."""
    data = np.zeros((1000, 1), np.float32)
    return llc.LocalPosterior(lambda w, batch: 0.5 * (w[0] ** 2 + w[1] ** 4), jnp.zeros(2), data, **scale)


def cross(w, _):
    return 0.5 * (w[0] * w[1]) ** 2


@pytest.mark.slow
@pytest.mark.study
def test_draws_are_added_up_to_the_target():
    posterior = llc.LocalPosterior(cross, jnp.zeros(2), np.zeros((1000, 1), np.float32), gamma=1.0)
    # A warm-up of three relaxations along an arm, 2 / εγ steps each: a shorter one leaves the arms to be filled.
    key = jax.random.key(1)  # 600 draws of key 0 fail `virial` (0.911 ± 0.028), which ends a run
    settings = {"num_draws": 600, "num_warmup": 20_000, "thinning": 400}
    report = llc.estimate(key, posterior, **settings, target_mcse=0.01)
    assert 600 < report.settings["num_draws"] <= 8 * 600
    assert report.llc.mcse <= 0.01 * report.llc.value
    assert report.draws["posterior"].sizes["draw"] == report.settings["num_draws"]
    exact = log_grid(lambda a, b: (a * b) ** 2 / 2, 2, 1000 / np.log(1000)).mean
    assert abs(report.llc.value - exact) < 4 * report.llc.mcse
    enough = llc.estimate(key, posterior, **settings, target_mcse=0.5)
    assert enough.settings["num_draws"] == 600
    first = enough.draws["posterior"]["llc"].to_numpy()
    np.testing.assert_array_equal(report.draws["posterior"]["llc"].to_numpy()[:, :600], first)


def test_no_draws_are_added_where_they_cure_nothing():
    """Four chains on a quadratic, ε three times too large for Euler–Maruyama: hot for ever."""
    posterior = quartic(gamma=1.0)
    step_size = 1.5 / (1000 / np.log(1000) + 1)
    sampler = llc.SGLD(step_size, integrator="euler_maruyama")
    report = llc.estimate(jax.random.key(0), posterior, sampler=sampler, num_draws=300, target_mcse=1e-6)
    assert report.settings["num_draws"] == 300
    assert report.failed_of_chains
    assert report.verdict == "UNRESOLVED"


@pytest.mark.slow
@pytest.mark.study
def test_the_correction_is_accepted_where_gamma_does_not_matter():
    """λ_corr at 3γ and at γ: the same on a quadratic, and on w⁴ what the exact values at the two say."""
    data = np.zeros((1000, 1), np.float32)
    quadratic = llc.LocalPosterior(lambda w, batch: 0.5 * jnp.sum(w**2), jnp.zeros(2), data, gamma=1.0)
    regular = llc.estimate(jax.random.key(0), quadratic, num_draws=500)
    assert regular.gamma_converged is True
    assert regular.verdict == "CONSISTENT", str(regular)
    # Chains that do not move at all do not move with γ either.
    dead = dataclasses.replace(regular, checks=(*regular.checks, dataclasses.replace(regular.checks[0], passed=False)))
    assert dead.gamma_converged is None
    # Where all of λ_corr is r/2, a localization may hide the rest: only bounds that meet accept it.
    hidden = llc.LocalPosterior(lambda w, batch: 0.5 * w[0] ** 2 + 1e-6 * w[1] ** 4, jnp.zeros(2), data, gamma=1.0)
    half = llc.estimate(jax.random.key(0), hidden, num_draws=500)
    assert abs(half.gamma_sensitivity.value) + 2 * half.gamma_sensitivity.mcse < 0.01
    assert half.gamma_converged is None
    assert half.gaussian_only
    assert half.verdict == "SCALE_DEPENDENT"
    pinned = dataclasses.replace(half, bounds=dataclasses.replace(half.bounds, lower=0.5, upper=0.5))
    assert pinned.gamma_converged is True
    singular = llc.estimate(jax.random.key(0), quartic(gamma=1.0))
    nbeta = 1000 / np.log(1000)
    near, far = (log_grid(lambda w: w**4 / 2, 1, nbeta, gamma).mean for gamma in (1.0, 3.0))
    assert abs(singular.gamma_sensitivity.value - (near - far)) < 4 * singular.gamma_sensitivity.mcse
    assert singular.gamma_sensitivity.mcse < 0.1 * (near - far)
    assert singular.gamma_converged is False
    assert singular.verdict == "SCALE_DEPENDENT"
    # An error that leaves both open decides nothing.
    vague = dataclasses.replace(singular, gamma_sensitivity=dataclasses.replace(singular.gamma_sensitivity, mcse=0.01))
    assert vague.gamma_converged is None
    # A lower bound that λ̂ = .737 has not reached yet is no contradiction: it still grows by .01 a factor 3 of γ.
    spectrum = llc.spectrum(quartic())
    bounds = dataclasses.replace(singular.bounds, lower=0.757, upper=1.0)
    assert singular.corrected.value + 3 * singular.corrected.mcse < 0.98 * 0.757
    near = llc.report(singular.draws, bounds=bounds, spectrum=spectrum)
    assert near.verdict == "SCALE_DEPENDENT", str(near)
    assert "below_bounds" not in {check.name for check in near.failed}
    bounds = dataclasses.replace(singular.bounds, lower=0.8, upper=1.0)
    held = llc.report(singular.draws, bounds=bounds, spectrum=spectrum)
    assert "below_bounds" in {check.name for check in held.failed}
    assert held.verdict == "SCALE_DEPENDENT"
    alone = singular.draws.copy()
    del alone["localized"]
    assert llc.report(alone, bounds=bounds, spectrum=spectrum).verdict == "BELOW"


@pytest.mark.slow
@pytest.mark.study
def test_large_data_are_sampled_in_minibatches():
    posterior = llc.LocalPosterior(lambda w, batch: 0.5 * jnp.sum(w**2), jnp.zeros(2), np.zeros((5000, 1)), gamma=1.0)
    report = llc.estimate(jax.random.key(0), posterior, num_warmup=10, num_draws=20, thinning=1)
    assert report.settings["batch_size"] == 512


def test_no_curvature_and_no_gamma_is_an_error():
    posterior = llc.LocalPosterior(lambda w, batch: jnp.sum(w**4), jnp.zeros(2), np.zeros((100, 1)))
    with pytest.raises(ValueError, match="needs a positive eigenvalue to set γ from"):
        llc.estimate(jax.random.key(0), posterior)


@pytest.mark.slow
@pytest.mark.study
def test_restricted_learning_coefficient():
    """Only the decoder moves: linear regression on the code, λ = 2 · 4 / 2."""
    posterior = deep_linear([4, 2, 4], [2, 2])
    restricted = llc.LocalPosterior(posterior.loss_fn, posterior.center, posterior.data, mask="1")
    report = llc.estimate(jax.random.key(0), restricted)
    assert (report.bounds.lower, report.bounds.upper) == (4, 4)
    assert abs(report.corrected.value - 4) < 4 * report.corrected.mcse
    assert report.verdict == "CONSISTENT", str(report)


@pytest.mark.slow
@pytest.mark.study
def test_a_spectrum_and_bounds_that_are_given_serve():
    """The certificate g ≡ 0 pins λ = 6 of 4-2-4; the report names it, and no other spectrum is computed."""
    given = deep_linear([4, 2, 4], [2, 2])
    posterior = llc.LocalPosterior(given.loss_fn, given.center, given.data)
    spectrum = llc.spectrum(posterior)
    bounds = llc.higher_bounds(posterior, spectrum, key=jax.random.key(1))
    assert bounds.lower == bounds.upper == 6
    report = llc.estimate(jax.random.key(0), posterior, spectrum=spectrum, bounds=bounds, num_draws=500)
    assert report.spectrum is spectrum
    assert (report.bounds.lower, report.bounds.upper) == (6, 6)
    assert report.bounds.source in str(report)
    again = llc.report(report.draws)
    assert again.bounds.source == report.bounds.source, "from the draws alone"
    assert again.bounds.records == report.bounds.records
    assert str(again) == str(report)


@pytest.mark.slow
def test_without_a_localization_there_is_no_other_run_to_compare_with():
    report = llc.estimate(jax.random.key(0), quadratic(gamma=0.0), num_draws=200)
    assert report.gamma_sensitivity is None
    assert report.gamma_converged is None
    assert report.corrected.value == report.llc.value, "nothing is suppressed"
    assert report.verdict == "CONSISTENT"


def test_a_report_keeps_what_was_proved_beyond_the_rank():
    posterior = quadratic(gamma=1.0)
    spectrum = llc.spectrum(posterior)
    bounds = llc.higher_bounds(posterior, spectrum, llc.rank_bounds(spectrum), key=jax.random.key(0))
    draws = llc.sample(jax.random.key(0), posterior, llc.SGLD(1e-3), num_warmup=10, num_draws=100)
    first = llc.report(draws, spectrum=spectrum, bounds=bounds)
    assert llc.report(first.draws, spectrum=spectrum).bounds.records == bounds.records
    assert llc.report(first.draws).bounds.records == bounds.records
    assert "curvature" not in draws


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize(("gamma", "hidden"), [(1.0, False), (1e6, True)])
def test_a_localization_that_hides_what_has_no_rank(gamma, hidden):
    """K = w⁴: there is no rank that λ_quad could be compared with; under a strong localization λ̂ ~ γ⁻²."""
    posterior = llc.LocalPosterior(lambda w, _: w[0] ** 4, jnp.zeros(1), np.zeros((1000, 1)), gamma=gamma)
    report = llc.estimate(jax.random.key(0), posterior)
    (check,) = (check for check in report.checks if check.name == "localization")
    assert check.passed != hidden, str(report)
    assert report.verdict == "SCALE_DEPENDENT", str(report)
    exact = [log_grid(lambda w: w**4, 1, 1000 / np.log(1000), g).mean for g in (gamma, 3 * gamma)]
    error = (
        4 * report.gamma_sensitivity.mcse / report.corrected.value + 4 * report.corrected.mcse / report.corrected.value
    )
    assert check.value == pytest.approx(1 - exact[1] / exact[0], abs=error)
    assert error < 0.1


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize(("gamma", "hidden"), [(1.0, False), (1e4, True)])
def test_a_localization_that_hides_what_is_counted_where_the_rank_is_open(gamma, hidden):
    """K = ½a² + b⁴ beside its minimum: one direction is sure, one is not. A strong localization shows nothing of
    either."""
    loss = lambda w, _: 0.5 * w[0] ** 2 + w[1] ** 4  # noqa: E731
    posterior = llc.LocalPosterior(loss, jnp.array([0.0, 1e-3]), np.zeros((1000, 1)), gamma=gamma)
    report = llc.estimate(jax.random.key(0), posterior)
    assert report.bounds.rank_interval == (1, 2)
    exact = 0.5 + log_grid(lambda b: b**4, 1, 1000 / np.log(1000), gamma).mean
    # Being 10⁻³ off the minimum moves E[nβb⁴] by some 6 nβ σ² 10⁻⁶ < 10⁻⁴, with σ the spread of b, at most .3.
    assert abs(report.corrected.value - exact) < 4 * report.corrected.mcse + 1e-4
    assert report.corrected.mcse < 0.01
    (check,) = (check for check in report.checks if check.name == "localization")
    assert check.passed != hidden, str(report)
    assert report.verdict == ("SCALE_DEPENDENT" if hidden else "CONSISTENT"), str(report)


def test_every_key_of_estimate_is_used_once():
    """None is a key that chains or pilots derive from another: with threefry, fold_in(key, i) is split(key, n)[i]."""
    keys = split_key(jax.random.key(0))
    own = [keys.pilots, *keys.runs, keys.localized, keys.half_step]

    def data(keys):
        return {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}

    assert len(data(own)) == len(own) == 6
    derived = data(jax.random.fold_in(key, i) for key in (*own, jax.random.key(9)) for i in range(32))
    assert not data(own) & derived
    first = jax.random.key(9)
    assert data([jax.random.fold_in(first, 1)]) & data(jax.random.split(first, 3)), "negative control"


@pytest.mark.slow
@pytest.mark.study
def test_observables_are_recorded_by_the_whole_way():
    """Of the draws that the report is on; what can't be recorded is refused before the pilots run."""
    posterior = llc.LocalPosterior(lambda w, x: 0.5 * (x @ w) ** 2, jnp.zeros(2), np.eye(2).repeat(50, axis=0))
    with pytest.raises(ValueError, match="'bad'"):
        llc.estimate(jax.random.key(0), posterior, observables={"bad": lambda w: w["missing"]}, progress=False)
    settings = {"sampler": llc.NUTS(), "num_warmup": 20, "num_draws": 40, "budget": 5000, "progress": False}
    report = llc.estimate(jax.random.key(0), posterior, observables={"norm": lambda w: jnp.sum(w**2)}, **settings)
    recorded = report.draws["observables"]["norm"]
    assert recorded.sizes == report.draws["posterior"].sizes
    np.testing.assert_allclose(recorded, report.draws["sample_stats"]["distance"] ** 2, rtol=1e-5)


@pytest.mark.slow
def test_a_reference_loss_holds_for_the_runs_beside_the_first_one_too(tmp_path):
    """And another one can be given to what is reported or loaded again."""
    settings = {"num_draws": 100, "num_warmup": 50, "thinning": 1, "sampler": llc.SGLD(1e-3)}
    report = llc.estimate(jax.random.key(0), quadratic(gamma=3.0), reference_loss=1.5, **settings)
    llc.save(llc.report(report.draws, reference_loss=2.5).draws, tmp_path / "run.nc")
    again = llc.report(llc.load(tmp_path / "run.nc"))
    for draws, reference in ((report.draws, 1.5), (again.draws, 2.5)):
        for constants in ("constant_data", "localized/constant_data"):
            assert float(draws[constants]["reference_loss"]) == reference
