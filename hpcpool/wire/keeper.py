"""Who knows of the segments that stay at the nodes that made them, as a segment of the client sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hpcpool.wire.segments import Segment


class Keeper(Protocol):
    """Fetches the content of segments, and has nodes let go of them."""

    def bring(self, segment: Segment, until: float | None) -> None:
        """Wait until a segment's content is on this host, or can never be; see `Segment.bring`."""

    def let_go(self, path: str) -> None:
        """Nobody needs a segment any more; called from any thread, even by the garbage collector."""
