"""Two interpreters for tests of pickling: a client whose `__main__` is a user's program, and a worker beside it."""

from __future__ import annotations

import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcpool.wire.failures import unpickle_failure
from hpcpool.wire.functions import FunctionCache, function_within, load_function
from hpcpool.wire.packing import Payload
from hpcpool.wire.payload import pickle_call, unpickle

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("worker_script.py")


class Worker:
    """A process that opens calls and runs them."""

    def __init__(self) -> None:
        start = (
            "import sys, runpy\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            "import hpcpool.wire.failures\n"
            f"runpy.run_path({str(SCRIPT)!r}, run_name='worker')['main']()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._functions = FunctionCache()
        #: How many functions were sent by value, a repeated one once.
        self.keys: set[bytes] = set()

    def call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a call there as the executor would, and return or raise its outcome."""
        function = function_within(fn)
        if function is None:
            return self.ask({}, [pickle_call(fn, args, kwargs).payload])
        blob = self._functions.blob_of(function)
        self.keys.add(blob.key)
        call = pickle_call(fn, args, kwargs, {id(function): (load_function, (blob.key,))})
        return self.ask({blob.key: blob.data}, [call.payload])

    def ask(self, blobs: dict[bytes, bytes], payloads: list[Payload]) -> Any:
        plain = [(bytes(payload.data), [bytearray(buffer) for buffer in payload.buffers]) for payload in payloads]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((blobs, plain), self._process.stdin)
        self._process.stdin.flush()
        succeeded, data, buffers = pickle.load(self._process.stdout)
        if succeeded:
            return unpickle(Payload(data, buffers))
        raise unpickle_failure(Payload(data, buffers))

    def close(self) -> None:
        self._process.communicate(timeout=30)


class UserMain:
    """Takes the place of this process's `__main__`; what is run in it is a user's program."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module = types.ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", self.module)

    def run(self, source: str) -> None:
        exec(compile(source, "<program>", "exec"), self.module.__dict__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)
