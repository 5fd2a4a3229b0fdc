"""Inventories: what a daemon holds, compared with the rows of its worker."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from globalstore.db import Snapshot
from globalstore.registry.runtime.replica_rows import (
    TABLES,
    HeldReplica,
    TransferColumns,
    columns_of,
    transfer_columns,
)
from globalstore.registry.worker_ids import Incarnation
from globalstore.rules.addresses import is_local_only
from globalstore.rules.transfer import ExportState, Transfer


class ReplicaIdentity(NamedTuple):
    """What an entry and a row of one worker are matched by. ``view_id`` is blank if canonical."""

    artifact_id: str
    view_id: str
    node_id: str
    memory_tier: int
    device_id: int


class ReportedReplica(NamedTuple):
    """A checked entry of an inventory; what is blank, 0 or None was not reported."""

    key: ReplicaIdentity
    replica_id: bytes | None
    node_address: str
    node_port: int
    memory_size: int
    max_concurrency: int
    is_available: bool | None
    transfer: TransferColumns | None
    tensor_index_key: str
    is_memory_replica: bool
    source_process_id: str
    expires_at_us: int | None


_NOTHING = transfer_columns(Transfer())


def new_row(entry: ReportedReplica) -> tuple[int, TransferColumns]:
    """Return the size and the transfer metadata of a replica that is made from an entry.

    A size that was not reported is that of the buffers.
    """
    transfer = entry.transfer or _NOTHING
    size = entry.memory_size or transfer.transfer_size
    return size, usable(transfer, size, entry.node_address, entry.node_port)


def usable(transfer: TransferColumns, memory_size: int, address: str, port: int) -> TransferColumns:
    """Return the part of transfer metadata that a peer can use on a replica with this size and
    place.

    An inventory is never refused for unusable metadata, but no requester is sent to an address that
    does not answer: an exportable replica is presence-only then, a draining one has no keys.
    """
    if not transfer.transfer_size or (
        transfer.transfer_size == memory_size
        and address
        and port > 0
        and not is_local_only(address)
    ):
        return transfer
    draining = transfer.export_state == ExportState.DRAINING
    state = ExportState.DRAINING if draining else ExportState.PRESENCE_ONLY
    return TransferColumns(state, transfer.export_generation, 0, "")


_HELD = f"""
SELECT {columns_of(HeldReplica._fields)} {TABLES}
WHERE r.worker_key = :worker_key AND (r.artifact_key, r.seq) > (:artifact_key, :seq)
ORDER BY r.artifact_key, r.seq LIMIT :limit
"""


# Transfer metadata that is read at once: rows of which each has as much as it may are rare.
READ_BYTES_MAX = 8 << 20

_TRANSFER = HeldReplica._fields.index("transfer_json")


def rows(
    tx: Snapshot, worker_key: int, after: tuple[int, int], limit: int
) -> tuple[list[HeldReplica], bool]:
    """Return up to ``limit`` rows of a worker, and whether there are no more.

    ``after`` is the position of the last one so far.
    """
    where = {"worker_key": worker_key, "artifact_key": after[0], "seq": after[1], "limit": limit}
    found, is_all = tx.up_to(READ_BYTES_MAX, lambda row: len(row[_TRANSFER]), _HELD, where)
    return list(map(HeldReplica._make, found)), is_all and len(found) < limit


class Seen(NamedTuple):
    """A row as it was when it was compared: the columns by which a later change shows."""

    seq: int
    updated_at: int
    artifact_key: int


def _seen(row: HeldReplica) -> Seen:
    return Seen(row.seq, row.updated_at, row.artifact_key)


class Removal(NamedTuple):
    """A row that the inventory does not list."""

    seen: Seen
    row: HeldReplica


class Update(NamedTuple):
    """A row that the inventory reports otherwise, as it is to be.

    ``fields`` names what changes. ``stored`` is False when all of that follows from the worker's
    confirmation number and the row itself stays as it is.
    """

    seen: Seen
    row: HeldReplica
    fields: tuple[str, ...]
    stored: bool


class Kept(NamedTuple):
    """A row that is not listed but was registered while the inventory was being taken."""

    row: HeldReplica
    taken_us: int


def _names(changed: dict[str, Any]) -> tuple[str, ...]:
    """Return the changed fields as a daemon knows them."""
    names = [name for name in changed if name not in TransferColumns._fields]
    return tuple(names if len(names) == len(changed) else [*names, "transport"])


class Differences:
    """What has to change so that a worker's rows agree with its inventory.

    Give it the entries (``expect``), then all rows of the worker (``compare``), then read the
    results. An inventory is complete: what it does not list is removed, except rows created after
    ``taken_us``, when it was begun (None: unknown).
    """

    def __init__(self, worker: Incarnation, taken_us: int | None) -> None:
        self._worker = worker
        self._taken_us = taken_us
        self._open: dict[ReplicaIdentity, ReportedReplica | None] = {}
        self.listed_twice = 0
        self.removals: list[Removal] = []
        self.updates: list[Update] = []
        self.kept: list[Kept] = []
        self.hidden: list[int] = []
        self._unconfirmed: list[tuple[int, int]] = []
        self._available: dict[int, list[int]] = {}

    def expect(self, entries: Iterable[ReportedReplica]) -> None:
        """Take in some entries of the inventory; of two for one replica the later counts."""
        for entry in entries:
            self.listed_twice += entry.key in self._open
            self._open[entry.key] = entry

    def compare(self, piece: Iterable[HeldReplica]) -> None:
        """Take in some rows of the worker."""
        for row in piece:
            key = ReplicaIdentity(
                row.artifact_id, row.view_id, row.node_id, row.memory_tier, row.device_id
            )
            entry = self._open.get(key)
            if entry is not None:
                self._open[key] = None
                self._match(row, entry)
            else:
                self._unlisted(row)

    def _unlisted(self, row: HeldReplica) -> None:
        if self._taken_us is None or row.created_at <= self._taken_us:
            self.removals.append(Removal(_seen(row), row))
            return
        self.kept.append(Kept(row, self._taken_us))
        if row.is_available:
            self._available.setdefault(row.confirmation, []).append(row.seq)
        else:
            self._unconfirmed.append((row.seq, row.confirmation))

    def _match(self, row: HeldReplica, entry: ReportedReplica) -> None:
        changed: dict[str, Any] = {}
        available = entry.is_available
        available = bool(row.was_stored) if available is None else available
        stored = available != row.was_stored
        if available != row.is_available:
            changed["is_available"] = available
        if entry.node_address and entry.node_address != row.node_address:
            changed["node_address"] = entry.node_address
        if entry.node_port and entry.node_port != row.node_port:
            changed["node_port"] = entry.node_port
        if entry.memory_size and entry.memory_size != row.memory_size:
            changed["memory_size"] = entry.memory_size
        transfer = self._transfer(row, entry, changed)
        if transfer[0] != row.export_state or transfer[1:] != (
            row.export_generation,
            row.transfer_size,
            row.transfer_json,
        ):
            changed |= transfer._asdict()
        if changed:
            # A row that only its confirmation number hides or shows is not written for that.
            stored = stored or changed.keys() != {"is_available"}
            after = row._replace(**changed)
            self.updates.append(Update(_seen(row), after, _names(changed), stored))
            if stored:
                return
        if available:
            self._available.setdefault(row.confirmation, []).append(row.seq)
        elif stored:
            self.hidden.append(row.seq)

    def _transfer(
        self, row: HeldReplica, entry: ReportedReplica, changed: dict[str, Any]
    ) -> TransferColumns:
        """Return the transfer metadata of a row from now on."""
        stored = TransferColumns(
            row.export_state, row.export_generation, row.transfer_size, row.transfer_json
        )
        given = entry.transfer
        if given is None:
            # In a new process of the daemon the old keys are dead.
            generation = max(row.worker_generation, self._worker.confirmed_generation)
            given = stored if generation >= self._worker.process_generation else _NOTHING
        return usable(
            given,
            changed.get("memory_size", row.memory_size),
            changed.get("node_address", row.node_address),
            changed.get("node_port", row.node_port),
        )

    def additions(self) -> Iterator[ReportedReplica]:
        """Yield the entries that no row was found for."""
        return (entry for entry in self._open.values() if entry is not None)

    def confirmation(self) -> int:
        """Return the number under which the worker's replicas are available from now on.

        It is the one that most of them have, so that as few rows as possible are written: after
        a restart, when everything is confirmed as it was, none is.
        """
        votes = Counter({number: len(seqs) for number, seqs in self._available.items()})
        votes.pop(0, None)  # of replicas whose confirmation was taken away one by one
        present = self._worker.confirmation
        if not votes:
            return present
        return max(votes, key=lambda number: (votes[number], number == present))

    def renumbered(self, confirmation: int) -> Iterator[tuple[int, int]]:
        """Yield (confirmation, seq) of each row that must not keep the number it has."""
        for number, seqs in self._available.items():
            if number != confirmation:
                for seq in seqs:
                    yield confirmation, seq
        for seq, number in self._unconfirmed:
            if number == confirmation:
                yield 0, seq
