"""Classes by value on both sides: whose state is the true one, and what need not be pickled or opened again.

A class that went out by value and comes back is the original class, untouched. Where it came to, its attributes are set
anew only if the user has changed any since (another token): what calls have set there stays.

In a payload a class is a call of `open_class` with the pickle of the class, which is made once and kept while a
`Fingerprint` holds. Who has opened that very pickle before, and has been given nothing else by value since, does not
open it again. Here is no pickler: how a class is pickled in full is in `by_value`.
"""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from cloudpickle import cloudpickle as _private

from hpcpool.wire.fingerprint import Fingerprint

#: Bytes. A class that brings more along is pickled with each payload as any other object is: it shares what it has in
#: common with the rest, and no second copy of it is kept.
LARGEST_PACK = 128 * 1024


class Pack(NamedTuple):
    """A class, pickled with all that goes by value with it."""

    fingerprint: Fingerprint
    #: None: it is too large to be kept, or the class may change unseen.
    data: bytes | None
    #: The ids of all classes in it, by which cloudpickle knows them in all processes; the first is that of the class.
    ids: list[str]


#: Classes that this process has sent out by value: theirs is the true state.
_sent: weakref.WeakSet[type] = weakref.WeakSet()
#: Classes that have come by value, and the token of the state that they were given last: the true one is elsewhere.
_received: weakref.WeakKeyDictionary[type, bytes] = weakref.WeakKeyDictionary()
#: The packs of classes as they are here.
_packs: weakref.WeakKeyDictionary[type, Pack] = weakref.WeakKeyDictionary()
#: The pack that each class was opened from last, and how many placements there had been.
_opened: weakref.WeakKeyDictionary[type, tuple[bytes, int]] = weakref.WeakKeyDictionary()


class Placements:
    """How often a global or the state of a class was put in place in this process, having come by value."""

    count: ClassVar[int] = 0


def note_sent(cls: type) -> None:
    """Remember that a class goes out from here, where its true state is unless it came from elsewhere."""
    if cls not in _received:
        _sent.add(cls)


def is_original(cls: type) -> bool:
    """Say whether this is the process where the class's true state is."""
    return cls in _sent


def put_in_place(cls: type, token: bytes, state: Any) -> None:
    """Give a class that came by value its state, unless it has been given this one last."""
    if _received.get(cls) != token:
        _received[cls] = token
        Placements.count += 1
        _private._class_setstate(cls, state)


def pack_of(cls: type, pickle_in_full: Callable[[type], tuple[bytes, list[type]]]) -> Pack | None:
    """Return the pack of a class that goes by value, made anew if anything of it has changed.

    Args:
        pickle_in_full: returns the pickle of a class and of a list of all classes in it, and that list.

    Returns:
        None if the class may change unseen, or is too large.
    """
    pack = _packs.get(cls)
    if pack is None or not pack.fingerprint.still_holds():
        pack = _packs[cls] = _make_pack(cls, pickle_in_full)
    return pack if pack.data is not None else None


def _make_pack(cls: type, pickle_in_full: Callable[[type], tuple[bytes, list[type]]]) -> Pack:
    fingerprint = Fingerprint(cls)  # before the pickle: what another thread changes meanwhile is seen next time
    if not fingerprint.stable:
        return Pack(fingerprint, None, [])
    data, classes = pickle_in_full(cls)
    ids = [_private._get_or_create_tracker_id(each) for each in classes]
    return Pack(fingerprint, data if len(data) <= LARGEST_PACK else None, ids)


def open_class(key: str, root_key: str, data: bytes) -> type:
    """Return the class of this id, which is in the pack of another (or its own); called by pickle."""
    cls, root = _find(key), _find(root_key)
    if cls is not None and (is_original(cls) or (root is not None and _opened.get(root) == (data, Placements.count))):
        return cls
    placements = Placements.count  # not that of afterwards: another thread may put something else in place meanwhile
    classes: list[type]
    root, classes = pickle.loads(data)
    _opened[root] = (data, placements)
    return next(each for each in classes if _private._DYNAMIC_CLASS_TRACKER_BY_CLASS[each] == key)


def _find(key: str) -> type | None:
    return _private._DYNAMIC_CLASS_TRACKER_BY_ID.get(key)  # type: ignore[no-any-return]


__all__ = ["Pack", "Placements", "is_original", "note_sent", "open_class", "pack_of", "put_in_place"]
