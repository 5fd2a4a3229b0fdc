"""Replicas as ``MemoryInfo``, the message that requests and answers share."""

from globalstore.api.application import microseconds, timestamp
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.registry.replica_lists import Replica
from globalstore.registry.replicas import MemoryTier, Place
from globalstore.rules import transfer
from globalstore.rules.addresses import routable
from globalstore.rules.refusals import InvalidArgument
from globalstore.rules.transfer import ExportState, Transfer
from globalstore.rules.values import port, required, storable

_TIERS = {
    common.MEMORY_TYPE_UNSPECIFIED: MemoryTier.DISK,
    common.MEMORY_TYPE_DISK: MemoryTier.DISK,
    common.MEMORY_TYPE_RAM: MemoryTier.RAM,
    common.MEMORY_TYPE_GPU: MemoryTier.GPU,
}
_EXPORT_STATES = {
    ExportState.PRESENCE_ONLY: common.ReplicaTransportMetadata.EXPORT_STATE_PRESENCE_ONLY,
    ExportState.EXPORTABLE: common.ReplicaTransportMetadata.EXPORT_STATE_EXPORTABLE,
    ExportState.DRAINING: common.ReplicaTransportMetadata.EXPORT_STATE_DRAINING,
}
# The last second of the year 9999, where the wire's timestamps end.
_SECONDS_MAX = 253_402_300_799

_TYPES = {
    MemoryTier.GPU: common.MEMORY_TYPE_GPU,
    MemoryTier.RAM: common.MEMORY_TYPE_RAM,
    MemoryTier.DISK: common.MEMORY_TYPE_DISK,
}


def memory_tier(field: str, number: int) -> MemoryTier:
    """Return the tier of a wire memory type; UNSPECIFIED means DISK."""
    for known, tier in _TIERS.items():
        if known == number:
            return tier
    raise InvalidArgument(f"{field} is {number}, expected GPU, RAM, DISK or unspecified")


def view_of(field: str, space: common.ByteSpaceRef) -> str:
    """Return the view id of a byte space, blank for the canonical bytes."""
    if space.kind == common.BYTE_SPACE_KIND_VIEW:
        if not space.id.strip():
            raise InvalidArgument(f"{field}: VIEW requires id")
        return required(f"{field}.id", space.id)
    if space.kind not in {
        common.BYTE_SPACE_KIND_UNSPECIFIED,
        common.BYTE_SPACE_KIND_CANONICAL,
    }:
        raise InvalidArgument(f"unsupported {field} kind {space.kind}, expected CANONICAL or VIEW")
    return ""


def place(info: common.MemoryInfo) -> Place:
    """Return where a replica lives, every field checked."""
    return Place(
        node_id=required("mem_info.node_id", info.node_id),
        node_address=routable("mem_info.node_address", info.node_address),
        node_port=port("mem_info.node_port", info.node_port),
        memory_tier=memory_tier("mem_info.memory_type", info.memory_type),
        device_id=info.device_id,
    )


def reported_transfer(info: common.MemoryInfo) -> Transfer | None:
    """Return the transfer metadata in its one form; None when the message says nothing of it."""
    if info.HasField("transport"):
        said = info.transport
        return transfer.from_submessage(
            said.export_state,
            storable("mem_info.transport.export_generation", said.export_generation),
            said.remote_memory_keys,
            said.buffer_sizes,
            said.verification_json,
            info.memory_size,
        )
    return transfer.from_direct_fields(
        info.remote_memory_keys, info.buffer_sizes, info.verification_json, info.memory_size
    )


def expires_at_us(info: common.MemoryInfo) -> int | None:
    """Return when a replica ends by itself, in microseconds since 1970."""
    if not info.HasField("expires_at"):
        return None
    stamp = info.expires_at
    if not (0 <= stamp.seconds <= _SECONDS_MAX and 0 <= stamp.nanos < 1_000_000_000):
        raise InvalidArgument("mem_info.expires_at is not a time between 1970 and 9999")
    return microseconds(stamp)


def to_message(replica: Replica) -> common.MemoryInfo:
    """Return a replica for the wire, its transfer metadata in both forms."""
    where, how = replica.place, replica.transfer
    kind = common.BYTE_SPACE_KIND_VIEW if replica.view_id else common.BYTE_SPACE_KIND_CANONICAL
    info = common.MemoryInfo(
        node_id=where.node_id,
        node_address=where.node_address,
        node_port=where.node_port,
        memory_size=replica.memory_size,
        memory_type=_TYPES[where.memory_tier],
        device_id=where.device_id,
        remote_memory_keys=how.keys,
        buffer_sizes=how.sizes,
        is_memory_replica=replica.is_memory_replica,
        tensor_index_key=replica.tensor_index_key,
        creation_ts=timestamp(replica.created_at_us),
        source_process_id=replica.source_process_id,
        verification_json=how.verification,
        byte_space=common.ByteSpaceRef(kind=kind, id=replica.view_id),
        transport=common.ReplicaTransportMetadata(
            export_state=_EXPORT_STATES[how.state],
            export_generation=how.generation or 0,
            remote_memory_keys=how.keys,
            buffer_sizes=how.sizes,
            verification_json=how.verification,
        ),
    )
    if replica.expires_at_us is not None:
        info.expires_at.CopyFrom(timestamp(replica.expires_at_us))
    return info
