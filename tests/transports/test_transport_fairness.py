"""Nobody who waits long enough is starved, whoever comes after; driven by a mock clock."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from claims import OK
from servers import claim_request, replica_request, worker_request
from simulated_host import Host, folder_in_memory

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire


def group(name: str, part: int, priority: int = 0, parts: int = 4) -> Any:
    return wire.TransportSchedulingGroup(
        group_id=name, group_kind="k", part_id=str(part), total_parts=parts, priority=priority
    )


class Cluster:
    """One source with one slot, and requesters that hold it for a second each."""

    def __init__(self, host: Host, nursery: trio.Nursery) -> None:
        self.host = host
        self.nursery = nursery
        self.began = trio.current_time()
        self.worker_id = ""
        self.served: list[tuple[float, str]] = []
        self.victim_served = trio.Event()

    async def register(self) -> None:
        """Let the worker register, and its source with it."""
        self.worker_id = (await self.host.call(worker_request())).worker_id
        await self.offer(slots=1)

    async def offer(self, slots: int) -> None:
        await self.host.call(replica_request(self.worker_id, max_concurrency=slots))

    @asynccontextmanager
    async def until_all_are_served(self) -> AsyncIterator[None]:
        """Wait at the end of the block for those who were started in it."""
        outer = self.nursery
        async with trio.open_nursery() as self.nursery:
            yield
        self.nursery = outer

    def age(self) -> float:
        return trio.current_time() - self.began

    async def hold(self, name: str, outcome: int = 1, **fields: Any) -> None:
        """Wait for the source, hold it, and give it back."""
        answer = await self.host.call(claim_request(wait_s=3600, **fields))
        assert answer.status == OK
        self.served.append((self.age(), name))
        if name == "victim":
            self.victim_served.set()
        await trio.sleep(1)
        await self.host.call(
            wire.CompleteReplicaTransportRequest(transport_id=answer.transport_id, outcome=outcome)
        )

    def start(self, name: str, **fields: Any) -> None:
        self.nursery.start_soon(lambda: self.hold(name, **fields))

    async def stream(self, fields: Callable[[int], dict[str, Any]]) -> None:
        """Let two more than can be served come each second."""
        number = 0
        while True:
            self.start(f"s{number}", **fields(number))
            number += 1
            await trio.sleep(0.4)


@asynccontextmanager
async def cluster(**scheduler: Any) -> AsyncIterator[Cluster]:
    """Set up a server whose workers stay, with one source; all of it ends with the block."""
    with folder_in_memory() as folder:
        async with trio.open_nursery() as nursery:
            policy = {"heartbeat_timeout": "3600s", "transport_scheduler": scheduler}
            host = Host(folder, nursery, worker_policy=policy)
            await host.start()
            made = Cluster(host, nursery)
            await made.register()
            yield made
            nursery.cancel_scope.cancel()


async def served_at(
    victim: dict[str, Any], stream: Callable[[int], dict[str, Any]], scheduler: dict[str, Any]
) -> float:
    """Return after how many seconds a victim is served that came once the stream was there."""
    async with cluster(**scheduler) as it:
        it.nursery.start_soon(it.stream, stream)
        await trio.sleep(3.3)
        came = it.age()
        it.start("victim", **victim)
        with trio.fail_after(120):
            await it.victim_served.wait()
    (at,) = (at for at, name in it.served if name == "victim")
    return at - came


def fresh(number: int) -> dict[str, Any]:
    """Each request of a group of its own, that has seen nothing happen and is urgent."""
    return {"scheduling_group": group(f"g{number}", 0, priority=9)}


@pytest.mark.parametrize("kind", ["without a group", "of a group"])
async def test_a_stream_of_fresh_urgent_groups_starves_nobody_beyond_four_thresholds(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    victim = {} if kind == "without a group" else {"scheduling_group": group("old", 0)}
    waited = await served_at(victim, fresh, {})
    assert 15 < waited <= 22  # two of the stream may be older


async def test_the_threshold_is_configured(autojump_clock: trio.testing.MockClock) -> None:
    scheduler = {"group_dispatch": {"starvation_aging_threshold": "1s"}}
    assert 3 < await served_at({}, fresh, scheduler) <= 6


@pytest.mark.parametrize("mode", ["LEGACY", "SOURCE_BALANCE"])
async def test_the_other_modes_serve_first_come_first_served(
    mode: str, autojump_clock: trio.testing.MockClock
) -> None:
    # Eight have come in 3.3 s and three were served: five are before the victim.
    assert await served_at({}, fresh, {"mode": mode}) == pytest.approx(6, abs=1)


async def test_within_the_thresholds_a_group_that_is_behind_goes_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Groups advance together: none is finished while another has nothing."""
    async with cluster() as it:
        async with it.until_all_are_served():
            it.start("first")
            await trio.sleep(0.1)
            for name in "ab":
                for part in range(4):
                    it.start(name, scheduling_group=group(name, part))
                    await trio.sleep(0.01)
        order = "".join(name for _, name in it.served if name != "first")
        assert sorted(order) == list("aaaabbbb")
        # After the first part of a, b has nothing yet; from then on they stay within a quarter
        # of each other, up to the last parts.
        assert order[:2] == "ab"
        for end in range(1, 7):
            assert abs(order[:end].count("a") - order[:end].count("b")) <= 2


async def test_parts_that_failed_are_no_progress_of_their_group(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with cluster() as it:
        async with it.until_all_are_served():
            # a fails and b succeeds; then one of each waits, b first.
            it.start("a", outcome=2, scheduling_group=group("a", 0))
            await trio.sleep(0.5)
            it.start("b", scheduling_group=group("b", 0))
            await trio.sleep(1)
            it.start("b", scheduling_group=group("b", 1))
            await trio.sleep(0.1)
            it.start("a", scheduling_group=group("a", 1))
        assert [name for _, name in it.served] == ["a", "b", "a", "b"]


async def test_the_scan_limit_bounds_who_is_ranked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Of those who wait only the oldest are looked at, however urgent a younger one is."""
    async with cluster(group_dispatch={"queue_scan_limit": 2}) as it:
        async with it.until_all_are_served():
            it.start("holder")
            for number, priority in enumerate((0, 1, 9, 5)):
                await trio.sleep(0.05)
                it.start(f"p{priority}", scheduling_group=group(f"g{number}", 0, priority))
        assert [name for _, name in it.served] == ["holder", "p1", "p9", "p5", "p0"]


async def test_a_pass_goes_on_beyond_its_batch_while_sources_are_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        cluster(group_dispatch={"dispatch_batch_limit": 2}) as it,
        it.until_all_are_served(),
    ):
        it.start("holder")
        await trio.sleep(0.1)
        for number in range(9):
            it.start("w", scheduling_group=group(f"g{number}", 0))
        await trio.sleep(0.1)
        await it.offer(slots=8)
        await trio.sleep(0.5)
        assert len(it.served) == 1 + 7


async def test_after_a_restart_the_progress_of_groups_still_counts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with cluster() as it:
        # b has come further than a.
        await it.hold("b", scheduling_group=group("b", 0))
        await it.hold("b", scheduling_group=group("b", 1))
        await it.hold("a", scheduling_group=group("a", 0))
        await it.host.kill()
        await it.host.start()
        await it.register()
        it.served.clear()
        async with it.until_all_are_served():
            it.start("holder")
            await trio.sleep(0.1)
            # Both were heard of within 5 s, so the one that is nearly complete goes first; a
            # third one, of whom nothing has arrived, precedes both.
            it.start("a", scheduling_group=group("a", 1))
            await trio.sleep(0.1)
            it.start("b", scheduling_group=group("b", 2))
            await trio.sleep(0.1)
            it.start("c", scheduling_group=group("c", 0))
        # After c's first part all have a success, and the least is a quarter: b, at a half, is
        # within the floor, and its completion bias is the greater.
        assert [name for _, name in it.served] == ["holder", "c", "b", "a"]
