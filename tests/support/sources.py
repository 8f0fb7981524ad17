"""Sources of batches as users have them, and a regression whose rows come from one."""

import jax.numpy as jnp
import numpy as np

import llc

NUM_DATA = 3000
_RANDOM = np.random.default_rng(0)
X = _RANDOM.normal(size=(NUM_DATA, 3)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.0], np.float32) + _RANDOM.normal(size=NUM_DATA)).astype(np.float32)
CENTER = np.linalg.lstsq(X, Y, rcond=None)[0].astype(np.float32)
CURVATURES = np.linalg.eigvalsh(X.T.astype(np.float64) @ X / NUM_DATA)


class Loader:
    """The rows in batches of 70, the last one shorter; the same order in every pass."""

    def __iter__(self):
        return ([X[i : i + 70], Y[i : i + 70]] for i in range(0, NUM_DATA, 70))


class ShufflingLoader:
    """Another order in every pass, which nothing chooses."""

    def __init__(self):
        self.random = np.random.default_rng(1)

    def __iter__(self):
        order = self.random.permutation(NUM_DATA)
        return ([X[part], Y[part]] for part in np.array_split(order, 40))


class EpochLoader:
    """An order that `set_epoch` chooses."""

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return shuffled(self.epoch)


def shuffled(seed):
    """A function of one argument, the seed of its order."""
    order = np.random.default_rng(seed).permutation(NUM_DATA)
    return ([X[part], Y[part]] for part in np.array_split(order, 40))


def losses(w, batch):
    return 0.5 * (batch[0] @ w - batch[1]) ** 2


def regression(data, gamma=10.0, **settings):
    return llc.LocalPosterior(losses, jnp.asarray(CENTER), data, gamma=gamma, **settings)


def exact_llc(posterior):
    """λ̂ at nβ and γ of the quadratic loss, and its variance a draw."""
    nbeta, gamma = posterior.scale
    shares = nbeta * CURVATURES / (nbeta * CURVATURES + gamma)
    return 0.5 * shares.sum()
