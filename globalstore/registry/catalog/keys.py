"""Keys: names that point at artifacts, and every target that they ever had.

A row outlives its key: what is revoked or has expired keeps its number, so that a generation names
one target for ever. Whether a key has expired is decided by the lease clock, inside the
transaction; all other times are wall time.
"""

import enum
import json

import attrs

from globalstore.db import Snapshot, Transaction
from globalstore.registry import artifacts
from globalstore.registry.forgotten_names import KEYS, first_generation, raise_floor
from globalstore.registry.lease_clock import LeaseNow
from globalstore.registry.signals import (
    KeyChanged,
    LeaseEnded,
    LeaseGranted,
    LeaseKind,
    LeasesExpired,
)
from globalstore.rules.refusals import FailedPrecondition


class Kind(enum.IntEnum):
    """How a key came to its target."""

    IMMUTABLE = 0  # by an upsert, and no swap has touched it
    ALIAS = 1  # made or touched by a swap


@attrs.frozen
class KeyMapping:
    """What a key points at: an artifact, or the version set of a group.

    ``ttl_s`` in seconds, None for a key without; ``expires_at_us`` is of the lease clock, None for
    one that does not expire.
    """

    artifact_id: str
    version_set_id: str
    replica_uuid: str
    daemon_address: str
    kind: Kind
    generation: int
    ttl_s: int | None
    expires_at_us: int | None

    def expired(self, lease_us: int) -> bool:
        """Tell whether the time of this target has passed, by the lease clock."""
        return self.expires_at_us is not None and self.expires_at_us <= lease_us

    @property
    def target(self) -> str:
        """The id of what the key points at."""
        return self.artifact_id or self.version_set_id


@attrs.frozen
class Upsert:
    """A checked UpsertKeyMapping request; ``ttl_s`` as in ``KeyMapping``."""

    key: str
    artifact_id: str
    replica_uuid: str
    daemon_address: str
    ttl_s: int | None


@attrs.frozen
class Swap:
    """A checked SwapKeyMapping request; a blank text or None is no guard, or no token."""

    key: str
    artifact_id: str
    expected_artifact_id: str
    expected_generation: int | None
    operation_id: str

    @property
    def guarded(self) -> bool:
        """Whether the swap names what the key must point at."""
        return bool(self.expected_artifact_id) or self.expected_generation is not None


@attrs.frozen
class Swapped:
    """What a key points at after a swap; ``won`` unless a guard did not hold."""

    won: bool
    artifact_id: str
    generation: int


@attrs.frozen
class _Row:
    """A row of the table; ``mapping`` is None when the key is revoked or has expired."""

    mapping_key: int
    generation: int
    mapping: KeyMapping | None


def find_key(tx: Snapshot, key: str) -> KeyMapping | None:
    """Return what a key points at, whether or not its time has passed; None if it was revoked."""
    row = _row(tx, key)
    return None if row is None else row.mapping


def upsert_key(tx: Transaction, change: Upsert, now_us: int, clock: LeaseNow) -> str | None:
    """Point a new key at an artifact, or replace hints and lifetime of one that points there.

    Returns None, or what the key points at if that is something else. Raises FailedPrecondition
    for a new key whose target is not ready.
    """
    lease_us = clock()
    row = _live_row(tx, change.key, lease_us)
    if row is not None and row.mapping is not None:
        if row.mapping.artifact_id != change.artifact_id:
            return row.mapping.target
        mapping_key = row.mapping_key
    else:
        artifact_key = _ready(tx, change.artifact_id)
        mapping_key, _ = _point(tx, row, change.key, artifact_key, Kind.IMMUTABLE, now_us)
    _hint(tx, mapping_key, change, now_us, lease_us)
    tx.emit(KeyChanged(change.key))
    return None


def swap_key(tx: Transaction, change: Swap, now_us: int, clock: LeaseNow) -> Swapped:
    """Point a key at another artifact if the guards hold; without a guard, make the key too.

    A repeat with the same ``operation_id`` gets the answer that the first one got. Raises
    FailedPrecondition when the target is not ready or the token was used for another one.
    """
    row = _live_row(tx, change.key, clock())
    if row is not None and change.operation_id:
        answered = _answered(tx, row.mapping_key, change)
        if answered is not None:
            return answered
    artifact_key = _ready(tx, change.artifact_id)
    mapping = None if row is None else row.mapping
    if mapping is None:
        if change.guarded:
            return Swapped(False, "", 0)
    elif mapping.version_set_id or not _guards_hold(change, mapping):
        return Swapped(False, mapping.artifact_id, mapping.generation)
    if row is not None and mapping is not None and mapping.artifact_id == change.artifact_id:
        mapping_key, generation = row.mapping_key, row.generation
        tx.run(
            "UPDATE key_mappings SET kind = :kind, updated_at = :now"
            " WHERE mapping_key = :mapping_key",
            {"kind": int(Kind.ALIAS), "now": now_us, "mapping_key": mapping_key},
        )
    else:
        mapping_key, generation = _point(tx, row, change.key, artifact_key, Kind.ALIAS, now_us)
    if change.operation_id:
        tx.run(
            "INSERT INTO key_swaps VALUES (:mapping_key, :operation_id, :artifact_key,"
            " :generation, :now)",
            {
                "mapping_key": mapping_key,
                "operation_id": change.operation_id,
                "artifact_key": artifact_key,
                "generation": generation,
                "now": now_us,
            },
        )
    tx.emit(KeyChanged(change.key))
    return Swapped(True, change.artifact_id, generation)


def revoke_key(tx: Transaction, key: str, now_us: int, clock: LeaseNow) -> bool:
    """Let a key point at nothing; False when it did not point at anything."""
    row = _live_row(tx, key, clock())
    if row is None or row.mapping is None:
        return False
    _clear(tx, row.mapping_key, row.generation, now_us)
    tx.emit(KeyChanged(key))
    return True


def note_selection(tx: Transaction, key: str, generation: int, selection_hash: bytes) -> None:
    """Record the selection that a realization took at a key's generation; the first one stays."""
    tx.run(
        "UPDATE key_generations SET selection_hash = :hash"
        " WHERE mapping_key = (SELECT mapping_key FROM key_mappings WHERE key = :key)"
        " AND generation = :generation AND selection_hash = x''",
        {"key": key, "generation": generation, "hash": selection_hash},
    )


def expire_keys(
    tx: Transaction, mapping_keys: list[int], now_us: int, clock: LeaseNow
) -> list[str]:
    """End the keys whose time has come, unless they were extended; return those that ended.

    They counted as gone already; now they point at nothing, whatever the clock says later.
    """
    lease_us = clock()
    rows = tx.all(
        "SELECT mapping_key, generation, key, expires_at FROM key_mappings"
        " WHERE mapping_key IN (SELECT value FROM json_each(:keys))",
        {"keys": json.dumps(mapping_keys)},
    )
    ended: list[int] = []
    later: list[tuple[int, int]] = []
    expired: list[str] = []
    for mapping_key, generation, key, expires_at in rows:
        if expires_at is not None and expires_at > lease_us:
            later.append((mapping_key, expires_at))
            continue
        ended.append(mapping_key)
        if expires_at is not None:
            _clear(tx, mapping_key, generation, now_us)
            tx.emit(KeyChanged(key))
            expired.append(key)
    tx.emit(LeasesExpired(LeaseKind.KEY, ended, later))
    return expired


def restore_keys(tx: Transaction, lease_us: int) -> list[tuple[int, int]]:
    """Return key and deadline of all that expire, none later than its own lifetime from now.

    Without that bound a wall clock that starts in the past would keep them for as long.
    """
    tx.run(
        "UPDATE key_mappings SET expires_at = :now + ttl_s * 1000000"
        " WHERE expires_at > :now + ttl_s * 1000000",
        {"now": lease_us},
    )
    return [
        (mapping_key, expires_at)
        for mapping_key, expires_at in tx.all(
            "SELECT mapping_key, expires_at FROM key_mappings WHERE expires_at IS NOT NULL"
        )
    ]


def raise_generations(tx: Transaction, by: int, now_us: int) -> None:
    """Raise the generation of every key by ``by``, for a database that was restored from a copy.

    A copy goes back in time: generations that were handed out since it was made must not come again
    for another target. Keys keep their targets, in a generation that no client has seen.
    """
    tx.run("UPDATE key_generations SET ended_at = :now WHERE ended_at IS NULL", {"now": now_us})
    tx.run("UPDATE key_mappings SET generation = generation + :by", {"by": by})
    # Keys that were made since are not in the copy.
    raise_floor(tx, KEYS, first_generation(tx, KEYS, 0) + by - 1)
    tx.run(
        "INSERT INTO key_generations (mapping_key, generation, artifact_key, version_set_id,"
        " began_at) SELECT mapping_key, generation, artifact_key, version_set_id, :now"
        " FROM key_mappings WHERE artifact_key IS NOT NULL OR version_set_id != ''",
        {"now": now_us},
    )


def purge_history(tx: Transaction, before_us: int, limit: int) -> int:
    """Forget up to ``limit`` targets that ended before a time; return how many."""
    return tx.run(
        "DELETE FROM key_generations WHERE (mapping_key, generation) IN ("
        " SELECT mapping_key, generation FROM key_generations WHERE ended_at < :before"
        " ORDER BY ended_at, mapping_key, generation LIMIT :limit)",
        {"before": before_us, "limit": limit},
    )


def purge_swaps(tx: Transaction, before_us: int, limit: int) -> int:
    """Forget up to ``limit`` tokens of swaps made before a time; return how many."""
    return tx.run(
        "DELETE FROM key_swaps WHERE (mapping_key, operation_id) IN ("
        " SELECT mapping_key, operation_id FROM key_swaps WHERE created_at < :before"
        " ORDER BY created_at, mapping_key, operation_id LIMIT :limit)",
        {"before": before_us, "limit": limit},
    )


def _row(tx: Snapshot, key: str) -> _Row | None:
    row = tx.one(
        "SELECT m.mapping_key, m.generation, a.artifact_id, m.version_set_id, m.replica_uuid,"
        " m.daemon_address, m.kind, m.ttl_s, m.expires_at"
        " FROM key_mappings m LEFT JOIN artifacts a USING (artifact_key) WHERE m.key = :key",
        {"key": key},
    )
    if row is None:
        return None
    mapping_key, generation, artifact_id, version_set_id, replica_uuid, address, kind, ttl, at = row
    if artifact_id is None and not version_set_id:
        return _Row(mapping_key, generation, None)
    mapping = KeyMapping(
        artifact_id or "", version_set_id, replica_uuid, address, Kind(kind), generation, ttl, at
    )
    return _Row(mapping_key, generation, mapping)


def _live_row(tx: Snapshot, key: str, lease_us: int) -> _Row | None:
    row = _row(tx, key)
    if row is not None and row.mapping is not None and row.mapping.expired(lease_us):
        return attrs.evolve(row, mapping=None)
    return row


def _ready(tx: Snapshot, artifact_id: str) -> int:
    """Return the key of an artifact that a key may point at."""
    artifact_key, missing = artifacts.readiness(tx, artifact_id)
    if artifact_key is None or missing:
        raise FailedPrecondition(f"artifact {artifact_id} is not ready: {missing}")
    return artifact_key


def _guards_hold(change: Swap, mapping: KeyMapping) -> bool:
    return change.expected_artifact_id in {"", mapping.artifact_id} and (
        change.expected_generation in {None, mapping.generation}
    )


def _answered(tx: Snapshot, mapping_key: int, change: Swap) -> Swapped | None:
    row = tx.one(
        "SELECT a.artifact_id, s.generation FROM key_swaps s JOIN artifacts a USING (artifact_key)"
        " WHERE s.mapping_key = :mapping_key AND s.operation_id = :operation_id",
        {"mapping_key": mapping_key, "operation_id": change.operation_id},
    )
    if row is None:
        return None
    artifact_id, generation = row
    if artifact_id != change.artifact_id:
        raise FailedPrecondition(
            f"operation_id {change.operation_id[:80]!r} has pointed this key at {artifact_id};"
            " use a new one for another target"
        )
    return Swapped(True, artifact_id, generation)


def _point(
    tx: Transaction, row: _Row | None, key: str, artifact_key: int, kind: Kind, now_us: int
) -> tuple[int, int]:
    """Give a key a new target in the next generation, without hints and without an end."""
    columns = {
        "key": key,
        "artifact_key": artifact_key,
        "kind": int(kind),
        "first": first_generation(tx, KEYS, 0) if row is None else 0,
        "now": now_us,
    }
    if row is not None:
        _end_generation(tx, row.mapping_key, row.generation, now_us)
        tx.emit(LeaseEnded(LeaseKind.KEY, row.mapping_key))
    saved = tx.one(
        "INSERT INTO key_mappings (key, artifact_key, kind, generation, created_at, updated_at)"
        " VALUES (:key, :artifact_key, :kind, :first, :now, :now)"
        " ON CONFLICT (key) DO UPDATE SET artifact_key = excluded.artifact_key,"
        " version_set_id = '', replica_uuid = '', daemon_address = '', kind = excluded.kind,"
        " generation = generation + 1, ttl_s = NULL, expires_at = NULL,"
        " updated_at = excluded.updated_at RETURNING mapping_key, generation",
        columns,
    )
    assert saved is not None
    mapping_key, generation = saved
    tx.run(
        "INSERT INTO key_generations (mapping_key, generation, artifact_key, began_at)"
        " VALUES (:mapping_key, :generation, :artifact_key, :now)",
        columns | {"mapping_key": mapping_key, "generation": generation},
    )
    return mapping_key, generation


def _hint(tx: Transaction, mapping_key: int, change: Upsert, now_us: int, lease_us: int) -> None:
    expires_at = lease_us + change.ttl_s * 1_000_000 if change.ttl_s else None
    if expires_at is None:
        tx.emit(LeaseEnded(LeaseKind.KEY, mapping_key))
    else:
        tx.emit(LeaseGranted(LeaseKind.KEY, mapping_key, expires_at))
    tx.run(
        "UPDATE key_mappings SET replica_uuid = :replica_uuid, daemon_address = :daemon_address,"
        " ttl_s = :ttl_s, expires_at = :expires_at, updated_at = :now"
        " WHERE mapping_key = :mapping_key",
        {
            "replica_uuid": change.replica_uuid,
            "daemon_address": change.daemon_address,
            "ttl_s": change.ttl_s,
            "expires_at": expires_at,
            "now": now_us,
            "mapping_key": mapping_key,
        },
    )


def _clear(tx: Transaction, mapping_key: int, generation: int, now_us: int) -> None:
    tx.run(
        "UPDATE key_mappings SET artifact_key = NULL, version_set_id = '', replica_uuid = '',"
        " daemon_address = '', ttl_s = NULL, expires_at = NULL, updated_at = :now"
        " WHERE mapping_key = :mapping_key",
        {"mapping_key": mapping_key, "now": now_us},
    )
    _end_generation(tx, mapping_key, generation, now_us)
    tx.emit(LeaseEnded(LeaseKind.KEY, mapping_key))


def _end_generation(tx: Transaction, mapping_key: int, generation: int, now_us: int) -> None:
    tx.run(
        "UPDATE key_generations SET ended_at = :now WHERE mapping_key = :mapping_key"
        " AND generation = :generation AND ended_at IS NULL",
        {"mapping_key": mapping_key, "generation": generation, "now": now_us},
    )
