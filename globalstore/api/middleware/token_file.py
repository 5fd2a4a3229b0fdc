"""The token file (``server.auth.token_file``): who may call, as an operator writes it.

A line is ``full DIGEST``, ``read DIGEST`` or ``daemon DIGEST ID[,ID…]``; the digest is the SHA-256
of a token in hex. Only digests are kept and compared, so neither the file nor a dump of the process
shows a token.
"""

import enum
import hashlib
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from globalstore.host import HostRefused, access_by_others, host_step, read_bounded

_SETTING: Final = "server.auth.token_file"

# A line has some 70 bytes: room for ten thousand tokens.
_FILE_BYTES_MAX: Final = 1 << 20

# What is hashed instead of a token when a variable is unset or a file empty, by the ways in which
# shells and templates write that. Everybody knows these.
_NOTHING: Final = ("", " ", "\t", '""', "''", "null", "None", "nil", "undefined", "<no value>")
_ENDINGS: Final = ("", "\n", "\r\n")


class Role(enum.Enum):
    """What a token allows."""

    FULL = "full"
    READ = "read"
    DAEMON = "daemon"


@attrs.frozen
class Grant:
    """What the token of one digest allows; ``daemon_ids`` are those that a daemon's may act for."""

    digest: bytes
    role: Role
    daemon_ids: frozenset[str] = frozenset()


class TokenFileUnusable(HostRefused):
    """The token file cannot be read, is open to others, or has a line that cannot be meant."""

    word = "tls"


def digest_of(token: str) -> bytes:
    """Return what a token is known by."""
    return hashlib.sha256(token.encode()).digest()


_DIGESTS_OF_NOTHING: Final = frozenset(
    digest_of(text + ending) for text in _NOTHING for ending in _ENDINGS
)


def read_token_file(path: Path) -> list[Grant]:
    """Return what each token of a file allows. Raises TokenFileUnusable."""
    with host_step(_SETTING, path, TokenFileUnusable):
        content = read_bounded(path, _FILE_BYTES_MAX)
        lines = content.decode().splitlines()
        others = access_by_others(path)
    if others.others_write:
        raise TokenFileUnusable(
            f"{_SETTING} {path}: its mode {others.mode} lets others write tokens of their own"
            " into it; chmod it to 0600"
        )
    if len(content) > _FILE_BYTES_MAX:
        raise TokenFileUnusable(
            f"{_SETTING} {path}: larger than {_FILE_BYTES_MAX} bytes; leave only tokens in use in"
            " it"
        )
    grants = _distinct(path, lines)
    if not grants:
        raise TokenFileUnusable(
            f"{_SETTING} {path} has no tokens; write at least one, or unset the"
            " key to take calls without tokens"
        )
    return grants


def _distinct(path: Path, lines: list[str]) -> list[Grant]:
    """Return the grants of all lines; two that differ about one token are refused."""
    found: dict[bytes, tuple[int, Grant]] = {}
    for number, grant in _grants(path, lines):
        first, known = found.setdefault(grant.digest, (number, grant))
        if known != grant:
            raise TokenFileUnusable(
                f"{_SETTING} {path}, line {number}: the token of line {first} again, with another"
                " role or other daemons; leave one line for it, or give each use a token of its own"
            )
    return [grant for _, grant in found.values()]


def _grants(path: Path, lines: list[str]) -> Iterator[tuple[int, Grant]]:
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        grant = _grant(words)
        if grant is None:
            raise TokenFileUnusable(
                f"{_SETTING} {path}, line {number}: expected 'full', 'read' or 'daemon', the"
                " SHA-256 of a token in hex and, after 'daemon' only, daemon ids separated by"
                " commas; correct that line"
            )
        if grant.digest in _DIGESTS_OF_NOTHING:
            raise TokenFileUnusable(
                f"{_SETTING} {path}, line {number}: this is the SHA-256 of no token (of an empty"
                " text or one such as 'null', as an unset variable leaves it); hash a random token"
                " instead, with printf rather than echo"
            )
        yield number, grant


def _grant(words: list[str]) -> Grant | None:
    """Return what the words of a line say, None if they cannot be meant."""
    role = next((role for role in Role if role.value == words[0]), None)
    if role is None or len(words) != (3 if role is Role.DAEMON else 2):
        return None
    if len(words[1]) != 64 or not set(words[1].lower()) <= set(string.hexdigits):
        return None
    daemon_ids = words[2].split(",") if role is Role.DAEMON else []
    if not all(daemon_ids):
        return None
    return Grant(bytes.fromhex(words[1]), role, frozenset(daemon_ids))
