r"""How much information each layer passes on: states that it tells apart, and dimensions.

$$ I(X; T) = H(T) = -\sum_t p(t) \log_2 p(t), \qquad I(T; Y) = H(T) + H(Y) - H(T, Y), $$

for a layer T that is a function of the input X, with p(t) the share of the inputs in state t: exact counts, which say
something where inputs are discrete and all, or most, of them are given (2ᵇ inputs of b bits). A layer of real numbers
tells almost all inputs apart; what a linear part passes on is then the rank of its activations.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Int, PyTree

from llc.posterior.arguments import require_callable, require_number
from llc.posterior.mask import path_name
from llc.posterior.placement import on_common_devices
from llc.posterior.precision import as_float64, float64
from llc.posterior.validation import check_center, check_data, check_finite

_FLOOR = 16 * float(np.finfo(np.float64).eps)  # of a singular value, relative to the norm of the activations
_OFFSET = 0.381966  # of the grid of states, off the round numbers that activations often are


class LayerInformation(NamedTuple):
    """What one layer passes on.

    Attributes:
        path: of its activations.
        bits: I(X; T) = H(T).
        num_states: inputs that it tells apart.
        rank: of its activations, centred over the inputs: dimensions that it uses.
        label_bits: I(T; Y); nan without labels.
    """

    path: str
    bits: float
    num_states: int
    rank: int
    label_bits: float


def layer_information(
    activations_fn: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    inputs: PyTree,
    *,
    labels: PyTree = None,
    tolerance: float = 1e-6,
) -> tuple[LayerInformation, ...]:
    """Information about the inputs, and the labels, in each layer, in float64.

    Args:
        activations_fn: `activations_fn(params, inputs)`, a pytree (a list or a dict of layers) of arrays (n, …).
        params: as for `LocalPosterior`.
        inputs: a pytree of arrays with the same leading axis of n inputs, each of which counts 1/n.
        labels: discrete Y, an array (n, …). Default: none.
        tolerance: activations that differ by less, relative to their root mean square, are one state. Trained layers
            are equal only up to convergence; take about 1e-2 for them.

    Raises:
        ValueError: if there are no activations with one row for each input, or they are not finite.

    References:
        Tishby & Zaslavsky 2015 (arXiv 1503.02406); Saxe et al. 2018 on what binning of real numbers hides.

    Example:
        >>> import jax.numpy as jnp
        >>> bits = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> [found] = layer_information(lambda w, x: [x @ w], jnp.array([[1.0], [1.0]]), bits)
        >>> found.num_states, found.bits, found.rank
        (3, 1.5, 1)
    """
    require_callable("activations_fn", activations_fn, "a function of (params, inputs)")
    require_number("tolerance", tolerance)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(inputs) if eqx.is_array(leaf)]
    if not shapes or shapes[0][:1] in ((), (0,)) or len({shape[:1] for shape in shapes}) > 1:
        raise ValueError(f"inputs need arrays with the same leading axis of n inputs, got shapes {shapes}.")
    check_data(inputs, "inputs")
    check_center(params)
    for name, tree in (("inputs", inputs), ("params", params)):
        check_finite(eqx.filter(tree, eqx.is_inexact_array), name)
    n = shapes[0][0]
    params, inputs = on_common_devices(params, inputs)
    with float64():
        try:
            layers = jax.device_get(eqx.filter_jit(activations_fn)(as_float64(params), as_float64(inputs)))
        except (TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
            raise ValueError(
                f"activations_fn needs to be a function of (params, inputs), but raises {error}"
            ) from error
    arrays = jax.tree_util.tree_leaves_with_path(layers)
    if not arrays or any(np.shape(x)[:1] != (n,) for _, x in arrays):
        shapes = {path_name(path): np.shape(x) for path, x in arrays}
        raise ValueError(f"activations_fn needs to return arrays of ({n}, …), one a layer, got shapes {shapes}.")
    classes = None if labels is None else _labels(labels, n)
    return tuple(_of_layer(path_name(path), np.asarray(x, np.float64), classes, tolerance) for path, x in arrays)


def _labels(labels: PyTree, n: int) -> Int[np.ndarray, "input"]:
    right = isinstance(labels, jax.Array | np.ndarray) and labels.dtype != np.object_ and labels.shape[:1] == (n,)
    if not right:
        raise ValueError(f"labels need to be one array with a row for each of {n} inputs, got {type(labels).__name__}.")
    return np.unique(np.asarray(labels).reshape(n, -1), axis=0, return_inverse=True)[1].ravel()


def _of_layer(
    path: str, activations: Float[np.ndarray, "input ..."], classes: Int[np.ndarray, "input"] | None, tolerance: float
) -> LayerInformation:
    rows = activations.reshape(len(activations), -1)
    if not np.isfinite(rows).all():
        raise ValueError(f"activations_fn needs finite activations, got nan or inf in layer {path!r}.")
    scale = float(np.sqrt(np.mean(rows**2))) or 1.0
    cells = np.round(rows / (tolerance * scale) + _OFFSET)
    states = np.unique(cells, axis=0, return_inverse=True)[1].ravel()
    values = np.linalg.svdvals(rows - rows.mean(axis=0))
    bits = _entropy(states)
    label_bits = float("nan")
    if classes is not None:
        label_bits = bits + _entropy(classes) - _entropy(states * (classes.max() + 1) + classes)
    rank = int(np.sum(values > _FLOOR * scale * np.sqrt(rows.size)))
    return LayerInformation(path or "activations", bits, int(states.max()) + 1, rank, label_bits)


def _entropy(states: Int[np.ndarray, "input"]) -> float:
    """In bits."""
    shares = np.unique(states, return_counts=True)[1] / len(states)
    return max(0.0, -float(np.sum(shares * np.log2(shares))))
