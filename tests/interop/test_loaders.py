"""Loaders of PyTorch, grain and tf.data as streams: λ̂ is that of the same rows as arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc

RNG = np.random.default_rng(0)
X = RNG.normal(size=(1000, 3)).astype(np.float32)
Y = (X.sum(axis=1) + 0.5 * RNG.normal(size=1000)).astype(np.float32)
GAMMA = 20.0


def _of_torch():
    torch = pytest.importorskip("torch")
    rows = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return torch.utils.data.DataLoader(rows, batch_size=64, shuffle=True)


def _of_grain():
    grain = pytest.importorskip("grain")
    return grain.MapDataset.source(list(zip(X, Y, strict=True))).shuffle(seed=0).batch(64)


def _of_tensorflow():
    data = pytest.importorskip("tensorflow").data.Dataset.from_tensor_slices((X, Y))
    return data.shuffle(len(X)).batch(64).prefetch(1)


@pytest.mark.slow
@pytest.mark.parametrize("loader", [_of_torch, _of_grain, _of_tensorflow])
@pytest.mark.parametrize("resident", [None, 200])
def test_lambda_is_exact(loader, resident):
    best = jnp.asarray(np.linalg.lstsq(X, Y)[0])
    stream = llc.stream(loader(), **({} if resident is None else {"resident": resident}))
    posterior = llc.LocalPosterior(lambda w, batch: 0.5 * (batch[0] @ w - batch[1]) ** 2, best, stream, gamma=GAMMA)
    assert posterior.num_data == len(X)
    lengths = {"num_draws": 300, "num_warmup": 200, "thinning": 5, "batch_size": 100}
    mean = llc.mean_energy(
        llc.sample(jax.random.key(0), posterior, llc.SGLD(2e-4), eval_size=resident, progress=False, **lengths)
    )
    curvatures, nbeta = np.linalg.eigvalsh(X.T @ X / len(X)), float(posterior.nbeta)
    exact = 0.5 * np.sum(nbeta * curvatures / (nbeta * curvatures + GAMMA))
    assert abs(mean.value - exact) < 4 * mean.mcse


@pytest.mark.parametrize("loader", [_of_grain, _of_tensorflow])
def test_what_repeats_itself_is_refused(loader):
    with pytest.raises(ValueError, match="without end"):
        llc.stream(loader().repeat())
