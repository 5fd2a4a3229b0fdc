"""The address that clients are given."""

import enum
import ipaddress
import socket
from collections.abc import Callable
from typing import Final

import attrs

from globalstore.config.schema.server import Server

# Any address outside serves to ask the routing table; these are reserved for documentation.
_OUTSIDE: Final = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
_OUTSIDE_PORT: Final = 9


class AddressSource(enum.Enum):
    """Where an advertised host came from."""

    CONFIGURED = "server.advertise.host"
    LISTEN_HOST = "server.listen.host"
    LOOPBACK = "server.listen.host (loopback)"
    ROUTE = "route to the outside"
    HOST_NAME = "host name"
    FALLBACK = "server.listen.host (not routable)"


@attrs.frozen
class AdvertisedAddress:
    """The address that clients are told to dial.

    ``host`` is an address or a name, without brackets. ``source`` is the rule that gave it; with
    ``FALLBACK`` a warning is due.
    """

    host: str
    port: int
    source: AddressSource

    def __str__(self) -> str:
        return host_port(self.host, self.port)


def host_port(host: str, port: int) -> str:
    """Return ``host:port``, an IPv6 host in brackets; "" when either is unknown (empty or 0)."""
    if not host or not port:
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def route_addresses() -> list[str]:
    """Return the addresses that this host would use for outside traffic, IPv4 before IPv6.

    Nothing is sent.
    """
    found = []
    for family, outside in _OUTSIDE:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((outside, _OUTSIDE_PORT))
                found.append(str(probe.getsockname()[0]))
        except OSError:
            continue  # no such family, or no route
    return found


def host_name_addresses() -> list[str]:
    """Return the addresses that the host's own name stands for. May block on a name server."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(entry[4][0]) for entry in found]


def advertised_address(
    server: Server,
    bound_port: int,
    route: Callable[[], list[str]] = route_addresses,
    host_name: Callable[[], list[str]] = host_name_addresses,
) -> AdvertisedAddress:
    """Return the address that clients are told to dial; the first rule that gives one counts.

    Call it at start, before the event loop has work: a name look-up may block. Of the settings
    ``advertise`` goes before ``listen``. ``bound_port`` is the port that the listener really has.
    ``route`` looks up the addresses of outgoing traffic, ``host_name`` those of the host's name; of
    either the first counts that the listener has bound.
    """
    port = server.advertise.port or bound_port
    listen = server.listen.host.strip("[] ")
    if configured := server.advertise.host.strip("[] "):
        return AdvertisedAddress(configured, port, AddressSource.CONFIGURED)
    if is_loopback(listen):
        return AdvertisedAddress(listen, port, AddressSource.LOOPBACK)
    if not is_unspecified(listen):
        return AdvertisedAddress(listen, port, AddressSource.LISTEN_HOST)
    for ask, source in ((route, AddressSource.ROUTE), (host_name, AddressSource.HOST_NAME)):
        for address in ask():
            if _is_reached_by(address, listen):
                return AdvertisedAddress(address, port, source)
    return AdvertisedAddress(listen, port, AddressSource.FALLBACK)


def _is_reached_by(host: str, wildcard: str) -> bool:
    """Tell whether other machines reach ``host`` on this one if it listens on ``wildcard``.

    ``0.0.0.0`` is every IPv4 address, ``::`` and ``*`` are those of both families.
    """
    address, bound = _address(host), _address(wildcard)
    if address is None or address.is_loopback or address.is_unspecified or address.is_link_local:
        return False
    return address.version == 4 or bound is None or bound.version == 6


def is_loopback(host: str) -> bool:
    """Tell whether ``host`` names this machine only: a loopback address or ``localhost``."""
    address = _address(host)
    if address is None:
        name = host.strip().rstrip(".").lower()
        return name == "localhost" or name.endswith(".localhost")
    return address.is_loopback


def is_unspecified(host: str) -> bool:
    """Tell whether ``host`` means every interface: ``0.0.0.0``, ``::``, ``*``."""
    address = _address(host)
    return host.strip() == "*" if address is None else address.is_unspecified


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    text = host.strip().strip("[]")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        try:  # the resolver also takes short forms such as 127.1 and 0
            return ipaddress.IPv4Address(socket.inet_aton(text))
        except (OSError, ValueError):
            return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
