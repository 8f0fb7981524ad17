"""Numbers that no run can write are refused by name; what a chain that left may have makes the run unresolved."""

import functools
import warnings

import numpy as np
import pytest
import robustness_files as damage

import llc
from llc.analysis import files
from tests.analysis.test_check import _good, _report
from tests.support.files import full_draws
from tests.support.runs import NBETA, with_energies
from tests.support.tiers import weekly

REFUSED = {  # group, variable, what every element becomes (or an index and what that one becomes)
    "a constant that overflows": ("constant_data", "init_loss", 1e300),
    "a scale that overflows": ("constant_data", "nbeta", 1e60),
    "a gradient that overflows": ("constant_data", "center_gradient", 1e300),
    "a negative gradient": ("constant_data", "center_gradient", -1.0),
    "a rounding that overflows": ("constant_data", "loss_rounding", 1e300),
    "a negative rounding": ("constant_data", "loss_rounding", -1e-9),
    "a rounding that is NaN": ("constant_data", "params_rounding", np.nan),
    "the same beside the run": ("localized/constant_data", "loss_rounding", np.nan),
    "a run of another nβ beside it": ("localized/constant_data", "nbeta", 2 * NBETA),
    "a run at the same γ beside it": ("localized/constant_data", "gamma", 1.5),
    "more rows than there are": ("constant_data", "eval_size", 1001.0),
    "one loss that is NaN": ("posterior", "loss", ((1, 3), np.nan)),
    "one loss that is infinite": ("posterior", "loss", ((1, 3), np.inf)),
    "one loss that overflows": ("posterior", "loss", ((1, 3), -1e300)),
    "losses that are others": ("posterior", "loss", 0.7),
    "energies that are others": ("posterior", "llc", 0.7),
    "one energy that is NaN": ("posterior", "llc", ((0, 0), np.nan)),
    "the same in the warm-up": ("warmup_posterior", "llc", ((0, 0), 1.0)),
    "energies beside the run": ("localized/posterior", "llc", ((1, 2), np.inf)),
    "a negative distance": ("sample_stats", "distance", ((0, 0), -1.0)),
    "a divergence that is a half": ("sample_stats", "diverging", ((0, 0), 0.5)),
    "a moment that is NaN": ("pointwise", "first", ((0, 0, 0), np.nan)),
    "a moment that overflows": ("pointwise", "first", ((0, 0, 0), 1e300)),
    "a second moment that is NaN": ("pointwise", "second", ((0, 0, 0), np.nan)),
    "a negative second moment": ("pointwise", "second", ((0, 0, 0), -1.0)),
    "weights of no mean": ("pointwise", "weight", 1.0),
    "no draws": ("pointwise", "num_draws", 0.0),
    "a curvature that overflows": ("curvature", "nodes", ((0, 0), 1e300)),
    "multiplicities of no spectrum": ("curvature", "weights", 1.5),
}
BY_FILE = (  # one of each group; those of draws in memory are all tested
    "a constant that overflows",
    "a run of another nβ beside it",
    "one loss that is NaN",
    "the same in the warm-up",
    "energies beside the run",
    "a negative distance",
    "a moment that is NaN",
    "a curvature that overflows",
)
UNRESOLVED = {  # of one chain: what a draw of it is in these variables
    "NaN": (("posterior/loss", "posterior/llc"), np.nan),
    "infinite": (("posterior/loss", "posterior/llc"), np.inf),
    "huge": (("posterior/loss", "posterior/llc"), 1e300),
    "hugely negative": (("posterior/loss", "posterior/llc"), -1e300),
    "NaN in the run at 3γ": (("localized/posterior/loss", "localized/posterior/llc"), np.nan),
    "huge in the run at 3γ": (("localized/posterior/loss", "localized/posterior/llc"), 1e300),
    "virial": (("sample_stats/virial",), np.nan),
    "huge virial": (("sample_stats/virial",), 1e300),
    "infinite distance": (("sample_stats/distance",), np.inf),
    "distance in the run at 3γ": (("localized/sample_stats/distance",), np.nan),
}


def put(tree, group, name, change):
    """The variable with another value, everywhere or in one place."""
    node = tree[group].to_dataset(inherit=False)
    place, value = change if isinstance(change, tuple) else (..., change)
    dims, values = (node[name].dims, node[name].values.astype(float)) if name in node else ((), np.zeros(()))
    values[place] = value
    tree[group].dataset = node.assign({name: (dims, values)})
    return tree


@functools.cache
def made():
    return full_draws()


def whole():
    return made().copy(deep=True)


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_run_writes_is_refused_by_name(case):
    group, name, change = REFUSED[case]
    draws = put(whole(), group, name, change)
    with pytest.raises(ValueError, match=rf"(?s)draws.*{name}") as refused:
        llc.report(draws)
    assert "\n" not in str(refused.value)
    assert group.split("/")[0] in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("case", weekly(REFUSED, but=BY_FILE))
def test_a_file_of_it_is_refused_by_name(case):
    group, name, change = REFUSED[case]
    content = damage.foreign_bytes(put(whole(), group, name, change))
    with pytest.raises(ValueError, match=rf"run\.nc.*{name}"):
        files.from_bytes(content, "run.nc")


def test_what_is_whole_is_not_refused():
    """Negative control, also of single precision and of chains that are gone."""
    llc.report(whole())
    files.from_bytes(damage.foreign_bytes(whole()), "run.nc")
    single = whole()
    for name in ("llc", "loss"):
        single["posterior"] = single["posterior"].dataset.assign({name: single["posterior"][name].astype(np.float32)})
    llc.report(single)


@functools.cache
def with_both_runs():
    draws = _report(_good()).draws.copy(deep=True)
    draws["localized"] = _good()
    draws["localized/constant_data"] = draws["localized/constant_data"].dataset.assign(gamma=30.0)
    return draws


@pytest.mark.slow
@pytest.mark.parametrize("case", UNRESOLVED)
def test_a_chain_that_is_gone_leaves_the_verdict_open(case):
    names, value = UNRESOLVED[case]
    draws = with_both_runs().copy(deep=True)
    for name in names:
        group, _, variable = name.rpartition("/")
        put(draws, group, variable, ((1, 5), value))
    with warnings.catch_warnings(action="error"):
        report = llc.report(draws)
    assert report.verdict == "UNRESOLVED"
    (check,) = (check for check in report.checks if check.name == "finite_chains")
    assert not check.passed
    assert check.value == 1


@pytest.mark.slow
def test_without_such_a_chain_it_is_not():
    """Negative control."""
    (check,) = (check for check in llc.report(with_both_runs()).checks if check.name == "finite_chains")
    assert check.passed


def test_energies_of_all_sizes_are_no_overflow():
    draws = whole()
    for size in (1e20, 1e45, 1e120):
        with warnings.catch_warnings(action="error"):
            report = llc.report(with_energies(draws, size * draws["posterior"]["llc"]))
        assert report.verdict == "UNRESOLVED"
