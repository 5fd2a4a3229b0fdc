"""The order in which the requests that wait for one artifact and view are served."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import attrs

from globalstore.registry.runtime.transports import TransportRequest
from globalstore.registry.signals import GroupKey
from globalstore.rules.scoring import GroupProgress

# Multiples of the ageing threshold after which no later request goes first.
_ABSOLUTE_AGEING = 4


class Waiting(Protocol):
    """A request and since when it waits, on trio's clock."""

    request: TransportRequest
    arrived: float


W = TypeVar("W", bound=Waiting)


@attrs.frozen
class Fairness:
    """How scheduling groups are weighed against each other; see §8 of the contract.

    Groups whose share of successful parts is up to ``floor_ratio`` above the least come first, and
    so do requests that have waited ``ageing_s`` seconds without progress; ``completion_bias``
    prefers groups that are nearly complete.
    """

    floor_ratio: float = 0.25
    completion_bias: float = 1.0
    ageing_s: float = 5.0


Key = tuple[float, ...]


def ratio(progress: GroupProgress, total_parts: int) -> float:
    """Return which share of a group's parts has arrived."""
    return min(1.0, progress.succeeded / total_parts)


def ranked(
    waiters: Sequence[W],
    groups: Mapping[GroupKey, GroupProgress],
    fairness: Fairness,
    now: float,
    now_us: int,
) -> list[W]:
    """Return waiters, given in order of arrival, in the order in which sources are offered to them.

    ``now`` is on trio's clock, ``now_us`` on the wall clock, on which successes are recorded.
    """
    if all(waiter.request.group is None for waiter in waiters):
        return list(waiters)  # requests promoted by ageing are the oldest anyway
    ratios = {
        group.key: ratio(groups.get(group.key, _NOTHING), group.total_parts)
        for group in (waiter.request.group for waiter in waiters)
        if group is not None
    }
    passes = min(ratios.values()) + fairness.floor_ratio

    def place(waiter: W) -> tuple[Key, float, str]:
        request, waited_s = waiter.request, now - waiter.arrived
        return _key(request, waited_s), waiter.arrived, request.request_id

    def _key(request: TransportRequest, waited_s: float) -> Key:
        if waited_s > _ABSOLUTE_AGEING * fairness.ageing_s:
            return (-1.0,)
        group = request.group
        if group is None:
            aged = float(waited_s < fairness.ageing_s)
            return aged, aged, 0.0, 0.0
        progress, share = groups.get(group.key, _NOTHING), ratios[group.key]
        starves = (
            not progress.succeeded
            or now_us - progress.last_success_us >= fairness.ageing_s * 1_000_000
        )
        return (
            0.0 if starves else 1.0,
            0.0 if share <= passes else 1.0,
            -share * fairness.completion_bias,
            -float(group.priority),
        )

    return sorted(waiters, key=place)


_NOTHING = GroupProgress()
