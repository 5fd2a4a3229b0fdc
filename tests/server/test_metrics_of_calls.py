"""The metrics follow what the calls do."""

from pathlib import Path

import trio
import trio.testing
from purerpc import StatusCode
from servers import (
    Serving,
    configuration,
    eventually,
    pass_time,
    refused,
    serving,
    serving_over_tcp,
)

from globalstore.gen.tensorcast.global_store.v1 import global_store_grpc as services
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire


def value(store: Serving, name: str, **labels: str) -> float | None:
    return store.components.metrics.registry.get_sample_value(name, labels)


async def test_replicas_are_counted_as_they_come_and_go(tmp_path: object) -> None:
    async with serving_over_tcp() as store:
        worker = await store.register("d1")
        first = await store.replica(worker.worker_id, "m")
        await store.replica(worker.worker_id, "m")
        await store.replica(worker.worker_id, "n")
        assert value(store, "tc_replicas_total") == 2
        assert value(store, "tc_replicas_per_memtype", memory_type="RAM") == 2
        assert value(store, "tc_replicas_per_artifact", artifact_id="m") == 1
        registered = {"artifact_id": "m", "memory_type": "RAM"}
        assert value(store, "tc_replica_register_total", **registered) == 2
        await store.runtime.UnregisterReplica(
            wire.UnregisterReplicaRequest(artifact_id="m", replica_id=first.replica_id)
        )
        assert value(store, "tc_replicas_total") == 1
        assert value(store, "tc_replicas_per_artifact", artifact_id="m") is None


async def test_gauges_over_tables_are_restored_at_start(tmp_path: object) -> None:
    config = configuration(database={"db_file": f"{tmp_path}/store.db"})
    async with serving_over_tcp(config) as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, "m")
        await store.replica(worker.worker_id, "n")
        await store.claim("m")
    async with serving_over_tcp(config) as store:
        assert value(store, "tc_replicas_total") == 2
        assert value(store, "tc_replicas_per_artifact", artifact_id="m") == 1
        assert value(store, "tc_replicas_per_memtype", memory_type="RAM") == 2
        assert value(store, "tc_active_transports") == 1
        assert value(store, "tc_recovery_rows", table="workers") == 1


async def test_transports_are_counted_by_their_outcome() -> None:
    async with serving_over_tcp() as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, "m")
        granted = await store.claim("m")
        await store.claim("m")
        await store.claim("absent")
        assert value(store, "tc_active_transports") == 1
        for status, label in (("success", "m"), ("timeout", "m"), ("not_found", "other")):
            counted = {"status": status, "artifact_id": label}
            assert value(store, "tc_transport_requests_total", **counted) == 1, status
        assert value(store, "tc_transport_wait_seconds_count", artifact_id="m") == 2
        await store.complete(granted.transport_id)
        assert value(store, "tc_active_transports") == 0


async def test_requests_for_invented_artifacts_take_no_series() -> None:
    async with serving_over_tcp() as store:
        for number in range(50):
            await store.claim(f"invented-{number}")
        assert store.components.metrics.labelled_artifacts() == set()


async def test_calls_are_counted_by_code_also_those_not_built_and_made_up() -> None:
    async with serving_over_tcp() as store:
        workflow = services.WorkflowOrchestrationServiceStub(store.runtime._client.channel)
        async with refused(StatusCode.UNIMPLEMENTED):
            await workflow.PlanPlacement(wire.PlanPlacementRequest())
        path = "/tensorcast.global_store.v1.WorkflowOrchestrationService/PlanPlacement"
        handled = {"method": path, "code": "UNIMPLEMENTED"}
        assert value(store, "tc_grpc_server_handled_total", **handled) == 1


async def test_gauges_are_looked_up_once_a_second(mock_clock: trio.testing.MockClock) -> None:
    async with serving_over_tcp() as store:
        worker = await store.register("d1", capability_flags=0b100010)
        await store.replica(worker.worker_id)
        await store.register("d1", capability_flags=0b100010)
        await pass_time(mock_clock, 1.25)
        assert value(store, "tc_ready") == 1
        assert value(store, "tc_active_workers") == 1
        assert value(store, "tc_workers_unconfirmed") == 1
        assert value(store, "tc_grpc_server_connections") == 1
        assert value(store, "tc_control_plane_executor_max_threads") == 10
        assert (value(store, "tc_db_free_bytes") or 0) > 0


async def test_capabilities_are_counted_as_workers_change_and_go(
    mock_clock: trio.testing.MockClock,
) -> None:
    def entries(capability: str) -> float | None:
        labels = {"scope": "worker", "capability": capability}
        return value(store, "tc_capability_directory_entries", **labels)

    config = configuration(worker_policy={"heartbeat_timeout": "10s"})
    async with serving_over_tcp(config) as store:
        first = await store.register("d1", capability_flags=0b100010)
        second = await store.register("d2", capability_flags=0b100000)
        await store.register("d1", capability_flags=0b100000)
        assert (entries("shard_home_eligible"), entries("queue_broker_enabled")) == (2, 0)
        await store.beat(first.worker_id, capability_flags=0b10)
        await store.beat(first.worker_id)
        assert (entries("shard_home_eligible"), entries("queue_broker_enabled")) == (1, 1)
        await store.beat(first.worker_id, capability_flags=0)
        assert entries("queue_broker_enabled") == 0
        await pass_time(mock_clock, 11)
        await eventually(lambda: store.components.workers.find(second.worker_id) is None)
        assert entries("shard_home_eligible") == 0


async def test_capabilities_are_counted_again_after_a_restart(tmp_path: Path) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    async with serving_over_tcp(config) as store:
        await store.register("d1", capability_flags=0b10)
    async with serving_over_tcp(config) as store:
        labels = {"scope": "worker", "capability": "queue_broker_enabled"}
        assert value(store, "tc_capability_directory_entries", **labels) == 1


async def test_the_series_of_artifacts_without_replicas_go_with_the_next_maintenance(
    mock_clock: trio.testing.MockClock,
) -> None:
    config = configuration(worker_policy={"cleanup_interval": "1s"})
    async with serving_over_tcp(config) as store:
        worker = await store.register("d1")
        replica = await store.replica(worker.worker_id, "m")
        await store.claim("m")
        await store.runtime.UnregisterReplica(
            wire.UnregisterReplicaRequest(artifact_id="m", replica_id=replica.replica_id)
        )
        store.components.metrics.transports.requested("m", "timeout")
        assert store.components.metrics.labelled_artifacts() == {"m"}
        await pass_time(mock_clock, 1.25)
        while store.components.metrics.labelled_artifacts():
            await trio.lowlevel.checkpoint()


async def test_a_handler_that_dies_is_counted_without_a_code_of_its_own() -> None:
    async with serving() as store:

        async def die(*_: object) -> None:
            raise ZeroDivisionError

        store.components.store.read = die  # type: ignore[method-assign]
        async with refused(StatusCode.INTERNAL, "reference"):
            await store.counts("m")
        path = "/tensorcast.global_store.v1.ClusterRuntimeService/BatchGetReplicaCounts"
        died = {"method": path, "code": "UNKNOWN"}
        assert value(store, "tc_grpc_server_handled_total", **died) == 1
        assert value(store, "tc_grpc_server_handled_total", **died | {"code": "INTERNAL"}) is None
