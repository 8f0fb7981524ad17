"""What all studies share: flags, a journal of finished rows, a table, and files.

A study is a script with a frozen dataclass `Settings`, a function `run(case, settings)` that returns one row (a dict of
plain numbers and strings) for one case (a string), and a `main` of four lines:

    study = Study("accuracy", __doc__, Settings(), QUICK)      # reads the flags
    rows = study.rows(run, cases)                              # with a progress bar, in processes, journalled
    print(table(rows, COLUMNS))
    study.save(rows, summary=…, table=…, figure=…)             # <out>/accuracy.{json,txt,png}

A finished row is appended to `<out>/<name>.jsonl` at once, so a killed study goes on where it stopped if it is started
again with the same settings. A case that raises keeps a row with the error's text: failures stay in the table.
A study of hours can be made in parts: `--at-most N` runs N cases and writes what there is, `--keep` takes over the rows
of the JSON that an earlier part wrote. Every row names the commit it was made at.
"""

import argparse
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image
from tqdm.auto import tqdm

import llc
from llc.analysis.writing import write_whole

_MAPS = 30_000  # memory maps of a process above which compiled programs are dropped: Linux allows 65,530
_PACKAGES = ("llc", "jax", "numpyro", "numpy", "scipy", "arviz")

Row = dict[str, Any]


class Study:
    """One run of a study: its settings, and where its rows and files go.

    Args:
        name: of the files.
        doc: the script's docstring, shown by `--help`.
        full: settings of the full size.
        quick: settings of `--quick`, about a minute.
        flags: adds flags of the study's own to the parser; read them from `arguments`.
        folder: within the results, of the studies of one subject.
    """

    def __init__(
        self,
        name: str,
        doc: str | None,
        full: Any,
        quick: Any,
        flags: Callable[[argparse.ArgumentParser], object] | None = None,
        folder: str = "",
    ) -> None:
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="small size, about a minute; files go to a new folder")
        parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results")
        parser.add_argument("--keep", action="store_true", help="take over the rows of the JSON there")
        parser.add_argument("--at-most", type=int, metavar="N", help="cases to run now; the others are left out")
        parser.add_argument("--processes", type=int, help="cases at a time; default one a core, 1 with --quick")
        if flags:
            flags(parser)
        self.arguments = parser.parse_args()
        self.name = name
        self.quick, self.keep, self.at_most = self.arguments.quick, self.arguments.keep, self.arguments.at_most
        self.settings = quick if self.quick else full
        self.processes = self.arguments.processes or (1 if self.quick else os.cpu_count() or 1)
        default = tempfile.mkdtemp(prefix=f"{name}-") if self.quick else Path(__file__).parent / "results" / folder
        self.out = Path(self.arguments.out or default)
        self.out.mkdir(parents=True, exist_ok=True)

    def rows(self, run: Callable[[str, Any], Row], cases: Iterable[str]) -> list[Row]:
        """`run(case, settings)` for every case, in the cases' order; `run` and its module are importable by name."""
        cases = list(cases)
        journal = self.out / f"{self.name}.jsonl"
        done = _read_journal(journal, self.settings)
        if self.keep:
            done = _read_results(self.out / f"{self.name}.json", self.settings) | done
        missing = [case for case in cases if case not in done][: self.at_most]
        journal.write_text(
            "".join(json.dumps(x, default=_plain) + "\n" for x in ({"settings": self.settings}, *done.values()))
        )
        with tqdm(total=len(done) + len(missing), initial=len(done), desc=self.name, unit="case") as bar:
            for case, row in _run_all(functools.partial(_attempt, run), missing, self.settings, self.processes):
                done[case] = json.loads(json.dumps(row | {"case": case, "commit": commit()}, default=_plain))
                with journal.open("a") as file:
                    file.write(json.dumps(done[case]) + "\n")
                bar.set_postfix_str(case)
                bar.update()
        if left := sum(case not in done for case in cases):
            print(f"{left} of {len(cases)} cases are left out: run again with --keep\n")
        return [done[case] for case in cases if case in done]

    def save(self, rows: Sequence[Row], *, summary: dict[str, Any], text: str, figure: Figure) -> None:
        """Writes JSON (settings, versions, summary, rows), the printed text and the figure; ends the journal."""
        record = {
            "study": self.name,
            "quick": self.quick,
            "settings": self.settings,
            "versions": versions(),
            "summary": summary,
            "rows": rows,
        }
        content = json.dumps(record, indent=1, default=_plain) + "\n"
        write_whole(self.out / f"{self.name}.json", content.encode())
        write_whole(self.out / f"{self.name}.txt", (text.rstrip() + "\n").encode())
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120)
        small = io.BytesIO()  # of 256 colors: a third of the size, as all results are kept in the repository
        Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
        write_whole(self.out / f"{self.name}.png", small.getvalue())
        (self.out / f"{self.name}.jsonl").unlink(missing_ok=True)
        print(f"\nwritten: {self.out / self.name}.json, .txt, .png")


class Column(NamedTuple):
    """A column of a table: its title, a row's key or a function of the row, and a format."""

    title: str
    value: str | Callable[[Row], Any]
    form: str = "{}"


def table(rows: Iterable[Row], columns: Sequence[Column]) -> str:
    """Rows as text: numbers to the right, words to the left, nothing for None, the error where a case failed."""
    lines, right = [[column.title for column in columns]], [False] * len(columns)
    for row in rows:
        values = [row.get(c.value) if isinstance(c.value, str) else _value(c.value, row) for c in columns]
        lines.append(["" if v is None else c.form.format(v) for c, v in zip(columns, values, strict=True)])
        right = [r or isinstance(v, (int, float)) for r, v in zip(right, values, strict=True)]
        if "error" in row:
            lines[-1][-1] += f"  {row['error']}"
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(line, widths, right, strict=True)
        )
        for line in lines
    ]
    return "\n".join(line.rstrip() for line in aligned)


def sample_keywords(calibration: llc.Calibration) -> dict[str, Any]:
    """The keywords of `llc.sample` for the lengths that calibration gives a run."""
    lengths: Any = calibration.lengths
    return dict(lengths) if isinstance(lengths, dict) else dict(lengths.keywords())


def constant(draws: xr.DataTree, name: str) -> float:
    """A constant of the draws, such as nβ or γ."""
    return float(draws["constant_data"][name])


def versions() -> dict[str, str]:
    """Versions that a number depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def _value(function: Callable[[Row], Any], row: Row) -> Any:
    return None if "error" in row else function(row)


@functools.cache
def commit() -> str:
    """The commit that a row was made at, with "-dirty" after changes; empty outside of a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _attempt(run: Callable[[str, Any], Row], case: str, settings: Any) -> Row:
    maps = Path("/proc/self/maps")  # of Linux
    if maps.exists() and maps.read_text().count("\n") > _MAPS:
        jax.clear_caches()
    try:
        return run(case, settings)
    except Exception as error:  # a failure is a row of the study, with its text
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def _run_all(run: Callable, cases: Sequence[str], settings: Any, processes: int) -> Iterator[tuple[str, Row]]:
    """(case, row) in the order of completion."""
    if processes == 1:
        yield from ((case, run(case, settings)) for case in cases)
        return
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a thread a process: more only wait for one another
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    context = multiprocessing.get_context("spawn")  # JAX has threads: no fork
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = {pool.submit(run, case, settings): case for case in cases}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()  # or they would go on without a journal
            raise


def _read_journal(path: Path, settings: Any) -> dict[str, Row]:
    """Finished rows by case, if the journal is of these settings."""
    if not path.exists():
        return {}
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]  # a killed write
    if not lines or json.loads(lines[0])["settings"] != json.loads(json.dumps(settings, default=_plain)):
        return {}
    rows = [json.loads(line) for line in lines[1:]]
    return {row["case"]: row for row in rows if "error" not in row}


def _read_results(path: Path, settings: Any) -> dict[str, Row]:
    """Finished rows of an earlier run by case, if it was of these settings."""
    if not path.exists():
        return {}
    record = json.loads(path.read_text())
    if record["settings"] != json.loads(json.dumps(settings, default=_plain)):
        return {}
    return {row["case"]: row for row in record["rows"] if "error" not in row}


def _plain(value: Any) -> Any:
    """Dataclasses and numbers of NumPy or JAX as JSON knows them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a row needs plain numbers and strings, got {type(value).__name__}")
