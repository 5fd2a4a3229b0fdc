"""Inventories as messages: read and checked, and what became of them written into the answer."""

from collections.abc import AsyncIterator, Iterator, Sequence

import attrs

from globalstore.api.encoding import microseconds
from globalstore.api.runtime import memory_info
from globalstore.api.turns import in_turns_by_size
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.runtime.inventories import ReportedReplica
from globalstore.registry.runtime.inventory_writes import Changes
from globalstore.registry.runtime.replica_rows import HeldReplica
from globalstore.rules.artifact_ids import is_kept_by_daemons
from globalstore.rules.refusals import Refusal

# Entries that are looked at before other calls get a turn: about a millisecond each time.
ENTRIES_PER_TURN = 50

# Bytes of entries that are looked at in one turn: one with as many memory keys as there may be
# takes some ten milliseconds by itself.
_BYTES_PER_TURN = 64 << 10

# Fingerprinted before other calls get a turn. An entry costs a tenth of what checking it does.
_ENTRIES_HASHED_PER_TURN = 250


@attrs.define
class Inventory:
    """The inventory of a request, checked when that is first needed.

    ``complete`` ones remove what they do not list. One with the ``fingerprint`` of an accepted
    inventory describes the same replicas in the same way, and is as well-formed as that was.
    ``taken_us`` is the earliest time that an entry carries (µs since 1970), None without any, and
    ``left_out`` are ids whose objects daemons keep to themselves; both are known with the entries.
    """

    complete: bool
    fingerprint: int
    _reported: Sequence[common.ReplicaInfo]
    _node_id: str
    taken_us: int | None = None
    left_out: list[str] = attrs.Factory(list)
    _entries: list[ReportedReplica] | None = None

    @property
    def denies_all(self) -> bool:
        """Whether, by this inventory, the worker holds nothing at all."""
        return self.complete and all(
            is_kept_by_daemons(entry.ref.artifact_id.strip()) for entry in self._reported
        )

    async def entries(self) -> list[ReportedReplica]:
        """Return all entries but those that are left out, checked; a wrong one refuses them all."""
        if self._entries is None:
            self._entries = await self._checked()
        return self._entries

    async def _checked(self) -> list[ReportedReplica]:
        checked: list[ReportedReplica] = []
        times: set[int] = set()
        async for turn in _turns(self._reported, ENTRIES_PER_TURN):
            for entry in turn:
                if entry.stats.HasField("registered_ts"):
                    times.add(microseconds(entry.stats.registered_ts))
                # One of them must not refuse the whole: its daemon would send the same again.
                if is_kept_by_daemons(entry.ref.artifact_id.strip()):
                    self.left_out.append(entry.ref.artifact_id)
                    continue
                try:
                    checked.append(memory_info.reported(entry, self._node_id))
                except Refusal as refused:
                    index = len(checked) + len(self.left_out)
                    raise type(refused)(f"inventory[{index}].{refused}") from None
        self.taken_us = min(times - {0}, default=None)
        return checked


async def inventory_of(message: wire.ReconcileWorkerStateRequest, node_id: str) -> Inventory:
    """Return the inventory of a request; ``node_id`` is the worker's, of entries that name none."""
    fingerprint = hash(node_id)
    async for turn in _turns(message.inventory, _ENTRIES_HASHED_PER_TURN):
        fingerprint = hash((fingerprint, *map(_content_of, turn)))
    complete = (
        len(message.inventory) > 0 or message.request_kind == wire.RECONCILE_REQUEST_KIND_SNAPSHOT
    )
    return Inventory(complete, fingerprint, message.inventory, node_id)


def _turns(
    entries: Sequence[common.ReplicaInfo], count: int
) -> AsyncIterator[list[common.ReplicaInfo]]:
    return in_turns_by_size(entries, count, common.ReplicaInfo.ByteSize, _BYTES_PER_TURN)


def _content_of(entry: common.ReplicaInfo) -> tuple[object, ...]:
    """Return all that an entry reports of its replica.

    When it was taken and how many requests are running are no part of that.
    """
    content = entry.ref.SerializeToString(), entry.memory_info.SerializeToString()
    if not entry.HasField("stats"):
        return content
    return *content, entry.stats.is_available, entry.stats.max_concurrency


@attrs.frozen
class AnswerRoom:
    """How much the answer to an inventory may hold.

    It grows with what the daemon itself lists and holds, which is far below a message's most: past
    three quarters of that, replicas are listed without how they are read, and past all of it not
    at all.
    """

    bytes_max: int

    def writer(self) -> memory_info.InfoWriter:
        """Return what writes replicas into one answer."""
        return memory_info.InfoWriter(self.bytes_max // 4 * 3)

    def is_full(self, writer: memory_info.InfoWriter) -> bool:
        """Tell whether no further replicas fit."""
        return writer.written_bytes > self.bytes_max


async def list_changes(
    changes: Changes,
    into: wire.ReconcileWorkerStateResponse,
    writer: memory_info.InfoWriter,
    room: AnswerRoom,
) -> None:
    """Add changes to an answer as far as there is room, a turn's worth at a time."""
    async for turn in in_turns_by_size(
        _each(changes), ENTRIES_PER_TURN, lambda each: len(each[1].transfer_json), _BYTES_PER_TURN
    ):
        for kind, row, reason in turn:
            if room.is_full(writer):
                return
            change = into.state_changes.add(type=kind, reason=reason)
            writer.write(change.replica_info, row)


def _each(changes: Changes) -> Iterator[tuple[wire.StateChange.ChangeType, HeldReplica, str]]:
    for row in changes.added:
        yield wire.StateChange.CHANGE_TYPE_ADD_REPLICA, row, "reported and not recorded"
    for row in changes.removed:
        yield wire.StateChange.CHANGE_TYPE_REMOVE_REPLICA, row, "recorded and not reported"
    for one in changes.updated:
        yield wire.StateChange.CHANGE_TYPE_UPDATE_REPLICA, one.row, ", ".join(one.fields)
