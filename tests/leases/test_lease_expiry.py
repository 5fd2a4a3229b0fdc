"""The scheduler of all leases: it wakes when the next one is due, and loses none."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from simulated_host import EPOCH_US, Host

from globalstore.db import Full
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.leases.clock import Clock
from globalstore.leases.expiry import LeaseExpiry
from globalstore.leases.kinds import Kind
from globalstore.liveness.stalls import TICK_S, StallDetector
from globalstore.registry.signals import LeaseEnded, LeaseGranted, LeaseKind, LeasesExpired

SECOND = 1_000_000
KIND = LeaseKind.SHARD_HOME


class Book:
    """The database that a scheduler asks, as far as it asks it, and when it asked."""

    def __init__(self, *, patient: bool = False) -> None:
        self.clock = Clock(lambda: EPOCH_US)
        self.stalls = StallDetector()
        kind = Kind(
            expire=self.expire,
            restore=lambda tx, now_us: [],
            patient=patient,
            log=lambda ended: None,
        )
        self.expiry = LeaseExpiry(self, self.clock, self.stalls, {KIND: kind})
        self.until: dict[int, int] = {}
        self.ended: list[tuple[int, int]] = []
        self.writes = 0
        self.failures = 0

    def grant(self, key: int, seconds: float) -> None:
        self.until[key] = self.clock.lease_us() + round(seconds * SECOND)
        self.expiry.granted(LeaseGranted(KIND, key, self.until[key]))

    def extend(self, key: int, seconds: float) -> None:
        """As the database does: without a word to the scheduler."""
        self.until[key] = self.clock.lease_us() + round(seconds * SECOND)

    async def write(self, operation: Any, *args: Any, lane: Any) -> Any:
        return operation(self, *args)

    def expire(self, _: Any, keys: list[int], wall_us: int, lease_now: Any) -> list[int]:
        self.writes += 1
        if self.failures:
            self.failures -= 1
            raise Full("no space")
        now = lease_now()
        ended = [key for key in keys if self.until.get(key, 0) <= now]
        later = [(key, self.until[key]) for key in keys if key not in ended]
        for key in ended:
            self.ended.append((key, now - self.until.pop(key, now)))
        self.expiry.expired(LeasesExpired(KIND, ended, later))
        return ended


@asynccontextmanager
async def kept(book: Book) -> AsyncIterator[Book]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(book.stalls.run)
        nursery.start_soon(book.expiry.run)
        yield book
        nursery.cancel_scope.cancel()


async def test_each_lease_ends_at_its_own_deadline(autojump_clock: trio.testing.MockClock) -> None:
    async with kept(Book()) as book:
        for key, seconds in enumerate([5, 0.1, 3, 3, 0.000_001, 800]):
            book.grant(key, seconds)
        await trio.sleep(860)
        assert [key for key, _ in book.ended] == [4, 1, 2, 3, 0, 5]
        assert all(0 <= late_us <= 2 for _, late_us in book.ended)
        assert book.expiry.pending(KIND) == 0


async def test_extending_costs_nothing_and_delays_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with kept(Book()) as book:
        book.grant(1, 9)
        for _ in range(30):
            await trio.sleep(3)
            book.extend(1, 9)
        assert book.ended == []
        assert book.writes <= 15
        await trio.sleep(8.9)
        assert book.ended == []
        await trio.sleep(0.2)
        assert [key for key, _ in book.ended] == [1]


async def test_a_lease_may_be_shortened(autojump_clock: trio.testing.MockClock) -> None:
    async with kept(Book()) as book:
        book.grant(1, 1000)
        await trio.sleep(1)
        book.grant(1, 2)
        await trio.sleep(2.1)
        assert [key for key, _ in book.ended] == [1]


async def test_a_lease_that_ends_before_its_deadline_is_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with kept(Book()) as book:
        book.grant(1, 5)
        book.expiry.ended(LeaseEnded(KIND, 1))
        await trio.sleep(10)
        assert book.writes == 0


async def test_none_is_lost_while_the_database_refuses(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with kept(Book()) as book:
        book.failures = 5
        for key in range(1200):
            book.grant(key, 1)
        await trio.sleep(30)
        assert sorted(key for key, _ in book.ended) == list(range(1200))


async def test_a_lease_that_is_granted_again_while_it_expires_is_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with kept(Book()) as book:
        write = book.write

        async def slowly(*args: Any, lane: Any) -> Any:
            ended = await write(*args, lane=lane)
            book.grant(1, 50)
            await trio.sleep(1)
            return ended

        book.write = slowly
        book.grant(1, 1)
        await trio.sleep(40)
        assert len(book.ended) == 1
        assert book.expiry.pending(KIND) == 1
        await trio.sleep(20)
        assert len(book.ended) == 2


@pytest.mark.parametrize("patient", [False, True])
async def test_only_patient_kinds_get_more_time_when_the_server_was_stalled(
    patient: bool, mock_clock: trio.testing.MockClock
) -> None:
    async with kept(Book(patient=patient)) as book:
        book.grant(1, 5)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(20)
        await trio.testing.wait_all_tasks_blocked()
        assert len(book.ended) == (0 if patient else 1)
        for _ in range(round(6 / TICK_S)):
            mock_clock.jump(TICK_S)
            await trio.testing.wait_all_tasks_blocked()
        assert len(book.ended) == 1


# With a whole server.


def acquisition(shard: int, seconds: float, daemon: str = "a") -> Any:
    return wire.AcquireShardHomeLeaseRequest(
        shard_id=shard, holder_daemon_id=daemon, ttl_ms=round(seconds * 1000)
    )


async def test_a_restart_keeps_deadlines_tokens_and_generations(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, nursery: trio.Nursery
) -> None:
    host = Host(tmp_path, nursery)
    await host.start()
    leases = [(await host.call(acquisition(shard, 10 + shard))).lease for shard in range(3)]
    await trio.sleep(4)
    for end in (host.kill, host.stop):
        await end()
        await trio.sleep(3)
        await host.start()
    # Ten seconds have passed: the first lease is over, and the others are as they were.
    assert host.running.components.leases.pending(KIND) == 2
    again = [await host.call(acquisition(shard, 1, "b")) for shard in range(3)]
    assert [each.acquired for each in again] == [True, False, False]
    assert [each.lease.lease_generation for each in again] == [2, 1, 1]
    for each, lease in zip(again[1:], leases[1:], strict=True):
        assert each.lease.expires_at == lease.expires_at
    kept_lease = await host.call(
        wire.KeepaliveShardHomeLeaseRequest(lease_token=leases[2].lease_token, ttl_ms=9000)
    )
    assert kept_lease.lease.lease_generation == 1
    await trio.sleep(2)
    assert (await host.call(acquisition(1, 1, "b"))).acquired


async def test_expired_leases_are_told_in_the_log_and_their_rows_stay(
    autojump_clock: trio.testing.MockClock,
    tmp_path: Path,
    nursery: trio.Nursery,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    host = Host(tmp_path, nursery)
    await host.start()
    for shard in (1, 2**64 - 1):
        await host.call(acquisition(shard, 1))
    await host.call(acquisition(3, 60))
    await trio.sleep(1.1)
    (record,) = [r for r in caplog.records if r.getMessage() == "shard leases expired"]
    assert record.fields == {"count": 2, "shards": f"{2**64 - 1} 1"}  # type: ignore[attr-defined]
    assert await host.rows("SELECT count(*) FROM shard_leases") == [(3,)]
    assert host.running.components.leases.pending(KIND) == 1
    assert "shard_home: 1" in repr(host.running.components.leases)


@pytest.mark.parametrize("step_s", [-86_400, -3600, 3600, 86_400 * 365])
async def test_setting_the_wall_clock_neither_stretches_nor_ends_a_lease(
    step_s: int, autojump_clock: trio.testing.MockClock, tmp_path: Path, nursery: trio.Nursery
) -> None:
    host = Host(tmp_path, nursery)
    await host.start()
    lease = (await host.call(acquisition(1, 20))).lease
    await trio.sleep(5)
    host.wall_step_us = step_s * SECOND
    await trio.sleep(5)
    route = (await host.call(wire.GetShardHomeLeaseRequest(shard_id=1))).lease
    # What is shown follows the wall clock, what is enforced does not.
    moved_us = route.expires_at.ToMicroseconds() - lease.expires_at.ToMicroseconds()
    assert moved_us == step_s * SECOND
    await host.kill()
    await host.start()
    await trio.sleep(9)
    assert not (await host.call(acquisition(1, 1, "b"))).acquired
    await trio.sleep(1.001)
    assert (await host.call(acquisition(1, 1, "b"))).acquired


async def test_a_wall_clock_that_starts_in_the_past_keeps_a_shard_no_longer_than_its_lease(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, nursery: trio.Nursery
) -> None:
    host = Host(tmp_path, nursery)
    await host.start()
    await host.call(acquisition(1, 20))
    await host.stop()
    host.wall_step_us = -86_400 * SECOND
    await host.start()
    await trio.sleep(19.9)
    assert not (await host.call(acquisition(1, 1, "b"))).acquired
    await trio.sleep(0.2)
    assert (await host.call(acquisition(1, 1, "b"))).acquired


async def test_a_stall_moves_no_deadline_of_a_shard(
    mock_clock: trio.testing.MockClock, tmp_path: Path, nursery: trio.Nursery
) -> None:
    host = Host(tmp_path, nursery)
    await host.start()
    lease = (await host.call(acquisition(1, 20))).lease
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(15)
    await trio.testing.wait_all_tasks_blocked()
    taken = await host.call(acquisition(1, 1, "b"))
    assert not taken.acquired
    assert taken.lease.expires_at == lease.expires_at
    mock_clock.jump(5)
    assert (await host.call(acquisition(1, 1, "b"))).acquired
