"""The terminal: output that no reader and no encoding stops, and signals that end a command in order."""

import argparse
import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Literal, TextIO

from llc.analysis.paths import expand
from llc.analysis.text import printable

_STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name)]
_ALARM = [signal.SIGALRM] if hasattr(signal, "setitimer") else []  # not on Windows
_AGAIN = 0.1  # seconds until a stop that was dropped comes again
_SWALLOWED = 1.0  # seconds after which one that did not end the command is taken to be dropped
type _Name = Literal["stdout", "stderr"]
_NUMBERS: dict[_Name, int] = {"stdout": 1, "stderr": 2}  # descriptors


def accept_all_characters() -> None:
    """Lets terminals whose encoding has no λ show an escape in its place."""
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")


class Streams:
    """Standard output and error as the command found them: a model's file may close them, or put others there."""

    def __init__(self) -> None:
        self._spare: dict[_Name, int] = {}

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps descriptors of both besides the streams."""
        try:
            for name in _NUMBERS:
                with contextlib.suppress(OSError, ValueError, AttributeError):  # none, or one that is no file
                    self._spare[name] = os.dup(getattr(sys, name).fileno())
            yield
        finally:
            for descriptor in self._spare.values():
                os.close(descriptor)
            self._spare.clear()

    def reopen(self) -> None:
        """Puts back what was closed, before another file gets its descriptor."""
        gone: list[_Name] = [name for name in self._spare if not _is_open(getattr(sys, name))]
        for name in self._spare:  # both, before a new stream takes the number of one
            try:
                os.fstat(_NUMBERS[name])
            except OSError:
                os.dup2(self._spare[name], _NUMBERS[name])
        for name in gone:
            stream, spare = getattr(sys, name), self._spare[name]
            encoding = getattr(stream, "encoding", None) or "utf-8"
            setattr(sys, name, open(os.dup(spare), "w", encoding=encoding, errors="backslashreplace"))  # noqa: SIM115


streams = Streams()


def _is_open(stream: TextIO | None) -> bool:
    if stream is None or stream.closed:
        return False
    try:
        os.fstat(stream.fileno())
    except OSError as error:
        return error.errno != errno.EBADF  # one that is no file is open
    return True


def path(text: str) -> Path:
    """The path of a flag; one that no file can have is refused with the flag's name."""
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def say(text: str, *, kept: object = None) -> None:
    """Prints a text at once. A reader that has seen enough (head, a pager) does not stop the command.

    Args:
        text: to be printed.
        kept: where the result is besides, for the message if it can't be printed.

    Raises:
        OSError: if it can't be written to for another reason than that nobody reads it.
    """
    try:
        _print(text, "stdout")
    except OSError as error:
        there = "" if kept is None else f"; what was computed is in {kept}"
        raise OSError(error.errno, f"{error.strerror}{there}") from error


def complain(text: str) -> None:
    """Prints to standard error, control characters made visible; where nobody can read it, nothing happens."""
    with contextlib.suppress(OSError):
        _print(printable(text), "stderr")


def _print(text: str, name: _Name) -> None:
    """Prints to a stream that may be closed or full; what is left in its buffer must not fail again at the exit.

    Raises:
        OSError: if it can't be written to for another reason than that nobody reads it.
    """
    streams.reopen()
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
    """The signals that ask a command to stop; `received` is the last one, or None.

    Imports may drop what is raised in them: garbage collection does, and packages that catch whatever an optional one
    raises. Until the command is `under_way` and deals with stops itself, one comes again every second.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._insists = True

    def __call__(self, number: int, _: FrameType | None) -> None:
        """As a handler: what Python does on Ctrl-C."""
        self.received = self.received if number in _ALARM else number
        if self._insists:
            self._again(_SWALLOWED)
        raise KeyboardInterrupt

    def under_way(self) -> None:
        """From here on whoever catches a stop has a reason: draws are written, or a report is made of them."""
        self._insists = False
        self._no_more()

    def _again(self, seconds: float) -> None:
        if _ALARM:
            signal.signal(_ALARM[0], self)
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def _no_more(self) -> None:
        if _ALARM:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _lost(self, lost: "sys.UnraisableHookArgs") -> bool:
        """Whether a stop came while Python collected garbage, which drops what is raised: it comes again soon."""
        if self.received is None or not isinstance(lost.exc_value, KeyboardInterrupt) or not _ALARM:
            return False
        self._again(_AGAIN)
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
            self._no_more()
            sys.unraisablehook = report
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def under_way() -> None:
    """Tells the handler of this process that the command deals with stops itself from here on."""
    for handler in map(signal.getsignal, _STOPS):
        if isinstance(handler, Stops):
            handler.under_way()
