"""Which peers understand each other, decided from the first message of each."""

from __future__ import annotations

import os
import platform
import socket

import cloudpickle

from hpcpool.wire.messages import PROTOCOL, Hello
from hpcpool.wire.version import VERSION


def hello(host: str = "") -> Hello:
    """Return this process's own first message; `host`: what others call this host, if it is not its own name."""
    name = host or socket.gethostname()
    return Hello(PROTOCOL, VERSION, platform.python_version(), cloudpickle.__version__, name, os.getpid())


def disagreement(mine: Hello, theirs: Hello) -> str:
    """Return why two peers cannot work together, naming both and what to do, or "" if they can."""
    pairs = [
        ("hpcpool protocol", str(mine.protocol), str(theirs.protocol)),
        ("Python", _minor(mine.python), _minor(theirs.python)),
        ("cloudpickle", _major(mine.cloudpickle), _major(theirs.cloudpickle)),
    ]
    for what, here, there in pairs:
        if here != there:
            return (
                f"{what} differs: {here} on {mine.host} (hpcpool {mine.version}, Python {mine.python}), "
                f"{there} on {theirs.host} (hpcpool {theirs.version}, Python {theirs.python}). "
                f"Install the same {what} on both, or name a fitting interpreter with python= of the node pool."
            )
    return ""


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _major(version: str) -> str:
    return version.split(".")[0]
