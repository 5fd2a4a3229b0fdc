"""Calls that wait for a change of something with a key, and are woken by the commit that makes it.

A watcher is a parked call: it costs no thread and no look at the database.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from globalstore.rules.refusals import Refusal, Unavailable

K = TypeVar("K")
W = TypeVar("W")


class Watchers(Generic[K, W]):
    """The watchers of each key, at most ``per_key_max`` of one or ``total_max`` of all.

    ``refusal`` is the text for whoever would be one too many, with the bound for its ``{}``, and
    ``refused_as`` the class of it: Unavailable where a repeat may find a place.
    ``on_count`` gets the number of all whenever that changes.
    """

    def __init__(
        self,
        refusal: str,
        *,
        total_max: int | None = None,
        per_key_max: int | None = None,
        refused_as: type[Refusal] = Unavailable,
        on_count: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._refusal = refusal
        self._total_max = total_max
        self._per_key_max = per_key_max
        self._refused_as = refused_as
        self._on_count = on_count
        self._by_key: dict[K, dict[int, W]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def watching(self, key: K, watcher: W) -> Iterator[W]:
        """Count as a watcher of a key for as long as the block runs.

        Look up inside the block what the call waits for: every later change then wakes it. Raises
        ``refused_as`` when there are too many watchers already.
        """
        watchers = self._by_key.get(key, {})
        for count, most in (len(watchers), self._per_key_max), (self._count, self._total_max):
            if most is not None and count >= most:
                raise self._refused_as(self._refusal.format(most))
        self._by_key.setdefault(key, watchers)[id(watcher)] = watcher
        self._change(1)
        try:
            yield watcher
        finally:
            del watchers[id(watcher)]
            if not watchers and self._by_key.get(key) is watchers:
                del self._by_key[key]
            self._change(-1)

    def of(self, key: K) -> list[W]:
        """Return the watchers of a key."""
        return list(self._by_key.get(key, {}).values())

    def take(self, key: K) -> list[W]:
        """Return the watchers of a key, and leave their places to those who come after them."""
        return list(self._by_key.pop(key, {}).values())

    def of_any(self, keys: set[K]) -> Iterator[W]:
        """Yield the watchers of any of some keys."""
        for key in self._by_key.keys() & keys:
            yield from self._by_key[key].values()

    def _change(self, by: int) -> None:
        self._count += by
        self._on_count(self._count)
