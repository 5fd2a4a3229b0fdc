"""Repeats of a request: one request id, one transport."""

from typing import Any

import pytest
import trio
from claims import (
    LOADS,
    NOT_FOUND,
    OK,
    OUTCOMES,
    TIMED_OUT,
    parked,
    source,
    start,
    until,
)
from purerpc import StatusCode
from servers import Serving, memory_info, pass_time, refused, serving, serving_over_tcp

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

VIEW = {"kind": 2, "id": "v"}
OTHERS: list[dict[str, Any]] = [
    {"artifact_id": "other"},
    {"requested_byte_space": VIEW},
    {"source_node_id": "elsewhere"},
    {"source_address": "elsewhere"},
    {"source_port": 9},
    {"requester_worker_id": "w"},
    *(
        {
            "scheduling_group": wire.TransportSchedulingGroup(
                **(
                    {"group_id": "g", "group_kind": "k", "part_id": "p", "total_parts": 2}
                    | {"epoch": 1, "priority": 1}
                    | change
                )
            )
        }
        for change in (
            {},
            {"group_id": "g2"},
            {"group_kind": "k2"},
            {"part_id": "p2"},
            {"total_parts": 3},
            {"epoch": 2},
            {"priority": 2},
        )
    ),
]


async def test_a_repeat_of_a_granted_request_gets_the_same_transport_and_counts_nothing() -> None:
    async with serving() as store:
        await source(store, slots=5)
        first = await store.claim(request_id=" r ")
        again = await store.claim(request_id="r", wait_s=9, local_memory_info=memory_info("d2"))
        assert again == first
        assert await store.read(LOADS) == [(1,)]


@pytest.mark.parametrize("number", range(len(OTHERS)))
async def test_another_payload_under_a_granted_id_is_refused(number: int) -> None:
    async with serving() as store:
        worker = await source(store, slots=5)
        await store.replica(worker.worker_id, "other")
        await store.replica(worker.worker_id, mem_info=memory_info(byte_space=VIEW))
        # Grouped rows differ from the first of them, the others from the plain request.
        first = OTHERS[6] if number > 6 else {}
        await store.claim(**({"request_id": "r"} | first))
        async with refused(StatusCode.INVALID_ARGUMENT, "already used with different payload"):
            await store.claim(**({"request_id": "r"} | OTHERS[number]))
        assert await store.read("SELECT count(*) FROM transports") == [(1,)]


@pytest.mark.parametrize("hindrance", ["saturated", "not accepting", "unregistered", "cleared"])
async def test_a_repeat_is_answered_although_the_source_could_not_be_granted_now(
    hindrance: str,
) -> None:
    async with serving() as store:
        worker = await source(store)
        first = await store.claim(request_id="r")
        if hindrance == "not accepting":
            await store.beat(worker.worker_id, accepting_new_requests=False)
        elif hindrance == "unregistered":
            order = wire.UnregisterWorkerRequest(
                worker_id=worker.worker_id, is_graceful_shutdown=True
            )
            await store.runtime.UnregisterWorker(order)
        elif hindrance == "cleared":
            info = memory_info()
            info.transport.export_state = 1
            await store.replica(worker.worker_id, mem_info=info)
        again = await store.claim(request_id="r")
        assert (again.status, again.transport_id) == (OK, first.transport_id)
        assert await store.read(LOADS) == [(1,)]


async def test_a_repeat_is_answered_although_others_wait_before_it() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        first = await store.claim(request_id="r")
        waiting = [start(nursery, store) for _ in range(40)]
        await parked(store, 40)
        assert (await store.claim(request_id="r")).transport_id == first.transport_id
        assert not any(claim.ended.is_set() for claim in waiting)
        nursery.cancel_scope.cancel()


def callers(store: Serving) -> int:
    """Calls that carry the waiting request ``r``."""
    return len(store.components.queues.waiters.of_request("r").callers)


async def test_a_second_call_joins_one_that_waits_and_both_get_the_same() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        held = await store.claim()
        calls = [start(nursery, store, request_id="r") for _ in range(3)]
        await parked(store, 1)
        await until(store, lambda: callers(store) == 3)
        await store.complete(held.transport_id)
        answers = [await call.result() for call in calls]
        assert answers[0].status == OK
        assert answers == [answers[0]] * 3
        assert await store.read(LOADS) == [(1,)]


async def test_another_payload_under_a_waiting_id_is_refused_and_the_first_waits_on() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        held = await store.claim()
        first = start(nursery, store, request_id="r")
        await parked(store, 1)
        for artifact_id in ("model", "other"):
            async with refused(StatusCode.INVALID_ARGUMENT, "already used with different payload"):
                await store.claim(artifact_id, request_id="r", source_port=9)
        await store.complete(held.transport_id)
        assert await first.status() == OK


@pytest.mark.parametrize("order", [(1, 3), (3, 1)])
async def test_of_two_joined_calls_the_longer_wait_rules(
    mock_clock: trio.testing.MockClock, order: tuple[int, int]
) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        await store.claim()
        calls = []
        for wait_s in order:
            calls.append(start(nursery, store, request_id="r", wait_s=wait_s))
            await parked(store, 1)
        await until(store, lambda: callers(store) == 2)
        await pass_time(mock_clock, 2.75)
        assert await store.read("SELECT count(*) FROM transports") == [(1,)]
        assert not any(call.ended.is_set() for call in calls)
        await pass_time(mock_clock, 0.5)
        assert [await call.status() for call in calls] == [TIMED_OUT, TIMED_OUT]


async def test_a_joined_call_that_goes_away_takes_nothing_from_the_other() -> None:
    async with serving_over_tcp() as store, trio.open_nursery() as nursery:
        await source(store)
        held = await store.claim()
        goes = start(nursery, store, request_id="r", apart=True)
        await parked(store, 1)
        stays = start(nursery, store, request_id="r")
        await until(store, lambda: callers(store) == 2)
        goes.scope.cancel()
        await until(store, lambda: callers(store) == 1)
        await store.complete(held.transport_id)
        assert await stays.status() == OK
        assert await store.read(LOADS) == [(1,)]


async def test_a_repeat_after_success_gets_the_same_transport_and_counts_nothing() -> None:
    async with serving() as store:
        await source(store)
        first = await store.claim(request_id="r")
        await store.complete(first.transport_id)
        again = await store.claim(request_id="r")
        assert (again.status, again.transport_id) == (OK, first.transport_id)
        assert again.remote_memory_info == first.remote_memory_info
        assert await store.read(LOADS) == [(0,)]
        async with refused(StatusCode.INVALID_ARGUMENT, "already used with different payload"):
            await store.claim(request_id="r", source_port=1)


async def test_a_repeat_after_success_is_answered_although_the_replica_is_gone() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        replica = await store.replica(worker.worker_id)
        first = await store.claim(request_id="r")
        await store.complete(first.transport_id)
        gone = wire.UnregisterReplicaRequest(artifact_id="model", replica_id=replica.replica_id)
        await store.runtime.UnregisterReplica(gone)
        again = await store.claim(request_id="r")
        assert (again.status, again.transport_id) == (OK, first.transport_id)


@pytest.mark.parametrize("outcome", [2, 3, 4])
@pytest.mark.parametrize("fields", [{}, {"source_port": 9}])
async def test_after_another_end_the_id_starts_a_new_attempt_whatever_its_payload(
    outcome: int, fields: dict[str, Any]
) -> None:
    async with serving() as store:
        await source(store)
        first = await store.claim(request_id="r")
        await store.complete(first.transport_id, outcome, outcome_detail="why")
        again = await store.claim(**({"request_id": "r"} | fields))
        assert again.status == OK
        assert again.transport_id != first.transport_id
        rows = await store.read(
            "SELECT request_id, outcome, outcome_detail FROM transports ORDER BY transport_key"
        )
        assert rows == [(None, outcome, "why"), ("r", 0, "")]
        assert await store.read(LOADS) == [(1,)]


async def test_an_id_whose_wait_ran_out_starts_a_new_attempt() -> None:
    async with serving() as store:
        await source(store)
        held = await store.claim()
        assert (await store.claim(request_id="r", wait_s=0.001)).status == TIMED_OUT
        await store.complete(held.transport_id)
        assert (await store.claim(request_id="r", source_port=9)).status == OK


async def test_an_id_whose_caller_went_away_while_waiting_starts_a_new_attempt() -> None:
    async with serving_over_tcp() as store, trio.open_nursery() as nursery:
        await source(store)
        held = await store.claim()
        claim = start(nursery, store, request_id="r", apart=True)
        await parked(store, 1)
        claim.scope.cancel()
        await until(store, lambda: len(store.components.queues) == 0)
        await store.complete(held.transport_id)
        assert await store.read(LOADS) == [(0,)]
        assert (await store.claim(request_id="r", source_port=9)).status == OK


@pytest.mark.parametrize("left", [True, False])
async def test_a_repeat_whose_source_was_unregistered_closes_the_old_and_tries_anew(
    left: bool,
) -> None:
    async with serving() as store:
        worker = await store.register("d1")
        replica = await store.replica(worker.worker_id)
        first = await store.claim(request_id="r")
        if left:
            await store.replica(worker.worker_id, mem_info=memory_info(device_id=1))
        gone = wire.UnregisterReplicaRequest(artifact_id="model", replica_id=replica.replica_id)
        await store.runtime.UnregisterReplica(gone)
        again = await store.claim(request_id="r")
        assert again.status == (OK if left else NOT_FOUND)
        rows = await store.read(OUTCOMES)
        assert rows[0] == (4, "source_unregistered")
        assert len(rows) == (2 if left else 1)
        if left:
            assert again.transport_id != first.transport_id
            assert await store.read(LOADS) == [(1,)]


async def test_thirty_two_calls_at_once_with_one_id_are_one_transport() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store, slots=32)
        calls = [start(nursery, store, request_id="r") for _ in range(32)]
        ids = {(await call.result()).transport_id for call in calls}
        assert len(ids) == 1
        assert await store.read(LOADS) == [(1,)]
