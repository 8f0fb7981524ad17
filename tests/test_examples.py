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
def test_digits(tmp_path):
    example = _load("digits")
    sizes = {"num_images": 300, "hidden": 2, "train_steps": 300, "num_draws": 100}
    settings = example.Settings(**sizes, out=tmp_path / "digits.png")
    report = example.main(settings)
    assert report.bounds.dim == 64 * 2 + 2 + 2 * 10 + 10
    assert 0 < report.llc.value < report.bounds.dim / 2
    assert settings.out.stat().st_size > 100_000


@pytest.mark.slow
def test_reference():
    example = _load("reference")
    settings = example.Settings(gamma=10.0, num_chains=2, nuts_draws=150, sgld_draws=500)
    estimates = example.compare(list(jax.random.split(jax.random.key(0))), deep_linear([4, 3, 4], [3, 3]), settings)
    nuts, sgld = estimates["NUTS"], estimates["SGLD"]
    assert abs(nuts.value - sgld.value) < 4 * math.hypot(nuts.mcse, sgld.mcse)
    assert nuts.mcse < 0.1 * nuts.value


@pytest.mark.slow
@pytest.mark.optimized
def test_information_loss(tmp_path):
    """Rank and λ̂ grow, and the basin shrinks, the further the information reaches."""
    example = _load("information_loss")
    sizes = {"num_data": 50, "width": 4, "core": 2, "gamma": 10_000.0, "num_draws": 100}
    settings = example.Settings(**sizes, out=tmp_path / "loss.png")
    found = example.main(settings)
    gradients, reports = zip(*found.values(), strict=True)
    assert gradients[0].rank < gradients[1].rank < gradients[2].rank
    assert [g.rank for g in gradients] == [r.bounds.rank for r in reports]  # loss zero: rank G is that of the Hessian
    early, late = reports[0].llc, reports[2].llc
    assert late.value - early.value > 4 * math.hypot(late.mcse, early.mcse)
    basins = [example.volume(report, 0.1) for report in reports]
    assert basins[0] > basins[1] > basins[2]
    assert settings.out.stat().st_size > 50_000


def test_the_networks_of_information_loss_are_one_function():
    example = _load("information_loss")
    networks = example.build(np.random.default_rng(1), 4, 2)
    inputs = np.random.default_rng(2).normal(size=(30, 4)).astype(np.float32)
    first, *others = (np.asarray(example.predict(params, inputs)) for params in networks.values())
    for outputs in others:
        np.testing.assert_allclose(outputs, first, rtol=0, atol=1e-5 * np.abs(first).max())
    networks["output"][2]["weight"][-1] = 0.1  # negative control: a spare unit that is read
    assert np.abs(np.asarray(example.predict(networks["output"], inputs)) - first).max() > 1e-2


@pytest.mark.slow
def test_connection_cost(tmp_path):
    example = _load("connection_cost")
    sizes = {
        "strengths": (1e-5, 5e-2),
        "hidden": 4,
        "num_data": 50,
        "train_steps": 500,
        "gamma": 10_000.0,
        "num_draws": 100,
    }
    settings = example.Settings(**sizes, out=tmp_path / "cost.png")
    (free, loose), (costly, tight) = example.main(settings).values()
    assert costly.rank < free.rank
    assert loose.llc.value - tight.llc.value > 4 * math.hypot(tight.llc.mcse, loose.llc.mcse)
    assert costly.feature_sizes.sum() < free.feature_sizes.sum()
    assert settings.out.stat().st_size > 50_000


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_settings_are_on_top_and_short(path):
    module = _load(path.stem)
    assert dataclasses.is_dataclass(module.Settings)
    assert len(path.read_text().splitlines()) < 120


@pytest.mark.slow
def test_training_run(tmp_path):
    """The loss falls, λ̂ is at one scale, and a slope at a checkpoint in mid-training is told."""
    example = _load("training_run")
    sizes = {"p": 5, "width": 4, "hidden": 4, "steps": 300, "num_checkpoints": 3, "num_draws": 100}
    settings = example.Settings(**sizes, out=tmp_path / "run.png", folder=tmp_path)
    tree, accuracy = example.main(settings)
    assert list(accuracy) == [0, 10, 300]
    assert (np.diff(tree["loss"].to_numpy()) < 0).all()
    assert tree.attrs["same_scale"] == 1
    assert np.isfinite(tree["difference_mcse"].to_numpy()[1:]).all()
    assert settings.out.stat().st_size > 50_000
