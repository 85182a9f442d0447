"""A Grid Engine on loopback: a qmaster and one host with four slots. No test is here."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

from tests.testbed.machine import Daemons, free_ports, require, until

SLOTS = 4
_HOST = "localhost"
_SHARE = Path("/usr/share/gridengine")
_LIBRARY = Path("/usr/lib/gridengine")
#: What differs from Debian's defaults: root may have jobs, and all is told soon. `gids` marks the processes of jobs,
#: and so must be others than those of a Grid Engine of another test run.
_CONFIGURATION = {
    "execd_spool_dir": "{folder}/execd",
    "min_uid": "0",
    "min_gid": "0",
    "gid_range": "{gids}",
    "load_report_time": "00:00:02",
    "reporting_params": "accounting=true reporting=false accounting_flush_time=00:00:00 flush_time=00:00:02",
}
_SCHEDULER = {"schedule_interval": "0:0:1", "flush_submit_sec": "1", "flush_finish_sec": "1"}
#: A queue and a parallel environment; the rest is as in Grid Engine's templates.
_QUEUE = {
    "qname": "all.q",
    "hostlist": _HOST,
    "pe_list": "smp",
    "load_thresholds": "NONE",
    "slots": str(SLOTS),
    "shell_start_mode": "unix_behavior",
}
_PARALLEL = {"pe_name": "smp", "slots": "99", "allocation_rule": "$pe_slots"}


class GridEngine:
    """Started by `start`; `environment` is what its commands need.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        qmaster, execd = free_ports(2)
        self._first_gid = 20_000 + qmaster % 400 * 100
        self.environment = {
            "SGE_ROOT": str(folder / "root"),
            "SGE_CELL": "default",
            "SGE_QMASTER_PORT": str(qmaster),
            "SGE_EXECD_PORT": str(execd),
            "SGE_CLUSTER_NAME": "testbed",
        }
        # SGE_ND: stay in the foreground.
        self._daemons = Daemons(folder, {**self.environment, "SGE_ND": "1"})

    def start(self) -> None:
        require("gridengine-master", "gridengine-exec", "gridengine-client")
        self._make_root()
        self._make_database()
        self.start_qmaster()
        self._start_host()
        self._configure()
        until(self._is_host_ready, f"the host is ready\n{self._daemons.logs()}")

    def stop(self) -> None:
        self._daemons.stop_all()

    def start_qmaster(self) -> None:
        self._daemons.start("qmaster", "sge_qmaster")
        until(lambda: _HOST in self.run("qconf", "-sh"), "the qmaster answers")

    def stop_qmaster(self) -> None:
        self._daemons.stop("qmaster")

    def run(self, *command: str) -> str:
        """What one of Grid Engine's commands prints."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    def jobs_left(self) -> list[str]:
        return self.run("qstat").splitlines()

    def _make_root(self) -> None:
        common = self._folder / "root/default/common"
        common.mkdir(parents=True)
        for name in ("bin", "lib", "util", "utilbin"):
            (self._folder / "root" / name).symlink_to(f"/var/lib/gridengine/{name}")
        for name in ("db", "qmaster/job_scripts", "execd"):
            (self._folder / name).mkdir(parents=True)
        places = {
            "admin_user": "none",
            "spooling_params": f"{self._folder}/db",
            "qmaster_spool_dir": f"{self._folder}/qmaster",
        }
        (common / "bootstrap").write_text(changed((_SHARE / "default-bootstrap").read_text(), places))
        (common / "act_qmaster").write_text(f"{_HOST}\n")
        # The machine's own name stands for loopback, too.
        (common / "host_aliases").write_text(f"{_HOST} {socket.gethostname()} {socket.getfqdn()}\n")

    def _make_database(self) -> None:
        gids = f"{self._first_gid}-{self._first_gid + 50}"
        changes = {name: value.format(folder=self._folder, gids=gids) for name, value in _CONFIGURATION.items()}
        configuration = self._folder / "configuration"
        configuration.write_text(changed((_SHARE / "default-configuration").read_text(), changes))
        defaults = str(_LIBRARY / "spooldefaults")
        self._must(str(_LIBRARY / "spoolinit"), "berkeleydb", "libspoolb", f"{self._folder}/db", "init")
        self._must(defaults, "configuration", str(configuration))
        self._must(defaults, "complexes", str(_SHARE / "util/resources/centry"))
        self._must(defaults, "usersets", str(_SHARE / "util/resources/usersets"))
        self._must(defaults, "managers", "root")

    def _start_host(self) -> None:
        self._must("qconf", "-as", _HOST)
        self._daemons.start("execd", "sge_execd")
        until(lambda: _HOST in self.run("qconf", "-sel"), "the host has introduced itself")

    def _configure(self) -> None:
        parallel = (_SHARE / "util/resources/pe/make").read_text()
        self._give("-Ap", changed(parallel, _PARALLEL))
        self._give("-Aq", changed(self._must("qconf", "-sq"), _QUEUE))
        self._give("-Msconf", changed(self._must("qconf", "-ssconf"), _SCHEDULER))

    def _give(self, option: str, text: str) -> None:
        path = self._folder / "given"
        path.write_text(text)
        self._must("qconf", option, str(path))

    def _must(self, *command: str) -> str:
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def _is_host_ready(self) -> bool:
        """Whether the queue has a line with a load, which has no letters of trouble in its last column."""
        return re.search(rf"(?m)^all\.q@{_HOST} .* lx-\S+\s*$", self.run("qstat", "-f")) is not None


def changed(text: str, changes: dict[str, str]) -> str:
    """The lines "name value" of a file with other values."""
    for name, value in changes.items():
        text, count = re.subn(rf"(?m)^({re.escape(name)}\s+).*$", lambda match, value=value: match[1] + value, text)
        assert count == 1, f"{name} is there {count} times"
    return text
