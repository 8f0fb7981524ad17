"""Influence and the loss kernel: exact values on a Gaussian, errors that hold, moments like draws, refusals."""

import numpy as np
import pytest
from arviz_stats.base.array import array_stats

import llc
from tests.support.gaussian import NBETA, Regression, in_blocks, tree

CASE = Regression()
DRAWS = CASE.draws()


def z_scores(found, exact):
    return (found["value"].to_numpy() - exact) / found["mcse"].to_numpy()


def test_influence_is_the_negative_covariance_of_the_closed_form():
    z = z_scores(llc.influence(DRAWS, "train", "probe"), -CASE.loss_covariances())
    assert np.abs(z).max() < 5  # of 300
    assert 0.7 < np.sqrt(np.mean(z**2)) < 1.3


def test_another_scale_is_told_apart():
    """The negative control: the errors are small enough to tell covariances that are a tenth larger."""
    z = z_scores(llc.influence(DRAWS, "train", "probe"), -1.3 * CASE.loss_covariances())
    assert np.abs(z).max() > 5


def test_second_order_term_is_seen():
    first_order = np.outer(CASE.residual, CASE.probe_residual) * (CASE.x @ CASE.covariance() @ CASE.probe_x.T)
    assert np.abs(z_scores(llc.influence(DRAWS, "train", "probe"), -first_order)).max() > 5


def test_kernel_and_correlation_are_those_of_the_closed_form():
    exact, (v, w) = CASE.loss_covariances(), CASE.loss_variances()
    assert np.abs(z_scores(llc.loss_kernel(DRAWS, "train", "probe"), exact)).max() < 5
    z = z_scores(llc.loss_kernel(DRAWS, "train", "probe", correlation=True), exact / np.sqrt(np.outer(v, w)))
    assert np.abs(z).max() < 5
    assert 0.7 < np.sqrt(np.mean(z**2)) < 1.3
    own = llc.loss_kernel(DRAWS, "probe", correlation=True)
    assert own["value"].dims == ("probe_row", "probe_row_2")
    np.testing.assert_allclose(np.diag(own["value"]), 1, rtol=1e-6)


def test_influence_of_all_the_data_is_that_of_its_rows():
    whole, rows = llc.influence(DRAWS, "loss", "probe"), llc.influence(DRAWS, "train", "probe")
    np.testing.assert_allclose(whole["value"], rows["value"].mean("train_row"), rtol=1e-4, atol=1e-9)


def test_influence_times_nbeta_tends_to_that_of_one_newton_step():
    """−gᵢᵀ(H + γ/nβ)⁻¹gⱼ, up to the second order, which is known here."""
    sigma = CASE.covariance()
    newton = -np.outer(CASE.residual, CASE.probe_residual) * (CASE.x @ (NBETA * sigma) @ CASE.probe_x.T)
    second = -NBETA * 0.5 * (CASE.x @ sigma @ CASE.probe_x.T) ** 2
    found = llc.influence(DRAWS, "train", "probe")
    z = (NBETA * found["value"] - newton - second) / (NBETA * found["mcse"])
    assert np.abs(z).max() < 5


def test_influence_says_what_leaving_one_out_does():
    """Every row is left out and the regression solved again; the control leaves out other rows than are predicted."""
    truth = []
    for i in range(len(CASE.x)):
        rest = np.arange(len(CASE.x)) != i
        solution = np.linalg.lstsq(CASE.x[rest], CASE.y[rest], rcond=None)[0]
        truth.append(0.5 * (CASE.probe_x @ solution - CASE.probe_y) ** 2 - 0.5 * CASE.probe_residual**2)
    found = llc.influence(DRAWS, "train", "probe")
    predicted = -NBETA / len(CASE.x) * found["value"].to_numpy()
    classical = np.outer(CASE.residual, CASE.probe_residual) * (CASE.x @ np.linalg.inv(CASE.hessian) @ CASE.probe_x.T)
    for estimate in (predicted, classical / len(CASE.x)):
        assert np.corrcoef(np.ravel(truth), estimate.ravel())[0, 1] > 0.9
        assert abs(np.corrcoef(np.roll(truth, 7, axis=0).ravel(), estimate.ravel())[0, 1]) < 0.5


@pytest.mark.parametrize(("first", "second"), [("train", "probe"), ("probe", "train")])
def test_moments_in_blocks_give_what_the_draws_give(first, second):
    blocks = in_blocks(DRAWS, "train", "probe")
    for function in (llc.influence, llc.loss_kernel):
        kept, found = function(DRAWS, first, second), function(blocks, first, second)
        np.testing.assert_allclose(found["value"], kept["value"], rtol=1e-3, atol=1e-7)
        assert found["value"].dims == kept["value"].dims
        assert 0.7 < float((found["mcse"] / kept["mcse"]).mean()) < 1.4  # 20 stretches and 40
    correlation = llc.loss_kernel(blocks, first, second, correlation=True)["value"]
    np.testing.assert_allclose(
        correlation, llc.loss_kernel(DRAWS, first, second, correlation=True)["value"], rtol=1e-3, atol=1e-5
    )


def test_error_is_arviz_mcse_of_the_products_for_correlated_draws():
    draws = CASE.draws(phi=0.8)
    a = draws["observables"]["ood"].to_numpy().astype(np.float64)
    products = (a - a.mean()) ** 2
    expected = products.std() / np.sqrt(array_stats.ess(products, chain_axis=0, draw_axis=1, method="mean"))
    found = llc.loss_kernel(draws, "ood")
    assert 0.7 < float(found["mcse"]) / expected < 1.4
    assert abs(float(found["value"]) - a.var()) < 1e-9


def test_chains_that_disagree_widen_the_error():
    """The negative control of `chain_ratio`: each chain has a covariance of its own, which its stretches agree on."""
    scale = np.array([0.5, 1.0, 1.5, 2.0])[:, None]
    normal = np.random.default_rng(3).normal(size=(4, 2000)) * scale
    good, bad = tree(normal / scale, {"a": normal / scale}, 2), tree(normal, {"a": normal}, 2)
    good, bad = llc.loss_kernel(good, "a"), llc.loss_kernel(bad, "a")
    assert float(good["chain_ratio"]) < 4
    assert float(bad["chain_ratio"]) > 10  # of 13, where stretches of one chain agree
    assert float(bad["mcse"]) > 0.5  # the spread of scale² over chains, and not that of their stretches
    assert float(good["mcse"]) < 0.05


def test_dead_chain_is_left_out():
    dead = DRAWS.copy(deep=True)
    for group, name in (
        ("posterior", "loss"),
        ("posterior", "llc"),
        ("observables", "train"),
        ("observables", "probe"),
    ):
        dead[group][name].to_numpy()[1, 100:] = np.nan
    expected = llc.influence(DRAWS.isel(chain=[0, 2, 3]), "train", "probe")
    np.testing.assert_array_equal(llc.influence(dead, "train", "probe")["value"], expected["value"])


@pytest.mark.parametrize(
    ("change", "names", "named"),
    [
        (lambda draws: draws, ("train", "test"), "test"),
        (lambda draws: draws.isel(draw=slice(1)), ("train", "probe"), "num_draws"),
        (lambda draws: in_blocks(draws, "train", "train"), ("train", "train"), "covariance_with"),
        (lambda draws: draws.drop_nodes("observables"), ("train", "probe"), "observables"),
    ],
    ids=["unknown", "one draw", "moments without covariance", "no observables"],
)
def test_what_was_not_recorded_is_refused(change, names, named):
    with pytest.raises(ValueError, match=named):
        llc.influence(change(DRAWS), *names)


def test_correlation_with_the_loss_is_refused():
    with pytest.raises(ValueError, match="correlation"):
        llc.loss_kernel(DRAWS, "loss", "probe", correlation=True)


def test_draws_with_observables_survive_a_file(tmp_path):
    llc.save(DRAWS, tmp_path / "run.nc")
    found = llc.influence(llc.load(tmp_path / "run.nc"), "train", "probe")
    np.testing.assert_array_equal(found["value"], llc.influence(DRAWS, "train", "probe")["value"])
