"""Numbers against exact values: least squares in any tree, degenerate minima, at ordinary and at extreme scales."""

import jax
import numpy as np
import pytest
import robustness_values as fuzz
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.support import fuzzed
from tests.support.tiers import weekly

SEEDS = st.integers(0, 2**32 - 1)
STRUCTURES = {  # few, as each is a program of its own
    "module with a mask, by SGLD": fuzz.Structure("quadratic", "float32", "module", "*.weight", "SGLD"),
    "empty leaf, by MALA": fuzz.Structure("quadratic", "float32", "empty leaf", None, "MALA"),
}


def outcome_of(structure, seed):
    rng = np.random.default_rng(seed)
    problem = (fuzz.quadratic if structure.kind == "quadratic" else fuzz.singular)(rng, structure)
    with jax.enable_x64(structure.dtype == "float64"):
        return fuzz.outcome(problem, structure.sampler, jax.random.key(seed))


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(STRUCTURES, but=("module with a mask, by SGLD",)))
def test_values_are_right_or_refused_by_name(name):
    @fuzzed(8)
    @given(SEEDS)
    def check(seed):
        outcome = outcome_of(STRUCTURES[name], seed)
        assert outcome.kind in ("right", "refused"), outcome.detail

    check()


@pytest.mark.slow
def test_a_wrong_value_would_be_seen():
    """Negative control: an exact value that is 1 % larger."""
    structure = STRUCTURES["module with a mask, by SGLD"]
    problem = fuzz.quadratic(np.random.default_rng(3), structure)
    assert fuzz.outcome(problem, "SGLD", jax.random.key(0)).kind == "right"
    wrong = problem._replace(exact=lambda nbeta, gamma: 1.01 * problem.exact(nbeta, gamma))
    assert fuzz.outcome(wrong, "SGLD", jax.random.key(0)).kind == "other"


def test_exact_values_of_a_quadratic():
    """By draws of the Gaussian itself, in NumPy; four errors of their mean."""
    structure = STRUCTURES["module with a mask, by SGLD"]
    problem = fuzz.quadratic(np.random.default_rng(3), structure)
    posterior = problem.make()
    x, s = (np.asarray(posterior.data[name], np.float64) for name in ("x", "s"))
    x, (nbeta, gamma) = x[:, :4], posterior.scale
    hessian = s[0] * x.T @ x / len(x)
    draws = np.random.default_rng(0).multivariate_normal(
        np.zeros(4), np.linalg.inv(nbeta * hessian + gamma * np.eye(4)), size=20_000
    )
    energy = 0.5 * nbeta * np.sum(draws @ hessian * draws, axis=1)
    error = energy.std() / np.sqrt(len(energy))
    assert abs(energy.mean() - problem.exact(nbeta, gamma)) < 4 * error


@pytest.mark.study
@fuzzed(4)
@given(SEEDS)
def test_random_structures(seed):
    for sampler, outcome in fuzz.check(np.random.default_rng(seed), 4):
        assert outcome.kind in ("right", "refused"), (sampler, outcome.detail)
