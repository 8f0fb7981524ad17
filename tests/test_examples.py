"""The examples run at a small size and find what they promise."""

import dataclasses
import importlib.util
import math
import pathlib
import sys
import types

import jax
import numpy as np
import pytest

from tests.support.models import deep_linear

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def _load(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.study
def test_digits(tmp_path):
    example = _load("digits")
    sizes = {"num_images": 300, "hidden": 2, "train_steps": 300, "num_draws": 100}
    settings = example.Settings(**sizes, out=tmp_path / "digits.png")
    report = example.main(settings)
    assert report.bounds.dim == 64 * 2 + 2 + 2 * 10 + 10
    assert 0 < report.llc.value < report.bounds.dim / 2
    assert settings.out.exists()


@pytest.mark.slow
@pytest.mark.study
def test_reference():
    example = _load("reference")
    settings = example.Settings(gamma=10.0, num_chains=2, nuts_draws=150, sgld_draws=500)
    estimates = example.compare(list(jax.random.split(jax.random.key(0))), deep_linear([4, 3, 4], [3, 3]), settings)
    nuts, sgld = estimates["NUTS"], estimates["SGLD"]
    assert abs(nuts.value - sgld.value) < 4 * math.hypot(nuts.mcse, sgld.mcse)
    assert nuts.mcse < 0.1 * nuts.value


@pytest.mark.study
def test_information_loss(tmp_path):
    """Features and λ̂ are the predicted numbers for the bits that are passed on."""
    example = _load("information_loss")
    sizes = {"passed": (1, 2), "num_bits": 4, "num_outputs": 3, "gamma": 100.0, "num_draws": 150}
    settings = example.Settings(**sizes, out=tmp_path / "loss.png")
    found = example.main(settings)
    for passed, (basis, report) in found.items():
        assert basis.rank == report.bounds.rank == passed * (4 + 3 - passed)
        assert abs(report.llc.value - report.quad) < 4 * report.llc.mcse
        assert abs(report.quad - basis.rank / 2) < 0.01 * sum(1 / basis.sizes), "what γ/nβ takes: Σ ½ ρ / (σ + ρ)"
    (_, one), (_, two) = found.values()
    assert two.llc.value - one.llc.value > 4 * math.hypot(one.llc.mcse, two.llc.mcse)
    assert settings.out.exists()


@pytest.mark.study
def test_connection_cost(tmp_path):
    """A cost leaves fewer features, more modularity and a smaller λ̂."""
    example = _load("connection_cost")
    sizes = {"strengths": (0.0, 2e-2), "hidden": 4, "num_data": 40, "train_steps": 500, "num_draws": 100}
    settings = example.Settings(**sizes, out=tmp_path / "cost.png")
    (free, loose), (costly, tight) = example.main(settings).values()
    scale = settings.gamma / settings.nbeta
    assert np.sum(costly.sizes > scale) < np.sum(free.sizes > scale)
    assert costly.modularity > free.modularity
    assert loose.llc.value - tight.llc.value > 4 * math.hypot(tight.llc.mcse, loose.llc.mcse)
    assert settings.out.exists()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_settings_are_on_top_and_short(path):
    module = _load(path.stem)
    assert dataclasses.is_dataclass(module.Settings)
    assert len(path.read_text().splitlines()) < 120


@pytest.mark.slow
@pytest.mark.study
def test_training_run(tmp_path):
    """The loss falls, λ̂ is at one scale, and a slope at a checkpoint in mid-training is told."""
    example = _load("training_run")
    sizes = {"p": 5, "width": 4, "hidden": 4, "steps": 300, "num_checkpoints": 3, "num_draws": 100}
    settings = example.Settings(**sizes, out=tmp_path / "run.png", folder=tmp_path)
    tree, losses = example.main(settings)
    assert list(losses) == [6, 42, 300]
    assert (np.diff(tree["loss"].to_numpy()) < 0).all()
    assert tree.attrs["same_scale"] == 1
    assert np.isfinite(tree["difference_mcse"].to_numpy()[1:]).all()
    assert settings.out.exists()


@pytest.mark.slow
def test_modular_addition_is_split_into_all_pairs():
    """Every pair is on one side, with its own sum, and params come back at each step in order."""
    example = _load("modular_addition")
    settings = example.Settings(p=5, width=4, hidden=4)
    data, others = example.split(settings)
    tokens, sums = (np.concatenate(parts) for parts in zip(data, others, strict=True))
    assert len(data[1]) == 17
    assert len(np.unique(tokens, axis=0)) == 25
    np.testing.assert_array_equal(tokens[:, :2].sum(axis=1) % 5, sums)
    run = example.trained(data, settings, (1, 60))
    assert list(run) == [1, 60]
    assert example.measured_loss(run[60], data) < example.measured_loss(run[1], data)
    assert 0 <= example.accuracy(run[60], others) <= 1
