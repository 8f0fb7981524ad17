r"""Frequency content along segments between inputs, for inputs of many dimensions.

$$ E_m = \frac{2}{T \sum_t h_t^2}\, \Big\langle \Big| \sum_t h_t \big( f(x_t) - \bar f \big) e^{-2\pi i m t / T}
   \Big|^2 \Big\rangle_{(a, b)}, \qquad x_t = a + \tfrac tT (b - a), $$

with $h$ a Hann window and (a, b) random pairs of inputs: m counts oscillations from one input to another. The measure
is that of Fridovich-Keil et al. 2022 (arXiv 2110.02424) for networks in practice; the window is ours.
"""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from llc.geometry.features.behavioral_gradients import behavioral_gradients
from llc.geometry.features.frequency_content import FrequencyContent, input_array, outputs_of
from llc.posterior.arguments import require_integer
from llc.posterior.keys import check_key


def segment_frequency_content(
    key: PRNGKeyArray,
    predict_fn: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    inputs: PyTree,
    *,
    num_segments: int = 256,
    num_points: int = 64,
) -> FrequencyContent:
    """Energy of a learnt function by frequency along segments between random pairs of inputs, in float64.

    Args:
        key: of the pairs.
        predict_fn: `predict_fn(params, inputs)`, the outputs, an array (n, …).
        params: as for `LocalPosterior`.
        inputs: one array of floating-point numbers (n, …), images for instance.
        num_segments: pairs of distinct inputs.
        num_points: of a segment; frequencies go up to half of it, in cycles per segment.

    Raises:
        ValueError: if the inputs are not one array of at least two floating-point inputs, or the numbers are too small.

    References:
        Fridovich-Keil, Gontijo-Lopes & Roelofs 2022, Spectral bias in practice: the role of function frequency in
        generalization.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> wave = lambda w, x: w * jnp.sin(2 * jnp.pi * 5 * x)
        >>> content = segment_frequency_content(jax.random.key(0), wave, jnp.ones(1), jnp.array([[0.0], [1.0]]))
        >>> content.magnitudes[content.energy.argmax()].item()
        5.0
    """
    check_key(key)
    require_integer("num_segments", num_segments, least=2)
    require_integer("num_points", num_points, least=8)
    points = input_array(inputs)
    if len(points) < 2:
        raise ValueError(f"inputs need at least two rows to draw segments between, got {len(points)}.")
    behavioral_gradients(predict_fn, params, inputs[:2])  # its checks, on the inputs themselves
    keys = jax.random.split(key)
    first, step = (np.asarray(jax.random.randint(k, (num_segments,), i, len(points))) for i, k in enumerate(keys))
    pairs = points[first], points[(first + step) % len(points)]
    t = (np.arange(num_points) / num_points).reshape(-1, *[1] * (points.ndim - 1))

    def along(params: PyTree, ends: tuple[Array, Array]) -> Float[Array, "segment point ..."]:
        start, end = ends
        rows = start[:, None] + t * (end - start)[:, None]
        outputs = predict_fn(params, rows.reshape(-1, *start.shape[1:]))
        return outputs.reshape(len(start), num_points, *outputs.shape[1:])

    values = outputs_of(behavioral_gradients(along, params, pairs).operator).reshape(num_segments, num_points, -1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(num_points) / num_points)
    means = np.tensordot(window, values, axes=(0, 1))[:, None] / window.sum()
    spectrum = np.abs(np.fft.rfft(window[:, None] * (values - means), axis=1)) ** 2
    energies = 2 * spectrum[:, 1:].sum(axis=2) / (num_points * np.sum(window**2))
    if num_points % 2 == 0:
        energies[:, -1] /= 2  # the highest frequency has no mirror image
    return FrequencyContent(
        frequencies=np.arange(1.0, energies.shape[1] + 1),
        energy=energies.mean(axis=0),
        error=energies.std(axis=0, ddof=1) / np.sqrt(num_segments),
        constant=float(np.mean(np.sum(means**2, axis=2))),
        residual=0.0,
        total=float(np.mean(np.sum(values**2, axis=2))),
    )
