"""RegisterWorker: checks, outcomes, recovery, eviction."""

import logging
import re

import pytest
import trio
from log_lines import told
from purerpc import StatusCode
from servers import configuration, pass_time, refused, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire


async def test_a_new_worker_is_generation_one_and_need_not_reconcile() -> None:
    async with serving() as store:
        answer = await store.register("d1")
        assert answer.status == wire.STATUS_OK
        assert re.fullmatch(r"worker_node-d1_[0-9a-f]{8}", answer.worker_id)
        assert answer.heartbeat_interval_ms == 5000
        assert not answer.state_sync_required
        assert (answer.expected_state_version, answer.reconcile_generation) == (1, 1)
        (worker,) = await store.active()
        assert worker.accepting_new_requests
        assert worker.status == wire.CONNECTION_STATUS_CONNECTED


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"daemon_id": "  "}, "daemon_id"),
        ({"daemon_id": "x\0y"}, "daemon_id"),
        ({"daemon_id": "x" * 1025}, "daemon_id"),
        ({"node_id": ""}, "node_id"),
        ({"node_id": "n" * 1000}, "node_id"),
        ({"node_address": " "}, "node_address"),
        ({"node_address": "127.0.0.1"}, "node_address"),
        ({"node_address": "[::1]"}, "node_address"),
        ({"node_address": "::ffff:127.0.0.1"}, "node_address"),
        ({"node_address": " LocalHost "}, "node_address"),
        ({"node_address": "*"}, "node_address"),
        ({"grpc_port": 0}, "grpc_port"),
        ({"grpc_port": 65536}, "grpc_port"),
        ({"p2p_port": 0}, "p2p_port"),
        ({"p2p_port": 70000}, "p2p_port"),
        ({"mem_pool_total_size": 2**63}, "mem_pool_total_size"),
        ({"mem_pool_available_size": 2**64 - 1}, "mem_pool_available_size"),
    ],
)
@pytest.mark.parametrize("recovery", [False, True])
async def test_a_bad_field_is_named_and_changes_nothing(
    fields: dict[str, object], fragment: str, recovery: bool
) -> None:
    async with serving() as store:
        async with refused(StatusCode.INVALID_ARGUMENT, fragment):
            await store.register("d1", is_recovery_registration=recovery, **fields)
        assert await store.read("SELECT * FROM workers") == []


async def test_ids_and_addresses_are_stored_trimmed() -> None:
    async with serving() as store:
        await store.register(" d1\t", node_id=" n ", node_address=" host.example ")
        (worker,) = await store.active()
        assert (worker.daemon_id, worker.node_id, worker.node_address) == (
            "d1",
            "n",
            "host.example",
        )
        again = await store.register("d1", node_id="n", node_address="host.example")
        assert again.reconcile_generation == 2


async def test_all_64_capability_bits_survive() -> None:
    async with serving() as store:
        await store.register("d1", capability_flags=2**64 - 1)
        (worker,) = await store.active()
        assert worker.capability_flags == 2**64 - 1


async def test_more_available_than_there_is_is_shown_clamped() -> None:
    async with serving() as store:
        await store.register("d1", mem_pool_total_size=10, mem_pool_available_size=99)
        (worker,) = await store.active()
        assert (worker.mem_pool_total_size, worker.mem_pool_available_size) == (10, 10)


async def test_registering_again_keeps_the_id_and_starts_a_generation() -> None:
    async with serving() as store:
        first = await store.register("d1")
        await store.beat(first.worker_id, accepting_new_requests=False)
        second = await store.register("d1", grpc_port=1234, mem_pool_total_size=5)
        assert second.worker_id == first.worker_id
        assert second.reconcile_generation == 2
        assert second.expected_state_version == 1
        assert not second.state_sync_required
        (worker,) = await store.active()
        assert (worker.grpc_port, worker.mem_pool_total_size) == (1234, 5)
        assert worker.accepting_new_requests


async def test_a_daemon_that_holds_replicas_has_to_reconcile_after_a_plain_registration() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id)
        again = await store.register("d1")
        assert again.state_sync_required
        assert await store.counts("model") == [(1, 1)]
        assert (await store.beat(worker.worker_id)).state_sync_required


async def test_replicas_that_a_new_process_does_not_confirm_become_unavailable(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, "lost")
        await store.replica(worker.worker_id, "kept")
        await store.register("d1")
        await store.replica(worker.worker_id, "kept")
        for _ in range(2):
            await pass_time(mock_clock, 15)
            await store.beat(worker.worker_id)
        await pass_time(mock_clock, 0.5)
        while await store.counts("lost") != [(1, 0)]:
            await trio.lowlevel.checkpoint()
        assert await store.counts("lost", "kept") == [(1, 0), (1, 1)]


@pytest.mark.parametrize("recovery", [False, True])
async def test_an_endpoint_of_another_nodes_live_worker_is_taken_over(recovery: bool) -> None:
    async with serving() as store:
        owner = await store.register("d1")
        new = await store.register(
            "d2", node_address="d1.example", is_recovery_registration=recovery
        )
        assert new.status == wire.STATUS_OK
        assert [w.daemon_id for w in await store.active()] == ["d2"]
        assert (await store.beat(owner.worker_id)).status == wire.STATUS_NOT_FOUND


async def test_a_daemon_whose_host_name_changed_comes_back() -> None:
    async with serving() as store:
        first = await store.register("d1")
        again = await store.register("d1", node_id="renamed")
        assert (again.status, again.worker_id) == (wire.STATUS_OK, first.worker_id)


async def test_an_endpoint_is_taken_over_within_a_node() -> None:
    async with serving() as store:
        old = await store.register("d1")
        await store.replica(old.worker_id, max_concurrency=2)
        granted = await store.claim()
        new = await store.register("d2", node_id="node-d1", node_address="d1.example")
        assert new.status == wire.STATUS_OK
        assert new.worker_id != old.worker_id
        assert (await store.beat(old.worker_id)).status == wire.STATUS_NOT_FOUND
        assert await store.counts("model") == [(1, 0)]
        rows = await store.read("SELECT outcome, outcome_detail FROM transports")
        assert rows == [(3, f"source_worker_lost {old.worker_id}")]
        assert (await store.complete(granted.transport_id)).status == wire.STATUS_OK


async def test_an_evicted_daemon_claims_its_replicas_back_elsewhere() -> None:
    async with serving() as store:
        old = await store.register("d1")
        await store.replica(old.worker_id)
        await store.register("d2", node_id="node-d1", node_address="d1.example")
        back = await store.register("d1", node_address="elsewhere.example")
        assert back.worker_id == old.worker_id
        assert back.reconcile_generation == 2
        assert back.expected_state_version == 2
        assert back.state_sync_required
        assert await store.counts("model") == [(1, 0)]


async def test_an_inactive_owner_loses_its_endpoint_to_anybody() -> None:
    async with serving() as store:
        old = await store.register("d1")
        await store.runtime.UnregisterWorker(wire.UnregisterWorkerRequest(worker_id=old.worker_id))
        new = await store.register("d2", node_address="d1.example")
        assert new.status == wire.STATUS_OK


async def test_moving_onto_another_workers_endpoint_evicts_it() -> None:
    async with serving() as store:
        first = await store.register("d1")
        second = await store.register("d2", node_id="node-d1")
        moved = await store.register("d2", node_id="node-d1", node_address="d1.example")
        assert (moved.worker_id, moved.reconcile_generation) == (second.worker_id, 2)
        assert (await store.beat(first.worker_id)).status == wire.STATUS_NOT_FOUND


async def test_a_live_worker_that_moves_is_told_with_both_addresses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as store:
        moved = store.components.metrics.workers.moved
        worker = await store.register("d1")
        await store.register("d1")
        assert moved._value.get() == 0
        for number in range(100):
            await store.register("d1", node_address=f"d1-{number}.example")
        assert moved._value.get() == 100
        (line,) = [x for x in told(caplog, logging.WARNING) if "address of a live worker" in x]
        assert "daemon_id=d1" in line
        assert "old_address=d1.example:50052" in line
        assert "address=d1-0.example:50052" in line
        assert "peer=in-process" in line
        # One that has unregistered comes back wherever it likes.
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=worker.worker_id)
        )
        await store.register("d1", grpc_port=9)
        assert moved._value.get() == 100


async def test_a_returning_worker_goes_on_counting_and_its_replicas_wait() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id)
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=worker.worker_id)
        )
        back = await store.register("d1")
        assert back.worker_id == worker.worker_id
        assert (back.reconcile_generation, back.expected_state_version) == (2, 2)
        assert back.state_sync_required
        assert await store.counts("model") == [(1, 0)]
        await store.replica(worker.worker_id)
        assert await store.counts("model") == [(1, 1)]


async def test_a_replica_registered_for_a_worker_that_is_away_stays_hidden_when_it_returns() -> (
    None
):
    async with serving() as store:
        worker = await store.register("d1")
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=worker.worker_id)
        )
        await store.replica(worker.worker_id)
        await store.register("d1")
        assert (await store.claim()).status == wire.STATUS_TIMED_OUT
        assert await store.counts("model") == [(1, 0)]


# Recovery


async def test_a_recovery_always_asks_for_a_sync_and_keeps_replicas_available() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id)
        back = await store.register(
            "d1", is_recovery_registration=True, previous_worker_id=worker.worker_id
        )
        assert (back.status, back.worker_id) == (wire.STATUS_OK, worker.worker_id)
        assert back.state_sync_required
        assert back.reconcile_generation == 2
        assert await store.counts("model") == [(1, 1)]


async def test_a_recovery_may_be_the_first_thing_the_store_hears_of_a_daemon() -> None:
    async with serving() as store:
        back = await store.register(
            "d1", is_recovery_registration=True, previous_worker_id="worker_unknown_00000000"
        )
        assert (back.status, back.reconcile_generation) == (wire.STATUS_OK, 1)
        assert back.state_sync_required


async def test_a_previous_worker_of_another_daemon_is_refused() -> None:
    async with serving() as store:
        foreign = await store.register("d1")
        answer = await store.register(
            "d2", is_recovery_registration=True, previous_worker_id=foreign.worker_id
        )
        assert answer.status == wire.STATUS_ERROR
        assert [w.daemon_id for w in await store.active()] == ["d1"]


async def test_a_recovery_adopts_replicas_that_were_left_under_the_lost_id() -> None:
    async with serving() as store:
        await store.replica("worker_lost_00000000")
        back = await store.register(
            "d1", is_recovery_registration=True, previous_worker_id="worker_lost_00000000"
        )
        owners = await store.read(
            "SELECT worker_id FROM replicas JOIN worker_ids USING (worker_key)"
        )
        assert owners == [(back.worker_id,)]
        assert await store.counts("model") == [(1, 0)]


async def test_the_interval_that_is_suggested_comes_from_the_configuration() -> None:
    config = configuration(worker_policy={"default_heartbeat_interval": "1.5s"})
    async with serving(config) as store:
        assert (await store.register()).heartbeat_interval_ms == 1500


async def test_concurrent_registrations_of_one_daemon_leave_one_row() -> None:
    async with serving() as store:
        answers = []

        async def register() -> None:
            answers.append(await store.register("d1"))

        async with trio.open_nursery() as nursery:
            for _ in range(32):
                nursery.start_soon(register)
        assert len({answer.worker_id for answer in answers}) == 1
        assert sorted(answer.reconcile_generation for answer in answers) == list(range(1, 33))
        assert await store.read("SELECT count(*) FROM workers") == [(1,)]


async def test_of_concurrent_claims_of_one_endpoint_the_last_one_stays() -> None:
    async with serving() as store:
        answers = []

        async def register(number: int) -> None:
            answers.append(await store.register(f"d{number}", node_address="shared.example"))

        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(register, number)
        assert all(answer.status == wire.STATUS_OK for answer in answers)
        assert len({answer.worker_id for answer in answers}) == 16
        assert len(await store.active()) == 1
