"""Estimators on draws with a known law, made by hand: no sampler is involved."""

import json

import arviz_base
import numpy as np
import pytest
import xarray as xr

import llc
from llc.analysis.pointwise import small_sample_factor
from llc.analysis.series import monte_carlo_error, split_rhat

N, NBETA = 1000, 1000 / np.log(1000)


def make_draws(values, *, num_data=N, nbeta=NBETA, eval_size=None, init_loss=0.3, num_params=4, gamma=1.0):
    """Draws with the given llc (chain, draw) and nothing else to see."""
    values = np.asarray(values, float)
    ones = np.ones_like(values)
    tree = arviz_base.from_dict(
        {
            "posterior": {"loss": init_loss + values / nbeta, "llc": values},
            "sample_stats": {
                "virial": ones,
                "potential": nbeta * init_loss + values + gamma / 2,
                "grad_norm": ones,
                "distance": ones,
                "diverging": ones > 1,
            },
            "constant_data": {
                "init_loss": init_loss,
                "nbeta": nbeta,
                "gamma": gamma,
                "num_data": num_data,
                "num_params": num_params,
                "eval_size": num_data if eval_size is None else eval_size,
            },
        }
    )
    tree.attrs.update(
        settings=json.dumps({"sampler": {"name": "NUTS"}}), sampler="NUTS", seed="[0, 0]", versions=json.dumps({})
    )
    return tree


def autoregressive(rng, shape, correlation):
    """AR(1) with standard normal margins."""
    noise = rng.normal(size=shape) * np.sqrt(1 - correlation**2)
    series = np.empty(shape)
    series[:, 0] = rng.normal(size=shape[0])
    for i in range(1, shape[1]):
        series[:, i] = correlation * series[:, i - 1] + noise[:, i]
    return series


@pytest.mark.parametrize("learning_coefficient", [0.5, 2.0, 30.0])
def test_mean_and_variance_of_a_gamma_energy(learning_coefficient):
    """tK is Gamma(λ, 1): mean λ, variance λ (docs/theory.md §1)."""
    draws = make_draws(np.random.default_rng(0).gamma(learning_coefficient, size=(4, 4000)))
    for estimate in (llc.mean_energy(draws), llc.energy_variance(draws)):
        assert abs(estimate.value - learning_coefficient) < 4 * estimate.mcse
        assert abs(1.2 * estimate.value - learning_coefficient) > 4 * estimate.mcse
        assert len(estimate.per_chain) == 4
        np.testing.assert_allclose(np.mean(estimate.per_chain), estimate.value, rtol=0.01)
    assert 3000 * 4 < llc.mean_energy(draws).ess < 6000 * 4


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [pytest.param(0.0, marks=pytest.mark.study), 0.9])
def test_standard_error_covers(correlation):
    """The 95 % interval holds the truth in 95 % of 400 repeats, within 4 binomial standard errors."""
    rng = np.random.default_rng(1)
    covered, draws = 0, make_draws(np.zeros((4, 500)))
    for _ in range(400):
        values = autoregressive(rng, (4, 500), correlation)
        draws["posterior"] = draws["posterior"].to_dataset().assign(llc=(("chain", "draw"), values))
        estimate = llc.mean_energy(draws)
        covered += abs(estimate.value) < 1.96 * estimate.mcse
    share, error = covered / 400, np.sqrt(0.95 * 0.05 / 400)
    assert abs(share - 0.95) < 4 * error, share
    # Negative control: the spread of draws over √(number of draws), blind to autocorrelation.
    if correlation:
        naive = np.mean(
            [
                abs(x.mean()) < 1.96 * x.std() / np.sqrt(x.size)
                for x in (autoregressive(rng, (4, 500), correlation) for _ in range(400))
            ]
        )
        assert abs(naive - 0.95) > 4 * error


def test_a_dead_chain_is_left_out_and_named():
    values = np.random.default_rng(0).gamma(2.0, size=(4, 1000))
    values[2, 700:] = np.nan
    estimate = llc.mean_energy(make_draws(values))
    assert estimate.value == pytest.approx(values[[0, 1, 3]].mean())
    assert np.isnan(estimate.per_chain).tolist() == [False, False, True, False]
    nothing = llc.mean_energy(make_draws(np.full((2, 100), np.nan)))
    assert np.isnan(nothing.value)
    assert (nothing.mcse, nothing.ess) == (np.inf, 0)


def test_chains_that_do_not_move_have_no_effective_draws():
    estimate = llc.mean_energy(make_draws(np.ones((4, 100))))
    assert (estimate.ess, estimate.mcse, estimate.rhat) == (0, np.inf, np.inf)
    assert monte_carlo_error(np.ones((1, 3))) == np.inf
    assert split_rhat(np.random.default_rng(0).normal(size=(1, 1000))) < 1.01


def test_wbic_is_the_free_energy_only_at_its_temperature():
    values = np.random.default_rng(0).gamma(2.0, size=(4, 1000))
    draws = make_draws(values)
    estimate = llc.wbic(draws)
    assert estimate.value == pytest.approx(N * (0.3 + values.mean() / NBETA))
    assert estimate.mcse == pytest.approx(N / NBETA * llc.mean_energy(draws).mcse)
    assert llc.wbic(make_draws(values, nbeta=2 * NBETA)) is None


def _with_pointwise(differences, init_losses, *, num_data, eval_size, blocks=5):
    """Draws of per-example loss differences (chain, draw, example), with moments as the sampling loop keeps them."""
    nbeta = num_data / np.log(num_data)
    draws = make_draws(
        nbeta * differences.mean(axis=2),
        num_data=num_data,
        nbeta=nbeta,
        eval_size=eval_size,
        init_loss=init_losses.mean(),
    )
    parts = np.split(differences, blocks, axis=1)
    moments = {
        "first": np.stack([part.mean(axis=1) for part in parts]),
        "second": np.stack([(part**2).mean(axis=1) for part in parts]),
        "exponential": np.stack([np.exp(-part).mean(axis=1) for part in parts]),
    }
    variables = {name: (("block", "chain", "example"), value) for name, value in moments.items()}
    variables["num_draws"] = (("block",), np.full(blocks, parts[0].shape[1]))
    draws["pointwise"] = xr.DataTree(xr.Dataset(variables))
    return draws


def _normal_model(rng, num_data, shape):
    """y_i ~ N(μ, 1), flat prior, at inverse temperature β: μ | y ~ N(ȳ, 1 / (nβ)), everything in closed form."""
    targets = rng.normal(size=num_data)
    beta = 1 / np.log(num_data)
    means = targets.mean() + rng.normal(size=shape) / np.sqrt(num_data * beta)
    losses = 0.5 * (targets - means[..., None]) ** 2 + 0.5 * np.log(2 * np.pi)
    init = 0.5 * (targets - targets.mean()) ** 2 + 0.5 * np.log(2 * np.pi)
    return targets, beta, losses, init


def test_the_error_of_a_subset_of_examples_is_part_of_the_standard_error():
    """WBIC, WAIC and ν on 100 of 2,000 examples scatter over subsets as much as they say, around that of all."""
    num_data, size, repeats = 2000, 100, 60
    rng = np.random.default_rng(4)
    _, _, losses, init = _normal_model(rng, num_data, (2, 200))

    def estimates(rows):
        draws = _with_pointwise((losses - init)[..., rows], init, num_data=num_data, eval_size=len(rows))
        return {estimate.method: estimate for estimate in (llc.waic(draws), llc.singular_fluctuation(draws))}

    whole = estimates(np.arange(num_data))
    found = [estimates(rng.choice(num_data, size, replace=False)) for _ in range(repeats)]
    for method, exact in whole.items():
        # The draws are the same, so their part of the error is left out.
        z = [(some[method].value - exact.value) ** 2 / (some[method].mcse ** 2 - exact.mcse**2) for some in found]
        assert abs(np.sqrt(np.mean(z)) - 1) < 4 / np.sqrt(2 * repeats), method
        spread = np.std([some[method].value for some in found])
        assert spread > 1.5 * exact.mcse, "negative control: the error of the draws alone is too small"


def test_waic_and_singular_fluctuation_of_a_normal_mean():
    num_data = 50
    targets, beta, losses, init = _normal_model(np.random.default_rng(2), num_data, (4, 2000))
    draws = _with_pointwise(losses - init, init, num_data=num_data, eval_size=num_data)
    # With v = 1 / (nβ) and r = y − ȳ: Var[(y − μ)² / 2] = v r² + v² / 2, and E[p(y|μ)] = N(y; ȳ, 1 + v).
    variance = 1 / (num_data * beta)
    residuals = targets - targets.mean()
    spread = np.sum(variance * residuals**2 + variance**2 / 2)
    training = np.mean(0.5 * residuals**2 / (1 + variance) + 0.5 * np.log(2 * np.pi * (1 + variance)))
    exact = {"nu": 0.5 * beta * spread, "waic": training + beta / num_data * spread}
    wrong = {"nu": beta * spread, "waic": training}  # negative controls: without the ½, without the second term
    for name, estimate in (("nu", llc.singular_fluctuation(draws)), ("waic", llc.waic(draws))):
        assert 0 < estimate.mcse < 0.05 * exact[name]
        assert abs(estimate.value - exact[name]) < 4 * estimate.mcse
        assert abs(estimate.value - wrong[name]) > 4 * estimate.mcse
    assert llc.waic(make_draws(np.ones((2, 10)))) is None
    assert llc.singular_fluctuation(make_draws(np.ones((2, 10)))) is None


@pytest.mark.slow
@pytest.mark.study
def test_error_of_an_evaluation_subset():
    """λ̂ from 20 of 400 examples: over subsets it spreads by what the standard error says, and is not biased.

    One set of draws of μ serves all subsets, so the spread comes from the subset alone.
    """
    num_data, size, repeats = 400, 20, 300
    rng = np.random.default_rng(3)
    _, _, losses, init = _normal_model(rng, num_data, (2, 500))
    differences = losses - init
    nbeta = num_data / np.log(num_data)
    full = nbeta * differences.mean()
    z = []
    for _ in range(repeats):
        rows = rng.choice(num_data, size, replace=False)
        draws = _with_pointwise(differences[..., rows], init[rows], num_data=num_data, eval_size=size)
        subset_only = np.sqrt(
            llc.mean_energy(draws).mcse ** 2 - monte_carlo_error(draws["posterior"]["llc"].values) ** 2
        )
        z.append((llc.mean_energy(draws).value - full) / subset_only)
    z = np.array(z)
    assert abs(z.mean()) < 4 * z.std() / np.sqrt(repeats)
    # Without the factor of Student's law: 300 values of t with 19 degrees of freedom, variance 19/17 ± its error.
    plain = z * small_sample_factor(size)
    assert abs(plain.var() - 19 / 17) < 4 * np.sqrt(2.4 / repeats) * 19 / 17


@pytest.mark.parametrize("size", [3, 6, 20])
def test_intervals_from_a_small_normal_subset_cover(size):
    """1.96 errors hold 95 %; negative control: without Student's law they do not."""
    rng, repeats = np.random.default_rng(0), 20_000
    values = rng.normal(size=(repeats, size))
    errors = values.std(axis=1, ddof=1) / np.sqrt(size)
    z, binomial = values.mean(axis=1) / errors / 1.96, np.sqrt(0.95 * 0.05 / repeats)
    assert abs(np.mean(np.abs(z) < small_sample_factor(size)) - 0.95) < 4 * binomial
    assert abs(np.mean(np.abs(z) < 1) - 0.95) > 4 * binomial


def test_a_subset_of_one_example_has_no_finite_error():
    rng = np.random.default_rng(3)
    _, _, losses, init = _normal_model(rng, 400, (2, 500))
    draws = _with_pointwise((losses - init)[..., :1], init[:1], num_data=400, eval_size=1)
    for estimate in (llc.mean_energy(draws), llc.waic(draws), llc.singular_fluctuation(draws)):
        assert np.isfinite(estimate.value)
        assert estimate.mcse == np.inf
    report = llc.report(draws)
    assert report.verdict == "UNRESOLVED"


@pytest.mark.slow
def test_energy_variance_subtracts_the_subset_noise():
    num_data, size = 400, 20
    rng = np.random.default_rng(4)
    _, _, losses, init = _normal_model(rng, num_data, (2, 500))
    differences = losses - init
    nbeta = num_data / np.log(num_data)
    full = nbeta**2 * differences.mean(axis=2).var()
    corrected, raw = [], []
    for _ in range(200):
        rows = rng.choice(num_data, size, replace=False)
        draws = _with_pointwise(differences[..., rows], init[rows], num_data=num_data, eval_size=size)
        corrected.append(llc.energy_variance(draws).value)
        raw.append(draws["posterior"]["llc"].values.var())
    error = np.std(corrected) / np.sqrt(200)
    assert abs(np.mean(corrected) - full) < 4 * error
    assert abs(np.mean(raw) - full) > 4 * error


def test_the_error_of_fitted_coefficients_is_counted():
    """A heavy-tailed control variate bends its own coefficient: only with that part of the error do intervals cover."""
    rng, repeats = np.random.default_rng(0), 200
    covered = {"zero variance": 0, "its draws alone": 0}
    energies = rng.gamma(0.5, size=(repeats, 4, 100))
    controls = energies**3 - 0.5 * 1.5 * 2.5  # E[x³] of Gamma(½, 1)
    draws = make_draws(energies[0])
    stats, values = draws["sample_stats"].to_dataset(), draws["posterior"].to_dataset()
    draws["constant_data"] = draws["constant_data"].to_dataset().assign(trace_curved=0.0)
    for energy, control in zip(energies, controls, strict=True):
        dims = ("chain", "draw")
        draws["posterior"] = values.assign(llc=(dims, energy))
        draws["sample_stats"] = stats.assign(stein_curved=(dims, control), stein_flat=(dims, 0 * control))
        found = llc.zero_variance(draws)
        assert found is not None
        fitted = (energy.mean() - found.value) / control.mean()
        alone = monte_carlo_error(energy - fitted * control)
        covered["zero variance"] += abs(found.value - 0.5) < 1.96 * found.mcse
        covered["its draws alone"] += abs(found.value - 0.5) < 1.96 * alone
    lowest = 0.95 - 4 * np.sqrt(0.95 * 0.05 / repeats)
    assert covered["zero variance"] / repeats > lowest
    assert not covered["its draws alone"] / repeats > lowest, "negative control"


def test_two_temperatures_need_no_init_loss():
    """E[L] = L(w*) + λ/t for tK ~ Gamma(λ, 1): λ from two t, whatever is taken for L(w*)."""
    rng, wrong = np.random.default_rng(5), 0.2
    runs = []
    for nbeta in (50.0, 200.0):
        energy = rng.gamma(1.5, size=(4, 4000)) + nbeta * wrong
        runs.append(make_draws(energy, nbeta=nbeta, init_loss=0.3 - wrong))
    found = llc.two_temperatures(*runs)
    assert abs(found.value - 1.5) < 4 * found.mcse
    assert found.mcse == pytest.approx(np.hypot(1 / 50, 1 / 200) * np.sqrt(1.5 / 16_000) / (1 / 50 - 1 / 200), rel=0.1)
    plain = llc.mean_energy(runs[1])
    assert not abs(plain.value - 1.5) < 4 * plain.mcse, "negative control: the mean energy needs L(w*)"
    with pytest.raises(ValueError, match=r"needs two nβ, the smaller one first, got 200 and 50"):
        llc.two_temperatures(*runs[::-1])
    other = make_draws(np.ones((4, 10)), nbeta=200.0, init_loss=0.5)
    with pytest.raises(ValueError, match=r"needs the same init_loss in both runs, got 0.1 and 0.5"):
        llc.two_temperatures(runs[0], other)


def test_control_variates_that_raise_the_error_are_left_out():
    """With rare large values, whose few batches bend the coefficients: the mean energy has the smaller error."""
    rng = np.random.default_rng(7)
    energy = rng.gamma(1.5, size=(4, 500))
    draws = make_draws(energy)
    stats, dims = draws["sample_stats"].to_dataset(), ("chain", "draw")
    draws["constant_data"] = draws["constant_data"].to_dataset().assign(trace_curved=0.0)
    curved = rng.standard_t(1.2, size=(4, 500))  # no part of the energy, and next to no variance
    draws["sample_stats"] = stats.assign(stein_curved=(dims, curved), stein_flat=(dims, 0 * energy))
    assert llc.zero_variance(draws).mcse > llc.mean_energy(draws).mcse
    assert llc.best_energy(draws) == llc.mean_energy(draws)
    assert llc.report(draws).llc.method == "mean energy"


def test_control_variates_are_left_out_after_a_divergence():
    rng = np.random.default_rng(6)
    energy = rng.gamma(1.5, size=(4, 500))
    draws = make_draws(energy)
    stats, dims = draws["sample_stats"].to_dataset(), ("chain", "draw")
    draws["constant_data"] = draws["constant_data"].to_dataset().assign(trace_curved=0.0)
    stats = stats.assign(stein_curved=(dims, energy - 1.5), stein_flat=(dims, 0 * energy))
    draws["sample_stats"] = stats
    assert llc.best_energy(draws) == llc.zero_variance(draws)
    assert llc.report(draws).llc.method == "zero variance"
    diverging = np.zeros((4, 500), bool)
    diverging[2, 7] = True
    draws["sample_stats"] = stats.assign(diverging=(dims, diverging))
    assert llc.best_energy(draws) == llc.mean_energy(draws)
    methods = [estimate.method for estimate in llc.report(draws).estimates]
    assert methods[:2] == ["mean energy", "energy variance"]
