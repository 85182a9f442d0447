"""Where a worker on another host than the client's leaves word that its call has to do with files of the client.

What is done with them is the affair of `hpcpool.staging`, which most calls never load.
"""

from __future__ import annotations

import os
from typing import Protocol

#: In the environment of all that a manager on another host starts: the node's run directory.
FOLDER_VARIABLE = "HPCPOOL_FILES"


class Stage(Protocol):
    """The files of one call."""

    def bring_back(self) -> None:
        """The call has succeeded: bring to the client what it has made."""

    def failed(self, error: BaseException) -> None:
        """The call has failed: say with the error what a path in it stands for."""

    def close(self) -> None:
        """The call is over: let go of everything."""


#: Of the call that runs; None: it has opened no `File`, as most, or this is the client's host.
current: Stage | None = None
#: The client's working directory, where the client is on another host: paths of `File`s made in calls start there. Set
#: by the worker.
client_directory: str | None = None
#: The process id of the worker, which alone brings back what a call makes; processes that a call forks have it, too.
#: Set by the worker.
worker: int | None = None


def is_far() -> bool:
    """Say whether this process runs on another host than the client."""
    return FOLDER_VARIABLE in os.environ


def made_folder(pid: int) -> str | None:
    """Return where a worker has what its call makes, until that is brought to the client; None on the client's host."""
    run_directory = os.environ.get(FOLDER_VARIABLE)
    return None if run_directory is None else os.path.join(run_directory, "files", f"made-{pid}")
