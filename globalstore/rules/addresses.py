"""Which addresses another machine can reach."""

import ipaddress
from functools import lru_cache

from globalstore.rules.refusals import InvalidArgument
from globalstore.rules.values import required

_LOCAL_NAMES = frozenset({"localhost", "ip6-localhost", "*"})

# Addresses whose answer is remembered: those of a large cluster. Every registration names one, and
# taking it apart anew was a sixth of the work of checking a request.
_REMEMBERED = 4096


@lru_cache(_REMEMBERED)
def is_local_only(address: str) -> bool:
    """Tell whether an address means "this machine" or "any address" when it is dialled.

    Brackets around and IPv4 inside of IPv6 are looked through; case and white space do not count.
    Other host names are not resolved and pass.
    """
    address = address.strip().lower()
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1].strip()
    if address in _LOCAL_NAMES:
        return True
    try:
        literal = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(literal, ipaddress.IPv6Address) and literal.ipv4_mapped is not None:
        return literal.ipv4_mapped.is_loopback or literal.ipv4_mapped.is_unspecified
    return literal.is_loopback or literal.is_unspecified


def routable(field: str, value: str) -> str:
    """Return an address that other machines can dial, as far as its text tells."""
    address = required(field, value)
    if is_local_only(address):
        raise InvalidArgument(
            f"{field} is {address!r}, expected an address that other machines can reach "
            "(not loopback, not unspecified)"
        )
    return address
