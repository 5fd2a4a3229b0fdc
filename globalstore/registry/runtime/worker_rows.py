"""The rows of workers: what four tables hold of one, read by name in one place."""

from typing import Any, NamedTuple

import attrs

from globalstore.db import Parameters, Snapshot
from globalstore.rules.values import unsigned64


@attrs.frozen
class WorkerState:
    """A worker as the database has it. Sizes in bytes, times in microseconds since 1970."""

    worker_key: int
    worker_id: str
    daemon_id: str
    node_id: str
    node_address: str
    grpc_port: int
    p2p_port: int
    mem_pool_total_size: int
    mem_pool_available_size: int
    accepting_new_requests: bool
    capability_flags: int
    last_heartbeat_us: int
    generation: int
    request_seq: int
    state_version: int
    needs_reconcile: bool

    def log_fields(self) -> dict[str, object]:
        """Return what the log says of a worker."""
        return worker_fields(self)


def worker_fields(worker: Any) -> dict[str, object]:
    """Return what the log says of a worker, as it is stored or as it is kept in memory."""
    return {
        "worker_id": worker.worker_id,
        "daemon_id": worker.daemon_id,
        "node_id": worker.node_id,
        "address": f"{worker.node_address}:{worker.grpc_port}",
        "generation": worker.generation,
        "state_version": worker.state_version,
    }


class WorkerRow(NamedTuple):
    """A worker as it is stored. ``inactive_at`` (µs) is None while it is active."""

    worker_key: int
    worker_id: str
    daemon_id: str
    node_id: str
    node_address: str
    grpc_port: int
    p2p_port: int
    mem_pool_total_size: int
    mem_pool_available_size: int
    accepting_new_requests: int
    capability_flags: int
    last_heartbeat: int
    generation: int
    request_seq: int
    state_version: int
    needs_reconcile: int
    inactive_at: int | None

    @property
    def state(self) -> WorkerState:
        """The worker as it is shown."""
        return WorkerState(
            self.worker_key,
            self.worker_id,
            self.daemon_id,
            self.node_id,
            self.node_address,
            self.grpc_port,
            self.p2p_port,
            self.mem_pool_total_size,
            self.mem_pool_available_size,
            bool(self.accepting_new_requests),
            unsigned64(self.capability_flags),
            self.last_heartbeat,
            self.generation,
            self.request_seq,
            self.state_version,
            bool(self.needs_reconcile),
        )


# A worker that lost its endpoint to another one shows port 0.
_EXPRESSIONS = {"grpc_port": "coalesce(w.grpc_port, 0)"}
_ROW = f"""
SELECT {", ".join(_EXPRESSIONS.get(name, name) for name in WorkerRow._fields)}
FROM workers w JOIN worker_ids USING (worker_key) JOIN worker_liveness USING (worker_key)
     JOIN worker_cursors USING (worker_key)
"""


def active(tx: Snapshot) -> list[WorkerRow]:
    """Return every worker that is neither unregistered nor expired."""
    return list(map(WorkerRow._make, tx.all(f"{_ROW} WHERE inactive_at IS NULL")))


def of_key(tx: Snapshot, worker_key: int) -> WorkerRow | None:
    """Return the worker of a key, active or not."""
    return _one(tx, "worker_key = :key", {"key": worker_key})


def of_id(tx: Snapshot, worker_id: str) -> WorkerRow | None:
    """Return the worker of an id, active or not."""
    return _one(tx, "worker_id = :id", {"id": worker_id})


def of_daemon(tx: Snapshot, daemon_id: str) -> WorkerRow | None:
    """Return the worker of a daemon, active or not."""
    return _one(tx, "daemon_id = :id", {"id": daemon_id})


def at_endpoint(tx: Snapshot, node_address: str, grpc_port: int) -> WorkerRow | None:
    """Return the worker that has an endpoint, active or not."""
    endpoint = {"address": node_address, "port": grpc_port}
    return _one(tx, "node_address = :address AND w.grpc_port = :port", endpoint)


def _one(tx: Snapshot, where: str, parameters: Parameters) -> WorkerRow | None:
    row = tx.one(f"{_ROW} WHERE {where}", parameters)
    return None if row is None else WorkerRow._make(row)
