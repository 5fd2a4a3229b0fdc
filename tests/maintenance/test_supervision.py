"""A background task that fails goes on; one that keeps failing is reported until it is well."""

import pytest
import trio
import trio.testing

from globalstore.maintenance.supervision import keep_running


class Task:
    """Fails so many times and then runs."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.starts: list[float] = []

    async def run(self) -> None:
        self.starts.append(trio.current_time())
        if len(self.starts) <= self.failures:
            raise ValueError("out of order")
        await trio.sleep_forever()


async def supervised(task: Task, seconds: float) -> list[str]:
    reports: list[str] = []
    with trio.move_on_after(seconds):
        await keep_running(
            "reaper",
            task.run,
            lambda name, reason: reports.append(f"{name}: {reason}"),
            lambda name: reports.append(f"{name} is well"),
        )
    return reports


async def test_one_failure_is_put_right_without_a_word(
    autojump_clock: trio.testing.MockClock,
) -> None:
    task = Task(failures=1)
    assert await supervised(task, 59) == []
    assert len(task.starts) == 2


async def test_a_task_that_keeps_failing_is_reported_until_it_ran_for_a_minute(
    autojump_clock: trio.testing.MockClock,
) -> None:
    reports = await supervised(Task(failures=3), 100)
    assert reports == ["reaper: reaper keeps failing: out of order"] * 2 + ["reaper is well"]


async def test_pauses_grow_and_have_a_bound(autojump_clock: trio.testing.MockClock) -> None:
    task = Task(failures=99)
    await supervised(task, 300)
    pauses = [later - before for before, later in zip(task.starts, task.starts[1:], strict=False)]
    assert pauses[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert max(pauses) == pytest.approx(30)


async def test_cancelling_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(1) as scope:
        await keep_running("t", trio.sleep_forever, lambda *_: None, lambda _: None)
    assert scope.cancelled_caught
