"""Shard-home leases: which daemon is the home of a shard, until when, in which generation.

``clock`` is read inside the writer's transaction, not when a call comes in: whether a lease has
expired and what becomes of it is one comparison at one instant, in the order of commits. All times
are microseconds of the lease clock. Shard ids are signed here (see ``rules.values.signed64``).
"""

import enum
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import attrs

from globalstore.db import Parameters, Snapshot, Transaction
from globalstore.registry.forgotten_names import SHARD_LEASES, first_generation
from globalstore.registry.lease_clock import LeaseNow
from globalstore.registry.signals import LeaseEnded, LeaseGranted, LeaseKind, LeasesExpired
from globalstore.rules import fencing

_Key = TypeVar("_Key")

# Keys that one statement names. All texts but that of the last piece are then the same, and stay
# prepared.
_PIECE = 500

# How long after its deadline a lease may still turn out to have been extended in time: longer than
# any batch of the writer that is not given up.
_IN_DOUBT_US = 60_000_000


@attrs.frozen
class ShardLease:
    """A lease as its holder may see it; ``token`` is blank in what other callers get."""

    shard_id: int
    holder: str
    token: str
    generation: int
    expires_at_us: int


@attrs.frozen
class Acquired:
    """The answer to an application: the lease is the caller's, or ``held`` by another daemon."""

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


class _LeaseRow(NamedTuple):
    """A row of ``shard_leases``. ``holder`` is None for a lease that was released in any way."""

    shard_id: int
    holder: str | None
    token: str
    generation: int
    expires_at: int
    worker_key: int
    worker_generation: int

    @property
    def lease(self) -> fencing.Lease:
        """The row as ``rules.fencing`` has it."""
        incarnation = (self.worker_key, self.worker_generation)
        return fencing.Lease(self.generation, self.holder, self.token, incarnation, self.expires_at)


_LEASE = """
SELECT s.shard_id, h.daemon_id, coalesce(s.lease_token, ''), s.generation, s.expires_at,
       s.worker_key, s.worker_generation
FROM shard_leases s
     LEFT JOIN lease_holders h ON h.holder_key = s.holder_key AND h.releases = s.releases
"""


def _rows(tx: Snapshot, where: str, parameters: Parameters) -> Iterator[_LeaseRow]:
    return map(_LeaseRow._make, tx.all(f"{_LEASE} WHERE {where}", parameters))


def _row_of_token(tx: Snapshot, token: str) -> _LeaseRow | None:
    return next(_rows(tx, "s.lease_token = :token", {"token": token}), None)


def acquire(
    tx: Transaction, shard_id: int, daemon_id: str, token: str, ttl_us: int, clock: LeaseNow
) -> Acquired:
    """Make a daemon the home of a shard unless another one is.

    ``token`` is used if the lease changes hands, which it also does when the daemon has registered
    as a new incarnation since it got the lease.
    """
    now_us = clock()
    row = next(_rows(tx, "s.shard_id = :shard_id", {"shard_id": shard_id}), None)
    incarnation = tx.one(
        "SELECT worker_key, generation FROM workers JOIN worker_cursors USING (worker_key)"
        " WHERE daemon_id = :daemon_id",
        {"daemon_id": daemon_id},
    )
    if row is not None:
        lease = row.lease
    else:
        lease = fencing.Lease(first_generation(tx, SHARD_LEASES, 1) - 1)
    decision = fencing.decide(
        lease,
        fencing.Application(daemon_id, incarnation, token),
        now_us,
        now_us + ttl_us,
    )
    lease = decision.lease
    match decision.verdict:
        case fencing.Verdict.GRANT:
            _grant(tx, shard_id, daemon_id, lease, ttl_us)
        case fencing.Verdict.EXTEND:
            assert row is not None
            _extend(tx, row, ttl_us, lease.expires_at_us)
        case _:
            # The token is not for other callers. A daemon is not stale here: the generation of its
            # worker only grows.
            return Acquired(_shown(shard_id, attrs.evolve(lease, token="")), held=True)
    return Acquired(_shown(shard_id, lease), held=False)


def _shown(shard_id: int, lease: fencing.Lease) -> ShardLease:
    return ShardLease(
        shard_id, lease.holder or "", lease.token, lease.generation, lease.expires_at_us
    )


def _grant(
    tx: Transaction, shard_id: int, daemon_id: str, lease: fencing.Lease, ttl_us: int
) -> None:
    """Begin a new period of ownership."""
    holder = tx.one(
        "INSERT INTO lease_holders (daemon_id) VALUES (:id)"
        " ON CONFLICT (daemon_id) DO UPDATE SET daemon_id = daemon_id"
        " RETURNING holder_key, releases",
        {"id": daemon_id},
    )
    assert holder is not None
    holder_key, releases = holder
    worker_key, worker_generation = lease.incarnation or (0, 0)
    tx.run(
        "INSERT INTO shard_leases (shard_id, generation, holder_key, lease_token, releases,"
        " worker_key, worker_generation, ttl, expires_at)"
        " VALUES (:shard_id, :generation, :holder_key, :token, :releases,"
        " :worker_key, :worker_generation, :ttl, :expires_at) ON CONFLICT (shard_id) DO UPDATE SET"
        " generation = :generation, holder_key = :holder_key, lease_token = :token,"
        " releases = :releases, worker_key = :worker_key, worker_generation = :worker_generation,"
        " ttl = :ttl, expires_at = :expires_at",
        {
            "shard_id": shard_id,
            "generation": lease.generation,
            "holder_key": holder_key,
            "token": lease.token,
            "releases": releases,
            "worker_key": worker_key,
            "worker_generation": worker_generation,
            "ttl": ttl_us,
            "expires_at": lease.expires_at_us,
        },
    )
    tx.emit(LeaseGranted(LeaseKind.SHARD_HOME, shard_id, lease.expires_at_us))


def _extend(tx: Transaction, row: _LeaseRow, ttl_us: int, expires_at_us: int) -> None:
    """Give a live lease a new deadline.

    A signal is emitted only for an earlier one: the scheduler that wakes at the old deadline finds
    the later one.
    """
    tx.run(
        "UPDATE shard_leases SET ttl = :ttl, expires_at = :expires_at WHERE shard_id = :shard_id",
        {"ttl": ttl_us, "expires_at": expires_at_us, "shard_id": row.shard_id},
    )
    if expires_at_us < row.expires_at:
        tx.emit(LeaseGranted(LeaseKind.SHARD_HOME, row.shard_id, expires_at_us))


def keepalive(tx: Transaction, token: str, ttl_us: int, clock: LeaseNow) -> ShardLease | None:
    """Extend a live lease; None when there is none of this token."""
    now_us = clock()
    row = _row_of_token(tx, token)
    if row is None:
        return None
    decision = fencing.decide(row.lease, fencing.Proof(token), now_us, now_us + ttl_us)
    if decision.verdict is not fencing.Verdict.EXTEND:
        return None
    _extend(tx, row, ttl_us, decision.lease.expires_at_us)
    return _shown(row.shard_id, decision.lease)


class RenewalRefusal(enum.Enum):
    """Why an entry of a batch was left alone."""

    NO_TOKEN = "lease_token is required"
    UNKNOWN = "no live lease has this token: acquire the shard again"
    STALE = "stale generation: shard_id or lease_generation are not those of the lease"


# A batch does not distinguish a superseded token from one that came too late.
_REFUSALS = {
    fencing.Verdict.UNKNOWN: RenewalRefusal.UNKNOWN,
    fencing.Verdict.EXPIRED: RenewalRefusal.UNKNOWN,
    fencing.Verdict.STALE: RenewalRefusal.STALE,
}


class Renewed(NamedTuple):
    """What became of a batch: the deadline of all that was extended, and for each entry the holder
    of its lease, or why it was left alone."""

    until_us: int
    outcomes: list[str | RenewalRefusal]


def keepalive_batch(
    tx: Transaction, renewals: Sequence[Renewal], ttl_us: int, clock: LeaseNow
) -> Renewed:
    """Extend many live leases at one instant.

    Most batches are of one holder whose leases are all live: one statement for hundreds of them
    finds that out and extends them. Rows are only read when one of them is not.
    """
    now_us = clock()
    holder = _holder_of(tx, renewals[0].token)
    name = "" if holder is None else holder.daemon_id
    outcomes: list[str | RenewalRefusal] = [name] * len(renewals)
    for piece in _pieces(sorted(range(len(renewals)), key=[r[0] for r in renewals].__getitem__)):
        entries = [renewals[number] for number in piece]
        if holder is None or not _extend_all(tx, entries, holder, ttl_us, now_us):
            for number, outcome in zip(
                piece, _extend_each(tx, entries, ttl_us, now_us), strict=True
            ):
                outcomes[number] = outcome
    return Renewed(now_us + ttl_us, outcomes)


class _Holder(NamedTuple):
    """The holder of a lease, live or not."""

    holder_key: int
    releases: int
    daemon_id: str


def _holder_of(tx: Snapshot, token: str) -> _Holder | None:
    row = tx.one(
        "SELECT holder_key, h.releases, daemon_id FROM shard_leases JOIN lease_holders h"
        " USING (holder_key) WHERE lease_token = :token",
        {"token": token},
    )
    return None if row is None else _Holder._make(row)


def _extend_all(
    tx: Transaction, renewals: Sequence[Renewal], holder: _Holder, ttl_us: int, now_us: int
) -> bool:
    """Extend live leases of one holder; False when not all of them are, or one would be shortened.

    Those that are have then been extended all the same. The conditions are those under which
    ``fencing.decide`` extends; a test holds the two together.
    """
    extended = tx.run_rows(
        "UPDATE shard_leases AS s SET ttl = ?, expires_at = ?"
        " FROM (SELECT ? AS now, ? AS holder_key, ? AS releases) AS one, (VALUES …) AS v"
        " WHERE s.shard_id = v.column1 AND s.generation = v.column2 AND s.lease_token = v.column3"
        " AND s.holder_key = one.holder_key AND s.releases = one.releases"
        " AND s.expires_at > one.now AND s.expires_at <= ?2",
        renewals,
        (ttl_us, now_us + ttl_us, now_us, holder.holder_key, holder.releases),
    )
    return extended == len(renewals)


def _extend_each(
    tx: Transaction, renewals: Sequence[Renewal], ttl_us: int, now_us: int
) -> Iterator[str | RenewalRefusal]:
    """Extend the live ones of some leases, and return what is wrong with the others."""
    tokens = sorted({each.token for each in renewals})
    rows = {row.token: row for row in _rows(tx, f"s.lease_token IN ({_marks(tokens)})", tokens)}
    for each in renewals:
        row = rows.get(each.token)
        if row is None:
            yield RenewalRefusal.UNKNOWN if each.token else RenewalRefusal.NO_TOKEN
            continue
        proof = fencing.Proof(each.token, each.generation)
        decision = fencing.decide(row.lease, proof, now_us, now_us + ttl_us)
        refusal = _REFUSALS.get(decision.verdict)
        if refusal is None and row.shard_id != each.shard_id:
            refusal = RenewalRefusal.STALE
        if refusal is None:
            _extend(tx, row, ttl_us, decision.lease.expires_at_us)
        yield refusal or row.holder or ""


def _pieces(keys: Sequence[_Key]) -> Iterator[Sequence[_Key]]:
    return (keys[start : start + _PIECE] for start in range(0, len(keys), _PIECE))


def _marks(keys: Sequence[object]) -> str:
    return ",".join("?" * len(keys))


def release(tx: Transaction, token: str, clock: LeaseNow) -> bool:
    """Give a lease up, also one that has expired and was not taken over; False without one."""
    row = _row_of_token(tx, token)
    if row is None:
        return False
    free = fencing.released(row.lease, fencing.Proof(token), clock())
    if free is None:
        return False
    tx.run(
        "UPDATE shard_leases SET holder_key = NULL, lease_token = NULL, expires_at = :expires_at"
        " WHERE shard_id = :shard_id",
        {"expires_at": free.expires_at_us, "shard_id": row.shard_id},
    )
    tx.emit(LeaseEnded(LeaseKind.SHARD_HOME, row.shard_id))
    return True


def withdraw_shard_lease(tx: Transaction, lease: ShardLease, clock: LeaseNow) -> bool:
    """Release a lease if it is as it was when it was granted; False if it was extended since."""
    row = _row_of_token(tx, lease.token)
    if row is None or row.expires_at != lease.expires_at_us:
        return False
    return release(tx, lease.token, clock)


def release_all(tx: Transaction, daemon_id: str) -> None:
    """Give all leases of a daemon up, however many they are."""
    tx.run(
        "UPDATE lease_holders AS h SET releases = releases + 1 WHERE daemon_id = :daemon_id"
        " AND EXISTS (SELECT 1 FROM shard_leases s WHERE s.holder_key = h.holder_key"
        " AND s.releases = h.releases)",
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
        rows = list(_rows(tx, f"s.shard_id IN ({_marks(piece)})", piece))
        now_us = clock()
        for row in rows:
            if row.holder is None:
                continue
            if fencing.is_live(row.holder, row.expires_at, now_us):
                found.append(
                    ShardLease(row.shard_id, row.holder, "", row.generation, row.expires_at)
                )
            elif now_us - row.expires_at < _IN_DOUBT_US:
                doubtful.append(row.shard_id)
    return found, doubtful


def expire_shard_leases(
    tx: Transaction, shard_ids: list[int], _wall_us: int, clock: LeaseNow
) -> list[Expired]:
    """End the leases whose time has come, unless they were extended; return those that ended."""
    now_us = clock()
    ended: list[int] = []
    later: list[tuple[int, int]] = []
    expired: list[Expired] = []
    for row in _rows(tx, f"s.shard_id IN ({_marks(shard_ids)})", shard_ids):
        if fencing.is_live(row.holder, row.expires_at, now_us):
            later.append((row.shard_id, row.expires_at))
            continue
        ended.append(row.shard_id)
        if row.holder is not None:
            expired.append(Expired(row.shard_id, row.holder, row.generation))
    tx.emit(LeasesExpired(LeaseKind.SHARD_HOME, ended, later))
    return expired


def restore_shard_leases(tx: Transaction, now_us: int) -> list[tuple[int, int]]:
    """Return shard and deadline of every live lease, none later than its own length from now.

    Without that bound a wall clock that starts in the past would keep shards from every daemon.
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
