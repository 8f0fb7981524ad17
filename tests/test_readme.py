"""The README's Python runs, its printed output has the rows of today's, and its commands exist."""

import pathlib
import re

import pytest
from mktestdocs import check_md_file

from docs.refresh_output import OUTPUT
from llc.cli.parser import parser

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
COMMAND = re.compile(r"^llc (?:calibrate|sample|bounds|report) .*$", re.MULTILINE)
COMMANDS = [line for page in (README, ROOT / "docs/quickstart.md") for line in COMMAND.findall(page.read_text())]


def names_of_rows(printed: str) -> set[str]:
    """The first column of indented rows, which stays where numbers change."""
    return {re.split(r"\s{2,}", line.strip())[0] for line in printed.splitlines() if re.match(r"  \S", line)}


@pytest.mark.slow
def test_python_blocks_run_and_print_the_rows_that_are_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check_md_file(README, memory=True)
    printed = capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"run.nc", "report.png", "report.html"}
    shown = [block["printed"] for block in OUTPUT.finditer(README.read_text())]
    assert len(shown) == 2
    assert "λ̂" in names_of_rows(shown[0])
    assert names_of_rows("".join(shown)) - {"…"} <= names_of_rows(printed)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    words = line.split("    ")[0].split()[1:]
    assert parser().parse_args(words).command == words[0]
