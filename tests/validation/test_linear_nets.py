"""Deep linear networks: ranks as they are said to be, and the same density from few rows."""

import jax
import linear_nets
import numpy as np
import pytest
import strata
import theory

import llc
from llc.posterior.precision import as_float64, float64
from tests.support.ranks import ranks_of

SMALL = linear_nets.Law(layers=(2, 4), widths=(2, 5), num_data=200)


@pytest.mark.parametrize("index", range(6))
def test_generator_has_the_ranks_it_says(index):
    net = linear_nets.generate(SMALL, index)
    widths = net.widths
    assert SMALL.layers[0] <= len(net.weights) <= SMALL.layers[1]
    assert all(SMALL.widths[0] <= width <= SMALL.widths[1] for width in widths)
    ranks = strata.profile(widths, net.ranks)
    np.testing.assert_array_equal(np.triu(ranks), np.triu(ranks_of(net.weights)))
    assert strata.hessian_rank(ranks) == theory.deep_linear_rank([matrix.T for matrix in net.weights])
    assert all(matrix.dtype == np.float32 for matrix in net.weights)
    again = linear_nets.generate(SMALL, index)
    assert all((a == b).all() for a, b in zip(net.weights, again.weights, strict=True))


def test_generator_reduces_every_second_matrix():
    nets = [linear_nets.generate(linear_nets.Law(widths=(20, 29)), index) for index in range(40)]
    full = [rank == min(matrix.shape) for net in nets for matrix, rank in zip(net.weights, net.ranks, strict=True)]
    share = 1 - np.mean(full)  # a drawn rank is full in one of 20–29 cases
    assert abs(share - 0.5 * (1 - 1 / 22)) < 4 * 0.5 / np.sqrt(len(full)) + 0.01


def test_hessian_rank_is_that_of_the_spectrum():
    net = linear_nets.generate(SMALL, 3)
    posterior = linear_nets.make_posterior(net, SMALL, 3)
    bounds = llc.rank_bounds(llc.spectrum(posterior))
    assert bounds.rank == theory.deep_linear_rank([matrix.T for matrix in net.weights])


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_few_rows_have_the_same_density(scale):
    net = linear_nets.generate(SMALL, 1)
    posterior = linear_nets.make_posterior(net, SMALL, 1).with_scale(gamma=3.0)
    few = linear_nets.sufficient(net, posterior).with_scale(gamma=3.0)
    few = linear_nets.posterior_at(net, scale * few.data[0], nbeta=float(posterior.nbeta)).with_scale(gamma=3.0)
    assert len(few.data[0]) == net.widths[0] < posterior.num_data
    x, y = (np.asarray(part, np.float64) for part in posterior.data)
    with float64():
        vector = as_float64(posterior.center) + 0.1 * jax.random.normal(jax.random.key(0), posterior.center.shape)
        full, short = (float(p.potential(vector, as_float64(p.data))) for p in (posterior, few))
        residual = np.linalg.multi_dot([x, *linear_nets.matrices(np.asarray(vector), net.widths)]) - y
    # Rows and targets are rounded to float32: residuals by 2⁻²⁴ of the outputs they are differences of.
    tolerance = 4 * 2.0**-24 * np.linalg.norm(y) / np.linalg.norm(residual)
    assert tolerance < 1e-3
    assert (abs(short / full - 1) < tolerance) == (scale == 1.0)
