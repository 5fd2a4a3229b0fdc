"""Any history of calls, clocks and restarts leaves what the contract says, at every step."""

import logging

import pytest
import trio
import trio.testing
from socketless import folder_in_memory
from worker_programs import Program
from worker_steps import Step, program

from globalstore.registry import reconcile

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


# Above so many rows a reconcile is compared on a reader and written in slices.
@pytest.mark.parametrize("whole_max", [reconcile.WHOLE_MAX, 1])
@pytest.mark.parametrize("seed", range(20))
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
