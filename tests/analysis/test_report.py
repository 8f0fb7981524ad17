import dataclasses
import json
import math

import numpy as np
import pytest
import xarray as xr

import llc
from llc.analysis import files
from llc.analysis.series import plus_minus
from tests.analysis.test_checks import _good, _report, _shift
from tests.analysis.test_estimators import make_draws


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
    text = str(_report(_good()))
    for name in (
        "CONSISTENT",
        "λ̂",
        "λ_quad",
        "λ_corr",
        "bounds",
        "[6, 7]",
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
    assert "above its bounds [6, 7]" in str(above)
    assert str(above.llc.value)[:3] in str(above), "a failed check never hides the number"
    below = _report(_shift(_good(), -5.0))
    assert below.verdict == "BELOW"


def test_json_is_strict_and_complete():
    draws = _good()
    draws["posterior"] = draws["posterior"].dataset.assign(llc=draws["posterior"]["llc"] * np.nan)
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
    report = _report(_good())
    llc.save(report.draws, tmp_path / "run.nc")
    again = llc.report(llc.load(tmp_path / "run.nc"))
    assert str(again) == str(report)
    llc.save(again.draws, tmp_path / "run.nc")  # the file is not held open


def test_bounds_of_another_scale_are_made_anew():
    report = _report(_good())
    elsewhere = llc.rank_bounds(report.spectrum)
    assert elsewhere.quad != report.quad
    assert llc.report(_good(), bounds=elsewhere, spectrum=report.spectrum).quad == report.quad
    only_bounds = llc.report(_good(), bounds=dataclasses.replace(report.bounds))
    assert only_bounds.verdict == "UNRESOLVED"


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


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "run.nc"
    path.write_text("before")

    def fail(part):
        part.write_text("half")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk is full"):
        files.write_whole(path, fail)
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.nc"]
    path.chmod(0o640)
    files.write_whole(path, lambda part: part.write_text("after"))
    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(FileNotFoundError, match="no file"):
        llc.load(tmp_path / "other.nc")


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
