"""The reference daemon and its store find each other again, whatever either has lost."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import purerpc
import pytest
import trio
import trio.testing
from servers import Serving, configuration, refused, serving_over_tcp, worker_request

from globalstore.config import GlobalStoreConfig
from globalstore.daemon import Daemon, Held, Identity, OutboxFull, Source, StoreClient, Unreachable
from globalstore.daemon import outbox as outbox_module
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.leases.wall_clock import wall_us

IDENTITY = Identity("d1", "node-1", "d1.example", 50052, 50053)


@attrs.define
class Site:
    """A daemon at a port where servers come and go."""

    config: GlobalStoreConfig
    daemon: Daemon
    client: StoreClient
    events: list[str]


# Time passes this much faster than it does, so that calls take next to none of it and the pauses
# between them are short.
RATE = 20


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def site(
    nursery: trio.Nursery, clock: trio.testing.MockClock, port: int, db_file: Path | None = None
) -> AsyncIterator[Site]:
    """Set up a daemon; it gets on when a server is there."""
    clock.rate = RATE
    config = configuration(
        server={"listen": {"port": port}},
        database={"db_file": str(db_file) if db_file else None},
    )
    client = StoreClient("127.0.0.1", port, seed=1)
    events: list[str] = []
    daemon = Daemon(client, IDENTITY, on_event=events.append)
    nursery.start_soon(client.run)
    nursery.start_soon(daemon.run)
    yield Site(config, daemon, client, events)
    nursery.cancel_scope.cancel()


def held(artifact_id: str) -> Held:
    return Held(artifact_id, 100, f"key of {artifact_id}")


async def counted(store: Serving, artifact_id: str, *counts: int) -> None:
    while await store.counts(artifact_id) != [counts]:
        await trio.lowlevel.checkpoint()


async def cursor(store: Serving) -> tuple[int, int, int]:
    (row,) = await store.read("SELECT generation, request_seq, state_version FROM worker_cursors")
    return tuple(row)


async def test_after_a_restart_a_snapshot_brings_the_replicas_back_without_a_registration(
    tmp_path: Path, nursery: trio.Nursery, mock_clock: trio.testing.MockClock, port: int
) -> None:
    async with site(nursery, mock_clock, port, tmp_path / "store.db") as here:
        async with serving_over_tcp(here.config) as store:
            await here.daemon.until_in_step()
            await here.daemon.publish(held("a"))
            assert await cursor(store) == (1, 0, 1)
        async with serving_over_tcp(here.config) as store:
            await counted(store, "a", 1, 1)
            await here.daemon.until_in_step()
            assert await cursor(store) == (1, 1, 2)
            claimed = await here.daemon.claim("a", 0)
            assert claimed is not None
            assert claimed.memory_key == "key of a"
        assert here.client.connections > 1


async def test_a_store_that_forgot_everything_is_told_everything_again(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, port: int
) -> None:
    async with site(nursery, mock_clock, port) as here:
        async with serving_over_tcp(here.config):
            await here.daemon.until_in_step()
            await here.daemon.publish(held("a"))
            await here.daemon.publish(held("b"))
            first = here.daemon.worker_id
        async with serving_over_tcp(here.config) as store:
            await counted(store, "b", 1, 1)
            assert await store.counts("a") == [(1, 1)]
            assert here.daemon.worker_id != first


async def test_what_happens_during_an_outage_reaches_the_store_after_it(
    tmp_path: Path, nursery: trio.Nursery, mock_clock: trio.testing.MockClock, port: int
) -> None:
    async with site(nursery, mock_clock, port, tmp_path / "store.db") as here:
        async with serving_over_tcp(here.config):
            await here.daemon.until_in_step()
            await here.daemon.publish(held("a"))
            source = await here.daemon.claim("a", 0)
            assert source is not None
        nursery.start_soon(here.daemon.complete, source, True)
        nursery.start_soon(here.daemon.publish, held("b"))
        await trio.testing.wait_all_tasks_blocked()
        async with serving_over_tcp(here.config) as store:
            await counted(store, "b", 1, 1)
            assert await here.daemon.claim("a", 60) is not None, "the slot came free"


async def test_a_daemon_whose_queue_is_full_says_so_at_once_and_holds_nothing_more(
    nursery: trio.Nursery,
    mock_clock: trio.testing.MockClock,
    port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox_module, "WAITING_MAX", 2)
    async with site(nursery, mock_clock, port) as here:
        for name in ("a", "b"):
            nursery.start_soon(here.daemon.publish, held(name))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OutboxFull, match="2 messages wait"):
            await here.daemon.publish(held("c"))
        with pytest.raises(OutboxFull):
            await here.daemon.complete(Source("t", "n", "a", 1, "k"), True)
        assert {each.artifact_id for each in here.daemon.inventory} == {"a", "b"}
        async with serving_over_tcp(here.config) as store:
            await counted(store, "b", 1, 1)
            assert await store.counts("a", "c") == [(1, 1), (0, 0)]


async def test_a_publication_that_nobody_waits_for_any_more_still_happens(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, port: int
) -> None:
    async with site(nursery, mock_clock, port) as here:
        with trio.move_on_after(0):
            await here.daemon.publish(held("a"))
        async with serving_over_tcp(here.config) as store:
            await counted(store, "a", 1, 1)


async def test_a_replica_that_the_store_refuses_is_not_held(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, port: int
) -> None:
    async with site(nursery, mock_clock, port) as here, serving_over_tcp(here.config):
        await here.daemon.until_in_step()
        async with refused(purerpc.StatusCode.FAILED_PRECONDITION, "daemon-session-local"):
            await here.daemon.publish(held("msa1:x"))
        assert len(here.daemon.inventory) == 0


async def test_what_is_withdrawn_is_removed_at_once(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, port: int
) -> None:
    # The daemon tells when it took its inventory, by the clock of the machine: so must the server.
    async with (
        site(nursery, mock_clock, port) as here,
        serving_over_tcp(here.config, wall_us) as store,
    ):
        await here.daemon.until_in_step()
        kept = await here.daemon.publish(held("a"))
        gone = await here.daemon.publish(held("b"))
        here.daemon.withdraw(gone)
        while await store.counts("a", "b") != [(1, 1), (0, 0)]:
            await trio.lowlevel.checkpoint()
        assert list(here.daemon.inventory) == [kept]


async def test_a_replica_that_only_the_daemon_counts_unavailable_is_corrected(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, port: int
) -> None:
    async with site(nursery, mock_clock, port) as here, serving_over_tcp(here.config) as store:
        await here.daemon.until_in_step()
        there = await here.daemon.publish(held("a"))
        here.daemon.inventory.put(attrs.evolve(there, available=False))
        await counted(store, "a", 1, 0)


async def test_a_lost_answer_costs_nothing(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, port: int
) -> None:
    async with site(nursery, mock_clock, port) as here, serving_over_tcp(here.config) as store:
        await here.daemon.until_in_step()
        here.daemon.inventory.put(held("a"))
        # What the daemon is about to send arrives once already, and nobody gets its answer.
        request = here.daemon._cursor.request(
            here.daemon.worker_id, "d1", here.daemon.inventory.snapshot()
        )
        await store.runtime.ReconcileWorkerState(request)
        assert await cursor(store) == (1, 1, 2)
        here.daemon.inventory.put(held("b"))
        await counted(store, "b", 1, 1)
        assert await cursor(store) == (1, 2, 3)
        assert here.events == [f"registered as {here.daemon.worker_id}"]


async def test_a_cursor_that_somebody_moved_leads_to_a_new_generation(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, port: int
) -> None:
    async with site(nursery, mock_clock, port) as here, serving_over_tcp(here.config) as store:
        await here.daemon.until_in_step()
        await here.daemon.publish(held("a"))
        await store.runtime.RegisterWorker(
            worker_request(
                "d1", node_id="node-1", node_address="d1.example", grpc_port=50052, p2p_port=50053
            )
        )
        assert (await cursor(store))[0] == 2

        while (await cursor(store))[:2] != (3, 1):
            await trio.lowlevel.checkpoint()
        assert await store.counts("a") == [(1, 1)]


async def test_a_number_that_the_store_has_never_seen_is_asked_for_until_a_new_generation(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, port: int
) -> None:
    async with site(nursery, mock_clock, port) as here, serving_over_tcp(here.config) as store:
        await here.daemon.until_in_step()
        # As after the restore of an old backup.
        here.daemon._cursor.accepted = 5
        here.daemon.inventory.put(held("a"))
        await counted(store, "a", 1, 1)
        assert (await cursor(store))[0] == 2
        assert (await store.active())[0].worker_id == here.daemon.worker_id


async def test_a_daemon_that_leaves_takes_its_replicas_with_it(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    async with serving_over_tcp() as store:
        client = StoreClient("127.0.0.1", store.info.listen_port, seed=1)
        await nursery.start(client.run)
        daemon = Daemon(client, IDENTITY)
        async with trio.open_nursery() as running:
            await running.start(daemon.run)
            await daemon.publish(held("a"))
            source = await daemon.claim("a", 0)
            assert source is not None
            await daemon.leave()
        # That the nursery ended shows that ``run`` returned.
        assert await store.counts("a") == [(0, 0)]
        assert await store.active(include_unavailable=True) == []
        answer = await store.complete(source.transport_id)
        assert answer.status == wire.STATUS_OK, "the transport ran to its own end"


async def test_a_daemon_that_leaves_does_not_wait_for_a_store_that_is_away(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, port: int
) -> None:
    async with site(nursery, mock_clock, port) as here:
        async with serving_over_tcp(here.config):
            await here.daemon.until_in_step()
        mock_clock.autojump_threshold = 0.05
        with pytest.raises(Unreachable, match="no connection"):
            await here.daemon.leave()
        began = trio.current_time()
        nursery.start_soon(_hold, here.daemon._turn)  # as a snapshot that waits for the store
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Unreachable, match="no store for 20 s"):
            await here.daemon.leave()
        assert trio.current_time() - began == pytest.approx(20, abs=1)


async def _hold(turn: trio.Lock) -> None:
    async with turn:
        await trio.sleep_forever()
