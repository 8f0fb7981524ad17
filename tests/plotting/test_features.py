from types import SimpleNamespace

import numpy as np
import pytest

import llc

CONTENT = SimpleNamespace(
    frequencies=np.array([1.0, 2.0, 3.0]),
    magnitudes=np.array([1.0, 2.0, 3.0]),
    energy=np.array([1.0, 0.1, 0.0]),
    error=np.array([0.1, 0.01, 0.0]),
    mean_frequency=1.09,
    residual=0.02,
)
KERNEL = SimpleNamespace(
    eigenvalues=np.array([4.0, 1.0, 0.0]), label_shares=np.array([0.6, 0.9, 1.0]), effective_rank=1.5, alignment=0.4
)
BASIS = SimpleNamespace(
    unit_shares=np.array([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5]]),
    layers=("a", "a", "b"),
    participation=1.8,
    modularity=0.3,
    rank=2,
)


def test_energies_are_drawn_with_zeros_at_the_floor():
    ax = llc.plot_frequency_content(CONTENT)
    [line] = [line for line in ax.lines if line.get_label() == "energy"]
    np.testing.assert_allclose(line.get_ydata(), [1.0, 0.1, 1e-12])
    assert "left unexplained, in all" in [line.get_label() for line in ax.lines]


def test_wave_vectors_of_one_length_are_not_joined():
    content = SimpleNamespace(**vars(CONTENT) | {"magnitudes": np.array([1.0, 1.0, 3.0]), "residual": 0.0})
    ax = llc.plot_frequency_content(content)
    [line] = [line for line in ax.lines if line.get_label() == "energy"]
    assert line.get_linewidth() == 0
    assert "left unexplained, in all" not in [line.get_label() for line in ax.lines]


@pytest.mark.parametrize("labelled", [True, False])
def test_eigenvalues_are_drawn_relative_to_the_largest(labelled):
    kernel = SimpleNamespace(**vars(KERNEL) | ({} if labelled else {"label_shares": None}))
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in llc.plot_tangent_kernel(kernel).lines}
    np.testing.assert_allclose(lines["eigenvalue / largest"], [1.0, 0.25])
    assert ("share of the labels left out (alignment 0.40)" in lines) == labelled


def test_shares_are_drawn_by_layer():
    ax = llc.plot_feature_basis(BASIS)
    np.testing.assert_array_equal(ax.images[0].get_array(), BASIS.unit_shares.T)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert [line.get_ydata()[0] for line in ax.lines] == [1.5]


@pytest.mark.parametrize(
    ("plot", "name"),
    [(llc.plot_frequency_content, "content"), (llc.plot_tangent_kernel, "kernel"), (llc.plot_feature_basis, "basis")],
)
def test_other_records_are_refused(plot, name):
    with pytest.raises(ValueError, match=name):
        plot(np.ones(3))
