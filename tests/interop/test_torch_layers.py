"""Layers of PyTorch, beside PyTorch itself in float32 and float64."""

import copy
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.posterior.precision import as_float64, float64

pytest.importorskip("llc.interop.torch", exc_type=ImportError)
torch = pytest.importorskip("torch")
nn = torch.nn


class First(nn.Module):
    """The first output of a layer that has several."""

    def __init__(self, layer, copies=1):
        super().__init__()
        self.layer, self.copies = layer, copies

    def forward(self, x):
        return self.layer(*[x] * self.copies)[0]


SEQUENCES, PICTURES = (3, 5, 8), (3, 4, 8, 8)
LAYERS = {
    "attention": (lambda: First(nn.MultiheadAttention(8, 2, batch_first=True), 3), SEQUENCES),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), SEQUENCES),
    "lstm": (lambda: First(nn.LSTM(8, 4, batch_first=True)), SEQUENCES),
    "gru": (lambda: First(nn.GRU(8, 4, batch_first=True)), SEQUENCES),
    "rms norm": (lambda: nn.RMSNorm(8), SEQUENCES),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)), SEQUENCES),
    "compiled": (lambda: torch.compile(nn.Linear(8, 3)), SEQUENCES),
    "activations": (lambda: nn.Sequential(nn.GELU(), nn.SiLU(), nn.Softplus(), nn.ELU()), SEQUENCES),
    "group norm": (lambda: nn.GroupNorm(2, 4), PICTURES),
    "instance norm": (lambda: nn.InstanceNorm2d(4), PICTURES),
    "grouped convolution": (lambda: nn.Conv2d(4, 4, 3, groups=4, stride=2, padding=1), PICTURES),
    "transposed convolution": (lambda: nn.ConvTranspose2d(4, 2, 3), PICTURES),
    "pooling": (lambda: nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)), PICTURES),
    "upsampling": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), PICTURES),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # which torch.compile itself uses
@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_layer_is_that_of_pytorch(make, shape):
    torch.manual_seed(0)
    layer, inputs = make().eval(), torch.randn(shape)
    params, function = llc.interop.torch.params(layer), llc.interop.torch.function(layer, lambda m, x: m(x))
    plain = getattr(layer, "_orig_mod", layer)
    with torch.no_grad():
        narrow, wide = plain(inputs).numpy(), copy.deepcopy(plain).double()(inputs.double()).numpy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Explicitly requested dtype")  # of int64, as within a posterior
        outputs = np.asarray(jax.jit(function)(params, jnp.asarray(inputs.numpy())))
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, narrow, atol=2e-6)  # ten roundings of numbers of size one
    with float64():
        outputs = np.asarray(jax.jit(function)(as_float64(params), jnp.asarray(inputs.double().numpy())))
    assert outputs.dtype == np.float64
    np.testing.assert_allclose(outputs, wide, atol=1e-14)
