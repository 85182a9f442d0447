"""A Slurm of two nodes on loopback: munged, slurmctld and two slurmd's. No test is here."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from pathlib import Path

from tests.testbed.machine import Daemons, free_ports, require, until

NODES = ("node1", "node2")
#: Seconds that a job has between SIGTERM and SIGKILL: enough on a machine that others use, too.
KILL_WAIT_S = 15
#: Partitions: `main` for most, `brief` for jobs of up to two minutes, `closed` for none, `urgent` for those that take
#: the nodes of others.
_CONF = """\
ClusterName=testbed
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdParameters=config_overrides
{accounting}\
JobAcctGatherType=jobacct_gather/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait={kill_wait}
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
"""
_NODE = "NodeName={name} NodeAddr=127.0.0.1 NodeHostname=localhost Port={port} CPUs=4 RealMemory=4000 State=UNKNOWN\n"
_PARTITIONS = """\
PartitionName=main Nodes=ALL Default=YES DefaultTime=10 MaxTime=60 State=UP
PartitionName=brief Nodes=ALL MaxTime=2 State=UP
PartitionName=closed Nodes=ALL State=DOWN
PartitionName=urgent Nodes=ALL PriorityTier=10 State=UP
"""


class Slurm:
    """Started by `start`; `environment` is what its commands need.

    Args:
        folder: an empty one; its path is short, because a socket's has at most 107 bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons = Daemons(folder, self.environment)
        self.packages: tuple[str, ...] = ("slurmctld", "slurmd", "slurm-client", "munge")
        #: What its configuration says of accounts.
        self.accounting = "AccountingStorageType=accounting_storage/none\n"

    def start(self) -> None:
        require(*self.packages)
        self._write_configuration()
        self._start_munge()
        self.start_accounting()
        self.start_controller()
        for name in NODES:
            self.daemons.start(name, "slurmd", "-D", "-N", name)
        until(self._are_nodes_ready, f"nodes are ready\n{self.daemons.logs()}")

    def start_accounting(self) -> None:
        """There are no accounts."""

    def stop(self) -> None:
        self.daemons.stop_all()

    def start_controller(self) -> None:
        self.daemons.start("slurmctld", "slurmctld", "-D")
        until(lambda: " is UP" in self.run("scontrol", "ping"), "the controller answers")

    def stop_controller(self) -> None:
        self.daemons.stop("slurmctld")

    def run(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        return self.try_run(*command).stdout

    def try_run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def jobs_left(self) -> list[str]:
        """The jobs that wait, run, or are about to end."""
        return self.run("squeue", "-h", "-o", "%A %T").splitlines()

    def _write_configuration(self) -> None:
        ports = free_ports(1 + len(NODES))
        host = socket.gethostname().partition(".")[0]
        text = _CONF.format(
            host=host, port=ports[0], folder=self.folder, kill_wait=KILL_WAIT_S, accounting=self.accounting
        )
        text += "".join(_NODE.format(name=name, port=port) for name, port in zip(NODES, ports[1:], strict=True))
        (self.folder / "slurm.conf").write_text(text + _PARTITIONS)
        for name in ("state", *NODES):
            (self.folder / name).mkdir()

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        places = {"key-file": key, "socket": self.folder / "munge.socket"} | {
            f"{name}-file": self.folder / f"munge.{name}" for name in ("pid", "log", "seed")
        }
        # --force: a private folder is no trouble, all of it runs as root.
        self.daemons.start("munged", "munged", "-F", "--force", *(f"--{name}={path}" for name, path in places.items()))
        ask = ("munge", "-n", f"--socket={places['socket']}")
        until(lambda: self.try_run(*ask).returncode == 0, "munged answers")

    def _are_nodes_ready(self) -> bool:
        return self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split() == ["idle"] * len(NODES)
