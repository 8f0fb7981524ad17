"""Models and files of other libraries, each behind an optional extra: `llc.interop.torch`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["torch"])
