"""What is known of instances after a stop, a restart and a kill."""

import signal
from pathlib import Path
from typing import Any

import trio.testing
from instance_calls import (
    SIGNALS,
    beat,
    capable,
    ids,
    instance_request,
    listed,
    register,
    unregister,
)
from server_process import Client, running
from servers import configuration, eventually, pass_time, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

NOW_US = 1_700_000_000_000_000
POLICY = {"heartbeat_timeout": "10s"}  # grace 1 s: 4 flush intervals of a 40th of it
ALL = {"include_unavailable": True}


def on_file(tmp_path: Path) -> Any:
    return configuration(worker_policy=POLICY, database={"db_file": str(tmp_path / "store.db")})


async def test_after_a_restart_an_instance_is_active_and_disconnected_until_it_is_heard(
    mock_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    now_us = NOW_US
    async with serving(on_file(tmp_path), wall=lambda: now_us) as store:
        worker = await store.register("d1")
        await register(store, "i1", labels={"a": "b"})
        now_us += 1_000_000
        await register(store, "i2", capability_flags=SIGNALS)
        await register(store, "ended", capability_flags=SIGNALS)
        await unregister(store, "ended")
    async with serving(on_file(tmp_path), wall=lambda: now_us) as store:
        shown = await listed(store)
        assert [each.instance_id for each in shown] == ["i2", "i1"]
        assert {each.status for each in shown} == {wire.CONNECTION_STATUS_DISCONNECTED}
        assert {each.worker_id for each in shown} == {worker.worker_id}
        assert dict(shown[1].labels) == {"a": "b"}
        assert capable(store, "execution_signals_enabled") == 1
        assert await beat(store, "ended") == wire.STATUS_NOT_FOUND
        assert await beat(store, "i1") == wire.STATUS_OK
        shown = await listed(store)
        assert [(each.instance_id, each.status) for each in shown] == [
            ("i1", wire.CONNECTION_STATUS_CONNECTED),
            ("i2", wire.CONNECTION_STATUS_DISCONNECTED),
        ]
        rows = store.components.metrics.registry.get_sample_value(
            "tc_recovery_rows", {"table": "instances"}
        )
        assert rows == 2
        # Timeout and grace run from the start of the server, however old the heartbeat is.
        await pass_time(mock_clock, 10.5)
        assert await ids(store) == ["i1", "i2"]
        await beat(store, "i1")
        await pass_time(mock_clock, 1)
        await eventually(lambda: len(store.components.instances) == 1)
        assert await ids(store) == ["i1"]
        assert set(await ids(store, **ALL)) == {"i1", "i2", "ended"}


async def test_a_clean_stop_writes_down_what_was_heard(
    mock_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    now_us = NOW_US
    async with serving(on_file(tmp_path), wall=lambda: now_us) as store:
        await register(store)
        now_us += 3_000_000
        await beat(store, capability_flags=SIGNALS, worker_id="w1")
    async with serving(on_file(tmp_path), wall=lambda: now_us) as store:
        [shown] = await listed(store)
        assert (shown.capability_flags, shown.worker_id) == (SIGNALS, "w1")
        assert shown.last_heartbeat_ts.ToMicroseconds() == now_us


def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    db_file = {"db_file": str(tmp_path / "store.db")}
    with running(tmp_path, database=db_file) as process, Client(process.port) as client:
        for name in ("stays", "leaves", "returns"):
            client.runtime("RegisterInstance", instance_request(name, capability_flags=2**63))
        for name in ("leaves", "returns"):
            request = wire.UnregisterInstanceRequest(instance_id=name)
            assert client.runtime("UnregisterInstance", request).status == wire.STATUS_OK
        client.runtime("RegisterInstance", instance_request("returns", engine="second"))
        process.signal(signal.SIGKILL)
        process.wait()
    with running(tmp_path, database=db_file) as process, Client(process.port) as client:
        shown = client.runtime("ListActiveInstances", wire.ListActiveInstancesRequest()).instances
        assert {each.instance_id: (each.engine, each.capability_flags) for each in shown} == {
            "stays": ("vllm", 2**63),
            "returns": ("second", 0),
        }
        everybody = wire.ListActiveInstancesRequest(**ALL)
        assert len(client.runtime("ListActiveInstances", everybody).instances) == 3
        for name, status in {
            "stays": wire.STATUS_OK,
            "leaves": wire.STATUS_NOT_FOUND,
            "returns": wire.STATUS_OK,
        }.items():
            request = wire.InstanceHeartbeatRequest(instance_id=name)
            assert client.runtime("InstanceHeartbeat", request).status == status
