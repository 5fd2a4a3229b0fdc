"""One operation or query on its way through the database thread."""

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

import trio

from globalstore.db.options import Lane


class State(Enum):
    """QUEUED → RUNNING → DONE, or QUEUED → CANCELLED; a running query can be cancelled too."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"


class Ticket:
    """An operation to run, the task that waits for it, and how it ended.

    ``state`` changes only under the lock of its queue, except RUNNING → DONE, which happens on the
    event loop; ``result`` and ``error`` belong to the running thread until then.
    """

    __slots__ = ("arguments", "error", "lane", "operation", "result", "state", "task")

    def __init__(
        self, operation: Callable[..., Any], arguments: tuple[Any, ...], lane: Lane
    ) -> None:
        self.operation = operation
        self.arguments = arguments
        self.lane = lane
        self.state = State.QUEUED
        self.result: Any = None
        self.error: BaseException | None = None
        self.task = trio.lowlevel.current_task()

    def __repr__(self) -> str:
        return f"<Ticket [{name_of(self.operation)}, {self.lane.name}, {self.state.name}]>"


def name_of(operation: Callable[..., Any]) -> str:
    """Return the name of an operation for the log, without the arguments that are bound to it."""
    while isinstance(operation, partial):
        operation = operation.func
    return getattr(operation, "__qualname__", None) or repr(operation)
