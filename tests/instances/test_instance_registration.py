"""RegisterInstance: what is refused, what is kept, and which worker an instance belongs to."""

from typing import Any

import pytest
from instance_calls import (
    NODE_AGENT,
    SIGNALS,
    beat,
    capable,
    ids,
    listed,
    only,
    register,
    unregister,
)
from purerpc import StatusCode
from servers import configuration, refused, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.liveness import instances as scheduling

NOW_US = 1_700_000_000_123_456


@pytest.mark.parametrize("field", ["instance_id", "daemon_id", "engine"])
@pytest.mark.parametrize(
    "value", ["", " \t ", "x" * 1025, "a\0b"], ids=["", "blank", "long", "nul"]
)
async def test_a_bad_name_is_refused_by_its_field_and_changes_nothing(
    field: str, value: str
) -> None:
    async with serving() as store:
        async with refused(StatusCode.INVALID_ARGUMENT, field):
            await register(store, **{field: value})
        assert await listed(store, include_unavailable=True) == []


@pytest.mark.parametrize(
    "field", ["worker_id", "signals_endpoint", "execution_endpoint", "execution_host_kind"]
)
async def test_no_other_text_may_be_endless(field: str) -> None:
    async with serving() as store:
        async with refused(StatusCode.INVALID_ARGUMENT, field, "1024"):
            await register(store, **{field: "é" * 513})
        assert (await register(store, **{field: "é" * 512})).status == wire.STATUS_OK


async def test_the_answer_names_the_instance_and_the_interval() -> None:
    async with serving(configuration(worker_policy={"default_heartbeat_interval": "7s"})) as store:
        answer = await register(store, " i1 ")
        assert answer.status == wire.STATUS_OK
        assert answer.instance_id == "i1"
        assert answer.heartbeat_interval_ms == 7000


async def test_all_that_was_said_is_shown_texts_trimmed_and_labels_as_sent() -> None:
    labels = {" zone ": " a ", "": "empty", "nul": "\0", "q'uote": '"{}é'}
    async with serving(wall=lambda: NOW_US) as store:
        await register(
            store,
            " i1 ",
            daemon_id=" d1 ",
            engine=" vllm ",
            worker_id=" w1 ",
            signals_endpoint=" anything, even\n two lines ",
            labels=labels,
            capability_flags=2**63 + 2**40 + SIGNALS,
            execution_endpoint=" 10.0.0.1:7 ",
            execution_host_kind=" mine ",
        )
        shown = await only(store)
        assert shown == wire.ListActiveInstancesResponse.InstanceInfo(
            instance_id="i1",
            daemon_id="d1",
            engine="vllm",
            worker_id="w1",
            signals_endpoint="anything, even\n two lines",
            labels=labels,
            capability_flags=2**63 + 2**40 + SIGNALS,
            execution_endpoint="10.0.0.1:7",
            execution_host_kind="mine",
            status=wire.CONNECTION_STATUS_CONNECTED,
            last_heartbeat_ts=shown.last_heartbeat_ts,
        )
        assert shown.last_heartbeat_ts.ToMicroseconds() == NOW_US


async def test_registering_again_replaces_every_field() -> None:
    async with serving() as store:
        await register(
            store,
            worker_id="w1",
            signals_endpoint="s",
            labels={"a": "1", "b": "2"},
            capability_flags=SIGNALS | NODE_AGENT,
            execution_endpoint="e",
            execution_host_kind="k",
        )
        await register(store, daemon_id="d2", engine="sglang", labels={"b": "3"})
        shown = await only(store, include_unavailable=True)
        assert (shown.daemon_id, shown.engine, dict(shown.labels)) == ("d2", "sglang", {"b": "3"})
        assert (shown.worker_id, shown.signals_endpoint, shown.capability_flags) == ("", "", 0)
        assert (shown.execution_endpoint, shown.execution_host_kind) == ("", "")


async def test_registering_brings_back_an_instance_that_has_ended() -> None:
    async with serving() as store:
        await register(store)
        await unregister(store)
        assert (await register(store)).status == wire.STATUS_OK
        assert (await only(store, include_unavailable=True)).status == (
            wire.CONNECTION_STATUS_CONNECTED
        )
        assert await store.read("SELECT generation, inactive_at FROM instances") == [(2, None)]


@pytest.mark.parametrize("endpoint", ["", " "])
async def test_a_node_agent_needs_an_execution_endpoint(endpoint: str) -> None:
    async with serving() as store:
        async with refused(StatusCode.INVALID_ARGUMENT, "execution_endpoint"):
            await register(store, capability_flags=NODE_AGENT, execution_endpoint=endpoint)
        assert await listed(store, include_unavailable=True) == []
        answer = await register(store, capability_flags=NODE_AGENT, execution_endpoint="e")
        assert answer.status == wire.STATUS_OK


@pytest.mark.parametrize(
    ("flags", "given", "shown"),
    [
        (NODE_AGENT, " ", "node_agent_grpc"),
        (NODE_AGENT, "mine", "mine"),
        (SIGNALS, "", ""),
        (SIGNALS, "mine", "mine"),
    ],
)
async def test_what_hosts_a_node_agent_has_a_default(flags: int, given: str, shown: str) -> None:
    async with serving() as store:
        await register(
            store, capability_flags=flags, execution_endpoint="e", execution_host_kind=given
        )
        assert (await only(store)).execution_host_kind == shown


@pytest.mark.parametrize(
    ("labels", "fragments"),
    [
        ({str(n): "" for n in range(65)}, ("65 entries", "at most 64")),
        ({"name": "x" * 4093}, ("4097 bytes", "at most 4096")),
        ({"é" * 2048: "x"}, ("4097 bytes", "at most 4096")),
    ],
)
async def test_labels_have_a_bound_in_number_and_bytes(
    labels: dict[str, str], fragments: tuple[str, ...]
) -> None:
    async with serving() as store:
        async with refused(StatusCode.INVALID_ARGUMENT, "labels", *fragments):
            await register(store, labels=labels)
        most = {f"{n:04}": "x" * 60 for n in range(64)}
        await register(store, labels=most)
        assert dict((await only(store)).labels) == most


@pytest.mark.parametrize("given", [{}, {"worker_id": ""}, {"worker_id": "  "}])
async def test_who_names_no_worker_belongs_to_the_active_one_of_its_daemon(
    given: dict[str, Any],
) -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await store.register("d2")
        await register(store, **given)
        assert (await only(store)).worker_id == worker.worker_id


async def test_neither_the_daemon_nor_the_worker_needs_to_be_known() -> None:
    async with serving() as store:
        await register(store, "i1", daemon_id="nobody")
        await register(store, "i2", daemon_id="nobody", worker_id="worker_unknown")
        shown = {each.instance_id: each.worker_id for each in await listed(store)}
        assert shown == {"i1": "", "i2": "worker_unknown"}


async def test_an_instance_follows_its_daemon_as_it_comes_and_goes() -> None:
    async with serving() as store:
        await register(store)
        assert (await only(store)).worker_id == ""
        worker = await store.register("d1")
        assert (await only(store)).worker_id == worker.worker_id
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=worker.worker_id)
        )
        await beat(store)
        assert (await only(store)).worker_id == ""
        # The endpoint goes to a second daemon, and the first comes back elsewhere.
        await store.register("d1")
        await store.register("d2", node_id="node-d1", node_address="d1.example")
        await beat(store)
        assert (await only(store)).worker_id == ""
        again = await store.register("d1", node_address="elsewhere.example")
        assert (await only(store)).worker_id == again.worker_id


async def test_an_instance_follows_its_daemon_to_another_worker_id() -> None:
    async with serving() as store:
        first = await store.register("d1")
        await register(store)
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=first.worker_id)
        )
        # As maintenance does a day later.
        await store.components.store.write(lambda tx: tx.run("DELETE FROM workers"))
        second = await store.register("d1")
        assert second.worker_id != first.worker_id
        assert await beat(store) == wire.STATUS_OK
        assert (await only(store)).worker_id == second.worker_id


async def test_more_instances_than_there_may_be_are_refused_and_known_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("globalstore.api.runtime.instances.ACTIVE_MAX", 2)
    assert scheduling.ACTIVE_MAX > 10_000
    async with serving() as store:
        await register(store, "i1")
        await register(store, "i2")
        async with refused(StatusCode.RESOURCE_EXHAUSTED, "2 instances"):
            await register(store, "i3")
        assert (await register(store, "i1")).status == wire.STATUS_OK
        await unregister(store, "i2")
        assert (await register(store, "i3")).status == wire.STATUS_OK
        assert sorted(await ids(store)) == ["i1", "i3"]


async def test_the_metrics_count_capabilities_of_active_instances_by_what_changes() -> None:
    async with serving() as store:

        def counts() -> tuple[float | None, float | None]:
            return (
                capable(store, "execution_signals_enabled"),
                capable(store, "node_agent_enabled"),
            )

        await register(store, "i1", capability_flags=SIGNALS)
        both = SIGNALS | NODE_AGENT
        await register(store, "i2", capability_flags=both, execution_endpoint="e")
        assert counts() == (2, 1)
        await register(store, "i1", capability_flags=2**63)
        assert counts() == (1, 1)
        await beat(store, "i2", capability_flags=0)
        assert counts() == (0, 0)
        await beat(store, "i2", capability_flags=both)
        assert counts() == (1, 1)
        await unregister(store, "i2")
        assert counts() == (0, 0)
