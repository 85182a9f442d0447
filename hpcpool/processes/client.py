"""The client: the user's side of a pool. One I/O thread reads the stream from the interchange; other threads put things
in its inbox and wake it, or, when the pool has nothing to do, send a call themselves: that saves a hand-over.

The thread completes futures, keeps calls that wait for others, and tells the interchange what to do. It opens no
payload but those of scalars, for their futures, and never raises into user code; callbacks of futures run in it, as
they do in `ProcessPoolExecutor`. When the interchange dies, every future fails at once.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import select
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal

from hpcpool.config import Config
from hpcpool.core.priority_queue import PriorityQueue
from hpcpool.errors import PayloadError
from hpcpool.processes import lifecycle, outcomes
from hpcpool.processes.hold import Hold
from hpcpool.processes.incoming import Incoming
from hpcpool.processes.inquiries import Inquiries
from hpcpool.processes.interchange_process import InterchangeProcess
from hpcpool.processes.kept_results import KeptResults
from hpcpool.processes.retry_questions import RetryQuestions
from hpcpool.processes.sender import Sender
from hpcpool.processes.task_future import Opener, TaskFuture
from hpcpool.processes.ticket import CallOptions, Ticket
from hpcpool.processes.waiting import Waiting, take_results
from hpcpool.wire.messages import (
    Broken,
    Cancel,
    Capacity,
    Closing,
    Fetched,
    Kill,
    MessageError,
    NodeGone,
    Outcome,
    Refused,
    Setup,
    Started,
    Status,
    StatusReport,
    Stop,
    Struct,
    ToClient,
    Warn,
    Withdraw,
    Withdrawn,
)
from hpcpool.wire.packing import unpack
from hpcpool.wire.payload import PickledCall
from hpcpool.wire.versions import hello

log = logging.getLogger("hpcpool")


class Client:
    """Connects one executor with its interchange. `submit`, `cancel`, `kill` and `close` may be called anywhere."""

    def __init__(self, config: Config, setup: Setup, workers: int) -> None:
        self._interchange = InterchangeProcess(config)
        #: The segments of arguments and results.
        self.store = self._interchange.store
        self._workers = workers
        self._ids = itertools.count(1)
        self._inbox: deque[Ticket | Callable[[], None]] = deque()
        self._asleep = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._tickets: dict[int, Ticket] = {}
        self._waiting = Waiting()
        self._ready: PriorityQueue[Ticket] = PriorityQueue()
        self._stream = self._interchange.stream
        self._sender = Sender(self._stream, config.crash_limit, [hello(), setup])
        self._incoming = Incoming(self._stream, self._sender.flush)
        self._kept = KeptResults(self.store, self, self._incoming)
        #: Who asks how the pool is, or waits for workers.
        self.inquiries = Inquiries(self.tell)
        self._broken: Broken | None = None
        #: What keeps the pool from ending; replaced, never changed.
        self._holds: frozenset[Hold] = frozenset()
        self._closing = False
        self._cancels = False
        self._questions = RetryQuestions()
        self._stop_signal = 0
        self._forked = False
        #: Held while a ticket is put in and while the pool closes or breaks, so that none slips in behind its end. They
        #: are RLocks: the garbage collector may drop the executor, and so call `close`, while a thread has them.
        self._door = threading.RLock()
        self._thread = threading.Thread(target=self._run, name="hpcpool client")
        #: Nothing is left. `join` waits for it: a `Thread.join` does not wait again after Ctrl-C before Python 3.13.
        self._is_gone = threading.Event()
        lifecycle.add(self)
        try:
            self._thread.start()
        except RuntimeError:  # the system has no thread left
            lifecycle.remove(self)
            self._stream.close()
            self._interchange.wait_until_gone()
            raise

    # -- from any thread --

    @property
    def is_usable(self) -> bool:
        """False in a child that was forked from the client's process."""
        return not self._forked

    def check_open(self) -> None:
        """Raise what `submit` must raise when the pool takes no calls."""
        if not (self._closing or self._forked or lifecycle.is_exiting()):
            return
        if self._forked:
            raise RuntimeError(
                "this executor belongs to the parent of this process and cannot be used after os.fork(); make a new one"
            )
        if not self.is_holder:
            lifecycle.check_interpreter()
        if self._closing and self._broken is None and not self.is_holder:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._broken is not None:
            raise outcomes.broken_error(self._broken)

    @property
    def broken(self) -> str | Literal[False]:
        """Why the pool cannot go on; False if it can."""
        return self._broken.reason if self._broken is not None else False

    @property
    def is_over(self) -> bool:
        """True when the interchange is not asked any more."""
        return self._forked or self.inquiries.is_over

    @property
    def is_io_thread(self) -> bool:
        """True in a callback of one of this pool's futures."""
        return threading.current_thread() is self._thread

    def count_tickets(self) -> tuple[int, int]:
        """Return how many calls wait for others, and how many are not finished."""
        tickets = list(self._tickets.values())
        return sum(1 for ticket in tickets if ticket.waiting), len(tickets)

    def tell(self, message: Struct) -> None:
        """Have the interchange told something."""
        self._sender.tell(message)
        self._put(_nothing)

    @property
    def is_holder(self) -> bool:
        """True in a thread that may still submit after shutdown, as its work is part of what is pending."""
        return bool(self._holds) and threading.get_ident() in {hold.thread for hold in self._holds}

    def hold(self, close: Callable[[bool], None]) -> Hold:
        """Keep the pool from ending until the hold is released; raises as `check_open` does.

        Args:
            close: called when the pool closes, with True if what is pending is to be cancelled.
        """
        with self._door:
            self.check_open()
            hold = Hold(close)
            self._holds = self._holds | {hold}
        if self._closing:  # it was not there when the others were told
            close(self._cancels)
        return hold

    def release(self, hold: Hold) -> None:
        """Let the pool end, as far as this hold is concerned."""
        with self._door:
            self._holds = self._holds - {hold}
        self._put(_nothing)

    def new_future(self, name: str) -> TaskFuture[Any]:
        """Return the future of a call that is about to be submitted (or that fails before it can be)."""
        return TaskFuture(name, self, next(self._ids))

    def submit(self, future: TaskFuture[Any], call: PickledCall, options: CallOptions) -> None:
        """Have a pickled call run when its dependencies have finished; raises as `check_open` does."""
        ticket = Ticket(future, call, options)
        if dependencies := call.dependencies:
            if not take_results(ticket, dependencies, self.store):
                return
            future._awaits = dependencies
        with self._door:
            self.check_open()
            if not (self._asleep and self._sender.in_flight < self._workers and self._sent_here(ticket)):
                self._put(ticket)

    def _sent_here(self, ticket: Ticket) -> bool:
        """Send a ticket in the user's own thread, unless others would be overtaken; then return False."""
        if ticket.waiting or self._inbox or self._ready:
            return False
        try:
            self._tickets[ticket.id] = ticket
            is_sent = self._sender.send_at_once(ticket)
        except BaseException:  # Ctrl-C: the call may be on its way, but nobody will have its future
            self._put(lambda: self._cancelled(ticket.id))
            raise
        if not is_sent:
            del self._tickets[ticket.id]
            return False
        if self._stream.wants_to_write:
            self._put(_nothing)  # the I/O thread must wait for room
        return True

    def cancel(self, task: int) -> None:
        """The user has cancelled this task's future."""
        self._put(lambda: self._cancelled(task))

    def kill(self, task: int) -> None:
        """End this task although it runs."""
        self._put(lambda: self._killed(task))

    def close(self, *, cancel_futures: bool = False) -> None:
        """Take no more calls; stop everything when the pending ones have finished. Does not wait.

        With `cancel_futures` the calls that do not run are cancelled, but for the oldest, as many as there are
        workers: those are taken to be running (`ProcessPoolExecutor` does the same with what is in its call queue).
        """
        if self._forked:
            return
        with self._door:
            self._closing = True
            self._cancels |= cancel_futures
            holds = self._holds
        for hold in holds:
            hold.close(cancel_futures)
        self._sender.tell(Closing())
        self._put(self._withdraw if cancel_futures else _nothing)

    def abort(self, signal_number: int, reason: str) -> None:
        """Fail all pending calls and end the workers by a signal. Does not wait."""
        if self._forked:
            return
        with self._door:
            self._closing = True
        self._stop_signal = signal_number
        self._put(lambda: self._break(Broken(reason)))

    def join(self) -> None:
        """Wait until everything of the pool has gone; returns at once in the client's own thread."""
        if self._forked or self.is_own_thread or self.is_holder:
            return
        self._is_gone.wait()
        self._thread.join()

    @property
    def is_own_thread(self) -> bool:
        """True in a callback of one of this pool's futures and in `retry_on`: to wait for the pool there has no end."""
        return self.is_io_thread or self._questions.is_asked_here

    def after_fork(self) -> None:
        """In a forked child: let go of what belongs to the parent."""
        self._forked = True
        self._door = threading.RLock()
        self._sender.after_fork()
        self._interchange.after_fork()

    def _put(self, item: Ticket | Callable[[], None]) -> None:
        if self._forked:
            return
        self._inbox.append(item)
        if self._asleep:
            self._asleep = False
            try:
                os.write(self._wake_write, b"\0")
            except (BlockingIOError, OSError):
                return  # it is awake already, or has ended

    # -- the I/O thread --

    def _run(self) -> None:
        try:
            try:
                self._loop()
            except BaseException as error:
                log.exception("the client's I/O thread failed")
                self._break(Broken(f"the client's I/O thread failed: {type(error).__name__}: {error}"))
                self._read_inbox()
            self._kept.close(self.broken or "it was shut down")
            self.store.outlive_pool()
            self._sender.say_last(Stop(self._stop_signal or (signal.SIGKILL if self._broken is not None else 0)))
        except BaseException:
            log.exception("the client's I/O thread failed; the interchange sees that and ends")
            self._kept.close("its I/O thread failed")
            self._stream.close()
        finally:
            try:
                self._interchange.wait_until_gone()
                self.inquiries.close()
                lifecycle.remove(self)
                os.close(self._wake_read)
                os.close(self._wake_write)
            finally:
                self._is_gone.set()

    def _loop(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        poll.register(self._stream, select.POLLIN)
        was_full = False
        self._sender.send(self._ready, self._tickets)
        while not self._is_over():
            if self._stream.wants_to_write != was_full:
                was_full = not was_full
                poll.modify(self._stream, select.POLLIN | (select.POLLOUT if was_full else 0))
            self._asleep = True
            may_send = self._ready and self._sender.has_room and not was_full
            has_work = self._inbox or self._incoming.has_deferred or may_send
            for descriptor, _ in poll.poll(0 if has_work else None):
                if descriptor == self._wake_read:
                    os.read(self._wake_read, 4096)
            self._asleep = False
            self._receive()
            if not self._stream.is_open and self._broken is None:
                self._break(Broken(self._interchange.obituary()))
            if self._inbox:
                self._read_inbox()
            self._sender.send(self._ready, self._tickets)

    def _is_over(self) -> bool:
        if self._broken is not None:
            self._read_inbox()  # from now on nothing is put in but cancellations
            return True
        # Holds first: without any, nothing more is submitted.
        is_done = self._closing and not self._holds and not self._tickets and not self._inbox
        return is_done and self._kept.settle()

    def _read_inbox(self) -> None:
        # At most what is there now, so that a busy submitter cannot keep results waiting.
        inbox = self._inbox
        for _ in range(len(inbox)):
            item = inbox.popleft()
            if isinstance(item, Ticket):
                self._admit(item)
            else:
                item()

    def _admit(self, ticket: Ticket) -> None:
        if self._broken is not None:
            self._finish_broken(ticket)
            return
        if ticket.future.cancelled():
            ticket.future._acknowledge_cancel()
            return
        self._tickets[ticket.id] = ticket
        if ticket.waiting:
            self._waiting.add(ticket, self)
        else:
            self.is_ready(ticket)

    # -- for those who wait --

    def is_pending(self, future: Future[Any]) -> bool:
        """Say whether this client's thread will be the one to complete the future."""
        if not isinstance(future, TaskFuture):
            return False
        ticket = self._tickets.get(future._task)
        return ticket is not None and ticket.future is future

    def is_ready(self, ticket: Ticket) -> None:
        """Have a ticket sent when there is room."""
        self._ready.push(ticket, ticket.options.priority)

    def forget(self, ticket: Ticket) -> None:
        """Forget a ticket that is over."""
        self._sender.landed(ticket)
        self._tickets.pop(ticket.id, None)

    def call_soon(self, action: Callable[[], None]) -> None:
        """Have the thread do something."""
        self._put(action)

    # -- receiving --

    def _receive(self) -> None:
        try:
            arrived = self._incoming.take()
        except MessageError as error:
            self._break(Broken(f"the interchange sent a malformed message: {error}"))
            return
        for message, its_frames in arrived:
            if type(message) is Outcome:
                self._on_outcome(message, its_frames)
            elif type(message) is Fetched:
                self._kept.on_fetched(message)
            else:
                self._on_message(message)

    def _on_message(self, message: ToClient) -> None:
        match message:
            case Started(runs=runs, host=host):
                for run in runs:
                    if (ticket := self._tickets.get(run.id)) is not None:
                        ticket.future._start_on(host, run)
            case Capacity(slots=slots, limit=limit):
                self._sender.widen(limit)
                self.inquiries.on_slots(slots)
            case StatusReport():
                self.inquiries.on_status(message)
            case Withdrawn(ids=tasks):
                for task in tasks:
                    self._give_up(task)
            case Broken():
                self._break(message)
            case Refused(reason=reason):
                self._break(Broken(f"the interchange refused this client: {reason}"))
            case NodeGone(node=node):
                self.store.sweep(node)
            case Warn(text=text):
                log.warning("%s", text)

    def _on_outcome(self, outcome: Outcome, frames: list[Any]) -> None:
        ticket = self._tickets.get(outcome.id)
        has_result = outcome.status <= Status.PAYLOAD_ERROR
        if ticket is None:  # cancelled in the meantime
            self._kept.discard(outcome)
            return
        self._sender.landed(ticket, has_let_go=has_result and not (outcome.keeps_arguments or outcome.reruns))
        future = ticket.future
        try:
            adopt = self._kept.adopt if outcome.is_kept else self.store.adopt
            payloads = unpack(outcome.data, outcome.layout, frames, adopt) if has_result else []
        except ValueError as error:
            malformed = PayloadError(f"the outcome of {future._name} is malformed: {error}")
            self._fail(ticket, outcomes.raising(malformed), None)
            return
        if outcome.status == Status.OK:
            del self._tickets[ticket.id]
            if ticket.options.keep:
                future._keep_payload()
            outcome.data = b""  # the future keeps the outcome for its info, and the payload only as long as it must
            is_awaited = future in self._waiting
            if is_awaited:
                future._is_passed_on = True
            is_taken = future._complete(None, payloads[0], outcome)
            if is_awaited:
                self._waiting.settle(future, payloads[0] if is_taken else None, self)
            return
        opener = outcomes.failure(outcome, payloads, future, ticket.options.timeout_s)
        future._outcome = outcome
        is_own_failure = outcome.status in (Status.FAILED, Status.TIMED_OUT)  # crashes and losses have limits elsewhere
        if is_own_failure and future._attempt <= ticket.options.retries and not ticket.is_killed:
            self._ask_for_retry(ticket, opener, outcome)
        else:
            self._fail(ticket, opener, outcome)

    def _ask_for_retry(self, ticket: Ticket, opener: Opener, outcome: Outcome) -> None:
        held = [ticket]  # the frames of the question live as long as the error does, and the arguments must not

        def answer(new_opener: Opener, is_retried: bool) -> None:
            self._put(functools.partial(self._go_on, held.pop(), new_opener, outcome, is_retried))

        self._questions.ask(ticket.future._name, ticket.options.retry_on, opener, answer)

    def _go_on(self, ticket: Ticket, opener: Opener, outcome: Outcome, is_retried: bool) -> None:
        if self._tickets.get(ticket.id) is not ticket:
            return  # killed or withdrawn in the meantime
        if is_retried:
            ticket.future._try_again()
            self.is_ready(ticket)
        else:
            self._fail(ticket, opener, outcome)

    def _fail(self, ticket: Ticket, opener: Opener, outcome: Outcome | None) -> None:
        self.forget(ticket)
        ticket.future._finish(opener, outcome)
        self._waiting.settle(ticket.future, None, self)

    # -- cancelling and ending --

    def _cancelled(self, task: int) -> None:
        """The user has cancelled a future: its task must not run, nor what depends on it."""
        ticket = self._tickets.get(task)
        if ticket is None:
            return
        if ticket.sent_bytes and self._broken is None:
            self._sender.tell(Cancel(task))
        self._give_up(task)

    def _give_up(self, task: int) -> None:
        """End a ticket as cancelled."""
        ticket = self._tickets.get(task)
        if ticket is None:
            return
        self.forget(ticket)
        self._waiting.remove(ticket)
        ticket.future._withdraw()
        self._waiting.settle(ticket.future, None, self)

    def _killed(self, task: int) -> None:
        """The user wants a task ended; one that waits for another attempt ends here."""
        ticket = self._tickets.get(task)
        if ticket is None:
            return
        ticket.is_killed = True
        if ticket.sent_bytes:
            self._sender.tell(Kill(task))
            return
        self._fail(ticket, outcomes.killed(ticket.future._name), None)

    def _withdraw(self) -> None:
        """Cancel all calls that do not run: those here at once, those on their way when the interchange says so."""
        tickets = list(self._tickets.values())  # at once: a join may still submit
        oldest = sorted(ticket.id for ticket in tickets if not ticket.waiting)
        keep = oldest[min(self._workers, len(oldest)) - 1] if oldest else 0
        for ticket in tickets:
            if ticket.waiting or (not ticket.sent_bytes and ticket.id > keep):
                self._give_up(ticket.id)
        if self._tickets:
            self._sender.tell(Withdraw(keep))

    def _break(self, broken: Broken) -> None:
        """The pool cannot go on: every pending future gets an error of its own."""
        with self._door:
            if self._broken is None:
                self._broken = broken
                self._closing = True
        tickets, self._tickets = self._tickets, {}
        self._waiting.clear()
        for ticket in tickets.values():
            for segment in ticket.segments:
                segment.spoil()  # workers may still look at it
            self._finish_broken(ticket)
        self.inquiries.close()

    def _finish_broken(self, ticket: Ticket) -> None:
        assert self._broken is not None
        ticket.future._acknowledge_cancel()
        ticket.future._finish(outcomes.broken(self._broken))


def _nothing() -> None:
    """Wakes the thread, which looks at its state."""
