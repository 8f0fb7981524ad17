"""The terminal: output that no reader and no encoding stops, and signals that end a command in order."""

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Literal

from llc.analysis.paths import expand
from llc.analysis.text import printable

_STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name)]
_ALARM = [signal.SIGALRM] if hasattr(signal, "setitimer") else []  # not on Windows
_AGAIN = 0.1  # seconds


def accept_all_characters() -> None:
    """Lets terminals whose encoding has no λ show an escape in its place."""
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")


def path(text: str) -> Path:
    """The path of a flag; one that no file can have is refused with the flag's name."""
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def say(text: str) -> None:
    """Prints a text at once. A reader that has seen enough (head, a pager) does not stop the command."""
    _print(text, "stdout")


def complain(text: str) -> None:
    """Prints to standard error, control characters made visible; where nobody can read it, nothing happens."""
    with contextlib.suppress(OSError):
        _print(printable(text), "stderr")


def _print(text: str, name: Literal["stdout", "stderr"]) -> None:
    """Prints to a stream that may be closed or full; what is left in its buffer must not fail again at the exit.

    Raises:
        OSError: if it can't be written to for another reason than that nobody reads it.
    """
    stream = getattr(sys, name)
    if stream is None:  # closed before the start
        return
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, f"the output can't be written: {error.strerror}") from error


class Stops:
    """The signals that ask a command to stop; `received` is the last one, or None."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __call__(self, number: int, _: FrameType | None) -> None:
        """As a handler: what Python does on Ctrl-C."""
        self.received = self.received if number in _ALARM else number
        raise KeyboardInterrupt

    def _lost(self, lost: "sys.UnraisableHookArgs") -> bool:
        """Whether a stop came while Python collected garbage, which drops what is raised: it comes again soon."""
        if self.received is None or not isinstance(lost.exc_value, KeyboardInterrupt) or not _ALARM:
            return False
        signal.signal(_ALARM[0], self)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        return True

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM raise KeyboardInterrupt, unless they are ignored (nohup)."""
        if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
            yield
            return
        before = {number: signal.getsignal(number) for number in (*_STOPS, *_ALARM)}
        report, sys.unraisablehook = sys.unraisablehook, lambda lost: self._lost(lost) or report(lost)
        try:
            for number in _STOPS:
                if before[number] is not signal.SIG_IGN:
                    signal.signal(number, self)
            yield
        finally:
            sys.unraisablehook = report
            if _ALARM:
                signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
