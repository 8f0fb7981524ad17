"""A report as one self-contained page: the text, the dashboard, and the JSON."""

import base64
import html
from pathlib import Path

from llc.analysis.paths import expand
from llc.analysis.report import Report
from llc.analysis.writing import write_whole
from llc.plotting.dashboard import plot_report, to_png

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:80em;margin:2em auto;padding:0 1em}"
    "pre{background:#f6f6f6;padding:1em;overflow-x:auto}img{max-width:100%}"
)


def save_html(report: Report, path: str | Path) -> None:
    """Writes a self-contained page of a report: the text, the dashboard, and the JSON.

    Args:
        report: of `llc.estimate` or `llc.report`.
        path: of the page; an existing one is replaced, whole or not at all.
    """
    expand(path)  # refuses what is no path
    figure = base64.b64encode(to_png(plot_report(report))).decode()
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>llc report: {report.verdict}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Local learning coefficient: {report.verdict}</h1>\n<pre>{html.escape(str(report))}</pre>\n"
        f'<img alt="Dashboard of the run" src="data:image/png;base64,{figure}">\n'
        f"<h2>As JSON</h2>\n<pre>{html.escape(report.to_json())}</pre>\n</body>\n</html>\n"
    )
    write_whole(path, page.encode())
