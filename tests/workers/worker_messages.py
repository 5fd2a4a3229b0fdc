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


def request(contract: Contract, name: str, fields: dict[str, Any]) -> Any:
    """Return the request of a step, as its daemon would send it now but for what is said."""
    return _REQUESTS[name](contract, fields)


def _worker(contract: Contract, daemon: int) -> Worker | None:
    return contract.workers.get(f"d{daemon}")


def _worker_id(contract: Contract, daemon: int) -> str:
    worker = _worker(contract, daemon)
    return worker.worker_id if worker else GHOST


def _register(contract: Contract, fields: dict[str, Any]) -> Any:
    daemon, node = fields["daemon"], fields["node"]
    place = daemon if fields["endpoint"] is None else fields["endpoint"]
    previous = {"own": daemon, "other": (daemon + 1) % DAEMONS}.get(fields["previous"])
    return wire.RegisterWorkerRequest(
        daemon_id=f"d{daemon}",
        node_id=f"n{place % 2 if node is None else node}",
        node_address=f"h{place}.example",
        grpc_port=fields["port"],
        p2p_port=1,
        mem_pool_total_size=1000,
        mem_pool_available_size=400,
        capability_flags=fields["flags"],
        is_recovery_registration=fields["recovery"],
        previous_worker_id=(
            _worker_id(contract, previous)
            if previous is not None
            else GHOST if fields["previous"] == "ghost" else ""
        ),
    )  # fmt: skip


def _heartbeat(contract: Contract, fields: dict[str, Any]) -> Any:
    daemon = fields["daemon"]
    worker_id, worker = _worker_id(contract, daemon), _worker(contract, daemon)
    version = worker.version if worker else 1
    request = wire.WorkerHeartbeatRequest(
        worker_id=worker_id,
        state_version=0 if fields["version"] is None else version + fields["version"],
        state_checksum={
            "right": contract.checksum(worker_id),
            "wrong": "0" * 16,
            "empty": EMPTY,
        }.get(fields["checksum"], ""),
        accepting_new_requests=fields["accepting"],
        mem_pool_available_size=300,
        registered_artifact_ids=fields["artifacts"],
        daemon_id=_speaks_for(fields),
    )
    if fields["flags"] is not None:
        request.capability_flags = fields["flags"]
    return request


def _reconcile(contract: Contract, fields: dict[str, Any]) -> Any:
    worker = _worker(contract, fields["daemon"])
    request = wire.ReconcileWorkerStateRequest(
        worker_id=_worker_id(contract, fields["daemon"]),
        daemon_id=_speaks_for(fields),
        generation=max(0, (worker.generation if worker else 1) + fields["generation"]),
        request_seq=max(0, (worker.seq if worker else 0) + fields["seq"]),
        request_kind=fields["kind"],
    )
    if fields["entries"] == "mirror":
        rows = contract.held(request.worker_id)
        request.inventory.extend(_mirror(key, row.size, row.keys) for key, row in rows.items())
    elif fields["entries"] != "empty":
        for entry in fields["entries"]:
            request.inventory.append(_inventory_entry(fields["daemon"], entry))
    if request.inventory and fields["taken_s_ago"] is not None:
        taken = contract.wall_us - fields["taken_s_ago"] * 1_000_000
        request.inventory[0].stats.registered_ts.FromMicroseconds(taken)
    if fields["malformed"]:
        request.inventory.append(common.ReplicaInfo())
    return request


def _unregister(contract: Contract, fields: dict[str, Any]) -> Any:
    return wire.UnregisterWorkerRequest(
        worker_id=_worker_id(contract, fields["daemon"]),
        is_graceful_shutdown=fields["graceful"],
        client_request_id=fields["request_id"],
    )


def _replica(contract: Contract, fields: dict[str, Any]) -> Any:
    return wire.RegisterReplicaRequest(
        artifact_id=fields["artifact"],
        worker_id=GHOST if fields["lost"] else _worker_id(contract, fields["daemon"]),
        max_concurrency=1,
        mem_info=_memory_info(fields["daemon"], fields),
    )


_REQUESTS = {
    "register": _register,
    "heartbeat": _heartbeat,
    "reconcile": _reconcile,
    "unregister": _unregister,
    "replica": _replica,
}


def _speaks_for(fields: dict[str, Any]) -> str:
    daemon = fields["daemon"]
    return {"own": f"d{daemon}", "other": f"d{(daemon + 1) % DAEMONS}"}.get(
        fields["speaks_for"], ""
    )


def _memory_info(daemon: int, fields: dict[str, Any]) -> Any:
    place = daemon if fields["node"] is None else fields["node"]
    info = common.MemoryInfo(
        node_id=f"n{place % 2}",
        node_address=f"h{place}.example",
        node_port=fields["port"],
        memory_type=fields["tier"],
        device_id=fields["device"],
        memory_size=fields["size"],
    )
    if fields["view"]:
        info.byte_space.kind, info.byte_space.id = common.BYTE_SPACE_KIND_VIEW, fields["view"]
    if fields["keys"] != "none":
        info.remote_memory_keys.append("k")
        info.buffer_sizes.append(fields["size"] if fields["keys"] == "valid" else 7)
    return info


def _inventory_entry(daemon: int, fields: dict[str, Any]) -> Any:
    entry = common.ReplicaInfo(memory_info=_memory_info(daemon, fields))
    entry.ref.artifact_id = fields["artifact"]
    if fields["available"] is not None:
        entry.stats.is_available = fields["available"]
    return entry


def _mirror(key: Identity, size: int, keys: int) -> Any:
    """What a daemon would say that holds what the server believes."""
    fields = key._asdict() | {"node": None, "size": size, "available": True}
    fields |= {"tier": {"RAM": 1, "GPU": 2}.get(key.label, 3), "keys": "valid" if keys else "none"}
    entry = _inventory_entry(0, fields)
    entry.memory_info.node_id, entry.memory_info.node_address = key.node, key.address
    return entry


def reading(request: Any, answer: Any) -> Any:
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
