import dataclasses
import json
import math
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import llc
import llc.analysis
from llc.analysis.series import plus_minus
from tests.analysis.test_check import _good, _report, _shift
from tests.analysis.test_estimators import make_draws
from tests.support.runs import with_energies


def test_numbers_of_a_report():
    report = _report(_good())
    scale = 10 / float(report.draws["constant_data"]["nbeta"])
    eigenvalues = report.spectrum.nodes[0]
    curved = eigenvalues[eigenvalues > 1e-6]
    assert len(curved) == 12
    assert report.quad == pytest.approx(0.5 * np.sum(curved / (curved + scale)), rel=1e-6)
    assert report.singular == report.llc.value - report.quad
    # With the full ½ for each of the 12 curved directions.
    assert report.corrected.value == pytest.approx(report.llc.value + 6 - report.quad, rel=1e-9)
    assert report.corrected.mcse == report.llc.mcse
    assert report.settings["num_chains"] == 4


def test_text_names_everything():
    report = _report(_good())
    text = str(report)
    assert text.splitlines()[0].split(maxsplit=1) == [report.verdict, report.reason]
    names = [line.split()[0] for line in text.splitlines()[2:4]]
    assert names == ["λ̂", "bounds"], "first the number, then the bracket"
    for name in (
        "λ̂",
        "λ_quad",
        "λ_corr",
        "bounds",
        "[6, 6]",
        "rank",
        "12 of 16",
        "WBIC",
        "WAIC",
        "R-hat",
    ):
        assert name in text
    assert max(map(len, text.splitlines())) < 160


def test_verdicts_outside_of_the_bounds():
    above = _report(_shift(_good(), 10.0))
    assert above.verdict == "ABOVE"
    assert str(above.llc.value)[:3] in str(above), "a failed check never hides the number"
    below = _report(_shift(_good(), -5.0))
    assert below.verdict == "BELOW"


def test_json_is_strict_and_complete():
    draws = _good()
    draws = with_energies(draws, draws["posterior"]["llc"] * np.nan)
    for report in (_report(_good()), _report(draws)):
        fields = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert fields["verdict"] == report.verdict
        assert {check["name"] for check in fields["checks"]} == {check.name for check in report.checks}
        assert fields["constants"]["num_params"] == 16
    assert fields["estimates"][0]["value"] is None


def test_html_is_one_page_with_the_picture(tmp_path):
    report = _report(_good())
    llc.save_html(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert "CONSISTENT" in page
    assert "http" not in page.split("base64,")[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html"]


def test_a_report_survives_its_file(tmp_path):
    report = llc.report(_good(), spectrum=_report(_good()).spectrum)
    llc.save(report.draws, tmp_path / "run.nc")
    again = llc.report(llc.load(tmp_path / "run.nc"))
    assert str(again) == str(report)
    llc.save(again.draws, tmp_path / "run.nc")  # the file is not held open


def test_bounds_of_another_scale_are_made_anew():
    report = _report(_good())
    elsewhere = llc.rank_bounds(report.spectrum)
    assert elsewhere.quad != report.quad
    assert llc.report(_good(), bounds=elsewhere, spectrum=report.spectrum).quad == report.quad


def test_bounds_alone_are_enough_to_compare_with():
    """λ_corr = λ̂ + r/2 − λ_quad where they were made at the draws' scale; λ̂ and the upper side where they were not."""
    report = _report(_good())
    alone = llc.report(_good(), bounds=report.bounds)
    assert alone.verdict == report.verdict == "CONSISTENT"
    assert alone.corrected.value == pytest.approx(report.corrected.value, rel=1e-9)
    no_scale = llc.rank_bounds(report.spectrum)
    below = llc.report(_good(), bounds=no_scale)
    assert (below.verdict, below.corrected, below.quad) == ("SCALE_DEPENDENT", None, None)
    assert "below_bounds" not in {check.name for check in below.checks}
    assert below.reason
    assert llc.report(_shift(_good(), 10.0), bounds=no_scale).verdict == "ABOVE"


def test_draws_stay_as_they_were():
    draws = _good()
    before = draws.copy(deep=True)
    report = llc.report(draws, spectrum=_report(_good()).spectrum)
    assert "curvature" in report.draws
    assert "curvature" not in draws
    report.draws.attrs["calibration"] = "written later"
    xr.testing.assert_identical(draws, before)


def test_nothing_added_is_not_called_corrected():
    """Where no direction is sure, λ_corr is λ̂."""
    report = _report(_good())
    unsure = dataclasses.replace(report.bounds, rank_interval=(0.0, 16.0), lower=0.0, upper=8.0)
    found = llc.report(_good(), bounds=unsure, spectrum=report.spectrum)
    assert found.corrected.value == found.llc.value
    assert found.corrected.method == found.llc.method
    assert "λ_corr" not in str(found)
    assert "λ_corr" in str(report)


@pytest.mark.parametrize(("old", "new"), [("shift", "gamma_sensitivity"), ("accepted", "gamma_converged")])
def test_old_names_of_a_report_warn(old, new):
    report = _report(_good())
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(report, old) is getattr(report, new)


def test_to_html_warns_and_writes_the_page(tmp_path):
    with pytest.warns(DeprecationWarning, match="save_html"):
        _report(_good()).to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 4_000


@pytest.mark.slow
def test_analysis_loads_no_jax():
    """Negative control: sampling does."""
    modules = [module.name for module in pkgutil.iter_modules(llc.analysis.__path__, "llc.analysis.")]
    assert {"llc.analysis.schema", "llc.analysis.verdict", "llc.analysis.assembly"} <= set(modules)
    for names, loaded in ((modules, False), (["llc.sampling.loop"], True)):
        code = f"import sys, {', '.join(names)}; sys.exit('jaxlib' in sys.modules or 'matplotlib' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == loaded, done.stderr


@pytest.mark.slow
@pytest.mark.study
def test_what_a_number_needs_later_is_not_loaded_with_the_package():
    """ArviZ's statistics and SciPy's laws and interpolation take half a second. Negative control: a number has them."""
    number = "import numpy as np; from llc.analysis.series import split_rhat; split_rhat(np.random.rand(2, 9))"
    for code, loaded in (("import llc; llc.estimate; llc.sweep", False), (number, True)):
        names = "{'arviz_stats', 'scipy.stats', 'scipy.interpolate', 'matplotlib'}"
        code = f"import sys; {code}; sys.exit(bool({names} & {{*sys.modules}}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == loaded, done.stderr


def test_draws_without_groups_are_an_error():
    with pytest.raises(ValueError, match=r"they lack \['sample_stats'\]"):
        llc.report(make_draws(np.ones((2, 10))).drop_nodes("sample_stats"))
    other = xr.DataTree.from_dict({f"/{name}": xr.Dataset() for name in ("posterior", "sample_stats", "constant_data")})
    with pytest.raises(ValueError, match=r"they lack.*posterior/llc.*constant_data/nbeta.*attribute settings"):
        llc.report(other)


def test_a_spectrum_of_another_posterior_is_refused():
    report = _report(_good())
    other = llc.Spectrum(
        **{name: getattr(report.spectrum, name) for name in ("matrix", "method", "gradient_nodes", "gradient_weights")},
        nodes=np.ones((1, 7)),
        weights=np.ones((1, 7)),
        dim=7,
    )
    with pytest.raises(ValueError, match=r"spectrum of their own \d+ parameters, got one of 7"):
        llc.report(_good(), spectrum=other)
    draws = _good()
    draws["curvature"] = xr.DataTree(report.spectrum.to_dataset())
    llc.report(draws)
    draws["curvature"].attrs["init_loss"] = 17.0
    with pytest.raises(ValueError, match=r"got one where L\(w\*\) = 17"):
        llc.report(draws)


def test_bounds_of_another_scale_have_no_quad_of_the_draws():
    report = _report(_good())
    elsewhere = llc.rank_bounds(report.spectrum)
    there = llc.report(_good(), bounds=elsewhere)
    assert there.quad is None
    assert there.singular is None
    assert "λ_quad" not in str(there)
    assert llc.report(_good(), bounds=report.bounds).quad == report.quad


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (11.524, 0.1234, "11.52 ± 0.12"),
        (1234.5, 56.7, "1234 ± 57"),
        (0.25, 0.00012, "0.25000 ± 0.00012"),
        (6.0, 0.0, "6"),
        (6.0, math.inf, "6 ± ∞"),
        (math.nan, 1.0, "nan"),
        (math.inf, 1.0, "nan"),
        (None, 1.0, "nan"),
    ],
)
def test_numbers_show_two_digits_of_their_error(value, error, text):
    assert plus_minus(value, error) == text
