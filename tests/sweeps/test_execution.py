"""Work on items: told as it is done, tried twice, in this process or in threads."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest

import llc
from llc.sweeps.execution import Outcome, run_all, run_told
from llc.sweeps.items import Item

TEMPLATE = llc.LocalPosterior(lambda w, x: 0.5 * (w - x) ** 2, np.zeros((), np.float32), np.zeros(4, np.float32))


@dataclass(frozen=True)
class Work:
    item: Item
    number: int


TASKS = [Work(Item(name, TEMPLATE), i) for i, name in enumerate(("first", "second", "third"))]


def inverse(task):
    return 1 / task.number


def test_each_item_is_told_with_what_came_of_it(capfd):
    ran = run_told(inverse, TASKS, None, name="inverse", found=lambda x: f"it is {x:g}", progress=True, silent=0.0)
    outcomes = dict(ran)
    lines = [line for line in capfd.readouterr().err.splitlines() if "items" in line]
    assert len(lines) == 3
    assert "inverse of first: ZeroDivisionError: division by zero (1 of 3 items" in lines[0]
    assert "inverse of third: it is 0.5 (3 of 3 items)" in lines[2]
    assert "to go" in lines[1]
    assert outcomes["second"] == Outcome(1.0)


@pytest.mark.parametrize(("progress", "silent"), [(False, 0.0), (True, 1e9)])
def test_nothing_is_told_of_a_quick_sweep_or_a_quiet_one(progress, silent, capfd):
    list(run_told(inverse, TASKS[1:], None, name="inverse", found=str, progress=progress, silent=silent))
    assert "items" not in capfd.readouterr().err


@pytest.mark.parametrize("threads", [nullcontext, ThreadPoolExecutor])
def test_what_fails_is_tried_once_more(threads):
    tries = []

    def fails_once(task):
        tries.append(task.number)
        if tries.count(task.number) == 1:
            raise ArithmeticError("the first time")
        return task.number

    with threads() as executor:
        outcomes = dict(run_all(fails_once, TASKS, executor))
    assert sorted(tries) == [0, 0, 1, 1, 2, 2]
    assert outcomes["third"] == Outcome(2, retried="ArithmeticError: the first time")
