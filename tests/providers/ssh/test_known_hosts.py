from __future__ import annotations

import base64

import pytest

from hpcpool.providers.ssh.known_hosts import (
    Finding,
    Verdict,
    fingerprint,
    host_name,
    judge,
    preferred,
    read_known_hosts,
)

KEY, OTHER = b"key one", b"key two"
A, B = base64.b64encode(KEY).decode(), base64.b64encode(OTHER).decode()


def verdict(text: str, name: str = "login", key_type: str = "ssh-ed25519", key: bytes = KEY) -> Finding:
    return judge(list(read_known_hosts("file", text)), name, key_type, key)


def test_a_key_of_the_host_is_known():
    assert verdict(f"# comment\n\nlogin ssh-ed25519 {A} a comment\n") == Finding(Verdict.KNOWN, ("file:3",))


def test_a_host_that_is_not_named_is_unknown():
    assert verdict(f"other ssh-ed25519 {A}\n") == Finding(Verdict.UNKNOWN)
    assert verdict("") == Finding(Verdict.UNKNOWN)


def test_another_key_of_the_same_type_is_a_change():
    assert verdict(f"login ssh-ed25519 {B}\n") == Finding(Verdict.CHANGED, ("file:1",))


def test_a_key_of_a_type_that_is_not_known_is_not_accepted():
    assert verdict(f"login ssh-rsa {B}\n") == Finding(Verdict.OTHER_TYPE, ("file:1",))


def test_one_of_several_keys_of_a_type_is_enough():
    assert verdict(f"login ssh-ed25519 {B}\nlogin ssh-ed25519 {A}\n").verdict is Verdict.KNOWN


def test_a_revoked_key_is_refused_even_if_it_is_known():
    text = f"login ssh-ed25519 {A}\n@revoked * ssh-ed25519 {A}\n"
    assert verdict(text) == Finding(Verdict.REVOKED, ("file:2",))


def test_the_key_of_an_authority_is_not_the_key_of_a_host():
    assert verdict(f"@cert-authority * ssh-ed25519 {A}\n").verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("names", "name", "is_named"),
    [
        ("login,login.cluster", "login.cluster", True),
        ("*.cluster", "login.cluster", True),
        ("*.cluster", "cluster", False),
        ("login?", "login1", True),
        ("*.cluster,!gate.cluster", "gate.cluster", False),
        ("!gate.cluster,*.cluster", "gate.cluster", False),
        ("LOGIN", "login", True),
        ("[login]:2222", "[login]:2222", True),
        ("[login]:2222", "login", False),
        ("login", "[login]:2222", False),
        ("[login]:*", "[login]:2222", True),
        ("|1|rubbish", "login", False),
        ("|1|a|b", "login", False),
    ],
)
def test_names_are_patterns(names, name, is_named):
    assert (verdict(f"{names} ssh-ed25519 {A}\n", name).verdict is Verdict.KNOWN) == is_named


def test_names_may_be_hashed():
    # Made by `ssh-keygen -H` of OpenSSH 9.2 from "login.example.org" and "[login.example.org]:2222".
    lines = {
        "login.example.org": "|1|YXHBsfpOhz78m7IAG8Cskn6YZPA=|YGHwwnSHwyJ3e1Aaw+/og7qoKwc=",
        "[login.example.org]:2222": "|1|ysrhYQ+RYJmWo4n3bTVraqQQNXo=|Vvrr5KVc/45IdCB9lHPLPTDcwTE=",
    }
    for name, names in lines.items():
        assert verdict(f"{names} ssh-ed25519 {A}\n", name).verdict is Verdict.KNOWN
        assert verdict(f"{names} ssh-ed25519 {A}\n", "other").verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("line", ["login", "login ssh-ed25519", "login ssh-ed25519 %%%", "@revoked", "\0"])
def test_a_line_that_is_not_understood_is_passed_by(line):
    assert verdict(f"{line}\nlogin ssh-ed25519 {A}\n").verdict is Verdict.KNOWN


def test_a_port_that_is_not_the_usual_one_is_part_of_the_name():
    assert (host_name("login", 22), host_name("::1", 2222)) == ("login", "[::1]:2222")


def test_a_host_is_asked_for_a_key_that_is_known():
    algorithms = ["ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256"]
    known = list(read_known_hosts("file", f"login ssh-rsa {A}\nother ecdsa-sha2-nistp256 {A}\n"))
    assert preferred(known, "login", algorithms) == [*algorithms[2:], *algorithms[:2]]
    assert preferred(known, "nobody", algorithms) == algorithms


def test_a_fingerprint_looks_as_ssh_shows_it():
    assert fingerprint(b"") == "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
