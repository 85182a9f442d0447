"""Whole programs: what is in their `__main__`, how it travels, and how they end. None has a guard."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: Any, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python until the program has ended and nobody holds its output any more."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )


def output_of(path: Path, text: str) -> list[str]:
    """Run this program, which must succeed and complain of nothing, and return the lines that it prints."""
    path.write_text(textwrap.dedent(text))
    done = run(path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout.splitlines()


def test_functions_and_classes_of_the_program_work_without_a_guard(tmp_path: Path):
    lines = output_of(
        tmp_path / "program.py",
        """
        import dataclasses, enum, functools, typing
        from hpcpool import HPCPoolExecutor

        class Color(enum.Enum):
            RED = 1
            BLUE = 2

            def other(self):
                return Color.BLUE if self is Color.RED else Color.RED

        class Level(enum.IntFlag):
            LOW = 1
            HIGH = 2

        @dataclasses.dataclass(frozen=True)
        class Point:
            x: int
            y: int = 0

            def moved(self, by):
                return dataclasses.replace(self, x=self.x + by)

        class Base:
            def __init__(self, value):
                self.value = value

            def double(self):
                return 2 * self.value

        class Derived(Base):
            def double(self):
                return helper(super().double())

            @classmethod
            def make(cls):
                return cls(5)

            @property
            def half(self):
                return self.value / 2

        class Pair(typing.NamedTuple):
            left: int
            right: int

        class OwnError(Exception):
            def __init__(self, code):
                super().__init__(f"code {code}")
                self.code = code

        def helper(value):
            return value + OFFSET

        OFFSET = 1

        def fail(code):
            raise OwnError(code)

        def is_even(number):
            return number == 0 or is_odd(number - 1)

        def is_odd(number):
            return number != 0 and is_even(number - 1)

        def swap(pair):
            return Pair(pair.right, pair.left)

        def same(*objects):
            return [type(o).__name__ for o in objects], isinstance(objects[0], Color), objects[0] is Color.RED

        @functools.lru_cache(maxsize=7)
        def cached(number):
            return number * 2

        class Cached:
            @functools.cached_property
            def value(self):
                return [5]

            @functools.cache
            def method(self):
                return 6

        @functools.singledispatch
        def kind(value):
            return "something"

        @kind.register
        def _(value: int):
            return "a number"

        @dataclasses.dataclass(slots=True)
        class Slim:
            x: int

        def use_executor():
            return ex.submit(abs, 1)

        with HPCPoolExecutor(2) as ex:
            print(ex.submit(Color.RED.other).result() is Color.BLUE)
            print(ex.submit(same, Color.RED, Point(1)).result())
            print(ex.submit(lambda: Level.LOW | Level.HIGH).result() == Level.LOW | Level.HIGH)
            moved = ex.submit(Point(1).moved, 2).result()
            print(moved, type(moved) is Point, moved == Point(3), hash(moved) == hash(Point(3)))
            print(ex.submit(Derived(3).double).result(), ex.submit(Derived.make).result().half)
            print(type(ex.submit(Derived.make).result()) is Derived)
            print(ex.submit(swap, Pair(1, 2)).result(), type(ex.submit(swap, Pair(1, 2)).result()) is Pair)
            try:
                ex.submit(fail, 7).result()
            except OwnError as error:
                print("own", error, error.code)
            print(ex.submit(is_even, 10).result())
            print([f.result() for f in [ex.submit(lambda: n * OFFSET) for n in range(3)]])
            print(list(ex.map(lambda n: Point(n).x, range(3))))
            print(ex.submit(sorted, [Pair(2, 1), Pair(1, 2)], key=lambda p: p.left).result())
            print(ex.submit(lambda: cached(4)).result(), ex.submit(cached, 5).result())
            print(ex.submit(lambda c: (c.value is c.value, c.method()), Cached()).result())
            print(ex.submit(kind, 5).result(), ex.submit(kind, "5").result())
            print(ex.submit(Slim, 5).result(), type(ex.submit(lambda: Slim(5)).result()) is Slim)
            print(ex.submit(use_executor).exception())
            print(ex.submit(isinstance, Derived(1), Base).result())
            print(ex.submit(lambda: __name__).result())
        """,
    )
    assert lines == [
        "True",
        "(['Color', 'Point'], True, True)",
        "True",
        "Point(x=3, y=0) True True True",
        "7 2.5",
        "True",
        "Pair(left=2, right=1) True",
        "own code 7 7",
        "True",
        "[0, 1, 2]",
        "[0, 1, 2]",
        "[Pair(left=1, right=2), Pair(left=2, right=1)]",
        "8 10",
        "(True, 6)",
        "a number something",
        "Slim(x=5) True",
        "an executor cannot be sent to a worker (a function takes along the globals that it names): make another one "
        "there, or submit from here, for instance in join()",
        "True",
        "__main__",
    ]


def test_globals_are_sent_anew_whenever_the_program_changes_them(tmp_path: Path):
    lines = output_of(
        tmp_path / "program.py",
        """
        from hpcpool import HPCPoolExecutor

        NUMBER, LIST, UNUSED = 1, [1], object()

        def f():
            return NUMBER, list(LIST)

        def g():
            return NUMBER

        def call_g():
            return g()

        def with_default(n=1, *, m=1):
            return n, m, getattr(with_default, "mark", None)

        def late():
            return LATER

        class Settings:
            value = 1

        def setting():
            return Settings.value

        with HPCPoolExecutor(1) as ex:
            for NUMBER in (1, 2, 1, 2):
                print(ex.submit(f).result(), ex.submit(g).result(), ex.submit(call_g).result())
            pairs = []
            for NUMBER in (3, 4, 3):
                pairs += [ex.submit(f), ex.submit(g), ex.submit(call_g)]
            print([f.result() for f in pairs])
            LIST.append(2)
            print(ex.submit(f).result())
            LIST.pop()
            print(ex.submit(f).result())
            LIST = [7]
            print(ex.submit(f).result())
            def g():
                return "new"
            print(ex.submit(g).result(), ex.submit(call_g).result())
            with_default.__defaults__ = (5,)
            with_default.__kwdefaults__["m"] = 6
            with_default.mark = 7
            print(ex.submit(with_default).result())
            with_default.mark = 8
            print(ex.submit(with_default).result())
            print(type(ex.submit(late).exception()).__name__)
            LATER = "now"
            print(ex.submit(late).result())
            del LATER
            for Settings.value in (1, 2):
                print(ex.submit(setting).result())
        """,
    )
    assert lines == [
        "(1, [1]) 1 1",
        "(2, [1]) 2 2",
        "(1, [1]) 1 1",
        "(2, [1]) 2 2",
        "[(3, [1]), 3, 3, (4, [1]), 4, 4, (3, [1]), 3, 3]",
        "(3, [1, 2])",
        "(3, [1])",
        "(3, [7])",
        "new new",
        "(5, 6, 7)",
        "(5, 6, 8)",
        "NameError",
        "now",
        "1",
        "2",
    ]


def test_what_an_initializer_sets_is_there_for_the_calls(tmp_path: Path):
    lines = output_of(
        tmp_path / "program.py",
        """
        from hpcpool import HPCPoolExecutor

        connection = None
        cache = {}
        number = 1

        def start(name):
            global connection, fresh
            connection, fresh = f"connected to {name}", 5
            cache["started"] = True

        def use():
            return connection, fresh, cache, number

        def fill(key):
            cache[key] = key
            return sorted(cache)

        def count():
            global calls
            calls += 1
            return calls

        calls = 0

        with HPCPoolExecutor(1, initializer=start, initargs=("db",)) as ex:
            print(ex.submit(use).result())
            number = 2
            print(ex.submit(use).result())
            print(ex.submit(fill, "a").result(), ex.submit(fill, "b").result())
            print([ex.submit(count).result() for _ in range(3)])
            print(connection, cache, calls)
        """,
    )
    assert lines == [
        "('connected to db', 5, {'started': True}, 1)",
        "('connected to db', 5, {'started': True}, 2)",
        "['a', 'started'] ['a', 'b', 'started']",
        "[1, 2, 3]",
        "None {} 0",
    ]


def test_what_calls_set_on_a_class_stays_until_the_program_changes_the_class(tmp_path: Path):
    lines = output_of(
        tmp_path / "program.py",
        """
        from hpcpool import HPCPoolExecutor

        class Model:
            net, loads, scale = None, 0, 1

            def predict(self, x):
                if Model.net is None:
                    Model.net, Model.loads = "loaded", Model.loads + 1
                return Model.loads, x * self.scale

        def use(model, x):
            return *model.predict(x), model

        def loads():
            return Model.loads

        with HPCPoolExecutor(1) as ex:
            print([ex.submit(Model().predict, x).result() for x in range(3)])
            print([ex.submit(use, Model(), x).result()[:2] for x in range(3)])
            print(ex.submit(loads).result(), Model.net, Model.loads)
            Model.scale = 10
            print(ex.submit(use, Model(), 5).result()[1])
            Model.scale = 1
            print(ex.submit(use, Model(), 5).result()[1])
        """,
    )
    assert lines == ["[(1, 0), (1, 1), (1, 2)]", "[(1, 0), (1, 1), (1, 2)]", "1 None 0", "50", "5"]


def test_classes_travel_with_arguments_results_and_what_is_passed_on(tmp_path: Path):
    lines = output_of(
        tmp_path / "program.py",
        """
        import dataclasses, enum, typing
        from hpcpool import HPCPoolExecutor

        @dataclasses.dataclass(frozen=True, slots=True)
        class Point:
            x: int
            tags: list = dataclasses.field(default_factory=list)

        class Unit(enum.Enum):
            METRE, FOOT = 1, 0.3

        class Shape:
            scale, parts = 1, []
            def __init__(self, points, unit):
                self.points, self.unit = points, unit
            def grown(self, by):
                return Shape([Point(p.x + by) for p in self.points], self.unit)
            def size(self):
                return Shape.scale * sum(p.x for p in self.points) * self.unit.value, len(self.parts)

        class Square(Shape):
            def size(self):
                return "square", *super().size()

        class Size(typing.NamedTuple):
            of: Shape
            value: tuple

        def measure(shape: Shape) -> Size:
            return Size(shape, shape.size())

        def both(a, b):
            return a.of is not b.of, a.value, b.value, type(a.of) is type(b.of)

        with HPCPoolExecutor(2) as ex:
            shapes = [kind([Point(n)], Unit.METRE) for n in range(3) for kind in (Shape, Square)]
            for Shape.scale in (1, 2, 1, 2):
                grown = [ex.submit(shape.grown, 1) for shape in shapes]
                sizes = [ex.submit(measure, future) for future in grown]
                print(ex.submit(both, sizes[0], sizes[-2]).result(), sizes[3].result().value)
            size = ex.submit(measure, Square([], Unit.FOOT)).result()
            print(type(size) is Size, type(size.of) is Square, size.of.unit is Unit.FOOT, size.value)
            Shape.parts.append("wheel")
            print(ex.submit(measure, shapes[1]).result().value)
            old = Shape([Point(5)], Unit.METRE)
            class Shape(Shape):
                def size(self):
                    return "new"
            print(ex.submit(measure, Shape([], 0)).result().value, ex.submit(lambda s: type(s) is Shape, old).result())
        """,
    )
    assert lines == [
        "(True, (1, 0), (3, 0), True) (2, 0)",
        "(True, (2, 0), (6, 0), True) (4, 0)",
        "(True, (1, 0), (3, 0), True) (2, 0)",
        "(True, (2, 0), (6, 0), True) (4, 0)",
        "True True True ('square', 0.0, 0)",
        "('square', 0, 1)",
        "new False",
    ]


def test_many_functions_that_name_each_other_are_sent_quickly(tmp_path: Path):
    lines = output_of(
        tmp_path / "program.py",
        """
        import time
        from hpcpool import HPCPoolExecutor

        ITEMS, COUNT = [1, 2, 3], 40
        for i in range(COUNT):
            calls = "+".join(f"f{j}(n - 1)" for j in range(COUNT) if j != i)
            exec(f"def f{i}(n):\\n    return len(ITEMS) if n <= 0 else {calls}")

        with HPCPoolExecutor(1) as ex:
            ex.submit(f0, 1).result()
            start = time.thread_time()
            for n in range(10):
                ITEMS.append(n)
                future = ex.submit(f0, 1)
            print(time.thread_time() - start < 5, future.result())
        """,
    )
    assert lines == ["True 507"]


PROGRAM = """
from hpcpool import HPCPoolExecutor
class Point:
    def __init__(self, x):
        self.x = x
def double(point):
    return Point(2 * point.x)
with HPCPoolExecutor(2) as ex:
    print(ex.submit(double, Point(3)).result().x, list(ex.map(lambda n: n * n, range(4))))

"""


def test_a_program_may_be_given_on_the_command_line():
    done = run("-c", PROGRAM)
    assert (done.stdout, done.stderr, done.returncode) == ("6 [0, 1, 4, 9]\n", "", 0)


def test_a_program_may_come_through_a_pipe():
    done = run("-", stdin=PROGRAM)
    assert (done.stdout, done.stderr, done.returncode) == ("6 [0, 1, 4, 9]\n", "", 0)


def test_a_program_may_be_typed_in():
    lines = """
from hpcpool import HPCPoolExecutor
class Point:
    def __init__(self, x): self.x = x

def double(point): return Point(2 * point.x)

ex = HPCPoolExecutor(2)
ex.submit(double, Point(3)).result().x
def double(point): return Point(20 * point.x)

ex.submit(double, Point(3)).result().x
list(ex.map(lambda n: n * n, range(4)))
"""
    done = run("-i", "-q", stdin=lines)
    assert (done.stdout, done.returncode) == ("6\n60\n[0, 1, 4, 9]\n", 0), done.stderr
    assert "Error" not in done.stderr


def test_a_program_may_be_a_module_of_a_package(tmp_path: Path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "other.py").write_text("def add(a, b):\n    return a + b\n")
    (package / "__main__.py").write_text(
        "from .other import add\n" + PROGRAM + "    print(ex.submit(lambda: add(1, 2)).result())\n"
    )
    done = run("-m", "package", cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("6 [0, 1, 4, 9]\n3\n", "", 0)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_child_that_multiprocessing_has_started_sends_what_is_in_the_program(method: str, tmp_path: Path):
    """There they are of a module `__mp_main__`."""
    lines = output_of(
        tmp_path / "program.py",
        f"""
        import functools, multiprocessing
        from hpcpool import HPCPoolExecutor

        class Point:
            def __init__(self, x):
                self.x = x

            def moved(self):
                return Point(self.x + STEP)

        class OwnError(Exception):
            pass

        STEP, calls = 1, 0

        def initialize(start):
            global calls
            calls = start

        def count():
            global calls
            calls += 1
            return calls

        def look():
            return calls

        def double(point):
            return Point(2 * point.x)

        @functools.lru_cache
        def cached(number):
            return number * STEP

        def fail():
            raise OwnError("mine")

        def child():
            global STEP
            with HPCPoolExecutor(1, initializer=initialize, initargs=(5,)) as ex:
                doubled = ex.submit(double, Point(3)).result()
                print(doubled.x, type(doubled) is Point, count.__module__)
                print(ex.submit(double, ex.submit(Point, 4)).result().x)
                print(ex.submit(count).result(), ex.submit(count).result(), ex.submit(look).result(), calls)
                print(ex.submit(Point(3).moved).result().x, ex.submit(cached, 3).result())
                STEP = 10
                print(ex.submit(Point(3).moved).result().x, list(ex.map(lambda n: n * STEP, range(3))))
                print(type(ex.submit(fail).exception()) is OwnError)

        if __name__ == "__main__":
            process = multiprocessing.get_context({method!r}).Process(target=child)
            process.start()
            process.join()
        """,
    )
    assert lines == ["6 True __mp_main__", "8", "6 7 7 0", "4 3", "13 [0, 10, 20]", "True"]


# The end


@pytest.mark.parametrize("end", ["", "ex.shutdown(wait=False)", "del ex", "ex.shutdown()"])
def test_what_is_pending_when_the_program_ends_is_finished_first(tmp_path: Path, end: str):
    lines = output_of(
        tmp_path / "program.py",
        f"""
        import time
        from hpcpool import HPCPoolExecutor

        def slow(n):
            time.sleep(0.1)
            print("call", n)
            return n

        ex = HPCPoolExecutor(2)
        first = ex.submit(slow, 1)
        second = ex.submit(slow, first)
        second.add_done_callback(lambda future: print("callback", future.result()))
        {end}
        """,
    )
    assert lines == ["call 1", "call 1", "callback 1"]


def test_maps_and_joins_that_are_pending_when_the_program_ends_are_finished_first(tmp_path: Path):
    lines = output_of(
        tmp_path / "program.py",
        """
        from hpcpool import HPCPoolExecutor

        def grow(n):
            return [ex.submit(pow, n, 2), ex.join(lambda m: ex.submit(pow, m, 3), ex.submit(abs, n))]

        ex = HPCPoolExecutor(2)
        seen = []
        unread = ex.map(lambda n: print("item", n) if n in (0, 2999) else None, (n for n in range(3000)))
        ex.map(lambda n: print("dropped", n), iter([1]))
        ex.join(grow, ex.submit(int, "3")).add_done_callback(lambda future: print("joined", future.result()))
        """,
    )
    assert sorted(lines) == ["dropped 1", "item 0", "item 2999", "joined [9, 27]"]


def test_an_endless_map_that_somebody_began_does_not_keep_the_program_from_ending(tmp_path: Path):
    lines = output_of(
        tmp_path / "program.py",
        """
        import itertools
        from hpcpool import HPCPoolExecutor

        ex = HPCPoolExecutor(2)
        results = ex.map(abs, itertools.count())
        print(next(results), next(results))
        with HPCPoolExecutor(2) as inner:
            more = inner.map(abs, itertools.count())
            for number in more:
                if number == 10:
                    break
        print(number)
        """,
    )
    assert lines == ["0 1", "10"]


def test_submitting_while_the_program_ends_is_an_error(tmp_path: Path):
    lines = output_of(
        tmp_path / "program.py",
        """
        import atexit

        def late():
            for use in (lambda: ex.submit(abs, 1), lambda: HPCPoolExecutor(1).submit(abs, 1)):
                try:
                    use()
                except RuntimeError as error:
                    print(type(error).__name__, error)

        atexit.register(late)
        from hpcpool import HPCPoolExecutor
        ex = HPCPoolExecutor(1)
        print(ex.submit(abs, -1).result())
        """,
    )
    assert lines == ["1"] + ["RuntimeError cannot schedule new futures after interpreter shutdown"] * 2


def test_a_program_that_fails_in_the_block_ends_with_its_own_error(tmp_path: Path):
    path = tmp_path / "program.py"
    path.write_text(
        "from hpcpool import HPCPoolExecutor\n"
        "with HPCPoolExecutor(1) as ex:\n"
        "    future = ex.submit(print, 'from a call')\n"
        "    raise KeyError('its own')\n"
    )
    done = run(path)
    assert (done.returncode, done.stdout) == (1, "from a call\n")
    assert done.stderr.splitlines()[-1] == "KeyError: 'its own'"
    assert "During handling" not in done.stderr


def test_a_program_may_exit_in_the_block(tmp_path: Path):
    path = tmp_path / "program.py"
    path.write_text(
        "import sys\n"
        "from hpcpool import HPCPoolExecutor\n"
        "with HPCPoolExecutor(1) as ex:\n"
        "    ex.submit(print, 'from a call')\n"
        "    sys.exit(7)\n"
    )
    done = run(path)
    assert (done.returncode, done.stdout, done.stderr) == (7, "from a call\n", "")


def test_a_thread_that_is_no_daemon_may_go_on_submitting(tmp_path: Path):
    lines = output_of(
        tmp_path / "program.py",
        """
        import threading
        from hpcpool import HPCPoolExecutor

        def use():
            with HPCPoolExecutor(1) as ex:
                started.set()
                print(list(ex.map(abs, range(3))))

        started = threading.Event()
        thread = threading.Thread(target=use)
        thread.start()
        started.wait()
        thread.join()
        """,
    )
    assert lines == ["[0, 1, 2]"]


def test_the_collector_may_run_at_any_time(tmp_path: Path):
    lines = output_of(
        tmp_path / "program.py",
        """
        import gc
        from hpcpool import HPCPoolExecutor

        class Trash:
            def __init__(self):
                self.me = self

            def __del__(self):
                if is_on:
                    future = ex.submit(int)
                    future.cancel()
                    future.add_done_callback(lambda future: None)
                    ex.map(abs, iter([1]))

        is_on = True
        with HPCPoolExecutor(1) as ex:
            ex.submit(int).result()
            gc.set_threshold(1, 1, 1)
            for number in range(150):
                Trash()
                future = ex.submit(int)
                future.add_done_callback(lambda future: Trash())
                if number % 2:
                    future.result()
            gc.set_threshold(700, 10, 10)
            is_on = False
        print("done")
        """,
    )
    assert lines == ["done"]


def test_workers_run_under_the_interpreters_flags(tmp_path: Path):
    (tmp_path / "flags.py").write_text(
        textwrap.dedent("""
        import sys, warnings

        def flags():
            assert False
            warns = [entry[:3] for entry in warnings.filters if entry[2] is UserWarning]
            return sys.flags.optimize, sys.flags.utf8_mode, sys.flags.dev_mode, sys._xoptions, sys.warnoptions, warns
        """)
    )
    path = tmp_path / "program.py"
    path.write_text(
        textwrap.dedent("""
        import multiprocessing
        from flags import flags
        from hpcpool import HPCPoolExecutor

        if __name__ == "__main__":
            mine = flags()
            assert mine[:2] == (1, 1) and mine[-1][0][0] == "error", mine
            for method in "fork", "spawn":
                with HPCPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
                    theirs = pool.submit(flags).result()
                    assert theirs == mine, (method, theirs, mine)
            print("same")
        """)
    )
    done = run("-O", "-X", "utf8", "-W", "error::UserWarning", path)
    assert (done.stdout, done.stderr) == ("same\n", "")
