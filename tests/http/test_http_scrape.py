"""The cost of a scrape, for the scraper and for everybody else."""

import time

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from globalstore.http.exposition import Exposition, Form, exposition_text
from globalstore.telemetry.capabilities import INSTANCE_CAPABILITIES, WORKER_CAPABILITIES
from globalstore.telemetry.metrics import Metrics
from globalstore.telemetry.replicas import MEMORY_TYPES

FILTER_REASONS = (
    "not_live", "not_accepting", "unavailable", "saturated", "presence_only", "expired", "capped",
)  # fmt: skip


class Call:
    def __init__(self, path):
        self.path = path
        self.method = self
        self.died = False


class Code:
    def __init__(self, name):
        self.name = name


# What one method may end with in a bad week.
CODES = [
    Code(name)
    for name in (
        "OK", "CANCELLED", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "UNAVAILABLE",
        "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "INTERNAL",
    )
]  # fmt: skip


def busy_cluster(metrics):
    """10 000 artifacts in every metric that has them, 200 workers, 120 methods."""
    for number in range(10_000):
        artifact_id = f"sha256:{number:064x}"
        for memory_type in MEMORY_TYPES:
            metrics.replicas.changed(artifact_id, memory_type, 1, edge=memory_type == "GPU")
            metrics.replicas.registered(artifact_id, memory_type)
            metrics.replicas.unregistered(artifact_id, memory_type)
        for status in ("success", "timeout", "not_found", "rejected", "error"):
            metrics.transports.requested(artifact_id, status)
        metrics.transports.waited(artifact_id, 0.2)
        for reason in FILTER_REASONS:
            metrics.transports.filtered(artifact_id, reason)
        metrics.transports.no_exportable(artifact_id)
        metrics.transports.granted(artifact_id, 1, 1.0)
    metrics.workers.active.set(200)
    for capability in WORKER_CAPABILITIES:
        metrics.workers.capability_entries.labels("worker", capability).set(200)
    for capability in INSTANCE_CAPABILITIES:
        metrics.workers.capability_entries.labels("instance", capability).set(1000)
    for number in range(120):
        call = Call(f"/tensorcast.global_store.v1.SomeRatherLongService/Method{number}")
        for code in CODES:
            metrics.calls.started(call)
            metrics.calls.finished(call, code, 0.01)


def test_a_large_cluster_has_series_in_every_metric_that_is_labelled_by_artifact():
    metrics = Metrics()
    busy_cluster(metrics)
    families = [f for f in metrics.registry.collect() if "artifact" in str(f.samples)]
    labelled = {
        f.name for f in families if any("artifact_id" in sample.labels for sample in f.samples)
    }
    assert len(labelled) == len(metrics.instruments.by_artifact)


async def test_a_scrape_of_a_large_cluster_is_small_and_quick(site, nursery):
    busy_cluster(site.metrics)
    await site.start(nursery)
    durations = []
    for _ in range(5):
        begun = time.process_time()
        answer = await site.ask("/metrics")
        durations.append(time.process_time() - begun)
    assert len(answer.body) <= 2_000_000
    print(f"{len(answer.body)} bytes, {[round(d * 1000) for d in durations]} ms")
    # The contract's 200 ms are those of a machine that has nothing else to do. Here the processor's
    # time counts, and a slow one must not fail this.
    assert min(durations) <= 1.0


async def test_the_event_loop_turns_while_a_scrape_is_made():
    metrics = Metrics()
    busy_cluster(metrics)
    turns = 0
    async with trio.open_nursery() as nursery:

        async def turn():
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        nursery.start_soon(turn)
        await Exposition(metrics.registry).render()
        nursery.cancel_scope.cancel()
    assert turns > 10


ODD_NUMBERS = [0.0, -0.0, 1.0, -1.0, 0.1, 1e5, 1e6, 1e7, 123456789.0, 1e21, 1e-9, 2.5e6]
NOT_FINITE = [float("inf"), float("-inf"), float("nan")]


@pytest.mark.parametrize("value", [*ODD_NUMBERS, *NOT_FINITE])
def test_the_text_is_what_the_metrics_library_writes_for_odd_numbers(value):
    registry = CollectorRegistry()
    Gauge("odd", "Odd.", registry=registry).set(value)
    assert exposition_text(registry) == generate_latest(registry)


def test_the_text_is_what_the_metrics_library_writes_for_odd_texts():
    registry = CollectorRegistry()
    counter = Counter("odd", 'Say "a"\nor \\.', ["z", "a"], registry=registry)
    for text in ('"', "\\", "ключ", "", "a,b=}"):
        counter.labels(text, "x").inc(2)
        Histogram(f"h{ord(text[0]) if text else 0}", text, ["id"], registry=registry).labels(text)
    assert exposition_text(registry) == generate_latest(registry)


@pytest.mark.parametrize("form", [Form(), Form(is_open_metrics=True)])
async def test_labels_are_shown_on_one_line_with_nothing_that_is_not_seen(form):
    registry = CollectorRegistry()
    counter = Counter("odd", "Odd.", ["id"], registry=registry)
    for text in ("a\nb", "\x9b2J", "x\u202ey", "z\u200b", "\u2028"):
        counter.labels(text).inc(2)
    text = (await Exposition(registry).render(form)).decode()
    assert all(line.isprintable() for line in text.split("\n"))
    assert "\u200b" not in text
    assert 'id="x\\\\u202ey"' in text
    assert 'id="a\\\\nb"' in text


def test_the_text_of_all_our_metrics_is_what_the_metrics_library_writes():
    metrics = Metrics()
    assert ours(exposition_text(metrics.registry)) == ours(generate_latest(metrics.registry))
    metrics.transports.filtered("a", "saturated", 3)
    metrics.transports.granted("a", 1, 0.3)
    metrics.control_plane.reconcile_seconds.observe(3)
    assert ours(exposition_text(metrics.registry)) == ours(generate_latest(metrics.registry))


def ours(text):
    """The lines without the values of the process, which change from scrape to scrape."""
    return [line for line in text.splitlines() if not line.startswith(b"process_")]


class Slow:
    """A registry that counts its scrapes and waits to be let on."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.scrapes = 0
        self.entered = trio.Event()
        self.go = trio.Event()
        gauge = Gauge("slow", "Slow.", registry=self.registry)
        gauge.set_function(self.scrape)

    def scrape(self):
        self.scrapes += 1
        trio.from_thread.run_sync(self.entered.set)
        trio.from_thread.run(self.go.wait)
        return self.scrapes


async def test_those_who_ask_during_a_rendering_share_the_next_one():
    slow, answers = Slow(), []
    exposition = Exposition(slow.registry)

    async def ask():
        answers.append(await exposition.render())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await slow.entered.wait()
        for _ in range(20):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.01)
        slow.go.set()
    assert slow.scrapes == 2
    assert b"slow 1.0" in answers[0]
    assert all(b"slow 2.0" in answer for answer in answers[1:])


async def test_one_who_goes_away_during_a_rendering_leaves_the_next_to_others():
    slow = Slow()
    exposition = Exposition(slow.registry)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exposition.render)
        await slow.entered.wait()
        nursery.cancel_scope.cancel()
    slow.go.set()
    with trio.fail_after(5):
        assert b"slow 2.0" in await exposition.render()
