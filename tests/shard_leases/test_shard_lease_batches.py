"""A batch of keepalives, in one statement for most, does what the rules say of each entry."""

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from globalstore.db import Runner, Store, Transaction
from globalstore.registry.runtime import shard_leases
from globalstore.registry.runtime.shard_leases import Renewal, RenewalRefusal
from globalstore.registry.schema import MIGRATIONS
from globalstore.rules.fencing import Application, Lease, Proof, Verdict, decide

NOW = 1000
TTL = 50
LEASES = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 100)), min_size=1, max_size=8)
ENTRIES = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 2)), min_size=1, max_size=12
)


def outcome(leases: list[Lease], renewal: Renewal) -> str | RenewalRefusal:
    """Return what the rules say of one entry, and extend the lease if they do."""
    if not renewal.token:
        return RenewalRefusal.NO_TOKEN
    shard = int(renewal.token[1:])
    if shard >= len(leases):
        return RenewalRefusal.UNKNOWN
    proof = Proof(renewal.token, renewal.generation)
    decision = decide(leases[shard], proof, NOW, NOW + TTL)
    if decision.verdict in {Verdict.UNKNOWN, Verdict.EXPIRED}:
        return RenewalRefusal.UNKNOWN
    if decision.verdict is Verdict.STALE or shard != renewal.shard_id:
        return RenewalRefusal.STALE
    leases[shard] = decision.lease
    assert decision.lease.holder is not None
    return decision.lease.holder


@settings(max_examples=60, deadline=None)
@given(LEASES, ENTRIES, st.booleans())
def test_each_entry_of_a_batch_is_decided_by_the_rules(
    granted: list[tuple[str, int]], entries: list[tuple[int, int, int]], plain: bool
) -> None:
    renewals = [
        Renewal(shard, generation, "" if token == 8 else f"t{token}")
        for shard, token, generation in entries
    ]
    if plain:  # what daemons send
        renewals = [Renewal(shard, 1, f"t{shard}") for shard in range(len(granted))]
    leases = [
        decide(Lease(), Application(daemon, (0, 0), f"t{shard}"), 950, 950 + ttl).lease
        for shard, (daemon, ttl) in enumerate(granted)
    ]

    def run(tx: Transaction) -> tuple[shard_leases.Renewed, list[tuple[int, ...]]]:
        for shard, (daemon, ttl) in enumerate(granted):
            shard_leases.acquire(tx, shard, daemon, f"t{shard}", ttl, lambda: 950)
        renewed = shard_leases.keepalive_batch(tx, renewals, TTL, lambda: NOW)
        return renewed, tx.all("SELECT generation, expires_at FROM shard_leases ORDER BY shard_id")

    async def main() -> tuple[shard_leases.Renewed, list[tuple[int, ...]]]:
        async with Store(None, migrations=MIGRATIONS, runner=Runner.INLINE) as store:
            return await store.write(run)

    renewed, rows = trio.run(main)
    assert renewed.outcomes == [outcome(leases, each) for each in renewals]
    assert rows == [(each.generation, each.expires_at_us) for each in leases]
