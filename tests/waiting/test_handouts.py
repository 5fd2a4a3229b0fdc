"""Whoever was told "cancelled" owns nothing, and who was told "yes" keeps it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from claims import OUTCOMES, all_received, source, until
from cutting import Moment, cut
from purerpc import StatusCode
from servers import Serving, a_call, claim_request, configuration, eventually, refused, serving

from globalstore.db import Runner
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2 as tier
from globalstore.registry import memory_tiers
from globalstore.registry.runtime import shard_leases
from globalstore.waiting.handouts import Handouts

CANCELLED = StatusCode.CANCELLED


@asynccontextmanager
async def with_source(slots: int = 1, **options: Any) -> AsyncIterator[Serving]:
    async with serving(**options) as store:
        await source(store, slots)
        yield store


def acquire(shard_id: int = 7, daemon: str = "d", ttl_ms: int = 60_000) -> Any:
    return wire.AcquireShardHomeLeaseRequest(
        shard_id=shard_id, holder_daemon_id=daemon, ttl_ms=ttl_ms
    )


def wish(request_id: str = "r") -> Any:
    return tier.RequestMemoryTierLeaseRequest(
        node_id="n", artifact_id="a", chunk_ids=[1], request_id=request_id
    )


async def pending(store: Serving) -> list[str]:
    found = await store.tiers.ListOutstandingLeases(tier.ListOutstandingLeasesRequest(node_id="n"))
    return [lease.lease_id for lease in found.leases]


# The mechanism


async def test_what_the_last_call_does_not_deliver_is_given_back_once() -> None:
    handouts, given_back = Handouts(), []

    async def give_back() -> None:
        given_back.append(1)

    calls = [a_call(), a_call()]
    held = [handouts.hold(call, "x") for call in calls]
    for call, handout in zip(calls, held, strict=True):
        handout.answered(call, give_back, made=call is calls[0])
    await held[0].undelivered()
    assert given_back == []
    await held[1].undelivered()
    assert given_back == [1]


async def test_what_somebody_has_received_is_not_given_back() -> None:
    handouts = Handouts()
    first, second = a_call(), a_call()
    handout = handouts.hold(first, "x")
    handouts.hold(second, "x").answered(second, pytest.fail, made=True)
    first.undo = None  # delivered
    assert second.undo is not None
    await second.undo()
    assert handout.holders == 1
    second.undo = None
    del handout
    assert len(handouts) == 0


async def test_a_call_waits_while_the_thing_is_being_given_back() -> None:
    handouts, go_on = Handouts(), trio.Event()
    call = a_call()
    handouts.hold(call, "x").answered(call, go_on.wait, made=True)
    async with trio.open_nursery() as nursery:
        assert call.undo is not None
        nursery.start_soon(call.undo)
        call.undo = None
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await handouts.returned("x")
            pytest.fail("it is not given back yet")
        await handouts.returned("y")
        go_on.set()
        await handouts.returned("x")
    assert len(handouts) == 0


# Transports


async def test_a_transport_whose_answer_was_cancelled_frees_its_slot() -> None:
    async with with_source() as store:
        async with refused(CANCELLED):
            await store.runtime.RequestReplicaTransport(claim_request(), loses_answer=True)
        assert await store.read(OUTCOMES) == [(4, "requester_gone")]
        assert (await store.claim()).status == wire.STATUS_OK
        assert all_received(store)


async def test_a_cancelled_repeat_leaves_what_has_arrived_with_an_earlier_answer() -> None:
    async with with_source() as store:
        await store.claim(request_id="r")
        async with refused(CANCELLED):
            await store.runtime.RequestReplicaTransport(
                claim_request(request_id="r"), loses_answer=True
            )
        assert await store.read(OUTCOMES) == [(0, "")]


async def test_a_completed_transport_is_not_undone() -> None:
    async with with_source() as store:
        answer = await store.claim(request_id="r")
        await store.complete(answer.transport_id)
        async with refused(CANCELLED):
            await store.runtime.RequestReplicaTransport(
                claim_request(request_id="r"), loses_answer=True
            )
        assert await store.read(OUTCOMES) == [(1, "")]


async def test_of_two_calls_that_wait_together_one_that_is_cancelled_takes_nothing_away() -> None:
    async with with_source() as store, trio.open_nursery() as nursery:
        held = await store.claim()
        answers: list[Any] = []

        async def ask(**options: Any) -> None:
            request = claim_request(request_id="r", wait_s=60)
            try:
                answers.append(await store.runtime.RequestReplicaTransport(request, **options))
            except Exception as error:  # noqa: BLE001  the test looks at it
                answers.append(error)

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(lambda: ask(loses_answer=True))
        await trio.testing.wait_all_tasks_blocked()
        await store.complete(held.transport_id)
        await eventually(lambda: len(answers) == 2)
        assert await store.read(OUTCOMES) == [(1, ""), (0, "")]
        assert all_received(store)


# Shard leases


async def test_a_shard_lease_that_nobody_was_told_of_is_free_at_once() -> None:
    async with serving() as store:
        async with refused(CANCELLED):
            await store.runtime.AcquireShardHomeLease(acquire(), loses_answer=True)
        answer = await store.runtime.AcquireShardHomeLease(acquire(daemon="other"))
        assert (answer.acquired, answer.lease.lease_generation) == (True, 2)


async def test_a_cancelled_extension_leaves_the_lease_to_its_holder() -> None:
    async with serving() as store:
        held = await store.runtime.AcquireShardHomeLease(acquire())
        async with refused(CANCELLED):
            await store.runtime.AcquireShardHomeLease(acquire(), loses_answer=True)
        renewed = await store.runtime.KeepaliveShardHomeLease(
            wire.KeepaliveShardHomeLeaseRequest(lease_token=held.lease.lease_token, ttl_ms=1000)
        )
        assert renewed.lease.lease_generation == 1


async def test_a_shard_lease_that_was_extended_meanwhile_is_not_released(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        held = await store.runtime.AcquireShardHomeLease(acquire())
        lease = (await store.read("SELECT lease_token, expires_at FROM shard_leases"))[0]
        mock_clock.jump(1)
        await store.runtime.KeepaliveShardHomeLease(
            wire.KeepaliveShardHomeLeaseRequest(lease_token=lease[0], ttl_ms=60_000)
        )
        handler = store.components.context
        stale = shard_leases.ShardLease(7, "d", lease[0], held.lease.lease_generation, lease[1])
        clock = handler.clock.lease_us
        assert not await store.components.store.write(
            shard_leases.withdraw_shard_lease, stale, clock
        )


async def test_a_refused_applicant_takes_nothing_from_the_holder() -> None:
    async with serving() as store:
        await store.runtime.AcquireShardHomeLease(acquire())
        async with refused(CANCELLED):
            await store.runtime.AcquireShardHomeLease(acquire(daemon="other"), loses_answer=True)
        answer = await store.runtime.AcquireShardHomeLease(acquire(daemon="third"))
        assert (answer.acquired, answer.lease.holder_daemon_id) == (False, "d")
        assert not len(store.components.handouts)


# Memory tiers


@pytest.mark.parametrize("ttl", ["0s", "60s"])
async def test_a_pending_lease_that_nobody_was_told_of_is_withdrawn(ttl: str) -> None:
    config = configuration(worker_policy={"pending_lease_ttl": ttl})
    async with serving(config) as store:
        async with refused(CANCELLED):
            await store.tiers.RequestMemoryTierLease(wish(), loses_answer=True)
        assert await pending(store) == []
        again = await store.tiers.RequestMemoryTierLease(wish())
        assert again.lease.state == tier.LEASE_STATE_PENDING
        assert await pending(store) == [again.lease.lease_id]


async def test_a_cancelled_repeat_leaves_the_lease_of_the_first_request() -> None:
    async with serving() as store:
        first = await store.tiers.RequestMemoryTierLease(wish())
        async with refused(CANCELLED):
            await store.tiers.RequestMemoryTierLease(wish(), loses_answer=True)
        assert await pending(store) == [first.lease.lease_id]


async def test_a_lease_that_its_daemon_has_taken_up_is_not_withdrawn() -> None:
    async with serving() as store:
        lease = (await store.tiers.RequestMemoryTierLease(wish())).lease
        await store.tiers.AcknowledgeMemoryTierLease(
            tier.AcknowledgeMemoryTierLeaseRequest(
                lease_id=lease.lease_id,
                artifact_id="a",
                chunk_ids=[1],
                action=tier.LEASE_ACK_ACTION_ACQUIRED,
            )
        )
        assert not await store.components.store.write(
            memory_tiers.withdraw_tier_lease, lease.lease_id
        )
        assert await pending(store) == [lease.lease_id]


# At every moment


def claimed(store: Serving) -> Any:
    return store.runtime.RequestReplicaTransport, claim_request(request_id="r")


def shard(store: Serving) -> Any:
    return store.runtime.AcquireShardHomeLease, acquire()


def memory(store: Serving) -> Any:
    return store.tiers.RequestMemoryTierLease, wish()


@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize("thing", [claimed, shard, memory])
async def test_whenever_a_client_goes_what_it_asked_for_is_free_and_a_repeat_gets_it(
    thing: Any, moment: Moment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_source(runner=Runner.THREADS) as store:
        method, request = thing(store)
        await cut(store, moment, method, request, monkeypatch)
        await until(store, lambda: all_received(store))
        assert await store.read("SELECT sum(current_requests) FROM replicas") == [(0,)]
        assert await store.read("SELECT * FROM shard_leases WHERE holder_key NOT NULL") == []
        assert await pending(store) == []
        answer = await method(request)
        assert str(answer) != ""
        await until(store, lambda: all_received(store))
        held = [
            (await store.read(sql))[0][0]
            for sql in (
                "SELECT sum(current_requests) FROM replicas",
                "SELECT count(*) FROM shard_leases WHERE holder_key NOT NULL",
                "SELECT count(*) FROM memory_tier_leases WHERE state = 1",
            )
        ]
        assert sum(held) == 1


async def test_a_repeat_that_is_answered_first_keeps_what_it_was_handed() -> None:
    handouts, given_back = Handouts(), []

    async def give_back() -> None:
        given_back.append(1)

    first, repeat = a_call(), a_call()
    of_first, of_repeat = handouts.hold(first, "x"), handouts.hold(repeat, "x")
    of_repeat.answered(repeat, give_back, made=False)
    of_first.answered(first, give_back, made=True)
    assert first.undo is not None
    await first.undo()
    assert given_back == []
    assert repeat.undo is not None
    await repeat.undo()
    assert given_back == [1]


async def test_of_two_extensions_that_are_cancelled_neither_takes_the_thing() -> None:
    handouts, calls = Handouts(), [a_call(), a_call()]
    held = [handouts.hold(call, "x") for call in calls]
    for handout, call in zip(held, calls, strict=True):
        handout.answered(call, pytest.fail, made=False)
    for call in calls:
        if call.undo is not None:
            await call.undo()


async def test_what_only_a_call_without_an_answer_held_last_is_given_back() -> None:
    handouts, given_back = Handouts(), []

    async def give_back() -> None:
        given_back.append(1)

    first, waits = a_call(), a_call()
    of_first, of_waits = handouts.hold(first, "x"), handouts.hold(waits, "x")
    of_first.answered(first, give_back, made=True)
    assert first.undo is not None
    await first.undo()
    assert given_back == []
    await of_waits.unanswered(waits)
    assert given_back == [1]
