"""Data that are a stream: what is read, what stays, what is refused."""

import gc

import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.posterior.row_reader import RowReader
from tests.support import sources
from tests.support.sources import NUM_DATA, X, Y

SOURCES = {
    "iterable": (sources.Loader(), "same"),
    "class": (sources.Loader, "same"),
    "list": (list(sources.Loader()), "same"),
    "function": (lambda: iter(sources.Loader()), "same"),
    "shuffled": (sources.ShufflingLoader(), "varies"),
    "shuffled by a seed": (sources.shuffled, "numbered"),
    "shuffled by set_epoch": (sources.EpochLoader(), "numbered"),
}


@pytest.mark.parametrize(("source", "order"), SOURCES.values(), ids=SOURCES)
def test_rows_are_counted_and_some_of_them_stay(source, order):
    stream = llc.stream(source, resident=200)
    assert (stream.num_data, stream.order) == (NUM_DATA, order)
    x, y = stream.resident
    assert len(x) == len(np.unique(x[:, 0])) == 200
    numbers = np.argmin(np.abs(X[:, 0] - x[:, :1]), axis=1)
    np.testing.assert_array_equal(y, Y[numbers])
    # Of 200 numbers drawn without replacement from those below n.
    assert abs(numbers.mean() - NUM_DATA / 2) < 4 * NUM_DATA / np.sqrt(12 * 200)


def test_every_row_is_as_likely_to_stay():
    """Counts of rows over samples of ten orders, against the binomial; the first rows are not preferred."""
    rows = np.concatenate([llc.stream(lambda s=s: sources.shuffled(s), resident=300).resident[0] for s in range(10)])
    numbers = np.argmin(np.abs(X[:, 0] - rows[:, :1]), axis=1)
    counts = np.bincount(numbers, minlength=NUM_DATA)
    assert abs(counts.var() - 10 * 0.1 * 0.9) < 4 * 0.9 * np.sqrt(2 / NUM_DATA) + 0.05


@pytest.mark.parametrize("number", [71, 300, 2999])
def test_rows_have_numbers_through_all_passes(number):
    """Wherever reading starts. Pass p of a source that takes a number is in its own order."""
    stream = llc.stream(sources.shuffled, resident=2)
    whole = RowReader(stream, lambda p: 5 + p)
    head, tail = whole.take(0, number), whole.take(number, 2 * NUM_DATA - number)
    rows = [np.concatenate(pair) for pair in zip(head, tail, strict=True)]
    for p in (0, 1):
        order = np.random.default_rng(5 + p).permutation(NUM_DATA)
        np.testing.assert_array_equal(rows[0][p * NUM_DATA : (p + 1) * NUM_DATA], X[order])
    there = RowReader(stream, lambda p: 5 + p).take(number, 3000)
    np.testing.assert_array_equal(there[0], rows[0][number : number + 3000])


def test_reading_stops_when_it_is_asked_to_and_goes_on_where_it_was():
    reader = RowReader(llc.stream(sources.Loader(), resident=2))
    assert reader.take(0, 100, lambda: True) is None
    np.testing.assert_array_equal(reader.take(0, 100)[0], X[:100])


def test_n_ends_a_pass():
    """Of an endless source too."""

    def endless():
        while True:
            yield from sources.Loader()

    stream = llc.stream(endless, n=100, resident=50)
    assert stream.num_data == 100
    np.testing.assert_array_equal(RowReader(stream).take(90, 20)[0], np.concatenate([X[90:100], X[:10]]))


class Tensor:
    """As of a library that has a device: an array only after `cpu`."""

    def __init__(self, values):
        self.values = values

    def detach(self):
        return self

    def cpu(self):
        return self.values


def test_tensors_become_arrays():
    stream = llc.stream([{"x": Tensor(X)}, {"x": Tensor(X[:50])}], resident=10)
    assert stream.num_data == NUM_DATA + 50
    assert stream.resident["x"].shape == (10, 3)


class Workers:
    """As a PyTorch DataLoader with workers, which end when its iterator is let go; batches are lists of tensors."""

    def __init__(self):
        self.open = 0

    def __iter__(self):
        return self.Iterator(self)

    class Iterator:
        def __init__(self, loader):
            self.loader, self.batches = loader, iter(sources.Loader())
            loader.open += 1

        def __iter__(self):
            return self

        def __next__(self):
            return [Tensor(x) for x in next(self.batches)]

        def __del__(self):
            self.loader.open -= 1


@pytest.mark.parametrize("settings", [{}, {"n": 100}])
def test_workers_of_a_loader_end_with_each_pass(settings):
    """Also where a pass ends early, after n rows or after those whose order is compared."""
    loader = Workers()
    stream = llc.stream(loader, resident=50, **settings)
    assert stream.order == "same"
    assert loader.open == 0
    RowReader(stream).take(20, 30)
    gc.collect()  # a reader and the pass that it is in hold each other
    assert loader.open == 0


def test_small_sources_are_arrays():
    posterior, arrays = sources.regression(llc.stream(sources.Loader())), sources.regression([X, Y])
    assert posterior.stream is None
    assert posterior.num_data == NUM_DATA
    assert posterior.nbeta == arrays.nbeta
    np.testing.assert_array_equal(posterior.data[0], X)


def test_a_posterior_on_a_stream_has_its_n():
    posterior = sources.regression(llc.stream(sources.Loader(), resident=100))
    assert posterior.num_data == NUM_DATA
    assert posterior.nbeta == pytest.approx(NUM_DATA / np.log(NUM_DATA))
    assert len(posterior.data[0]) == posterior.resident().num_data == 100
    assert posterior.resident().nbeta == posterior.nbeta


@pytest.mark.parametrize("resident", [100, 4000])
def test_weights_have_mean_one_over_all_rows(resident):
    def weigh(batch):
        return np.abs(batch[1])

    posterior = sources.regression(llc.stream(sources.Loader(), resident=resident, weights=weigh))
    arrays = sources.regression([X, Y], weights=np.abs(Y))
    np.testing.assert_allclose(posterior.weights, np.abs(posterior.data.rows[1]) / np.abs(Y).mean(), rtol=1e-6)
    if posterior.stream is None:
        assert posterior.init_loss() == pytest.approx(arrays.init_loss(), rel=1e-12)


def failing_later():
    yield [X[:70], Y[:70]]
    yield [X[:70], Y[:70, None]]


REFUSED = {
    "an iterator": (iter(sources.Loader()), {}, "again and again"),
    "a generator": (sources.shuffled(0), {}, "again and again"),
    "arrays": ({"x": X}, {}, "iterable"),
    "nothing": ([], {}, "batch"),
    "a function that forgets to yield": (lambda: None, {}, "NoneType"),
    "fewer rows": (sources.Loader(), {"n": NUM_DATA + 1}, f"n={NUM_DATA}"),
    "one row": (sources.Loader(), {"n": 1}, "n needs"),
    "one resident row": (sources.Loader(), {"resident": 1}, "resident"),
    "changing shapes": (failing_later, {}, "row shape"),
    "weights of tokens": (sources.Loader(), {"weights": lambda batch: np.ones((len(batch[0]), 2))}, "weights"),
    "negative weights": (sources.Loader(), {"weights": lambda batch: -np.ones(len(batch[0]))}, "weights"),
    "no weight": (sources.Loader(), {"weights": lambda batch: np.zeros(len(batch[0]))}, "weights"),
}


@pytest.mark.parametrize(("source", "settings", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_stream_is_refused(source, settings, said):
    with pytest.raises(ValueError, match=said):
        llc.stream(source, **settings)


def test_a_source_that_is_used_up_is_found_out():
    batches = iter(list(sources.Loader()))
    with pytest.raises(ValueError, match="source needs"):
        llc.stream(lambda: batches)


@pytest.mark.parametrize(
    ("data", "settings", "said"),
    [
        (sources.Loader(), {}, "llc.stream"),
        (llc.stream(sources.Loader(), resident=10), {"weights": np.ones(NUM_DATA)}, "weights=fn"),
    ],
)
def test_a_posterior_says_how_a_stream_is_given(data, settings, said):
    with pytest.raises(ValueError, match=said):
        sources.regression(data, **settings)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (np.zeros((100, 8)), "arrays need no reading"),
        ((np.zeros((10, 2)), np.zeros(10)), "arrays need no reading"),
        (lambda: iter([np.zeros((1, 2))]), "n >= 2"),
        (lambda: iter([np.zeros((0, 2))]), "batch with rows"),
    ],
    ids=["array", "tuple of arrays", "one row", "no rows"],
)
def test_what_is_no_source_of_rows_is_refused(source, told):
    with pytest.raises(ValueError, match=told):
        llc.stream(source)


def test_batches_without_rows_are_left_out():
    rows = np.arange(20.0, dtype=np.float32).reshape(10, 2)
    found = llc.stream(lambda: iter([rows[:0], rows[:6], rows[:0], rows[6:]]), resident=10**8, n=10)
    np.testing.assert_array_equal(found.resident, rows)


def test_controls_of_influence_are_refused():
    data = llc.stream(lambda: (np.full((10, 1), float(i), np.float32) for i in range(10)), resident=20)
    posterior = llc.LocalPosterior(lambda w, x: 0.5 * ((w - x) ** 2).sum(axis=1), jnp.full(1, 4.5), data, gamma=1.0)
    with pytest.raises(ValueError, match="got a stream"):
        llc.influence_controls(posterior, llc.spectrum(posterior.resident()), {"all": posterior.data})
