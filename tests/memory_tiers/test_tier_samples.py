"""PublishMemoryTierStatus: which sample is the latest, and how many are kept."""

from typing import Any

import pytest
from purerpc import StatusCode
from servers import Serving, configuration, refused, serving
from simulated_host import EPOCH_US
from tier_calls import LAST, publish

from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2 as wire
from globalstore.registry import memory_tier_samples
from globalstore.registry.memory_tier_samples import Sample
from globalstore.telemetry.memory_tiers import NODES_MAX

NOW_NS = EPOCH_US * 1000
SECOND = 10**9


def still() -> int:
    return EPOCH_US


async def latest(store: Serving, node_id: str = "n1") -> Sample | None:
    return await store.components.store.read(memory_tier_samples.latest, node_id)


async def epochs(store: Serving, node_id: str = "n1") -> list[int]:
    rows = await store.read(
        "SELECT epoch FROM memory_tier_snapshots WHERE node_id = ? ORDER BY epoch", node_id
    )
    return [epoch + 2**63 for (epoch,) in rows]


def gauge(store: Serving, name: str, **labels: str) -> float | None:
    value: float | None = store.components.metrics.registry.get_sample_value(
        f"tensorcast_memory_tier_{name}", {"node": "n1"} | labels
    )
    return value


async def test_a_sample_is_kept_as_it_was_said() -> None:
    async with serving(wall=still) as store:
        await publish(
            store,
            " n1 ",
            worker_id=" w1 ",
            stable_total_bytes=LAST,
            stable_used_bytes=2**63,
            preemptible_total_bytes=5,
            preemptible_marked_bytes=9,
            faults_per_sec=0.5,
            rehydrate_p99_ns=LAST,
            enable_preemptible=True,
            memory_tier_config_json='{"a": 1}',
            epoch_ns=NOW_NS,
        )
        sample = await latest(store)
        assert sample == Sample(
            *("n1", NOW_NS, "w1", LAST, 2**63, 5, 9, 0.5, LAST, True, '{"a": 1}')
        )
        assert sample is not None
        assert sample.stable_available == LAST - 2**63


async def test_what_is_not_said_has_a_default_and_more_used_than_total_is_taken() -> None:
    async with serving(wall=still) as store:
        await publish(store, stable_total_bytes=5, stable_used_bytes=6)
        sample = await latest(store)
        assert sample is not None
        assert (sample.epoch_ns, sample.config_json, sample.worker_id) == (NOW_NS, "{}", "")
        assert sample.stable_available == 0
        assert await latest(store, "n2") is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"node_id": " "}, "node_id"),
        ({"faults_per_sec": float("nan")}, "faults_per_sec"),
        ({"faults_per_sec": float("inf")}, "faults_per_sec"),
        ({"faults_per_sec": -0.1}, "faults_per_sec"),
        ({"worker_id": "\n\0x"}, "worker_id"),
        ({"memory_tier_config_json": "x" * 65_537}, "memory_tier_config_json"),
    ],
)
async def test_a_sample_names_the_field_that_is_wrong(fields: dict[str, Any], says: str) -> None:
    async with serving() as store:
        async with refused(StatusCode.INVALID_ARGUMENT, says):
            await publish(store, **fields)
        assert await store.read("SELECT count(*) FROM memory_tier_snapshots") == [(0,)]


async def test_a_call_without_a_status_is_refused() -> None:
    async with serving() as store, refused(StatusCode.INVALID_ARGUMENT, "node_id"):
        await store.tiers.PublishMemoryTierStatus(wire.PublishMemoryTierStatusRequest())


async def test_the_same_epoch_again_replaces_the_sample() -> None:
    async with serving(wall=still) as store:
        await publish(store, epoch_ns=NOW_NS, stable_total_bytes=1, worker_id="w1")
        await publish(store, epoch_ns=NOW_NS, stable_total_bytes=2, worker_id="w2")
        assert await epochs(store) == [NOW_NS]
        sample = await latest(store)
        assert sample is not None
        assert (sample.stable_total, sample.worker_id) == (2, "w2")
        assert gauge(store, "stable_bytes", state="total") == 2


async def test_a_late_sample_never_replaces_a_newer_one() -> None:
    async with serving(wall=still) as store:
        await publish(store, epoch_ns=NOW_NS, stable_total_bytes=1)
        await publish(store, epoch_ns=NOW_NS - SECOND, stable_total_bytes=2)
        sample = await latest(store)
        assert sample is not None
        assert sample.stable_total == 1
        assert gauge(store, "stable_bytes", state="total") == 1
        assert len(await epochs(store)) == 2


@pytest.mark.parametrize("ahead_s", [301, 10**6])
async def test_an_epoch_far_ahead_is_stored_as_the_servers_time(ahead_s: int) -> None:
    async with serving(wall=still) as store:
        await publish(store, epoch_ns=NOW_NS + ahead_s * SECOND)
        await publish(store, "n2", epoch_ns=LAST)
        await publish(store, "n3", epoch_ns=NOW_NS + 299 * SECOND)
        assert await epochs(store) == [NOW_NS]
        assert await epochs(store, "n2") == [NOW_NS]
        assert await epochs(store, "n3") == [NOW_NS + 299 * SECOND]


async def test_samples_much_older_than_the_latest_are_dropped_node_by_node() -> None:
    async with serving(wall=still) as store:
        for age_s in (601, 600, 300):
            await publish(store, epoch_ns=NOW_NS - age_s * SECOND)
            await publish(store, "n2", epoch_ns=NOW_NS - age_s * SECOND)
        assert len(await epochs(store)) == 3
        await publish(store, epoch_ns=NOW_NS)
        assert await epochs(store) == [NOW_NS - age_s * SECOND for age_s in (600, 300, 0)]
        # One that comes too late for its own retention is not kept either.
        await publish(store, epoch_ns=1)
        assert len(await epochs(store)) == 3
        assert len(await epochs(store, "n2")) == 3


@pytest.mark.parametrize(("rows", "kept"), [(3, 3), (0, 200)])
async def test_so_many_samples_of_a_node_are_kept(rows: int, kept: int) -> None:
    tiers = {"snapshot_max_rows": rows, "snapshot_retention": "0s"}
    async with serving(configuration(worker_policy={"memory_tiers": tiers}), still) as store:
        # Without an age limit the oldest may be from long ago.
        for epoch in range(1, kept + 6):
            await publish(store, epoch_ns=epoch)
        assert await epochs(store) == list(range(6, kept + 6))


async def test_the_latest_sample_of_a_node_is_shown_in_the_metrics(tmp_path: Any) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    async with serving(config) as store:
        await publish(
            store,
            stable_total_bytes=10,
            stable_used_bytes=4,
            preemptible_total_bytes=7,
            preemptible_marked_bytes=2,
            faults_per_sec=1.5,
            rehydrate_p99_ns=900,
            enable_preemptible=True,
        )
    async with serving(config) as store:
        assert gauge(store, "stable_bytes", state="total") == 10
        assert gauge(store, "stable_bytes", state="used") == 4
        assert gauge(store, "preemptible_bytes", state="total") == 7
        assert gauge(store, "preemptible_bytes", state="marked") == 2
        assert gauge(store, "faults_per_sec") == 1.5
        assert gauge(store, "rehydrate_p99_ns") == 900
        assert gauge(store, "enable_preemptible", enable_preemptible="true") == 1
        assert gauge(store, "enable_preemptible", enable_preemptible="false") == 0
        await publish(store, enable_preemptible=False)
        assert gauge(store, "enable_preemptible", enable_preemptible="true") == 0
        assert gauge(store, "enable_preemptible", enable_preemptible="false") == 1


async def test_the_series_of_the_node_that_was_silent_longest_make_room() -> None:
    async with serving() as store:
        await publish(store)
        await publish(store, "n0")
        await publish(store)
        tiers = store.components.metrics.memory_tiers
        for number in range(NODES_MAX - 1):
            tiers.sampled(f"x{number}", (1, 1), (1, 1), 0.0, 0, enabled=False)
        assert gauge(store, "faults_per_sec", node="n0") is None
        assert gauge(store, "faults_per_sec", node="n1") == 0
