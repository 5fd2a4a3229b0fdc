"""The forms in which the metrics are to be had, and what HTTP asks of every answer."""

import gzip
from http import HTTPStatus

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from globalstore.http.exposition import Form, form_of
from globalstore.telemetry.metrics import Metrics

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.3,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "encoding", "form"),
    [
        ("", "", Form()),
        ("*/*", "identity", Form()),
        (PROMETHEUS, "gzip", Form(True, True)),
        ("Application/OpenMetrics-Text", "GZIP ; q=0.5, br", Form(True, True)),
        ("application/openmetrics-text;q=0, text/plain", "gzip; q = 0.000", Form()),
        ("application/openmetrics-textile", "xgzip, gzipx", Form()),
        (",;,", ";q=1,,", Form()),
    ],
)
def test_the_form_follows_the_headers(accept, encoding, form):
    assert form_of(accept, encoding) == form


@pytest.mark.parametrize("accept", ["text/plain", PROMETHEUS])
async def test_a_compressed_scrape_is_the_plain_one_and_smaller(site, nursery, accept):
    site.metrics.workers.active.set(7)
    site.metrics.replicas.changed("a", "RAM", 1, edge=True)
    await site.start(nursery)
    plain = await site.ask("/metrics", accept=accept)
    small = await site.ask("/metrics", accept=accept, accept_encoding="gzip")
    assert "content-encoding" not in plain.headers
    assert small.headers["content-encoding"] == "gzip"
    assert small.headers["content-type"] == plain.headers["content-type"]
    assert plain.headers["vary"] == small.headers["vary"] == "accept, accept-encoding"
    assert int(small.headers["content-length"]) == len(small.body) < len(plain.body) / 3
    lines = gzip.decompress(small.body).splitlines()
    assert {line.split()[0] for line in lines} == {
        line.split()[0] for line in plain.body.splitlines()
    }
    assert b"tc_active_workers 7.0" in lines


async def test_open_metrics_are_what_their_parser_takes(site, nursery):
    site.metrics.replicas.changed("a", "RAM", 1, edge=True)
    site.metrics.transports.granted("a", 1, 0.5)
    await site.start(nursery)
    answer = await site.ask("/metrics", accept=PROMETHEUS)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {
        family.name: family for family in text_string_to_metric_families(answer.body.decode())
    }
    assert families["tc_replicas_total"].type == "gauge"
    assert families["tc_grpc_server_handled"].type == "counter"
    assert {name for name in families if name.startswith("process_")} >= {
        "process_cpu_seconds",
        "process_open_fds",
        "process_resident_memory_bytes",
    }


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://store:8001/livez", 200),
        ("HTTP://store:8001/livez?x=1", 200),
        ("https://store/livez", 200),
        ("http://store", 404),
        ("http://store/", 404),
        ("http://store//livez", 404),
        ("ftp://store/livez", 404),
        ("//store/livez", 404),
        ("/livez", 200),
    ],
)
async def test_a_target_may_have_scheme_and_host(site, nursery, target, status):
    await site.start(nursery)
    assert (await site.ask(target)).status == status


@pytest.mark.parametrize(
    ("path", "method", "code"),
    [
        ("/livez", "GET", 200),
        ("/ready", "GET", 503),
        ("/none", "GET", 404),
        ("/livez", "POST", 405),
        ("/livez", "HEAD", 200),
    ],
)
async def test_a_status_has_its_reason(site, nursery, path, method, code):
    await site.start(nursery)
    answer = await site.ask(path, method)
    assert (answer.status, answer.reason) == (code, HTTPStatus(code).phrase)


async def test_a_head_that_is_refused_has_a_reason_too(site, nursery):
    await site.start(nursery)
    answer = await site.ask("/livez", "G E T")
    assert (answer.status, answer.reason) == (400, "Bad Request")


def test_what_runs_is_told():
    metrics = Metrics()
    metrics.server.built("1.2", 9)
    [sample] = [
        s for f in metrics.registry.collect() for s in f.samples if f.name == "tc_build_info"
    ]
    assert (sample.labels["version"], sample.labels["schema"], sample.value) == ("1.2", "9", 1)
