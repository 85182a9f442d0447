from __future__ import annotations

import pytest

from hpcpool.errors import ConfigError
from hpcpool.providers.ssh.login import SSHLogin
from hpcpool.providers.ssh.provider import SSHProvider


def test_options_are_for_the_machines_that_are_named_as_text():
    own = SSHLogin("bob@node2", port=77)
    provider = SSHProvider(["ada@node1", own], port=22, identity="key")
    assert provider.logins() == (SSHLogin("ada@node1", port=22, identity="key"), own)
    assert provider.max_nodes_per_block == 2


@pytest.mark.parametrize(
    "options",
    [
        {"hosts": []},
        {"hosts": "node1"},
        {"hosts": ["a b"]},
        {"hosts": [7]},
        {"hosts": ["n"], "port": 0},
        {"hosts": ["n"], "scratch": "tmp"},
        {"hosts": ["n"], "poll_interval_s": 0},
    ],
)
def test_what_cannot_be_is_refused(options):
    with pytest.raises(ConfigError):
        SSHProvider(**options)
