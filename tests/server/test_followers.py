"""Whatever an operation tells memory is followed, in the order that the followers need."""

import ast
from pathlib import Path

from servers import configuration

import globalstore
from globalstore.db import Runner
from globalstore.leases.wall_clock import wall_us
from globalstore.registry.signals import SourceFreed, TransportEnded, WorkerReconciled
from globalstore.server.components import Components
from globalstore.server.followers import follow

REGISTRY = Path(globalstore.__file__).parent / "registry"


def emitted() -> set[str]:
    """Return the names of the signals that operations emit."""
    names = set()
    for path in REGISTRY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="emit"), args=[ast.Call(func=ast.Name(id=name))]
                ):
                    names.add(name)
    return names


async def test_every_signal_is_followed_and_nothing_else() -> None:
    table = Components(configuration(), wall_us, Runner.INLINE).followers
    assert {signal.__name__ for signal in table} == emitted()
    assert all(table.values())


async def test_caches_learn_before_queues_look_into_them() -> None:
    components = Components(configuration(), wall_us, Runner.INLINE)
    table = components.followers
    for signal in (SourceFreed, TransportEnded, WorkerReconciled):
        owners = [follower.__self__ for follower in table[signal]]  # type: ignore[attr-defined]
        assert owners.index(components.sources) < owners.index(components.queues)


async def test_signals_are_handed_on_in_their_order() -> None:
    seen: list[tuple[str, object]] = []
    table = {
        int: (lambda signal: seen.append(("a", signal)), lambda signal: seen.append(("b", signal))),
        str: (lambda signal: seen.append(("c", signal)),),
    }
    follow(table, [1, "x", 2])
    assert seen == [("a", 1), ("b", 1), ("c", "x"), ("a", 2), ("b", 2)]
