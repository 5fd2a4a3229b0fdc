"""Writing what an inventory changes, a slice at a time."""

import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import attrs

from globalstore import db
from globalstore.db import Ready, Snapshot, Transaction
from globalstore.registry import artifacts, new_ids
from globalstore.registry.runtime import replica_rows
from globalstore.registry.runtime.inventories import (
    Differences,
    Removal,
    ReportedReplica,
    Seen,
    Update,
    new_row,
)
from globalstore.registry.runtime.replica_places import intern_endpoint
from globalstore.registry.runtime.replica_rows import (
    HeldReplica,
    NewReplica,
    ReplicaDescription,
    ReplicaKey,
    ReplicaOwner,
    StoredReplica,
)
from globalstore.registry.signals import (
    ReplicaCount,
    ReplicasCounted,
    SourcesFreed,
    WorkerReplicasChanged,
)
from globalstore.registry.worker_ids import NOBODY, Incarnation

_T = TypeVar("_T")


@attrs.frozen
class Claim:
    """The place in the sequence that a request asks for; it holds while the worker is active."""

    worker_key: int
    worker_id: str
    generation: int
    request_seq: int


@attrs.define
class Changes:
    """What a reconcile changed: rows as they are now, removed ones as they were.

    ``foreign`` are the artifacts of entries that were left alone: those replicas belong to live
    workers.
    """

    added: list[HeldReplica] = attrs.Factory(list)
    removed: list[HeldReplica] = attrs.Factory(list)
    updated: list[Update] = attrs.Factory(list)
    foreign: list[str] = attrs.Factory(list)

    def __len__(self) -> int:
        return len(self.added) + len(self.removed) + len(self.updated)

    def extend(self, more: "Changes") -> None:
        """Add the changes of another slice."""
        self.added += more.added
        self.removed += more.removed
        self.updated += more.updated
        self.foreign += more.foreign


def claimed_incarnation(tx: Snapshot, claim: Claim) -> Incarnation | None:
    """Return the incarnation of a claim's worker, or None when the claim does not hold any more."""
    row = tx.one(
        "SELECT i.worker_key, i.confirmation, c.generation, c.process_generation,"
        " c.confirmed_generation FROM worker_cursors c JOIN workers w USING (worker_key)"
        " JOIN worker_ids i USING (worker_key) WHERE worker_key = :worker_key"
        " AND w.inactive_at IS NULL AND c.generation = :generation"
        " AND c.request_seq = :request_seq - 1",
        attrs.asdict(claim),
    )
    return None if row is None else Incarnation(*row)


@attrs.frozen
class Slice:
    """What all rows of one reconcile are written with."""

    claim: Claim
    worker: Incarnation
    confirmation: int
    live: frozenset[int]
    now_us: int

    @property
    def owner(self) -> ReplicaOwner:
        """The owner of all the rows from now on."""
        claim = self.claim
        return ReplicaOwner(claim.worker_key, claim.generation, self.confirmation)

    def holds(self, tx: Snapshot) -> bool:
        """Tell whether the worker is still the incarnation whose rows were compared."""
        return claimed_incarnation(tx, self.claim) == self.worker


# Items that are sorted, or merged, before others get a turn: half a millisecond. A run is as long
# as what is written in one transaction, so that a small reconcile has only one.
_RUN = 1000


def steps(differences: Differences, slice_: Slice, size: int) -> Iterator[db.Slice[Changes]]:
    """Yield all writes of a reconcile in the order of the answer, each of at most ``size`` rows.

    Changes that need no row to be written come as they are; empty ones come now and then so that
    others get a turn. Removals come before updates: what is updated may move to where a removed row
    was.
    """
    for entries in _in_order(differences.additions(), _key_of_entry, size):
        yield partial(add, entries=entries, slice_=slice_) if entries else Ready(Changes())
    for removals in _in_order(differences.removals, _key_of_row, size):
        yield partial(remove, removals=removals, slice_=slice_) if removals else Ready(Changes())
    for updates in _in_order(differences.updates, _key_of_row, size):
        if any(one.stored for one in updates):
            yield partial(update, updates=updates, slice_=slice_)
        else:
            yield Ready(Changes(updated=updates))
    for numbers in _cut(differences.renumbered(slice_.confirmation), size):
        yield partial(_renumber, numbers=numbers)
    for seqs in _cut(differences.hidden, size):
        yield partial(_hide, seqs=seqs)


def _key_of_entry(entry: ReportedReplica) -> tuple[Any, ...]:
    return entry.key


def _key_of_row(change: Removal | Update) -> tuple[Any, ...]:
    row = change.row
    return (row.artifact_id, row.view_id, row.node_id, row.memory_tier, row.device_id)


def _in_order(
    items: Iterable[_T], key: Callable[[_T], tuple[Any, ...]], size: int
) -> Iterator[list[_T]]:
    """Yield all items in order, ``size`` at a time; empty lists when others may have a turn."""
    runs = []
    for run in _cut(items, _RUN):
        runs.append(sorted(run, key=key))
        if len(runs) > 1:
            yield []
    merged = iter(runs[0]) if len(runs) == 1 else heapq.merge(*runs, key=key)
    while piece := list(islice(merged, size)):
        yield piece


def _cut(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    rest = iter(items)
    while piece := list(islice(rest, size)):
        yield piece


class _Addition(NamedTuple):
    """A replica that an inventory adds: as it is shown, and as it is stored."""

    row: HeldReplica
    new: NewReplica


def add(tx: Transaction, entries: Sequence[ReportedReplica], slice_: Slice) -> Changes:
    """Store replicas that the worker has no row of; entries should come sorted by key.

    A replica that another worker had is taken over, unless that worker is live.
    """
    names = list(dict.fromkeys(entry.key.artifact_id for entry in entries))
    keys, made = artifacts.ensure_all(tx, names, slice_.now_us)
    places = {
        where: intern_endpoint(tx, *where)
        for where in {(e.key.node_id, e.node_address, e.node_port) for e in entries}
    }
    unheld = made | _without_replicas(tx, [name for name in names if name not in made])
    # Random ids in ascending order touch each page of their index once.
    ids = sorted(new_ids.new_id() for _ in entries)
    additions = []
    for entry, replica_id in zip(entries, ids, strict=True):
        place = places[entry.key.node_id, entry.node_address, entry.node_port]
        key = keys[entry.key.artifact_id]
        additions.append(_added(entry, entry.replica_id or replica_id, key, place, slice_))
    last = _last_seq(tx)
    changes, moved = Changes(), Counter[tuple[str, int]]()
    inserted = replica_rows.insert_replicas(
        tx, [one.new for one in additions], slice_.owner, slice_.now_us
    )
    if inserted == len(additions):
        changes.added = [one.row for one in additions]
    else:
        for addition, replica_id in zip(additions, ids, strict=True):
            _add_one(tx, addition, replica_id, last, slice_, changes, moved)
    stored = Counter((row.artifact_id, row.memory_tier) for row in changes.added)
    tx.emit(
        ReplicasCounted(
            [
                ReplicaCount(*space, count - moved[space], count, space[0] in unheld)
                for space, count in stored.items()
            ]
        )
    )
    _tell(tx, slice_, changes.added)
    return changes


def _added(
    entry: ReportedReplica, replica_id: bytes, artifact_key: int, endpoint_key: int, slice_: Slice
) -> _Addition:
    """Return what is made from an entry."""
    size, transfer = new_row(entry)
    artifact_id, view_id, node_id, tier, device = entry.key
    available = entry.is_available is not False
    # By position, which takes a third of the time: there are a thousand of these in a slice.
    description = ReplicaDescription(
        available, size, entry.max_concurrency or 1, *transfer, entry.tensor_index_key,
        entry.is_memory_replica, entry.source_process_id, entry.expires_at_us,
    )  # fmt: skip
    row = HeldReplica(
        0, replica_id, artifact_id, view_id, node_id, entry.node_address, entry.node_port, tier,
        device, size, entry.max_concurrency or 1, 0, available, transfer.export_state,
        transfer.export_generation, transfer.transfer_json, entry.tensor_index_key,
        entry.is_memory_replica, entry.source_process_id, entry.expires_at_us, slice_.now_us,
        artifact_key, slice_.now_us, available, slice_.confirmation, slice_.claim.generation,
        transfer.transfer_size,
    )  # fmt: skip
    key = ReplicaKey(artifact_key, view_id, endpoint_key, tier, device)
    return _Addition(row, NewReplica(replica_id, key, description))


def _last_seq(tx: Snapshot) -> int:
    row = tx.one("SELECT seq FROM sqlite_sequence WHERE name = 'replicas'")
    return 0 if row is None else row[0]


def _without_replicas(tx: Snapshot, artifact_ids: list[str]) -> set[str]:
    found = tx.all(
        "SELECT value FROM json_each(:ids) WHERE NOT EXISTS (SELECT 1 FROM artifacts"
        " JOIN held_replicas USING (artifact_key) WHERE artifact_id = value)",
        {"ids": json.dumps(artifact_ids, ensure_ascii=False)},
    )
    return {artifact_id for (artifact_id,) in found}


def _add_one(
    tx: Transaction,
    addition: _Addition,
    new_id: bytes,
    last: int,
    slice_: Slice,
    changes: Changes,
    moved: Counter[tuple[str, int]],
) -> None:
    """Find out what became of one of several insertions of which some met a row that exists."""
    row, new = addition
    same = replica_rows.replica_at(tx, new.key)
    if same is None:
        # The id that the daemon proposed belongs to another replica.
        new = new._replace(replica_id=new_id)
        replica_rows.insert_replica(tx, new, slice_.owner, slice_.now_us)
        changes.added.append(row._replace(replica_id=new_id))
        return
    owner = same.owner.worker_key
    if same.seq > last:
        changes.added.append(row)
    elif owner in slice_.live and owner != slice_.claim.worker_key:
        changes.foreign.append(row.artifact_id)
    elif owner != slice_.claim.worker_key:  # its own one was registered after the comparison
        replica_rows.refresh_replica(tx, same.seq, slice_.owner, new.description, slice_.now_us)
        tx.run(
            "UPDATE transports SET source_worker_key = ? WHERE replica_id = ? AND outcome = 0",
            (slice_.claim.worker_key, same.replica_id),
        )
        if owner != NOBODY:
            moved[row.artifact_id, row.memory_tier] += 1
            tx.emit(WorkerReplicasChanged(owner))
        load = same.current_requests
        changes.added.append(
            row._replace(
                replica_id=same.replica_id,
                max_concurrency=max(row.max_concurrency, load),
                current_requests=load,
            )
        )


_DELETE = """
DELETE FROM replicas WHERE worker_key = ? AND seq IN
    (SELECT column1 FROM (VALUES …) JOIN replicas r ON r.seq = column1
     WHERE r.updated_at = column2 AND r.current_requests = 0)
"""


def remove(tx: Transaction, removals: Sequence[Removal], slice_: Slice) -> Changes:
    """Delete rows that the inventory does not list.

    One that serves transports is hidden instead, and the last of them deletes it. A row that was
    changed after it was compared stays.
    """
    changes = Changes(removed=[row for _, row in removals])
    deleted = tx.run_rows(
        _DELETE, [(seen.seq, seen.updated_at) for seen, _ in removals], (slice_.claim.worker_key,)
    )
    if deleted < len(removals):
        left = {
            seq
            for (seq,) in tx.all(
                "SELECT seq FROM replicas WHERE seq IN (SELECT value FROM json_each(?))",
                (json.dumps([seen.seq for seen, _ in removals]),),
            )
        }
        changes.removed = [
            row for seen, row in removals if seen.seq not in left or _hide_loaded(tx, seen, slice_)
        ]
    gone = Counter((row.artifact_id, row.memory_tier) for row in changes.removed)
    unheld = _without_replicas(tx, [artifact_id for artifact_id, _ in gone])
    last = dict(gone.keys())
    tx.emit(
        ReplicasCounted(
            [
                ReplicaCount(name, tier, -count, 0, name in unheld and last[name] == tier)
                for (name, tier), count in gone.items()
            ]
        )
    )
    _tell(tx, slice_, changes.removed)
    return changes


def _hide_loaded(tx: Transaction, seen: Seen, slice_: Slice) -> bool:
    """Give a row that serves transports to no worker; False when it was changed meanwhile.

    No device has a negative number, so what is registered later in the same place is another row.
    """
    return (
        tx.run(
            "UPDATE replicas SET worker_key = ?, is_available = 0, device_id = -seq"
            " WHERE seq = ? AND updated_at = ? AND worker_key = ?",
            (NOBODY, seen.seq, seen.updated_at, slice_.claim.worker_key),
        )
        > 0
    )


def update(tx: Transaction, updates: Sequence[Update], slice_: Slice) -> Changes:
    """Write what an inventory reports otherwise; a row changed after it was compared stays."""
    changes = Changes()
    for one in updates:
        if not one.stored or _update_row(tx, one, slice_, changes):
            changes.updated.append(one)
    stored = Counter((one.row.artifact_id, one.row.memory_tier) for one in changes.updated)
    tx.emit(
        ReplicasCounted([ReplicaCount(*space, 0, count, False) for space, count in stored.items()])
    )
    _tell(tx, slice_, [one.row for one in changes.updated])
    return changes


def _update_row(tx: Transaction, one: Update, slice_: Slice, changes: Changes) -> bool:
    row = one.row
    changed: dict[str, Any] = {
        "seq": one.seen.seq,
        "seen_at": one.seen.updated_at,
        "endpoint_key": None,
        "now": slice_.now_us,
    }
    if "node_address" in one.fields or "node_port" in one.fields:
        endpoint_key = intern_endpoint(tx, row.node_id, row.node_address, row.node_port)
        changed["endpoint_key"] = endpoint_key
        key = ReplicaKey(
            one.seen.artifact_key, row.view_id, endpoint_key, row.memory_tier, row.device_id
        )
        other = replica_rows.replica_at(tx, key)
        if other is not None and not _yields(tx, other, row, slice_):
            changes.foreign.append(row.artifact_id)
            _keep_as_it_is(tx, one, slice_)
            return False
    return replica_rows.report_replica(tx, row, slice_.owner, changed)


def _keep_as_it_is(tx: Transaction, one: Update, slice_: Slice) -> None:
    """Let a skipped row stay available, or hidden, when the worker's number changes."""
    tx.run(
        "UPDATE replicas SET confirmation = iif(confirmation = :present, :number, 0)"
        " WHERE seq = :seq AND worker_key = :worker_key AND updated_at = :updated_at",
        {
            "present": slice_.worker.confirmation,
            "number": slice_.confirmation,
            "seq": one.seen.seq,
            "updated_at": one.seen.updated_at,
            "worker_key": slice_.claim.worker_key,
        },
    )


def _yields(tx: Transaction, other: StoredReplica, row: HeldReplica, slice_: Slice) -> bool:
    """Remove the row that is where a replica moves to, if it may be removed."""
    owner = other.owner.worker_key
    kept = owner in {NOBODY, slice_.claim.worker_key} or owner in slice_.live
    if kept or other.current_requests:
        return False
    tx.run("DELETE FROM replicas WHERE seq = ?", (other.seq,))
    tx.emit(ReplicasCounted([ReplicaCount(row.artifact_id, row.memory_tier, -1, 0, False)]))
    tx.emit(WorkerReplicasChanged(owner))
    return True


def _tell(tx: Transaction, slice_: Slice, rows: Sequence[HeldReplica]) -> None:
    """Emit the signals for what was written."""
    if rows:
        tx.emit(SourcesFreed({(row.artifact_id, row.view_id) for row in rows}))
        tx.emit(WorkerReplicasChanged(slice_.claim.worker_key))


def _renumber(tx: Transaction, numbers: Sequence[tuple[int, int]]) -> Changes:
    """Set confirmation numbers, each given with the seq of its row."""
    tx.run_rows(
        "UPDATE replicas SET confirmation = column1 FROM (VALUES …) WHERE seq = column2", numbers
    )
    return Changes()


def _hide(tx: Transaction, seqs: Sequence[int]) -> Changes:
    """Make rows unavailable that already count as such, whatever their number."""
    tx.run_rows(
        "UPDATE replicas SET is_available = 0 WHERE seq IN (VALUES …)", [(seq,) for seq in seqs]
    )
    return Changes()
