"""Checks of single values, shared by every surface: text, integers, UUIDs, times."""

import re
import uuid

from globalstore.rules.refusals import InvalidArgument
from globalstore.text.characters import code_point, first_hidden, is_control

# Longest id, key or path in UTF-8 bytes: far above any real one (a mi2 id has 117), low enough
# that ids can be index keys and log fields without a thought for their size.
TEXT_BYTES_MAX = 1024

# The largest integer a signed 64-bit column holds; wire fields of type uint64 reach twice as far.
INTEGER_MAX = 2**63 - 1

# The largest integer of a wire field of type uint32.
UINT32_MAX = 2**32 - 1

# The spellings of a UUID that are in use. Python's own parser takes more: underscores, hyphens in
# any place, digits of other scripts.
_UUID_DIGITS = r"[0-9a-f]{8}(-?)(?:[0-9a-f]{4}\%d){3}[0-9a-f]{12}"
_UUID = re.compile(
    rf"(?:urn:uuid:)?{_UUID_DIGITS % 1}|\{{{_UUID_DIGITS % 2}\}}", re.ASCII | re.IGNORECASE
)


def identifier(field: str, value: str, bytes_max: int = TEXT_BYTES_MAX) -> str:
    """Return an id, key or address without surrounding white space.

    Refuses characters that are not seen or steer a display, and more than ``bytes_max`` bytes of
    UTF-8; blank is allowed and means absent. What only looks for an id takes ``existing``.
    """
    value = value.strip()
    if value.isascii() and len(value) <= bytes_max and value.isprintable():
        return value
    hidden = first_hidden(value)
    if hidden is not None:
        kind = "a control character" if is_control(hidden) else "an invisible character"
        raise InvalidArgument(f"{field} contains {code_point(hidden)}, {kind}")
    return _not_too_long(field, value, bytes_max)


def existing_or_blank(field: str, value: str, bytes_max: int = TEXT_BYTES_MAX) -> str:
    """Return what ``identifier`` does for an id that is only looked for.

    Ids with invisible characters were once taken; they are still found and removed.
    """
    value = value.strip()
    if value.isascii() and len(value) <= bytes_max and value.isprintable():
        return value
    if not value.isprintable() and any(ord(c) < 0x20 or ord(c) == 0x7F for c in value):
        raise InvalidArgument(f"{field} contains a control character")
    return _not_too_long(field, value, bytes_max)


def _not_too_long(field: str, value: str, bytes_max: int) -> str:
    if len(value) > bytes_max // 4 and len(value.encode()) > bytes_max:
        raise InvalidArgument(f"{field} is longer than {bytes_max} bytes")
    return value


def required(field: str, value: str, bytes_max: int = TEXT_BYTES_MAX) -> str:
    """Return an identifier that must not be blank."""
    value = identifier(field, value, bytes_max)
    if not value:
        raise _blank(field)
    return value


def existing(field: str, value: str, bytes_max: int = TEXT_BYTES_MAX) -> str:
    """Return an id that is only looked for and must not be blank."""
    value = existing_or_blank(field, value, bytes_max)
    if not value:
        raise _blank(field)
    return value


def _blank(field: str) -> InvalidArgument:
    return InvalidArgument(f"{field} is required")


def storable(field: str, value: int) -> int:
    """Return a non-negative integer that fits a signed 64-bit column."""
    if value > INTEGER_MAX:
        raise InvalidArgument(f"{field} is {value}, expected at most {INTEGER_MAX}")
    return value


def positive(field: str, value: int) -> int:
    """Return an integer that is above zero and fits a signed 64-bit column."""
    if value <= 0:
        raise InvalidArgument(f"{field} is {value}, expected a number above 0")
    return storable(field, value)


def port(field: str, value: int) -> int:
    """Return a TCP port that something can listen on."""
    if not 1 <= value <= 65535:
        raise InvalidArgument(f"{field} is {value}, expected 1..65535")
    return value


def uuid_bytes(field: str, value: str) -> bytes:
    """Return the 16 bytes of a UUID in any spelling of RFC 4122."""
    value = required(field, value)
    if not _UUID.fullmatch(value):
        raise InvalidArgument(f"{field} is not a UUID: {value[:64]!r}")
    return uuid.UUID(value.lower()).bytes


def uuid_text(value: bytes) -> str:
    """Return the lower-case, hyphenated spelling of a UUID."""
    digits = value.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def signed64(value: int) -> int:
    """Return the two's complement of an unsigned 64-bit number, for a signed column."""
    return value - 2**64 if value > INTEGER_MAX else value


def ordered64(value: int) -> int:
    """Return an unsigned 64-bit number as a signed one that sorts like it."""
    return value - 2**63


def unordered64(value: int) -> int:
    """Undo ``ordered64``."""
    return value + 2**63


def unsigned64(value: int) -> int:
    """Undo ``signed64``."""
    return value & (2**64 - 1)
