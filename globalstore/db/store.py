"""The store: one database, one writer, and the tasks that wait for it."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple

import trio

from globalstore.db import limits, maintenance
from globalstore.db.answers import Answers
from globalstore.db.consumer import RunBatch, consume
from globalstore.db.errors import (
    Closed,
    DatabaseError,
    DatabaseFilesystem,
    Full,
    IoFailed,
    OutcomeUnknown,
)
from globalstore.db.health import Health, Observers, Statistics, free_bytes
from globalstore.db.migrations import Migration, checked
from globalstore.db.opening import Examination, Opened, open_file, open_memory
from globalstore.db.options import Lane, Runner, StoreOptions
from globalstore.db.queues import ReadQueue, TicketQueue, WriteQueue
from globalstore.db.reader import Reader
from globalstore.db.sites import Observer, Site, unobserved
from globalstore.db.ticket import State, Ticket
from globalstore.db.transaction import Snapshot, Transaction
from globalstore.db.wal import Checkpointer
from globalstore.db.watch import Watch
from globalstore.db.writer import Writer
from globalstore.host import host_step, is_host_error, told
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.db")

# Databases of stores that failed. Closing one would checkpoint it, after an error that may have
# made the kernel forget unwritten pages; the process is about to end, and its successor recovers
# the log.
_left_open: list[Opened] = []

T = TypeVar("T")
R = TypeVar("R")
Arguments = TypeVarTuple("Arguments")


class Store:
    """A database that is open between ``async with`` and its end.

    ``path`` is the file, or None for a database in memory that is lost at the end. ``migrations``
    are all steps of the schema from 1 on. ``on_commit`` gets the list of events of each commit, on
    the event loop, in commit order, before any of its callers resumes; it must neither block nor
    raise. ``at_site`` is for tests (see ``sites``). ``examination`` is one of the file that was
    begun earlier.

    Entering raises a StartRefused when the database cannot be served; it cannot be cancelled while
    it checks and migrates. Leaving runs what is queued, even when cancelled, within
    ``options.close_timeout_s``.

    ``failed`` is set when the store has stopped because it can no longer vouch for what is on
    disk; ``failure`` then says why. The process should end, and be started again.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        migrations: Sequence[Migration],
        options: StoreOptions | None = None,
        on_commit: Callable[[list[Any]], None] | None = None,
        runner: Runner = Runner.THREADS,
        observers: Observers | None = None,
        at_site: Observer | None = None,
        examination: Examination | None = None,
    ) -> None:
        self._path = path
        self._migrations = checked(migrations)
        self._examination = examination
        self._options = options or StoreOptions()
        self._runner = runner
        self._observers = observers or Observers()
        self._observe = at_site or unobserved
        self._writes = WriteQueue()
        self._reads = ReadQueue()
        self._answers = Answers(
            (self._writes, self._reads), on_commit, runner, self._options.stall_timeout_s
        )
        self._health = Health()
        self._opened: Opened | None = None
        self._entered = False
        self._serving: list[tuple[trio.CancelScope, trio.Event]] = []

    def __repr__(self) -> str:
        where = self._path or "in memory"
        if self.failure is not None:
            state = "FAILED"
        elif self._opened is None:
            state = "CLOSED" if self._entered else "NEW"
        else:
            waiting = sum(self._writes.depth(lane) for lane in Lane)
            state = f"OPEN, writes: {waiting}, reads: {self._reads.depth(Lane.NORMAL)}"
        return f"<Store [{where}, {state}]>"

    async def write(
        self,
        operation: Callable[[Transaction, *Arguments], R],
        *args: *Arguments,
        lane: Lane = Lane.NORMAL,
    ) -> R:
        """Run ``operation(transaction, *args)`` and return its result once that is durable.

        Raises what the operation raises, after undoing it alone; QueueFull and Closed before it
        ran; Full, LimitReached, Busy, IoFailed, Constraint or Damaged when it was not applied;
        OutcomeUnknown when nobody knows. A cancelled caller takes a waiting operation back; one
        that has begun is waited for, its result is returned, and Cancelled comes at the caller's
        next checkpoint.
        """
        return await self._submit(self._writes, operation, args, lane)

    async def bulk(self, operation: Callable[[Transaction, *Arguments], R], *args: *Arguments) -> R:
        """Do as ``write`` for more than some 200 rows: alone in a transaction, after the others.

        Rows should come sorted by key.
        """
        return await self._submit(self._writes, operation, args, Lane.BULK)

    async def bulk_chunks(
        self,
        operation: Callable[[Transaction, Sequence[T], *Arguments], object],
        chunks: Iterable[Sequence[T]],
        *args: *Arguments,
    ) -> int:
        """Run ``operation(transaction, chunk, *args)`` for each chunk, in a transaction each.

        Other operations get in between. Returns the number of chunks. An error or a cancellation
        ends it after a whole number of chunks, which stay. Raises ValueError before a chunk of more
        than ``BULK_CHUNK_ROWS_MAX`` rows, and whatever ``write`` raises.
        """
        done = 0
        for chunk in chunks:
            if len(chunk) > limits.BULK_CHUNK_ROWS_MAX:
                raise ValueError(
                    f"chunk {done} has {len(chunk)} rows, more than {limits.BULK_CHUNK_ROWS_MAX}"
                )
            await self._submit(self._writes, operation, (chunk, *args), Lane.BULK)
            done += 1
        return done

    async def read(self, query: Callable[[Snapshot, *Arguments], R], *args: *Arguments) -> R:
        """Run ``query(snapshot, *args)``, which sees all that was answered before this call.

        Raises what the query raises, QueueFull, Closed, IoFailed or Damaged. A cancelled caller
        leaves at once.
        """
        return await self._submit(self._reads, query, args, Lane.NORMAL)

    async def write_first(
        self, operation: Callable[[Transaction, *Arguments], R], *args: *Arguments
    ) -> R | None:
        """Do as ``write``, before anything else is written; None when the disk is full.

        It is then owed: every later transaction begins with it, and as long as there is no space
        for that, everything is refused as Full.
        """
        try:
            return await self.write(operation, *args, lane=Lane.CONTROL)
        except Full:
            self._writer.owed.append(lambda tx: operation(tx, *args))
            return None

    async def maintain(self) -> None:
        """Refresh the planner's statistics, give free pages back and empty the log, in short steps.

        Raises what ``bulk`` raises; when cancelled, the rest is left for the next time.
        """
        await self.bulk(maintenance.optimize)
        for _ in range(limits.VACUUM_STEPS_MAX):
            if await self.bulk(maintenance.vacuum) == 0:
                break
        await self._watch.empty_log()

    async def watch(self) -> None:
        """Look at the file, its log and the free space each second, until cancelled.

        What has passed by itself (a full disk, a lock, a reader in the log) is noticed and acted
        on although nobody writes. Raises Closed when the store has stopped.
        """
        await self._watch.run()

    @property
    def failed(self) -> trio.Event:
        """Set when the store has stopped for good; the process should end with an error."""
        return self._answers.failed

    @property
    def failure(self) -> DatabaseError | None:
        """Why the store has stopped, or None."""
        return self._answers.failure

    @property
    def path(self) -> Path | None:
        """The real path of the open database, None when it is in memory."""
        return None if self._opened is None else self._opened.path

    @property
    def degraded(self) -> str | None:
        """Why not everything works (disk full, database damaged or locked), or None."""
        return self._health.degraded

    @property
    def broken(self) -> bool:
        """Whether nothing can be written although the disk has space: damage, or a foreign lock."""
        return self.damaged or self._health.locked

    @property
    def damaged(self) -> bool:
        """Whether damage was met: writes are refused until a restart with a repaired file."""
        return self._health.damage is not None

    def statistics(self) -> Statistics:
        """Queue depths and totals; raises Closed when the store is not open."""
        if self._opened is None:
            raise Closed("the store is not open")
        return Statistics(
            waiting_control=self._writes.depth(Lane.CONTROL),
            waiting_normal=self._writes.depth(Lane.NORMAL),
            waiting_bulk=self._writes.depth(Lane.BULK),
            waiting_reads=self._reads.depth(Lane.NORMAL),
            groups=self._writer.groups,
            operations=self._writer.operations,
            operations_most=self._writer.operations_most,
            queries=sum(reader.queries for reader in self._readers),
            busy_seconds=self._writer.busy_seconds,
            checkpoints=self._checkpointer.checkpoints,
            checkpoint_seconds=self._checkpointer.seconds,
            wal_bytes=self._opened.log.file_bytes(),
            free_bytes=free_bytes(self._opened.directory),
        )

    async def _submit(
        self,
        queue: TicketQueue,
        operation: Callable[..., R],
        arguments: tuple[Any, ...],
        lane: Lane,
    ) -> R:
        if self._opened is None:
            raise Closed("the store is not open")
        await trio.lowlevel.checkpoint_if_cancelled()
        ticket = Ticket(operation, arguments, lane)
        queue.put(ticket)

        def abort(_: object) -> trio.lowlevel.Abort:
            if queue.withdraw(ticket):
                return trio.lowlevel.Abort.SUCCEEDED
            if queue is self._reads:
                ticket.state = State.CANCELLED
                return trio.lowlevel.Abort.SUCCEEDED
            self._answers.watch(self._nursery)
            return trio.lowlevel.Abort.FAILED

        await trio.lowlevel.wait_task_rescheduled(abort)
        error = ticket.error
        if error is not None:
            # An error that its own traceback leads back to would wait for the garbage collector.
            ticket.error = None
            try:
                raise error
            finally:
                del error
        result: R = ticket.result
        return result

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a store is opened once")
        self._entered = True
        self._opened = opened = await self._open()
        options, observe = self._options, self._observe
        answers = self._answers
        slow_s = options.slow_operation_ms / 1e3
        self._checkpointer = Checkpointer(
            opened.writer,
            opened.log,
            directory=opened.directory,
            options=options,
            health=self._health,
            observers=self._observers,
            observe=observe,
        )
        self._writer = Writer(
            opened.writer,
            self._checkpointer,
            deliver=answers.deliver,
            health=self._health,
            observers=self._observers,
            observe=observe,
            slow_s=slow_s,
            directory=opened.directory,
        )
        self._readers = [
            Reader(connection, answers.deliver, self._health, observe, slow_s)
            for connection in opened.readers
        ]
        self._watch = Watch(
            self.bulk,
            self.statistics,
            opened,
            self._checkpointer,
            self._health,
            options.min_free_bytes,
        )
        answers.begin((self._writer, *self._readers))
        # Not an ``async with`` around the caller's block: a nursery would wrap the block's own
        # exceptions into groups. Its tasks have ended when it is left.
        self._nursery_context = trio.open_nursery()
        self._nursery = await self._nursery_context.__aenter__()
        self._serve(self._writes, self._writer.run)
        for reader in self._readers:
            self._serve(self._reads, reader.run)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writes.close()
        self._reads.close()
        deadline = trio.current_time() + self._options.close_timeout_s
        for scope, _ in self._serving:
            scope.deadline = deadline
        # One second more, so that those who serve end first.
        with trio.CancelScope(shield=True, deadline=deadline + 1):
            for _, ended in self._serving:
                await ended.wait()
        with trio.CancelScope(shield=True, deadline=deadline + 1) as closing:
            await self._close()
        if closing.cancelled_caught:
            self._answers.fail(OutcomeUnknown("the disk has not let the database be closed"))
        await self._nursery_context.__aexit__(None, None, None)
        self._opened = None

    async def _open(self) -> Opened:
        def open_database() -> Opened:
            if self._path is None:
                return open_memory(self._migrations, self._options, self._observe)
            return open_file(
                self._path, self._migrations, self._options, self._observe, self._examination
            )

        if self._runner is Runner.INLINE:
            return open_database()
        with host_step("database.db_file", self._path or "(in memory)", DatabaseFilesystem):
            return await trio.to_thread.run_sync(open_database)

    async def _close(self) -> None:
        assert self._opened is not None
        if self._answers.failure is not None:
            _left_open.append(self._opened)
            return

        def close_database(opened: Opened) -> None:
            self._checkpointer.at_close()
            opened.close()
            self._observe(Site.AFTER_CLOSE)

        try:
            if self._runner is Runner.INLINE:
                close_database(self._opened)
            else:
                await trio.to_thread.run_sync(close_database, self._opened, abandon_on_cancel=True)
        except sqlite3.Error as error:
            # Everything answered is in the log, from which the next start takes it.
            _left_open.append(self._opened)
            self._answers.fail(IoFailed(f"checkpoint at close failed: {error}"))

    def _serve(self, queue: TicketQueue, run: RunBatch) -> None:
        # Until the store is closed, not until somebody cancels its owner, whose clean-up may have
        # something to write still. Closing sets the deadline.
        scope, ended = trio.CancelScope(shield=True), trio.Event()

        async def serve() -> None:
            with scope:
                try:
                    await consume(queue, run, self._runner)
                except Exception as error:  # noqa: BLE001 - told, and the store stops
                    self._answers.fail(_stopped(error))
            if scope.cancelled_caught:
                self._answers.fail(
                    OutcomeUnknown("the disk has not answered before the store was closed")
                )
            ended.set()

        self._serving.append((scope, ended))
        self._nursery.start_soon(serve)


def _stopped(error: Exception) -> DatabaseError:
    """Return what to tell everybody of what ended the writer or a reader; a bug is logged too."""
    if isinstance(error, DatabaseError):
        return error
    if is_host_error(error):
        return OutcomeUnknown(told(error, "database.db_file", ""))
    _log.exception("the database cannot go on", error)
    return OutcomeUnknown(f"the database stopped: {error!r}")
