"""Runs that are killed at random moments go on to the bits of one that was left alone."""

import pytest
import resume

from tests.support.tiers import weekly


@pytest.mark.slow
@pytest.mark.optimized  # as the processes that are killed are: bits depend on it
@pytest.mark.parametrize("num_kills", weekly([5, 1], but=(1,)))
def test_killed_again_and_again(num_kills, tmp_path):
    result = resume.kill_again_and_again(tmp_path / "run.zarr", num_kills, seed=num_kills)
    assert result.compared > 20
    assert result.differing == []
    assert any(result.done), "no kill came after a checkpoint"
    assert result.done == sorted(result.done), "what was written is never lost"
