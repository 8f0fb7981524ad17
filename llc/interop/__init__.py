"""Models and parameters of other libraries, each behind an extra: `llc.interop.torch`, files of checkpoints."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["torch"])
