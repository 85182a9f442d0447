from __future__ import annotations

import os

import pytest

from hpcpool import Config
from hpcpool.errors import ConfigError
from hpcpool.providers.ssh.client_config import Hop, config_text, resolve, with_includes
from hpcpool.providers.ssh.keepalive import SILENT_PERIODS
from hpcpool.providers.ssh.login import SSHLogin

HOME = os.path.expanduser("~")

CONFIG = """\
Host cluster
    HostName login.cluster.example.org
    User ada
    Port 2222
    IdentityFile ~/.ssh/cluster
    IdentitiesOnly yes
    UserKnownHostsFile ~/.ssh/cluster_hosts "/site/hosts"
    ServerAliveInterval 7
    ConnectTimeout 9
    ProxyJump gate
Host gate
    HostName gate.example.org
    ProxyJump outer:2200,middle
Host by-command
    ProxyCommand nc %h %p
    HostKeyAlias alias
"""


def hops(text: str, login: SSHLogin | str) -> tuple[Hop, ...]:
    return resolve(login if isinstance(login, SSHLogin) else SSHLogin(login), text, "me")


def test_what_the_configuration_says_is_used():
    hop = hops(CONFIG, "cluster")[-1]
    assert (hop.name, hop.host, hop.user, hop.port) == ("cluster", "login.cluster.example.org", "ada", 2222)
    assert hop.identities == (f"{HOME}/.ssh/cluster",)
    assert hop.has_own_identities
    assert hop.identities_only
    assert hop.known_hosts == (f"{HOME}/.ssh/cluster_hosts", "/site/hosts", "/etc/ssh/ssh_known_hosts")
    assert (hop.keepalive_s, hop.connect_timeout_s) == (7, 9)


def test_by_default_a_silent_cut_is_noticed_before_the_nodes_behind_it_are_given_up():
    (hop,) = hops("", "ada@login")
    noticed_s = hop.keepalive_s * (2 + SILENT_PERIODS)  # it is asked up to two periods after its last word
    assert 0 < noticed_s < Config().heartbeat_timeout_s


def test_what_is_given_wins_over_the_configuration():
    login = SSHLogin("bob@cluster:22", identity="/keys/mine", known_hosts="/mine", jump="none", keepalive_s=0)
    (hop,) = hops(CONFIG, login)
    assert (hop.user, hop.port, hop.keepalive_s, hop.known_hosts) == ("bob", 22, 0, ("/mine",))
    assert hop.identities == ("/keys/mine", f"{HOME}/.ssh/cluster")


def test_without_a_configuration_there_are_the_defaults_of_ssh():
    (hop,) = hops("", "login")
    assert (hop.host, hop.user, hop.port, hop.proxy_command, hop.use_agent) == ("login", "me", 22, None, True)
    assert hop.identities == tuple(f"{HOME}/.ssh/{name}" for name in ("id_ed25519", "id_ecdsa", "id_rsa"))
    assert not hop.has_own_identities
    assert f"{HOME}/.ssh/known_hosts" in hop.known_hosts


def test_jump_hosts_are_followed_from_the_outside_in_with_their_own_configuration():
    assert [(hop.host, hop.port) for hop in hops(CONFIG, "cluster")] == [
        ("outer", 2200),
        ("middle", 22),
        ("gate.example.org", 22),
        ("login.cluster.example.org", 2222),
    ]


def test_given_jump_hosts_replace_those_of_the_configuration():
    assert [hop.host for hop in hops(CONFIG, SSHLogin("cluster", jump="other"))] == [
        "other",
        "login.cluster.example.org",
    ]


def test_a_way_without_end_is_refused():
    with pytest.raises(ConfigError, match="has no end"):
        hops("Host a\nProxyJump b\nHost b\nProxyJump a\n", "a")


def test_a_proxy_command_gets_host_and_port():
    (hop,) = hops(CONFIG, SSHLogin("by-command", port=2200))
    assert hop.proxy_command == "nc by-command 2200"
    assert hop.host_key_alias == "alias"


def test_an_included_file_is_read_where_it_is_named():
    files = {"first": ["Host one\nUser first\n"], "more/*": ["Host two\nUser two\n", "Host three\nUser three\n"]}
    text = with_includes("Include first\nHost one two\nInclude more/*\nPort 77\n", files.__getitem__)
    assert [(hops(text, name)[0].user, hops(text, name)[0].port) for name in ("one", "two", "three")] == [
        ("first", 77),
        ("two", 77),
        ("three", 22),
    ]


def test_a_file_that_includes_itself_is_refused():
    with pytest.raises(ConfigError, match="includes itself"):
        with_includes("Include it", lambda pattern: ["Include it"])


def test_includes_are_relative_to_the_file(tmp_path):
    (tmp_path / "config").write_text("Include conf.d/*\n")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "site").write_text("Host cluster\nUser ada\n")
    assert hops(config_text(str(tmp_path / "config")), "cluster")[0].user == "ada"


def test_a_configuration_that_is_not_there_or_not_understood_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        config_text(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="the SSH configuration for login cannot be used"):
        hops("Host login\nPort\n", "login")
    assert config_text("none") == ""


@pytest.mark.parametrize(
    ("destination", "command"),
    [
        ("cluster", "ssh cluster"),
        ("ada@node1", "ssh ada@node1"),
        ("ada@node1:2222", "ssh -p 2222 ada@node1"),
        ("ada@fe80::1", "ssh ada@fe80::1"),
        ("ada@[fe80::1]:2222", "ssh -p 2222 ada@fe80::1"),
    ],
)
def test_what_a_user_is_told_to_type_is_what_ssh_takes(destination, command):
    assert hops(CONFIG, destination)[-1].command == command
