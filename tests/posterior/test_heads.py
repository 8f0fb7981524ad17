import equinox as eqx
import flax.linen
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import llc
from llc.posterior.mask import path_name

NUM_HEADS, WIDTH, HEAD_DIM = 3, 5, 2
INNER = NUM_HEADS * HEAD_DIM
INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(4, WIDTH)), jnp.float32)


def _entries(mask):
    """Shape → sorted flat numbers of what is True, by path; what is False altogether is left out."""
    leaves = {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(mask)}
    return {name: np.flatnonzero(leaf).tolist() for name, leaf in leaves.items() if leaf.any()}


def _filled(params):
    """`params` with random numbers in every array: biases start as zeros."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    random = [
        jax.random.normal(k, x.shape) if eqx.is_inexact_array(x) else x for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, random)


def _equinox():
    layer = eqx.nn.MultiheadAttention(
        NUM_HEADS,
        WIDTH,
        qk_size=HEAD_DIM,
        vo_size=HEAD_DIM,
        use_query_bias=True,
        use_key_bias=True,
        use_value_bias=True,
        use_output_bias=True,
        key=jax.random.key(0),
    )
    return {"blocks": [{"attn": _filled(layer)}]}, lambda p: p["blocks"][0]["attn"](INPUTS, INPUTS, INPUTS), 0


def _nnx():
    settings = {"in_features": WIDTH, "qkv_features": INNER, "decode": False}
    graph, state = nnx.split(nnx.MultiHeadAttention(NUM_HEADS, **settings, rngs=nnx.Rngs(0)))
    return {"blocks": [{"attn": _filled(state)}]}, lambda p: nnx.merge(graph, p["blocks"][0]["attn"])(INPUTS), -2


def _linen():
    layer = flax.linen.MultiHeadDotProductAttention(NUM_HEADS, qkv_features=INNER)
    params = _filled(layer.init(jax.random.key(0), INPUTS))
    return {"blocks": [{"attn": params}]}, lambda p: layer.apply(p["blocks"][0]["attn"], INPUTS), -2


def _haiku():
    layer = haiku.without_apply_rng(
        haiku.transform(
            lambda x: haiku.MultiHeadAttention(
                NUM_HEADS, HEAD_DIM, w_init=haiku.initializers.RandomNormal(), model_size=WIDTH, name="blocks_0_attn"
            )(x, x, x)
        )
    )
    return _filled(layer.init(jax.random.key(0), INPUTS)), lambda p: layer.apply(p, INPUTS), -1


FRAMEWORKS = {
    "equinox": (_equinox, "blocks.*.attn"),
    "nnx": (_nnx, "blocks.*.attn"),
    "linen": (_linen, "blocks.*.attn"),
    "haiku": (_haiku, "blocks_*_attn"),
}


def _contribution(model, params, mask, others):
    """What the outputs lose when a head's entries are zero, once everything in `others` is zero too."""
    zero = jax.tree.map(lambda m, x: jnp.where(m, 0, x) if eqx.is_array(x) else x, others, params)
    off = jax.tree.map(lambda m, x: jnp.where(m, 0, x) if eqx.is_array(x) else x, mask, zero)
    return np.asarray(model(zero) - model(off))


@pytest.mark.slow
@pytest.mark.parametrize(("make", "pattern"), FRAMEWORKS.values(), ids=FRAMEWORKS)
def test_a_mask_holds_one_head_and_nothing_of_another(make, pattern):
    params, model, axis = make()
    masks = [llc.head_mask(params, pattern, head=h, num_heads=NUM_HEADS, axis=axis) for h in range(NUM_HEADS)]
    nothing = jax.tree.map(lambda _: False, params)
    # Heads are added up by the output projection: the outputs of all are the sum of what each contributes.
    alone = [_contribution(model, params, mask, nothing) for mask in masks]
    after = _contribution(model, params, masks[1], masks[0])
    np.testing.assert_allclose(after, alone[1], atol=1e-5)
    every = jax.tree.map(lambda *m: np.logical_or.reduce(m), *masks)
    np.testing.assert_allclose(_contribution(model, params, every, nothing), sum(alone), atol=1e-5)
    assert min(np.abs(part).max() for part in alone) > 1e-2  # negative control: each of them does something
    sizes = [sum(len(x) for x in _entries(mask).values()) for mask in masks]
    assert sizes == [4 * WIDTH * HEAD_DIM + 3 * HEAD_DIM] * NUM_HEADS


def test_the_other_axis_is_that_of_the_inputs():
    weight = {"q": np.zeros((WIDTH, INNER))}
    mask = llc.head_mask(weight, "q", head=0, num_heads=NUM_HEADS, axis=-1)
    assert _entries(mask) == {"q": [i for i in range(INNER * WIDTH) if i % INNER < HEAD_DIM]}
    with pytest.raises(ValueError, match="num_heads"):  # five inputs are no three heads
        llc.head_mask(weight, "q", head=0, num_heads=NUM_HEADS, axis=0)


FUSED = {
    "rows": ({"qkv": {"weight": np.zeros((12, 2)), "bias": np.zeros(12)}}, 0, None),
    "columns": ({"c_attn": {"weight": np.zeros((2, 12)), "bias": np.zeros(12)}}, -1, None),
    "names of PyTorch": ({"in_proj_weight": np.zeros((12, 2)), "in_proj_bias": np.zeros(12)}, 0, None),
    "said": ({"mix": {"weight": np.zeros((12, 2)), "bias": np.zeros(12)}}, 0, 3),
}


@pytest.mark.parametrize(("params", "axis", "fused"), FUSED.values(), ids=FUSED)
def test_fused_projections_are_three(params, axis, fused):
    mask = llc.head_mask({"attn": params}, "attn", head=1, num_heads=2, axis=axis, fused=fused)
    weight, bias = sorted(jax.tree.leaves(mask), key=np.ndim, reverse=True)
    assert np.flatnonzero(bias).tolist() == [2, 3, 6, 7, 10, 11]
    along = weight if axis == 0 else weight.T
    np.testing.assert_array_equal(along, np.broadcast_to(bias[:, None], (12, 2)))


def test_a_fused_projection_of_heads_one_after_the_other():
    params = {"query_key_value": np.zeros((12, 2))}
    with pytest.raises(ValueError, match="fused"):
        llc.head_mask(params, "query_key_value", head=1, num_heads=2, axis=0)
    mask = llc.head_mask(params, "query_key_value", head=1, num_heads=2, axis=0, fused=1)
    assert np.flatnonzero(mask["query_key_value"][:, 0]).tolist() == [6, 7, 8, 9, 10, 11]


def test_keys_and_values_fused_are_two():
    mask = llc.head_mask({"kv_proj": np.zeros((8, 1))}, "kv_proj", head=0, num_heads=2, axis=0)
    assert np.flatnonzero(mask["kv_proj"]).tolist() == [0, 1, 4, 5]


def test_a_block_of_gpt_with_its_output_projection():
    block = {
        "attn": {
            "c_attn": {"weight": np.zeros((4, 12)), "bias": np.zeros(12)},
            "c_proj": {"weight": np.zeros((4, 4)), "bias": np.zeros(4)},
        },
        "mlp": {"c_proj": {"weight": np.zeros((16, 4))}},
    }
    params = {"blocks": [block, jax.tree.map(np.copy, block)]}
    mask = llc.head_mask(params, "blocks.1.attn", head=[0], num_heads=2, axis=-1)
    columns = [i for i in range(48) if i % 12 in (0, 1, 4, 5, 8, 9)]
    assert _entries(mask) == {
        "blocks.1.attn.c_attn.bias": [0, 1, 4, 5, 8, 9],
        "blocks.1.attn.c_attn.weight": columns,
        "blocks.1.attn.c_proj.weight": list(range(8)),  # rows 0 and 1: its inputs
    }
    both = llc.head_mask(params, "blocks.*.attn", head=[0, 1], num_heads=2, axis=-1)
    assert sum(len(x) for x in _entries(both).values()) == 2 * (48 + 12 + 16)


def test_a_mapping_gives_the_axis_of_each_path():
    params = {"attn": {"a": np.zeros((4, 4)), "b": np.zeros((4, 4)), "norm": np.zeros(4)}}
    mask = llc.head_mask(params, {"attn.a": 0, "attn.b": 1}, head=1, num_heads=2)
    assert _entries(mask) == {
        "attn.a": list(range(8, 16)),
        "attn.b": [2, 3, 6, 7, 10, 11, 14, 15],
    }


def test_arrays_with_an_axis_of_heads():
    params = {
        "attn": {"W_Q": np.zeros((3, 4, 2)), "b_Q": np.zeros((3, 2)), "W_O": np.zeros((3, 2, 4)), "b_O": np.zeros(4)}
    }
    mask = llc.head_mask(params, "attn", head=2, num_heads=3, axis=0)
    assert _entries(mask) == {
        "attn.W_O": list(range(16, 24)),
        "attn.W_Q": list(range(16, 24)),
        "attn.b_Q": [4, 5],
    }


def test_a_linear_layer_within_a_query_is_no_output_projection():
    params = {"attn": {"query": {"linear": {"w": np.zeros((4, 4))}}, "linear": {"w": np.zeros((4, 4))}}}
    mask = llc.head_mask(params, "attn", head=0, num_heads=2, axis=-1)
    assert _entries(mask) == {
        "attn.query.linear.w": [0, 1, 4, 5, 8, 9, 12, 13],
        "attn.linear.w": list(range(8)),
    }


WEIGHT = np.zeros((4, 4))
REFUSED = {
    "no match": ({"attn": WEIGHT}, "attention", {"axis": 0}, "attention"),
    "not divisible": ({"attn": {"q": np.zeros((5, 4))}}, "attn", {"axis": 0}, "num_heads"),
    "no such head": ({"attn": {"q": WEIGHT}}, "attn", {"axis": 0, "head": 2}, "head"),
    "a negative head": ({"attn": {"q": WEIGHT}}, "attn", {"axis": 0, "head": -1}, "head"),
    "no head": ({"attn": {"q": WEIGHT}}, "attn", {"axis": 0, "head": []}, "head"),
    "no axis": ({"attn": {"q": WEIGHT}}, "attn", {}, "axis"),
    "two kinds of axis": ({"attn": {"q": WEIGHT}}, {"attn": 0}, {"axis": 0}, "axis"),
    "an axis that is missing": ({"attn": {"q": {"w": WEIGHT, "b": np.zeros(4)}}}, "attn", {"axis": 1}, "axis"),
    "a norm": ({"attn": {"q": WEIGHT, "norm": {"scale": np.zeros(4)}}}, "attn", {"axis": 0}, "norm"),
    "grouped queries": ({"attn": {"q": WEIGHT, "k": np.zeros((2, 4))}}, "attn", {"axis": 0}, "fused"),
    "fused by another name": ({"attn": {"mix": np.zeros((12, 4)), "out": WEIGHT}}, "attn", {"axis": 0}, "fused"),
    "output biases alone": ({"attn": {"out": {"bias": np.zeros(4)}}}, "attn", {"axis": 0}, "biases"),
    "no heads at all": ({"attn": {"q": WEIGHT}}, "attn", {"axis": 0, "num_heads": 0}, "num_heads"),
    "nothing fused": ({"attn": {"q": WEIGHT}}, "attn", {"axis": 0, "fused": 0}, "fused"),
    "an unclear output": ({"attn": {"out": np.zeros((2, 2, 4))}}, "attn", {"axis": -2}, "out"),
}


@pytest.mark.parametrize(("params", "pattern", "settings", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_clear_is_refused(params, pattern, settings, said):
    with pytest.raises(ValueError, match=said):
        llc.head_mask(params, pattern, **{"head": 0, "num_heads": 2} | settings)


def test_the_posterior_of_a_head_moves_what_the_mask_says():
    params, model, axis = _equinox()
    mask = llc.head_mask(params, "blocks.*.attn", head=1, num_heads=NUM_HEADS, axis=axis)
    posterior = llc.LocalPosterior(
        lambda p, batch: jnp.mean((model(p) - batch[:, None, None]) ** 2, axis=(1, 2)), params, np.zeros(10), mask=mask
    )
    assert posterior.num_params == 4 * WIDTH * HEAD_DIM + 3 * HEAD_DIM
