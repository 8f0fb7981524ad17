"""Quadratic losses of known rank for selected samples, and whether two results are the same."""

import jax
import numpy as np

import llc

KEY = jax.random.key(0)


def bowl(w, batch):
    return 0.5 * batch["curvatures"][0] @ (w - batch["center"][0]) ** 2


def quadratic(curvatures, center=0.0):
    curvatures = np.asarray(curvatures, float)
    data = {"curvatures": np.tile(curvatures, (10, 1)), "center": np.full((10, 1), center)}
    return llc.LocalPosterior(bowl, np.full(len(curvatures), center), data)


def flat(dim, rank):
    return quadratic(np.arange(dim) < rank)


def assert_same(a, b, **tolerance):
    for name in ("halves", "stein", "mean"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), **tolerance)
