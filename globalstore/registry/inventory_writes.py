"""Writing what an inventory changes, a slice at a time."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import attrs

from globalstore.db import Row, Snapshot, Transaction
from globalstore.registry import artifacts
from globalstore.registry.events import ReplicaCounted, SourceFreed, WorkerReplicasChanged
from globalstore.registry.inventories import Differences, Key, Removal, Reported, Update
from globalstore.registry.replica_lists import Replica
from globalstore.registry.replicas import (
    MemoryTier,
    fresh_id,
    intern_endpoint,
    transfer_columns,
)
from globalstore.registry.worker_ids import NOBODY, Standing

T = TypeVar("T")


@attrs.frozen
class Claim:
    """The place in the sequence that a request asks for; it holds while the worker is active."""

    worker_key: int
    worker_id: str
    generation: int
    request_seq: int


class Added(NamedTuple):
    """A replica that the inventory brought in. The id is the final one."""

    reported: Reported
    replica_id: bytes


@attrs.define
class Changes:
    """What a reconcile changed. ``foreign`` were left alone: they belong to workers being heard."""

    added: list[Added] = attrs.Factory(list)
    removed: list[Replica] = attrs.Factory(list)
    updated: list[Update] = attrs.Factory(list)
    foreign: list[Key] = attrs.Factory(list)

    def __len__(self) -> int:
        return len(self.added) + len(self.removed) + len(self.updated)

    def extend(self, more: "Changes") -> None:
        self.added += more.added
        self.removed += more.removed
        self.updated += more.updated
        self.foreign += more.foreign


def standing(tx: Snapshot, claim: Claim) -> Standing | None:
    """Return where the worker of a claim stands, or None when the claim does not hold any more."""
    row = tx.one(
        "SELECT i.worker_key, i.confirmation, c.generation, c.process_generation,"
        " c.confirmed_generation FROM worker_cursors c JOIN workers w USING (worker_key)"
        " JOIN worker_ids i USING (worker_key) WHERE worker_key = :worker_key"
        " AND w.inactive_at IS NULL AND c.generation = :generation"
        " AND c.request_seq = :request_seq - 1",
        attrs.asdict(claim),
    )
    return None if row is None else Standing(*row)


@attrs.frozen
class Slice:
    """What all rows of one reconcile are written with."""

    claim: Claim
    worker: Standing
    confirmation: int
    fresh: frozenset[int]
    now_us: int

    def holds(self, tx: Snapshot) -> bool:
        """Tell whether the worker is still where it was when the rows were compared."""
        return standing(tx, self.claim) == self.worker


Step = Callable[[Transaction], Changes]


def steps(differences: Differences, slice_: Slice, size: int) -> Iterator[Step]:
    """Yield all writes of a reconcile in their order, each of at most ``size`` rows.

    Removals come first: what replaces a removed row may take its place.
    """
    for removals in _cut(differences.removals, size):
        yield partial(remove, removals=removals, slice_=slice_)
    for entries in _cut(differences.additions(), size):
        yield partial(add, entries=entries, slice_=slice_)
    for updates in _cut(differences.updates, size):
        yield partial(update, updates=updates, slice_=slice_)
    for numbers in _cut(list(differences.renumbered(slice_.confirmation)), size):
        yield partial(_renumber, numbers=numbers)
    for seqs in _cut(differences.hidden, size):
        yield partial(_hide, seqs=seqs)


def guarded(tx: Transaction, step: Step, slice_: Slice) -> Changes | None:
    """Take one step of many; None when the worker was ended or registered again meanwhile."""
    return step(tx) if slice_.holds(tx) else None


def _cut(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _entry_columns(entry: Reported, slice_: Slice) -> dict[str, object]:
    return transfer_columns(entry.transfer_now()) | {
        "view_id": entry.key.view_id,
        "memory_tier": entry.key.memory_tier,
        "device_id": entry.key.device_id,
        "worker_key": slice_.claim.worker_key,
        "worker_generation": slice_.claim.generation,
        "confirmation": slice_.confirmation,
        "is_available": entry.is_available is not False,
        "memory_size": entry.size_now(),
        "max_concurrency": entry.max_concurrency or 1,
        "tensor_index_key": entry.tensor_index_key,
        "is_memory_replica": entry.is_memory_replica,
        "source_process_id": entry.source_process_id,
        "expires_at": entry.expires_at_us,
        "now": slice_.now_us,
    }


_INSERT = """
INSERT INTO replicas (replica_id, artifact_key, view_id, endpoint_key, memory_tier, device_id,
    worker_key, worker_generation, confirmation, is_available, memory_size, max_concurrency,
    export_state, export_generation, transfer_size, transfer_json, tensor_index_key,
    is_memory_replica, source_process_id, expires_at, created_at, updated_at)
VALUES (:replica_id, :artifact_key, :view_id, :endpoint_key, :memory_tier, :device_id,
    :worker_key, :worker_generation, :confirmation, :is_available, :memory_size, :max_concurrency,
    :export_state, :export_generation, :transfer_size, :transfer_json, :tensor_index_key,
    :is_memory_replica, :source_process_id, :expires_at, :now, :now)
ON CONFLICT DO NOTHING
"""

_TAKE_OVER = """
UPDATE replicas SET worker_key = :worker_key, worker_generation = :worker_generation,
    confirmation = :confirmation, is_available = :is_available, memory_size = :memory_size,
    max_concurrency = :max_concurrency, export_state = :export_state,
    export_generation = :export_generation, transfer_size = :transfer_size,
    transfer_json = :transfer_json, tensor_index_key = :tensor_index_key,
    is_memory_replica = :is_memory_replica, source_process_id = :source_process_id,
    expires_at = :expires_at, updated_at = :now
WHERE seq = :seq
"""


def add(tx: Transaction, entries: Sequence[Reported], slice_: Slice) -> Changes:
    """Store replicas that the worker has no row of; entries should come sorted by key.

    A replica that another worker had is taken over, unless that worker is being heard.
    """
    if not entries:
        return Changes()
    names = list(dict.fromkeys(entry.key.artifact_id for entry in entries))
    keys = artifacts.ensure_all(tx, names, slice_.now_us)
    unheld = _without_replicas(tx, list(keys.values()))
    endpoints: dict[tuple[str, str, int], int] = {}
    # Random ids in ascending order touch each page of their index once.
    ids = sorted(fresh_id() for _ in entries)
    wanted: list[dict[str, Any]] = []
    for entry, new_id in zip(entries, ids, strict=True):
        where = (entry.key.node_id, entry.node_address, entry.node_port)
        if where not in endpoints:
            endpoints[where] = intern_endpoint(tx, *where)
        wanted.append(
            _entry_columns(entry, slice_)
            | {
                "replica_id": entry.replica_id or new_id,
                "artifact_key": keys[entry.key.artifact_id],
                "endpoint_key": endpoints[where],
            }
        )
    last = _last_seq(tx)
    changes = Changes()
    moved: list[Reported] = []
    if tx.many(_INSERT, wanted) == len(wanted):
        changes.added = [
            Added(entry, columns["replica_id"])
            for entry, columns in zip(entries, wanted, strict=True)
        ]
    else:
        for entry, columns, new_id in zip(entries, wanted, ids, strict=True):
            _settle(tx, entry, columns | {"new_id": new_id, "last": last}, slice_, changes, moved)
    of_others = Counter((entry.key.artifact_id, entry.key.memory_tier) for entry in moved)
    stored = Counter(
        (added.reported.key.artifact_id, added.reported.key.memory_tier) for added in changes.added
    )
    for (artifact_id, tier), count in stored.items():
        new = count - of_others[artifact_id, tier]
        edge = keys[artifact_id] in unheld
        tx.emit(ReplicaCounted(artifact_id, MemoryTier(tier).name, new, count, edge))
    _tell(tx, slice_, {added.reported.key[:2] for added in changes.added})
    return changes


def _last_seq(tx: Snapshot) -> int:
    row = tx.one("SELECT seq FROM sqlite_sequence WHERE name = 'replicas'")
    return 0 if row is None else row[0]


def _without_replicas(tx: Snapshot, artifact_keys: list[int]) -> set[int]:
    found = tx.all(
        "SELECT value FROM json_each(:keys) WHERE NOT EXISTS (SELECT 1 FROM replicas r"
        f" WHERE r.artifact_key = value AND r.worker_key != {NOBODY})",
        {"keys": json.dumps(artifact_keys)},
    )
    return {key for (key,) in found}


_SAME_PLACE = """
SELECT seq, replica_id, worker_key FROM replicas
WHERE artifact_key = :artifact_key AND view_id = :view_id AND endpoint_key = :endpoint_key
    AND memory_tier = :memory_tier AND device_id = :device_id
"""


def _settle(
    tx: Transaction,
    entry: Reported,
    columns: dict[str, Any],
    slice_: Slice,
    changes: Changes,
    moved: list[Reported],
) -> None:
    """Find out what became of one of several insertions of which some met a row that exists."""
    row = tx.one(_SAME_PLACE, columns)
    if row is None:
        # The id that the daemon proposed belongs to another replica.
        columns = columns | {"replica_id": columns["new_id"]}
        tx.many(_INSERT, [columns])
        changes.added.append(Added(entry, columns["new_id"]))
        return
    seq, replica_id, owner = row
    if seq > columns["last"]:
        changes.added.append(Added(entry, replica_id))
    elif owner in slice_.fresh and owner != slice_.claim.worker_key:
        changes.foreign.append(entry.key)
    elif owner != slice_.claim.worker_key:  # its own one was registered after the comparison
        tx.run(_TAKE_OVER, columns | {"seq": seq})
        tx.run(
            "UPDATE transports SET source_worker_key = :worker_key"
            " WHERE replica_id = :replica_id AND outcome = 0",
            {"worker_key": slice_.claim.worker_key, "replica_id": replica_id},
        )
        if owner != NOBODY:
            moved.append(entry)
            tx.emit(WorkerReplicasChanged(owner))
        changes.added.append(Added(entry, replica_id))


def remove(tx: Transaction, removals: Sequence[Removal], slice_: Slice) -> Changes:
    """Delete rows that the inventory does not list.

    One that serves transports is hidden instead, and the last of them deletes it. A row that was
    changed after it was compared stays.
    """
    changes = Changes()
    # How many of an artifact's replicas of one memory type are gone, by the artifact's key too.
    gone: Counter[tuple[int, str, MemoryTier]] = Counter()
    unchanged = "seq = :seq AND worker_key = :worker_key AND updated_at = :updated_at"
    for seen, replica in removals:
        where = seen._asdict() | {"worker_key": slice_.claim.worker_key, "nobody": NOBODY}
        if tx.run(
            f"DELETE FROM replicas WHERE {unchanged} AND current_requests = 0", where
        ) or tx.run(
            f"UPDATE replicas SET worker_key = :nobody, is_available = 0 WHERE {unchanged}", where
        ):
            changes.removed.append(replica)
            gone[seen.artifact_key, replica.artifact_id, replica.place.memory_tier] += 1
    unheld = _without_replicas(tx, [key for key, _, _ in gone])
    last = {key: tier for key, _, tier in gone}
    for (key, artifact_id, tier), count in gone.items():
        edge = key in unheld and last[key] == tier
        tx.emit(ReplicaCounted(artifact_id, tier.name, -count, 0, edge))
    _tell(tx, slice_, {(replica.artifact_id, replica.view_id) for replica in changes.removed})
    return changes


_UPDATE = """
UPDATE replicas SET endpoint_key = coalesce(:endpoint_key, endpoint_key),
    is_available = :is_available, memory_size = :memory_size, export_state = :export_state,
    export_generation = :export_generation, transfer_size = :transfer_size,
    transfer_json = :transfer_json, confirmation = :confirmation,
    worker_generation = :worker_generation, updated_at = :now
WHERE seq = :seq AND worker_key = :worker_key AND updated_at = :updated_at
"""


def update(tx: Transaction, updates: Sequence[Update], slice_: Slice) -> Changes:
    """Write what an inventory reports otherwise; a row changed after it was compared stays."""
    changes = Changes()
    for one in updates:
        if not one.stored or _update_row(tx, one, slice_, changes):
            changes.updated.append(one)
    counts = Counter((u.replica.artifact_id, u.replica.place.memory_tier) for u in changes.updated)
    for (artifact_id, tier), count in counts.items():
        tx.emit(ReplicaCounted(artifact_id, tier.name, 0, count, edge=False))
    _tell(tx, slice_, {(u.replica.artifact_id, u.replica.view_id) for u in changes.updated})
    return changes


def _update_row(tx: Transaction, one: Update, slice_: Slice, changes: Changes) -> bool:
    replica, where = one.replica, one.replica.place
    columns: dict[str, Any] = (
        transfer_columns(replica.transfer)
        | one.seen._asdict()
        | {
            "worker_key": slice_.claim.worker_key,
            "worker_generation": slice_.claim.generation,
            "endpoint_key": None,
            "is_available": replica.is_available,
            "memory_size": replica.memory_size,
            "confirmation": slice_.confirmation,
            "now": slice_.now_us,
        }
    )
    if {"node_address", "node_port"} & set(one.fields):
        columns |= {
            "endpoint_key": intern_endpoint(tx, where.node_id, where.node_address, where.node_port),
            "view_id": replica.view_id,
            "memory_tier": int(where.memory_tier),
            "device_id": where.device_id,
        }
        other = tx.one(_SAME_PLACE, columns)
        if other is not None and not _yields(tx, other, replica, slice_):
            changes.foreign.append(
                Key(
                    replica.artifact_id,
                    replica.view_id,
                    where.node_id,
                    where.memory_tier,
                    where.device_id,
                )
            )
            return False
    return tx.run(_UPDATE, columns) > 0


def _yields(tx: Transaction, other: Row, replica: Replica, slice_: Slice) -> bool:
    """Remove the row that is where a replica moves to, if it may be removed."""
    seq, _, owner = other
    if owner in {NOBODY, slice_.claim.worker_key} or owner in slice_.fresh:
        return False
    if not tx.run("DELETE FROM replicas WHERE seq = ? AND current_requests = 0", (seq,)):
        return False
    name = replica.place.memory_tier.name
    tx.emit(ReplicaCounted(replica.artifact_id, name, -1, 0, edge=False))
    tx.emit(WorkerReplicasChanged(owner))
    return True


def _tell(tx: Transaction, slice_: Slice, spaces: set[tuple[str, str]]) -> None:
    """Let those know who wait for what was written."""
    for space in spaces:
        tx.emit(SourceFreed(*space))
    if spaces:
        tx.emit(WorkerReplicasChanged(slice_.claim.worker_key))


def _renumber(tx: Transaction, numbers: Sequence[tuple[int, int]]) -> Changes:
    """Set confirmation numbers, each given with the seq of its row."""
    tx.many("UPDATE replicas SET confirmation = ? WHERE seq = ?", numbers)
    return Changes()


def _hide(tx: Transaction, seqs: Sequence[int]) -> Changes:
    """Make rows unavailable that already count as such, whatever their number."""
    tx.many("UPDATE replicas SET is_available = 0 WHERE seq = ?", [(seq,) for seq in seqs])
    return Changes()
