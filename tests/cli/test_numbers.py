"""Numbers of flags that are out of range are refused by the flag's name, before the model's file is executed."""

import pytest

from llc.cli import main
from llc.cli.parser import parser

INTEGERS = ("num-chains", "num-warmup", "num-draws", "thinning", "batch-size", "eval-size", "budget", "num-matvecs")
INTEGERS += ("num-probes", "seed", "workers")
ABOVE_ZERO, FROM_ZERO, ANY = ("nbeta", "step-size", "friction", "memory"), ("gamma",), ("reference-loss",)
WRONG = {flag: ("-1", "1e3", "nan", "", "99999999999999999999", "9" * 5000, "1\n2") for flag in INTEGERS}
WRONG |= {flag: ("0", "-1", "nan", "inf", "1e999", "x", "") for flag in ABOVE_ZERO}
WRONG |= {flag: ("-1", "nan", "-inf", "x") for flag in FROM_ZERO} | {flag: ("nan", "inf", "x") for flag in ANY}
for _flag in set(INTEGERS) - {"num-warmup", "seed"}:
    WRONG[_flag] += ("0",)
COMMANDS = {
    "calibrate": ["model.py:posterior"],
    "sample": ["model.py:posterior", "--out", "run.nc"],
    "bounds": ["model.py:posterior"],
    "sweep": ["model.py:posterior", "a.npz"],
    "report": ["run.nc"],
    "demo": [],
}


def flags_of(command):
    (actions,) = (action for action in parser()._actions if action.dest == "command")
    return {flag[2:] for action in actions.choices[command]._actions for flag in action.option_strings}


@pytest.mark.parametrize("command", COMMANDS)
def test_numbers_out_of_range_are_refused_by_their_flag(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text("raise SystemExit('executed')\n")
    flags = flags_of(command) & set(WRONG)
    assert flags
    for flag in flags:
        for text in WRONG[flag]:
            with pytest.raises(SystemExit) as stopped:
                main([command, *COMMANDS[command], f"--{flag}={text}"])
            assert stopped.value.code == 3, (flag, text)
            told = capsys.readouterr().err
            assert f"argument --{flag}: it needs " in told, told
            assert ", got " in told
            assert len(told.splitlines()) == 2


@pytest.mark.parametrize(
    ("flag", "text", "value"), [("gamma", "0", 0.0), ("num-warmup", "0", 0), ("nbeta", "1e-3", 1e-3)]
)
def test_numbers_at_the_end_of_their_range_are_taken(flag, text, value):
    arguments = parser().parse_args(["sample", *COMMANDS["sample"], f"--{flag}={text}"])
    assert getattr(arguments, flag.replace("-", "_")) == value


def test_steps_that_no_loop_counts_are_refused_by_their_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["sample", *COMMANDS["sample"], "--num-draws", "2000000000", "--thinning", "2000000000"]
    assert main(words) == 3
    told = capsys.readouterr().err
    assert "--num-draws times --thinning need to be at most 2147483647 steps" in told
    assert len(told.splitlines()) == 1
