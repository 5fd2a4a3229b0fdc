"""Many clients on one key at the same moment: one winner, and every loser is told the truth."""

import random
from collections import Counter
from typing import Any

import pytest
import trio
from key_calls import ERROR, OK, history, ready, resolve, revoke, swap, target, upsert
from linearizability import Operation, assert_linearizable
from servers import Serving, serving, serving_over_tcp

from globalstore.client.connection import connection
from globalstore.db import Runner
from globalstore.gen.tensorcast.global_store.v1 import global_store_grpc as services
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

CLIENTS = 40


async def at_once(calls: Any) -> list[Any]:
    """Make calls at the same moment; return their answers in the order of the calls."""
    answers: dict[int, Any] = {}

    async def one(number: int, call: Any) -> None:
        answers[number] = await call()

    async with trio.open_nursery() as nursery:
        for number, call in enumerate(calls):
            nursery.start_soon(one, number, call)
    return [answers[number] for number in sorted(answers)]


@pytest.mark.parametrize(
    "guard",
    [
        {"expected_generation": 0},
        {"expected_artifact_id": "start"},
        {"expected_artifact_id": "start", "expected_generation": 0},
    ],
    ids="+".join,
)
async def test_one_of_many_swaps_with_the_same_guard_wins(guard: dict[str, Any]) -> None:
    async with serving(runner=Runner.THREADS) as store:
        names = [f"a{number}" for number in range(CLIENTS)]
        await ready(store, "start", *names)
        await upsert(store, artifact_id="start")
        answers = await at_once(
            lambda name=name: swap(store, artifact_id=name, **guard) for name in names
        )
        assert Counter(answer.status for answer in answers) == {OK: 1, ERROR: CLIENTS - 1}
        winner = names[[answer.status for answer in answers].index(OK)]
        # The winner is told its own value, and so are all who lost against it.
        assert {(answer.artifact_id, answer.generation) for answer in answers} == {(winner, 1)}
        assert await target(store) == (winner, 1)


async def test_swaps_without_guards_all_win_in_generations_of_their_own() -> None:
    async with serving(runner=Runner.THREADS) as store:
        names = [f"a{number}" for number in range(CLIENTS)]
        await ready(store, *names)
        answers = await at_once(lambda name=name: swap(store, artifact_id=name) for name in names)
        assert all(answer.status == OK for answer in answers)
        won = sorted((answer.generation, answer.artifact_id) for answer in answers)
        assert [generation for generation, _ in won] == list(range(CLIENTS))
        assert await history(store) == won


async def test_one_of_many_upserts_of_a_new_key_decides_its_target() -> None:
    async with serving(runner=Runner.THREADS) as store:
        names = [f"a{number}" for number in range(CLIENTS)]
        await ready(store, *names)
        answers = await at_once(lambda name=name: upsert(store, artifact_id=name) for name in names)
        now = await target(store)
        assert now is not None
        for name, answer in zip(names, answers, strict=True):
            assert answer.status == (OK if name == now[0] else ERROR)
            assert (f" {now[0]};" in answer.conflict_reason) == (name != now[0])
        assert now[1] == 0


async def test_repeats_of_one_swap_at_once_are_one_swap() -> None:
    async with serving(runner=Runner.THREADS) as store:
        await ready(store, "a", "b")
        await upsert(store)
        answers = await at_once(
            [lambda: swap(store, expected_generation=0, operation_id="op")] * CLIENTS
        )
        assert {(a.status, a.artifact_id, a.generation) for a in answers} == {(OK, "b", 1)}


async def test_one_of_many_revocations_finds_the_key() -> None:
    async with serving(runner=Runner.THREADS) as store:
        await ready(store, "a")
        await upsert(store)
        statuses = await at_once([lambda: revoke(store)] * CLIENTS)
        assert Counter(statuses)[OK] == 1


def _step(state: Any, call: Operation) -> Any:
    """The states in which a call may leave a key; a state is (artifact id or "", last number)."""
    now, last = state
    what, *arguments = call.request
    if what == "resolve":
        expected = (now, last) if now else None
        return [state] if call.outcome == expected else []
    if what == "revoke":
        return [("", last)] if call.outcome == bool(now) else []
    name, guard = arguments
    if guard is not None and (not now or guard != last):
        return [state] if call.outcome == (ERROR, now, last if now else 0) else []
    number = last if name == now else last + 1
    return [(name, number)] if call.outcome == (OK, name, number) else []


async def _client(store: Serving, rng: random.Random, calls: list[Operation]) -> None:
    """Call at random over a connection of its own, and write down what came of it."""
    async with connection("127.0.0.1", store.info.listen_port) as channel:
        catalog = services.ArtifactCatalogServiceStub(channel)
        seen = 0
        for _ in range(12):
            choice = rng.random()
            began = trio.current_time()
            outcome: Any
            if choice < 0.5:
                request: Any = ("resolve",)
                answer = await catalog.ResolveKeyMapping(wire.ResolveKeyMappingRequest(key="k"))
                outcome = (answer.artifact_id, answer.generation) if answer.status == OK else None
                seen = answer.generation
            elif choice < 0.6:
                request = ("revoke",)
                answer = await catalog.RevokeKeyMapping(wire.RevokeKeyMappingRequest(key="k"))
                outcome = answer.status == OK
            else:
                name = rng.choice("abc")
                guard = seen if rng.random() < 0.6 else None
                request = ("swap", name, guard)
                answer = await catalog.SwapKeyMapping(
                    wire.SwapKeyMappingRequest(
                        key="k", new_artifact_id=name, expected_generation=guard
                    )
                )
                outcome = (answer.status, answer.artifact_id, answer.generation)
            calls.append(Operation(began, trio.current_time(), request, outcome))


async def test_concurrent_swaps_resolves_and_revocations_are_linearizable() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    async with serving_over_tcp() as store:
        await ready(store, "a", "b", "c")
        for round_number in range(5):
            calls: list[Operation] = []
            row = await store.read("SELECT generation FROM key_mappings")
            now = await target(store)
            start = (now[0] if now else "", row[0][0] if row else -1)
            async with trio.open_nursery() as nursery:
                for client in range(8):
                    rng = random.Random(f"{seed} {round_number} {client}")
                    nursery.start_soon(_client, store, rng, calls)
            assert_linearizable(calls, start, _step)


async def test_a_resolve_that_begins_after_a_swap_was_answered_sees_it() -> None:
    async with serving_over_tcp() as store:
        await ready(store, "a", "b")
        await upsert(store)
        done = trio.Event()
        floor = 0

        async def watch() -> None:
            while not done.is_set():
                least = floor
                answer = await resolve(store)
                assert answer.generation >= least
                assert answer.artifact_id == "ab"[answer.generation % 2]

        async with trio.open_nursery() as nursery:
            for _ in range(32):
                nursery.start_soon(watch)
            for number in range(1, 100):
                answer = await swap(store, artifact_id="ab"[number % 2])
                floor = answer.generation
            done.set()
        assert floor == 99
