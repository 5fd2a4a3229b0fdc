"""Every ``async def`` test runs under trio, with a mock clock when it asks for one."""

import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing
from log_lines import Lines

import globalstore.rpc  # noqa: F401  before any test imports purerpc, which needs what this mends
from globalstore.telemetry.logging import _limits as limits_of_loggers

# Each process that a test starts would compile the whole program again, which takes longer than
# the start itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture
def mock_clock() -> trio.testing.MockClock:
    """A clock that stands still until the test moves it with ``jump``."""
    return trio.testing.MockClock()


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """A clock that jumps to the next deadline whenever every task is blocked."""
    return trio.testing.MockClock(autojump_threshold=0)


class _NurseryRequest:
    """Stands in for the ``nursery`` fixture until the test runs inside trio."""


@pytest.fixture
def nursery() -> _NurseryRequest:
    """A nursery that is cancelled when the test returns."""
    return _NurseryRequest()


@pytest.fixture(autouse=True)
def _nothing_held_back() -> None:
    """Let each test see the lines that are written once a minute."""
    for limit in limits_of_loggers.values():
        limit._passed.clear()
        limit._crowds.clear()


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What the server logs while the test runs."""
    handler = Lines()
    root = logging.getLogger("globalstore")
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


def _under_trio(test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        clocks = [a for a in arguments.values() if isinstance(a, trio.abc.Clock)]

        async def main() -> None:
            nurseries = [n for n, a in arguments.items() if isinstance(a, _NurseryRequest)]
            if not nurseries:
                await test(**arguments)
                return
            async with trio.open_nursery() as nursery:
                await test(**arguments | dict.fromkeys(nurseries, nursery))
                nursery.cancel_scope.cancel()

        trio.run(main, clock=clocks[0] if clocks else None, strict_exception_groups=True)

    return run


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = _under_trio(pyfuncitem.obj)
