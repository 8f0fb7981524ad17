"""Wrong arguments of every public function are refused at its door, by a ValueError that names the argument.

In another process, where nothing checks types but the package itself.
"""

import json
import os
import subprocess
import sys

import pytest

CODE = """
import json, sys
import numpy as np
import robustness_arguments as fuzz
calls = list(fuzz.calls())
if len(sys.argv) > 1:
    calls = [calls[i] for i in np.random.default_rng(0).choice(len(calls), int(sys.argv[1]), replace=False)]
found = [(str(call), fuzz.outcome(call)) for call in calls]
others = [[name, outcome.detail] for name, outcome in found if outcome.kind == "other"]
kinds = {kind: sum(outcome.kind == kind for _, outcome in found) for kind in ("right", "refused")}
print(json.dumps({"others": others, "num_functions": len({call.function for call in calls})} | kinds))
"""


def fuzzed(*words):
    finished = subprocess.run(
        [sys.executable, "-c", CODE, *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.slow
def test_some_wrong_arguments_are_refused_at_the_door():
    found = fuzzed("200")
    assert found["others"] == []
    assert found["refused"] > 150
    assert found["num_functions"] > 30


@pytest.mark.study
def test_many_wrong_arguments_are_refused_at_the_door():
    found = fuzzed("1500")
    assert found["others"] == []
    assert found["refused"] > 1000
    assert found["right"] > 30, "negative control: a door that lets nothing in would refuse them too"
