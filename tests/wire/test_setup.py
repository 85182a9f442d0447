from __future__ import annotations

import os
import pickle
import resource
import socket
import sys
import threading
from multiprocessing import process

import pytest

from hpcpool.wire.setup import local_setup, open_setup


def test_a_worker_hears_of_the_clients_surroundings(monkeypatch):
    monkeypatch.setattr(sys, "path", ["", ".", "relative", "/absolute"])
    monkeypatch.setattr(sys, "argv", ["program", "argument"])
    surroundings, _ = open_setup(local_setup("spawn", None, ()))
    here = os.getcwd()
    key, file = bytes(process.current_process().authkey), getattr(sys.modules["__main__"], "__file__", None)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    arguments = ("program", "argument")
    host, *rest = surroundings
    assert host == socket.gethostname()
    assert rest == [(here, here, "relative", "/absolute"), here, arguments, key, file, "spawn", files]


def test_the_clients_directory_may_have_been_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", ["", "/absolute"])
    (tmp_path / "removed").mkdir()
    monkeypatch.chdir(tmp_path / "removed")
    (tmp_path / "removed").rmdir()
    surroundings, _ = open_setup(local_setup(None, None, ()))
    assert surroundings[1:3] == (("", "/absolute"), None)


def test_an_initializer_is_only_opened_when_the_surroundings_are_there():
    _, call = open_setup(local_setup(None, print, (1, [2])))
    assert type(call) is bytes
    assert pickle.loads(call) == (print, (1, [2]))


def test_without_an_initializer_there_is_none():
    surroundings, call = open_setup(local_setup(None, None, ()))
    assert pickle.loads(call) == (None, ())
    assert surroundings[-2] is None


def test_an_initializer_of_main_goes_by_value(main, worker):
    main.run("X = 5\ndef initialize(y):\n    global Z\n    Z = X + y\ndef look():\n    return Z")
    _, call = open_setup(local_setup(None, main.initialize, (1,)))
    assert b"initialize" in call
    worker.call(run_initializer, call)
    assert worker.call(main.look) == 6


def run_initializer(call: bytes) -> None:
    function, arguments = pickle.loads(call)
    function(*arguments)


def test_what_cannot_be_pickled_is_refused_at_once():
    with pytest.raises(TypeError, match="lock"):
        local_setup(None, print, (threading.Lock(),))
