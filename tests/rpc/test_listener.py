"""The listener: its port, its limits, and how it stops."""

import socket

import purerpc
import pytest
import trio
import trio.lowlevel

from globalstore.rpc import CannotListen, Limits, Listener, ListenerOptions, PortBusy
from globalstore.rpc.sockets import listening_sockets

from .echo import Echo, Recorder, dial, listening, text
from .wire import message


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


async def test_the_port_is_known_and_taken_before_serving():
    first = Listener([Echo().service])
    await first.bind()
    second = Listener([Echo().service], options=ListenerOptions(port=first.port))
    with pytest.raises(PortBusy, match=f"127.0.0.1:{first.port}: something already listens"):
        await second.bind()
    await first.drain(0)


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])
async def test_a_listener_on_a_wildcard_address_that_would_share_the_port_is_noticed(wildcard):
    family = socket.AF_INET6 if ":" in wildcard else socket.AF_INET
    with socket.socket(family) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((wildcard, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortBusy):
            await Listener([Echo().service], options=ListenerOptions(port=port)).bind()


async def test_a_stock_purerpc_server_on_the_port_is_noticed():
    stock = purerpc.Server(port=0)
    stock.add_service(Echo().service)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(lambda task_status: stock.serve_async(task_status=task_status))
        for host in ("127.0.0.1", "0.0.0.0"):
            options = ListenerOptions(host=host, port=port)
            with pytest.raises(PortBusy):
                await Listener([Echo().service], options=options).bind()
        nursery.cancel_scope.cancel()


async def test_a_port_is_shared_only_when_both_ask_for_it():
    first = Listener([Echo().service], options=ListenerOptions(so_reuseport=True))
    await first.bind()
    shared = ListenerOptions(port=first.port, so_reuseport=True)
    second = Listener([Echo().service], options=shared)
    await second.bind()
    with pytest.raises(PortBusy):
        await Listener([Echo().service], options=ListenerOptions(port=first.port)).bind()
    await first.drain(0)
    await second.drain(0)


async def test_an_address_that_is_not_ours_is_refused_naming_it():
    options = ListenerOptions(host="192.0.2.1", port=free_port())
    with pytest.raises(OSError, match=r"cannot listen on 192.0.2.1:"):
        await Listener([Echo().service], options=options).bind()
    with pytest.raises(OSError, match=r"listen.host 'no.such.host.invalid'"):
        await Listener(
            [Echo().service], options=ListenerOptions(host="no.such.host.invalid")
        ).bind()


async def test_ipv6_and_names_are_served():
    async with listening(options=ListenerOptions(host="::1")) as listener:
        assert listener.host == "::1"
        stream = await trio.open_tcp_stream("::1", listener.port)
        await stream.aclose()
    async with listening(options=ListenerOptions(host="localhost")) as listener:
        peer = await dial(listener)
        assert (await peer.answer(await peer.call("Unary"))).status == "0"


@pytest.mark.parametrize(
    ("host", "reached"),
    [("0.0.0.0", ["127.0.0.1"]), ("::", ["127.0.0.1", "::1"]), ("*", ["127.0.0.1", "::1"])],
)
async def test_a_wildcard_is_reached_by_what_it_stands_for(host, reached):
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    async with listening(options=ListenerOptions(host=host)) as listener:
        for address in ("127.0.0.1", "::1"):
            if address in reached:
                await (await trio.open_tcp_stream(address, listener.port)).aclose()
            else:
                with pytest.raises(OSError, match="all attempts to connect"):
                    await trio.open_tcp_stream(address, listener.port)
        taken = ListenerOptions(host="127.0.0.1", port=listener.port)
        with pytest.raises(PortBusy):
            await Listener([Echo().service], options=taken).bind()


class Names(trio.abc.HostnameResolver):
    """Has every name stand for some addresses."""

    def __init__(self, *addresses):
        self.addresses = addresses

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002
        return [(socket.AF_INET, type, 0, "", (each, port)) for each in self.addresses]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


async def test_a_name_binds_the_addresses_that_this_host_has():
    trio.socket.set_custom_hostname_resolver(Names("192.0.2.1", "127.0.0.1", "203.0.113.7"))
    sockets = await listening_sockets("some.name", 0, reuse_port=False)
    assert [sock.getsockname()[0] for sock in sockets] == ["127.0.0.1"]
    sockets[0].close()
    trio.socket.set_custom_hostname_resolver(Names("192.0.2.1", "203.0.113.7"))
    with pytest.raises(CannotListen, match=r"cannot listen on some\.name:0"):
        await listening_sockets("some.name", 0, reuse_port=False)


async def test_a_free_port_is_one_that_all_addresses_of_a_name_have(monkeypatch):
    first = await listening_sockets("127.0.0.1", 0, reuse_port=False)
    taken, bind = first[0].getsockname()[1], type(first[0]).bind
    trio.socket.set_custom_hostname_resolver(Names("127.0.0.2", "127.0.0.1"))
    asked = []

    async def bind_the_taken_one_first(self, address):
        asked.append(address)
        await bind(self, (address[0], taken) if len(asked) == 1 else address)

    monkeypatch.setattr(type(first[0]), "bind", bind_the_taken_one_first)
    sockets = await listening_sockets("some.name", 0, reuse_port=False)
    ports = {sock.getsockname()[1] for sock in sockets}
    assert len(sockets) == 2
    assert len(ports) == 1
    assert ports != {taken}
    for sock in (*first, *sockets):
        sock.close()


async def test_a_restart_may_take_the_port_at_once():
    async with listening(limits=BRISK) as listener:
        peer = await dial(listener)
        await peer.answer(await peer.call("Unary"))
        await listener.drain(0)  # the server closes first: its side is left in TIME_WAIT
    async with listening(options=ListenerOptions(port=listener.port)):
        pass


@pytest.mark.parametrize("nodelay", [True, False])
async def test_nodelay_is_as_asked(nodelay):
    async with listening(options=ListenerOptions(tcp_nodelay=nodelay)) as listener:
        await dial(listener)
        (connection,) = listener._connections
        sock = connection._transport.socket
        assert bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is nodelay


async def test_connections_beyond_the_limit_are_refused_and_the_others_served():
    async with listening(limits=Limits(connections_max=2)) as listener:
        peers = [await dial(listener) for _ in range(2)]
        for peer in peers:
            await peer.answer(await peer.call("Unary"))
        third = await dial(listener)
        assert b"as many connections as it may" in third.client.goaway.additional_data
        assert not await third.read()
        assert (await peers[0].answer(await peers[0].call("Unary"))).status == "0"
        await peers[1].stream.aclose()
        while listener.statistics().connections == 2:
            await trio.lowlevel.checkpoint()
        fourth = await dial(listener)
        assert (await fourth.answer(await fourth.call("Unary"))).status == "0"


async def test_statistics_and_repr_tell_the_state():
    echo = Echo()
    async with listening(echo.service) as listener:
        peer = await dial(listener)
        await peer.call("Held")
        await echo.running.wait()
        partial = await peer.begin("Unary")
        peer.client.h2.send_data(partial, message(text("x" * 1000))[:500])
        await peer.flush()
        await peer.answer(await peer.call("Unary"))
        statistics = listener.statistics()
        assert statistics.connections == 1
        assert statistics.calls_in_flight == 2
        assert statistics.incomplete_message_bytes == 500
        assert repr(listener) == "<Listener [BOUND, connections: 1, calls: 2]>"


# Clients of these tests stay connected after a GOAWAY: no reason to wait for them.
BRISK = Limits(goaway_seconds=0.02, flush_seconds=0.02, unwind_seconds=0.02)


async def test_fifty_calls_in_flight_all_finish_while_draining():
    echo = Echo()
    async with listening(echo.service, limits=BRISK) as listener:
        peer = await dial(listener)
        streams = [await peer.call("Held", str(n)) for n in range(50)]
        while listener.statistics().calls_in_flight < 50:
            await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            reports = []

            async def drain():
                reports.append(await listener.drain(60))

            nursery.start_soon(drain)
            while peer.client.goaway is None:
                await peer.read()
            echo.release.set()
            answers = [await peer.answer(stream_id) for stream_id in streams]
        assert [a.status for a in answers] == ["0"] * 50
        assert [a.data for a in answers] == [message(text(str(n))) for n in range(50)]
        (report,) = reports
        assert (report.in_flight, report.cancelled, report.abandoned) == (50, 0, 0)


async def test_calls_that_only_wait_end_unavailable_when_draining_begins():
    echo = Echo()
    async with listening(echo.service, limits=BRISK) as listener, trio.open_nursery() as nursery:
        peer = await dial(listener)
        stream_id = await peer.call("Wait")
        await echo.running.wait()
        nursery.start_soon(listener.drain, 60)
        answer = await peer.answer(stream_id)
        assert (answer.status, answer.status_message) == ("14", "the server is shutting down")


async def test_calls_left_after_the_grace_period_end_unavailable():
    echo = Echo()
    async with listening(echo.service, limits=BRISK) as listener, trio.open_nursery() as nursery:
        peer = await dial(listener)
        stream_id = await peer.call("Hang")
        await echo.running.wait()
        reports = []

        async def drain():
            reports.append(await listener.drain(0.05))

        nursery.start_soon(drain)
        assert (await peer.answer(stream_id)).status == "14"
        assert echo.log == ["cancelled"]
        await peer.stream.aclose()
    (report,) = reports
    assert (report.cancelled, report.abandoned) == (1, 0)


async def test_a_handler_that_swallows_its_cancellation_does_not_block_the_drain():
    echo = Echo()
    async with listening(echo.service, limits=BRISK) as listener:
        peer = await dial(listener)
        await peer.call("Stubborn")
        await echo.running.wait()
        with trio.fail_after(10):
            report = await listener.drain(0)
        assert report.cancelled == 1
        assert echo.log == ["swallowed"]


async def test_a_handler_that_does_not_end_at_all_does_not_block_the_drain():
    echo = Echo()
    async with listening(echo.service, limits=BRISK) as listener:
        peer = await dial(listener)
        await peer.call("Immovable")
        await echo.running.wait()
        with trio.fail_after(10):
            report = await listener.drain(0)
        assert report.abandoned == 1
        echo.release.set()


async def test_serve_returns_after_a_drain_and_nobody_is_accepted_any_more():
    listener = Listener([Echo().service], limits=BRISK)
    async with trio.open_nursery() as nursery:
        await nursery.start(listener.serve)
        first = await dial(listener)
        second_report = []

        async def again():
            second_report.append(await listener.drain(5))

        nursery.start_soon(again)
        report = await listener.drain(5)
        assert await first.read() in (True, False)
    assert second_report == [report]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listener.port), 1)
    assert repr(listener).startswith("<Listener [DRAINING")


async def test_cancelling_serve_drops_connections_and_calls():
    echo, seen = Echo(), Recorder()
    async with listening(echo.service, observers=[seen]) as listener:
        peer = await dial(listener)
        await peer.call("Hang")
        await echo.running.wait()
    assert seen.ended == [("Hang", "UNAVAILABLE")]
    while await peer.read():
        pass
