"""Connections between hosts: TLS 1.3, and each side proves with a certificate of this run that it belongs to it.

There is no other way in: a peer without a certificate of this run never gets to say anything. Who makes the
certificates is not known here.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import tempfile
from collections.abc import Sequence
from typing import Any

#: Who comes for files, or comes back, says so in the handshake (ALPN, RFC 7301): nothing has to be read to tell.
FILES_PROTOCOL = "hpcpool-files"
REJOIN_PROTOCOL = "hpcpool-rejoin"
#: A record holds at most so much, so more at once saves nothing; and what is refused must be offered again unchanged.
_MOST_WRITTEN = 256 * 1024
#: Small pieces are joined up to this size: each write is a record, with its own cost on both sides.
_JOINED_BYTES = 64 * 1024


def server_context(authority: bytes, own: bytes) -> ssl.SSLContext:
    """Return what the listening side needs.

    Args:
        authority: the certificate (PEM) by which peers are recognised.
        own: this side's certificate and its private key (PEM).
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, authority, own)
    context.set_alpn_protocols([FILES_PROTOCOL, REJOIN_PROTOCOL])
    context.num_tickets = 0  # nobody comes back to an old session
    return context


def client_context(authority: bytes, own: bytes) -> ssl.SSLContext:
    """Return what the connecting side needs; arguments as of `server_context`, `ssl.SSLError` if they are none."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, authority, own)


def _context(protocol: int, authority: bytes, own: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The authority is made for one run and signs nothing but its peers: a name would prove no more.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority.decode("ascii"))
    _load_own(context, own)
    return context


def _load_own(context: ssl.SSLContext, own: bytes) -> None:
    """Have OpenSSL read a certificate and its key, which it does from files only."""
    if hasattr(os, "memfd_create"):  # Linux: a file that no disk ever sees
        descriptor = os.memfd_create("hpcpool", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, own)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(own)
        file.flush()
        context.load_cert_chain(file.name)


class TlsEnd:
    """One end of a TLS connection, with what `Stream` uses of a non-blocking socket. The handshake is over."""

    family = socket.AF_INET

    def __init__(self, end: ssl.SSLSocket) -> None:
        self._end = end
        #: A write has failed.
        self._is_broken = False
        end.suppress_ragged_eofs = False  # type: ignore[attr-defined]  # else a reset, too, would look like an end

    def fileno(self) -> int:
        return self._end.fileno()

    def getpeername(self) -> Any:
        return self._end.getpeername()

    def setblocking(self, flag: bool) -> None:
        self._end.setblocking(flag)

    def close(self) -> None:
        self._end.close()

    def send(self, data: Any, flags: int = 0) -> int:
        """Write some of the data; as `socket.send`, but that `flags` mean nothing here."""
        try:
            return self._end.send(memoryview(data)[:_MOST_WRITTEN])
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            # OpenSSL may have taken some of it all the same. It goes on from there when the same bytes come again.
            raise BlockingIOError from None
        except OSError as error:
            self._is_broken = True
            raise _reset(error) from error

    def sendmsg(self, pieces: Sequence[memoryview], ancillary: Sequence[Any] = (), flags: int = 0) -> int:
        """Write some of the pieces; as `socket.sendmsg`."""
        joined: list[memoryview] = []
        size = 0
        for piece in pieces:
            if size + piece.nbytes > _JOINED_BYTES and joined:
                break
            joined.append(piece)
            size += piece.nbytes
        return self.send(joined[0] if len(joined) == 1 else b"".join(joined))

    def recv_into(self, view: Any) -> int:
        """Read into a buffer; as `socket.recv_into`.

        At most one record is read at a time, so with room for one (16 KiB) nothing stays where a poll does not see it.
        """
        try:
            return self._end.recv_into(view)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
        except ssl.SSLEOFError as error:
            # With a reason: the stream has ended without a farewell of TLS, as it does when a process dies. Without: an
            # error that Python does not tell. After one that a write was told, the system tells of an end, too.
            if error.reason and not self._is_broken:
                return 0
            raise ConnectionResetError(os.strerror(errno.ECONNRESET)) from error
        except OSError as error:
            raise _reset(error) from error


def _reset(error: OSError) -> ConnectionResetError:
    return ConnectionResetError(trouble_of(error))


def trouble_of(error: OSError) -> str:
    """Return what went wrong with a connection, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"it has no certificate of this run ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return error.strerror or str(error) or type(error).__name__
