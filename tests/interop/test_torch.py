"""Modules against the same models in JAX; without PyTorch they are skipped (`.ci/run torch` installs it)."""

import copy
import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import llc
from llc.posterior.precision import as_float64, float64

pytest.importorskip("llc.interop.torch", exc_type=ImportError)
torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional
RNG = np.random.default_rng(0)
NUM_DATA, CLASSES, LENGTH, WIDTH, HEADS = 60, 3, 5, 8, 2
LABELS = RNG.integers(0, CLASSES, NUM_DATA)


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(2 * 9, CLASSES)

    def forward(self, x):
        x = functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.head(self.drop(x.flatten(1)))


class Transformer(nn.Module):
    """A block of GPT-2: tied embeddings, fused attention, GELU; a scale that is a buffer, and one that is neither."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Embedding(CLASSES, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(WIDTH, 3 * WIDTH), "c_proj": nn.Linear(WIDTH, WIDTH)})
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)
        self.shift = torch.full((WIDTH,), 0.25)

    def forward(self, tokens):
        x = self.embed(tokens) + self.place(torch.arange(tokens.shape[1]))
        query, key, value = self.attn["c_attn"](self.norm_1(x)).split(WIDTH, dim=2)
        query, key, value = (t.view(*t.shape[:2], HEADS, -1).transpose(1, 2) for t in (query, key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attn["c_proj"](mixed.transpose(1, 2).reshape(x.shape))
        x = x + self.scale * self.down(functional.gelu(self.up(self.norm_2(x)), approximate="tanh")) + self.shift
        return self.head(x)


def _linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _mlp_in_jax(p, x):
    return _linear(p, "2", jnp.tanh(_linear(p, "0", x)))


def _convolutional_in_jax(p, x):
    x = jax.lax.conv_general_dilated(x, p["conv.weight"], (1, 1), "SAME") + p["conv.bias"][:, None, None]
    mean, var = p["norm.running_mean"][:, None, None], p["norm.running_var"][:, None, None]
    x = (x - mean) / jnp.sqrt(var + 1e-5) * p["norm.weight"][:, None, None] + p["norm.bias"][:, None, None]
    x = jax.lax.reduce_window(jax.nn.relu(x), -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    return _linear(p, "head", x.reshape(len(x), -1))


def _norm(p, name, x):
    centred = x - x.mean(-1, keepdims=True)
    x = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return x * p[f"{name}.weight"] + p[f"{name}.bias"]


def _transformer_in_jax(p, tokens):
    x = p["embed.weight"][tokens] + p["place.weight"]
    parts = jnp.split(_linear(p, "attn.c_attn", _norm(p, "norm_1", x)), 3, axis=2)
    query, key, value = (t.reshape(*t.shape[:2], HEADS, -1) for t in parts)
    scores = jnp.einsum("bthk,bshk->bhts", query, key) / jnp.sqrt(WIDTH / HEADS)
    weights = jax.nn.softmax(jnp.where(jnp.tri(LENGTH, dtype=bool), scores, -jnp.inf))
    mixed = jnp.einsum("bhts,bshk->bthk", weights, value).reshape(x.shape)
    x = x + _linear(p, "attn.c_proj", mixed)
    x = x + p["scale"] * _linear(p, "down", jax.nn.gelu(_linear(p, "up", _norm(p, "norm_2", x)))) + 0.25
    return x @ p["embed.weight"].T


def _classes(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _tokens(model, batch):
    return functional.cross_entropy(model(batch[0]).transpose(1, 2), batch[1], reduction="none").mean(1)


def _module(name):
    torch.manual_seed(0)
    if name == "mlp":
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).eval()
    module = {"cnn": Convolutional, "gpt": Transformer}[name]()
    if name == "cnn":  # running averages that are not 0 and 1
        module(torch.randn(20, 1, 6, 6) + 1)
    return module.eval()


PICTURES = RNG.normal(size=(NUM_DATA, 1, 6, 6)).astype(np.float32)
TEXT = RNG.integers(0, CLASSES, (NUM_DATA, LENGTH))
CASES = {
    "mlp": (_classes, _mlp_in_jax, (RNG.normal(size=(NUM_DATA, 4)).astype(np.float32), LABELS)),
    "cnn": (_classes, _convolutional_in_jax, (PICTURES, LABELS)),
    "gpt": (_tokens, _transformer_in_jax, (TEXT, np.roll(TEXT, -1, axis=1))),
}
SETTINGS = {"gamma": 20.0, "nbeta": 10.0}


def _outputs(model, batch):
    return model(batch[0])


def _posteriors(name, module):
    """The posterior of a module, and that of the same model in JAX with the same params."""
    loss_fn, model, data = CASES[name]

    def loss_in_jax(params, batch):
        losses = optax.softmax_cross_entropy_with_integer_labels(model(params, batch[0]), batch[1])
        return losses.reshape(len(losses), -1).mean(1)

    tensors = jax.tree.map(torch.as_tensor, data)
    one = llc.interop.torch.posterior(module, loss_fn, tensors, **SETTINGS, predict_fn=_outputs)
    mask = None if one.mask is None else {key: bool(value) for key, value in one.mask.items()}
    return one, llc.LocalPosterior(loss_in_jax, one.center, data, **SETTINGS, mask=mask)


@pytest.mark.parametrize("name", CASES)
def test_a_module_is_the_same_model_in_jax(name):
    module = _module(name)
    one, other = _posteriors(name, module)
    model, data = CASES[name][1], CASES[name][2]
    with torch.no_grad():
        expected = module(torch.as_tensor(data[0])).numpy()
    outputs = one.predict_fn(one.center, one.data)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected, atol=2e-5)  # 100 roundings of numbers up to 2
    np.testing.assert_allclose(outputs, model(one.center, jax.tree.map(jnp.asarray, data[0])), atol=2e-5)
    assert one.num_params == sum(p.numel() for p in module.parameters())

    gradients = [jax.grad(lambda z, p=p: p.loss(p.params_at(z)))(p.position) for p in (one, other)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *gradients)


@pytest.mark.parametrize("name", CASES)
def test_hessian_products_are_those_of_float64(name):
    one, other = _posteriors(name, _module(name))
    assert one.supports_jvp
    with float64():
        directions = jax.tree.map(lambda x: np.random.default_rng(1).normal(size=x.shape), one.position)
        products = []
        for p, data in ((one, one.data), (other, as_float64(other.data))):  # a module takes data of its own precision
            wide = eqx.tree_at(lambda p: (p.center, p.data), p, (as_float64(p.center), data))
            gradient = jax.grad(lambda z, p=wide: p.loss(p.params_at(z)))
            products.append(jax.jit(lambda z, v, g=gradient: jax.jvp(g, (z,), (v,))[1])(wide.position, directions))
        size = max(float(np.abs(x).max()) for x in jax.tree.leaves(products[1]))
    for a, b in zip(*map(jax.tree.leaves, products), strict=True):
        assert a.dtype == np.float64
        assert np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-12 * max(size, 1)  # float32 would leave 1e-7


@pytest.mark.parametrize("name", CASES)
def test_estimates_are_the_same_at_the_same_key(name):
    lengths = {"num_chains": 2, "num_warmup": 50, "num_draws": 100, "batch_size": 20}
    one, other = (
        llc.mean_energy(llc.sample(jax.random.key(1), p, llc.SGLD(step_size=2e-3), **lengths))
        for p in _posteriors(name, _module(name))
    )
    assert abs(one.value - other.value) < 0.01 * other.mcse
    assert abs(one.value) > 10 * 0.01 * one.mcse  # they are not both nothing


def test_names_of_modules_are_paths_of_masks():
    module = _module("gpt")
    module.place.weight.requires_grad_(False)
    data = CASES["gpt"][2]
    whole = llc.interop.torch.posterior(module, _tokens, data)
    assert whole.num_params == sum(p.numel() for p in module.parameters() if p.requires_grad)
    part = llc.interop.torch.posterior(module, _tokens, data, mask=["attn", "place"])
    assert {name for name, moves in part.mask.items() if moves} == {
        "attn.c_attn.weight",
        "attn.c_attn.bias",
        "attn.c_proj.weight",
        "attn.c_proj.bias",
    }
    head = llc.head_mask(whole.center, "attn", head=1, num_heads=HEADS, axis=0)
    assert llc.interop.torch.posterior(module, _tokens, data, mask=head).num_params == (
        3 * (WIDTH // 2) * (WIDTH + 1) + WIDTH * WIDTH // 2
    )
    with pytest.raises(ValueError, match="mask"):
        llc.interop.torch.posterior(module, _tokens, data, mask="place")  # it has no gradient
    with pytest.raises(ValueError, match="mask"):
        llc.interop.torch.posterior(module, _tokens, data, mask={"attn": True})


def test_tied_weights_are_one():
    center = llc.interop.torch.params(_module("gpt"))
    assert "embed.weight" in center
    assert "head.weight" not in center


def test_a_checkpoint_takes_the_place_of_the_modules_values():
    module, other = _module("cnn"), _module("cnn")
    with torch.no_grad():
        other.conv.bias.add_(1.0)
        other.norm.running_mean.add_(0.5)
    data = CASES["cnn"][2]
    kept = copy.deepcopy(module.state_dict())
    there = llc.interop.torch.posterior(module, _classes, data, state_dict=other.state_dict())
    assert there.init_loss() == llc.interop.torch.posterior(other, _classes, data).init_loss()
    assert there.init_loss() != llc.interop.torch.posterior(module, _classes, data).init_loss()
    assert all(torch.equal(kept[name], value) for name, value in module.state_dict().items())
    with torch.no_grad():
        module.conv.bias.add_(7.0)  # the posterior has a copy
    np.testing.assert_array_equal(there.center["conv.bias"], other.conv.bias.detach().numpy())


def test_params_go_back_into_the_module():
    module = _module("cnn")
    center = llc.interop.torch.params(module)
    moved = {name: value + 1 for name, value in center.items()}
    module.load_state_dict(llc.interop.torch.state_dict(moved), strict=False)
    np.testing.assert_array_equal(module.head.weight.detach().numpy(), moved["head.weight"])


def test_half_precision_keeps_its_dtype():
    module = _module("mlp").to(torch.bfloat16)
    center = llc.interop.torch.params(module)
    assert all(value.dtype == jnp.bfloat16 for value in center.values())
    back = llc.interop.torch.state_dict(center)
    assert all(torch.equal(back[name], value) for name, value in module.state_dict().items())


def test_data_may_be_a_tensor_dataset_and_constants_tensors():
    weights = torch.tensor([0.5, 1.0, 2.0])
    module, data = _module("mlp"), jax.tree.map(torch.as_tensor, CASES["mlp"][2])

    def weighted(model, batch):
        return functional.cross_entropy(model(batch[0]), batch[1], weight=weights, reduction="none")

    posterior = llc.interop.torch.posterior(module, weighted, torch.utils.data.TensorDataset(*data))
    with torch.no_grad():
        logits = module.double()(data[0].double())
        expected = functional.cross_entropy(logits, data[1], weight=weights.double(), reduction="none").mean()
    assert abs(posterior.init_loss() - float(expected)) < 1e-12


def test_a_loader_is_read_in_the_order_of_its_data():
    module, dataset = _module("mlp"), torch.utils.data.TensorDataset(*map(torch.as_tensor, CASES["mlp"][2]))
    loader = torch.utils.data.DataLoader(dataset, batch_size=7, shuffle=True, drop_last=True)
    posterior = llc.interop.torch.posterior(module, _classes, loader)
    assert posterior.num_data == NUM_DATA
    np.testing.assert_array_equal(posterior.data[0], CASES["mlp"][2][0])


def test_the_loss_may_be_the_first_of_a_tuple():
    module, data = _module("mlp"), CASES["mlp"][2]

    def evaluate(model, batch):
        return _classes(model, batch), {"outputs": model(batch[0])}

    first, plain = (llc.interop.torch.posterior(module, fn, data) for fn in (evaluate, _classes))
    assert first.init_loss() == plain.init_loss()


@pytest.mark.slow
def test_the_page_for_users_of_devinterp_runs():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "coming-from-devinterp.md").read_text()
    blocks = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    names = {}
    exec("\n".join(blocks[:2]), names)
    assert names["posterior"].num_data == 500
    assert np.isfinite(names["estimate"].mcse)


def test_two_posteriors_of_one_module_share_their_programs():
    module = _module("mlp")
    one, other = (llc.interop.torch.posterior(module, _classes, CASES["mlp"][2]) for _ in range(2))
    assert one.loss_fn == other.loss_fn
    assert one.loss_fn != llc.interop.torch.posterior(module, _tokens_of_rows, CASES["mlp"][2]).loss_fn


def _tokens_of_rows(model, batch):
    return 2 * _classes(model, batch)


def _training(module):
    module.drop.train()


def _batch_statistics(module):
    module.norm = nn.BatchNorm2d(2, track_running_stats=False).eval()


BROKEN = {"training": (_training, "drop"), "batch statistics": (_batch_statistics, "norm")}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN)
def test_what_depends_on_the_batch_is_refused(change, said):
    module = _module("cnn")
    change(module)
    with pytest.raises(ValueError, match=said):
        llc.interop.torch.posterior(module, _classes, CASES["cnn"][2])


def _dropping(model, batch):
    return _classes(lambda x: functional.dropout(model(x)), batch)


def _by_value(model, batch):
    loss = _classes(model, batch)
    return loss if loss.mean().item() > 0 else -loss


STORE = torch.zeros(3)


def _writing(model, batch):
    STORE[0] = model(batch[0]).mean()
    return _classes(model, batch) + STORE[0]


def _without_form(model, batch):
    return _classes(model, batch) + torch.special.airy_ai(model(batch[0])).mean(1)


LOSSES = {
    "dropout in the loss": (_dropping, "batch"),
    "a branch": (_by_value, "loss_fn"),
    "writing": (_writing, "buffer"),
    "an operation without a form": (_without_form, "torchax"),
    "no tensor": (lambda model, batch: None, "loss_fn"),
}


@pytest.mark.parametrize(("loss_fn", "said"), LOSSES.values(), ids=LOSSES)
def test_a_loss_that_is_no_function_is_refused(loss_fn, said):
    with pytest.raises(ValueError, match=said):
        llc.interop.torch.posterior(_module("mlp"), loss_fn, CASES["mlp"][2])


OTHERS = {
    "another module": ({"weight": torch.zeros(3)}, "missing"),
    "a prefix": ({f"_orig_mod.{k}": v for k, v in _module("mlp").state_dict().items()}, "_orig_mod"),
    "another width": (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)).state_dict(), "shapes"),
}


@pytest.mark.parametrize(("state", "said"), OTHERS.values(), ids=OTHERS)
def test_the_checkpoint_of_another_module_is_refused(state, said):
    with pytest.raises(ValueError, match=said):
        llc.interop.torch.posterior(_module("mlp"), _classes, CASES["mlp"][2], state_dict=state)
