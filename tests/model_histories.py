"""Histories of calls, passing time and restarts, in which a server is held against a model."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing
from hypothesis import HealthCheck, settings
from simulated_host import Host

Steps = list[Any]


def histories(count: int) -> settings:
    """Return the settings with which so many histories are tried."""
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def run_history(run: Callable[[Steps, Any], Awaitable[None]], steps: Steps) -> None:
    """Run a history under a clock that jumps."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(run, steps, clock, clock=clock)


async def swept_or_restarted(host: Host, model: Any, what: str, *arguments: Any) -> bool:
    """Take a step that is no call: clean up, or stop or kill the server and start it again."""
    match what:
        case "sweep":
            await host.running.components.maintenance.run_pass()
            model.sweep()
        case "restart":
            await (host.stop() if arguments[0] else host.kill())
            await host.start()
        case _:
            return False
    return True
