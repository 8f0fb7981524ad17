"""Paths that no file can have are refused before anything opens them."""

import os
from pathlib import Path

import pytest

import llc
from llc.analysis.paths import expand


@pytest.mark.parametrize(
    "path",
    ["", "a\0b.nc", "~no-such-user-here/x.nc", "n" * 300, "n" * 5000, "é" * 128 + "/x.nc", 3, None, ["x.nc"]],
    ids=["empty", "NUL", "home of nobody", "long name", "long path", "long folder", "number", "none", "list"],
)
def test_what_no_file_can_have_is_refused(path):
    with pytest.raises(ValueError, match="folder needs") as caught:
        expand(path, "folder")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "path", ["x.nc", "./x.nc", ".", "n" * 255, "no/such/folder/x.nc", Path("x.nc"), "a b\n.nc", os.fsdecode(b"\xff.nc")]
)
def test_what_a_file_can_have_is_taken(path):
    assert expand(path) == Path(path)


@pytest.mark.parametrize("path", ["", "a\0b.npz", "~no-such-user-here/x.npz", "n" * 300 + ".npz"])
def test_every_function_that_opens_a_file_says_so(path):
    for use in (llc.load, llc.Store, lambda path: llc.load_params(path, {}), lambda path: llc.save_params(path, {})):
        with pytest.raises(ValueError, match="needs"):
            use(path)
