"""A user's program as a type checker sees it: never run. `type: ignore` marks what must be an error."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Executor, Future, as_completed, wait
from pathlib import Path
from typing import Any, assert_type

from hpcpool import (
    BashResult,
    Config,
    ExecutorView,
    HPCPoolExecutor,
    NodePool,
    PoolStatus,
    TaskFuture,
    TaskInfo,
    WorkerCrashed,
)
from hpcpool.apps import App, bash_app, join_app, python_app
from hpcpool.providers import LocalProvider


def add(a: int, b: int = 0) -> int:
    return a + b


def takes_all(values: list[int]) -> str:
    return str(values)


def wants_an_executor(executor: Executor) -> None:
    executor.submit(add, 1)


def made_of() -> None:
    HPCPoolExecutor()
    HPCPoolExecutor(4)
    HPCPoolExecutor("cluster.toml")
    HPCPoolExecutor(Path("cluster.toml"), max_workers=2)
    HPCPoolExecutor(Config(NodePool(LocalProvider())))
    HPCPoolExecutor(NodePool(LocalProvider()))
    HPCPoolExecutor(LocalProvider())
    HPCPoolExecutor(max_workers=2, mp_context=None, initializer=print, initargs=("a", 1), max_tasks_per_child=5)
    HPCPoolExecutor(2.5)  # type: ignore[arg-type]
    HPCPoolExecutor(workers=4)  # type: ignore[call-arg]
    HPCPoolExecutor(initializer=5)  # type: ignore[arg-type]


def puts(pool: HPCPoolExecutor) -> None:
    numbers = pool.put([1, 2, 3])
    assert_type(numbers, TaskFuture[list[int]])
    assert_type(pool.options(name="numbers").put(3), TaskFuture[int])
    assert_type(pool.submit(takes_all, numbers), TaskFuture[str])


def submits(pool: HPCPoolExecutor) -> None:
    future = pool.submit(add, 1, b=2)
    assert_type(future, TaskFuture[int])
    assert_type(future.result(), int)
    assert_type(future.result(timeout=1.5), int)
    assert_type(future.exception(), BaseException | None)
    assert_type(future.cancel(), bool)
    assert_type(future.kill(), bool)
    assert_type(future.info, TaskInfo)
    assert_type(future.info.pid, int | None)
    assert_type(future.info.name, str)
    assert_type(pool.submit(lambda: "text").result(), str)
    assert_type(pool.submit(Path, "a"), TaskFuture[Path])
    pool.submit()  # type: ignore[call-arg]
    pool.submit(5)  # type: ignore[arg-type]


def takes_futures_as_arguments(pool: HPCPoolExecutor, view: ExecutorView) -> None:
    one = pool.submit(add, 1)
    assert_type(pool.submit(add, one, b=one), TaskFuture[int])
    assert_type(pool.submit(takes_all, [one, one]), TaskFuture[str])
    assert_type(view.submit(add, one), TaskFuture[int])


def maps(pool: HPCPoolExecutor) -> None:
    results = pool.map(add, [1, 2], (n for n in range(2)), timeout=5.0, chunksize=2, buffersize=3)
    assert_type(results, Iterator[int])
    assert_type(list(pool.map(str, [1], chunksize="auto", unordered=True, progress=True)), list[str])
    pool.map(add, [1], chunksize="many")  # type: ignore[arg-type]
    pool.map(add, 5)  # type: ignore[arg-type]


def views(pool: HPCPoolExecutor) -> None:
    view = pool.options(retries=1, retry_on=ValueError, timeout=5, priority=1, crash_limit=2, name="x")
    assert_type(view, ExecutorView)
    assert_type(view.options(timeout=None), ExecutorView)
    assert_type(view.submit(add, 1), TaskFuture[int])
    pool.options(retry_on=(ValueError, KeyError))
    pool.options(retry_on=lambda error: "again" in str(error))
    pool.options(cores=8, gpus=1, memory="16GB", nodes=2, ranks=64, pool="gpu", time_request=3600.0)
    pool.options(cores=None, memory=10**9)
    assert_type(pool.options(keep=True).submit(add, 1), TaskFuture[int])
    pool.options(keep=1)  # type: ignore[arg-type]
    pool.options(cores="many")  # type: ignore[arg-type]
    pool.options(retries="many")  # type: ignore[arg-type]
    pool.options(retry=1)  # type: ignore[call-arg]
    wants_an_executor(view)
    wants_an_executor(pool)


def blocks() -> None:
    with HPCPoolExecutor() as pool:
        assert_type(pool, HPCPoolExecutor)
    with pool.options(name="x") as view:
        assert_type(view, ExecutorView)
    pool.shutdown(wait=False, cancel_futures=True)
    pool.terminate_workers()
    pool.kill_workers()


def runs_bash(pool: HPCPoolExecutor) -> None:
    future = pool.bash("echo {text} > {out}", text="a", out=Path("b"), timeout=5, check=False, stdout="log")
    assert_type(future, TaskFuture[BashResult])
    assert_type(future.result().returncode, int)
    assert_type(pool.bash(["ls", "-l"]), TaskFuture[BashResult])


def looks_at_the_pool(pool: HPCPoolExecutor, view: ExecutorView) -> None:
    status = pool.status()
    assert_type(status, PoolStatus)
    assert_type(view.status(), PoolStatus)
    assert_type(status.blocks[0].ends_at, float | None)
    assert_type(status.nodes[0].slots, int)
    assert_type(status.node_pools[0].ordered, int | None)
    assert_type(pool.job_script("default"), str)
    pool.scale(3)
    pool.scale(None, pool="default")
    pool.scale("many")  # type: ignore[arg-type]
    view.wait_for_workers()
    pool.wait_for_workers(4, timeout=60)


def joins(pool: HPCPoolExecutor) -> None:
    assert_type(pool.join(lambda n: [pool.submit(add, n)], pool.submit(add, 1)), TaskFuture[Any])


def works_with_the_standard_library(pool: HPCPoolExecutor) -> None:
    futures = [pool.submit(add, n) for n in range(3)]
    assert_type(futures, list[TaskFuture[int]])
    for future in as_completed(futures):
        assert_type(future.result(), int)
    done, _ = wait(futures)
    assert_type(sum(future.result() for future in done), int)
    plain: Future[int] = futures[0]
    plain.add_done_callback(lambda future: print(future.result() + 1))


async def works_with_asyncio(pool: HPCPoolExecutor) -> None:
    assert_type(await asyncio.wrap_future(pool.submit(add, 1)), int)
    loop = asyncio.get_running_loop()
    assert_type(await loop.run_in_executor(pool, add, 1), int)


def errors(error: WorkerCrashed) -> None:
    assert_type(error.signal, int | None)
    assert_type(error.exit_code, int | None)
    assert_type(error.stderr_tail, str)


@python_app
def adds(a: int) -> int:
    return a


@python_app(retries=2)
def says(a: str) -> str:
    return a


@bash_app
def lists(path: str) -> str:
    return f"ls {path}"


@join_app
def grows(n: int) -> list[TaskFuture[int]]:
    return [adds(i) for i in range(n)]


def apps() -> None:
    assert_type(adds, App[int])
    assert_type(adds(1), TaskFuture[int])
    assert_type(says("a"), TaskFuture[str])
    assert_type(lists("."), TaskFuture[BashResult])
    assert_type(grows(3), TaskFuture[Any])
