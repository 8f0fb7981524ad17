"""One γ for all items: the largest that any asks for, against closed forms on L = Σ ½ hᵢ xᵢ² + a xᵢ⁴."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import llc
from llc.calibration.price import Price
from llc.sampling.run_lengths import RequestedLengths
from llc.sweeps.items import make_items
from llc.sweeps.scale import SurveyTask, survey, survey_all
from llc.sweeps.task import Key

DIM, NUM_DATA = 100, 4000
NBETA = NUM_DATA / np.log(NUM_DATA)
CURVATURES = 10.0 ** -np.linspace(0, 16, DIM)  # down to round-off, without a gap
QUARTIC = {"early": 1e-3, "middle": 100.0, "late": 1.0}
CHAINS = RequestedLengths(num_chains=4)


def posterior_of(quartic, curvatures=CURVATURES):
    def loss_fn(w, _):
        return jnp.sum(0.5 * jnp.asarray(curvatures, w.dtype) * w**2 + quartic * w**4)

    return llc.LocalPosterior(loss_fn, jnp.zeros(DIM), np.zeros((NUM_DATA, 1), np.float32))


def largest_with_kappa(quartic, wanted=2.0):
    """γ with κ = 2, from E x² = s and E x⁴ = 3 s² of a Gaussian."""

    def kappa(gamma):
        s = 1 / (NBETA * CURVATURES + gamma)
        return 1 + 6 * quartic * np.sum(s**2) / np.sum(CURVATURES * s)

    return brentq(lambda gamma: kappa(gamma) - wanted, 1e-6, 1e12)


def surveyed(posteriors, reference="late", **keywords):
    items = make_items(posteriors, **keywords)
    first = next(item for item in items if item.name == reference)
    task = SurveyTask(first, Key.of(jax.random.key(0)), None, CHAINS, Price(1e6, costly=False))
    return survey_all(task, first.posterior(), items, None, progress=False)


@pytest.mark.slow
def test_gamma_is_the_largest_that_an_item_asks_for():
    found, spectra = surveyed({name: posterior_of(quartic) for name, quartic in QUARTIC.items()})
    assert found is not None
    assert found.item == "middle"
    assert 0.8 < found.gamma / largest_with_kappa(QUARTIC["middle"]) < 1.25  # κ of 16 pairs has an error of 12 %
    assert found.gamma > 5 * largest_with_kappa(QUARTIC["late"]), "negative control: that of the reference is another"
    assert set(spectra) == set(QUARTIC)
    for spectrum in spectra.values():
        assert spectrum.largest == pytest.approx(CURVATURES[0], rel=1e-3)


@pytest.mark.slow
def test_items_with_a_rank_or_a_gamma_of_their_own_have_no_say():
    ranked = np.where(CURVATURES > 1e-2, 1.0, 0.0)
    posteriors = {"middle": posterior_of(QUARTIC["middle"], ranked), "late": posterior_of(QUARTIC["late"])}
    found, _ = surveyed(posteriors)
    assert found is not None
    assert found.item == "late"
    settings = {"own": {"gamma": 3.0}, "open": {}}
    found, spectra = surveyed(posterior_of(1.0), reference="open", settings=settings)
    assert found is not None
    assert found.item == "open"
    assert set(spectra) == {"open"}, "one whose γ is given is not looked at before it is run"


@pytest.mark.slow
def test_an_item_that_can_not_be_surveyed_sinks_nothing():
    params = {"broken": np.zeros(DIM - 1, np.float32), "late": np.zeros(DIM, np.float32)}
    found, spectra = surveyed(posterior_of(1.0), checkpoints=params)
    assert found is not None
    assert found.item == "late"
    assert set(spectra) == {"late"}


@pytest.mark.slow
def test_a_survey_says_what_it_found():
    item = make_items({"late": posterior_of(1.0)})[0]
    found = survey(SurveyTask(item, Key.of(jax.random.key(0)), None, CHAINS, Price(1e6, costly=False)))
    assert found.localization is not None
    assert f"{found.localization.gamma:.4g}" in str(found)


@pytest.mark.slow
@pytest.mark.study
def test_the_sweep_has_that_gamma_at_every_item():
    """And λ̂ at the item that the reference's own γ would not suit is about its λ_quad."""
    posteriors = {name: posterior_of(quartic) for name, quartic in QUARTIC.items()}
    lengths = {"num_chains": 2, "num_warmup": 400, "num_draws": 200, "thinning": 10}
    tree = llc.sweep(jax.random.key(0), posteriors, progress=False, **lengths)
    table = tree.to_dataset()
    assert "middle" in table.attrs["scale"]
    gamma = table["gamma"].to_numpy()
    assert np.ptp(gamma) == 0
    assert 0.8 < gamma[0] / largest_with_kappa(QUARTIC["middle"]) < 1.25
    ratio = table["llc"].to_numpy() / table["quad"].to_numpy()
    assert ((ratio > 0.3) & (ratio < 3)).all()
    assert table.attrs["reference"] == "late"
    for draws in tree["draws"].children.values():
        assert draws.attrs["gamma_origin"] == "sweep", "advice does not tell to leave γ out"
