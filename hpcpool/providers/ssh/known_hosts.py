"""Whether a host key is known, by the text of `known_hosts` files; pure, and it never adds a key.

The format is that of sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT": patterns, negated patterns, hashed names, and the markers
`@revoked` and `@cert-authority`. Host certificates are not used, so the keys of authorities count for nothing here.
"""

from __future__ import annotations

import base64
import binascii
import enum
import fnmatch
import hashlib
import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

#: The algorithms that show one and the same RSA key.
_RSA = ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa")


class Verdict(enum.Enum):
    """What is known of a key that a host has shown."""

    KNOWN = "known"
    #: The host is not named anywhere.
    UNKNOWN = "unknown"
    #: The host is named, with other keys, none of them of this type: it may have got one more.
    OTHER_TYPE = "other type"
    #: The host is named with another key of this type.
    CHANGED = "changed"
    #: Somebody has declared this very key to be stolen or lost.
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class KnownKey:
    """One line of a `known_hosts` file."""

    #: Where it is: "path:line".
    place: str
    #: "", "@revoked" or "@cert-authority".
    marker: str
    #: The names as written: patterns with commas between them, or one hashed name.
    names: str
    key_type: str
    key: bytes

    def names_host(self, name: str) -> bool:
        """True if this line is about the host."""
        if self.names.startswith("|1|"):
            return _is_hash_of(self.names, name)
        is_named = False
        for pattern in self.names.split(","):
            negated = pattern.startswith("!")
            if fnmatch.fnmatchcase(name.lower(), _glob(pattern.removeprefix("!").lower())):
                if negated:
                    return False
                is_named = True
        return is_named


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on a key, and the lines that it rests on."""

    verdict: Verdict
    places: tuple[str, ...] = ()


def host_name(host: str, port: int) -> str:
    """The name of a host in `known_hosts`."""
    return host if port == 22 else f"[{host}]:{port}"


def read_known_hosts(path: str, text: str) -> Iterator[KnownKey]:
    """The keys of a file; a line that cannot be understood is passed by, as ssh does."""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#"):
            continue
        try:
            key = base64.b64decode(words[2], validate=True)
        except binascii.Error:
            continue
        yield KnownKey(f"{path}:{number}", marker, words[0], words[1], key)


def judge(known: Iterable[KnownKey], name: str, key_type: str, key: bytes) -> Finding:
    """What the known keys say about a host that shows this key; `name` is that of `host_name`, or an alias."""
    about = [line for line in known if line.names_host(name) and line.marker != "@cert-authority"]
    same = [line for line in about if line.key == key]
    if revoked := [line for line in same if line.marker == "@revoked"]:
        return Finding(Verdict.REVOKED, _places(revoked))
    if accepted := [line for line in same if not line.marker]:
        return Finding(Verdict.KNOWN, _places(accepted))
    others = [line for line in about if not line.marker]
    if changed := [line for line in others if line.key_type == key_type]:
        return Finding(Verdict.CHANGED, _places(changed))
    return Finding(Verdict.OTHER_TYPE if others else Verdict.UNKNOWN, _places(others))


def preferred(known: Iterable[KnownKey], name: str, algorithms: Iterable[str]) -> list[str]:
    """The host key algorithms with those first of which a key of this host is known: a host has several keys."""
    types = {line.key_type for line in known if not line.marker and line.names_host(name)}
    wanted = {algorithm for key_type in types for algorithm in (_RSA if key_type == "ssh-rsa" else (key_type,))}
    return sorted(algorithms, key=lambda algorithm: algorithm not in wanted)


def fingerprint(key: bytes) -> str:
    """A key's fingerprint as ssh shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def _places(lines: Iterable[KnownKey]) -> tuple[str, ...]:
    return tuple(line.place for line in lines)


def _glob(pattern: str) -> str:
    """In `known_hosts` only `*` and `?` are special; brackets stand around hosts with a port."""
    return pattern.replace("[", "[[]")


def _is_hash_of(names: str, name: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in names.removeprefix("|1|").split("|"))
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), "sha1").digest(), digest)
