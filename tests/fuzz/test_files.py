"""Damaged files are reported on or refused by name, whatever the damage."""

import numpy as np
import pytest
import robustness_files
from hypothesis import given
from hypothesis import strategies as st

from llc.analysis import files
from tests.fuzz.support import fuzzed
from tests.support.files import full_draws

WHOLE = robustness_files.whole(full_draws())


def is_right_or_refused(seed):
    kind, outcome = robustness_files.check(np.random.default_rng(seed), WHOLE)
    assert outcome.kind in ("right", "refused"), (kind, outcome.detail)


@pytest.mark.slow
@fuzzed(20)
@given(st.integers(0, 2**32 - 1))
def test_damaged_files_are_reported_on_or_refused_by_name(seed):
    is_right_or_refused(seed)


@pytest.mark.study
@fuzzed(60)
@given(st.integers(0, 2**32 - 1))
def test_many_damaged_files_are_reported_on_or_refused_by_name(seed):
    is_right_or_refused(seed + 2**32)


@pytest.mark.study
def test_all_kinds_of_damage_come():
    """Of the files there are whole ones and others, so that the tests above are of something."""
    kinds, contents = zip(*(robustness_files.damaged(np.random.default_rng(i), WHOLE) for i in range(40)), strict=True)
    assert set(kinds) == {"flipped bits", "cut", "variable", "attribute", "group", "several"}
    assert WHOLE.content not in contents


@pytest.mark.slow
def test_another_report_would_be_seen():
    """Negative control: of other draws, with their own checksums."""
    other = files.to_bytes(full_draws(seed=3))
    assert robustness_files.outcome(other, WHOLE.report).kind == "other"
    assert robustness_files.outcome(WHOLE.content, WHOLE.report).kind == "right"


def test_a_raw_error_would_be_seen(monkeypatch):
    """Negative control: what no door has caught."""
    monkeypatch.setattr(files, "from_bytes", lambda *_: {}["x"])
    assert robustness_files.outcome(WHOLE.content, WHOLE.report).kind == "other"
