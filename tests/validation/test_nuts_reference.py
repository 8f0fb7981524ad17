"""References by NUTS: exact where the integral is known, refused where they did not converge, and used again."""

import dataclasses
import json

import deep_linear
import exact
import jax
import linear_nets
import numpy as np
import nuts_reference
import pytest

LENGTHS = nuts_reference.ReferenceLengths()
GOOD = {
    "reference_value": 10.0,
    "reference_mcse": 0.1,
    "reference_plain": 10.1,
    "reference_plain_mcse": 0.2,
    "reference_virial": 1.01,
    "reference_rhat": 1.01,
}


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.optimized
def test_reference_is_exact_where_the_integral_is_known():
    nbeta, gamma = 300.0, 1.0
    net = linear_nets.Net([np.zeros((2, 2), np.float32)] * 2, [0, 0])
    posterior = linear_nets.posterior_at(net, np.sqrt(2) * np.eye(2), nbeta=nbeta)  # XᵀX / n = 1, K = ½‖W₁W₂‖²
    truth = exact.reduced_rank(2, 2, nbeta, gamma)
    lengths = nuts_reference.ReferenceLengths(reference_warmup=500, reference_draws=500, reference_error=0.02)
    found = nuts_reference.reference(jax.random.key(0), posterior.with_scale(gamma=gamma), None, lengths)
    assert found.plain == found.value
    assert abs(found.value - truth.mean) < 4 * found.mcse
    assert found.mcse < 0.02 * found.value
    assert abs(found.virial - 1) < 0.03


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, True),
        ({"reference_virial": 1.1}, False),
        ({"reference_mcse": 0.3}, False),
        ({"reference_rhat": 1.2}, False),
        ({"reference_plain": 12.0}, False),
    ],
    ids=["good", "virial", "error", "R-hat", "control variates disagree"],
)
def test_a_reference_has_to_pass(change, kept):
    assert nuts_reference.kept(GOOD | change, LENGTHS) == kept


def test_a_row_without_a_reference_is_not_kept():
    assert not nuts_reference.kept({}, LENGTHS)


def test_a_reference_serves_again_at_the_same_scale(tmp_path):
    settings, file = deep_linear.Settings(), tmp_path / "deep_linear.json"
    fields = {f"reference_{name}": float(i) for i, name in enumerate(nuts_reference.Reference._fields)}
    row = {"case": "7", "nbeta": 10.0, "gamma": 2.0, **fields}
    file.write_text(json.dumps({"settings": dataclasses.asdict(settings), "rows": [row]}))
    net = linear_nets.Net([np.zeros((2, 2), np.float32)] * 2, [0, 0])
    posterior = linear_nets.posterior_at(net, np.eye(2), nbeta=10.0)

    def found(case, gamma, settings=settings, file=file):
        return nuts_reference.committed(case, posterior.with_scale(gamma=gamma), settings, deep_linear.SAME, file)

    same = found("7", 2.0)
    assert same is not None
    assert same._asdict() == {name: float(i) for i, name in enumerate(nuts_reference.Reference._fields)}
    assert found("8", 2.0) is None
    assert found("7", 2.1) is None
    assert found("7", 2.0, settings=deep_linear.Settings(reference_error=0.01)) is None
    assert found("7", 2.0, settings=deep_linear.Settings(num_nets=3)) is not None, "no reference depends on it"
    assert found("7", 2.0, file=tmp_path / "missing.json") is None
