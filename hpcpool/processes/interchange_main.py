"""How the interchange's process begins; what it then does is in `interchange`."""

from __future__ import annotations

import logging
import sys

from hpcpool.processes import sessions
from hpcpool.processes.census import is_client_gone
from hpcpool.processes.interchange import Interchange
from hpcpool.processes.limits import raise_file_limit, spare_the_collector
from hpcpool.wire import run_directory


def main(argv: list[str]) -> None:
    """Serve a client: run directory; its stream, the user's stderr and the census (descriptors); options of `start`."""
    directory, client, user_stderr, census, *_ = argv
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    raise_file_limit()
    spare_the_collector()
    sessions.adopt_orphans()
    try:
        interchange = Interchange(directory, int(client), int(user_stderr), int(census))
    except OSError:
        if not is_client_gone(int(census)):
            raise
        # Killed while this process started. Another pool may have removed the directory, but not what came after that.
        run_directory.remove(directory)
        sys.exit("hpcpool: the client is gone")
    interchange.run()
