"""The driver of an ad-hoc cluster: which machines a block gets, and what becomes of its jobs there.

Threads: the machines are asked by a few threads, so that one that does not answer does not hold up the others; all
state belongs to the one thread that calls the driver.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from hpcpool.errors import SSHError
from hpcpool.providers.base import BlockRequest, JobState, JobStatus, SubmitError, Unreachable
from hpcpool.providers.ssh.host import PYTHON, Host
from hpcpool.providers.ssh.host_jobs import Look, Sight
from hpcpool.providers.ssh.tunnel import candidates

logger = logging.getLogger(__name__)

_THREADS = 16
#: How long `status` waits for the machines. One that takes longer answers the next time.
_STATUS_S = 25.0
_TUNNEL_TRIES = 4


class SSHDriver:
    """Starts, watches and ends the jobs of blocks on a list of machines. All calls come from one thread.

    Args:
        hosts: the machines; one that is named twice runs two jobs at a time.
        folder: where the files of blocks are, on each machine; an absolute path that nobody can guess.
        poll_interval_s: seconds between two looks.
    """

    is_local = False
    watch_fd = None

    def __init__(self, hosts: Sequence[Host], folder: str, poll_interval_s: float) -> None:
        self._hosts = hosts
        self._folder = folder
        self.poll_interval_s = poll_interval_s
        self._threads = ThreadPoolExecutor(min(_THREADS, len(hosts)), thread_name_prefix="hpcpool-ssh")
        self._blocks: dict[str, _Block] = {}
        #: Places in `hosts` that no living job has.
        self._free = set(range(len(hosts)))
        #: How often in a row a place could not be had; others are tried before it.
        self._failures: Counter[int] = Counter()
        #: Ports of this machine that jobs must reach, and the ports of tunnels there.
        self._reached: dict[int, tuple[int, ...]] = {}
        #: Looks that have not come back.
        self._looks: dict[Host, Future[None]] = {}
        self._ends: list[Future[None]] = []
        self._is_closed = False

    def block_dir(self, block_id: str) -> str:
        return posixpath.join(self._folder, block_id)

    def reach(self, port: int) -> Sequence[str]:
        if port not in self._reached:
            self._reached[port] = candidates(_TUNNEL_TRIES)
        return [f"127.0.0.1:{there}" for there in self._reached[port]]

    def python(self, block_id: str) -> str:
        return posixpath.join(self.block_dir(block_id), PYTHON)

    def submit(self, request: BlockRequest) -> str:
        if self._is_closed:
            raise RuntimeError("this driver has been closed")
        block = _Block(request.block_id, self.block_dir(request.block_id))
        problems: list[SubmitError] = []
        while len(block.jobs) < request.nodes:
            missing = request.nodes - len(block.jobs)
            if missing > len(self._free):
                self._take_back(block)
                raise self._shortage(request.nodes, problems)
            places = sorted(self._free, key=lambda place: (self._failures[place], place))[:missing]
            self._free -= set(places)
            self._start(request, block, places, problems)
        self._free |= set(block.refused)
        self._clear_refused(block)
        self._blocks[block.job_id] = block
        logger.info("block=%s job=%s started on %s", block.name, block.job_id, ", ".join(map(str, block.hosts)))
        return block.job_id

    def status(self, job_ids: Sequence[str]) -> Mapping[str, JobStatus]:
        blocks = [self._block(job_id) for job_id in job_ids]
        self._look_at([block for block in blocks if block is not None and not block.is_over])
        return {job_id: self._answer(job_id) for job_id in job_ids}

    def cancel(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            block = self._block(job_id)
            if block is None or block.is_over:
                continue
            force, block.is_cancelled = block.is_cancelled, True
            logger.info("block=%s job=%s cancelled%s", block.name, job_id, " by force" if force else "")
            self._end([job for job in block.jobs if not job.is_over], force=force)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        wait(self._ends, _STATUS_S)
        self._look_at([block for block in self._blocks.values() if not block.is_over])
        for block in self._blocks.values():
            if not block.is_over:
                logger.warning("block=%s is not known to have ended; its files are in %s", block.name, block.folder)
        # Not before these have ended: each step of theirs is bounded in time.
        self._threads.shutdown(cancel_futures=True)
        for host in set(self._hosts):
            host.close()

    # -- starting --

    def _start(self, request: BlockRequest, block: _Block, places: Sequence[int], problems: list[SubmitError]) -> None:
        """Start a job at each of these places, and note those that cannot be had."""
        jobs = [_Job(place, self._hosts[place], f"{block.folder}/job-{place}") for place in places]
        started = [
            (job, self._threads.submit(job.host.start, request, block.folder, job.folder, dict(self._reached)))
            for job in jobs
        ]
        for job, future in started:
            try:
                future.result()
            except SubmitError as error:
                logger.warning("block=%s %s", block.name, error)
                problems.append(error)
                block.refused.append(job.place)
                self._failures[job.place] += 1
            else:
                self._failures[job.place] = 0
                block.jobs.append(job)

    def _take_back(self, block: _Block) -> None:
        """End what was started of a block that cannot be had."""
        self._free |= {*(job.place for job in block.jobs), *block.refused}
        self._clear_refused(block)
        self._clear(set(block.hosts), block, block.jobs)

    def _clear_refused(self, block: _Block) -> None:
        self._clear({self._hosts[place] for place in block.refused} - set(block.hosts), block, ())

    def _clear(self, hosts: Iterable[Host], block: _Block, left: Iterable[_Job]) -> None:
        """Remove the files of a block from machines, after all that is left of these jobs was killed."""
        for host in hosts:
            theirs = [job.folder for job in left if job.host is host]
            self._ends.append(self._threads.submit(_kill_and_clear, host, theirs, block.folder))

    def _shortage(self, nodes: int, problems: Sequence[SubmitError]) -> SubmitError:
        used = sum(len(block.jobs) for block in self._blocks.values() if not block.is_over)
        words = [f"a block of {nodes} cannot be had on {len(self._hosts)} hosts"]
        words += [f"{used} of them have a block"] if used else []
        text = "; ".join([*words, *dict.fromkeys(map(str, problems))])
        is_outage = bool(problems) and all(isinstance(problem, Unreachable) for problem in problems)
        return Unreachable(text) if is_outage else SubmitError(text)

    # -- watching --

    def _look_at(self, blocks: Sequence[_Block]) -> None:
        """Ask each machine once for all of its jobs, and take what comes within a while."""
        jobs: dict[Host, list[_Job]] = {}
        for block in blocks:
            for job in block.jobs:
                if not job.is_over:
                    jobs.setdefault(job.host, []).append(job)
        for host, theirs in jobs.items():
            if host not in self._looks or self._looks[host].done():
                self._looks[host] = self._threads.submit(_look, host, theirs, dict(self._reached))
        wait([self._looks[host] for host in jobs], _STATUS_S)
        for host, theirs in jobs.items():
            has_answered = self._looks[host].done()
            if has_answered:
                self._looks[host].result()  # it raises nothing, unless we are at fault
            for job in theirs:
                job.take_news(has_answered)
        for block in blocks:
            if block.last is None and block.is_over:
                self._settle(block)

    def _settle(self, block: _Block) -> None:
        """Keep the last answer for a block that is over, and clear up behind it."""
        block.last = block.last_status()
        self._free |= {job.place for job in block.jobs}
        # What has ended badly may have left something behind, as a manager that was killed leaves its workers.
        self._clear(set(block.hosts), block, [job for job in block.jobs if job.has_failed])
        logger.info("block=%s job=%s %s (%s)", block.name, block.job_id, block.last.state.value, block.last.reason)

    def _block(self, job_id: str) -> _Block | None:
        """The block of a job; also of an earlier run, which had the same hosts."""
        if job_id not in self._blocks and (found := re.fullmatch("(/.*)@([0-9]+(?:,[0-9]+)*)", job_id)):
            places = [int(place) for place in found[2].split(",")]
            if max(places) < len(self._hosts):
                jobs = [_Job(place, self._hosts[place], f"{found[1]}/job-{place}") for place in places]
                self._blocks[job_id] = _Block(posixpath.basename(found[1]), found[1], jobs)
        return self._blocks.get(job_id)

    def _answer(self, job_id: str) -> JobStatus:
        block = self._blocks.get(job_id)
        if block is None:
            return JobStatus(JobState.UNKNOWN, reason="this driver has started no such job")
        return block.last or block.status()

    def _end(self, jobs: Sequence[_Job], *, force: bool) -> None:
        by_host: dict[Host, list[str]] = {}
        for job in jobs:
            by_host.setdefault(job.host, []).append(job.folder)
        self._ends = [future for future in self._ends if not future.done()]
        for host, theirs in by_host.items():
            self._ends.append(self._threads.submit(host.end, theirs, force=force))


class _Job:
    """The part of a block on one machine. `heard` and what belongs to it are set by a thread that has asked."""

    def __init__(self, place: int, host: Host, folder: str) -> None:
        self.place = place
        self.host = host
        self.folder = folder
        #: What the machine said last, and why it could not say it; taken over by `take_news`.
        self.heard: Sight | None = None
        self.heard_problem = ""
        self.heard_tail = ""
        self.sight: Sight | None = None
        self.problem = ""

    @property
    def is_over(self) -> bool:
        return self.sight is not None and self.sight.is_over

    @property
    def has_failed(self) -> bool:
        return self.is_over and self.sight != Sight(Look.ENDED, 0)

    def take_news(self, has_answered: bool) -> None:
        """Take over what was heard; without an answer the machine is still being asked."""
        if has_answered:
            self.sight, self.problem = self.heard, self.heard_problem
        else:
            self.problem = f"{self.host} has not answered yet"

    def reason(self) -> str:
        """How it ended, in words."""
        assert self.sight is not None
        match self.sight.look:
            case Look.ENDED if (self.sight.exit_code or 0) < 0:
                return f"killed by signal {-(self.sight.exit_code or 0)} on {self.host}"
            case Look.ENDED:
                return f"exited with code {self.sight.exit_code} on {self.host}"
            case Look.MISSING:
                return f"its files have vanished on {self.host}"
            case _:
                return f"killed on {self.host}, or {self.host} was started anew"


@dataclass
class _Block:
    """One block and its jobs."""

    name: str
    folder: str
    jobs: list[_Job] = field(default_factory=list)
    #: Places that could not be had when it was started.
    refused: list[int] = field(default_factory=list)
    is_cancelled: bool = False
    #: The answer from now on, once it is over.
    last: JobStatus | None = None

    @property
    def job_id(self) -> str:
        """Tells all that is needed to find its jobs again, in a later run, too."""
        return f"{self.folder}@{','.join(str(job.place) for job in self.jobs)}"

    @property
    def hosts(self) -> list[Host]:
        return [job.host for job in self.jobs]

    @property
    def is_over(self) -> bool:
        return all(job.is_over for job in self.jobs)

    def status(self) -> JobStatus:
        """What to tell while it is not over: that it runs, if this is known of all of its jobs."""
        problems = [job.problem for job in self.jobs if not job.is_over and job.problem]
        return JobStatus(JobState.UNKNOWN if problems else JobState.RUNNING, reason="; ".join(dict.fromkeys(problems)))

    def last_status(self) -> JobStatus:
        failed = [job for job in self.jobs if job.has_failed]
        told = failed or self.jobs[:1]
        reason = "; ".join(job.reason() for job in told)
        return JobStatus(
            state=JobState.FAILED if failed and not self.is_cancelled else JobState.ENDED,
            exit_code=told[0].sight.exit_code if told[0].sight is not None else None,
            reason=f"cancelled, {reason}" if self.is_cancelled else reason,
            stderr_tail=next((job.heard_tail for job in failed if job.heard_tail), ""),
        )


def _kill_and_clear(host: Host, jobs: Sequence[str], folder: str) -> None:
    """Runs in a thread."""
    if jobs:
        host.end(jobs, force=True)
    host.clear(folder)


def _look(host: Host, jobs: Sequence[_Job], reached: Mapping[int, Sequence[int]]) -> None:
    """Ask a machine for its jobs and leave what it says with them; runs in a thread."""
    try:
        sights = host.look([job.folder for job in jobs], reached)
    except SSHError as error:
        for job in jobs:
            job.heard_problem = str(error)
        return
    for job, sight in zip(jobs, sights, strict=True):
        is_bad = sight.is_over and sight != Sight(Look.ENDED, 0)
        job.heard_tail = host.tail(job.folder) if is_bad else ""
        job.heard, job.heard_problem = sight, ""
