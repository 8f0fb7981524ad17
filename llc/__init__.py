"""Local learning coefficients of trained models: sampled, bounded by the geometry, and checked.

The public names stand in `__init__.pyi`; each is imported when it is first used, so that `llc --help` is instant.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
