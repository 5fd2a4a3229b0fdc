"""UpdateReplica, UnregisterReplicaByWorker, MarkReplicaUnavailable, WaitReplicaDrain."""

import uuid
from typing import Any

import pytest
import trio
import trio.testing
from claims import client_with_deadlines, parked, start, until
from purerpc import StatusCode
from servers import (
    Serving,
    claim_request,
    configuration,
    memory_info,
    pass_time,
    refused,
    replica_request,
    serving,
    serving_over_tcp,
    worker_request,
)
from simulated_host import CallFailed, Host, folder_in_memory

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

UNKNOWN = str(uuid.uuid4())
GPU, RAM, DISK = common.MEMORY_TYPE_GPU, common.MEMORY_TYPE_RAM, common.MEMORY_TYPE_DISK


async def one_replica(store: Serving, slots: int = 2, **fields: Any) -> tuple[str, str]:
    """Register a worker and a replica; return the ids of both."""
    worker = await store.register("d1")
    answer = await store.replica(worker.worker_id, max_concurrency=slots, **fields)
    return worker.worker_id, answer.replica_id


async def update(store: Serving, replica_id: str, artifact_id: str = "model") -> Any:
    return await store.runtime.UpdateReplica(
        wire.UpdateReplicaRequest(artifact_id=artifact_id, replica_id=replica_id)
    )


async def mark(store: Serving, replica_id: str, artifact_id: str = "", **fields: Any) -> Any:
    return await store.runtime.MarkReplicaUnavailable(
        wire.MarkReplicaUnavailableRequest(artifact_id=artifact_id, replica_id=replica_id, **fields)
    )


async def by_worker(store: Serving, worker_id: str, artifact_id: str = "model", **f: Any) -> int:
    answer = await store.runtime.UnregisterReplicaByWorker(
        wire.UnregisterReplicaByWorkerRequest(artifact_id=artifact_id, worker_id=worker_id, **f)
    )
    status: int = answer.status
    return status


async def drain(store: Serving, replica_id: str, timeout_ms: int = 0) -> Any:
    return await store.runtime.WaitReplicaDrain(
        wire.WaitReplicaDrainRequest(replica_id=replica_id, timeout_ms=timeout_ms)
    )


async def hide(store: Serving, worker: str) -> None:
    """Let the worker's daemon say that it holds nothing."""
    answer = await store.runtime.ReconcileWorkerState(
        wire.ReconcileWorkerStateRequest(
            worker_id=worker,
            generation=1,
            request_seq=1,
            request_kind=wire.RECONCILE_REQUEST_KIND_SNAPSHOT,
        )
    )
    assert len(answer.state_changes) == 1, answer


@pytest.mark.parametrize("replica_id", ["", "x", "1234"])
async def test_every_call_wants_a_replica_id_that_is_a_uuid(replica_id: str) -> None:
    async with serving() as store:
        for call in (update, mark, drain):
            async with refused(StatusCode.INVALID_ARGUMENT, "replica_id"):
                await call(store, replica_id)


async def test_an_update_and_a_removal_by_worker_want_all_their_ids() -> None:
    async with serving() as store:
        async with refused(StatusCode.INVALID_ARGUMENT, "artifact_id"):
            await update(store, UNKNOWN, " ")
        async with refused(StatusCode.INVALID_ARGUMENT, "artifact_id"):
            await by_worker(store, "w", " ")
        async with refused(StatusCode.INVALID_ARGUMENT, "worker_id"):
            await by_worker(store, " ")
        async with refused(StatusCode.INVALID_ARGUMENT, "memory_type"):
            await by_worker(store, "w", memory_type=77)


async def test_session_local_ids_are_refused_wherever_one_is_given() -> None:
    async with serving() as store:
        local = "msa1:x:y"
        for call in (
            update(store, UNKNOWN, local),
            mark(store, UNKNOWN, local),
            by_worker(store, "w", local),
        ):
            async with refused(StatusCode.FAILED_PRECONDITION, "daemon-session-local"):
                await call


async def test_an_update_touches_the_time_alone_and_revives_nothing() -> None:
    now_us = 1_000_000
    async with serving(wall=lambda: now_us) as store:
        _, replica_id = await one_replica(store)
        await mark(store, replica_id)
        (before,) = await store.read("SELECT * FROM replicas")
        now_us += 5
        answer = await update(store, f" {replica_id.upper()} ")
        assert (answer.status, answer.artifact_id, answer.replica_id) == (
            wire.STATUS_OK, "model", replica_id,
        )  # fmt: skip
        (after,) = await store.read("SELECT * FROM replicas")
        assert [(a, b) for a, b in zip(before, after, strict=True) if a != b] == [
            (1_000_000, 1_000_005)
        ]
        assert await store.counts("model") == [(1, 0)]


async def test_an_update_of_what_is_not_there_echoes_both_ids() -> None:
    async with serving() as store:
        _, replica_id = await one_replica(store)
        for ids in ((UNKNOWN, "model"), (replica_id, "other")):
            answer = await update(store, *ids)
            assert (answer.status, answer.replica_id, answer.artifact_id) == (
                wire.STATUS_NOT_FOUND, *ids,
            )  # fmt: skip


async def test_a_removal_by_worker_takes_one_the_fastest_and_then_the_oldest() -> None:
    async with serving() as store:
        worker = (await store.register("d1")).worker_id
        for tier, device in ((DISK, 0), (RAM, 2), (RAM, 1), (GPU, 1), (GPU, 0)):
            await store.replica(worker, mem_info=memory_info(memory_type=tier, device_id=device))
        order = []
        for _ in range(5):
            before = {(r.memory_type, r.device_id) for r in await store.replicas()}
            assert await by_worker(store, worker, memory_type=0) == wire.STATUS_OK
            order += before - {(r.memory_type, r.device_id) for r in await store.replicas()}
        assert order == [(GPU, 1), (GPU, 0), (RAM, 2), (RAM, 1), (DISK, 0)]
        assert await by_worker(store, worker) == wire.STATUS_NOT_FOUND


async def test_the_filters_of_a_removal_by_worker_hold_together() -> None:
    async with serving() as store:
        worker = (await store.register("d1")).worker_id
        for tier, device in ((RAM, 0), (RAM, 1), (DISK, 0)):
            await store.replica(worker, mem_info=memory_info(memory_type=tier, device_id=device))
        missing = wire.STATUS_NOT_FOUND
        assert await by_worker(store, worker, memory_type=GPU) == missing
        assert await by_worker(store, worker, memory_type=DISK, device_id=1) == missing
        assert await by_worker(store, "other") == wire.STATUS_NOT_FOUND
        assert await by_worker(store, worker, "other") == wire.STATUS_NOT_FOUND
        assert await by_worker(store, worker, device_id=1) == wire.STATUS_OK
        assert await by_worker(store, worker, memory_type=DISK) == wire.STATUS_OK
        assert [(r.memory_type, r.device_id) for r in await store.replicas()] == [(RAM, 0)]


async def test_a_replica_that_is_marked_gets_no_new_transport_and_keeps_those_it_has() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        _, replica_id = await one_replica(store)
        held = await store.claim()
        for _ in range(2):  # the second time changes nothing
            answer = await mark(store, replica_id, " model ", reason="why", operation_id="op")
            assert (answer.status, answer.updated) == (wire.STATUS_OK, True)
        waiting = start(nursery, store)
        await parked(store, 1)
        assert (await store.claim()).status == wire.STATUS_TIMED_OUT
        assert (await store.complete(held.transport_id)).status == wire.STATUS_OK
        assert (await store.claim()).status == wire.STATUS_TIMED_OUT
        assert not waiting.ended.is_set()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("which", ["unknown", "of another artifact"])
async def test_marking_what_is_not_there_updates_nothing(which: str) -> None:
    async with serving() as store:
        _, replica_id = await one_replica(store)
        arguments = (UNKNOWN, "") if which == "unknown" else (replica_id, "other")
        answer = await mark(store, *arguments)
        assert (answer.status, answer.updated) == (wire.STATUS_NOT_FOUND, False)
        assert await store.counts("model") == [(1, 1)]


async def test_a_marked_replica_changes_the_checksum_of_its_worker() -> None:
    async with serving() as store:
        worker, replica_id = await one_replica(store)
        live = store.components.workers.find(worker)
        assert live is not None
        before = await store.components.context.worker_digests.checksum_of(live)
        await mark(store, replica_id)
        assert await store.components.context.worker_digests.checksum_of(live) != before


async def test_without_a_timeout_a_drain_is_a_snapshot() -> None:
    now_us = 1_000_000
    async with serving(wall=lambda: now_us) as store:
        _, replica_id = await one_replica(store)
        answer = await drain(store, replica_id)
        assert (answer.status, answer.drained, answer.current_requests) == (wire.STATUS_OK, True, 0)
        assert not answer.HasField("oldest_transport_age_ms")
        await store.claim()
        now_us += 1_500_000
        await store.claim()
        answer = await drain(store, replica_id)
        assert answer.status == wire.STATUS_TIMED_OUT
        assert (answer.drained, answer.current_requests) == (False, 2)
        assert answer.oldest_transport_age_ms == 1500
        missing = await drain(store, UNKNOWN, 1000)
        assert (missing.status, missing.drained, missing.current_requests) == (
            wire.STATUS_NOT_FOUND, False, 0,
        )  # fmt: skip


async def drained(store: Serving, nursery: trio.Nursery, replica_id: str) -> list[Any]:
    """Begin to wait for a drain; the answer comes into the list."""
    answers: list[Any] = []

    async def run() -> None:
        answers.append(await drain(store, replica_id, 3_600_000))

    count = len(store.components.drains)
    nursery.start_soon(run)
    await until(store, lambda: len(store.components.drains) > count)
    return answers


async def test_a_drain_ends_with_the_last_transport_and_blocks_no_new_one() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        _, replica_id = await one_replica(store)
        first = await store.claim()
        answers = await drained(store, nursery, replica_id)
        second = await store.claim()
        assert second.status == wire.STATUS_OK
        await store.complete(first.transport_id)
        await trio.testing.wait_all_tasks_blocked()
        assert not answers
        await store.complete(second.transport_id)
        await until(store, lambda: answers)
        assert (answers[0].status, answers[0].drained) == (wire.STATUS_OK, True)
        assert len(store.components.drains) == 0


async def test_a_drain_ends_when_its_replica_is_removed() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        worker, replica_id = await one_replica(store)
        await store.claim()
        answers = await drained(store, nursery, replica_id)
        assert await by_worker(store, worker) == wire.STATUS_OK
        await until(store, lambda: answers)
        assert (answers[0].status, answers[0].drained) == (wire.STATUS_NOT_FOUND, False)


async def test_a_hidden_replica_is_drained_when_it_goes_with_its_last_transport() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        worker, replica_id = await one_replica(store)
        held = await store.claim()
        answers = await drained(store, nursery, replica_id)
        await hide(store, worker)
        assert await store.replicas() == []
        seen = await drain(store, replica_id)
        assert (seen.status, seen.current_requests) == (wire.STATUS_TIMED_OUT, 1)
        assert not answers
        await store.complete(held.transport_id)
        await until(store, lambda: answers)
        assert (answers[0].status, answers[0].drained) == (wire.STATUS_OK, True)
        assert (await drain(store, replica_id)).status == wire.STATUS_NOT_FOUND


async def test_a_hidden_replica_is_there_for_a_drain_alone() -> None:
    async with serving() as store:
        worker, replica_id = await one_replica(store)
        held = await store.claim()
        await hide(store, worker)
        assert (await update(store, replica_id)).status == wire.STATUS_NOT_FOUND
        assert (await mark(store, replica_id)).status == wire.STATUS_NOT_FOUND
        assert await by_worker(store, worker) == wire.STATUS_NOT_FOUND
        answer = await store.runtime.UnregisterReplica(
            wire.UnregisterReplicaRequest(artifact_id="model", replica_id=replica_id)
        )
        assert answer.status == wire.STATUS_NOT_FOUND
        assert (await store.complete(held.transport_id)).status == wire.STATUS_OK
        assert await store.read("SELECT * FROM replicas") == []


async def test_a_drain_ends_at_its_timeout(mock_clock: trio.testing.MockClock) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        _, replica_id = await one_replica(store)
        await store.claim()
        answers: list[Any] = []

        async def run() -> None:
            answers.append(await drain(store, replica_id, 1500))

        nursery.start_soon(run)
        await until(store, lambda: len(store.components.drains))
        await pass_time(mock_clock, 1.4)
        assert not answers
        await pass_time(mock_clock, 0.2)
        await until(store, lambda: answers)
        assert (answers[0].status, answers[0].current_requests) == (wire.STATUS_TIMED_OUT, 1)


async def test_the_answer_of_a_drain_comes_before_the_callers_own_deadline(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving_over_tcp() as store, trio.open_nursery() as nursery:
        _, replica_id = await one_replica(store)
        await store.claim()
        client = await client_with_deadlines(store, nursery)
        answers: list[Any] = []

        async def run() -> None:
            request = wire.WaitReplicaDrainRequest(replica_id=replica_id, timeout_ms=60_000)
            answers.append(
                await client.call(
                    "runtime", "WaitReplicaDrain", request, timeout_s=2, repeatable=False
                )
            )

        nursery.start_soon(run)
        await until(store, lambda: len(store.components.drains))
        await pass_time(mock_clock, 1.96)
        await until(store, lambda: answers)
        assert answers[0].status == wire.STATUS_TIMED_OUT
        nursery.cancel_scope.cancel()


async def test_waiting_drains_occupy_no_slot() -> None:
    config = configuration(server={"max_workers": 1})
    async with serving(config) as store, trio.open_nursery() as nursery:
        _, replica_id = await one_replica(store)
        held = await store.claim()
        several = [await drained(store, nursery, replica_id) for _ in range(5)]
        await store.complete(held.transport_id)
        await until(store, lambda: all(several))


async def test_a_stopping_server_ends_its_drains_as_unavailable(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with folder_in_memory() as folder:
        async with trio.open_nursery() as nursery:
            host = Host(folder, nursery)
            await host.start()
            worker = await host.call(worker_request())
            replica = await host.call(replica_request(worker.worker_id))
            await host.call(claim_request())

            async def run() -> None:
                with pytest.raises(CallFailed) as caught:
                    await host.call(
                        wire.WaitReplicaDrainRequest(
                            replica_id=replica.replica_id, timeout_ms=3_600_000
                        )
                    )
                assert caught.value.code is StatusCode.UNAVAILABLE

            nursery.start_soon(run)
            while not host.running.components.drains:
                await trio.lowlevel.checkpoint()
            await host.stop()


async def test_a_replica_is_retired_in_the_safe_order() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        _, replica_id = await one_replica(store)
        held = await store.claim()
        await mark(store, replica_id)
        answers = await drained(store, nursery, replica_id)
        await store.complete(held.transport_id)
        await until(store, lambda: answers)
        assert answers[0].drained
        answer = await store.runtime.UnregisterReplica(
            wire.UnregisterReplicaRequest(artifact_id="model", replica_id=replica_id)
        )
        assert answer.status == wire.STATUS_OK


async def test_a_hidden_replica_is_no_match_for_what_is_registered_in_its_place() -> None:
    async with serving() as store:
        worker, replica_id = await one_replica(store)
        held = await store.claim(request_id="r")
        await hide(store, worker)
        renewed = await store.replica(worker, max_concurrency=2)
        assert renewed.replica_id != replica_id
        assert await store.counts("model") == [(1, 1)]
        assert await store.read("SELECT current_requests FROM replicas ORDER BY seq") == [
            (1,),
            (0,),
        ]
        # A repeat does not hang on keys that are gone.
        again = await store.claim(request_id="r")
        assert again.status == wire.STATUS_OK
        assert again.transport_id != held.transport_id
        assert await store.read("SELECT outcome, outcome_detail FROM transports ORDER BY 1") == [
            (0, ""),
            (4, "source_unregistered"),
        ]
        assert await store.read("SELECT current_requests FROM replicas") == [(1,)]
