r"""A posterior of a PyTorch module: its `state_dict` is w*, and its loss runs as a JAX program.

Torchax runs PyTorch's operations on JAX arrays while JAX traces them, so that what is compiled has no PyTorch in it:
gradients, derivatives along a direction and products in float64 are JAX's own, as of any other loss. The params are one
dict from the names of the `state_dict` to arrays, and these names are the paths of masks.

It needs `llc[torch]`. Torchax 0.0.13 runs with PyTorch 2.12 and fails to import with 2.13.
"""

from importlib.metadata import PackageNotFoundError, version


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


try:
    import torchax  # noqa: F401  # pyright: ignore[reportMissingImports]
except Exception as error:  # with a PyTorch that it does not know, torchax fails in several ways
    raise ImportError(
        "llc.interop.torch needs torchax 0.0.13 with PyTorch 2.12 (with 2.13 and newer it fails to import), got "
        f"torchax {_version('torchax')} and PyTorch {_version('torch')}. Run pip install 'llc[torch]'."
    ) from error

from llc.interop.torch.modules import params, posterior, state_dict  # noqa: E402
from llc.interop.torch.tracing import function  # noqa: E402

__all__ = ["function", "params", "posterior", "state_dict"]
