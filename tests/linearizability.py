"""Whether a history of concurrent calls can be told as one sequence that a model allows.

The search of Wing and Gong, with the states that were already tried remembered (Lowe). The time it
takes explodes with the number of calls that overlap: record a history per key, from no more than a
dozen clients.
"""

import math
from collections.abc import Callable, Hashable, Iterable
from itertools import islice
from typing import Any

import attrs

# Pairs of what is done and a state that one search may look at: some seconds.
_LOOKS_MAX = 1_000_000


@attrs.frozen
class Operation:
    """A call as its client saw it; times are of one clock that all clients share.

    A call whose ``outcome`` nobody knows has ``ended`` for ever: it may have happened at any time
    since it began, or not at all. Say so of a call that ``only_reads``: it saves most of the work.
    """

    began: float
    ended: float
    request: Any
    outcome: Any
    only_reads: bool = False

    @property
    def may_have_failed(self) -> bool:
        return self.ended == math.inf


def unknown(began: float, request: Any) -> Operation:
    """A call that ended without an answer."""
    return Operation(began, math.inf, request, None)


# Returns every state in which an operation may leave a state, given its outcome; none if it cannot
# have had this outcome.
Step = Callable[[Any, Operation], Iterable[Hashable]]


def impossible_after(
    history: Iterable[Operation], start: Hashable, step: Step, looks_max: int = _LOOKS_MAX
) -> int | None:
    """Return None for a history that is linearizable, else how many calls can be explained at most.

    Raises RuntimeError when that is not settled within a bounded search.
    """
    calls = sorted(history, key=lambda call: (call.began, call.ended))
    certain = sum(1 << n for n, call in enumerate(calls) if not call.may_have_failed)
    tried, open_ends, most = {(0, start)}, [(0, start)], 0
    while open_ends:
        done, state = open_ends.pop()
        most = max(most, (done & certain).bit_count())
        if done & certain == certain:
            return None
        ahead: list[tuple[int, Hashable]] = []
        first_end = math.inf
        first_open = (~done & done + 1).bit_length() - 1
        for number, call in enumerate(islice(calls, first_open, None), first_open):
            if call.began > first_end:
                break  # it and all after it began when one that is not done had ended
            if done >> number & 1:
                continue
            first_end = min(first_end, call.ended)
            states = list(step(state, call))
            ahead += ((done | 1 << number, after) for after in states)
            if call.only_reads and state in states:
                # If there is a way on, then also one that begins with it.
                ahead = [(done | 1 << number, state)]
                break
        open_ends += (way for way in ahead if way not in tried)
        tried.update(ahead)
        if len(tried) > looks_max:
            raise RuntimeError("too many overlapping calls to tell")
    return most


def assert_linearizable(history: Iterable[Operation], start: Hashable, step: Step) -> None:
    """Fail for a history that no sequence explains."""
    calls = list(history)
    explained = impossible_after(calls, start, step)
    assert explained is None, f"only {explained} calls can be explained of these:\n" + "\n".join(
        map(str, sorted(calls, key=lambda call: call.began))
    )
