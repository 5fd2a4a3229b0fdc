"""What becomes of a daemon's leases when it restarts, leaves or is lost."""

import pytest
import trio
import trio.testing
from purerpc import StatusCode
from servers import eventually, pass_time, refused, serving
from shard_lease_calls import acquire, facts, get, keep, release

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire


async def test_a_new_incarnation_of_the_holder_gets_a_lease_of_its_own() -> None:
    async with serving() as store:
        await store.register("a")
        old = (await acquire(store)).lease
        assert facts((await acquire(store)).lease) == facts(old)
        await store.register("a")
        # Until the successor asks, the old token is good: the process may be the same.
        assert facts(await keep(store, old.lease_token)) == facts(old)
        new = await acquire(store)
        assert new.acquired
        assert facts(new.lease)[:2] == ("a", 2)
        assert new.lease.lease_token != old.lease_token
        async with refused(StatusCode.NOT_FOUND):
            await keep(store, old.lease_token)
        assert not await release(store, old.lease_token)
        assert facts((await acquire(store)).lease) == facts(new.lease)


async def test_a_holder_that_registers_for_the_first_time_is_a_new_incarnation() -> None:
    async with serving() as store:
        await acquire(store)
        await store.register("a")
        assert (await acquire(store)).lease.lease_generation == 2


async def test_the_registration_of_another_daemon_changes_nothing() -> None:
    async with serving() as store:
        lease = (await acquire(store)).lease
        await store.register("b")
        assert facts((await acquire(store)).lease) == facts(lease)
        assert not (await acquire(store, daemon="b")).acquired


async def test_a_recovery_registration_is_a_new_incarnation_too() -> None:
    async with serving() as store:
        await store.register("a")
        await acquire(store)
        await store.register("a", is_recovery_registration=True)
        assert (await acquire(store)).lease.lease_generation == 2


@pytest.mark.parametrize("request_id", ["", "once"])
async def test_a_graceful_goodbye_releases_all_leases_of_the_daemon(request_id: str) -> None:
    async with serving() as store:
        worker = await store.register("a")
        tokens = [(await acquire(store, shard)).lease.lease_token for shard in range(3)]
        other = (await acquire(store, 9, daemon="b")).lease
        goodbye = wire.UnregisterWorkerRequest(
            worker_id=worker.worker_id, is_graceful_shutdown=True, client_request_id=request_id
        )
        await store.runtime.UnregisterWorker(goodbye)
        for shard, token in enumerate(tokens):
            async with refused(StatusCode.NOT_FOUND):
                await get(store, shard)
            async with refused(StatusCode.NOT_FOUND):
                await keep(store, token)
            assert not await release(store, token)
        assert facts(await keep(store, other.lease_token)) == facts(other)
        assert facts((await acquire(store, 0, daemon="b")).lease)[:2] == ("b", 2)
        # The daemon comes back, and so does a late repeat of its goodbye.
        assert facts((await acquire(store, 1, daemon="a")).lease)[:2] == ("a", 2)
        if request_id:
            await store.runtime.UnregisterWorker(goodbye)
            assert (await get(store, 1)).holder_daemon_id == "a"


async def test_any_other_end_leaves_leases_to_their_deadline(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        worker = await store.register("a")
        lost = await store.register("b")
        lease = (await acquire(store, 1, ttl_ms=3_600_000)).lease
        await acquire(store, 2, daemon="b", ttl_ms=3_600_000)
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=worker.worker_id, is_graceful_shutdown=False)
        )
        await pass_time(mock_clock, 40)
        assert await store.active(include_unavailable=True) == []
        await eventually(lambda: store.components.workers.find(lost.worker_id) is None)
        assert (await get(store, 2)).holder_daemon_id == "b"
        assert facts(await keep(store, lease.lease_token)) == facts(lease)
        assert not (await acquire(store, 2, daemon="a")).acquired


async def test_of_many_who_want_a_free_shard_one_gets_it_and_all_see_who() -> None:
    async with serving() as store:
        answers = []

        async def want(daemon: str) -> None:
            answers.append(await acquire(store, daemon=daemon, ttl_ms=60_000))

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(want, f"d{number}")
        (winner,) = [answer for answer in answers if answer.acquired]
        losers = [answer for answer in answers if not answer.acquired]
        assert len(losers) == 49
        holder = winner.lease.holder_daemon_id
        assert {facts(loser.lease) for loser in losers} == {(holder, 1, "")}
        assert (await get(store)).holder_daemon_id == holder
