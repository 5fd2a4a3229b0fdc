"""RegisterReplica: checks of fields, and what registering again changes."""

import uuid
from typing import Any

import pytest
import trio
from purerpc import StatusCode
from servers import KEY, configuration, memory_info, pass_time, refused, replica_request, serving

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

CANONICAL = common.BYTE_SPACE_KIND_CANONICAL
VIEW = common.BYTE_SPACE_KIND_VIEW


def space(kind: int, view_id: str = "") -> Any:
    return common.ByteSpaceRef(kind=kind, id=view_id)


# Checks


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"artifact_id": ""}, "artifact_id is required"),
        ({"artifact_id": " \t"}, "artifact_id is required"),
        ({"artifact_id": "a\nb"}, "artifact_id"),
        ({"artifact_id": "a" * 1025}, "artifact_id"),
        ({"worker_id": " "}, "worker_id is required"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"schema_version": "v2"}, "schema_version"),
        ({"schema_version": " V3 "}, "schema_version"),
        ({"client_request_id": "a\0b"}, "client_request_id"),
    ],
)
async def test_a_bad_field_of_the_request_is_named_and_changes_nothing(
    fields: dict[str, Any], fragment: str
) -> None:
    async with serving() as store:
        request = replica_request("w")
        for name, value in fields.items():
            setattr(request, name, value)
        async with refused(StatusCode.INVALID_ARGUMENT, fragment):
            await store.runtime.RegisterReplica(request)
        assert await store.read("SELECT * FROM replicas") == []
        assert await store.read("SELECT * FROM artifacts") == []


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"byte_space": space(VIEW)}, "mem_info.byte_space: VIEW requires id"),
        ({"byte_space": space(VIEW, " ")}, "mem_info.byte_space: VIEW requires id"),
        ({"byte_space": space(VIEW, "v\0")}, "mem_info.byte_space.id"),
        ({"byte_space": space(CANONICAL, "v")}, "mem_info.byte_space"),
        ({"byte_space": space(9)}, "mem_info.byte_space kind 9"),
        ({"node_id": " "}, "mem_info.node_id is required"),
        ({"node_address": ""}, "mem_info.node_address is required"),
        ({"node_address": " LocalHost "}, "mem_info.node_address"),
        ({"node_address": "ip6-localhost"}, "mem_info.node_address"),
        ({"node_address": "127.9.9.9"}, "mem_info.node_address"),
        ({"node_address": "::1"}, "mem_info.node_address"),
        ({"node_address": "[::1]"}, "mem_info.node_address"),
        ({"node_address": "0.0.0.0"}, "mem_info.node_address"),
        ({"node_address": "::"}, "mem_info.node_address"),
        ({"node_address": "[::]"}, "mem_info.node_address"),
        ({"node_address": "*"}, "mem_info.node_address"),
        ({"node_address": "::ffff:127.0.0.1"}, "mem_info.node_address"),
        ({"node_port": 0}, "mem_info.node_port is 0, expected 1..65535"),
        ({"node_port": 65536}, "mem_info.node_port"),
        ({"memory_size": 0}, "mem_info.memory_size"),
        ({"memory_size": 2**63}, "mem_info.memory_size"),
        ({"memory_type": 17}, "mem_info.memory_type is 17"),
        ({"buffer_sizes": []}, "remote_memory_keys"),
        ({"remote_memory_keys": []}, "buffer_sizes without remote_memory_keys"),
        ({"remote_memory_keys": [KEY, KEY]}, "2 remote_memory_keys but 1 buffer_sizes"),
        ({"buffer_sizes": [99]}, "expected memory_size 100"),
        ({"remote_memory_keys": [KEY, KEY], "buffer_sizes": [100, 0]}, "buffer_sizes entry of 0"),
        ({"buffer_sizes": [2**64 - 1]}, "buffer_sizes"),
        (
            {"transport": common.ReplicaTransportMetadata(export_generation=2**63)},
            "export_generation",
        ),
        ({"tensor_index_key": "k\r1"}, "mem_info.tensor_index_key"),
        ({"source_process_id": "p" * 1025}, "mem_info.source_process_id"),
        ({"expires_at": {"seconds": 2**62}}, "mem_info.expires_at"),
        ({"expires_at": {"seconds": -1}}, "mem_info.expires_at"),
        ({"expires_at": {"seconds": 5, "nanos": 10**9}}, "mem_info.expires_at"),
    ],
)
async def test_a_bad_field_of_the_memory_is_named_and_changes_nothing(
    fields: dict[str, Any], fragment: str
) -> None:
    async with serving() as store:
        async with refused(StatusCode.INVALID_ARGUMENT, fragment):
            await store.replica("w", mem_info=memory_info(**fields))
        assert await store.read("SELECT * FROM replicas") == []
        assert await store.read("SELECT * FROM artifacts") == []


@pytest.mark.parametrize("name", ["msa1:session", "cgid:byte_artifact~ns~e~m~l~k"])
@pytest.mark.parametrize("where", ["artifact_id", "descriptor"])
async def test_ids_that_are_never_stored_centrally_are_refused(name: str, where: str) -> None:
    async with serving() as store:
        request = replica_request("w", name if where == "artifact_id" else "")
        if where == "descriptor":
            request.descriptor.artifact_id = name
        expected = "daemon-session-local" if name.startswith("msa1:") else "byte artifact"
        async with refused(StatusCode.FAILED_PRECONDITION, expected):
            await store.runtime.RegisterReplica(request)


async def test_the_descriptors_id_names_the_artifact_and_must_not_contradict_the_plain_one() -> (
    None
):
    async with serving() as store:
        request = replica_request("w", "")
        request.descriptor.artifact_id = " described "
        assert (await store.runtime.RegisterReplica(request)).artifact_id == "described"
        request.artifact_id = "described"
        assert (await store.runtime.RegisterReplica(request)).artifact_id == "described"
        request.artifact_id = "other"
        async with refused(StatusCode.INVALID_ARGUMENT, "descriptor.artifact_id"):
            await store.runtime.RegisterReplica(request)


async def test_the_schema_version_is_checked_before_the_request_id_is_taken() -> None:
    async with serving() as store:
        request = replica_request("w", client_request_id="once", schema_version="v9")
        async with refused(StatusCode.INVALID_ARGUMENT, "schema_version"):
            await store.runtime.RegisterReplica(request)
        request.schema_version = " v3 "
        assert (await store.runtime.RegisterReplica(request)).status == wire.STATUS_OK


@pytest.mark.parametrize(
    "address", ["10.0.0.7", "fd00::7", "[fd00::7]", "localhost.example", "::ffff:10.0.0.7"]
)
async def test_any_other_address_is_taken_as_it_is(address: str) -> None:
    async with serving() as store:
        await store.replica("w", mem_info=memory_info(node_address=f" {address} "))
        (shown,) = await store.replicas()
        assert shown.node_address == address


async def test_an_unspecified_memory_type_means_disk() -> None:
    async with serving() as store:
        await store.replica("w", mem_info=memory_info(memory_type=0))
        (shown,) = await store.replicas()
        assert shown.memory_type == common.MEMORY_TYPE_DISK


async def test_ids_are_stripped_and_otherwise_kept_byte_for_byte() -> None:
    async with serving() as store:
        answer = await store.replica(
            " w ",
            "\u00a0modèle/A ",
            mem_info=memory_info(
                node_id=" n ", source_process_id=" p ", byte_space=space(VIEW, " v ")
            ),
        )
        assert answer.artifact_id == "modèle/A"
        assert str(uuid.UUID(answer.replica_id)) == answer.replica_id
        (shown,) = await store.replicas(artifact_id="modèle/A ")
        assert (shown.node_id, shown.source_process_id) == ("n", "p")
        assert shown.byte_space == space(VIEW, "v")
        assert await store.replicas(artifact_id="MODÈLE/A") == []


@pytest.mark.parametrize("given", [None, space(0), space(CANONICAL)])
async def test_without_a_view_the_bytes_are_the_canonical_ones(given: Any) -> None:
    async with serving() as store:
        await store.replica("w", mem_info=memory_info(byte_space=given))
        (shown,) = await store.replicas()
        assert shown.byte_space == space(CANONICAL)


# Upsert


async def test_everything_a_replica_says_of_itself_comes_back() -> None:
    now_us = 1_700_000_000_500_000
    async with serving(wall=lambda: now_us) as store:
        described = memory_info(
            memory_type=common.MEMORY_TYPE_GPU,
            device_id=3,
            is_memory_replica=True,
            tensor_index_key="index",
            source_process_id="process",
            verification_json=' {"a": "ü"} ',
            expires_at={"seconds": 1_800_000_000, "nanos": 250_000_999},
        )
        await store.replica("w", mem_info=described)
        (shown,) = await store.replicas()
        described.byte_space.kind = CANONICAL
        described.expires_at.nanos = 250_000_000
        described.creation_ts.FromMicroseconds(now_us)
        described.transport.CopyFrom(
            common.ReplicaTransportMetadata(
                export_state=common.ReplicaTransportMetadata.EXPORT_STATE_EXPORTABLE,
                remote_memory_keys=[KEY],
                buffer_sizes=[100],
                verification_json=' {"a": "ü"} ',
            )
        )
        assert shown == described


@pytest.mark.parametrize(
    "other",
    [
        {"artifact_id": "other"},
        {"byte_space": space(VIEW, "v")},
        {"node_id": "other"},
        {"node_address": "other.example"},
        {"node_port": 7},
        {"memory_type": common.MEMORY_TYPE_GPU},
        {"device_id": 1},
    ],
)
async def test_each_part_of_the_identity_makes_another_replica(other: dict[str, Any]) -> None:
    async with serving() as store:
        first = await store.replica("w")
        artifact_id = other.pop("artifact_id", "model")
        second = await store.replica("w", artifact_id, mem_info=memory_info(**other))
        assert first.replica_id != second.replica_id
        assert len(await store.replicas()) == 2


async def test_registering_again_keeps_the_identity_and_replaces_the_rest() -> None:
    now_us = 1_000_000
    async with serving(wall=lambda: now_us) as store:
        worker = await store.register("d1")
        first = await store.replica("w0", max_concurrency=2)
        before = await store.read("SELECT seq, created_at FROM replicas")
        now_us += 5
        second = await store.replica(
            worker.worker_id,
            max_concurrency=9,
            mem_info=memory_info(
                memory_size=7,
                buffer_sizes=[7],
                tensor_index_key="k",
                is_memory_replica=True,
                source_process_id="p",
                expires_at={"seconds": 99},
            ),
        )
        assert second.replica_id == first.replica_id
        assert await store.read("SELECT seq, created_at FROM replicas") == before
        row = await store.read(
            "SELECT worker_id, max_concurrency, memory_size, transfer_size, tensor_index_key,"
            " is_memory_replica, source_process_id, expires_at, updated_at, is_available"
            " FROM replicas JOIN worker_ids USING (worker_key)"
        )
        assert row == [(worker.worker_id, 9, 7, 7, "k", 1, "p", 99_000_000, 1_000_005, 1)]
        await store.replica(worker.worker_id)
        (shown,) = await store.replicas()
        assert not shown.HasField("expires_at")
        assert shown.memory_size == 100


async def test_registering_again_touches_neither_load_nor_the_time_of_the_last_grant() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, max_concurrency=3)
        await store.claim()
        load = "SELECT current_requests, last_assigned_at FROM replicas"
        before = await store.read(load)
        await store.replica(worker.worker_id, max_concurrency=4)
        assert await store.read(load) == before
        assert before[0][0] == 1


async def test_registering_again_revives_an_unavailable_replica() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id)
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=worker.worker_id)
        )
        await store.register("d1")
        assert (await store.claim()).status == wire.STATUS_TIMED_OUT
        await store.replica(worker.worker_id)
        assert await store.counts("model") == [(1, 1)]
        assert (await store.claim()).status == wire.STATUS_OK


async def test_a_replica_of_an_unknown_worker_is_stored_and_not_routed_to() -> None:
    async with serving() as store:
        await store.replica("worker_unknown_00000000")
        assert await store.counts("model") == [(1, 1)]
        assert (await store.claim()).status == wire.STATUS_TIMED_OUT


async def test_concurrent_registrations_of_one_identity_are_one_row_and_one_id() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        ids = []

        async def register(limit: int) -> None:
            answer = await store.replica(worker.worker_id, max_concurrency=limit)
            ids.append(answer.replica_id)

        async with trio.open_nursery() as nursery:
            for limit in range(1, 33):
                nursery.start_soon(register, limit)
        assert len(ids) == 32
        assert len(set(ids)) == 1
        assert await store.counts("model") == [(1, 1)]
        ((limit,),) = await store.read("SELECT max_concurrency FROM replicas")
        assert limit in range(1, 33)


async def test_lowering_the_limit_below_the_load_grants_nothing_until_enough_has_ended() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, max_concurrency=3)
        granted = [await store.claim() for _ in range(3)]
        await store.replica(worker.worker_id, max_concurrency=1)
        shown = "SELECT max(max_concurrency, current_requests), current_requests FROM replicas"
        limits = [await store.read(shown)]
        for each in granted:
            assert (await store.claim()).status == wire.STATUS_TIMED_OUT
            await store.complete(each.transport_id)
            limits.append(await store.read(shown))
        assert limits == [[(3, 3)], [(2, 2)], [(1, 1)], [(1, 0)]]
        assert (await store.claim()).status == wire.STATUS_OK
        assert (await store.claim()).status == wire.STATUS_TIMED_OUT


async def test_a_replica_whose_time_has_passed_is_no_source_and_is_swept(
    mock_clock: trio.testing.MockClock,
) -> None:
    now_us = 1_700_000_000_000_000
    config = configuration(worker_policy={"cleanup_interval": "1s"})
    async with serving(config, wall=lambda: now_us) as store:
        worker = await store.register("d1")
        info = memory_info(expires_at={"seconds": 1_700_000_001})
        await store.replica(worker.worker_id, mem_info=info, max_concurrency=2)
        granted = await store.claim()
        assert granted.status == wire.STATUS_OK
        now_us += 1_000_000
        assert (await store.claim()).status == wire.STATUS_NOT_FOUND
        while await store.counts("model") != [(0, 0)]:
            await pass_time(mock_clock, 0.25)
        assert (await store.complete(granted.transport_id)).status == wire.STATUS_OK
