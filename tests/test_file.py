from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hpcpool import File, FileMismatch, HPCPoolExecutor, file_cache
from tests.live.processes import until

DATA = b"some data\n" * 1000
HASH = hashlib.sha256(DATA).hexdigest()


# Paths


def test_a_path_is_made_absolute_and_a_url_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert File("data.csv").source == str(tmp_path / "data.csv")
    assert File("file:///data/a%20b").source == "/data/a b"
    assert File("https://example.org/x?y=1").source == "https://example.org/x?y=1"
    assert File("https://example.org/x").is_remote
    assert not File("data.csv").is_remote


@pytest.mark.parametrize("source", ["ftp://host/x", "s3://bucket/x", "file://other/x"])
def test_a_url_of_another_kind_is_refused(source):
    with pytest.raises(ValueError, match="valid: a path, or a URL with http, https or file"):
        File(source)


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64])
def test_what_is_no_hash_is_refused(digest):
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        File("x", sha256=digest)


def test_a_file_stands_wherever_a_path_can(tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    file = pickle.loads(pickle.dumps(File(str(tmp_path / "x"), size=len(DATA), sha256=HASH.upper())))
    with open(file, "rb") as opened:
        assert opened.read() == DATA
    assert Path(file) == tmp_path / "x"


def test_a_file_that_has_another_size_or_hash_is_told(tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    with pytest.raises(FileMismatch, match=f"has {len(DATA)} bytes .* and must have 7"):
        os.fspath(File(str(tmp_path / "x"), size=7))
    with pytest.raises(FileMismatch, match=f"has the SHA-256 hash {HASH}"):
        os.fspath(File(str(tmp_path / "x"), sha256="0" * 64))


def test_a_file_may_change_while_its_call_waits_as_a_call_before_it_may_make_it_anew(tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    arrived = pickle.loads(pickle.dumps(File(str(tmp_path / "x"))))
    (tmp_path / "x").write_bytes(b"another")
    assert os.fspath(arrived) == str(tmp_path / "x")


def test_a_file_that_has_gone_since_the_call_was_submitted_is_told(tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    arrived = pickle.loads(pickle.dumps(File(str(tmp_path / "x"))))
    (tmp_path / "x").unlink()
    with pytest.raises(FileNotFoundError, match="was there when the call was submitted, and is not on .* any more"):
        os.fspath(arrived)


def test_a_file_that_is_still_to_be_made_is_no_error(tmp_path):
    arrived = pickle.loads(pickle.dumps(File(str(tmp_path / "result"))))
    assert os.fspath(arrived) == str(tmp_path / "result")
    assert arrived == File(str(tmp_path / "result"))


def test_an_output_may_be_there_or_not_and_change_meanwhile(tmp_path):
    (tmp_path / "y").write_bytes(b"before")
    arrived = pickle.loads(pickle.dumps(File(str(tmp_path / "y"), output=True)))
    (tmp_path / "y").unlink()
    assert os.fspath(arrived) == str(tmp_path / "y")


def test_a_url_is_no_output():
    with pytest.raises(ValueError, match="is a URL, which no call makes"):
        File("https://example.org/x", output=True)


# URLs


class Site(ThreadingHTTPServer):
    """Serves `data`, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.data = DATA
        self.has_tags = True
        #: Cleared: it stops in the middle of a file.
        self.may_end = threading.Event()
        self.may_end.set()
        self.answers: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/folder/data.csv?key=1"


class Page(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        tag = f'"{hashlib.sha256(self.server.data).hexdigest()}"'
        is_known = self.server.has_tags and self.headers.get("If-None-Match") == tag
        code = 404 if "missing" in self.path else 304 if is_known else 200
        self.server.answers.append(code)
        self.send_response(code)
        if self.server.has_tags:
            self.send_header("ETag", tag)
        self.end_headers()
        if code == 200:
            middle = len(self.server.data) // 2
            self.wfile.write(self.server.data[:middle])
            self.server.may_end.wait(60)
            with contextlib.suppress(ConnectionError):  # who asked has gone
                self.wfile.write(self.server.data[middle:])

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def site(tmp_path, monkeypatch) -> Iterator[Site]:
    monkeypatch.setenv(file_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(file_cache, "_asked", {})
    with contextlib.closing(Site()) as made:
        made.close = made.server_close  # type: ignore[attr-defined]
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def new_process(monkeypatch) -> None:
    """As if another worker of the node asked."""
    monkeypatch.setattr(file_cache, "_asked", {})


def test_a_file_with_a_hash_is_fetched_once_by_a_node(site, monkeypatch):
    for _ in range(3):
        assert Path(File(site.url, size=len(DATA), sha256=HASH)).read_bytes() == DATA
        new_process(monkeypatch)
    assert site.answers == [200]


def test_the_path_ends_as_the_url_does_and_is_for_the_user_alone(site):
    path = Path(File(site.url))
    assert path.name.endswith("-data.csv")
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_without_a_hash_is_asked_about_by_each_process_and_sent_again_if_it_has_changed(site, monkeypatch):
    for _ in range(2):
        assert Path(File(site.url)).read_bytes() == DATA
    assert site.answers == [200]
    new_process(monkeypatch)
    assert Path(File(site.url)).read_bytes() == DATA
    assert site.answers == [200, 304]
    site.data = b"changed"
    new_process(monkeypatch)
    assert Path(File(site.url)).read_bytes() == b"changed"
    assert site.answers == [200, 304, 200]


def test_a_server_without_tags_is_asked_for_the_whole_file(site, monkeypatch):
    site.has_tags = False
    os.fspath(File(site.url))
    site.data = b"changed"
    new_process(monkeypatch)
    assert Path(File(site.url)).read_bytes() == b"changed"
    assert site.answers == [200, 200]


def test_what_is_not_what_it_must_be_is_not_kept(site, tmp_path):
    with pytest.raises(FileMismatch, match="SHA-256"):
        os.fspath(File(site.url, sha256="0" * 64))
    with pytest.raises(FileMismatch, match="must have 3"):
        os.fspath(File(site.url, size=3))
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


def test_a_url_that_is_not_there_or_not_reached_is_an_os_error_that_names_it(site):
    with pytest.raises(OSError, match="missing cannot be fetched by .*: 404"):
        os.fspath(File(f"{site.url}&missing"))
    site.shutdown()
    site.server_close()
    with pytest.raises(OSError, match="cannot be fetched by .*refused"):
        os.fspath(File(site.url))


def test_many_at_once_fetch_it_once(site):
    threads = [threading.Thread(target=lambda: os.fspath(File(site.url, sha256=HASH))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert site.answers == [200]


def test_what_a_process_that_was_killed_has_fetched_goes_with_the_next(site, tmp_path):
    def sizes() -> list[int]:
        return sorted(path.stat().st_size for path in (tmp_path / "cache").glob("*") if path.is_file())

    site.data = DATA * 1000  # more than what is read at a time
    site.may_end.clear()
    fetching = subprocess.Popen([sys.executable, "-c", f"import hpcpool, os; os.fspath(hpcpool.File({site.url!r}))"])
    until(lambda: sum(sizes()) > 0, "a part of it")
    fetching.kill()
    fetching.wait()
    site.may_end.set()
    assert Path(File(site.url)).read_bytes() == site.data
    assert sizes() == [0, 66, len(site.data)], "a lock, a tag and the file"


def test_a_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv(file_cache.CACHE_VARIABLE, str(tmp_path / "link"))
    with pytest.raises(PermissionError, match="belongs to somebody else"):
        os.fspath(File("http://127.0.0.1:9/x"))


@pytest.mark.live
def test_calls_and_commands_take_files_and_make_them(site, tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    local, remote, made = File(str(tmp_path / "x")), File(site.url, sha256=HASH), File(str(tmp_path / "made"))
    with HPCPoolExecutor(2) as executor:
        assert executor.submit(size_of, local).result(60) == len(DATA)
        assert list(executor.map(size_of, [remote] * 10, timeout=60)) == [len(DATA)] * 10
        copied = executor.bash("cat {file} > {made}", file=remote, made=made, inputs=[local, remote], outputs=made)
        assert copied.result(60).outputs == (str(tmp_path / "made"),)
        assert executor.submit(size_of, made).result(60) == len(DATA)
        with pytest.raises(FileMismatch, match="must have 7"):
            executor.submit(size_of, File(str(tmp_path / "x"), size=7)).result(60)
    assert site.answers == [200]


def size_of(file: File) -> int:
    with open(file, "rb") as opened:
        return len(opened.read())
