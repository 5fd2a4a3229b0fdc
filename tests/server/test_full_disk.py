"""A full disk: writes are refused, reads go on, and it ends by itself."""

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

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
        assert register() is grpc.StatusCode.OK
        wait_for_health(process, "ok")
        assert process.stop() == 0
