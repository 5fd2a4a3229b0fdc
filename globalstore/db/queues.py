"""Where tickets wait: filled on the event loop, emptied by the thread that runs them."""

import threading
from collections.abc import Callable
from itertools import islice

from globalstore.db import limits
from globalstore.db.errors import Closed, DatabaseError, QueueFull
from globalstore.db.options import Lane
from globalstore.db.ticket import State, Ticket

Waker = Callable[[], object]


class TicketQueue:
    """A bounded queue with lanes, shared by the event loop and the threads that serve it.

    Every method holds the lock for microseconds and calls nobody while it does. Lanes are
    dictionaries, used as ordered sets: a cancelled ticket leaves from the middle at once, so that
    a storm of cancellations cannot fill the queue with dead tickets.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lanes: tuple[dict[Ticket, None], ...] = ({}, {}, {})
        self._sleepers: list[Waker] = []
        self._refusal: DatabaseError | None = None
        self._groups_past_bulk = 0

    @property
    def closed(self) -> bool:
        """Whether new tickets are refused."""
        return self._refusal is not None

    def depth(self, lane: Lane) -> int:
        """Return how many tickets wait in a lane."""
        return len(self._lanes[lane])

    def put(self, ticket: Ticket) -> None:
        """Queue a ticket and wake a sleeping thread.

        Raises Closed (or what closed the queue) and QueueFull; the ticket has then never been in.
        """
        with self._lock:
            if self._refusal is not None:
                raise type(self._refusal)(*self._refusal.args)
            if not self._has_room(ticket.lane):
                raise QueueFull(
                    f"the database's queue is full ({sum(map(len, self._lanes))} operations wait);"
                    " try again later"
                )
            self._lanes[ticket.lane][ticket] = None
            waker = self._sleepers.pop() if self._sleepers else None
        if waker is not None:
            waker()

    def take(self, waker: Waker) -> list[Ticket]:
        """Take the tickets to run next and return them, now RUNNING.

        An empty list means that nothing waits: ``waker`` will be called exactly once, when
        something does or the queue is closed. A closed, empty queue does not call it.
        """
        with self._lock:
            batch = self._next()
            for ticket in batch:
                ticket.state = State.RUNNING
            if not batch and self._refusal is None:
                self._sleepers.append(waker)
        return batch

    def withdraw(self, ticket: Ticket) -> bool:
        """Take a ticket back; False when it is no longer waiting."""
        with self._lock:
            if ticket.state is not State.QUEUED:
                return False
            ticket.state = State.CANCELLED
            del self._lanes[ticket.lane][ticket]
        return True

    def close(self, refusal: DatabaseError | None = None) -> None:
        """Refuse new tickets from now on; what waits already will still be taken."""
        with self._lock:
            if self._refusal is None:
                self._refusal = refusal or Closed("the store is closed")
            sleepers, self._sleepers = self._sleepers, []
        for waker in sleepers:
            waker()

    def clear(self) -> list[Ticket]:
        """Remove and return everything that waits, now RUNNING, for the caller to answer."""
        with self._lock:
            tickets = [ticket for lane in self._lanes for ticket in lane]
            for lane in self._lanes:
                lane.clear()
            for ticket in tickets:
                ticket.state = State.RUNNING
        return tickets

    def _has_room(self, lane: Lane) -> bool:
        raise NotImplementedError

    def _next(self) -> list[Ticket]:
        raise NotImplementedError


class WriteQueue(TicketQueue):
    """Control before normal before bulk, and none of them starved."""

    def _has_room(self, lane: Lane) -> bool:
        control, normal, bulk = self._lanes
        waiting = len(control) + len(normal) + len(bulk)
        if lane is Lane.CONTROL:
            return waiting < limits.WRITE_QUEUE_MAX
        if lane is Lane.BULK and len(bulk) >= limits.BULK_QUEUE_MAX:
            return False
        return waiting < limits.WRITE_QUEUE_MAX - limits.CONTROL_QUEUE_RESERVE

    def _next(self) -> list[Ticket]:
        control, normal, bulk = self._lanes
        if bulk:
            if not control and not normal:
                return self._next_bulk()
            if self._groups_past_bulk >= limits.BULK_PATIENCE_GROUPS:
                return self._next_bulk()
            self._groups_past_bulk += 1
        most_control = limits.CONTROL_OPERATIONS_MAX if normal else limits.GROUP_OPERATIONS_MAX
        batch = _pop(control, most_control)
        batch += _pop(normal, limits.GROUP_OPERATIONS_MAX - len(batch))
        return batch

    def _next_bulk(self) -> list[Ticket]:
        self._groups_past_bulk = 0
        return _pop(self._lanes[Lane.BULK], 1)


class ReadQueue(TicketQueue):
    """First come, first served."""

    def _has_room(self, lane: Lane) -> bool:
        return len(self._lanes[lane]) < limits.READ_QUEUE_MAX

    def _next(self) -> list[Ticket]:
        return _pop(self._lanes[Lane.NORMAL], limits.READ_BATCH_MAX)


def _pop(lane: dict[Ticket, None], most: int) -> list[Ticket]:
    if len(lane) <= most:
        batch = list(lane)
        lane.clear()
        return batch
    batch = list(islice(lane, most))
    for ticket in batch:
        del lane[ticket]
    return batch
