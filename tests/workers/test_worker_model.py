"""Any history of calls, clocks and restarts leaves what the contract says, at every step."""

import logging
from typing import Any

import pytest
import trio
import trio.testing
from simulated_host import folder_in_memory
from worker_programs import Program
from worker_steps import Step, program

from globalstore.registry.runtime import reconcile

STEPS = 100

# Runs that may be spent on making a program that fails shorter.
_SHORTER_RUNS_MAX = 300


def run(steps: list[Step]) -> Exception | None:
    """Run a program on a server of its own, under a clock of its own; return what went wrong."""

    async def main() -> None:
        with folder_in_memory() as folder:
            async with trio.open_nursery() as nursery:
                await Program(folder, nursery).run(steps)
                nursery.cancel_scope.cancel()

    try:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    except Exception as error:  # noqa: BLE001  any fault fails a program
        return error
    return None


def shortened(steps: list[Step]) -> list[Step]:
    """Leave out what a failing program fails without."""
    size, runs = len(steps) // 2, 0
    while size and runs < _SHORTER_RUNS_MAX:
        start = 0
        while start < len(steps) and runs < _SHORTER_RUNS_MAX:
            fewer = steps[:start] + steps[start + size :]
            runs += 1
            if run(fewer) is not None:
                steps = fewer
            else:
                start += size
        size //= 2
    return steps


BORN = {"endpoint": None, "node": None, "port": 50052, "recovery": False, "previous": ""}
USUAL = {"view": "", "node": 0, "tier": 1, "device": 0, "size": 100, "keys": "valid"}


def register(daemon: int) -> Step:
    return Step("register", BORN | {"daemon": daemon, "flags": 0})


def replica(daemon: int, artifact: str, port: int = 1) -> Step:
    fields = {"daemon": daemon, "artifact": artifact, "port": port, "lost": False}
    return Step("replica", USUAL | fields)


def snapshot(daemon: int, *artifacts: str, available: bool | None = True) -> Step:
    held = [USUAL | {"artifact": a, "port": 1, "available": available} for a in artifacts]
    fields = {"daemon": daemon, "entries": held, "kind": 1, "seq": 1, "generation": 0}
    return Step(
        "reconcile", fields | {"speaks_for": "own", "taken_s_ago": None, "malformed": False}
    )


def step(name: str, **arguments: Any) -> Step:
    return Step(name, arguments)


def holds(steps: list[Step], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "disabled", True)
    error = run(steps)
    if error is not None:
        raise error


def test_a_replica_whose_entry_is_skipped_stays_hidden_after_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = [replica(0, "a"), replica(1, "a", port=2), replica(1, "b")]
    back = [step("restart", graceful=True), step("everybody_beats")]
    # The place that daemon 1 reports for a belongs to daemon 0, which is heard.
    holds([register(0), register(1), *held, *back, snapshot(1, "a", "b")], monkeypatch)


def test_a_replica_that_was_confirmed_too_late_is_as_it_was_last_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive = [step("everybody_beats")] * 4
    late = snapshot(0, "a", available=None)
    holds([register(0), replica(0, "a"), register(0), *alive, late], monkeypatch)


# Above so many rows a reconcile is compared on a reader and written in slices.
@pytest.mark.parametrize("whole_max", [reconcile.WHOLE_MAX, 1])
@pytest.mark.parametrize("seed", range(20, 40))
def test_any_history_is_told_and_kept_as_the_contract_says(
    seed: int, whole_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    print("seed", seed)
    monkeypatch.setattr(reconcile, "WHOLE_MAX", whole_max)
    monkeypatch.setattr(logging.root, "disabled", True)
    steps = program(seed, STEPS)
    if run(steps) is not None:
        steps = shortened(steps)
        print(*steps, sep="\n")
        error = run(steps)
        assert error is not None
        raise error
