"""λ̂ at other temperatures from one run, against exact values; and where it is not to be trusted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from exact import log_grid

import llc

pytestmark = pytest.mark.optimized
NBETA = 1000 / np.log(1000)


@pytest.fixture(scope="module")
def draws():
    """(w1² + w2⁴)/2 by MALA, which is exact."""
    data = np.zeros((1000, 1), np.float32)
    posterior = llc.LocalPosterior(lambda w, _: 0.5 * (w[0] ** 2 + w[1] ** 4), jnp.zeros(2), data, NBETA, gamma=1.0)
    return llc.sample(jax.random.key(1), posterior, llc.MALA(), num_draws=8000, thinning=4, progress=False)


def exact(nbeta):
    return log_grid(lambda a, b: 0.5 * (a**2 + b**4), 2, nbeta).mean


@pytest.mark.slow
def test_against_exact_values(draws):
    nbetas = NBETA * np.array([0.5, 0.8, 1.0, 1.5, 2.5])
    curve = llc.temperature_curve(draws, nbetas)
    assert curve.trusted.all()
    truth = np.array([exact(nbeta) for nbeta in nbetas])
    assert (np.abs(curve.value - truth) < 4 * curve.mcse).all()
    assert (curve.mcse < 0.05 * truth).all()
    one = llc.mean_energy(draws)
    assert curve.value[2] == pytest.approx(one.value)
    assert curve.mcse[2] == pytest.approx(one.mcse, rel=1e-6)
    assert curve.ess[2] == pytest.approx(one.ess, rel=0.05)
    # Negative control: the energy of the run itself, with another nβ in front.
    assert not abs(2.5 * one.value - truth[-1]) < 4 * 2.5 * one.mcse


@pytest.mark.slow
def test_what_can_not_be_reached_is_not_trusted(draws):
    """Hotter by 50 the run has no draws; what it says there is wrong."""
    curve = llc.temperature_curve(draws, [NBETA / 50, NBETA])
    assert list(curve.trusted) == [False, True]
    assert abs(curve.value[0] - exact(NBETA / 50)) > 0.1 * exact(NBETA / 50)
    assert "not trusted" in str(curve)
    assert "trusted from" in str(curve)


def test_the_reach_is_shorter_where_lambda_is_larger():
    """Energies of Gamma laws: E at t' is λ, and a λ of 100 reaches less far than one of 1."""
    rng = np.random.default_rng(0)
    reach = {}
    for shape in (1.0, 100.0):
        energy = rng.gamma(shape, size=(4, 5000))
        tree = _tree(energy)
        curve = llc.temperature_curve(tree)
        inside = curve.trusted
        assert (np.abs(curve.value - shape)[inside] < 4 * curve.mcse[inside]).all()
        reach[shape] = np.log(curve.nbeta[inside].max() / curve.nbeta[inside].min())
    assert reach[1.0] > 2 * reach[100.0] > 0


def _tree(energy, eval_size=100.0):
    names = {"nbeta": 10.0, "gamma": 1.0, "num_data": 100.0, "eval_size": eval_size}
    return xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset({"llc": (("chain", "draw"), energy)}),
            "constant_data": xr.Dataset(names),
        }
    )


@pytest.mark.parametrize(
    ("nbetas", "change", "message"),
    [
        ([1.0, -1.0], {}, "nbetas needs positive numbers"),
        ([], {}, "nbetas needs positive numbers"),
        (None, {"eval_size": 50.0}, "temperature_curve needs the loss on all 100 examples, got it on 50"),
    ],
)
def test_wrong_input(nbetas, change, message):
    with pytest.raises(ValueError, match=message):
        llc.temperature_curve(_tree(np.ones((2, 10)), **change), nbetas)
    with pytest.raises(ValueError, match="draws need at least 25 of finite chains"):
        llc.temperature_curve(_tree(np.full((2, 10), np.nan)))


@pytest.mark.slow
def test_plot(draws, tmp_path):
    assert llc.plot_temperature(draws).has_data()
    ax = llc.plot_temperature(llc.temperature_curve(draws, NBETA * np.geomspace(0.02, 4, 30)))
    labels = ax.get_legend_handles_labels()[1]
    assert "not trusted" in labels
    assert any("reweighted" in label for label in labels)
    ax.figure.savefig(tmp_path / "temperature.png")
    nowhere = dataclasses.replace(llc.temperature_curve(draws), trusted=np.zeros(41, bool))
    assert "not trusted" in llc.plot_temperature(nowhere).get_legend_handles_labels()[1]
    assert "trusted nowhere" in str(nowhere)
