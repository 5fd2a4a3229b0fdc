"""Which source is chosen (order LEGACY), and who gets it (first come, first served)."""

import random
from typing import Any

import attrs
import pytest
import trio
from claims import LOADS, OK, TIMED_OUT, parked, source, start, until
from servers import memory_info, serving

from globalstore.db import Runner, Store
from globalstore.registry import new_ids, worker_ids
from globalstore.registry.runtime import replicas, transports
from globalstore.registry.runtime.replica_places import MemoryTier, Place
from globalstore.registry.runtime.replicas import ReplicaRegistration
from globalstore.registry.runtime.transports import Granted, Miss, Round, TransportRequest
from globalstore.registry.schema import MIGRATIONS
from globalstore.rules.scoring import Mode, Scoring
from globalstore.rules.transfer import ExportState, Transfer

GPU, RAM, DISK = MemoryTier.GPU, MemoryTier.RAM, MemoryTier.DISK
LEGACY = Scoring(Mode.LEGACY)
READABLE = Transfer(ExportState.EXPORTABLE, 0, ("k",), (100,))


@attrs.define
class Candidate:
    """A source as the order sees it; ``number`` stands for its id."""

    number: int
    tier: MemoryTier = RAM
    load: int = 0
    limit: int = 4
    assigned: int = 0
    updated: int = 1

    @property
    def replica_id(self) -> bytes:
        return bytes(14) + self.number.to_bytes(2)

    def legacy(self) -> tuple[Any, ...]:
        ratio = self.load / max(1, self.limit)
        return (
            self.tier, ratio, self.load, -self.limit, self.assigned, self.updated, self.replica_id
        )  # fmt: skip


def registration(device: int, tier: MemoryTier, limit: int) -> ReplicaRegistration:
    return ReplicaRegistration(
        artifact_id="model",
        view_id="",
        place=Place("node", "host", 1, tier, device),
        memory_size=100,
        max_concurrency=limit,
        worker_id="w",
        transfer=READABLE,
        tensor_index_key="",
        is_memory_replica=False,
        source_process_id="",
        expires_at_us=None,
        description=None,
        index=None,
    )


def request(name: str) -> TransportRequest:
    return TransportRequest(
        artifact_id="model",
        view_id="",
        node_id="n",
        address="a",
        port=0,
        requester_worker_id="",
        request_id=name,
        fingerprint=b"f",
        group=None,
        transport_id=new_ids.new_id(),
    )


async def chosen(candidates: list[Candidate], claims: int, now_us: int = 1000) -> list[int | None]:
    """Return the numbers of the sources that so many claims get, one after the other."""
    found: list[int | None] = []
    async with Store(None, migrations=MIGRATIONS, runner=Runner.INLINE) as store:
        key = await store.write(worker_ids.intern, "w")
        for each in candidates:
            row = registration(each.number, each.tier, each.limit)
            await store.write(replicas.register_replica, row, each.replica_id, 1)
            state = attrs.asdict(each) | {"id": each.replica_id}
            await store.write(
                lambda tx, state: tx.run(
                    "UPDATE replicas SET current_requests = :load, last_assigned_at = :assigned,"
                    " updated_at = :updated WHERE replica_id = :id",
                    state,
                ),
                state,
            )
        for number in range(claims):
            asked_for = [request(f"r{number}")]
            round_ = Round(
                ranked=asked_for, newcomers=asked_for, routable=frozenset({key}), scoring=LEGACY
            )
            (answer,) = (await store.write(transports.grant, round_, now_us + number)).values()
            if isinstance(answer, Granted):
                assert answer.source is not None
                found.append(answer.source.place.device_id)
            else:
                assert answer is Miss.BUSY
                found.append(None)
    return found


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        # a faster tier always wins, however loaded
        (Candidate(9, GPU, load=3), Candidate(1, RAM)),
        (Candidate(9, RAM, load=3), Candidate(1, DISK)),
        # then the lower share of its limit, though its load is higher
        (Candidate(9, load=2, limit=8), Candidate(1, load=1, limit=3)),
        # then, at equal shares, the lower load
        (Candidate(9, load=1, limit=2), Candidate(1, load=2, limit=4)),
        # then the higher limit, which can only differ while both are idle
        (Candidate(9, limit=8), Candidate(1, limit=4)),
        # then the longest unused, never used before all
        (Candidate(9, assigned=0), Candidate(1, assigned=5)),
        (Candidate(9, assigned=5), Candidate(1, assigned=6)),
        # then the one that was not refreshed for longest, then the id
        (Candidate(9, updated=3), Candidate(1, updated=4)),
        (Candidate(1), Candidate(9)),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
async def test_each_criterion_decides_when_those_before_it_are_equal(
    better: Candidate, worse: Candidate, swapped: bool
) -> None:
    pair = [worse, better] if swapped else [better, worse]
    assert better.legacy() < worse.legacy()
    assert await chosen(pair, 1) == [better.number]


async def test_a_hand_made_sequence_of_claims() -> None:
    # Idle and equal but for the limit: 2 (limit 3), then 1 and 3 at 0/2; after that 2 has the
    # lowest share (1/3), then 1 and 3 (1/2), and 2 at 2/3 last. The GPU copy precedes them all.
    candidates = [
        Candidate(1, limit=2),
        Candidate(2, limit=3),
        Candidate(3, limit=2),
        Candidate(4, GPU, limit=1),
    ]
    assert await chosen(candidates, 9) == [4, 2, 1, 3, 2, 1, 3, 2, None]


@pytest.mark.parametrize("seed", range(8))
async def test_random_candidates_are_claimed_in_the_order_of_the_formula(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    candidates = []
    for number in rng.sample(range(1000), rng.randint(1, 40)):
        limit = rng.randint(1, 6)
        candidates.append(
            Candidate(
                number,
                rng.choice([GPU, RAM, DISK]),
                rng.randint(0, limit),
                limit,
                rng.choice([0, 5, 6]),
                rng.choice([1, 2]),
            )
        )
    claims = 30
    got = await chosen(candidates, claims)
    expected: list[int | None] = []
    for number in range(claims):
        free = [each for each in candidates if each.load < each.limit]
        if not free:
            expected.append(None)
            continue
        best = min(free, key=Candidate.legacy)
        best.load += 1
        best.assigned = 1000 + number
        expected.append(best.number)
    assert got == expected


async def test_a_source_is_found_behind_many_better_ones_whose_workers_are_silent() -> None:
    async with Store(None, migrations=MIGRATIONS, runner=Runner.INLINE) as store:
        key = await store.write(worker_ids.intern, "heard")
        for device in range(200):
            silent = registration(device, GPU, 9)
            await store.write(replicas.register_replica, silent, new_ids.new_id(), 1)
        live = attrs.evolve(registration(777, DISK, 1), worker_id="heard")
        await store.write(replicas.register_replica, live, new_ids.new_id(), 1)
        row = [request("r")]
        round_ = Round(ranked=row, newcomers=row, routable=frozenset({key}))
        (answer,) = (await store.write(transports.grant, round_, 5)).values()
        assert isinstance(answer, Granted)
        assert answer.source is not None
        assert answer.source.place.device_id == 777


async def test_an_idle_copy_in_memory_is_used_only_when_no_gpu_copy_is_free() -> None:
    async with serving() as store:
        worker = await source(store, slots=9)
        info = memory_info(memory_type=1, device_id=5)
        await store.replica(worker.worker_id, max_concurrency=2, mem_info=info)
        types = [(await store.claim()).remote_memory_info.memory_type for _ in range(3)]
        assert types == [info.memory_type, info.memory_type, memory_info().memory_type]


# Who


async def test_waiters_are_served_in_the_order_they_came() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        held = (await store.claim()).transport_id
        waiters = []
        for number in range(30):
            waiters.append(start(nursery, store))
            await parked(store, number + 1)
        for number, waiter in enumerate(waiters):
            await store.complete(held)
            answer = await waiter.result()
            assert answer.status == OK
            assert not any(later.ended.is_set() for later in waiters[number + 1 :])
            held = answer.transport_id


async def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        held = (await store.claim()).transport_id
        waiters = [start(nursery, store) for _ in range(20)]
        await parked(store, 20)
        for _ in range(20):
            # A slot comes free and a newcomer asks in the same instant.
            newcomers = [start(nursery, store, wait_s=0) for _ in range(2)]
            nursery.start_soon(store.complete, held)
            for newcomer in newcomers:
                assert await newcomer.status() == TIMED_OUT
            await until(store, lambda: any(w.ended.is_set() for w in waiters))
            served = [w for w in waiters if w.ended.is_set()]
            assert len(served) == 1
            held = served[0].answer.transport_id
            waiters.remove(served[0])
        assert await store.read(LOADS) == [(1,)]


async def test_a_saturated_artifact_holds_up_no_other_one() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        worker = await source(store)
        await store.claim()
        await store.replica(worker.worker_id, "other", max_concurrency=9)
        for _ in range(100):
            start(nursery, store)
        await parked(store, 100)
        for _ in range(9):
            assert (await store.claim("other")).status == OK
        nursery.cancel_scope.cancel()
