"""Long work is cut by the number of items and by their size."""

import pytest

from globalstore.api.turns import in_turns_by_size


@pytest.mark.parametrize(
    ("sizes", "turns"),
    [
        ([], []),
        ([1, 1, 1, 1], [[1, 1, 1], [1]]),
        ([9, 1, 9, 9], [[9, 1], [9, 9]]),
        ([50, 50, 1], [[50], [50], [1]]),
    ],
)
async def test_a_turn_ends_by_count_or_by_size(sizes: list[int], turns: list[list[int]]) -> None:
    assert [turn async for turn in in_turns_by_size(sizes, 3, lambda size: size, 10)] == turns
