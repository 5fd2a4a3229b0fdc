"""Requests of instances, with as little said as each test needs."""

from typing import Any

from servers import Serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

SIGNALS, NODE_AGENT = 1 << 1, 1 << 2


def instance_request(instance_id: str = "i1", **fields: Any) -> Any:
    return wire.RegisterInstanceRequest(
        **{"instance_id": instance_id, "daemon_id": "d1", "engine": "vllm"} | fields
    )


async def register(store: Serving, instance_id: str = "i1", **fields: Any) -> Any:
    return await store.runtime.RegisterInstance(instance_request(instance_id, **fields))


async def beat(store: Serving, instance_id: str = "i1", **fields: Any) -> int:
    request = wire.InstanceHeartbeatRequest(instance_id=instance_id, **fields)
    return int((await store.runtime.InstanceHeartbeat(request)).status)


async def unregister(store: Serving, instance_id: str = "i1", **fields: Any) -> int:
    request = wire.UnregisterInstanceRequest(instance_id=instance_id, **fields)
    return int((await store.runtime.UnregisterInstance(request)).status)


async def listed(store: Serving, **fields: Any) -> list[Any]:
    request = wire.ListActiveInstancesRequest(**fields)
    return list((await store.runtime.ListActiveInstances(request)).instances)


async def ids(store: Serving, **fields: Any) -> list[str]:
    return [instance.instance_id for instance in await listed(store, **fields)]


async def only(store: Serving, **fields: Any) -> Any:
    [instance] = await listed(store, **fields)
    return instance


def capable(store: Serving, capability: str) -> float | None:
    """How many active instances the metrics count with a capability."""
    return store.components.metrics.registry.get_sample_value(
        "tc_capability_directory_entries", {"scope": "instance", "capability": capability}
    )
