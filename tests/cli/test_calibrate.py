"""`llc calibrate` prints what `llc sample` takes, and the help of commands their defaults."""

import pytest

import llc
from llc import cli
from llc.cli.parser import parser


@pytest.mark.slow
def test_calibrate_names_settings_that_sample_takes(folder, capsys):
    flags = ["--num-draws", "100", "--figure", "calibration.png"]
    assert cli.main(["calibrate", "model.py:posterior", *flags]) == 0
    *table, line, _, last = capsys.readouterr().out.strip().splitlines()
    assert last == "Figure: calibration.png"
    assert (folder / "calibration.png").exists()
    assert any(row.split()[:2] == ["gamma", "1"] for row in table)
    words = line.split()
    assert words[:3] == ["llc", "sample", "model.py:posterior"]
    assert parser().parse_args(words[1:]).num_draws == 100


@pytest.mark.slow
@pytest.mark.study
def test_calibrate_repeats_what_was_given(folder, capsys):
    flags = ["--nbeta", "5", "--num-warmup", "1234567", "--num-draws", "100", "--out", "run.nc"]
    assert cli.main(["calibrate", "model.py:posterior", *flags]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("llc sample"))
    arguments = parser().parse_args(line.split()[1:])
    assert (arguments.nbeta, arguments.num_warmup, str(arguments.out)) == (5.0, 1234567, "run.nc")
    assert set(llc.load("run.nc").children) == {"curvature"}


@pytest.mark.parametrize("command", ["calibrate", "sample", "sweep"])
def test_help_shows_the_defaults_that_are_values(command, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args([command, "--help"])
    shown = capsys.readouterr().out
    assert "(default: 4)" in shown
    assert not any(f"(default: {nothing})" in shown for nothing in ("None", "False", ""))
