"""The chunk directory: hints about which node has which chunk of which artifact.

Chunks are kept in blocks (see ``rules.chunk_states``): a dense report of 100 000 chunks changes
some hundred rows. A report that touches more blocks than one transaction may write is staged in
parts first, accepted in one small transaction, and applied part by part; until that is done,
queries and other reports get ``Unapplied`` and are repeated, so that no caller ever sees half of
it.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import attrs

from globalstore.db import Row, Snapshot, Transaction
from globalstore.registry import row_limits, worker_ids
from globalstore.rules.chunk_states import ChunkState, Patch, patched, without
from globalstore.rules.refusals import InvalidArgument

_T = TypeVar("_T")

# Blocks that one transaction writes: some 20 ms of the writer.
BLOCKS_AT_ONCE = 500

# Rows of one statement, below the number of parameters that any SQLite takes.
_ROWS_AT_ONCE = 250


@attrs.frozen
class ChunkReport:
    """The worker and node of a report, and its time (µs); ``worker_id`` may be blank or unknown."""

    node_id: str
    worker_id: str
    now_us: int


@attrs.frozen
class Unapplied:
    """An accepted report is still being applied; ask again when it is."""


class HeldChunks(NamedTuple):
    """What a node has of one block of an artifact, as reported by one worker."""

    node_id: str
    device_uuid: str
    replica: int
    block: int
    worker_key: int
    states: bytes


class NodeWorker(NamedTuple):
    """An active worker of a node and how many transports it serves; the last registered first."""

    worker_key: int
    node_id: str
    node_address: str
    p2p_port: int
    in_use: int


def report_chunks(
    tx: Transaction, report: ChunkReport, patches: Sequence[Patch]
) -> Unapplied | None:
    """Store what a node reports, as a whole; at most ``BLOCKS_AT_ONCE`` patches, sorted."""
    _check_node(tx, report)
    if _is_applying(tx, report.node_id):
        return Unapplied()
    if not any(patched(b"", patch) for patch in patches) and not _has_reported(tx, report.node_id):
        return None
    _apply(
        tx,
        _node_key(tx, report.node_id),
        worker_ids.intern(tx, report.worker_id),
        patches,
        report.now_us,
    )
    return None


def _check_node(tx: Snapshot, report: ChunkReport) -> None:
    """Refuse the report of a worker about another node than its own."""
    row = tx.one(
        "SELECT node_id FROM workers JOIN worker_ids USING (worker_key)"
        " WHERE worker_id = :worker_id",
        {"worker_id": report.worker_id},
    )
    if row is not None and row[0] != report.node_id:
        raise InvalidArgument(
            f"node_id is {report.node_id!r}, expected {row[0]!r}, the node of {report.worker_id!r}"
        )


def _is_applying(tx: Snapshot, node_id: str | None = None) -> bool:
    row = tx.one(
        "SELECT 1 FROM chunk_batches JOIN chunk_nodes USING (node_key)"
        " WHERE accepted = 1 AND (:node_id IS NULL OR node_id = :node_id) LIMIT 1",
        {"node_id": node_id},
    )
    return row is not None


def _has_reported(tx: Snapshot, node_id: str) -> bool:
    return tx.one("SELECT 1 FROM chunk_nodes WHERE node_id = ?", (node_id,)) is not None


def _node_key(tx: Transaction, node_id: str) -> int:
    """Return the key of a node, and count that it reports."""
    row = tx.one(
        "INSERT INTO chunk_nodes (node_id, reports) VALUES (:node_id, 1)"
        " ON CONFLICT (node_id) DO UPDATE SET reports = reports + 1 RETURNING node_key",
        {"node_id": node_id},
    )
    assert row is not None
    key: int = row[0]
    return key


def _apply(
    tx: Transaction, node_key: int, worker_key: int, patches: Sequence[Patch], now_us: int
) -> None:
    rows = _rows_of(tx, node_key, patches)
    changed: list[Row] = []
    emptied: list[int] = []
    for patch in patches:
        own = b""
        for block_key, reporter, states in rows.get(patch[:4], ()):
            if reporter == worker_key:
                own, after = states, patched(states, patch)
            else:
                after = without(states, patch)
                if after and after != states:
                    changed.append((*patch[:4], reporter, after))
            if not after:
                emptied.append(block_key)
        if after := patched(own, patch):
            changed.append((*patch[:4], worker_key, after))
    for keys in _pieces(emptied):
        tx.run(f"DELETE FROM chunk_blocks WHERE block_key IN ({','.join('?' * len(keys))})", keys)
    for piece in _pieces(changed):
        tx.run_rows(
            "INSERT INTO chunk_blocks (artifact_id, device_uuid, replica, block, worker_key,"
            " states, node_key, updated_at) SELECT column1, column2, column3, column4, column5,"
            " column6, ?, ? FROM (VALUES …) WHERE true"
            " ON CONFLICT (artifact_id, node_key, device_uuid, replica, block, worker_key)"
            " DO UPDATE SET states = excluded.states, updated_at = excluded.updated_at",
            piece,
            (node_key, now_us),
        )


def _rows_of(
    tx: Snapshot, node_key: int, patches: Sequence[Patch]
) -> dict[tuple[object, ...], list[Row]]:
    """Return key, reporter and states of the rows that patches are about, by block."""
    rows: dict[tuple[object, ...], list[Row]] = {}
    for piece in _pieces(patches):
        marks = ",".join(["(?,?,?,?)"] * len(piece))
        for *key, block_key, worker_key, states in tx.all(
            "SELECT b.artifact_id, b.device_uuid, b.replica, b.block, b.block_key, b.worker_key,"
            f" b.states FROM (VALUES {marks}) v CROSS JOIN chunk_blocks b"
            " ON b.artifact_id = v.column1 AND b.node_key = ? AND b.device_uuid = v.column2"
            " AND b.replica = v.column3 AND b.block = v.column4",
            [*(value for patch in piece for value in patch[:4]), node_key],
        ):
            rows.setdefault(tuple(key), []).append((block_key, worker_key, states))
    return rows


def _pieces(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[start : start + _ROWS_AT_ONCE] for start in range(0, len(items), _ROWS_AT_ONCE))


# Reports of more blocks than one transaction may write.


def open_batch(tx: Transaction, report: ChunkReport) -> int:
    """Begin a report in parts; return its key."""
    _check_node(tx, report)
    row = tx.one(
        "INSERT INTO chunk_batches (node_key, worker_key, reported_at)"
        " VALUES (:node_key, :worker_key, :now) RETURNING batch_key",
        {
            "node_key": _node_key(tx, report.node_id),
            "worker_key": worker_ids.intern(tx, report.worker_id),
            "now": report.now_us,
        },
    )
    assert row is not None
    key: int = row[0]
    return key


def add_part(tx: Transaction, batch_key: int, patches_json: str) -> None:
    """Stage a part of a report that is not accepted yet; see ``part_json``."""
    tx.run(
        "INSERT INTO chunk_parts (batch_key, patches_json) VALUES (:batch_key, :patches)",
        {"batch_key": batch_key, "patches": patches_json},
    )


def part_json(patches: Sequence[Patch]) -> str:
    """Return patches in the form in which they are staged."""
    return json.dumps([(*patch[:5], patch.states.hex()) for patch in patches])


def accept_report(tx: Transaction, batch_key: int, report: ChunkReport) -> Unapplied | None:
    """Accept a report whose parts are all staged: from this instant it counts.

    Raises LimitReached when there is no room for all of its blocks.
    """
    _check_node(tx, report)
    if _is_applying(tx, report.node_id):
        return Unapplied()
    parts = tx.one("SELECT count(*) FROM chunk_parts WHERE batch_key = ?", (batch_key,))
    assert parts is not None
    row_limits.check_room(tx, "chunk_blocks", parts[0] * BLOCKS_AT_ONCE)
    tx.run(
        "UPDATE chunk_batches SET accepted = 1, node_key = :node_key WHERE batch_key = :batch_key",
        # The node may have got another key, when its last worker left meanwhile.
        {"batch_key": batch_key, "node_key": _node_key(tx, report.node_id)},
    )
    return None


def apply_part(tx: Transaction) -> bool:
    """Apply a part of the oldest accepted report; False when there is none."""
    batch = tx.one(
        "SELECT batch_key, node_key, worker_key, reported_at FROM chunk_batches WHERE accepted = 1"
        " ORDER BY batch_key LIMIT 1"
    )
    if batch is None:
        return False
    batch_key, node_key, worker_key, now_us = batch
    part = tx.one(
        "DELETE FROM chunk_parts WHERE part_key ="
        " (SELECT min(part_key) FROM chunk_parts WHERE batch_key = :batch_key)"
        " RETURNING patches_json",
        {"batch_key": batch_key},
    )
    if part is None:
        tx.run("DELETE FROM chunk_batches WHERE batch_key = ?", (batch_key,))
        return True
    patches = [
        Patch._make((*report[:5], bytes.fromhex(report[5]))) for report in json.loads(part[0])
    ]
    with row_limits.beyond_bound(tx, "chunk_blocks"):
        _apply(tx, node_key, worker_key, patches, now_us)
    return True


def applied(tx: Snapshot, batch_key: int) -> Unapplied | None:
    """Tell whether an accepted report is wholly applied."""
    row = tx.one("SELECT 1 FROM chunk_batches WHERE batch_key = ?", (batch_key,))
    return None if row is None else Unapplied()


def last_batch(tx: Snapshot) -> int:
    """Return the key of the newest report in parts that there is."""
    row = tx.one("SELECT coalesce(max(batch_key), 0) FROM chunk_batches")
    assert row is not None
    key: int = row[0]
    return key


def drop_part(tx: Transaction, last_key: int) -> bool:
    """Delete a part of an abandoned report, up to a key; False when there is none."""
    batch = tx.one(
        "SELECT batch_key FROM chunk_batches WHERE accepted = 0 AND batch_key <= :last"
        " ORDER BY batch_key LIMIT 1",
        {"last": last_key},
    )
    if batch is None:
        return False
    part = tx.one(
        "DELETE FROM chunk_parts WHERE part_key ="
        " (SELECT min(part_key) FROM chunk_parts WHERE batch_key = ?) RETURNING part_key",
        batch,
    )
    if part is None:
        tx.run("DELETE FROM chunk_batches WHERE batch_key = ?", batch)
    return True


# Queries.


def held(
    tx: Snapshot, artifact_id: str, blocks: tuple[int, int] | None, live: frozenset[int]
) -> tuple[list[HeldChunks], list[NodeWorker]] | Unapplied:
    """Return which nodes have chunks of an artifact, in a range of blocks if one is given.

    ``live`` are the keys of the live workers; only nodes of such workers count.
    """
    if _is_applying(tx):
        return Unapplied()
    rows = tx.all(
        "SELECT node_id, device_uuid, replica, block, worker_key, states FROM chunk_blocks"
        " JOIN chunk_nodes USING (node_key) WHERE artifact_id = :artifact_id"
        " AND node_id IS NOT NULL AND block BETWEEN :first AND :last",
        {
            "artifact_id": artifact_id,
            "first": 0 if blocks is None else blocks[0],
            "last": 2**32 if blocks is None else blocks[1],
        },
    )
    nodes = sorted({row[0] for row in rows})
    workers = [
        NodeWorker(*row)
        for row in tx.all(
            "SELECT worker_key, node_id, node_address, p2p_port, (SELECT count(*)"
            " FROM transports t JOIN replicas r ON r.replica_id = t.replica_id"
            " AND r.worker_key = w.worker_key"
            " WHERE t.source_worker_key = w.worker_key AND t.outcome = 0)"
            " FROM json_each(:nodes) AS n CROSS JOIN workers w ON w.node_id = n.value"
            " WHERE inactive_at IS NULL ORDER BY registered_at DESC, worker_key DESC",
            {"nodes": json.dumps(nodes)},
        )
        if row[0] in live
    ]
    alive = {worker.node_id for worker in workers}
    return [HeldChunks(*row) for row in rows if row[0] in alive], workers


def slots(tx: Snapshot, worker_key: int) -> tuple[int, int]:
    """Return how many transports a worker's replicas may serve at once, and how many they are."""
    row = tx.one(
        "SELECT coalesce(sum(max_concurrency), 0), count(*) FROM replicas"
        " WHERE worker_key = :worker_key",
        {"worker_key": worker_key},
    )
    assert row is not None
    return row[0], row[1]


def distribution(tx: Snapshot, artifact_id: str) -> tuple[dict[ChunkState, int], dict[str, int]]:
    """Return how many chunks of an artifact are anywhere in a state, and how many on a node."""
    by_state: Counter[ChunkState] = Counter()
    by_node: Counter[str] = Counter()
    masks: dict[tuple[object, int], int] = {}
    for node_id, block, states in tx.all(
        "SELECT node_id, block, states FROM chunk_blocks JOIN chunk_nodes USING (node_key)"
        " WHERE artifact_id = :artifact_id AND node_id IS NOT NULL",
        {"artifact_id": artifact_id},
    ):
        some = 0
        for state in ChunkState:
            mask = sum(1 << at for at, one in enumerate(states) if one == state)
            masks[state, block] = masks.get((state, block), 0) | mask
            some |= mask
        masks[node_id, block] = masks.get((node_id, block), 0) | some
    for (what, _), mask in masks.items():
        if isinstance(what, ChunkState):
            by_state[what] += mask.bit_count()
        else:
            by_node[str(what)] += mask.bit_count()
    return dict(+by_state), dict(by_node)


# Forgetting.


def nodes(tx: Snapshot) -> list[tuple[str, int]]:
    """Return the nodes that have chunks, and how often each has reported."""
    found = tx.all("SELECT node_id, reports FROM chunk_nodes WHERE node_id IS NOT NULL")
    return [(node_id, reports) for node_id, reports in found]


def forget_node(tx: Transaction, node_id: str, reports: int) -> bool:
    """Hide all chunks of a node; False when it has a worker or has reported once more.

    However many there are, it is one row now, and the chunks are deleted later.
    """
    changed = tx.run(
        "UPDATE chunk_nodes SET node_id = NULL WHERE node_id = :node_id AND reports = :reports"
        " AND NOT EXISTS"
        " (SELECT 1 FROM workers w WHERE w.node_id = :node_id AND w.inactive_at IS NULL)",
        {"node_id": node_id, "reports": reports},
    )
    return changed > 0


def worker_left(tx: Transaction, worker_key: int) -> None:
    """Forget the chunks of a node whose last worker has unregistered."""
    tx.run(
        "UPDATE chunk_nodes SET node_id = NULL WHERE node_id = (SELECT node_id FROM workers w"
        " WHERE worker_key = :worker_key AND NOT EXISTS (SELECT 1 FROM workers o"
        " WHERE o.node_id = w.node_id AND o.inactive_at IS NULL))",
        {"worker_key": worker_key},
    )


def purge_chunks(tx: Transaction, _before_us: int, limit: int) -> int:
    """Delete up to ``limit`` blocks of nodes that were forgotten; return how many."""
    deleted = tx.run(
        "DELETE FROM chunk_blocks WHERE block_key IN (SELECT block_key FROM chunk_nodes"
        " JOIN chunk_blocks USING (node_key) WHERE node_id IS NULL"
        " ORDER BY node_key, block_key LIMIT :limit)",
        {"limit": limit},
    )
    if deleted < limit:
        tx.run(
            "DELETE FROM chunk_nodes WHERE node_key IN (SELECT node_key FROM chunk_nodes n"
            " WHERE node_id IS NULL AND NOT EXISTS"
            " (SELECT 1 FROM chunk_batches b WHERE b.node_key = n.node_key)"
            " ORDER BY node_key LIMIT :limit)",
            {"limit": limit},
        )
    return deleted
