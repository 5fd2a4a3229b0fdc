"""TLS for the listener: versions, ALPN and client certificates."""

import socket
import ssl
from collections.abc import Mapping
from typing import Any

import trio

from globalstore.telemetry import get_logger

log = get_logger("globalstore.rpc")

# Forward secrecy and authenticated encryption only, which HTTP/2 asks for too (RFC 9113, 9.2.2).
# TLS 1.3 has no others and is not concerned.
_TLS_1_2_SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20"


def server_context(
    cert_file: str, key_file: str, client_ca_file: str | None = None
) -> ssl.SSLContext:
    """Return a context for gRPC: TLS 1.2 or later, ALPN ``h2``.

    ``cert_file`` and ``key_file`` are PEM files of one key pair. With ``client_ca_file`` clients
    must show a certificate that it vouches for. Raises OSError or ssl.SSLError if a file is
    missing, unreadable, encrypted or does not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Nobody can enter a passphrase here; without the function the library would ask for it.
    context.load_cert_chain(cert_file, key_file, password=lambda: "")
    if client_ca_file:
        context.load_verify_locations(client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return prepared(context)


def prepared(context: ssl.SSLContext) -> ssl.SSLContext:
    """Set what gRPC needs on a context made elsewhere; ValueError if it allows old TLS."""
    if context.minimum_version < ssl.TLSVersion.TLSv1_2:
        raise ValueError("ssl_context: expected a minimum version of TLS 1.2 or later")
    context.set_ciphers(_TLS_1_2_SUITES)
    context.set_alpn_protocols(["h2"])
    return context


class TlsTransport:
    """TLS over a socket, as a connection uses it."""

    def __init__(self, stream: "trio.SSLStream[trio.SocketStream]") -> None:
        self._stream = stream
        # The names that the peer's certificate has, if it had to show one.
        self.peer_names = _names(stream.getpeercert() or {})

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return bytes that arrived, decrypted; empty at the end."""
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_all(self, data: bytes) -> None:
        """Encrypt and send all of ``data``."""
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        """Say goodbye and close: TLS knows no half-open connection."""
        await self._stream.aclose()


def _names(certificate: Mapping[str, Any]) -> frozenset[str]:
    """Return the common names of a certificate, and its alternative names that are DNS or URI."""
    subject = [pair for part in certificate.get("subject", ()) for pair in part]
    common = {value for name, value in subject if name == "commonName"}
    alternative = certificate.get("subjectAltName", ())
    return frozenset(common | {value for kind, value in alternative if kind in {"DNS", "URI"}})


async def handshake(
    socket_stream: trio.SocketStream, context: ssl.SSLContext, seconds: float, peer: str
) -> TlsTransport | None:
    """Shake hands within ``seconds``; None if the client failed to, which is logged."""
    stream = trio.SSLStream(socket_stream, context, server_side=True, https_compatible=True)
    reason, has_begun = "timed out", False
    with trio.move_on_after(seconds):
        try:
            has_begun = bool(await socket_stream.socket.recv(1, socket.MSG_PEEK))
            await stream.do_handshake()
        except (trio.BrokenResourceError, ssl.SSLError, OSError) as error:
            reason = str(error.__cause__ or error)
        else:
            if stream.selected_alpn_protocol() == "h2":
                return TlsTransport(stream)
            reason = "the client does not offer h2 by ALPN"
    if has_begun:
        log.limited(reason, "TLS handshake failed", peer=peer, reason=reason)
    else:
        log.debug("client opened a connection and sent nothing", peer=peer)
    return None
