"""Steps as requests, and answers as what the contract speaks of."""

from typing import Any

from purerpc import StatusCode
from worker_contract import Contract
from worker_facts import Identity, Reconciled, Worker, identity
from worker_steps import DAEMONS

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules.checksums import EMPTY

GHOST = "worker_lost_00000000"

_ORDER = [
    wire.StateChange.CHANGE_TYPE_ADD_REPLICA,
    wire.StateChange.CHANGE_TYPE_REMOVE_REPLICA,
    wire.StateChange.CHANGE_TYPE_UPDATE_REPLICA,
]


def request(contract: Contract, name: str, said: dict[str, Any]) -> Any:
    """Return the request of a step, as its daemon would send it now but for what is said."""
    return _REQUESTS[name](contract, said)


def _worker(contract: Contract, daemon: int) -> Worker | None:
    return contract.workers.get(f"d{daemon}")


def _worker_id(contract: Contract, daemon: int) -> str:
    worker = _worker(contract, daemon)
    return worker.worker_id if worker else GHOST


def _register(contract: Contract, said: dict[str, Any]) -> Any:
    daemon, node = said["daemon"], said["node"]
    place = daemon if said["endpoint"] is None else said["endpoint"]
    previous = {"own": daemon, "other": (daemon + 1) % DAEMONS}.get(said["previous"])
    return wire.RegisterWorkerRequest(
        daemon_id=f"d{daemon}",
        node_id=f"n{place % 2 if node is None else node}",
        node_address=f"h{place}.example",
        grpc_port=said["port"],
        p2p_port=1,
        mem_pool_total_size=1000,
        mem_pool_available_size=400,
        capability_flags=said["flags"],
        is_recovery_registration=said["recovery"],
        previous_worker_id=(
            _worker_id(contract, previous)
            if previous is not None
            else GHOST if said["previous"] == "ghost" else ""
        ),
    )  # fmt: skip


def _heartbeat(contract: Contract, said: dict[str, Any]) -> Any:
    daemon = said["daemon"]
    worker_id, worker = _worker_id(contract, daemon), _worker(contract, daemon)
    version = worker.version if worker else 1
    request = wire.WorkerHeartbeatRequest(
        worker_id=worker_id,
        state_version=0 if said["version"] is None else version + said["version"],
        state_checksum={
            "right": contract.checksum(worker_id),
            "wrong": "0" * 16,
            "empty": EMPTY,
        }.get(said["checksum"], ""),
        accepting_new_requests=said["accepting"],
        mem_pool_available_size=300,
        registered_artifact_ids=said["artifacts"],
        daemon_id=_speaks_for(said),
    )
    if said["flags"] is not None:
        request.capability_flags = said["flags"]
    return request


def _reconcile(contract: Contract, said: dict[str, Any]) -> Any:
    worker = _worker(contract, said["daemon"])
    request = wire.ReconcileWorkerStateRequest(
        worker_id=_worker_id(contract, said["daemon"]),
        daemon_id=_speaks_for(said),
        generation=max(0, (worker.generation if worker else 1) + said["generation"]),
        request_seq=max(0, (worker.seq if worker else 0) + said["seq"]),
        request_kind=said["kind"],
    )
    if said["entries"] == "mirror":
        rows = contract.held(request.worker_id)
        request.inventory.extend(_mirror(key, row.size, row.keys) for key, row in rows.items())
    elif said["entries"] != "empty":
        for entry in said["entries"]:
            request.inventory.append(_inventory_entry(said["daemon"], entry))
    if request.inventory and said["taken_s_ago"] is not None:
        taken = contract.wall_us - said["taken_s_ago"] * 1_000_000
        request.inventory[0].stats.registered_ts.FromMicroseconds(taken)
    if said["malformed"]:
        request.inventory.append(common.ReplicaInfo())
    return request


def _unregister(contract: Contract, said: dict[str, Any]) -> Any:
    return wire.UnregisterWorkerRequest(
        worker_id=_worker_id(contract, said["daemon"]),
        is_graceful_shutdown=said["graceful"],
        client_request_id=said["request_id"],
    )


def _replica(contract: Contract, said: dict[str, Any]) -> Any:
    return wire.RegisterReplicaRequest(
        artifact_id=said["artifact"],
        worker_id=GHOST if said["lost"] else _worker_id(contract, said["daemon"]),
        max_concurrency=1,
        mem_info=_memory_info(said["daemon"], said),
    )


_REQUESTS = {
    "register": _register,
    "heartbeat": _heartbeat,
    "reconcile": _reconcile,
    "unregister": _unregister,
    "replica": _replica,
}


def _speaks_for(said: dict[str, Any]) -> str:
    daemon = said["daemon"]
    return {"own": f"d{daemon}", "other": f"d{(daemon + 1) % DAEMONS}"}.get(said["speaks_for"], "")


def _memory_info(daemon: int, said: dict[str, Any]) -> Any:
    place = daemon if said["node"] is None else said["node"]
    info = common.MemoryInfo(
        node_id=f"n{place % 2}",
        node_address=f"h{place}.example",
        node_port=said["port"],
        memory_type=said["tier"],
        device_id=said["device"],
        memory_size=said["size"],
    )
    if said["view"]:
        info.byte_space.kind, info.byte_space.id = common.BYTE_SPACE_KIND_VIEW, said["view"]
    if said["keys"] != "none":
        info.remote_memory_keys.append("k")
        info.buffer_sizes.append(said["size"] if said["keys"] == "valid" else 7)
    return info


def _inventory_entry(daemon: int, said: dict[str, Any]) -> Any:
    entry = common.ReplicaInfo(memory_info=_memory_info(daemon, said))
    entry.ref.artifact_id = said["artifact"]
    if said["available"] is not None:
        entry.stats.is_available = said["available"]
    return entry


def _mirror(key: Identity, size: int, keys: int) -> Any:
    """What a daemon would say that holds what the server believes."""
    said = key._asdict() | {"node": None, "size": size, "available": True}
    said |= {"tier": {"RAM": 1, "GPU": 2}.get(key.label, 3), "keys": "valid" if keys else "none"}
    entry = _inventory_entry(0, said)
    entry.memory_info.node_id, entry.memory_info.node_address = key.node, key.address
    return entry


def told(request: Any, answer: Any) -> Any:
    """What of an answer the contract speaks of."""
    match answer:
        case wire.RegisterWorkerResponse(status=wire.STATUS_OK):
            return (
                answer.status,
                answer.worker_id,
                answer.state_sync_required,
                answer.expected_state_version,
                answer.reconcile_generation,
            )
        case wire.WorkerHeartbeatResponse(status=wire.STATUS_OK):
            return (
                answer.status,
                answer.expected_state_version,
                answer.state_sync_required,
                list(answer.obsolete_replicas),
            )
        case wire.ReconcileWorkerStateResponse():
            changes = [
                (c.type, _identity_of(c.replica_info), c.replica_info.stats.is_available)
                for c in answer.state_changes
            ]
            kinds = [_ORDER.index(kind) for kind, *_ in changes]
            assert kinds == sorted(kinds), f"order of the changes: {kinds}"
            return Reconciled(
                answer.result_kind,
                answer.new_state_version,
                answer.new_state_checksum,
                answer.retry_after_ms,
                tuple(sorted(map(_identity_of, answer.expected_replicas))),
                tuple(sorted(changes)),
            )
        case StatusCode():
            return answer
        case _:
            return answer.status


def _identity_of(info: Any) -> Identity:
    return identity(info.ref.artifact_id, info.memory_info)
