"""Params from files of each kind, and what is refused: nothing is unpickled, and a wrong leaf is named."""

import contextlib
import pickle
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc

RNG = np.random.default_rng(0)
PARAMS = {
    "layers": [
        {"weight": RNG.normal(size=(2, 3)).astype(np.float32), "bias": RNG.normal(size=3).astype(np.float32)},
        {"weight": RNG.normal(size=(3, 1)).astype(np.float32), "bias": np.ones(1, np.float32)},
    ],
    "activation": "tanh",
    "scale": np.float32(2.0) * np.ones((), np.float32),
}
LIKE = jax.tree.map(lambda x: jnp.zeros_like(x) if eqx.is_array(x) else x, PARAMS)


def named(params=PARAMS, separator="."):
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(params, eqx.is_array))
    return {jax.tree_util.keystr(where, simple=True, separator=separator): np.asarray(x) for where, x in leaves}


def write_npz(folder, arrays):
    np.savez(folder / "step_1.npz", **arrays)
    return folder / "step_1.npz"


def write_safetensors(folder, arrays):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file(arrays, folder / "step_1.safetensors")
    return folder / "step_1.safetensors"


def write_orbax(folder, arrays):
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder / "step_1", arrays)
    return folder / "step_1"


WRITERS = {"npz": write_npz, "safetensors": write_safetensors, "orbax": write_orbax}
ignore_orbax = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def same(found):
    assert jax.tree.structure(found) == jax.tree.structure(LIKE)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(PARAMS), strict=True))


@ignore_orbax
@pytest.mark.parametrize(  # folders of orbax are named by paths of their own
    ("kind", "separator"),
    [(kind, separator) for kind in WRITERS for separator in "./" if (kind, separator) != ("orbax", "/")],
)
def test_arrays_come_back_under_their_paths(kind, separator, tmp_path):
    same(llc.load_params(WRITERS[kind](tmp_path, named(separator=separator)), LIKE))


@ignore_orbax
def test_a_nested_tree_of_orbax_comes_back(tmp_path):
    arrays = eqx.filter(PARAMS, eqx.is_array)
    arrays = {"layers": arrays["layers"], "scale": arrays["scale"]}
    same(llc.load_params(write_orbax(tmp_path, arrays), LIKE))
    same(
        llc.load_params(write_orbax(tmp_path / "more", {"params": arrays, "step": np.ones(())}), LIKE, prefix="params")
    )


def test_eqx_comes_back(tmp_path):
    eqx.tree_serialise_leaves(tmp_path / "step_1.eqx", jax.tree.map(jnp.asarray, eqx.filter(PARAMS, eqx.is_array)))
    arrays, rest = eqx.partition(LIKE, eqx.is_array)
    same(eqx.combine(llc.load_params(tmp_path / "step_1.eqx", arrays), rest))


def test_what_save_params_writes_comes_back_in_bfloat16_too(tmp_path):
    llc.save_params(tmp_path / "a.npz", PARAMS)
    same(llc.load_params(tmp_path / "a.npz", LIKE))
    low = {"w": jnp.asarray([1.5, -2.25], jnp.bfloat16)}
    llc.save_params(tmp_path / "b.npz", low)
    back = llc.load_params(tmp_path / "b.npz", low)["w"]
    assert back.dtype == jnp.bfloat16
    assert np.array_equal(back, np.asarray(low["w"]))


def test_one_array_is_called_w(tmp_path):
    llc.save_params(tmp_path / "a.npz", np.arange(3.0))
    assert list(np.load(tmp_path / "a.npz")) == ["w"]
    assert np.array_equal(llc.load_params(tmp_path / "a.npz", np.zeros(3)), np.arange(3.0))


def without(name):
    return {key: value for key, value in named().items() if key != name}


WRONG = {
    "missing": (without("layers.0.bias"), r"layers\.0\.bias"),
    "extra": (named() | {"layers.2.bias": np.ones(1, np.float32)}, r"layers\.2\.bias"),
    "misshaped": (named() | {"layers.1.weight": np.ones((1, 3), np.float32)}, r"layers\.1\.weight"),
    "integers": (named() | {"layers.1.weight": np.ones((3, 1), np.int32)}, r"layers\.1\.weight"),
}


@ignore_orbax
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_leaf_is_named(kind, case, tmp_path):
    arrays, name = WRONG[case]
    path = WRITERS[kind](tmp_path, arrays)
    with pytest.raises(ValueError, match=name):
        llc.load_params(path, LIKE)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ([np.ones(2, np.float32), np.ones((3, 1), np.float32)], "1"),
        ([np.ones(2, np.float32)], "1"),
        ([np.ones(2, np.float32), np.ones(3, np.float32), np.ones(1, np.float32)], "1"),
    ],
    ids=["misshaped", "missing", "extra"],
)
def test_a_wrong_leaf_of_eqx_is_named(other, name, tmp_path):
    eqx.tree_serialise_leaves(tmp_path / "step_1.eqx", other)
    like = [np.zeros(2, np.float32), np.zeros(3, np.float32)]
    with pytest.raises(ValueError, match=name):
        llc.load_params(tmp_path / "step_1.eqx", like)


class Bomb:
    """A pickle that would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "name", ["a.pkl", "a.pt", "a.pth", "a.ckpt", "a.bin", "a.npz", "a.npy", "a.eqx", "a.safetensors"]
)
def test_a_pickle_is_refused_and_never_opened(name, tmp_path):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    (tmp_path / name).write_bytes(pickle.dumps({"w": Bomb(tmp_path / "opened")}))
    with pytest.raises(ValueError, match=name):
        llc.load_params(tmp_path / name, {"w": np.zeros(2)})
    np.savez(tmp_path / "object.npz", w=np.array([Bomb(tmp_path / "opened")], dtype=object))
    with pytest.raises(ValueError, match="object"):
        llc.load_params(tmp_path / "object.npz", {"w": np.zeros(2)})
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.eqx", "folder", "a.txt"])
def test_what_is_no_checkpoint_is_refused_by_name(name, tmp_path):
    if name == "folder":
        pytest.importorskip("orbax.checkpoint")
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"some text")
    with pytest.raises(ValueError, match=name):
        llc.load_params(tmp_path / name, {"w": np.zeros(2)})


def test_a_damaged_archive_is_refused_by_name(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", w=np.random.default_rng(0).normal(size=500))
    whole, rng, refused = (tmp_path / "whole.npz").read_bytes(), np.random.default_rng(1), 0
    for start in rng.integers(40, len(whole) - 10, 40):  # past the first header, up to the directory at the end
        (tmp_path / "a.npz").write_bytes(whole[:start] + rng.bytes(10) + whole[start + 10 :])
        with contextlib.suppress(ValueError):
            llc.load_params(tmp_path / "a.npz", {"w": np.zeros(500)})
            continue
        refused += 1
    assert refused >= 30
    assert llc.load_params(tmp_path / "whole.npz", {"w": np.zeros(500)})["w"].any()


@pytest.mark.parametrize("content", ["an array", "text in an archive"])
def test_an_archive_of_no_arrays_is_refused_by_name(content, tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        if content == "an array":
            np.save(file, np.zeros(2))
        else:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("w.npy", "text")
    with pytest.raises(ValueError, match=r"a\.npz"):
        llc.load_params(tmp_path / "a.npz", {"w": np.zeros(())})


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        llc.load_params(tmp_path / "nothing.npz", {"w": np.zeros(2)})


def test_settings_that_do_not_fit_are_refused(tmp_path):
    eqx.tree_serialise_leaves(tmp_path / "a.eqx", [np.zeros(2)])
    with pytest.raises(ValueError, match="prefix"):
        llc.load_params(tmp_path / "a.eqx", [np.zeros(2)], prefix="params")
    with pytest.raises(ValueError, match="npz"):
        llc.save_params(tmp_path / "a.pkl", [np.zeros(2)])
