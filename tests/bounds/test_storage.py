"""Spectra and bounds through a file, and files of version 0.1."""

import dataclasses
import json
import math

import numpy as np
import pytest
import xarray as xr

import llc
from llc.bounds import storage
from llc.bounds.assumptions import NO_DESCENT, Assumption
from llc.bounds.bound import Bound
from llc.bounds.rank import extend, tighten
from llc.bounds.smoothness import Smoothness
from llc.bounds.spectral_measure import Spectrum
from tests.support.models import deep_linear
from tests.support.spectra import spectrum_of

KNOWN = Bound("certificate", "established", "seen", "no more", lower=1.0, upper=1.25, evaluations=7, seconds=0.5)
OPEN = Bound("quartic", "undecided", "nothing")
SADDLE = Assumption(NO_DESCENT, holds=False, message="the loss falls")


def _through_a_file(dataset, path):
    dataset.to_netcdf(path, engine="h5netcdf")
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        return stored.load()


def _assert_same(found, spectrum):
    for field in dataclasses.fields(Spectrum):
        value = getattr(spectrum, field.name)
        if field.name != "vectors" and value is not None:
            np.testing.assert_array_equal(getattr(found, field.name), value, err_msg=field.name)


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_a_spectrum_comes_back_from_a_file(method, tmp_path):
    spectrum = llc.spectrum(deep_linear([4, 2, 4], [2, 2]), method=method, progress=False)
    found = Spectrum.from_dataset(_through_a_file(spectrum.to_dataset(), tmp_path / "spectrum.nc"))
    _assert_same(found, spectrum)
    assert found.vectors is None


def test_a_file_of_version_0_1_is_read():
    spectrum = dataclasses.replace(
        spectrum_of([1.0, 0.5, 0.0], gradient=[0.1, 0.0, 0.0]),
        method="range_finder",
        gauss_newton_discrepancy=0.25,
        unstable_eigenvalues=np.array([0.5]),
        smoothness=Smoothness("kink", 1.0, math.inf),
    )
    old = spectrum.to_dataset().rename(unstable_eigenvalues="unsettled")
    old.attrs["misfit"] = old.attrs.pop("gauss_newton_discrepancy")
    old.attrs["method"] = "block"
    _assert_same(Spectrum.from_dataset(old), spectrum)


def _bounds(*, is_saddle):
    rank = llc.rank_bounds(spectrum_of([1.0, 1.0, 0.0, 0.0]), nbeta=100.0, gamma=1.0)
    return rank, extend(rank, (KNOWN, OPEN), (SADDLE,) * is_saddle, is_saddle=is_saddle)


@pytest.mark.parametrize("is_saddle", [False, True])
def test_bounds_beyond_the_rank_come_back_from_a_file(is_saddle, tmp_path):
    rank, bounds = _bounds(is_saddle=is_saddle)
    spectrum = spectrum_of([1.0, 1.0, 0.0, 0.0])
    stored = _through_a_file(storage.to_dataset(spectrum, bounds), tmp_path / "bounds.nc")
    found = storage.add_beyond(rank, stored.attrs["beyond"])
    assert found.is_saddle == is_saddle
    assert found.valid != is_saddle
    assert found.records == bounds.records
    assert repr(found) == repr(bounds)  # nan is not equal to itself


@pytest.mark.parametrize("is_saddle", [False, True])
def test_bounds_of_version_0_1_are_read(is_saddle):
    rank, bounds = _bounds(is_saddle=is_saddle)
    old = json.loads(storage.to_dataset(spectrum_of([1.0, 1.0, 0.0, 0.0]), bounds).attrs["beyond"])
    del old["is_saddle"]
    old["records"][0]["status"] = "proven"
    assert repr(storage.add_beyond(rank, json.dumps(old))) == repr(bounds)


def test_bounds_of_the_rank_alone_need_no_record():
    rank = llc.rank_bounds(spectrum_of([1.0, 0.0]))
    assert "beyond" not in storage.to_dataset(spectrum_of([1.0, 0.0]), rank).attrs
    assert storage.add_beyond(rank, "") is rank
    assert tighten(rank, ()).records == ()
