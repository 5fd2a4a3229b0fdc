"""How answers get from the database to the tasks that wait for them, and what if none comes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import outcome
import trio

from globalstore.db.errors import Closed, DatabaseError, OutcomeUnknown
from globalstore.db.options import Runner
from globalstore.db.queues import TicketQueue
from globalstore.db.ticket import State, Ticket
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.db")


class Running(Protocol):
    """A writer or reader, which has tickets that are neither waiting nor answered."""

    running: list[Ticket]


class Answers:
    """The event loop's end of a store: resumes callers, and gives up for all of them at once.

    ``failed`` and ``failure`` are those of the store.
    """

    def __init__(
        self,
        queues: Sequence[TicketQueue],
        on_commit: Callable[[list[Any]], None] | None,
        runner: Runner,
        stall_timeout_s: float,
    ) -> None:
        self._queues = queues
        self._on_commit = on_commit
        self._runner = runner
        self._stall_timeout_s = stall_timeout_s
        self._token: trio.lowlevel.TrioToken | None = None
        self._watched: trio.Event | None = None
        self._engines: Sequence[Running] = ()
        self.failed = trio.Event()
        self.failure: DatabaseError | None = None

    def begin(self, engines: Sequence[Running]) -> None:
        """Deliver from now on to the event loop that this is called on."""
        self._token = trio.lowlevel.current_trio_token()
        self._engines = engines

    def deliver(self, tickets: list[Ticket], events: list[Any]) -> None:
        """Answer the tickets of a batch on the event loop, in one wake-up; called where it ran."""
        if self._runner is Runner.INLINE:
            self._resolve(tickets, events)
            return
        assert self._token is not None
        try:
            self._token.run_sync_soon(self._resolve, tickets, events)
        except trio.RunFinishedError:
            _log.warning("the event loop has ended before its answers", answers=len(tickets))

    def watch(self, nursery: trio.Nursery) -> None:
        """Bound the wait of a cancelled caller for the batch that is running."""
        if self._watched is None and self.failure is None:
            self._watched = trio.Event()
            nursery.start_soon(self._fail_after_stall, self._watched)

    def fail(self, failure: DatabaseError) -> None:
        """Stop for good: nobody gets an answer that the disk does not back."""
        if self.failure is not None:
            return
        self.failure = failure
        _log.error("database stopped, the process has to be restarted", reason=str(failure))
        refusal = Closed(f"the store has stopped: {failure}")
        for queue in self._queues:
            queue.close(refusal)
            _answer(queue.clear(), refusal)
        for engine in self._engines:
            _answer(engine.running, failure)
        self._end_watch()
        self.failed.set()

    def _resolve(self, tickets: list[Ticket], events: list[Any]) -> None:
        if self.failure is not None:
            # Delivered before the store stopped, but nobody follows events up any more.
            _answer(tickets, self.failure)
            return
        if events and self._on_commit is not None:
            try:
                self._on_commit(events)
            except Exception as error:  # noqa: BLE001 - logged, and the store stops
                _log.exception("on_commit raised: memory and database disagree")
                failure = OutcomeUnknown(f"stored, but not followed up: {error!r}")
                self.fail(failure)
                _answer(tickets, failure)
                return
        for ticket in tickets:
            if ticket.state is State.RUNNING:
                ticket.state = State.DONE
                trio.lowlevel.reschedule(ticket.task)
        if self._watched is not None:
            self._end_watch()

    def _end_watch(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None:
            watched.set()

    async def _fail_after_stall(self, answered: trio.Event) -> None:
        with trio.CancelScope(shield=True) as scope:
            scope.deadline = trio.current_time() + self._stall_timeout_s
            await answered.wait()
        if scope.cancelled_caught:
            self.fail(OutcomeUnknown(f"the disk has not answered within {self._stall_timeout_s} s"))


def _answer(tickets: Iterable[Ticket], error: DatabaseError) -> None:
    for ticket in tickets:
        if ticket.state is State.RUNNING:
            ticket.state = State.DONE
            # Not through the ticket: the thread that runs it may be writing there still.
            trio.lowlevel.reschedule(ticket.task, outcome.Error(type(error)(*error.args)))
