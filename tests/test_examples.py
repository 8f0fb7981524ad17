"""The examples run, small, and say what they promise."""

import dataclasses
import importlib.util
import math
import pathlib
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def _load(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_digits(tmp_path, capsys):
    example = _load("digits")
    settings = example.Settings(hidden=2, train_steps=300, num_draws=100, out=tmp_path / "digits.png")
    report = example.main(settings)
    assert str(report) in capsys.readouterr().out
    assert report.bounds.dim == 64 * 2 + 2 + 2 * 10 + 10
    assert 0 < report.llc.value < report.bounds.dim / 2
    assert settings.out.stat().st_size > 100_000


def test_reference(capsys, monkeypatch):
    example = _load("reference")
    monkeypatch.setattr("llc.demo._HIDDEN", 2)
    monkeypatch.setattr("llc.demo._STEPS", 300)
    estimates = example.main(example.Settings(gamma=100.0, num_chains=2, nuts_draws=200, sgld_draws=500))
    nuts, sgld = estimates["NUTS"], estimates["SGLD"]
    assert abs(nuts.value - sgld.value) < 4 * math.hypot(nuts.mcse, sgld.mcse)
    assert nuts.mcse < 0.1 * nuts.value
    assert "standard errors" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_settings_are_on_top_and_short(path):
    module = _load(path.stem)
    assert dataclasses.is_dataclass(module.Settings)
    assert len(path.read_text().splitlines()) < 120
