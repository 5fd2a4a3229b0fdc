"""Cuts long work into turns of the event loop, so that it delays no other call."""

from collections.abc import AsyncIterator, Callable, Iterable
from itertools import islice
from typing import TypeVar

import trio

T = TypeVar("T")


async def in_turns(items: Iterable[T], size: int) -> AsyncIterator[list[T]]:
    """Yield items in order, ``size`` at a time; other tasks that are ready run after each.

    ``size`` is what takes less than a millisecond. When cancelled, that is noticed between turns.
    """
    rest = iter(items)
    while turn := list(islice(rest, size)):
        yield turn
        await trio.lowlevel.checkpoint()


async def in_turns_by_size(
    items: Iterable[T], count: int, size_of: Callable[[T], int], bytes_max: int
) -> AsyncIterator[list[T]]:
    """Yield items in order as ``in_turns`` does, but fewer at a time where they are large.

    A turn has ``count`` items at most, and ends with the one that makes it ``bytes_max`` by
    ``size_of``.
    """
    turn: list[T] = []
    left = bytes_max
    for item in items:
        turn.append(item)
        left -= size_of(item)
        if left <= 0 or len(turn) == count:
            yield turn
            await trio.lowlevel.checkpoint()
            turn, left = [], bytes_max
    if turn:
        yield turn
        await trio.lowlevel.checkpoint()
