"""Runs the Python blocks of README.md and docs/*.md, and puts what they print into the blocks marked as output.

A block of text after a line `<!-- output -->` holds what the Python block before it printed; `<!-- output: 9 lines -->`
holds the first nine lines of it.

uv run python docs/refresh_output.py
"""

import contextlib
import io
import os
import re
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_PYTHON = r"```python\n(?P<code>.*?)```\n"
OUTPUT = re.compile(r"<!-- output(?:: (?P<lines>\d+) lines)? -->\n```text\n(?P<printed>.*?)```\n", re.DOTALL)
_BLOCK = re.compile(f"{_PYTHON}|{OUTPUT.pattern}", re.DOTALL)


def refreshed(text: str) -> str:
    """The page with the output of its blocks, which run one after the other in one namespace."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = io.StringIO()

    def run(block: re.Match[str]) -> str:
        nonlocal printed
        if block["code"] is not None:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(block["code"], namespace)
            return block[0]
        count = f": {block['lines']} lines" if block["lines"] else ""
        return f"<!-- output{count} -->\n```text\n{_shortened(printed.getvalue(), block['lines'])}```\n"

    return _BLOCK.sub(run, text)


def _shortened(printed: str, count: str | None) -> str:
    lines = printed.splitlines()
    if count is not None and len(lines) > int(count):
        lines = [*lines[: int(count)], "  …"]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def main() -> None:
    """Writes the pages that have changed."""
    for path in PAGES:
        text = path.read_text()
        if not OUTPUT.search(text):
            continue
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            new = refreshed(text)
        path.write_text(new)
        print(f"{os.path.relpath(path)}: {'as it was' if new == text else 'changed'}")


if __name__ == "__main__":
    main()
