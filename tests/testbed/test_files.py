"""Files of the client on nodes that do not see them: brought there once, brought back whole, or told why not."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from hpcpool import (
    BrokenPool,
    Config,
    File,
    FileMismatch,
    HPCPoolExecutor,
    MissingOutputs,
    NodePool,
    TaskKilled,
    TaskTimeout,
)
from hpcpool.providers import SSHProvider
from hpcpool.wire import run_directory
from tests.live import calls
from tests.live.processes import PATIENCE_S, Pool, executor, until
from tests.testbed import apart, sshd
from tests.testbed.machine import missing, require
from tests.testbed.namespaces import Host, hosts, run

pytestmark = pytest.mark.testbed

MIB = 2**20
DATA = random.Random(1).randbytes(3 * MIB + 17)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The client's working directory, which nodes do not see."""
    if os.geteuid() != 0:
        missing("hiding a folder from processes needs root")
    apart.install(monkeypatch, tmp_path / "site")
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    run(*apart.without(str(home), "true"))
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def pool(home) -> Iterator[HPCPoolExecutor]:
    with executor(nodes(home)) as pool:
        yield pool


def nodes(home: Path, blocks: int = 1, **options: object) -> NodePool:
    limits = {"init_blocks": blocks, "max_blocks": blocks, "max_idle_time": None, "worker_init": "cd /"}
    return NodePool(apart.ApartProvider(str(home)), workers_per_node=2, **limits, **options)  # type: ignore[arg-type]


def read(file: File) -> tuple[str, bytes]:
    path = os.fspath(file)
    return path, Path(path).read_bytes()


def write(file: File, data: bytes) -> File:
    Path(file).write_bytes(data)
    return file


def on_the_way(home: Path) -> list[str]:
    """What the interchange is writing there: files that have no name yet, or another one."""
    interchange = Pool.below(os.getpid()).interchange
    found = []
    for descriptor in Path(f"/proc/{interchange.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(descriptor))
    return [path for path in found if path.startswith(f"{home}/")]


def leavings(home: Path) -> list[str]:
    """What is there of files that have not come whole."""
    return [path.name for path in home.rglob("*") if path.name.endswith(".hpcpool")]


# To the node


@pytest.mark.parametrize("name", ["x.csv", "data/x.csv"])
def test_a_file_that_the_node_does_not_see_is_brought_there(pool, home, name):
    (home / name).write_bytes(DATA)
    path, data = pool.submit(read, File(name)).result(PATIENCE_S)
    assert data == DATA
    assert path != str(home / name)
    assert Path(path).name == "x.csv"


def test_it_is_brought_once_however_many_ask_is_read_only_and_goes_with_the_pool(home):
    program = home / "program"
    program.write_bytes(DATA)
    program.chmod(0o755)
    before = program.stat()
    with executor(nodes(home)) as pool:
        found = set(pool.map(path_and_state, [File("program")] * 20, timeout=PATIENCE_S))
        ((path, inode, mode, changed_ns),) = found
        assert mode == 0o500
        assert changed_ns == before.st_mtime_ns
        assert Path(path).stat().st_ino == inode
    assert not Path(path).exists()


def path_and_state(file: File) -> tuple[str, int, int, int]:
    found = os.stat(file)
    return os.fspath(file), found.st_ino, stat.S_IMODE(found.st_mode), found.st_mtime_ns


def test_each_state_of_a_file_is_brought_anew(pool, home):
    for number, data in enumerate((b"first", b"second", b"third!"), 1):
        (home / "x").write_bytes(data)
        os.utime(home / "x", (number, number))  # the clock of a file system may stand still in between
        assert pool.submit(read, File("x")).result(PATIENCE_S)[1] == data


def test_a_file_that_has_changed_since_the_call_was_submitted_is_an_error_of_that_call_only(pool, home):
    (home / "x").write_bytes(b"as it was")
    gate = pool.submit(calls.wait_for, home.parent / "gate")
    late = pool.submit(read_after, gate, File("x"))
    (home / "x").write_bytes(b"as it is now")
    (home.parent / "gate").touch()
    error = late.exception(PATIENCE_S)
    assert isinstance(error, FileMismatch)
    assert f"{home}/x on {os.uname().nodename} has changed since the call was submitted" in str(error)
    assert pool.submit(read, File("x")).result(PATIENCE_S)[1] == b"as it is now"


def read_after(_: object, file: File) -> bytes:
    return read(file)[1]


def test_a_file_that_was_there_and_is_gone_is_told(pool, home):
    (home / "x").touch()
    gate = pool.submit(calls.wait_for, home.parent / "gate")
    late = pool.submit(read_after, gate, File("x"))
    (home / "x").unlink()
    (home.parent / "gate").touch()
    with pytest.raises(FileNotFoundError, match="was on .* when the call was submitted, and is there no more"):
        late.result(PATIENCE_S)


def test_what_has_another_hash_or_size_than_it_must_have_is_not_used(pool, home):
    (home / "x").write_bytes(DATA)
    digest = hashlib.sha256(DATA).hexdigest()
    assert pool.submit(read, File("x", size=len(DATA), sha256=digest)).result(PATIENCE_S)[1] == DATA
    with pytest.raises(FileMismatch, match=f"x has the SHA-256 hash {digest}, and must have 0000"):
        pool.submit(read, File("x", sha256="0" * 64)).result(PATIENCE_S)
    with pytest.raises(FileMismatch, match="must have 7"):
        pool.submit(read, File("x", size=7)).result(PATIENCE_S)


def test_a_folder_is_not_brought(pool, home):
    with pytest.raises(IsADirectoryError, match="data cannot be brought from .*, as it is a folder: name its files"):
        pool.submit(read, File("data")).result(PATIENCE_S)


def test_a_file_that_is_not_there_is_named_as_the_client_knows_it(pool, home):
    with pytest.raises(FileNotFoundError) as caught:
        pool.submit(read, File("data/none")).result(PATIENCE_S)
    assert f"stands for {home}/data/none of the client's host, which was not there" in caught.value.__notes__[0]


def test_what_the_node_sees_as_well_is_not_brought(pool, home):
    seen = home.parent / "seen"
    seen.write_bytes(DATA)
    assert pool.submit(read, File(str(seen))).result(PATIENCE_S) == (str(seen), DATA)
    made = pool.submit(write, File(str(home.parent / "made")), b"x").result(PATIENCE_S)
    assert Path(made).read_bytes() == b"x"
    assert pool.submit(path_of_output, made).result(PATIENCE_S) == made.source
    assert not [path for path in home.parent.iterdir() if path.name.startswith(".hpcpool")]


def test_what_a_call_changes_where_the_client_sees_it_others_read(pool, home):
    shared = home.parent / "shared"
    for text in (b"one", b"another"):
        made = pool.submit(write, File(str(shared)), text)
        assert pool.submit(read_after, made, File(str(shared))).result(PATIENCE_S) == text


def path_of_output(file: File) -> str:
    return os.fspath(File(file.source, output=True))


def test_a_disk_of_a_node_that_is_full_makes_room_and_if_it_cannot_says_so(home):
    small = home.parent / "small"
    small.mkdir()
    with mounted(small, size="24m"), executor(nodes(home, env={"TMPDIR": str(small)})) as pool:
        for number in range(6):
            data = bytes([number]) * (8 * MIB)
            (home / "data" / f"{number}").write_bytes(data)
            assert pool.submit(read, File(f"data/{number}")).result(PATIENCE_S)[1] == data
        (home / "x").write_bytes(bytes(25 * MIB))
        with pytest.raises(OSError, match="x .* cannot be kept on .*: No space left on device.* by TMPDIR in `env` of"):
            pool.submit(read, File("x")).result(PATIENCE_S)
        assert pool.submit(read, File("data/1")).result(PATIENCE_S)[1] == b"\1" * (8 * MIB)


# And back


@pytest.mark.parametrize("name", ["y.csv", "data/y.csv"])
def test_a_file_that_a_call_makes_is_there_when_its_future_is_done(pool, home, name):
    made = pool.submit(write, File(name), DATA).result(PATIENCE_S)
    assert made == File(name)
    assert Path(made).read_bytes() == DATA
    assert stat.S_IMODE((home / name).stat().st_mode) == 0o644
    assert pool.submit(read, made).result(PATIENCE_S)[1] == DATA
    assert leavings(home) == []


def test_a_file_that_is_named_in_the_call_is_the_clients(pool, home):
    def make(name: str) -> str:
        with open(File(name), "w") as file:
            file.write("made")
        return os.path.dirname(os.fspath(File(name)))

    place = pool.submit(make, "data/new").result(PATIENCE_S)
    assert (home / "data" / "new").read_text() == "made"
    until(lambda: not Path(place).exists(), "nothing stays on the node")
    assert pool.submit(lambda: Path(File("data/new")).read_text()).result(PATIENCE_S) == "made"


def test_an_output_replaces_what_is_there_and_keeps_its_permissions_and_links(pool, home):
    (home / "data" / "y").write_bytes(b"old")
    (home / "data" / "y").chmod(0o640)
    (home / "y").symlink_to(home / "data" / "y")
    pool.submit(write, File("y", output=True), b"new").result(PATIENCE_S)
    assert (home / "y").is_symlink()
    assert (home / "data" / "y").read_bytes() == b"new"
    assert stat.S_IMODE((home / "data" / "y").stat().st_mode) == 0o640


def test_a_call_that_fails_brings_nothing_back(pool, home):
    def fail(file: File) -> None:
        write(file, b"half of it")
        raise KeyError("no more")

    with pytest.raises(KeyError):
        pool.submit(fail, File("y")).result(PATIENCE_S)
    assert sorted(path.name for path in home.iterdir()) == ["data"]


def test_a_folder_that_is_missing_is_told_before_the_call_does_its_work(pool, home):
    with pytest.raises(FileNotFoundError, match=f"in {home}/none on .* no such folder: make it before the call"):
        pool.submit(write, File("none/y"), b"").result(PATIENCE_S)


def test_a_file_that_cannot_be_replaced_is_told_before_the_call_does_its_work(pool, home, tmp_path):
    pool.submit(write, File("y"), b"").result(PATIENCE_S)  # the node knows the folder
    os.mkfifo(home / "pipe")
    worked = tmp_path / "worked"
    command = pool.bash("touch {worked}; echo x > {out}", worked=worked, out=File("pipe", output=True))
    with pytest.raises(OSError, match=f"{home}/pipe cannot be written on .*: it is no regular file"):
        command.result(PATIENCE_S)
    assert not worked.exists()


def test_an_output_that_has_another_hash_than_it_must_have_is_not_kept(pool, home):
    with pytest.raises(FileMismatch, match=f"{home}/y has the SHA-256 hash"):
        pool.submit(write, File("y", sha256="0" * 64), b"x").result(PATIENCE_S)
    assert not (home / "y").exists()


def test_a_disk_that_is_full_fails_that_call_only(pool, home):
    small = home / "small"
    small.mkdir()
    with mounted(small, size="1m"):
        with pytest.raises(OSError, match=f"{small}/y cannot be written on .*: No space left on device for its"):
            pool.submit(write, File("small/y"), DATA).result(PATIENCE_S)
        pool.submit(write, File("small/z"), b"x").result(PATIENCE_S)
        assert [path.name for path in small.iterdir()] == ["z"]


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A disk of this size."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


# Commands


def test_commands_read_and_make_files_that_the_others_read(pool, home):
    (home / "x").write_text("b\na\n")
    out = File("data/sorted")
    sort = pool.bash("sort {x} > {out}", x=File("x"), out=out, inputs=[File("x")], outputs=[out])
    count = pool.bash("wc -l < {out}; cat {out}", out=out, inputs=[sort], stdout=File("log"))
    assert sort.result(PATIENCE_S).outputs == (str(home / "data" / "sorted"),)
    assert (home / "data" / "sorted").read_text() == "a\nb\n"
    assert count.result(PATIENCE_S).stdout_path == str(home / "log")
    assert (home / "log").read_text() == "2\na\nb\n"


def test_a_command_makes_again_what_a_command_before_has_made_and_others_see_the_new(pool, home):
    out = File("y")
    for text in ("one", "another"):
        made = pool.bash("echo {text} > {out}", text=text, out=out, outputs=out)
        read = pool.submit(read_after, made, out)
        assert read.result(PATIENCE_S) == f"{text}\n".encode()


def test_a_command_changes_a_file_in_place(pool, home):
    (home / "x").write_text("a\n")
    x = File("x")
    for _ in range(2):
        pool.bash("sed -i s/a/ab/ {x}", x=x, inputs=x, outputs=x).result(PATIENCE_S)
    assert (home / "x").read_text() == "abb\n"


def test_a_command_writes_its_streams_to_files_that_are_there(pool, home):
    (home / "log").write_text("before\n")
    log = File("log")
    pool.bash("echo one", stdout=log).result(PATIENCE_S)
    assert (home / "log").read_text() == "one\n"
    pool.bash("echo two; echo three >&2", stdout=(log, "a"), stderr=(log, "a")).result(PATIENCE_S)
    assert (home / "log").read_text() == "one\ntwo\nthree\n"
    with pytest.raises(FileExistsError):
        pool.bash("echo four", stdout=(log, "x")).result(PATIENCE_S)


def test_what_a_command_does_not_make_is_named_as_the_client_knows_it(pool, home):
    with pytest.raises(MissingOutputs, match=f"did not make '{home}/y'") as caught:
        pool.bash("true", outputs=File("y")).result(PATIENCE_S)
    assert caught.value.missing == (str(home / "y"),)
    with pytest.raises(FileNotFoundError, match=f"inputs missing on .*: '{home}/x'"):
        pool.bash("true", inputs=File("x")).result(PATIENCE_S)


# In the middle of it


HUGE = 8 * 1024 * MIB  # of nothing: it takes no room, and ten seconds or more to bring


def make_huge(file: File) -> None:
    with open(file, "wb") as made:
        made.truncate(HUGE)


def huge(home: Path) -> File:
    with (home / "huge").open("wb") as file:
        file.truncate(HUGE)
    return File("huge")


@pytest.mark.parametrize("end", ["kill", "timeout"])
def test_a_call_that_is_ended_while_its_file_comes_back_leaves_none_of_it(pool, home, end):
    view = pool.options(timeout=6) if end == "timeout" else pool
    future = view.submit(make_huge, File("huge"))
    until(lambda: on_the_way(home))
    assert pool.submit(abs, -1).result(PATIENCE_S) == 1, "nothing else is held up"
    if end == "kill":
        future.kill()
    assert isinstance(future.exception(PATIENCE_S), TaskKilled | TaskTimeout)
    until(lambda: not on_the_way(home) and not leavings(home))
    assert not (home / "huge").exists()


def test_a_call_that_is_killed_leaves_nothing_that_it_has_made_on_the_node(pool, home):
    ran = home.parent / "ran"
    future = pool.submit(make_and_stay, File("y"), ran)
    until(lambda: ran.exists() and ran.read_text())
    made = Path(ran.read_text())
    assert made.exists()
    future.kill()
    assert isinstance(future.exception(PATIENCE_S), TaskKilled)
    until(lambda: not made.parent.parent.exists())


def make_and_stay(file: File, ran: Path) -> None:
    made = os.fspath(write(file, b"y"))
    ran.write_text(made)
    time.sleep(600)


def test_processes_that_a_call_forks_write_where_the_call_does_and_make_nothing_else(pool, home):
    future = pool.submit(make_in_a_fork, File("x"), File("y"))
    assert "only if the call's own process" in future.result(PATIENCE_S)
    assert (home / "x").read_bytes() == b"of a fork"
    assert not (home / "y").exists()


def make_in_a_fork(asked_for: File, other: File) -> str:
    path = os.fspath(asked_for)
    told, tell = os.pipe()
    if not os.fork():
        Path(asked_for).write_bytes(b"of a fork" if os.fspath(asked_for) == path else b"elsewhere")
        try:
            write(other, b"y")
        except OSError as error:
            os.write(tell, str(error).encode())
        os._exit(0)
    os.wait()
    os.close(tell)
    with open(told, encoding="utf-8") as text:
        return text.read()


def test_a_call_that_is_ended_while_its_file_comes_leaves_the_node_in_order(pool, home):
    future = pool.submit(read, huge(home))
    until(lambda: parts(pool))
    future.kill()
    assert isinstance(future.exception(PATIENCE_S), TaskKilled)
    (home / "huge").write_bytes(DATA)
    assert pool.submit(read, File("huge")).result(PATIENCE_S)[1] == DATA


def parts(pool: HPCPoolExecutor) -> list[Path]:
    """What nodes have of files that are on their way."""
    (manager,) = Pool.below(os.getpid()).of_role("manager")
    (fork_server,) = [child for child in manager.children() if "fork-server" in child.cmdline()]
    return [path for path in Path(fork_server.cwd()).glob("files/kept/*.part") if path.stat().st_size]


def test_a_node_that_is_lost_in_the_middle_leaves_no_half_file_and_the_call_runs_elsewhere(home):
    with executor(nodes(home, blocks=2)) as pool:
        pool.wait_for_workers(4, PATIENCE_S)
        future = pool.submit(make_once_huge, File("y"), home.parent / "ran")
        until(lambda: on_the_way(home))
        worker = psutil.Process(int((home.parent / "ran").read_text()))
        manager = worker.parent().parent()
        manager.kill()
        assert future.result(PATIENCE_S) is None
        assert (home / "y").read_bytes() == b"small"
        until(lambda: not on_the_way(home) and not leavings(home))
    run_directory.remove_dead()  # as the next pool does with what a killed manager has left on its host


def make_once_huge(file: File, ran: Path) -> None:
    if ran.exists():
        write(file, b"small")
        return
    ran.write_text(str(os.getpid()))
    ran.with_name("host").write_text(os.uname().nodename)
    make_huge(file)


def test_a_pool_that_is_ended_in_the_middle_leaves_no_half_file(home):
    with executor(nodes(home)) as pool:
        pool.submit(make_huge, File("huge"))
        until(lambda: on_the_way(home))
        pool.kill_workers()
    assert not leavings(home)
    assert not (home / "huge").exists()


def test_an_interchange_that_is_killed_in_the_middle_leaves_no_half_file(home):
    with executor(nodes(home)) as pool:
        future = pool.submit(make_huge, File("huge"))
        until(lambda: on_the_way(home))
        interchange = Pool.below(os.getpid()).interchange
        interchange.kill()
        assert isinstance(future.exception(PATIENCE_S), BrokenPool)
        assert not (home / "huge").exists()
        assert not leavings(home)


def test_memory_stays_flat(pool, home):
    size = 400 * MIB
    with (home / "large").open("wb") as file:
        file.truncate(size)
    interchange = Pool.below(os.getpid())
    watched = [interchange.interchange, *interchange.of_role("manager")]
    before = [peak_bytes(process.pid) for process in watched]
    assert pool.submit(copy, File("large"), File("copy")).result(60) < 100 * MIB
    assert (home / "copy").stat().st_size == size
    for process, then in zip(watched, before, strict=True):
        assert peak_bytes(process.pid) - then < 40 * MIB


def copy(source: File, target: File) -> int:
    """Let the kernel do it; return the peak of this process's memory."""
    subprocess.run(["cp", source, target], check=True)
    return peak_bytes(os.getpid())


def peak_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1])


# On hosts that are reached over SSH


@pytest.fixture
def over_ssh(home, tmp_path) -> Iterator[tuple[Config, list[Host]]]:
    """Two hosts with nothing but a link to this one."""
    require("openssh-server", "openssh-client")
    root = str(Path(__file__).resolve().parents[2])
    key = sshd.make_key(tmp_path / "key")
    with hosts(2) as pair:
        servers = []
        try:
            for host in pair:
                prefix = host.command(*apart.without(str(home)))
                folder = tmp_path / host.name
                folder.mkdir()
                servers.append(sshd.Server(folder, host.address, key, python_path=root, port=2222, prefix=prefix))
                servers[-1].start()
            (tmp_path / "known").write_text("".join(server.known_hosts_line() for server in servers))
            provider = SSHProvider(
                hosts=tuple(f"{host.address}:2222" for host in pair),
                identity=str(key),
                config="none",
                known_hosts=str(tmp_path / "known"),
                scratch=str(tmp_path / "scratch"),
            )
            node_pool = NodePool(provider, workers_per_node=1, init_blocks=2, max_blocks=2, max_idle_time=None)
            yield Config(node_pool, heartbeat_period_s=1.0, heartbeat_timeout_s=10.0), pair
        finally:
            for server in servers:
                server.stop()


def test_files_go_to_hosts_over_ssh_and_come_back(over_ssh, home):
    config, pair = over_ssh
    (home / "x").write_bytes(DATA)
    with executor(config) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        made = [
            pool.bash("cat {x} > {y}; hostname", x=File("x"), y=File(f"data/{n}"), outputs=File(f"data/{n}"))
            for n in range(8)
        ]
        where = {future.result(PATIENCE_S).stdout.strip() for future in made}
        assert where <= {host.name for host in pair}
        assert all((home / "data" / str(n)).read_bytes() == DATA for n in range(8))


def test_a_host_that_is_cut_off_while_its_file_comes_back_leaves_none_of_it(over_ssh, home):
    config, pair = over_ssh
    with executor(config) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        future = pool.submit(make_once_huge, File("y"), home.parent / "ran")
        until(lambda: on_the_way(home))
        first = next(host for host in pair if host.name in (home.parent / "host").read_text())
        first.cut()
        assert future.result(3 * PATIENCE_S) is None
        assert (home / "y").read_bytes() == b"small"
        until(lambda: not on_the_way(home) and not leavings(home))
        first.heal()
