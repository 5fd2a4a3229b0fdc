"""Cuts long work into turns of the event loop, so that it delays no other call."""

from collections.abc import AsyncIterator, Iterable
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
