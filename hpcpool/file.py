"""Files as arguments of calls: a path that nodes share with the client, or a URL that each node fetches once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_WEB = ("http", "https")


@dataclass(frozen=True)
class File:
    """A file that a call reads or writes, as an argument or in `inputs` and `outputs` of a bash call.

    Wherever a path can stand, it stands for the path of the file on the node: `open(file)`, `os.fspath(file)`,
    `pathlib.Path(file)`, `{fields}` of bash commands. A path must mean the same file on the client and on the node (one
    machine, or a shared file system), and this is checked by its size. A URL is fetched by the first call of a node
    that uses it, and kept there for the others.

        >>> from hpcpool import File
        >>> File("https://example.org/data.csv").is_remote
        True

    Args:
        source: a path, which is made absolute, or a URL with `http`, `https` or `file`.
        size: the size that it must have (bytes); None: any that the client sees.
        sha256: the SHA-256 hash that it must have, 64 hexadecimal digits; None: any. With it a URL is fetched once and
            for all by a node; without it, again if the server says that it has changed.

    Raises:
        ValueError: it is a URL of another kind, or the hash is none.
    """

    source: str
    size: int | None = None
    sha256: str | None = None
    #: The size that the client saw when the call was made; None: it was not there then, or it is a URL.
    _seen_size: int | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", _settled(os.fspath(self.source)))
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
        """Return the path of the file here. A URL is fetched if need be.

        Raises:
            FileNotFoundError: the client has seen the file, and it is not here.
            FileMismatch: it has another size or hash than it must have.
            OSError: it cannot be fetched.
        """
        from hpcpool import file_cache  # most calls have no files

        if self.is_remote:
            return file_cache.fetched(self.source, self.size, self.sha256)
        if self._seen_size is not None and not os.path.exists(self.source):
            raise FileNotFoundError(
                f"{self.source} is on the client and not on {os.uname().nodename}: put it on a file system that both "
                "see, or name it by a URL"
            )
        size = self._seen_size if self.size is None else self.size
        if os.path.isfile(self.source):
            file_cache.check(self.source, self.source, size, self.sha256)
        return self.source

    def __reduce__(self) -> tuple[object, ...]:
        return File, (self.source, self.size, self.sha256, self._size_here())

    def _size_here(self) -> int | None:
        if self.is_remote or not os.path.isfile(self.source):
            return None
        return os.path.getsize(self.source)


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
    return os.path.abspath(os.path.expanduser(source))
