"""Parts of a batch, and programs that depend on its size."""

import jax.numpy as jnp
import numpy as np
import pytest

from llc.posterior.loss import fixed
from llc.posterior.loss_parts import different_rows, even_parts, is_another_program

DATA = np.linspace(-1, 1, 300, dtype=np.float32)


def centred_from(least):
    def loss_fn(w, batch):
        return w * (batch - jnp.mean(batch) if len(batch) >= least else batch)

    return loss_fn


@pytest.mark.parametrize(("total", "least"), [(300, 299), (2048, 2040), (52, 52), (30, 26)])
def test_even_parts_leave_few_rows_out(total, least):
    parts = even_parts(total, 26)
    assert least <= parts.size <= total
    assert 13 <= parts.shape[2] <= 26
    assert np.array_equal(parts.ravel(), np.arange(parts.size))


@pytest.mark.parametrize(("least", "differs"), [(128, True), (1000, False)])
def test_a_program_that_depends_on_the_size_is_told(least, differs):
    loss_fn = centred_from(least)
    assert is_another_program(lambda batch: loss_fn(1.0, batch), DATA, 26, 300) == differs


def test_functions_that_differ_on_many_rows_only_share_no_program():
    losses = [fixed(centred_from(least), jnp.float32(1), DATA) for least in (128, 129, 1000, 128)]
    assert losses[0] == losses[3]
    assert len({loss.fingerprint for loss in losses}) == 3


def test_the_rows_of_a_probe_differ():
    """The one row that is unlike the others is among them."""
    rare = (np.arange(300) == 17).astype(np.float32)
    rows, splits = different_rows((DATA, rare), 32)
    assert 17 in rows
    assert splits.shape[1:] == (2, 16)
    assert all(sorted(split.ravel()) == list(range(32)) for split in splits)
    assert different_rows((DATA, rare), 26)[1].shape[1:] == (2, 13)
    assert different_rows((DATA[:17], rare[:17]), 26)[1].shape[1:] == (2, 7)
