"""UpdateReplica, UnregisterReplicaByWorker, MarkReplicaUnavailable, WaitReplicaDrain."""

import attrs
import trio

from globalstore.api.context import Application
from globalstore.api.runtime import memory_info
from globalstore.api.runtime.transports import REPLY_MARGIN_S
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.runtime import replica_lifecycle, replicas
from globalstore.registry.runtime.replica_lifecycle import Drain
from globalstore.rpc import Call
from globalstore.rules.artifact_ids import looked_up
from globalstore.rules.values import required, uuid_bytes, uuid_text
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.replicas")

# What the log keeps of free text; the rest says little more.
_LOGGED_CHARACTERS_MAX = 200


class ReplicaLifecycleFace:
    """The calls by which a replica is retired."""

    app: Application

    async def UpdateReplica(  # noqa: N802
        self, input_message: wire.UpdateReplicaRequest, request: Call
    ) -> wire.UpdateReplicaResponse:
        """Note that a replica is still there."""
        artifact_id = looked_up("artifact_id", input_message.artifact_id)
        replica_id = uuid_bytes("replica_id", input_message.replica_id)
        found = await self.app.write(
            request, replica_lifecycle.touch, artifact_id, replica_id, self.app.wall_us()
        )
        return wire.UpdateReplicaResponse(
            status=wire.STATUS_OK if found else wire.STATUS_NOT_FOUND,
            artifact_id=artifact_id,
            replica_id=uuid_text(replica_id),
        )

    async def UnregisterReplicaByWorker(  # noqa: N802
        self, input_message: wire.UnregisterReplicaByWorkerRequest, request: Call
    ) -> wire.UnregisterReplicaByWorkerResponse:
        """Delete one replica of a worker, the one in the fastest memory."""
        artifact_id = looked_up("artifact_id", input_message.artifact_id)
        worker_id = required("worker_id", input_message.worker_id)
        tier = None
        if input_message.memory_type != common.MEMORY_TYPE_UNSPECIFIED:
            tier = memory_info.memory_tier("memory_type", input_message.memory_type)
        device_id = input_message.device_id if input_message.HasField("device_id") else None
        found = await self.app.write(
            request, replicas.unregister_one, artifact_id, worker_id, tier, device_id
        )
        return wire.UnregisterReplicaByWorkerResponse(
            status=wire.STATUS_OK if found else wire.STATUS_NOT_FOUND
        )

    async def MarkReplicaUnavailable(  # noqa: N802
        self, input_message: wire.MarkReplicaUnavailableRequest, request: Call
    ) -> wire.MarkReplicaUnavailableResponse:
        """Let a replica serve nobody from now on."""
        artifact_id = input_message.artifact_id.strip()
        if artifact_id:
            artifact_id = looked_up("artifact_id", artifact_id)
        replica_id = uuid_bytes("replica_id", input_message.replica_id)
        found = await self.app.write(
            request, replica_lifecycle.mark_unavailable, artifact_id, replica_id, self.app.wall_us()
        )
        if found is None:
            return wire.MarkReplicaUnavailableResponse(status=wire.STATUS_NOT_FOUND)
        _log.info(
            "replica unavailable",
            artifact_id=found,
            replica_id=uuid_text(replica_id),
            reason=input_message.reason[:_LOGGED_CHARACTERS_MAX],
            operation_id=input_message.operation_id[:_LOGGED_CHARACTERS_MAX],
        )
        return wire.MarkReplicaUnavailableResponse(status=wire.STATUS_OK, updated=True)

    async def WaitReplicaDrain(  # noqa: N802
        self, input_message: wire.WaitReplicaDrainRequest, request: Call
    ) -> wire.WaitReplicaDrainResponse:
        """Wait until a replica serves no transport; that blocks no new one."""
        replica_id = uuid_bytes("replica_id", input_message.replica_id)
        patience_s = min(
            input_message.timeout_ms / 1000, max(0.0, request.time_remaining - REPLY_MARGIN_S)
        )
        state = await self.app.read(replica_lifecycle.drain, replica_id)
        if state is not None and state.load and patience_s > 0:
            self.app.slots.release(request)
            _log.debug(
                "waiting for a drain",
                replica_id=uuid_text(replica_id),
                load=state.load,
                operation_id=input_message.operation_id[:_LOGGED_CHARACTERS_MAX],
            )
            with request.only_waiting():
                state = await self._drained(replica_id, state, patience_s)
        if state is None:
            return wire.WaitReplicaDrainResponse(status=wire.STATUS_NOT_FOUND)
        age_us = None if state.oldest_us is None else self.app.wall_us() - state.oldest_us
        return wire.WaitReplicaDrainResponse(
            status=wire.STATUS_TIMED_OUT if state.load else wire.STATUS_OK,
            drained=state.load == 0,
            current_requests=state.load,
            oldest_transport_age_ms=None if age_us is None else max(0, age_us) // 1000,
        )

    async def _drained(self, replica_id: bytes, first: Drain, patience_s: float) -> Drain | None:
        """Return what a replica is like once it is drained, gone, or the patience is at its end."""
        state: Drain | None = first
        waiter = self.app.drains.begin((first.artifact_id, first.view_id), first.seq)
        try:
            with trio.move_on_after(patience_s):
                while True:
                    state = await self.app.read(replica_lifecycle.drain, replica_id)
                    if state is None or state.load == 0:
                        break
                    await waiter.changed.wait()
                    waiter.changed = trio.Event()
            if state is not None and state.load:
                state = await self.app.read(replica_lifecycle.drain, replica_id)
        finally:
            self.app.drains.end(waiter)
        if state is None and waiter.went:
            return attrs.evolve(first, load=0, oldest_us=None)
        return state
