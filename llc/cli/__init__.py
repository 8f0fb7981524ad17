"""The command line: `llc demo | calibrate | sample | bounds | report`."""

import os
import sys
from collections.abc import Sequence

_STOPPED = 130  # exit status


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the parser is imported here, so that Ctrl-C before it is made is one line too.

    Args:
        argv: the words after `llc`; None takes those of the process.

    Returns:
        The exit status, as of `llc.cli.parser.main`.
    """
    try:
        from llc.cli.parser import main as parsed_main

        return parsed_main(argv)
    except KeyboardInterrupt:
        if sys.stderr is not None:
            os.write(2, b"llc: interrupted.\n")
        return _STOPPED
