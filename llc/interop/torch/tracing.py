"""A function of a PyTorch module and a batch as a JAX function, traced operation by operation through torchax."""

# Without PyTorch, pyright takes this folder for it.
# pyright: reportAttributeAccessIssue=false

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torchax  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, PyTree
from torch.overrides import TorchFunctionMode  # pyright: ignore[reportMissingImports]
from torchax.interop import call_torch  # pyright: ignore[reportMissingImports]
from torchax.tensor import OperatorNotFound, Tensor, View  # pyright: ignore[reportMissingImports]

from llc.posterior.precision import as_float64

TorchFunction = Callable[..., Any]  # of (module, batch), with tensors


def function(module: torch.nn.Module, fn: TorchFunction) -> Callable[[PyTree, PyTree], Array]:
    """`fn(module, batch)` as a JAX function of (params, batch), with `params` as of `llc.interop.torch.params`.

    Args:
        module: in evaluation mode.
        fn: of the module and a batch of tensors, in PyTorch.

    Raises:
        ValueError: if the module is in training mode, or normalizes by the batch in any mode.
    """
    _check_evaluation_mode(module)
    return _Function(unwrapped(module), fn)


class _Function:
    """See `function`. Two of the same module and function are equal, so that posteriors share what is compiled."""

    def __init__(self, module: torch.nn.Module, fn: TorchFunction) -> None:
        self.module, self.fn = module, fn
        self._call = _Call(module, fn)
        buffers = {name: value for name, value in module.named_buffers() if not value.dtype.is_floating_point}
        self._counts = {name: np.array(value.detach().cpu().numpy()) for name, value in buffers.items()}

    def __call__(self, params: dict[str, Array], batch: PyTree) -> Array:
        _check_evaluation_mode(self.module)
        # A view: JAX remembers a NumPy array in the precision in which it was used first (see posterior.tables).
        counts = {name: jnp.asarray(value.view()) for name, value in self._counts.items()}
        tensors = {f"module.{name}": jnp.asarray(x) for name, x in (params | counts).items()}
        if any(x.dtype == jnp.float64 for x in tensors.values()):  # PyTorch does not mix precisions
            batch = as_float64(batch)
        try:
            return call_torch(self._run, tensors, jax.tree.map(jnp.asarray, batch))
        except OperatorNotFound as error:
            raise NotImplementedError(
                f"torchax has no JAX form of an operation ({error}); write it by others, or its part in JAX"
            ) from error

    def _run(self, tensors: dict[str, torch.Tensor], batch: PyTree) -> torch.Tensor:
        dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors.values()) else torch.get_default_dtype()
        key = jax.random.key(0)  # of what is random: a function of (params, batch) has one
        environment = torchax.default_env()
        with environment.override_property(prng=key), _default_dtype(dtype), torch.device("jax:0"), _WithConstants():
            return torch.func.functional_call(self._call, tensors, (batch,))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Function) and self.module is other.module and self.fn is other.fn

    def __hash__(self) -> int:
        return hash((id(self.module), id(self.fn)))

    def __repr__(self) -> str:
        return f"{getattr(self.fn, '__name__', self.fn)} of {type(self.module).__name__}"


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """A context in which new tensors are of this dtype, as they are of float32 without it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Call(torch.nn.Module):
    """`fn` of a module, as a module, in which `functional_call` can exchange the parameters."""

    def __init__(self, module: torch.nn.Module, fn: TorchFunction) -> None:
        super().__init__()
        self.module, self.fn = module, fn

    def forward(self, batch: PyTree) -> torch.Tensor:
        out = self.fn(self.module, batch)
        return out[0] if isinstance(out, tuple) else out


class _WithConstants(TorchFunctionMode):
    """A mode in which tensors that are neither params nor data, such as weights of classes, are constants."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in jax.tree.leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if len({isinstance(x, Tensor | View) for x in tensors}) < 2:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        writes = name == "__setitem__" or (name.endswith("_") and not name.startswith("__"))
        if writes and not isinstance(args[0], Tensor | View):
            raise RuntimeError(
                f"{name} writes into a tensor that the module keeps; register it as a buffer, or compute a new one"
            )
        args, kwargs = jax.tree.map(_as_constant, (args, kwargs))
        return func(*args, **kwargs)


def _as_constant(x: Any) -> Any:
    if not isinstance(x, torch.Tensor) or isinstance(x, Tensor | View):
        return x
    wide = x.dtype == torch.float32 and torch.get_default_dtype() == torch.float64
    return torchax.default_env().to_xla(x.detach().double() if wide else x.detach())


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The module that `torch.compile` has wrapped: JAX compiles it here."""
    return getattr(module, "_orig_mod", module)


def _check_evaluation_mode(module: torch.nn.Module) -> None:
    if training := [name or type(module).__name__ for name, part in module.named_modules() if part.training]:
        raise ValueError(
            f"module needs to be in evaluation mode, got training mode in {training[:6]}: dropout and batch "
            "normalization would make the loss of an example depend on chance and on its batch. Call module.eval()."
        )
    norms = [(name, part) for name, part in module.named_modules() if hasattr(part, "track_running_stats")]
    if wrong := [name for name, part in norms if isinstance(part, _BATCH_NORMS) and part.running_mean is None]:
        raise ValueError(
            f"module needs batch normalization by running averages, got none in {wrong[:6]}: with "
            "track_running_stats=False the loss of an example depends on its batch. Train it with running averages, or "
            "put its averages over the data into running_mean and running_var."
        )


_BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)
