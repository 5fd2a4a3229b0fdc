"""Requests that wait for a source, and the queue of those for one artifact and view."""

import enum
from collections.abc import Iterable, Mapping
from itertools import islice

import attrs
import trio

from globalstore.registry.runtime.transports import (
    Answer,
    Granted,
    Miss,
    RequestGroup,
    RequestRefused,
    TransportRequest,
    duplicate_part,
    group_mismatch,
)
from globalstore.registry.signals import GroupKey, Space
from globalstore.rpc import Call
from globalstore.rules.scoring import Scoring
from globalstore.scheduling.queue_order import Fairness

# Waiters looked at for some that are not suspect, a fifth of a millisecond. Should so many clients
# at the head of one queue be frozen, those behind wait until these are dropped, seconds later.
_LOOKED_AT_MAX = 1024


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
    callers: list[Call] = attrs.Factory(list)
    answer: Answer | Withdrawn | Exception | None = None
    changed: trio.Event = attrs.Factory(trio.Event)

    def notify(self) -> None:
        """Wake every caller of this request, to look at what changed."""
        self.changed.set()
        self.changed = trio.Event()


def is_suspect(waiter: Waiter) -> bool:
    """Tell whether everybody who waits for the request may be gone."""
    return all(call.suspect for call in waiter.callers)


def next_in_line(waiters: Iterable[Waiter], count: int) -> list[Waiter]:
    """Return up to ``count`` waiters in order of arrival, but those that may be gone last."""
    sound: list[Waiter] = []
    suspect: list[Waiter] = []
    for waiter in islice(waiters, _LOOKED_AT_MAX):
        (suspect if is_suspect(waiter) else sound).append(waiter)
        if len(sound) == count:
            break
    return (sound + suspect)[:count]


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


def contradiction(
    request: TransportRequest,
    group: RequestGroup,
    parts: Mapping[str, TransportRequest],
    relaxed_kinds: frozenset[str],
) -> RequestRefused | None:
    """Return what a request contradicts of those that wait of its group, by their parts."""
    if group.part_id in parts:
        return RequestRefused(duplicate_part(group))
    other = next(iter(parts.values()), None)
    if other is None:
        return None
    # All others agree with each other, so that comparing with one is enough; the spaces of a
    # relaxed group may differ but are not compared.
    assert other.group is not None
    same_space = other.space == request.space or group.kind.lower() in relaxed_kinds
    if other.group.total_parts == group.total_parts and same_space:
        return None
    return RequestRefused(group_mismatch(group))
