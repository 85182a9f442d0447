from __future__ import annotations

import os

from hpcpool.processes.event_loop import READ, EventLoop, wake_up_pipe


def test_nobody_has_to_know_how_long_the_kernel_can_wait():
    loop = EventLoop()
    read, write = wake_up_pipe()
    heard: list[int] = []
    loop.add(read, heard.append)
    os.write(write, b"x")
    loop.wait(1e9)
    assert heard == [READ]
    os.close(read)
    os.close(write)


def test_who_is_late_does_not_wait():
    loop = EventLoop()
    loop.wait(-1.0)
