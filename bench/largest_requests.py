"""The largest request of each method: how long it takes, and what others notice of it.

    uv run bench/largest_requests.py
    uv run bench/largest_requests.py --methods WorkerHeartbeat RegisterReplica

Each request has as much as the bounds of its method allow (docs/limits.md), in the shape that gives
the server most to do. It is sent to a server of its own, so that memory which an earlier one freed
is not taken for none. A second process calls HealthCheck by grpcio all the while. Growth is that of
the server's largest resident size during the call. A method that no shape below is made for gets
every text and every list filled.
"""

import argparse
import hashlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attrs
import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from measuring import Child, global_store, table
from others import NO_LIMIT, memory_info, registration

import globalstore.config
from globalstore.api.bounds.checks import Table, is_map, is_text
from globalstore.api.bounds.methods import methods, request_bounds
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2 as tiers
from globalstore.rules import multihash

# Sections of the configuration besides the defaults.
SECTIONS = {"worker_policy": {"group_realization": {"enabled": True}}}

HEALTH = "/tensorcast.global_store.v1.ClusterAdminService/HealthCheck"
RUNTIME = "/tensorcast.global_store.v1.ClusterRuntimeService/"
TIMEOUT_S = 120.0

# The other client's pause between two calls.
PAUSE_S = 0.001

# Before a request, for the other client to find its pace, and after it, for what it left to do.
SETTLING_S = 0.3

MIB = 1 << 20
KIB = 1 << 10

# Room for what is in a message besides the texts that fill it.
LARGE = 60 * MIB


@attrs.frozen
class Known:
    """What a server knows before the request is sent."""

    worker_id: str


Shape = Callable[[Known], Any]


def texts(count: int, size: int) -> list[str]:
    """Return different texts of so many bytes."""
    return [f"{number:06}".ljust(size, "x") for number in range(count)]


def index(size: int) -> bytes:
    """Return the index of as many tensors as fit."""
    entry = '[0,1024,[16,16],[16,1],"float32",0]'
    count = size // (len(entry) + len('"000000":,'))
    return ("{" + ",".join(f'"{number:06}":{entry}' for number in range(count)) + "}").encode()


def brackets(size: int) -> bytes:
    """Return a JSON object of as many values as fit."""
    return ('{"a":[' + ",".join(["[]"] * (size // 3 - 4)) + "]}").encode()


def buffers(size: int) -> dict[str, Any]:
    """Return the memory keys of a replica in as many buffers as there may be, in all so large."""
    count = 16_384
    return {
        "remote_memory_keys": texts(count, size // count - 8),
        "buffer_sizes": [100] * count,
    }


def heartbeat(known: Known) -> Any:
    count = 262_144
    return wire.WorkerHeartbeatRequest(
        worker_id=known.worker_id,
        state_version=1,
        registered_artifact_ids=texts(count, LARGE // count - 4),
    )


def snapshot(known: Known, entries: list[common.ReplicaInfo]) -> Any:
    return wire.ReconcileWorkerStateRequest(
        worker_id=known.worker_id,
        generation=1,
        request_seq=1,
        inventory=entries,
        request_kind=wire.RECONCILE_REQUEST_KIND_SNAPSHOT,
    )


def many_replicas(known: Known) -> Any:
    count = 262_144
    where = common.MemoryInfo(
        node_id="large", node_address="large.bench", node_port=1, memory_size=100
    )
    where.transport.CopyFrom(
        common.ReplicaTransportMetadata(
            export_state=common.ReplicaTransportMetadata.EXPORT_STATE_EXPORTABLE,
            remote_memory_keys=["k" * 40],
            buffer_sizes=[100],
        )
    )
    return snapshot(
        known,
        [
            common.ReplicaInfo(ref=common.ReplicaRef(artifact_id=name), memory_info=where)
            for name in texts(count, 100)
        ],
    )


def large_replicas(known: Known) -> Any:
    size = 3 * MIB // 2 - KIB
    where = memory_info("large", **buffers(size - 200_000))
    where.memory_size = 0
    return snapshot(
        known,
        [
            common.ReplicaInfo(ref=common.ReplicaRef(artifact_id=name), memory_info=where)
            for name in texts(LARGE // size, 100)
        ],
    )


def replica(known: Known) -> Any:
    where = memory_info("large", **buffers(MIB))
    where.memory_size = 100 * 16_384
    return wire.RegisterReplicaRequest(
        artifact_id="model",
        worker_id=known.worker_id,
        max_concurrency=1,
        mem_info=where,
        tensor_index_data=index(16 * MIB),
        client_request_id="once",
    )


def counts(_: Known) -> Any:
    return wire.BatchGetReplicaCountsRequest(
        artifact_ids=islice(cycle(texts(10_000, LARGE // 100_000 - 4)), 100_000)
    )


def chunk_states(known: Known) -> Any:
    return wire.BatchUpdateChunkStatesRequest(
        node_id="large",
        worker_id=known.worker_id,
        updates=[
            wire.ChunkStateUpdate(artifact_id=name, chunk_idx=1, state=wire.CHUNK_STATE_HOT)
            for name in texts(100_000, LARGE // 100_000 - 20)
        ],
    )


def chunk_locations(_: Known) -> Any:
    return wire.QueryChunkLocationsRequest(artifact_id="model", chunk_indices=range(250_000))


def keepalives(_: Known) -> Any:
    return wire.BatchKeepaliveShardHomeLeasesRequest(
        ttl_ms=1000,
        leases=[
            wire.ShardHomeLeaseKeepalive(shard_id=number, lease_generation=1, lease_token=token)
            for number, token in enumerate(texts(10_000, 2048))
        ],
    )


def shard_routes(_: Known) -> Any:
    return wire.BatchGetShardHomeLeasesRequest(shard_ids=range(2**62, 2**62 + 10_000))


def metadata(_: Known, data: bytes) -> Any:
    digest = multihash.encode(hashlib.sha256(data).digest())
    descriptor = common.ArtifactDescriptor(artifact_id="model", index_multihash=digest)
    return wire.UpsertArtifactMetadataRequest(descriptor=descriptor, canonical_index_data=data)


def version_set(kind: int, count: int, selection_bytes: int, metadata_bytes: int) -> Shape:
    def made(_: Known) -> Any:
        names = texts(selection_bytes // 20, 16)
        return wire.RegisterGroupVersionSetRequest(
            realization_kind=wire.GroupRealizationKind.ValueType(kind),
            parts=[
                wire.GroupVersionSetPart(
                    part_id=part_id,
                    selection=common.ArtifactSelection(artifact_id="model", tensor_names=names),
                    part_metadata_json=json.dumps("m" * metadata_bytes),
                )
                for part_id in texts(count, 40)
            ],
        )

    return made


def realization(_: Known) -> Any:
    parts = texts(1024, 1024)
    chosen = common.ArtifactSelection(artifact_id="model", tensor_names=texts(MIB // 20, 16))
    return wire.BeginOrJoinGroupRealizationRequest(
        context=wire.GroupRealizationContext(
            group_kind="bench",
            group_id="bench",
            part_id=parts[0],
            required_part_ids=parts,
            total_parts=len(parts),
        ),
        version=wire.VersionReference(explicit_selection=chosen),
        daemon_id="large",
    )


def tier_lease(_: Known) -> Any:
    return tiers.RequestMemoryTierLeaseRequest(
        node_id="large", artifact_id="model", chunk_ids=range(2**31, 2**31 + 100_000), bytes=1
    )


# Shapes by method; a method may have several, told apart by a word.
SHAPES: dict[str, dict[str, Shape]] = {
    "WorkerHeartbeat": {"many ids": heartbeat},
    "ReconcileWorkerState": {"many replicas": many_replicas, "large replicas": large_replicas},
    "RegisterReplica": {"large index, many buffers": replica},
    "BatchGetReplicaCounts": {"repeated ids": counts},
    "BatchUpdateChunkStates": {"an artifact each": chunk_states},
    "QueryChunkLocations": {"many chunks": chunk_locations},
    "BatchKeepaliveShardHomeLeases": {"long tokens": keepalives},
    "BatchGetShardHomeLeases": {"many shards": shard_routes},
    "UpsertArtifactMetadata": {
        "many tensors": lambda known: metadata(known, index(16 * MIB)),
        "empty lists": lambda known: metadata(known, brackets(16 * MIB)),
    },
    "RegisterGroupVersionSet": {
        "many parts": version_set(
            wire.GROUP_REALIZATION_KIND_PER_PART_SELECTION, 4096, 7_000, 7_000
        ),
        "one large selection": version_set(
            wire.GROUP_REALIZATION_KIND_SAME_SELECTION, LARGE // MIB, 900_000, 10
        ),
    },
    "BeginOrJoinGroupRealization": {"many parts, large selection": realization},
    "RequestMemoryTierLease": {"many chunks": tier_lease},
}


def filled(kind: Any, bounds: Table, room: int) -> Any:
    """Return a message with all its texts and lists filled, in so many bytes at most."""
    message = GetMessageClass(kind)()
    lists = [field for field in kind.fields if field.is_repeated and not is_map(field)]
    for field in kind.fields:
        if not field.is_repeated and not field.containing_oneof:
            _fill(message, field, bounds, room)
    for field in lists:
        share = max(room // 2 // len(lists), 1)
        most = bounds.count(field).most
        entries = getattr(message, field.name)
        if field.message_type is not None:
            entry = filled(field.message_type, bounds, max(share // most, 16))
            entries.extend([entry] * min(most, share // (entry.ByteSize() + 8)))
        elif is_text(field):
            size = max(min(share // most - 8, bounds.size(field).most), 8)
            values = texts(min(most, share // (size + 8)), size)
            entries.extend(
                values if field.type == FieldDescriptor.TYPE_STRING else map(str.encode, values)
            )
        else:
            entries.extend([1] * min(most, share // 2))
    return message


def _fill(message: Any, field: FieldDescriptor, bounds: Table, room: int) -> None:
    if field.message_type is not None:
        getattr(message, field.name).CopyFrom(filled(field.message_type, bounds, room))
    elif is_text(field):
        # Half of what an id may have is for white space around it.
        most = bounds.size(field).most
        text = "x" * min(1024 if most == 2048 else most, room)
        setattr(
            message,
            field.name,
            text if field.type == FieldDescriptor.TYPE_STRING else text.encode(),
        )
    else:
        setattr(message, field.name, 1)


def _call_all_the_while(port: int, pipe: Connection) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(HEALTH)
        call(b"", timeout=TIMEOUT_S)
        pipe.send("calling")
        slowest = 0.0
        while not pipe.poll():
            began = time.perf_counter()
            call(b"", timeout=TIMEOUT_S)
            slowest = max(slowest, time.perf_counter() - began)
            time.sleep(PAUSE_S)
    pipe.send(slowest * 1000)


@contextmanager
def another_client(port: int) -> Iterator[list[float]]:
    """Let another client call during the block; the list gets its slowest call, in ms."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_call_all_the_while, args=(port, theirs)
    )
    process.start()
    slowest: list[float] = []
    try:
        ours.recv()
        yield slowest
        ours.send("enough")
        slowest.append(ours.recv())
    finally:
        process.join()


def peak_bytes(server: Child) -> int:
    """Return the largest resident size since the last time."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    return peak


def sent(server: Child, path: str, shape: Shape, *, tells: bool) -> list[object]:
    """Send a request; return its size and what came of it. Reasons of refusals only if told."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options=NO_LIMIT) as channel:
        register = channel.unary_unary(RUNTIME + "RegisterWorker")
        answer = register(registration("large").SerializeToString())
        known = Known(wire.RegisterWorkerResponse.FromString(answer).worker_id)
        request = shape(known).SerializeToString()
        with another_client(server.port) as slowest:
            time.sleep(SETTLING_S)
            peak_bytes(server)
            before = server.resident_bytes()
            began = time.perf_counter()
            try:
                answer = channel.unary_unary(path)(request, timeout=TIMEOUT_S)
                outcome = f"OK, {len(answer) / 1e6:.2f} MB"
            except grpc.RpcError as error:
                outcome = error.code().name + (f": {error.details()[:80]}" if tells else "")
            seconds = time.perf_counter() - began
            time.sleep(SETTLING_S)
            grown = peak_bytes(server) - before
    return [
        f"{len(request) / 1e6:.2f}",
        outcome,
        f"{seconds:.2f}",
        f"{slowest[0]:.0f}",
        f"{grown / 1e6:.0f}",
    ]


def measured(path: str, name: str, shape: Shape) -> list[object]:
    """Send a request to a new server; return the row of the table."""
    title = path.rsplit("/", 1)[1] + (f", {name}" if name else "")
    with (
        tempfile.TemporaryDirectory() as folder,
        global_store(Path(folder) / "store.db", sections=SECTIONS) as server,
    ):
        return [title, *sent(server, path, shape, tells=bool(name))]


def cases(wanted: list[str]) -> Iterator[tuple[str, str, Shape]]:
    """Yield path, name and shape of each request; of all methods unless some are wanted."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(SECTIONS))
        config = globalstore.config.load(file)
    bounds, largest = Table(config), request_bounds(config)
    for path, method in methods():
        if method.client_streaming or method.server_streaming:
            continue
        if wanted and method.name not in wanted:
            continue
        if method.name in SHAPES:
            for name, shape in SHAPES[method.name].items():
                yield path, name, shape
        else:
            request = filled(method.input_type, bounds, largest[path].bytes_max * 9 // 10)
            yield path, "", lambda _, request=request: request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="*", default=[], help="all without it")
    arguments = parser.parse_args()
    head = ["request", "MB", "answer", "seconds", "others' slowest, ms", "growth, MB"]
    rows = []
    for case in cases(arguments.methods):
        rows.append(measured(*case))
        print(*rows[-1], flush=True)
    print()
    table(head, rows)


if __name__ == "__main__":
    main()
