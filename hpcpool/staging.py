"""Files of the client for calls on other hosts: found there, brought there, or made there and brought back.

This runs in the workers. A connection to the interchange, which sees the client's files, is made when there is a
question, and kept for as long as the call runs or the interchange lets it be. What a node keeps of files is the affair
of `staged_copies`; what a call finds where is decided by `core.staging`.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable
from typing import TypeVar

from hpcpool.core.staging import Identity, Where, where
from hpcpool.errors import FileMismatch
from hpcpool.file import File, state_of
from hpcpool.file_cache import check
from hpcpool.processes.file_port import read_word
from hpcpool.staged_copies import Copies
from hpcpool.wire import staged
from hpcpool.wire.file_transfer import (
    Answer,
    Content,
    Differs,
    Done,
    End,
    FileAbsent,
    FileLine,
    FileSeen,
    FolderSeen,
    GetFile,
    PutFile,
    Ready,
    Refusal,
    Request,
    SeeFile,
    SeeFolder,
    SeePlace,
)
from hpcpool.wire.messages import MessageError

T = TypeVar("T")

#: Folders of the client that this process has asked about, and whether the node sees the same ones.
_is_shared: dict[str, bool] = {}


def path_of(file: File) -> str:
    """Return where a call finds a file of the client, or makes it; good until the call is over.

    Raises:
        FileMismatch: it is not the file that it must be.
        OSError: it cannot be brought here, or made on the client's host.
    """
    return _stage().path_of(file)


def path_to_change(file: File) -> str:
    """Return where a call finds a file of the client that it is going to change; raises as `path_of`."""
    return _stage().path_to_change(file)


def client_path(path: str) -> str:
    """Return what the client calls a file that a call has been given the path of."""
    stage = staged.current
    return stage.client_path(path) if isinstance(stage, CallStage) else path


def _stage() -> CallStage:
    stage = staged.current
    # A process that a call has forked must not go on with the connection of its parent.
    if not isinstance(stage, CallStage) or stage.pid != os.getpid():
        parent = stage if isinstance(stage, CallStage) else None
        stage = staged.current = CallStage(os.environ[staged.FOLDER_VARIABLE], parent)
    return stage


class CallStage:
    """The files of one call.

    Args:
        run_directory: of the node.
        parent: of the process that has forked this one: the paths that it was given are good here, too.
    """

    def __init__(self, run_directory: str, parent: CallStage | None = None) -> None:
        self.pid = os.getpid()
        self._folder = os.path.join(run_directory, "files")
        self._port = read_word(run_directory)
        self._copies = Copies(os.path.join(self._folder, "kept"))
        #: Held by the thread of the call that asks.
        self._lock = threading.Lock()
        self._line: FileLine | None = None
        #: Where each file is, by its path on the client's host.
        self._inputs: dict[str, str] = {} if parent is None else dict(parent._inputs)
        self._outputs: dict[str, str] = {} if parent is None else dict(parent._outputs)
        #: Those of the outputs that are to be brought back.
        self._made: dict[str, File] = {}
        self._numbers = itertools.count(1)
        #: Locks of the copies that the call uses.
        self._held: list[int] = []

    def path_of(self, file: File) -> str:
        """Return where a file is: the same throughout the call."""
        with self._lock:
            path = self._outputs.get(file.source)
            if path is None and not file.output:
                path = self._inputs.get(file.source)
            return self._find(file) if path is None else path

    def path_to_change(self, file: File) -> str:
        """Return where a file is that is an input and an output: of a copy, one of the call's own."""
        source, target = self.path_of(file), self.path_of(file._as_output())
        if target in self._made and target != source:
            shutil.copyfile(source, target)
        return target

    def client_path(self, path: str) -> str:
        """Return the path of a file on the client's host."""
        file = self._made.get(path)
        return path if file is None else file.source

    def bring_back(self) -> None:
        """Bring to the client what the call has made, as far as it is there."""
        for path, file in self._made.items():
            if os.path.lexists(path):
                self._bring_back(path, file)

    def failed(self, error: BaseException) -> None:
        """Tell the user what a path of this node is called at home: a file that is not there, most often."""
        path = error.filename if isinstance(error, OSError) else None
        if path in self._made:
            source = self._made[path].source
            error.add_note(
                f"{path} on {_host()} stands for {source} of the client's host, which was not there when the call "
                "asked for it, or is an output; it can be read when a call has made it"
            )

    def close(self) -> None:
        """Let go of the connection, the copies, and what was made."""
        self._hang_up()
        for lock in self._held:
            os.close(lock)
        self._held.clear()
        if self._made and (made := staged.made_folder(self.pid)) is not None:
            shutil.rmtree(made, ignore_errors=True)

    # -- finding --

    def _find(self, file: File) -> str:
        here = None if file.output else state_of(file.source)
        if not file.output and os.path.isdir(file.source):
            return file.source
        there = None if file.output else self._see(file, here)
        match where(here, there, is_output=file.output):
            case Where.HERE:
                return self._found_here(file)
            case Where.COPY:
                assert there is not None
                path, lock = self._copy(file, there)
                self._held.append(lock)
                self._inputs[file.source] = path
                return path
            case Where.MADE:
                path = self._outputs[file.source] = self._place_for(file)
                return path

    def _found_here(self, file: File) -> str:
        check(file.source, file.source, file.size, file.sha256)
        self._inputs[file.source] = file.source
        return file.source

    def _see(self, file: File, here: Identity | None) -> Identity | None:
        answer = self._ask(SeeFile(file.source, file._seen))
        if isinstance(answer, Differs) and here is not None:
            # A call that sees the client's file, as we do, may have changed it: nobody has told the interchange.
            now = self._ask(SeeFile(file.source))
            if isinstance(now, FileSeen) and now.identity == here:
                return here
        if isinstance(answer, FileSeen):
            return answer.identity
        if isinstance(answer, FileAbsent):
            return None
        raise _error_of(answer)

    # -- bringing --

    def _copy(self, file: File, there: Identity) -> tuple[str, int]:
        if file.size is not None and there[0] != file.size:
            raise FileMismatch(f"{file.source} has {there[0]} bytes on the client's host, and must have {file.size}")
        # A copy whose hash must be a certain one is not that of somebody for whom any does.
        key = hashlib.blake2b(repr((file.source, there, file.sha256)).encode(), digest_size=16).hexdigest()

        def bring(descriptor: int) -> int:
            return self._talk(lambda line: self._bring(line, file, there, descriptor))

        return self._copies.hold(key, os.path.basename(file.source), there[0], bring)

    def _bring(self, line: FileLine, file: File, there: Identity, descriptor: int) -> int:
        """Have the content of a file sent, and check it; return its permissions."""
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        line.say(GetFile(file.source, there))
        ready = _hear(line)
        if not isinstance(ready, Ready):
            raise _error_of(ready)
        content = line.receive_content(descriptor)
        end = _hear(line)
        if not isinstance(end, End):
            raise _error_of(end)
        self._check(file, there, content, end.digest)
        if file.sha256 not in (None, found := content.digest.hex()):
            raise FileMismatch(f"{file.source} has the SHA-256 hash {found}, and must have {file.sha256}")
        os.utime(descriptor, ns=(there[1], there[1]))
        return 0o500 if ready.is_executable else 0o400

    def _check(self, file: File, there: Identity, content: Content, digest: bytes) -> None:
        if content.trouble is not None:
            raise OSError(
                content.trouble.errno,
                f"{file.source} ({there[0]} bytes) cannot be kept on {_host()}: {content.trouble.strerror}, in "
                f"{self._folder}; name a folder with more room by TMPDIR in `env` of the node pool",
            )
        if (content.size, content.digest) != (there[0], digest):
            raise FileMismatch(f"{file.source} has come to {_host()} with other content than it was sent with")

    # -- making --

    def _place_for(self, file: File) -> str:
        """Return where a call makes a file: in its own place if the client sees that, else where we take it from."""
        folder, name = os.path.split(file.source)
        if folder not in _is_shared:
            _is_shared[folder] = self._has_same(folder)
        if _is_shared[folder]:
            return file.source
        # Now, not when it is made: hours of work may be in between.
        if not isinstance(answer := self._ask(SeePlace(file.source)), Ready):
            raise _error_of(answer)
        made = staged.made_folder(self.pid)
        if self.pid != staged.worker or made is None:
            why = f"{file.source} can be made on {_host()} only if the call's own process has asked for its path"
            raise OSError(errno.EPERM, why)
        place = os.path.join(made, str(next(self._numbers)))
        os.makedirs(place, mode=0o700)
        path = os.path.join(place, name)
        self._made[path] = file
        return path

    def _has_same(self, folder: str) -> bool:
        """Say whether a folder is the client's own: what is made here is seen there."""
        # First without a probe, which stays if we are killed: to be served for the first time may take long.
        self._asked_of(folder, "")
        try:
            descriptor, probe = tempfile.mkstemp(prefix=".hpcpool-", dir=folder)
        except OSError:  # it is not here, or not for us: whatever it is there, it is another one for this call
            return False
        try:
            return self._asked_of(folder, os.path.basename(probe))
        finally:
            os.close(descriptor)
            os.remove(probe)

    def _asked_of(self, folder: str, probe: str) -> bool:
        answer = self._ask(SeeFolder(folder, probe))
        if isinstance(answer, FolderSeen):
            return answer.has_probe
        raise _error_of(answer)

    def _bring_back(self, path: str, file: File) -> None:
        check(path, file.source, file.size, file.sha256)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                why = f"{file.source} was made on {_host()} as a folder or a pipe, and only files are brought back"
                raise OSError(errno.EINVAL, why)
            request = PutFile(file.source, found.st_size, bool(found.st_mode & stat.S_IXUSR))
            self._talk(lambda line: self._put(line, request, descriptor))
        finally:
            os.close(descriptor)

    def _put(self, line: FileLine, request: PutFile, descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        line.say(request)
        if not isinstance(ready := _hear(line), Ready):
            raise _error_of(ready)
        content = line.send_content(descriptor)
        if content.trouble is not None:
            self._hang_up()  # so it is not taken for the whole
            raise OSError(
                content.trouble.errno, f"{request.path} cannot be read on {_host()}: {content.trouble.strerror}"
            )
        line.say(End(content.digest))
        if not isinstance(done := _hear(line), Done):
            raise _error_of(done)

    # -- the connection --

    def _ask(self, request: Request) -> Answer:
        def talk(line: FileLine) -> Answer:
            line.say(request)
            return _hear(line)

        return self._talk(talk)

    def _talk(self, talk: Callable[[FileLine], T]) -> T:
        """Ask something. A connection that has been idle may be gone: then once more, on a new one."""
        try:
            return self._talk_once(talk)
        except (ConnectionError, TimeoutError):
            pass
        try:
            return self._talk_once(talk)
        except (ConnectionError, TimeoutError) as error:
            raise ConnectionError(f"the client's files cannot be reached from {_host()}: {error}") from error

    def _talk_once(self, talk: Callable[[FileLine], T]) -> T:
        if self._line is None:
            self._line = self._port.open()
        is_in_order = False
        try:
            answer = talk(self._line)
            is_in_order = True
        except OSError as error:
            is_in_order = not isinstance(error, ConnectionError | TimeoutError)
            raise
        finally:
            if not is_in_order:  # also if a signal handler has raised in the middle
                self._hang_up()
        return answer

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


def _hear(line: FileLine) -> Answer:
    answer = line.hear()
    if answer is None:
        raise ConnectionResetError("the interchange has ended the connection")
    if isinstance(answer, Request):
        raise MessageError(f"a {type(answer).__name__} is no answer")
    return answer


def _error_of(answer: Answer) -> Exception:
    """Return what to raise for an answer that is not the one that was hoped for."""
    match answer:
        case Refusal(errno=number, text=text):
            return OSError(number, text)
        case Differs(text=text):
            return FileMismatch(text)
        case _:
            return MessageError(f"a {type(answer).__name__} does not fit here")


def _host() -> str:
    return os.uname().nodename
