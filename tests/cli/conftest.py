"""A folder with a model file, in which commands run."""

import pytest

from tests.support.commands import MODEL


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path
