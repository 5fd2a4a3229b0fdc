"""What keys point at, kept in memory: the hottest read of the cluster asks no database.

There is one writer, and every commit reaches this cache before any caller is answered, so that the
cache is what all answered calls have left. The result of a look-up that a commit overtakes goes to
its callers and is not kept.
"""

from typing import Any

import attrs
import trio

from globalstore.db import Store
from globalstore.registry.catalog import keys
from globalstore.registry.catalog.keys import KeyMapping
from globalstore.registry.signals import KeyChanged
from globalstore.rules.recency import Recency

# Memory for keys that point at something: some 30 000 usual ones. One takes the texts it has, twice
# because the encoded answer is kept beside them, and what Python adds.
_BYTES_MAX = 32 << 20
_ENTRY_BYTES = 700

# Memory for keys that point at nothing, apart from the others: a client that guesses keys must not
# push out those that are in use.
_ABSENT_BYTES_MAX = 2 << 20


@attrs.define(eq=False)
class Known:
    """What is known of a key; ``mapping`` is None when it points at nothing.

    ``answer`` is what the handler made of the mapping.
    """

    mapping: KeyMapping | None
    answer: Any = None


class _Look:
    """A look-up in the database, shared by all calls that ask meanwhile."""

    __slots__ = ("done", "found")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.found: Known | None = None


class KeyCache:
    """What keys point at, as every answered call has left it."""

    def __init__(
        self, store: Store, bytes_max: int = _BYTES_MAX, absent_bytes_max: int = _ABSENT_BYTES_MAX
    ) -> None:
        self._store = store
        self._present: Recency[Known] = Recency(bytes_max)
        self._absent: Recency[Known] = Recency(absent_bytes_max)
        self._looks: dict[str, _Look] = {}

    def __repr__(self) -> str:
        return f"<KeyCache [keys: {len(self._present)}, absent: {len(self._absent)}]>"

    def known(self, key: str) -> Known | None:
        """Return what memory knows of a key, or None when only the database knows."""
        return self._present.get(key) or self._absent.get(key)

    async def look_up(self, key: str) -> Known:
        """Look a key up in the database, together with all callers that want it meanwhile.

        Raises DatabaseError. When the caller that reads is cancelled or fails, the next one reads
        again.
        """
        while True:
            look = self._looks.get(key)
            if look is None:
                return await self._look(key)
            # A change that was answered before this call has dropped older look-ups, so this one is
            # good.
            await look.done.wait()
            if look.found is not None:
                return look.found

    async def _look(self, key: str) -> Known:
        look = self._looks[key] = _Look()
        try:
            look.found = Known(await self._store.read(keys.find_key, key))
        finally:
            overtaken = self._looks.get(key) is not look
            if not overtaken:
                del self._looks[key]
            look.done.set()
        if not overtaken:
            self._keep(key, look.found)
        return look.found

    def changed(self, signal: KeyChanged) -> None:
        """Take in that a commit has changed a key: nothing that was read before it is kept."""
        key = signal.key
        self._present.discard(key)
        self._absent.discard(key)
        self._looks.pop(key, None)

    def _keep(self, key: str, known: Known) -> None:
        mapping = known.mapping
        if mapping is None:
            self._absent.put(key, known, len(key) + _ENTRY_BYTES)
        else:
            texts = (mapping.target, mapping.replica_uuid, mapping.daemon_address)
            self._present.put(key, known, len(key) + 2 * sum(map(len, texts)) + _ENTRY_BYTES)
