"""Without an optional extra, its name says how to install it."""

import importlib.util
import subprocess
import sys

import pytest


@pytest.mark.skipif(importlib.util.find_spec("torchax") is not None, reason="the extra is installed")
def test_a_missing_extra_is_named():
    """In a process of its own: collecting doctests may have made a module of that name."""
    code = "import llc; llc.interop.torch"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError" in finished.stderr
    assert "llc[torch]" in finished.stderr
