"""Which address clients are told to dial."""

import ipaddress

import attrs
import pytest

from globalstore.config import AddressSource, GlobalStoreConfig, advertised_address, host_port
from globalstore.config.advertise import route_addresses

SERVER = GlobalStoreConfig().server


def listed(addresses):
    return addresses.split() if addresses else []


def decided(listen, advertise="", route=None, host_name=None):
    server = attrs.evolve(
        SERVER,
        listen=attrs.evolve(SERVER.listen, host=listen),
        advertise=attrs.evolve(SERVER.advertise, host=advertise),
    )
    found = advertised_address(server, 50051, lambda: listed(route), lambda: listed(host_name))
    return found.host, found.source


@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0", "10.0.0.7"])
def test_a_configured_host_goes_before_everything(listen):
    found = decided(listen, advertise="store.example", route="10.1.1.1")
    assert found == ("store.example", AddressSource.CONFIGURED)


@pytest.mark.parametrize("listen", ["10.0.0.7", "2001:db8::7", "store.example"])
def test_a_routable_listen_host_is_advertised(listen):
    assert decided(listen, route="10.1.1.1") == (listen, AddressSource.LISTEN_HOST)


@pytest.mark.parametrize("listen", ["127.0.0.1", "localhost", "::1"])
def test_a_local_server_never_advertises_an_outside_address(listen):
    assert decided(listen, route="10.1.1.1") == (listen, AddressSource.LOOPBACK)


@pytest.mark.parametrize("listen", ["0.0.0.0", "::"])
def test_a_server_on_every_interface_advertises_the_way_out(listen):
    found = decided(listen, route="10.1.1.1", host_name="10.2.2.2")
    assert found == ("10.1.1.1", AddressSource.ROUTE)


@pytest.mark.parametrize("route", [None, "127.0.0.1", "0.0.0.0"])
def test_without_a_way_out_the_host_name_decides(route):
    assert decided("0.0.0.0", route=route, host_name="10.2.2.2") == (
        "10.2.2.2",
        AddressSource.HOST_NAME,
    )


@pytest.mark.parametrize("host_name", [None, "127.0.1.1"])
def test_when_nothing_is_known_the_listen_host_is_advertised_as_not_routable(host_name):
    assert decided("0.0.0.0", host_name=host_name) == ("0.0.0.0", AddressSource.FALLBACK)


def test_the_port_is_the_bound_one_unless_configured():
    assert advertised_address(SERVER, 4711).port == 4711
    server = attrs.evolve(SERVER, advertise=attrs.evolve(SERVER.advertise, port=80))
    assert str(advertised_address(server, 4711)) == "127.0.0.1:80"


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        ("10.0.0.7", 1, "10.0.0.7:1"),
        ("2001:db8::7", 1, "[2001:db8::7]:1"),
        ("", 1, ""),
        ("10.0.0.7", 0, ""),
    ],
)
def test_an_address_is_written_with_its_port_or_not_at_all(host, port, text):
    assert host_port(host, port) == text


def test_asking_the_routing_table_gives_an_address_of_each_family_at_most():
    found = [ipaddress.ip_address(address).version for address in route_addresses()]
    assert found in ([], [4], [6], [4, 6])


@pytest.mark.parametrize(
    ("listen", "host"),
    [("0.0.0.0", "10.2.2.2"), ("::", "2001:db8::7"), ("*", "2001:db8::7")],
)
def test_what_is_advertised_is_one_of_what_is_bound(listen, host):
    found = decided(listen, route="fe80::1 2001:db8::7", host_name="2001:db8::8 10.2.2.2")
    assert found[0] == host


def test_where_both_families_are_bound_the_older_one_is_advertised():
    assert decided("::", route="10.1.1.1 2001:db8::7") == ("10.1.1.1", AddressSource.ROUTE)
