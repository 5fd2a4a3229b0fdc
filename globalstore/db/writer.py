"""Group commit: many operations, one transaction, one fsync."""

import sqlite3
import time
from collections.abc import Callable
from typing import Any

from globalstore.db.errors import (
    Busy,
    Constraint,
    Damaged,
    DatabaseError,
    Full,
    IoFailed,
    OutcomeUnknown,
    mapped,
)
from globalstore.db.health import Health, Observers
from globalstore.db.place import refined
from globalstore.db.sites import Observer, Site
from globalstore.db.ticket import Ticket, name_of
from globalstore.db.transaction import Transaction
from globalstore.db.wal import Checkpointer
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.db")

Deliver = Callable[[list[Ticket], list[Any]], None]


class Writer:
    """Runs batches of operations on the only read-write connection.

    A batch is one transaction with a savepoint per operation. SQLite answers some errors (a full
    disk first of all) by rolling back the whole transaction, neighbours included. The operation
    that met the error is then answered, and the others are run again in two halves: the operation
    that causes the next error is found in a logarithmic number of transactions.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        checkpointer: Checkpointer,
        *,
        deliver: Deliver,
        health: Health,
        observers: Observers,
        observe: Observer,
        slow_s: float,
        directory: str,
    ) -> None:
        self._connection = connection
        self._directory = directory
        self._execute = connection.execute
        self._transaction = Transaction(connection)
        self._checkpointer = checkpointer
        self._deliver = deliver
        self._health = health
        self._observers = observers
        self._observe = observe
        self._slow_s = slow_s
        self.running: list[Ticket] = []
        # What every transaction begins with until one is stored.
        self.owed: list[Callable[[Transaction], object]] = []
        self.groups = 0
        self.operations = 0
        self.operations_most = 0
        self.busy_seconds = 0.0

    def run(self, batch: list[Ticket]) -> None:
        """Run a batch and deliver every ticket of it, answered.

        Raises when it cannot go on: OutcomeUnknown when COMMIT failed in a way that leaves open
        what is on disk. Tickets not delivered by then are in ``running``.
        """
        self.running = batch
        started = time.perf_counter()
        groups = [batch]
        while groups:
            groups += self._transact(groups.pop())
        self.running = []
        self._checkpointer.between_groups()
        self.busy_seconds += time.perf_counter() - started

    def _transact(self, group: list[Ticket]) -> list[list[Ticket]]:
        """Run a group in a transaction; returns the groups that are to be run next, last first."""
        if self._health.damage is not None:
            return self._refuse(group, self._health.damage)
        transaction = self._transaction
        transaction.restore()
        observe = self._observe
        changes = self._connection.total_changes
        was_full = self._health.full
        started = time.perf_counter()
        observe(Site.BEFORE_BEGIN)
        try:
            self._execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            return self._refuse(group, self._mapped(error))
        self._health.note_unlocked()
        observe(Site.AFTER_BEGIN)
        unpaid = self._pay()
        if unpaid is not None:
            return self._refuse(group, unpaid)
        failed = self._run_operations(group)
        transaction.end()
        if failed is not None:
            return self._give_up(group, failed)
        observe(Site.BEFORE_COMMIT)
        try:
            if self._connection.in_transaction:
                self._execute("COMMIT")
                self.owed = []
        except (sqlite3.Error, MemoryError) as error:
            return self._commit_failed(group, error)
        observe(Site.AFTER_COMMIT)
        if was_full and self._connection.total_changes != changes:
            self._health.note_written()
        self._deliver(group, transaction.events)
        observe(Site.AFTER_WAKE)
        self._count(len(group), time.perf_counter() - started)
        return []

    def _pay(self) -> Exception | None:
        """Run what is owed; return why it cannot be, with everything undone, or None."""
        try:
            for operation in self.owed:
                operation(self._transaction)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is every caller's answer
            self._transaction.end()
            self._roll_back()
            failure = self._mapped(error)
            if isinstance(failure, Full):
                self._health.note_full()
            return failure
        return None

    def _run_operations(self, group: list[Ticket]) -> Ticket | None:
        """Run the operations of a group; returns the one that ended the transaction, if one did."""
        transaction = self._transaction
        events = transaction.events
        execute = self._execute
        # A lone operation needs no savepoint: undoing it is undoing the transaction.
        shared = len(group) > 1 or bool(self.owed)
        begun = time.perf_counter()
        for ticket in group:
            ticket.error = None
            mark = len(events)
            try:
                if shared:
                    execute("SAVEPOINT operation")
                ticket.result = ticket.operation(transaction, *ticket.arguments)
                if transaction.broken is not None:
                    raise transaction.broken
                if shared:
                    execute("RELEASE operation")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's answer
                ticket.result = None
                ticket.error = self._mapped(error)
                del events[mark:]
                if isinstance(ticket.error, Full):
                    self._health.note_full()
                if isinstance(ticket.error, Damaged) or not self._connection.in_transaction:
                    return ticket
                if not shared:
                    execute("ROLLBACK")
                else:
                    execute("ROLLBACK TO operation")
                    execute("RELEASE operation")
            self._observe(Site.AFTER_OPERATION)
            ended = time.perf_counter()
            if ended - begun > self._slow_s:
                _log.warning(
                    "slow operation",
                    name=name_of(ticket.operation),
                    lane=ticket.lane.name,
                    ms=round((ended - begun) * 1e3, 1),
                )
            begun = ended
        return None

    def _give_up(self, group: list[Ticket], failed: Ticket) -> list[list[Ticket]]:
        """Answer the operation that ended the transaction; the others have to be run again."""
        self._roll_back()
        error = failed.error
        if isinstance(error, Damaged):
            return self._refuse(group, error)
        self._deliver([failed], [])
        return _halves([ticket for ticket in group if ticket is not failed])

    def _commit_failed(
        self, group: list[Ticket], cause: sqlite3.Error | MemoryError
    ) -> list[list[Ticket]]:
        """Answer a group of which nothing is applied, or nobody knows.

        A full disk is certain: the frame that makes a commit valid is the last one written. A
        broken constraint or a lock leaves the transaction open to be rolled back. Everything else
        may have happened after that frame was written.
        """
        error = self._mapped(cause)
        certain = isinstance(error, Full | Busy | Constraint) or self._connection.in_transaction
        if not certain or isinstance(error, IoFailed):
            unknown = OutcomeUnknown(
                f"COMMIT failed ({cause}): it is not known whether the operation was stored; the"
                " store stops, ask again after its restart"
            )
            unknown.code = getattr(error, "code", None)
            raise unknown from cause
        self._roll_back()
        if isinstance(error, Full):
            self._health.note_full()
        if isinstance(error, Full | Constraint) and len(group) > 1:
            return _halves(group)
        return self._refuse(group, error)

    def _refuse(self, group: list[Ticket], error: Exception) -> list[list[Ticket]]:
        if isinstance(error, Damaged):
            self._health.note_damage(error)
        if isinstance(error, Busy):
            self._health.note_locked()
        for ticket in group:
            ticket.result = None
            ticket.error = type(error)(*error.args)
            if isinstance(error, DatabaseError):
                ticket.error.code = error.code  # type: ignore[attr-defined]
        self._deliver(group, [])
        return []

    def _mapped(self, error: Exception) -> Exception:
        return refined(mapped(error), self._directory)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._execute("ROLLBACK")

    def _count(self, operations: int, seconds: float) -> None:
        self.groups += 1
        self.operations += operations
        self.operations_most = max(self.operations_most, operations)
        if self._observers.group_committed is not None:
            self._observers.group_committed(operations, seconds)


def _halves(group: list[Ticket]) -> list[list[Ticket]]:
    middle = (len(group) + 1) // 2
    return [half for half in (group[middle:], group[:middle]) if half]
