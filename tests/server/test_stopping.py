"""SIGTERM and what it promises; SIGKILL and what survives it."""

import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from server_process import PATIENCE_S, Client, Process, running
from servers import claim_request, replica_request, worker_request

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    database = tmp_path / "store.db"
    with running(tmp_path, database={"db_file": str(database)}) as process:
        with Client(process.port) as client:
            client.runtime("RegisterWorker", worker_request())
        process.signal(number)
        assert process.wait() == 0
    wal = tmp_path / "store.db-wal"
    assert not wal.exists() or wal.stat().st_size == 0


def test_a_waiting_call_ends_unavailable_at_once(tmp_path: Path) -> None:
    with (
        running(tmp_path, shutdown={"grace_period": "30s"}) as process,
        Client(process.port) as client,
    ):
        worker = client.runtime("RegisterWorker", worker_request())
        client.runtime("RegisterReplica", replica_request(worker.worker_id))
        client.runtime("RequestReplicaTransport", claim_request())
        codes = []

        def wait() -> None:
            try:
                client.runtime("RequestReplicaTransport", claim_request(wait_s=50))
            except grpc.RpcError as error:
                codes.append(error.code())

        waiting = threading.Thread(target=wait)
        waiting.start()
        inflight = f"http://127.0.0.1:{process.http_port}/metrics"
        while b"tc_grpc_server_inflight_requests 1.0" not in _get(inflight)[1]:
            pass
        began = time.monotonic()
        assert process.stop() == 0
        waiting.join(PATIENCE_S)
        assert codes == [grpc.StatusCode.UNAVAILABLE]
        assert time.monotonic() - began < 25


def _get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_during_the_drain_delay_it_serves_but_is_not_ready(tmp_path: Path) -> None:
    with (
        running(tmp_path, shutdown={"drain_delay": "30s"}) as process,
        Client(process.port) as client,
    ):
        url = f"http://127.0.0.1:{process.http_port}/"
        assert _get(url + "ready")[0] == 200
        process.signal(signal.SIGTERM)
        process.wait_for("globalstore.server stopping")
        assert _get(url + "ready")[0] == 503
        assert _get(url + "livez")[0] == 200
        answer = client.runtime("RegisterWorker", worker_request())
        assert answer.status == wire.STATUS_OK
        process.signal(signal.SIGTERM)
        assert process.wait() == 1


def test_sighup_changes_the_log_level_and_names_what_needs_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as process, Client(process.port) as client:
        config = tmp_path / "config.json"
        config.write_text(
            config.read_text()[:-1]
            + ', "observability": {"logging": {"level": "DEBUG"}},'
            + ' "worker_policy": {"heartbeat_timeout": "9s"}}'
        )
        process.signal(signal.SIGHUP)
        line = process.wait_for("needs a restart").string
        assert "worker_policy.heartbeat_timeout" in line
        process.wait_for("configuration reloaded")
        client.admin("HealthCheck", wire.HealthCheckRequest())
        process.wait_for("globalstore.access call .*HealthCheck.*code=OK")
        config.write_text("{")
        process.signal(signal.SIGHUP)
        process.wait_for("configuration not reloaded")
        client.admin("HealthCheck", wire.HealthCheckRequest())


def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    database = {"db_file": str(tmp_path / "store.db")}
    answered: list[str] = []
    with running(tmp_path, database=database) as process, Client(process.port) as client:
        worker = client.runtime("RegisterWorker", worker_request())
        stop = threading.Event()

        def register(thread: int) -> None:
            number = 0
            while not stop.is_set():
                artifact_id = f"model-{thread}-{number}"
                try:
                    client.runtime(
                        "RegisterReplica", replica_request(worker.worker_id, artifact_id)
                    )
                except grpc.RpcError:
                    return
                answered.append(artifact_id)
                number += 1

        threads = [threading.Thread(target=register, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        while len(answered) < 400:
            threads[0].join(0.01)
        process.signal(signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        process.wait()
    with running(tmp_path, database=database) as process, Client(process.port) as client:
        counts = client.runtime(
            "BatchGetReplicaCounts", wire.BatchGetReplicaCountsRequest(artifact_ids=answered)
        )
        missing = [each.artifact_id for each in counts.counts if each.replica_count != 1]
        assert missing == []
        assert all(each.available_count == 0 for each in counts.counts)


def test_after_a_kill_workers_and_claims_go_on_where_they_were(tmp_path: Path) -> None:
    database = {"db_file": str(tmp_path / "store.db")}
    with running(tmp_path, database=database) as process, Client(process.port) as client:
        worker = client.runtime("RegisterWorker", worker_request())
        client.runtime("RegisterReplica", replica_request(worker.worker_id, max_concurrency=2))
        claim = claim_request()
        granted = client.runtime("RequestReplicaTransport", claim)
        process.signal(signal.SIGKILL)
        process.wait()
    with running(tmp_path, database=database) as process, Client(process.port) as client:
        beat = client.runtime(
            "WorkerHeartbeat",
            wire.WorkerHeartbeatRequest(
                worker_id=worker.worker_id, state_version=1, accepting_new_requests=True
            ),
        )
        assert beat.status == wire.STATUS_OK
        assert beat.state_sync_required
        hidden = client.runtime("RequestReplicaTransport", claim_request())
        assert hidden.status == wire.STATUS_TIMED_OUT
        replayed = client.runtime("RequestReplicaTransport", claim)
        assert replayed.transport_id == granted.transport_id
        client.runtime("RegisterReplica", replica_request(worker.worker_id, max_concurrency=2))
        again = client.runtime("RequestReplicaTransport", claim_request())
        assert again.status == wire.STATUS_OK
        full = client.runtime("RequestReplicaTransport", claim_request())
        assert full.status == wire.STATUS_TIMED_OUT
        done = client.runtime(
            "CompleteReplicaTransport",
            wire.CompleteReplicaTransportRequest(
                transport_id=granted.transport_id,
                outcome=wire.TRANSPORT_COMPLETION_OUTCOME_SUCCESS,
            ),
        )
        assert done.status == wire.STATUS_OK


def test_a_stopped_process_expires_nobody_when_it_goes_on(tmp_path: Path) -> None:
    policy = {"heartbeat_timeout": "1s"}
    with running(tmp_path, worker_policy=policy) as process, Client(process.port) as client:
        worker = client.runtime("RegisterWorker", worker_request())
        process.signal(signal.SIGSTOP)
        with pytest.raises(grpc.RpcError):
            # The stop has to outlast timeout and grace; a call that cannot be answered measures it.
            client.admin("HealthCheck", wire.HealthCheckRequest(), timeout=2.5)
        process.signal(signal.SIGCONT)
        beat = client.runtime(
            "WorkerHeartbeat",
            wire.WorkerHeartbeatRequest(worker_id=worker.worker_id, state_version=1),
        )
        assert beat.status == wire.STATUS_OK


def test_the_process_ends_with_an_error_when_it_cannot_vouch_for_the_disk(tmp_path: Path) -> None:
    # Beyond this file size every write fails as on a broken disk, also at COMMIT.
    config = {"database": {"db_file": str(tmp_path / "store.db")}}
    with running(tmp_path, **config) as process:
        _limit_file_size(process, 1 << 20)
        with Client(process.port) as client:
            worker = client.runtime("RegisterWorker", worker_request())
            codes = set()
            for number in range(10_000):
                request = replica_request(worker.worker_id, f"model-{number}")
                try:
                    client.runtime("RegisterReplica", request)
                except grpc.RpcError as error:
                    codes.add(error.code())
                    break
            assert codes == {grpc.StatusCode.UNAVAILABLE}
        assert process.wait() == 1
        assert process.lines[-1].startswith("internal: ")


def _limit_file_size(process: Process, size: int) -> None:
    import resource

    resource.prlimit(process.child.pid, resource.RLIMIT_FSIZE, (size, size))
