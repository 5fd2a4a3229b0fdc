"""UpdateReplica, UnregisterReplicaByWorker, MarkReplicaUnavailable, WaitReplicaDrain."""

import attrs
import trio

from globalstore.api.context import Handlers
from globalstore.api.runtime import memory_info
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.runtime import replica_lifecycle, replicas
from globalstore.registry.runtime.replica_lifecycle import Drain
from globalstore.rpc import Call
from globalstore.rules.artifact_ids import looked_up
from globalstore.rules.values import existing, uuid_bytes, uuid_text
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.replicas")

# What the log keeps of free text; the rest says little more.
_LOGGED_CHARACTERS_MAX = 200


class ReplicaLifecycleHandlers(Handlers):
    """The calls by which a replica is retired."""

    async def UpdateReplica(
        self, message: wire.UpdateReplicaRequest, request: Call
    ) -> wire.UpdateReplicaResponse:
        """Note that a replica is still there."""
        artifact_id = looked_up("artifact_id", message.artifact_id)
        replica_id = uuid_bytes("replica_id", message.replica_id)
        found = await self.context.write(
            request, replica_lifecycle.touch, artifact_id, replica_id, self.context.clock.wall_us()
        )
        return wire.UpdateReplicaResponse(
            status=wire.STATUS_OK if found else wire.STATUS_NOT_FOUND,
            artifact_id=artifact_id,
            replica_id=uuid_text(replica_id),
        )

    async def UnregisterReplicaByWorker(
        self, message: wire.UnregisterReplicaByWorkerRequest, request: Call
    ) -> wire.UnregisterReplicaByWorkerResponse:
        """Delete one replica of a worker, the one in the fastest memory."""
        artifact_id = looked_up("artifact_id", message.artifact_id)
        worker_id = existing("worker_id", message.worker_id)
        tier = None
        if message.memory_type != common.MEMORY_TYPE_UNSPECIFIED:
            tier = memory_info.memory_tier("memory_type", message.memory_type)
        device_id = message.device_id if message.HasField("device_id") else None
        found = await self.context.write(
            request, replicas.unregister_one, artifact_id, worker_id, tier, device_id
        )
        return wire.UnregisterReplicaByWorkerResponse(
            status=wire.STATUS_OK if found else wire.STATUS_NOT_FOUND
        )

    async def MarkReplicaUnavailable(
        self, message: wire.MarkReplicaUnavailableRequest, request: Call
    ) -> wire.MarkReplicaUnavailableResponse:
        """Make a replica unavailable from now on."""
        artifact_id = message.artifact_id.strip()
        if artifact_id:
            artifact_id = looked_up("artifact_id", artifact_id)
        replica_id = uuid_bytes("replica_id", message.replica_id)
        found = await self.context.write(
            request,
            replica_lifecycle.mark_unavailable,
            artifact_id,
            replica_id,
            self.context.clock.wall_us(),
        )
        if found is None:
            return wire.MarkReplicaUnavailableResponse(status=wire.STATUS_NOT_FOUND)
        _log.info(
            "replica unavailable",
            artifact_id=found,
            replica_id=uuid_text(replica_id),
            reason=message.reason[:_LOGGED_CHARACTERS_MAX],
            operation_id=message.operation_id[:_LOGGED_CHARACTERS_MAX],
        )
        return wire.MarkReplicaUnavailableResponse(status=wire.STATUS_OK, updated=True)

    async def WaitReplicaDrain(
        self, message: wire.WaitReplicaDrainRequest, request: Call
    ) -> wire.WaitReplicaDrainResponse:
        """Wait until a replica serves no transport; that blocks no new one."""
        replica_id = uuid_bytes("replica_id", message.replica_id)
        patience_s = self.context.patience_s(request, message.timeout_ms / 1000)
        state = await self.context.read(replica_lifecycle.drain, replica_id)
        if state is not None and state.load and patience_s > 0:
            _log.debug(
                "waiting for a drain",
                replica_id=uuid_text(replica_id),
                load=state.load,
                operation_id=message.operation_id[:_LOGGED_CHARACTERS_MAX],
            )
            with self.context.waiting(request):
                state = await self._drained(replica_id, state, patience_s)
        if state is None:
            return wire.WaitReplicaDrainResponse(status=wire.STATUS_NOT_FOUND)
        age_us = None if state.oldest_us is None else self.context.clock.wall_us() - state.oldest_us
        return wire.WaitReplicaDrainResponse(
            status=wire.STATUS_TIMED_OUT if state.load else wire.STATUS_OK,
            drained=state.load == 0,
            current_requests=state.load,
            oldest_transport_age_ms=None if age_us is None else max(0, age_us) // 1000,
        )

    async def _drained(self, replica_id: bytes, first: Drain, patience_s: float) -> Drain | None:
        """Return what a replica is like once it is drained, gone, or the patience is at its end."""
        state: Drain | None = first
        space = first.artifact_id, first.view_id
        with self.context.drains.waiting(space, first.seq) as waiter:
            with trio.move_on_after(patience_s):
                while True:
                    state = await self.context.read(replica_lifecycle.drain, replica_id)
                    if state is None or state.load == 0:
                        break
                    await waiter.changed.wait()
                    waiter.changed = trio.Event()
            if state is not None and state.load:
                state = await self.context.read(replica_lifecycle.drain, replica_id)
        if state is None and waiter.went:
            return attrs.evolve(first, load=0, oldest_us=None)
        return state
