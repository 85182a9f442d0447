from __future__ import annotations

import os
import socket

import pytest

from hpcpool.processes.fork_server_process import CHANNEL_TYPE
from hpcpool.wire import fork_channel
from hpcpool.wire.fork_channel import EndWorker, StartWorker, WorkerEnded, WorkerStarted


@pytest.fixture
def ends():
    manager, fork_server = socket.socketpair(socket.AF_UNIX, CHANNEL_TYPE)
    with manager, fork_server:
        yield manager, fork_server


def test_orders_arrive_one_by_one(ends):
    manager, fork_server = ends
    names = ",".join(f"node{number:04}" for number in range(4096))
    gear = StartWorker(4, tuple(range(256)), {"HPCPOOL_NODES": names})
    orders = [StartWorker(1), EndWorker(2, 9, True), EndWorker(3, 15, False), gear]
    for order in orders:
        fork_channel.say(manager, order)
    assert [fork_channel.hear_as_fork_server(fork_server) for _ in orders] == [(order, []) for order in orders]


def test_news_arrive_one_by_one(ends):
    manager, fork_server = ends
    news = [WorkerStarted(1, 12345), WorkerEnded(1, -9, True), WorkerEnded(2, 0, False)]
    for message in news:
        fork_channel.say(fork_server, message)
    assert [fork_channel.hear_as_manager(manager) for _ in news] == news


def test_descriptors_come_alongside_their_order(ends):
    manager, fork_server = ends
    pipes = [os.pipe() for _ in range(3)]
    try:
        fork_channel.say(manager, EndWorker(1, 9, False))
        fork_channel.say(manager, StartWorker(2), tuple(write for _, write in pipes))
        assert fork_channel.hear_as_fork_server(fork_server) == (EndWorker(1, 9, False), [])
        heard = fork_channel.hear_as_fork_server(fork_server)
        assert heard is not None
        order, descriptors = heard
        assert order == StartWorker(2)
        for number, (descriptor, (read, _)) in enumerate(zip(descriptors, pipes, strict=True)):
            os.write(descriptor, b"%d" % number)
            assert os.read(read, 10) == b"%d" % number
            os.close(descriptor)
    finally:
        for pipe in pipes:
            for end in pipe:
                os.close(end)


def test_the_end_of_the_other_side_is_heard(ends):
    manager, fork_server = ends
    fork_server.close()
    assert fork_channel.hear_as_manager(manager) is None
    manager, fork_server = socket.socketpair(socket.AF_UNIX, CHANNEL_TYPE)
    with fork_server:
        manager.close()
        assert fork_channel.hear_as_fork_server(fork_server) is None
