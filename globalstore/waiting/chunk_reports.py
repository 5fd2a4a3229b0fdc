"""Reports of chunks that are too large for one transaction, and the calls that wait for them."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

from globalstore.db import DatabaseError, Store, repeat_in_slices, write_in_slices
from globalstore.registry.runtime import chunks
from globalstore.registry.runtime.chunks import ChunkReport, Unapplied
from globalstore.rules.chunk_states import Patches
from globalstore.rules.refusals import Unavailable
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.chunks")

R = TypeVar("R")

# Pause before it is tried again when the database refuses, as a full disk does.
_RETRY_S = 1.0

# Reports that are staged in parts at the same time; each holds its entries in memory.
_IN_PARTS_MAX = 4


class ChunkReports:
    """Stores reports: in one transaction if that is short, else part by part.

    A report in parts counts from the instant at which it is accepted. ``run`` then applies it, also
    one that an earlier server had accepted.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._in_parts = trio.CapacityLimiter(_IN_PARTS_MAX)
        self._work = trio.Event()
        self._applied = trio.Event()
        self._failure: DatabaseError | None = None

    async def keep(self, report: ChunkReport, patches: Patches) -> None:
        """Store a report; when this returns it is durable, and seen as a whole.

        Raises what the registry refuses and what the store raises. When cancelled, all of it counts
        or nothing.
        """
        if len(patches) > chunks.BLOCKS_AT_ONCE:
            async with self._in_parts:
                await self._keep_in_parts(report, patches)
            return
        in_order = patches.in_order()
        await self.once_applied(lambda: self._store.write(chunks.report_chunks, report, in_order))

    async def _keep_in_parts(self, report: ChunkReport, patches: Patches) -> None:
        try:
            batch_key = await self._store.write(chunks.open_batch, report)
            parts = map(chunks.part_json, patches.parts(chunks.BLOCKS_AT_ONCE))
            await write_in_slices(
                self._store,
                (
                    partial(chunks.add_part, batch_key=batch_key, patches_json=part)
                    for part in parts
                ),
            )
            await self.once_applied(
                lambda: self._store.write(chunks.accept_report, batch_key, report)
            )
        finally:
            self._work.set()  # to apply it, or else to clear it away
        await self.once_applied(lambda: self._store.read(chunks.applied, batch_key))

    async def once_applied(self, ask: Callable[[], Awaitable[R | Unapplied]]) -> R:
        """Repeat a query, whenever reports have been applied, until none is in the way.

        Raises Unavailable while they cannot be applied.
        """
        while True:
            applied = self._applied  # before the query: what is applied meanwhile must wake us
            answer = await ask()
            if not isinstance(answer, Unapplied):
                return answer
            if self._failure is None:
                await applied.wait()
            if self._failure is not None:
                raise Unavailable(f"a report of chunks cannot be applied now: {self._failure}")

    async def run(self) -> None:
        """Apply what was accepted, and clear away what was not, until cancelled."""
        while True:
            self._work = trio.Event()
            try:
                async for _ in repeat_in_slices(self._store, chunks.apply_part):
                    pass
                self._announce(None)
                await self._clear_away()
            except DatabaseError as error:
                self._announce(error)
                _log.limited("apply", "chunk reports not applied yet", reason=str(error))
                await trio.sleep(_RETRY_S)
                continue
            await self._work.wait()

    def _announce(self, failure: DatabaseError | None) -> None:
        """Wake the waiting calls: all is applied, or cannot be."""
        self._failure = failure
        self._applied.set()
        self._applied = trio.Event()

    def _busy(self) -> bool:
        return self._in_parts.borrowed_tokens > 0

    async def _clear_away(self) -> None:
        """Delete the parts of reports that were abandoned before they were accepted."""
        if self._busy():
            return  # the reports being staged come back here when they are done
        last_key = await self._store.read(chunks.last_batch)
        if self._busy():
            return  # a report has just begun, perhaps before that was read
        async for _ in repeat_in_slices(self._store, chunks.drop_part, last_key):
            pass
