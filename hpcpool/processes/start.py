"""Where every hpcpool process begins: `python -P start.py ROLE …`. It finds the package and calls the role's `main`.

It is run by its path, not with `-m`: no user file named like a module of the standard library, in the working
directory, can then get in the way, and the package need not be on the interpreter's own path.
"""

import os
import signal
import sys


def _run() -> None:
    # Whatever the user's program has blocked or ignored, which an exec keeps: the ends of children must be heard of.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # This copy of the package, also where another one is installed: all processes of a pool must speak alike.
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.path.insert(0, root)
    import hpcpool.processes  # noqa: F401

    del sys.path[0]
    if root not in sys.path:
        sys.path.append(root)
    role = sys.argv[1] if len(sys.argv) > 1 else ""
    if role == "interchange":
        from hpcpool.processes.start_command import HOSTS_NODE

        directory, _, _, census, *options = sys.argv[2:]
        if HOSTS_NODE in options:  # the fork server of that node may as well load its modules now
            from hpcpool.processes.fork_server_process import start_ahead

            start_ahead(int(census), os.path.join(directory, "fork-server.log"))
        from hpcpool.processes.interchange_main import main
    elif role == "manager":
        from hpcpool.processes.manager_process import main
    elif role == "fork-server":
        from hpcpool.processes.fork_server import main
    elif role == "worker":
        from hpcpool.processes.worker import main
    elif role == "rank":
        from hpcpool.mpi.rank import main
    else:
        sys.exit(f"hpcpool: start.py knows the roles interchange, manager, fork-server, worker and rank, not {role!r}")
    main(sys.argv[2:])


if __name__ == "__main__":
    _run()
