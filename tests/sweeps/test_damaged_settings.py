"""A damaged sweep.json is refused by its name; a whole one is read as it was written."""

import json

import pytest

from llc.sweeps.store import Store

SETTINGS, PLAN = {"seed": 0, "names": ["a", "b"]}, {"gamma": 1.5}
DAMAGED = {
    "empty": "",
    "cut": '{"settings": {"seed": 0}, "pl',
    "a list": "[]",
    "null": "null",
    "a number": "3",
    "no plan": '{"settings": {}}',
    "a plan that is null": '{"settings": {}, "plan": null}',
    "a plan that is a number": '{"settings": {}, "plan": 3}',
    "settings that are text": '{"settings": "x", "plan": {}}',
    "nested without end": "[" * 100_000,
    "no text": b"\xff\xfe\x00",
}


def written(folder):
    Store(folder).put_settings(SETTINGS, PLAN)
    return folder / "sweep.json"


@pytest.mark.parametrize("name", ["training", "training.zarr"])
def test_a_whole_one_is_read_as_it_was_written(name, tmp_path):
    written(tmp_path / name)
    assert Store(tmp_path / name).settings() == {"settings": SETTINGS, "plan": PLAN}
    assert Store(tmp_path / "new").settings() is None


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_one_is_refused_by_name(case, tmp_path):
    file, content = written(tmp_path / "training"), DAMAGED[case]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(
        ValueError, match=r"sweep\.json needs to be what a sweep writes, but is damaged; remove "
    ) as told:
        Store(tmp_path / "training").settings()
    assert len(str(told.value).splitlines()) == 1


def test_a_folder_in_its_place_is_refused_by_name(tmp_path):
    file = written(tmp_path / "training")
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match=r"sweep\.json"):
        Store(tmp_path / "training").settings()


@pytest.mark.parametrize("place", range(1, 40, 7))
def test_a_cut_one_is_refused_wherever_it_ends(place, tmp_path):
    file = written(tmp_path / "training")
    file.write_text(json.dumps({"settings": SETTINGS, "plan": PLAN})[:-place])
    with pytest.raises(ValueError, match="but is damaged"):
        Store(tmp_path / "training").settings()
