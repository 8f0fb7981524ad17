import sys

import numpy as np
import pytest

import llc

X, Y = np.arange(14.0).reshape(7, 2), np.arange(7)


class Loader:
    """Batches of three and a shorter one, again and again."""

    def __iter__(self):
        return ((X[i : i + 3], {"y": Y[i : i + 3]}) for i in range(0, 7, 3))


def _generator():
    return iter(Loader())


def _endless():
    while True:
        yield from Loader()


class Tensor:
    """What other libraries have: an array only if it is asked."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


class Repeated(Loader):
    """Repeats itself without end, and says so as grain does."""

    def __len__(self):
        return sys.maxsize


class Infinite(Loader):
    """The same as `tf.data` says it, which has no length then."""

    def __len__(self):
        raise TypeError("The dataset is infinite.")

    def cardinality(self):
        return np.int64(-1)


class Unknown(Loader):
    """What `tf.data` says of a filtered data set."""

    def cardinality(self):
        return np.int64(-2)


SOURCES = {
    "of unknown length": Unknown(),
    "iterable": Loader(),
    "function": _generator,
    "generator": _generator(),
    "list": list(Loader()),
    "tensors": [(Tensor(x), {"y": Tensor(batch["y"])}) for x, batch in Loader()],
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_all_examples_are_read_in_their_order(source):
    x, batch = llc.read_batches(source)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(batch["y"], Y)


@pytest.mark.parametrize("num_data", [1, 3, 4, 7])
def test_as_many_are_read_as_are_asked_for(num_data):
    x, batch = llc.read_batches(Loader(), num_data=num_data)
    np.testing.assert_array_equal(x, X[:num_data])
    np.testing.assert_array_equal(batch["y"], Y[:num_data])


def test_an_endless_source_ends_with_num_data():
    x, _ = llc.read_batches(_endless, num_data=9)
    np.testing.assert_array_equal(x, np.concatenate([X, X[:2]]))


def test_what_is_read_makes_the_posterior_of_the_arrays():
    def loss_fn(w, batch):
        return (w - batch[0].sum(1)) ** 2 + batch[1]["y"]

    read = llc.LocalPosterior(loss_fn, np.ones((), np.float32), llc.read_batches(Loader()))
    given = llc.LocalPosterior(loss_fn, np.ones((), np.float32), (X, {"y": Y}))
    assert read.num_data == 7
    assert read.init_loss() == given.init_loss()


REFUSED = {
    "nothing": ([], {}, "batch"),
    "used up": (iter(()), {}, "batch"),
    "arrays": ({"x": X}, {}, "iterable"),
    "text": ("train.csv", {}, "iterable"),
    "too few": (Loader(), {"num_data": 8}, "num_data"),
    "none wanted": (Loader(), {"num_data": 0}, "num_data"),
    "another width": ([X, X[:, :1]], {}, "row shape"),
    "another dtype": ([X, X.astype(int)], {}, "row shape"),
    "another structure": ([{"x": X}, {"x": X, "y": Y}], {}, "structure"),
    "lengths that differ": ([(X, Y[:3])], {}, "structure"),
    "scalars": ([np.float32(1.0)], {}, "leading axis"),
    "more than the memory": (_endless, {"num_data": 10**15}, "num_data"),
}


@pytest.mark.parametrize(("source", "settings", "said"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_read_is_refused(source, settings, said):
    with pytest.raises(ValueError, match=said):
        llc.read_batches(source, **settings)


def test_an_endless_source_without_a_number_is_refused_before_the_memory_is_full():
    row = np.broadcast_to(np.zeros(1), (2**20, 2**20))  # a view of one number, which counts as 8 TiB

    def endless():
        while True:
            yield row

    with pytest.raises(ValueError, match="num_data"):
        llc.read_batches(endless)


@pytest.mark.parametrize("source", [Repeated(), Infinite()], ids=["by its length", "by its cardinality"])
@pytest.mark.parametrize(("read", "setting"), [(llc.read_batches, "num_data"), (llc.stream, "n")])
def test_a_source_that_says_it_has_no_end_is_refused_at_once(source, read, setting):
    with pytest.raises(ValueError, match=f"without end.* {setting}=…"):
        read(source)
    read(source, **{setting: 7})


def test_a_loader_as_data_is_refused_with_its_cure():
    with pytest.raises(ValueError, match="read_batches"):
        llc.LocalPosterior(lambda w, x: (w - x) ** 2, np.ones((), np.float32), Loader())
