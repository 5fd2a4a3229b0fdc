"""What a daemon holds: the truth that the store's rows of its worker follow."""

import time
from collections.abc import Iterator

import attrs

from globalstore.daemon.identity import Identity
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.rules import checksums

_LABELS = {common.MEMORY_TYPE_RAM: "RAM", common.MEMORY_TYPE_GPU: "GPU"}


@attrs.frozen
class Held:
    """A replica in this daemon's memory, which others read in one piece under one memory key.

    ``size`` is in bytes, ``index`` the canonical tensor index if there is one, ``device`` the
    number of a GPU. ``view_id`` is blank for the canonical bytes. ``export_generation`` is given by
    the inventory.
    """

    artifact_id: str
    size: int
    memory_key: str
    max_concurrency: int = 1
    tier: common.MemoryType = common.MEMORY_TYPE_RAM
    device: int = 0
    view_id: str = ""
    available: bool = True
    index: bytes = b""
    export_generation: int = 0

    @property
    def place(self) -> tuple[str, str, int, int]:
        """What no two replicas of one daemon have in common."""
        return self.artifact_id, self.view_id, self.tier, self.device


class Inventory:
    """All replicas of one daemon."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._held: dict[tuple[str, str, int, int], Held] = {}
        self._exports = 0
        self._checksum: str | None = None

    def __repr__(self) -> str:
        return f"<Inventory [{self._identity.daemon_id}, replicas: {len(self._held)}]>"

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held.values())

    def __contains__(self, held: Held) -> bool:
        return self._held.get(held.place) == held

    def put(self, held: Held) -> Held:
        """Add a replica, or export one anew; return it with its export generation."""
        # One counter for all replicas: whatever is said later has the higher number.
        self._exports += 1
        held = attrs.evolve(held, export_generation=self._exports)
        self._held[held.place] = held
        self._checksum = None
        return held

    def remove(self, held: Held) -> None:
        """Forget a replica; no effect on one that was exported anew since, or is unknown."""
        if held in self:
            del self._held[held.place]
            self._checksum = None

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self._checksum = None

    def checksum(self) -> str:
        """Return the digest by which the store sees whether it records the same replicas."""
        if self._checksum is None:
            self._checksum = checksums.of_replicas(map(self._entry, self))
        return self._checksum

    def _entry(self, held: Held) -> checksums.Entry:
        identity = self._identity
        return checksums.Entry(
            artifact_id=held.artifact_id,
            view_id=held.view_id,
            node_id=identity.node_id,
            node_address=identity.node_address,
            node_port=identity.p2p_port,
            label=_LABELS.get(held.tier, "DISK"),
            device=held.device if held.tier == common.MEMORY_TYPE_GPU else 0,
            available=held.available,
        )

    def snapshot(self) -> list[common.ReplicaInfo]:
        """Return everything at this instant, for a reconcile.

        Every entry carries the time of the snapshot, not the age of its replica: the store keeps
        what it was told of after that time, and an old one would keep all there is.
        """
        now_ns = time.time_ns()
        entries = []
        for held in self:
            stats = common.ReplicaStats(
                max_concurrency=held.max_concurrency, is_available=held.available
            )
            stats.registered_ts.FromNanoseconds(now_ns)
            entries.append(
                common.ReplicaInfo(
                    ref=common.ReplicaRef(artifact_id=held.artifact_id),
                    memory_info=self.memory_info(held),
                    stats=stats,
                )
            )
        return entries

    def memory_info(self, held: Held) -> common.MemoryInfo:
        """Return where a replica is and how it is read."""
        kind = common.BYTE_SPACE_KIND_VIEW if held.view_id else common.BYTE_SPACE_KIND_CANONICAL
        return common.MemoryInfo(
            node_id=self._identity.node_id,
            node_address=self._identity.node_address,
            node_port=self._identity.p2p_port,
            memory_size=held.size,
            memory_type=held.tier,
            device_id=held.device,
            byte_space=common.ByteSpaceRef(kind=kind, id=held.view_id),
            transport=common.ReplicaTransportMetadata(
                export_state=common.ReplicaTransportMetadata.EXPORT_STATE_EXPORTABLE,
                export_generation=held.export_generation,
                remote_memory_keys=[held.memory_key],
                buffer_sizes=[held.size],
            ),
        )
