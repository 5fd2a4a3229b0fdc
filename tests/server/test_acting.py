"""A caller that is bound to daemons acts for these alone; every request says for whom it acts."""

import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from google.protobuf.descriptor import Descriptor
from purerpc import StatusCode
from servers import (
    Serving,
    claim_request,
    configuration,
    memory_info,
    refused,
    replica_request,
    serving,
    worker_request,
)

from globalstore.api.middleware.acting import ENDPOINTS, EXCEPTIONS, FIELDS, acting_fields
from globalstore.api.middleware.tokens import READS
from globalstore.gen.globalstore.admin.v1 import admin_pb2
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2 as tiers

METHODS = [
    method
    for file in (wire.DESCRIPTOR, tiers.DESCRIPTOR, admin_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
]

# Calls that change what belongs to no daemon: artifacts, keys, groups, layouts, assemblies and
# operations are the cluster's, and leases of shards and operations are known by a secret.
SHARED = {
    *("UpsertArtifactMetadata", "UpsertArtifactBinding", "UpsertArtifactDiskLocation"),
    *("UpsertKeyMapping", "SwapKeyMapping", "RevokeKeyMapping", "RegisterGroupVersionSet"),
    *("PublishGroupRealization", "AbortGroupRealization"),
    *("UpdateArtifactViewState", "WriteTensorProofCommitments", "PutLayoutSpec"),
    *("AttachLayoutToArtifact", "UpdateAssemblyLayoutBinding", "UpsertAssemblyAttempt"),
    *("UpsertAssemblyReadinessCut", "UpdateAssemblySlotOccupancyState"),
    *("AcquireOperationLease", "KeepaliveOperationLease", "ReleaseOperationLease"),
    *("UpdateOperation", "ReportPersistenceStatus"),
    *("KeepaliveShardHomeLease", "BatchKeepaliveShardHomeLeases", "ReleaseShardHomeLease"),
    "HealthCheck",
}

# Names of fields that sound as if they named one of a daemon's things, and what they are instead.
OTHER_NAMES = {
    # Where something is, or was read from.
    *("daemon_address", "node_address", "source_address", "source_process_id"),
    *("source_replica_id", "replica_uuid", "signals_endpoint", "execution_endpoint"),
    # Secrets that only the answer to an acquisition told, and what is known by its owner alone.
    *("lease_token", "staging_token", "daemon_session_id"),
    # Of operations, assemblies and requests.
    *("owner_id", "lease_id", "expected_lease_id", "operation_lease_id"),
    "child_transport_request_id",
}
SOUNDS = re.compile("worker|daemon|node|replica|transport|instance|lease|holder|owner|token|source")

# Lists whose entries name a daemon's things: of the worker that the request names, of nobody.
LISTED = {
    "ReconcileWorkerState.inventory.ref.replica_id",
    "ReconcileWorkerState.inventory.memory_info.node_id",
    "ReportPersistenceStatus.shard_statuses.targets.node_id",
}


def leaves(message: Descriptor, path: str, above: tuple[Descriptor, ...] = ()) -> Iterator[str]:
    for field in message.fields:
        inner = field.message_type
        if inner is None:
            if field.type == field.TYPE_STRING:
                yield f"{path}.{field.name}"
        elif inner not in above:
            yield from leaves(inner, f"{path}.{field.name}", (*above, inner))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_request_is_classified(method: Any) -> None:
    found = {f"{method.name}.{field.path}" for field in acting_fields(method.input_type)}
    if method.name in READS:
        return
    assert bool(found) is (method.name not in SHARED), sorted(found)
    unnamed = set(leaves(method.input_type, method.name)) - found - LISTED
    for path in unnamed:
        name = path.rpartition(".")[2]
        if SOUNDS.search(name) and f"{method.input_type.name}.{name}" not in EXCEPTIONS:
            assert name in OTHER_NAMES, f"{path} names something? see api/middleware/acting.py"


def test_whose_calls_a_service_has_is_known() -> None:
    """Calls of the contract are daemons' too; those of operators are not."""
    operators = {"globalstore.admin.v1.AdminService"}
    services = {method.containing_service.full_name for method in METHODS}
    assert {name for name in services if not name.startswith("tensorcast.")} == operators


def test_the_tables_name_nothing_that_is_not_there() -> None:
    names = {method.name for method in METHODS}
    assert names >= SHARED
    assert READS - names <= {"ServerReflectionInfo"}
    assert not READS & SHARED
    paths = {path for method in METHODS for path in leaves(method.input_type, method.name)}
    assert paths >= LISTED
    fields = {path.rpartition(".")[2] for path in paths}
    assert fields >= set(FIELDS) | OTHER_NAMES
    places = [(name, field) for name, pairs in ENDPOINTS.items() for field, _ in pairs]
    assert paths >= {f"{name}.{field}" for name, field in places}
    inputs = {method.input_type.name for method in METHODS}
    assert {key.partition(".")[0] for key in EXCEPTIONS} <= inputs


@attrs.define
class As:
    """Calls made with a token."""

    store: Serving
    token: str

    async def __call__(self, method: str, request: Any) -> Any:
        stub = next(
            stub
            for stub in (self.store.runtime, self.store.catalog, self.store.tiers)
            if hasattr(stub, method)
        )
        metadata = [("authorization", f"Bearer {self.token}")]
        return await getattr(stub, method)(request, metadata=metadata)


@attrs.define
class Two:
    """A store with two daemons, each with a token of its own and a worker with a replica."""

    store: Serving
    one: As
    two: As
    full: As
    workers: dict[str, str] = attrs.Factory(dict)
    replicas: dict[str, str] = attrs.Factory(dict)


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[Two]:
    path = folder / "tokens"
    lines = [("daemon", "one", "d1,d1b"), ("daemon", "two", "d2"), ("full", "full", "")]
    text = "\n".join(f"{r} {hashlib.sha256(t.encode()).hexdigest()} {i}" for r, t, i in lines)
    await trio.Path(path).write_text(text)
    await trio.Path(path).chmod(0o600)
    realizations = {"group_realization": {"enabled": True}}
    config = configuration(server={"auth": {"token_file": str(path)}}, worker_policy=realizations)
    async with serving(config) as store:
        it = Two(store, As(store, "one"), As(store, "two"), As(store, "full"))
        for daemon, caller in (("d1", it.one), ("d2", it.two)):
            worker = await caller("RegisterWorker", worker_request(daemon))
            it.workers[daemon] = worker.worker_id
            request = replica_request(worker.worker_id, f"of-{daemon}", node=daemon)
            it.replicas[daemon] = (await caller("RegisterReplica", request)).replica_id
        yield it


def heartbeat(worker_id: str, daemon_id: str = "") -> Any:
    return wire.WorkerHeartbeatRequest(
        worker_id=worker_id, daemon_id=daemon_id, state_version=1, accepting_new_requests=True
    )


async def test_a_daemon_makes_its_own_calls(tmp_path: Path) -> None:
    async with two(tmp_path) as it:
        worker, replica = it.workers["d1"], it.replicas["d1"]
        for _ in range(2):
            answer = await it.one("WorkerHeartbeat", heartbeat(worker, "d1"))
            assert answer.status == wire.STATUS_OK
        claim = claim_request("of-d2", source_node_id="node-d1", requester_worker_id=worker)
        granted = await it.one("RequestReplicaTransport", claim)
        done = wire.CompleteReplicaTransportRequest(transport_id=granted.transport_id, outcome=1)
        assert (await it.one("CompleteReplicaTransport", done)).status == wire.STATUS_OK
        update = wire.UpdateReplicaRequest(artifact_id="of-d1", replica_id=replica)
        await it.one("UpdateReplica", update)
        await it.one("ListReplicasV2", wire.ListReplicasV2Request(node_id="node-d2"))
        await it.one("RegisterWorker", worker_request("d1b"))
        await it.one("UnregisterWorker", wire.UnregisterWorkerRequest(worker_id=worker))
        again = await it.one("UnregisterWorker", wire.UnregisterWorkerRequest(worker_id=worker))
        assert again.status == wire.STATUS_OK


async def test_what_nobody_has_is_answered_as_ever(tmp_path: Path) -> None:
    async with two(tmp_path) as it:
        answer = await it.one("WorkerHeartbeat", heartbeat("worker_lost_00000000"))
        assert answer.status == wire.STATUS_NOT_FOUND
        async with refused(StatusCode.INVALID_ARGUMENT, "replica_id"):
            await it.one("UpdateReplica", wire.UpdateReplicaRequest(replica_id="x"))


FOREIGN = {
    "RegisterWorker": lambda it: worker_request("d2"),
    "RegisterWorker as its successor": lambda it: worker_request(
        "d1", is_recovery_registration=True, previous_worker_id=it.workers["d2"]
    ),
    "RegisterWorker at its address": lambda it: worker_request("d1", node_address="d2.example"),
    "RegisterWorker at its other port": lambda it: worker_request(
        "d1", node_address="d2.example", grpc_port=9
    ),
    "RegisterReplica at its address": lambda it: replica_request(
        it.workers["d1"], "of-d2", mem_info=memory_info("d1", node_address="d2.example")
    ),
    "WorkerHeartbeat": lambda it: heartbeat(it.workers["d2"]),
    "WorkerHeartbeat with its daemon": lambda it: heartbeat(it.workers["d1"], "d2"),
    "UnregisterWorker": lambda it: wire.UnregisterWorkerRequest(worker_id=it.workers["d2"]),
    "UnregisterWorker with blanks": lambda it: wire.UnregisterWorkerRequest(
        worker_id=f" {it.workers['d2']}\n"
    ),
    "ReconcileWorkerState": lambda it: wire.ReconcileWorkerStateRequest(
        worker_id=it.workers["d2"], generation=9
    ),
    "RegisterInstance": lambda it: wire.RegisterInstanceRequest(instance_id="i", daemon_id="d2"),
    "RegisterReplica": lambda it: replica_request(it.workers["d2"], "x", node="d2"),
    "RegisterReplica on its node": lambda it: replica_request(
        it.workers["d1"], "of-d2", mem_info=memory_info("d2")
    ),
    "UpdateReplica": lambda it: wire.UpdateReplicaRequest(
        artifact_id="of-d2", replica_id=it.replicas["d2"]
    ),
    "UnregisterReplica": lambda it: wire.UnregisterReplicaRequest(
        artifact_id="of-d2", replica_id=it.replicas["d2"].upper()
    ),
    "UnregisterReplicaByWorker": lambda it: wire.UnregisterReplicaByWorkerRequest(
        artifact_id="of-d2", worker_id=it.workers["d2"]
    ),
    "MarkReplicaUnavailable": lambda it: wire.MarkReplicaUnavailableRequest(
        artifact_id="of-d2", replica_id=it.replicas["d2"]
    ),
    "RequestReplicaTransport": lambda it: claim_request(
        "of-d1", requester_worker_id=it.workers["d2"]
    ),
    "RequestReplicaTransport for its node": lambda it: claim_request(
        "of-d1", source_node_id="node-d2"
    ),
    "BatchUpdateChunkStates": lambda it: wire.BatchUpdateChunkStatesRequest(
        worker_id=it.workers["d2"], node_id="node-d2"
    ),
    "AcquireShardHomeLease": lambda it: wire.AcquireShardHomeLeaseRequest(
        shard_id=1, holder_daemon_id="d2", ttl_ms=1000
    ),
    "BeginOrJoinGroupRealization": lambda it: wire.BeginOrJoinGroupRealizationRequest(
        daemon_id="d2"
    ),
    "ReportGroupRealizationPrepared": lambda it: wire.ReportGroupRealizationPreparedRequest(
        daemon_id="d1", staged_value={"daemon_id": "d2"}
    ),
    "RequestMemoryTierLease": lambda it: tiers.RequestMemoryTierLeaseRequest(node_id="node-d2"),
    "PublishMemoryTierStatus": lambda it: tiers.PublishMemoryTierStatusRequest(
        status={"node_id": "node-d2"}
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
async def test_what_belongs_to_another_daemon_is_refused(tmp_path: Path, case: str) -> None:
    async with two(tmp_path) as it:
        request = FOREIGN[case](it)
        reason = "belongs to another daemon; this caller may act for its own alone: d1, d1b"
        async with refused(StatusCode.PERMISSION_DENIED, reason):
            await it.one(case.partition(" ")[0], request)
        counted = it.store.components.metrics.server.auth_refusals.labels("daemon")
        assert counted._value.get() == 1
        listed = await it.full("ListReplicasV2", wire.ListReplicasV2Request())
        assert {each.memory_info.node_id for each in listed.replicas} == {"node-d1", "node-d2"}


async def test_the_ends_of_a_transport_may_complete_it_and_no_third_daemon(tmp_path: Path) -> None:
    async with two(tmp_path) as it:
        await it.full("RegisterWorker", worker_request("d3"))
        third = (await it.full("ListActiveWorkers", wire.ListActiveWorkersRequest())).workers
        worker = next(each.worker_id for each in third if each.node_id == "node-d3")
        claim = claim_request("of-d2", source_node_id="node-d3", requester_worker_id=worker)
        granted = await it.full("RequestReplicaTransport", claim)
        done = wire.CompleteReplicaTransportRequest(transport_id=granted.transport_id, outcome=1)
        async with refused(StatusCode.PERMISSION_DENIED, "transport_id"):
            await it.one("CompleteReplicaTransport", done)
        assert (await it.two("CompleteReplicaTransport", done)).status == wire.STATUS_OK


async def test_an_instance_is_its_daemons(tmp_path: Path) -> None:
    async with two(tmp_path) as it:
        own = wire.RegisterInstanceRequest(
            instance_id="i", daemon_id="d2", engine="e", signals_endpoint="e:1"
        )
        await it.two("RegisterInstance", own)
        for method, request in (
            ("InstanceHeartbeat", wire.InstanceHeartbeatRequest(instance_id="i")),
            ("UnregisterInstance", wire.UnregisterInstanceRequest(instance_id="i")),
            ("RegisterInstance", wire.RegisterInstanceRequest(instance_id="i", daemon_id="d1")),
        ):
            async with refused(StatusCode.PERMISSION_DENIED, "instance_id"):
                await it.one(method, request)
        await it.two("InstanceHeartbeat", wire.InstanceHeartbeatRequest(instance_id="i"))


async def test_an_address_is_free_again_when_its_worker_has_ended(tmp_path: Path) -> None:
    async with two(tmp_path) as it:
        end = wire.UnregisterWorkerRequest(worker_id=it.workers["d2"])
        await it.two("UnregisterWorker", end)
        answer = await it.one("RegisterWorker", worker_request("d1", node_address="d2.example"))
        assert answer.status == wire.STATUS_OK


async def test_a_full_token_is_the_whole_cluster(tmp_path: Path) -> None:
    async with two(tmp_path) as it:
        answer = await it.full("WorkerHeartbeat", heartbeat(it.workers["d2"]))
        assert answer.status == wire.STATUS_OK
