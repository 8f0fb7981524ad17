"""The documentation: its Python runs, and it names every public name, check and verdict."""

import pathlib
import re
import tomllib
from typing import get_args

import jax
import jax.numpy as jnp
import pytest
from mktestdocs import check_md_file

import llc
from docs.refresh_output import OUTPUT, refreshed
from llc.analysis.report import Verdict

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
DEPRECATED = {"plot_curve"}  # names that go in the next release
IN_CI = ("devices", "long_runs", "losses", "reading_a_report", "streams")  # the others once a week
PAGES = [
    pytest.param(page, marks=[pytest.mark.study] * (page.stem not in IN_CI), id=page.stem)
    for page in sorted(DOCS.glob("*.md"))
    if "```python" in page.read_text()
]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_md_file(page, memory=True)


def test_the_reference_has_every_public_name():
    shown = re.findall(r"^::: llc\.(\w+)", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(set(llc.__all__) - DEPRECATED)


@pytest.mark.slow
def test_every_check_has_its_heading():
    """Those of one report; the page has the few more that other spectra and bounds add."""
    posterior = llc.LocalPosterior(lambda w, x: 0.5 * (w * x) ** 2, jnp.zeros(()), jnp.ones(20), gamma=1.0)
    spectrum = llc.spectrum(posterior)
    lengths = {"num_chains": 2, "num_warmup": 10, "num_draws": 20}
    report = llc.report(
        llc.sample(jax.random.key(0), posterior, llc.NUTS(), spectrum=spectrum, **lengths), spectrum=spectrum
    )
    headings = set(re.findall(r"^### (\S+)$", (DOCS / "reading_a_report.md").read_text(), re.MULTILINE))
    assert len(report.checks) >= 15
    assert {check.name for check in report.checks} <= headings


def test_every_verdict_is_explained():
    page = (DOCS / "verdicts.md").read_text()
    assert all(f"`{verdict}`" in page for verdict in get_args(Verdict))


def test_every_plot_is_in_the_gallery_with_a_picture():
    page = (DOCS / "gallery.md").read_text()
    plots = [name for name in llc.__all__ if name.startswith("plot_") and name not in DEPRECATED]
    assert [name for name in plots if f"`llc.{name}(" not in page] == []
    pictures = re.findall(r"\(gallery/(\w+\.png)\)", page)
    assert len(pictures) > len(plots)
    assert [name for name in pictures if not (DOCS / "gallery" / name).exists()] == []


def test_theory_has_the_sections_that_are_cited():
    headings = re.findall(r"^## §(\d)", (DOCS / "theory.md").read_text(), re.MULTILINE)
    sources = [path for folder in ("llc", "tests", "validation") for path in (ROOT / folder).rglob("*.py")]
    cited = {number for path in sources for number in re.findall(r"theory\.md §(\d)", path.read_text())}
    assert cited <= set(headings)


def test_the_newest_change_is_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert version.startswith(newest)


@pytest.mark.slow
def test_output_is_put_where_it_is_marked():
    """Of the last block before the mark, shortened to the lines that are asked for."""
    before = "```python\nprint(1)\n```\n\n```python\nprint('a\\nb\\nc')\n```\n"
    text = f"{before}\n<!-- output: 2 lines -->\n```text\nold\n```\n"
    assert OUTPUT.search(refreshed(text))["printed"] == "a\nb\n  …\n"
