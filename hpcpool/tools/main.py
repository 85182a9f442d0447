"""The command `hpcpool`: it reads the command line and hands over to the module of the command."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from hpcpool.tools import cleanup
from hpcpool.wire.version import VERSION


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: those behind the name of the program; None: of this process.
    """
    parser = argparse.ArgumentParser(prog="hpcpool", description="Tools for pools of hpcpool.")
    parser.add_argument("--version", action="version", version=f"hpcpool {VERSION}")
    parser.add_argument("-v", "--verbose", action="store_true", help="show what is logged, too")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    cleanup.add_to(commands)
    options = parser.parse_args(arguments)
    if options.verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
