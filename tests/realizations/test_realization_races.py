"""Many clients on one slot at the same moment: one story, and everybody is told it."""

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
from purerpc import RpcFailedError, StatusCode
from realization_calls import (
    ABORTED,
    EXPLICIT,
    PUBLISHED,
    abort,
    begun,
    by_selection,
    join,
    on,
    publish,
    published,
    report,
    selection,
    show,
    wait,
)
from servers import configuration, serving

from globalstore.db import Runner
from globalstore.registry.catalog.realization_rows import RealizationState
from globalstore.registry.signals import RealizationEnded
from globalstore.waiting.realizations import RealizationWaiters

CLIENTS = 40
FAILED, EXISTS = StatusCode.FAILED_PRECONDITION, StatusCode.ALREADY_EXISTS

Outcome = Any


async def at_once(calls: Iterable[Callable[[], Awaitable[Any]]]) -> list[Outcome]:
    """Make calls at the same moment; return the answer of each, or the code of its refusal."""
    outcomes: dict[int, Outcome] = {}

    async def one(number: int, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            outcomes[number] = await call()
        except RpcFailedError as error:
            outcomes[number] = error.status.status_code

    async with trio.open_nursery() as nursery:
        for number, call in enumerate(calls):
            nursery.start_soon(one, number, call)
    return [outcomes[number] for number in sorted(outcomes)]


async def test_one_of_many_versions_is_frozen_and_the_others_are_told_of_it() -> None:
    async with serving(on(), runner=Runner.THREADS) as store:
        names = [f"artifact-{number % 8}" for number in range(CLIENTS)]
        random.shuffle(names)
        outcomes = await at_once(
            lambda name=name: join(store, version=by_selection(selection(name))) for name in names
        )
        [(set_key,)] = await store.read("SELECT version_set_key FROM group_transactions")
        [(frozen,)] = await store.read("SELECT artifact_id FROM selections")
        assert set_key == 1, "losers leave no version set behind"
        for name, outcome in zip(names, outcomes, strict=True):
            if name == frozen:
                assert outcome.part.selection.artifact_id == frozen
            else:
                assert outcome is EXISTS


async def test_all_parts_that_begin_at_once_are_in_one_realization() -> None:
    parts = [f"{number:02}" for number in range(CLIENTS)]
    async with serving(on(), runner=Runner.THREADS) as store:
        outcomes = await at_once(lambda each=each: join(store, each, parts=parts) for each in parts)
        assert len({outcome.transaction_id for outcome in outcomes}) == 1
        shown = await show(store, outcomes[0].transaction_id)
        assert [member.part_id for member in shown.members] == parts


async def test_one_of_many_daemons_gets_a_part() -> None:
    async with serving(on(), runner=Runner.THREADS) as store:
        daemons = [f"d{number}" for number in range(CLIENTS)]
        outcomes = await at_once(lambda each=each: join(store, daemon_id=each) for each in daemons)
        answers = [outcome for outcome in outcomes if outcome is not EXISTS]
        assert len(answers) == 1
        [member] = (await show(store, answers[0].transaction_id)).members
        assert member.daemon_id == daemons[outcomes.index(answers[0])]


async def test_exactly_one_report_of_many_completes_the_realization() -> None:
    parts = [f"{number:02}" for number in range(CLIENTS)]
    async with serving(on(), runner=Runner.THREADS) as store:
        outcomes = await at_once(lambda each=each: join(store, each, parts=parts) for each in parts)
        transaction_id = outcomes[0].transaction_id
        outcomes = await at_once(
            lambda each=each: report(store, transaction_id, each) for each in parts
        )
        assert Counter(outcome.state == PUBLISHED for outcome in outcomes)[True] == 1
        shown = await show(store, transaction_id)
        assert (shown.state, shown.published_count) == (PUBLISHED, CLIENTS)


async def test_of_many_reports_of_one_part_one_value_is_kept() -> None:
    async with serving(on(), runner=Runner.THREADS) as store:
        transaction_id = await begun(store)
        values = [f"v{number % 6}" for number in range(CLIENTS)]
        outcomes = await at_once(
            lambda each=each: report(store, transaction_id, staged={"binding_value_id": each})
            for each in values
        )
        [member, _] = (await show(store, transaction_id)).members
        kept = member.staged_value.binding_value_id
        for value, outcome in zip(values, outcomes, strict=True):
            if value == kept:
                assert outcome.member_fingerprint == member.member_fingerprint
            else:
                assert outcome is EXISTS


@pytest.mark.parametrize("attempt", range(4))
async def test_publications_and_abortions_agree_on_one_end(attempt: int, tmp_path: Path) -> None:
    def filed(**policy: Any) -> Any:
        return configuration(
            database={"db_file": str(tmp_path / "store.db")},
            worker_policy={"group_realization": {"enabled": True} | policy},
        )

    async with serving(filed(publish_authority_mode=EXPLICIT), runner=Runner.THREADS) as store:
        transaction_id = await published(store)
    async with serving(filed(), runner=Runner.THREADS) as store:
        calls: list[Any] = [lambda: publish(store, transaction_id)] * (CLIENTS // 2)
        calls += [
            lambda number=number: abort(store, transaction_id, failure_code=f"code-{number}")
            for number in range(CLIENTS // 2)
        ]
        calls += [lambda: wait(store, transaction_id, 30)] * CLIENTS
        random.shuffle(calls)
        outcomes = await at_once(calls)
        end = (await show(store, transaction_id)).state
        for outcome in outcomes:
            if isinstance(outcome, tuple):
                assert outcome[1] == end
            elif outcome is not FAILED:
                assert outcome.state == end
        answered = [outcome for outcome in outcomes if not isinstance(outcome, tuple)]
        # All of one kind succeed, all of the other are refused.
        assert Counter(outcome is FAILED for outcome in answered) == {True: 20, False: 20}
        assert end in {PUBLISHED, ABORTED}


@pytest.mark.parametrize("attempt", range(5))
async def test_reports_and_an_abortion_agree_on_one_end(attempt: int) -> None:
    parts = [f"{number:02}" for number in range(CLIENTS)]
    async with serving(on(), runner=Runner.THREADS) as store:
        joins = await at_once(lambda each=each: join(store, each, parts=parts) for each in parts)
        transaction_id = joins[0].transaction_id
        calls: list[Any] = [lambda each=each: report(store, transaction_id, each) for each in parts]
        calls.insert(random.randrange(CLIENTS + 1), lambda: abort(store, transaction_id))
        outcomes = await at_once(calls)
        shown = await show(store, transaction_id)
        refusals = sum(outcome is FAILED for outcome in outcomes)
        if shown.state == PUBLISHED:
            assert refusals == 1, "the abortion came too late"
            assert shown.published_count == CLIENTS
        else:
            assert shown.state == ABORTED
            [(prepared,)] = await store.read("SELECT prepared_count FROM group_transactions")
            assert refusals == CLIENTS - prepared
            assert shown.published_count == 0


# The wake-up of many.


class Passes(trio.abc.Instrument):
    """Counts how often the event loop has gone round."""

    count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_a_publication_wakes_a_thousand_waiters_in_one_pass_and_without_the_database() -> (
    None
):
    async with serving(on()) as store:
        transaction_id = await begun(store)
        fingerprint = bytes.fromhex(transaction_id.removeprefix("grt_"))
        waiters, woken = store.components.realization_waiters, []
        passes, ended_in = Passes(), []

        async def one() -> None:
            with waiters.waiting(fingerprint) as waiter:
                await waiter.ended.wait()
                woken.append((passes.count, waiter.state))

        def note_the_pass(_: RealizationEnded) -> None:
            ended_in.append(passes.count)

        store.components.followers[RealizationEnded] = (note_the_pass, waiters.ended)
        trio.lowlevel.add_instrument(passes)
        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
            queries = store.components.store.statistics()
            for part_id in "01":
                await report(store, transaction_id, part_id)
        trio.lowlevel.remove_instrument(passes)
        after = store.components.store.statistics()
        assert (after.queries, after.operations) == (queries.queries, queries.operations + 2)
        assert len(ended_in) == 1
        assert woken == [(ended_in[0] + 1, RealizationState.PUBLISHED)] * 1000


async def test_who_comes_after_the_end_waits_for_another_one() -> None:
    counts: list[int] = []
    waiters = RealizationWaiters(10, counts.append)
    with waiters.waiting(b"a") as first:
        waiters.ended(RealizationEnded(b"a", 5))
        with waiters.waiting(b"a") as second:
            assert (first.state, second.state) == (5, None)
            assert repr(waiters) == "<RealizationWaiters [waiters: 2]>"
        waiters.ended(RealizationEnded(b"b", 6))
    assert repr(waiters) == "<RealizationWaiters [waiters: 0]>"
    assert counts == [1, 2, 1, 0]
