"""Files are written whole or not at all, whatever stands at the path, and whatever the disk says."""

import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from llc.analysis import writing
from llc.analysis.writing import check_writable, locked, same_file, write_whole


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_mode_and_content(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, b"first")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    path.chmod(0o640)
    write_whole(str(path), b"second")
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["a.txt"]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "run.nc", tmp_path / "run.nc"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_whole(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert same_file(link, target)
    dangling = tmp_path / "dangling.nc"
    dangling.symlink_to(tmp_path / "far" / "later.nc")
    write_whole(dangling, b"new")
    assert (tmp_path / "far" / "later.nc").read_bytes() == b"new"


def test_the_longest_name_that_fits_is_written(tmp_path):
    path = tmp_path / ("x" * 252 + ".nc")
    check_writable(path)
    write_whole(path, b"fits")
    assert path.read_bytes() == b"fits"
    for longer in (tmp_path / ("x" * 253 + ".nc"), tmp_path / ("é" * 126 + ".nc\u00e9")):
        with pytest.raises(ValueError, match="too long"):
            write_whole(longer, b"does not fit")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_whole("~/a.txt", b"at home")
    assert (tmp_path / "a.txt").read_bytes() == b"at home"


def test_errors_name_the_path_that_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere/x\.nc can't be written"):
        write_whole("nowhere/x.nc", b"")
    with pytest.raises(IsADirectoryError, match="can't be written"):
        write_whole(tmp_path, b"")


def test_devices_are_written_to_and_not_replaced():
    write_whole("/dev/null", b"gone")
    with pytest.raises(OSError, match="/dev/full can't be written: No space left"):
        write_whole("/dev/full", b"no room")
    assert os.path.exists("/dev/full")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A limit on the size of files stands for the disk: it fails within the same call."""
    path = tmp_path / "run.nc"
    path.write_bytes(b"before")
    code = f"""
import resource
from llc.analysis.writing import write_whole
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_whole({str(path)!r}, b"x" * 100_000)
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert str(path) in done.stdout
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["run.nc"]


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    code = f"""
import os, pathlib
from llc.analysis import writing
part, handle = writing._open_part(pathlib.Path({str(tmp_path / "run.nc")!r}), 0o600)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    left = names(tmp_path)
    assert len(left) == 1, "negative control: it is left"
    (tmp_path / ".llc-notes.part").write_text("of somebody else")
    living, handle = writing._open_part(tmp_path / "other.nc", 0o600)  # of this process, which lives
    write_whole(tmp_path / "run.nc", b"whole")
    os.close(handle)
    assert names(tmp_path) == sorted([".llc-notes.part", living.name, "run.nc"])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.mkdir(), "it is a folder"),
        (lambda path: None, None),
        (lambda path: path.write_text("there"), None),
    ],
    ids=["folder", "new", "there"],
)
def test_looked_at_before_the_work(make, reason, tmp_path):
    path = tmp_path / "run.nc"
    make(path)
    before = names(tmp_path)
    if reason is None:
        check_writable(path)
    else:
        with pytest.raises(ValueError, match=reason):
            check_writable(path)
    assert names(tmp_path) == before


def test_two_outputs_of_one_file_are_refused(tmp_path):
    (tmp_path / "link.nc").symlink_to(tmp_path / "run.nc")
    with pytest.raises(ValueError, match="two outputs"):
        check_writable(tmp_path / "run.nc", None, tmp_path / "link.nc")
    check_writable(tmp_path / "run.nc", tmp_path / "other.nc")


def _hold(path, ready):
    with locked(path):
        ready.set()
        time.sleep(0.5)


def test_a_lock_waits_for_the_other_process(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "run.nc", ready))
    other.start()
    assert ready.wait(60)
    begin = time.monotonic()
    with locked(tmp_path / "other.nc"):  # the lock is the folder's
        waited = time.monotonic() - begin
    other.join()
    assert waited > 0.2
    assert names(tmp_path) == []
