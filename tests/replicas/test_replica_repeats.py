"""RegisterReplica with a client_request_id: one effect and one answer for all repeats."""

from pathlib import Path

import pytest
import trio
import trio.testing
from purerpc import StatusCode
from servers import configuration, memory_info, pass_time, refused, replica_request, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire


async def test_a_repeat_gets_the_recorded_answer_and_does_nothing_although_state_moved_on() -> None:
    async with serving() as store:
        request = replica_request("w", client_request_id="once")
        first = await store.runtime.RegisterReplica(request)
        mark = wire.MarkReplicaUnavailableRequest(replica_id=first.replica_id)
        await store.runtime.MarkReplicaUnavailable(mark)
        assert await store.runtime.RegisterReplica(request) == first
        assert await store.counts("model") == [(1, 0)]
        hits = store.components.metrics.registry.get_sample_value(
            "tc_control_plane_idempotency_replay_total",
            {"operation_kind": "RegisterReplica", "result": "hit"},
        )
        assert hits == 1


@pytest.mark.parametrize("blank", ["", " \t"])
async def test_a_blank_request_id_is_none_at_all(blank: str) -> None:
    async with serving() as store:
        for limit in (1, 2):
            await store.replica("w", client_request_id=blank, max_concurrency=limit)
        assert await store.read("SELECT * FROM recorded_replies") == []
        assert await store.read("SELECT max_concurrency FROM replicas") == [(2,)]


async def test_the_same_id_with_another_payload_is_refused_and_changes_nothing() -> None:
    async with serving() as store:
        await store.replica("w", client_request_id="once")
        async with refused(StatusCode.FAILED_PRECONDITION, "client_request_id 'once'"):
            await store.replica("w", client_request_id="once", max_concurrency=2)
        assert await store.read("SELECT max_concurrency FROM replicas") == [(1,)]


async def test_the_same_id_for_another_kind_of_call_is_refused() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, client_request_id="once")
        async with refused(StatusCode.FAILED_PRECONDITION, "client_request_id 'once'"):
            await store.runtime.UnregisterWorker(
                wire.UnregisterWorkerRequest(worker_id=worker.worker_id, client_request_id="once")
            )
        assert len(await store.active()) == 1


async def test_a_refused_request_is_not_recorded_and_leaves_its_id_free() -> None:
    async with serving() as store:
        request = replica_request("w", client_request_id="once", max_concurrency=0)
        for _ in range(2):
            async with refused(StatusCode.INVALID_ARGUMENT, "max_concurrency"):
                await store.runtime.RegisterReplica(request)
        assert await store.read("SELECT count(*) FROM recorded_replies") == [(0,)]
        request.max_concurrency = 1
        assert (await store.runtime.RegisterReplica(request)).status == wire.STATUS_OK


async def test_a_refusal_that_an_earlier_version_recorded_counts_for_nothing() -> None:
    async with serving() as store:
        await store.components.store.write(
            lambda tx: tx.run(
                "INSERT INTO recorded_replies VALUES"
                " ('once', 'RegisterReplica', x'00', 'InvalidArgument', x'', 1, 0)"
            )
        )
        request = replica_request("w", client_request_id="once")
        first = await store.runtime.RegisterReplica(request)
        assert await store.runtime.RegisterReplica(request) == first
        assert await store.read("SELECT refusal FROM recorded_replies") == [("",)]


async def test_a_refusal_made_nothing_and_so_a_repeat_is_looked_at_anew() -> None:
    async with serving() as store:
        await store.replica("w", tensor_index_data=b"{}")
        request = replica_request("w", tensor_index_data=b"[]", client_request_id="once")
        for _ in range(2):
            async with refused(StatusCode.FAILED_PRECONDITION, "index_multihash"):
                await store.runtime.RegisterReplica(request)
        assert await store.read("SELECT count(*) FROM tensor_indexes") == [(1,)]
        await store.components.store.write(
            lambda tx: tx.run("UPDATE artifacts SET index_multihash = ''")
        )
        assert (await store.runtime.RegisterReplica(request)).status == wire.STATUS_OK


async def test_a_request_without_an_artifact_is_not_held_against_its_id() -> None:
    async with serving() as store:
        async with refused(StatusCode.INVALID_ARGUMENT, "descriptor.artifact_id"):
            request = replica_request("w", client_request_id="once")
            request.descriptor.artifact_id = "other"
            await store.runtime.RegisterReplica(request)
        assert (await store.replica("w", client_request_id="once")).status == wire.STATUS_OK


async def test_concurrent_duplicates_share_one_effect_and_one_answer() -> None:
    async with serving() as store:
        request = replica_request("w", client_request_id="once")
        ids = []

        async def register() -> None:
            ids.append((await store.runtime.RegisterReplica(request)).replica_id)

        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(register)
        assert len(ids) == 16
        assert len(set(ids)) == 1
        assert await store.read("SELECT count(*) FROM recorded_replies") == [(1,)]


async def test_recorded_answers_outlive_the_server(tmp_path: Path) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    request = replica_request("w", client_request_id="once")
    async with serving(config) as store:
        first = await store.runtime.RegisterReplica(request)
    async with serving(config) as store:
        assert await store.runtime.RegisterReplica(request) == first
        await store.replica("w", mem_info=memory_info(device_id=1))
        assert await store.counts("model") == [(2, 1)]


async def test_answers_are_forgotten_after_a_day(mock_clock: trio.testing.MockClock) -> None:
    now_us = 1_700_000_000_000_000
    config = configuration(worker_policy={"cleanup_interval": "1s"})
    async with serving(config, wall=lambda: now_us) as store:
        await store.replica("w", client_request_id="once")
        now_us += 86_400_000_000
        await pass_time(mock_clock, 1.25)
        assert await store.read("SELECT count(*) FROM recorded_replies") == [(1,)]
        now_us += 1
        while await store.read("SELECT count(*) FROM recorded_replies") != [(0,)]:
            await pass_time(mock_clock, 0.25)
        again = await store.replica("w", client_request_id="once", max_concurrency=2)
        assert again.status == wire.STATUS_OK
