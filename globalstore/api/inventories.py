"""Inventories as messages: read and checked, and what became of them written into the answer."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import attrs
import trio

from globalstore.api import memory_info
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.inventories import Held, Reported
from globalstore.registry.inventory_writes import Changes
from globalstore.rules.refusals import Refusal

T = TypeVar("T")

# Entries that are looked at before other calls get a turn: about a millisecond each time.
ENTRIES_PER_TURN = 50


@attrs.frozen
class Inventory:
    """A checked request. ``complete`` inventories remove what they do not list."""

    entries: list[Reported]
    complete: bool
    fingerprint: int

    @property
    def is_empty_snapshot(self) -> bool:
        return self.complete and not self.entries


async def checked(message: wire.ReconcileWorkerStateRequest, node_id: str) -> Inventory:
    """Check every entry, a turn's worth at a time; the first wrong one refuses them all."""
    entries: list[Reported] = []
    fingerprint = 0
    for start in range(0, len(message.inventory), ENTRIES_PER_TURN):
        chunk = []
        for index, entry in enumerate(message.inventory[start : start + ENTRIES_PER_TURN], start):
            try:
                chunk.append(memory_info.reported(entry, node_id))
            except Refusal as refused:
                raise type(refused)(f"inventory[{index}].{refused}") from None
        # When an inventory was taken is no part of what it says.
        fingerprint = hash((fingerprint, *(entry[:-1] for entry in chunk)))
        entries += chunk
        await trio.lowlevel.checkpoint()
    complete = bool(entries) or message.request_kind == wire.RECONCILE_REQUEST_KIND_SNAPSHOT
    return Inventory(entries, complete, fingerprint)


def in_chunks(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    """Cut a sequence into pieces of at most ``size``."""
    return (items[start : start + size] for start in range(0, len(items), size))


async def list_changes(
    changes: Changes, into: wire.ReconcileWorkerStateResponse, writer: memory_info.InfoWriter
) -> None:
    """Add changes to an answer, a turn's worth at a time."""
    for count, (kind, row, reason) in enumerate(_each(changes), 1):
        change = into.state_changes.add(type=kind, reason=reason)
        writer.write(change.replica_info, row)
        if count % ENTRIES_PER_TURN == 0:
            await trio.lowlevel.checkpoint()


def _each(changes: Changes) -> Iterator[tuple[wire.StateChange.ChangeType, Held, str]]:
    for row in changes.added:
        yield wire.StateChange.CHANGE_TYPE_ADD_REPLICA, row, "reported and not recorded"
    for row in changes.removed:
        yield wire.StateChange.CHANGE_TYPE_REMOVE_REPLICA, row, "recorded and not reported"
    for one in changes.updated:
        yield wire.StateChange.CHANGE_TYPE_UPDATE_REPLICA, one.row, ", ".join(one.fields)
