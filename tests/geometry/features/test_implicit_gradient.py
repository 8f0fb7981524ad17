import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc

CURVATURES = np.array([3.0, 1.0, 0.5])


def _posterior(center, rows=None):
    def loss(w, batch):
        return 0.5 * jnp.sum(CURVATURES.astype(w.dtype) * (w - batch) ** 2, axis=-1)

    return llc.LocalPosterior(loss, np.asarray(center, np.float64), np.zeros((10, 3)) if rows is None else rows)


def test_a_quadratic_loss_has_the_closed_form():
    w = np.array([1.0, -2.0, 4.0])
    found = llc.implicit_gradient_penalty(_posterior(w), 0.1)
    gradient = CURVATURES * w
    assert found.loss == pytest.approx(0.5 * np.sum(CURVATURES * w**2))
    assert found.gradient_norm == pytest.approx(np.linalg.norm(gradient))
    assert found.penalty == pytest.approx(0.025 * gradient @ gradient)
    assert found.modified_loss == pytest.approx(found.loss + found.penalty)
    assert found.sharpness == pytest.approx(3.0)
    assert found.stability == pytest.approx(0.15)
    assert found.stable
    assert not llc.implicit_gradient_penalty(_posterior(w), 0.7).stable, "2/ε = 2.86 < 3"


def test_batches_add_the_variance_of_their_gradients():
    """Against the mean of ‖∇L_B‖² over all batches of two of four rows."""
    rows = np.random.default_rng(0).normal(size=(4, 3))
    found = llc.implicit_gradient_penalty(_posterior(np.ones(3), rows), 0.1, batch_size=2)
    pairs = [rows[[i, j]].mean(axis=0) for i in range(4) for j in range(i)]
    mean_square = np.mean([np.sum((CURVATURES * (1 - pair)) ** 2) for pair in pairs])
    assert found.gradient_norm**2 + found.noise == pytest.approx(mean_square)
    assert llc.implicit_gradient_penalty(_posterior(np.ones(3), rows), 0.1, batch_size=4).noise == 0


def test_gradient_descent_follows_the_modified_loss_to_second_order():
    """On a quadratic loss the flows are known: e^{−ht} for L, e^{−h(1 + εh/2)t} for the modified loss."""
    distances = []
    for step in (0.02, 0.01):
        steps = round(1 / step)
        descent = (1 - step * CURVATURES) ** steps
        flows = np.exp(-CURVATURES), np.exp(-CURVATURES * (1 + step * CURVATURES / 2))
        posterior = _posterior(np.ones(3))
        found = llc.implicit_gradient_penalty(posterior, step)
        modified = jax.grad(
            lambda w, step=step: 0.5 * jnp.sum(CURVATURES * w**2) + step / 4 * jnp.sum((CURVATURES * w) ** 2)
        )
        slope = np.sum(CURVATURES * (1 + step * CURVATURES / 2))
        assert float(jnp.sum(modified(jnp.ones(3)))) == pytest.approx(slope, rel=1e-5)
        assert found.modified_loss == pytest.approx(0.5 * CURVATURES.sum() + step / 4 * np.sum(CURVATURES**2))
        distances.append([np.linalg.norm(descent - flow) for flow in flows])
    plain, better = np.log2(np.array(distances[0]) / np.array(distances[1]))
    assert plain == pytest.approx(1, abs=0.1)
    assert better == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": np.nan}, "step_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 11}, "batch_size"),
        ({"num_matvecs": 0}, "num_matvecs"),
        ({"seed": -1}, "seed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_named(changed, named):
    right = {"posterior": _posterior(np.ones(3)), "step_size": 0.1}
    with pytest.raises(ValueError, match=named):
        llc.implicit_gradient_penalty(**(right | changed))
