"""Whatever is thrown into one group together, each gets what it would have got alone."""

import ledger
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from globalstore.db import Constraint, Full, Runner, Store, StoreOptions, Transaction

KINDS = ("store", "refuse", "orphan", "caught", "duplicate", "fill", "lose all")


def _operation(tx: Transaction, kind: str, number: int) -> str:
    name = f"{number} {kind}"
    if kind == "caught":
        try:
            tx.run("INSERT INTO entry VALUES ('taken', 1)")
        except Constraint:
            return ledger.add(tx, name)
        return "stored what was taken"
    ledger.add(tx, name)
    if kind == "refuse":
        raise ledger.Refusal(name)
    if kind == "orphan":
        ledger.add_note(tx, f"nobody {number}")
    elif kind == "duplicate":
        ledger.add(tx, "taken")
    elif kind == "fill":
        ledger.add_blob(tx, 1_000_000)
    elif kind == "lose all":
        ledger.add_blob_or_lose_all(tx, 1_000_000)
    return name


EXPECTED = {
    "store": str,
    "refuse": ledger.Refusal,
    "orphan": Constraint,
    "caught": str,
    "duplicate": Constraint,
    "fill": Full,
    "lose all": Full,
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(KINDS), max_size=40))
def test_each_operation_of_a_group_ends_as_it_would_alone(kinds):
    outcomes: dict[int, object] = {}
    events: list[str] = []

    async def submit(store, number, kind):
        try:
            outcomes[number] = await store.write(_operation, kind, number)
        except (ledger.Refusal, Constraint, Full) as error:
            outcomes[number] = error

    async def main():
        store = Store(
            None,
            migrations=ledger.MIGRATIONS,
            options=StoreOptions(cache_bytes=1 << 20),
            on_commit=events.extend,
            runner=Runner.INLINE,
        )
        async with store:
            await store.write(ledger.add, "taken")
            await store.write(lambda tx: tx.all("PRAGMA max_page_count = 200"))
            async with trio.open_nursery() as nursery:
                for number, kind in enumerate(kinds):
                    nursery.start_soon(submit, store, number, kind)
            return await store.read(ledger.names), await store.read(_leftovers)

    names, leftovers = trio.run(main)
    assert len(outcomes) == len(kinds)
    for number, kind in enumerate(kinds):
        assert isinstance(outcomes[number], EXPECTED[kind])
    answered = [outcome for outcome in outcomes.values() if isinstance(outcome, str)]
    assert sorted(names) == sorted([*answered, "taken"])
    assert sorted(events) == sorted(names)
    assert leftovers == (0, 0)


def _leftovers(tx):
    return tx.one("SELECT (SELECT count(*) FROM blob), (SELECT count(*) FROM note)")
