"""Listening sockets: bound before serving, never shared unless asked for."""

import errno
import socket

import trio

# Connections that completed before the accept loop gets to them; a fleet reconnecting at once.
BACKLOG = 4096


class CannotListen(OSError):
    """The host or port cannot be listened on, whoever else runs.

    ``errno`` is the system's, None when the host is a name that cannot be resolved.
    """


class PortBusy(OSError):
    """Something already listens on the port."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            errno.EADDRINUSE,
            f"{display_address((host, port))}: something already listens on this port; "
            "see `ss -ltnp` for what, and stop it or choose another port",
        )


def display_address(address: tuple[object, ...]) -> str:
    """Return ``host:port`` for people, IPv6 hosts in brackets."""
    host = str(address[0]).removeprefix("::ffff:")
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


async def listening_sockets(
    host: str, port: int, *, reuse_port: bool
) -> list[trio.socket.SocketType]:
    """Bind ``host`` (a name stands for all its addresses) and listen.

    ``port`` 0 picks a free one, the same for all addresses. With ``reuse_port`` other
    processes may share the port; without it the kernel refuses any listener beside ours,
    on a wildcard address too. Raises PortBusy, or CannotListen naming host and port.
    """
    try:
        found = await trio.socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise CannotListen(
            None if isinstance(error, socket.gaierror) else getattr(error, "errno", None),
            f"listen.host {host!r}: {getattr(error, 'strerror', None) or error}",
        ) from None
    bound: list[trio.socket.SocketType] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            chosen = bound[0].getsockname()[1] if bound else port
            sock = trio.socket.socket(family, kind, protocol)
            bound.append(sock)
            # Lets a restart bind while connections of the last run are still in TIME_WAIT;
            # two listeners it does not allow.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await sock.bind((address[0], chosen, *address[2:]))
            sock.listen(BACKLOG)
    except OSError as error:
        for sock in bound:
            sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortBusy(host, port) from None
        raise CannotListen(
            error.errno,
            f"cannot listen on {display_address((host, port))}: {error.strerror or error}",
        ) from None
    return bound
