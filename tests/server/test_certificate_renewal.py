"""A renewed certificate is taken up without anybody saying so; a bad one leaves the old in use."""

import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import purerpc
import pytest
import trio
import trio.testing
from rpc.certificates import KeyPair, issue
from servers import configuration, eventually, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.server.lifecycle import Server
from globalstore.server.renewals import LOOK_S
from globalstore.server.sockets import Sockets


@asynccontextmanager
async def secured(pair: KeyPair) -> AsyncIterator[Server]:
    files = {"enabled": True, "cert_file": pair.cert_file, "key_file": pair.key_file}
    server = Server(configuration(server={"grpc": {"tls": files}}))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        await trio.testing.wait_all_tasks_blocked()  # its background tasks measure time by now
        yield server
        server.stop()


async def trusts(server: Server, ca: KeyPair) -> bool:
    """Tell whether a client that knows only this authority gets a connection."""
    assert isinstance(server.transport, Sockets)
    context = ssl.create_default_context(cafile=ca.cert_file)
    context.set_alpn_protocols(["h2"])
    stream = trio.SSLStream(
        await trio.open_tcp_stream("127.0.0.1", server.transport.listener.port),
        context,
        server_hostname="localhost",
        https_compatible=True,
    )
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError:
        return False
    finally:
        await trio.aclose_forcefully(stream)
    return True


async def look(clock: trio.testing.MockClock, times: int) -> None:
    """Let the server look at its files, and wait until it has done what follows from that."""
    threads = trio.to_thread.current_default_thread_limiter()
    for _ in range(times):
        clock.jump(LOOK_S)
        await trio.testing.wait_all_tasks_blocked()
        # A thread looks, which the mock clock does not wait for.
        await eventually(lambda: threads.borrowed_tokens == 0)
        await trio.testing.wait_all_tasks_blocked()


def copy(source: str, target: str) -> None:
    Path(target).write_bytes(Path(source).read_bytes())


def replace(pair: KeyPair, by: KeyPair) -> None:
    copy(by.cert_file, pair.cert_file)
    copy(by.key_file, pair.key_file)


def spoil(pair: KeyPair, fault: str, folder: Path, ca: KeyPair) -> None:
    match fault:
        case "junk":
            Path(pair.cert_file).write_text("junk")
        case "missing":
            Path(pair.key_file).unlink()
        case "foreign key":
            copy(ca.key_file, pair.key_file)
        case "expired":
            replace(pair, by=issue(folder, "old", ca, days=-1))


def logged(caplog: pytest.LogCaptureFixture, message: str) -> int:
    return sum(record.getMessage() == message for record in caplog.records)


KEPT = "certificate not renewed, the old one stays in use"


def test_two_looks_fit_into_the_minute_that_is_promised() -> None:
    assert 2 * LOOK_S < 60


async def test_a_renewed_pair_is_taken_up_by_itself_within_a_minute(
    tmp_path: Path, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    old_ca, new_ca = issue(tmp_path, "ca"), issue(tmp_path, "new-ca")
    pair = issue(tmp_path, "server", old_ca)
    caplog.set_level("INFO", "globalstore.server")
    async with secured(pair) as server:
        expiry = server.components.metrics.registry.get_sample_value
        before = expiry("tc_tls_cert_expiry_timestamp_seconds")
        await look(mock_clock, 3)
        assert await trusts(server, old_ca)
        assert logged(caplog, "certificate renewed") == 0
        replace(pair, by=issue(tmp_path, "renewed", new_ca, days=30))
        await look(mock_clock, 2)
        assert await trusts(server, new_ca)
        assert not await trusts(server, old_ca)
        assert logged(caplog, "certificate renewed") == 1
        after = expiry("tc_tls_cert_expiry_timestamp_seconds")
        assert before is not None
        assert after is not None
        assert after - before > 28 * 86400


async def test_a_pair_behind_a_link_that_is_switched_is_taken_up(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    old_ca, new_ca = issue(tmp_path, "ca"), issue(tmp_path, "new-ca")
    for folder, ca in (("first", old_ca), ("second", new_ca)):
        (tmp_path / folder).mkdir()
        issued = issue(tmp_path / folder, "server", ca)
    current = tmp_path / "current"
    current.symlink_to(tmp_path / "first")
    pair = KeyPair(issued.certificate, issued.key, f"{current}/server.crt", f"{current}/server.key")
    async with secured(pair) as server:
        (tmp_path / "next").symlink_to(tmp_path / "second")
        (tmp_path / "next").rename(current)
        await look(mock_clock, 2)
        assert await trusts(server, new_ca)


@pytest.mark.parametrize("fault", ["junk", "missing", "foreign key", "expired"])
async def test_a_bad_pair_keeps_the_old_one_is_told_once_and_is_forgotten_when_put_right(
    tmp_path: Path,
    mock_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    ca, new_ca = issue(tmp_path, "ca"), issue(tmp_path, "new-ca")
    pair = issue(tmp_path, "server", ca)
    async with secured(pair) as server:
        spoil(pair, fault, tmp_path, ca)
        await look(mock_clock, 6)
        assert await trusts(server, ca)
        assert logged(caplog, KEPT) == 1
        assert [r.levelname for r in caplog.records if r.getMessage() == KEPT] == ["ERROR"]
        replace(pair, by=issue(tmp_path, "renewed", new_ca))
        await look(mock_clock, 2)
        assert await trusts(server, new_ca)
        assert logged(caplog, KEPT) == 1


async def test_a_pair_of_which_half_is_written_when_it_is_looked_at_raises_no_alarm(
    tmp_path: Path, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    new_ca = issue(tmp_path, "new-ca")
    pair = issue(tmp_path, "server", issue(tmp_path, "ca"))
    renewed = issue(tmp_path, "renewed", new_ca)
    async with secured(pair) as server:
        copy(renewed.cert_file, pair.cert_file)
        await look(mock_clock, 1)
        copy(renewed.key_file, pair.key_file)
        await look(mock_clock, 2)
        assert await trusts(server, new_ca)
        assert logged(caplog, KEPT) == 0


async def test_what_a_reload_refused_is_not_told_again_by_the_look_after_it(
    tmp_path: Path, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    ca = issue(tmp_path, "ca")
    pair = issue(tmp_path, "server", ca)
    async with secured(pair) as server:
        spoil(pair, "missing", tmp_path, ca)
        server.reload(server.config)
        await look(mock_clock, 3)
        assert logged(caplog, "files not reloaded, the old ones stay in use") == 1
        assert logged(caplog, KEPT) == 0


async def test_renewed_tokens_are_taken_up_too(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    file = tmp_path / "tokens"

    def write(token: str) -> None:
        file.write_text(f"full {hashlib.sha256(token.encode()).hexdigest()}\n")

    write("old")
    auth = {"auth": {"token_file": str(file)}}
    async with serving(configuration(server=auth)) as store:

        async def allowed(token: str) -> bool:
            header = [("authorization", f"Bearer {token}")]
            try:
                await store.admin.GetServerInfo(wire.GetServerInfoRequest(), metadata=header)
            except purerpc.RpcFailedError:
                return False
            return True

        assert await allowed("old")
        file.write_text("junk")
        await look(mock_clock, 2)
        assert await allowed("old")
        write("new")
        await look(mock_clock, 2)
        assert await allowed("new")
        assert not await allowed("old")
