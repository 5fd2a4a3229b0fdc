"""A store daemon as the ones in use behave towards the store: their calls, and what is in them.

What they do and the reference daemon does not: they make the ids of requests from the payload
alone, leave ids of replicas blank, put one time in whole seconds on all entries of an inventory,
send memory registrations without an export generation, and take NOT_FOUND for final.
"""

import hashlib
from typing import Any

from servers import KEY, Serving, memory_info

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

SNAPSHOT = wire.RECONCILE_REQUEST_KIND_SNAPSHOT
APPLIED = wire.RECONCILE_RESULT_KIND_APPLIED
NOOP = wire.RECONCILE_RESULT_KIND_NOOP
RETRY_LATER = wire.RECONCILE_RESULT_KIND_RETRY_LATER

OK = wire.STATUS_OK
NOT_FOUND = wire.STATUS_NOT_FOUND
TIMED_OUT = wire.STATUS_TIMED_OUT


def exportable(key: str = KEY, generation: int = 0) -> Any:
    """Transfer metadata of 100 bytes; generation 0 is "not told"."""
    return common.ReplicaTransportMetadata(
        export_state=common.ReplicaTransportMetadata.EXPORT_STATE_EXPORTABLE,
        export_generation=generation,
        remote_memory_keys=[key],
        buffer_sizes=[100],
    )


PRESENCE = common.ReplicaTransportMetadata(
    export_state=common.ReplicaTransportMetadata.EXPORT_STATE_PRESENCE_ONLY
)
DRAINING = common.ReplicaTransportMetadata(
    export_state=common.ReplicaTransportMetadata.EXPORT_STATE_DRAINING
)


class FieldDaemon:
    """One worker, as its daemon sees it. ``held`` are its artifacts, with how they are read."""

    def __init__(self, store: Serving, name: str = "d1") -> None:
        self.store = store
        self.name = name
        self.worker_id = ""
        self.generation = 0
        self.seq = 0
        self.version = 1
        self.checksum = ""
        self.held: dict[str, Any] = {}

    async def register(self, **fields: Any) -> Any:
        """Register; what came before in the sequence of reconciles counts no more."""
        answer = await self.store.register(self.name, **fields)
        self.worker_id = answer.worker_id
        self.generation = answer.reconcile_generation
        self.version = answer.expected_state_version
        self.seq = 0
        return answer

    async def beat(self, **fields: Any) -> Any:
        """Send a heartbeat with what the daemon knows of its state."""
        defaults = {"state_version": self.version, "state_checksum": self.checksum}
        return await self.store.beat(self.worker_id, daemon_id=self.name, **defaults | fields)

    def info(self, transport: Any) -> Any:
        """Where a replica is, and how it is read."""
        return memory_info(self.name, remote_memory_keys=[], buffer_sizes=[], transport=transport)

    async def load(self, artifact_id: str, transport: Any = None) -> Any:
        """Load an artifact, and register its replica under an id made from the payload."""
        self.held[artifact_id] = exportable() if transport is None else transport
        request = wire.RegisterReplicaRequest(
            artifact_id=artifact_id,
            worker_id=self.worker_id,
            max_concurrency=1,
            mem_info=self.info(self.held[artifact_id]),
        )
        request.client_request_id = hashlib.sha256(
            request.SerializeToString(deterministic=True)
        ).hexdigest()
        return await self.store.runtime.RegisterReplica(request)

    async def unload(self, artifact_id: str, replica_id: str) -> Any:
        """Give a replica up, in the order of a safe retirement."""
        del self.held[artifact_id]
        runtime = self.store.runtime
        await runtime.MarkReplicaUnavailable(
            wire.MarkReplicaUnavailableRequest(replica_id=replica_id, artifact_id=artifact_id)
        )
        await runtime.WaitReplicaDrain(wire.WaitReplicaDrainRequest(replica_id=replica_id))
        return await runtime.UnregisterReplica(
            wire.UnregisterReplicaRequest(artifact_id=artifact_id, replica_id=replica_id)
        )

    def inventory(self) -> list[Any]:
        """All that is held: no replica has an id, and all have one time, cut to a second."""
        seconds = self.store.components.clock.wall_us() // 1_000_000
        entries = []
        for artifact_id, transport in self.held.items():
            stats = common.ReplicaStats(max_concurrency=1, is_available=True)
            stats.registered_ts.FromSeconds(seconds)
            ref = common.ReplicaRef(artifact_id=artifact_id, replica_id="")
            entries.append(
                common.ReplicaInfo(ref=ref, memory_info=self.info(transport), stats=stats)
            )
        return entries

    async def reconcile(self, *, skip: int = 0, kind: Any = SNAPSHOT) -> Any:
        """Send an inventory; ``skip`` numbers were used for requests that got lost."""
        answer = await self.store.runtime.ReconcileWorkerState(
            wire.ReconcileWorkerStateRequest(
                worker_id=self.worker_id,
                daemon_id=self.name,
                generation=self.generation,
                request_seq=self.seq + 1 + skip,
                inventory=self.inventory(),
                request_kind=kind,
            )
        )
        if answer.result_kind in {APPLIED, NOOP}:
            self.seq += 1
            self.version = answer.new_state_version
            self.checksum = answer.new_state_checksum
        return answer

    async def unregister(self) -> Any:
        """Leave, under an id made from the payload."""
        request = wire.UnregisterWorkerRequest(worker_id=self.worker_id, is_graceful_shutdown=True)
        request.client_request_id = hashlib.sha256(request.SerializeToString()).hexdigest()
        return await self.store.runtime.UnregisterWorker(request)


async def registered(store: Serving, name: str = "d1", **fields: Any) -> FieldDaemon:
    """Return a daemon that has registered."""
    daemon = FieldDaemon(store, name)
    await daemon.register(**fields)
    return daemon
