"""A worker: one process that runs one call at a time, in its main thread. It opens no socket of its own, unless a call
uses files that its node does not see (see `hpcpool.staging`).

It reads tasks from the two channels that its manager gave it (see `wire.link`), and ends when they are closed.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import logging
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import context, process
from typing import Any

from hpcpool.processes.limits import limit_open_files
from hpcpool.processes.sessions import MARK
from hpcpool.wire import functions, staged
from hpcpool.wire.failures import forget_frames, pickle_failure
from hpcpool.wire.link import READY, TaskReader, write_outcome
from hpcpool.wire.messages import Outcome, Status, Task
from hpcpool.wire.packing import Packed, Payload, no_segments, pack, unpack
from hpcpool.wire.payload import install_main, pickle_value, unpickle_call
from hpcpool.wire.segment_files import segment_maker
from hpcpool.wire.segments import Opened, SegmentStore
from hpcpool.wire.setup import open_setup

#: ru_maxrss counts bytes on macOS, KiB elsewhere (getrusage(2)).
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024

#: To ask for a call's CPU time costs a microsecond, and its answer is no finer than this (seconds): a shorter call is
#: taken to have computed all the time.
_SHORT_S = 0.0005

_HOST = socket.gethostname()
_NO_KWARGS: dict[str, Any] = {}


def main(argv: list[str]) -> None:
    """Run as a fresh process (start method "spawn"): number, node directory, and the two inherited descriptors."""
    number, node_directory, permits, link = argv
    serve(int(number), node_directory, int(permits), socket.socket(fileno=int(link)))


def mark(node_directory: str, number: int) -> str:
    """Return what a worker and all that its calls start have in their environment."""
    return f"{node_directory}:{number}"


def serve(number: int, node_directory: str, permits: int, link: socket.socket) -> None:
    """Run calls until the manager closes the channel; never returns."""
    faulthandler.enable()
    os.environ[MARK] = mark(node_directory, number)
    try:
        if _prepare(number, node_directory, link):
            _run_calls(permits, link, _store(number, node_directory))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the manager is gone, and whoever watches over it ends us anyway
    _leave()


def _store(number: int, node_directory: str) -> SegmentStore | None:
    """Return where large results go; None where the client has no shared memory with this node."""
    run_directory = os.path.dirname(node_directory)
    if not os.path.isdir(os.path.join(run_directory, "shm", "free")):
        return None
    return SegmentStore(run_directory, segment_maker(node_directory, number))


def _prepare(number: int, node_directory: str, link: socket.socket) -> bool:
    """Take on the client's surroundings, run the initializer and say how that went."""
    functions.blob_source = lambda key: _read_file(os.path.join(node_directory, key.hex()))
    surroundings, initializer = open_setup(_read_file(os.path.join(node_directory, "setup")))
    host, sys_path, cwd, argv, authkey, main_file, start_method, open_files = surroundings
    sys.path[:] = sys_path if host == _HOST else _path_on_another_host(sys_path)
    sys.argv[:] = argv
    if cwd is not None:
        with contextlib.suppress(OSError):  # it was removed, or is not on this host: calls that need it will say so
            os.chdir(cwd)
    staged.client_directory = cwd if staged.is_far() else None
    staged.worker = os.getpid()
    limit_open_files(open_files)
    install_main()
    if main_file is not None:
        vars(sys.modules["__main__"])["__file__"] = main_file
    process.current_process().name = f"HPCPoolWorker-{number}"
    process.current_process().authkey = authkey
    # By this a program knows that it is not the main one. The manager closes the link when it ends, or by ending.
    parent = process._ParentProcess("MainProcess", os.getppid(), link.fileno())  # type: ignore[attr-defined]
    process._parent_process = parent  # type: ignore[attr-defined]
    if start_method is not None:
        context._default_context.set_start_method(start_method, force=True)
    try:
        function, arguments = pickle.loads(initializer)
        if function is not None:
            me = os.getpid()
            try:
                function(*arguments)
            finally:
                _end_child(me)
    except BaseException:
        logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=True)
        _say_ready(link, Status.FAILED, traceback.format_exc().encode())
        return False
    _say_ready(link, Status.OK, b"")
    return True


def _say_ready(link: socket.socket, status: Status, text: bytes) -> None:
    write_outcome(link, Outcome(READY, status, text, host=_HOST, pid=os.getpid()), ())


def _path_on_another_host(client_path: tuple[str, ...]) -> list[str]:
    """Return where to look for modules: where the client does, as far as that is here, then where this Python does."""
    shared = [entry for entry in client_path if os.path.exists(entry)]
    return shared + [entry for entry in sys.path if entry not in shared]


def _run_calls(permits: int, link: socket.socket, store: SegmentStore | None) -> None:
    me = os.getpid()
    used, unaccounted_s = resource.getrusage(resource.RUSAGE_SELF), 0.0
    tasks = TaskReader(permits, link)
    while (received := tasks.next()) is not None:
        started_at, start = time.time(), time.perf_counter()
        outcome, packed = _run(*received, store, me)
        _end_child(me)  # here, one that was forked while the result was pickled
        del received
        outcome.pid, outcome.started_at = me, started_at
        outcome.elapsed_s = elapsed_s = time.perf_counter() - start
        if elapsed_s < _SHORT_S:
            outcome.cpu_s = elapsed_s
            unaccounted_s += elapsed_s
        else:
            now = resource.getrusage(resource.RUSAGE_SELF)
            outcome.cpu_s = max(0.0, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime - unaccounted_s)
            used, unaccounted_s = now, 0.0
        outcome.peak_memory_bytes = used.ru_maxrss * _RSS_UNIT
        _flush()
        write_outcome(link, outcome, packed.frames)
        for segment in packed.segments:
            segment.give_away()
        del packed


def _end_child(me: int) -> None:
    """End a child that a call has forked, and that has run out of it: its parent answers, and makes segments."""
    if os.getpid() != me:
        os._exit(1)


def _run(task: Task, frames: list[Any], store: SegmentStore | None, me: int) -> tuple[Outcome, Packed]:
    """Run one call; whatever happens in it becomes its outcome."""
    opened = Opened(store) if store is not None and task.layout else None
    status, payload = _open_and_call(task, frames, opened, store, me)
    if (stage := staged.current) is not None:
        staged.current = None
        stage.close()
    packed = pack([payload])
    del payload
    outcome = Outcome(task.id, status, packed.data, packed.layout, len(packed.frames), _HOST)
    if opened is not None:
        outcome.keeps_arguments = opened.are_in_use
    if task.keep:
        outcome.is_kept = status == Status.OK and bool(packed.segments)
    return outcome, packed


def _open_and_call(
    task: Task, frames: list[Any], opened: Opened | None, store: SegmentStore | None, me: int
) -> tuple[Status, Payload]:
    try:
        function, args, kwargs = (
            (functions.called_function(task.function, task.blobs), pickle.loads(task.data), _NO_KWARGS)
            if task.function and not task.layout
            else _open(task, frames, opened)
        )
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the call's outcome
        return Status.PAYLOAD_ERROR, pickle_failure(error)
    frames.clear()
    try:
        try:
            result = function(*args, **kwargs)
        finally:
            _end_child(me)
        if staged.current is not None:
            staged.current.bring_back()
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the call's outcome
        if staged.current is not None:
            staged.current.failed(error)
        return Status.FAILED, _failure(error)
    try:
        return Status.OK, pickle_value(result, store=store, is_whole=task.keep)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the call's outcome
        return Status.FAILED, _failure(error)


def _open(task: Task, frames: list[Any], opened: Opened | None) -> tuple[Callable[..., Any], Any, dict[str, Any]]:
    function = functools.partial(functions.called_function, task.function, task.blobs) if task.function else None
    return unpickle_call(unpack(task.data, task.layout, frames, opened or no_segments), function)


def _failure(error: BaseException) -> Payload:
    payload = pickle_failure(error, own_frames=1)
    forget_frames(error)
    return payload


def _flush() -> None:
    """Let what the call has printed be seen now, not when a buffer is full or never."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001, S112 - the call closed it, or put anything in its place: its own affair
            continue


def _leave() -> None:
    """End as an interpreter does: threads, exit handlers, streams; without unwinding into the fork server's stack."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        _flush()
    finally:
        os._exit(0)


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def forget_fork_server() -> None:
    """Drop, in a forked worker, what belongs to the fork server: its signal handlers and wake-up descriptor."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
