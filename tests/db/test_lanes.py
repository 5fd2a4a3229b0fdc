"""Who goes first, who is not starved, and who is turned away."""

import ledger
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from globalstore.db import Lane, QueueFull, Store, limits
from globalstore.db.queues import ReadQueue, WriteQueue
from globalstore.db.ticket import State, Ticket


def _fill(queue, lane, number):
    for _ in range(number):
        queue.put(Ticket(ledger.nothing, (), lane))


def _lanes(batch):
    return [(lane, sum(t.lane is lane for t in batch)) for lane in Lane]


async def test_control_goes_before_normal_and_normal_before_bulk():
    queue = WriteQueue()
    for lane in (Lane.BULK, Lane.NORMAL, Lane.CONTROL, Lane.NORMAL, Lane.CONTROL):
        _fill(queue, lane, 1)
    batch = queue.take(lambda: None)
    assert [t.lane for t in batch] == [Lane.CONTROL, Lane.CONTROL, Lane.NORMAL, Lane.NORMAL]
    assert [t.lane for t in queue.take(lambda: None)] == [Lane.BULK]


async def test_a_flood_of_control_operations_leaves_a_quarter_to_normal_ones():
    queue = WriteQueue()
    _fill(queue, Lane.NORMAL, 100)
    _fill(queue, Lane.CONTROL, 1000)
    assert _lanes(queue.take(lambda: None)) == [
        (Lane.CONTROL, 192),
        (Lane.NORMAL, 64),
        (Lane.BULK, 0),
    ]


async def test_bulk_is_alone_and_gets_its_turn_under_constant_load():
    queue = WriteQueue()
    _fill(queue, Lane.BULK, 2)
    turns = []
    for turn in range(2 * (limits.BULK_PATIENCE_GROUPS + 1)):
        _fill(queue, Lane.CONTROL, 10)
        batch = queue.take(lambda: None)
        if batch[0].lane is Lane.BULK:
            assert len(batch) == 1
            turns.append(turn)
    assert turns == [limits.BULK_PATIENCE_GROUPS, 2 * limits.BULK_PATIENCE_GROUPS + 1]


async def test_normal_operations_leave_room_for_control_when_the_queue_is_full():
    queue = WriteQueue()
    _fill(queue, Lane.NORMAL, limits.WRITE_QUEUE_MAX - limits.CONTROL_QUEUE_RESERVE)
    for lane in (Lane.NORMAL, Lane.BULK):
        with pytest.raises(QueueFull):
            _fill(queue, lane, 1)
    _fill(queue, Lane.CONTROL, limits.CONTROL_QUEUE_RESERVE)
    with pytest.raises(QueueFull):
        _fill(queue, Lane.CONTROL, 1)
    queue.take(lambda: None)
    _fill(queue, Lane.CONTROL, 1)


async def test_waiting_bulk_operations_are_few():
    queue = WriteQueue()
    _fill(queue, Lane.BULK, limits.BULK_QUEUE_MAX)
    with pytest.raises(QueueFull):
        _fill(queue, Lane.BULK, 1)
    _fill(queue, Lane.NORMAL, 1)


async def test_a_full_read_queue_refuses():
    queue = ReadQueue()
    _fill(queue, Lane.NORMAL, limits.READ_QUEUE_MAX)
    with pytest.raises(QueueFull):
        _fill(queue, Lane.NORMAL, 1)


async def test_a_sleeper_is_woken_exactly_once():
    queue = WriteQueue()
    woken = []
    assert queue.take(lambda: woken.append("first")) == []
    assert queue.take(lambda: woken.append("second")) == []
    _fill(queue, Lane.NORMAL, 1)
    assert woken == ["second"]
    queue.close()
    assert woken == ["second", "first"]
    assert len(queue.take(lambda: woken.append("third"))) == 1
    assert queue.take(lambda: woken.append("third")) == []
    assert woken == ["second", "first"]


async def test_only_a_waiting_ticket_can_be_withdrawn():
    queue = WriteQueue()
    ticket = Ticket(ledger.nothing, (), Lane.NORMAL)
    queue.put(ticket)
    assert queue.withdraw(ticket)
    assert ticket.state is State.CANCELLED
    assert not queue.withdraw(ticket)
    other = Ticket(ledger.nothing, (), Lane.NORMAL)
    queue.put(other)
    assert queue.take(lambda: None) == [other]
    assert not queue.withdraw(other)


async def test_a_full_store_refuses_without_an_effect(gate, nursery):
    async with Store(None, migrations=ledger.MIGRATIONS, at_site=gate) as store:
        gate.shut()
        nursery.start_soon(store.write, ledger.add, "running")
        assert await trio.to_thread.run_sync(gate.reached.wait, 30)
        room = limits.WRITE_QUEUE_MAX - limits.CONTROL_QUEUE_RESERVE
        async with trio.open_nursery() as callers:
            for i in range(room):
                callers.start_soon(store.write, ledger.add, f"{i}")
            await wait_all_tasks_blocked()
            with pytest.raises(QueueFull, match="try again later"):
                await store.write(ledger.add, "too many")
            gate.open()
            assert await store.write(ledger.add, "control", lane=Lane.CONTROL) == "control"
        names = await store.read(ledger.names)
        assert len(names) == room + 2
        assert "too many" not in names


async def test_a_long_job_in_chunks_lets_others_in_between(new_store):
    order = []

    def add_chunk(tx, chunk, size):
        tx.many("INSERT INTO entry VALUES (?, ?)", [(name, size) for name in chunk])
        tx.emit(f"chunk {chunk[0]}")

    def chunks():
        for start in range(0, 5000, 1000):
            yield [f"{i:05}" for i in range(start, start + 1000)]

    async def others():
        for i in range(20):
            await store.write(ledger.add, f"other {i}")

    async with new_store(on_commit=order.extend) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            assert await store.bulk_chunks(add_chunk, chunks(), 7) == 5
        assert await store.read(ledger.count) == 5020
    at = [order.index(f"chunk {start:05}") for start in range(0, 5000, 1000)]
    assert at == sorted(at)
    assert at[-1] - at[0] > 4, "nobody got in between"


async def test_a_chunk_that_is_too_long_is_refused_and_earlier_ones_stay(new_store):
    def add_chunk(tx, chunk):
        tx.many("INSERT INTO entry VALUES (?, 0)", [(name,) for name in chunk])

    async with new_store() as store:
        with pytest.raises(ValueError, match="chunk 1 has 1001 rows, more than 1000"):
            await store.bulk_chunks(add_chunk, [["a"], [f"{i}" for i in range(1001)]])
        assert await store.read(ledger.names) == ["a"]
