from __future__ import annotations

import pytest

from hpcpool.config import Config
from hpcpool.errors import ConfigError
from hpcpool.providers import SlurmProvider, SSHProvider
from hpcpool.providers.ssh.login import Destination, SSHLogin, jumps


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("login", Destination("login")),
        ("ada@login.cluster", Destination("login.cluster", "ada")),
        ("ada@login.cluster:2222", Destination("login.cluster", "ada", 2222)),
        ("ssh://ada@login:22/", Destination("login", "ada", 22)),
        ("ada@[::1]:2222", Destination("::1", "ada", 2222)),
        ("[fe80::1]", Destination("fe80::1")),
        ("::1", Destination("::1")),
        ("ada@site.org@gate", Destination("gate", "ada@site.org")),
    ],
)
def test_a_destination_is_read_as_ssh_reads_it(text, expected):
    assert Destination.parse(text) == expected
    assert Destination.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ada@",
        "@login",
        "a b",
        "login:0",
        "login:99999",
        "login:port",
        "-oProxyCommand=x",
        "-l@x",
        "a;b",
        "*",
        "x\ny",
    ],
)
def test_what_is_no_destination_is_refused(text):
    with pytest.raises(ConfigError, match="no machine to log in to"):
        SSHLogin(text)


def test_jump_hosts_are_separated_by_commas():
    assert jumps("ada@gate:2222, inner") == (Destination("gate", "ada", 2222), Destination("inner"))
    assert jumps("none") == jumps(None) == ()


@pytest.mark.parametrize(
    "options",
    [{"port": 0}, {"port": "x"}, {"identity": ""}, {"jump": "a b"}, {"connect_timeout_s": 0}, {"keepalive_s": -1}],
)
def test_an_impossible_option_is_refused_by_name(options):
    with pytest.raises(ConfigError):
        SSHLogin("login", **options)


def test_a_login_shows_what_was_given():
    assert (
        repr(SSHLogin("ada@login", jump="gate", keepalive_s=0)) == "SSHLogin('ada@login', jump='gate', keepalive_s=0)"
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("ada@login", "ada@login"),
        ({"destination": "ada@login", "jump": "gate"}, SSHLogin("ada@login", jump="gate")),
    ],
)
def test_a_login_is_text_or_a_table_in_a_file_and_goes_to_other_processes_unchanged(written, meant):
    config = Config.from_dict({"node_pools": [{"provider": {"kind": "slurm", "login": written}}]})
    assert config.node_pools[0].provider == SlurmProvider(login=meant)
    assert Config.from_json(config.to_json()) == config


def test_hosts_are_a_list_of_texts_and_tables_in_a_file():
    hosts = ["node1", {"destination": "node2", "port": 77}]
    config = Config.from_dict({"node_pools": [{"provider": {"kind": "ssh", "hosts": hosts, "identity": "key"}}]})
    assert config.node_pools[0].provider == SSHProvider(["node1", SSHLogin("node2", port=77)], identity="key")
    assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize("login", ["a b", {"destination": "a b"}, {"destination": "a", "prot": 1}, 7])
def test_a_login_that_cannot_be_is_refused_in_a_file(login):
    with pytest.raises(ConfigError, match="provider"):
        Config.from_dict({"node_pools": [{"provider": {"kind": "slurm", "login": login}}]})


def test_what_is_wrong_in_a_table_is_said_with_its_place():
    def refusal(login: object, **hosts: object) -> str:
        provider = {"kind": "ssh", **hosts} if hosts else {"kind": "slurm", "login": login}
        with pytest.raises(ConfigError) as caught:
            Config.from_dict({"node_pools": [{"provider": provider}]})
        return str(caught.value)

    assert "provider.login.prot is not an option; did you mean 'port'?" in refusal({"destination": "a", "prot": 1})
    assert "'a b' is no machine to log in to" in refusal({"destination": "a b"})
    assert "hosts[0].jmup is not an option" in refusal(None, hosts=[{"destination": "a", "jmup": "b"}])
