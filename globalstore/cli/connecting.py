"""How a verb reaches a running server: by its configuration file, or by an address."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from globalstore.client.blocking import BlockingConnection, CallFailed

if TYPE_CHECKING:
    import ssl

# A server that answers at all answers within this; who runs a command is waiting.
_PATIENCE_S = 10.0

# Hosts that a server listens on, but nobody can dial.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}

USAGE = 2


class _Unusable(Exception):
    """The arguments do not lead to a server; the text says why."""


class Address(NamedTuple):
    """Where a server is, and how to talk to it."""

    host: str
    port: int
    tls: "ssl.SSLContext | None"
    token: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments by which a server is found."""
    parser.add_argument("--config", metavar="FILE", help="the server's configuration")
    parser.add_argument(
        "--server", metavar="HOST:PORT", help="its address instead; default: 127.0.0.1:50051"
    )
    parser.add_argument("--ca", metavar="FILE", help="talk TLS and trust these authorities (PEM)")
    parser.add_argument("--cert", metavar="FILE", help="client certificate (PEM)")
    parser.add_argument("--key", metavar="FILE", help="key of the client certificate (PEM)")
    parser.add_argument(
        "--token-file", metavar="FILE", help="a file that holds a token of role full or read"
    )


def ask(
    verb: str, arguments: argparse.Namespace, question: Callable[[BlockingConnection], None]
) -> int:
    """Put a question to the server; return the exit code.

    ``question`` makes its calls on the connection that it gets. What can go wrong with a server is
    said in one line on stderr.
    """
    try:
        address = _address(arguments)
    except _Unusable as error:
        print(f"{verb}: {error}", file=sys.stderr)
        return USAGE

    metadata = (("authorization", f"Bearer {address.token}"),) if address.token else ()
    try:
        with BlockingConnection(
            address.host, address.port, address.tls, metadata, _PATIENCE_S
        ) as connection:
            question(connection)
    except KeyboardInterrupt:
        return 130
    except (CallFailed, OSError) as error:
        print(f"{verb}: {_reason(error, address)}", file=sys.stderr)
        return 1
    return 0


def _reason(error: CallFailed | OSError, address: Address) -> str:
    if isinstance(error, CallFailed):
        return f"{error.status}: {error.message}"
    if isinstance(error, TimeoutError) and error.errno is None:
        return f"no answer from {address.host}:{address.port} within {_PATIENCE_S:.0f} s"
    return f"{address.host}:{address.port}: {error.strerror or error}"


def _address(arguments: argparse.Namespace) -> Address:
    token = ""
    try:
        if arguments.token_file:
            token = Path(arguments.token_file).read_text(encoding="utf-8").strip()
        if arguments.config is not None:
            host, port, tls = _configured(arguments)
        else:
            host, port = _host_and_port(arguments.server or "127.0.0.1:50051")
            tls = _trusting(arguments, arguments.ca) if arguments.ca else None
    except (OSError, UnicodeDecodeError) as error:
        raise _Unusable(str(error)) from error
    return Address(host, port, tls, token)


def _configured(arguments: argparse.Namespace) -> "tuple[str, int, ssl.SSLContext | None]":
    if arguments.server:
        raise _Unusable("--config and --server exclude each other")
    from globalstore import config as configuration
    from globalstore.config import ConfigError

    try:
        server = configuration.load(arguments.config).server
    except ConfigError as error:
        raise _Unusable(str(error)) from error
    listen = server.listen
    if listen.port == 0:
        raise _Unusable("server.listen.port is 0, so the port is not known; use --server")
    tls = None
    if server.grpc.tls.enabled:
        import ssl

        tls = _trusting(arguments, arguments.ca or server.grpc.tls.cert_file)
        # The certificate itself is what is trusted, whatever name it has.
        tls.check_hostname = arguments.ca is not None
        tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return _EVERYWHERE.get(listen.host, listen.host), listen.port, tls


def _trusting(arguments: argparse.Namespace, authorities: str) -> "ssl.SSLContext":
    import ssl

    context = ssl.create_default_context(cafile=str(Path(authorities).expanduser()))
    context.set_alpn_protocols(["h2"])
    if arguments.cert:
        context.load_cert_chain(arguments.cert, arguments.key)
    return context


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise _Unusable(f"--server: expected HOST:PORT, got {text!r}")
    return host.strip("[]"), int(port)
