"""Lists of the catalog for operators: keys and artifacts, page by page or one in full."""

import attrs

from globalstore.db import Row, Snapshot
from globalstore.registry.catalog import bindings, disk_locations
from globalstore.registry.catalog.disk_locations import DiskLocation
from globalstore.registry.catalog.keys import KeyMapping, Kind
from globalstore.registry.runtime import replica_lists
from globalstore.rules import multihash

# Rows that are read for a page: revoked keys are passed over, however many there are.
_LOOKED_AT_MAX = 5000

# Entries of a list about one thing: more than a person reads.
ENTRIES_MAX = 1000

# Above every character that a text may begin with.
_LAST = chr(0x10FFFF)


@attrs.frozen
class ListedKey:
    """A key; ``mapping`` is None when it points at nothing. ``updated_at_us`` is wall time."""

    key: str
    kind: Kind
    generation: int
    mapping: KeyMapping | None
    updated_at_us: int


@attrs.frozen
class Generation:
    """A target that a key has or had; times in microseconds since 1970, the end None if it has."""

    generation: int
    artifact_id: str
    version_set_id: str
    selection_hash: bytes
    began_at_us: int
    ended_at_us: int | None


@attrs.frozen
class ListedArtifact:
    """An artifact's row. ``index_size`` in bytes, None when its index is not stored."""

    artifact_id: str
    id_kind: int
    index_multihash: str
    data_multihash: str
    schema_version: str
    encoding: str
    total_size: int
    created_at_us: int
    updated_at_us: int
    index_size: int | None
    replica_count: int
    available_count: int


@attrs.frozen
class About:
    """All about an artifact; ``artifact`` is None when it has no row.

    A list of ``ENTRIES_MAX`` + 1 entries may lack others.
    """

    artifact: ListedArtifact | None
    sealed_to: str
    sealed_from: list[str]
    keys: list[str]
    places: list[DiskLocation]


_KEY = """
SELECT m.key, m.kind, m.generation, coalesce(a.artifact_id, ''), m.version_set_id,
       m.replica_uuid, m.daemon_address, m.ttl_s, m.expires_at, m.updated_at
FROM key_mappings m LEFT JOIN artifacts a USING (artifact_key)
"""


def _key(row: Row, lease_us: int) -> ListedKey:
    name, kind, generation, artifact_id, set_id, replica_uuid, address, ttl_s, at, updated = row
    mapping = KeyMapping(
        artifact_id, set_id, replica_uuid, address, Kind(kind), generation, ttl_s, at
    )
    points = mapping.target and not mapping.expired(lease_us)
    return ListedKey(name, Kind(kind), generation, mapping if points else None, updated)


def list_keys(
    tx: Snapshot, prefix: str, after: str, limit: int, include_absent: bool, lease_us: int
) -> tuple[list[ListedKey], str]:
    """Return keys in the order of their bytes, and where the next page begins, blank for none."""
    rows = tx.all(
        f"{_KEY} WHERE m.key >= :prefix AND m.key <= :last AND m.key > :after"
        " ORDER BY m.key LIMIT :limit",
        {
            "prefix": prefix,
            "last": prefix + _LAST,
            "after": after,
            "limit": _LOOKED_AT_MAX,
        },
    )
    found: list[ListedKey] = []
    for row in rows:
        key = _key(row, lease_us)
        if include_absent or key.mapping is not None:
            if len(found) == limit:
                return found, found[-1].key
            found.append(key)
    return found, rows[-1][0] if len(rows) == _LOOKED_AT_MAX else ""


def show_key(tx: Snapshot, key: str, lease_us: int) -> tuple[ListedKey, list[Generation]] | None:
    """Return a key with its targets, the latest first; None when there never was such a key."""
    row = tx.one(f"{_KEY} WHERE m.key = :key", {"key": key})
    if row is None:
        return None
    generations = tx.all(
        "SELECT g.generation, coalesce(a.artifact_id, ''), g.version_set_id, g.selection_hash,"
        " g.began_at, g.ended_at FROM key_generations g JOIN key_mappings m USING (mapping_key)"
        " LEFT JOIN artifacts a ON a.artifact_key = g.artifact_key"
        " WHERE m.key = :key ORDER BY g.generation DESC LIMIT :limit",
        {"key": key, "limit": ENTRIES_MAX + 1},
    )
    return _key(row, lease_us), [Generation(*each) for each in generations]


_ARTIFACT = """
SELECT a.artifact_id, a.id_kind, a.index_multihash, a.data_multihash, a.schema_version,
       a.encoding, a.total_size, a.created_at, a.updated_at
FROM artifacts a
"""


def list_artifacts(
    tx: Snapshot, prefix: str, after: str, limit: int
) -> tuple[list[ListedArtifact], str]:
    """Return artifacts in the order of the bytes of their ids, and where the next page begins."""
    rows = tx.all(
        f"{_ARTIFACT} WHERE a.artifact_id >= :prefix AND a.artifact_id <= :last"
        " AND a.artifact_id > :after ORDER BY a.artifact_id LIMIT :limit",
        {"prefix": prefix, "last": prefix + _LAST, "after": after, "limit": limit + 1},
    )
    page = rows[:limit]
    return _artifacts(tx, page), page[-1][0] if len(rows) > limit else ""


def show_artifact(tx: Snapshot, artifact_id: str, lease_us: int) -> About:
    """Return all about an artifact; a list of more than ``ENTRIES_MAX`` entries is cut off."""
    named = {"artifact_id": artifact_id, "limit": ENTRIES_MAX + 1}
    artifacts = _artifacts(tx, tx.all(f"{_ARTIFACT} WHERE a.artifact_id = :artifact_id", named))
    binding = bindings.find_binding(tx, artifact_id)
    sealed_from = tx.all(
        "SELECT from_artifact_id FROM artifact_bindings WHERE to_artifact_id = :artifact_id"
        " ORDER BY from_artifact_id LIMIT :limit",
        named,
    )
    pointing = tx.all(
        "SELECT m.key FROM key_mappings m JOIN artifacts a USING (artifact_key)"
        " WHERE a.artifact_id = :artifact_id AND (m.expires_at IS NULL OR m.expires_at > :now)"
        " ORDER BY m.key LIMIT :limit",
        named | {"now": lease_us},
    )
    _, places = disk_locations.locations(tx, artifact_id, True, ENTRIES_MAX + 1)
    return About(
        artifacts[0] if artifacts else None,
        "" if binding is None else binding.to_artifact_id,
        [each for (each,) in sealed_from],
        [key for (key,) in pointing],
        places,
    )


def _artifacts(tx: Snapshot, rows: list[Row]) -> list[ListedArtifact]:
    counts = replica_lists.counts(tx, [row[0] for row in rows])
    return [
        ListedArtifact(*(*row, _index_size(tx, row[2]), *count))
        for row, count in zip(rows, counts, strict=True)
    ]


def _index_size(tx: Snapshot, index_multihash: str) -> int | None:
    digest = multihash.digest_of(index_multihash)
    row = tx.one("SELECT length(index_data) FROM tensor_indexes WHERE index_digest = ?", (digest,))
    return None if row is None else row[0]
