"""What a model's file does beside its posterior changes neither where a command writes nor what it prints."""

import json

import pytest

import llc
from llc import cli
from llc.cli import inputs
from tests.cli.test_outputs import QUICK


def test_a_model_that_changes_the_folder_writes_where_the_command_was(folder):
    (folder / "other").mkdir()
    (folder / "moves.py").write_text("import os\nos.chdir('other')\nfrom model import posterior\n")
    assert cli.main(["sample", "moves.py:posterior", "--out", "run.nc", *QUICK]) == 0
    assert (folder / "run.nc").exists()
    assert not any((folder / "other").iterdir())


@pytest.mark.slow
def test_what_a_model_prints_is_no_output_of_the_command(folder, capsys):
    (folder / "talks.py").write_text("print('loading')\nfrom model import posterior\n")
    for step in (1, 2):
        llc.save_params(f"step_{step}.npz", 0.01 * step * inputs.load_posterior("model.py:posterior").center)
    assert capsys.readouterr().out == ""
    words = ["sweep", "talks.py:posterior", "step_1.npz", "step_2.npz", "--json", "--gamma", "1", *QUICK[:4]]
    cli.main(words)
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["items"]) == 2
    assert "loading" in shown.err


@pytest.mark.parametrize("text", ["raise ValueError", "{}['key']", "raise GeneratorExit", "def f(:", "assert False"])
def test_an_error_without_words_shows_where_it_is(text, folder, capsys):
    """The trace begins in the model's file: no step of the command before it."""
    (folder / "broken.py").write_text(f"\n{text}\n")
    assert cli.main(["bounds", "broken.py:posterior"]) == 3
    error = capsys.readouterr().err
    assert 'broken.py", line 2' in error
    assert error.count("\n") < 8
    assert "inputs.py" not in error


def test_an_error_with_words_is_one_line(folder, capsys):
    """Negative control of the test above."""
    (folder / "broken.py").write_text("raise ValueError('no data')\n")
    assert cli.main(["bounds", "broken.py:posterior"]) == 3
    assert capsys.readouterr().err == "llc bounds: no data\n"


@pytest.mark.parametrize("flag", ["--html", "--figures"])
@pytest.mark.parametrize("path", ["", "a\0b", "~no-such-user-here/x", "n" * 300])
def test_a_path_that_no_file_can_have_names_its_flag(flag, path, folder, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", "run.nc", flag, path])
    assert stop.value.code == 3
    assert f"argument {flag}: path needs" in capsys.readouterr().err
    assert list(folder.iterdir()) == [folder / "model.py"]
