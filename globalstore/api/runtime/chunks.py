"""BatchUpdateChunkStates, QueryChunkLocations."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby

import attrs

from globalstore.api.context import Handlers
from globalstore.api.turns import in_turns
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.runtime import chunks
from globalstore.registry.runtime.chunks import ChunkReport, HeldChunks, NodeWorker
from globalstore.rpc import Call
from globalstore.rules.chunk_states import BLOCK_CHUNKS, ChunkState, Patches
from globalstore.rules.refusals import InvalidArgument, Refusal, ResourceExhausted
from globalstore.rules.values import existing, identifier, required

# Locations in one answer, some 20 MB, where answers may be as long: an artifact of 20 000 chunks on
# a dozen nodes. For more, the caller asks for some chunks at a time.
LOCATIONS_MAX = 250_000
_FEWER_CHUNKS = "name some of the chunks in chunk_indices"

# Entries that are looked at before other calls get a turn: about a millisecond each time.
_ENTRIES_PER_TURN = 250
_LOCATIONS_PER_TURN = 100
_INDICES_PER_TURN = 10_000

# The order in which sources of a chunk are preferred.
_PREFERENCE: dict[int, int] = {
    ChunkState.HOT: 0,
    ChunkState.LOCKED_TX: 1,
    ChunkState.COPIED_GPU: 2,
    ChunkState.COLD: 3,
}


@attrs.frozen
class _Source:
    """What one worker's node has of one block, and how it ranks among others."""

    block: int
    accepting: bool
    load: float
    held: HeldChunks
    worker: NodeWorker

    @property
    def rank(self) -> tuple[object, ...]:
        held = self.held
        return (
            self.block,
            not self.accepting,
            self.load,
            held.node_id,
            held.device_uuid,
            held.replica,
        )


class ChunkHandlers(Handlers):
    """The calls of the chunk directory."""

    async def BatchUpdateChunkStates(
        self, message: wire.BatchUpdateChunkStatesRequest, request: Call
    ) -> wire.BatchUpdateChunkStatesResponse:
        """Record what a node has, all entries or none."""
        count = len(message.updates)
        if count:
            patches = await _gathered(message)
            report = ChunkReport(
                required("node_id", message.node_id),
                identifier("worker_id", message.worker_id),
                self.context.clock.wall_us(),
            )
            self.context.handler_slots.release(request)
            await self.context.chunk_reports.keep(report, patches)
        return wire.BatchUpdateChunkStatesResponse(status=wire.STATUS_OK, updates_applied=count)

    async def QueryChunkLocations(
        self, message: wire.QueryChunkLocationsRequest, request: Call
    ) -> wire.QueryChunkLocationsResponse:
        """List where chunks of an artifact are, the best source of each first."""
        artifact_id = existing("artifact_id", message.artifact_id)
        wanted = await _wanted(message)
        blocks = (min(wanted) // BLOCK_CHUNKS, max(wanted) // BLOCK_CHUNKS) if wanted else None
        self.context.handler_slots.release(request)
        held, workers = await self.context.chunk_reports.once_applied(
            lambda: self.context.read(chunks.held, artifact_id, blocks, self.context.workers.live())
        )
        response = wire.QueryChunkLocationsResponse(status=wire.STATUS_OK)
        room = self.context.list_room(_FEWER_CHUNKS)
        located = _located(await self._sources(held, workers), wanted)
        async for turn in in_turns(located, _LOCATIONS_PER_TURN):
            if len(response.locations) + len(turn) > LOCATIONS_MAX:
                raise ResourceExhausted(f"more than {LOCATIONS_MAX} locations: {_FEWER_CHUNKS}")
            for chunk_idx, state, source in turn:
                response.locations.add(
                    chunk_idx=chunk_idx,
                    node_id=source.held.node_id,
                    node_address=source.worker.node_address,
                    p2p_port=source.worker.p2p_port,
                    state=wire.ChunkState.ValueType(state),
                    node_load_ratio=source.load,
                    device_uuid=source.held.device_uuid,
                    replica=source.held.replica,
                )
            room.take(response.locations[-len(turn) :])
        return response

    async def _sources(self, held: list[HeldChunks], workers: list[NodeWorker]) -> list[_Source]:
        """Return the sources of blocks, in the order of the answer but for their states."""
        by_node: dict[str, list[NodeWorker]] = defaultdict(list)
        for worker in workers:
            by_node[worker.node_id].append(worker)
        loads = {node_id: await self._load(there) for node_id, there in by_node.items()}
        routable = self.context.workers.routable()
        sources = []
        for each in held:
            there = by_node[each.node_id]
            # The worker that reported it, or else the one that registered last.
            worker = next((w for w in there if w.worker_key == each.worker_key), there[0])
            accepting = worker.worker_key in routable
            sources.append(_Source(each.block, accepting, loads[each.node_id], each, worker))
        return sorted(sources, key=lambda source: source.rank)

    async def _load(self, workers: list[NodeWorker]) -> float:
        """Return the share of the slots of a node's live workers that is in use."""
        slots = 0
        for worker in workers:
            slots += await self.context.worker_capacity.of(worker.worker_key)
        return min(1.0, sum(worker.in_use for worker in workers) / slots) if slots else 0.0


async def _gathered(message: wire.BatchUpdateChunkStatesRequest) -> Patches:
    """Check every entry of a report, a turn's worth at a time; the first wrong one refuses all."""
    patches = Patches()
    names = _Names()
    async for turn in in_turns(enumerate(message.updates), _ENTRIES_PER_TURN):
        for index, entry in turn:
            try:
                patches.add(
                    names.artifact_id(entry.artifact_id),
                    names.device_uuid(entry.device_uuid),
                    entry.replica,
                    entry.chunk_idx,
                    _state(entry.state),
                )
            except Refusal as refused:
                raise type(refused)(f"updates[{index}].{refused}") from None
    return patches


class _Names:
    """Checks names, of which the same one mostly comes again and again."""

    def __init__(self) -> None:
        self._artifact_id = self._device_uuid = ("", "")

    def artifact_id(self, text: str) -> str:
        if not text or text != self._artifact_id[0]:
            self._artifact_id = text, required("artifact_id", text)
        return self._artifact_id[1]

    def device_uuid(self, text: str) -> str:
        if text != self._device_uuid[0]:
            self._device_uuid = text, identifier("device_uuid", text)
        return self._device_uuid[1]


_STATES = frozenset(ChunkState)


def _state(number: int) -> int:
    if number not in _STATES:
        raise InvalidArgument(
            f"state is {number}, expected LOCKED_TX, COPIED_GPU, COLD, EVICTED or HOT"
        )
    return number


async def _wanted(message: wire.QueryChunkLocationsRequest) -> set[int]:
    """Return the requested chunks; empty means all of them."""
    wanted: set[int] = set()
    async for turn in in_turns(message.chunk_indices, _INDICES_PER_TURN):
        wanted.update(turn)
    return wanted


def _located(sources: list[_Source], wanted: set[int]) -> Iterator[tuple[int, int, _Source]]:
    """Yield chunk, state and source of each location, in the order of the answer."""
    for block, group in groupby(sources, key=lambda source: source.block):
        there = list(group)
        first = block * BLOCK_CHUNKS
        for offset in range(max(len(source.held.states) for source in there)):
            if wanted and first + offset not in wanted:
                continue
            found = [
                (not source.accepting, _PREFERENCE[state], order)
                for order, source in enumerate(there)
                if offset < len(source.held.states) and (state := source.held.states[offset])
            ]
            for _, _, order in sorted(found):
                source = there[order]
                yield first + offset, source.held.states[offset], source
