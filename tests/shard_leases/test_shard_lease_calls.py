"""Acquire, keepalive, release and reads: what each answers in each state of a lease."""

import re

import pytest
import trio.testing
from purerpc import StatusCode
from servers import pass_time, refused, serving
from shard_lease_calls import (
    LAST_SHARD,
    acquire,
    facts,
    get,
    get_all,
    keep,
    keep_all,
    release,
    until_us,
)
from simulated_host import EPOCH_US

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire


def still() -> int:
    """A wall clock that stands still."""
    return EPOCH_US


async def test_a_lease_goes_through_its_life_as_the_contract_tells_it(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        a = await acquire(store, daemon="A")
        assert a.acquired
        assert facts(a.lease)[:2] == ("A", 1)
        mock_clock.jump(0.2)
        refused_b = await acquire(store, daemon="B")
        assert not refused_b.acquired
        assert facts(refused_b.lease) == ("A", 1, "")
        assert until_us(refused_b.lease) == until_us(a.lease)
        await pass_time(mock_clock, 0.7)
        kept = await keep(store, a.lease.lease_token)
        assert until_us(kept) - until_us(a.lease) == 900_000
        assert facts(kept) == facts(a.lease)
        await pass_time(mock_clock, 1.1)
        async with refused(StatusCode.NOT_FOUND, "7"):
            await get(store)
        async with refused(StatusCode.NOT_FOUND):
            await keep(store, a.lease.lease_token)
        b = await acquire(store, daemon="B")
        assert b.acquired
        assert facts(b.lease)[:2] == ("B", 2)
        assert b.lease.lease_token != a.lease.lease_token
        assert not await release(store, a.lease.lease_token)
        (late,) = await keep_all(store, (7, 1, a.lease.lease_token))
        assert not late.ok
        assert facts(await keep(store, b.lease.lease_token)) == facts(b.lease)
        assert await release(store, b.lease.lease_token)
        assert facts((await acquire(store, daemon="A")).lease)[:2] == ("A", 3)


@pytest.mark.parametrize("shard", [0, 1, 2**63 - 1, 2**63, LAST_SHARD])
async def test_every_number_is_a_shard(shard: int) -> None:
    async with serving() as store:
        lease = (await acquire(store, shard)).lease
        assert lease.shard_id == shard
        assert (await get(store, shard)).shard_id == shard
        (route,) = await get_all(store, shard)
        assert (route.shard_id, route.holder_daemon_id) == (shard, "a")
        (kept,) = await keep_all(store, (shard, 1, lease.lease_token))
        assert (kept.ok, kept.shard_id, kept.lease.shard_id) == (True, shard, shard)


async def test_a_token_is_32_hex_digits_and_new_with_every_ownership() -> None:
    async with serving() as store:
        tokens = []
        for _ in range(20):
            lease = (await acquire(store)).lease
            assert re.fullmatch(r"[0-9a-f]{32}", lease.lease_token)
            assert await release(store, lease.lease_token)
            tokens.append(lease.lease_token)
        assert len(set(tokens)) == 20


async def test_the_holder_gets_the_same_lease_again_with_a_new_lifetime(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(wall=still) as store:
        first = await acquire(store, ttl_ms=1000)
        assert until_us(first.lease) == EPOCH_US + 1_000_000
        mock_clock.jump(0.2)
        longer = await acquire(store, daemon=" a ", ttl_ms=5000)
        assert facts(longer.lease) == facts(first.lease)
        assert until_us(longer.lease) == EPOCH_US + 5_200_000
        shorter = await acquire(store, ttl_ms=300)
        assert facts(shorter.lease) == facts(first.lease)
        assert until_us(shorter.lease) == EPOCH_US + 500_000
        mock_clock.jump(0.3)
        assert (await acquire(store, daemon="b")).acquired


@pytest.mark.parametrize("ended", ["expired", "released"])
@pytest.mark.parametrize("daemon", ["a", "b"])
async def test_a_lease_that_has_ended_gets_the_next_generation(
    ended: str, daemon: str, mock_clock: trio.testing.MockClock
) -> None:
    async with serving() as store:
        first = (await acquire(store)).lease
        if ended == "expired":
            await pass_time(mock_clock, 1.0)
        else:
            await release(store, first.lease_token)
        second = await acquire(store, daemon=daemon)
        assert second.acquired
        assert facts(second.lease)[:2] == (daemon, 2)
        assert second.lease.lease_token != first.lease_token


async def test_a_lease_ends_at_its_deadline_and_not_a_microsecond_before(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        await acquire(store, ttl_ms=400)
        mock_clock.jump(0.399_998)
        assert (await get(store)).holder_daemon_id == "a"
        assert not (await acquire(store, daemon="b")).acquired
        mock_clock.jump(0.000_002)
        async with refused(StatusCode.NOT_FOUND):
            await get(store)
        assert (await acquire(store, daemon="b")).acquired


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"daemon": " "}, "holder_daemon_id"),
        ({"ttl_ms": 0}, "ttl_ms"),
        ({"daemon": "a\nb"}, "holder_daemon_id"),
        ({"daemon": "x" * 1025}, "holder_daemon_id"),
    ],
)
async def test_acquire_names_the_field_that_is_wrong(fields: dict[str, object], says: str) -> None:
    async with serving() as store:
        async with refused(StatusCode.INVALID_ARGUMENT, says):
            await acquire(store, **fields)  # type: ignore[arg-type]
        assert await store.read("SELECT count(*) FROM shard_leases") == [(0,)]
        assert await store.read("SELECT count(*) FROM lease_holders") == [(0,)]


async def test_the_other_calls_name_the_field_that_is_wrong() -> None:
    async with serving() as store:
        token = (await acquire(store)).lease.lease_token
        for call, says in (
            (keep(store, " "), "lease_token"),
            (keep(store, token, ttl_ms=0), "ttl_ms"),
            (keep_all(store, (7, 1, token), ttl_ms=0), "ttl_ms"),
            (keep_all(store, ttl_ms=0), "ttl_ms"),
            (release(store, "  "), "lease_token"),
            (get_all(store, *range(10_001)), "shard_ids has 10001 entries"),
            (keep_all(store, *[(7, 1, token)] * 10_001), "leases has 10001 entries"),
        ):
            async with refused(StatusCode.INVALID_ARGUMENT, says):
                await call


@pytest.mark.parametrize("ttl_ms", [86_400_001, 2**63, 2**64 - 1])
async def test_a_lifetime_is_cut_to_the_longest_allowed(ttl_ms: int) -> None:
    async with serving(wall=still) as store:
        lease = (await acquire(store, ttl_ms=ttl_ms)).lease
        day = 86_400_000_000
        assert day <= until_us(lease) - EPOCH_US < day + 60_000_000
        kept = await keep(store, lease.lease_token, ttl_ms=ttl_ms)
        assert day <= until_us(kept) - EPOCH_US < day + 60_000_000


@pytest.mark.parametrize("token", ["unknown", "0" * 32, "Ä", "released", "upper", "late"])
async def test_a_token_without_a_live_lease_extends_nothing(
    token: str, mock_clock: trio.testing.MockClock
) -> None:
    async with serving() as store:
        lease = (await acquire(store)).lease
        if token == "released":
            token = (await acquire(store, 8)).lease.lease_token
            await release(store, token)
        elif token == "upper":
            token = lease.lease_token.upper() + "F"
        elif token == "late":
            token = lease.lease_token
            await pass_time(mock_clock, 1.0)
        before = await store.read("SELECT * FROM shard_leases")
        async with refused(StatusCode.NOT_FOUND, "acquire"):
            await keep(store, token)
        (outcome,) = await keep_all(store, (7, 1, token))
        assert (outcome.ok, outcome.HasField("lease")) == (False, False)
        assert outcome.message
        assert await store.read("SELECT * FROM shard_leases") == before


async def test_a_batch_extends_each_entry_for_itself(mock_clock: trio.testing.MockClock) -> None:
    async with serving() as store:
        leases = [(await acquire(store, shard)).lease for shard in range(6)]
        tokens = [lease.lease_token for lease in leases]
        await release(store, tokens[4])
        mock_clock.jump(0.2)
        outcomes = await keep_all(
            store,
            (0, 1, tokens[0]),
            (1, 1, "  "),
            (2, 1, "unknown"),
            (4, 1, tokens[4]),
            (3, 2, tokens[3]),
            (9, 1, tokens[5]),
            (0, 1, f" {tokens[0]} "),
            (2, 1, tokens[0]),
        )
        assert [each.ok for each in outcomes] == [
            *(True, False, False, False, False, False, True, False)
        ]
        for outcome, says in zip(
            outcomes[1:6], ("required", "acquire", "acquire", "stale", "stale"), strict=True
        ):
            assert says in outcome.message
            assert not outcome.HasField("lease")
        assert "stale" in outcomes[7].message
        assert facts(outcomes[0].lease) == facts(leases[0])
        assert outcomes[0].message == ""
        assert [(o.shard_id, o.lease_generation, o.lease_token) for o in outcomes[:2]] == [
            (0, 1, tokens[0]),
            (1, 1, "  "),
        ]
        assert outcomes[6].lease_token == f" {tokens[0]} "
        routes = {r.shard_id: until_us(r) for r in await get_all(store, *range(6))}
        extended = until_us(leases[0]) + 200_000
        assert routes == {
            0: extended,
            **{n: until_us(leases[n]) for n in (1, 2, 3, 5)},
        }


async def test_a_batch_may_hold_leases_of_several_daemons_and_shorten_them(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(wall=still) as store:
        leases = [
            (await acquire(store, shard, daemon, ttl_ms=ttl_ms)).lease
            for shard, daemon, ttl_ms in ((1, "a", 9000), (2, "b", 100), (3, "a", 100))
        ]
        entries = [(lease.shard_id, 1, lease.lease_token) for lease in leases]
        outcomes = await keep_all(store, *entries, ttl_ms=500)
        assert [(o.ok, o.lease.holder_daemon_id) for o in outcomes] == [
            *((True, "a"), (True, "b"), (True, "a"))
        ]
        assert {until_us(o.lease) for o in outcomes} == {EPOCH_US + 500_000}
        assert {until_us(r) for r in await get_all(store, 1, 2, 3)} == {EPOCH_US + 500_000}
        mock_clock.jump(0.5)
        assert await get_all(store, 1, 2, 3) == []
        assert not any(o.ok for o in await keep_all(store, *entries))


async def test_a_batch_after_a_goodbye_extends_nothing() -> None:
    async with serving() as store:
        worker = await store.register("a")
        entries = [(n, 1, (await acquire(store, n, "a")).lease.lease_token) for n in range(3)]
        assert all(o.ok for o in await keep_all(store, *entries))
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=worker.worker_id, is_graceful_shutdown=True)
        )
        assert not any(o.ok for o in await keep_all(store, *entries))
        assert await get_all(store, 0, 1, 2) == []


async def test_a_batch_of_nothing_is_answered_with_nothing() -> None:
    async with serving() as store:
        assert await keep_all(store) == []
        assert await get_all(store) == []


async def test_a_batch_of_thousands_is_one_commit_and_one_instant() -> None:
    async with serving() as store:
        entries = [
            (n, 1, (await acquire(store, n, ttl_ms=60_000)).lease.lease_token) for n in range(1200)
        ]
        groups = store.components.store.statistics().groups
        outcomes = await keep_all(store, *reversed(entries), ttl_ms=90_000)
        assert store.components.store.statistics().groups == groups + 1
        assert all(each.ok for each in outcomes)
        assert [each.shard_id for each in outcomes] == list(reversed(range(1200)))
        assert len({until_us(each.lease) for each in outcomes}) == 1
        routes = await get_all(store, *range(1200), *range(5))
        assert [route.shard_id for route in routes] == list(range(1200))


async def test_releasing_frees_a_shard_and_doing_it_again_disturbs_nobody(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        first = (await acquire(store)).lease
        assert await release(store, f" {first.lease_token} ")
        assert not await release(store, first.lease_token)
        async with refused(StatusCode.NOT_FOUND):
            await get(store)
        second = (await acquire(store, daemon="b")).lease
        assert not await release(store, first.lease_token)
        assert not await release(store, "unknown")
        assert (await get(store)).holder_daemon_id == "b"
        # Expired and not yet taken over: it can still be released, once.
        await pass_time(mock_clock, 1.5)
        assert await release(store, second.lease_token)
        assert not await release(store, second.lease_token)
        assert facts((await acquire(store, daemon="c")).lease)[:2] == ("c", 3)


async def test_reads_tell_live_leases_without_tokens_in_the_order_of_the_request(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        leases = {
            n: (await acquire(store, n, ttl_ms=400 if n == 3 else 5000)).lease for n in (1, 2, 3)
        }
        await release(store, leases[2].lease_token)
        mock_clock.jump(0.4)
        found = await get_all(store, 3, 9, 1, 2, 1, LAST_SHARD)
        assert [route.shard_id for route in found] == [1]
        (route,) = found
        assert (route.holder_daemon_id, route.lease_generation) == ("a", 1)
        assert until_us(route) == until_us(leases[1])
        assert "lease_token" not in route.DESCRIPTOR.fields_by_name
        before = await store.read("SELECT * FROM shard_leases")
        await get(store, 1)
        assert await store.read("SELECT * FROM shard_leases") == before


async def test_nobody_sees_the_token_of_another(mock_clock: trio.testing.MockClock) -> None:
    async with serving() as store:
        token = (await acquire(store)).lease.lease_token
        answers = [
            await acquire(store, daemon="b"),
            await get(store),
            *await get_all(store, 7),
            *await keep_all(store, (7, 1, "guess")),
        ]
        assert all(token not in str(each) for each in answers)
