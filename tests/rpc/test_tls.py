"""TLS: versions, ALPN, client certificates, rotation, and clients that fail at it."""

import logging
import ssl

import grpc
import pytest
import trio
import trio.testing
from google.protobuf.wrappers_pb2 import StringValue
from log_lines import told

from globalstore.rpc import Limits, Listener, ListenerOptions, server_context

from .certificates import issue
from .echo import Echo, Peer, dial, listening


@pytest.fixture
def ca(tmp_path):
    return issue(tmp_path, "ca")


@pytest.fixture
def server(tmp_path, ca):
    return issue(tmp_path, "server", ca)


def secured(server, client_ca=None, **settings):
    context = server_context(
        server.cert_file, server.key_file, client_ca.cert_file if client_ca else None
    )
    return listening(options=ListenerOptions(ssl_context=context), **settings)


def client_context(ca, pair=None, alpn="h2"):
    context = ssl.create_default_context(cafile=ca.cert_file)
    if alpn:
        context.set_alpn_protocols([alpn])
    if pair:
        context.load_cert_chain(pair.cert_file, pair.key_file)
    return context


async def works(listener, context):
    peer = await dial(listener, context)
    return (await peer.answer(await peer.call("Unary"))).status == "0"


async def refusal(stream):
    """Read to the end; True if no HTTP/2 came before it."""
    data = b""
    try:
        while chunk := await stream.receive_some(1000):
            data += chunk
    except trio.BrokenResourceError:
        pass
    return b"\x00\x00\x18\x04" not in data and len(data) < 100


def grpcio_call(port, credentials):
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        unary = channel.unary_unary(
            "/test.Echo/Unary", StringValue.SerializeToString, StringValue.FromString
        )
        return unary(StringValue(value="x"), timeout=20).value


async def test_calls_go_over_tls_with_h2_agreed(ca, server):
    async with secured(server) as listener:
        assert await works(listener, client_context(ca))


async def test_grpcio_calls_over_tls_and_with_a_client_certificate(tmp_path, ca, server):
    pair = issue(tmp_path, "client", ca)

    def read(path):
        with open(path, "rb") as file:
            return file.read()

    async with secured(server, client_ca=ca) as listener:
        credentials = grpc.ssl_channel_credentials(
            read(ca.cert_file), read(pair.key_file), read(pair.cert_file)
        )
        got = await trio.to_thread.run_sync(grpcio_call, listener.port, credentials)
        assert got == "x"


async def test_a_plaintext_client_is_refused_and_disturbs_nobody(ca, server, caplog):
    async with secured(server) as listener:
        good = await dial(listener, client_context(ca))
        plain = Peer(await trio.open_tcp_stream("127.0.0.1", listener.port), None, None)
        await plain.flush()
        assert await refusal(plain.stream)
        assert "TLS handshake failed" in caplog.text
        assert (await good.answer(await good.call("Unary"))).status == "0"


async def test_a_client_without_h2_is_refused(ca, server, caplog):
    async with secured(server) as listener:
        for alpn in (None, "http/1.1"):
            stream = trio.SSLStream(
                await trio.open_tcp_stream("127.0.0.1", listener.port),
                client_context(ca, alpn=alpn),
                server_hostname="localhost",
                https_compatible=True,
            )
            assert await refusal(stream)
        assert await works(listener, client_context(ca))
    assert "does not offer h2" in told(caplog)[-1]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
async def test_tls_older_than_1_2_is_refused(ca, server):
    async with secured(server) as listener:
        context = client_context(ca)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises(trio.BrokenResourceError):
            await dial(listener, context)


SUITES = {
    "ECDHE-ECDSA-AES128-GCM-SHA256": True,
    "ECDHE-ECDSA-AES256-GCM-SHA384": True,
    "ECDHE-ECDSA-CHACHA20-POLY1305": True,
    "ECDHE-ECDSA-AES128-SHA256": False,
    "ECDHE-ECDSA-AES256-SHA": False,
    "ECDHE-ECDSA-AES128-CCM": False,
}


@pytest.mark.parametrize(("suite", "taken"), SUITES.items())
async def test_tls_1_2_is_spoken_with_authenticated_suites_only(ca, server, suite, taken):
    async with secured(server) as listener:
        context = client_context(ca)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(suite)
        if taken:
            assert await works(listener, context)
            return
        with pytest.raises(trio.BrokenResourceError):
            await dial(listener, context)


def test_no_suite_is_without_forward_secrecy(server):
    context = server_context(server.cert_file, server.key_file)
    suites = [each for each in context.get_ciphers() if each["protocol"] == "TLSv1.2"]
    assert suites
    assert all(each["aead"] and each["kea"] == "kx-ecdhe" for each in suites), suites


def test_a_context_that_allows_old_tls_is_refused():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.raises(ValueError, match=r"TLS 1\.2"):
        Listener([Echo().service], options=ListenerOptions(ssl_context=context))


@pytest.mark.parametrize("who", ["nobody", "a stranger", "someone expired"])
async def test_clients_without_a_valid_certificate_are_refused(tmp_path, ca, server, who):
    stranger_ca = issue(tmp_path, "other-ca")
    pairs = {
        "nobody": None,
        "a stranger": issue(tmp_path, "stranger", stranger_ca),
        "someone expired": issue(tmp_path, "expired", ca, days=-1),
    }
    async with secured(server, client_ca=ca) as listener:
        friend = await dial(listener, client_context(ca, issue(tmp_path, "friend", ca)))
        with pytest.raises((trio.BrokenResourceError, AssertionError)):
            await works(listener, client_context(ca, pairs[who]))
        assert (await friend.answer(await friend.call("Unary"))).status == "0"


async def test_a_handshake_has_bounded_time(ca, server, caplog, mock_clock):
    async with secured(server, limits=Limits(handshake_seconds=5)) as listener:
        for begins in (b"", b"\x16"):
            stream = await trio.open_tcp_stream("127.0.0.1", listener.port)
            await stream.send_all(begins)
            await trio.testing.wait_all_tasks_blocked(0.01)
            mock_clock.jump(5)
            assert await stream.receive_some(10) == b""
        assert await works(listener, client_context(ca))
    lines = [line for line in told(caplog, logging.INFO) if "connection" in line or "TLS" in line]
    assert len(lines) == 1, "who sends nothing is no event"
    assert lines[0].endswith('reason="timed out"')


async def test_many_that_fail_alike_are_one_line(ca, server, caplog):
    async with secured(server) as listener:
        for _ in range(100):
            stream = await trio.open_tcp_stream("127.0.0.1", listener.port)
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            assert await refusal(stream)
            probe = await trio.open_tcp_stream("127.0.0.1", listener.port)
            await probe.aclose()
        assert await works(listener, client_context(ca))
    assert len([line for line in told(caplog, logging.INFO) if "TLS" in line]) <= 1


async def test_a_new_certificate_serves_new_connections_and_old_ones_live_on(tmp_path, ca, server):
    new_ca = issue(tmp_path, "new-ca")
    renewed = issue(tmp_path, "renewed", new_ca)
    async with secured(server) as listener:
        old = await dial(listener, client_context(ca))
        listener.replace_ssl_context(server_context(renewed.cert_file, renewed.key_file))
        assert await works(listener, client_context(new_ca))
        with pytest.raises(trio.BrokenResourceError):
            await works(listener, client_context(ca))
        assert (await old.answer(await old.call("Unary"))).status == "0"


def test_tls_cannot_be_switched_on_later(server):
    listener = Listener([Echo().service])
    with pytest.raises(ValueError, match="not started with TLS"):
        listener.replace_ssl_context(server_context(server.cert_file, server.key_file))


def test_a_key_that_does_not_fit_is_refused(server, ca):
    with pytest.raises(ssl.SSLError):
        server_context(server.cert_file, ca.key_file)
    with pytest.raises(OSError, match="No such file"):
        server_context("/nonexistent.crt", server.key_file)


async def test_a_drain_over_tls_finishes_calls_and_says_goodbye(ca, server):
    echo = Echo()
    context = server_context(server.cert_file, server.key_file)
    limits = Limits(goaway_seconds=0.02)
    async with (
        listening(
            echo.service, options=ListenerOptions(ssl_context=context), limits=limits
        ) as listener,
        trio.open_nursery() as nursery,
    ):
        peer = await dial(listener, client_context(ca))
        stream_id = await peer.call("Held")
        await echo.running.wait()
        nursery.start_soon(listener.drain, 60)
        while peer.client.goaway is None:
            await peer.read()
        echo.release.set()
        assert (await peer.answer(stream_id)).status == "0"
        while await peer.read():
            pass
