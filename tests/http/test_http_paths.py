"""What each path answers."""

import pytest

PATHS = ["/metrics", "/health", "/ready", "/livez"]


async def test_a_server_that_starts_is_alive_but_not_ready(site, nursery):
    await site.start(nursery)
    ready, health, alive = [await site.ask(path) for path in ("/ready", "/health", "/livez")]
    assert (ready.status, ready.json) == (503, {"status": "not ready", "reason": "starting"})
    assert (health.status, health.json) == (503, {"status": "unavailable", "reason": "starting"})
    assert (alive.status, alive.json) == (200, {"status": "alive"})


async def test_a_ready_server_says_so_until_it_drains(site, nursery):
    await site.start(nursery)
    site.state.not_ready.clear("startup")
    assert (await site.ask("/ready")).json == {"status": "ready"}
    assert (await site.ask("/health")).json == {"status": "ok"}
    site.state.not_ready.set("draining", "shutting down")
    answer = await site.ask("/ready")
    assert (answer.status, answer.json["reason"]) == (503, "shutting down")
    assert (await site.ask("/health")).status == 503


async def test_a_full_disk_degrades_health_and_leaves_readiness(site, nursery):
    await site.start(nursery)
    site.state.not_ready.clear("startup")
    site.state.degraded.set("disk", "the disk is full")
    answer = await site.ask("/health")
    assert (answer.status, answer.json) == (
        200,
        {"status": "degraded", "reason": "the disk is full"},
    )
    assert (await site.ask("/ready")).status == 200
    site.state.degraded.clear("disk")
    assert (await site.ask("/health")).json == {"status": "ok"}


async def test_what_fails_makes_health_503_and_leaves_readiness_and_liveness(site, nursery):
    await site.start(nursery)
    site.state.not_ready.clear("startup")
    site.state.failing.set("database", "database is damaged")
    site.state.failing.set("retention", "retention keeps failing")
    site.state.degraded.set("disk", "the disk is full")
    answer = await site.ask("/health")
    assert (answer.status, answer.json) == (
        503,
        {"status": "unavailable", "reason": "database is damaged; retention keeps failing"},
    )
    assert (await site.ask("/ready")).status == 200
    assert (await site.ask("/livez")).status == 200


@pytest.mark.parametrize(("lag", "status"), [(0.0, 200), (5.0, 200), (5.01, 503)])
async def test_liveness_follows_the_event_loop_alone(site, nursery, lag, status):
    await site.start(nursery)
    site.state.set_lag(lag)
    answer = await site.ask("/livez")
    assert answer.status == status
    if status == 503:
        assert answer.json == {"status": "stalled", "reason": "the event loop was 5.0 s late"}


async def test_metrics_are_in_exposition_format(site, nursery):
    await site.start(nursery)
    site.metrics.workers.expired.inc()
    answer = await site.ask("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert b"\ntc_worker_expired_total 1.0\n" in answer.body
    assert b"_created" not in answer.body


@pytest.mark.parametrize("path", PATHS)
async def test_head_is_answered_like_get_without_the_body(site, nursery, path):
    await site.start(nursery)
    full, head = await site.ask(path), await site.ask(path, "HEAD")
    assert head.status == full.status
    assert head.body == b""
    if path != "/metrics":  # which tells the processor time, longer from scrape to scrape
        assert head.headers["content-length"] == full.headers["content-length"]
    assert head.headers["content-type"] == full.headers["content-type"]
    assert int(full.headers["content-length"]) == len(full.body)


@pytest.mark.parametrize(
    "path", ["/", "/metric", "/health/", "/metrics/x", "*", "http://x/healthy"]
)
async def test_any_other_path_is_404_and_names_the_paths(site, nursery, path):
    await site.start(nursery)
    answer = await site.ask(path)
    assert (answer.status, answer.json["status"]) == (404, "not found")
    assert all(path in answer.json["reason"] for path in PATHS)


@pytest.mark.parametrize("path", PATHS)
async def test_a_query_changes_nothing(site, nursery, path):
    await site.start(nursery)
    assert (await site.ask(f"{path}?x=1")).status == (await site.ask(path)).status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
async def test_any_other_method_is_405_and_names_the_two(site, nursery, method):
    await site.start(nursery)
    for path in ("/health", "/elsewhere"):
        answer = await site.ask(path, method)
        assert answer.status == 405
        assert answer.headers["allow"] == "get, head"


async def test_an_answer_names_no_software_and_is_not_cached(site, nursery):
    await site.start(nursery)
    answer = await site.ask("/health")
    assert "server" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"
