"""What the ranks of a step are given and what they answer, as bytes; nothing is sent here."""

from __future__ import annotations

import base64
import binascii
import pickle
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hpcpool.wire.failures import pickle_failure, unpickle_failure
from hpcpool.wire.packing import Payload
from hpcpool.wire.payload import pickle_value, unpickle

#: Whose results are asked for.
OF_FIRST, OF_ALL = "first", "all"

_RESULTS, _FAILURE = b"R", b"F"
#: The call's length stands in front of it, in this many bytes.
LENGTH_BYTES = 8


class Call(NamedTuple):
    """What each rank runs, and where it finds modules and files."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def pickled_call(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], path: Sequence[str], cwd: str
) -> bytes:
    """Return a call with its length in front; `path` and `cwd` are what modules are imported with."""
    data = pickle.dumps((list(path), cwd, _flat(pickle_value((fn, args, kwargs)))))
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def surroundings(data: bytes) -> tuple[list[str], str, bytes]:
    """Return the module path, the folder, and the call for `open_call`, which needs them."""
    path, cwd, call = pickle.loads(data)
    return path, cwd, call


def open_call(data: bytes) -> Call:
    """Rebuild the call."""
    return Call(*_opened(data))


def pickled_result(value: object) -> bytes:
    """Return one rank's result."""
    return _flat(pickle_value(value))


def results_line(mark: str, results: Sequence[bytes]) -> bytes:
    """Return the line that brings the results of all ranks, or of the first alone."""
    return _line(mark, _RESULTS + pickle.dumps(list(results)))


def failure_line(mark: str, error: BaseException) -> bytes:
    """Return the line that brings what a rank raised."""
    return _line(mark, _FAILURE + _flat(pickle_failure(error)))


def read_line(line: bytes, mark: str) -> bytes | None:
    """Return what a line brings; None if it is not such a line, or lines of several ranks have run into one."""
    start, _, rest = line.strip().partition(b" ")
    checksum, _, text = rest.partition(b" ")
    if start != mark.encode():
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return data if checksum == b"%08x" % zlib.crc32(data) else None


def opened(data: bytes) -> list[Any]:
    """Return the results; raises what a rank has raised."""
    if data[:1] == _FAILURE:
        raise unpickle_failure(_payload(data[1:]))
    return [_opened(result) for result in pickle.loads(data[1:])]


def _line(mark: str, data: bytes) -> bytes:
    # The newline in front ends what another rank has left without one.
    return b"\n%s %08x %s\n" % (mark.encode(), zlib.crc32(data), base64.b64encode(data))


def _flat(payload: Payload) -> bytes:
    return pickle.dumps((bytes(payload.data), [bytes(buffer) for buffer in payload.buffers]))


def _payload(data: bytes) -> Payload:
    return Payload(*pickle.loads(data))


def _opened(data: bytes) -> Any:
    return unpickle(_payload(data))
