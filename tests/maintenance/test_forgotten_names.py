"""Names that nobody uses are forgotten when their table fills up, and no generation comes again."""

import random
from typing import Any

import attrs
import pytest
import trio.testing
from servers import Serving, configuration, memory_info, pass_time, serving, wall_of_trio

from globalstore.config.schema.limits import Rows
from globalstore.db import Runner, Store
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2 as tiers
from globalstore.registry import forgetting
from globalstore.registry.catalog import keys
from globalstore.registry.catalog.keys import Swap
from globalstore.registry.runtime import shard_leases
from globalstore.registry.schema import MIGRATIONS

HOUR_S = 3600


def limited(**rows: int) -> Any:
    """A configuration with bounds of rows, in which nothing is maintained unless a test does it."""
    policy = {"cleanup_interval": "1000000s", "group_realization": {"enabled": True}}
    return configuration(limits={"rows": rows}, worker_policy=policy)


async def acquire(store: Serving, shard: int, daemon: str = "d1", ttl_ms: int = 1) -> Any:
    return await store.runtime.AcquireShardHomeLease(
        wire.AcquireShardHomeLeaseRequest(shard_id=shard, holder_daemon_id=daemon, ttl_ms=ttl_ms)
    )


async def test_leases_of_a_millisecond_leave_nothing_for_good(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(limited(shard_leases=10)) as store:
        for shard in range(10):
            for _ in range(3):
                await acquire(store, shard, f"daemon {shard}")
                await pass_time(mock_clock, 0.25)
        held = await acquire(store, 3, "holder", ttl_ms=2 * HOUR_S * 1000)
        assert held.lease.lease_generation == 4
        await store.components.maintenance.run_pass()
        assert await store.read("SELECT count(*) FROM shard_leases") == [(10,)], "an hour"
        mock_clock.jump(HOUR_S)
        await pass_time(mock_clock, 1)
        await store.components.maintenance.run_pass()
        assert await store.read("SELECT shard_id FROM shard_leases") == [(3,)]
        assert await store.read("SELECT daemon_id FROM lease_holders") == [("holder",)]
        # Those that are new and those that were forgotten begin above all that were.
        for shard in (0, 77):
            assert (await acquire(store, shard)).lease.lease_generation == 4
        again = await acquire(store, 3, "holder", ttl_ms=HOUR_S)
        assert again.lease.lease_token == held.lease.lease_token


async def test_a_table_with_room_forgets_nothing(mock_clock: trio.testing.MockClock) -> None:
    async with serving(limited(shard_leases=10)) as store:
        for shard in range(5):
            await acquire(store, shard)
        mock_clock.jump(2 * HOUR_S)
        await pass_time(mock_clock, 1)
        await store.components.maintenance.run_pass()
        assert (await acquire(store, 0)).lease.lease_generation == 2
        assert (await acquire(store, 99)).lease.lease_generation == 1


async def test_a_daemon_without_a_lease_is_forgotten_at_once(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        for number in range(5):
            await acquire(store, 1, f"d{number}")
            await pass_time(mock_clock, 0.25)
        assert await store.read("SELECT daemon_id FROM lease_holders") == [("d4",)]
        last = await acquire(store, 1, "d5", ttl_ms=1000)
        await store.runtime.ReleaseShardHomeLease(
            wire.ReleaseShardHomeLeaseRequest(lease_token=last.lease.lease_token)
        )
        assert await store.read("SELECT * FROM lease_holders") == []


async def test_keys_that_point_at_nothing_are_forgotten(
    mock_clock: trio.testing.MockClock,
) -> None:
    wall = wall_of_trio()
    ahead_s = 0
    config = limited(key_mappings=4, endpoints=4, memory_tier_snapshots=4)
    async with serving(config, lambda: wall() + ahead_s * 1_000_000) as store:
        await store.components.store.write(
            lambda tx: tx.run(
                "INSERT INTO artifacts VALUES (1, 'cgid:one', 2, '', '', '', '', 0, 0, 0)"
            )
        )

        async def swap(key: str) -> int:
            request = wire.SwapKeyMappingRequest(key=key, new_artifact_id="cgid:one")
            return int((await store.catalog.SwapKeyMapping(request)).generation)

        assert [await swap(key) for key in ("a", "b", "c", "d")] == [0, 0, 0, 0]
        for key in ("a", "a", "b", "c"):
            await store.catalog.RevokeKeyMapping(wire.RevokeKeyMappingRequest(key=key))
            if key == "a":
                await swap(key)
        await store.catalog.RevokeKeyMapping(wire.RevokeKeyMappingRequest(key="a"))
        worker = await store.register()
        for device in range(4):
            info = memory_info(device_id=device, node_port=7000 + device)
            kept = await store.replica(worker.worker_id, mem_info=info)
            status = tiers.MemoryTierStatus(node_id=f"n{device}")
            await store.tiers.PublishMemoryTierStatus(
                tiers.PublishMemoryTierStatusRequest(status=status)
            )
            if device:
                gone = wire.UnregisterReplicaRequest(
                    artifact_id="model", replica_id=kept.replica_id
                )
                await store.runtime.UnregisterReplica(gone)
        ahead_s = 86_400 + HOUR_S
        # History and swaps go first, in the same pass.
        await store.components.maintenance.run_pass()
        assert await store.read("SELECT key FROM key_mappings") == [("d",)]
        assert await store.read("SELECT node_port FROM endpoints") == [(7000,)]
        assert await store.read("SELECT * FROM memory_tier_snapshots") == []
        assert [await swap(key) for key in ("a", "new", "d")] == [3, 3, 0]


def store_in_memory() -> Store:
    return Store(None, migrations=MIGRATIONS, runner=Runner.INLINE)


@attrs.define
class Clock:
    """A lease clock that a test moves."""

    now_us: int = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.now_us


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_is_forgotten_no_lease_has_a_generation_twice(seed: int) -> None:
    chance, clock = random.Random(seed), Clock()
    generations: dict[int, int] = {}
    tokens: dict[int, str] = {}
    async with store_in_memory() as store:
        for step in range(200):
            shard = chance.choice([-(2**63), -1, 0, 7, 2**63 - 1])
            ttl_us = chance.choice([1000, 10_000_000_000])
            match chance.choice(["acquire", "acquire", "release", "pass", "forget", "leave"]):
                case "acquire":
                    got = await store.write(
                        shard_leases.acquire,
                        shard, chance.choice("ab"), f"token {step}", ttl_us, clock,
                    )  # fmt: skip
                    if not got.held and got.lease.token == f"token {step}":
                        assert got.lease.generation > generations.get(shard, 0)
                        generations[shard], tokens[shard] = got.lease.generation, got.lease.token
                    assert got.lease.generation == generations[shard]
                case "release":
                    await store.write(shard_leases.release, tokens.get(shard, "none"), clock)
                case "leave":
                    await store.write(shard_leases.release_all, chance.choice("ab"))
                case "pass":
                    clock.now_us += chance.choice([1000, 3_600_000_001, 9_000_000_000])
                case _:
                    last = None
                    while True:
                        looked = await store.write(
                            forgetting.forget_shard_leases, last, 0, clock, chance.choice([1, 2, 9])
                        )
                        if (last := looked.last) is None:
                            break
            holders = await store.read(
                lambda tx: tx.all("SELECT holder_key FROM lease_holders ORDER BY holder_key")
            )
            named = await store.read(
                lambda tx: tx.all(
                    "SELECT DISTINCT holder_key FROM shard_leases WHERE holder_key IS NOT NULL"
                    " ORDER BY holder_key"
                )
            )
            assert holders == named


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_is_forgotten_a_generation_of_a_key_has_one_target(seed: int) -> None:
    chance, clock = random.Random(seed), Clock()
    targets: dict[tuple[str, int], str] = {}
    latest: dict[str, int] = {}
    async with store_in_memory() as store:
        for number in (1, 2):
            await store.write(
                lambda tx, number=number: tx.run(
                    "INSERT INTO artifacts VALUES (?, ?, 2, '', '', '', '', 0, 0, 0)",
                    (number, f"cgid:artifact{number}"),
                )
            )
        for _ in range(200):
            key = chance.choice("abc")
            match chance.choice(["swap", "swap", "revoke", "pass", "forget", "restore"]):
                case "swap":
                    wish = Swap(key, f"cgid:artifact{chance.choice([1, 2])}", "", None, "")
                    swapped = await store.write(keys.swap_key, wish, clock.now_us, clock)
                    named = targets.setdefault((key, swapped.generation), swapped.artifact_id)
                    assert named == swapped.artifact_id
                    assert swapped.generation >= latest.get(key, 0)
                    latest[key] = swapped.generation
                case "revoke":
                    await store.write(keys.revoke_key, key, clock.now_us, clock)
                case "pass":
                    clock.now_us += chance.choice([1000, 3_600_000_001])
                case "restore":
                    await store.write(keys.raise_generations, 10, clock.now_us)
                case _:
                    await store.write(keys.purge_history, clock.now_us - 1000, 100)
                    await store.write(forgetting.forget_keys, None, clock.now_us, clock, 100)


async def test_a_restored_copy_gives_keys_that_it_does_not_know_new_generations_too() -> None:
    clock = Clock()
    async with store_in_memory() as store:
        await store.write(
            lambda tx: tx.run(
                "INSERT INTO artifacts VALUES (1, 'cgid:artifact', 2, '', '', '', '', 0, 0, 0)"
            )
        )
        await store.write(keys.raise_generations, 1000, 1)
        swapped = await store.write(
            keys.swap_key, Swap("k", "cgid:artifact", "", None, ""), 1, clock
        )
        assert swapped.generation == 1000


def test_what_can_be_forgotten_has_a_bound() -> None:
    bounded = {field.name for field in attrs.fields(Rows)}
    assert {each.table for each in forgetting.FORGETTABLE} <= bounded
