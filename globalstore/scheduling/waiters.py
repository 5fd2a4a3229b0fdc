"""Requests that wait for a source, and the queue of those for one artifact and view."""

import enum
from collections.abc import Iterable

import attrs
import trio

from globalstore.registry.runtime.transports import (
    Answer,
    Granted,
    Miss,
    RequestRefused,
    TransportRequest,
)
from globalstore.registry.signals import GroupKey, Space
from globalstore.rules.scoring import Scoring
from globalstore.scheduling.queue_order import Fairness


class Withdrawn(enum.Enum):
    """Why a request ended without a decision about a source."""

    TIMED_OUT = "timed out"
    TOO_MANY = "too many waiters"
    STOPPING = "server stopping"


@attrs.define(eq=False)
class Waiter:
    """A request that waits, for one or more calls that carry it.

    ``is_patient`` when one of them wanted to wait, however long that may be.
    """

    request: TransportRequest
    arrived: float
    deadline: float
    is_patient: bool
    deciding: bool = False
    attempted: bool = False
    callers: int = 0
    answer: Answer | Withdrawn | Exception | None = None
    received: bool = False
    changed: trio.Event = attrs.Factory(trio.Event)

    def notify(self) -> None:
        """Wake every caller of this request, to look at what changed."""
        self.changed.set()
        self.changed = trio.Event()


@attrs.define(eq=False)
class Queue:
    """The waiters of one artifact and view, oldest first (dict order is arrival order).

    ``newcomers`` were not checked yet. ``untried`` when some waiter was checked, but had no turn:
    those before it had used up the pass and there may be more sources. ``is_hoping`` while no
    replica can be read yet but some is announced.
    """

    space: Space
    waiters: dict[str, Waiter] = attrs.Factory(dict)
    newcomers: dict[str, Waiter] = attrs.Factory(dict)
    untried: bool = False
    is_hoping: bool = False
    kicked: bool = False
    running: bool = False


@attrs.frozen(kw_only=True)
class Policy:
    """Bounds of the queues; see ``worker_policy.transport_scheduler`` of the configuration."""

    max_waiters: int = 65536
    scan_limit: int = 128
    batch_limit: int = 16
    scoring: Scoring = attrs.Factory(Scoring)
    fairness: Fairness = attrs.Factory(Fairness)
    relaxed_group_kinds: frozenset[str] = frozenset({"tp_version"})


def event_of(answer: Answer | Exception) -> str:
    """Return what the metric calls the end of a request."""
    match answer:
        case Granted():
            return "replayed" if answer.replayed else "granted"
        case RequestRefused():
            return "refused"
        case Miss():
            return "not_found"
        case _:
            return "failed"


def groups_of(waiters: Iterable[Waiter]) -> list[GroupKey]:
    """Return the groups of waiters, each once."""
    groups = (waiter.request.group for waiter in waiters)
    return list(dict.fromkeys(group.key for group in groups if group is not None))
