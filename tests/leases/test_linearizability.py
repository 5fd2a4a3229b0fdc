"""The judge of histories itself: it accepts what can be, and refuses what cannot."""

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from linearizability import Operation, assert_linearizable, impossible_after, unknown


def register(state: int, call: Operation) -> Iterator[int]:
    """One number that is written and read."""
    kind, value = call.request
    if kind == "write":
        yield value
    elif call.may_have_failed or call.outcome == state:
        yield state


def write(began: float, ended: float, value: int) -> Operation:
    return Operation(began, ended, ("write", value), "ok")


def read(began: float, ended: float, value: int) -> Operation:
    return Operation(began, ended, ("read", None), value, only_reads=True)


POSSIBLE = {
    "nothing": [],
    "one after the other": [write(0, 1, 5), read(2, 3, 5)],
    "a read that overlaps a write may be before it": [write(0, 4, 5), read(1, 2, 0)],
    "or after it": [write(0, 4, 5), read(1, 2, 5), read(3, 5, 5)],
    "a write without an answer may have happened": [unknown(0, ("write", 7)), read(5, 6, 7)],
    "or not": [unknown(0, ("write", 7)), read(5, 6, 0)],
    "or later than a read that did not see it": [
        unknown(0, ("write", 7)),
        read(1, 2, 0),
        read(3, 4, 7),
    ],
    "a write of what is there already may be later, when it is not": [
        write(0, 9, 0),
        write(1, 2, 5),
        read(3, 4, 5),
        read(5, 6, 0),
    ],
    "calls that touch in time may be in either order": [write(0, 1, 5), read(1, 2, 0)],
}

IMPOSSIBLE = {
    "a stale read": [write(0, 1, 5), read(2, 3, 0)],
    "a value that nobody wrote": [read(0, 1, 9)],
    "a read that goes back": [write(0, 9, 5), read(1, 2, 5), read(3, 4, 0)],
    "a lost write": [write(0, 1, 5), write(2, 3, 6), read(4, 5, 5)],
    "a write without an answer that comes and goes": [
        unknown(0, ("write", 7)),
        read(1, 2, 7),
        read(3, 4, 0),
    ],
    "a write without an answer, seen before it began": [read(0, 1, 7), unknown(2, ("write", 7))],
    "two readers who disagree about the order": [
        *(write(0, 9, 1), write(0, 9, 2)),
        *(read(1, 2, 1), read(3, 4, 2), read(5, 6, 1)),
    ],
}


@pytest.mark.parametrize("name", POSSIBLE)
def test_a_history_that_can_be_is_accepted(name: str) -> None:
    assert_linearizable(POSSIBLE[name], 0, register)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_history_that_cannot_be_is_refused(name: str) -> None:
    assert impossible_after(IMPOSSIBLE[name], 0, register) is not None
    with pytest.raises(AssertionError, match="can be explained"):
        assert_linearizable(IMPOSSIBLE[name], 0, register)


def recorded(rng: random.Random, clients: int, calls: int) -> list[Operation]:
    """A history of a register that works, as its clients see it."""
    history, value = [], 0
    free_at = [0.0] * clients
    for number in range(calls):
        client = min(range(clients), key=free_at.__getitem__)
        happens = max(free_at[client], number) + rng.random() * clients / 2
        began = max(free_at[client], happens - rng.random() * clients / 2)
        history.append((happens, began, happens + rng.random() * clients / 2))
        free_at[client] = history[-1][2]
    answers: list[Operation] = []
    for number, (_, began, ended) in enumerate(sorted(history)):
        request: Any = rng.choice([("write", number + 1), ("read", None)])
        if request[0] == "write":
            value = request[1]
        lost = request[0] == "write" and rng.random() < 0.01
        call = Operation(began, ended, request, value, only_reads=request[0] == "read")
        answers.append(unknown(began, request) if lost else call)
    return answers


def test_a_thousand_calls_of_eight_clients_are_judged_in_seconds() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    history = recorded(rng, 8, 1000)
    began = time.monotonic()
    assert_linearizable(history, 0, register)
    reads = [n for n, call in enumerate(history) if call.request[0] == "read" and n > 100]
    spoilt = rng.choice(reads)
    call = history[spoilt]
    history[spoilt] = Operation(call.began, call.ended, call.request, -1)
    assert impossible_after(history, 0, register) is not None
    assert time.monotonic() - began < 30


def test_a_search_without_end_is_given_up() -> None:
    concurrent = [write(0, 1, n) for n in range(30)] + [read(2, 3, -1)]
    with pytest.raises(RuntimeError, match="overlapping"):
        impossible_after(concurrent, 0, register, looks_max=10_000)
