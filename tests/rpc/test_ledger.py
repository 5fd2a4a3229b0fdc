"""What clients hold: a share for each address, a bound for all, and who pays beyond."""

import ipaddress

from globalstore.rpc.engine import STREAM_BYTES
from globalstore.rpc.events import MessageReceived, RequestFaulted, RequestReceived, StreamReset
from globalstore.rpc.ledger import Ledger
from globalstore.rpc.limits import Limits
from globalstore.rpc.status import SHARE_TAKEN

from .wire import Pair, message


def joined(limits: Limits, *addresses: str) -> list[Pair]:
    ledger = Ledger(limits)
    return [Pair(limits, ledger=ledger, address=address) for address in addresses]


def send(pair: Pair, size: int) -> int:
    """Send a whole request of so many bytes; return its stream."""
    stream, data = pair.client.start(), message(b"x" * size)
    for at in range(0, len(data), 16_000):
        pair.client.h2.send_data(
            stream, data[at : at + 16_000], end_stream=at + 16_000 >= len(data)
        )
    return stream


def of(events: list, kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


def test_all_that_a_call_holds_is_counted_and_given_back():
    (pair,) = joined(Limits(), "10.0.0.1")
    assert pair.account.held_bytes == 0
    first = pair.client.start()
    pair.client.h2.send_data(first, message(b"x" * 1000)[:500])
    pair.pump()
    assert pair.account.held_bytes >= STREAM_BYTES + 500
    pair.client.h2.send_data(first, message(b"x" * 1000)[500:], end_stream=True)
    pair.pump()
    assert pair.account.held_bytes >= STREAM_BYTES + 1000
    pair.engine.send_unary(first, b"y" * 1_000_000)
    assert pair.account.held_bytes > 900_000
    pair.pump()
    assert pair.account.held_bytes == 0
    assert pair.ledger.held_bytes == 0


def test_an_address_over_its_share_is_refused_what_it_asks_next_and_nobody_else():
    limits = Limits(held_bytes_per_address_max=5 * STREAM_BYTES)
    one, two, other = joined(limits, "10.0.0.1", "10.0.0.1", "10.0.0.2")
    streams = [one.client.call(b"x") for _ in range(4)]
    refused = of(one.pump(), RequestReceived)
    assert [event.head.refusal for event in refused] == [None] * 4
    two.client.call(b"x")
    (late,) = of(two.pump(), RequestReceived)  # another connection of the same address
    assert late.head.refusal.message == SHARE_TAKEN
    assert "server.limits.max_held_bytes_per_address" in SHARE_TAKEN
    other.client.call(b"x")
    assert of(other.pump(), RequestReceived)[0].head.refusal is None
    assert all(stream in one.engine.streams for stream in streams)


def test_a_message_beyond_the_share_is_refused_while_it_arrives():
    limits = Limits(held_bytes_per_address_max=STREAM_BYTES + 50_000)
    (pair,) = joined(limits, "10.0.0.1")
    stream = pair.client.start()
    events = []
    for _ in range(8):
        pair.client.h2.send_data(stream, b"\0\0\1\0\0" + b"x" * 10_000)
        events += pair.pump()
    (fault,) = of(events, RequestFaulted)
    assert fault.code == 8
    assert fault.message.endswith(SHARE_TAKEN)
    assert pair.account.held_bytes <= limits.held_bytes_per_address_max


def test_beyond_the_bound_of_all_whoever_holds_most_loses_the_largest_call():
    limits = Limits(held_bytes_max=100_000 + 4 * STREAM_BYTES)
    small, large, last = joined(limits, "10.0.0.1", "10.0.0.2", "10.0.0.3")
    small.client.call(b"x" * 5_000)
    assert of(small.pump(), MessageReceived)
    first = send(large, 20_000)
    second = send(large, 60_000)
    assert len(of(large.pump(), MessageReceived)) == 2
    send(last, 30_000)
    assert of(last.pump(), MessageReceived)
    (fault,) = of(large.engine.events(), RequestFaulted)
    assert (fault.stream_id, fault.code) == (second, 14)
    assert first in large.engine.streams
    assert last.ledger.relieved == 1
    assert last.ledger.held_bytes <= limits.held_bytes_max


def test_answers_that_nobody_takes_count_and_are_dropped_where_most_is_held():
    limits = Limits(held_bytes_max=500_000)
    idle, other = joined(limits, "10.0.0.1", "10.0.0.2")
    stream = idle.client.call(b"x")
    idle.pump()
    idle.engine.send_unary(stream, b"y" * 400_000)  # never read
    assert idle.account.held_bytes > 400_000
    waiting = other.client.start()
    other.client.h2.send_data(waiting, b"\0\0\x40\0\0")
    for _ in range(12):
        other.client.h2.send_data(waiting, b"\0\0" * 7_500)
        other.pump()
    assert [event.stream_id for event in of(idle.engine.events(), StreamReset)] == [stream]
    assert waiting in other.engine.streams
    assert idle.account.held_bytes == 0


def test_an_answer_larger_than_all_may_hold_is_dropped_and_nothing_is_left():
    limits = Limits(held_bytes_max=STREAM_BYTES + 100_000)
    (pair,) = joined(limits, "10.0.0.1")
    stream = pair.client.call(b"x")
    pair.pump()
    assert not pair.engine.send_unary(stream, b"y" * 400_000)
    pair.pump()
    assert pair.client.answers[stream].reset is not None
    assert pair.ledger.held_bytes == 0


def test_the_address_of_a_proxy_has_no_share():
    limits = Limits(held_bytes_per_address_max=STREAM_BYTES)
    networks = [ipaddress.ip_network("10.9.0.0/16"), ipaddress.ip_network("fd00::/64")]
    ledger = Ledger(limits, networks)
    shared = {
        each: ledger.account(each).shared for each in ("10.9.3.4", "fd00::7", "10.8.0.1", "x")
    }
    assert shared == {"10.9.3.4": True, "fd00::7": True, "10.8.0.1": False, "x": False}
    pair = Pair(limits, ledger=ledger, address="10.9.3.4")
    for _ in range(20):
        pair.client.call(b"x")
    assert all(event.head.refusal is None for event in of(pair.pump(), RequestReceived))


def test_a_header_block_that_never_ends_counts():
    (pair,) = joined(Limits(), "10.0.0.1")
    pair.raw(b"\0\x20\0\1\0\0\0\0\1" + b"\0" * 0x2000)
    assert pair.account.held_bytes == 0x2000
    pair.engine.fail(0, "")
    assert pair.account.held_bytes == 0


def test_many_unfinished_messages_are_looked_at_once_in_a_while_not_at_every_frame(monkeypatch):
    limits = Limits(inbound_bytes_max=100_000)
    (pair,) = joined(limits, "10.0.0.1")
    looks = []
    end = Ledger._end

    def counted(ledger: Ledger, stream: object) -> None:
        looks.append(stream)
        end(ledger, stream)

    monkeypatch.setattr(Ledger, "_end", counted)
    for _ in range(150):
        stream = pair.client.start()
        pair.client.h2.send_data(stream, b"\0\0\1\0\0" + b"x" * 1000)
        pair.pump()
    assert 0 < len(looks) < 150
    assert pair.ledger.arriving_bytes <= 100_000
    assert pair.ledger.arriving_bytes == sum(
        each.reader.incomplete_bytes for each in pair.engine.streams.values()
    )


def test_accounts_of_addresses_that_left_are_forgotten():
    ledger = Ledger(Limits())
    for number in range(100):
        account = ledger.account(f"10.0.0.{number}")
        account.connections += 1
        account.connections -= 1
        ledger.tidy(account)
    assert ledger.addresses == 0


def test_a_victim_that_floods_already_hurts_nobody_else():
    limits = Limits(held_bytes_max=60_000, resets_max=1, resets_per_second=1e-9)
    victim, other = joined(limits, "10.0.0.1", "10.0.0.2")
    stream = victim.client.call(b"x")
    victim.pump()
    victim.engine.send_message(stream, b"y" * 30_000)  # its answer has begun, nobody reads it
    victim.engine._flooded("planted")
    victim.engine.events()
    for _ in range(3):
        other.client.call(b"x")
        other.pump()
    assert not other.engine.failed
    assert not victim.engine.failed
    assert [event.stream_id for event in of(victim.engine.events(), StreamReset)] == [stream]


def test_a_call_that_is_ended_while_it_opens_has_begun_before():
    limits = Limits(held_bytes_max=STREAM_BYTES // 2)
    (pair,) = joined(limits, "10.0.0.1")
    pair.client.call(b"x")
    events = pair.pump()
    assert [type(event) for event in events[:2]] == [RequestReceived, RequestFaulted]


def test_few_calls_are_ended_at_a_time_whatever_is_asked_for():
    limits = Limits(held_bytes_max=400 * STREAM_BYTES)
    (pair,) = joined(limits, "10.0.0.1")
    for _ in range(4):
        for _ in range(90):
            pair.client.call(b"x")
        pair.pump()
    pair.account.hold(300 * STREAM_BYTES)
    ended = len(of(pair.engine.events(), RequestFaulted))
    assert ended == 64
    pair.account.hold(1)
    assert len(of(pair.engine.events(), RequestFaulted)) == 64


def test_the_connections_of_a_proxy_pay_for_their_own_heads():
    networks = [ipaddress.ip_network("10.9.0.0/16")]
    ledger = Ledger(Limits(), networks)
    one, two = (Pair(Limits(), ledger=ledger, address="10.9.3.4") for _ in range(2))
    one.engine.heads.owe(0.0, 10 << 20)
    assert one.engine.heads.tokens < 0 < two.engine.heads.tokens


def test_a_debt_for_heads_is_not_left_behind_by_reconnecting():
    ledger = Ledger(Limits())
    account = ledger.account("10.0.0.1")
    account.heads.owe(0.0, 10 << 20)
    ledger.tidy(account)
    assert ledger.addresses == 0
    assert ledger.account("10.0.0.1").heads.tokens < 0
