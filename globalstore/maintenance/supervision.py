"""Background tasks that go on after a failure."""

from collections.abc import Awaitable, Callable

import trio

from globalstore.db import DatabaseError
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.server")

# Pauses before a failed task is started again: short at first, because most faults pass, and
# bounded, because the task is needed.
_PAUSE_FIRST_S = 0.1
_PAUSE_MAX_S = 30.0

# A task that ran this long has recovered.
_WELL_AFTER_S = 60.0


async def keep_running(
    name: str,
    task: Callable[[], Awaitable[None]],
    on_failure: Callable[[str, str], None],
    on_recovery: Callable[[str], None],
) -> None:
    """Run a task for ever; after a failure it is logged and started again.

    ``on_failure`` gets the name of a task that keeps failing and the reason, ``on_recovery`` the
    name once it has run for a minute since. Returns when the task does.
    """
    pause_s = _PAUSE_FIRST_S
    failures = 0
    while True:
        began = trio.current_time()
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_report_recovery, name, on_recovery)
            try:
                await task()
            except Exception as error:  # noqa: BLE001  whatever it is, the task is needed
                failure = error
            nursery.cancel_scope.cancel()
        if failure is None:
            return
        if isinstance(failure, DatabaseError):
            # A full disk, a lock: no fault of the task, which comes again.
            _log.limited(name, "background task put off", task=name, reason=str(failure))
        else:
            _log.exception("background task failed", failure, task=name, restart_in_s=pause_s)
        if trio.current_time() - began >= _WELL_AFTER_S:
            pause_s, failures = _PAUSE_FIRST_S, 0
        failures += 1
        if failures > 1:
            on_failure(name, f"{name} keeps failing: {failure or type(failure).__name__}")
        await trio.sleep(pause_s)
        pause_s = min(pause_s * 2, _PAUSE_MAX_S)


async def _report_recovery(name: str, on_recovery: Callable[[str], None]) -> None:
    await trio.sleep(_WELL_AFTER_S)
    on_recovery(name)
