"""The README's Python runs, its commands exist."""

import pathlib
import re

import pytest
from mktestdocs import check_md_file

from llc import cli

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_md_file(README, memory=True)
    assert {path.name for path in tmp_path.iterdir()} == {"run.nc", "report.png", "report.html"}


@pytest.mark.parametrize(
    "line", re.findall(r"^llc (?:calibrate|sample|bounds|report) .*$", README.read_text(), re.MULTILINE)
)
def test_commands_parse(line):
    words = line.split("    ")[0].split()[1:]
    assert cli._parser().parse_args(words).command == words[0]
