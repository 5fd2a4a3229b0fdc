"""Why a replica is no source at this moment, for metrics, the log and operators."""

import enum
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from globalstore.db import Snapshot
from globalstore.registry.runtime.replica_places import MemoryTier
from globalstore.registry.runtime.replica_rows import columns_of
from globalstore.registry.runtime.sources import SPACE, Reachable
from globalstore.rules.scoring import Candidate, Parts, Scoring, WorkerLoad, parts, place
from globalstore.rules.transfer import ExportState

# Replicas that an explanation lists: more of them would show nothing new, and these cost a reader a
# few milliseconds.
EXAMINED_MAX = 1000


class Reason(enum.Enum):
    """What rules a replica out, in the order of the contract (7.1)."""

    NOT_LIVE = "not_live"  # its worker is unknown, has ended or is not live
    NOT_ACCEPTING = "not_accepting"
    UNCONFIRMED = "unconfirmed"  # since its worker ended or denied it, or the server began
    UNAVAILABLE = "unavailable"
    SATURATED = "saturated"
    PRESENCE_ONLY = "presence_only"  # or draining, or with keys that do not fit
    EXPIRED = "expired"


class Examined(NamedTuple):
    """A replica with all that its choice depends on; times in microseconds since 1970.

    ``was_stored`` as available, whether or not it ``is_confirmed`` since.
    """

    seq: int
    replica_id: bytes
    worker_key: int
    worker_id: str
    node_id: str
    node_address: str
    node_port: int
    memory_tier: int
    device_id: int
    load: int
    limit: int
    worker_load: int
    worker_limit: int
    last_assigned_us: int
    updated_us: int
    was_stored: int
    is_confirmed: int
    export_state: int
    is_whole: int
    expires_us: int | None

    def reasons(self, workers: Reachable, now_us: int) -> list[Reason]:
        """Return all that rules this replica out."""
        key = self.worker_key
        hindrances = {
            Reason.NOT_LIVE: key not in workers.live,
            Reason.NOT_ACCEPTING: key in workers.live and key not in workers.accepting,
            Reason.UNCONFIRMED: not self.is_confirmed
            or (key in workers.accepting and key not in workers.routable),
            Reason.UNAVAILABLE: not self.was_stored,
            Reason.SATURATED: self.load >= self.limit,
            Reason.PRESENCE_ONLY: self.export_state != ExportState.EXPORTABLE or not self.is_whole,
            Reason.EXPIRED: self.expires_us is not None and self.expires_us <= now_us,
        }
        return [reason for reason, holds in hindrances.items() if holds]

    @property
    def memory_type(self) -> str:
        """The name of its memory tier."""
        return MemoryTier(self.memory_tier).name

    @property
    def candidate(self) -> Candidate:
        """This replica as the choice has it."""
        return Candidate(
            self.memory_tier,
            self.load / max(1, self.limit),
            self.last_assigned_us,
            self.load,
            -self.limit,
            self.replica_id,
            self.updated_us,
            self.worker_key,
            self.seq,
            self.expires_us,
        )

    @property
    def worker(self) -> WorkerLoad:
        """The load of its worker."""
        return WorkerLoad.of(self.worker_load, self.worker_limit)


_EXAMINED = f"""
SELECT {columns_of(Examined._fields)}
FROM held_replicas r JOIN worker_ids i ON i.worker_key = r.worker_key
    JOIN endpoints e USING (endpoint_key)
WHERE {SPACE}
LIMIT :limit
"""


def examine(tx: Snapshot, artifact_id: str, view_id: str, limit: int) -> list[Examined]:
    """Return up to ``limit`` replicas of an artifact and view, in no particular order."""
    row = tx.one("SELECT artifact_key FROM artifacts WHERE artifact_id = ?", (artifact_id,))
    if row is None:
        return []
    where = {"artifact_key": row[0], "view_id": view_id, "limit": limit}
    return list(map(Examined._make, tx.all(_EXAMINED, where)))


# What the metric calls a reason; to it, unconfirmed replicas are unavailable ones.
_LABELS = {reason: reason.value for reason in Reason} | {Reason.UNCONFIRMED: "unavailable"}


def counted(examined: Iterable[Examined], workers: Reachable, now_us: int) -> dict[str, int]:
    """Return how many replicas are ruled out, each by the first of its reasons."""
    counts: Counter[str] = Counter()
    for each in examined:
        reasons = each.reasons(workers, now_us)
        if reasons:
            counts[_LABELS[reasons[0]]] += 1
    return dict(counts)


class Explained(NamedTuple):
    """A replica, the terms of its score, and its rank among those that nothing rules out, or 0."""

    examined: Examined
    terms: Parts
    reasons: list[Reason]
    rank: int


class ChoiceContext(NamedTuple):
    """What a choice depends on now."""

    scoring: Scoring
    workers: Reachable
    now_us: int


def explain(
    tx: Snapshot, artifact_id: str, view_id: str, limit: int, by: ChoiceContext
) -> tuple[list[Explained], bool]:
    """Return up to ``limit`` replicas in the order in which they would be granted.

    Those that are ruled out come last. The second value tells whether there are more.
    """
    examined = examine(tx, artifact_id, view_id, limit + 1)
    found = []
    for each in examined[:limit]:
        reasons = each.reasons(by.workers, by.now_us)
        terms = parts(by.scoring, each.candidate, each.worker, by.now_us)
        order = (len(reasons), place(by.scoring, each.candidate, terms), each.replica_id)
        found.append((order, Explained(each, terms, reasons, 0)))
    found.sort(key=lambda pair: pair[0])
    return [
        each._replace(rank=0 if each.reasons else rank)
        for rank, (_, each) in enumerate(found, start=1)
    ], len(examined) > limit
