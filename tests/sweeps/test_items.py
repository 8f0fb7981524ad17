"""The items of a sweep: their names, their order, and what is refused."""

import math
from pathlib import Path

import numpy as np
import pytest

import llc
from llc.sweeps.items import checkpoints_by_name, digest, in_natural_order, make_items, step_of
from tests.support import checkpoints as run

POSTERIOR = run.posterior(gamma=10.0)


def test_products_are_items_with_one_kind_after_the_other():
    masks = {"first": "first", "second": "second"}
    items = make_items(POSTERIOR, checkpoints=run.checkpoints(2), masks=masks, settings={"a": {}, "b": {"nbeta": 9.0}})
    names = [item.name for item in items]
    assert names[:3] == ["step_0, first, a", "step_10, first, a", "step_0, first, b"]
    assert len(names) == 8
    assert items[2].settings == {"nbeta": 9.0}
    assert [item.posterior().num_params for item in items] == [6] * 4 + [4] * 4


@pytest.mark.parametrize(
    ("arguments", "keywords", "names"),
    [
        ([POSTERIOR], {}, ["center"]),
        ([POSTERIOR], {"checkpoints": [run.params_at(0), run.params_at(1)]}, ["0", "1"]),
        ([[POSTERIOR, POSTERIOR]], {}, ["0", "1"]),
        ([{"x": POSTERIOR}], {}, ["x"]),
        ([POSTERIOR], {"masks": {"all": None, "first": "first"}}, ["all", "first"]),
        ([POSTERIOR], {"settings": {"hot": {"nbeta": 3.0}}}, ["hot"]),
        (
            [POSTERIOR],
            {"settings": {"a": {"nbeta": np.float32(3), "num_draws": np.int64(9)}}},
            ["a"],
        ),
    ],
)
def test_names(arguments, keywords, names):
    assert [item.name for item in make_items(*arguments, **keywords)] == names


def test_files_are_named_by_what_tells_them_apart():
    assert list(checkpoints_by_name(["run/step_1.npz", "run/step_2.npz"])) == ["step_1", "step_2"]
    assert list(checkpoints_by_name(["run/1/model.npz", "run/2/model.npz"])) == ["1-model", "2-model"]
    assert list(checkpoints_by_name([Path("run/step_1.5")])) == ["step_1"]


def test_natural_order():
    names = ["step_10", "step_9", "step_100", "a/2/b1", "a/10/b0"]
    assert [str(path) for path in in_natural_order([Path(name) for name in names])] == [
        "a/2/b1",
        "a/10/b0",
        "step_9",
        "step_10",
        "step_100",
    ]


@pytest.mark.parametrize(
    ("name", "step"),
    [("step_100", 100.0), ("run2-epoch_3", 3.0), ("loss_1.5", 1.5), ("at_1e6", 1e6), ("last", math.nan)],
)
def test_step_is_the_last_number(name, step):
    assert step_of(name) == step or math.isnan(step)


WRONG = {
    "checkpoints without a template": (lambda: make_items([POSTERIOR], checkpoints=run.checkpoints()), "checkpoints"),
    "a pattern": (lambda: make_items(POSTERIOR, checkpoints="run/*.npz"), "checkpoints"),
    "none": (lambda: make_items(POSTERIOR, checkpoints={}), "checkpoints"),
    "nothing": (lambda: make_items([]), "posteriors"),
    "a slash": (lambda: make_items({"a/b": POSTERIOR}), "a/b"),
    "an unknown setting": (lambda: make_items(POSTERIOR, settings={"a": {"step": 1}}), "step"),
    "a negative nbeta": (lambda: make_items(POSTERIOR, settings={"a": {}, "b": {"nbeta": -1.0}}), "'b'.*nbeta"),
    "a gamma of text": (lambda: make_items(POSTERIOR, settings={"a": {"gamma": "x"}}), "gamma"),
    "the class of a sampler": (lambda: make_items(POSTERIOR, settings={"a": {"sampler": llc.NUTS}}), "sampler"),
    "no draws": (lambda: make_items(POSTERIOR, settings={"a": {"num_draws": 0}}), "num_draws"),
    "part of a step": (lambda: make_items(POSTERIOR, settings={"a": {"thinning": 1.5}}), "thinning"),
    "more rows than there are": (lambda: make_items(POSTERIOR, settings={"a": {"batch_size": 10**6}}), "batch_size"),
    "a flag that is a number": (lambda: make_items(POSTERIOR, settings={"a": {"step_energies": 1}}), "step_energies"),
    "a mask of no parameter": (lambda: make_items(POSTERIOR, masks={"all": None, "b": "nowhere"}), "masks.*'b'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_sweep_is_refused(case):
    make, name = WRONG[case]
    with pytest.raises(ValueError, match=name):
        make()


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"first": np.zeros((3, 3), np.float32), "second": np.zeros((2, 2), np.float32)}, "first"),
        ({"first": np.zeros((3, 2), np.float32)}, "structure"),
        ({"first": np.full((3, 2), np.nan, np.float32), "second": np.zeros((2, 2), np.float32)}, "first"),
    ],
)
def test_params_of_another_model_are_refused(params, name):
    (item,) = make_items(POSTERIOR, checkpoints={"step_1": params})
    with pytest.raises(ValueError, match=name):
        item.posterior()


def test_digest_tells_params_and_masks_apart():
    items = make_items(POSTERIOR, checkpoints=run.checkpoints(2), masks={"first": "first", "second": "second"})
    assert len({digest(item.posterior()) for item in items}) == 4
    assert digest(items[0].posterior()) == digest(items[0].posterior())
