"""GetServerInfo: what was bound, what clients are told to dial, and which database it is."""

import re
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from servers import configuration, serving_over_tcp

import globalstore
from globalstore.client.connection import connection
from globalstore.config.advertise import route_addresses
from globalstore.gen.tensorcast.global_store.v1 import global_store_grpc as services
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.server.lifecycle import Server


async def info_of(server: dict[str, Any], dial: str) -> Any:
    """Start a server with these settings and ask it, at an address, who it is."""
    running = Server(configuration(server=server))
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        info = await nursery.start(running.run)
        async with connection(dial, info.listen_port) as channel:
            admin = services.ClusterAdminServiceStub(channel)
            answer = await admin.GetServerInfo(wire.GetServerInfoRequest())
        running.stop()
    assert answer.status == wire.STATUS_OK
    return answer


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_an_address_of_ip_version_6_is_written_in_brackets() -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    info = await info_of({"listen": {"host": "::1", "port": 0}}, "::1")
    assert (info.listen_host, info.advertise_host) == ("::1", "::1")
    assert info.listen_address == f"[::1]:{info.listen_port}"
    assert info.advertise_address == f"[::1]:{info.listen_port}"


async def test_a_configured_address_is_what_clients_are_told() -> None:
    advertise = {"host": "2001:db8::7", "port": 7000}
    info = await info_of({"advertise": advertise}, "127.0.0.1")
    assert info.advertise_address == "[2001:db8::7]:7000"
    assert (info.advertise_host, info.advertise_port) == ("2001:db8::7", 7000)
    assert info.listen_address == f"127.0.0.1:{info.listen_port}"


async def test_a_server_on_every_interface_tells_the_way_to_this_machine() -> None:
    way_out = next(iter(route_addresses()), None)
    if way_out is None:
        pytest.skip("this machine has no route to the outside")
    info = await info_of({"listen": {"host": "0.0.0.0", "port": 0}}, "127.0.0.1")
    assert info.listen_host == "0.0.0.0"
    assert info.advertise_address == f"{way_out}:{info.listen_port}"


async def test_the_other_fields_say_version_ports_and_database(tmp_path: Path) -> None:
    database = tmp_path / "sub" / "склад.db"
    async with serving_over_tcp(configuration(database={"db_file": str(database)})) as store:
        info = await store.admin.GetServerInfo(wire.GetServerInfoRequest())
        assert info.db_file == str(database.resolve())
        assert info.version == globalstore.__version__
        assert info.metrics_port == store.info.metrics_port > 0
        first = info.cluster_id
    assert re.fullmatch(r"\d{8}T\d{6}Z_[0-9a-f]{8}", first)
    async with serving_over_tcp(configuration(database={"db_file": str(database)})) as store:
        info = await store.admin.GetServerInfo(wire.GetServerInfoRequest())
        assert info.cluster_id == first


async def test_a_database_in_memory_has_no_file_and_a_new_identity_with_every_start() -> None:
    seen = set()
    for _ in range(2):
        async with serving_over_tcp() as store:
            info = await store.admin.GetServerInfo(wire.GetServerInfoRequest())
            assert info.db_file == ""
            seen.add(info.cluster_id)
    assert len(seen) == 2


async def test_the_cluster_token_is_for_the_health_check_only() -> None:
    async with serving_over_tcp(configuration(meta={"cluster_token": "hush"})) as store:
        info = await store.admin.GetServerInfo(wire.GetServerInfoRequest())
        assert "hush" not in str(info)
        health = await store.admin.HealthCheck(wire.HealthCheckRequest())
        assert health == wire.HealthCheckResponse(status=wire.STATUS_OK, cluster_token="hush")


@pytest.mark.parametrize("host", ["::", "*"])
async def test_both_ports_of_a_wildcard_take_both_families(host: str) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    config = configuration(server={"listen": {"host": host, "port": 0}})
    async with serving_over_tcp(config) as store:
        for address in ("127.0.0.1", "::1"):
            for port in (store.info.listen_port, store.info.metrics_port):
                await (await trio.open_tcp_stream(address, port)).aclose()
            async with connection(address, store.info.listen_port) as channel:
                admin = services.ClusterAdminServiceStub(channel)
                await admin.GetServerInfo(wire.GetServerInfoRequest())
