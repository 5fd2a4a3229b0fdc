"""Packed states of chunks, held against a dictionary."""

import random

import pytest

from globalstore.rules.chunk_states import BLOCK_CHUNKS, ChunkState, Patches, patched, without


def unpacked(block: int, states: bytes) -> dict[int, int]:
    return {block * BLOCK_CHUNKS + at: state for at, state in enumerate(states) if state}


@pytest.mark.parametrize("seed", range(20))
def test_patches_do_to_blocks_what_entries_do_to_a_dictionary(seed: int) -> None:
    rng = random.Random(seed)
    blocks: dict[int, bytes] = {}
    expected: dict[int, int] = {}
    for _ in range(30):
        patches = Patches()
        reported: dict[int, int] = {}
        for _ in range(rng.choice([1, 3, 300])):
            chunk, state = rng.randrange(600), rng.choice(list(ChunkState))
            patches.add("a", "", 0, chunk, state)
            reported[chunk] = state
        for patch in patches.in_order():
            before = blocks.get(patch.block, b"")
            kept = {
                chunk: state
                for chunk, state in unpacked(patch.block, before).items()
                if chunk not in reported
            }
            assert unpacked(patch.block, without(before, patch)) == kept
            blocks[patch.block] = patched(before, patch)
        expected |= reported
        packed = {k: v for n, states in blocks.items() for k, v in unpacked(n, states).items()}
        assert packed == {k: v for k, v in expected.items() if v != ChunkState.EVICTED}
        assert all(not states.endswith(b"\0") for states in blocks.values())


def test_patches_come_in_the_order_of_their_keys_and_in_parts_of_a_size() -> None:
    patches = Patches()
    keys = [(a, d, r, b) for a in "ba" for d in ("y", "") for r in (2, 0) for b in (9, 1)]
    for artifact, device, replica, block in keys:
        patches.add(artifact, device, replica, block * BLOCK_CHUNKS + 3, ChunkState.HOT)
    assert len(patches) == 16
    assert [patch[:4] for patch in patches.in_order()] == sorted(keys)
    parts = list(patches.parts(5))
    assert [len(part) for part in parts] == [5, 5, 5, 1]
    assert all(part == sorted(part) for part in parts)
    assert sorted(patch for part in parts for patch in part) == patches.in_order()
    assert patches.in_order()[0][4:] == (3, bytes([ChunkState.HOT]))
