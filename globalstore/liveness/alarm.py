"""Waking up at a time that may come nearer."""

from collections.abc import Callable

import trio


class Alarm:
    """Wakes one task when the next of some deadlines has come.

    ``next_at`` tells when that is, on trio's clock; None while there is none.
    """

    def __init__(self, next_at: Callable[[], float | None]) -> None:
        self._next_at = next_at
        self._sooner = trio.Event()

    def sooner(self) -> None:
        """Take in that the next deadline is an earlier one now, or may be."""
        self._sooner.set()

    async def wait(self) -> None:
        """Return when the next deadline has come. A cancelled wait changes nothing."""
        while True:
            at = self._next_at()
            with trio.move_on_at(float("inf") if at is None else at):
                await self._sooner.wait()
                self._sooner = trio.Event()
                continue
            return
