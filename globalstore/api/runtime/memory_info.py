"""Replicas as ``MemoryInfo``, the message that requests and answers share."""

import json
from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter

from globalstore.api.encoding import microseconds, timestamp
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.registry.runtime.inventories import ReplicaIdentity, ReportedReplica
from globalstore.registry.runtime.replica_places import MemoryTier, Place
from globalstore.registry.runtime.replica_rows import (
    HeldReplica,
    Replica,
    ShownRow,
    TransferColumns,
    plain_columns,
    shown_replica,
    transfer_columns,
)
from globalstore.rules import transfer
from globalstore.rules.addresses import routable
from globalstore.rules.artifact_ids import stored
from globalstore.rules.refusals import InvalidArgument
from globalstore.rules.transfer import ExportState, Transfer
from globalstore.rules.values import (
    INTEGER_MAX,
    identifier,
    port,
    required,
    storable,
    uuid_bytes,
    uuid_text,
)

_TIERS = {
    common.MEMORY_TYPE_UNSPECIFIED: MemoryTier.DISK,
    common.MEMORY_TYPE_DISK: MemoryTier.DISK,
    common.MEMORY_TYPE_RAM: MemoryTier.RAM,
    common.MEMORY_TYPE_GPU: MemoryTier.GPU,
}
# Plain numbers: they are compared with those of rows, a hundred thousand at a time.
_INVENTORY_TIERS = {number: int(tier) for number, tier in _TIERS.items()}
_DISK = int(MemoryTier.DISK)
_EXPORTABLE = int(ExportState.EXPORTABLE)
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


def view_of(
    field: str, space: common.ByteSpaceRef, check: Callable[[str, str], str] = required
) -> str:
    """Return the view id of a byte space, checked; blank for the canonical bytes."""
    if space.kind == common.BYTE_SPACE_KIND_VIEW:
        if not space.id.strip():
            raise InvalidArgument(f"{field}: VIEW requires id")
        return check(f"{field}.id", space.id)
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
        transport = info.transport
        return transfer.from_submessage(
            transport.export_state,
            storable("mem_info.transport.export_generation", transport.export_generation),
            transport.remote_memory_keys,
            transport.buffer_sizes,
            transport.verification_json,
            info.memory_size,
        )
    return transfer.from_direct_fields(
        info.remote_memory_keys, info.buffer_sizes, info.verification_json, info.memory_size
    )


# Texts that most entries of an inventory share: a worker has a handful of each.
_shared = lru_cache(1024)(identifier)


def reported(entry: common.ReplicaInfo, node_id: str) -> ReportedReplica:
    """Return an inventory entry, checked; ``node_id`` is the worker's, used when blank.

    Transfer metadata is never refused: what cannot be used is cleared. This runs a hundred thousand
    times for a large inventory, so that no field is looked at twice.
    """
    ref, info = entry.ref, entry.memory_info
    port = info.node_port
    if port > 65535:
        raise InvalidArgument(f"memory_info.node_port is {port}, expected 0..65535")
    view_id = ""
    if info.HasField("byte_space") and info.byte_space.kind == common.BYTE_SPACE_KIND_VIEW:
        view_id = identifier("memory_info.byte_space.id", info.byte_space.id)
    available, max_concurrency = None, 0
    if entry.HasField("stats"):
        stats = entry.stats
        available, max_concurrency = stats.is_available, stats.max_concurrency
    memory_size = storable("memory_info.memory_size", info.memory_size)
    columns = None
    if info.HasField("transport"):
        columns = _plain_transfer(info.transport, memory_size)
    if columns is None:
        listed = _inventory_transfer(info, memory_size)
        columns = None if listed is None else transfer_columns(listed)
    proposed = ref.replica_id.strip()
    return ReportedReplica(
        ReplicaIdentity(
            stored("ref.artifact_id", ref.artifact_id),
            view_id,
            _shared("memory_info.node_id", info.node_id) or node_id,
            _INVENTORY_TIERS.get(info.memory_type, _DISK),
            info.device_id,
        ),
        uuid_bytes("ref.replica_id", proposed) if proposed else None,
        _shared("memory_info.node_address", info.node_address),
        port,
        memory_size,
        max_concurrency,
        available,
        columns,
        identifier("memory_info.tensor_index_key", info.tensor_index_key),
        info.is_memory_replica,
        _shared("memory_info.source_process_id", info.source_process_id),
        expires_at_us(info),
    )


def _plain_transfer(
    transport: common.ReplicaTransportMetadata, memory_size: int
) -> TransferColumns | None:
    """Return the columns of what nearly all replicas are: exportable, by one plain key.

    None for all else, which takes the long way.
    """
    keys, sizes, generation = (
        transport.remote_memory_keys,
        transport.buffer_sizes,
        transport.export_generation,
    )
    if (
        transport.export_state != _EXPORTABLE
        or len(keys) != 1
        or len(sizes) != 1
        or transport.verification_json
    ):
        return None
    size = sizes[0]
    if (memory_size and size != memory_size) or not 0 < size <= INTEGER_MAX >= generation:
        return None
    return plain_columns(_EXPORTABLE, generation, keys[0], size)


def _inventory_transfer(info: common.MemoryInfo, memory_size: int) -> Transfer | None:
    if not info.HasField("transport"):
        keys, sizes = tuple(info.remote_memory_keys), tuple(info.buffer_sizes)
        if sizes:
            storable("memory_info.buffer_sizes", max(sizes))
        return transfer.from_inventory(keys, sizes, info.verification_json, memory_size)
    transport = info.transport
    keys, sizes = tuple(transport.remote_memory_keys), tuple(transport.buffer_sizes)
    if sizes:
        storable("memory_info.transport.buffer_sizes", max(sizes))
    return transfer.from_submessage(
        transport.export_state,
        storable("memory_info.transport.export_generation", transport.export_generation),
        keys,
        sizes,
        transport.verification_json,
        memory_size,
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
            export_generation=how.generation,
            remote_memory_keys=how.keys,
            buffer_sizes=how.sizes,
            verification_json=how.verification,
        ),
    )
    if replica.expires_at_us is not None:
        info.expires_at.CopyFrom(timestamp(replica.expires_at_us))
    return info


def to_info(replica: Replica) -> common.ReplicaInfo:
    """Return a replica as inventories have it."""
    return common.ReplicaInfo(
        ref=common.ReplicaRef(
            artifact_id=replica.artifact_id, replica_id=uuid_text(replica.replica_id)
        ),
        memory_info=to_message(replica),
        stats=common.ReplicaStats(
            max_concurrency=replica.max_concurrency,
            current_requests=replica.current_requests,
            is_available=replica.is_available,
            registered_ts=timestamp(replica.created_at_us),
        ),
    )


# Kinds of replicas that a writer knows at a time: a worker has a handful, and a message is 1 kB.
_KINDS_MAX = 64


class InfoWriter:
    """Writes rows of one worker as inventory entries, a hundred thousand in a moment.

    Most of them differ in ids and keys alone, so one message of each kind is made, copied and
    completed: a tenth of the work of making each from its parts.

    When what was written has ``whole_bytes`` bytes, further rows are written without how they are
    read: their own worker knows that better. ``written_bytes`` is what all have so far.
    """

    def __init__(self, whole_bytes: int) -> None:
        self.written_bytes = 0
        self._whole_bytes = whole_bytes
        self._kinds: dict[tuple[object, ...], common.ReplicaInfo] = {}

    def write(self, into: common.ReplicaInfo, row: HeldReplica) -> None:
        """Fill an empty message with a row."""
        if self.written_bytes > self._whole_bytes:
            row = row._replace(transfer_json="")
        keys, sizes, verification = json.loads(row.transfer_json or _NO_TRANSFER)
        kind = (*_kind_of(row), *sizes, verification)
        known = self._kinds.get(kind)
        if known is None:
            if len(self._kinds) >= _KINDS_MAX:
                self._kinds.clear()
            known = self._kinds[kind] = to_info(shown_replica(row))
        into.CopyFrom(known)
        into.ref.artifact_id = row.artifact_id
        into.ref.replica_id = uuid_text(row.replica_id)
        info = into.memory_info
        for held in (info.remote_memory_keys, info.transport.remote_memory_keys):
            for index, key in enumerate(keys):
                held[index] = key
        self.written_bytes += into.ByteSize()


_NO_TRANSFER = '[[],[],""]'

# All that is shown of a row but what replicas of one kind differ in.
_kind_of = itemgetter(
    *(
        number
        for number, name in enumerate(ShownRow._fields)
        if name not in {"seq", "replica_id", "artifact_id", "transfer_json"}
    )
)
