"""Every field of every request has a bound, and the bounds of the methods follow from them."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from servers import configuration

import globalstore.gen
from globalstore.api.bounds import checks, fields
from globalstore.api.bounds.checks import Table, Unbounded, is_text
from globalstore.api.bounds.fields import COUNTS, MESSAGES, SIZES, TEXT
from globalstore.api.bounds.methods import BYTES_STEP, largest_bytes, methods, request_bounds
from globalstore.config import GlobalStoreConfig
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2 as tiers
from globalstore.rpc.request_bounds import RequestBounds
from globalstore.rules.refusals import InvalidArgument, Refusal, ResourceExhausted
from globalstore.rules.values import TEXT_BYTES_MAX

CONFIG = GlobalStoreConfig()
BOUNDS = request_bounds(CONFIG)
RUNTIME = "/tensorcast.global_store.v1.ClusterRuntimeService/"
CATALOG = "/tensorcast.global_store.v1.ArtifactCatalogService/"


def generated_methods() -> Iterator[str]:
    """Yield the path of every method for which there is generated code."""
    for module in pkgutil.walk_packages(globalstore.gen.__path__, "globalstore.gen."):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(module.name).DESCRIPTOR
            for service in file.services_by_name.values():
                for method in service.methods:
                    yield f"/{service.full_name}/{method.name}"


def within(kind: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    """Yield all fields of a message and of those within it."""
    if kind.full_name in seen:
        return
    seen.add(kind.full_name)
    for field in kind.fields:
        yield field
        if field.message_type is not None:
            yield from within(field.message_type, seen)


def fields_of_requests() -> list[FieldDescriptor]:
    seen: set[str] = set()
    return [field for _, method in methods() for field in within(method.input_type, seen)]


def bounds_of(message: Any) -> RequestBounds:
    name = type(message).__name__.removesuffix("Request")
    return next(each for path, each in BOUNDS.items() if path.endswith(f"/{name}"))


def refusal_of(message: Any) -> Refusal | None:
    try:
        bounds_of(message).check(message)  # type: ignore[misc]
    except Refusal as refused:
        return refused
    return None


def test_every_method_has_bounds() -> None:
    assert set(BOUNDS) == set(generated_methods())


def test_every_list_and_every_bytes_field_is_in_the_table() -> None:
    every = fields_of_requests()
    lists = {field.full_name for field in every if field.is_repeated}
    named = {field.full_name for field in every if field.type == FieldDescriptor.TYPE_BYTES}
    assert lists == set(COUNTS)
    assert named <= set(SIZES)


def test_the_table_names_nothing_that_is_not_there() -> None:
    every = fields_of_requests()
    assert set(SIZES) <= {field.full_name for field in every if is_text(field)}
    assert set(MESSAGES) <= {field.message_type.full_name for field in every if field.message_type}


@pytest.mark.parametrize("table", ["COUNTS", "SIZES"])
def test_a_field_without_a_bound_is_noticed_at_the_start(
    monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    missing = {
        "COUNTS": "tensorcast.global_store.v1.BatchUpdateChunkStatesRequest.updates",
        "SIZES": "tensorcast.global_store.v1.RegisterReplicaRequest.tensor_index_data",
    }[table]
    left = {name: bound for name, bound in getattr(fields, table).items() if name != missing}
    monkeypatch.setattr(checks, table, left)
    with pytest.raises(Unbounded, match=missing):
        request_bounds(CONFIG)


def test_every_bound_has_a_reason_and_the_default_of_its_key() -> None:
    for bound in (*SIZES.values(), *COUNTS.values(), *MESSAGES.values(), TEXT):
        assert bound.most > 0
        assert bound.reason.endswith(".")
        assert bound.under(CONFIG) == bound


def test_an_id_of_the_longest_kind_passes_with_space_around_it() -> None:
    assert TEXT.most > TEXT_BYTES_MAX + 1000


@pytest.mark.parametrize(
    "path",
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/tensorcast.global_store.v1.ClusterAdminService/HealthCheck",
        f"{RUNTIME}RegisterWorker",
        f"{RUNTIME}InstanceHeartbeat",
        f"{RUNTIME}UnregisterReplica",
        f"{CATALOG}ResolveKeyMapping",
        f"{CATALOG}GetArtifactIndex",
    ],
)
def test_what_is_an_id_and_some_numbers_is_small(path: str) -> None:
    assert BOUNDS[path].bytes_max == BYTES_STEP
    assert BOUNDS[path].entries_max == {}


def test_no_request_is_above_the_listener_or_below_what_its_fields_take() -> None:
    most = CONFIG.server.limits.max_message_bytes
    table = Table(CONFIG)
    for path, method in methods():
        bounds = BOUNDS[path]
        assert BYTES_STEP <= bounds.bytes_max <= most
        assert bounds.bytes_max >= min(most, largest_bytes(table, method.input_type))


def test_a_smaller_message_bound_of_the_configuration_holds_for_every_method() -> None:
    config = configuration(server={"limits": {"max_message_bytes": 1 << 20}})
    assert max(bounds.bytes_max for bounds in request_bounds(config).values()) == 1 << 20


def test_what_the_configuration_bounds_follows_it() -> None:
    config = configuration(
        registration={"max_index_bytes": 100},
        worker_policy={"group_realization": {"max_parts_per_version_set": 3}},
    )
    bounds = request_bounds(config)
    check = bounds[f"{CATALOG}UpsertArtifactMetadata"].check
    assert check is not None
    check(wire.UpsertArtifactMetadataRequest(canonical_index_data=b"x" * 100))
    with pytest.raises(ResourceExhausted) as refused:
        check(wire.UpsertArtifactMetadataRequest(canonical_index_data=b"x" * 101))
    assert str(refused.value) == (
        "canonical_index_data: expected at most 100 bytes (registration.max_index_bytes), got 101"
    )
    parts = "tensorcast.global_store.v1.RegisterGroupVersionSetRequest.parts"
    assert bounds[f"{CATALOG}RegisterGroupVersionSet"].entries_max[parts] == 3


LONG = "x" * (TEXT.most + 1)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            wire.WorkerHeartbeatRequest(state_checksum=LONG),
            "state_checksum: expected at most 2048 bytes, got 2049",
        ),
        (
            wire.WorkerHeartbeatRequest(registered_artifact_ids=["a", LONG]),
            "registered_artifact_ids[1]: expected at most 2048 bytes, got 2049",
        ),
        (
            wire.RegisterReplicaRequest(
                mem_info=common.MemoryInfo(
                    transport=common.ReplicaTransportMetadata(
                        remote_memory_keys=["k", "k" * 65_537]
                    )
                )
            ),
            "mem_info.transport.remote_memory_keys[1]: expected at most 65536 bytes, got 65537",
        ),
        (
            wire.ReconcileWorkerStateRequest(
                inventory=[
                    common.ReplicaInfo(),
                    common.ReplicaInfo(memory_info=common.MemoryInfo(node_id="é" * 1025)),
                ]
            ),
            "inventory[1].memory_info.node_id: expected at most 2048 bytes, got 2050",
        ),
        (
            wire.RegisterInstanceRequest(labels={"a": "b", "c": "d" * 4097}),
            "].value: expected at most 4096 bytes, got 4097",
        ),
        (
            wire.BatchGetShardHomeLeasesRequest(shard_ids=range(10_001)),
            "shard_ids has 10001 entries, expected at most 10000",
        ),
        (
            tiers.PublishMemoryTierStatusRequest(
                status=tiers.MemoryTierStatus(memory_tier_config_json="x" * 65_537)
            ),
            "status.memory_tier_config_json: expected at most 65536 bytes, got 65537",
        ),
    ],
)
def test_what_is_too_long_is_refused_by_its_path(message: Any, text: str) -> None:
    refused = refusal_of(message)
    assert isinstance(refused, InvalidArgument)
    assert str(refused).endswith(text)
    assert message.ByteSize() > bounds_of(message).unchecked_bytes


def test_a_replica_that_no_answer_would_hold_is_refused() -> None:
    info = common.MemoryInfo(remote_memory_keys=["k" * 60_000] * 27)
    refused = refusal_of(wire.RegisterReplicaRequest(mem_info=info))
    assert str(refused).startswith("mem_info: expected at most 1572864 bytes, got 162")


def test_limits_of_the_contract_keep_their_code() -> None:
    message = wire.UpdateArtifactViewStateRequest(leaf_writes=[wire.LeafWrite()] * 16_385)
    refused = refusal_of(message)
    assert isinstance(refused, ResourceExhausted)
    assert str(refused) == "leaf_writes has 16385 entries, expected at most 16384"


@pytest.mark.parametrize(
    "message",
    [
        wire.WorkerHeartbeatRequest(registered_artifact_ids=["x" * TEXT_BYTES_MAX] * 40_000),
        wire.WorkerHeartbeatRequest(registered_artifact_ids=["a"] * 262_144),
        wire.ReconcileWorkerStateRequest(
            inventory=[
                common.ReplicaInfo(
                    memory_info=common.MemoryInfo(
                        remote_memory_keys=["k" * 64] * 4, buffer_sizes=[1 << 30] * 4
                    )
                )
            ]
            * 100_000
        ),
        wire.BatchUpdateChunkStatesRequest(
            updates=[wire.ChunkStateUpdate(artifact_id="mi2:" + "a" * 113)] * 100_000
        ),
        wire.RegisterReplicaRequest(tensor_index_data=b"x" * (16 << 20)),
        wire.CompleteReplicaTransportRequest(outcome_detail="x" * (1 << 20)),
        wire.QueryChunkLocationsRequest(chunk_indices=[2**32 - 1] * 250_000),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_honest_users_send_passes(message: Any) -> None:
    bounds = bounds_of(message)
    assert refusal_of(message) is None
    assert message.ByteSize() <= bounds.bytes_max
    for field, value in message.ListFields():
        if field.is_repeated:
            assert len(value) <= bounds.entries_max[field.full_name]


def test_lists_of_messages_within_a_request_are_bounded_too() -> None:
    assert BOUNDS[f"{RUNTIME}ReconcileWorkerState"].entries_max == {
        "tensorcast.global_store.v1.ReconcileWorkerStateRequest.inventory": 262_144,
        "tensorcast.common.v1.MemoryInfo.remote_memory_keys": 16_384,
        "tensorcast.common.v1.MemoryInfo.buffer_sizes": 16_384,
        "tensorcast.common.v1.ReplicaTransportMetadata.remote_memory_keys": 16_384,
        "tensorcast.common.v1.ReplicaTransportMetadata.buffer_sizes": 16_384,
    }


def test_a_part_of_a_request_is_checked_as_it_stands_in_the_whole() -> None:
    part = wire.BatchUpdateChunkStatesRequest(
        updates=[wire.ChunkStateUpdate(), wire.ChunkStateUpdate(device_uuid=LONG)]
    )
    check = bounds_of(part).check
    assert check is not None
    with pytest.raises(InvalidArgument, match=r"^updates\[1001\].device_uuid: expected"):
        check(part, {"updates": 1000})
    part.updates.pop()
    check(part, {"updates": 99_999})
    with pytest.raises(InvalidArgument, match="updates has 100001 entries"):
        check(part, {"updates": 100_000})


def test_too_many_entries_are_refused_alike_before_and_after_parsing() -> None:
    message = wire.BatchUpdateChunkStatesRequest(updates=[wire.ChunkStateUpdate()] * 100_001)
    bounds = bounds_of(message)
    assert bounds.too_many is not None
    name = "tensorcast.global_store.v1.BatchUpdateChunkStatesRequest.updates"
    before, after = bounds.too_many(name, 100_001), refusal_of(message)
    assert (type(before), str(before)) == (type(after), str(after))


def test_heartbeats_and_health_checks_are_never_walked() -> None:
    beat = wire.WorkerHeartbeatRequest(
        worker_id="worker_" + "n" * 200, state_checksum="c" * 64, daemon_id="d" * 200
    )
    assert beat.ByteSize() <= bounds_of(beat).unchecked_bytes
    health = BOUNDS["/tensorcast.global_store.v1.ClusterAdminService/HealthCheck"]
    assert health.unchecked_bytes == health.bytes_max


def shortest_violations(kind: Descriptor, table: Table) -> Iterator[int]:
    """Yield, for each bound of a message type, the size of the smallest message that breaks it."""
    for field in kind.fields:
        if field.is_repeated:
            packed = not is_text(field) and field.message_type is None
            yield (table.count(field).most + 1) * (1 if packed else 2)
        if is_text(field):
            yield table.size(field).most + 1
        if field.message_type is not None:
            whole = table.message(field.message_type)
            if whole is not None:
                yield whole.most + 1
            yield from shortest_violations(field.message_type, table)


def test_no_unchecked_request_can_break_a_bound() -> None:
    table = Table(CONFIG)
    for path, method in methods():
        for size in shortest_violations(method.input_type, table):
            assert BOUNDS[path].unchecked_bytes < size


def test_a_long_check_gives_others_a_turn() -> None:
    message = wire.BatchUpdateChunkStatesRequest(
        updates=[wire.ChunkStateUpdate(artifact_id="a" * 3000)] * 5000
    )
    in_turns = bounds_of(message).check_in_turns
    assert in_turns is not None
    with pytest.raises(InvalidArgument, match=r"updates\[0\].artifact_id"):
        list(in_turns(message))
    message.ClearField("updates")
    message.updates.extend([wire.ChunkStateUpdate(artifact_id="a")] * 5000)
    assert len(list(in_turns(message))) == 10
