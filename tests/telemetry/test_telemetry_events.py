"""The lines that operators rely on: event, level and fields, as text and as JSON."""

import json
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
import trio.testing
from log_lines import Lines, has
from purerpc import StatusCode
from server_process import Client, running
from servers import (
    KEY,
    Serving,
    configuration,
    eventually,
    pass_time,
    refused,
    replica_request,
    serving_over_tcp,
    worker_request,
)

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.telemetry.logging import LIMITED_SECONDS

POLICY = {"heartbeat_timeout": "10s"}


async def test_the_start_says_where_it_listens_what_it_keeps_and_how_often_it_cleans(
    lines: Lines,
) -> None:
    config = configuration(worker_policy=POLICY | {"cleanup_interval": "7s"})
    async with serving_over_tcp(config) as store:
        info = store.info
    has(lines.only("database", "INFO"), path="in-memory")
    has(lines.only("listening", "INFO"), address="127.0.0.1", port=info.listen_port)
    has(lines.only("http listening", "INFO"), address="127.0.0.1", port=info.metrics_port)
    has(
        lines.only("advertise", "INFO"),
        address=f"127.0.0.1:{info.listen_port}",
        source="server.listen.host (loopback)",
    )
    has(
        lines.only("maintenance policy", "INFO"),
        heartbeat_timeout_s=10.0,
        cleanup_interval_s=7.0,
        optimize_interval_s=1800.0,
        transport_ttl_s=70.0,
    )
    stopped = lines.only("stopped", "INFO")
    has(stopped, calls_cut_off=0)
    assert stopped["seconds"] >= 0
    lines.only("stopping", "INFO")


async def test_the_life_of_a_worker_is_told_with_who_it_was(
    lines: Lines, mock_clock: trio.testing.MockClock
) -> None:
    async with serving_over_tcp(configuration(worker_policy=POLICY)) as store:
        first = await store.register("d1", capability_flags=2)
        again = await store.register(
            "d1", is_recovery_registration=True, previous_worker_id=first.worker_id
        )
        (_, new), (level, recovered) = lines.named("worker registered")
        assert level == "INFO"
        identity = {"worker_id": first.worker_id, "daemon_id": "d1", "node_id": "node-d1"}
        has(new, **identity, address="d1.example:50052", kind="new", generation=1)
        has(new, state_version=1, previous_worker_id="")
        has(recovered, **identity, kind="recovery", generation=again.reconcile_generation)
        has(recovered, previous_worker_id=first.worker_id)
        gone = await store.register("d2")
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=gone.worker_id, is_graceful_shutdown=True)
        )
        has(lines.only("worker unregistered", "INFO"), worker_id=gone.worker_id, graceful=True)
        await pass_time(mock_clock, 11)
        await eventually(lambda: lines.named("worker expired"))
        has(lines.only("worker expired", "INFO"), **identity, generation=2)


async def test_an_endpoint_that_is_taken_over_or_a_worker_that_is_claimed_is_told_with_both_sides(
    lines: Lines,
) -> None:
    async with serving_over_tcp() as store:
        owner = await store.register("d1")
        answer = await store.register(
            "d2", is_recovery_registration=True, previous_worker_id=owner.worker_id
        )
        assert answer.status == wire.STATUS_ERROR
        has(
            lines.only("worker registration conflict", "ERROR"),
            endpoint="d2.example:50052",
            owner_worker_id=owner.worker_id,
            owner_node_id="node-d1",
            node_id="node-d2",
        )
        new = await store.register("d3", node_address="d1.example")
        has(
            lines.only("worker evicted", "WARNING"),
            worker_id=owner.worker_id,
            daemon_id="d1",
            node_id="node-d1",
            address="d1.example:50052",
            by_worker_id=new.worker_id,
            by_daemon_id="d3",
            by_node_id="node-d3",
        )


async def beat_twice(store: Serving, worker_id: str, **fields: Any) -> None:
    for _ in range(2):
        answer = await store.beat(worker_id, **fields)
        assert answer.status == wire.STATUS_NOT_FOUND


async def test_a_heartbeat_that_is_not_taken_is_told_once_a_minute_and_worker(
    lines: Lines, mock_clock: trio.testing.MockClock
) -> None:
    name, nobody = "heartbeat of an unknown worker", str(uuid.uuid4())
    async with serving_over_tcp() as store:
        known = await store.register("d1")
        await beat_twice(store, nobody, state_version=7)
        await beat_twice(store, known.worker_id, daemon_id="impostor")
        events = lines.named(name)
        assert [(level, fields["worker_id"]) for level, fields in events] == [
            ("WARNING", nobody),
            ("WARNING", known.worker_id),
        ]
        has(events[0][1], state_version=7)
        await pass_time(mock_clock, LIMITED_SECONDS)
        await beat_twice(store, nobody)
        has(lines.named(name)[2][1], worker_id=nobody, suppressed=1)
        assert len(lines.named(name)) == 3


async def test_lists_are_told_at_debug_only(lines: Lines) -> None:
    async with serving_over_tcp() as store:
        await store.register("d1")
        lines.events.clear()
        await store.active()
        await store.replicas()
        assert {level for level, _, _ in lines.events} == {"DEBUG"}


async def test_every_line_of_a_call_names_its_method_and_client(lines: Lines) -> None:
    async with serving_over_tcp() as store:
        await store.register("d1")
        async with refused(StatusCode.INVALID_ARGUMENT):
            await store.beat("w", state_version=0)
    for message in ("worker registered", "call"):
        for _, fields in lines.named(message):
            assert fields["method"]
            assert fields["peer"].startswith("127.0.0.1:")


SECRETS = {
    "meta": {"cluster_token": "hush-cluster"},
    "observability": {
        "logging": {"level": "DEBUG", "vlog_level": 5},
        "otel_cxx": {"exporter_headers": {"authorization": "hush-header"}},
    },
}


def test_no_secret_is_written_at_any_level_in_any_form(tmp_path: Path) -> None:
    text, sink = tmp_path / "store.log", tmp_path / "store.jsonl"
    observability = SECRETS["observability"] | {
        "logging": {"level": "DEBUG", "vlog_level": 5, "file": str(text), "sink_file": str(sink)}
    }
    config = {"meta": SECRETS["meta"], "observability": observability}
    with running(tmp_path, **config) as process, Client(process.port) as client:
        worker = client.runtime("RegisterWorker", worker_request())
        client.runtime("RegisterReplica", replica_request(worker.worker_id))
        broken = replica_request(worker.worker_id)
        broken.mem_info.remote_memory_keys.append("hush-second-key")
        with pytest.raises(grpc.RpcError):
            client.runtime("RegisterReplica", broken)
        client.admin("HealthCheck", wire.HealthCheckRequest())
        client.runtime(
            "ListActiveWorkers",
            wire.ListActiveWorkersRequest(),
            metadata=[("authorization", "Bearer hush-bearer")],
        )
        assert process.stop() == 0
        everything = "\n".join(process.lines) + text.read_text() + sink.read_text()
    assert "call method=" in everything
    assert "hush" not in everything
    assert KEY not in everything
    events = [json.loads(line) for line in sink.read_text().splitlines()]
    by_message = {event["message"]: event for event in events}
    registered = by_message["worker registered"]
    assert registered["level"] == "INFO"
    assert registered["logger"] == "globalstore.workers"
    assert registered["worker_id"] == worker.worker_id
    assert registered["method"] == "RegisterWorker"
    assert by_message["starting"]["meta.cluster_token"] == "***"
    assert {"database", "maintenance policy", "listening", "advertise", "stopped"} <= set(
        by_message
    )
    assert len(text.read_text().splitlines()) == len(events)
