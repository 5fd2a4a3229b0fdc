"""What reaches the HTTP library: whole heads of HTTP/1, bounded, and nothing else."""

import contextlib
import re
import socket

import pytest
import trio
import trio.testing
from conftest import parse, read_to_end
from hypothesis import given
from hypothesis import strategies as st

from globalstore.http import serving
from globalstore.http.heads import REFUSAL, Heads

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
CLOSE = b"Connection: close\r\n"


async def answer_to(site, *packets):
    """All that a client gets who sends these packets, each in a write of its own."""
    async with await site.connect() as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for packet in packets:
            with contextlib.suppress(trio.BrokenResourceError):  # it was answered before
                await stream.send_all(packet)
            await trio.testing.wait_all_tasks_blocked(0.002)
        with trio.fail_after(5):
            return await read_to_end(stream)


def status_of(answer):
    code = parse(answer).status
    assert parse(answer).headers["content-type"] == "application/json"
    assert parse(answer).json["reason"]
    return code


LARGE = [
    b"GET /" + b"x" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    LIVEZ + b"X: " + b"y" * 60_000 + b"\r\n\r\n",
    LIVEZ + b"X: y\r\n" * 10_000 + b"\r\n",
    LIVEZ + b"X: " + b"y" * serving.HEAD_BYTES_MAX,
]


@pytest.mark.parametrize("pieces", [1, 30])
@pytest.mark.parametrize("head", LARGE, ids=["line", "field", "fields", "endless"])
async def test_a_head_that_is_too_large_is_refused_in_one_packet_and_in_many(
    site, nursery, head, pieces
):
    await site.start(nursery)
    size = -(-len(head) // pieces)
    if pieces > 1:  # what comes after the refusal would only be cut off
        head = head[: serving.HEAD_BYTES_MAX + 2 * size]
    packets = [head[at : at + size] for at in range(0, len(head), size)]
    assert status_of(await answer_to(site, *packets)) == 431


async def test_a_head_as_large_as_allowed_is_answered(site, nursery):
    await site.start(nursery)
    frame = len(LIVEZ + CLOSE + b"X: \r\n\r\n")
    filler = b"y" * (serving.HEAD_BYTES_MAX - frame)
    for more, code in ((b"", 200), (b"y", 431)):
        head = LIVEZ + CLOSE + b"X: " + filler + more + b"\r\n\r\n"
        assert parse(await answer_to(site, head)).status == code


@pytest.mark.parametrize(
    "sent",
    [PREFACE, b"PRI * HTTP/2.0\r\n\r\n", b"GET /livez HTTP/2.0\r\n\r\n", b"PRI * HTTP/3.0\n\n"],
)
async def test_another_version_is_refused_in_words_of_this_one(site, nursery, sent):
    await site.start(nursery)
    for packets in ([sent], [bytes([byte]) for byte in sent]):
        assert status_of(await answer_to(site, *packets)) == 505


@pytest.mark.parametrize(
    "fields",
    [
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n",
        b"upgrade:h2c\r\n" + CLOSE,
        b"X: a\r\nUPGRADE: h2c\r\n" + CLOSE,
        b"Upgrade: websocket\r\nConnection: upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
        b"Expect: 100-continue\r\n",
        REFUSAL + b": 431\r\n",
    ],
)
async def test_an_upgrade_is_not_taken_up_and_the_request_is_answered(site, nursery, fields):
    await site.start(nursery)
    async with await site.connect() as stream:
        await stream.send_all(LIVEZ + fields + b"\r\n")
        answer = b""
        while not answer.endswith(b"}\n"):
            answer += await stream.receive_some(4096)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"upgrade" not in answer.lower()


BODIES = {
    "length": b"Content-Length: 5\r\n\r\nhello",
    "endless": b"Content-Length: 99999999999\r\n\r\n" + b"x" * 50_000,
    "chunks": b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 2000,
    "waits": b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_body_is_refused_unread_and_ends_the_connection(site, nursery, body):
    await site.start(nursery)
    for method, code in ((b"GET", 413), (b"POST", 405)):
        request = method + b" /livez HTTP/1.1\r\nHost: x\r\n" + body
        assert status_of(await answer_to(site, request)) == code
    assert (await site.ask("/livez")).status == 200


async def test_a_body_of_no_bytes_is_none(site, nursery):
    await site.start(nursery)
    assert (await site.ask("/livez", Content_Length="0")).status == 200


async def test_what_follows_a_body_is_no_request(site, nursery):
    await site.start(nursery)
    answer = await answer_to(
        site,
        LIVEZ + b"Content-Length: 4\r\n\r\n" + LIVEZ + CLOSE + b"\r\n",
        LIVEZ + CLOSE + b"\r\n",
    )
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_a_refusal_takes_its_turn_among_the_answers(site, nursery):
    await site.start(nursery)
    answer = await answer_to(site, (LIVEZ + b"\r\n") * 3 + PREFACE)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"200", b"200", b"505"]


@given(st.data(), st.integers(1, 4))
def test_what_passes_does_not_depend_on_the_packets(data, count):
    heads = st.sampled_from(
        [
            *(LIVEZ + b"\r\n", LIVEZ + b"Upgrade: h2c\r\nA: b\r\n\n", b"GET / HTTP/1.0\n\n"),
            *(LIVEZ + b"Content-Length: 3\r\n\r\nabc", LIVEZ + b"B: " + b"x" * 100 + b"\r\n\r\n"),
            *(b"\r\n\r\n", b"\x16\x03\x01", b"hello\r\n\r\n", PREFACE),
        ]
    )
    sent = b"".join(data.draw(heads) for _ in range(count))
    whole = Heads(120)
    expected = whole.take(sent) + whole.rest()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=20)))
    pieces = Heads(120)
    passed = b"".join(
        pieces.take(sent[a:b]) for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)
    )
    assert passed + pieces.rest() == expected
    assert b"upgrade" not in expected.lower()
