"""The command line: `llc demo | calibrate | sample | bounds | report`."""

from llc.cli.parser import main as main
