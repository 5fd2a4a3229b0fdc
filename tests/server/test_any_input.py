"""Whatever a well-formed message says, the answer is an answer: never INTERNAL, never nothing."""

import random
from typing import Any

import purerpc
import pytest
import trio
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from purerpc import StatusCode
from servers import Serving, claim_request, replica_request, serving, worker_request

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2 as tier_wire

MESSAGES_PER_CALL = 150

TEXTS = [
    "", " ", "model", "worker_x", "d1", "n1", "10.0.0.1", "::1", "[::]", "localhost",
    "msa1:x", "cgid:byte_artifact~a~b", "cgid:abc", "mi2:x", "mi2:a:b", "mi2:" + "b" * 56,
    "00000000-0000-4000-8000-000000000000", "not a uuid", "\0", "\n", "é" * 600, "x" * 70_000,
    "v3", "json", "'; DROP TABLE replicas; --", "\ud7ff\ue000\U0010ffff", "{}",
]  # fmt: skip
NUMBERS = [0, 1, 2, 3, 7, 100, 50052, 65535, 65536, 2**31 - 1, 2**32 - 1]
LONG = [*NUMBERS, 2**53, 2**63 - 1, 2**63, 2**64 - 1]
SIGNED = [0, 1, -1, 10**9, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 253_402_300_800]


def scalar(rng: random.Random, field: FieldDescriptor) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return rng.choice([b"", b"{}", b"\0" * 10, rng.randbytes(40)])
            return rng.choice(TEXTS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_UINT32:
            return rng.choice(NUMBERS)
        case FieldDescriptor.CPPTYPE_UINT64:
            return rng.choice(LONG)
        case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice([0, 1, 2, 3, 4, 99, -1, 2**31 - 1, -(2**31)])
        case FieldDescriptor.CPPTYPE_INT64:
            return rng.choice(SIGNED)
        case _:
            return rng.choice([0.0, -1.0, 1e300, float("nan"), float("inf")])


def scramble(rng: random.Random, message: Message, share: float) -> None:
    """Overwrite a share of the fields of a message, at every depth, with extreme values."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() > share:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entries = getattr(message, field.name)
            for _ in range(rng.choice([0, 1, 3, 100])):
                name = rng.choice(TEXTS) + str(rng.randrange(100))
                value_field = field.message_type.fields_by_name["value"]
                if value_field.message_type is None:
                    entries[name] = scalar(rng, value_field)
                else:
                    scramble(rng, entries[name], 0.5)
        elif field.is_repeated:
            items = getattr(message, field.name)
            for _ in range(rng.choice([0, 1, 3])):
                if field.message_type is None:
                    items.append(scalar(rng, field))
                elif field.message_type.GetOptions().map_entry:
                    items[rng.choice(TEXTS)] = rng.choice(TEXTS)
                else:
                    scramble(rng, items.add(), 0.5)
        elif field.message_type is not None:
            part = getattr(message, field.name)
            part.SetInParent()
            scramble(rng, part, share)
        else:
            value = scalar(rng, field)
            if field.cpp_type == FieldDescriptor.CPPTYPE_INT32 and field.name == "nanos":
                value = rng.choice([0, 999_999_999, -1, 2**31 - 1])
            setattr(message, field.name, value)


_TIER_METHODS = frozenset(
    method.name for method in tier_wire.DESCRIPTOR.services_by_name["MemoryTierService"].methods
)


def base(method: str, worker_id: str) -> Message:
    """A request that would do, to be damaged a little or a lot."""
    match method:
        case "RegisterWorker":
            return worker_request()
        case "RegisterReplica":
            return replica_request(worker_id)
        case "RegisterInstance":
            return wire.RegisterInstanceRequest(instance_id="i1", daemon_id="d1", engine="vllm")
        case "InstanceHeartbeat" | "UnregisterInstance":
            named: Message = getattr(wire, f"{method}Request")(instance_id="i1")
            return named
        case "RequestReplicaTransport":
            return claim_request()
        case "WorkerHeartbeat":
            return wire.WorkerHeartbeatRequest(worker_id=worker_id, state_version=1)
        case "BatchUpdateChunkStates":
            update = wire.ChunkStateUpdate(artifact_id="model", state=wire.CHUNK_STATE_HOT)
            return wire.BatchUpdateChunkStatesRequest(node_id="node-d1", updates=[update])
        case "QueryChunkLocations":
            return wire.QueryChunkLocationsRequest(artifact_id="model")
        case "AcquireShardHomeLease":
            return wire.AcquireShardHomeLeaseRequest(holder_daemon_id="d1", ttl_ms=1000)
        case "KeepaliveShardHomeLease":
            return wire.KeepaliveShardHomeLeaseRequest(lease_token="0" * 32, ttl_ms=1000)
        case "BatchKeepaliveShardHomeLeases":
            entry = wire.ShardHomeLeaseKeepalive(lease_generation=1, lease_token="0" * 32)
            return wire.BatchKeepaliveShardHomeLeasesRequest(leases=[entry], ttl_ms=1000)
        case "RequestMemoryTierLease":
            return tier_wire.RequestMemoryTierLeaseRequest(
                node_id="n1", artifact_id="model", chunk_ids=[1]
            )
        case "AcknowledgeMemoryTierLease":
            return tier_wire.AcknowledgeMemoryTierLeaseRequest(
                artifact_id="model", chunk_ids=[1], action=tier_wire.LEASE_ACK_ACTION_ACQUIRED
            )
        case "PublishMemoryTierStatus":
            status = tier_wire.MemoryTierStatus(node_id="n1")
            return tier_wire.PublishMemoryTierStatusRequest(status=status)
        case _:
            module = tier_wire if method in _TIER_METHODS else wire
            request: Message = getattr(module, f"{method}Request")()
            return request


async def code_of(store: Serving, method: str, request: Message) -> StatusCode:
    service = store.admin if method in {"HealthCheck", "GetServerInfo"} else store.runtime
    service = store.tiers if method in _TIER_METHODS else service
    try:
        await getattr(service, method)(request)
    except purerpc.RpcFailedError as error:
        code: StatusCode = error.status.status_code
        return code
    return StatusCode.OK


@pytest.mark.parametrize(
    "method",
    [
        "RegisterWorker",
        "WorkerHeartbeat",
        "UnregisterWorker",
        "ListActiveWorkers",
        "RegisterInstance",
        "InstanceHeartbeat",
        "UnregisterInstance",
        "ListActiveInstances",
        "ReconcileWorkerState",
        "RegisterReplica",
        "UnregisterReplica",
        "ListReplicasV2",
        "BatchGetReplicaCounts",
        "RequestReplicaTransport",
        "CompleteReplicaTransport",
        "BatchUpdateChunkStates",
        "QueryChunkLocations",
        "AcquireShardHomeLease",
        "KeepaliveShardHomeLease",
        "BatchKeepaliveShardHomeLeases",
        "ReleaseShardHomeLease",
        "GetShardHomeLease",
        "BatchGetShardHomeLeases",
        "RequestMemoryTierLease",
        "AcknowledgeMemoryTierLease",
        "RevokeMemoryTierLease",
        "ListOutstandingLeases",
        "PublishMemoryTierStatus",
        "HealthCheck",
        "GetServerInfo",
    ],
)
async def test_no_message_is_answered_with_an_internal_error(method: str) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    expected = {
        StatusCode.OK,
        StatusCode.INVALID_ARGUMENT,
        StatusCode.FAILED_PRECONDITION,
    }
    if method == "ReconcileWorkerState" or "Lease" in method:
        expected.add(StatusCode.NOT_FOUND)
    async with serving() as store:
        worker = await store.register("d1")
        await store.runtime.RegisterInstance(base("RegisterInstance", worker.worker_id))
        for _ in range(MESSAGES_PER_CALL):
            request = base(method, worker.worker_id)
            scramble(rng, request, rng.choice([0.05, 0.2, 0.6]))
            if method == "RequestReplicaTransport":
                request.ClearField("wait_timeout_dur")  # type: ignore[arg-type]
            with trio.fail_after(30):
                code = await code_of(store, method, request)
            assert code in expected, f"{code} for {request}"
        # And the server is as well as before.
        assert await code_of(store, "HealthCheck", wire.HealthCheckRequest()) is StatusCode.OK
        fresh = await store.register("d9")
        assert fresh.status == wire.STATUS_OK
