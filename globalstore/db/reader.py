"""Queries, many in one snapshot."""

import sqlite3
import time

from globalstore.db.errors import Busy, Damaged, mapped
from globalstore.db.health import Health
from globalstore.db.sites import Observer, Site
from globalstore.db.ticket import Ticket, name_of
from globalstore.db.transaction import Snapshot
from globalstore.db.writer import Deliver
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.db")


class Reader:
    """Runs batches of queries on a read-only connection.

    The snapshot of a batch is taken after its last query was queued, so that a query sees
    everything that had been answered before it was asked.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        deliver: Deliver,
        health: Health,
        observe: Observer,
        slow_s: float,
    ) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._snapshot = Snapshot(connection)
        self._deliver = deliver
        self._health = health
        self._observe = observe
        self._slow_s = slow_s
        self.running: list[Ticket] = []
        self.batches = 0
        self.queries = 0

    def run(self, batch: list[Ticket]) -> None:
        """Run a batch and deliver every ticket of it, answered."""
        self.running = batch
        self._observe(Site.READER_SNAPSHOT)
        begun = time.perf_counter()
        for ticket in batch:
            try:
                if not self._connection.in_transaction:
                    self._snapshot.restore()
                    self._execute("BEGIN")
                ticket.result = ticket.operation(self._snapshot, *ticket.arguments)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's answer
                ticket.error = mapped(error)
                if isinstance(ticket.error, Damaged):
                    self._health.note_damage(ticket.error)
                if isinstance(ticket.error, Busy):
                    self._health.note_locked()
            ended = time.perf_counter()
            if ended - begun > self._slow_s:
                _log.warning(
                    "slow query",
                    name=name_of(ticket.operation),
                    ms=round((ended - begun) * 1e3, 1),
                )
            begun = ended
        self._snapshot.end()
        if self._connection.in_transaction:
            self._execute("ROLLBACK")
        self.running = []
        self.batches += 1
        self.queries += len(batch)
        self._deliver(batch, [])
