"""A sweep whose reference is sampled with momentum."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc

DIM, NUM_DATA, GAMMA = 600, 100, 1.0
CURVATURES = np.logspace(-3, 1, DIM)


def quadratic(params, _):
    return 0.5 * params["scale"] * jnp.sum(jnp.asarray(CURVATURES, jnp.float32) * params["w"] ** 2)


@pytest.fixture(scope="module")
def swept():
    """Two quadratics whose curvatures differ by a factor of 4; the mask leaves the factor where it is."""
    data = np.zeros((NUM_DATA, 1), np.float32)
    checkpoints = {
        f"scale_{scale}": {"w": np.zeros(DIM, np.float32), "scale": np.float32(scale)} for scale in (4.0, 1.0)
    }
    mask = {"w": np.ones(DIM, bool), "scale": np.zeros((), bool)}
    template = llc.LocalPosterior(quadratic, checkpoints["scale_1.0"], data, gamma=GAMMA, mask=mask)
    lengths = {"num_warmup": 1000, "num_draws": 400, "thinning": 10}
    return llc.sweep(jax.random.key(0), template, checkpoints=checkpoints, progress=False, **lengths)


def sampler_of(swept, name):
    return json.loads(swept["draws"][name].attrs["settings"])["sampler"]


@pytest.mark.slow
@pytest.mark.study
def test_all_items_have_the_momentum_of_the_reference(swept):
    samplers = {name: sampler_of(swept, name) for name in ("scale_4.0", "scale_1.0")}
    assert {sampler["name"] for sampler in samplers.values()} == {"SGHMC"}
    kept = {name: sampler["friction"] * sampler["step_size"] ** 0.5 for name, sampler in samplers.items()}
    assert kept["scale_4.0"] == pytest.approx(kept["scale_1.0"], rel=1e-5)
    nbeta = NUM_DATA / np.log(NUM_DATA)
    stiffness = {
        scale: samplers[f"scale_{scale}"]["step_size"] * (nbeta * scale * CURVATURES[-1] + GAMMA)
        for scale in (4.0, 1.0)
    }
    assert stiffness[4.0] == pytest.approx(stiffness[1.0], rel=1e-3)


@pytest.mark.study
def test_values_are_exact(swept):
    """Of a quadratic λ̂ = ½ Σ nβh / (nβh + γ)."""
    nbeta = NUM_DATA / np.log(NUM_DATA)
    for row in (swept.to_dataset().sel(checkpoint=f"scale_{scale}") for scale in (4.0, 1.0)):
        stiff = nbeta * float(str(row["checkpoint"].values).removeprefix("scale_")) * CURVATURES
        exact = 0.5 * np.sum(stiff / (stiff + GAMMA))
        assert abs(float(row["llc"]) - exact) < 4 * float(row["mcse"]) + 1e-3 * exact
