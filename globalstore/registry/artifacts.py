"""What an artifact is: its row, its digests and its tensor index."""

import enum
import json
from typing import Final

import attrs

from globalstore.db import Snapshot, Transaction
from globalstore.rules import multihash
from globalstore.rules.artifact_ids import Scheme, digests_of, scheme_of
from globalstore.rules.refusals import FailedPrecondition

# The encoding of a tensor index unless the request names another.
INDEX_ENCODING = "json"
INDEX_SCHEMA = "v3"


@attrs.frozen
class Description:
    """What a request says of an artifact; a blank text or 0 says nothing.

    ``total_size`` in bytes. ``id_kind``: 0 opaque, 1 mi2, 2 cgid.
    """

    index_multihash: str = ""
    data_multihash: str = ""
    schema_version: str = ""
    encoding: str = ""
    total_size: int = 0
    id_kind: int = 0


@attrs.frozen
class TensorIndex:
    """The bytes of a tensor index, their SHA-256, and how they are written; blank: as usual."""

    data: bytes
    digest: bytes
    encoding: str = ""
    schema_version: str = ""


_KINDS = {Scheme.MI2: 1, Scheme.CGID: 2}


def ensure_artifact(
    tx: Transaction,
    artifact_id: str,
    description: Description | None,
    index: TensorIndex | None,
    now_us: int,
) -> int:
    """Return the key of an artifact's row, made or completed from a description.

    Nothing known is ever erased or changed. Raises FailedPrecondition where the request contradicts
    the id, itself or the row, before anything is written.
    """
    row = tx.one(
        "SELECT artifact_key, index_multihash, data_multihash, total_size, schema_version,"
        " encoding, id_kind FROM artifacts WHERE artifact_id = :artifact_id",
        {"artifact_id": artifact_id},
    )
    if row is not None and description is None and index is None:
        key: int = row[0]
        return key
    wanted = _complete(artifact_id, description or Description(), index)
    before = None
    merged = wanted
    if row is not None:
        before = Description(row[1], row[2], row[4], row[5], row[3], row[6])
        merged = _merge(before, wanted)
    if index is not None:
        _store_index(tx, index, now_us)
    if row is not None and merged == before:
        return int(row[0])
    saved = tx.one(
        "INSERT INTO artifacts (artifact_id, id_kind, index_multihash, data_multihash,"
        " schema_version, encoding, total_size, created_at, updated_at) VALUES (:artifact_id,"
        " :id_kind, :index_multihash, :data_multihash, :schema_version, :encoding, :total_size,"
        " :now, :now)"
        " ON CONFLICT (artifact_id) DO UPDATE SET id_kind = :id_kind,"
        " index_multihash = :index_multihash, data_multihash = :data_multihash,"
        " schema_version = :schema_version, encoding = :encoding, total_size = :total_size,"
        " updated_at = :now RETURNING artifact_key",
        attrs.asdict(merged) | {"artifact_id": artifact_id, "now": now_us},
    )
    assert saved is not None
    artifact_key: int = saved[0]
    return artifact_key


def ensure_all(
    tx: Transaction, artifact_ids: list[str], now_us: int
) -> tuple[dict[str, int], set[str]]:
    """Return the keys of artifacts, and which of them had no row and got one, from their ids."""
    row = tx.one(
        "SELECT json_group_object(artifact_id, artifact_key) FROM artifacts"
        " WHERE artifact_id IN (SELECT value FROM json_each(:ids))",
        {"ids": json.dumps(artifact_ids, ensure_ascii=False)},
    )
    last = tx.one("SELECT coalesce(max(artifact_key), 0) FROM artifacts")
    assert row is not None
    assert last is not None
    keys: dict[str, int] = json.loads(row[0])
    missing = [artifact_id for artifact_id in artifact_ids if artifact_id not in keys]
    if missing:
        made = dict(zip(missing, range(last[0] + 1, last[0] + 1 + len(missing)), strict=True))
        tx.run_rows(
            "INSERT INTO artifacts (created_at, updated_at, artifact_key, artifact_id, id_kind,"
            " index_multihash, data_multihash, schema_version, encoding, total_size)"
            " SELECT ?, ?, column1, column2, column3, column4, column5, '', '', 0"
            " FROM (VALUES …)",
            [(key, *_of_id(artifact_id)) for artifact_id, key in made.items()],
            (now_us, now_us),
        )
        keys |= made
    return keys, set(missing)


def _of_id(artifact_id: str) -> tuple[str, int, str, str]:
    id_kind = _KINDS.get(scheme_of(artifact_id), 0)
    return artifact_id, id_kind, *(digests_of(artifact_id) or ("", ""))


def readiness(tx: Snapshot, artifact_id: str) -> tuple[int | None, str]:
    """Return the key of an artifact's row, and what it lacks before others may point at it.

    The lack is blank for an artifact that is known and has its index stored, or needs none.
    """
    row = tx.one(
        "SELECT artifact_key, index_multihash FROM artifacts WHERE artifact_id = :artifact_id",
        {"artifact_id": artifact_id},
    )
    if row is None:
        return None, "it is unknown"
    artifact_key, index_multihash = row
    if not index_multihash:
        is_cgid = scheme_of(artifact_id) is Scheme.CGID
        return artifact_key, "" if is_cgid else "it has no index"
    digest = multihash.digest_of(index_multihash)
    if digest is None:
        return artifact_key, f"its index_multihash {index_multihash[:80]!r} cannot be read"
    stored = tx.one("SELECT 1 FROM tensor_indexes WHERE index_digest = ?", (digest,))
    return artifact_key, "" if stored else "its index is not stored"


class Larger(enum.Enum):
    """Says that there is an index, and that it is larger than what was asked for."""

    LARGER = enum.auto()


LARGER: Final = Larger.LARGER


def index_of_key(tx: Snapshot, digest: bytes, bytes_max: int) -> TensorIndex | Larger | None:
    """Return the index with a SHA-256, as it is stored; None when there is none.

    ``LARGER``, unread, if it has more than ``bytes_max``.
    """
    row = tx.one(
        "SELECT CASE WHEN length(index_data) <= :bytes_max THEN index_data END, encoding,"
        " schema_version FROM tensor_indexes WHERE index_digest = :digest",
        {"bytes_max": bytes_max, "digest": digest},
    )
    if row is None:
        return None
    return LARGER if row[0] is None else TensorIndex(row[0], digest, row[1], row[2])


def index_of_artifact(
    tx: Snapshot, artifact_id: str, bytes_max: int
) -> TensorIndex | Larger | None:
    """Return the index of an artifact, with what the artifact's row says of it.

    None when the artifact is unknown, has no index, or its index is not stored; ``LARGER`` as in
    ``index_of_key``.
    """
    row = tx.one(
        "SELECT index_multihash, encoding, schema_version FROM artifacts"
        " WHERE artifact_id = :artifact_id",
        {"artifact_id": artifact_id},
    )
    digest = None if row is None else multihash.digest_of(row[0])
    if row is None or digest is None:
        return None
    stored = index_of_key(tx, digest, bytes_max)
    if stored is None or stored is LARGER:
        return stored
    return TensorIndex(stored.data, digest, row[1] or INDEX_ENCODING, row[2] or INDEX_SCHEMA)


def _complete(artifact_id: str, description: Description, index: TensorIndex | None) -> Description:
    """Add what follows from the id and from the bytes of the index; refuse contradictions."""
    id_kind = _KINDS.get(scheme_of(artifact_id), description.id_kind)
    known = attrs.evolve(description, id_kind=id_kind)
    digests = digests_of(artifact_id)
    if digests is not None:
        known = _merge(Description(*digests, id_kind=id_kind), known)
    if index is not None:
        of_bytes = Description(
            multihash.encode(index.digest),
            schema_version=index.schema_version,
            encoding=index.encoding,
            id_kind=id_kind,
        )
        known = _merge(known, of_bytes)
    return known


def _merge(before: Description, description: Description) -> Description:
    """Fill the gaps of a description; refuse to change a digest or a size."""
    for field in ("index_multihash", "data_multihash", "total_size"):
        old, new = getattr(before, field), getattr(description, field)
        if old and new and old != new:
            raise FailedPrecondition(f"{field} is {new}, but this artifact has {old}")
    return Description(
        before.index_multihash or description.index_multihash,
        before.data_multihash or description.data_multihash,
        description.schema_version or before.schema_version,
        description.encoding or before.encoding,
        before.total_size or description.total_size,
        before.id_kind or description.id_kind,
    )


def _store_index(tx: Transaction, index: TensorIndex, now_us: int) -> None:
    tx.run(
        "INSERT INTO tensor_indexes VALUES (:digest, :data, :encoding, :schema_version, :now)"
        " ON CONFLICT (index_digest) DO NOTHING",
        {
            "digest": index.digest,
            "data": index.data,
            "encoding": index.encoding or INDEX_ENCODING,
            "schema_version": index.schema_version or INDEX_SCHEMA,
            "now": now_us,
        },
    )
