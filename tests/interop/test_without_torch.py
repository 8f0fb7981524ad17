"""Without an optional extra, its name says how to install it."""

import importlib.util

import pytest

import llc


@pytest.mark.skipif(importlib.util.find_spec("torchax") is not None, reason="the extra is installed")
def test_a_missing_extra_is_named():
    with pytest.raises(ImportError, match=r"llc\[torch\]"):
        _ = llc.interop.torch
