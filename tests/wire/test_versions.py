from __future__ import annotations

import os
import platform
import socket

import cloudpickle
import msgspec
import pytest

from hpcpool.wire.messages import PROTOCOL, Hello
from hpcpool.wire.version import VERSION
from hpcpool.wire.versions import disagreement, hello

MINE = Hello(PROTOCOL, "1.0", "3.11.7", "3.1.2", "here", 1)


def test_a_process_introduces_itself():
    mine = hello()
    assert (mine.protocol, mine.version, mine.python) == (PROTOCOL, VERSION, platform.python_version())
    assert (mine.cloudpickle, mine.host, mine.pid) == (cloudpickle.__version__, socket.gethostname(), os.getpid())
    assert disagreement(mine, hello()) == ""


@pytest.mark.parametrize(
    "change",
    [{"version": "2.0"}, {"python": "3.11.9"}, {"python": "3.11.0rc1"}, {"cloudpickle": "3.99"}, {"host": "there"}],
)
def test_peers_that_understand_each_other_agree(change):
    assert disagreement(MINE, msgspec.structs.replace(MINE, **change)) == ""


@pytest.mark.parametrize(
    ("change", "what", "both"),
    [
        ({"protocol": PROTOCOL + 1}, "hpcpool protocol", (str(PROTOCOL), str(PROTOCOL + 1))),
        ({"python": "3.12.1"}, "Python", ("3.11", "3.12")),
        ({"python": "3.1.1"}, "Python", ("3.11", "3.1")),
        ({"cloudpickle": "4.0"}, "cloudpickle", ("3", "4")),
    ],
)
def test_others_do_not_and_are_told_what_to_do(change, what, both):
    theirs = msgspec.structs.replace(MINE, host="there", version="2.0", **change)
    text = disagreement(MINE, theirs)
    assert text.startswith(f"{what} differs: {both[0]} on here (hpcpool 1.0, Python 3.11.7), {both[1]} on there ")
    assert f"Install the same {what} on both" in text


@pytest.mark.parametrize("version", ["", "x", "3", ".."])
def test_a_version_that_is_none_only_differs(version):
    assert disagreement(MINE, msgspec.structs.replace(MINE, python=version, cloudpickle=version)) != ""
