"""How soon those who wait for a group's realization learn that it is published.

    uv run bench/groups.py

The real server with a database file and groups switched on. Waiters are parked over some
connections; then the last report comes, which publishes. Times are those of the client, from when
that report was sent: to its own answer, and to the answers of the first, the median and the last
waiter. CPU is that of the server from the report to the last answer, per waiter.
"""

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

import grpc
import grpc.aio
from measuring import Child, child, free_port, table

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

_CATALOG = "/tensorcast.global_store.v1.ArtifactCatalogService/"
_WAITERS_PER_CONNECTION = 100
_PATIENCE_S = 60.0


def _call(channel: grpc.aio.Channel, method: str) -> grpc.aio.UnaryUnaryMultiCallable:
    return channel.unary_unary(
        _CATALOG + method,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=getattr(wire, f"{method}Response").FromString,
    )


def _report(transaction_id: str, part_id: str) -> wire.ReportGroupRealizationPreparedRequest:
    staged = wire.StagedBindingValueRef(binding_id="b", binding_value_id="v", staging_token="t")
    return wire.ReportGroupRealizationPreparedRequest(
        transaction_id=transaction_id, part_id=part_id, staged_value=staged
    )


async def _round(
    server: Child, http_port: int, channels: list[grpc.aio.Channel], waiters: int, epoch: int
) -> list[float]:
    """Realize a version; return the seconds to its answers, and the CPU seconds of the server."""
    begin, report = (
        _call(channels[0], f"{name}GroupRealization{more}")
        for name, more in (("BeginOrJoin", ""), ("Report", "Prepared"))
    )
    request = wire.BeginOrJoinGroupRealizationRequest()
    request.version.explicit_selection.artifact_id = "model"
    for part_id in "01":
        request.context.CopyFrom(
            wire.GroupRealizationContext(
                group_kind="bench",
                group_id=f"{waiters}",
                epoch=epoch,
                total_parts=2,
                part_id=part_id,
                required_part_ids=["0", "1"],
            )
        )
        transaction_id = (await begin(request)).transaction_id
    await report(_report(transaction_id, "0"))
    wait_request = wire.WaitGroupRealizationPublishedRequest(
        transaction_id=transaction_id,
        deadline_unix_nanos=time.time_ns() + round(_PATIENCE_S * 1e9),
    )
    answered: list[float] = []

    async def one(number: int) -> None:
        wait = _call(channels[number % len(channels)], "WaitGroupRealizationPublished")
        answer = await wait(wait_request, timeout=_PATIENCE_S)
        answered.append(time.perf_counter())
        if answer.status != wire.STATUS_OK:
            raise SystemExit(f"a waiter was told {answer}")

    async with asyncio.TaskGroup() as tasks:
        for number in range(waiters):
            tasks.create_task(one(number))
        while _parked(http_port) < waiters:  # noqa: ASYNC110  nobody tells this process
            await asyncio.sleep(0.05)
        cpu_s, began = server.cpu_s(), time.perf_counter()
        await report(_report(transaction_id, "1"))
        reported_at = time.perf_counter()
    times = sorted(answered)
    return [
        reported_at - began,
        times[0] - began,
        times[len(times) // 2] - began,
        times[-1] - began,
        server.cpu_s() - cpu_s,
    ]


def _parked(http_port: int) -> int:
    """Return how many waiters the server counts."""
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics") as answer:
        found = re.search(
            r"^tc_group_realization_active_waiters (\S+)$", answer.read().decode(), re.MULTILINE
        )
    return int(float(found.group(1))) if found else 0


async def _measure(server: Child, http_port: int, waiters: int, rounds: int) -> list[list[float]]:
    channels = [
        grpc.aio.insecure_channel(
            f"127.0.0.1:{server.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        for _ in range(-(-waiters // _WAITERS_PER_CONNECTION))
    ]
    measured = [
        await _round(server, http_port, channels, waiters, epoch) for epoch in range(rounds + 1)
    ]
    for channel in channels:
        await channel.close()
    return measured[1:]  # the first one warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waiters", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    rows = []
    http_port = free_port()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        config = {
            "server": {"listen": {"port": 0}, "metrics_port": http_port},
            "database": {"db_file": str(Path(name) / "store.db")},
            "worker_policy": {"group_realization": {"enabled": True}},
        }
        path = Path(name) / "config.json"
        path.write_text(json.dumps(config))
        command = [sys.executable, "-m", "globalstore", f"--config={path}"]
        with child(command, r"server listening .*port=(\d+)") as server:
            for waiters in arguments.waiters:
                measured = asyncio.run(_measure(server, http_port, waiters, arguments.rounds))
                *times, cpu_s = (median(column) for column in zip(*measured, strict=True))
                worst = max(row[3] for row in measured)
                rows.append(
                    [
                        waiters,
                        *(f"{each * 1e3:.1f}" for each in times),
                        f"{worst * 1e3:.1f}",
                        f"{cpu_s * 1e6 / waiters:,.0f}",
                    ]
                )
    table(
        ["waiters", "report, ms", "first", "median", "last", "last, worst", "CPU µs per waiter"],
        rows,
    )


if __name__ == "__main__":
    main()
