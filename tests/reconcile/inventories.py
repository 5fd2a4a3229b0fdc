"""Inventories, and a daemon's side of ReconcileWorkerState, for the tests of this folder."""

from typing import Any

from servers import KEY, Serving, memory_info

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

SNAPSHOT = wire.RECONCILE_REQUEST_KIND_SNAPSHOT
DELTA = wire.RECONCILE_REQUEST_KIND_DELTA
UNSPECIFIED = wire.RECONCILE_REQUEST_KIND_UNSPECIFIED

APPLIED = wire.RECONCILE_RESULT_KIND_APPLIED
NOOP = wire.RECONCILE_RESULT_KIND_NOOP
IGNORED_STALE = wire.RECONCILE_RESULT_KIND_IGNORED_STALE
RETRY_LATER = wire.RECONCILE_RESULT_KIND_RETRY_LATER
REBASE_REQUIRED = wire.RECONCILE_RESULT_KIND_REBASE_REQUIRED

ADD = wire.StateChange.CHANGE_TYPE_ADD_REPLICA
REMOVE = wire.StateChange.CHANGE_TYPE_REMOVE_REPLICA
UPDATE = wire.StateChange.CHANGE_TYPE_UPDATE_REPLICA


def entry(
    artifact_id: str = "model", node: str = "d1", *, available: bool | None = True, **fields: Any
) -> Any:
    """An inventory entry; its place and keys are those of ``servers.memory_info``."""
    stats = {
        name: fields.pop(name)
        for name in ("max_concurrency", "current_requests", "registered_ts")
        if name in fields
    }
    ref = common.ReplicaRef(artifact_id=artifact_id, replica_id=fields.pop("replica_id", ""))
    info = memory_info(node, **fields)
    if available is None:
        assert not stats
        return common.ReplicaInfo(ref=ref, memory_info=info)
    return common.ReplicaInfo(
        ref=ref,
        memory_info=info,
        stats=common.ReplicaStats(is_available=available, **stats),
    )


def transport(state: str = "EXPORTABLE", generation: int = 1, **fields: Any) -> Any:
    """A transport submessage with one key of 100 bytes."""
    return common.ReplicaTransportMetadata(
        **{
            "export_state": f"EXPORT_STATE_{state}",
            "export_generation": generation,
            "remote_memory_keys": [KEY],
            "buffer_sizes": [100],
        }
        | fields
    )


class Reconciler:
    """Keeps the cursor of one worker, as its daemon does."""

    def __init__(self, store: Serving, registered: Any) -> None:
        self.store = store
        self.worker_id = registered.worker_id
        self.generation = registered.reconcile_generation
        self.seq = 0

    async def send(self, *entries: Any, kind: Any = SNAPSHOT, **fields: Any) -> Any:
        """Send an inventory with the next number, unless the fields say otherwise."""
        request = wire.ReconcileWorkerStateRequest(
            **{
                "worker_id": self.worker_id,
                "generation": self.generation,
                "request_seq": self.seq + 1,
                "inventory": entries,
                "request_kind": kind,
            }
            | fields
        )
        answer = await self.store.runtime.ReconcileWorkerState(request)
        if answer.result_kind in {APPLIED, NOOP} and request.request_seq == self.seq + 1:
            self.seq += 1
        return answer


async def reconciler(store: Serving, daemon: str = "d1", **fields: Any) -> Reconciler:
    """Register a worker that reconciles."""
    return Reconciler(store, await store.register(daemon, **fields))


def shown(answer: Any) -> list[tuple[int, str]]:
    """The changes of an answer, as (type, artifact)."""
    return [(c.type, c.replica_info.ref.artifact_id) for c in answer.state_changes]


def metric(store: Serving, name: str, **labels: str) -> float:
    value = store.components.metrics.registry.get_sample_value(name, labels)
    return value or 0.0
