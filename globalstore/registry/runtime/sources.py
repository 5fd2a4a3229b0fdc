"""The sources of an artifact and view: choosing the best, and claiming it."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import attrs

from globalstore.db import Snapshot, Transaction
from globalstore.registry.runtime import replica_rows
from globalstore.registry.runtime.replica_rows import EXPORTABLE, LOAD_RATIO, Replica, columns_of
from globalstore.registry.signals import Space
from globalstore.rules.scoring import Candidate, Choice, GroupProgress, Scoring, WorkerLoad
from globalstore.rules.transfer import ExportState


class Reachable(NamedTuple):
    """Keys of the workers that are live, those of them that accept requests, and those of these
    that requesters may be sent to.
    """

    live: frozenset[int]
    accepting: frozenset[int]
    routable: frozenset[int]


@attrs.frozen
class Shortlist:
    """The best free sources of an artifact and view, in their order, of routable workers.

    ``loads`` are those of their workers. Unless it ``is_complete`` there are more sources.
    """

    candidates: list[Candidate]
    loads: Mapping[int, WorkerLoad]
    is_complete: bool


@attrs.frozen
class SourcesListed:
    """Which free sources an artifact and view had at this point of the commit."""

    space: Space
    shortlist: Shortlist


# Up to so many sources the choice is exact; of more, the best by tier, load ratio and least recent
# use are compared.
SHORTLIST_MAX = 128

SPACE = "artifact_key = :artifact_key AND view_id = :view_id"


@attrs.frozen
class Claimed:
    """A source that serves one transport more; ``created_us`` is when it was registered.

    ``capped`` sources were passed over because the request's group has enough of them.
    """

    candidate: Candidate
    replica: Replica
    capped: int


class Sources:
    """The free sources of one artifact and view, for the length of one operation.

    ``known`` is the shortlist that memory has. It may miss what other operations did a moment ago,
    so what is chosen from it is checked when it is claimed, and before an answer that there is no
    source the database is read.
    """

    def __init__(
        self,
        tx: Transaction,
        space: Space,
        artifact_key: int,
        scoring: Scoring,
        routable: frozenset[int],
        known: Shortlist | None,
        now_us: int,
    ) -> None:
        self._tx = tx
        self._space = space
        self._where = {"artifact_key": artifact_key, "view_id": space[1], "now": now_us}
        self._scoring = scoring
        self._routable = routable
        self._now_us = now_us
        self._was_read = False
        if known is None:
            self._read()
        else:
            self._choose_from(known)

    def _read(self) -> None:
        shortlist = listed(self._tx, self._where, self._routable)
        self._tx.emit(SourcesListed(self._space, shortlist))
        self._was_read = True
        self._choose_from(shortlist)

    def _choose_from(self, shortlist: Shortlist) -> None:
        self._choice = Choice(
            self._scoring, shortlist.candidates, shortlist.loads, self._routable, self._now_us
        )

    def claim(self, group: GroupProgress | None) -> Claimed | None:
        """Take the best source for a request of this group; None when no source is free."""
        while True:
            chosen = self._choice.best(group)
            if chosen is not None:
                candidate = chosen.source
                replica = self._take(candidate)
                if replica is not None:
                    self._choice.grant(candidate)
                    return Claimed(candidate, replica, chosen.capped)
            elif self._was_read:
                return None
            self._read()

    def _take(self, candidate: Candidate) -> Replica | None:
        artifact_id, _ = self._space
        return replica_rows.take_source(
            self._tx, artifact_id, candidate.seq, candidate.worker_key, self._now_us
        )


# A source as the choice sees it, and what its worker is in the middle of.
_CANDIDATE = len(Candidate._fields)
_WORKER = Candidate._fields.index("worker_key")
_LISTED = f"""
SELECT {columns_of((*Candidate._fields, "worker_load", "worker_limit"))}
FROM replicas r JOIN worker_ids i ON i.worker_key = r.worker_key
    AND i.confirmation = r.confirmation
WHERE r.{SPACE} AND is_available = 1 AND r.current_requests < r.max_concurrency AND {EXPORTABLE}
ORDER BY r.memory_tier, {LOAD_RATIO}, r.last_assigned_at
LIMIT :limit
"""


def listed(tx: Snapshot, where: dict[str, object], routable: frozenset[int]) -> Shortlist:
    """Return the shortlist of the free sources whose workers are routable.

    ``where`` names artifact_key, view_id and now (µs).
    """
    limit = SHORTLIST_MAX + 1  # one more than is listed tells that there are more
    while True:
        rows = tx.all(_LISTED, where | {"limit": limit})
        routed = [row for row in rows if row[_WORKER] in routable]
        if len(rows) < limit or len(routed) > SHORTLIST_MAX:
            break
        limit *= 16  # the best belong to workers that are silent
    best = routed[:SHORTLIST_MAX]
    loads = {row[_WORKER]: WorkerLoad.of(*row[_CANDIDATE:]) for row in best}
    candidates = [Candidate._make(row[:_CANDIDATE]) for row in best]
    return Shortlist(sorted(candidates), loads, len(rows) < limit and len(best) == len(routed))


def any_held(tx: Snapshot, where: dict[str, object]) -> bool:
    """Tell whether an artifact and view has any replica; ``where`` as in ``listed``."""
    found = tx.one(f"SELECT 1 FROM held_replicas WHERE {SPACE} LIMIT 1", where)
    return found is not None


def exportable_until(tx: Snapshot, where: dict[str, object]) -> float | None:
    """Return until when (µs) some replica of an artifact and view can be read, now or later.

    Infinite when one of them never expires, None when there is none; ``where`` as in ``listed``.
    """
    of_space = f"FROM held_replicas WHERE {SPACE} AND {EXPORTABLE}"
    some = tx.one(f"SELECT expires_at {of_space} LIMIT 1", where)
    if some is None or some[0] is None:
        return None if some is None else math.inf
    rows = tx.all(f"SELECT DISTINCT expires_at {of_space}", where)
    return _last([expires_at for (expires_at,) in rows])


# Replicas that could be read as soon as their daemons say how: not those that are draining.
_ANNOUNCED = f"""
SELECT r.worker_key, r.expires_at
FROM replicas r JOIN worker_ids i ON i.worker_key = r.worker_key
    AND i.confirmation = r.confirmation
WHERE r.{SPACE} AND is_available = 1 AND export_state != {int(ExportState.DRAINING)}
    AND (expires_at IS NULL OR expires_at > :now)
LIMIT :limit
"""


def announced_until(
    tx: Snapshot, where: dict[str, object], accepting: frozenset[int]
) -> float | None:
    """Return until when (µs) some replica of an artifact and view may become exportable.

    Daemons publish in two steps: that they have a replica, then how it is read. ``accepting`` are
    the keys of the workers that are live and take requests, of whom the second step is expected.
    The result is as that of ``exportable_until``.
    """
    limit = SHORTLIST_MAX
    while True:
        rows = tx.all(_ANNOUNCED, where | {"limit": limit})
        found = [expires_at for worker_key, expires_at in rows if worker_key in accepting]
        if found or len(rows) < limit:
            return _last(found)
        limit *= 16


def _last(expiries: list[int | None]) -> float | None:
    if not expiries:
        return None
    return max(math.inf if at is None else at for at in expiries)
