"""How a verb reaches a running server: by its configuration file, or by an address."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from globalstore.cli import exit_codes, output
from globalstore.cli.output import NotWritten
from globalstore.client.blocking import BlockingConnection, CallFailed, NotTaken
from globalstore.host import read_bounded

if TYPE_CHECKING:
    import ssl

# A server that answers at all answers within this; who runs a command is waiting.
_PATIENCE_S = 10.0

# A token is a line; of a larger file no more is read.
_TOKEN_BYTES_MAX = 65536

# Hosts that a server listens on, but nobody can dial.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1", "": "127.0.0.1"}


class Unusable(Exception):
    """The arguments do not lead to a server; the text says why."""


class Address(NamedTuple):
    """Where a server is, and how to talk to it."""

    host: str
    port: int
    tls: "ssl.SSLContext | None"
    token: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments by which a server is found, and tell the exit codes."""
    tell_exit_codes(parser)
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


def tell_exit_codes(parser: argparse.ArgumentParser) -> None:
    """Let the help of a verb end with what its exit code means."""
    parser.epilog = exit_codes.TABLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def ask(
    verb: str, arguments: argparse.Namespace, question: Callable[[BlockingConnection], int]
) -> int:
    """Put a question to the server; return the exit code.

    ``question`` makes its calls on the connection that it gets, writes what came, and returns the
    code. What can go wrong is said in one line on stderr, with a code of its own.
    """
    try:
        address = _address(arguments)
    except Unusable as error:
        return fail(verb, str(error), exit_codes.USAGE)
    return converse(verb, address, question)


def converse(verb: str, address: Address, question: Callable[[BlockingConnection], int]) -> int:
    """Put a question to the server at an address; see ``ask``."""
    metadata = (("authorization", f"Bearer {address.token}"),) if address.token else ()
    where = f"{address.host}:{address.port}"
    reached = False
    try:
        with BlockingConnection(
            address.host, address.port, address.tls, metadata, _PATIENCE_S
        ) as connection:
            reached = True
            return question(connection)
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except NotWritten as error:
        return fail(verb, str(error), exit_codes.UNWRITTEN)
    except CallFailed as error:
        code = exit_codes.NOT_SO if error.status == "NOT_FOUND" else exit_codes.REFUSED
        return fail(verb, f"{error.status}: {error.message}", code)
    except OSError as error:
        if reached and not isinstance(error, NotTaken):
            return fail(verb, f"{where}: {_reason(error)}", exit_codes.UNANSWERED)
        return fail(verb, f"{where}: {_reason(error)}", exit_codes.UNREACHABLE)


def fail(verb: str, text: str, code: int) -> int:
    """Say in one line on stderr why a verb failed; return ``code``."""
    output.note(verb, " ".join(text.split()))
    return code


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError) and error.errno is None:
        return f"no answer within {_PATIENCE_S:.0f} s"
    if isinstance(error, ConnectionRefusedError):
        return f"{error.strerror}; is the server started, and is that its address?"
    return error.strerror or str(error)


def _address(arguments: argparse.Namespace) -> Address:
    token = _token(arguments.token_file) if arguments.token_file else ""
    if arguments.config is not None:
        return Address(*_configured(arguments), token)
    host, port = host_and_port(arguments.server or "127.0.0.1:50051")
    if arguments.ca:
        return Address(host, port, _trusting(arguments, "--ca", arguments.ca), token)
    for option in ("cert", "key"):
        if getattr(arguments, option):
            raise Unusable(f"--{option} is of use with --ca only, or with a --config that has TLS")
    return Address(host, port, None, token)


def _token(path: str) -> str:
    content = _content("--token-file", path)
    if not content.isascii():
        raise Unusable(f"--token-file: {path} is not a text of ASCII characters")
    return content.decode().strip()


def _configured(arguments: argparse.Namespace) -> "tuple[str, int, ssl.SSLContext | None]":
    if arguments.server:
        raise Unusable("--config and --server exclude each other")
    from globalstore import config as configuration
    from globalstore.config import ConfigError

    try:
        server = configuration.load(arguments.config).server
    except ConfigError as error:
        raise Unusable(str(error)) from error
    listen = server.listen
    if listen.port == 0:
        raise Unusable("server.listen.port is 0, so the port is not known; use --server")
    tls = None
    if server.grpc.tls.enabled:
        import ssl

        option = "--ca" if arguments.ca else "server.grpc.tls.cert_file"
        tls = _trusting(arguments, option, arguments.ca or server.grpc.tls.cert_file)
        # The certificate itself is what is trusted, whatever name it has.
        tls.check_hostname = arguments.ca is not None
        tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return _EVERYWHERE.get(listen.host, listen.host), listen.port, tls


def _trusting(arguments: argparse.Namespace, option: str, authorities: str) -> "ssl.SSLContext":
    """Return what to talk TLS with; ``option`` is where the file of authorities was named."""
    import ssl

    file = _readable(option, authorities)
    try:
        context = ssl.create_default_context(cafile=str(file))
    except ssl.SSLError:
        raise Unusable(f"{option}: {file} has no certificate in PEM") from None
    context.set_alpn_protocols(["h2"])
    if arguments.cert:
        certificate = _readable("--cert", arguments.cert)
        key = _readable("--key", arguments.key) if arguments.key else certificate
        try:
            # A password is never asked for: who runs a command may be a script.
            context.load_cert_chain(certificate, key, password=lambda: "")
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or str(error)
            raise Unusable(
                f"--cert: {certificate} and --key: {key} are no certificate in PEM and its key,"
                f" without a password ({reason})"
            ) from None
    elif arguments.key:
        raise Unusable("--key is of use with --cert only")
    return context


def _readable(option: str, path: str) -> Path:
    """Return the path of a file that can be read. Raises Unusable, which names the option."""
    _content(option, path, 1)
    return Path(path).expanduser()


def _content(option: str, path: str, size_max: int = _TOKEN_BYTES_MAX) -> bytes:
    """Return the beginning of a file. Raises Unusable, which names the option."""
    try:
        return read_bounded(Path(path).expanduser(), size_max)[:size_max]
    except (OSError, ValueError, RuntimeError) as error:  # the last is an unknown ~user
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Unusable(f"{option}: {path} cannot be read: {reason}") from None


def host_and_port(text: str) -> tuple[str, int]:
    """Split the value of ``--server``. Raises Unusable."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Unusable(f"--server: expected HOST:PORT, got {text!r}")
    return host.strip("[]"), int(port)
