"""RegisterInstance, InstanceHeartbeat, UnregisterInstance, ListActiveInstances."""

import json
from collections.abc import Mapping
from typing import cast

from globalstore.api.bounds.fields import LABEL_BYTES_MAX
from globalstore.api.context import Handlers
from globalstore.api.encoding import Joined, timestamp
from globalstore.api.turns import in_turns
from globalstore.db import Snapshot
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.liveness.instances import (
    ACTIVE_MAX,
    InstanceList,
    LiveInstance,
    liveness_row,
)
from globalstore.registry.runtime import instances as registry
from globalstore.registry.runtime.instances import InstanceState
from globalstore.rpc import Call
from globalstore.rules.refusals import InvalidArgument, ResourceExhausted
from globalstore.rules.values import TEXT_BYTES_MAX, existing, identifier, required
from globalstore.telemetry import add_call_fields, get_logger

_log = get_logger("globalstore.instances")

_NODE_AGENT = 1 << wire.INSTANCE_CAPABILITY_FLAG_NODE_AGENT_ENABLED

# What hosts a node agent unless the instance says otherwise.
_NODE_AGENT_HOST_KIND = "node_agent_grpc"

# Ended instances of one list: a day of a cluster whose every engine restarts now and then.
_ENDED_LISTED_MAX = 10_000

# Instances of a list that are made and serialized before other calls get a turn: some 0.3 ms.
_INSTANCES_PER_TURN = 25


class InstanceHandlers(Handlers):
    """The calls of engine processes: register, heartbeat, unregister, and their list."""

    async def RegisterInstance(
        self, message: wire.RegisterInstanceRequest, request: Call
    ) -> wire.RegisterInstanceResponse:
        """Make an instance active and replace all that was known of it."""
        registration = _registration(message)
        instances = self.context.instances
        if len(instances) >= ACTIVE_MAX and instances.find(registration.instance_id) is None:
            raise ResourceExhausted(
                f"{ACTIVE_MAX} instances are active already; unregister those that are gone"
            )
        state = await self.context.write(
            request, registry.register_instance, registration, self.context.clock.wall_us()
        )
        _log.info("instance registered", **self._log_fields(state))
        return wire.RegisterInstanceResponse(
            status=wire.STATUS_OK,
            instance_id=state.instance_id,
            heartbeat_interval_ms=self.context.heartbeat_interval_ms,
        )

    async def InstanceHeartbeat(
        self, message: wire.InstanceHeartbeatRequest, request: Call
    ) -> wire.InstanceHeartbeatResponse:
        """Keep an instance alive; one that is unknown or has ended must register."""
        instance_id = existing("instance_id", message.instance_id)
        # Absent and empty both mean the worker of the daemon, whatever was named before.
        named_worker_id = identifier("worker_id", message.worker_id)
        flags = message.capability_flags if message.HasField("capability_flags") else None
        add_call_fields(instance_id=instance_id)
        instance = await self.context.instances.decided(instance_id)
        if instance is None:
            _log.limited(
                f"heartbeat of {instance_id[:80]}",
                "heartbeat of an unknown instance",
                instance_id=instance_id,
            )
            return wire.InstanceHeartbeatResponse(status=wire.STATUS_NOT_FOUND)
        if flags is not None and flags & _NODE_AGENT and not instance.state.execution_endpoint:
            raise InvalidArgument(
                "capability_flags has NODE_AGENT_ENABLED, but the instance was registered without"
                " an execution_endpoint; register it with one"
            )
        self.context.instances.heartbeat(
            instance, named_worker_id, flags, self.context.clock.wall_us()
        )
        return wire.InstanceHeartbeatResponse(status=wire.STATUS_OK)

    async def UnregisterInstance(
        self, message: wire.UnregisterInstanceRequest, request: Call
    ) -> wire.UnregisterInstanceResponse:
        """End an instance on its own order."""
        instance_id = existing("instance_id", message.instance_id)
        instances = self.context.instances
        instance = instances.find(instance_id)
        liveness = [] if instance is None else [liveness_row(instance)]
        state = await self.context.write(
            request,
            registry.unregister_instance,
            instance_id,
            liveness,
            self.context.clock.wall_us(),
        )
        if state is None:
            return wire.UnregisterInstanceResponse(status=wire.STATUS_NOT_FOUND)
        _log.info(
            "instance unregistered",
            **self._log_fields(state),
            graceful=message.is_graceful_shutdown,
        )
        return wire.UnregisterInstanceResponse(status=wire.STATUS_OK)

    async def ListActiveInstances(
        self, message: wire.ListActiveInstancesRequest, request: Call
    ) -> wire.ListActiveInstancesResponse:
        """List instances as they are at one instant, the latest heartbeat first."""
        flags = message.required_capability_flags
        instances = self.context.instances
        if message.include_unavailable:
            with instances.noting_ended() as noted:
                ended = await self.context.read(_ended, flags)
                listed = self._list_now()
            # These were active when the ended ones were read, and are not any more: they are in
            # neither list.
            since = {instance.key: instance for instance in noted if instance.key not in ended}
            ordered = listed.latest_first(ended.values(), sorted(since.values(), key=listed.order))
        else:
            listed = self._list_now()
            ordered = listed.latest_first()
        answer = Joined()
        room = self.context.list_room("set required_capability_flags, or let clients take more")
        async for turn in in_turns(ordered, _INSTANCES_PER_TURN):
            part = wire.ListActiveInstancesResponse()
            for instance in turn:
                if instance.state.capability_flags & flags == flags:
                    _show(part.instances.add(), instance, listed, self._status(listed, instance))
            room.take_bytes(answer.add(part))
        return cast(wire.ListActiveInstancesResponse, answer)

    def _list_now(self) -> InstanceList:
        workers = self.context.workers.ids_by_daemon()
        return self.context.instances.list_now(workers, self.context.clock.wall_us())

    def _log_fields(self, state: InstanceState) -> dict[str, str]:
        worker_id = state.named_worker_id or self.context.workers.id_of_daemon(state.daemon_id)
        return {
            "instance_id": state.instance_id,
            "daemon_id": state.daemon_id,
            "worker_id": worker_id,
            "engine": state.engine,
        }

    def _status(self, listed: InstanceList, instance: LiveInstance) -> wire.ConnectionStatus:
        silent_s, timeout_s = listed.silent_s(instance), self.context.instances.timeout_s
        if silent_s <= timeout_s:
            return wire.CONNECTION_STATUS_CONNECTED
        if silent_s <= 2 * timeout_s:
            return wire.CONNECTION_STATUS_RECONNECTING
        return wire.CONNECTION_STATUS_DISCONNECTED


def _ended(tx: Snapshot, flags: int) -> dict[int, LiveInstance]:
    """Return the ended instances of a list; made by the reader, so that no call waits for it."""
    found = registry.ended(tx, flags, _ENDED_LISTED_MAX)
    return {state.instance_key: LiveInstance(state) for state in found}


def _registration(message: wire.RegisterInstanceRequest) -> registry.InstanceRegistration:
    flags = message.capability_flags
    endpoint = identifier("execution_endpoint", message.execution_endpoint)
    host_kind = identifier("execution_host_kind", message.execution_host_kind)
    registration = registry.InstanceRegistration(
        instance_id=required("instance_id", message.instance_id),
        daemon_id=required("daemon_id", message.daemon_id),
        named_worker_id=identifier("worker_id", message.worker_id),
        engine=required("engine", message.engine),
        signals_endpoint=_unchecked("signals_endpoint", message.signals_endpoint),
        labels_json=_labels_json(message.labels),
        execution_endpoint=endpoint,
        execution_host_kind=_host_kind(host_kind, flags),
        capability_flags=flags,
    )
    if flags & _NODE_AGENT and not endpoint:
        raise InvalidArgument(
            "execution_endpoint is required with NODE_AGENT_ENABLED in capability_flags"
        )
    return registration


def _unchecked(field: str, value: str) -> str:
    """Return a text of which only the length is checked."""
    value = value.strip()
    if len(value.encode()) > TEXT_BYTES_MAX:
        raise InvalidArgument(f"{field} is longer than {TEXT_BYTES_MAX} bytes")
    return value


def _host_kind(host_kind: str, flags: int) -> str:
    return host_kind or (_NODE_AGENT_HOST_KIND if flags & _NODE_AGENT else "")


def _labels_json(labels: Mapping[str, str]) -> str:
    size = sum(len(name.encode()) + len(value.encode()) for name, value in labels.items())
    if size > LABEL_BYTES_MAX:
        raise InvalidArgument(f"labels has {size} bytes, expected at most {LABEL_BYTES_MAX}")
    return json.dumps(dict(labels), ensure_ascii=False, sort_keys=True)


def _show(
    info: wire.ListActiveInstancesResponse.InstanceInfo,
    instance: LiveInstance,
    listed: InstanceList,
    status: wire.ConnectionStatus,
) -> None:
    """Fill in the entry of an instance."""
    state = instance.state
    info.instance_id = state.instance_id
    info.daemon_id = state.daemon_id
    info.worker_id = listed.worker_id(instance)
    info.engine = state.engine
    info.signals_endpoint = state.signals_endpoint
    info.last_heartbeat_ts.CopyFrom(timestamp(state.last_heartbeat_us))
    info.labels.update(json.loads(state.labels_json))
    info.status = status
    info.capability_flags = state.capability_flags
    info.execution_endpoint = state.execution_endpoint
    # A heartbeat may have set the flag since the instance registered.
    info.execution_host_kind = _host_kind(state.execution_host_kind, state.capability_flags)
