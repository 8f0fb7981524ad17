"""Winners of best-of-m against exact moments of order statistics, exact null distributions and known ranks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

import llc
from llc.geometry.selection import laws
from llc.geometry.selection import sampling as selection
from llc.geometry.selection.winners import SelectedSamples
from llc.posterior.precision import float64
from tests.support.bowls import KEY, flat, quadratic
from tests.support.tiers import weekly

_CHI2 = scipy.stats.chi2
_REPEATS = 200


def _order_moment(rank, size, j, power=1):
    """E q^power of the j-th least of `size` χ²(rank) variables, in u = F(q) ~ Beta(j, size + 1 − j)."""
    law = scipy.stats.beta(j, size + 1 - j)
    return scipy.integrate.quad(lambda u: _CHI2.ppf(u, rank) ** power * law.pdf(u), 0, 1, limit=200)[0]


def _many(posterior, num_candidates, num_winners, sigma=0.1):
    """`_REPEATS` independent runs in one program."""
    with float64():
        dim = posterior.num_params
        losses = selection.losses_around(posterior, None)
        scores = jnp.asarray(laws.normal_scores(num_candidates))
        zero = selection._Sums(jnp.zeros((2, dim, dim)), jnp.zeros((dim, dim)), jnp.zeros(dim), jnp.zeros(()))
        span = jnp.asarray(0), jnp.asarray(num_winners)

        def run(key):
            return selection._accumulate(zero, key, losses, scores, jnp.asarray(sigma), span, num_winners)

        sums = jax.device_get(jax.vmap(run)(jax.random.split(jax.random.key(7), _REPEATS)))
    assert num_winners % 2 == 0
    return [
        SelectedSamples(
            halves / (num_winners / 2),
            stein / (num_candidates * num_winners),
            mean / num_winners,
            sigma,
            num_candidates,
            num_winners,
            0.0,
        )
        for halves, stein, mean in zip(sums.halves, sums.stein, sums.mean, strict=True)
    ]


@pytest.fixture(scope="module")
def repeats():
    return {rank: _many(flat(10, rank), 5, 300) for rank in (0, 3)}


def _leq_binomial(count, probability):
    return count <= scipy.stats.binom.ppf(0.999, _REPEATS, probability)


# Moments


def test_moments_of_winners_are_those_of_order_statistics(repeats):
    rank, m, kernel_dim = 3, 5, 7
    diagonals = np.array([np.diagonal(x.covariance) / x.sigma**2 for x in repeats[rank]])
    winners = _REPEATS * 300
    exact = _order_moment(rank, m, 1)
    error = np.sqrt((_order_moment(rank, m, 1, 2) - exact**2) / winners) / rank
    found = diagonals[:, :rank].mean()
    assert abs(found - exact / rank) < 4 * error
    assert abs(found - _order_moment(rank, m - 1, 1) / rank) > 4 * error
    kernel = diagonals[:, rank:].mean()
    assert abs(kernel - 1) < 4 * np.sqrt(2 / (kernel_dim * winners))
    unselected = np.array([np.diagonal(x.covariance) / x.sigma**2 for x in repeats[0]]).mean()
    assert abs(unselected - 1) < 4 * np.sqrt(2 / (10 * winners))


def test_stein_matrix_is_the_mean_of_scores_times_order_statistics(repeats):
    rank, m = 3, 5
    scores = laws.normal_scores(m)
    assert abs(scores.sum()) < 1e-12
    np.testing.assert_allclose(np.mean(scores**2), 1)
    exact = sum(s * _order_moment(rank, m, j + 1) for j, s in enumerate(scores)) / (m * rank)
    found = np.array([np.diagonal(x.stein)[:rank].mean() for x in repeats[rank]])
    assert abs(found.mean() - exact) < 4 * found.std(ddof=1) / np.sqrt(_REPEATS)
    kernel = np.array([np.diagonal(x.stein)[rank:].mean() for x in repeats[rank]])
    assert abs(kernel.mean()) < 4 * kernel.std(ddof=1) / np.sqrt(_REPEATS)


def test_winners_of_many_directions_shrink_by_the_largest_of_normals():
    """Flat spectrum: E χ²(r)_(1:m) / r → 1 − √2 κ_m / √r, the remainder of order 1/r."""
    kappa = laws.expected_maximum(5)
    np.testing.assert_allclose(kappa, 1.1629644736, rtol=1e-9)  # Harter 1961
    remainders = [r * (_order_moment(r, 5, 1) / r - 1 + np.sqrt(2 / r) * kappa) for r in (100, 10_000)]
    assert max(map(abs, remainders)) < 1
    assert abs(100 * (_order_moment(100, 5, 1) / 100 - 1 + np.sqrt(2 / 100) * 1.1 * kappa)) > 1
    costs = {m: m / laws.expected_maximum(m) ** 2 for m in range(2, 12)}
    assert min(costs, key=costs.get) == 5


def test_slope_of_the_shape():
    """−(m − 1)/m at r = 2, −1 for m → ∞, −√2 κ_m/√r for r → ∞, and as measured on a nearly flat spectrum."""
    slope = laws.shape_slope
    np.testing.assert_allclose([slope(m, 2) for m in (2, 5, 10**6)], [-1 / 2, -4 / 5, 1e-6 - 1], rtol=1e-7)
    errors = [1 + slope(m, 4) for m in (10**4, 10**6)]  # ∝ m^(−2/r)
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.02)
    kappa = laws.expected_maximum(5)
    large = [slope(5, r) / (-np.sqrt(2 / r) * kappa) - 1 for r in (10**4, 10**6)]  # ∝ r^(−1/2)
    assert abs(large[0]) < 0.01
    assert large[0] / large[1] == pytest.approx(10, rel=0.1)
    ratio, winners = 1.5, 30_000
    curvatures = np.array([ratio, ratio, 1, 1]) / np.sqrt(ratio)
    found = llc.selected_covariance(KEY, quadratic(curvatures), sigma=0.1, num_winners=winners, progress=False)
    variances = np.diagonal(found.covariance).reshape(2, 2).mean(axis=1)
    measured = np.log(variances[0] / variances[1]) / np.log(ratio)
    # Relative variance of z_i² of a winner is about that of a normal, 2; two of them in each mean, two means.
    error = np.sqrt(2 * 2 / winners) / np.log(ratio)
    assert abs(measured - slope(5, 4)) < 4 * error
    assert abs(measured + 1) > 4 * error


@pytest.mark.slow
def test_best_of_many_is_the_inverse_hessian():
    curvatures = np.array([1.0, 100.0, 0.0])
    posterior, exact = quadratic(curvatures), 100 / 101
    many = llc.selected_covariance(
        KEY, posterior, sigma=0.1, num_candidates=2000, num_winners=1000, progress=False
    ).inverse_hessian()
    few = llc.selected_covariance(KEY, posterior, sigma=0.1, num_winners=4000, progress=False).inverse_hessian()
    assert many.rank == few.rank == 2
    assert not many.hopeless
    np.testing.assert_allclose(np.trace(many.matrix), 1)
    # z_i² of a winner is q u_i² / h_i, q exponential and u uniform on the circle: relative variance 2 · 3/2 − 1 = 2,
    # relative covariance 2 · 1/2 − 1 = 0, so that the log of their ratio has variance 4/R.
    odds = many.matrix[0, 0] / many.matrix[1, 1]
    assert abs(np.log(odds / 100)) < 4 * np.sqrt(4 / 1000)
    assert abs(many.matrix[0, 0] - exact) < 0.01
    assert abs(np.log(few.matrix[0, 0] / few.matrix[1, 1] / 100)) > 4 * np.sqrt(4 / 4000)
    assert few.hopeless


# Ranks


CASES = {
    "all": np.ones(4),
    "none": np.zeros(5),
    "one of two": np.array([1.0, 0.0]),
    "half a decade": np.concatenate([np.geomspace(1, 3, 6), np.zeros(9)]),
    "many": (np.arange(30) < 12).astype(float),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(CASES, but=("all", "half a decade")))
def test_rank_of_a_quadratic(name):
    """By default settings; the rotation of the parameters matters to none of the three."""
    curvatures = CASES[name]
    dim, rank = len(curvatures), int(np.count_nonzero(curvatures))
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(dim, dim)))[0].tolist()
    posterior = llc.LocalPosterior(
        lambda w, x: 0.5 * jnp.sum(jnp.asarray(curvatures.tolist()) * (jnp.asarray(rotation) @ (w - 1)) ** 2),
        np.ones(dim),
        np.zeros((10, 1)),
    )
    selected = llc.selected_covariance(KEY, posterior, progress=False)
    assert selected.sigma == pytest.approx(0.01)
    assert (selected.rank, selected.certified_rank, selected.stein_rank) == (rank, rank, rank)
    assert selected.complete
    assert selected.centered
    assert f"rank    ≥ {rank} of {dim}" in str(selected)


@pytest.mark.parametrize("kind", ["rank", "certified_rank", "stein_rank"])
def test_ranks_are_too_large_in_five_percent_at_most(repeats, kind):
    for rank, runs in repeats.items():
        ranks = np.array([getattr(run, kind) for run in runs])
        # Of the edges, the Tracy–Widom law is an approximation: 5.5 % at most (test_edges).
        assert _leq_binomial(np.sum(ranks > rank), 0.05 if kind == "certified_rank" else 0.055)
        assert np.mean(ranks >= rank) > 0.9


def test_the_certificate_is_exact_without_any_direction(repeats):
    """At rank 0 the least eigenvector of the first half is any unit vector: χ² to the point, 5 % and no less."""
    overshoots = sum(run.certified_rank > 0 for run in repeats[0])
    low, high = scipy.stats.binom.ppf([0.001, 0.999], _REPEATS, 0.05)
    assert low <= overshoots <= high


def test_a_certificate_of_high_confidence_never_overshoots(repeats):
    """At 99.995 % all 200 repeats are right with 99 %; it still finds three directions, and 5 % would overshoot."""
    for rank, runs in repeats.items():
        certified = np.array([run.certify(0.99995) for run in runs])
        assert (certified <= rank).all()
        assert np.mean(certified == rank) > 0.9
    assert max(run.certify(0.95) for run in repeats[0]) > 0, "negative control"
    with pytest.raises(ValueError, match=r"certify needs a confidence within \(0, 1\), got 1.0"):
        repeats[0][0].certify(1.0)


@pytest.mark.parametrize("rank", [0, 3])
def test_judging_directions_by_the_winners_that_chose_them_overshoots(repeats, rank):
    same = [dataclasses.replace(run, halves=run.halves[[0, 0]]) for run in repeats[rank]]
    assert not _leq_binomial(sum(run.certified_rank > rank for run in same), 0.05)


@pytest.mark.parametrize("winners", [500, 2000, 8000])
def test_directions_below_the_blind_limit_are_not_seen(winners):
    """Curvatures over 1.7 decades: what is found ends where h/‖h‖ falls below the limit, to a factor of 1.5."""
    curvatures = np.concatenate([np.geomspace(1, 0.02, 20), np.zeros(20)])
    sizes = curvatures / np.linalg.norm(curvatures)
    found = llc.selected_covariance(KEY, quadratic(curvatures), sigma=0.01, num_winners=winners, progress=False)
    assert np.sum(sizes > 1.5 * found.blind_limit) <= found.rank <= np.sum(sizes > found.blind_limit / 1.5)
    assert found.certified_rank <= found.rank + 1 < 20
    assert not found.complete, "the report says that directions are hidden"


def test_edges():
    rng = np.random.default_rng(3)
    for dim, samples in ((1, 60), (3, 30), (10, 40), (20, 100)):
        z = rng.normal(size=(2000, samples, dim))
        least = np.linalg.eigvalsh(np.einsum("rni,rnj->rij", z, z) / samples)[:, 0]
        low, high = scipy.stats.binom.ppf([0.001, 0.999], 2000, [0.035, 0.055])
        assert low <= np.sum(least < laws.lower_edge(np.array([dim]), samples)) <= high
        assert np.sum(least < (1 - np.sqrt(dim / samples)) ** 2) > high
    assert laws.lower_edge(np.array([5.0, 6.0]), 5).tolist() == [0, 0]


def test_edges_of_all_samples():
    rng = np.random.default_rng(4)
    scores = laws.normal_scores(5)
    for dim, samples in ((2, 200), (10, 100), (60, 400)):
        weights = np.tile(scores, samples // 5)[:, None]
        largest = np.empty(1000)
        for i in range(1000):
            z = rng.normal(size=(samples, dim))
            largest[i] = np.linalg.eigvalsh((weights * z).T @ z / samples)[-1]
        low, high = scipy.stats.binom.ppf([0.001, 0.999], 1000, [0.035, 0.055])
        assert low <= np.sum(largest > laws.stein_edge(np.array([dim]), samples, scores)[0]) <= high
    # The edge of N ≫ d is passed too often.
    assert np.sum(largest > np.sqrt(dim / samples) * (2 + 0.9793 * dim ** (-2 / 3))) > high
    far = laws.stein_edge(np.array([100]), 10**9, scores)[0] / np.sqrt(1e-7)
    assert far == pytest.approx(2 + 0.9793 * 100 ** (-2 / 3), rel=1e-5)
    # Marchenko–Pastur: equal weights.
    ones = laws.stein_edge(np.array([10**9]), 4 * 10**9, np.ones(1))[0]
    assert ones == pytest.approx(1.5**2, rel=1e-5)


@pytest.mark.study
def test_all_samples_show_more_than_winners():
    runs = _many(flat(20, 6), 5, 96)
    winners, all_samples = (np.array([getattr(run, kind) for run in runs]) for kind in ("rank", "stein_rank"))
    difference = all_samples - winners
    assert difference.mean() > 4 * difference.std(ddof=1) / np.sqrt(_REPEATS)
    assert winners.max() < 6
    # The half of the winners that is judged still shows that something is left, in most runs; where all is found, not.
    assert np.mean([run.complete for run in runs]) < 0.5


@pytest.mark.study
def test_flat_rank_is_what_shows():
    """N = 16 d r shows a flat spectrum of rank r; a quarter of it does not (below the edge for most)."""
    dim, rank, needed = 12, 3, 116
    assert laws.flat_rank(dim, 5, needed) == pytest.approx(rank, rel=0.01)
    runs = _many(flat(dim, rank), 5, needed)
    assert np.mean([run.rank >= rank for run in runs]) > 0.9
    assert np.mean([run.complete for run in runs]) > 0.9
    assert np.mean([run.rank >= rank for run in _many(flat(dim, rank), 5, needed // 4 + 1)]) < 0.1


def test_the_shape_of_nothing_is_refused():
    selected = llc.selected_covariance(KEY, flat(3, 0), sigma=0.1, num_winners=200, progress=False)
    with pytest.raises(ValueError, match="needs a rank in 1"):
        selected.inverse_hessian()
    shape = selected.inverse_hessian(rank=3)
    assert shape.hopeless
    assert np.linalg.matrix_rank(shape.matrix) == 3
