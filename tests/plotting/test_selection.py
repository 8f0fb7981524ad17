import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc


@pytest.fixture(scope="module")
def ladder():
    def loss(w, batch):
        return 0.5 * jnp.sum((w[:2] - 1) ** 2) + 0 * jnp.sum(batch)

    posterior = llc.LocalPosterior(loss, np.ones(4), np.zeros((10, 1)))
    return llc.sigma_ladder(jax.random.key(0), posterior, progress=False)


def test_eigenvalues_edge_and_rank(ladder):
    selected = ladder.rungs[1]
    ax = llc.plot_selected(selected)
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in ax.lines}
    np.testing.assert_array_equal(lines["selected"], selected.eigenvalues[:2])
    np.testing.assert_array_equal(lines["as by chance"], selected.eigenvalues[2:])
    np.testing.assert_array_equal(lines["edge (Marchenko–Pastur, 95 %)"], selected.edges)
    np.testing.assert_array_equal(lines["σ², unselected"], 1)
    assert "rank ≥ 2, certificate 2, all samples 2" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_ladder_shows_ranks_variances_and_the_plateau(ladder):
    ax = llc.plot_sigma_ladder(ladder)
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["rank ≥, winners"].get_ydata()) == [2, 2, 2]
    assert list(lines["plateau up to σ = 0.1"].get_xdata()) == pytest.approx([0.1, 0.1])
    assert [text.get_text() for text in ax.texts] == [f"{v:.3f}" for v in ladder.kernel_variances]
