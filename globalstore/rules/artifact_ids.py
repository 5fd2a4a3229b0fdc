"""The schemes of artifact ids and which surface takes which.

The scheme is told by the case-sensitive prefix alone; an id is never a path.
"""

import enum
import re

from globalstore.rules import multihash
from globalstore.rules.refusals import FailedPrecondition, InvalidArgument
from globalstore.rules.values import existing, required

_CGID = re.compile(r"cgid:[A-Za-z0-9._~-]+\Z")
_CGID_LENGTH = range(8, 201)
_BYTE_ARTIFACT = "cgid:byte_artifact~"
_MI2 = re.compile(f"mi2:({multihash.PATTERN}):({multihash.PATTERN})")


class Scheme(enum.Enum):
    """What an id promises about the bytes it names."""

    MI2 = "mi2"  # content address: index and data digests
    CGID = "cgid"  # chosen by a client; promises nothing
    BYTE_ARTIFACT = "byte_artifact"  # a CGID whose truth lives on daemons
    MSA1 = "msa1"  # a mount of one daemon session
    OPAQUE = "opaque"  # none of these; a plain string


def scheme_of(artifact_id: str) -> Scheme:
    """Return the scheme of an id by its prefix."""
    if artifact_id.startswith("mi2:"):
        return Scheme.MI2
    if artifact_id.startswith(_BYTE_ARTIFACT):
        return Scheme.BYTE_ARTIFACT
    if artifact_id.startswith("cgid:"):
        return Scheme.CGID
    if artifact_id.startswith("msa1:"):
        return Scheme.MSA1
    return Scheme.OPAQUE


def refuse_msa1(field: str, artifact_id: str) -> None:
    """Refuse an id that means something only inside one daemon session."""
    if artifact_id.startswith("msa1:"):
        raise FailedPrecondition(
            f"{field} {artifact_id[:80]!r} is daemon-session-local and cannot be used here"
        )


def is_kept_by_daemons(artifact_id: str) -> bool:
    """Tell whether an id must never be stored here: its objects are known to daemons alone."""
    return artifact_id.startswith(("msa1:", _BYTE_ARTIFACT))


def looked_up(field: str, value: str) -> str:
    """Return an artifact id for a look-up: any scheme but msa1."""
    artifact_id = existing(field, value)
    refuse_msa1(field, artifact_id)
    return artifact_id


def stored(field: str, value: str) -> str:
    """Return an artifact id that may enter the artifact and replica tables."""
    artifact_id = required(field, value)
    _refuse_unstored(field, artifact_id)
    return artifact_id


def stored_before(field: str, value: str) -> str:
    """Return an artifact id for a look-up in those tables."""
    artifact_id = existing(field, value)
    _refuse_unstored(field, artifact_id)
    return artifact_id


def _refuse_unstored(field: str, artifact_id: str) -> None:
    refuse_msa1(field, artifact_id)
    if artifact_id.startswith(_BYTE_ARTIFACT):
        raise FailedPrecondition(
            f"{field} {artifact_id[:80]!r} is a byte artifact: its objects are kept by daemons, "
            "the store keeps only their shard-home leases"
        )


def mi2(index_multihash: str, data_multihash: str) -> str:
    """Return the content address made of an index and a data multihash."""
    return f"mi2:{index_multihash}:{data_multihash}"


def parse_mi2(field: str, artifact_id: str) -> tuple[str, str]:
    """Return the index and data multihashes of a mi2 id; both are checked."""
    parts = artifact_id.split(":")
    if len(parts) != 3:
        raise InvalidArgument(f"{field} has {len(parts)} segments, expected mi2:<index>:<data>")
    multihash.decode(f"{field}, index segment,", parts[1])
    multihash.decode(f"{field}, data segment,", parts[2])
    return parts[1], parts[2]


def described(field: str, value: str) -> str:
    """Return an artifact id that may be stored and keeps the grammar of its scheme."""
    artifact_id = stored(field, value)
    scheme = scheme_of(artifact_id)
    if scheme is Scheme.CGID:
        check_cgid(field, artifact_id)
    elif scheme is Scheme.MI2:
        parse_mi2(field, artifact_id)
    return artifact_id


def digests_of(artifact_id: str) -> tuple[str, str] | None:
    """Return the index and data multihashes of a well-formed mi2 id; None of every other id."""
    match = _MI2.fullmatch(artifact_id)
    return None if match is None else (match[1], match[2])


def check_cgid(field: str, artifact_id: str) -> None:
    """Refuse a cgid id outside its grammar."""
    if len(artifact_id) not in _CGID_LENGTH or not _CGID.match(artifact_id):
        raise InvalidArgument(
            f"{field} is not a cgid id: 8..200 characters, cgid: and then only A-Z a-z 0-9 - . _ ~"
        )
