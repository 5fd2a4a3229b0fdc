"""Leases: at most one holder, generations that only grow, and tokens that die with their period."""

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from globalstore.rules.fencing import Application, Lease, Proof, Verdict, decide, released

NOW = 1000
UNTIL = 2000
HELD = Lease(3, "a", "t3", (7, 2), UNTIL)


def ask(lease: Lease, claim: Application | Proof, now: int = NOW) -> tuple[Verdict, Lease]:
    decision = decide(lease, claim, now, now + 1000)
    return decision.verdict, decision.lease


def test_what_nobody_ever_had_is_granted_in_the_first_generation() -> None:
    granted = Lease(1, "a", "t", (7, 2), 2000)
    assert ask(Lease(), Application("a", (7, 2), "t")) == (Verdict.GRANT, granted)


def test_the_holder_who_asks_again_keeps_token_and_generation() -> None:
    extended = attrs.evolve(HELD, expires_at_us=2999)
    assert ask(HELD, Application("a", (7, 2), "new"), 1999) == (Verdict.EXTEND, extended)


def test_an_extension_may_shorten() -> None:
    decision = decide(HELD, Proof("t3"), NOW, NOW + 1)
    assert (decision.verdict, decision.lease.expires_at_us) == (Verdict.EXTEND, NOW + 1)


def test_a_live_lease_is_not_given_to_somebody_else() -> None:
    assert ask(HELD, Application("b", (8, 9), "new"), 1999) == (Verdict.HELD, HELD)


@pytest.mark.parametrize("holder", ["a", "b"])
def test_a_lease_that_ran_out_begins_anew_for_whoever_asks(holder: str) -> None:
    granted = Lease(4, holder, "new", (), 3000)
    assert ask(HELD, Application(holder, None, "new"), UNTIL) == (Verdict.GRANT, granted)


def test_a_later_incarnation_of_the_holder_gets_a_lease_of_its_own() -> None:
    granted = Lease(4, "a", "new", (7, 3), 2000)
    assert ask(HELD, Application("a", (7, 3), "new")) == (Verdict.GRANT, granted)


@pytest.mark.parametrize("now", [NOW, UNTIL])
def test_an_earlier_incarnation_of_the_holder_is_stale_for_ever(now: int) -> None:
    assert ask(HELD, Application("a", (7, 1), "new"), now) == (Verdict.STALE, HELD)


def test_a_holder_of_whom_no_incarnation_is_known_is_the_same() -> None:
    assert ask(HELD, Application("a"))[0] is Verdict.EXTEND


@pytest.mark.parametrize(
    "proof",
    [
        Proof("t3"),
        Proof("t3", 3),
        Proof(generation=3),
        Proof(holder="a"),
        Proof("t3", 3, "a"),
    ],
)
def test_whatever_is_shown_has_to_be_that_of_the_live_lease(proof: Proof) -> None:
    assert ask(HELD, proof, UNTIL - 1)[0] is Verdict.EXTEND
    assert ask(HELD, proof, UNTIL) == (Verdict.EXPIRED, HELD)


@pytest.mark.parametrize(
    ("proof", "verdict"),
    [
        (Proof("t2"), Verdict.UNKNOWN),
        (Proof(""), Verdict.UNKNOWN),
        (Proof("t3", 2), Verdict.STALE),
        (Proof("t3", 4), Verdict.STALE),
        (Proof(generation=2), Verdict.STALE),
        (Proof(holder="b"), Verdict.UNKNOWN),
        (Proof("t3", 3, "b"), Verdict.UNKNOWN),
    ],
)
def test_a_proof_that_is_not_of_this_lease_changes_nothing(proof: Proof, verdict: Verdict) -> None:
    assert ask(HELD, proof) == (verdict, HELD)


def test_a_blank_token_is_no_proof_of_a_lease_without_one() -> None:
    assert ask(Lease(1, "a", "", (), UNTIL), Proof(""))[0] is Verdict.UNKNOWN


def test_a_guarded_write_leaves_the_deadline_alone() -> None:
    decision = decide(HELD, Proof(generation=3), NOW)
    assert (decision.verdict, decision.lease) == (Verdict.EXTEND, HELD)


def test_whoever_applies_names_a_deadline() -> None:
    with pytest.raises(ValueError, match="deadline"):
        decide(Lease(), Application("a"), NOW)


@pytest.mark.parametrize("now", [NOW, UNTIL])
def test_the_last_holder_can_release_also_what_ran_out(now: int) -> None:
    free = released(HELD, Proof("t3"), now)
    assert free == Lease(3, expires_at_us=now)
    assert released(free, Proof("t3"), now) is None
    assert ask(free, Proof("t3"), now) == (Verdict.UNKNOWN, free)
    assert ask(free, Application("b", None, "t4"), now)[1].generation == 4


@pytest.mark.parametrize("proof", [Proof("t2"), Proof("t3", 2), Proof("")])
def test_nobody_else_can_release(proof: Proof) -> None:
    assert released(HELD, proof, NOW) is None


# Any history of claims, by few holders and with little time, so that they meet.
HOLDERS = st.sampled_from("ab")
INCARNATIONS = st.none() | st.tuples(st.integers(0, 3))
STEPS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from(["apply", "prove", "release"]),
        HOLDERS,
        INCARNATIONS,
        st.integers(0, 6),  # which of the tokens so far
        st.none() | st.integers(0, 6),  # and which generation, if one is shown
        st.integers(1, 5),  # time that is asked for
    ),
    max_size=40,
)


def histories(steps: list[tuple[Any, ...]]) -> Any:
    """Yield each lease before a step, the claim, its verdict, the lease after it, and the time."""
    lease, now = Lease(), 0
    for number, (passed, kind, holder, incarnation, token, generation, ttl) in enumerate(steps):
        now += passed
        if kind == "apply":
            claim: Application | Proof = Application(holder, incarnation, f"t{number}")
        else:
            claim = Proof(f"t{token}", generation)
        if kind == "release":
            free = released(lease, claim, now)
            yield lease, claim, "release", free or lease, now
            lease = free or lease
            continue
        decision = decide(lease, claim, now, now + ttl)
        yield lease, claim, decision.verdict, decision.lease, now
        lease = decision.lease


@given(STEPS)
def test_a_generation_only_grows_by_one_with_each_period(steps: list[tuple[Any, ...]]) -> None:
    for before, _, verdict, after, _ in histories(steps):
        assert after.generation == before.generation + (verdict is Verdict.GRANT)


@given(STEPS)
def test_at_any_instant_there_is_one_holder_at_most(steps: list[tuple[Any, ...]]) -> None:
    """Nobody loses a live lease but to their own successor or by giving it up."""
    for before, claim, verdict, after, now in histories(steps):
        if before.is_live(now) and verdict != "release":
            assert after.holder == before.holder
            if verdict is Verdict.GRANT:
                assert claim.incarnation > before.incarnation


@given(STEPS)
def test_what_ran_out_is_never_extended(steps: list[tuple[Any, ...]]) -> None:
    for before, _, verdict, _, now in histories(steps):
        assert verdict is not Verdict.EXTEND or before.is_live(now)


@given(STEPS)
def test_a_token_of_an_earlier_period_never_succeeds_again(steps: list[tuple[Any, ...]]) -> None:
    dead: set[str] = set()
    for before, claim, verdict, after, _ in histories(steps):
        if isinstance(claim, Proof) and claim.token in dead:
            assert verdict not in {Verdict.GRANT, Verdict.EXTEND}
            assert after == before
        if before.token and after.token != before.token:
            dead.add(before.token)


@given(STEPS)
def test_a_refusal_changes_nothing(steps: list[tuple[Any, ...]]) -> None:
    for before, _, verdict, after, _ in histories(steps):
        if verdict not in {Verdict.GRANT, Verdict.EXTEND, "release"}:
            assert after == before


@given(STEPS)
def test_an_incarnation_never_comes_after_its_successor_while_the_holder_stays(
    steps: list[tuple[Any, ...]],
) -> None:
    for before, claim, _, after, _ in histories(steps):
        known = isinstance(claim, Application) and claim.incarnation is not None
        if known and after.holder == before.holder:
            assert after.incarnation >= before.incarnation
