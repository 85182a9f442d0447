"""A function is found by its name whatever else happens to its module at the same time."""

from __future__ import annotations

import importlib
import json.decoder
import sys
import threading
import types
from pathlib import Path

import pytest

from hpcpool.wire.importable import find, is_importable, name_to_import

MODULE = """
import sys
sys.is_half_way.set()
sys.may_go_on.wait(10)
def function(): pass
"""


def test_a_function_is_found_in_a_module_of_a_package():
    name = name_to_import(json.decoder.py_scanstring)
    assert name is not None
    assert find(name) is json.decoder.py_scanstring


@pytest.mark.parametrize("name", ["__main__", "__mp_main__"])
def test_the_program_itself_cannot_be_imported(name: str, monkeypatch: pytest.MonkeyPatch):
    program = types.ModuleType(name)
    exec("def function(): pass\nclass Class: pass", program.__dict__)
    monkeypatch.setitem(sys.modules, name, program)
    assert not is_importable(program.function)
    assert not is_importable(program.Class)
    assert name_to_import(program.function) is None


def test_what_another_thread_is_importing_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = "hpcpool_test_half_way"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    is_half_way, may_go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(sys, "is_half_way", is_half_way, raising=False)
    monkeypatch.setattr(sys, "may_go_on", may_go_on, raising=False)
    importing = threading.Thread(target=importlib.import_module, args=(name,))
    importing.start()
    try:
        assert is_half_way.wait(30)
        threading.Timer(0.05, may_go_on.set).start()
        assert find(f"{name}:function").__name__ == "function"
    finally:
        may_go_on.set()
        importing.join()
        sys.modules.pop(name, None)
