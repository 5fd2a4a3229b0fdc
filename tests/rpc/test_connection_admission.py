"""Connections beyond a bound: silent ones make room, and two lines tell of those refused."""

import logging
import resource

from log_lines import told

from globalstore.rpc.connection_admission import ConnectionAdmission, Place
from globalstore.rpc.ledger import Account, Ledger
from globalstore.rpc.limits import Limits

FILES_MAX = resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def account(address: str = "10.0.0.1", **limits: int) -> Account:
    return Ledger(Limits(**limits)).account(address)


def place(whose: Account, number: int = 1) -> Place:
    return Place(whose, f"{whose.address}:{number}")


def fill(admission: ConnectionAdmission, whose: Account, count: int) -> list[Place]:
    """Admit connections that have made a call."""
    places = [place(whose, number) for number in range(count)]
    for each in places:
        assert admission.admits(each, 40)
        admission.prove(each)
    return places


def test_the_number_of_connections_is_bounded_and_told_once(caplog):
    caplog.set_level(logging.INFO)
    admission, whose = ConnectionAdmission(32, 0), account()
    places = fill(admission, whose, 32)
    assert [admission.admits(place(whose), 40) for _ in range(100)] == [False] * 100
    admission.leave(places.pop())
    assert admission.admits(place(whose), 40)
    assert len(caplog.records) == 1  # it is as good as full still
    assert "as many connections as it may: 32 (server.limits.max_connections)" in told(caplog)[0]
    for each in places:
        admission.leave(each)
    assert admission.admits(place(whose), 40)
    assert told(caplog)[1].endswith("accepted again refused=100")
    assert len(caplog.records) == 2
    assert whose.connections == admission.open == 2


async def test_the_oldest_connection_without_a_call_makes_room():
    admission, whose = ConnectionAdmission(3, 0), account()
    first, second, third = (place(whose, number) for number in range(3))
    for each in (first, second, third):
        assert admission.admits(each, 40)
    admission.prove(first)
    assert admission.admits(place(whose, 4), 40)
    assert second.scope.cancel_called
    assert not first.scope.cancel_called
    assert not third.scope.cancel_called
    assert admission.ended_for_room == 1


async def test_an_address_has_a_share_of_the_connections(caplog):
    ledger = Ledger(Limits(connections_per_address_max=2))
    here, there = ledger.account("10.0.0.1"), ledger.account("10.0.0.2")
    admission = ConnectionAdmission(100, 0)
    fill(admission, here, 2)
    silent = place(there)
    assert admission.admits(silent, 40)
    assert not admission.admits(place(here), 40)
    assert not silent.scope.cancel_called  # no other address makes room
    assert "(server.limits.max_connections_per_address)" in told(caplog)[0]
    assert admission.admits(place(there), 40)


async def test_files_are_kept_free_for_others():
    admission, whose = ConnectionAdmission(1 << 30, 100), account()
    silent = place(whose)
    assert admission.admits(silent, FILES_MAX - 101)
    late = place(whose)
    assert admission.admits(late, FILES_MAX - 100)
    assert silent.scope.cancel_called
    admission.prove(late)
    assert not admission.admits(place(whose), FILES_MAX - 100)


def test_a_process_that_may_open_few_files_takes_calls_all_the_same():
    admission = ConnectionAdmission(1 << 30, 10 * FILES_MAX)
    assert admission.admits(place(account()), FILES_MAX // 2 - 1)
