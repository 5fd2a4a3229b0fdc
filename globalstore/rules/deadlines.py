"""Many deadlines, of which only the next one matters. Pure: the caller brings the time."""

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Deadlines(Generic[Key]):
    """Which key is due next.

    Postponing a deadline, the common case, is one dictionary write: the heap keeps the older,
    earlier time, and a key found there before its real deadline is put back.
    """

    __slots__ = ("_at", "_heap", "_order")

    def __init__(self) -> None:
        self._at: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._order = 0  # breaks ties in the heap, so that keys need no order of their own

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, key: Key) -> bool:
        return key in self._at

    def set(self, key: Key, at: float) -> bool:
        """Set a key's deadline; True when it may now be the next one (wake the waiting task)."""
        before = self._at.get(key)
        self._at[key] = at
        if before is not None and before <= at:
            return False
        self._push(key, at)
        return self._heap[0][0] == at

    def discard(self, key: Key) -> None:
        """Forget a key."""
        self._at.pop(key, None)
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._at):
            self._rebuild()

    def next(self) -> float | None:
        """Return when the next key is due, or None when there is none."""
        while self._heap:
            at, _, key = self._heap[0]
            real = self._at.get(key)
            if real == at:
                return at
            heapq.heappop(self._heap)
            if real is not None and real > at:
                self._push(key, real)
        return None

    def pop_due(self, now: float) -> Iterator[Key]:
        """Remove and yield the keys whose deadline is not after now, earliest first."""
        while True:
            at = self.next()
            if at is None or at > now:
                return
            _, _, key = heapq.heappop(self._heap)
            del self._at[key]
            yield key

    def postpone_all(self, seconds: float) -> None:
        """Move every deadline by the same span."""
        for key in self._at:
            self._at[key] += seconds
        self._rebuild()

    def _push(self, key: Key, at: float) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at, self._order, key))

    def _rebuild(self) -> None:
        self._heap = [(at, order, key) for order, (key, at) in enumerate(self._at.items())]
        self._order = len(self._heap)
        heapq.heapify(self._heap)
