"""A full disk: writes are refused, reads go on, and it ends by itself."""

import contextlib
import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from server_process import PATIENCE_S, Client, Process, running
from servers import replica_request, worker_request

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs privileges")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def fill(disk: Path) -> Path:
    """Use up what space there is; return the file that did."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    return ballast


def health(process: Process) -> dict[str, str]:
    url = f"http://127.0.0.1:{process.http_port}/health"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        assert answer.status == 200
        return dict(json.loads(answer.read()))


def wait_for_health(process: Process, status: str) -> dict[str, str]:
    ends = time.monotonic() + PATIENCE_S
    while (report := health(process))["status"] != status:
        assert time.monotonic() < ends, report
    return report


def test_a_server_that_was_killed_starts_on_a_full_disk_and_answers_reads(
    small_disk: Path,
) -> None:
    config = {"database": {"db_file": str(small_disk / "store.db")}}
    with running(small_disk.parent, **config) as process, Client(process.port) as client:
        worker = client.runtime("RegisterWorker", worker_request())
        client.runtime("RegisterReplica", replica_request(worker.worker_id, "model"))
        process.signal(signal.SIGKILL)
        process.wait()
    ballast = fill(small_disk)
    with running(small_disk.parent, **config) as process, Client(process.port) as client:
        assert "full" in health(process)["reason"]

        def available() -> tuple[int, int]:
            request = wire.BatchGetReplicaCountsRequest(artifact_ids=["model"])
            (found,) = client.runtime("BatchGetReplicaCounts", request).counts
            return found.replica_count, found.available_count

        def beat() -> Any:
            request = wire.WorkerHeartbeatRequest(worker_id=worker.worker_id, state_version=1)
            return client.runtime("WorkerHeartbeat", request)

        assert available()[0] == 1
        assert beat().state_sync_required
        with pytest.raises(grpc.RpcError) as refused:
            client.runtime("RegisterWorker", worker_request("d2"))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        ballast.unlink()
        wait_for_health(process, "ok")
        # The repairs came before everything else: what the worker held has to be confirmed.
        assert available() == (1, 0)
        assert beat().state_sync_required
        assert client.runtime("RegisterWorker", worker_request("d2")).status == wire.STATUS_OK
        assert process.stop() == 0
        assert not any("Traceback" in line for line in process.lines)


def test_a_full_disk_does_not_spoil_the_stop(small_disk: Path) -> None:
    config = {"database": {"db_file": str(small_disk / "store.db")}}
    with running(small_disk.parent, **config) as process, Client(process.port) as client:
        worker = client.runtime("RegisterWorker", worker_request())
        ballast = fill(small_disk)
        assert process.stop() == 0
    ballast.unlink()
    with running(small_disk.parent, **config) as process, Client(process.port) as client:
        assert client.runtime("RegisterWorker", worker_request()).worker_id == worker.worker_id
        assert process.stop() == 0


def test_writes_are_refused_reads_go_on_and_space_cures_it(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    config = {"database": {"db_file": str(small_disk / "store.db")}}
    with running(small_disk.parent, **config) as process, Client(process.port) as client:
        worker = client.runtime("RegisterWorker", worker_request())
        stored = []

        def register() -> grpc.StatusCode:
            artifact_id = f"{'model' * 50}-{len(stored)}"
            try:
                client.runtime("RegisterReplica", replica_request(worker.worker_id, artifact_id))
            except grpc.RpcError as error:
                return error.code()
            stored.append(artifact_id)
            return grpc.StatusCode.OK

        while (code := register()) is grpc.StatusCode.OK:
            pass
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "full" in wait_for_health(process, "degraded")["reason"]
        counts = client.runtime(
            "BatchGetReplicaCounts", wire.BatchGetReplicaCountsRequest(artifact_ids=stored)
        )
        assert all(each.replica_count == 1 for each in counts.counts)
        beat = client.runtime(
            "WorkerHeartbeat",
            wire.WorkerHeartbeatRequest(worker_id=worker.worker_id, state_version=1),
        )
        assert beat.status == wire.STATUS_OK
        ballast.unlink()
        # Nobody writes meanwhile.
        wait_for_health(process, "ok")
        assert register() is grpc.StatusCode.OK
        assert process.stop() == 0
