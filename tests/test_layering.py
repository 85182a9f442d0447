"""The shape of the package: imports point down, core is pure, worker is lean, and `import hpcpool` does no work.

The rules are `LAYERS` and `PURE_MODULES`; `docs/design.md` says why. A new module that matches no layer fails here, so
that its place is decided when it is made.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "hpcpool"
SOURCE = Path(__file__).resolve().parent.parent / PACKAGE
#: About 500: what is more than a screenful longer holds more than one noun.
MAX_LINES = 550

#: Started on thousands of nodes on a shared file system: each module that they import is read by all of them.
LEAN = tuple(
    f"processes.{name}"
    for name in ("worker", "fork_server", "sessions", "process_end", "start_command", "limits", "census")
)

#: Texts for the nodes of a block: pure, and below what they are options of.
NODE_TEXTS = ("supervision", "launchers", "containers", "block_script")

#: What a layer may import of the package, next to itself. The first pattern that matches a module decides its layer;
#: `x` matches the module or package x and all that is in it.
LAYERS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "core": ("errors",),
    "wire.version": (),
    "wire": ("errors", "wire.version"),
    "providers": ("errors", "wire.version"),
    **dict.fromkeys(NODE_TEXTS, ("errors", *NODE_TEXTS)),
    "config": ("errors", "providers", *NODE_TEXTS),
    **dict.fromkeys(LEAN, ("errors", "wire", "wire.version", *LEAN)),
    "mpi": ("errors", "wire", "wire.version", *LEAN),
    "processes": ("mpi", "config", "core", "errors", "providers", "wire", "wire.version", *LEAN, *NODE_TEXTS),
    "sites": ("config", "errors", "providers", *NODE_TEXTS),
    "integrations": ("*",),
    "tools": ("*",),
    "": ("*",),  # hpcpool/__init__.py: the public names
}
#: What users import (executor, futures, bash, ...): everything but what stands above them.
TOP_MAY_NOT = ("", "integrations", "sites", "tools")

#: All that core may use besides itself: no clock, thread, file, process, socket, random number or log.
PURE_MODULES = frozenset(
    "__future__ abc bisect collections copy enum fractions functools graphlib heapq itertools math numbers "
    "msgspec operator re statistics string textwrap types typing typing_extensions".split()
)
IMPURE_BUILTINS = frozenset({"open", "print", "input", "exec", "eval", "__import__"})

OPTIONAL_MODULES = (
    "mpi4py",
    "tqdm",
    "matplotlib",
    "numpy",
    "paramiko",
    "joblib",
    "dask",
    "pandas",
    "boto3",
    "kubernetes",
)


@dataclass(frozen=True)
class Import:
    """One name that a module imports, as an absolute module name."""

    name: str
    line: int


def modules(root: Path) -> dict[str, Path]:
    """Every module below `root`, by its name inside the package ('' is the package itself)."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, path: Path, known: dict[str, Path]) -> Iterator[Import]:
    """What the module imports anywhere in its text: also inside functions and under TYPE_CHECKING."""
    absolute = f"{PACKAGE}.{name}" if name else PACKAGE
    package = absolute if path.name == "__init__.py" else absolute.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (above, node.module)))
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                is_module = whole.partition(".")[2] in known and source.partition(".")[0] == PACKAGE
                yield Import(whole if is_module else source, node.lineno)


def matches(module: str, pattern: str) -> bool:
    return module == pattern or (pattern != "" and module.startswith(f"{pattern}."))


def layer_of(module: str) -> str | None:
    """The layer of a module; None for the top: a module directly in the package that no layer names."""
    return next((pattern for pattern in LAYERS if matches(module, pattern)), None)


def may_import(module: str, target: str) -> bool:
    layer = layer_of(module)
    if layer is None:
        return layer_of(target) not in TOP_MAY_NOT
    allowed = LAYERS[layer]
    return "*" in allowed or layer_of(target) in (layer, *allowed)


def wrong_imports(root: Path) -> list[str]:
    """Every import that points up or sideways, and every package below `root` that has no place."""
    known = modules(root)
    wrong = []
    for name, path in known.items():
        if "." in name and layer_of(name) is None:
            wrong.append(f"{path.name}: the package {name.partition('.')[0]} is in no layer: give it a place in LAYERS")
        for item in imports_of(name, path, known):
            head, _, target = item.name.partition(".")
            if head == PACKAGE and not may_import(name, target):
                wrong.append(f"{name or '__init__'}:{item.line} imports {item.name}")
    return wrong


def impurities(root: Path) -> list[str]:
    """What core uses that is not pure."""
    known = modules(root)
    wrong = []
    for name, path in known.items():
        if layer_of(name) != "core":
            continue
        for item in imports_of(name, path, known):
            if item.name.partition(".")[0] not in PURE_MODULES | {PACKAGE}:
                wrong.append(f"{name}:{item.line} imports {item.name}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_BUILTINS:
                wrong.append(f"{name}:{node.lineno} calls {node.func.id}()")
    return wrong


def without_docstring(root: Path) -> list[str]:
    return [str(p) for p in modules(root).values() if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]


def too_long(root: Path) -> list[str]:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules(root).values()}
    return [f"{path}: {count} lines" for path, count in lines.items() if count > MAX_LINES]


def run_python(code: str) -> dict[str, list[str]]:
    """What a fresh interpreter prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], cwd=SOURCE.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answer: dict[str, list[str]] = json.loads(done.stdout)
    return answer


# The package as it is


def test_imports_point_down():
    assert wrong_imports(SOURCE) == []


def test_core_is_pure():
    assert impurities(SOURCE) == []


def test_every_module_says_what_it_is():
    assert without_docstring(SOURCE) == []


def test_no_module_is_long():
    assert too_long(SOURCE) == []


def test_importing_the_package_does_no_work():
    seen = run_python(
        "import json, sys\n"
        "work = []\n"
        "events = ('subprocess.', 'os.fork', 'os.posix_spawn', 'os.exec', 'os.system', '_thread.start', 'socket.')\n"
        "sys.addaudithook(lambda event, args: event.startswith(events) and work.append(event))\n"
        "import hpcpool\n"
        "for name in getattr(hpcpool, '__all__', ()): getattr(hpcpool, name)\n"
        "work = [event for event in work if event != 'socket.gethostname']\n"
        "print(json.dumps({'work': work, 'modules': sorted(sys.modules)}))\n"
    )
    assert seen["work"] == []
    assert [name for name in seen["modules"] if name in OPTIONAL_MODULES] == []


@pytest.mark.parametrize(
    "start", ["import hpcpool; hpcpool.HPCPoolExecutor(1)", "import hpcpool.processes.interchange"]
)
def test_what_a_first_call_waits_for_does_not_load_what_takes_long(start):
    seen = run_python(f"import json, sys\n{start}\nprint(json.dumps({{'modules': list(sys.modules)}}))\n")
    slow = {"ssl", "_ssl", "hashlib", "_hashlib", "pathlib", "difflib", "psutil"}
    assert slow.isdisjoint(seen["modules"])


def test_an_interchange_of_a_pool_on_one_machine_is_started_with_nothing_of_other_pools_and_nothing_that_unpickles():
    seen = run_python(
        "import json, sys, hpcpool.processes.interchange_main\n"
        "from hpcpool.config import Config\n"
        "Config.from_json(Config().to_json())\n"
        "print(json.dumps({'modules': list(sys.modules)}))\n"
    )
    of_workers = {f"hpcpool.{name}" for name in ("processes.worker", "wire.failures", "wire.functions", "wire.payload")}
    assert (of_workers | {f"hpcpool.{name}" for name in NODE_TEXTS}).isdisjoint(seen["modules"])


@pytest.mark.parametrize("module", LEAN)
def test_a_worker_loads_only_what_it_needs(module):
    seen = run_python(
        f"import json, sys, hpcpool.{module}\n"
        "print(json.dumps({'ours': [name for name in sys.modules if name.partition('.')[0] == 'hpcpool']}))\n"
    )
    loaded = [name.partition(".")[2] for name in seen["ours"]]
    # The packages around the module are loaded too, whatever they are: they must be light.
    around = {"", "processes"}
    assert [name for name in loaded if name not in around and not may_import(module, name)] == []


# The checker itself


def tree(root: Path, **texts: str) -> Path:
    """A package of the given modules; `core__a` is core/a.py and `__init__` is the package itself."""
    package = root / PACKAGE
    for name, text in {"__init__": "", **texts}.items():
        path = package / (name if name == "__init__" else name.replace("__", "/"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(text, encoding="utf-8")
    return package


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"errors": "from hpcpool import config", "config": ""}, "errors:1 imports hpcpool.config"),
        ({"core__a": "import hpcpool.wire.b", "wire__b": ""}, "core.a:1 imports hpcpool.wire.b"),
        ({"core__a": "from ..wire import b", "wire__b": ""}, "core.a:1 imports hpcpool.wire.b"),
        ({"core__a": "from ..wire.b import c", "wire__b": "c = 1"}, "core.a:1 imports hpcpool.wire.b"),
        ({"core__a": "def f():\n    from .. import executor", "executor": ""}, "core.a:2 imports hpcpool.executor"),
        ({"core__a": "from .. import Config"}, "core.a:1 imports hpcpool"),
        ({"wire__a": "import hpcpool.core.b", "core__b": ""}, "wire.a:1 imports hpcpool.core.b"),
        ({"providers__p": "from .. import config", "config": ""}, "providers.p:1 imports hpcpool.config"),
        ({"config": "from .processes import c", "processes__c": ""}, "config:1 imports hpcpool.processes.c"),
        ({"processes__worker": "import hpcpool.config", "config": ""}, "processes.worker:1 imports hpcpool.config"),
        (
            {"processes__worker": "from . import manager", "processes__manager": ""},
            "processes.worker:1 imports hpcpool.processes.manager",
        ),
        (
            {"processes__manager": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hpcpool import bash"}
            | {"bash": ""},
            "processes.manager:3 imports hpcpool.bash",
        ),
        ({"executor": "from hpcpool import Config"}, "executor:1 imports hpcpool"),
        (
            {"executor": "from .integrations import j", "integrations__j": ""},
            "executor:1 imports hpcpool.integrations.j",
        ),
    ],
)
def test_an_arrow_that_points_up_or_sideways_is_found(tmp_path, texts, expected):
    assert wrong_imports(tree(tmp_path, **texts)) == [expected]


def test_arrows_that_point_down_are_accepted(tmp_path):
    package = tree(
        tmp_path,
        __init__="from .executor import E\nfrom hpcpool.errors import F",
        errors="F = 1",
        executor="import zmq\nfrom . import bash, config\nfrom .processes import client\nfrom hpcpool.core.a import x",
        bash="from .errors import F",
        config="from .providers import p",
        providers__p="from ..errors import F",
        wire__w="import msgspec\nfrom ..errors import F",
        core__a="import heapq\nfrom ..errors import F\nfrom .b import x",
        core__b="x = 1",
        processes__client="from ..wire import w\nfrom ..core import a\nfrom . import manager",
        processes__manager="from .worker import f",
        processes__worker="from ..wire import w\nfrom ..errors import F\nf = 1",
        tools__doctor="import hpcpool",
    )
    assert wrong_imports(package) == []
    assert impurities(package) == []


def test_a_package_without_a_place_is_found(tmp_path):
    (problem,) = wrong_imports(tree(tmp_path, shiny__a=""))
    assert "the package shiny is in no layer" in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import time", "imports time"),
        ("from os import path", "imports os"),
        ("import zmq", "imports zmq"),
        ("def f():\n    import random", "imports random"),
        ("import logging", "imports logging"),
        ("open('x')", "calls open()"),
    ],
)
def test_an_impurity_of_core_is_found(tmp_path, text, expected):
    (problem,) = impurities(tree(tmp_path, core__a=text))
    assert expected in problem


def test_a_missing_docstring_and_a_long_module_are_found(tmp_path):
    package = tree(tmp_path, __init__='"""Said."""', wire__a="x = 1\n" * (MAX_LINES + 1))
    assert [Path(p).name for p in without_docstring(package)] == ["a.py"]
    assert too_long(package) == [f"{package / 'wire' / 'a.py'}: {MAX_LINES + 1} lines"]
