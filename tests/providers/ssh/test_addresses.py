from __future__ import annotations

from hpcpool.providers.ssh.addresses import seen_from_outside, with_port


def test_only_what_means_one_machine_everywhere_is_given_to_others():
    words = [
        "n1.cluster",
        "localhost",
        "127.0.1.1",
        "::1",
        "10.1.2.3",
        "10.1.2.3",
        "fe80::1",
        "0.0.0.0",
        "2001:db8::1",
        "",
    ]
    assert seen_from_outside(words) == ["n1.cluster", "10.1.2.3", "2001:db8::1"]
    assert seen_from_outside(["(none)", "aa:bb:cc:dd:ee:ff", "fe80::1%eth0"]) == []


def test_an_ipv6_address_with_a_port_is_in_brackets():
    assert with_port(["n1", "10.0.0.1", "::1"], 80) == ["n1:80", "10.0.0.1:80", "[::1]:80"]
