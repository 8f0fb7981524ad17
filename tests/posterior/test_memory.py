"""Free memory: the least of what the machine, the control group and the process leave."""

import resource

import pytest

from llc.posterior import memory
from llc.posterior.memory import free_memory, require_memory

GIB = 2**30


def test_more_than_is_free_is_an_error():
    assert 0 < free_memory() < float("inf")
    require_memory(1, "a byte", "none")
    with pytest.raises(ValueError, match="take method"):
        require_memory(10**18, "the vectors", "method='lanczos'")


def _group(root, *, limit, used, cache, names):
    root.mkdir(parents=True)
    for name, value in zip(names, (limit, used), strict=True):
        (root / name).write_text(f"{value}\n")
    (root / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")


@pytest.mark.parametrize(
    ("version", "limits", "left"),
    [
        (1, {"job": 4 * GIB}, 2 * GIB),
        (2, {"job": 4 * GIB}, 2 * GIB),
        (2, {"job": 4 * GIB, "job/step": "max"}, 2 * GIB),  # the outer group's limit holds within it
        (2, {"job": 8 * GIB, "job/step": 4 * GIB}, 2 * GIB),
        (2, {"job": "max"}, float("inf")),
        (1, {"job": 2**63 - 4096}, float("inf")),
    ],
    ids=["version 1", "version 2", "outer", "inner", "no limit", "no limit in version 1"],
)
def test_a_control_group_leaves_its_limit_less_what_is_used(version, limits, left, tmp_path):
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    root = tmp_path if version == 2 else tmp_path / "memory"
    for name, limit in limits.items():
        _group(root / name, limit=limit, used=3 * GIB, cache=GIB, names=names)
    membership = tmp_path / "cgroup"
    membership.write_text(f"{'0:' if version == 2 else '4:memory'}:/{list(limits)[-1]}\n")
    assert memory._of_control_group(tmp_path, membership) == left


def test_a_limit_of_the_process_counts():
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (64 * GIB, hard))
        limited = free_memory()
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    assert limited < 64 * GIB
