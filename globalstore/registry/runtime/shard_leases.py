"""Shard-home leases: who is the home of a shard of bytes, until when, in which generation.

``clock`` is asked inside the writer's transaction, not when a call comes in: whether a lease has
expired and what becomes of it is one comparison at one instant, in the order of commits. All times
are microseconds of the lease clock. Shard ids are signed here (see ``rules.values.signed64``).
"""

import enum
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import attrs

from globalstore.db import Row, Snapshot, Transaction
from globalstore.registry.lease_clock import LeaseNow
from globalstore.registry.signals import LeaseEnded, LeaseGranted, LeaseKind, LeasesExpired

_Key = TypeVar("_Key")

# Keys that one statement names. All texts but that of the last piece are then the same, and stay
# prepared.
_PIECE = 500

# How long after its deadline a lease may still turn out to have been extended in time: longer than
# any batch of the writer that is not given up.
_IN_DOUBT_US = 60_000_000


@attrs.frozen
class ShardLease:
    """A lease as its holder may see it; ``token`` is blank in what others get."""

    shard_id: int
    holder: str
    token: str
    generation: int
    expires_at_us: int


@attrs.frozen
class Acquired:
    """An answer to who wants a shard: the lease is theirs, or ``held`` by somebody else."""

    lease: ShardLease
    held: bool


class Renewal(NamedTuple):
    """One entry of a batch: all three have to be those of a live lease."""

    shard_id: int
    generation: int
    token: str


@attrs.frozen
class Expired:
    """A lease that nobody extended in time."""

    shard_id: int
    holder: str
    generation: int


# holder is NULL for a released lease, in whatever way it was released.
_LEASE = """
SELECT s.shard_id, h.daemon_id, coalesce(s.lease_token, ''), s.generation, s.expires_at,
       s.worker_key, s.worker_generation
FROM shard_leases s
     LEFT JOIN lease_holders h ON h.holder_key = s.holder_key AND h.releases = s.releases
"""


def acquire(
    tx: Transaction, shard_id: int, daemon_id: str, token: str, ttl_us: int, clock: LeaseNow
) -> Acquired:
    """Make a daemon the home of a shard unless another one is.

    ``token`` is used if the lease changes hands, which it also does when the daemon has registered
    as a new incarnation since it got the lease.
    """
    now_us = clock()
    row = tx.one(_LEASE + "WHERE s.shard_id = :shard_id", {"shard_id": shard_id})
    incarnation = tx.one(
        "SELECT worker_key, generation FROM workers JOIN worker_cursors USING (worker_key)"
        " WHERE daemon_id = :daemon_id",
        {"daemon_id": daemon_id},
    )
    if row is not None and _is_active(row, now_us):
        if row[1] != daemon_id:
            return Acquired(_lease(row, token=""), held=True)
        if incarnation is None or incarnation == row[5:7]:
            return Acquired(_extend(tx, row, ttl_us, now_us), held=False)
    generation = 1 if row is None else row[3] + 1
    return Acquired(
        _grant(tx, shard_id, daemon_id, token, generation, incarnation or (0, 0), ttl_us, now_us),
        held=False,
    )


def _is_active(row: Row, now_us: int) -> bool:
    return row[1] is not None and row[4] > now_us


def _lease(row: Row, *, token: str | None = None, expires_at_us: int | None = None) -> ShardLease:
    return ShardLease(
        row[0],
        row[1],
        row[2] if token is None else token,
        row[3],
        row[4] if expires_at_us is None else expires_at_us,
    )


def _grant(
    tx: Transaction,
    shard_id: int,
    daemon_id: str,
    token: str,
    generation: int,
    incarnation: Row,
    ttl_us: int,
    now_us: int,
) -> ShardLease:
    """Begin a new period of ownership."""
    holder = tx.one(
        "INSERT INTO lease_holders (daemon_id) VALUES (:id)"
        " ON CONFLICT (daemon_id) DO UPDATE SET daemon_id = daemon_id"
        " RETURNING holder_key, releases",
        {"id": daemon_id},
    )
    assert holder is not None
    tx.run(
        "INSERT INTO shard_leases VALUES (:shard_id, :generation, :holder_key, :token, :releases,"
        " :worker_key, :worker_generation, :ttl, :expires_at) ON CONFLICT (shard_id) DO UPDATE SET"
        " generation = :generation, holder_key = :holder_key, lease_token = :token,"
        " releases = :releases, worker_key = :worker_key, worker_generation = :worker_generation,"
        " ttl = :ttl, expires_at = :expires_at",
        {
            "shard_id": shard_id,
            "generation": generation,
            "holder_key": holder[0],
            "token": token,
            "releases": holder[1],
            "worker_key": incarnation[0],
            "worker_generation": incarnation[1],
            "ttl": ttl_us,
            "expires_at": now_us + ttl_us,
        },
    )
    tx.emit(LeaseGranted(LeaseKind.SHARD_HOME, shard_id, now_us + ttl_us))
    return ShardLease(shard_id, daemon_id, token, generation, now_us + ttl_us)


def _extend(tx: Transaction, row: Row, ttl_us: int, now_us: int) -> ShardLease:
    """Give a live lease a new deadline.

    Only an earlier one is told to the process: whoever wakes at the old deadline finds the later.
    """
    expires_at_us = now_us + ttl_us
    tx.run(
        "UPDATE shard_leases SET ttl = :ttl, expires_at = :expires_at WHERE shard_id = :shard_id",
        {"ttl": ttl_us, "expires_at": expires_at_us, "shard_id": row[0]},
    )
    if expires_at_us < row[4]:
        tx.emit(LeaseGranted(LeaseKind.SHARD_HOME, row[0], expires_at_us))
    return _lease(row, expires_at_us=expires_at_us)


def keepalive(tx: Transaction, token: str, ttl_us: int, clock: LeaseNow) -> ShardLease | None:
    """Extend a live lease; None when there is none of this token."""
    now_us = clock()
    row = tx.one(_LEASE + "WHERE s.lease_token = :token", {"token": token})
    if row is None or not _is_active(row, now_us):
        return None
    return _extend(tx, row, ttl_us, now_us)


class RenewalRefusal(enum.Enum):
    """Why an entry of a batch was left alone."""

    NO_TOKEN = "lease_token is required"
    UNKNOWN = "no live lease has this token: acquire the shard again"
    STALE = "stale generation: shard_id or lease_generation are not those of the lease"


class Renewed(NamedTuple):
    """What became of a batch: the deadline of all that was extended, and for each entry the holder
    of its lease, or why it was left alone."""

    until_us: int
    outcomes: list[str | RenewalRefusal]


def keepalive_batch(
    tx: Transaction, renewals: Sequence[Renewal], ttl_us: int, clock: LeaseNow
) -> Renewed:
    """Extend many live leases at one instant.

    A batch is mostly that of one holder whose leases all live: one statement for hundreds of them
    finds out, and is all there is to do. Rows are only looked at when one of them is otherwise.
    """
    now_us = clock()
    holder = _holder_of(tx, renewals[0].token)
    outcomes: list[str | RenewalRefusal] = ["" if holder is None else holder[2]] * len(renewals)
    for piece in _pieces(sorted(range(len(renewals)), key=[r[0] for r in renewals].__getitem__)):
        entries = [renewals[number] for number in piece]
        if holder is None or not _extend_all(tx, entries, holder, ttl_us, now_us):
            for number, outcome in zip(
                piece, _extend_each(tx, entries, ttl_us, now_us), strict=True
            ):
                outcomes[number] = outcome
    return Renewed(now_us + ttl_us, outcomes)


def _holder_of(tx: Snapshot, token: str) -> Row | None:
    """Return key, number of releases and daemon of who holds a lease, live or not."""
    return tx.one(
        "SELECT holder_key, h.releases, daemon_id FROM shard_leases JOIN lease_holders h"
        " USING (holder_key) WHERE lease_token = :token",
        {"token": token},
    )


def _extend_all(
    tx: Transaction, renewals: Sequence[Renewal], holder: Row, ttl_us: int, now_us: int
) -> bool:
    """Extend live leases of one holder; False when not all of them are, or one would be shortened.

    Those that are have then been extended all the same.
    """
    extended = tx.run_rows(
        "UPDATE shard_leases AS s SET ttl = ?, expires_at = ?"
        " FROM (SELECT ? AS now, ? AS holder_key, ? AS releases) AS one, (VALUES …) AS v"
        " WHERE s.shard_id = v.column1 AND s.generation = v.column2 AND s.lease_token = v.column3"
        " AND s.holder_key = one.holder_key AND s.releases = one.releases"
        " AND s.expires_at > one.now AND s.expires_at <= ?2",
        renewals,
        (ttl_us, now_us + ttl_us, now_us, *holder[:2]),
    )
    return extended == len(renewals)


def _extend_each(
    tx: Transaction, renewals: Sequence[Renewal], ttl_us: int, now_us: int
) -> Iterator[str | RenewalRefusal]:
    """Extend those of some leases that are live, and tell what is wrong with the others."""
    tokens = sorted({each.token for each in renewals})
    rows = {
        row[2]: row for row in tx.all(f"{_LEASE} WHERE s.lease_token IN ({_marks(tokens)})", tokens)
    }
    for each in renewals:
        row = rows.get(each.token)
        if not each.token:
            yield RenewalRefusal.NO_TOKEN
        elif row is None or not _is_active(row, now_us):
            yield RenewalRefusal.UNKNOWN
        elif (row[0], row[3]) != each[:2]:
            yield RenewalRefusal.STALE
        else:
            yield _extend(tx, row, ttl_us, now_us).holder


def _pieces(keys: Sequence[_Key]) -> Iterator[Sequence[_Key]]:
    return (keys[start : start + _PIECE] for start in range(0, len(keys), _PIECE))


def _marks(keys: Sequence[object]) -> str:
    return ",".join("?" * len(keys))


def release(tx: Transaction, token: str, clock: LeaseNow) -> bool:
    """Give a lease up, also one that has expired if nobody took it over; False without one."""
    row = tx.one(_LEASE + "WHERE s.lease_token = :token", {"token": token})
    if row is None or row[1] is None:
        return False
    tx.run(
        "UPDATE shard_leases SET holder_key = NULL, lease_token = NULL, expires_at = :now"
        " WHERE shard_id = :shard_id",
        {"now": clock(), "shard_id": row[0]},
    )
    tx.emit(LeaseEnded(LeaseKind.SHARD_HOME, row[0]))
    return True


def release_all(tx: Transaction, daemon_id: str) -> None:
    """Give all leases of a daemon up, however many they are."""
    tx.run(
        "UPDATE lease_holders SET releases = releases + 1 WHERE daemon_id = :daemon_id",
        {"daemon_id": daemon_id},
    )


def routes(
    tx: Snapshot, shard_ids: Sequence[int], clock: LeaseNow
) -> tuple[list[ShardLease], list[int]]:
    """Return the live leases of some shards without their tokens, and shards that are in doubt.

    In doubt is one whose lease has just run out: the writer may have extended it in time and not
    have committed that yet. Of a query that the writer runs, what is found is the last word.
    """
    found: list[ShardLease] = []
    doubtful: list[int] = []
    for piece in _pieces(shard_ids):
        rows = tx.all(f"{_LEASE} WHERE s.shard_id IN ({_marks(piece)})", piece)
        now_us = clock()
        for row in rows:
            if _is_active(row, now_us):
                found.append(_lease(row, token=""))
            elif row[1] is not None and now_us - row[4] < _IN_DOUBT_US:
                doubtful.append(row[0])
    return found, doubtful


def expire_shard_leases(
    tx: Transaction, shard_ids: list[int], _wall_us: int, clock: LeaseNow
) -> list[Expired]:
    """Look what became of leases that were to expire by now; return those that did."""
    now_us = clock()
    ended: list[int] = []
    later: list[tuple[int, int]] = []
    expired: list[Expired] = []
    for row in tx.all(f"{_LEASE} WHERE s.shard_id IN ({_marks(shard_ids)})", shard_ids):
        if _is_active(row, now_us):
            later.append((row[0], row[4]))
            continue
        ended.append(row[0])
        if row[1] is not None:
            expired.append(Expired(row[0], row[1], row[3]))
    tx.emit(LeasesExpired(LeaseKind.SHARD_HOME, ended, later))
    return expired


def restore_shard_leases(tx: Transaction, now_us: int) -> list[tuple[int, int]]:
    """Return shard and deadline of every live lease, none later than its own length from now.

    Without that bound a wall clock that starts in the past would keep shards from everybody.
    """
    tx.run(
        "UPDATE shard_leases SET expires_at = :now + ttl WHERE expires_at > :now + ttl",
        {"now": now_us},
    )
    return [
        (shard_id, expires_at)
        for shard_id, expires_at in tx.all(
            "SELECT shard_id, expires_at FROM shard_leases"
            " WHERE expires_at > :now AND lease_token IS NOT NULL",
            {"now": now_us},
        )
    ]
