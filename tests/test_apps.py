"""The decorators: what they refuse and keep, where apps run, and whole programs that use them."""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import pytest

from hpcpool import BashError, BashTimeout, DependencyError, HPCPoolExecutor, MissingOutputs
from hpcpool.apps import bash_app, join_app, python_app

DECORATORS = [python_app, bash_app, join_app]

#: What a worker that imports this module sees; the tests change it here.
state = "as imported"


@python_app
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@python_app
def worker_parent() -> int:
    """Tells pools apart: all workers of one have one parent."""
    return os.getppid()


@python_app
def see_state() -> str:
    return state


@python_app
def call_add() -> int:
    return add(1).result()


@join_app
def fibonacci(n):
    return add(fibonacci(n - 1), fibonacci(n - 2)) if n > 2 else add(1, 0)


class Scale:
    def __init__(self, factor):
        self.factor = factor

    @python_app
    def times(self, n):
        return self.factor * n

    @staticmethod
    @python_app
    def negated(n):
        return -n

    @classmethod
    @python_app
    def made(cls, factor):
        return cls(factor).factor

    @bash_app
    def echo(self, text):
        return f"echo {self.factor} {text}"


@pytest.fixture(scope="module")
def ex() -> Iterator[HPCPoolExecutor]:
    """For apps that are given an executor. It is in no `with` block, so it is nobody's innermost."""
    executor = HPCPoolExecutor(2)
    executor.submit(abs, 1).result()  # Now it has started: no test will be blamed for its processes.
    yield executor
    executor.shutdown()


@pytest.fixture
def inside(ex) -> Iterator[HPCPoolExecutor]:
    """In a `with` block; a view of `ex`, to be fast: leaving it does not end the workers."""
    with ex.options():
        yield ex


def run_program(text: str, folder: Path, **options) -> str:
    """What a program prints that is a script in `folder`."""
    script = folder / "program.py"
    script.write_text(textwrap.dedent(text), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", script], cwd=folder, capture_output=True, text=True, timeout=60, **options
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# What the decorators make and refuse


@pytest.mark.parametrize("decorator", DECORATORS)
@pytest.mark.parametrize("arguments", [None, {}, {"name": "other"}])
def test_an_app_looks_like_its_function(decorator, arguments):
    def function(a: int, *, b: str = "") -> str:
        """Say what it does."""
        raise AssertionError("it is not called")

    app = decorator(function) if arguments is None else decorator(**arguments)(function)
    assert app.__wrapped__ is function
    assert app.__name__ == "function"
    assert app.__doc__ == "Say what it does."
    assert inspect.signature(app) == inspect.signature(function)
    assert repr(app).startswith("<app test_an_app_looks_like_its_function.<locals>.function")


@pytest.mark.parametrize("decorator", DECORATORS)
def test_what_is_no_function_is_refused(decorator):
    with pytest.raises(TypeError, match=f"{decorator.__name__} is given a function, and the rest by name"):
        decorator(HPCPoolExecutor(1))


@pytest.mark.parametrize("decorator", DECORATORS)
def test_what_is_no_executor_is_refused(decorator):
    with ThreadPoolExecutor(1) as threads, pytest.raises(TypeError, match="is an HPCPoolExecutor, a view of one or"):
        decorator(executor=threads)


@pytest.mark.parametrize("decorator", [python_app, bash_app])
def test_an_unknown_option_is_refused_with_the_known_ones(decorator):
    with pytest.raises(TypeError, match=f"{decorator.__name__} has no option 'cache'; it has executor, retries, "):
        decorator(cache=True)


@pytest.mark.parametrize("decorator", [python_app, bash_app])
@pytest.mark.parametrize(
    ("option", "value", "error"), [("retries", -1, ValueError), ("timeout", "1", TypeError), ("name", 1, TypeError)]
)
def test_an_impossible_option_is_refused_where_the_app_is_made(decorator, option, value, error):
    with pytest.raises(error, match=option):
        decorator(**{option: value})


def test_a_join_app_has_only_a_name():
    with pytest.raises(TypeError, match="retries"):
        join_app(retries=1)
    with pytest.raises(TypeError, match="name must be a string"):
        join_app(name=1)


def test_an_app_of_a_module_is_pickled_by_name():
    assert pickle.loads(pickle.dumps(add)) is add
    assert pickle.loads(pickle.dumps(Scale.times)) is Scale.times


def test_an_app_that_cannot_be_found_by_name_is_pickled_without_its_executor():
    app = python_app(executor=HPCPoolExecutor(1), retries=2)(lambda n: n + 1)
    copy = cloudpickle.loads(cloudpickle.dumps(app))
    assert copy is not app
    assert copy.__wrapped__(1) == 2
    assert repr(copy) == repr(app)


# Where apps run


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_a_call_gives_a_future_of_what_the_function_returns():
    future = add(1, b=2)
    assert isinstance(future, Future)
    assert future.result() == 3
    assert future.info.name == "add"


@pytest.mark.live
def test_an_app_runs_on_the_executor_that_it_is_given(ex):
    parent = ex.submit(os.getppid).result()
    app = python_app(executor=ex)(os.getppid)
    view_app = python_app(executor=ex.options(name="seen"), retries=1)(os.getppid)
    with HPCPoolExecutor(1):
        assert app().result() == view_app().result() == parent
        assert worker_parent().result() != parent
    assert view_app().info.name == "seen"


@pytest.mark.live
def test_an_app_runs_on_the_executor_of_the_innermost_block(ex):
    with ex.options() as outer:
        parent = outer.submit(os.getppid).result()
        with HPCPoolExecutor(1) as inner:
            assert worker_parent().result() == inner.submit(os.getppid).result() != parent
        assert worker_parent().result() == parent


@pytest.mark.live
def test_the_options_of_a_view_hold_for_the_apps_in_its_block(ex):
    with ex.options(name="of the view", timeout=0.2):
        assert add(1).info.name == "of the view"
        with pytest.raises(TimeoutError):
            python_app(time.sleep)(60).result()


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_options_of_an_app(tmp_path):
    log = tmp_path / "log"

    @python_app(retries=2, retry_on=OSError, name="flaky")
    def fail(error):
        with log.open("a") as file:
            file.write("x")
        raise error

    future = fail(OSError("again"))
    with pytest.raises(OSError, match="again"):
        future.result()
    assert log.read_text() == "xxx"
    assert future.info.name == "flaky"
    with pytest.raises(KeyError):
        fail(KeyError()).result()
    assert log.read_text() == "xxxx"


@pytest.mark.live
def test_an_app_called_in_a_thread_uses_the_block_of_the_main_thread(inside):
    parent = inside.submit(os.getppid).result()
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(lambda: worker_parent().result()).result() == parent


@pytest.mark.live
def test_apps_and_asyncio(ex):
    async def main():
        with ex.options():
            return await asyncio.gather(*(asyncio.wrap_future(add(n)) for n in range(3)))

    assert asyncio.run(main()) == [1, 2, 3]


# Functions and arguments


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_futures_anywhere_in_the_arguments_are_dependencies():
    @python_app
    def total(numbers, more):
        return sum(numbers) + sum(more.values())

    two, three = add(1), add(2)
    assert total([two, three], more={"x": add(two, three)}).result() == 10


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_an_app_whose_argument_failed_is_not_run():
    with pytest.raises(DependencyError) as caught:
        add(python_app(int)("no number")).result()
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_wrong_arguments_are_the_error_of_the_function():
    with pytest.raises(TypeError, match=r"add\(\) missing 1 required positional argument: 'a'"):
        add().result()


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_keywords_of_any_name_are_the_functions():
    @python_app
    def keywords(**given):
        return given

    given = {"self": 1, "fn": 2, "executor": 3, "timeout": 4, "stdout": 5, "args": 6, "function": 7}
    assert keywords(**given).result() == given


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_apps_work_as_methods():
    scale = Scale(3)
    assert scale.times(2).result() == Scale.times(scale, 2).result() == 6
    assert Scale.negated(2).result() == scale.negated(2).result() == -2
    assert Scale.made(5).result() == 5
    assert scale.echo("times").result().stdout == "3 times\n"


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_apps_of_a_class_that_cannot_be_imported_work_as_methods():
    class Local(Scale):
        @python_app
        def times_two(self):
            return 2 * super().times.__wrapped__(self, 1)

    assert Local(3).times(2).result() == 6
    assert Local(3).times_two().result() == 6


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_a_function_of_a_module_is_imported_by_the_worker(monkeypatch):
    monkeypatch.setitem(globals(), "state", "changed here")
    assert see_state().result() == "as imported"


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_a_changed_closure_is_seen():
    factor = 2

    @python_app
    def scaled(n):
        return n * factor

    assert scaled(3).result() == 6
    factor = 5
    assert scaled(3).result() == 15


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_an_app_can_call_the_function_of_an_app_and_itself():
    @python_app
    def factorial(n):
        return n * factorial.__wrapped__(add.__wrapped__(n, -1)) if n else 1

    assert factorial(5).result() == 120


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_an_app_called_in_a_worker_says_what_to_do():
    with pytest.raises(RuntimeError, match="an app was called inside a worker.* join_app"):
        call_add().result()


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_an_app_can_be_called_in_a_worker_that_has_an_executor():
    @python_app
    def nested():
        with HPCPoolExecutor(1):
            return add(1).result()

    assert nested().result() == 2


# Bash apps


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_a_bash_app_runs_what_its_function_returns():
    @bash_app
    def greet(name, excited=False):
        return f'echo "Hello {name}{"!" * excited} {{}} ${{#HOME}}" | tr a-z A-Z'

    future = greet("you", excited=True)
    assert future.result().stdout == f"HELLO YOU! {{}} {len(os.environ['HOME'])}\n"
    assert future.info.name.endswith("greet")


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_the_function_of_a_bash_app_sees_results(tmp_path):
    @bash_app
    def numbers(count, stdout):
        return f"seq {count}"

    @bash_app
    def last(result):
        return ["tail", "-n", "1", result.stdout_path]

    path = tmp_path / "numbers"
    written = numbers(add(1, 2), stdout=python_app(str)(path))
    assert last(written).result().stdout == "3\n"
    assert path.read_text() == "1\n2\n3\n"


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_defaults_of_a_bash_apps_parameters_hold(tmp_path):
    @bash_app
    def both(cwd=tmp_path, stdout="out", stderr=("err", "a"), env={"WORD": "it's"}, check=False):  # noqa: B006
        return 'echo "$WORD"; echo wrong >&2; exit 4'

    assert both().result().returncode == 4
    assert both(stdout=None).result().stdout == "it's\n"
    assert (tmp_path / "out").read_text() == "it's\n"
    assert (tmp_path / "err").read_text() == "wrong\nwrong\n"
    with pytest.raises(BashError, match="failed with exit code 4"):
        both(check=True).result()


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_outputs_of_a_bash_app_are_checked_and_inputs_are_any_values(tmp_path):
    @bash_app
    def touch(inputs=(), outputs=()):
        return f"touch {inputs[0]}"

    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert touch(inputs=[one, 2], outputs=[one]).result().outputs == (one,)
    with pytest.raises(MissingOutputs, match="two"):
        touch(inputs=[one], outputs=[two]).result()


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_a_bash_app_has_a_time_limit():
    @bash_app
    def sleep(timeout=0.2):
        return "sleep 60"

    with pytest.raises(BashTimeout):
        sleep().result()


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_a_bash_app_that_returns_no_command_says_so():
    @bash_app
    def forgetful():
        pass

    with pytest.raises(TypeError, match="forgetful must return its command"):
        forgetful().result()


# Join apps


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_a_graph_grows_while_it_runs():
    assert fibonacci(8).result() == 21


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_a_join_app_runs_here_and_its_futures_become_results():
    threads = []

    @join_app
    def spread(count):
        threads.append(threading.current_thread())
        return {"numbers": [add(n) for n in range(count)], "count": count}

    assert spread(add(1)).result() == {"numbers": [1, 2], "count": 2}
    assert threads != [threading.main_thread()]


@pytest.mark.live
def test_the_apps_that_a_join_app_calls_use_its_executor(ex):
    @join_app(executor=ex, name="joined")
    def parents():
        return [worker_parent(), join_app(worker_parent)()]

    parent = ex.submit(os.getppid).result()
    with HPCPoolExecutor(1):
        future = parents()
        assert future.result() == [parent, parent]
    assert future.info.name == "joined"


@pytest.mark.live
@pytest.mark.usefixtures("inside")
def test_a_join_app_that_raises_fails_its_future():
    @join_app
    def fail():
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        fail().result()


# Programs

#: As users write it who come from Parsl; it must run as it stands, without a guard.
HELLO = """\
from hpcpool.apps import bash_app, join_app, python_app

@python_app
def hello():
    return 'Hello World!'
print(hello().result())

@bash_app
def echo_hello(stdout='echo-hello.stdout'):
    return 'echo "Hello World!"'
echo_hello().result()
with open('echo-hello.stdout', 'r') as f:
    print(f.read())
"""


@pytest.mark.live
@pytest.mark.parametrize("how", ["script", "-c", "stdin"])
def test_a_program_needs_no_executor_and_no_guard(how, tmp_path):
    if how == "script":
        assert run_program(HELLO, tmp_path) == "Hello World!\nHello World!\n\n"
        return
    arguments = ["-c", HELLO] if how == "-c" else ["-"]
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        input=HELLO,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("Hello World!\nHello World!\n\n", "", 0)


@pytest.mark.live
def test_all_apps_without_an_executor_share_one(tmp_path):
    program = """
    import os
    from hpcpool.apps import join_app, python_app

    parent = python_app(os.getppid)

    @join_app
    def joined():
        return [parent() for _ in range(4)]

    print(len({parent().result(), *joined().result()}))
    """
    assert run_program(program, tmp_path) == "1\n"


@pytest.mark.live
def test_calls_that_are_pending_at_the_end_of_the_program_are_finished(tmp_path):
    program = """
    import time
    from hpcpool.apps import bash_app, python_app

    @python_app
    def slow():
        time.sleep(0.3)
        return "done"

    @bash_app
    def write(text, stdout="pending.txt"):
        return f"echo {text}"

    write(slow())
    """
    assert run_program(program, tmp_path) == ""
    assert (tmp_path / "pending.txt").read_text() == "done\n"


@pytest.mark.live
def test_a_join_that_is_pending_at_the_end_of_the_program_is_finished(tmp_path):
    program = """
    import time
    from hpcpool.apps import bash_app, join_app, python_app

    @python_app
    def slow():
        time.sleep(0.3)
        return 3

    @bash_app
    def write(text, stdout="pending.txt"):
        return f"echo {text}"

    @join_app
    def write_all(count):
        return [write(n, stdout=f"{n}.txt") for n in range(count)]

    write_all(slow())
    """
    assert run_program(program, tmp_path) == ""
    assert [(tmp_path / f"{n}.txt").read_text() for n in range(3)] == ["0\n", "1\n", "2\n"]


@pytest.mark.live
def test_leaving_the_block_waits_for_a_join(ex):
    with HPCPoolExecutor(1):
        future = fibonacci(add(4))
    assert future.done()
    assert future.result() == 5


@pytest.mark.live
def test_a_forked_child_has_a_shared_executor_of_its_own(tmp_path):
    program = """
    import os, sys, warnings
    from hpcpool.apps import python_app

    warnings.simplefilter("ignore", DeprecationWarning)  # of the fork itself, since Python 3.12
    parent = python_app(os.getppid)
    before = parent().result()
    child = os.fork()
    if child == 0:
        print(parent().result() != before)
        sys.exit()
    print(os.waitpid(child, 0)[1], parent().result() == before)
    """
    assert sorted(run_program(program, tmp_path).splitlines()) == ["0 True", "True"]


@pytest.mark.live
def test_a_shared_executor_that_broke_is_replaced(tmp_path):
    program = """
    import os
    from hpcpool import BrokenPool
    from hpcpool.apps import python_app

    @python_app
    def interchange():
        import psutil
        return next(p.pid for p in psutil.Process().parents() if "interchange" in p.cmdline())

    os.kill(interchange().result(), 9)
    while True:
        try:
            print(python_app(abs)(-1).result())
            break
        except BrokenPool:
            pass
    """
    assert run_program(program, tmp_path) == "1\n"
