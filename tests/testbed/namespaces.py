"""Hosts of their own on this machine: network namespaces, each on a link of its own to this one. No test is here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.machine import missing, require


@dataclass(frozen=True)
class Host:
    """A namespace; this machine and it see each other at two addresses that nobody else has."""

    name: str
    number: int

    @property
    def address(self) -> str:
        return self._address(2)

    @property
    def our_address(self) -> str:
        """This machine's, as the host sees it: the only one of all that it can reach."""
        return self._address(1)

    def _address(self, end: int) -> str:
        return f"10.213.{self.number // 64}.{self.number % 64 * 4 + end}"

    @property
    def _link(self) -> str:
        return f"hp{self.number}-{os.getpid() % 100_000}"  # at most 15 characters

    def crossed(self, way: str) -> int:
        """Bytes that have come from there ("rx") or gone there ("tx"), as the link has counted them."""
        return int(Path(f"/sys/class/net/{self._link}/statistics/{way}_bytes").read_text())

    def command(self, *argv: str) -> tuple[str, ...]:
        """What runs a command there, under the host's own name."""
        inside = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name)
        return ("ip", "netns", "exec", self.name, *inside, *argv)

    def cut(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        run("ip", "link", "set", self._link, "down")

    def heal(self) -> None:
        run("ip", "link", "set", self._link, "up")

    def up(self) -> None:
        there = f"{self._link}n"
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self._link, "type", "veth", "peer", "name", there, "netns", self.name)
        run("ip", "address", "add", f"{self.our_address}/30", "dev", self._link)
        run("ip", "link", "set", self._link, "up")
        run("ip", "-n", self.name, "address", "add", f"{self.address}/30", "dev", there)
        run("ip", "-n", self.name, "link", "set", there, "up")
        run("ip", "-n", self.name, "link", "set", "lo", "up")

    def down(self) -> None:
        for command in (("ip", "link", "del", self._link), ("ip", "netns", "del", self.name)):
            subprocess.run(command, check=False, capture_output=True)


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """So many hosts, three at most."""
    require("iproute2")
    first = os.getpid() % 4096 * 4  # test runs side by side have addresses of their own
    made = [Host(f"node{index}-{os.getpid()}", first + index) for index in range(1, count + 1)]
    try:
        for host in made:
            host.up()
        yield made
    finally:
        for host in made:
            host.down()


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
