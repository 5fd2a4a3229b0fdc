"""Content addresses: the multihash spelling of a SHA-256 digest and the ids made of two.

A multihash is ``b`` + lower-case, unpadded base32 of ``0x12 0x20`` + the 32 digest bytes. Only
this one spelling of a digest is accepted, so that equal digests are equal strings.
"""

import base64
import binascii
import hashlib

from globalstore.rules.refusals import InvalidArgument

_PREFIX = b"\x12\x20"  # multihash code of sha2-256, then the digest length
_LENGTH = 56

# The canonical spellings: the prefix is c, i, q and a first bit of 0; the last character holds two
# bits of the digest and three zeros.
PATTERN = "bciq[a-p][a-z2-7]{50}[aiqy]"


def encode(digest: bytes) -> str:
    """Return the multihash text of a 32-byte SHA-256 digest."""
    return "b" + base64.b32encode(_PREFIX + digest).decode().rstrip("=").lower()


def of(data: bytes) -> str:
    """Return the multihash text of some bytes."""
    return encode(hashlib.sha256(data).digest())


def digest_of(text: str) -> bytes | None:
    """Return the 32 digest bytes of a multihash; None for every other text or spelling."""
    if len(text) == _LENGTH and text.startswith("b"):
        try:
            raw = base64.b32decode(text[1:].upper() + "=")
        except (binascii.Error, ValueError):
            raw = b""
        if raw[:2] == _PREFIX and encode(raw[2:]) == text:
            return raw[2:]
    return None


def decode(field: str, text: str) -> bytes:
    """Return the 32 digest bytes of a multihash in its canonical spelling."""
    digest = digest_of(text)
    if digest is None:
        raise InvalidArgument(
            f"{field} is not a sha2-256 multihash in lower-case base32"
            f" ({_LENGTH} characters, bciq…)"
        )
    return digest
