"""Transports as an audit of a stretch of time."""

from typing import NamedTuple

from globalstore.db import Snapshot


class Recorded(NamedTuple):
    """A transport that was granted; times in microseconds since 1970.

    ``outcome`` is the number of an Outcome. ``request_id`` is blank once that was used for a new
    attempt, the group's fields are blank or 0 without one, ``completed_us`` is None while the
    transport is in progress.
    """

    transport_id: bytes
    replica_id: bytes
    artifact_id: str
    outcome: int
    request_id: str
    requester_worker_id: str
    group_id: str
    group_kind: str
    group_part_id: str
    group_total_parts: int
    created_us: int
    completed_us: int | None
    replica_memory_size: int


_WINDOW = """
SELECT t.transport_id, t.replica_id, a.artifact_id, t.outcome, coalesce(t.request_id, ''),
    t.requester_worker_id, coalesce(t.group_id, ''), coalesce(t.group_kind, ''),
    coalesce(t.group_part_id, ''), coalesce(t.group_total_parts, 0), t.created_at, t.completed_at,
    t.replica_memory_size
FROM transports t JOIN artifacts a USING (artifact_key)
WHERE (t.created_at, t.transport_id) > (:after_us, :after_id) AND t.created_at <= :end_us
ORDER BY t.created_at, t.transport_id LIMIT :limit
"""


def window(tx: Snapshot, after: tuple[int, bytes], end_us: int, limit: int) -> list[Recorded]:
    """Return up to ``limit`` transports granted up to ``end_us``, oldest first.

    ``after`` is the time and the id of the last one that was returned; an empty id comes before
    all transports of its time.
    """
    rows = tx.all(
        _WINDOW, {"after_us": after[0], "after_id": after[1], "end_us": end_us, "limit": limit}
    )
    return list(map(Recorded._make, rows))
