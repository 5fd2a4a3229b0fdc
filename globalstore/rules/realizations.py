"""What names the version sets and realizations of groups: digests over their content.

Each is the SHA-256 of a domain, a zero byte, and JSON with sorted keys, no white space, and all but
ASCII escaped.
"""

import enum
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

VERSION_SET_PREFIX = "gvs_"
TRANSACTION_PREFIX = "grt_"

_DIGITS = re.compile(r"[0-9a-f]{64}")

# Numbers of the wire's ByteSpaceKind.
CANONICAL_SPACE = 1
VIEW_SPACE = 2


class RealizationKind(enum.IntEnum):
    """How the parts of a version set relate; the numbers of the wire."""

    SAME_SELECTION = 1
    PER_PART_SELECTION = 2


@attrs.frozen
class Selection:
    """What a part gets. ``encoded`` is the whole selection, as it came.

    ``selection_hash`` is the one its maker gave it, or ``computed_hash`` of it.
    """

    encoded: bytes = attrs.field(repr=False)
    artifact_id: str
    view_id: str
    selection_hash: bytes = attrs.field(repr=bytes.hex)
    logical_layout_hash: bytes = attrs.field(repr=bytes.hex)


@attrs.frozen
class ByteSpace:
    """A byte stream of an artifact: its canonical one, or that of a view."""

    kind: int
    id: str


@attrs.frozen
class Part:
    """What one part of a group gets, in which byte space; the rest is descriptive."""

    part_id: str
    selection: Selection
    space: ByteSpace
    metadata_json: str = ""


@attrs.frozen
class Manifest:
    """The content of a version set, parts in the order of their ids."""

    kind: RealizationKind
    parts: tuple[Part, ...]
    manifest_hash: bytes = attrs.field(repr=bytes.hex)

    @property
    def version_set_id(self) -> str:
        """The id by which clients name the set."""
        return VERSION_SET_PREFIX + self.manifest_hash.hex()


def digest_of(prefix: str, text: str) -> bytes | None:
    """Return the digest that an id is made of; None for a text that is no such id."""
    digits = text.removeprefix(prefix)
    return bytes.fromhex(digits) if digits != text and _DIGITS.fullmatch(digits) else None


def computed_hash(encoded_selection: bytes) -> bytes:
    """Return the hash of a selection whose maker gave it none, from its deterministic encoding."""
    return _digest("tensorcast.artifact_selection.v1", encoded_selection)


def effective_space(given: ByteSpace, view_id: str) -> ByteSpace:
    """Return the byte space of a part: that of its view unless another one is given."""
    if given.kind or given.id:
        return given
    return ByteSpace(VIEW_SPACE, view_id) if view_id else ByteSpace(CANONICAL_SPACE, "")


def manifest(kind: RealizationKind, parts: Iterable[Part]) -> Manifest:
    """Return the content-addressed manifest of some parts, whose ids differ."""
    ordered = tuple(sorted(parts, key=lambda part: part.part_id))
    content = {
        "realization_kind": kind.name.lower(),
        "parts": [
            {
                "part_id": part.part_id,
                "artifact_id": part.selection.artifact_id,
                "view_id": part.selection.view_id,
                "requested_byte_space": _json({"id": part.space.id, "kind": part.space.kind}),
                "selection_hash": part.selection.selection_hash.hex(),
                "logical_layout_hash": part.selection.logical_layout_hash.hex(),
            }
            for part in ordered
        ],
    }
    digest = _digest("tensorcast.group_version_set.v1", _json(content).encode())
    return Manifest(kind, ordered, digest)


def same_for_all(selection: Selection, part_ids: Iterable[str]) -> Manifest:
    """Return the manifest in which every part gets the same selection."""
    space = effective_space(ByteSpace(0, ""), selection.view_id)
    parts = [Part(part_id, selection, space) for part_id in part_ids]
    return manifest(RealizationKind.SAME_SELECTION, parts)


def transaction_fingerprint(
    *,
    group_kind: str,
    group_id: str,
    epoch: int,
    required_part_ids: Sequence[str],
    manifest_hash: bytes,
    kind: RealizationKind,
    key_generation: int | None,
) -> bytes:
    """Return the digest of slot, parts, version set and key generation.

    ``required_part_ids`` are sorted and differ.
    """
    return _digest(
        "tensorcast.group_realization_transaction.v1",
        _json(
            {
                "epoch": epoch,
                "group_id": group_id,
                "group_kind": group_kind,
                "key_generation": key_generation,
                "manifest_hash": manifest_hash.hex(),
                "realization_kind": kind.name.lower(),
                "required_part_ids": list(required_part_ids),
                "total_parts": len(required_part_ids),
                "version_set_id": VERSION_SET_PREFIX + manifest_hash.hex(),
            }
        ).encode(),
    )


def member_fingerprint(
    transaction_id: str, version_set_id: str, selection_hash: bytes, reported: dict[str, str | int]
) -> bytes:
    """Return the digest of a report; ``reported`` has its fields as the contract names them."""
    return _digest(
        "tensorcast.group_realization_member.v1",
        _json(
            reported
            | {
                "transaction_id": transaction_id,
                "version_set_id": version_set_id,
                "selection_hash": selection_hash.hex(),
            }
        ).encode(),
    )


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(domain: str, data: bytes) -> bytes:
    return hashlib.sha256(domain.encode() + b"\0" + data).digest()
