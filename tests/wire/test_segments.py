"""Segments: who owns a file, who sees what in it, when it is used again, and that none is left."""

from __future__ import annotations

import ctypes
import errno
import gc
import logging
import mmap
import os
import pickle

import numpy as np
import pytest

from hpcpool.errors import ResultLost
from hpcpool.wire import free_files, mappings, segment_files
from hpcpool.wire import run_directory as run_directories
from hpcpool.wire.packing import Payload, discard, last_told, localised, pack, references, unpack
from hpcpool.wire.payload import pickle_call, pickle_value, unpickle, unpickle_call
from hpcpool.wire.segments import SEGMENT_BYTES, Opened, Segment, SegmentStore

#: Large enough to be mapped.
LARGE = 1024 * 1024


@pytest.fixture
def run_directory(tmp_path):
    directory = tmp_path / "hpcpool-run"
    directory.mkdir()
    lock = run_directories.prepare(str(directory))  # held: pools of other test runs remove what nobody holds
    place = (directory / "shm").resolve()
    yield directory
    os.close(lock)
    run_directories.remove(str(directory))
    assert not place.exists()
    assert not directory.exists()


@pytest.fixture
def store(run_directory):
    return SegmentStore(str(run_directory), "client")


def files(directory, folder="shm"):
    """The segments in a folder, without those that wait to be used again."""
    found = (path for path in (directory / folder).iterdir() if path.is_file())
    return sorted(path.name for path in found if path.name != "lock" and path.name[0] != ".")


def free(directory):
    return list((directory / "shm" / "free").iterdir())


def told(segment):
    """Hand a worker's segment over; return what the client gets."""
    reference = segment.reference
    segment.give_away()
    return reference


def pattern(nbytes):
    return bytearray(os.urandom(1024) * (nbytes // 1024))


# -- content ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [1024, SEGMENT_BYTES, LARGE])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_who_opens_a_segment_gets_its_content_in_memory_of_its_own(kind, nbytes, store, run_directory):
    content = kind(pattern(nbytes))
    segment = store.write(content)
    opened = Opened(store)
    for memory in (segment.view(), opened(segment.reference)):
        assert bytes(memory) == content
        if kind is bytes:
            assert type(memory) is bytes
        else:
            memory[0:1] = bytes([content[0] ^ 1])
    assert bytes(opened(segment.reference)) == content


def test_what_the_caller_changes_later_is_not_seen(store):
    content = bytearray(LARGE)
    segment = store.write(content)
    content[0] = 1
    assert segment.view()[0] == 0


@pytest.mark.parametrize(
    "reference",
    [b"", b"x", b"\0" * 9, b"\0" * 9 + b"/etc/passwd", b"\0" * 9 + b"shm/../x", b"\0" * 9 + b"shm/.warned"],
)
def test_what_is_no_reference_is_refused(reference, run_directory, store):
    with pytest.raises(ValueError, match="not a reference"):
        Opened(store)(reference)
    with pytest.raises(ValueError, match="not a reference"):
        store.adopt(reference)


def test_a_segment_that_is_too_short_is_an_error(store, run_directory):
    segment = store.write(bytearray(SEGMENT_BYTES))
    os.truncate(run_directory / segment.path, 1000)
    with pytest.raises(EOFError, match="shorter"):
        segment.view()


# -- the same memory again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_memory_that_has_not_changed_is_there_once(kind, store, run_directory):
    content = kind(pattern(LARGE))
    first = store.share(content)
    assert store.share(content) is first
    assert store.share(memoryview(content)) is first
    half = store.share(memoryview(content)[: LARGE // 2])
    assert half is not first
    assert len(files(run_directory)) == 2
    del first, half
    assert len(files(run_directory)) == 0


@pytest.mark.parametrize("position", [0, 1, LARGE // 2, LARGE - 1])
def test_memory_that_has_changed_anywhere_is_shared_anew(position, store):
    content = pattern(LARGE)
    first = store.share(content)
    assert store.share(content) is first
    content[position] ^= 1
    second = store.share(content)
    assert second is not first
    assert bytes(second.view()) == content
    assert store.share(content) is second
    content[position] ^= 1
    assert bytes(first.view()) == content


def test_read_only_memory_of_what_can_change_is_looked_at(store):
    content = pattern(LARGE)
    view = memoryview(content).toreadonly()
    first = store.share(view)
    content[7] ^= 1
    assert store.share(view) is not first


def test_memory_without_an_owner_is_looked_at(store):
    content = pattern(LARGE)
    make = ctypes.pythonapi.PyMemoryView_FromMemory
    make.restype = ctypes.py_object
    where = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(content)))
    view = make(where, ctypes.c_ssize_t(LARGE), 0x200)
    assert view.obj is None
    first = store.share(view)
    assert store.share(view) is first
    content[3] ^= 1
    assert store.share(view) is not first


def test_bytes_and_an_array_of_the_same_memory_stay_what_they_are(store):
    content = bytes(pattern(LARGE))
    array = np.frombuffer(content, np.uint8)
    held = [pickle_call(len, (value,), {}, store=store).payload for value in (array, content, array)]
    opened = [unpickle(payload)[1][0] for payload in held]
    assert [type(value) for value in opened] == [np.ndarray, bytes, np.ndarray]
    assert opened[1] == content
    assert (opened[2] == array).all()


def test_other_memory_at_an_old_address_is_shared_anew(store):
    """What is freed comes back: the address says nothing about the content."""
    content = pattern(LARGE)
    first = store.share(content)
    content[:] = bytes(LARGE)
    assert bytes(store.share(content).view()) == bytes(LARGE)
    assert bytes(first.view()) != bytes(LARGE)


def test_memory_that_was_shared_with_an_ended_pool_is_shared_anew(store, tmp_path):
    content = pattern(LARGE)
    segment = store.share(content)
    store.outlive_pool()
    assert store.share(content) is not segment
    assert bytes(segment.view()) == content


def test_what_is_pickled_again_and_again_is_there_once(store, run_directory):
    content = pattern(LARGE)
    payloads = [pickle_call(len, (Holder(content), n), {}, store=store).payload for n in range(20)]
    assert len(files(run_directory)) == 1
    value = bytes(content)
    payloads += [pickle_call(len, (value, n), {}, store=store).payload for n in range(20)]
    assert len(files(run_directory)) == 2
    payloads.clear()
    assert len(files(run_directory)) == 0


# -- whose it is, and when it goes ------------------------------------------------------------------------------------


def test_a_segment_goes_with_its_object_and_its_file_is_used_again(store, run_directory):
    segment = store.write(bytearray(LARGE))
    inode = os.stat(run_directory / segment.path).st_ino
    del segment
    assert files(run_directory) == []
    assert [path.stat().st_ino for path in free(run_directory)] == [inode]
    for nbytes in (LARGE - 1024, LARGE // 2 + 1024, LARGE):
        content = pattern(nbytes)
        again = store.write(content)
        assert os.stat(run_directory / again.path).st_ino == inode
        assert again.view() == content
        assert free(run_directory) == []
        del again


def test_a_file_of_another_maker_is_used_again(store, run_directory):
    segment = SegmentStore(str(run_directory), "node-a.1.7").write(bytearray(LARGE))
    inode = os.stat(run_directory / segment.path).st_ino
    del segment
    assert os.stat(run_directory / store.write(pattern(LARGE)).path).st_ino == inode


def test_a_file_that_somebody_else_has_taken_is_looked_for_no_more(store, run_directory):
    store.write(bytearray(LARGE))
    content = pattern(LARGE)
    taken = SegmentStore(str(run_directory), "node-a.1.7").write(content)
    own = store.write(bytearray(LARGE))
    assert taken.view() == content
    assert files(run_directory) == ["client.2", "node-a.1.7.1"]
    del own


def test_a_file_that_is_interrupted_while_it_is_used_again_is_removed(store, run_directory, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    store.write(bytearray(LARGE))
    monkeypatch.setattr(mappings, "copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write(pattern(LARGE))
    assert files(run_directory) == free(run_directory) == []


def test_where_nothing_can_be_mapped_files_are_used_again_all_the_same(store, run_directory, monkeypatch):
    def refused(*arguments):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    store.write(bytearray(LARGE))
    monkeypatch.setattr(mappings, "_map_to_write", refused)
    content = pattern(LARGE)
    assert store.write(content).view() == content
    assert len(free(run_directory)) == 1


def test_a_file_on_a_disk_is_not_written_through_a_mapping(tmp_path, monkeypatch):
    (tmp_path / "shm" / "free").mkdir(parents=True)
    store = SegmentStore(str(tmp_path), "client")
    monkeypatch.setattr(mappings, "_map_to_write", None)
    inodes = set()
    for _ in range(2):
        content = pattern(LARGE)
        segment = store.write(content)
        inodes.add(os.stat(tmp_path / segment.path).st_ino)
        assert segment.view() == content
        del segment
    assert len(inodes) == 1, "it was used again"


def test_a_file_of_another_size_is_not_used_again(store, run_directory):
    store.write(bytearray(LARGE))
    segment = store.write(bytearray(4 * LARGE))
    assert len(free(run_directory)) == 1
    assert len(segment.view()) == 4 * LARGE


def test_a_segment_stays_as_long_as_its_memory_is_looked_at(store, run_directory):
    content = pattern(LARGE)
    segment = store.write(content)
    view = memoryview(segment.view())[1000:]
    del segment
    gc.collect()
    assert free(run_directory) == []
    other = store.write(bytearray(LARGE))
    assert view == content[1000:]
    del view
    assert len(free(run_directory)) == 1
    del other


def test_a_spoiled_segment_is_not_used_again(store, run_directory):
    segment = store.write(bytearray(LARGE))
    segment.spoil()
    del segment
    assert files(run_directory) == []
    assert free(run_directory) == []


def test_what_a_forked_child_may_look_at_is_not_used_again_and_the_child_removes_nothing(store, run_directory):
    segment = store.write(bytearray(LARGE))
    kept = store.write(bytearray(LARGE))
    pid = os.fork()
    if pid == 0:
        del segment, kept
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(files(run_directory)) == 2
    del segment
    assert len(files(run_directory)) == 1
    assert free(run_directory) == []
    store.write(bytearray(LARGE))
    assert len(free(run_directory)) == 1, "what was made after the fork is nobody else's"


class Cycle:
    def __init__(self, held):
        self.held = held
        self.itself = self


def test_memory_that_something_in_a_cycle_brings_back_to_life_is_in_use(store):
    class Reborn(Cycle):
        def __del__(self):
            again.append(self.held)

    again: list[memoryview] = []
    segment = store.write(bytearray(LARGE))
    opened = Opened(store)
    Reborn(opened(segment.reference))
    gc.collect()
    assert again
    assert opened.are_in_use


def test_a_segment_that_goes_in_this_moment_is_not_shared_again(store, monkeypatch):
    """Its file is about to be given away, and other threads run."""
    content, shared = bytes(LARGE), []

    def rename(old, new):
        if not shared:
            shared.append(store.share(content))
        real(old, new)

    real = os.rename
    segment = store.share(content)
    monkeypatch.setattr(os, "rename", rename)
    del segment
    assert shared[0].view() == content


def test_what_goes_in_a_cycle_is_not_used_again(store, run_directory):
    """Its other objects may still look at it."""
    Cycle(store.write(bytearray(LARGE)))
    gc.collect()
    assert files(run_directory) == free(run_directory) == []


def test_memory_that_is_put_aside_in_a_cycle(store):
    """The collector finds nobody who looks at it, so late that nobody has waited for that."""
    segment = store.write(bytearray(LARGE))
    opened = Opened(store)
    Cycle(opened(segment.reference))
    assert opened.are_in_use
    gc.collect()
    assert opened.are_in_use


@pytest.mark.parametrize("value", [bytes(LARGE), bytearray(LARGE), "x" * LARGE, Cycle(np.zeros(LARGE))])
def test_what_a_signals_handler_raises_while_something_is_shared_is_passed_on(value, store, monkeypatch, caplog):
    def interrupted(*arguments):
        raise TimeoutError("alarm")

    monkeypatch.setattr(store, "write", interrupted)
    with pytest.raises(TimeoutError, match="alarm"):
        pickle_call(len, (value,), {}, store=store)
    assert not caplog.records


def test_only_so_much_waits_to_be_used_again(store, run_directory, monkeypatch):
    monkeypatch.setattr(free_files, "_MOST_BYTES", 4 * LARGE)
    held = [store.write(bytearray(LARGE)) for _ in range(6)]
    del held
    assert len(free(run_directory)) == 4
    assert files(run_directory) == []


@pytest.mark.skipif(not hasattr(mmap, "MADV_REMOVE"), reason="this system keeps memory as long as it is mapped")
def test_what_is_removed_while_nobody_looks_takes_no_memory_whoever_has_it_mapped(store, run_directory, monkeypatch):
    monkeypatch.setattr(free_files, "_MOST_BYTES", 0)
    segment = store.write(bytearray(LARGE))
    with open(run_directory / segment.path, "r+b") as file, mmap.mmap(file.fileno(), LARGE) as memory:
        assert os.fstat(file.fileno()).st_blocks * 512 == LARGE
        del segment
        assert os.fstat(file.fileno()).st_nlink == os.fstat(file.fileno()).st_blocks == 0
        assert memory[:] == bytes(LARGE), "and it is no error to look at it"


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ((os, "open"), OSError(errno.EMFILE, "Too many open files")),
        ((mmap, "mmap"), OSError(errno.ENOMEM, "Cannot allocate memory")),
        ((mmap, "mmap"), ValueError("cannot mmap an empty file")),
    ],
)
def test_what_cannot_be_emptied_is_removed_all_the_same(where, error, store, run_directory, monkeypatch):
    def refuse(*arguments):
        raise error

    monkeypatch.setattr(free_files, "_MOST_BYTES", 0)
    segment = store.write(bytearray(LARGE))
    monkeypatch.setattr(*where, refuse)
    del segment
    monkeypatch.undo()
    assert files(run_directory) == free(run_directory) == []


def test_a_call_that_puts_an_argument_aside_is_seen(store, run_directory):
    segment = store.write(bytearray(LARGE))
    opened = Opened(store)
    aside = memoryview(opened(segment.reference))[5:6]
    assert opened.are_in_use
    del aside
    assert not opened.are_in_use


def test_a_fork_during_a_call_counts_as_putting_its_arguments_aside(store, run_directory):
    segment = store.write(bytearray(LARGE))
    opened = Opened(store)
    memory = opened(segment.reference)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    del memory
    assert opened.are_in_use


def test_a_result_belongs_to_whom_it_is_told(run_directory, store):
    worker = SegmentStore(str(run_directory), "node-a.1.7")
    content = pattern(LARGE)
    segment = worker.write(content)
    reference = told(segment)
    del segment
    adopted = store.adopt(reference)
    assert bytes(adopted.view()) == content
    del adopted
    assert files(run_directory) == []
    assert len(free(run_directory)) == 1


def test_a_result_that_is_not_told_goes_with_its_object(run_directory):
    worker = SegmentStore(str(run_directory), "node-a.1.7")
    worker.write(bytearray(LARGE))
    assert files(run_directory) == []


def test_what_a_dead_worker_has_told_nobody_of_is_swept(run_directory):
    worker = SegmentStore(str(run_directory), "node-a.1.7")
    other = SegmentStore(str(run_directory), "node-a.1.70")
    makers = (worker,) * 10 + (other,)
    known, *untold, others = (maker.write(bytearray(LARGE)) for maker in makers)
    packed = pack([Payload(b"pickle", [known, b"small"])])
    told(known)
    segment_files.sweep_untold(str(run_directory), "node-a.1.7", last_told(packed.data, packed.layout))
    assert files(run_directory) == ["node-a.1.7.1", "node-a.1.70.1"]
    del untold, others


def test_of_what_was_told_the_latest_counts(run_directory):
    worker = SegmentStore(str(run_directory), "node-a.1.7")
    segments = [worker.write(bytearray(LARGE)) for _ in range(11)]
    packed = pack([Payload(b"pickle", [segments[9]]), Payload(b"pickle", [segments[8]])])
    assert last_told(packed.data, packed.layout) == 10
    assert last_told(b"pickle", (6,)) == 0


def test_what_has_no_number_was_not_told(run_directory):
    worker = SegmentStore(str(run_directory), "node-a.1.7")
    worker.write(bytearray(LARGE))
    (run_directory / "shm" / "node-a.1.7.20-client.5").touch()  # on its way to be removed
    segment_files.sweep_untold(str(run_directory), "node-a.1.7", 3)
    assert files(run_directory) == []


def test_of_a_lost_node_stays_what_the_client_has(run_directory, store):
    worker = SegmentStore(str(run_directory), "node-a.1.7")
    made = [worker.write(bytearray(LARGE)) for _ in range(3)]
    references_to_all = [told(segment) for segment in made]
    adopted = store.adopt(references_to_all[0])
    store.sweep("node-a.")
    assert files(run_directory) == ["node-a.1.7.1"]
    del adopted


def test_what_nobody_will_get_is_discarded(run_directory):
    worker = SegmentStore(str(run_directory), "node-a.1.7")
    packed = pack([Payload(b"pickle", [worker.write(bytearray(LARGE)), b"small"])])
    for segment in packed.segments:
        segment.give_away()
    assert files(run_directory) == ["node-a.1.7.1"]
    discard(str(run_directory), packed.data, packed.layout)
    assert files(run_directory) == []


# -- the end of the pool ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [SEGMENT_BYTES, LARGE])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_segment_that_is_held_outlives_its_pool(kind, nbytes, tmp_path):
    directory = tmp_path / "hpcpool-run"
    directory.mkdir()
    lock = run_directories.prepare(str(directory))
    store = SegmentStore(str(directory), "client")
    content = kind(pattern(nbytes))
    segment = store.write(content)
    store.outlive_pool()
    os.close(lock)
    run_directories.remove(str(directory))
    assert not segment.path
    first, second = segment.view(), segment.view(is_last=True)
    if kind is bytearray:
        first[0] ^= 1
        assert bytes(first) != content
    assert bytes(second) == content
    del segment
    assert not directory.exists()


def test_a_segment_of_an_ended_pool_goes_along_in_another(store, tmp_path):
    other_directory = tmp_path / "hpcpool-other"
    other_directory.mkdir()
    lock = run_directories.prepare(str(other_directory))
    other = SegmentStore(str(other_directory), "client")
    content = pattern(LARGE)
    segment = other.write(content)
    for _ in range(2):
        there = localised(Payload(b"pickle", [segment]), store)
        assert there.data == b"pickle"
        (local,) = there.buffers
        assert local.store is store
        assert bytes(local.view()) == content
        assert localised(Payload(b"pickle", [local]), store).buffers == [local]
        other.outlive_pool()
        run_directories.remove(str(other_directory))
    os.close(lock)


# -- no room ----------------------------------------------------------------------------------------------------------


def test_what_shared_memory_has_no_room_for_goes_to_disk_with_one_warning(store, run_directory, monkeypatch, caplog):
    monkeypatch.setattr(segment_files, "_RESERVE", 2.0)
    content = pattern(LARGE)
    with caplog.at_level(logging.WARNING, "hpcpool"):
        spilled = [store.write(content), SegmentStore(str(run_directory), "other").write(content)]
    assert files(run_directory, "spill") == ["client.1", "other.1"]
    assert [bytes(segment.view()) for segment in spilled] == [content, content]
    assert len(caplog.records) == 1
    assert "is full" in caplog.text
    spilled.clear()
    assert files(run_directory, "spill") == []
    assert free(run_directory) == []


def test_what_waits_to_be_used_again_makes_room_first(store, run_directory, monkeypatch):
    store.write(bytearray(LARGE))
    assert len(free(run_directory)) == 1
    rooms = iter([False, True])
    monkeypatch.setattr(free_files, "leaves_reserve", lambda directory, nbytes: next(rooms))
    segment = store.write(bytearray(4 * LARGE))
    assert free(run_directory) == []
    assert segment.path.startswith("shm/")


def test_a_file_system_that_fills_up_while_it_is_written_is_seen(store, run_directory, monkeypatch):
    real, calls = os.pwrite, []

    def pwrite(descriptor, data, position):
        calls.append(position)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    segment = store.write(pattern(LARGE))
    assert segment.path.startswith("spill/")
    assert files(run_directory) == []


def test_a_tmpfs_without_a_limit_has_room(store, monkeypatch):
    room = os.statvfs("/")
    unlimited = os.statvfs_result([0 if index in (2, 3, 4) else value for index, value in enumerate(room)])
    monkeypatch.setattr(os, "statvfs", lambda path: unlimited)
    assert store.write(bytearray(LARGE)).path.startswith("shm/")


def test_what_is_shared_when_the_pool_has_ended_travels_along_without_a_word(store, run_directory, caplog):
    run_directories.remove(str(run_directory))
    assert unpickle(pickle_value([pattern(LARGE)], store=store)) is not None
    assert not caplog.records


@pytest.mark.parametrize("is_captured", [False, True])
def test_where_nothing_can_be_written_all_travels_along(is_captured, store, run_directory, monkeypatch, caplog):
    def pwrite(descriptor, data, position):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    value = [bytes(LARGE), pattern(LARGE), "x" * LARGE]
    for _ in range(2):
        payload = pickle_value([Holder(value[1]), value[0], value[2]], is_captured=is_captured, store=store)
        packed = pack([payload])
        assert not packed.segments
        arrived = unpickle(unpack(packed.data, packed.layout, packed.frames)[0])
        assert [bytes(arrived[0][0]), *arrived[1:]] == [value[1], value[0], value[2]]
    assert files(run_directory) == files(run_directory, "spill") == []
    assert [record.message for record in caplog.records if "No space" in record.message] == [
        "large arguments and results are copied from process to process: [Errno 28] No space left on device"
    ]


@pytest.mark.parametrize("data", [b"no reference", b""])
def test_a_malformed_outcome_that_is_discarded_does_no_harm(data, run_directory, caplog):
    discard(str(run_directory), data, (1, -2 - len(data)))
    discard(str(run_directory), data, (5, 1))
    assert last_told(data, (1, -2 - len(data))) == 0
    assert caplog.text.count("malformed") == 3


def test_a_folder_that_cannot_be_read_now_is_no_error(store, run_directory, monkeypatch):
    def listdir(path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "listdir", listdir)
    segment = store.write(bytearray(LARGE))
    store.sweep("client.")
    del segment
    monkeypatch.undo()
    assert files(run_directory) == []


# -- payloads ---------------------------------------------------------------------------------------------------------


class Holder:
    def __init__(self, *parts):
        self.parts = [pickle.PickleBuffer(part) for part in parts]

    def __reduce_ex__(self, protocol):
        return list, (self.parts,)


def test_large_buffers_and_large_pickles_travel_as_references(store, run_directory):
    large, small = pattern(LARGE), pattern(20 * 1024)
    text = "x" * SEGMENT_BYTES
    call = pickle_call(len, (Holder(large, small), bytes(large), text), {}, store=store)
    packed = pack([call.payload])
    assert len(packed.segments) == 3
    assert [bytes(frame) for frame in packed.frames] == [small]
    assert len(packed.data) < 1000
    assert len(references(packed.data, packed.layout)) == 3
    opened = unpack(packed.data, packed.layout, packed.frames, Opened(store))
    function, args, _ = unpickle_call(opened)
    assert function is len
    assert [bytes(part) for part in args[0]] == [large, small]
    assert args[1] == large
    assert type(args[1]) is bytes
    assert args[2] == text


def test_a_payload_with_segments_can_be_opened_again_and_again(store):
    payload = pickle_value([Holder(pattern(LARGE))], store=store)
    assert any(type(buffer) is Segment for buffer in payload.buffers)
    first, second = unpickle(payload), unpickle(payload)
    first[0][0][0:1] = bytes([second[0][0][0] ^ 1])
    assert bytes(first[0][0]) != bytes(second[0][0])


def test_bytes_that_are_no_argument_themselves_arrive_as_well(store):
    value = [pattern(LARGE), bytes(LARGE), {"key": bytes(SEGMENT_BYTES)}]
    assert unpickle(pickle_value(value, store=store)) == value


# -- what stays at the node that made it


class Shelf:
    """Knows of one kept segment; `content` is what comes, None: it never will."""

    def __init__(self, content, folder="shm"):
        self.content, self.folder, self.gone = content, folder, []

    def bring(self, segment, until):
        if self.content is None:
            segment.loss = "kept at its node, and lost with it"
            return
        path = os.path.join(segment.store.run_directory, self.folder, os.path.basename(segment.path))
        with open(path, "wb") as file:
            file.write(self.content)
        segment.has_come()

    def let_go(self, path):
        self.gone.append(path)


def reference_of(tmp_path):
    """A reference to bytes at another host."""
    (tmp_path / "hpcpool-node").mkdir()
    lock = run_directories.prepare(str(tmp_path / "hpcpool-node"))
    reference = SegmentStore(str(tmp_path / "hpcpool-node"), "node-a-0+x.1").write(b"x" * SEGMENT_BYTES).reference
    os.close(lock)
    run_directories.remove(str(tmp_path / "hpcpool-node"))
    return reference


@pytest.mark.parametrize("folder", ["shm", "spill"])
def test_a_kept_segment_comes_when_it_is_looked_at_and_both_files_go_with_it(folder, store, run_directory, tmp_path):
    shelf = Shelf(b"x" * SEGMENT_BYTES, folder)
    segment = store.adopt_kept(reference_of(tmp_path), shelf)
    assert (files(run_directory), segment.is_away) == ([], True)
    assert segment.view() == b"x" * SEGMENT_BYTES
    store.sweep("node-a-0+")
    assert files(run_directory, folder) == ["node-a-0+x.1.1"]
    assert pack([Payload(segment)]).segments == [segment]
    path = segment.path
    del segment
    gc.collect()
    assert (files(run_directory, folder), free(run_directory), shelf.gone) == ([], [], [path])


def test_a_kept_segment_that_is_lost_says_so_each_time(store, tmp_path, caplog):
    segment = store.adopt_kept(reference_of(tmp_path), Shelf(None))
    for _ in range(2):
        with pytest.raises(ResultLost, match="a result was kept at its node, and lost with it"):
            segment.view()
    store.outlive_pool()
    assert not caplog.records


def test_a_kept_segment_that_has_come_outlives_its_pool(store, tmp_path):
    segment = store.adopt_kept(reference_of(tmp_path), Shelf(b"x" * SEGMENT_BYTES))
    segment.bring()
    store.outlive_pool()
    assert segment.view() == b"x" * SEGMENT_BYTES


def test_of_a_result_that_is_to_stay_all_is_in_segments(store):
    parts = [np.full(50_000, n, np.uint8) for n in range(8)]
    packed = pack([pickle_value(parts, store=store, is_whole=True)])
    assert (len(packed.segments), list(packed.frames)) == (1, [])
    small = pack([pickle_value(parts[:2], store=store, is_whole=True)])
    assert list(small.segments) == []
    opened = unpickle(pickle_value([*parts, np.ones(LARGE, np.uint8)], store=store, is_whole=True))
    assert [int(part[0]) for part in opened] == [*range(8), 1]
