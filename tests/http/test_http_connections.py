"""Clients that are slow, greedy, broken or many."""

import logging
import os
import resource
import socket

import pytest
import trio
import trio.testing
from conftest import parse, read_to_end

from globalstore.http import HttpApp, serve_http, serving
from globalstore.rpc.sockets import PortBusy, listening_sockets

REQUEST = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_REQUEST = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def read_answer(stream):
    """One answer of a connection that stays open."""
    raw = b""
    while not raw.endswith(b"}\n"):
        raw += await stream.receive_some(4096)
    return parse(raw)


async def test_a_connection_serves_one_request_after_another(site, nursery):
    await site.start(nursery)
    async with await site.connect() as stream:
        for _ in range(3):
            await stream.send_all(REQUEST)
            assert (await read_answer(stream)).status == 200


@pytest.mark.parametrize(
    "sent", [b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nHost: x\r\n", REQUEST]
)
async def test_a_client_that_falls_silent_is_disconnected(site, nursery, mock_clock, sent):
    await site.start(nursery)
    stream = await site.connect()
    await stream.send_all(sent)
    if sent == REQUEST:
        assert (await read_answer(stream)).status == 200
    await trio.testing.wait_all_tasks_blocked(0.01)
    mock_clock.jump(serving.HEAD_SECONDS_MAX + 0.1)
    assert await read_to_end(stream) == b""


async def test_a_client_that_sends_its_head_in_drops_is_disconnected(site, nursery, mock_clock):
    await site.start(nursery)
    stream = await site.connect()
    for letter in b"GET /livez":
        await stream.send_all(bytes([letter]))
        await trio.testing.wait_all_tasks_blocked(0.005)
        mock_clock.jump(serving.HEAD_SECONDS_MAX / 10)
    assert await read_to_end(stream) == b""


async def serve_with_small_buffers(site, nursery):
    for number in range(1000):
        site.metrics.replicas.changed(f"{number:0100}", "RAM", 1, edge=True)
    [sock] = await listening_sockets("127.0.0.1", 0, reuse_port=False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    site.port = sock.getsockname()[1]
    await nursery.start(serve_http, HttpApp(site.metrics.registry, site.state), [sock])


async def stuck_scraper(site):
    """A client that asks for more than the buffers hold and reads nothing."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", site.port))
    await sock.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    # Whoever asks later gets a later rendering: by then the first one has been handed over.
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert (await site.ask("/metrics")).status == 200
    await trio.testing.wait_all_tasks_blocked(0.01)
    return trio.SocketStream(sock)


async def test_a_client_that_does_not_read_is_disconnected(site, nursery, mock_clock, caplog):
    await serve_with_small_buffers(site, nursery)
    stream = await stuck_scraper(site)
    mock_clock.jump(serving.WRITE_SECONDS_MAX + 0.1)
    await trio.testing.wait_all_tasks_blocked(0.01)
    received = await read_to_end(stream)
    assert len(received) < len((await site.ask("/metrics")).body)
    assert "http connection ended" in caplog.text


async def test_a_client_that_does_not_read_does_not_hold_up_the_end(site):
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await serve_with_small_buffers(site, nursery)
            stream = await stuck_scraper(site)
            nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)


async def test_the_oldest_connection_makes_room_for_one_too_many(site, nursery):
    await site.start(nursery)
    silent = [await site.connect() for _ in range(serving.CONNECTIONS_MAX)]
    await trio.testing.wait_all_tasks_blocked(0.01)
    with trio.fail_after(5):
        assert (await site.ask("/livez")).status == 200
        assert await read_to_end(silent[0]) == b""
    await silent[-1].send_all(LAST_REQUEST)
    assert parse(await read_to_end(silent[-1])).status == 200
    for stream in silent:
        await stream.aclose()


@pytest.mark.parametrize(
    "noise",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET /livez HTTP/x.y\r\n\r\n",
        b"GET /liv\xffez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
    ],
)
async def test_noise_is_refused_and_harms_nobody(site, nursery, noise, caplog):
    await site.start(nursery)
    stream = await site.connect()
    await stream.send_all(noise)
    with trio.fail_after(5):
        answer = await read_to_end(stream)
        assert not answer or parse(answer).status == 400
        assert (await site.ask("/livez")).status == 200
    assert "Traceback" not in caplog.text


async def test_a_client_that_leaves_before_its_answer_harms_nobody(site, nursery, caplog):
    await site.start(nursery)
    for _ in range(20):
        stream = await site.connect()
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()
    assert (await site.ask("/livez")).status == 200
    assert "Traceback" not in caplog.text


async def test_a_busy_port_is_detected_also_when_it_is_shared(site, nursery):
    await site.start(nursery)
    with pytest.raises(PortBusy):
        await listening_sockets("127.0.0.1", site.port, reuse_port=False)
    with trio.socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        await other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(PortBusy):
            await listening_sockets("127.0.0.1", other.getsockname()[1], reuse_port=False)


async def test_the_server_library_announces_nothing(site, nursery, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    await site.start(nursery)
    await site.ask("/livez")
    assert "Running on" not in caplog.text
    assert "http request" in caplog.text
    assert capfd.readouterr() == ("", "")


async def test_when_cancelled_it_frees_the_port_at_once(site):
    async with trio.open_nursery() as nursery:
        await site.start(nursery)
        stream = await site.connect()
        nursery.cancel_scope.cancel()
    assert await read_to_end(stream) == b""
    [sock] = await listening_sockets("127.0.0.1", site.port, reuse_port=False)
    sock.close()


async def test_what_cannot_be_loaded_ends_connections_and_nothing_else(
    site, nursery, mock_clock, monkeypatch, caplog
):
    tried = trio.Event()

    def fail(name):
        trio.from_thread.run_sync(tried.set)
        raise ImportError(name)

    monkeypatch.setattr(serving, "import_module", fail)
    await site.start(nursery)
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(serving._LOAD_AFTER_S)
    await tried.wait()
    async with await site.connect() as stream:
        await stream.send_all(REQUEST)
        assert await read_to_end(stream) == b""
    for line in ("http connections cannot be served", "http connection failed"):
        while line not in caplog.text:  # it may follow the end of the connection
            await trio.lowlevel.checkpoint()
    monkeypatch.undo()
    async with await site.connect() as stream:
        await stream.send_all(REQUEST)
        assert (await read_answer(stream)).status == 200


async def test_a_process_without_files_says_so_once_and_serves_when_there_are_some(
    site, nursery, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(serving, "_ACCEPT_PAUSE_S", 0)
    await site.start(nursery)
    assert (await site.ask("/livez")).status == 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client:
        client.setblocking(False)
        lowest = os.dup(client.fileno())
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            with pytest.raises(BlockingIOError):
                client.connect(("127.0.0.1", site.port))
            while "http connections not accepted" not in caplog.text:
                await trio.lowlevel.checkpoint()
            for _ in range(100):
                await trio.lowlevel.checkpoint()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (await site.ask("/livez")).status == 200
    assert caplog.text.count("http connections not accepted") == 1
    assert caplog.text.count("http connections accepted again") == 1
    assert "Traceback" not in caplog.text
