"""Files as arguments of calls: a path on the client's host, or a URL that each node fetches once."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from hpcpool.wire import staged

_WEB = ("http", "https")


@dataclass(frozen=True)
class File:
    """A file that a call reads or writes, as an argument or in `inputs` and `outputs` of a bash call.

    Wherever a path can stand, it stands for the path of the file on the node: `open(file)`, `os.fspath(file)`,
    `pathlib.Path(file)`, `{fields}` of bash commands. That path is good until the call is over.

    A path names a file on the client's host, wherever the `File` is made. Where the node sees the same file (one
    machine, a shared file system) nothing is done but to check it. Elsewhere it is brought to the node when a call
    first asks for its path, and kept there, read-only, for the others.

    A file that is not there when a call asks for its path is one that the call makes; so is one in `outputs`, or with
    `output=True`. It is brought to the client when the call has succeeded, before its future is done, and appears there
    whole. Its folder must be there. The process of the call itself must have asked for the path.

    A URL is fetched by the first call of a node that uses it, and kept there for the others.

        >>> from hpcpool import File
        >>> File("https://example.org/data.csv").is_remote
        True

    Args:
        source: a path, which is made absolute (it starts at the client's working directory), or a URL with `http`,
            `https` or `file`.
        size: the size that it must have (bytes); None: any.
        sha256: the SHA-256 hash that it must have, 64 hexadecimal digits; None: any. With it a URL is fetched once and
            for all by a node; without it, again if the server says that it has changed.
        output: the call makes it: what is there before is not brought to the node, and is replaced.

    Raises:
        ValueError: it is a URL of another kind, or the hash is none.
    """

    source: str
    size: int | None = None
    sha256: str | None = None
    output: bool = False
    #: The size and the time of the last change (ns) that the client saw when the call was made; None: it was not there
    #: then, or it is a URL.
    _seen: tuple[int, int] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", _settled(os.fspath(self.source)))
        if self.output and self.is_remote:
            raise ValueError(f"File({self.source!r}) is a URL, which no call makes; valid: a path, or output=False")
        if self.sha256 is not None:
            digest = self.sha256.lower()
            if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ValueError(f"File.sha256 is {self.sha256!r}; valid: 64 hexadecimal digits, or None")
            object.__setattr__(self, "sha256", digest)

    @property
    def is_remote(self) -> bool:
        """True if it is fetched from a URL."""
        return urlsplit(self.source).scheme in _WEB

    def __fspath__(self) -> str:
        """Return the path of the file here. It is brought here if need be.

        Raises:
            FileNotFoundError: the client has seen the file, and it is not there; or its folder is not.
            FileMismatch: it has another size or hash than it must have; or the node does not see it, and it has changed
                since the call was submitted, and not by a call that has brought it back.
            OSError: it cannot be fetched.
        """
        if self.is_remote:
            from hpcpool import file_cache  # most calls have no files

            return file_cache.fetched(self.source, self.size, self.sha256)
        if staged.is_far() and not self._is_here():
            from hpcpool import staging  # loads OpenSSL, which nodes that share a file system do without

            return staging.path_of(self)
        return self._path_here()

    def _is_here(self) -> bool:
        """Say whether this path leads to the file that the client has seen."""
        return not self.output and self._seen is not None and self._seen == state_of(self.source)

    def _path_here(self) -> str:
        """Return the path on the client's host."""
        from hpcpool import file_cache

        if self.output:
            return self.source
        if self._seen is not None and not os.path.exists(self.source):
            raise FileNotFoundError(
                f"{self.source} was there when the call was submitted, and is not on {os.uname().nodename} any more: "
                "leave it until the call is over"
            )
        # It may have changed since the client has seen it: a call before this one may have made it anew.
        if os.path.isfile(self.source):
            file_cache.check(self.source, self.source, self.size, self.sha256)
        return self.source

    def _as_output(self) -> File:
        return self if self.is_remote else replace(self, output=True)

    def __reduce__(self) -> tuple[object, ...]:
        return File, (self.source, self.size, self.sha256, self.output, self._seen_here())

    def _seen_here(self) -> tuple[int, int] | None:
        return None if self.is_remote or staged.is_far() else state_of(self.source)


def state_of(path: str) -> tuple[int, int] | None:
    """Return the size and the time of the last change of a file; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _settled(source: str) -> str:
    """The URL as it is, or the absolute path."""
    url = urlsplit(source)
    if url.scheme in _WEB and url.netloc:
        return source
    if url.scheme == "file" and url.netloc in ("", "localhost"):
        from urllib.parse import unquote

        return unquote(url.path)
    if "://" in source:
        raise ValueError(f"File({source!r}) has no meaning here; valid: a path, or a URL with http, https or file")
    path = os.path.expanduser(source)
    if staged.client_directory is not None:
        path = os.path.join(staged.client_directory, path)
    return os.path.abspath(path)
