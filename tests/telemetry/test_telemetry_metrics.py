"""Metrics against the published table, their bounds, and what feeds them."""

import csv
from pathlib import Path

import attrs
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from globalstore.rpc import StatusCode
from globalstore.telemetry import labels
from globalstore.telemetry.labels import ArtifactSeries
from globalstore.telemetry.metrics import Metrics

with (Path(__file__).parent / "golden_metrics.tsv").open(newline="") as table:
    GOLDEN = list(csv.DictReader(table, delimiter="\t"))


@pytest.fixture
def metrics():
    return Metrics()


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def family_of(metrics, name):
    for family in metrics.registry.collect():
        if name in {family.name, f"{family.name}_total"}:
            return family
    raise AssertionError(f"no metric {name}")


def touch_everything(metrics):
    """Give each metric with labels at least one series, so that labels can be seen."""
    call = Call("/s/M")
    metrics.calls.started(call)
    metrics.calls.finished(call, StatusCode.OK, 0.1)
    metrics.workers.capability_entries.labels("worker", "shard_home_eligible")
    metrics.memory_tiers.sampled("n1", (1, 1), (1, 1), 0.0, 1, enabled=True)
    metrics.control_plane.reconcile_results.labels("RECONCILE_RESULT_KIND_APPLIED")
    metrics.control_plane.retries_later.labels("request_seq_gap")
    metrics.control_plane.conflicts.labels("endpoint_takeover")
    metrics.control_plane.replays.labels("UnregisterWorker", "hit")
    metrics.daemon_locks.waiting(0, 0)
    metrics.daemon_locks.intent(0, "register", "submitted")
    metrics.server.recovery_rows.labels("replicas")
    metrics.server.db_rows.labels("replicas")
    metrics.server.db_rows_limit.labels("replicas")
    metrics.server.build_info.labels("1", "9", "3.11")
    metrics.server.gc_rows_deleted.labels("workers")
    metrics.transports.dispatch_events.labels("granted")
    metrics.replicas.changed("a", "RAM", 1, edge=True)
    metrics.replicas.registered("a", "RAM")
    metrics.replicas.unregistered("a", "RAM")
    metrics.transports.requested("a", "success")
    metrics.transports.filtered("a", "saturated")
    metrics.transports.no_exportable("a")
    metrics.transports.granted("a", 1, 1.0)


@attrs.frozen
class Call:
    path: str
    known: bool = True
    died: bool = False

    @property
    def method(self):
        return self if self.known else None


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row["name"])
def test_a_metric_has_its_published_name_type_labels_and_buckets(metrics, row):
    touch_everything(metrics)
    metrics.transports.waited("a", 0.1)
    family = family_of(metrics, row["name"])
    assert family.type == row["type"]
    assert family.documentation
    if row["type"] == "counter":
        assert row["name"] == f"{family.name}_total"
    sample = family.samples[0]
    expected = set(filter(None, row["labels"].split(",")))
    assert set(sample.labels) - {"le"} == expected
    buckets = [
        float(s.labels["le"])
        for s in family.samples
        if s.name.endswith("_bucket")
        and {k: v for k, v in s.labels.items() if k != "le"}
        == {k: v for k, v in sample.labels.items() if k != "le"}
    ]
    published = [float(b) for b in row["buckets"].split()]
    assert buckets == ([*published, float("inf")] if published else [])


def test_no_metric_is_missing_in_the_published_table(metrics):
    names = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in metrics.registry.collect()
    }
    assert names == {row["name"] for row in GOLDEN}


def test_closed_label_sets_exist_from_the_first_scrape(metrics):
    for result in ("ok", "sync_required", "not_found", "invalid"):
        assert value(metrics, "tc_worker_heartbeat_total", result=result) == 0
    for kind in ("new", "renew", "reactivate", "recovery"):
        assert value(metrics, "tc_worker_register_total", kind=kind, result="ok") == 0
    for kind in ("new", "renew", "recovery"):
        assert value(metrics, "tc_worker_register_total", kind=kind, result="rejected") == 0
    assert value(metrics, "tc_state_sync_total", result="error") == 0
    assert value(metrics, "tc_replicas_per_memtype", memory_type="DISK") == 0


def test_two_servers_share_no_metric(metrics):
    metrics.workers.expired.inc()
    assert value(Metrics(), "tc_worker_expired_total") == 0


def test_calls_are_counted_by_method_and_code_and_timed(metrics):
    for code, seconds in ((StatusCode.OK, 0.003), (StatusCode.OK, 3), (StatusCode.NOT_FOUND, 0.1)):
        call = Call("/tensorcast.S/M")
        metrics.calls.started(call)
        assert value(metrics, "tc_grpc_server_inflight_requests") == 1
        metrics.calls.finished(call, code, seconds)
    assert value(metrics, "tc_grpc_server_inflight_requests") == 0
    handled = "tc_grpc_server_handled_total"
    assert value(metrics, handled, method="/tensorcast.S/M", code="OK") == 2
    assert value(metrics, handled, method="/tensorcast.S/M", code="NOT_FOUND") == 1
    seconds = "tc_grpc_server_handling_seconds"
    assert value(metrics, f"{seconds}_sum", method="/tensorcast.S/M") == pytest.approx(3.103)
    assert value(metrics, f"{seconds}_bucket", method="/tensorcast.S/M", le="0.005") == 1


def test_made_up_paths_are_counted_as_unknown(metrics):
    for number in range(1000):
        call = Call(f"/made.Up/{number}", known=False)
        metrics.calls.started(call)
        metrics.calls.finished(call, StatusCode.UNIMPLEMENTED, 0)
    handled = family_of(metrics, "tc_grpc_server_handled_total")
    assert [(s.labels, s.value) for s in handled.samples] == [
        ({"method": "unknown", "code": "UNIMPLEMENTED"}, 1000)
    ]


def test_the_peak_is_that_of_the_last_window(metrics):
    peak = "tc_grpc_server_inflight_peak_requests"
    calls = [Call(f"/s/{n}") for n in range(5)]
    for call in calls:
        metrics.calls.started(call)
    for call in calls[:3]:
        metrics.calls.finished(call, StatusCode.OK, 0)
    assert value(metrics, peak) == 0
    metrics.calls.end_peak_window()
    assert value(metrics, peak) == 5
    metrics.calls.end_peak_window()
    assert value(metrics, peak) == 2


def series(kind, name, *rest, lines=1):
    registry = CollectorRegistry()
    return registry, ArtifactSeries(
        kind(name, "T.", ["artifact_id", *rest], registry=registry), name, lines
    )


def shown(registry, name):
    return {
        s.labels["artifact_id"]: s.value
        for family in registry.collect()
        for s in family.samples
        if s.name == name
    }


def test_beyond_a_thousand_artifacts_the_rest_is_counted_as_other():
    registry, counted = series(Counter, "c_total")
    for number in range(1500):
        counted.of(f"a{number}").inc()
    found = shown(registry, "c_total")
    assert len(found) == 1001
    assert found["other"] == 500
    assert sum(found.values()) == 1500


def test_an_artifact_that_goes_makes_room_for_another():
    registry, counted = series(Counter, "c_total", "status")
    for number in range(1000):
        counted.of(f"a{number}", "success").inc()
        if number < 10:
            counted.of(f"a{number}", "timeout").inc()
    assert "late" not in counted
    counted.of("late", "success").inc()
    counted.remove("a0")
    counted.remove("never seen")
    counted.of("late", "success").inc()
    assert "late" in counted
    found = shown(registry, "c_total")
    assert "a0" not in found
    assert (found["late"], found["other"]) == (1, 1)


def test_an_artifact_called_other_is_counted_with_the_others():
    registry, counted = series(Counter, "c_total")
    counted.of("other").inc()
    counted.remove("other")
    counted.of("other").inc()
    assert shown(registry, "c_total") == {"other": 2}


@pytest.mark.parametrize(("kind", "lines"), [(Counter, 1), (Gauge, 1), (Histogram, 18)])
def test_long_ids_never_make_a_metric_larger_than_its_share(kind, lines):
    name = "a_metric_with_a_rather_long_name_total"
    registry, counted = series(kind, name, "status", lines=lines)
    for number in range(2000):
        counted.of(f"{number:0500}", "success")
    assert len(generate_latest(registry)) < labels.METRIC_BYTES_MAX * 1.1
    assert "other" in generate_latest(registry).decode()


def test_after_everything_is_removed_nothing_is_left_and_all_room_is_free():
    registry, counted = series(Counter, "c_total", "status")
    for _ in range(3):
        for number in range(1000):
            for status in ("success", "timeout"):
                counted.of(f"artifact-{number}", status).inc()
        for number in range(1000):
            counted.remove(f"artifact-{number}")
        assert set(shown(registry, "c_total")) <= {"other"}
        assert "[artifacts: 0, 0 B]" in repr(counted)


def test_replicas_of_an_artifact_are_kept_by_changes(metrics):
    name = "tc_replicas_per_artifact"
    metrics.replicas.changed("a", "RAM", 1, edge=True)
    metrics.replicas.changed("a", "GPU", 1, edge=False)
    assert value(metrics, name, artifact_id="a") == 2
    assert value(metrics, "tc_replicas_total") == 2
    assert value(metrics, "tc_replicas_per_memtype", memory_type="GPU") == 1
    metrics.transports.requested("a", "success")
    metrics.replicas.changed("a", "RAM", -1, edge=False)
    metrics.replicas.changed("a", "GPU", -1, edge=True)
    assert value(metrics, name, artifact_id="a") is None
    assert value(metrics, "tc_transport_requests_total", artifact_id="a", status="success") is None
    assert value(metrics, "tc_replicas_total") == 0


def test_replicas_beyond_the_bound_add_up_under_other_and_vanish_again(metrics):
    name = "tc_replicas_per_artifact"
    ids = [f"a{number}" for number in range(1010)]
    for artifact_id in ids:
        metrics.replicas.changed(artifact_id, "RAM", 1, edge=True)
        metrics.replicas.changed(artifact_id, "RAM", 1, edge=False)
    assert value(metrics, name, artifact_id="other") == 20
    metrics.replicas.changed("a0", "RAM", -1, edge=False)
    metrics.replicas.changed("a0", "RAM", -1, edge=True)
    # There is room now, but an artifact counted as other stays there: its count must not split.
    metrics.replicas.changed("a1009", "RAM", 1, edge=False)
    assert value(metrics, name, artifact_id="a1009") is None
    assert value(metrics, name, artifact_id="other") == 21
    for artifact_id in ids[1:]:
        metrics.replicas.changed(artifact_id, "RAM", -1, edge=False)
        metrics.replicas.changed(artifact_id, "RAM", -1, edge=artifact_id != "a1009")
    metrics.replicas.changed("a1009", "RAM", -1, edge=True)
    assert shown(metrics.registry, name) == {"other": 0}


def test_a_removed_artifact_leaves_no_series_in_any_metric(metrics):
    touch_everything(metrics)
    assert 'artifact_id="a"' in generate_latest(metrics.registry).decode()
    metrics.remove_artifact("a")
    assert "artifact_id" not in generate_latest(metrics.registry).decode()


def test_artifacts_that_only_requests_name_can_be_found_and_removed(metrics):
    metrics.replicas.changed("held", "RAM", 1, edge=True)
    for number in range(2000):
        metrics.transports.requested(f"invented-{number}", "not_found")
    invented = metrics.labelled_artifacts() - {"held"}
    assert len(invented) == 1000
    for artifact_id in invented:
        metrics.remove_artifact(artifact_id)
    assert metrics.labelled_artifacts() == {"held"}
    metrics.transports.requested("held", "success")
    requests = "tc_transport_requests_total"
    assert value(metrics, requests, artifact_id="held", status="success") == 1
