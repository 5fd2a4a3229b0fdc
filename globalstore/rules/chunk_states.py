"""States of chunks, packed: a byte for each of 256 consecutive chunks."""

from collections.abc import Iterator
from enum import IntEnum
from itertools import islice
from typing import Final, NamedTuple

# Chunks of one block. A model has some thousand chunks, so a node's copy of it is a handful of
# rows, and a change of one chunk rewrites a quarter of a kilobyte.
BLOCK_CHUNKS: Final = 256

# What stands in a patch for a chunk that it says nothing about; no state has this number.
_KEEP = 0xFF
_KEPT = bytes(0xFF if byte == _KEEP else 0 for byte in range(256))
_REPORTED = bytes(0 if byte == _KEEP else byte for byte in range(256))


class ChunkState(IntEnum):
    """What a node has of a chunk, in the numbers of the wire; 0 is nothing."""

    LOCKED_TX = 1
    COPIED_GPU = 2
    COLD = 3
    EVICTED = 4
    HOT = 5


class Patch(NamedTuple):
    """What a report says about one block of a copy: ``states`` from the chunk ``first`` on."""

    artifact_id: str
    device_uuid: str
    replica: int
    block: int
    first: int
    states: bytes


class Patches:
    """Gathers a report, entry by entry; of the same chunk the later one counts."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, str, int, int], bytearray] = {}

    def __len__(self) -> int:
        """Return how many blocks the report touches."""
        return len(self._blocks)

    def add(
        self, artifact_id: str, device_uuid: str, replica: int, chunk_idx: int, state: int
    ) -> None:
        """Take in one entry."""
        block, offset = divmod(chunk_idx, BLOCK_CHUNKS)
        key = (artifact_id, device_uuid, replica, block)
        states = self._blocks.get(key)
        if states is None:
            states = self._blocks[key] = bytearray(b"\xff" * BLOCK_CHUNKS)
        states[offset] = 0 if state == ChunkState.EVICTED else state

    def in_order(self) -> list[Patch]:
        """Return all patches, sorted by key."""
        return [_patch(key, states) for key, states in sorted(self._blocks.items())]

    def parts(self, size: int) -> Iterator[list[Patch]]:
        """Yield the patches in parts, each of them sorted: sorting all takes too long at once."""
        blocks = iter(self._blocks.items())
        while part := sorted(islice(blocks, size)):
            yield [_patch(key, states) for key, states in part]


def _patch(key: tuple[str, str, int, int], states: bytearray) -> Patch:
    known = states.lstrip(b"\xff")
    return Patch(*key, BLOCK_CHUNKS - len(known), bytes(known.rstrip(b"\xff")))


def patched(states: bytes, patch: Patch) -> bytes:
    """Return the states of a block after a patch; empty when no chunk is left."""
    return _merged(states, patch, keep_reported=True)


def without(states: bytes, patch: Patch) -> bytes:
    """Return the states of a block without the chunks that a patch is about."""
    return _merged(states, patch, keep_reported=False)


def _merged(states: bytes, patch: Patch, *, keep_reported: bool) -> bytes:
    whole = b"\xff" * patch.first + patch.states
    whole += b"\xff" * (BLOCK_CHUNKS - len(whole))
    merged = int.from_bytes(states.ljust(BLOCK_CHUNKS, b"\0")) & int.from_bytes(
        whole.translate(_KEPT)
    )
    if keep_reported:
        merged |= int.from_bytes(whole.translate(_REPORTED))
    return merged.to_bytes(BLOCK_CHUNKS).rstrip(b"\0")
