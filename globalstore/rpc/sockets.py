"""Listening sockets: bound before serving, never shared unless asked for."""

import errno
import socket
from typing import Any

import trio

# Connections that completed before the accept loop gets to them; a fleet reconnecting at once.
BACKLOG = 4096

# Free ports tried for a name of several addresses. One that is taken on the second is rare.
_PORTS_TRIED = 8

# An address, or a whole family of addresses, that this host does not have.
_NOT_HERE = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))


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


def address_of(peer: str) -> str:
    """Return the address of a peer as ``display_address`` shows it, without its port."""
    return peer.rpartition(":")[0].strip("[]")


async def listening_sockets(
    host: str, port: int, *, reuse_port: bool
) -> list[trio.socket.SocketType]:
    """Bind ``host`` and listen.

    ``0.0.0.0`` binds every IPv4 address, ``::`` and ``*`` those of both families. A name binds
    each address that it stands for and this host has: where IPv6 is off, ``localhost`` is
    127.0.0.1 alone. ``port`` 0 picks a free one, the same for all addresses. With ``reuse_port``
    other processes may share the port; without it the kernel refuses any listener beside ours,
    on a wildcard address too. Raises PortBusy, or CannotListen naming host and port.
    """
    addresses = await _addresses(host, port)
    for attempt in range(_PORTS_TRIED):
        try:
            return await _bound(addresses, port, reuse_port)
        except OSError as error:
            # A port that was free for the first address may be taken on the second.
            taken = error.errno == errno.EADDRINUSE
            if taken and port == 0 and attempt + 1 < _PORTS_TRIED:
                continue
            if taken:
                raise PortBusy(host, port) from None
            raise CannotListen(
                error.errno or errno.EADDRNOTAVAIL,
                f"cannot listen on {display_address((host, port))}: {error.strerror or error}",
            ) from None
    raise AssertionError("the last attempt returns or raises")


async def _addresses(host: str, port: int) -> list[tuple[int, int, tuple[Any, ...]]]:
    """Return family, protocol and address of each place that ``host`` stands for, once."""
    if host == "*":
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    try:
        found = await trio.socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise CannotListen(
            None if isinstance(error, socket.gaierror) else getattr(error, "errno", None),
            f"listen.host {host!r}: {getattr(error, 'strerror', None) or error}",
        ) from None
    return list(dict.fromkeys((family, proto, addr) for family, _, proto, _, addr in found))


async def _bound(
    addresses: list[tuple[int, int, tuple[Any, ...]]], port: int, reuse_port: bool
) -> list[trio.socket.SocketType]:
    """Listen on all addresses of a name that this host has; raises OSError if it has none."""
    bound: list[trio.socket.SocketType] = []
    try:
        for number, (family, protocol, address) in enumerate(addresses, 1):
            chosen = bound[0].getsockname()[1] if bound else port
            try:
                bound.append(await _listening(family, protocol, address, chosen, reuse_port))
            except OSError as error:
                elsewhere = error.errno in _NOT_HERE and (bound or number < len(addresses))
                if not elsewhere:
                    raise
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound


async def _listening(
    family: int, protocol: int, address: tuple[Any, ...], port: int, reuse_port: bool
) -> trio.socket.SocketType:
    sock = trio.socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        # Lets a restart bind while connections of the last run are still in TIME_WAIT;
        # two listeners it does not allow.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by connections: the kernel then notices, some time, that a host is gone, also
        # where nothing of ours asks.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # The wildcard is both families, whatever the host's default; an address is itself.
            both = address[0] == "::" or address[0].startswith("::ffff:")
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        await sock.bind((address[0], port, *address[2:]))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
