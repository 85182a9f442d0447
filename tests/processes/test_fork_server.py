"""What a fork server has ready for the workers that it forks."""

from __future__ import annotations

import socket

from hpcpool.processes import fork_server
from hpcpool.wire import messages


def test_what_workers_decode_with_is_there_before_they_are_forked():
    messages._tasks_decoder.cache_clear()
    ours, its = socket.socketpair()
    ours.close()  # so it ends as soon as it listens
    fork_server.main([str(its.detach()), "-1"])
    assert messages._tasks_decoder.cache_info().currsize == 1
