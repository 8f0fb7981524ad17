"""The speed study: its machine figures, and all its tables at a size that measures nothing."""

import dataclasses
import json
import sys
import time

import pytest
import speed
import speed_problems
import timing

TINY = dataclasses.replace(
    speed_problems.QUICK, num_data=100, batch_size=20, num_steps=20, mlp_steps=10, part_seconds=0.002, num_chains=2
)


def test_the_quietest_try_counts():
    tries = iter([timing.Timing(1.0, 0.5), timing.Timing(3.0, 0.01), timing.Timing(2.0, 0.3)])
    assert timing.quietest(lambda: next(tries), tries=1) == timing.Timing(1.0, 0.5)
    assert timing.quietest(lambda: next(tries), tries=1) == timing.Timing(3.0, 0.01)


def test_a_measurement_has_its_wall_time():
    found = timing.measure(lambda: time.sleep(0.05))
    assert found.seconds >= 0.05


@pytest.mark.study
@pytest.mark.parametrize("flags", [(), ("--sweep",)], ids=["beside the peer", "chain methods"])
def test_tables(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "QUICK", TINY)
    file = tmp_path / "speed.json"
    argv = ["speed.py", "--quick", "--json", str(file), "--peers", str(tmp_path / "none"), *flags]
    monkeypatch.setattr(sys, "argv", argv)
    speed.main()
    record = json.loads(file.read_text())
    if flags:
        assert all(row["seconds"].keys() == {"vectorized", "sequential"} for row in record["chain_methods"])
        return
    assert {row["tool"] for row in record["throughput"]} == {"llc", "scan"}
    ours = [row for row in record["throughput"] if row["tool"] == "llc"]
    assert all(row["traces"][1] == 0 for row in ours), "the second call traces nothing"
    assert len(record["parts"]) == 2 * 8
