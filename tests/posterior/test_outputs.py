"""`predict_fn` is looked at where a posterior is made, and refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc

INPUTS = np.linspace(0.1, 1.0, 12).reshape(6, 2).astype(np.float32)
PARAMS = {"w": jnp.ones((2, 3))}


def loss_fn(params, batch):
    return jnp.sum((batch @ params["w"]) ** 2, axis=-1)


def right(params, batch):
    return batch @ params["w"]


def raising(params, batch):
    raise KeyError("weights")


WRONG = {
    "too few arguments": (lambda params: params["w"], "takes 1 positional argument but 2 were given"),
    "too many arguments": (lambda params, x, y: x @ params["w"] + y, "missing 1 required positional argument"),
    "arguments the other way round": (lambda batch, params: batch @ params["w"], "raises "),
    "raises": (raising, "raises KeyError"),
    "other shapes": (lambda params, batch: batch @ params["w"].T, "raises TypeError"),
    "the mean": (lambda params, batch: jnp.mean(batch @ params["w"]), r"got float32 of shape \(\)"),
    "transposed": (lambda params, batch: (batch @ params["w"]).T, r"float32 of shape \(3, "),
    "one output of a batch": (lambda params, batch: (batch @ params["w"])[:1], r"float32 of shape \(1, 3\)"),
    "classes": (lambda params, batch: jnp.argmax(batch @ params["w"], axis=-1), "int32 of shape"),
    "complex": (lambda params, batch: jnp.fft.fft(batch @ params["w"]), "complex64 of shape"),
    "a dict": (lambda params, batch: {"logits": batch @ params["w"]}, "got dict"),
    "a tuple": (lambda params, batch: (batch @ params["w"], 0), "got tuple"),
    "nothing": (lambda params, batch: None, "got NoneType"),
    "text": (lambda params, batch: "logits", "got str"),
    "nan": (lambda params, batch: jnp.log(-1 - (batch @ params["w"]) ** 2), "finite numbers, got nan or infinity"),
    "no function": (3, "a function of"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_predict_fn_is_refused_at_construction(case):
    predict_fn, seen = WRONG[case]
    with pytest.raises(ValueError, match=f"predict_fn needs to .*{seen}"):
        llc.LocalPosterior(loss_fn, PARAMS, INPUTS, predict_fn=predict_fn)
    with pytest.raises(ValueError, match="predict_fn needs to "):
        llc.behavioral_gradients(predict_fn, PARAMS, INPUTS)


def test_a_right_one_is_taken():
    """Negative control, also of two rows, of one input, of outputs without further axes, and under a transformation."""
    for data in (INPUTS, INPUTS[:2]):
        for fn in (right, jax.jit(right), lambda params, batch: right(params, batch)[:, 0]):
            posterior = llc.LocalPosterior(loss_fn, PARAMS, data, predict_fn=fn)
            np.testing.assert_allclose(posterior.predict_fn(PARAMS, data), fn(PARAMS, data), rtol=1e-6)
    assert llc.behavioral_gradients(right, PARAMS, INPUTS[:1]).rank == 3

    def made(w):
        posterior = llc.LocalPosterior(loss_fn, {"w": w}, INPUTS, predict_fn=right)
        return posterior.loss(posterior.center)

    assert np.isfinite(jax.jit(made)(PARAMS["w"]))
