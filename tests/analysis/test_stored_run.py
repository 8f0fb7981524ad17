"""Stores of runs: what is whole is read, what is damaged is found, and one process writes at a time."""

import functools
import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
import xarray as xr

import llc
from llc.analysis.manifest import DamagedStore, Manifest
from llc.analysis.segments import join, split
from llc.analysis.store import Store, is_store
from tests.support.files import NUM_CHAINS, full_draws
from tests.support.tiers import weekly_cases

STOPS = (10, 20, 30), (10, 20), (10,)
SETTINGS = {"gamma": 1.0, "key": [0, 1]}


def part(draws, start, stop):
    """The draws of a segment, and what is one for all."""
    return draws.filter(lambda node: "localized" not in node.path).map_over_datasets(
        lambda node: node.isel(draw=slice(start, stop)) if "draw" in node.dims else node
    )


def state(value):
    return xr.DataTree(xr.Dataset({"x": ("i", np.full(3, value))}))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store of each number of segments, of which tests take copies."""
    folder = tmp_path_factory.mktemp("stores")
    return {stops: (folder / str(len(stops)), make(folder / str(len(stops)), stops)) for stops in STOPS}


@pytest.fixture
def write(stores):
    def copied(path, stops=STOPS[0]):
        shutil.copytree(stores[stops][0], path)
        return stores[stops][1]

    return copied


def make(path, stops):
    draws, start = full_draws(), 0
    with Store(path) as store:
        run = store.run()
        run.open(SETTINGS)
        run.ask(stops[-1], [], 0)
        for stop in stops:
            run.append(stop, part(draws, start, stop), state(stop), {})
            start = stop
    return part(draws, 0, stops[-1])


def parts(path, kind):
    return sorted(entry for entry in (path / "run" / kind).iterdir() if entry.name != "zarr.json")


def spoil(path):
    """Half of the largest file of a part."""
    largest = max((file for file in [path, *path.rglob("*")] if file.is_file()), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def equal(a, b):
    assert set(a.children) == set(b.children)
    assert a.attrs == b.attrs
    for name in a.children:
        xr.testing.assert_equal(a[name].to_dataset(), b[name].to_dataset())


def test_parts_make_the_whole():
    whole = part(full_draws(), 0, 30)
    pieces = [split(part(whole, a, b)) for a, b in ((0, 4), (4, 5), (5, 30))]
    equal(join([*(draws for draws, _ in pieces), pieces[-1][1]]), whole)


def test_a_store_is_read_as_a_file_is(tmp_path, write):
    path = tmp_path / "run.zarr"
    whole = write(path)
    equal(llc.load(path), whole)
    equal(llc.load(str(path)), whole)
    assert str(llc.report(llc.load(path))) == str(llc.report(whole))
    assert is_store(path)
    assert len(parts(path, "draws")) == 3
    assert len(parts(path, "state")) == 2, "older states are removed"


def test_the_segments_of_a_store_open_with_xarray(tmp_path, write):
    write(tmp_path / "run.zarr")
    with xr.open_datatree(tmp_path / "run.zarr" / "run" / "draws", engine="zarr", consolidated=False) as tree:
        assert [segment["posterior/llc"].shape for segment in tree.children.values()] == [(NUM_CHAINS, 10)] * 3


DAMAGE = {"half": spoil, "gone": lambda path: path.rename(path.with_name("gone"))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "kind"),
    weekly_cases(
        {f"{how}-{kind}": (damage, kind) for how, damage in DAMAGE.items() for kind in ("draws", "state", "head")},
        but=("half-draws", "half-state", "gone-head"),
    ),
)
def test_a_damaged_end_is_made_again(tmp_path, kind, damage, write):
    path = tmp_path / "run.zarr"
    whole = write(path)
    damage(parts(path, kind)[-1])
    with pytest.warns(UserWarning, match="20 of 30 draws"):
        equal(llc.load(path), part(whole, 0, 20))
    with Store(path) as store:
        run = store.run()
        assert run.open(SETTINGS).done == 20
        assert run.state()["x"].values.tolist() == [20] * 3
        run.append(30, part(whole, 20, 30), state(30), {})
    equal(llc.load(path), whole)
    assert len(parts(path, "draws")) == 3


def test_damage_farther_back_is_named(tmp_path, write):
    path = tmp_path / "run.zarr"
    write(path)
    spoil(parts(path, "draws")[0])
    for action in (lambda: llc.load(path), lambda: Store(path).run().open(SETTINGS)):
        with pytest.raises(DamagedStore, match=parts(path, "draws")[0].name):
            action()
    assert len(parts(path, "draws")) == 3, "nothing is removed"


def test_a_first_segment_that_is_damaged_is_made_again(tmp_path, write):
    path = tmp_path / "run.zarr"
    write(path, stops=(10,))
    spoil(parts(path, "state")[0])
    with Store(path) as store:
        assert store.run().open(SETTINGS).done == 0


def test_a_damaged_manifest_is_named(tmp_path, write):
    path = tmp_path / "run.zarr"
    write(path)
    (path / "run" / "manifest.json").write_text('{"settings": 3')
    with pytest.raises(DamagedStore, match=r"manifest\.json"):
        llc.load(path)


OTHER_THINGS = {
    "a folder": lambda path: path.mkdir(),
    "a link to nothing": lambda path: path.symlink_to("no/thing"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/null"),
}


@pytest.mark.parametrize("other", OTHER_THINGS)
def test_another_thing_in_the_place_of_a_file_is_named_and_not_waited_for(tmp_path, other, write):
    path = tmp_path / "run.zarr"
    write(path)
    manifest, lock = path / "run" / "manifest.json", path / "lock"
    for file in (manifest, lock):
        file.unlink()
        OTHER_THINGS[other](file)
    for action in (lambda: llc.load(path), lambda: Store(path).run().open(SETTINGS)):
        with pytest.raises(DamagedStore, match=r"manifest\.json"):
            action()
    with pytest.raises(OSError, match=r"run\.zarr can't be written.*lock"):
        Store(path).__enter__()


@pytest.mark.parametrize("other", ["a folder", "a pipe"])
def test_another_thing_in_the_place_of_a_part_is_damage(tmp_path, other, write):
    path = tmp_path / "run.zarr"
    write(path)
    head = parts(path, "head")[-1]
    head.unlink()
    OTHER_THINGS[other](head)
    with pytest.warns(UserWarning, match="20 of 30 draws"):
        llc.load(path)


@pytest.mark.parametrize(
    ("before", "after"), [('"asked": 30', '"asked": 31'), ('"done": 30', '"done": 20'), ('"checksum"', '"checksun"')]
)
def test_a_manifest_that_was_changed_is_named(tmp_path, write, before, after):
    path = tmp_path / "run.zarr"
    whole = write(path)
    file = path / "run" / "manifest.json"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))
    for action in (lambda: llc.load(path), lambda: Store(path).run().open(SETTINGS)):
        with pytest.raises(DamagedStore, match=r"manifest\.json"):
            action()
    file.write_text(text)
    equal(llc.load(path), whole)


def test_a_manifest_of_a_version_without_checksums_is_read(tmp_path, write):
    path = tmp_path / "run.zarr"
    whole = write(path)
    file = path / "run" / "manifest.json"
    fields = json.loads(file.read_text())
    del fields["checksum"]
    file.write_text(json.dumps(fields))
    equal(llc.load(path), whole)


def test_what_is_not_in_the_manifest_does_not_count(tmp_path, write):
    path = tmp_path / "run.zarr"
    whole = write(path, stops=(10, 20))
    for name in ("000099", "000098.part"):
        (path / "run" / "draws" / name / "posterior").mkdir(parents=True)
    equal(llc.load(path), whole)
    with Store(path) as store:
        run = store.run()
        run.open(SETTINGS)
        run.append(30, part(full_draws(), 20, 30), state(30), {})
    assert len(parts(path, "draws")) == 3


def test_other_settings_are_named(tmp_path, write):
    path = tmp_path / "run.zarr"
    write(path)
    with pytest.raises(ValueError, match=r"with gamma = 1\.0 where this one has 2\.0; ") as refused:
        Store(path).run().open(SETTINGS | {"gamma": 2.0})
    assert "key" not in str(refused.value)


def test_two_writers(tmp_path):
    path = tmp_path / "run.zarr"
    with Store(path), pytest.raises(ValueError, match=f"another process .*{os.getpid()}"):
        Store(path).__enter__()
    with Store(path):
        pass  # the lock was given back


def test_a_writer_that_no_lock_kept_away_is_seen(tmp_path, write):
    path = tmp_path / "run.zarr"
    whole = write(path, stops=(10, 20))
    first, second = Store(path).run(), Store(path).run()  # without their locks
    for run in (first, second):
        run.open(SETTINGS)
    first.append(25, part(full_draws(), 20, 25), state(25), {})
    with pytest.raises(ValueError, match="another process"):
        second.append(30, part(whole, 10, 20), state(30), {})
    assert Manifest.read(path / "run").done == 25


def test_a_lock_of_a_process_that_is_gone_is_taken(tmp_path):
    path = tmp_path / "run.zarr"
    code = f"import os, llc.analysis.store as s; s.Store({str(path)!r}).__enter__(); os._exit(1)"
    subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=False
    )
    assert (path / "lock").read_text().split()[-1] != str(os.getpid())
    with Store(path):
        assert (path / "lock").read_text().split()[-1] == str(os.getpid())


@pytest.mark.parametrize("content", ["file", "folder"])
def test_what_is_not_a_store_stays(tmp_path, content):
    path = tmp_path / "mine"
    if content == "file":
        path.write_text("precious")
    else:
        path.mkdir()
        (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(ValueError, match=r"mine needs to be a folder that llc made"):
        Store(path).__enter__()
    assert path.exists()


@pytest.mark.parametrize("path", ["/proc/run.zarr", "/dev/null/run.zarr"])
def test_a_place_that_can_not_be_written(path):
    with pytest.raises(OSError, match=f"{path} can't be written"):
        Store(path).__enter__()


def test_a_full_disk_loses_nothing(tmp_path, write):
    path = tmp_path / "run.zarr"
    whole = write(path, stops=(10, 20))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(path) as store:
        run = store.run()
        run.open(SETTINGS)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
            with pytest.raises(OSError, match=r"run\.zarr can't be written"):
                run.append(30, part(full_draws(), 20, 30), state(30), {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        equal(llc.load(path), whole)
        run.append(30, part(full_draws(), 20, 30), state(30), {})
    equal(llc.load(path), part(full_draws(), 0, 30))


def test_a_store_without_draws_says_so(tmp_path):
    path = tmp_path / "run.zarr"
    with Store(path) as store:
        store.run().open(SETTINGS)
    with pytest.raises(ValueError, match="no draws after the warm-up"):
        llc.load(path)


def test_the_manifest_is_read_as_written(tmp_path, write):
    path = tmp_path / "run.zarr"
    write(path)
    manifest = Manifest.read(path / "run")
    assert manifest.settings == SETTINGS
    assert manifest.asked == 30
    assert replace(manifest).up_to(20).done == 20


def test_a_store_that_is_full_leaves_the_draws_in_the_error(tmp_path):
    posterior = llc.LocalPosterior(lambda w, x: 0.5 * (x * w) ** 2, np.zeros((), np.float32), np.ones(20), gamma=1.0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    lengths = {"num_chains": 2, "num_warmup": 5, "num_draws": 20, "progress": False}
    run = functools.partial(llc.sample, jax.random.key(0), posterior, llc.SGLD(0.01), **lengths)
    whole = run()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))  # as much as a manifest takes
        with pytest.raises(OSError, match=r"run\.zarr can't be written") as failed:
            run(store=tmp_path / "run.zarr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert np.array_equal(failed.value.partial["posterior"]["llc"], whole["posterior"]["llc"])
