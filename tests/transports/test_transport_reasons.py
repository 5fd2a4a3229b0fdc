"""Why a request got no source: metrics, the log, and what operators are told."""

import logging
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from claims import parked, source, start, until
from purerpc import StatusCode
from servers import (
    Serving,
    configuration,
    memory_info,
    pass_time,
    refused,
    serving,
    serving_over_tcp,
)

from globalstore.gen.globalstore.admin.v1 import admin_pb2 as admin
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.telemetry.shares import SourceShares

T = 1_700_000_000


def metric(store: Serving, name: str, **labels: str) -> float:
    return store.components.metrics.registry.get_sample_value(name, labels) or 0.0


def filtered(store: Serving) -> dict[str, float]:
    """Return what was counted of replicas that were passed over, by reason."""
    name = "tc_transport_filter_total"
    return {
        sample.labels["reason"]: sample.value
        for family in store.components.metrics.registry.collect()
        for sample in family.samples
        if sample.name == name and sample.value
    }


async def explain(store: Serving, artifact_id: str = "model", **fields: Any) -> Any:
    request = admin.ExplainSourcesRequest(artifact_id=artifact_id, **fields)
    return await store.operators.ExplainSources(request)


async def mark(store: Serving, replica_id: str) -> None:
    await store.runtime.MarkReplicaUnavailable(
        wire.MarkReplicaUnavailableRequest(replica_id=replica_id)
    )


@attrs.frozen
class Hindrance:
    """What rules a replica out, and what is then said of it."""

    label: str
    reasons: list[str]
    status: int = wire.STATUS_TIMED_OUT
    verdict: str = "busy"


HINDRANCES = {
    "its worker is not known": Hindrance("not_live", ["not_live"]),
    "its worker has gone": Hindrance("not_live", ["not_live", "unconfirmed"]),
    "its worker takes no requests": Hindrance("not_accepting", ["not_accepting"]),
    "it is not confirmed": Hindrance("unavailable", ["unconfirmed"]),
    "it is marked": Hindrance("unavailable", ["unavailable"]),
    "all its slots are taken": Hindrance("saturated", ["saturated"]),
    "nobody can read it yet": Hindrance(
        "presence_only", ["presence_only"], wire.STATUS_NOT_FOUND, "announced"
    ),
    "nobody may read it any more": Hindrance(
        "presence_only", ["presence_only"], wire.STATUS_NOT_FOUND, "no source"
    ),
    "its time has passed": Hindrance("expired", ["expired"], wire.STATUS_NOT_FOUND, "no source"),
    "its daemon denied it": Hindrance("unavailable", ["unconfirmed"]),
}


async def deny(store: Serving, worker_id: str) -> None:
    """Report that nothing is held, right after a heartbeat that affirmed what is held."""
    live = store.components.workers.find(worker_id)
    assert live is not None
    checksum = await store.components.context.worker_digests.checksum_of(live)
    await store.beat(worker_id, state_checksum=checksum)
    await store.runtime.ReconcileWorkerState(
        wire.ReconcileWorkerStateRequest(
            worker_id=worker_id,
            generation=1,
            request_seq=1,
            request_kind=wire.RECONCILE_REQUEST_KIND_SNAPSHOT,
        )
    )


async def hinder(store: Serving, what: str) -> None:
    """Register a replica that one thing rules out."""
    if what == "its worker is not known":
        await store.replica("nobody")
        return
    fields: dict[str, Any] = {}
    if what == "nobody can read it yet":
        fields = {"remote_memory_keys": [], "buffer_sizes": []}
    elif what == "nobody may read it any more":
        fields = {"transport": {"export_state": "EXPORT_STATE_DRAINING"}}
    elif what == "its time has passed":
        fields = {"expires_at": {"seconds": T - 1}}
    worker = (await store.register()).worker_id
    replica = await store.replica(worker, mem_info=memory_info(**fields))
    if what == "its worker takes no requests":
        await store.beat(worker, accepting_new_requests=False)
    elif what == "its worker has gone":
        await store.runtime.UnregisterWorker(wire.UnregisterWorkerRequest(worker_id=worker))
    elif what == "it is not confirmed":
        await store.runtime.UnregisterWorker(wire.UnregisterWorkerRequest(worker_id=worker))
        await store.register()
    elif what == "it is marked":
        await mark(store, replica.replica_id)
    elif what == "all its slots are taken":
        await store.claim()
    elif what == "its daemon denied it":
        await deny(store, worker)


@pytest.mark.parametrize("what", HINDRANCES)
async def test_what_rules_a_replica_out_is_counted_and_explained(what: str) -> None:
    expected = HINDRANCES[what]
    async with serving(wall=lambda: T * 1_000_000) as store:
        await hinder(store, what)
        assert (await store.claim()).status == expected.status
        await until(store, lambda: filtered(store))
        assert filtered(store) == {expected.label: 1}
        answer = await explain(store)
        (only,) = answer.sources
        assert (only.rank, list(only.reasons)) == (0, expected.reasons)
        no_source = expected.status == wire.STATUS_NOT_FOUND
        assert answer.verdict == expected.verdict
        refused_for_good = metric(store, "tc_transport_no_exportable_total", artifact_id="model")
        assert refused_for_good == (1 if no_source else 0)


async def test_each_replica_counts_once_and_a_grant_counts_nothing() -> None:
    async with serving() as store:
        worker = await source(store)
        for device in range(1, 4):
            info = memory_info(device_id=device, remote_memory_keys=[], buffer_sizes=[])
            await store.replica(worker.worker_id, mem_info=info)
        await store.claim()
        assert filtered(store) == {}
        await store.claim()
        await until(store, lambda: filtered(store))
        assert filtered(store) == {"saturated": 1, "presence_only": 3}


async def test_many_refusals_at_once_are_explained_by_one_look() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        await store.claim()
        looks = 0
        examine = store.components.refusals.explain

        async def counted() -> None:
            nonlocal looks
            looks += 1
            await examine()

        store.components.refusals.explain = counted  # type: ignore[method-assign]
        claims = [start(nursery, store, wait_s=0) for _ in range(200)]
        for claim in claims:
            assert await claim.status() == wire.STATUS_TIMED_OUT
        await until(store, lambda: filtered(store).get("saturated") == 200)
        assert looks < 50


async def test_an_artifact_that_nobody_holds_has_no_reasons() -> None:
    async with serving() as store:
        assert (await store.claim("none")).status == wire.STATUS_NOT_FOUND
        await store.components.refusals.explain()
        assert filtered(store) == {}


@pytest.fixture
def debug() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What the loggers of the server write, from DEBUG on."""
    lines: list[tuple[str, dict[str, Any]]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append((record.getMessage(), dict(getattr(record, "fields", {}))))

    root, handler = logging.getLogger("globalstore"), Handler()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(before)


async def test_a_refusal_says_its_reasons_in_the_log(debug: list[Any]) -> None:
    async with serving() as store:
        await source(store)
        await store.claim()
        await store.claim()
        await until(store, lambda: filtered(store))
        ((_, fields),) = [line for line in debug if line[0] == "no source"]
        assert fields == {
            "artifact_id": "model",
            "view_id": "",
            "requests": 1,
            "replicas": 1,
            "saturated": 1,
        }


async def test_a_source_that_is_over_its_share_of_a_group_counts_as_capped() -> None:
    only_load = {
        "worker_load_weight": 0,
        "recent_assignment_penalty_weight": 0,
        "diffusion_bonus_weight": 0,
    }
    scheduler = {
        "source_balance_weights": only_load,
        "group_dispatch": {"group_source_spread_weight": 0},
    }
    config = configuration(worker_policy={"transport_scheduler": scheduler})
    async with serving(config) as store:
        worker = (await store.register()).worker_id
        # The first can do so much that its load is always the least.
        for device, slots in ((0, 1000), (1, 4), (2, 4)):
            info = memory_info(device_id=device)
            await store.replica(worker, mem_info=info, max_concurrency=slots)
        devices = []
        for part in range(5):
            group = wire.TransportSchedulingGroup(
                group_id="g", group_kind="k", part_id=f"p{part}", total_parts=5
            )
            assert filtered(store) == {}
            answer = await store.claim(scheduling_group=group)
            devices.append(answer.remote_memory_info.device_id)
        # After one each all are over 4/3 * 1.3; after two it is over 5/3 * 1.3, and the others not.
        assert devices[0] == devices[3] == 0
        assert sorted(devices[1:3]) == [1, 2]
        assert devices[4] in {1, 2}
        assert filtered(store) == {"capped": 1}
        # Who asks alone is sent there again.
        assert (await store.claim()).remote_memory_info.device_id == 0


async def test_each_step_of_a_waiting_request_is_an_event(
    mock_clock: trio.testing.MockClock,
) -> None:
    config = configuration(worker_policy={"transport_scheduler": {"max_waiters": 3}})
    async with serving_over_tcp(config) as store, trio.open_nursery() as nursery:

        def events() -> dict[str, float]:
            counter = store.components.metrics.transports.dispatch_events
            return {
                sample.labels["event"]: sample.value
                for sample in counter.collect()[0].samples
                if sample.value
            }

        await store.claim("none")
        await source(store)
        granted = await store.claim(request_id="r")
        await store.claim(request_id="r")
        async with refused(StatusCode.INVALID_ARGUMENT):
            await store.claim(request_id="r", source_port=7)
        assert events() == {
            "enqueued": 4, "not_found": 1, "granted": 1, "replayed": 1, "refused": 1,
        }  # fmt: skip
        first = start(nursery, store, request_id="w")
        start(nursery, store, request_id="w")
        await until(store, lambda: events().get("joined") == 1)
        gone = start(nursery, store, apart=True)
        last = start(nursery, store, wait_s=5)
        await parked(store, 3)
        assert (await store.claim()).status == wire.STATUS_TOO_MANY_REQUESTS
        gone.scope.cancel()
        await until(store, lambda: events().get("cancelled") == 1)
        await pass_time(mock_clock, 6)
        assert await last.status() == wire.STATUS_TIMED_OUT
        await store.complete(granted.transport_id)
        assert await first.status() == wire.STATUS_OK
        assert events() == {
            "enqueued": 7, "not_found": 1, "granted": 2, "replayed": 1, "refused": 1, "joined": 1,
            "cancelled": 1, "rejected": 1, "timed_out": 1,
        }  # fmt: skip


async def test_the_first_use_of_a_source_is_measured_from_its_registration() -> None:
    now_us = T * 1_000_000
    async with serving(wall=lambda: now_us) as store:
        await source(store, slots=2)
        now_us += 1_500_000
        await store.claim()
        await store.claim()
        name = "tc_transport_diffusion_first_hit_seconds"
        assert metric(store, f"{name}_count", artifact_id="model") == 1
        assert metric(store, f"{name}_sum", artifact_id="model") == 1.5


async def test_the_concentration_of_transports_on_sources_is_shown() -> None:
    config = configuration(worker_policy={"transport_scheduler": {"mode": "LEGACY"}})
    async with serving(config) as store:
        worker = await source(store, slots=6)
        share, hhi = "tc_transport_source_top1_share", "tc_transport_source_hhi"
        await store.claim()
        assert metric(store, share, artifact_id="model") == 1
        assert metric(store, hhi, artifact_id="model") == 1
        info = memory_info(device_id=1)
        await store.replica(worker.worker_id, mem_info=info, max_concurrency=6)
        for _ in range(3):
            await store.claim()
        # two of four each
        assert metric(store, share, artifact_id="model") == 0.5
        assert metric(store, hhi, artifact_id="model") == 0.5


def test_shares_follow_what_was_used_lately_and_stay_bounded() -> None:
    shares = SourceShares()
    for number in range(3000):
        found = shares.used(number)
    assert len(shares._counts) < 1100
    assert found.top1_share < 0.01
    for _ in range(3000):
        found = shares.used(-1)
    assert found.top1_share > 0.9
    assert found.hhi > 0.9
    assert len(shares._counts) == 1
    assert sum(shares._counts.values()) == pytest.approx(shares._total)


# What operators are told.


async def test_an_explanation_names_each_term_and_the_order_of_grants() -> None:
    now_us = T * 1_000_000
    async with serving(wall=lambda: now_us) as store:
        worker = (await store.register()).worker_id
        for device, slots in ((0, 4), (1, 2)):
            info = memory_info(device_id=device)
            await store.replica(worker, mem_info=info, max_concurrency=slots)
        await store.claim()
        now_us += 9_000_000
        answer = await explain(store, requester_worker_id=worker)
        assert (answer.mode, answer.verdict) == ("GROUP_DISPATCH", "granted")
        first, second = answer.sources
        assert (first.rank, first.device_id, first.score) == (1, 1, pytest.approx(1 / 6 - 1))
        assert not first.HasField("idle_seconds")
        assert first.is_own
        assert (second.rank, second.device_id, second.idle_seconds) == (2, 0, 9)
        assert (second.current_requests, second.max_concurrency) == (1, 4)
        assert (second.worker_requests, second.worker_capacity) == (1, 6)
        terms = (second.replica_load, second.worker_load, second.recent, second.diffusion)
        assert terms == pytest.approx((0.25, 1 / 6, 0.1, 0))
        assert second.score == pytest.approx(0.25 + 1 / 6 + 0.1)
        assert (await store.claim()).remote_memory_info.device_id == 1


async def test_an_explanation_counts_who_waits_and_changes_nothing() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        await store.claim()
        start(nursery, store, requester_worker_id="mine")
        start(nursery, store)
        await parked(store, 2)
        before = await store.read("SELECT * FROM replicas")
        answer = await explain(store, requester_worker_id=" mine ")
        assert (answer.waiting, answer.waiting_of_requester) == (2, 1)
        assert not answer.sources[0].is_own
        assert await store.read("SELECT * FROM replicas") == before
        nursery.cancel_scope.cancel()


async def test_an_explanation_is_of_one_view_and_bounded() -> None:
    async with serving() as store:
        await source(store)
        nobody = await explain(store, view_id="v")
        assert (nobody.verdict, list(nobody.sources)) == ("no replica", [])
        assert (await explain(store, "none")).verdict == "no replica"
        async with refused(StatusCode.INVALID_ARGUMENT, "artifact_id"):
            await explain(store, " ")
        await store.components.store.write(
            lambda tx: tx.run(
                "INSERT INTO replicas (replica_id, artifact_key, view_id, endpoint_key,"
                " memory_tier, device_id, worker_key, worker_generation, confirmation,"
                " is_available, memory_size, max_concurrency, export_state, export_generation,"
                " transfer_size, transfer_json, tensor_index_key, is_memory_replica,"
                " source_process_id, created_at, updated_at) WITH RECURSIVE n(i) AS"
                " (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200)"
                " SELECT CAST(printf('%016d', i) AS BLOB), artifact_key, view_id, endpoint_key,"
                " memory_tier, i, worker_key, worker_generation, confirmation, 1, 1, 1, 2, 0, 1,"
                " '', '', 0, '', 1, 1 FROM n, replicas"
            )
        )
        answer = await explain(store)
        assert (len(answer.sources), answer.is_truncated) == (1000, True)
        assert [each.rank for each in answer.sources] == list(range(1, 1001))


@pytest.mark.parametrize("mode", ["LEGACY", "SOURCE_BALANCE", "GROUP_DISPATCH"])
async def test_the_first_of_an_explanation_is_the_next_to_be_granted(mode: str) -> None:
    config = configuration(worker_policy={"transport_scheduler": {"mode": mode}})
    now_us = T * 1_000_000
    async with serving(config, wall=lambda: now_us) as store:
        for daemon in ("d1", "d2", "d3"):
            worker = (await store.register(daemon)).worker_id
            for device in range(3):
                info = memory_info(daemon, device_id=device, memory_type=1 + device % 3)
                await store.replica(worker, mem_info=info, max_concurrency=1 + device)
        for _ in range(18):
            now_us += 700_000
            answer = await explain(store)
            granted = await store.claim()
            assert answer.verdict == "granted"
            first = answer.sources[0]
            info = granted.remote_memory_info
            assert (first.node_id, first.device_id) == (info.node_id, info.device_id)
        assert (await explain(store)).verdict == "busy"
