"""Convolutions in the forms that are fast in a loop: the same function with the same derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.posterior.convolutions import CONVOLUTION, by_products, channels_last
from llc.posterior.precision import float64
from llc.posterior.programs import inner_programs, uses_primitive
from llc.sampling.kernel import potential_gradient
from llc.sampling.placement import choose_method
from llc.sampling.run_lengths import RunLengths

LENGTHS = RunLengths(num_chains=4, num_warmup=0, num_draws=1, thinning=1)
OIHW = ("NCHW", "OIHW", "NCHW")
LAYERS = {
    "same padding": ((1, 1), "SAME", {}),
    "strides, uneven padding": ((2, 3), ((1, 2), (0, 1)), {}),
    "dilated, cropped": ((1, 1), ((-1, 0), (2, 2)), {"lhs_dilation": (2, 1), "rhs_dilation": (1, 2)}),
    "groups": ((1, 2), "VALID", {"feature_group_count": 2}),
    "a kernel a channel": ((1, 1), "SAME", {"feature_group_count": 4}),
    "channels last": ((1, 1), "SAME", {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}),
    "axes of three orders": ((1, 1), "SAME", {"dimension_numbers": ("HWNC", "OIHW", "NHCW")}),
}

LATER = {  # what takes seconds to compile
    "same padding": [pytest.mark.slow],
    "strides, uneven padding": [pytest.mark.slow],
    "dilated, cropped": [pytest.mark.study],
}


def arrays(settings):
    """An image and a kernel whose axes are in the order that the layer has."""
    names = settings.get("dimension_numbers", OIHW)
    sizes = {"N": 3, "C": 4, "O": 8, "I": 4 // settings.get("feature_group_count", 1)}
    spatial = {"H": (7, 3), "W": (8, 2)}
    shapes = [[sizes[a] if a in sizes else spatial[a][i] for a in names[i]] for i in (0, 1)]
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def derivatives(fn, x, kernel):
    """Values, gradients, and the Hessian along the kernel itself, of a function that bends."""

    def bent(kernel):
        return jnp.sum(jnp.tanh(fn(x, kernel) / 4))

    along = jax.jvp(jax.grad(bent), (kernel,), (kernel,))[1]
    return fn(x, kernel), jax.grad(lambda x: jnp.sum(jnp.tanh(fn(x, kernel) / 4)))(x), jax.grad(bent)(kernel), along


@pytest.mark.parametrize("name", [pytest.param(n, marks=LATER.get(n, [])) for n in LAYERS])
def test_values_and_two_derivatives_are_those_of_the_convolution(name):
    strides, padding, settings = LAYERS[name]
    settings = {"dimension_numbers": OIHW} | settings

    def layer(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **settings)

    with float64():
        x, kernel = arrays(settings)
        exact, found = derivatives(layer, x, kernel), derivatives(by_products(layer), x, kernel)
        # At most 10³ terms of order 10 are added in another order, each with a rounding of 2e-16.
        for right, value in zip(exact, found, strict=True):
            np.testing.assert_allclose(value, right, rtol=0, atol=2e-12)
        turned = derivatives(lambda x, k: by_products(layer)(x, jnp.flip(k)), x, kernel)
        assert float(jnp.abs(turned[0] - exact[0]).max()) > 0.1  # what the test would see


@pytest.mark.parametrize(
    "wrap", [lambda f: f, jax.jit, jax.checkpoint, jax.vmap], ids=["bare", "jitted", "checkpointed", "vectorized"]
)
def test_no_convolution_is_left_in_any_derivative(wrap):
    def loss(kernel, x):
        return jnp.sum(wrap(lambda x: jax.nn.relu(jax.lax.conv(x, kernel, (1, 1), "SAME")))(x) ** 2)

    x = jnp.ones((2, 3, 2, 5, 5))
    x = x if wrap is jax.vmap else x[0]
    kernel = jnp.ones((4, 2, 3, 3))
    for fn in (loss, jax.grad(loss)):
        assert uses_primitive(CONVOLUTION, fn, kernel, x)
    assert not uses_primitive(CONVOLUTION, by_products(loss), kernel, x)
    assert not uses_primitive(CONVOLUTION, jax.grad(by_products(loss)), kernel, x)


def forms(fn, *args):
    """The axes of all convolutions in `fn`."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == CONVOLUTION:
                yield tuple(equation.params["dimension_numbers"])
            for part, _ in inner_programs(equation):
                yield from walk(part)

    return {*walk(jax.make_jaxpr(fn)(*args).jaxpr)}


LAST = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


@pytest.mark.parametrize("name", [pytest.param(n, marks=LATER.get(n, [])) for n in LAYERS])
def test_derivatives_with_channels_last_are_those_of_the_convolution(name):
    strides, padding, settings = LAYERS[name]
    settings = {"dimension_numbers": OIHW} | settings
    x, kernel = (a.astype(jnp.float32) for a in arrays(settings))

    def loss(kernel, x):
        return jnp.sum(jnp.tanh(jax.lax.conv_general_dilated(x, kernel, strides, padding, **settings) / 4))

    def product(loss):
        return lambda kernel, x: jax.jvp(lambda k: jax.grad(loss)(k, x), (kernel,), (kernel,))[1]

    for of in (jax.grad, product):
        found = channels_last(of(by_products(loss)))
        # At most 10³ terms of order 10, in float32: roundings of 6e-8 each.
        np.testing.assert_allclose(found(kernel, x), of(loss)(kernel, x), rtol=0, atol=6e-4)
        assert forms(found, kernel, x) <= {LAST}
        grouped = "feature_group_count" in settings  # whose derivatives have no fast convolution
        assert (forms(found, kernel, x) == set()) == grouped
        assert not forms(of(loss), kernel, x) <= {LAST}


def test_convolutions_in_loops_and_checkpoints_of_the_loss_are_found():
    kernel, x = jnp.full((2, 2, 3, 3), 0.1), jnp.ones((3, 2, 5, 5))

    @jax.checkpoint
    def layer(h, kernel):
        return jnp.tanh(jax.lax.conv(h, kernel, (1, 1), "SAME"))

    def loss(kernel, x):
        return jnp.sum(jax.lax.scan(lambda h, _: (layer(h, kernel), None), x, None, length=3)[0])

    found = channels_last(jax.grad(by_products(loss)))
    np.testing.assert_allclose(found(kernel, x), jax.grad(loss)(kernel, x), rtol=1e-5)
    assert forms(found, kernel, x) == {LAST}
    assert forms(jax.grad(by_products(loss)), kernel, x) == set()
    assert not forms(jax.grad(loss), kernel, x) <= {LAST}
    assert uses_primitive("remat2", found, kernel, x) or uses_primitive("checkpoint", found, kernel, x)


def test_one_tap_is_a_product_in_both_forms():
    kernel, x = jnp.ones((4, 2, 1, 1)), jnp.ones((3, 2, 5, 5))

    def loss(kernel, x):
        return jnp.sum(jax.lax.conv(x, kernel, (1, 1), "SAME") ** 2)

    assert forms(channels_last(jax.grad(by_products(loss))), kernel, x) == set()


def test_params_that_are_no_arrays_and_tables_pass_through():
    table = np.arange(4.0, dtype=np.float32).reshape(1, 1, 2, 2)

    def fn(params, x):
        return {"out": params["activation"](jax.lax.conv(x, params["kernel"] * table, (1, 1), params["padding"]))}

    params = {"activation": jnp.tanh, "padding": "VALID", "kernel": jnp.full((1, 1, 2, 2), 0.1)}
    x = np.linspace(-1, 1, 9, dtype=np.float32).reshape(1, 1, 3, 3)
    np.testing.assert_allclose(by_products(fn)(params, x)["out"], fn(params, x)["out"], rtol=1e-6)


def test_a_posterior_has_no_convolution_to_compile():
    images = np.random.default_rng(0).normal(size=(20, 1, 4, 4)).astype(np.float32)

    def loss(kernel, x):
        return jnp.mean(jnp.square(jax.lax.conv(x, kernel, (1, 1), "VALID")), axis=(1, 2, 3))

    posterior = llc.LocalPosterior(loss, jnp.ones((1, 1, 3, 3)), images, gamma=1.0)
    assert uses_primitive(CONVOLUTION, loss, posterior.position, images)
    assert not uses_primitive(CONVOLUTION, lambda p: posterior.loss(p), posterior.position)
    np.testing.assert_allclose(posterior.loss(posterior.center), loss(posterior.center, images).mean(), rtol=1e-5)


@pytest.mark.slow
def test_the_steps_of_a_sampler_have_channels_last_and_chains_run_one_by_one():
    images = np.random.default_rng(0).normal(size=(20, 1, 4, 4)).astype(np.float32)

    def loss(kernel, x):
        return jnp.mean(jnp.square(jax.lax.conv(x, kernel, (1, 1), "VALID")), axis=(1, 2, 3))

    for weights in (None, np.ones(20)):
        posterior = llc.LocalPosterior(loss, jnp.ones((2, 1, 3, 3)), images, gamma=1.0, weights=weights)
        step = lambda position: potential_gradient(posterior, position, posterior.data).grad  # noqa: B023, E731
        assert forms(step, posterior.position) == {LAST}
        right = jax.grad(posterior.potential)(posterior.position)
        np.testing.assert_allclose(step(posterior.position), right, rtol=1e-5)
        assert choose_method("auto", posterior, LENGTHS) == "sequential"
    flat = llc.LocalPosterior(lambda w, x: jnp.mean(jnp.square(x @ w)), jnp.ones(4), images[:, 0, 0], gamma=1.0)
    assert choose_method("auto", flat, LENGTHS) == "vectorized"
