"""ListActiveInstances: whom it shows, in which order, and at what cost to everybody else."""

import random
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from instance_calls import NODE_AGENT, SIGNALS, beat, ids, listed, register, unregister
from servers import Serving, configuration, pass_time, serving

from globalstore.api import turns as cutting
from globalstore.api.runtime import instances as api
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.runtime import instances as registry
from globalstore.registry.signals import InstanceEnded

NOW_US = 1_700_000_000_000_000
MANY = 10_000
ALL = {"include_unavailable": True}


async def test_an_empty_store_lists_nobody() -> None:
    async with serving() as store:
        assert await listed(store) == []
        assert await listed(store, **ALL) == []


async def test_ended_instances_are_shown_on_demand_and_as_disconnected() -> None:
    async with serving() as store:
        await register(store, "active")
        await register(store, "ended", labels={"a": "b"})
        await unregister(store, "ended")
        assert await ids(store) == ["active"]
        shown = {each.instance_id: each for each in await listed(store, **ALL)}
        assert shown["active"].status == wire.CONNECTION_STATUS_CONNECTED
        assert shown["ended"].status == wire.CONNECTION_STATUS_DISCONNECTED
        assert dict(shown["ended"].labels) == {"a": "b"}


@pytest.mark.parametrize(
    ("required", "expected"),
    [
        (0, ["both", "high", "none", "signals"]),
        (SIGNALS, ["both", "signals"]),
        (SIGNALS | NODE_AGENT, ["both"]),
        (2**63, ["high"]),
        (2**64 - 1, []),
    ],
)
@pytest.mark.parametrize("end", [False, True])
async def test_all_of_the_required_bits_must_be_set(
    required: int, expected: list[str], end: bool
) -> None:
    flags = {"none": 0, "signals": SIGNALS, "both": SIGNALS | NODE_AGENT, "high": 2**63}
    async with serving() as store:
        for name, bits in flags.items():
            await register(store, name, capability_flags=bits, execution_endpoint="e")
            if end:
                await unregister(store, name)
        found = await ids(store, required_capability_flags=required, **ALL)
        assert sorted(found) == expected


async def test_the_latest_heartbeat_comes_first_whether_active_or_ended(
    mock_clock: trio.testing.MockClock,
) -> None:
    now_us = NOW_US
    async with serving(wall=lambda: now_us) as store:

        async def a_second() -> None:
            nonlocal now_us
            await pass_time(mock_clock, 1)
            now_us += 1_000_000

        for name in ("i1", "i2", "i3", "i4"):
            await register(store, name)
            await a_second()
        await beat(store, "i2")
        await a_second()
        assert await ids(store) == ["i2", "i4", "i3", "i1"]
        await unregister(store, "i4")
        await unregister(store, "i2")
        assert await ids(store) == ["i3", "i1"]
        assert await ids(store, **ALL) == ["i2", "i4", "i3", "i1"]
        await register(store, "i4")
        assert await ids(store, **ALL) == ["i4", "i2", "i3", "i1"]


async def test_ties_are_ordered_by_id(mock_clock: trio.testing.MockClock) -> None:
    async with serving(wall=lambda: NOW_US) as store:
        names = [f"i{number}" for number in range(12)]
        for name in random.Random(1).sample(names, len(names)):
            await register(store, name)
        assert await ids(store) == sorted(names)
        for name in ("i3", "i10"):
            await unregister(store, name)
        assert await ids(store, **ALL) == sorted(names)


async def test_an_instance_is_disconnected_after_two_timeouts_though_its_end_cannot_be_written(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(configuration(worker_policy={"heartbeat_timeout": "10s"})) as store:
        await register(store)
        call = store.components.instances.list_now({}, 0)
        [instance] = call.active.values()
        handlers = api.InstanceHandlers(store.components.context)
        shown = []
        for seconds in (0, 10, 10.1, 20, 20.1):
            later = type(call)(call.active, call.workers, instance.heartbeat_at + seconds, 0)
            shown.append(handlers._status(later, instance))
        assert shown == [
            wire.CONNECTION_STATUS_CONNECTED,
            wire.CONNECTION_STATUS_CONNECTED,
            wire.CONNECTION_STATUS_RECONNECTING,
            wire.CONNECTION_STATUS_RECONNECTING,
            wire.CONNECTION_STATUS_DISCONNECTED,
        ]


@pytest.mark.parametrize("change", ["ends", "returns"])
async def test_whoever_changes_while_the_ended_ones_are_read_is_listed_once(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as store:
        await register(store, "steady")
        await register(store, "i1")
        if change == "returns":
            await unregister(store, "i1")
        plain = store.components.context.read

        async def change_after(query: Any, *args: Any) -> Any:
            found = await plain(query, *args)
            await (unregister if change == "ends" else register)(store, "i1")
            return found

        monkeypatch.setattr(
            type(store.components.context), "read", lambda context, *args: change_after(*args)
        )
        shown = {each.instance_id: each.status for each in await listed(store, **ALL)}
        assert len(await listed(store, **ALL)) == 2
        assert shown == {
            "steady": wire.CONNECTION_STATUS_CONNECTED,
            "i1": (
                wire.CONNECTION_STATUS_DISCONNECTED
                if change == "ends"
                else wire.CONNECTION_STATUS_CONNECTED
            ),
        }


def between_turns(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Awaitable[None]]) -> None:
    """Have handlers do this wherever they let other calls run."""
    monkeypatch.setattr(cutting, "trio", SimpleNamespace(lowlevel=SimpleNamespace(checkpoint=act)))


async def test_a_list_shows_one_instant_however_long_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(wall=lambda: NOW_US) as store:
        names = [f"i{number:03}" for number in range(3 * api._INSTANCES_PER_TURN)]
        for name in names:
            await register(store, name)
        plain, turns = trio.lowlevel.checkpoint, 0

        async def change_much() -> None:
            nonlocal turns
            await plain()
            turns += 1
            if turns == 1:
                for name in names:
                    live = store.components.instances.find(name)
                    assert live is not None
                    store.components.instances.heartbeat(live, "", SIGNALS, NOW_US + 1)
                store.components.instances.ended(InstanceEnded(live.key))

        between_turns(monkeypatch, change_much)
        answer = await store.runtime.ListActiveInstances(wire.ListActiveInstancesRequest())
        monkeypatch.undo()
        shown = answer.instances
        assert turns >= 3
        assert [each.instance_id for each in shown] == names[::-1]
        assert {each.capability_flags for each in shown} == {0}
        assert {each.last_heartbeat_ts.ToMicroseconds() for each in shown} == {NOW_US}


async def fill(store: Serving, active: int, ended: int) -> None:
    """Register instances, and end some, without a call for each."""
    labels = '{"model": "llama", "rank": "7", "zone": "a"}'

    def register_all(tx: Any) -> None:
        for number in range(active + ended):
            name = f"engine-{number:06}"
            registration = registry.InstanceRegistration(
                name, f"d{number // 8}", "", "vllm", "10.0.0.1:7", labels, "10.0.0.1:8", "", SIGNALS
            )
            registry.register_instance(tx, registration, NOW_US + number)
            if number >= active:
                registry.unregister_instance(tx, name, [], NOW_US + number)

    await store.components.store.bulk(register_all)


async def test_ten_thousand_instances_are_listed_in_short_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(wall=lambda: NOW_US) as store:
        await fill(store, MANY, 0)
        plain = trio.lowlevel.checkpoint
        began, turns = time.thread_time(), []

        async def note() -> None:
            nonlocal began
            turns.append(time.thread_time() - began)
            await plain()
            began = time.thread_time()

        between_turns(monkeypatch, note)
        for required in (0, NODE_AGENT):
            turns.clear()
            began = time.thread_time()
            request = wire.ListActiveInstancesRequest(required_capability_flags=required)
            answer = await store.runtime.ListActiveInstances(request)
            turns.append(time.thread_time() - began)
            assert len(turns) >= MANY / api._INSTANCES_PER_TURN
            # A collection of garbage may fall into some turn.
            assert sorted(turns)[-len(turns) // 100] < 0.001
            assert len(answer.instances) == (0 if required else MANY)
        monkeypatch.undo()


async def test_all_of_ten_thousand_arrive_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_ENDED_LISTED_MAX", 1500)
    async with serving(wall=lambda: NOW_US) as store:
        await fill(store, MANY - 2000, 2000)
        assert len(await listed(store)) == MANY - 2000
        queries = store.components.store.statistics().queries
        shown = await listed(store, **ALL)
        assert store.components.store.statistics().queries == queries + 1
        # Of the ended ones, those that were heard last.
        assert len(shown) == MANY - 500
        ended = [e for e in shown if e.status == wire.CONNECTION_STATUS_DISCONNECTED]
        assert [each.instance_id for each in ended] == [
            f"engine-{number:06}" for number in range(MANY - 1, MANY - 1501, -1)
        ]
