"""A Slurm that keeps accounts: beside its daemons a MariaDB and slurmdbd, all on loopback. No test is here."""

from __future__ import annotations

from pathlib import Path

from tests.testbed.machine import free_ports, until
from tests.testbed.slurm import Slurm

#: The one account that root may use.
ACCOUNT = "physics"
_CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.socket
AccountingStorageEnforce=associations,limits
MinJobAge=2
"""
_DATABASE_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={storage_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""
_GRANT = "; ".join(
    f"create user slurm@'{host}' identified by 'slurm'; grant all on slurm_acct_db.* to slurm@'{host}'"
    for host in ("localhost", "127.0.0.1")
)


class SlurmWithAccounts(Slurm):
    """As `Slurm`, and a job needs an account that the user may use; `sacct` knows jobs that the queue has forgotten."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._port, self._storage_port = free_ports(2)
        self.accounting = _CONF.format(port=self._port, folder=folder)
        self.packages = (*self.packages, "slurmdbd", "mariadb-server")

    def start_accounting(self) -> None:
        self._start_database()
        conf = self.folder / "slurmdbd.conf"
        conf.touch(0o600)  # slurmdbd insists
        conf.write_text(_DATABASE_CONF.format(port=self._port, storage_port=self._storage_port, folder=self.folder))
        self.daemons.start("slurmdbd", "slurmdbd", "-D")
        until(lambda: self._manages("list", "cluster"), f"slurmdbd answers\n{self.daemons.logs()}")
        assert self._manages("add", "cluster", "testbed")
        assert self._manages("add", "account", ACCOUNT, "cluster=testbed", "description=x", "organization=x")
        assert self._manages("add", "user", "root", f"account={ACCOUNT}", "cluster=testbed")

    def _manages(self, *words: str) -> bool:
        return self.try_run("sacctmgr", "-i", "-n", *words).returncode == 0

    def _start_database(self) -> None:
        data = self.folder / "mysql"
        install = ("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db")
        done = self.try_run(*install, "--auth-root-authentication-method=socket")
        assert done.returncode == 0, done.stdout + done.stderr
        options = ("--no-defaults", "--user=root", f"--datadir={data}", f"--socket={data}/sock")
        places = ("--bind-address=127.0.0.1", f"--port={self._storage_port}", "--innodb-buffer-pool-size=64M")
        self.daemons.start("mariadbd", "mariadbd", *options, *places, "--innodb-lock-wait-timeout=900")
        client = ("mariadb", "--no-defaults", f"--socket={data}/sock", "-e")
        until(lambda: self.try_run(*client, "select 1").returncode == 0, f"MariaDB answers\n{self.daemons.logs()}")
        done = self.try_run(*client, f"create database slurm_acct_db; {_GRANT}")
        assert done.returncode == 0, done.stderr
