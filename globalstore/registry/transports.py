"""Transports: who was granted which source, for how long, and how it ended."""

import enum

import attrs

from globalstore.db import Row, Snapshot, Transaction
from globalstore.registry import replica_lists
from globalstore.registry.events import SourceFreed, TransportEnded, TransportGranted
from globalstore.registry.replica_lists import Replica
from globalstore.registry.worker_ids import NOBODY
from globalstore.rules.refusals import InvalidArgument


class Outcome(enum.IntEnum):
    """How a transport stands. The numbers of the ends are the wire's."""

    IN_PROGRESS = 0
    SUCCESS = 1
    FAILED = 2
    EXPIRED = 3
    CANCELLED = 4


@attrs.frozen
class Group:
    """The parts that one group of requesters loads together. All of it is the caller's own."""

    kind: str
    group_id: str
    epoch: int
    part_id: str
    total_parts: int
    priority: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.kind, self.group_id, self.epoch


@attrs.frozen
class Request:
    """A checked request for a source. ``transport_id`` is used if it is granted.

    Addresses are the requester's and need not be routable; ``view_id`` is blank for the
    canonical bytes.
    """

    artifact_id: str
    view_id: str
    node_id: str
    address: str
    port: int
    requester_worker_id: str
    request_id: str
    fingerprint: bytes
    group: Group | None
    transport_id: bytes

    @property
    def space(self) -> tuple[str, str]:
        return self.artifact_id, self.view_id


@attrs.frozen
class Granted:
    """A source was claimed, now or by an earlier call of the same request (``replayed``).

    ``source`` is None when the replay is of a completed transport whose replica is gone.
    """

    transport_id: bytes
    source: Replica | None
    replayed: bool


@attrs.frozen
class Refused:
    """The request contradicts another one; ``text`` says how."""

    text: str


class Miss(enum.Enum):
    """Why nothing was granted."""

    NO_REPLICA = "no replica"  # none of this artifact and view
    NO_SOURCE = "no source"  # replicas, but none whose memory can be read
    BUSY = "busy"  # sources, but none usable at this instant


Answer = Granted | Refused | Miss

# How many of the best candidates the first look fetches. Nearly always the first of them is taken;
# a further look is needed only when all belong to workers that are not being heard.
_CANDIDATES_FIRST_LOOK = 8

_SPACE = "artifact_key = :artifact_key AND view_id = :view_id"
_EXPORTABLE = (
    "export_state = 2 AND transfer_size = memory_size AND (expires_at IS NULL OR expires_at > :now)"
)


def grant(
    tx: Transaction,
    requests: list[Request],
    newcomers: list[Request],
    routable: frozenset[int],
    relaxed_kinds: frozenset[str],
    now_us: int,
) -> list[Answer]:
    """Answer requests for one artifact and view, in the order given.

    ``newcomers`` have others before them and only learn whether they are repeats, contradict
    another request or wait for something that does not exist; otherwise they are BUSY, whether or
    not a source is left. Their answers come last.
    ``routable`` are the keys of the workers that are heard and accepting; ``relaxed_kinds`` the
    group kinds, in lower case, that may mix artifacts. Choosing a source, counting it and
    recording the transport are one step with respect to every other call.
    """
    artifact_id, view_id = (*requests, *newcomers)[0].space
    artifact_key = _artifact_key(tx, artifact_id)
    miss: Miss | None = None

    def answer(request: Request, may_claim: bool) -> Answer:
        nonlocal miss
        earlier = _replayed(tx, request, now_us)
        if earlier is None and request.group is not None:
            earlier = _group_conflict(tx, request, artifact_key, relaxed_kinds)
        if earlier is not None:
            return earlier
        if miss is None and may_claim:
            source = _choose(tx, artifact_key, view_id, routable, now_us)
            if source is not None:
                return _claim(tx, request, source, now_us)
        miss = miss or _why(tx, artifact_key, view_id, now_us)
        return miss

    served = [answer(request, True) for request in requests]
    return served + [answer(request, False) for request in newcomers]


def _artifact_key(tx: Snapshot, artifact_id: str) -> int:
    row = tx.one("SELECT artifact_key FROM artifacts WHERE artifact_id = :id", {"id": artifact_id})
    return row[0] if row is not None else 0


def _replayed(tx: Transaction, request: Request, now_us: int) -> Granted | Refused | None:
    """Return the answer of an earlier call with this request id, or None for a new attempt."""
    row = tx.one(
        "SELECT transport_key, transport_id, replica_id, outcome, fingerprint FROM transports"
        " WHERE request_id = :request_id",
        {"request_id": request.request_id},
    )
    if row is None:
        return None
    key, transport_id, replica_id, outcome, fingerprint = row
    if outcome in {Outcome.IN_PROGRESS, Outcome.SUCCESS}:
        if fingerprint != request.fingerprint:
            return Refused(
                f"request_id {request.request_id[:80]!r} was already used with different payload"
            )
        source = replica_lists.by_id(tx, replica_id)
        if outcome == Outcome.SUCCESS or source is not None:
            return Granted(transport_id, source, replayed=True)
        _end(tx, transport_id, Outcome.CANCELLED, "source_unregistered", now_us)
    tx.run("UPDATE transports SET request_id = NULL WHERE transport_key = :key", {"key": key})
    return None


def _group_conflict(
    tx: Snapshot, request: Request, artifact_key: int, relaxed_kinds: frozenset[str]
) -> Refused | None:
    """Hold a request against the transports of its group that are running or succeeded."""
    group = request.group
    assert group is not None
    # A group has about as many rows as it has parts; one that disagrees is enough.
    row = tx.one(
        "SELECT group_part_id = :part_id FROM transports"
        " WHERE group_kind = :kind AND group_id = :group_id AND group_epoch = :epoch"
        " AND outcome IN (0, 1) AND (group_part_id = :part_id OR group_total_parts != :total_parts"
        " OR (NOT :relaxed AND (artifact_key != :artifact_key OR view_id != :view_id)))"
        " ORDER BY 1 LIMIT 1",
        attrs.asdict(group)
        | {
            "relaxed": group.kind.lower() in relaxed_kinds,
            "artifact_key": artifact_key,
            "view_id": request.view_id,
        },
    )
    if row is None:
        return None
    return Refused(duplicate_part(group) if row[0] else group_mismatch(group))


def duplicate_part(group: Group) -> str:
    """Return the text that refuses a part which another request of the group has."""
    return f"duplicate part_id {group.part_id!r} in group {group.group_id!r}, epoch {group.epoch}"


def group_mismatch(group: Group) -> str:
    """Return the text that refuses a request which describes its group otherwise than others."""
    return f"artifact/view/total_parts mismatch in group {group.group_id!r}, epoch {group.epoch}"


def _choose(
    tx: Snapshot, artifact_key: int, view_id: str, routable: frozenset[int], now_us: int
) -> Row | None:
    """Return the best free source, as (seq, replica_id, worker_key, memory_size), or None.

    The order is that of the index: tier, load ratio, load, the larger limit, the longest unused.
    """
    limit = _CANDIDATES_FIRST_LOOK
    while True:
        rows = tx.all(
            "SELECT r.seq, r.replica_id, r.worker_key, r.memory_size FROM replicas r"
            " JOIN worker_ids i ON i.worker_key = r.worker_key"
            " AND i.confirmation = r.confirmation"
            f" WHERE r.{_SPACE} AND is_available = 1 AND current_requests < max_concurrency"
            f" AND {_EXPORTABLE} ORDER BY memory_tier, current_requests * 1.0 / max_concurrency,"
            " current_requests, max_concurrency DESC, last_assigned_at, updated_at, replica_id"
            " LIMIT :limit",
            {"artifact_key": artifact_key, "view_id": view_id, "now": now_us, "limit": limit},
        )
        for row in rows:
            if row[2] in routable:
                return row
        if len(rows) < limit:
            return None
        limit *= 16


def _claim(tx: Transaction, request: Request, source: Row, now_us: int) -> Granted:
    seq, replica_id, worker_key, memory_size = source
    tx.run(
        "UPDATE replicas SET current_requests = current_requests + 1, last_assigned_at = :now"
        " WHERE seq = :seq",
        {"seq": seq, "now": now_us},
    )
    group = request.group
    row = tx.one(
        "INSERT INTO transports (transport_id, replica_id, artifact_key, view_id,"
        " source_worker_key, requester_node_id, requester_address, requester_port,"
        " requester_worker_id, request_id, fingerprint, group_kind, group_id, group_epoch,"
        " group_part_id, group_total_parts, group_priority, replica_memory_size, created_at)"
        " SELECT :transport_id, :replica_id, artifact_key, :view_id, :worker_key, :node_id,"
        " :address, :port, :requester_worker_id, :request_id, :fingerprint, :kind, :group_id,"
        " :epoch, :part_id, :total_parts, :priority, :memory_size, :now FROM replicas"
        " WHERE seq = :seq RETURNING transport_key",
        {
            "transport_id": request.transport_id,
            "replica_id": replica_id,
            "seq": seq,
            "view_id": request.view_id,
            "worker_key": worker_key,
            "node_id": request.node_id,
            "address": request.address,
            "port": request.port,
            "requester_worker_id": request.requester_worker_id,
            "request_id": request.request_id,
            "fingerprint": request.fingerprint,
            "kind": group and group.kind,
            "group_id": group and group.group_id,
            "epoch": group and group.epoch,
            "part_id": group and group.part_id,
            "total_parts": group and group.total_parts,
            "priority": group and group.priority,
            "memory_size": memory_size,
            "now": now_us,
        },
    )
    assert row is not None
    tx.emit(TransportGranted(row[0]))
    return Granted(request.transport_id, replica_lists.by_id(tx, replica_id), replayed=False)


def _why(tx: Snapshot, artifact_key: int, view_id: str, now_us: int) -> Miss:
    """Tell why no source could be chosen."""
    space = {"artifact_key": artifact_key, "view_id": view_id, "now": now_us}
    held = f"SELECT 1 FROM replicas WHERE {_SPACE} AND worker_key != {NOBODY}"
    if tx.one(f"{held} LIMIT 1", space) is None:
        return Miss.NO_REPLICA
    if tx.one(f"{held} AND {_EXPORTABLE} LIMIT 1", space) is None:
        return Miss.NO_SOURCE
    return Miss.BUSY


def complete(
    tx: Transaction, transport_id: bytes, outcome: Outcome, detail: str, now_us: int
) -> bool:
    """End a transport and free its slot; False when there is none of this id.

    The first end stays: a later one changes nothing and is no error.
    """
    if _end(tx, transport_id, outcome, detail, now_us):
        return True
    return _known(tx, transport_id)


def _known(tx: Snapshot, transport_id: bytes) -> bool:
    found = tx.one("SELECT 1 FROM transports WHERE transport_id = :id", {"id": transport_id})
    return found is not None


def _end(tx: Transaction, transport_id: bytes, outcome: Outcome, detail: str, now_us: int) -> bool:
    """End a transport that is in progress: the only place where a slot is given back."""
    row = tx.one(
        "UPDATE transports SET outcome = :outcome, outcome_detail = :detail, completed_at = :now"
        " WHERE transport_id = :transport_id AND outcome = 0"
        " RETURNING transport_key, replica_id, artifact_key, view_id",
        {"transport_id": transport_id, "outcome": outcome, "detail": detail, "now": now_us},
    )
    if row is None:
        return False
    transport_key, replica_id, artifact_key, view_id = row
    source = tx.one(
        "UPDATE replicas SET current_requests = current_requests - 1 WHERE replica_id = :id"
        " RETURNING seq, current_requests, worker_key",
        {"id": replica_id},
    )
    if source is not None and source[1:] == (0, NOBODY):
        tx.run("DELETE FROM replicas WHERE seq = ?", source[:1])
    name = tx.one("SELECT artifact_id FROM artifacts WHERE artifact_key = ?", (artifact_key,))
    assert name is not None
    tx.emit(TransportEnded(transport_key))
    tx.emit(SourceFreed(name[0], view_id))
    return True


def expire(tx: Transaction, transport_keys: list[int], detail: str, now_us: int) -> int:
    """End transports that were in progress for too long; return how many still were."""
    ended = 0
    for key in transport_keys:
        row = tx.one(
            "SELECT transport_id, created_at FROM transports"
            " WHERE transport_key = :key AND outcome = 0",
            {"key": key},
        )
        if row is not None:
            age_s = max(0, now_us - row[1]) // 1_000_000
            ended += _end(tx, row[0], Outcome.EXPIRED, f"{detail} after {age_s} s", now_us)
    return ended


def end_of_worker(tx: Transaction, worker_key: int, worker_id: str, now_us: int) -> None:
    """End the transports that a lost worker served or had requested."""
    served = tx.all(
        "SELECT transport_id FROM transports WHERE source_worker_key = :key AND outcome = 0",
        {"key": worker_key},
    )
    for (transport_id,) in served:
        _end(tx, transport_id, Outcome.EXPIRED, f"source_worker_lost {worker_id}", now_us)
    requested = tx.all(
        "SELECT transport_id FROM transports WHERE requester_worker_id = :id AND outcome = 0",
        {"id": worker_id},
    )
    for (transport_id,) in requested:
        _end(tx, transport_id, Outcome.EXPIRED, f"requester_worker_lost {worker_id}", now_us)


def in_progress(tx: Snapshot) -> list[tuple[int, int]]:
    """Return key and creation time (µs) of every transport in progress."""
    return [
        (key, created_at)
        for key, created_at in tx.all(
            "SELECT transport_key, created_at FROM transports WHERE outcome = 0"
        )
    ]


def purge(tx: Transaction, before_us: int, limit: int) -> int:
    """Delete up to ``limit`` transports that ended before a time; return how many."""
    return tx.run(
        "DELETE FROM transports WHERE transport_key IN (SELECT transport_key FROM transports"
        " WHERE outcome > 0 AND completed_at < :before ORDER BY completed_at LIMIT :limit)",
        {"before": before_us, "limit": limit},
    )


def outcome_of(number: int) -> Outcome:
    """Return the end that a completion names; refuses one that is not explicit."""
    if number not in {Outcome.SUCCESS, Outcome.FAILED, Outcome.EXPIRED, Outcome.CANCELLED}:
        raise InvalidArgument(
            f"outcome is {number}, expected an explicit outcome:"
            " SUCCESS, FAILED, EXPIRED or CANCELLED"
        )
    return Outcome(number)
