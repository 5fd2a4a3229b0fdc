"""Which series of /metrics move while a server is used."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import purerpc
import trio.testing
from servers import Serving, configuration, serving, wall_of_trio

from globalstore.http.exposition import exposition_text
from globalstore.server.gauges import Gauges
from globalstore.telemetry.metrics import Metrics

Clock = trio.testing.MockClock
Values = dict[str, float]


def values_of(text: str) -> Values:
    """Return the samples of an exposition by name and labels, as they are written there."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def fresh() -> Values:
    """Return what a scrape shows of metrics that have counted nothing at all yet."""
    return values_of(exposition_text(Metrics().registry).decode())


def series(name: str, **labels: str) -> str:
    """Return a series as the exposition writes it."""
    if not labels:
        return name
    pairs = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
    return f"{name}{{{pairs}}}"


def of(name: str, label: str, *values: str, **others: str) -> set[str]:
    """Return the series of a metric for some values of one label."""
    return {series(name, **{label: value} | others) for value in values}


class Wall:
    """A wall clock that runs with trio's, and that a test may set."""

    def __init__(self) -> None:
        self._us = wall_of_trio()
        self.ahead_s = 0

    def __call__(self) -> int:
        return self._us() + self.ahead_s * 1_000_000


@attrs.define
class Moves:
    """Collects the series that were seen with another value than that of a fresh server."""

    store: Serving
    wall: Wall
    path: Path
    seen: set[str] = attrs.Factory(set)
    _fresh: Values = attrs.Factory(fresh)

    def look(self) -> None:
        """Take in what a scrape would show now."""
        registry = self.store.components.metrics.registry
        shown = values_of(exposition_text(registry).decode())
        self.seen |= {name for name, value in shown.items() if value != self._fresh.get(name, 0)}

    def gauges(self) -> Gauges:
        """Return what sets the gauges, as is done once a second."""
        transport = self.store.server.transport
        assert transport is not None
        return Gauges(self.store.components, transport)

    async def tries(self, call: Awaitable[Any]) -> None:
        """Make a call that may be refused."""
        with suppress(purerpc.RpcFailedError):
            await call

    async def fails(self, call: Awaitable[Any]) -> None:
        """Make a call that is to be refused."""
        with suppress(purerpc.RpcFailedError):
            await call
            raise AssertionError("the call was not refused")


Act = Callable[[Moves, Clock], Awaitable[None]]
Prepare = Callable[[Serving], Awaitable[None]]


@attrs.frozen
class Scenario:
    """Something that happens, and the series that it moves.

    ``prepare`` is done by an earlier server on the same file, configured as ``earlier`` says;
    without it there is no file. ``is_timed`` when durations count, which a clock that stands still
    shows as 0.
    """

    act: Act
    expected: set[str]
    prepare: Prepare | None
    earlier: dict[str, Any]
    is_timed: bool
    config: dict[str, Any]

    async def seen(self, folder: Path, clock: Any) -> set[str]:
        """Let it happen; return all series that moved."""
        sections = dict(self.config)
        path = folder / "store.db"
        wall = Wall()
        if self.prepare is not None:
            sections["database"] = {"db_file": str(path)}
            async with serving(configuration(**sections | self.earlier), wall) as earlier:
                await self.prepare(earlier)
        async with serving(configuration(**sections), wall) as store:
            it = Moves(store, wall, path)
            await self.act(it, clock)
        return it.seen


SCENARIOS: dict[str, Scenario] = {}


def moves(
    *expected: set[str] | str,
    after: Prepare | None = None,
    earlier: dict[str, Any] | None = None,
    is_timed: bool = False,
    **config: Any,
) -> Callable[[Act], Act]:
    """Register a scenario; see there."""
    names = {name for each in expected for name in ([each] if isinstance(each, str) else each)}

    def register(act: Act) -> Act:
        SCENARIOS[act.__name__] = Scenario(act, names, after, earlier or {}, is_timed, config)
        return act

    return register


async def nothing(_: Serving) -> None:
    """Prepare a file, and nothing in it."""
