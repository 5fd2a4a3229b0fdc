"""A client that is stopped while it waits takes no source from those who can use it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import trio
import trio.testing
from claims import LOADS, OK, OUTCOMES, parked, source, start, until
from servers import Serving, pass_time, serving_over_tcp

from globalstore.rpc.keepalive import MISSED_SECONDS, WATCHED_PING_SECONDS
from globalstore.scheduling.waiters import is_suspect

_CLIENT = """
import sys, grpc
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
request = wire.RequestReplicaTransportRequest(artifact_id="model", request_id="frozen")
request.wait_timeout_dur.FromSeconds(3600)
request.source_node_id = request.source_address = "frozen"
with grpc.insecure_channel(sys.argv[1]) as channel:
    channel.unary_unary(
        "/tensorcast.global_store.v1.ClusterRuntimeService/RequestReplicaTransport"
    )(request.SerializeToString())
"""

# What is left of the time that the answer to a ping has, once that counts as missed.
UNANSWERED_S = 10 - MISSED_SECONDS


@contextmanager
def client(store: Serving) -> Iterator[subprocess.Popen[bytes]]:
    """A stock client in a process of its own, which waits for a source."""
    address = f"127.0.0.1:{store.info.listen_port}"
    process = subprocess.Popen([sys.executable, "-c", _CLIENT, address])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def suspects(store: Serving) -> list[str]:
    waiters = store.components.queues.waiters
    return [waiter.request.request_id for waiter in waiters if is_suspect(waiter)]


async def freeze(
    store: Serving, process: subprocess.Popen[bytes], clock: trio.testing.MockClock
) -> None:
    """Stop a client, and let pass what it takes until that is noticed."""
    process.send_signal(signal.SIGSTOP)
    # Its threads stop one after the other, and one of them may be about to answer.
    await trio.to_thread.run_sync(os.waitid, os.P_PID, process.pid, os.WSTOPPED)
    await pass_time(clock, WATCHED_PING_SECONDS + MISSED_SECONDS + 0.1)
    await until(store, lambda: suspects(store) == ["frozen"])  # others have answered by then


async def test_a_slot_that_frees_goes_to_who_waits_behind_a_frozen_client(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving_over_tcp() as store, trio.open_nursery() as nursery:
        await source(store)
        held = await store.claim()
        with client(store) as frozen:
            await parked(store, 1)
            second = start(nursery, store, request_id="second", apart=True)
            await parked(store, 2)
            await freeze(store, frozen, mock_clock)
            await store.complete(held.transport_id)
            assert await second.status() == OK
            assert len(store.components.queues) == 1
            await pass_time(mock_clock, UNANSWERED_S)
            await until(store, lambda: not len(store.components.queues))
        assert await store.read(LOADS) == [(1,)]


async def test_a_slot_that_a_frozen_client_was_given_comes_back(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving_over_tcp() as store:
        await source(store)
        held = await store.claim()
        with client(store) as frozen:
            await parked(store, 1)
            await freeze(store, frozen, mock_clock)
            await store.complete(held.transport_id)
            await until(store, lambda: not len(store.components.queues))
            assert await store.read(LOADS) == [(1,)]
            await pass_time(mock_clock, UNANSWERED_S)
            await until(store, lambda: not len(store.components.handouts))
            assert await store.read(OUTCOMES) == [(1, ""), (4, "requester_gone")]
            assert await store.read(LOADS) == [(0,)]


async def test_a_client_that_goes_on_in_time_keeps_its_place(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving_over_tcp() as store, trio.open_nursery() as nursery:
        await source(store)
        held = await store.claim()
        with client(store) as frozen:
            await parked(store, 1)
            second = start(nursery, store, request_id="second", apart=True)
            await parked(store, 2)
            await freeze(store, frozen, mock_clock)
            frozen.send_signal(signal.SIGCONT)
            await until(store, lambda: suspects(store) == [])
            await store.complete(held.transport_id)
            await until(store, lambda: frozen.poll() is not None)
            assert frozen.returncode == 0
            assert not second.ended.is_set()
        nursery.cancel_scope.cancel()
