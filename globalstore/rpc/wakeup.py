"""A wake-up for one waiting task: an event that resets itself, at a third of the cost."""

import trio


class Wakeup:
    """Set any number of times, it lets one waiter through once."""

    __slots__ = ("_flag", "_task")

    def __init__(self) -> None:
        self._flag = False
        self._task: trio.lowlevel.Task | None = None

    def set(self) -> None:
        """Let the waiter through, or the next one that comes."""
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)
        else:
            self._flag = True

    async def wait(self) -> None:
        """Wait until set since the last time. A cancelled wait takes nothing away.

        Raises trio.BusyResourceError if another task waits.
        """
        if self._flag:
            self._flag = False
            await trio.lowlevel.checkpoint()
            return
        if self._task is not None:
            raise trio.BusyResourceError("another task waits here already")
        self._task = trio.lowlevel.current_task()

        def withdraw(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(withdraw)
