"""Every metric moves when what it counts happens, and so does every series that exists at a start.

A series that never moves tells nothing. Scenarios, run on a whole server, name the series that they
move; what moved is read as a scrape shows it.
"""

import csv
import time
import urllib.request
from pathlib import Path

import moves_of_auth  # noqa: F401  its scenarios
import moves_of_data  # noqa: F401
import moves_of_workers  # noqa: F401
import pytest
import trio
import trio.testing
from moves_of_workers import RUNTIME
from moving import SCENARIOS, fresh, values_of
from rpc.certificates import issue
from rpc.echo import Peer
from rpc.wire import head
from servers import configuration, pass_time, serving, wall_of_trio

import globalstore
from globalstore.db import limits
from globalstore.http.exposition import exposition_text
from globalstore.registry.schema import MIGRATIONS
from globalstore.server.lifecycle import Server
from globalstore.telemetry.metrics import Metrics

with (Path(__file__).parent / "golden_metrics.tsv").open(newline="") as table:
    GOLDEN = {row["name"]: row["type"] for row in csv.DictReader(table, delimiter="\t")}


def of_the_process() -> set[str]:
    """The series that tell what runs, and how the operating system sees it."""
    return {name for name in built() if name.startswith(("process_", "tc_build_info"))}


def built() -> dict[str, float]:
    """What a scrape shows of the metrics of a server that has counted nothing yet."""
    metrics = Metrics()
    metrics.server.built(globalstore.__version__, len(MIGRATIONS))
    return values_of(exposition_text(metrics.registry).decode())


def covered() -> set[str]:
    moved = {name for scenario in SCENARIOS.values() for name in scenario.expected}
    return moved | {*SOCKETS, *CLIENTS} | of_the_process()


@pytest.mark.parametrize("name", [n for n, each in SCENARIOS.items() if not each.is_timed])
async def test_what_happens_moves_its_series(
    name: str,
    tmp_path: Path,
    mock_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of a foreign tool at the file, the first is waited for as long as the last.
    monkeypatch.setattr(limits, "BUSY_TIMEOUT_MS", 20)
    seen = await SCENARIOS[name].seen(tmp_path, mock_clock)
    missing = SCENARIOS[name].expected - seen
    assert not missing, "\n".join(sorted(missing))


@pytest.mark.parametrize("name", [n for n, each in SCENARIOS.items() if each.is_timed])
async def test_what_takes_time_moves_its_series(name: str, tmp_path: Path) -> None:
    missing = SCENARIOS[name].expected - await SCENARIOS[name].seen(tmp_path, None)
    assert not missing, "\n".join(sorted(missing))


def test_the_process_and_what_runs_have_values_and_time_at_work_grows() -> None:
    before = built()
    sum(range(2_000_000))
    after = built()
    assert all(after[name] > 0 for name in of_the_process())
    assert after["process_cpu_seconds_total"] > before["process_cpu_seconds_total"]


SOCKETS = ("tc_grpc_server_connections", "tc_tls_cert_expiry_timestamp_seconds")
CLIENTS = tuple(f"tc_grpc_server_{name}" for name in (
    "calls_open", "held_bytes", "largest_address_bytes", "arriving_bytes",
    "connections_ended_for_room_total", "calls_ended_for_memory_total",
))  # fmt: skip


async def test_connections_and_certificates_move_their_series(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    pair = issue(tmp_path, "localhost")
    tls = {"enabled": True, "cert_file": pair.cert_file, "key_file": pair.key_file}
    server = Server(configuration(server={"grpc": {"tls": tls}}), wall_of_trio())
    async with trio.open_nursery() as nursery:
        info = await nursery.start(server.run)
        async with await trio.open_tcp_stream("127.0.0.1", info.listen_port):
            await pass_time(mock_clock, 1.25)
            while server.transport is None or not server.transport.statistics().connections:
                await trio.lowlevel.checkpoint()
            await pass_time(mock_clock, 1.25)
            url = f"http://127.0.0.1:{info.metrics_port}/metrics"
            scrape = await trio.to_thread.run_sync(lambda: urllib.request.urlopen(url).read())
        server.stop()
    values = values_of(scrape.decode())
    connections, expiry = [values[name] for name in SOCKETS]
    assert connections == 1
    assert expiry > time.time()


async def test_what_clients_hold_moves_its_series(mock_clock: trio.testing.MockClock) -> None:
    limits = {
        "max_message_bytes": 100_000,
        "max_held_bytes": 400_000,
        "max_held_bytes_per_address": 400_000,
        "max_connections": 2,
    }
    server = Server(configuration(server={"limits": limits}), wall_of_trio())
    async with trio.open_nursery() as nursery:
        info = await nursery.start(server.run)
        peer = Peer(await trio.open_tcp_stream("127.0.0.1", info.listen_port), None, None)
        await peer.flush()
        await peer.read()
        for _ in range(4):
            stream = peer.client.start(head(f"{RUNTIME}/RegisterReplica"))
            for piece in (b"\0\0\1\x80\0", *[b"x" * 15_000] * 6):
                peer.client.h2.send_data(stream, piece)
                await peer.flush()
        while server.transport is None or not server.transport.statistics().ended_for_memory:
            await trio.lowlevel.checkpoint()
        silent = [await trio.open_tcp_stream("127.0.0.1", info.listen_port) for _ in range(2)]
        while not server.transport.statistics().ended_for_room:
            await trio.lowlevel.checkpoint()
        await pass_time(mock_clock, 1.25)
        url = f"http://127.0.0.1:{info.metrics_port}/metrics"
        scrape = await trio.to_thread.run_sync(lambda: urllib.request.urlopen(url).read())
        for stream in (*silent, peer.stream):
            await stream.aclose()
        server.stop()
    values = values_of(scrape.decode())
    assert all(values[name] > 0 for name in CLIENTS)
    assert values["tc_grpc_server_held_bytes"] <= 400_000


def test_every_metric_is_moved_by_some_scenario() -> None:
    names = {name.partition("{")[0] for name in covered()}
    assert {
        name for name, kind in GOLDEN.items() if name + "_count" * (kind == "histogram") in names
    } == set(GOLDEN)


async def test_every_series_that_exists_at_a_start_is_moved_by_some_scenario() -> None:
    async with serving() as store:
        text = exposition_text(store.components.metrics.registry).decode()
    at_start = {
        line.rsplit(" ", 1)[0]
        for line in text.splitlines()
        if not line.startswith("#") and "_bucket{" not in line
    } | {name for name in fresh() if "_bucket{" not in name}
    histograms = tuple(name for name, kind in GOLDEN.items() if kind == "histogram")
    told = {name for name in at_start if not (name.startswith(histograms) and "_sum" in name)}
    assert told - covered() == set()
