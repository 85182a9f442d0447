"""The client's files, for nodes on other hosts: looked at, read, and written whole or not at all.

The interchange calls this in threads of its own (`file_desk`): it is on the client's host, and sees what the client
does.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat

from hpcpool.processes.new_file import NewFile
from hpcpool.wire.file_transfer import (
    Answer,
    Differs,
    Done,
    End,
    FileAbsent,
    FileLine,
    FileSeen,
    FolderSeen,
    GetFile,
    Identity,
    PutFile,
    Ready,
    Refusal,
    SeeFile,
    SeeFolder,
    SeePlace,
)
from hpcpool.wire.messages import MessageError

log = logging.getLogger(__name__)


class ClientFiles:
    """Answers what nodes ask. May be used by several threads at a time."""

    def __init__(self) -> None:
        self._host = socket.gethostname()
        self._umask = _umask()
        #: The state in which each file is that a node has made: such a change is meant.
        self._made: dict[str, Identity] = {}

    def see(self, request: SeeFile) -> Answer:
        """Say in which state a file is."""
        try:
            found = os.stat(request.path)
        except (FileNotFoundError, NotADirectoryError):
            if request.seen is None:
                return FileAbsent()
            return Refusal(
                errno.ENOENT,
                f"{request.path} was on {self._host} when the call was submitted, and is there no more: leave it until "
                "the call is over",
            )
        except OSError as error:
            return self._refusal("looked at", request.path, error)
        if not stat.S_ISREG(found.st_mode):
            return self._no_file(request.path, found)
        identity = _identity(found)
        if request.seen not in (None, identity) and self._made.get(request.path) != identity:
            return Differs(
                f"{request.path} on {self._host} has changed since the call was submitted (it had "
                f"{request.seen[0]} bytes, and has {identity[0]}): submit the call when the file is complete, and "
                "leave it as it is until the call is over"
            )
        return FileSeen(identity)

    def see_folder(self, request: SeeFolder) -> Answer:
        """Say whether a file can be made in a folder, and whether the node's probe is there."""
        if (refusal := self._refusal_of_folder(request.path)) is not None:
            return refusal
        return FolderSeen(bool(request.probe) and os.path.exists(os.path.join(request.path, request.probe)))

    def see_place(self, request: SeePlace) -> Answer:
        """Say whether a file can be written, before the work is done that makes it."""
        path = os.path.realpath(request.path)
        try:
            _check_place(path)
        except OSError as error:
            return self._refusal("written", request.path, error)
        return self._refusal_of_folder(os.path.dirname(path)) or Ready()

    def _refusal_of_folder(self, folder: str) -> Refusal | None:
        if not os.path.isdir(folder):
            return Refusal(
                errno.ENOENT,
                f"no file can be made in {folder} on {self._host}, as there is no such folder: make it before the call "
                "is submitted",
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            return Refusal(errno.EACCES, f"no file can be made in {folder} on {self._host}: permission denied")
        return None

    def send(self, line: FileLine, request: GetFile) -> None:
        """Send a file, if it is as the node expects it, and stays so."""
        try:
            # A pipe that has come in the file's place would hold us for ever.
            descriptor = os.open(request.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            line.say(self._refusal("read", request.path, error))
            return
        try:
            line.say(self._send(line, request, descriptor))
        finally:
            os.close(descriptor)

    def _send(self, line: FileLine, request: GetFile, descriptor: int) -> Answer:
        changed = Differs(
            f"{request.path} on {self._host} has changed while it was sent: leave it as it is until the call is over"
        )
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return self._no_file(request.path, found)
        if _identity(found) != request.identity:
            return changed
        line.say(Ready(bool(found.st_mode & stat.S_IXUSR)))
        content = line.send_content(descriptor)
        if content.trouble is not None:
            return self._refusal("read", request.path, content.trouble)
        if content.size != request.identity[0] or _identity(os.fstat(descriptor)) != request.identity:
            return changed
        return End(content.digest)

    def receive(self, line: FileLine, request: PutFile) -> None:
        """Write a file that a node has made: beside its place, and there when it is whole."""
        path = os.path.realpath(request.path)  # a link stays, as when a program writes to it
        folder, name = os.path.split(path)
        try:
            _check_place(path)
            _check_room(folder, request.size)
            new = NewFile(folder, name)
        except OSError as error:
            line.say(self._refusal("written", request.path, error))
            return
        try:
            answer = self._receive(line, request, new, path)
        finally:
            new.close()
        line.say(answer)

    def _receive(self, line: FileLine, request: PutFile, new: NewFile, path: str) -> Answer:
        line.say(Ready())
        content = line.receive_content(new.descriptor)
        end = line.hear()
        if not isinstance(end, End):
            raise MessageError("the end of a file is missing")
        if content.trouble is not None:
            return self._refusal("written", request.path, content.trouble)
        if (content.size, content.digest) != (request.size, end.digest):
            return Differs(f"{request.path} has come to {self._host} with other content than it was sent with")
        try:
            os.fchmod(new.descriptor, self._mode(path, request.is_executable))
            new.put_in_place(path)
        except OSError as error:
            return self._refusal("written", request.path, error)
        self._made[request.path] = _identity(os.fstat(new.descriptor))
        log.debug("file=%s bytes=%d came from a node", request.path, content.size)
        return Done()

    def _mode(self, path: str, is_executable: bool) -> int:
        """The permissions that a program here would give it: those of the file that is there stay."""
        try:
            return stat.S_IMODE(os.stat(path).st_mode)
        except FileNotFoundError:
            return (0o777 if is_executable else 0o666) & ~self._umask

    def _refusal(self, what: str, path: str, error: OSError) -> Refusal:
        return Refusal(error.errno or errno.EIO, f"{path} cannot be {what} on {self._host}: {error.strerror or error}")

    def _no_file(self, path: str, found: os.stat_result) -> Refusal:
        kind = "a folder: name its files" if stat.S_ISDIR(found.st_mode) else "no regular file"
        number = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
        return Refusal(number, f"{path} cannot be brought from {self._host}, as it is {kind}")


def _check_place(path: str) -> None:
    """Fail before the content is on its way, if what is there must not be replaced: as when a program writes to it."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):  # a device, a pipe: who reads there waits for us at the old one
        raise OSError(errno.EINVAL, "it is no regular file")
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _check_room(folder: str, nbytes: int) -> None:
    """Fail before the content is on its way, if there is no room for it."""
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < nbytes:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for its {nbytes} bytes")


def _identity(found: os.stat_result) -> Identity:
    return found.st_size, found.st_mtime_ns


def _umask() -> int:
    """The process's umask, which can only be read by setting it; meanwhile nobody else gets to see new files."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
