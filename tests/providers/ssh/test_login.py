from __future__ import annotations

import pytest

from hpcpool.errors import ConfigError
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
