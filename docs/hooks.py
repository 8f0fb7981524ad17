"""Hooks of the documentation's build: math as MathML, and the committed results of the validation among its files."""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[1] / "validation" / "results"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the tables and figures of `validation/results`, so that pages can link to them."""
    for path in sorted(RESULTS.rglob("*")):
        if path.suffix in (".txt", ".png"):
            name = path.relative_to(RESULTS).as_posix()
            files.append(File.generated(config, f"results/{name}", abs_src_path=str(path)))
    return files


def on_page_content(content: str, **_: object) -> str:
    """Turns the formulas of a page into MathML, which browsers show by themselves: no script is loaded."""
    return FORMULA.sub(_to_mathml, content)


def _to_mathml(match: re.Match[str]) -> str:
    display = "block" if match[2] == "[" else "inline"
    return convert(html.unescape(match[3]).strip(), display=display)
