"""What memory knows of sources may be a moment old, or a part of them; claims are right anyway."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
from servers import configuration, memory_info, serving

from globalstore.caches.sources import KnownSources
from globalstore.db import Runner, Store
from globalstore.registry import new_ids, signals, worker_ids
from globalstore.registry.runtime import replicas, sources, transport_ends, transports
from globalstore.registry.runtime.replica_places import MemoryTier, Place
from globalstore.registry.runtime.replicas import ReplicaRegistration
from globalstore.registry.runtime.sources import Shortlist, SourcesListed
from globalstore.registry.runtime.transports import Granted, Miss, Round, TransportRequest
from globalstore.registry.schema import MIGRATIONS
from globalstore.registry.signals import (
    GroupCounted,
    SourceFreed,
    SourcesFreed,
    TransportsForgotten,
    WorkerReplicasChanged,
)
from globalstore.rules.scoring import Candidate, GroupProgress, Mode, Scoring, Weights, WorkerLoad
from globalstore.rules.transfer import ExportState, Transfer

READABLE = Transfer(ExportState.EXPORTABLE, 0, ("k",), (100,))
SPACE = ("model", "")


@attrs.define
class Registry:
    """A database with one heard worker, and the events of its commits."""

    store: Store
    key: int
    events: list[Any]
    number: int = 0

    async def replica(self, device: int, slots: int = 1, worker: str = "w") -> bytes:
        registration = ReplicaRegistration(
            "model", "", Place("n", "h", 1, MemoryTier.RAM, device), 100, slots, worker,
            READABLE, "", False, "", None, None, None,
        )  # fmt: skip
        return await self.store.write(replicas.register_replica, registration, new_ids.new_id(), 1)

    async def listed(self) -> Shortlist:
        """Return what a pass would bring along if it had been listed now."""
        row = await self.store.read(lambda tx: tx.one("SELECT artifact_key FROM artifacts"))
        assert row is not None
        where: dict[str, object] = {"artifact_key": row[0], "view_id": "", "now": 1}
        return await self.store.read(sources.listed, where, frozenset({self.key}))

    async def claim(self, known: Shortlist | None, mode: Mode = Mode.LEGACY) -> Any:
        """Return the device that is granted, or why none is."""
        self.number += 1
        request = TransportRequest(
            "model", "", "n", "a", 0, "", f"r{self.number}", b"f", None, new_ids.new_id()
        )
        round_ = Round(
            ranked=[request],
            newcomers=[request],
            routable=frozenset({self.key}),
            scoring=Scoring(mode),
            shortlist=known,
        )
        self.events.clear()
        (answer,) = (await self.store.write(transports.grant, round_, self.number)).values()
        if isinstance(answer, Granted):
            assert answer.source is not None
            return answer.source.place.device_id
        return answer

    @property
    def was_read(self) -> bool:
        """Whether the last claim had to read the sources anew."""
        return any(isinstance(event, SourcesListed) for event in self.events)


@asynccontextmanager
async def registry() -> AsyncIterator[Registry]:
    committed: list[Any] = []
    async with Store(
        None, migrations=MIGRATIONS, runner=Runner.INLINE, on_commit=committed.extend
    ) as store:
        yield Registry(store, await store.write(worker_ids.intern, "w"), committed)


async def test_a_list_that_is_right_is_not_read_again() -> None:
    async with registry() as it:
        await it.replica(1)
        await it.replica(2, slots=2)
        assert await it.claim(await it.listed()) == 2
        assert not it.was_read


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE replicas SET current_requests = max_concurrency WHERE device_id = 1",
        "UPDATE replicas SET is_available = 0 WHERE device_id = 1",
        "UPDATE replicas SET export_state = 3 WHERE device_id = 1",
        "UPDATE replicas SET transfer_size = 7 WHERE device_id = 1",
        "UPDATE replicas SET expires_at = 1 WHERE device_id = 1",
        "UPDATE replicas SET confirmation = 0 WHERE device_id = 1",
        "UPDATE replicas SET worker_key = 0 WHERE device_id = 1",
        "DELETE FROM replicas WHERE device_id = 1",
    ],
)
@pytest.mark.parametrize("mode", Mode)
async def test_a_source_that_changed_since_it_was_listed_is_not_claimed(
    change: str, mode: Mode
) -> None:
    async with registry() as it:
        await it.replica(1, slots=4)
        await it.replica(2, slots=2)
        known = await it.listed()
        await it.store.write(lambda tx: tx.run(change))
        assert await it.claim(known, mode) == 2
        assert it.was_read
        counts = "SELECT count(*) FROM transports"
        assert await it.store.read(lambda tx: tx.all(counts)) == [(1,)]


async def test_all_of_a_worker_is_refused_once_it_has_gone() -> None:
    async with registry() as it:
        await it.replica(1)
        known = await it.listed()
        await it.store.write(worker_ids.hide_replicas, it.key)
        assert await it.claim(known) is Miss.BUSY


@pytest.mark.parametrize("listed", ["nothing", "one that is saturated"])
async def test_nobody_is_told_that_there_is_no_source_before_they_are_read(listed: str) -> None:
    async with registry() as it:
        await it.replica(1)
        known = await it.listed()
        if listed == "nothing":
            known = attrs.evolve(known, candidates=[], loads={})
        else:
            full = [row.with_load(1, 1) for row in known.candidates]
            known = attrs.evolve(known, candidates=full)
            await it.replica(2)
            await it.store.write(
                lambda tx: tx.run("UPDATE replicas SET current_requests = 1 WHERE device_id = 1")
            )
        assert await it.claim(known) == (1 if listed == "nothing" else 2)
        assert await it.claim(known) is Miss.BUSY


async def test_up_to_128_sources_are_all_listed_and_of_more_the_best() -> None:
    async with registry() as it:
        for device in range(128):
            await it.replica(device)
        assert (await it.listed()).is_complete
        for device in range(128, 140):
            await it.replica(device)
        loads = "UPDATE replicas SET max_concurrency = 4, last_assigned_at = 1000 - device_id"
        await it.store.write(lambda tx: tx.run(loads))
        busy = "UPDATE replicas SET current_requests = 1 WHERE device_id >= 137"
        await it.store.write(lambda tx: tx.run(busy))
        known = await it.listed()
        assert not known.is_complete
        # Idle ones before the three that are not, the least recently used first.
        assert [1000 - row.last_assigned_us for row in known.candidates] == [*range(136, 8, -1)]


async def test_sources_of_silent_workers_take_no_room_in_the_list() -> None:
    async with registry() as it:
        for device in range(300):
            await it.replica(device, slots=9, worker="silent")
        await it.replica(777)
        known = await it.listed()
        assert len(known.candidates) == 1
        assert await it.claim(known) == 777


# Memory.


def row(seq: int, worker: int = 1, load: int = 0) -> Candidate:
    return Candidate(1, load / 4, 0, load, -4, bytes([seq]), 1, worker, seq, None)


def shortlist(*rows: Candidate, complete: bool = True) -> Shortlist:
    workers = {each.worker_key for each in rows}
    loads = {worker: WorkerLoad.of(0, 8) for worker in workers}
    return Shortlist(sorted(rows), loads, complete)


def granted(seq: int, worker: int = 1, space: signals.Space = SPACE, **fields: Any) -> Any:
    values = {
        "transport_key": 1, "space": space, "group": None, "replica_id": bytes([seq]),
        "replica_seq": seq, "worker_key": worker, "created_us": 0, "is_first": False, "capped": 0,
        "at_us": 5,
    }  # fmt: skip
    return signals.TransportGranted(**values | fields)


def ended(seq: int | None, worker: int | None = 1, **fields: Any) -> Any:
    values = {
        "transport_key": 1, "space": SPACE, "group": None, "succeeded": False,
        "replica_seq": seq, "load": 0, "worker_key": worker, "at_us": 9,
    }  # fmt: skip
    return signals.TransportEnded(**values | fields)


def test_grants_and_ends_keep_the_list_and_the_loads_of_workers() -> None:
    known = KnownSources()
    known.listed(SourcesListed(SPACE, shortlist(row(1), row(2, worker=2))))
    known.granted(granted(1))
    found = known.shortlist(SPACE)
    assert found is not None
    assert [(each.seq, each.load, each.last_assigned_us) for each in found.candidates] == [
        (2, 0, 0),
        (1, 1, 5),
    ]
    assert found.loads == {1: WorkerLoad.of(1, 8), 2: WorkerLoad.of(0, 8)}
    known.ended(ended(1))
    found = known.shortlist(SPACE)
    assert found is not None
    assert found.loads[1] == WorkerLoad.of(0, 8)
    assert [(each.seq, each.load, each.last_assigned_us) for each in found.candidates] == [
        (2, 0, 0),
        (1, 0, 5),
    ]


def test_a_worker_that_serves_another_artifact_is_loaded_here_too() -> None:
    known, other = KnownSources(), ("other", "")
    known.listed(SourcesListed(SPACE, shortlist(row(1))))
    known.granted(granted(9, space=other))
    found = known.shortlist(SPACE)
    assert found is not None
    assert found.loads == {1: WorkerLoad.of(1, 8)}


def test_whatever_may_add_a_source_drops_its_list() -> None:
    known, other = KnownSources(), ("other", "")
    many = {("x", str(n)) for n in range(9)}

    def lists() -> None:
        known.listed(SourcesListed(SPACE, shortlist(row(1))))
        known.listed(SourcesListed(other, shortlist(row(2, worker=2))))

    for change, left in (
        (lambda: known.source_freed(SourceFreed(*SPACE)), {other}),
        (lambda: known.sources_freed(SourcesFreed({SPACE, ("x", "y")})), {other}),
        (lambda: known.sources_freed(SourcesFreed({SPACE} | many)), {other}),
        (lambda: known.replicas_changed(WorkerReplicasChanged(2)), {SPACE}),
        (known.worker_routable, set()),
        (lambda: known.ended(ended(77)), {other}),  # it was saturated when the list was made
        (lambda: known.ended(ended(None, None)), {SPACE, other}),  # it is gone
    ):
        lists()
        change()
        assert {space for space in (SPACE, other) if known.shortlist(space)} == left
    known.worker_routable()
    assert not known._loads
    assert not known._spaces


def test_a_list_of_a_part_is_made_anew_after_a_number_of_claims() -> None:
    known = KnownSources()
    known.listed(SourcesListed(SPACE, shortlist(*(row(n) for n in range(1, 100)), complete=False)))
    for number in range(1, 64):
        known.granted(granted(number))
        assert known.shortlist(SPACE) is not None
    known.granted(granted(64))
    assert known.shortlist(SPACE) is None


def test_what_is_known_is_bounded_and_the_least_used_goes_first() -> None:
    known = KnownSources()
    for number in range(256):
        space, rows = (f"a{number}", ""), shortlist(row(number % 200 + 1, worker=number))
        known.listed(SourcesListed(space, rows))
    assert known.shortlist(("a0", "")) is not None
    known.listed(SourcesListed(("one more", ""), shortlist(row(1))))
    assert known.shortlist(("a0", "")) is not None
    assert known.shortlist(("a1", "")) is None
    for number in range(1100):
        known.group_counted(GroupCounted(("k", f"g{number}", 0), GroupProgress()))
    assert len(known._groups) == 1024


def test_groups_are_counted_from_commits_and_read_again_when_rows_are_forgotten() -> None:
    known, key = KnownSources(), ("k", "g", 0)
    known.granted(granted(1, group=key))  # nobody has read it yet
    assert known.groups([key]) == {}
    known.group_counted(GroupCounted(key, GroupProgress({b"x": 2}, 2, 1, 3)))
    known.granted(granted(1, group=key))
    known.ended(ended(1, group=key))
    known.ended(ended(1, group=key, succeeded=True))
    assert known.groups([key]) == {key: GroupProgress({b"x": 2, b"\x01": 1}, 3, 2, 9)}
    known.transports_forgotten(TransportsForgotten())
    assert known.groups([key]) == {}


async def test_a_group_is_counted_from_its_rows() -> None:
    async with registry() as it:
        first, second = await it.replica(1, slots=9), await it.replica(2, slots=1)
        group = transports.RequestGroup("k", "g", 7, "p0", 9, 0)
        for number in range(4):
            request = TransportRequest(
                "model", "", "n", "a", 0, "", f"r{number}", b"f",
                attrs.evolve(group, part_id=f"p{number}"), new_ids.new_id(),
            )  # fmt: skip
            round_ = Round(
                ranked=[request],
                newcomers=[request],
                routable=frozenset({it.key}),
                scoring=Scoring(Mode.LEGACY),
            )
            (answer,) = (await it.store.write(transports.grant, round_, 10)).values()
            outcome = transport_ends.Outcome(number % 3)
            if outcome:
                await it.store.write(
                    transport_ends.complete, answer.transport_id, outcome, "", 20 + number
                )
        it.events.clear()
        await it.store.write(transports.count_groups, [group.key, ("k", "none", 0)])
        counted = {event.group: event.progress for event in it.events}
        progress = counted[group.key]
        assert set(progress.granted) <= {first, second}
        assert (progress.total, progress.succeeded, progress.last_success_us) == (4, 1, 21)
        assert counted["k", "none", 0] == GroupProgress()


# All of it together.


async def test_the_load_of_a_worker_counts_what_it_serves_of_other_artifacts() -> None:
    weights = {"recent_assignment_penalty_weight": 0, "diffusion_bonus_weight": 0}
    scheduler = {"mode": "SOURCE_BALANCE", "source_balance_weights": weights}
    config = configuration(worker_policy={"transport_scheduler": scheduler})
    async with serving(config) as store:
        for daemon in ("d1", "d2"):
            worker = (await store.register(daemon)).worker_id
            await store.replica(worker, node=daemon, max_concurrency=8 if daemon == "d1" else 7)
        # Idle and equal but for the limit: d1 comes first, until it serves something else.
        first = await store.claim()
        assert first.remote_memory_info.node_id == "node-d1"
        await store.complete(first.transport_id)
        other = memory_info("d1", device_id=5)
        workers = {each.daemon_id: each.worker_id for each in await store.active()}
        await store.replica(workers["d1"], "other", mem_info=other)
        held = await store.claim("other")
        found = [(await store.claim()) for _ in range(1)]
        assert found[0].remote_memory_info.node_id == "node-d2"
        await store.complete(found[0].transport_id)
        await store.complete(held.transport_id)
        assert (await store.claim()).remote_memory_info.node_id == "node-d1"


async def test_claims_bring_the_list_along_and_completions_keep_it() -> None:
    async with serving() as store:
        worker = (await store.register()).worker_id
        for device in range(3):
            await store.replica(worker, mem_info=memory_info(device_id=device), max_concurrency=3)
        known = store.components.sources
        reads: list[object] = []
        store.components.followers[SourcesListed] = (reads.append, known.listed)
        for _ in range(30):
            held = [await store.claim() for _ in range(5)]
            for each in held:
                await store.complete(each.transport_id)
        assert len(reads) == 1
        loads = "SELECT current_requests, last_assigned_at FROM replicas ORDER BY seq"
        found = known.shortlist(SPACE)
        assert found is not None
        assert sorted((row.seq, row.load, row.last_assigned_us) for row in found.candidates) == [
            (seq, *row) for seq, row in enumerate(await store.read(loads), start=1)
        ]


async def test_the_parts_of_a_group_are_spread_also_within_one_pass() -> None:
    async with registry() as it:
        for device in range(3):
            await it.replica(device, slots=9)
        group = transports.RequestGroup("k", "g", 0, "p", 12, 0)
        waiting = [
            TransportRequest(
                "model", "", "n", "a", 0, "", f"r{n}", b"f", attrs.evolve(group, part_id=f"p{n}"),
                new_ids.new_id(),
            )
            for n in range(12)
        ]  # fmt: skip
        # Without its spread the pass would fill the one that can do most.
        await it.replica(3, slots=1000)
        round_ = Round(
            ranked=waiting,
            newcomers=waiting,
            routable=frozenset({it.key}),
            scoring=Scoring(weights=Weights(1, 0, 0, 0)),
            groups={group.key: GroupProgress()},
        )
        answers = await it.store.write(transports.grant, round_, 10)
        devices = [answers[each.request_id].source.place.device_id for each in waiting]
        assert sorted(devices) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


async def test_a_pass_grants_no_more_than_its_batch_and_says_nothing_of_the_rest() -> None:
    async with registry() as it:
        await it.replica(1, slots=9)
        waiting = [
            TransportRequest("model", "", "n", "a", 0, "", f"r{n}", b"f", None, new_ids.new_id())
            for n in range(5)
        ]
        round_ = Round(
            ranked=waiting[:4],
            newcomers=waiting[3:],
            routable=frozenset({it.key}),
            grants_max=2,
        )
        answers = await it.store.write(transports.grant, round_, 10)
        assert set(answers) == {"r0", "r1"}
        loads = "SELECT current_requests FROM replicas"
        assert await it.store.read(lambda tx: tx.all(loads)) == [(2,)]
