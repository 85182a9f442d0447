"""What travels of an exception. Light: to make it of an error of our own takes nothing that pickles users' objects."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple


class Failure(NamedTuple):
    """An exception taken apart for the way; it is sent as a plain tuple."""

    #: The pickled exception; None if nothing of it could be pickled.
    exception: bytes | None
    type_name: str
    text: str
    traceback_text: str
    #: `tblib`'s plain form of the traceback; None if there was none.
    frames: dict[str, Any] | None


def failure_in_words(error: OSError) -> bytes:
    """Return the pickle of an error whose words are enough, as of one that kept a call from being run."""
    name, text = type(error).__name__, str(error)
    return pickle.dumps(tuple(Failure(None, name, text, f"{name}: {text}\n", None)))
