"""WorkerHeartbeat: who is heard, and whether both sides agree on what the worker holds."""

import pytest
import trio
import trio.testing
from purerpc import StatusCode
from servers import memory_info, pass_time, refused, serving

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules.checksums import EMPTY, Entry, of_replicas


async def test_version_zero_is_refused_even_of_unknown_workers() -> None:
    async with serving() as store, refused(StatusCode.INVALID_ARGUMENT, "state_version"):
        await store.beat("worker_unknown", state_version=0)


async def test_version_zero_keeps_nobody_alive(mock_clock: trio.testing.MockClock) -> None:
    async with serving() as store:
        worker = await store.register()
        await pass_time(mock_clock, 29)
        async with refused(StatusCode.INVALID_ARGUMENT):
            await store.beat(worker.worker_id, state_version=0)
        await pass_time(mock_clock, 2)
        assert await store.active() == []


@pytest.mark.parametrize("worker_id", ["", "  ", "worker_unknown", "x" * 2000])
async def test_an_unknown_worker_is_told_to_register(worker_id: str) -> None:
    async with serving() as store:
        assert (await store.beat(worker_id)).status == wire.STATUS_NOT_FOUND


async def test_a_heartbeat_resurrects_nobody() -> None:
    async with serving() as store:
        worker = await store.register()
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=worker.worker_id)
        )
        assert (await store.beat(worker.worker_id)).status == wire.STATUS_NOT_FOUND
        assert await store.active() == []


async def test_an_impostor_keeps_nobody_alive(mock_clock: trio.testing.MockClock) -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await pass_time(mock_clock, 29)
        answer = await store.beat(worker.worker_id, daemon_id="d2")
        assert answer.status == wire.STATUS_NOT_FOUND
        await pass_time(mock_clock, 2)
        assert await store.active() == []
        conflicts = store.components.metrics.registry.get_sample_value(
            "tc_control_plane_conflicts_total", {"scope": "heartbeat_daemon_mismatch"}
        )
        assert conflicts == 1


@pytest.mark.parametrize("daemon_id", ["", "  ", " d1 "])
async def test_a_blank_or_the_own_daemon_id_is_no_impostor(daemon_id: str) -> None:
    async with serving() as store:
        worker = await store.register("d1")
        answer = await store.beat(f" {worker.worker_id} ", daemon_id=daemon_id)
        assert answer.status == wire.STATUS_OK


async def test_a_heartbeat_replaces_pool_and_acceptance_and_keeps_absent_flags() -> None:
    async with serving() as store:
        worker = await store.register(capability_flags=6)
        await store.beat(worker.worker_id, mem_pool_available_size=7, accepting_new_requests=False)
        (shown,) = await store.active(include_unavailable=True)
        assert (shown.mem_pool_available_size, shown.accepting_new_requests) == (7, False)
        assert shown.capability_flags == 6
        await store.beat(worker.worker_id, capability_flags=0)
        (shown,) = await store.active()
        assert shown.capability_flags == 0


async def test_a_size_beyond_any_column_is_refused() -> None:
    async with serving() as store:
        worker = await store.register()
        async with refused(StatusCode.INVALID_ARGUMENT, "mem_pool_available_size"):
            await store.beat(worker.worker_id, mem_pool_available_size=2**63)


async def test_the_answer_has_the_version_and_the_servers_time() -> None:
    now_us = 1_700_000_000_123_456
    async with serving(wall=lambda: now_us) as store:
        worker = await store.register()
        answer = await store.beat(worker.worker_id)
        assert answer.status == wire.STATUS_OK
        assert answer.expected_state_version == 1
        assert not answer.state_sync_required
        assert answer.server_timestamp_ts.seconds == 1_700_000_000


@pytest.mark.parametrize("version", [2, 99, 2**64 - 1])
async def test_another_version_asks_for_a_sync(version: int) -> None:
    async with serving() as store:
        worker = await store.register()
        assert (await store.beat(worker.worker_id, state_version=version)).state_sync_required


async def test_artifacts_that_the_store_does_not_know_of_the_worker_are_named_in_order() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        other = await store.register("d2")
        await store.replica(worker.worker_id, "held")
        await store.replica(other.worker_id, "of-another", node="d2")
        answer = await store.beat(
            worker.worker_id, registered_artifact_ids=["z", "held", "of-another", " a "]
        )
        assert list(answer.obsolete_replicas) == ["z", "of-another", "a"]
        assert answer.state_sync_required
        answer = await store.beat(worker.worker_id, registered_artifact_ids=["held"])
        assert not answer.obsolete_replicas
        assert not answer.state_sync_required


async def test_a_list_longer_than_a_turn_is_answered_in_order_each_id_once() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, "7")
        names = [str(number) for number in range(1200)]
        answer = await store.beat(worker.worker_id, registered_artifact_ids=[*names, *names])
        assert list(answer.obsolete_replicas) == [name for name in names if name != "7"]
        assert answer.state_sync_required


async def test_however_many_lists_come_at_most_one_is_remembered() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, "held")
        live = store.components.workers.find(worker.worker_id)
        assert live is not None
        for number in range(9):
            await store.beat(worker.worker_id, registered_artifact_ids=["held", str(number)])
            await store.beat(worker.worker_id, registered_artifact_ids=["held"] * (number + 1))
        assert len(live.derived) == 1


async def test_what_is_named_obsolete_follows_every_change() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        for _ in range(2):
            answer = await store.beat(worker.worker_id, registered_artifact_ids=["model"])
            assert list(answer.obsolete_replicas) == ["model"]
        replica = await store.replica(worker.worker_id, "model")
        answer = await store.beat(worker.worker_id, registered_artifact_ids=["model"])
        assert not answer.obsolete_replicas
        await store.runtime.UnregisterReplica(
            wire.UnregisterReplicaRequest(artifact_id="model", replica_id=replica.replica_id)
        )
        answer = await store.beat(worker.worker_id, registered_artifact_ids=["model"])
        assert list(answer.obsolete_replicas) == ["model"]


async def test_artifacts_that_the_list_lacks_are_no_reason_to_sync() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, "held")
        assert not (await store.beat(worker.worker_id)).state_sync_required


def entry(artifact_id: str, label: str, device: int, available: bool = True) -> Entry:
    return Entry(artifact_id, "", "node-d1", "d1.example", 50053, label, device, available)


async def test_equal_checksums_agree_and_others_ask_for_a_sync() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        assert not (await store.beat(worker.worker_id, state_checksum=EMPTY)).state_sync_required
        await store.replica(worker.worker_id, "m")
        gpu = memory_info(memory_type=common.MEMORY_TYPE_GPU, device_id=3)
        await store.replica(worker.worker_id, "m", mem_info=gpu)
        mine = of_replicas([entry("m", "RAM", 0), entry("m", "GPU", 3)])
        assert not (await store.beat(worker.worker_id, state_checksum=mine)).state_sync_required
        for other in (mine.upper(), f"0x{mine}", EMPTY, "junk"):
            assert (await store.beat(worker.worker_id, state_checksum=other)).state_sync_required
        assert not (await store.beat(worker.worker_id, state_checksum="")).state_sync_required


async def test_the_compared_checksum_follows_a_replica_that_is_unregistered() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        replica = await store.replica(worker.worker_id, "m")
        mine = of_replicas([entry("m", "RAM", 0)])
        assert not (await store.beat(worker.worker_id, state_checksum=mine)).state_sync_required
        await store.runtime.UnregisterReplica(
            wire.UnregisterReplicaRequest(artifact_id="m", replica_id=replica.replica_id)
        )
        assert (await store.beat(worker.worker_id, state_checksum=mine)).state_sync_required
        assert not (await store.beat(worker.worker_id, state_checksum=EMPTY)).state_sync_required


async def test_diagnostics_are_no_reason_to_sync() -> None:
    async with serving() as store:
        worker = await store.register()
        answer = await store.beat(
            worker.worker_id,
            last_successful_sync=-5,
            global_store_status=wire.CONNECTION_STATUS_DISCONNECTED,
        )
        assert not answer.state_sync_required


async def test_a_heartbeat_changes_no_replica_and_no_cursor() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id)
        state = "SELECT * FROM worker_cursors, replicas"
        before = await store.read(state)
        await store.beat(worker.worker_id, registered_artifact_ids=["x"], state_checksum="y")
        assert await store.read(state) == before


async def test_heartbeats_do_not_write(mock_clock: trio.testing.MockClock) -> None:
    async with serving() as store:
        workers = [(await store.register(f"d{n}")).worker_id for n in range(5)]
        groups = store.components.store.statistics().operations
        for _ in range(9):
            await pass_time(mock_clock, 1)
            for worker_id in workers:
                await store.beat(worker_id)
        assert store.components.store.statistics().operations == groups
        assert len(await store.active()) == 5


async def test_liveness_is_written_now_and_then_and_at_a_change(
    mock_clock: trio.testing.MockClock,
) -> None:
    now_us = 1_700_000_000_000_000
    async with serving(wall=lambda: now_us) as store:
        worker = await store.register(capability_flags=2)
        now_us += 5_000_000
        await store.beat(worker.worker_id, accepting_new_requests=False, capability_flags=2**63)
        await pass_time(mock_clock, 0.5)
        row = "SELECT last_heartbeat, accepting_new_requests, capability_flags FROM worker_liveness"
        while await store.read(row) != [(now_us, 0, -(2**63))]:
            await trio.lowlevel.checkpoint()
        await pass_time(mock_clock, 10)
        now_us += 10_000_000
        await store.beat(worker.worker_id, accepting_new_requests=False)
        await pass_time(mock_clock, 0.5)
        while (await store.read(row))[0][0] != now_us:
            await trio.lowlevel.checkpoint()


async def test_stored_heartbeats_never_move_back() -> None:
    now_us = 1_700_000_000_000_000
    async with serving(wall=lambda: now_us) as store:
        worker = await store.register()
        now_us -= 3600 * 1_000_000
        await store.beat(worker.worker_id)
        (shown,) = await store.active()
        assert shown.last_heartbeat_ts.seconds == 1_700_000_000
