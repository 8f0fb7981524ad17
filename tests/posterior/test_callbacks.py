"""A loss that fails while it is computed, out of a compiled program, says what failed."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc

_DATA = np.ones((50, 3), np.float32)


def _by_callback(function):
    def loss(w, batch):
        return jax.pure_callback(function, jax.ShapeDtypeStruct(batch.shape[:1], jnp.float32), batch @ w)

    return loss


def _unreachable(_):
    raise OSError("the simulator does not answer")


def _refused(w, batch):
    return eqx.error_if((batch @ w) ** 2, jnp.any(w > 0.5), "w is out of range")


@pytest.mark.parametrize(
    ("loss", "seen"),
    [
        (_by_callback(_unreachable), "the simulator does not answer"),
        (_by_callback(lambda z: np.asarray(z)[:1]), "shape"),
        (_refused, "w is out of range"),
    ],
    ids=["raises", "another shape", "its own check"],
)
def test_what_failed_is_named(loss, seen):
    with pytest.raises(ValueError, match=f"needs to be computable at w.*{seen}"):
        llc.LocalPosterior(loss, jnp.ones(3), _DATA)


def test_a_loss_whose_callback_answers_is_taken_and_has_no_gradient():
    posterior = llc.LocalPosterior(_by_callback(lambda z: np.float32(z)), jnp.ones(3), _DATA)
    with pytest.raises(ValueError, match="needs a gradient"):
        llc.estimate(jax.random.key(0), posterior, progress=False)
