"""Two processes that write one file: both end, the file is whole at all times, and nothing is left behind."""

import json
import subprocess
import sys

import pytest

import llc
from tests.support.files import full_draws

_LOOKS = 5  # at the file, while they write
SAVES = """
import sys, llc
from tests.support.files import full_draws
draws = full_draws(seed=int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(4):
    llc.save(draws, "run.nc")
"""
UPDATES = """
import sys
import xarray as xr
from llc.analysis import files
print("ready", flush=True)
sys.stdin.readline()
for i in range(3):
    def change(tree):
        tree[f"group_{sys.argv[1]}_{i}"] = xr.DataTree(xr.Dataset({"x": float(i)}))
        return tree
    files.update("run.nc", change)
"""


def together(code, folder):
    """Two processes of the code, let go at the same time; what comes in between of the file, read by a third one."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {json.dumps(sys.path)}\n{code}", str(i)],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    seen = []
    while len(seen) < _LOOKS and any(process.poll() is None for process in processes):
        if (folder / "run.nc").exists():
            seen.append(llc.load(folder / "run.nc"))
    for process in processes:
        _, error = process.communicate()
        assert process.returncode == 0, error
    assert [path.name for path in folder.iterdir()] == ["run.nc"]
    return [*seen, llc.load(folder / "run.nc")]


@pytest.mark.slow
@pytest.mark.study
def test_the_file_is_that_of_one_of_them_at_all_times(tmp_path):
    written = [full_draws(seed=seed) for seed in range(2)]
    assert not written[0].equals(written[1])
    for read in together(SAVES, tmp_path):
        assert any(read.equals(draws) for draws in written)


@pytest.mark.slow
def test_what_both_add_is_there(tmp_path):
    *_, last = together(UPDATES, tmp_path)
    assert set(last.children) == {f"group_{i}_{j}" for i in range(2) for j in range(3)}
