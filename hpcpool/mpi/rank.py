"""One rank of an MPI step: gets the call from the first rank, runs it, and has the first rank answer for all.

One more thread in the first rank: it waits for the end of stdin. That comes when the process that started the step dies
in whatever way; then the ranks end, which `srun`, killed, would not see to.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, NoReturn

from hpcpool.errors import MPIError
from hpcpool.mpi import answer
from hpcpool.wire.payload import install_main


def main(argv: list[str]) -> None:
    """Be a rank: the mark of the answer, the number of ranks, and whose results are asked for."""
    mark, ranks, mode = argv
    stdout = os.dup(1)
    os.dup2(2, 1)  # the answer must be alone there: what ranks print at the same time runs together
    try:
        comm = _world(int(ranks))
    except MPIError as error:
        _write(stdout, answer.failure_line(mark, error))
        sys.exit(1)
    try:
        results = _results(comm, mode)
    except BaseException as error:  # noqa: BLE001 - user code; the user gets it
        _fail(comm, stdout, answer.failure_line(mark, error))
    if comm.rank == 0:
        _write(stdout, answer.results_line(mark, results))


def _world(ranks: int) -> Any:
    """The communicator of all ranks."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # not installed; or no MPI library
        raise MPIError(
            f"MPI ranks need mpi4py and an MPI library, and {sys.executable} cannot load them: {error}"
        ) from error
    comm = MPI.COMM_WORLD
    if comm.size != ranks:
        library = MPI.Get_library_version().split(",")[0].strip("\0\n ")
        raise MPIError(
            f"{ranks} ranks were started, but each sees {comm.size}: the program that started them does not belong to"
            f" the MPI library of mpi4py ({library}); name another one in HPCPOOL_MPI, such as 'srun --mpi=pmix'"
        )
    return comm


def _results(comm: Any, mode: str) -> list[bytes]:
    """Run the call; at the first rank the results that are asked for, once all ranks have ended it."""
    path, cwd, call = answer.surroundings(comm.bcast(_read_call() if comm.rank == 0 else None))
    sys.path[:] = path
    if os.path.isdir(cwd):
        os.chdir(cwd)
    install_main()
    function, args, kwargs = answer.open_call(call)
    result = answer.pickled_result(function(*args, **kwargs))
    gathered = comm.gather(result if mode == answer.OF_ALL or comm.rank == 0 else None)
    return [one for one in gathered or () if one is not None]


def _read_call() -> bytes:
    call = _read(int.from_bytes(_read(answer.LENGTH_BYTES), "big"))
    threading.Thread(target=_leave_with_stdin, name="end of stdin", daemon=True).start()
    return call


def _read(size: int) -> bytes:
    # Not by sys.stdin: a thread that reads there when the interpreter ends is a fatal error.
    data = bytearray()
    while len(data) < size:
        piece = os.read(0, min(size - len(data), 1 << 20))
        if not piece:
            raise MPIError("the process that started the ranks has died")
        data += piece
    return bytes(data)


def _leave_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def _fail(comm: Any, stdout: int, line: bytes) -> NoReturn:
    """Answer, and end all ranks: the others may wait for this one for ever."""
    import traceback

    traceback.print_exc()
    _write(stdout, line)
    comm.Abort(1)
    sys.exit(1)


def _write(descriptor: int, data: bytes) -> None:
    sys.stderr.flush()
    with open(descriptor, "wb") as file:
        file.write(data)
