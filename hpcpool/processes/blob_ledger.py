"""Which blobs the interchange has been given, and which of them it may forget. Belongs to the client's I/O thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from hpcpool.wire.functions import Blob
from hpcpool.wire.messages import Define, Forget

#: Blobs that no pending task needs are kept there for the next submit: this many, and this many bytes.
_IDLE_BLOBS = 256
_IDLE_BYTES = 64 * 1024 * 1024


class BlobLedger:
    """Counts the tasks on their way that need each blob."""

    def __init__(self) -> None:
        self._users: dict[bytes, int] = {}
        #: Blobs without users and their sizes, the one that was needed last at the end.
        self._idle: OrderedDict[bytes, int] = OrderedDict()
        self._idle_bytes = 0

    def knows(self, blobs: Iterable[Blob]) -> bool:
        """Say whether the interchange has all of these."""
        return all(blob.key in self._users or blob.key in self._idle for blob in blobs)

    def use(self, blobs: Iterable[Blob]) -> list[Define]:
        """Note that a task needs these; returns what the interchange must be told first."""
        news = []
        for blob in blobs:
            users = self._users.get(blob.key, 0)
            if users == 0:
                size = self._idle.pop(blob.key, None)
                if size is None:
                    news.append(Define(blob.key, blob.data))
                else:
                    self._idle_bytes -= size
            self._users[blob.key] = users + 1
        return news

    def release(self, blobs: Iterable[Blob]) -> list[Forget]:
        """Note that a task needs these no more; returns what the interchange may be told to forget."""
        for blob in blobs:
            self._users[blob.key] -= 1
            if self._users[blob.key] == 0:
                del self._users[blob.key]
                self._idle[blob.key] = len(blob.data)
                self._idle_bytes += len(blob.data)
        forgotten = []
        while len(self._idle) > _IDLE_BLOBS or self._idle_bytes > _IDLE_BYTES:
            key, size = self._idle.popitem(last=False)
            self._idle_bytes -= size
            forgotten.append(Forget(key))
        return forgotten
