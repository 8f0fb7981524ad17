"""The study of the energies of steps, at a size that measures nothing."""

import dataclasses

import pytest
from speed_energies import QUICK, table


@pytest.mark.study
def test_a_line_for_each_model_and_variant():
    lines = table(dataclasses.replace(QUICK, linear_steps=200))
    assert [line.split()[-1] for line in lines[1::3]] == ["1.00", "1.00"]
    assert len(lines) == 1 + 2 * 3
