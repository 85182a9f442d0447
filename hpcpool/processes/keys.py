"""The keys of a run: an authority that exists in the interchange's memory only, and a certificate for each block.

`cryptography` is imported where it is used: a pool on one machine has no keys.
"""

from __future__ import annotations

import datetime
import ssl
from typing import TYPE_CHECKING

from hpcpool.wire.tls import server_context

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, Name

# The clocks of nodes may be wrong, and a key lives no longer than the interchange that knows of it.
_FROM = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_UNTIL = datetime.datetime(9999, 1, 1, tzinfo=datetime.UTC)


class RunKeys:
    """Makes keys and takes them back. `issue` and `revoke` may be called in another thread than the rest."""

    def __init__(self) -> None:
        self._key, self._certificate = _authority()
        #: By this certificate (PEM) both sides recognise each other.
        self.authority = _pem(self._certificate)
        #: The blocks that may come in, by the serial number of their certificate.
        self._blocks: dict[int, str] = {}

    def context(self) -> ssl.SSLContext:
        """Return what the interchange listens with."""
        key, certificate = self._signed(is_server=True)
        return server_context(self.authority, _pem(certificate) + _pem_of_key(key))

    def issue(self, block: str) -> bytes:
        """Return a certificate and its private key (PEM), with which the managers of a block may come in."""
        key, certificate = self._signed(is_server=False)
        self._blocks[certificate.serial_number] = block
        return _pem(certificate) + _pem_of_key(key)

    def revoke(self, block: str) -> None:
        """Let nobody in any more with the key of this block; nothing happens if it has none."""
        for serial, name in list(self._blocks.items()):  # a copy, as another thread may add one meanwhile
            if name == block:
                del self._blocks[serial]

    def _signed(self, *, is_server: bool) -> tuple[EllipticCurvePrivateKey, Certificate]:
        """Make a key for one side: a manager must not be able to pass for the interchange."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH if is_server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = _builder("interchange" if is_server else "manager", key, issuer=self._certificate.subject)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        return key, builder.sign(self._key, hashes.SHA256())

    def block_of(self, end: ssl.SSLSocket) -> str | None:
        """Return the block that a peer has proved to belong to; None if its key was revoked."""
        proved = end.getpeercert() or {}
        return self._blocks.get(int(str(proved.get("serialNumber", "0")), 16))


def _authority() -> tuple[EllipticCurvePrivateKey, Certificate]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("hpcpool", key, issuer=_name("hpcpool"))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return key, builder.sign(key, hashes.SHA256())


def _builder(name: str, key: EllipticCurvePrivateKey, issuer: Name) -> CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
    )


def _name(name: str) -> Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _pem(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _pem_of_key(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
