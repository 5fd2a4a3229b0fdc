"""What the text of an address tells: whether any machine could have it."""

import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Final

# What ends a name that the resolver takes for an IPv4 address, as RFC 3696 advises.
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_NAME: Final = re.compile(r"[^\s/:@\[\]?#*%\\]+")
_NAME_CHARS_MAX: Final = 253


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(names: Iterable[str]) -> tuple[Network, ...]:
    """Return the networks of these names.

    Raises ValueError, which says what was expected.
    """
    found = []
    for name in names:
        try:
            found.append(ipaddress.ip_network(name))
        except ValueError as error:
            raise ValueError(
                f"expected networks such as 10.0.3.0/24 or fd00::/64, found {name[:80]!r}: {error}"
            ) from None
    return tuple(found)


def host_fault(host: str) -> str | None:
    """Return what is wrong with an address or name, with the right spelling, or None.

    Whether this or another machine has it is not asked.
    """
    if not host.strip():
        return "expected an address such as 127.0.0.1 or 0.0.0.0"
    if host != host.strip():
        return f"expected an address without white space around it, found {host!r}"
    if host == "*":
        return None  # every interface; where one is to be dialled, that is refused
    if host.startswith("[") or ":" in host:
        return _fault_of_ipv6(host)
    if not _NAME.fullmatch(host) or not host.isprintable():
        return f"expected an address or a name, found {host!r}"
    labels = host.rstrip(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _fault_of_ipv4(host)
    try:
        encoded = host.encode("idna")
    except UnicodeError:
        encoded = b""
    if not encoded or len(encoded) > _NAME_CHARS_MAX:
        return f"expected a name of labels of 1 to 63 characters, found {host[:80]!r}"
    return None


def _fault_of_ipv4(host: str) -> str | None:
    try:
        # Also takes the short forms of the resolver, such as 127.1.
        address = ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return f"{host!r} is no IPv4 address: four numbers from 0 to 255"
    return _fault_of_kind(host, address)


def _fault_of_ipv6(host: str) -> str | None:
    bare = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.IPv6Address(bare)
    except ValueError:
        name, _, port = host.rpartition(":")
        if port.isdigit() and host_fault(name.strip("[]")) is None:
            return f"the port has a key of its own; write {name.strip('[]')} here, found {host!r}"
        if "://" in host:
            return f"expected an address and not a URL, found {host!r}"
        return f"{host!r} is no IPv6 address, nor a name"
    if bare != host:
        return f"write {bare}, without brackets"
    return _fault_of_kind(host, address)


def _fault_of_kind(host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    if address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        return f"expected the address of one machine, found {host!r}, which is of many"
    return None
