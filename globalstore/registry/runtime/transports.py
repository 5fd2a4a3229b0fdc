"""Transports: which request is granted which source."""

import enum
import math
from collections.abc import Mapping
from typing import NamedTuple

import attrs

from globalstore.db import Snapshot, Transaction
from globalstore.registry.runtime import replica_lists, sources, transport_ends
from globalstore.registry.runtime.replica_rows import Replica
from globalstore.registry.runtime.sources import Claimed, Sources
from globalstore.registry.runtime.transport_ends import Outcome
from globalstore.registry.signals import (
    GroupCounted,
    GroupKey,
    SourcesExpire,
    Space,
    TransportGranted,
)
from globalstore.rules.scoring import GroupProgress, Scoring


@attrs.frozen
class RequestGroup:
    """The scheduling group of a request, as its caller describes it."""

    kind: str
    group_id: str
    epoch: int
    part_id: str
    total_parts: int
    priority: int

    @property
    def key(self) -> GroupKey:
        """What identifies the group."""
        return self.kind, self.group_id, self.epoch


@attrs.frozen
class TransportRequest:
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
    group: RequestGroup | None
    transport_id: bytes

    @property
    def space(self) -> Space:
        """The artifact and the view that are wanted."""
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
class RequestRefused:
    """The request contradicts another one; ``text`` says how."""

    text: str


class Miss(enum.Enum):
    """Why nothing was granted."""

    NO_REPLICA = "no replica"  # none of this artifact and view
    NO_SOURCE = "no source"  # replicas, but none whose memory can be read, now or soon
    ANNOUNCED = "announced"  # replicas, and their daemons have yet to say how they are read
    BUSY = "busy"  # sources, but none usable at this instant


# What a request may wait through.
PASSING = frozenset({Miss.ANNOUNCED, Miss.BUSY})


Answer = Granted | RequestRefused | Miss


@attrs.frozen(kw_only=True)
class Round:
    """Requests for one artifact and view, and what they are answered by.

    ``ranked`` are offered sources in this order until ``grants_max`` were granted. ``newcomers``,
    some of which may be among the ranked, were never checked; the other requests were, and only
    wait. ``accepting`` are the keys of the workers that are live and accept requests, ``routable``
    those of them that requesters may be sent to; ``relaxed_kinds`` the group kinds, in lower case,
    that may mix artifacts. ``shortlist`` is what memory knows of the sources, ``groups`` what it
    knows of the ranked requests' scheduling groups.
    """

    ranked: list[TransportRequest]
    newcomers: list[TransportRequest]
    routable: frozenset[int]
    accepting: frozenset[int] = frozenset()
    grants_max: int = 16
    relaxed_kinds: frozenset[str] = frozenset()
    scoring: Scoring = attrs.Factory(Scoring)
    shortlist: sources.Shortlist | None = None
    groups: Mapping[GroupKey, GroupProgress] = attrs.Factory(dict)


def grant(tx: Transaction, batch: Round, now_us: int) -> dict[str, Answer]:
    """Answer a round; returns answers by request id.

    Newcomers learn in any case whether they are repeats, contradict another request or want
    something that does not exist. BUSY and ANNOUNCED are requests for which no source was left, or
    none is there yet. A request without an answer had no turn. Choosing a source, counting it and
    recording the transport are one step with respect to every other call.
    """
    space = (*batch.ranked, *batch.newcomers)[0].space
    artifact_key = _artifact_key(tx, space[0])
    new = {request.request_id for request in batch.newcomers}
    groups = dict(batch.groups)
    found: Sources | None = None
    miss: Miss | None = None
    answers: dict[str, Answer] = {}
    granted = 0

    def look(request: TransportRequest) -> Answer | None:
        earlier = _replayed(tx, request, now_us)
        if earlier is None and request.group is not None:
            earlier = _group_conflict(tx, request, artifact_key, batch.relaxed_kinds)
        return earlier

    for request in batch.ranked:
        name = request.request_id
        earlier = look(request) if name in new else None
        if earlier is not None:
            answers[name] = earlier
        elif miss is not None:
            answers[name] = miss
        elif granted < batch.grants_max:
            if found is None:
                found = Sources(
                    tx, space, artifact_key, batch.scoring, batch.routable, batch.shortlist, now_us
                )
            key = request.group.key if request.group is not None else None
            claimed = found.claim(groups.get(key) if key is not None else None)
            if claimed is None:
                miss = answers[name] = _why(tx, batch, space, artifact_key, now_us)
                continue
            granted += 1
            if key is not None and key in groups:
                groups[key] = groups[key].with_grant(claimed.replica.replica_id)
            answers[name] = _record(tx, request, artifact_key, claimed, now_us)
    ranked = {request.request_id for request in batch.ranked}
    for request in batch.newcomers:
        if request.request_id not in ranked:
            answer = look(request) or miss
            if answer is not None:
                answers[request.request_id] = answer
    return answers


def _artifact_key(tx: Snapshot, artifact_id: str) -> int:
    row = tx.one("SELECT artifact_key FROM artifacts WHERE artifact_id = :id", {"id": artifact_id})
    return row[0] if row is not None else 0


def _replayed(
    tx: Transaction, request: TransportRequest, now_us: int
) -> Granted | RequestRefused | None:
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
            return RequestRefused(
                f"request_id {request.request_id[:80]!r} was already used with different payload"
            )
        source = replica_lists.by_id(tx, replica_id)
        if outcome == Outcome.SUCCESS or source is not None:
            return Granted(transport_id, source, replayed=True)
        transport_ends.end_transport(
            tx, transport_id, Outcome.CANCELLED, "source_unregistered", now_us
        )
    tx.run("UPDATE transports SET request_id = NULL WHERE transport_key = :key", {"key": key})
    return None


def _group_conflict(
    tx: Snapshot, request: TransportRequest, artifact_key: int, relaxed_kinds: frozenset[str]
) -> RequestRefused | None:
    """Hold a request against the transports of its group that are running or succeeded."""
    group = request.group
    assert group is not None
    described = attrs.asdict(group)
    if tx.one(f"{_OF_GROUP} AND group_part_id = :part_id LIMIT 1", described) is not None:
        return RequestRefused(duplicate_part(group))
    # All of them agree with each other, so that comparing with one is enough.
    other = tx.one(f"{_OF_GROUP} LIMIT 1", described)
    if other is None:
        return None
    same_space = other[1:] == (artifact_key, request.view_id)
    relaxed = group.kind.lower() in relaxed_kinds
    if other[0] == group.total_parts and (same_space or relaxed):
        return None
    return RequestRefused(group_mismatch(group))


_OF_GROUP = (
    "SELECT group_total_parts, artifact_key, view_id FROM transports"
    " WHERE group_kind = :kind AND group_id = :group_id AND group_epoch = :epoch AND outcome < 2"
)

# Transports of one group that are counted at once. Groups have some hundred parts; a client that
# uses one group for ever must not hold the database for long.
_GROUP_ROWS_MAX = 10_000


class _OfSource(NamedTuple):
    """Transports of one group that one source was granted; ``last_us`` is its last success."""

    replica_id: bytes
    granted: int
    succeeded: int
    last_us: int


def count_groups(tx: Transaction, groups: list[GroupKey]) -> None:
    """Tell memory how far groups are, from here on."""
    for kind, group_id, epoch in groups:
        found = tx.all(
            "SELECT replica_id, count(*), sum(outcome = 1),"
            " max(iif(outcome = 1, completed_at, 0)) FROM (SELECT replica_id, outcome,"
            " completed_at FROM transports WHERE group_kind = :kind AND group_id = :group_id"
            " AND group_epoch = :epoch ORDER BY transport_key DESC LIMIT :limit)"
            " GROUP BY replica_id",
            {"kind": kind, "group_id": group_id, "epoch": epoch, "limit": _GROUP_ROWS_MAX},
        )
        served = list(map(_OfSource._make, found))
        progress = GroupProgress(
            {each.replica_id: each.granted for each in served},
            sum(each.granted for each in served),
            sum(each.succeeded for each in served),
            max((each.last_us for each in served), default=0),
        )
        tx.emit(GroupCounted((kind, group_id, epoch), progress))


def duplicate_part(group: RequestGroup) -> str:
    """Return the text that refuses a part which another request of the group has."""
    return f"duplicate part_id {group.part_id!r} in group {group.group_id!r}, epoch {group.epoch}"


def group_mismatch(group: RequestGroup) -> str:
    """Return the text that refuses a request which describes its group otherwise than others."""
    return f"artifact/view/total_parts mismatch in group {group.group_id!r}, epoch {group.epoch}"


def _record(
    tx: Transaction, request: TransportRequest, artifact_key: int, claimed: Claimed, now_us: int
) -> Granted:
    source, replica, group = claimed.candidate, claimed.replica, request.group
    row = tx.one(
        "INSERT INTO transports (transport_id, replica_id, artifact_key, view_id,"
        " source_worker_key, requester_node_id, requester_address, requester_port,"
        " requester_worker_id, request_id, fingerprint, replica_memory_size, created_at,"
        " group_kind, group_id, group_epoch, group_part_id, group_total_parts, group_priority)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " RETURNING transport_key",
        (
            request.transport_id,
            source.replica_id,
            artifact_key,
            request.view_id,
            source.worker_key,
            request.node_id,
            request.address,
            request.port,
            request.requester_worker_id,
            request.request_id,
            request.fingerprint,
            replica.memory_size,
            now_us,
            *(_NO_GROUP if group is None else attrs.astuple(group)),
        ),
    )
    assert row is not None
    tx.emit(
        TransportGranted(
            row[0],
            request.space,
            None if group is None else group.key,
            source.replica_id,
            source.seq,
            source.worker_key,
            replica.created_at_us,
            source.last_assigned_us == 0,
            claimed.capped,
            now_us,
        )
    )
    return Granted(request.transport_id, replica, replayed=False)


_NO_GROUP = (None,) * 6


def _why(tx: Transaction, batch: Round, space: Space, artifact_key: int, now_us: int) -> Miss:
    """Tell why no source could be chosen, and memory until when that holds at most."""
    where: dict[str, object] = {"artifact_key": artifact_key, "view_id": space[1], "now": now_us}
    if not sources.any_held(tx, where):
        return Miss.NO_REPLICA
    miss, until_us = Miss.BUSY, sources.exportable_until(tx, where)
    if until_us is None:
        miss, until_us = Miss.ANNOUNCED, sources.announced_until(tx, where, batch.accepting)
    if until_us is None:
        return Miss.NO_SOURCE
    if until_us != math.inf:
        tx.emit(SourcesExpire(space, int(until_us)))
    return miss
