"""Claims of one artifact that has many sources, in each mode; and from a completion to the next.

What ``claims.py`` measures besides the size of the database.
"""

import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio
from calls import RUNTIME, claims, heartbeats, register_worker, replica
from measuring import global_store
from populating import WORKERS, register_workers, registration
from wire_load import Load, LoadClient, Slot, Wanted, call_each, call_once

from globalstore.caches.sources import KnownSources
from globalstore.db import Store, StoreOptions, Transaction
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry import new_ids, signals
from globalstore.registry.runtime import replicas, sources, transport_ends, transports
from globalstore.registry.runtime.transports import Granted, Round, TransportRequest
from globalstore.registry.schema import MIGRATIONS
from globalstore.rules.scoring import Mode, Scoring

ARTIFACT = "wanted"
CLIENTS = 16

# Microseconds between two claims on the clock of the database: a busy artifact.
_PACE_US = 1000


def follow(known: KnownSources, committed: Sequence[Any]) -> None:
    """Tell memory of a commit, as the server does."""
    followers = {
        signals.TransportGranted: known.granted,
        signals.TransportEnded: known.ended,
        sources.SourcesListed: known.listed,
    }
    for signal in committed:
        if type(signal) in followers:
            followers[type(signal)](signal)


def _register(tx: Transaction, numbers: Sequence[int]) -> None:
    for number in numbers:
        replicas.register_replica(tx, registration(ARTIFACT, number), new_ids.new_id(), 1)


def _claim(tx: Transaction, round_: Round, now_us: int) -> tuple[float, bytes]:
    """Claim; return the microseconds it took and the transport."""
    began = time.perf_counter()
    (answer,) = transports.grant(tx, round_, now_us).values()
    took_us = (time.perf_counter() - began) * 1e6
    assert isinstance(answer, Granted)
    return took_us, answer.transport_id


def _complete(tx: Transaction, transport_id: bytes, now_us: int) -> float:
    began = time.perf_counter()
    transport_ends.complete(tx, transport_id, transport_ends.Outcome.SUCCESS, "", now_us)
    return (time.perf_counter() - began) * 1e6


async def operations(
    path: Path, mode: Mode, sources: int, count: int
) -> tuple[list[float], list[float]]:
    """Return the microseconds of claims and of completions, a transaction each.

    Some transports run all the time, so that sources and workers are not equally loaded.
    """
    known, claimed, completed = KnownSources(), [], []
    options = StoreOptions(slow_operation_ms=60_000)
    routable = frozenset(range(1, WORKERS + 1))
    async with Store(
        path,
        migrations=MIGRATIONS,
        options=options,
        on_commit=lambda committed: follow(known, committed),
    ) as store:
        await register_workers(store, 1)
        await store.bulk_chunks(
            _register, (range(n, min(n + 1000, sources)) for n in range(0, sources, 1000))
        )
        running: list[bytes] = []
        for number in range(count + count // 5):
            now_us = (number + 1) * _PACE_US
            request = TransportRequest(
                ARTIFACT, "", "q", "q.example", 0, "", f"r{number}", b"f", None, new_ids.new_id()
            )
            round_ = Round(
                ranked=[request],
                newcomers=[request],
                routable=routable,
                scoring=Scoring(mode),
                shortlist=known.shortlist((ARTIFACT, "")),
            )
            took_us, transport_id = await store.write(_claim, round_, now_us)
            claimed.append(took_us)
            running.append(transport_id)
            if len(running) > min(CLIENTS, sources):
                completed.append(await store.write(_complete, running.pop(0), now_us))
    return claimed[count // 5 :], completed[count // 5 :]


def _settings(mode: Mode) -> dict[str, Any]:
    return {"worker_policy": {"transport_scheduler": {"mode": mode.value}}}


def _beat(port: int, workers: list[str]) -> None:
    beats = [next(heartbeats(worker_id)) for worker_id in workers]
    call_each(port, beats[0].path, [beat.request for beat in beats])


def _register_all(port: int, requests: list[bytes]) -> None:
    """Register replicas, some at a time."""
    path = RUNTIME + "RegisterReplica"

    def slot(share: list[bytes]) -> Slot:
        for request in share:
            yield Wanted(path, request)
        while True:
            yield Wanted(path, requests[0])  # more than its share: one that is known already

    shares = [requests[first::CLIENTS] for first in range(min(CLIENTS, len(requests)))]
    with LoadClient(port, [[slot(share) for share in shares]]) as client:
        for _ in shares[0]:
            client.run(0)


def through_the_server(path: Path, mode: Mode, sources: int, seconds: float) -> Load:
    """Claim and complete through gRPC for a while."""
    with global_store(path, sections=_settings(mode)) as server:
        workers = [register_worker(server.port, n) for n in range(min(WORKERS, sources))]
        limit = max(4, CLIENTS // sources)  # no claim has to wait
        requests = [
            replica(workers[n % WORKERS], n % WORKERS, ARTIFACT, limit, 50_000 + n // WORKERS)
            for n in range(sources)
        ]
        _register_all(server.port, requests)
        slots = [claims(ARTIFACT) for _ in range(CLIENTS)]
        with LoadClient(server.port, [slots]) as client:
            _beat(server.port, workers)  # the registrations may have taken long
            client.run(seconds / 3)  # warms up
            return client.run(seconds)


class Line:
    """One source with one slot, and so many requests that wait for it one after the other.

    Times are in seconds, and only those after ``since`` count: by then all wait.
    """

    def __init__(self, since: float) -> None:
        self.since = since
        self.handed_over: list[float] = []
        self.completed: list[float] = []
        self.heartbeats: list[float] = []
        self._freed_at: float | None = None

    def _note(self, times: list[float], began: float) -> None:
        now = time.perf_counter()
        if began > self.since:
            times.append(now - began)

    def waiter(self, wait_s: float) -> Slot:
        """Wait for the source and give it back at once, again and again."""
        request = wire.RequestReplicaTransportRequest(
            artifact_id=ARTIFACT, source_node_id="requester", source_address="requester.example"
        )
        request.wait_timeout_dur.FromMilliseconds(round(wait_s * 1000))
        while True:
            request.request_id = str(uuid.uuid4())
            answer = yield Wanted(RUNTIME + "RequestReplicaTransport", request.SerializeToString())
            granted = wire.RequestReplicaTransportResponse.FromString(answer)
            if granted.status != wire.STATUS_OK:
                continue
            if self._freed_at is not None:
                self._note(self.handed_over, self._freed_at)
            began = self._freed_at = time.perf_counter()
            yield Wanted(
                RUNTIME + "CompleteReplicaTransport",
                wire.CompleteReplicaTransportRequest(
                    transport_id=granted.transport_id, outcome=1
                ).SerializeToString(),
            )
            self._note(self.completed, began)

    def worker(self, beats: Slot) -> Slot:
        """Say 50 times a second that the worker lives."""
        due = time.perf_counter()
        for wanted in beats:
            due = max(due + 0.02, time.perf_counter())
            yield wanted._replace(due=due)
            self._note(self.heartbeats, due)


# Seconds that a server takes to let one request begin to wait, generously.
_ARRIVAL_S = 0.002


def line_up(path: Path, waiters: int, seconds: float) -> Line:
    """Let so many wait in line, for some seconds once they are there."""
    with global_store(path) as server:
        worker = register_worker(server.port, 0)
        request = replica(worker, 0, ARTIFACT, 1)
        call_once(server.port, RUNTIME + "RegisterReplica", request)
        arrival_s = 0.5 + waiters * _ARRIVAL_S
        line = Line(time.perf_counter() + arrival_s)
        slots = [
            [line.waiter(arrival_s + seconds + 1) for _ in range(min(100, waiters - first))]
            for first in range(0, waiters, 100)
        ]
        with LoadClient(server.port, [*slots, [line.worker(heartbeats(worker))]]) as client:
            client.run(arrival_s + seconds)
    return line


def run_operations(
    path: Path, mode: Mode, sources: int, count: int
) -> tuple[list[float], list[float]]:
    """Run ``operations``, for callers outside trio."""
    return trio.run(operations, path, mode, sources, count)
