"""UnregisterWorker, once or by its request id; ListActiveWorkers."""

import pytest
import trio
import trio.testing
from purerpc import StatusCode
from servers import pass_time, refused, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire


def order(worker_id: str, graceful: bool = True, request_id: str | None = None) -> object:
    return wire.UnregisterWorkerRequest(
        worker_id=worker_id, is_graceful_shutdown=graceful, client_request_id=request_id
    )


async def test_unregistering_ends_a_worker_and_hides_its_replicas() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id)
        answer = await store.runtime.UnregisterWorker(order(f" {worker.worker_id} "))
        assert answer.status == wire.STATUS_OK
        assert await store.active(include_unavailable=True) == []
        assert await store.counts("model") == [(1, 0)]
        again = await store.runtime.UnregisterWorker(order(worker.worker_id))
        assert again.status == wire.STATUS_OK


@pytest.mark.parametrize("worker_id", ["", "worker_unknown"])
async def test_an_unknown_worker_is_not_found(worker_id: str) -> None:
    async with serving() as store:
        answer = await store.runtime.UnregisterWorker(order(worker_id))
        assert answer.status == wire.STATUS_NOT_FOUND


async def test_a_graceful_end_lets_transports_run_and_another_ends_them() -> None:
    for graceful, outcome in ((True, 0), (False, 3)):
        async with serving() as store:
            worker = await store.register("d1")
            await store.replica(worker.worker_id)
            granted = await store.claim()
            await store.runtime.UnregisterWorker(order(worker.worker_id, graceful))
            assert await store.read("SELECT outcome FROM transports") == [(outcome,)]
            assert (await store.complete(granted.transport_id)).status == wire.STATUS_OK


async def test_a_repeat_gets_the_recorded_answer() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        first = await store.runtime.UnregisterWorker(order(worker.worker_id, request_id=" r1 "))
        again = await store.runtime.UnregisterWorker(order(worker.worker_id, request_id=" r1 "))
        assert (first.status, again.status) == (wire.STATUS_OK, wire.STATUS_OK)
        hits = store.components.metrics.registry.get_sample_value(
            "tc_control_plane_idempotency_replay_total",
            {"operation_kind": "UnregisterWorker", "result": "hit"},
        )
        assert hits == 1


async def test_what_ends_nothing_is_not_recorded() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.runtime.UnregisterWorker(order(worker.worker_id))
        for worker_id, status in (
            ("unknown", wire.STATUS_NOT_FOUND),
            (worker.worker_id, wire.STATUS_OK),
        ):
            for _ in range(2):
                answer = await store.runtime.UnregisterWorker(order(worker_id, request_id="r"))
                assert answer.status == status
        assert await store.read("SELECT count(*) FROM recorded_replies") == [(0,)]


async def test_a_request_id_belongs_to_one_payload_and_one_kind_of_call() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.runtime.UnregisterWorker(order(worker.worker_id, request_id="r"))
        async with refused(StatusCode.FAILED_PRECONDITION, "client_request_id"):
            await store.runtime.UnregisterWorker(order("another", request_id="r"))
        async with refused(StatusCode.FAILED_PRECONDITION, "client_request_id"):
            await store.replica(worker.worker_id, client_request_id="r")
        assert await store.counts("model") == [(0, 0)]


@pytest.mark.parametrize("request_id", [None, "", "  "])
async def test_without_a_request_id_every_call_is_a_new_order(request_id: str | None) -> None:
    async with serving() as store:
        worker = await store.register("d1")
        for _ in range(2):
            await store.runtime.UnregisterWorker(order(worker.worker_id, request_id=request_id))
            assert await store.active() == []
            await store.register("d1")
        assert await store.read("SELECT count(*) FROM recorded_replies") == [(0,)]


async def test_concurrent_repeats_have_one_effect() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        answers = []

        async def unregister() -> None:
            answers.append(
                await store.runtime.UnregisterWorker(order(worker.worker_id, request_id="r"))
            )

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(unregister)
        assert {answer.status for answer in answers} == {wire.STATUS_OK}
        ended = store.components.metrics.registry.get_sample_value(
            "tc_worker_unregister_total", {"graceful": "true", "result": "ok"}
        )
        assert ended == 1


# ListActiveWorkers


async def test_the_list_shows_what_was_registered() -> None:
    now_us = 1_700_000_000_500_000
    async with serving(wall=lambda: now_us) as store:
        worker = await store.register("d1", capability_flags=32)
        (shown,) = await store.active()
        expected = wire.ListActiveWorkersResponse.WorkerInfo(
            worker_id=worker.worker_id,
            node_id="node-d1",
            node_address="d1.example",
            grpc_port=50052,
            p2p_port=50053,
            mem_pool_total_size=1000,
            mem_pool_available_size=400,
            accepting_new_requests=True,
            state_version=1,
            status=wire.CONNECTION_STATUS_CONNECTED,
            daemon_id="d1",
            capability_flags=32,
        )
        expected.last_heartbeat_ts.FromMicroseconds(now_us)
        assert shown == expected


async def test_who_does_not_accept_is_listed_on_request_only() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.beat(worker.worker_id, accepting_new_requests=False)
        assert await store.active() == []
        (shown,) = await store.active(include_unavailable=True)
        assert shown.status == wire.CONNECTION_STATUS_RECONNECTING
        await store.beat(worker.worker_id, accepting_new_requests=True)
        assert len(await store.active()) == 1


@pytest.mark.parametrize(
    ("required", "found"), [(0, "abc"), (0b10, "ab"), (0b100, "bc"), (0b110, "b"), (0b1000, "")]
)
async def test_all_required_bits_must_be_set(required: int, found: str) -> None:
    async with serving() as store:
        for daemon, flags in {"a": 0b10, "b": 0b110, "c": 0b100}.items():
            await store.register(daemon, capability_flags=flags)
        shown = await store.active(required_capability_flags=required)
        assert "".join(sorted(worker.daemon_id for worker in shown)) == found


async def test_the_last_heard_comes_first_and_ties_go_by_id(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        ids = [(await store.register(f"d{number}")).worker_id for number in range(4)]
        assert [worker.worker_id for worker in await store.active()] == sorted(ids)
        await pass_time(mock_clock, 1)
        await store.beat(ids[2])
        await pass_time(mock_clock, 1)
        await store.beat(ids[1])
        shown = [worker.worker_id for worker in await store.active()]
        assert shown == [ids[1], ids[2], *sorted([ids[0], ids[3]])]
