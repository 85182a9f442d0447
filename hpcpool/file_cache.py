"""Files that a node has fetched from URLs, kept in one folder for all workers of a user; and the check of a file.

A file is fetched by one process while the others wait, and appears whole. One that is known by its hash is kept as it
is; any other one is asked for anew by each process, and sent again only if the server says that it has changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse

from hpcpool.errors import FileMismatch
from hpcpool.part_file import bring

#: Names the folder; else it is in the place for temporary files.
CACHE_VARIABLE = "HPCPOOL_FILE_CACHE"

#: Without a byte for this long a server is given up.
_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 20
_UNCHANGED = 304

#: URLs without a hash that this process has asked about.
_asked: dict[str, str] = {}


def fetched(url: str, size: int | None, sha256: str | None) -> str:
    """Return the path of the file of a URL, which is fetched if it is not here.

    Raises:
        FileMismatch: it has another size or hash.
        OSError: it cannot be fetched.
    """
    path = os.path.join(_folder(), _name(url, sha256))
    if sha256 is None and _asked.get(url) == path and os.path.exists(path):
        check(path, url, size, None)
        return path
    with _locked(f"{path}.lock"):
        if sha256 is None or not os.path.exists(path):
            _fetch(url, path, size, sha256)
        check(path, url, size, None)  # its hash was checked when it came
    if sha256 is None:
        _asked[url] = path
    return path


def check(path: str, name: str, size: int | None, sha256: str | None) -> None:
    """Raise `FileMismatch` if a file has another size or hash than it must have; `name` is what the user calls it."""
    found = os.path.getsize(path)
    if size is not None and found != size:
        raise FileMismatch(f"{name} has {found} bytes on {os.uname().nodename}, and must have {size}")
    if sha256 is not None and (digest := _hash_of(path)) != sha256:
        raise FileMismatch(f"{name} has the SHA-256 hash {digest} on {os.uname().nodename}, and must have {sha256}")


def _folder() -> str:
    path = os.environ.get(CACHE_VARIABLE) or os.path.join(tempfile.gettempdir(), f"hpcpool-files-{os.getuid()}")
    os.makedirs(path, mode=0o700, exist_ok=True)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to somebody else; name another folder for files with {CACHE_VARIABLE}")
    return path


def _name(url: str, sha256: str | None) -> str:
    """A file name that keeps the end of the URL, by which programs know kinds of files."""
    end = re.sub(r"[^A-Za-z0-9._-]", "_", url.partition("?")[0].rstrip("/").rpartition("/")[2])[-64:]
    return f"{(sha256 or hashlib.sha256(url.encode()).hexdigest())[:32]}-{end}"


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(url: str, path: str, size: int | None, sha256: str | None) -> None:
    """Get the file of a URL, unless the one that is here is still the same."""
    request = urllib.request.Request(url, headers={"User-Agent": "hpcpool"})
    tag_path = f"{path}.etag"
    if os.path.exists(path) and os.path.exists(tag_path):
        with open(tag_path, encoding="utf-8") as file:
            request.add_header("If-None-Match", file.read())
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            _keep(answer, url, path, size, sha256)
            tag = answer.headers.get("ETag")
    except urllib.error.HTTPError as error:
        with error:
            if error.code == _UNCHANGED:
                return
            raise OSError(f"{url} cannot be fetched by {os.uname().nodename}: {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise OSError(f"{url} cannot be fetched by {os.uname().nodename}: {error.reason}") from error
    with contextlib.suppress(FileNotFoundError):
        os.remove(tag_path)
    if tag is not None:
        with open(tag_path, "w", encoding="utf-8") as file:
            file.write(tag)


def _keep(answer: HTTPResponse, url: str, path: str, size: int | None, sha256: str | None) -> None:
    """Write what comes beside the file, and put it in its place if it is what it must be."""
    part = f"{path}.part"

    def write(descriptor: int) -> None:
        with open(descriptor, "wb", closefd=False) as file:
            while data := answer.read(_CHUNK_BYTES):
                file.write(data)
        check(part, url, size, sha256)

    bring(part, path, write)


def _hash_of(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
