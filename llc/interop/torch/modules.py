"""A posterior of a module and its `state_dict`."""

# Without PyTorch, pyright takes this folder for it.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from jaxtyping import ArrayLike, PyTree, Real

from llc.interop.torch.tracing import TorchFunction, function, unwrapped
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.mask import matching_paths, normalize_mask
from llc.posterior.streams import read_batches


def posterior(
    module: torch.nn.Module,
    loss_fn: TorchFunction,
    data: PyTree,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    nbeta: Real[ArrayLike, ""] | None = None,
    gamma: Real[ArrayLike, ""] | None = None,
    mask: PyTree = None,
    predict_fn: TorchFunction | None = None,
) -> LocalPosterior:
    """The `LocalPosterior` of a PyTorch module. Parameters with `requires_grad` move; the others and buffers stay.

    Args:
        module: in evaluation mode, `module.eval()`: batch normalization takes its running averages, and nothing is
            dropped. It is called with w* and with draws in place of its parameters, and is not changed. Its values are
            copied, so that it may be trained further.
        loss_fn: `loss_fn(module, batch)`, in PyTorch: one loss per example (shape `(batch,)`), or the mean loss of the
            batch, in nats; the first part of a tuple, as of devinterp's `evaluate`. It is traced by JAX: nothing in it
            may depend on values (`if loss > 1`, `.item()`).
        data: tensors or arrays with the same leading axis, in any pytree; a `TensorDataset`; or a `DataLoader`, which
            is read once, in the order of its data set where it shuffles. A batch has the same form, with tensors.
        state_dict: w*; None takes the module's own, `module.state_dict()`.
        nbeta: as of `LocalPosterior`.
        gamma: as of `LocalPosterior`.
        mask: as of `LocalPosterior`: names such as `"blocks.*.attn"`, or a dict from all names to booleans.
        predict_fn: `predict_fn(module, batch)`, the outputs of the model, in PyTorch.

    Raises:
        ValueError: if the module is in training mode, the `state_dict` is of another module, or the loss is none.

    Example:
        ```python
        def loss_fn(module, batch):
            inputs, targets = batch
            return torch.nn.functional.cross_entropy(module(inputs), targets, reduction="none")


        posterior = llc.interop.torch.posterior(module.eval(), loss_fn, (inputs, targets))
        report = llc.estimate(jax.random.key(0), posterior)
        ```
    """
    center = params(module, state_dict)
    return LocalPosterior(
        function(module, loss_fn),
        center,
        _arrays(data),
        nbeta=nbeta,
        gamma=gamma,
        mask=_mask(module, center, mask),
        predict_fn=None if predict_fn is None else function(module, predict_fn),
    )


def params(module: torch.nn.Module, state_dict: Mapping[str, torch.Tensor] | None = None) -> dict[str, Any]:
    """The floating-point parameters and buffers of a module by their names, as arrays; of tied ones the first name.

    Args:
        module: whose names they are.
        state_dict: their values; None takes the module's own.

    Raises:
        ValueError: if names or shapes of `state_dict` are not those of the module.
    """
    tensors = dict(unwrapped(module).named_parameters()) | dict(unwrapped(module).named_buffers())
    if state_dict is not None:
        _check_state_dict(module, state_dict)
        tensors = {name: state_dict.get(name, value) for name, value in tensors.items()}
    return {name: _array(value) for name, value in tensors.items() if value.dtype.is_floating_point}


def state_dict(params: Mapping[str, ArrayLike]) -> dict[str, torch.Tensor]:
    """Tensors of `params`, of a draw or of a polished minimum: for `module.load_state_dict(…, strict=False)`."""
    found = {}
    for name, value in params.items():
        array = np.asarray(value)
        wide = array.dtype in (np.float32, np.float64)
        tensor = torch.from_numpy(np.array(array if wide else array.astype(np.float32)))
        found[name] = tensor if wide else tensor.to(getattr(torch, array.dtype.name))
    return found


def _check_state_dict(module: torch.nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    own = {name: tuple(value.shape) for name, value in unwrapped(module).state_dict().items()}
    given = {name: tuple(np.shape(value)) for name, value in state_dict.items()}
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    reshaped = {name: (own[name], given[name]) for name in own.keys() & given.keys() if own[name] != given[name]}
    if missing or unknown or reshaped:
        raise ValueError(
            f"state_dict needs the names and shapes of module.state_dict(), got missing {missing[:6]}, unknown "
            f"{unknown[:6]} and other shapes (needed, got) {dict(list(reshaped.items())[:6])}; give the module of this "
            "checkpoint, and take prefixes such as '_orig_mod.' or 'module.' off its names."
        )


def _mask(module: torch.nn.Module, center: dict[str, Any], mask: PyTree) -> PyTree:
    """What moves: what `mask` says, of the parameters with a gradient; None where that is all."""
    trained = {name for name, value in unwrapped(module).named_parameters() if value.requires_grad} & center.keys()
    if mask is None:
        return None if trained == center.keys() else {name: name in trained for name in center}
    paths = [mask] if isinstance(mask, str) else mask
    if isinstance(paths, Sequence) and all(isinstance(path, str) for path in paths):
        found = set(matching_paths(paths, center))
        return {name: name in found & trained for name in center}
    mask = _arrays(mask)
    normalize_mask(mask, center)  # says what is wrong
    return {name: x if name in trained else False for name, x in jax.tree.broadcast(mask, center).items()}


def _arrays(data: PyTree) -> PyTree:
    if isinstance(data, torch.utils.data.TensorDataset):
        data = data.tensors
    if isinstance(data, torch.utils.data.DataLoader):
        if isinstance(data.sampler, torch.utils.data.RandomSampler) and not data.sampler.replacement:
            in_order = {"batch_size": data.batch_size, "collate_fn": data.collate_fn, "num_workers": data.num_workers}
            data = torch.utils.data.DataLoader(data.dataset, **in_order)
        data = read_batches(data)
    return jax.tree.map(lambda x: _array(x) if isinstance(x, torch.Tensor) else x, data)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """A copy of a tensor as an array of the same dtype, bfloat16 too."""
    tensor = torch.as_tensor(tensor).detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.to(torch.float32).numpy()).astype(jnp.bfloat16)
    return np.array(tensor.numpy())
